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
//! looks whether it did: when memory runs out somebody is told so by an error, never by SIGBUS. No
//! descriptor is needed once a file is mapped. Nothing of it is inherited by a forked child or
//! written to a core dump.
//!
//! Both have the file open and can hold its lock (the inode's) for as long as they like. What takes
//! that lock is done before the file is sent, or [aside](super::aside).
//!
//! # What makes the raw copies sound
//!
//! Mapped memory is never a slice or a reference to bytes. Headers and signal bits consist of
//! atomics only and may be referred to. Payload is copied through raw pointers, or, where it is
//! looked at in place, loaded as atomics; the ring's cursors, validated on each load, keep sender
//! and receiver apart within this process. What a hostile *process* writes at the same time cannot
//! be helped: it may change what the bytes are (they are its own bytes), and nothing else depends
//! on them.
#![expect(unsafe_code, reason = "the memory is shared with another process: no safe type describes it")]

mod segment;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};

use super::aside::NoThread;
use super::budget::{self, Account, Charge, MappingPlace, Need};
use super::dmb::{DmbHeader, HEADER_BYTES, SMALLEST_SEGMENT};
use super::files::Mapped;
use super::interrupt::{CONNECTIONS, SignalPage};
use super::ring::Memory;
use super::sys::{self, FileId};
use crate::sync::{Arc, Mutex, lock};

pub(crate) use segment::DmbSegment;

/// Size of the control part, at the beginning of an arena.
pub(crate) const CONTROL_BYTES: usize = 16 * 1024;

/// Alignment of the parts of an arena: the largest page size of the platforms Linux runs on.
const PART: usize = 64 * 1024;

/// Memory of a slot: header and first segment.
pub(crate) const SLOT_BYTES: usize = HEADER_BYTES + SMALLEST_SEGMENT;

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

/// A memory file that came from a peer, of exactly so many bytes, and has no use yet.
fn taken(fd: &OwnedFd, bytes: u64, account: &Account) -> io::Result<Mapped> {
    sys::verify_memfd(fd.as_fd(), bytes)?;
    Mapped::taken(FileId::of(fd.as_fd())?, account.number(), account.is_here())
}

/// The peer has not given its memory what it should have: a lack as any other.
fn unpaid(words: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::OutOfMemory, words)
}

/// A memory file mapped into this process.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    account: Arc<Account>,
    /// There until it is dropped.
    parts: Option<Parts>,
}

// SAFETY: `base` points into the mapping in `parts`, which any thread may use. Whoever copies from
// or to there keeps writers and readers of a byte apart.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// What goes with a mapping.
#[derive(Debug)]
struct Parts {
    map: MmapRaw,
    purpose: Purpose,
    /// Of a segment.
    _charge: Option<Charge>,
    _place: MappingPlace,
    _file: Mapped,
}

/// Whose memory it is, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Arena,
    /// Ours to lend: nobody looks at it when this end is done with it.
    Lent,
    Borrowed,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else { return };
        // Both take their time, and the first one a lock that the peer may hold. What is counted is
        // counted until then.
        let end = move || {
            if parts.purpose == Purpose::Lent {
                // Else this process would pay for what the peer goes on to map. What an honest one
                // still writes there nobody reads. SAFETY: nothing in this process refers to the
                // memory any more, which is about to be unmapped; what the advice takes away are
                // pages of a file that stays as long as it is.
                let _ = unsafe { parts.map.unchecked_advise(UncheckedAdvice::Remove) };
            }
            drop(parts);
        };
        // Without a thread it is unmapped here at least.
        if let Err(NoThread(work)) = self.account.lane().run(end) {
            drop(work);
        }
    }
}

