//! Arenas and segments: the shared memory an endpoint lends to one peer.
//!
//! An arena is one sealed memory file, made by the endpoint that *receives* through it and mapped
//! by both:
//!
//! ```text
//! control     signal bits, raised by the peer for the arena's owner
//! headers     one DMB header of 1 KiB per slot
//! firsts      segment 0 of every slot, 4 KiB each
//! ```
//!
//! All of it is dense, so that idle connections share page tables and 64 of them have room in
//! 384 KiB of address space. A larger segment of a ring is a memory file of its own, made by the
//! receiver when the sender asks for it.
//!
//! The owner gives pages their memory before a token or a segment leaves its process, and the peer
//! before it first touches them (which costs nothing when the owner was honest): when memory runs
//! out somebody is told so by an error, never by SIGBUS. No descriptor is needed once a file is
//! mapped. Nothing of it is inherited by a forked child or written to a core dump.
//!
//! # What makes the raw copies sound
//!
//! Mapped memory is never a slice or a reference to bytes. Headers and signal bits consist of
//! atomics only and may be referred to. Payload is copied through raw pointers; the ring's cursors,
//! validated on each load, keep sender and receiver apart within this process. What a hostile
//! *process* writes at the same time cannot be helped: it may change what the bytes are (they are
//! its own bytes), and nothing else depends on them.
#![expect(unsafe_code, reason = "the memory is shared with another process: no safe type describes it")]

#[cfg(test)]
mod tests;

use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};

use super::budget::{self, Charge, MappingPlace, Need};
use super::dmb::{DmbHeader, HEADER_BYTES, LARGEST_SEGMENT, SMALLEST_SEGMENT};
use super::interrupt::{CONNECTIONS, SignalPage};
use super::ring::{Memory, Segment};
use super::sys;
use crate::sync::{Arc, Mutex, lock};

/// Size of the control part, at the beginning of an arena.
pub(crate) const CONTROL_BYTES: usize = 16 * 1024;

/// Alignment of the parts of an arena: the largest page size of the platforms Linux runs on.
const PART: usize = 64 * 1024;

/// What is entered into the page table as a segment is mapped. Who fills more waits for its pages
/// in good company.
const MOST_PREFAULTED: usize = 256 * 1024;

const _: () = {
    assert!(size_of::<SignalPage>() <= CONTROL_BYTES);
    assert!(size_of::<DmbHeader>() <= HEADER_BYTES);
    assert!(HEADER_BYTES % align_of::<DmbHeader>() == 0 && CONTROL_BYTES % align_of::<DmbHeader>() == 0);
    // Both are views of a page-aligned mapping.
    assert!(align_of::<DmbHeader>() <= 4096 && align_of::<SignalPage>() <= 4096);
};

/// Where things are in an arena; both sides compute it from its number of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    slots: u32,
    firsts: usize,
    total: usize,
}

