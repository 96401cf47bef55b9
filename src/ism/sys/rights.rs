//! Descriptors that others send us: whether they may at all, and which of them close at once.
#![expect(unsafe_code, reason = "SO_PASSRIGHTS, which rustix and libc lack")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::SealFlags;
use rustix::io::Errno;

/// `SO_PASSRIGHTS` of Linux include/uapi/asm-generic/socket.h, since 6.16.
pub(crate) const SO_PASSRIGHTS: i32 =
    if cfg!(any(target_arch = "sparc", target_arch = "sparc64")) { 0x5c } else { 83 };

/// Bytes of a memory file up to which its last close, which frees them, is short.
const MOST_BYTES: i64 = 256 << 20;

fn set(fd: BorrowedFd<'_>, value: i32) -> io::Result<()> {
    let size = size_of::<i32>() as libc::socklen_t;
    let value = (&raw const value).cast();
    // SAFETY: the pointer is to an int, whose size is given.
    let status = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, SO_PASSRIGHTS, value, size) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Nobody can send descriptors to the unix socket `fd`, nor to the sockets that it will accept:
/// `sendmsg` fails there (EPERM).
///
/// # Errors
///
/// `ENOPROTOOPT` before Linux 6.16: whoever reaches the socket can fill its queue with them.
pub(crate) fn refuse_rights(fd: BorrowedFd<'_>) -> io::Result<()> {
    set(fd, 0)
}

/// The peer may send descriptors from now on.
pub(crate) fn allow_rights(fd: BorrowedFd<'_>) {
    // A kernel that does not know the option has never refused them.
    let _ = set(fd, 1);
}

/// Whether the queue of `fd` can not hold a descriptor of somebody else; for sockets that have
/// never allowed it.
pub(crate) fn refuses_rights(fd: BorrowedFd<'_>) -> bool {
    let mut value = [0; 4];
    let known = super::socket::option(fd, libc::SOL_SOCKET, SO_PASSRIGHTS, &mut value);
    known.is_ok_and(|value| value == 0i32.to_ne_bytes())
}

/// Whether the last close of `fd`, which somebody else sent, waits for nothing: it is an eventfd,
/// or a memory file whose size is final and not huge.
///
/// No question is asked that its owner might have to answer: fstat(2) of a file system in user
/// space waits, too.
///
/// # Errors
///
/// When /proc does not tell, or this process may not ask (a sandbox).
pub(super) fn closes_at_once(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // Only memory files (tmpfs, hugetlbfs) have seals; all others are refused by the kernel itself.
    match rustix::fs::fcntl_get_seals(fd) {
        Ok(seals) if seals.contains(SealFlags::GROW) => Ok(rustix::fs::fstat(fd)?.st_size <= MOST_BYTES),
        Ok(_) => Ok(false),
        Err(Errno::INVAL) => super::event::is_eventfd(fd),
        Err(errno @ (Errno::PERM | Errno::ACCESS | Errno::NOSYS)) => Err(errno.into()),
        Err(_) => Ok(false),
    }
}