impl Mapping {
    fn new(
        fd: BorrowedFd<'_>,
        bytes: usize,
        account: &Arc<Account>,
        (purpose, file, charge): (Purpose, Mapped, Option<Charge>),
    ) -> io::Result<Arc<Mapping>> {
        let place = budget::admit_mapping(bytes)?;
        let map = MmapOptions::new().len(bytes).no_reserve_swap().map_raw(fd.as_raw_fd())?;
        // A child must not write to our peers' rings, and needs none of this memory.
        map.advise(Advice::DontFork)?;
        // Other people's bytes, and much of them.
        map.advise(Advice::DontDump)?;
        let base = NonNull::new(map.as_mut_ptr()).ok_or(io::ErrorKind::OutOfMemory)?;
        let parts = Parts { map, purpose, _charge: charge, _place: place, _file: file };
        Ok(Arc::new(Mapping { base, bytes, account: account.clone(), parts: Some(parts) }))
    }

    /// Gives the range its pages. Touching it cannot raise SIGBUS afterwards, unless whoever has
    /// the file takes pages away; bytes already there stay.
    fn populate(&self, range: Range<usize>) -> io::Result<()> {
        self.parts
            .as_ref()
            .map_or(Ok(()), |parts| parts.map.advise_range(Advice::PopulateWrite, range.start, range.len()))
    }

    /// Enters the first pages, which are there, into this process's page table: all at once, and
    /// before a read or write of the application waits for it, page by page.
    fn prefault(&self) {
        // Nothing depends on it.
        let _ = self.populate(0..self.bytes.min(MOST_PREFAULTED));
    }

    /// Whether the range has its pages. Does not touch them.
    fn is_resident(&self, range: Range<usize>) -> io::Result<bool> {
        let bytes = range.len();
        sys::is_resident(self.at(range), bytes)
    }

    /// Pointer to `range`.
    ///
    /// # Panics
    ///
    /// If it would leave the mapping.
    fn at(&self, range: Range<usize>) -> NonNull<u8> {
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?} of {}", self.bytes);
        // SAFETY: `range` lies within the mapping.
        unsafe { self.base.add(range.start) }
    }
}

/// An arena's mapping in this process.
#[derive(Debug)]
pub(crate) struct ArenaMap {
    mapping: Arc<Mapping>,
    layout: Layout,
}

impl ArenaMap {
    fn map(fd: BorrowedFd<'_>, layout: Layout, account: &Arc<Account>, file: Mapped) -> io::Result<ArenaMap> {
        let mapping = Mapping::new(fd, layout.total, account, (Purpose::Arena, file, None))?;
        Ok(ArenaMap { mapping, layout })
    }

    /// Maps the arena of a peer, which says that it has so many slots. Waits for nobody, whatever
    /// the peer does with it.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for an impossible number; `InvalidData` when `fd` is not a sealed memory file
    /// of exactly the size that follows from it, or has a use already; `OutOfMemory` when its
    /// signal bits have no memory; otherwise those of the mapping, which are this process's own.
    pub(crate) fn attach(fd: &OwnedFd, slots: u32, account: &Arc<Account>) -> io::Result<Arc<ArenaMap>> {
        let layout = Layout::new(slots)?;
        let file = taken(fd, layout.total as u64, account)?;
        let map = ArenaMap::map(fd.as_fd(), layout, account, file)?;
        if !map.mapping.is_resident(0..CONTROL_BYTES)? {
            return Err(unpaid("an arena without the memory of its signal bits"));
        }
        Ok(Arc::new(map))
    }

    /// Number of slots.
    pub(crate) fn slots(&self) -> u32 {
        self.layout.slots
    }

    /// The signal bits of the arena's owner.
    pub(crate) fn signals(&self) -> &SignalPage {
        // SAFETY: the mapping is page-aligned, longer than CONTROL_BYTES >= size_of::<SignalPage>()
        // and lives as long as `self`. A SignalPage consists of atomics, for which any bytes are
        // valid, and is never accessed otherwise. The seals keep the file from shrinking.
        unsafe { self.mapping.base.cast::<SignalPage>().as_ref() }
    }

    /// The memory of a slot whose header and first segment have their pages: one that
    /// [`Arena::allocate`] returned.
    pub(crate) fn dmb(self: &Arc<Self>, slot: u32) -> Option<DmbMemory> {
        (slot < self.layout.slots).then(|| {
            let header = NonNull::from(self.header(slot));
            DmbMemory { map: Arc::clone(self), slot, header }
        })
    }

