//! The receiving end of a ring.

use super::super::dmb::{DmbHeader, Flags, HOPS};
use super::{Memory, PUBLISH_EVERY, Rule, Violation, Visit};
use crate::sync::{Ordering, fence};
use bytes::BufMut;
use std::mem::MaybeUninit;

/// The receiving end: reads bytes out of its own DMB.
pub(crate) struct Consumer<M> {
    memory: M,
    place: Place,
    /// Bytes written, when we last looked.
    prod: u64,
    /// The hop number the peer may know of.
    published_hop: u64,
    /// Bytes all segments hold together.
    capacity: u64,
}

/// How far reading has come, and how far it may go from there.
#[derive(Clone, Copy)]
struct Place {
    cons: u64,
    /// The bytes of this visit that were written end here: min(prod, position of the next hop).
    limit: u64,
    visit: Visit,
    /// Hops followed, which is the number of the next hop.
    hops: u64,
    /// The next hop, once it is known.
    next: Option<Hop>,
}

#[derive(Clone, Copy)]
struct Hop {
    position: u64,
    segment: u32,
}

impl Place {
    #[inline]
    fn available(&self) -> u64 {
        self.limit - self.cons
    }

    /// Sets the limit for a cursor `prod` that was loaded before this is called.
    #[inline]
    fn extend<M: Memory>(&mut self, memory: &M, prod: u64) -> Result<(), Violation> {
        self.latch_hop(memory)?;
        let limit = match self.next {
            Some(hop) => prod.min(hop.position),
            None => prod,
        };
        // Neither is before `cons`: `prod` is monotonic, and so was checked the position.
        if limit - self.cons > self.visit.size {
            return Err(Violation::new(Rule::VisitSize, limit - self.cons, self.visit.size));
        }
        self.limit = limit;
        Ok(())
    }

    /// Looks for the next hop.
    ///
    /// After `prod` was loaded: the count was published before any cursor behind the hop, so a cursor that we know
    /// is either not behind it or shows us the hop.
    #[inline]
    fn latch_hop<M: Memory>(&mut self, memory: &M) -> Result<(), Violation> {
        if self.next.is_some() {
            return Ok(());
        }
        let header = memory.header();
        let count = header.producer.hop_count.load(Ordering::Acquire);
        if count == self.hops {
            return Ok(());
        }
        self.next = Some(self.read_hop(header, count, memory.segments())?);
        Ok(())
    }

    #[cold]
    fn read_hop(&self, header: &DmbHeader, count: u64, segments: u32) -> Result<Hop, Violation> {
        if count.wrapping_sub(self.hops) > HOPS as u64 {
            return Err(Violation::new(Rule::HopCount, count, self.hops));
        }
        let record = &header.hops.0[(self.hops % HOPS as u64) as usize];
        let position = record.position.load(Ordering::Relaxed);
        let segment = record.segment.load(Ordering::Relaxed);
        let here = u64::from(self.visit.segment);
        if position < self.cons {
            return Err(Violation::new(Rule::HopPosition, position, self.cons));
        }
        if segment != 0 && (segment != here + 1 || segment >= u64::from(segments)) {
            return Err(Violation::new(Rule::HopSegment, segment, here));
        }
        // A visit without a byte is left for segment 0 only, and segment 0 is not left so: each pass over the hops
        // costs a byte, or a peer could keep us hopping for ever.
        if position == self.visit.begin && (segment != 0 || here == 0) {
            return Err(Violation::new(Rule::EmptyHop, position, here));
        }
        Ok(Hop { position, segment: segment as u32 })
    }

    /// Moves on while the visit is read and there are bytes behind it.
    #[inline]
    fn follow<M: Memory>(&mut self, memory: &M, prod: u64) -> Result<(), Violation> {
        while let Some(hop) = self.next {
            if hop.position != self.cons || prod <= self.cons {
                break;
            }
            self.visit = Visit::new::<M>(hop.segment, hop.position);
            self.hops += 1;
            self.next = None;
            self.extend(memory, prod)?;
        }
        Ok(())
    }
}

