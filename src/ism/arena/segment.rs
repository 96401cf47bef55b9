//! Segments: where the payload of a ring lies, as one end has it mapped.

use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::slice;

use bytes::BufMut;

use super::super::budget::Account;
use super::super::dmb::{LARGEST_SEGMENT, SMALLEST_SEGMENT};
use super::super::files::Mapped;
use super::super::ring::Segment;
use super::super::sys::{self, FileId};
use super::{Mapping, Purpose, memory_file, taken, unpaid};
use crate::sync::{Arc, AtomicU8, AtomicU64, Ordering};

/// Memory that the bytes of a ring lie in: the first segment of a slot, or a larger one with a file
/// of its own.
#[derive(Clone, Debug)]
pub(crate) struct DmbSegment {
    /// Keeps what `base` points to.
    #[cfg_attr(not(test), expect(dead_code, reason = "held for its life"))]
    pub(super) mapping: Arc<Mapping>,
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: `base` points into the mapping that `mapping` keeps, which belongs to no thread. What is
// copied from and to there, the callers of `copy_in`, `copy_out` and `copy_across` keep writers and
// readers of a byte apart; what is looked at in place is loaded as atomics; a prefetch accesses
// nothing.
unsafe impl Send for DmbSegment {}
// SAFETY: as above.
unsafe impl Sync for DmbSegment {}

impl DmbSegment {
    pub(super) fn new(mapping: Arc<Mapping>, range: Range<usize>) -> DmbSegment {
        let (base, size) = (mapping.at(range.clone()), range.len());
        DmbSegment { mapping, base, size }
    }

    /// Makes a segment to lend, and the file to send to the peer.
    ///
    /// # Errors
    ///
    /// What is lacking: memory by this process's own budget, or by the system's; descriptors.
    pub(crate) fn create(bytes: usize, account: &Arc<Account>) -> io::Result<(DmbSegment, OwnedFd)> {
        let charge = account.lend(bytes)?;
        let fd = memory_file(bytes)?;
        sys::fallocate(fd.as_fd(), 0, bytes as u64)?;
        let file = Mapped::made(FileId::of(fd.as_fd())?, account.number());
        let mapping = Mapping::new(fd.as_fd(), bytes, account, (Purpose::Lent, file, Some(charge)))?;
        mapping.prefault();
        Ok((DmbSegment::new(mapping, 0..bytes), fd))
    }

    /// Maps a segment that a peer lends, which says that it has so many bytes. May wait for what
    /// the peer does with it.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for an impossible size; `InvalidData` when `fd` is not a sealed memory file
    /// of exactly that size, or has a use already; `OutOfMemory` when its memory is gone, as it is
    /// once the lender is done with it, or beyond this process's budget; otherwise those of the
    /// mapping, which are this process's own.
    pub(crate) fn attach(fd: &OwnedFd, bytes: u64, account: &Arc<Account>) -> io::Result<DmbSegment> {
        let size = usize::try_from(bytes)
            .ok()
            .filter(|size| size.is_power_of_two() && (SMALLEST_SEGMENT..=LARGEST_SEGMENT).contains(size));
        let words = || format!("a segment of {bytes} bytes");
        let size = size.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, words()))?;
        let file = taken(fd, bytes, account)?;
        // It is the lender who pays: touching what has no memory would cost this process. An honest
        // one has closed its stream while the grant was on its way.
        if sys::memory_of(fd.as_fd())? < bytes {
            return Err(unpaid("a segment without the memory it should have"));
        }
        // It can still take the memory away, and keep what is written there then.
        let charge = account.borrow(size)?;
        let mapping = Mapping::new(fd.as_fd(), size, account, (Purpose::Borrowed, file, Some(charge)))?;
        mapping.prefault();
        Ok(DmbSegment::new(mapping, 0..size))
    }

    /// Pointer to `len` bytes at `offset`.
    ///
    /// # Panics
    ///
    /// If they would leave the segment: the one check that keeps every copy inside.
    #[inline]
    fn bytes(&self, offset: usize, len: usize) -> *mut u8 {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.size);
        assert!(fits, "{len} bytes at {offset} of a segment of {}", self.size);
        // SAFETY: `base` is the start of `size` bytes of the mapping, and `offset` lies within
        // them.
        unsafe { self.base.as_ptr().add(offset) }
    }
}

