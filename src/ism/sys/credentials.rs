//! Who is at the other end of a unix connection.

#![expect(unsafe_code, reason = "SO_PEERCRED as plain integers, and SO_PEERGROUPS, which rustix lacks")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Groups that a process can be in (NGROUPS_MAX of Linux).
const MOST_GROUPS: usize = 65536;

/// Who was at the other end of a unix connection when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerCred {
    /// Process id as this process sees it; 0 when the peer lives in a pid namespace we cannot look
    /// into.
    pub(crate) pid: i32,
    /// Effective user id then.
    pub(crate) uid: u32,
    /// Effective group id then.
    pub(crate) gid: u32,
}

/// The credentials of the peer of a connected unix socket (SO_PEERCRED).
pub(crate) fn peer_cred(fd: BorrowedFd<'_>) -> io::Result<PeerCred> {
    // Not rustix's `socket_peercred`: its pid type cannot hold the 0 that peers in other pid
    // namespaces have.
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let size = size_of::<libc::ucred>() as libc::socklen_t;
    let mut length = size;
    // SAFETY: the pointers are to a `ucred` and to its size; the call writes no more than that many
    // bytes.
    let status = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut length,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    if length != size {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(PeerCred { pid: cred.pid, uid: cred.uid, gid: cred.gid })
}

/// The supplementary groups that the peer of a connected unix socket had when it was connected
/// (SO_PEERGROUPS, Linux 4.13).
pub(crate) fn peer_groups(fd: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups: Vec<u32> = vec![0; 32];
    loop {
        let size = size_of_val(&groups[..]) as libc::socklen_t;
        let mut length = size;
        // SAFETY: the pointers are to `size` bytes and to that number; the call writes no more than
        // that many bytes.
        let status = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let needed = length as usize / size_of::<u32>();
        if status == 0 {
            groups.truncate(needed);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // There are more: the kernel says how many, once, and never more than NGROUPS_MAX.
        if error.raw_os_error() != Some(libc::ERANGE) || needed <= groups.len() || needed > MOST_GROUPS {
            return Err(error);
        }
        groups.resize(needed, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn all_groups_of_a_peer_are_told_however_many() {
        if !rustix::process::geteuid().is_root() {
            // Only root can be in others.
            return;
        }
        for count in [0, 1, 31, 32, 33, 1000] {
            // Of this thread alone.
            let told = std::thread::spawn(move || {
                let groups: Vec<_> = (5000..5000 + count).map(rustix::process::Gid::from_raw).collect();
                rustix::thread::set_thread_groups(&groups).unwrap();
                let (ours, _theirs) = UnixStream::pair().unwrap();
                peer_groups(ours.as_fd()).unwrap()
            });
            assert_eq!(told.join().unwrap(), Vec::from_iter(5000..5000 + count));
        }
        assert!(peer_groups(std::fs::File::open("/dev/null").unwrap().as_fd()).is_err());
    }
}
