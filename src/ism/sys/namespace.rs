//! In which pid namespace the peer of a unix socket lives.
#![expect(unsafe_code, reason = "SO_PEERPIDFD, which rustix lacks")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::{fs, io};

use super::credentials::peer_cred;

/// `SO_PEERPIDFD` of Linux include/uapi/asm-generic/socket.h, since 6.5.
const SO_PEERPIDFD: i32 = if cfg!(any(target_arch = "sparc", target_arch = "sparc64")) { 0x56 } else { 77 };

/// A pidfd of the process that was at the other end when the connection was made.
fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut number = [0; 4];
    match super::socket::option(socket, libc::SOL_SOCKET, SO_PEERPIDFD, &mut number)?.len() {
        // SAFETY: the kernel has just made that descriptor, for us alone.
        4 => Ok(unsafe { OwnedFd::from_raw_fd(i32::from_ne_bytes(number)) }),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// In how many pid namespaces a process has a number, counted from the one that /proc shows.
fn depth(status: &str) -> Option<usize> {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    // A process that has ended, or that /proc can not show, has a number that is none.
    let valid = numbers.split_whitespace().all(|number| number.parse::<u32>().is_ok_and(|number| number > 0));
    let count = numbers.split_whitespace().count();
    (valid && count > 0).then_some(count)
}

/// Whether the process at the other end of a unix connection lives in our own pid namespace, as far
/// as that can be known: it lives still, the kernel is 6.5 or newer, and there is a /proc.
///
/// A process with a number in our namespace lives in that or in one below; and below, it has more
/// numbers than we have. The pidfd is of that very process, whatever its number is used for
/// meanwhile, and whichever namespace /proc is of.
pub(crate) fn shares_pid_namespace(socket: BorrowedFd<'_>) -> bool {
    let known = || {
        if peer_cred(socket)?.pid == 0 {
            return Ok(false);
        }
        let pidfd = peer_pidfd(socket)?;
        let theirs = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
        let ours = fs::read_to_string("/proc/self/status")?;
        Ok::<_, io::Error>(depth(&ours).is_some_and(|ours| depth(&theirs) == Some(ours)))
    };
    known().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn numbers_are_counted_and_those_that_are_none_do_not_count() {
        assert_eq!(depth("Name:\tx\nNSpid:\t77\nNSsid:\t1\t2\n"), Some(1));
        assert_eq!(depth("Pid:\t77\nNSpid:\t77\t1\n"), Some(2));
        for none in ["Pid:\t77\n", "NSpid:\t0\n", "NSpid:\t-1\n", "NSpid:\n", ""] {
            assert_eq!(depth(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_process_shares_its_own_namespace() {
        let (a, _b) = UnixStream::pair().unwrap();
        // Before Linux 6.5 nobody can tell.
        assert_eq!(shares_pid_namespace(a.as_fd()), peer_pidfd(a.as_fd()).is_ok());
        assert!(!shares_pid_namespace(std::fs::File::open("/dev/null").unwrap().as_fd()));
    }
}
