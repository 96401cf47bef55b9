//! What safe Rust has no words for: memory that a victim writes at the same time, and the cookie of
//! a network namespace.
#![allow(unsafe_code, reason = "the memory is shared with another process: no safe type describes it")]
#![allow(clippy::disallowed_types, reason = "this is another process than the one that loom sees")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

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