    /// The memory of a slot in a peer's arena. Does not touch it.
    ///
    /// # Errors
    ///
    /// `InvalidData` when there is no such slot; `OutOfMemory` when header or first segment lack
    /// the memory that its owner has to give them.
    pub(crate) fn claim(self: &Arc<Self>, slot: u32) -> io::Result<DmbMemory> {
        let words = || format!("slot {slot} in an arena of {}", self.layout.slots);
        let dmb = self.dmb(slot).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, words()))?;
        // Touching it would cost this process, or make it wait for who takes it away.
        if !self.has_memory(slot)? {
            return Err(unpaid("a slot without the memory it should have"));
        }
        Ok(dmb)
    }

    /// Whether the header and the first segment of a slot have their pages.
    fn has_memory(&self, slot: u32) -> io::Result<bool> {
        Ok(self.mapping.is_resident(self.layout.header(slot))?
            && self.mapping.is_resident(self.layout.first(slot))?)
    }

    /// Gives the header and the first segment of a slot their pages.
    fn commit_slot(&self, slot: u32) -> io::Result<()> {
        self.mapping.populate(self.layout.header(slot))?;
        self.mapping.populate(self.layout.first(slot))
    }

    fn header(&self, slot: u32) -> &DmbHeader {
        let range = self.layout.header(slot);
        // SAFETY: `at` checked that `range` lies within the mapping. It has room for a DmbHeader
        // and its alignment (asserted above; the mapping is page-aligned), and the mapping lives as
        // long as `self`. A DmbHeader consists of atomics, for which any bytes are valid, and is
        // never accessed otherwise. Its pages were allocated before a DmbMemory of the slot came to
        // be.
        unsafe { self.mapping.at(range).cast::<DmbHeader>().as_ref() }
    }

    /// Resets the header of a slot and zeroes its first segment.
    fn clear(&self, slot: u32) {
        self.header(slot).initialise();
        let first = self.mapping.at(self.layout.first(slot));
        // SAFETY: `at` checked the range, which is SMALLEST_SEGMENT long. Nobody in this process
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

/// Which slots are free.
#[derive(Debug)]
struct Slots {
    /// Released slots: the last one first, for its pages are there and warm.
    free: Vec<u32>,
    /// Slots from here on were never used.
    fresh: u32,
    taken: Vec<bool>,
    in_use: u32,
    /// Of each slot that was ever used.
    charges: BTreeMap<u32, Charge>,
    _control: Charge,
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
    pub(crate) fn create(slots: u32, account: &Arc<Account>) -> io::Result<(Arena, OwnedFd)> {
        let layout = Layout::new(slots)?;
        let charge = account.lend(CONTROL_BYTES)?;
        let fd = memory_file(layout.total)?;
        let file = Mapped::made(FileId::of(fd.as_fd())?, account.number());
        let map = ArenaMap::map(fd.as_fd(), layout, account, file)?;
        map.mapping.populate(0..CONTROL_BYTES)?;
        let slots = Slots {
            free: Vec::new(),
            fresh: 0,
            taken: vec![false; slots as usize],
            in_use: 0,
            charges: BTreeMap::new(),
            _control: charge,
        };
        Ok((Arena { map: Arc::new(map), slots: Mutex::new(slots) }, fd))
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
        if let Err(error) = self.provide(slot) {
            self.give_back(slot);
            return Err(error);
        }
        self.map.header(slot).initialise();
        Ok(Some(slot))
    }

    /// Sees to it that a slot has its memory.
    fn provide(&self, slot: u32) -> io::Result<()> {
        if lock(&self.slots).charges.contains_key(&slot) {
            // One that was used before has it, unless the peer has taken it away.
            return if self.map.has_memory(slot)? { Ok(()) } else { self.map.commit_slot(slot) };
        }
        let charge = self.map.mapping.account.lend(SLOT_BYTES)?;
        self.map.commit_slot(slot)?;
        lock(&self.slots).charges.insert(slot, charge);
        Ok(())
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
    #[cfg(any(test, fuzzing))]
    pub(crate) fn in_use(&self) -> u32 {
        lock(&self.slots).in_use
    }
}
