//! What safe Rust has no words for: memory that a victim writes at the same time, the cookie of a
//! network namespace, and the lock of a file that is never let go.
#![allow(unsafe_code, reason = "the memory is shared with another process: no safe type describes it")]
#![allow(clippy::disallowed_types, reason = "this is another process than the one that loom sees")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use memmap2::{MmapMut, MmapOptions, MmapRaw};

/// A whole memory file, mapped shared. Every access is atomic, so that nothing here is undefined
/// whatever the victim does meanwhile.
pub(crate) struct Memory(MmapRaw);

impl Memory {
    pub(crate) fn map(file: impl AsFd) -> io::Result<Memory> {
        MmapOptions::new().map_raw(file.as_fd().as_raw_fd()).map(Memory)
    }

    fn at<T>(&self, place: usize) -> *mut T {
        assert!(place % size_of::<T>() == 0 && place + size_of::<T>() <= self.0.len(), "{place} is no place");
        // SAFETY: within the mapping, by the assertion.
        unsafe { self.0.as_mut_ptr().add(place).cast() }
    }

    pub(crate) fn u64(&self, place: usize) -> &AtomicU64 {
        // SAFETY: in bounds and aligned (`at` has asserted that; a mapping begins at a page), valid
        // as long as `self`, and every access in this process is atomic.
        unsafe { AtomicU64::from_ptr(self.at(place)) }
    }

    pub(crate) fn u32(&self, place: usize) -> &AtomicU32 {
        // SAFETY: as in `u64`.
        unsafe { AtomicU32::from_ptr(self.at(place)) }
    }

    fn byte(&self, place: usize) -> &AtomicU8 {
        // SAFETY: as in `u64`.
        unsafe { AtomicU8::from_ptr(self.at(place)) }
    }

    pub(crate) fn put(&self, place: usize, bytes: &[u8]) {
        for (at, byte) in bytes.iter().enumerate() {
            self.byte(place + at).store(*byte, Ordering::Relaxed);
        }
    }
}

/// Writes the first bytes of a connection over lo, by IPv4; the number with which it began to
/// count.
pub(crate) fn initial_sequence(socket: impl AsFd, first: &[u8]) -> io::Result<u32> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: all zeros are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    let mut vector = libc::iovec { iov_base: first.as_ptr().cast_mut().cast(), iov_len: first.len() };
    let mut control = [0u64; 8];
    (message.msg_iov, message.msg_iovlen) = (&raw mut vector, 1);
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: the calls compute numbers and places in `control`, which has room for one int.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SO_TIMESTAMPING;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(header).cast::<u32>().write_unaligned(libc::SOF_TIMESTAMPING_TX_SCHED);
    }
    // SAFETY: the message describes `first` and `control`, which outlive the call.
    let sent = unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL) };
    assert_eq!(sent, first.len() as isize, "{}", io::Error::last_os_error());
    let mut packet = [0u8; 192];
    let mut vector = libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() };
    message.msg_iov = &raw mut vector;
    (message.msg_control, message.msg_controllen) = (std::ptr::null_mut(), 0);
    // SAFETY: the message describes `packet`, which outlives the call.
    let length = unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    // Behind lo's link header of 14 bytes and IP's of 20, TCP's ports.
    let sequence = u32::from_be_bytes(packet[38..42].try_into().expect("4 bytes"));
    Ok(sequence.wrapping_sub(1))
}

/// `SO_NETNS_COOKIE`.
pub(crate) fn network_namespace(socket: impl AsFd) -> io::Result<u64> {
    let (mut cookie, mut length) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: both pointers are of live values, and the kernel writes no more than `length` bytes.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if failed == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// The lock of a file's inode, which a write holds whose bytes never come, as long as this lives.
pub(crate) struct FileLock {
    _pages: OwnedFd,
}

impl FileLock {
    /// `None` for users whom the kernel gives no such page.
    pub(crate) fn hold(file: impl AsFd) -> Option<FileLock> {
        // Of <linux/userfaultfd.h>.
        const API: u64 = 0xAA;
        const IOCTL_API: libc::Ioctl = 0xC018_AA3F_u32 as libc::Ioctl;
        const IOCTL_REGISTER: libc::Ioctl = 0xC020_AA00_u32 as libc::Ioctl;
        const MISSING: u64 = 1;
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the call above has just made it.
        let pages = unsafe { OwnedFd::from_raw_fd(fd) };
        let source = MmapMut::map_anon(4096).expect("a page");
        let mut api = [API, 0, 0];
        let mut register = [source.as_ptr() as u64, source.len() as u64, MISSING, 0];
        // SAFETY: both write to arrays of the size that the numbers of the calls say.
        unsafe {
            assert_eq!(libc::ioctl(pages.as_raw_fd(), IOCTL_API, api.as_mut_ptr()), 0);
            assert_eq!(libc::ioctl(pages.as_raw_fd(), IOCTL_REGISTER, register.as_mut_ptr()), 0);
        }
        let file = file.as_fd().try_clone_to_owned().expect("a descriptor");
        thread::spawn(move || {
            // SAFETY: the kernel reads 4096 bytes of a mapping of that size; that they are not
            // there is its business.
            unsafe { libc::pwrite(file.as_raw_fd(), source.as_ptr().cast(), 4096, 8192) };
        });
        // It waits in the kernel by then.
        sleep(Duration::from_millis(100));
        Some(FileLock { _pages: pages })
    }
}
