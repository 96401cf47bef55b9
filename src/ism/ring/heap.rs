//! DMB memory on the heap of one process, for tests: bytes that loom watches, and a kernel that can refuse.

use super::super::dmb::DmbHeader;
use super::Memory;
use crate::sync::Arc;
use std::mem::MaybeUninit;
use std::{io, sync};

#[cfg(loom)]
type Cell = loom::cell::UnsafeCell<u8>;
#[cfg(not(loom))]
type Cell = std::cell::UnsafeCell<u8>;

/// A DMB whose segment 0 has `SMALLEST` bytes; clones share it.
pub(crate) struct HeapMemory<const SMALLEST: usize>(Arc<Heap>);

struct Heap {
    header: DmbHeader,
    segments: Vec<Box<[Cell]>>,
    // Only the sender touches it, so it needs no place in loom's models.
    kernel: sync::Mutex<Kernel>,
}

/// What the kernel does for a DMB.
#[derive(Default)]
struct Kernel {
    committed: u64,
    commits: usize,
    punches: usize,
    refuses: bool,
}

// SAFETY: the cells are the only part that is not `Sync`. A ring's sender touches only bytes between what was read
// and the end of its segment, its receiver only bytes that were published to it, and the cursors' Release/Acquire
// pairs order the two; loom checks exactly that for each cell.
unsafe impl Sync for Heap {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Heap {}

impl<const SMALLEST: usize> HeapMemory<SMALLEST> {
    /// A fresh DMB with so many segments.
    pub(crate) fn new(segments: u32) -> Self {
        let segments =
            (0..segments).map(|segment| (0..SMALLEST << segment).map(|_| Cell::new(0)).collect()).collect();
        let kernel = sync::Mutex::new(Kernel { committed: 1, ..Kernel::default() });
        HeapMemory(Arc::new(Heap { header: DmbHeader::new(), segments, kernel }))
    }

    fn kernel(&self) -> sync::MutexGuard<'_, Kernel> {
        self.0.kernel.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// From now on the kernel has no memory (or has some again).
    pub(crate) fn refuse_commits(&self, refuse: bool) {
        self.kernel().refuses = refuse;
    }

    /// How often memory was asked for.
    pub(crate) fn commits(&self) -> usize {
        self.kernel().commits
    }

    /// How often memory was given back.
    pub(crate) fn punches(&self) -> usize {
        self.kernel().punches
    }

    fn cells(&self, segment: u32, offset: usize, len: usize) -> &[Cell] {
        &self.0.segments[segment as usize][offset..][..len]
    }
}

impl<const SMALLEST: usize> Clone for HeapMemory<SMALLEST> {
    fn clone(&self) -> Self {
        HeapMemory(self.0.clone())
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
    // SAFETY: the pointer comes from a live cell, and the ring keeps the other end away from it. A volatile write
    // keeps a hostile peer's race, which some tests play, from being more than a torn byte.
    unsafe { cell.get().write_volatile(byte) };
}

#[cfg(not(loom))]
fn take(cell: &Cell) -> u8 {
    // SAFETY: as for `put`.
    unsafe { cell.get().read_volatile() }
}

impl<const SMALLEST: usize> Memory for HeapMemory<SMALLEST> {
    const SMALLEST: usize = SMALLEST;

    fn header(&self) -> &DmbHeader {
        &self.0.header
    }

    fn segments(&self) -> u32 {
        self.0.segments.len() as u32
    }

    fn copy_in(&self, segment: u32, offset: usize, src: &[u8]) {
        assert!(self.kernel().committed & 1 << segment != 0, "segment {segment} has no memory: SIGBUS");
        for (cell, byte) in self.cells(segment, offset, src.len()).iter().zip(src) {
            put(cell, *byte);
        }
    }

    fn copy_out(&self, segment: u32, offset: usize, dst: &mut [MaybeUninit<u8>]) {
        let cells = self.cells(segment, offset, dst.len());
        for (cell, byte) in cells.iter().zip(dst) {
            byte.write(take(cell));
        }
    }

    fn commit(&self, segment: u32) -> io::Result<()> {
        let mut kernel = self.kernel();
        kernel.commits += 1;
        if kernel.refuses {
            return Err(io::ErrorKind::StorageFull.into());
        }
        kernel.committed |= 1 << segment;
        Ok(())
    }

    fn punch(&self, segment: u32) -> io::Result<()> {
        for cell in self.cells(segment, 0, SMALLEST << segment) {
            put(cell, 0);
        }
        let mut kernel = self.kernel();
        kernel.punches += 1;
        kernel.committed &= !(1 << segment);
        Ok(())
    }
}