impl Layout {
    fn new(slots: u32) -> io::Result<Layout> {
        if slots == 0 || slots > CONNECTIONS {
            let words = format!("an arena of {slots} slots: it has 1 to {CONNECTIONS}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, words));
        }
        // At most 2^15 slots of 5 KiB.
        let count = slots as usize;
        let firsts = (CONTROL_BYTES + count * HEADER_BYTES).next_multiple_of(PART);
        let total = (firsts + count * SMALLEST_SEGMENT).next_multiple_of(PART);
        Ok(Layout { slots, firsts, total })
    }

    /// The header of a slot.
    fn header(&self, slot: u32) -> Range<usize> {
        assert!(slot < self.slots, "slot {slot} of {}", self.slots);
        let start = CONTROL_BYTES + slot as usize * HEADER_BYTES;
        start..start + HEADER_BYTES
    }

    /// Segment 0 of a slot.
    fn first(&self, slot: u32) -> Range<usize> {
        assert!(slot < self.slots, "slot {slot} of {}", self.slots);
        let start = self.firsts + slot as usize * SMALLEST_SEGMENT;
        start..start + SMALLEST_SEGMENT
    }
}

/// A memory file that is sent to a peer, then closed.
fn memory_file(bytes: usize) -> io::Result<OwnedFd> {
    let fd = sys::memfd_sealed(bytes as u64)?;
    budget::spare_the_last(fd.as_raw_fd(), Need::Moment)?;
    Ok(fd)
}

/// A memory file mapped into this process.
#[derive(Debug)]
struct Mapping {
    map: MmapRaw,
    /// Of a segment that is ours to lend.
    charge: Option<Charge>,
    _place: MappingPlace,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.charge.is_some() {
            // Else this process would pay for what the peer goes on to map. What an honest one
            // still writes there nobody reads. SAFETY: nothing in this process refers to the memory
            // any more, which is about to be unmapped; what the advice takes away are pages of a
            // file that stays as long as it is.
            let _ = unsafe { self.map.unchecked_advise(UncheckedAdvice::Remove) };
        }
    }
}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, bytes: usize, charge: Option<Charge>) -> io::Result<Arc<Mapping>> {
        let place = budget::admit_mapping(bytes)?;
        let map = MmapOptions::new().len(bytes).no_reserve_swap().map_raw(fd.as_raw_fd())?;
        // A child must not write to our peers' rings, and needs none of this memory.
        map.advise(Advice::DontFork)?;
        // Other people's bytes, and much of them.
        map.advise(Advice::DontDump)?;
        Ok(Arc::new(Mapping { map, charge, _place: place }))
    }

    /// Gives the range its pages. Touching it cannot raise SIGBUS afterwards, unless whoever has
    /// the file takes pages away; bytes already there stay.
    fn populate(&self, range: Range<usize>) -> io::Result<()> {
        self.map.advise_range(Advice::PopulateWrite, range.start, range.len())
    }

    /// Enters the first pages, which are there, into this process's page table: all at once, and
    /// before a read or write of the application waits for it, page by page.
    fn prefault(&self) {
        // Nothing depends on it.
        let _ = self.populate(0..self.map.len().min(MOST_PREFAULTED));
    }

    /// Pointer to `range`.
    ///
    /// # Panics
    ///
    /// If it would leave the mapping.
    fn bytes(&self, range: Range<usize>) -> NonNull<u8> {
        assert!(range.start <= range.end && range.end <= self.map.len(), "{range:?} of {}", self.map.len());
        // SAFETY: `range` lies within the mapping, which is nowhere at address 0.
        unsafe { NonNull::new_unchecked(self.map.as_mut_ptr().add(range.start)) }
    }
}

/// An arena's mapping in this process.
#[derive(Debug)]
pub(crate) struct ArenaMap {
    mapping: Arc<Mapping>,
    layout: Layout,
}

impl ArenaMap {
    fn map(fd: BorrowedFd<'_>, layout: Layout) -> io::Result<Arc<ArenaMap>> {
        let map = ArenaMap { mapping: Mapping::new(fd, layout.total, None)?, layout };
        // Whoever made the file may not have given the signal bits their pages, or may have taken
        // them away.
        map.mapping.populate(0..CONTROL_BYTES)?;
        Ok(Arc::new(map))
    }

    /// Maps the arena of a peer, which says that it has so many slots.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for an impossible number; `InvalidData` when `fd` is not a sealed memory file
    /// of exactly the size that follows from it; otherwise those of the mapping, which are this
    /// process's own.
    pub(crate) fn attach(fd: &OwnedFd, slots: u32) -> io::Result<Arc<ArenaMap>> {
        let layout = Layout::new(slots)?;
        sys::verify_memfd(fd.as_fd(), layout.total as u64)?;
        ArenaMap::map(fd.as_fd(), layout)
    }

    /// Number of slots.
    pub(crate) fn slots(&self) -> u32 {
        self.layout.slots
    }

    /// The signal bits of the arena's owner.
    pub(crate) fn signals(&self) -> &SignalPage {
        // SAFETY: the mapping is page-aligned, longer than CONTROL_BYTES >= size_of::<SignalPage>()
        // and lives as long as `self`. A SignalPage consists of atomics, for which any bytes are
        // valid, and is never accessed otherwise. Its pages were allocated by `map` and the seals
        // keep the file from shrinking.
        unsafe { &*self.mapping.map.as_ptr().cast::<SignalPage>() }
    }

    /// The memory of a slot whose header and first segment have their pages: one that
    /// [`Arena::allocate`] returned.
    pub(crate) fn dmb(self: &Arc<Self>, slot: u32) -> Option<DmbMemory> {
        (slot < self.layout.slots).then(|| {
            let header = NonNull::from(self.header(slot));
            DmbMemory { map: Arc::clone(self), slot, header }
        })
    }

