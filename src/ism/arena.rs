//! Arenas: the shared memory an endpoint lends to one peer.
//!
//! An arena is one sealed memory file, made by the endpoint that *receives* through it and mapped by both:
//!
//! ```text
//! control     signal bits, raised by the peer for the arena's owner
//! headers     one DMB header of 1 KiB per slot
//! firsts      segment 0 of every slot, 4 KiB each
//! areas       the larger segments of slot 0, of slot 1, ...
//! ```
//!
//! The small parts lie dense, so that idle connections share page tables; the areas are sparse and cost address
//! space only. Pages are allocated with `fallocate` before they are first touched: when memory runs out somebody is
//! told so by an error, never by SIGBUS.
//!
//! # What makes the raw copies sound
//!
//! Mapped memory is never a slice or a reference to bytes. Headers and signal bits consist of atomics only and may
//! be referred to. Payload is copied through raw pointers; the ring's cursors, validated on each load, keep sender
//! and receiver apart within this process. What a hostile *process* writes at the same time cannot be helped: it may
//! change what the bytes are (they are its own bytes), and nothing else depends on them.
#![expect(unsafe_code, reason = "the memory is shared with another process: no safe type describes it")]

#[cfg(test)]
mod tests;

use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use memmap2::{Advice, MmapOptions, MmapRaw};

use super::dmb::{DmbHeader, HEADER_BYTES, LARGEST_DMB, SMALLEST_SEGMENT, segment_bytes, segment_count};
use super::interrupt::{CONNECTIONS, SignalPage};
use super::ring::Memory;
use super::sys;
use crate::sync::{Arc, Mutex, lock};

/// Size of the control part, at the beginning of an arena.
pub(crate) const CONTROL_BYTES: usize = 16 * 1024;

/// Alignment of the parts of an arena: the largest page size of the platforms Linux runs on.
const PART: usize = 64 * 1024;

const _: () = {
    assert!(size_of::<SignalPage>() <= CONTROL_BYTES);
    assert!(size_of::<DmbHeader>() <= HEADER_BYTES);
    assert!(HEADER_BYTES % align_of::<DmbHeader>() == 0 && CONTROL_BYTES % align_of::<DmbHeader>() == 0);
    // Both are views of a page-aligned mapping.
    assert!(align_of::<DmbHeader>() <= 4096 && align_of::<SignalPage>() <= 4096);
};

/// Where things are in an arena; both sides compute it from the same two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    slots: u32,
    dmb_size: usize,
    segments: u32,
    firsts: usize,
    areas: usize,
    /// Bytes of one slot's area.
    area: usize,
    total: usize,
}

impl Layout {
    fn new(slots: u32, dmb_size: usize) -> io::Result<Layout> {
        let refuse = |words: String| io::Error::new(io::ErrorKind::InvalidInput, words);
        if slots == 0 || slots > CONNECTIONS {
            return Err(refuse(format!("an arena of {slots} slots: it has 1 to {CONNECTIONS}")));
        }
        if !dmb_size.is_power_of_two() || !(SMALLEST_SEGMENT..=LARGEST_DMB).contains(&dmb_size) {
            return Err(refuse(format!(
                "a DMB of {dmb_size} bytes: it is a power of two from {SMALLEST_SEGMENT} to {LARGEST_DMB}"
            )));
        }
        // The numbers fit u64 by far: 2^15 slots of less than 2^31 bytes. They may not fit a 32-bit address space.
        let count = u64::from(slots);
        let align = |offset: u64| offset.next_multiple_of(PART as u64);
        let firsts = align(CONTROL_BYTES as u64 + count * HEADER_BYTES as u64);
        let areas = align(firsts + count * SMALLEST_SEGMENT as u64);
        // 8 KiB + 16 KiB + ... + dmb_size
        let area = 2 * (dmb_size as u64 - SMALLEST_SEGMENT as u64);
        let total = align(areas + count * area);
        let narrow = |bytes: u64| {
            let fits = usize::try_from(bytes).ok().filter(|bytes| isize::try_from(*bytes).is_ok());
            fits.ok_or_else(|| refuse(format!("an arena of {total} bytes does not fit the address space")))
        };
        Ok(Layout {
            slots,
            dmb_size,
            segments: segment_count(dmb_size),
            firsts: narrow(firsts)?,
            areas: narrow(areas)?,
            area: narrow(area)?,
            total: narrow(total)?,
        })
    }

    /// The header of a slot.
    fn header(&self, slot: u32) -> Range<usize> {
        assert!(slot < self.slots, "slot {slot} of {}", self.slots);
        let start = CONTROL_BYTES + slot as usize * HEADER_BYTES;
        start..start + HEADER_BYTES
    }

    /// A segment of a slot.
    fn segment(&self, slot: u32, segment: u32) -> Range<usize> {
        assert!(slot < self.slots && segment < self.segments, "segment {segment} of slot {slot}");
        let start = match segment {
            0 => self.firsts + slot as usize * SMALLEST_SEGMENT,
            // Before it lie segments 1 to segment − 1: 8 KiB + 16 KiB + ...
            _ => self.areas + slot as usize * self.area + segment_bytes(segment) - 2 * SMALLEST_SEGMENT,
        };
        start..start + segment_bytes(segment)
    }