impl<M: Memory> Consumer<M> {
    /// The receiver of a fresh slot: position 0, in segment 0.
    pub(crate) fn new(memory: M) -> Consumer<M> {
        // Together the segments hold one byte run of 2^n − 1 times the smallest.
        let capacity = (M::SMALLEST as u64) * ((1_u64 << memory.segments()) - 1);
        let place = Place { cons: 0, limit: 0, visit: Visit::new::<M>(0, 0), hops: 0, next: None };
        Consumer { memory, place, prod: 0, published_hop: 0, capacity }
    }

    /// Moves bytes into the free part of `buf` (its first chunk). Returns how many: 0 means empty, if `buf` had room.
    #[inline]
    pub(crate) fn read<B: BufMut>(&mut self, buf: &mut B) -> Result<usize, Violation> {
        let chunk = buf.chunk_mut();
        // SAFETY: `read_into` and what it calls only ever write initialised bytes through this.
        let dst = unsafe { chunk.as_uninit_slice_mut() };
        let count = self.read_into(dst)?;
        // SAFETY: `read_into` filled the first `count` bytes of the chunk, and no chunk is longer than what remains.
        unsafe { buf.advance_mut(count) };
        Ok(count)
    }

    /// Copies bytes into the free part of `buf` (its first chunk) and leaves them in the ring. Returns how many.
    pub(crate) fn peek<B: BufMut>(&mut self, buf: &mut B) -> Result<usize, Violation> {
        let chunk = buf.chunk_mut();
        // SAFETY: `copy` only ever writes initialised bytes through this.
        let dst = unsafe { chunk.as_uninit_slice_mut() };
        let mut ahead = self.place;
        if ahead.available() < dst.len() as u64 {
            self.look()?;
            ahead = self.place;
        }
        let count = self.copy(&mut ahead, dst)?;
        // SAFETY: `copy` filled the first `count` bytes of the chunk, and no chunk is longer than what remains.
        unsafe { buf.advance_mut(count) };
        Ok(count)
    }

    /// Whether there is something to read.
    #[inline]
    pub(crate) fn is_readable(&mut self) -> Result<bool, Violation> {
        if self.place.available() == 0 {
            self.look()?;
        }
        Ok(self.place.available() > 0)
    }

    /// Whether the caller has to interrupt the sender with [`Signal::Space`](super::super::interrupt::Signal).
    ///
    /// To be called after every read that read something.
    #[inline]
    pub(crate) fn wake_writer(&self) -> bool {
        // Between publishing the cursor and reading the flag; pairs with the fence in `Producer::wait`: either the
        // sender sees the space or we see that it waits.
        fence(Ordering::SeqCst);
        let header = self.memory.header();
        // Acquire: the mark that goes with the flag (SYNC POINT: `Producer::arm_at`).
        header.space_armed.0.load(Ordering::Acquire) != 0
            && self.place.cons >= header.producer.wake_at.load(Ordering::Relaxed)
            && header.space_armed.0.swap(0, Ordering::AcqRel) != 0
    }

    /// Prepares to wait for data. True if the caller shall wait: it will be interrupted with
    /// [`Signal::Data`](super::super::interrupt::Signal). False if there are bytes or flags of the sender.
    ///
    /// To be called with the waker registered. The caller then looks again at all else it waits for, too.
    pub(crate) fn wait(&mut self) -> Result<bool, Violation> {
        self.arm();
        // An armed flag stays armed even when we go on: another task may have gone to sleep relying on it.
        Ok(self.writer_flags().is_empty() && !self.is_readable()?)
    }

    /// Asks for an interrupt with the sender's next bytes or change of flags. The caller looks again after this.
    pub(crate) fn arm(&self) {
        self.memory.header().data_armed.0.store(1, Ordering::Relaxed);
        // Between the flag and the look at the sender's cursor; pairs with the fence in `Producer::wake_reader`.
        fence(Ordering::SeqCst);
    }

    /// Bytes read so far.
    pub(crate) fn position(&self) -> u64 {
        self.place.cons
    }