    /// The memory of a slot in a peer's arena.
    ///
    /// Gives header and first segment their pages, which costs nothing where the peer did so: it
    /// need not be honest.
    ///
    /// # Errors
    ///
    /// `InvalidData` when there is no such slot; otherwise the lack of memory.
    pub(crate) fn claim(self: &Arc<Self>, slot: u32) -> io::Result<DmbMemory> {
        let words = || format!("slot {slot} in an arena of {}", self.layout.slots);
        let dmb = self.dmb(slot).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, words()))?;
        self.commit_slot(slot)?;
        Ok(dmb)
    }

    /// Gives the header and the first segment of a slot their pages.
    fn commit_slot(&self, slot: u32) -> io::Result<()> {
        self.mapping.populate(self.layout.header(slot))?;
        self.mapping.populate(self.layout.first(slot))
    }

    fn header(&self, slot: u32) -> &DmbHeader {
        let range = self.layout.header(slot);
        // SAFETY: `bytes` checked that `range` lies within the mapping. It has room for a DmbHeader
        // and its alignment (asserted above; the mapping is page-aligned), and the mapping lives as
        // long as `self`. A DmbHeader consists of atomics, for which any bytes are valid, and is
        // never accessed otherwise. Its pages were allocated before a DmbMemory of the slot came to
        // be.
        unsafe { self.mapping.bytes(range).cast::<DmbHeader>().as_ref() }
    }

    /// Resets the header of a slot and zeroes its first segment.
    fn clear(&self, slot: u32) {
        self.header(slot).initialise();
        let first = self.mapping.bytes(self.layout.first(slot));
        // SAFETY: `bytes` checked the range, which is SMALLEST_SEGMENT long. Nobody in this process
        // uses the slot's payload any more: it is released when its stream is done with it and the
        // producer has detached.
        unsafe { ptr::write_bytes(first.as_ptr(), 0, SMALLEST_SEGMENT) };
    }
}

/// The memory of one DMB: a slot of an arena.
#[derive(Clone, Debug)]
pub(crate) struct DmbMemory {
    map: Arc<ArenaMap>,
    slot: u32,
    /// Found once: every read and write needs it several times.
    header: NonNull<DmbHeader>,
}

// SAFETY: `header` points into the mapping that `map` keeps, and a DmbHeader consists of atomics.
unsafe impl Send for DmbMemory {}
// SAFETY: as above.
unsafe impl Sync for DmbMemory {}

impl Memory for DmbMemory {
    type Segment = DmbSegment;

    #[inline]
    fn header(&self) -> &DmbHeader {
        // SAFETY: it came from `ArenaMap::header` of `map`, which lives as long as `self`.
        unsafe { self.header.as_ref() }
    }

    fn first(&self) -> DmbSegment {
        DmbSegment::new(self.map.mapping.clone(), self.map.layout.first(self.slot))
    }
}

/// Memory that the bytes of a ring lie in: the first segment of a slot, or a larger one with a file
/// of its own.
#[derive(Clone, Debug)]
pub(crate) struct DmbSegment {
    /// Keeps what `base` points to.
    #[cfg_attr(not(test), expect(dead_code, reason = "held for its life"))]
    mapping: Arc<Mapping>,
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: `base` points into the mapping that `mapping` keeps. It is only used in `copy_in` and
// `copy_out`, whose callers keep writers and readers of a byte apart.
unsafe impl Send for DmbSegment {}
// SAFETY: as above.
unsafe impl Sync for DmbSegment {}

impl DmbSegment {
    fn new(mapping: Arc<Mapping>, range: Range<usize>) -> DmbSegment {
        let (base, size) = (mapping.bytes(range.clone()), range.len());
        DmbSegment { mapping, base, size }
    }

    /// Makes a segment to lend, and the file to send to the peer.
    ///
    /// # Errors
    ///
    /// What is lacking: memory by this process's own budget, or by the system's; descriptors.
    pub(crate) fn create(bytes: usize) -> io::Result<(DmbSegment, OwnedFd)> {
        let charge = budget::charge(bytes)?;
        let fd = memory_file(bytes)?;
        sys::fallocate(fd.as_fd(), 0, bytes as u64)?;
        let mapping = Mapping::new(fd.as_fd(), bytes, Some(charge))?;
        mapping.prefault();
        Ok((DmbSegment::new(mapping, 0..bytes), fd))
    }