    /// The segments of a slot from segment 1 on; empty when there are none.
    fn area(&self, slot: u32) -> Range<usize> {
        assert!(slot < self.slots, "slot {slot} of {}", self.slots);
        let start = self.areas + slot as usize * self.area;
        start..start + self.area
    }
}

/// An arena's memory file and its mapping in this process, which a forked child does not inherit.
#[derive(Debug)]
pub(crate) struct ArenaMap {
    map: MmapRaw,
    fd: OwnedFd,
    layout: Layout,
}

impl ArenaMap {
    fn map(fd: OwnedFd, layout: Layout) -> io::Result<Arc<ArenaMap>> {
        let map = MmapOptions::new().len(layout.total).no_reserve_swap().map_raw(fd.as_raw_fd())?;
        // A child must not write to our peers' rings, and needs none of this memory.
        map.advise(Advice::DontFork)?;
        let map = ArenaMap { map, fd, layout };
        // Whoever made the file may not have given the signal bits their pages, or may have taken them away.
        map.fallocate(0..CONTROL_BYTES)?;
        Ok(Arc::new(map))
    }

    /// Maps the arena of a peer, of which `slots` and `dmb_size` are what the peer says.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for impossible numbers; `InvalidData` when `fd` is not a sealed memory file of exactly the
    /// size that follows from them; otherwise those of the mapping.
    pub(crate) fn attach(fd: OwnedFd, slots: u32, dmb_size: usize) -> io::Result<Arc<ArenaMap>> {
        let layout = Layout::new(slots, dmb_size)?;
        sys::verify_memfd(fd.as_fd(), layout.total as u64)?;
        ArenaMap::map(fd, layout)
    }

    /// Number of slots.
    pub(crate) fn slots(&self) -> u32 {
        self.layout.slots
    }

    /// Size of a DMB when fully grown.
    pub(crate) fn dmb_size(&self) -> usize {
        self.layout.dmb_size
    }

    /// The memory file, to send to the peer.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The signal bits of the arena's owner.
    pub(crate) fn signals(&self) -> &SignalPage {
        // SAFETY: the mapping is page-aligned, longer than CONTROL_BYTES >= size_of::<SignalPage>() and lives as
        // long as `self`. A SignalPage consists of atomics, for which any bytes are valid, and is never accessed
        // otherwise. Its pages were allocated by `map` and the seals keep the file from shrinking.
        unsafe { &*self.map.as_ptr().cast::<SignalPage>() }
    }

    /// The memory of a slot whose header and first segment have their pages: one that [`Arena::allocate`] returned.
    pub(crate) fn dmb(self: &Arc<Self>, slot: u32) -> Option<DmbMemory> {
        (slot < self.layout.slots).then(|| DmbMemory { map: Arc::clone(self), slot })
    }

    /// The memory of a slot in a peer's arena.
    ///
    /// Gives header and first segment their pages, which costs nothing where the peer did so: it need not be honest.
    ///
    /// # Errors
    ///
    /// `InvalidData` when there is no such slot; `StorageFull` or `OutOfMemory` without memory.
    pub(crate) fn claim(self: &Arc<Self>, slot: u32) -> io::Result<DmbMemory> {
        let words = || format!("slot {slot} in an arena of {}", self.layout.slots);
        let dmb = self.dmb(slot).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, words()))?;
        self.commit_slot(slot)?;
        Ok(dmb)
    }

    /// Gives the header and the first segment of a slot their pages.
    fn commit_slot(&self, slot: u32) -> io::Result<()> {
        self.fallocate(self.layout.header(slot))?;
        self.fallocate(self.layout.segment(slot, 0))
    }

    fn fallocate(&self, range: Range<usize>) -> io::Result<()> {
        sys::fallocate(self.fd.as_fd(), range.start as u64, range.len() as u64)
    }

    fn punch(&self, range: Range<usize>) -> io::Result<()> {
        sys::punch(self.fd.as_fd(), range.start as u64, range.len() as u64)
    }

    fn header(&self, slot: u32) -> &DmbHeader {
        let range = self.layout.header(slot);
        // SAFETY: `range` lies within the mapping (it is part of the layout the mapping was made for), has room for
        // a DmbHeader and its alignment (asserted above; the mapping is page-aligned), and the mapping lives as long
        // as `self`. A DmbHeader consists of atomics, for which any bytes are valid, and is never accessed otherwise.
        // Its pages were allocated before a DmbMemory of the slot came to be.
        unsafe { &*self.map.as_ptr().add(range.start).cast::<DmbHeader>() }
    }

    /// Pointer to `len` bytes at `offset` of a segment.
    ///
    /// # Panics
    ///
    /// If they would leave the segment: the one check that keeps every copy inside the mapping.
    fn bytes(&self, slot: u32, segment: u32, offset: usize, len: usize) -> *mut u8 {
        let range = self.layout.segment(slot, segment);
        let fits = offset.checked_add(len).is_some_and(|end| end <= range.len());
        assert!(fits, "{len} bytes at {offset} of segment {segment}, which has {}", range.len());
        // SAFETY: `range` lies within the mapping and `offset` within `range`.
        unsafe { self.map.as_mut_ptr().add(range.start + offset) }
    }

    /// Resets the header of a slot, zeroes its first segment and takes the pages of the others away.
    fn clear(&self, slot: u32) -> io::Result<()> {
        self.header(slot).initialise();
        let first = self.bytes(slot, 0, 0, SMALLEST_SEGMENT);
        // SAFETY: `bytes` checked the range. Nobody in this process uses the slot's payload any more: it is released
        // when its stream is done with it and the producer has detached.
        unsafe { ptr::write_bytes(first, 0, SMALLEST_SEGMENT) };
        let area = self.layout.area(slot);
        if area.is_empty() { Ok(()) } else { self.punch(area) }
    }
}