    /// Adds to the receiver's flags. The caller wakes the sender after this.
    pub(crate) fn set_flags(&self, flags: Flags) {
        self.memory.header().consumer.flags.fetch_or(flags.bits(), Ordering::Release);
    }

    /// The sender's flags. After the first sight of any, [`Consumer::is_readable`] decides whether bytes precede it.
    pub(crate) fn writer_flags(&self) -> Flags {
        // Acquire: the cursor published before the flag is there for the look that follows (SYNC POINT:
        // `Producer::set_flags`).
        Flags::from_bits(self.memory.header().producer.flags.load(Ordering::Acquire))
    }

    /// The memory of the DMB.
    pub(crate) fn memory(&self) -> &M {
        &self.memory
    }

    #[inline]
    fn read_into(&mut self, dst: &mut [MaybeUninit<u8>]) -> Result<usize, Violation> {
        if dst.len() as u64 <= self.place.available() && dst.len() < PUBLISH_EVERY {
            self.place.visit.copy_out(&self.memory, self.place.cons, dst);
            self.place.cons += dst.len() as u64;
            self.publish();
            return Ok(dst.len());
        }
        self.read_pieces(dst)
    }

    fn read_pieces(&mut self, mut dst: &mut [MaybeUninit<u8>]) -> Result<usize, Violation> {
        // One look per call: a read ends with what was there, however fast the sender is.
        if self.place.available() < dst.len() as u64 {
            self.look()?;
        }
        let mut count = 0;
        while !dst.is_empty() {
            let (piece, rest) = dst.split_at_mut(dst.len().min(PUBLISH_EVERY));
            let mut place = self.place;
            let copied = match self.copy(&mut place, piece) {
                Ok(0) => break,
                Ok(copied) => copied,
                // What was read before is good; the next call meets the rule again.
                Err(_) if count > 0 => break,
                Err(violation) => return Err(violation),
            };
            self.place = place;
            self.publish();
            count += copied;
            if copied < piece.len() {
                break;
            }
            dst = rest;
        }
        Ok(count)
    }

    /// Fills `dst` with what is known to be there from `place` on, over the hops, and moves `place` there.
    fn copy(&self, place: &mut Place, dst: &mut [MaybeUninit<u8>]) -> Result<usize, Violation> {
        let mut count = 0;
        while count < dst.len() {
            place.follow(&self.memory, self.prod)?;
            let available = usize::try_from(place.available()).unwrap_or(usize::MAX);
            let run = available.min(dst.len() - count);
            if run == 0 {
                break;
            }
            place.visit.copy_out(&self.memory, place.cons, &mut dst[count..count + run]);
            place.cons += run as u64;
            count += run;
        }
        Ok(count)
    }

    fn publish(&mut self) {
        let line = &self.memory.header().consumer;
        if self.published_hop != self.place.hops {
            self.published_hop = self.place.hops;
            // Release: our loads of the record before its next use (SYNC POINT: `Producer::has_free_record`).
            line.hop.store(self.published_hop, Ordering::Release);
        }
        // Release: our copies of the bytes before their overwriting (SYNC POINT: `Producer::look`).
        line.cons.store(self.place.cons, Ordering::Release);
    }

    /// Reads the sender's cursor, then what it has to say about hops.
    fn look(&mut self) -> Result<(), Violation> {
        // Acquire: the bytes before the cursor, and the hops among them (SYNC POINT: `Producer::publish`).
        let prod = self.memory.header().producer.prod.load(Ordering::Acquire);
        if prod < self.prod {
            return Err(Violation::new(Rule::ProducerMonotonic, prod, self.prod));
        }
        if prod - self.place.cons > self.capacity {
            return Err(Violation::new(Rule::ProducerDistance, prod - self.place.cons, self.capacity));
        }
        let mut place = self.place;
        place.extend(&self.memory, prod)?;
        place.follow(&self.memory, prod)?;
        self.prod = prod;
        self.place = place;
        Ok(())
    }
}
