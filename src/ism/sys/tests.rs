//! What a hostile process does to memory that it shares with this one.
#![expect(unsafe_code, reason = "userfaultfd, which rustix does not wrap whole")]

pub(crate) mod nursery;

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::thread::JoinHandle;

use memmap2::MmapMut;

/// Linux include/uapi/linux/userfaultfd.h.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFD_API: u64 = 0xaa;
const MODE_MISSING: u64 = 1;

/// Holds the lock of a file (its inode's) until it is dropped: somebody writes to the file, and the
/// page that he writes from does not come.
pub(crate) struct FileLock {
    pages: Option<OwnedFd>,
    writer: Option<JoinHandle<()>>,
}

impl FileLock {
    /// `None` for users whom the kernel gives no such page.
    pub(crate) fn hold(file: BorrowedFd<'_>) -> Option<FileLock> {
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the call above has just made it.
        let pages = unsafe { OwnedFd::from_raw_fd(fd) };
        let source = MmapMut::map_anon(4096).unwrap();
        let mut api = [UFFD_API, 0, 0];
        let mut register = [source.as_ptr() as u64, source.len() as u64, MODE_MISSING, 0];
        // SAFETY: both write to arrays of the size that the numbers of the calls say.
        unsafe {
            assert_eq!(libc::ioctl(pages.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()), 0);
            assert_eq!(libc::ioctl(pages.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()), 0);
        }
        let file = File::from(file.try_clone_to_owned().unwrap());
        let (tell, told) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            // SAFETY: a system call without pointers.
            tell.send(unsafe { libc::syscall(libc::SYS_gettid) }).unwrap();
            // SAFETY: the kernel reads 4096 bytes of a mapping of that size; that they are not
            // there is its business.
            unsafe { libc::pwrite(file.as_raw_fd(), source.as_ptr().cast(), 4096, 0) };
        });
        let thread = told.recv().unwrap();
        // It waits in the kernel, and has the lock by then.
        loop {
            let status = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).unwrap();
            if status.split(' ').next() == Some(&libc::SYS_pwrite64.to_string()) {
                let wchan = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
                if !wchan.contains(") R ") {
                    break;
                }
            }
            std::thread::yield_now();
        }
        Some(FileLock { pages: Some(pages), writer: Some(writer) })
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // The page comes, as any other.
        self.pages.take();
        if let Some(writer) = self.writer.take() {
            writer.join().unwrap();
        }
    }
}