/// The memory of one DMB: a slot of an arena.
#[derive(Clone, Debug)]
pub(crate) struct DmbMemory {
    map: Arc<ArenaMap>,
    slot: u32,
}

impl Memory for DmbMemory {
    #[inline]
    fn header(&self) -> &DmbHeader {
        self.map.header(self.slot)
    }

    #[inline]
    fn segments(&self) -> u32 {
        self.map.layout.segments
    }

    #[inline]
    fn copy_in(&self, segment: u32, offset: usize, src: &[u8]) {
        let to = self.map.bytes(self.slot, segment, offset, src.len());
        // SAFETY: `bytes` checked that `to` is valid for src.len() bytes of the mapping, which nothing in this
        // process refers to as bytes; so `src` is elsewhere. The segment's pages were allocated before the ring
        // entered it. The ring lets only its one producer, under its direction's lock, write to this range.
        unsafe { ptr::copy_nonoverlapping(src.as_ptr(), to, src.len()) };
    }

    #[inline]
    fn copy_out(&self, segment: u32, offset: usize, dst: &mut [MaybeUninit<u8>]) {
        let from = self.map.bytes(self.slot, segment, offset, dst.len());
        // SAFETY: as in `copy_in`; `dst` is writable for its length, and MaybeUninit<u8> has the layout of u8. The
        // producer's cursor, acquired before, ordered its bytes before this copy.
        unsafe { ptr::copy_nonoverlapping(from.cast_const(), dst.as_mut_ptr().cast(), dst.len()) };
    }

    fn commit(&self, segment: u32) -> io::Result<()> {
        self.map.fallocate(self.map.layout.segment(self.slot, segment))
    }

    fn punch(&self, segment: u32) -> io::Result<()> {
        self.map.punch(self.map.layout.segment(self.slot, segment))
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
    /// Makes an arena; only its control part takes memory.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for impossible sizes; otherwise those of the system (no memory, too many open files).
    pub(crate) fn create(slots: u32, dmb_size: usize) -> io::Result<Arena> {
        let layout = Layout::new(slots, dmb_size)?;
        let map = ArenaMap::map(sys::memfd_sealed(layout.total as u64)?, layout)?;
        let slots = Slots { free: Vec::new(), fresh: 0, taken: vec![false; slots as usize], in_use: 0 };
        Ok(Arena { map, slots: Mutex::new(slots) })
    }

    /// Its memory.
    pub(crate) fn map(&self) -> &Arc<ArenaMap> {
        &self.map
    }

    /// Takes a slot whose DMB is empty, with its header initialised and its first segment backed by memory; `None`
    /// when all are taken.
    ///
    /// # Errors
    ///
    /// `StorageFull` or `OutOfMemory` without memory; no slot is taken then.
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
        // Also for a slot used before: a peer can take pages away, and the kernel is quick to say that they are there.
        if let Err(error) = self.map.commit_slot(slot) {
            self.give_back(slot);
            return Err(error);
        }
        self.map.header(slot).initialise();
        Ok(Some(slot))
    }

    /// Gives a slot back: both sides are done with it (the producer has detached). Nothing of its bytes remains.
    ///
    /// Releasing a slot that is not taken does nothing.
    pub(crate) fn release(&self, slot: u32) {
        {
            let mut slots = lock(&self.slots);
            let Some(taken) = slots.taken.get_mut(slot as usize).filter(|taken| **taken) else {
                debug_assert!(false, "slot {slot} is not taken");
                return;
            };
            // Neither taken nor free while it is cleared: nobody gets it, and a second release finds nothing to do.
            *taken = false;
        }
        if self.map.clear(slot).is_ok() {
            self.give_back(slot);
        }
        // Else bytes of this connection may be left in it: the slot stays out of use, counted as in use.
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

    /// Memory the arena takes at the moment; 0 when the system does not tell.
    #[cfg(test)]
    pub(crate) fn committed_bytes(&self) -> u64 {
        rustix::fs::fstat(&self.map.fd).map_or(0, |stat| stat.st_blocks.unsigned_abs() * 512)
    }
}
