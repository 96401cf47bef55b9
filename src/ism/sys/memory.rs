//! Sealed memory files: what an arena is made of.
#![expect(
    unsafe_code,
    reason = "mincore, PR_GET_SECCOMP and MADV_POPULATE_WRITE, which rustix lacks or reads the auxiliary vector for; a prefetch"
)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, FileType, MemfdFlags, OFlags, SealFlags};
use rustix::io::{Errno, retry_on_intr};

/// Type of tmpfs in `statfs` (Linux include/uapi/linux/magic.h). A memfd on huge pages has another
/// one: it takes seals as well, but not 4 KiB pieces.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Seals without which the other side could take pages away from under a mapping (SIGBUS) or add
/// such seals later.
const REQUIRED: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Seals that make a memory file useless as a buffer both sides write to.
const READ_ONLY: SealFlags = SealFlags::WRITE.union(SealFlags::FUTURE_WRITE);

/// A sparse anonymous memory file of exactly `bytes`, sealed so that neither side can change its
/// size.
///
/// # Errors
///
/// `EFBIG` when `RLIMIT_FSIZE` forbids a file of that size: the kernel would say so by ending the
/// process.
pub(crate) fn memfd_sealed(bytes: u64) -> io::Result<OwnedFd> {
    if super::means::largest_file().is_some_and(|largest| bytes > largest) {
        return Err(Errno::FBIG.into());
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match rustix::fs::memfd_create(c"tokio-smc", flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3 there is no such flag.
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"tokio-smc", flags)?,
        other => other?,
    };
    rustix::fs::ftruncate(&fd, bytes)?;
    rustix::fs::fcntl_add_seals(&fd, REQUIRED)?;
    Ok(fd)
}

/// What names a file as long as it exists, by whatever descriptor: its device and its inode. A
/// memory file's numbers are not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(crate) fn of(fd: BorrowedFd<'_>) -> io::Result<FileId> {
        let stat = rustix::fs::fstat(fd)?;
        // Their types depend on the architecture.
        Ok(FileId { device: stat.st_dev as u64, inode: stat.st_ino as u64 })
    }
}

/// Checks that `fd`, which came from a peer, is a writable sealed memory file of exactly `bytes`.
///
/// Takes none of the file's locks, which the peer may hold.
///
/// # Errors
///
/// `InvalidData`, saying what is wrong with it.
pub(crate) fn verify_memfd(fd: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    let refuse = |what: String| {
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("memory from the peer {what}")))
    };
    let stat = rustix::fs::fstat(fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return refuse("is not a memory file".into());
    }
    // The width and sign of f_type depend on the architecture; the value fits 32 bits everywhere.
    if rustix::fs::fstatfs(fd)?.f_type as u64 & 0xffff_ffff != TMPFS_MAGIC {
        return refuse("is not on tmpfs".into());
    }
    let seals = match rustix::fs::fcntl_get_seals(fd) {
        Ok(seals) => seals,
        Err(Errno::INVAL) => return refuse("cannot be sealed".into()),
        Err(errno) => return Err(errno.into()),
    };
    if !seals.contains(REQUIRED) {
        return refuse(format!("lacks the seals {:?}", REQUIRED - seals));
    }
    if seals.intersects(READ_ONLY) {
        return refuse(format!("is sealed against writing ({:?})", seals & READ_ONLY));
    }
    if rustix::fs::fcntl_getfl(fd)? & OFlags::RWMODE != OFlags::RDWR {
        return refuse("is not open for reading and writing".into());
    }
    // Last: only now is the size final.
    let stat = rustix::fs::fstat(fd)?;
    if u64::try_from(stat.st_size).ok() != Some(bytes) {
        return refuse(format!("has {} bytes instead of {bytes}", stat.st_size));
    }
    Ok(())
}

/// Bytes of memory that the file takes.
pub(crate) fn memory_of(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::fs::fstat(fd)?.st_blocks.unsigned_abs() * 512)
}