    /// Maps a segment that a peer lends, which says that it has so many bytes.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for an impossible size; `InvalidData` when `fd` is not a sealed memory file
    /// of exactly that size; `OutOfMemory` when its memory is gone, as it is once the lender is
    /// done with it; otherwise those of the mapping, which are this process's own.
    pub(crate) fn attach(fd: &OwnedFd, bytes: u64) -> io::Result<DmbSegment> {
        let size = usize::try_from(bytes)
            .ok()
            .filter(|size| size.is_power_of_two() && (SMALLEST_SEGMENT..=LARGEST_SEGMENT).contains(size));
        let words = || format!("a segment of {bytes} bytes");
        let size = size.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, words()))?;
        sys::verify_memfd(fd.as_fd(), bytes)?;
        // It is the lender who pays: touching what has no memory would cost this process. An honest
        // one has closed its stream while the grant was on its way.
        if sys::memory_of(fd.as_fd())? < bytes {
            return Err(io::Error::new(
                io::ErrorKind::OutOfMemory,
                "a segment without the memory it should have",
            ));
        }
        let mapping = Mapping::new(fd.as_fd(), size, None)?;
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
    fn copy_out(&self, offset: usize, dst: &mut [MaybeUninit<u8>]) {
        let from = self.bytes(offset, dst.len());
        // SAFETY: as in `copy_in`; `dst` is writable for its length, and MaybeUninit<u8> has the
        // layout of u8. The producer's cursor, acquired before, ordered its bytes before this copy.
        unsafe { ptr::copy_nonoverlapping(from.cast_const(), dst.as_mut_ptr().cast(), dst.len()) };
    }
}

/// Which slots are free.
#[derive(Debug)]
struct Slots {
    /// Released slots: the last one first, for its pages are there and warm.
    free: Vec<u32>,
    /// Slots from here on were never used.
    fresh: u32,
    taken: Vec<bool>,
    in_use: u32,
}

/// An arena of our own, of which slots are lent to a peer.
#[derive(Debug)]
pub(crate) struct Arena {
    map: Arc<ArenaMap>,
    slots: Mutex<Slots>,
}

impl Arena {
    /// Makes an arena, and the file to send to the peer; only its control part takes memory.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for an impossible number of slots; otherwise what is lacking (memory,
    /// descriptors).
    pub(crate) fn create(slots: u32) -> io::Result<(Arena, OwnedFd)> {
        let layout = Layout::new(slots)?;
        let fd = memory_file(layout.total)?;
        let map = ArenaMap::map(fd.as_fd(), layout)?;
        let slots = Slots { free: Vec::new(), fresh: 0, taken: vec![false; slots as usize], in_use: 0 };
        Ok((Arena { map, slots: Mutex::new(slots) }, fd))
    }

    /// Its memory.
    pub(crate) fn map(&self) -> &Arc<ArenaMap> {
        &self.map
    }

    /// Takes a slot whose DMB is empty, with its header initialised and its first segment backed by
    /// memory; `None` when all are taken.
    ///
    /// # Errors
    ///
    /// The lack of memory; no slot is taken then.
    pub(crate) fn allocate(&self) -> io::Result<Option<u32>> {
        let slot = {
            let mut slots = lock(&self.slots);
            let Some(slot) = slots.free.pop().or_else(|| {
                let fresh = (slots.fresh < self.map.layout.slots).then_some(slots.fresh)?;
                slots.fresh += 1;
                Some(fresh)
            }) else {
                return Ok(None);
            };
            slots.taken[slot as usize] = true;
            slots.in_use += 1;
            slot
        };
        // Also for a slot used before: a peer can take pages away.
        if let Err(error) = self.map.commit_slot(slot) {
            self.give_back(slot);
            return Err(error);
        }
        self.map.header(slot).initialise();
        Ok(Some(slot))
    }

    /// Gives a slot back: both sides are done with it (the producer has detached). Nothing of its
    /// bytes remains.
    ///
    /// Releasing a slot that is not taken does nothing.
    pub(crate) fn release(&self, slot: u32) {
        {
            let mut slots = lock(&self.slots);
            let Some(taken) = slots.taken.get_mut(slot as usize).filter(|taken| **taken) else {
                debug_assert!(false, "slot {slot} is not taken");
                return;
            };
            // Neither taken nor free while it is cleared: nobody gets it, and a second release
            // finds nothing to do.
            *taken = false;
        }
        self.map.clear(slot);
        self.give_back(slot);
    }

    fn give_back(&self, slot: u32) {
        let mut slots = lock(&self.slots);
        slots.taken[slot as usize] = false;
        slots.in_use -= 1;
        slots.free.push(slot);
    }

    /// Slots lent at the moment.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> u32 {
        lock(&self.slots).in_use
    }
}
