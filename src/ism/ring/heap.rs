//! DMB memory on the heap of one process, for tests: bytes that loom watches.

use super::super::dmb::DmbHeader;
use super::{Memory, Segment};
use crate::sync::Arc;
use std::mem::MaybeUninit;

#[cfg(loom)]
type Cell = loom::cell::UnsafeCell<u8>;
#[cfg(not(loom))]
type Cell = std::cell::UnsafeCell<u8>;

/// A DMB whose segment 0 has `FIRST` bytes; clones share it.
pub(crate) struct HeapMemory<const FIRST: usize> {
    header: Arc<DmbHeader>,
    first: HeapSegment,
}

/// A segment; clones share it.
#[derive(Clone)]
pub(crate) struct HeapSegment(Arc<Cells>);

struct Cells(Box<[Cell]>);

// SAFETY: the cells are the only part that is not `Sync`. A ring's sender touches only bytes
// between what was read and the end of its segment, its receiver only bytes that were published to
// it, and the cursors' Release/Acquire pairs order the two; loom checks exactly that for each cell.
unsafe impl Sync for Cells {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Cells {}

impl<const FIRST: usize> HeapMemory<FIRST> {
    /// A fresh DMB.
    pub(crate) fn new() -> Self {
        HeapMemory { header: Arc::new(DmbHeader::new()), first: HeapSegment::new(FIRST) }
    }
}

impl HeapSegment {
    /// A segment of so many bytes, a power of two.
    pub(crate) fn new(bytes: usize) -> Self {
        HeapSegment(Arc::new(Cells((0..bytes).map(|_| Cell::new(0)).collect())))
    }

    /// Is this the last clone?
    #[cfg(not(loom))]
    pub(crate) fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl<const FIRST: usize> Clone for HeapMemory<FIRST> {
    fn clone(&self) -> Self {
        HeapMemory { header: self.header.clone(), first: self.first.clone() }
    }
}

#[cfg(loom)]
fn put(cell: &Cell, byte: u8) {
    // SAFETY: loom panics if anything else accesses the cell meanwhile.
    cell.with_mut(|pointer| unsafe { pointer.write(byte) });
}

#[cfg(loom)]
fn take(cell: &Cell) -> u8 {
    // SAFETY: loom panics if anything writes the cell meanwhile.
    cell.with(|pointer| unsafe { pointer.read() })
}

#[cfg(not(loom))]
fn put(cell: &Cell, byte: u8) {
    // SAFETY: the pointer comes from a live cell, and the ring keeps the other end away from it. A
    // volatile write keeps a hostile peer's race, which some tests play, from being more than a
    // torn byte.
    unsafe { cell.get().write_volatile(byte) };
}

#[cfg(not(loom))]
fn take(cell: &Cell) -> u8 {
    // SAFETY: as for `put`.
    unsafe { cell.get().read_volatile() }
}

impl<const FIRST: usize> Memory for HeapMemory<FIRST> {
    type Segment = HeapSegment;

    fn header(&self) -> &DmbHeader {
        &self.header
    }

    fn first(&self) -> HeapSegment {
        self.first.clone()
    }
}

impl Segment for HeapSegment {
    fn size(&self) -> u64 {
        self.0.0.len() as u64
    }

    fn prefetch(&self, _: usize) {}

    fn copy_in(&self, offset: usize, src: &[u8]) {
        for (cell, byte) in self.0.0[offset..][..src.len()].iter().zip(src) {
            put(cell, *byte);
        }
    }

    fn copy_out(&self, offset: usize, dst: &mut [MaybeUninit<u8>]) {
        for (cell, byte) in self.0.0[offset..][..dst.len()].iter().zip(dst) {
            byte.write(take(cell));
        }
    }

    fn copy_across(&self, offset: usize, from: &HeapSegment, at: usize, len: usize) {
        for (to, from) in self.0.0[offset..][..len].iter().zip(&from.0.0[at..][..len]) {
            put(to, take(from));
        }
    }
}