/// Gives the range pages. Touching it cannot raise SIGBUS afterwards, whatever the system's memory
/// is worth; bytes already there stay.
///
/// # Errors
///
/// `StorageFull` or `OutOfMemory` when there is no memory, and then nothing has changed.
pub(crate) fn fallocate(fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> io::Result<()> {
    retry_on_intr(|| rustix::fs::fallocate(fd, FallocateFlags::KEEP_SIZE, offset, bytes))?;
    Ok(())
}

/// Whether all these bytes of a mapped file are in memory; without touching them, which would give
/// them what is missing. What was swapped out is not.
///
/// Under a filter of system calls they are touched: many filters (systemd's `@system-service`, for
/// one) do not know mincore, and end the process for it.
pub(crate) fn is_resident(start: NonNull<u8>, bytes: usize) -> io::Result<bool> {
    // Not by rustix, which reads the auxiliary vector: not where Valgrind runs us.
    // SAFETY: the call touches no memory.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let first = start.as_ptr() as usize / page * page;
    let pages = (start.as_ptr() as usize + bytes - first).div_ceil(page);
    if is_filtered() {
        return populate(first, pages * page);
    }
    let mut each = [0_u8; 64];
    for from in (0..pages).step_by(each.len()) {
        let many = each.len().min(pages - from);
        let at = (first + from * page) as *mut libc::c_void;
        // SAFETY: mincore reads no memory at that address, and refuses one where nothing is mapped.
        // It writes a byte for each page to `each`, which has room for `many`.
        if unsafe { libc::mincore(at, many * page, each.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        if each[..many].iter().any(|page| page & 1 == 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Does a filter look at the system calls of this thread?
pub(crate) fn is_filtered() -> bool {
    // SAFETY: the call takes integers and touches no memory.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) != 0 }
}

/// Enters pages of a mapped file into this process's page table, in whole; `false` when there is no
/// memory for them.
fn populate(first: usize, bytes: usize) -> io::Result<bool> {
    // SAFETY: the advice changes no byte: pages that are there stay as they are, and missing ones
    // become zeros, which is what they are read as. It refuses a place where nothing is mapped.
    let done = unsafe { libc::madvise(first as *mut libc::c_void, bytes, libc::MADV_POPULATE_WRITE) };
    if done == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if [Some(libc::ENOMEM), Some(libc::EFAULT)].contains(&error.raw_os_error()) => Ok(false),
        error => Err(error),
    }
}

/// Takes the pages of the range away, as a peer may; it reads as zeros until written again.
#[cfg(test)]
pub(crate) fn punch(fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    retry_on_intr(|| rustix::fs::fallocate(fd, flags, offset, bytes))?;
    Ok(())
}

/// Asks the processor to fetch the cache line of an address, while other work goes on. Nothing is
/// read: any address will do.
#[inline]
pub(crate) fn prefetch(address: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which accesses nothing: the processor ignores an address that is not
        // mapped (Intel SDM and AMD64 APM, PREFETCHh), and the language sees no access.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::without_provenance(address)) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address;
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    fn memfd(bytes: u64, seals: SealFlags) -> OwnedFd {
        let fd = rustix::fs::memfd_create(c"test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&fd, bytes).unwrap();
        rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
        fd
    }

    fn refusal(fd: &OwnedFd, bytes: u64) -> String {
        let error = verify_memfd(fd.as_fd(), bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        error.to_string()
    }

    #[test]
    fn what_we_make_is_what_we_accept() {
        let fd = memfd_sealed(1 << 20).unwrap();
        verify_memfd(fd.as_fd(), 1 << 20).unwrap();
        assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        assert_eq!(rustix::fs::ftruncate(&fd, 4096), Err(Errno::PERM), "cannot shrink");
        assert_eq!(rustix::fs::ftruncate(&fd, 2 << 20), Err(Errno::PERM), "cannot grow");
        assert_eq!(rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE), Err(Errno::PERM), "final");
    }

    #[test]
    fn every_subset_of_the_seals_is_judged() {
        let each =
            [SealFlags::SHRINK, SealFlags::GROW, SealFlags::SEAL, SealFlags::WRITE, SealFlags::FUTURE_WRITE];
        for set in 0..1u32 << each.len() {
            let chosen = |bit: usize| set & (1 << bit) != 0;
            let seals = each
                .iter()
                .enumerate()
                .filter(|(bit, _)| chosen(*bit))
                .fold(SealFlags::empty(), |all, (_, s)| all | *s);
            let fd = memfd(8192, seals);
            let good = set == 0b00111;
            let verdict = verify_memfd(fd.as_fd(), 8192);
            assert_eq!(verdict.is_ok(), good, "{seals:?}: {verdict:?}");
            if !good {
                let words = refusal(&fd, 8192);
                let lacks = !seals.contains(REQUIRED);
                assert!(words.contains(if lacks { "lacks the seals" } else { "against writing" }), "{words}");
            }
        }
    }

    #[test]
    fn only_the_exact_size_is_accepted() {
        for size in [0, 8191, 8193, 4096, 1 << 30] {
            assert!(refusal(&memfd(8192, REQUIRED), size).contains("has 8192 bytes"));
        }
    }

    #[test]
    fn other_files_are_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let words = refusal(&file.into(), 8192);
        assert!(words.contains("tmpfs") || words.contains("seal"), "{words}");

        let shm = tempfile::tempfile_in("/dev/shm").unwrap();
        shm.set_len(8192).unwrap();
        assert!(refusal(&shm.into(), 8192).contains("lacks the seals"), "tmpfs, but it could be truncated");

        assert!(refusal(&File::open("/dev/zero").unwrap().into(), 8192).contains("not a memory file"));
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(refusal(&socket.into(), 8192).contains("not a memory file"));
        let dir = File::open("/dev/shm").unwrap();
        assert!(refusal(&dir.into(), 8192).contains("not a memory file"));
    }

    #[test]
    fn a_read_only_description_is_refused() {
        use std::os::fd::AsRawFd;
        let fd = memfd_sealed(8192).unwrap();
        let again = File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        assert!(refusal(&again.into(), 8192).contains("reading and writing"));
    }

    #[test]
    fn pages_come_and_go() {
        let file = File::from(memfd_sealed(1 << 20).unwrap());
        let pages = || file.metadata().unwrap().blocks() * 512 / 4096;
        assert_eq!(pages(), 0, "sparse");
        fallocate(file.as_fd(), 8192, 16384).unwrap();
        assert_eq!(pages(), 4);
        file.write_all_at(b"stays", 8192).unwrap();
        fallocate(file.as_fd(), 4096, 16384).unwrap();
        assert_eq!(pages(), 5);
        let mut found = [0; 5];
        file.read_exact_at(&mut found, 8192).unwrap();
        assert_eq!(&found, b"stays");
        punch(file.as_fd(), 8192, 4096).unwrap();
        assert_eq!(pages(), 4);
        file.read_exact_at(&mut found, 8192).unwrap();
        assert_eq!(found, [0; 5]);
        assert!(fallocate(file.as_fd(), 1 << 20, 4096).is_err(), "beyond the end");
        assert_eq!(pages(), 4);
    }
}