impl Segment for DmbSegment {
    #[inline]
    fn size(&self) -> u64 {
        self.size as u64
    }

    #[inline]
    fn copy_in(&self, offset: usize, src: &[u8]) {
        let to = self.bytes(offset, src.len());
        // SAFETY: `bytes` checked that `to` is valid for src.len() bytes of the mapping, which
        // nothing in this process refers to as bytes; so `src` is elsewhere. The segment's pages
        // were allocated before the ring entered it. The ring lets only its one producer, under its
        // direction's lock, write to this range.
        unsafe { ptr::copy_nonoverlapping(src.as_ptr(), to, src.len()) };
    }

    #[inline]
    fn prefetch(&self, offset: usize) {
        sys::prefetch(self.base.addr().get() + offset);
    }

    #[inline]
    fn copy_out(&self, offset: usize, dst: &mut [MaybeUninit<u8>]) {
        let from = self.bytes(offset, dst.len());
        // SAFETY: as in `copy_in`; `dst` is writable for its length, and MaybeUninit<u8> has the
        // layout of u8. The producer's cursor, acquired before, ordered its bytes before this copy.
        unsafe { ptr::copy_nonoverlapping(from.cast_const(), dst.as_mut_ptr().cast(), dst.len()) };
    }

    fn copy_across(&self, offset: usize, from: &DmbSegment, at: usize, len: usize) {
        let to = self.bytes(offset, len);
        let from = from.bytes(at, len);
        // SAFETY: `bytes` checked both for `len` bytes of a mapping; as in `copy_in` and
        // `copy_out`, who writes to `to` is the one producer of that ring, and what is read from
        // `from` was published. One segment may be the other one (a stream that is joined with its
        // own other end), so they may overlap as far as this function knows.
        unsafe { ptr::copy(from.cast_const(), to, len) };
    }
}

impl DmbSegment {
    /// `len` bytes at `offset`, each of which may change between two loads.
    fn atomics(&self, offset: usize, len: usize) -> &[AtomicU8] {
        let start = self.bytes(offset, len).cast::<AtomicU8>();
        // SAFETY: `bytes` checked that there are `len` bytes, of a mapping that lives as long as
        // `self`; AtomicU8 has the layout of u8, any value is valid, and what is behind a shared
        // reference to it may change. The pages were allocated before the ring entered the segment.
        // In this process nobody writes to bytes that are published and not read yet, and whoever
        // looks at a stream's bytes keeps it open, so that the slot is not cleared. Two readers of
        // one stream can break that: then its sender may write, through another mapping, as one in
        // another process may at any time. The loads below are single ones, whatever it does.
        unsafe { slice::from_raw_parts(start, len) }
    }

    /// The same as words, without the bytes before and behind the aligned ones.
    fn words<'a>(&self, bytes: &'a [AtomicU8]) -> (&'a [AtomicU8], &'a [AtomicU64], &'a [AtomicU8]) {
        // SAFETY: an AtomicU64 is as valid for any eight bytes as eight AtomicU8, and they are only
        // loaded from here.
        unsafe { bytes.align_to::<AtomicU64>() }
    }

    /// One byte.
    ///
    /// # Panics
    ///
    /// If it is not in the segment.
    #[inline]
    pub(crate) fn load(&self, offset: usize) -> u8 {
        // Relaxed, as all loads here: the cursor that published the bytes was acquired before.
        self.atomics(offset, 1)[0].load(Ordering::Relaxed)
    }

    /// Fills `dst` with what is at `offset`, each byte loaded once: what the copy is used for can
    /// not be read from the segment again.
    ///
    /// # Panics
    ///
    /// If that would leave the segment.
    pub(crate) fn load_into(&self, offset: usize, dst: &mut [u8]) {
        let room = ptr::from_mut(dst) as *mut [MaybeUninit<u8>];
        // SAFETY: the same bytes, and `load_all` writes initialised ones only.
        self.load_all(offset, unsafe { &mut *room });
    }

    /// A copy of `len` bytes at `offset`; as [`DmbSegment::load_into`].
    ///
    /// # Panics
    ///
    /// If they are not in the segment.
    pub(crate) fn to_vec(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut copy = Vec::with_capacity(len);
        self.load_all(offset, &mut copy.spare_capacity_mut()[..len]);
        // SAFETY: `load_all` has filled that many bytes, which the vector has room for.
        unsafe { copy.set_len(len) };
        copy
    }

    /// Appends `len` bytes at `offset` to `buf`; as [`DmbSegment::load_into`].
    ///
    /// # Panics
    ///
    /// If they are not in the segment, or `buf` has no room for them.
    pub(crate) fn put_into(&self, offset: usize, len: usize, buf: &mut impl BufMut) {
        let mut done = 0;
        while done < len {
            let chunk = buf.chunk_mut();
            let count = chunk.len().min(len - done);
            assert!(count > 0, "no room for {} more bytes", len - done);
            // SAFETY: `load_all` writes initialised bytes only.
            let room = unsafe { &mut chunk.as_uninit_slice_mut()[..count] };
            self.load_all(offset + done, room);
            // SAFETY: the first `count` bytes of the chunk were filled just now.
            unsafe { buf.advance_mut(count) };
            done += count;
        }
    }

    /// Fills all of `dst`.
    fn load_all(&self, offset: usize, dst: &mut [MaybeUninit<u8>]) {
        let bytes = self.atomics(offset, dst.len());
        let (head, words, tail) = self.words(bytes);
        let (to_head, rest) = dst.split_at_mut(head.len());
        let (to_words, to_tail) = rest.split_at_mut(words.len() * 8);
        for (byte, to) in head.iter().zip(to_head) {
            to.write(byte.load(Ordering::Relaxed));
        }
        for (word, to) in words.iter().zip(to_words.chunks_exact_mut(8)) {
            let loaded = word.load(Ordering::Relaxed).to_ne_bytes();
            to.copy_from_slice(&loaded.map(MaybeUninit::new));
        }
        for (byte, to) in tail.iter().zip(to_tail) {
            to.write(byte.load(Ordering::Relaxed));
        }
    }

    /// The first place of `byte` among `len` bytes at `offset`, counted from there.
    ///
    /// # Panics
    ///
    /// If they would leave the segment.
    pub(crate) fn find(&self, offset: usize, len: usize, byte: u8) -> Option<usize> {
        const LOW: u64 = u64::MAX / 255;
        const HIGH: u64 = LOW << 7;
        let bytes = self.atomics(offset, len);
        let (head, words, tail) = self.words(bytes);
        let place = |bytes: &[AtomicU8]| bytes.iter().position(|one| one.load(Ordering::Relaxed) == byte);
        if let Some(at) = place(head) {
            return Some(at);
        }
        for (number, word) in words.iter().enumerate() {
            // As little-endian, so that the first byte is the lowest. The lowest of the marked
            // bytes is one that is zero, whatever is marked above it.
            let differ = u64::from_le(word.load(Ordering::Relaxed)) ^ (LOW * u64::from(byte));
            let marks = differ.wrapping_sub(LOW) & !differ & HIGH;
            if marks != 0 {
                return Some(head.len() + number * 8 + marks.trailing_zeros() as usize / 8);
            }
        }
        place(tail).map(|at| head.len() + words.len() * 8 + at)
    }
}
