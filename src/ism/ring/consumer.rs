//! The receiving end of a ring.

use super::super::dmb::{DmbHeader, Flags, HOPS};
use super::{FIRST, Memory, PUBLISH_EVERY, Rule, Run, Segment, Violation, Visit};
use crate::sync::{Ordering, fence};
use bytes::BufMut;
use std::collections::VecDeque;
use std::mem::MaybeUninit;

/// The receiving end: reads bytes out of its own DMB.
pub(crate) struct Consumer<M: Memory> {
    memory: M,
    lent: Lent<M::Segment>,
    place: Place,
    /// Bytes written, when we last looked.
    prod: u64,
    /// The hop number the peer may know of.
    published_hop: u64,
}

/// The segments that the sender may write to.
struct Lent<S> {
    first: S,
    /// The larger ones, by rising numbers: the one that is read from, then those that may be
    /// entered.
    larger: VecDeque<(u64, S)>,
    /// Number of the latest one.
    latest: u64,
    /// Bytes all of them hold together.
    capacity: u64,
}

impl<S: Segment> Lent<S> {
    fn get(&self, number: u64) -> Option<&S> {
        match number {
            FIRST => Some(&self.first),
            _ => self.larger.iter().find(|(other, _)| *other == number).map(|(_, segment)| segment),
        }
    }

    /// The segment of a visit.
    #[inline]
    fn of(&self, visit: &Visit) -> &S {
        if visit.segment == FIRST {
            return &self.first;
        }
        match self.larger.front() {
            Some((number, segment)) if *number == visit.segment => segment,
            // A visit is only ever to a segment that is lent: none is let go of while bytes are
            // read from it.
            _ => self.get(visit.segment).unwrap_or(&self.first),
        }
    }

    fn keep(&mut self, wanted: impl Fn(u64) -> bool) {
        self.larger.retain(|(number, _)| wanted(*number));
        self.capacity =
            self.first.size() + self.larger.iter().map(|(_, segment)| segment.size()).sum::<u64>();
    }
}

/// How far reading has come, and how far it may go from there.
#[derive(Clone, Copy)]
struct Place {
    cons: u64,
    /// The bytes of this visit that were written end here: min(prod, position of the next hop).
    limit: u64,
    visit: Visit,
    /// The highest number of a segment that the stream has left.
    left: u64,
    /// Hops followed, which is the number of the next hop.
    hops: u64,
    /// The next hop, once it is known.
    next: Option<Hop>,
}

#[derive(Clone, Copy)]
struct Hop {
    position: u64,
    segment: u64,
    size: u64,
}

impl Place {
    #[inline]
    fn available(&self) -> u64 {
        self.limit - self.cons
    }

    /// Sets the limit for a cursor `prod` that was loaded before this is called.
    #[inline]
    fn extend<S: Segment>(&mut self, header: &DmbHeader, lent: &Lent<S>, prod: u64) -> Result<(), Violation> {
        self.latch_hop(header, lent)?;
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
    /// After `prod` was loaded: the count was published before any cursor behind the hop, so a
    /// cursor that we know is either not behind it or shows us the hop.
    #[inline]
    fn latch_hop<S: Segment>(&mut self, header: &DmbHeader, lent: &Lent<S>) -> Result<(), Violation> {
        if self.next.is_some() {
            return Ok(());
        }
        let count = header.producer.hop_count.load(Ordering::Acquire);
        if count == self.hops {
            return Ok(());
        }
        self.next = Some(self.read_hop(header, lent, count)?);
        Ok(())
    }

    #[cold]
    fn read_hop<S: Segment>(&self, header: &DmbHeader, lent: &Lent<S>, count: u64) -> Result<Hop, Violation> {
        if count.wrapping_sub(self.hops) > HOPS as u64 {
            return Err(Violation::new(Rule::HopCount, count, self.hops));
        }
        let record = &header.hops.0[(self.hops % HOPS as u64) as usize];
        let position = record.position.load(Ordering::Relaxed);
        let segment = record.segment.load(Ordering::Relaxed);
        let here = self.visit.segment;
        if position < self.cons {
            return Err(Violation::new(Rule::HopPosition, position, self.cons));
        }
        // Each grant is entered once: one that was left may be gone.
        let may_be_entered = segment == FIRST || segment > self.left.max(here);
        let Some(size) = lent.get(segment).filter(|_| may_be_entered).map(Segment::size) else {
            return Err(Violation::new(Rule::HopSegment, segment, here));
        };
        // A visit without a byte is left for segment 0 only, and segment 0 is not left so: each
        // pass over the hops costs a byte, or a peer could keep us hopping for ever.
        if position == self.visit.begin && (segment != FIRST || here == FIRST) {
            return Err(Violation::new(Rule::EmptyHop, position, here));
        }
        Ok(Hop { position, segment, size })
    }

    /// Moves on while the visit is read and there are bytes behind it, or the way leads back to
    /// segment 0.
    #[inline]
    fn follow<S: Segment>(&mut self, header: &DmbHeader, lent: &Lent<S>, prod: u64) -> Result<(), Violation> {
        while let Some(hop) = self.next {
            if hop.position != self.cons || (prod <= self.cons && hop.segment != FIRST) {
                break;
            }
            // What lies between the two was granted and never used.
            self.left = match hop.segment {
                FIRST => self.left.max(self.visit.segment),
                number => number - 1,
            };
            self.visit = Visit { segment: hop.segment, begin: hop.position, size: hop.size };
            self.hops += 1;
            self.next = None;
            self.extend(header, lent, prod)?;
        }
        Ok(())
    }
}

impl<M: Memory> Consumer<M> {
    /// The receiver of a fresh slot: position 0, in segment 0.
    pub(crate) fn new(memory: M) -> Consumer<M> {
        let first = memory.first();
        let size = first.size();
        let visit = Visit { segment: FIRST, begin: 0, size };
        let place = Place { cons: 0, limit: 0, visit, left: FIRST, hops: 0, next: None };
        let lent = Lent { first, larger: VecDeque::new(), latest: FIRST, capacity: size };
        Consumer { memory, lent, place, prod: 0, published_hop: 0 }
    }

    /// Lends the sender one more segment; it is to be told the number that this returns.
    pub(crate) fn lend(&mut self, segment: M::Segment) -> u64 {
        self.lent.latest += 1;
        self.lent.capacity += segment.size();
        self.lent.larger.push_back((self.lent.latest, segment));
        self.lent.latest
    }

    /// The sender says that it will not use the grants up to this number, besides those that unread
    /// bytes lie in.
    pub(crate) fn take_back(&mut self, number: u64) -> Result<(), Violation> {
        // The way back to segment 0 is told in the ring, before this message.
        self.look()?;
        self.publish();
        let Place { visit, next, .. } = self.place;
        let next = next.map(|hop| hop.segment);
        // Else unread bytes lie in earlier ones, or behind hops to come; those go when they are
        // left.
        let settled = visit.segment == FIRST && next.is_none_or(|next| next == FIRST || next > number);
        self.lent.keep(|other| {
            let in_use = other == visit.segment || next == Some(other);
            other > number || in_use || (other < number && !settled)
        });
        Ok(())
    }

    /// Takes back the latest grant, which the sender was never told of; one that it uses all the
    /// same it keeps.
    pub(crate) fn revoke(&mut self, number: u64) {
        let used =
            self.place.visit.segment == number || self.place.next.is_some_and(|hop| hop.segment == number);
        self.lent.keep(|other| used || other != number);
    }

    /// Bytes of the larger segments that are lent at the moment.
    pub(crate) fn lent_bytes(&self) -> u64 {
        self.lent.capacity - self.lent.first.size()
    }

    /// Bytes of the largest segment that the sender has been lent since it was last small.
    pub(crate) fn largest_lent(&self) -> u64 {
        self.lent.larger.iter().map(|(_, segment)| segment.size()).max().unwrap_or(self.lent.first.size())
    }

    /// Moves bytes into the free part of `buf` (its first chunk). Returns how many: 0 means empty,
    /// if `buf` had room.
    #[inline]
    pub(crate) fn read<B: BufMut>(&mut self, buf: &mut B) -> Result<usize, Violation> {
        let chunk = buf.chunk_mut();
        // SAFETY: `read_into` and what it calls only ever write initialised bytes through this.
        let dst = unsafe { chunk.as_uninit_slice_mut() };
        let count = self.read_into(dst)?;
        // SAFETY: `read_into` filled the first `count` bytes of the chunk, and no chunk is longer
        // than what remains.
        unsafe { buf.advance_mut(count) };
        Ok(count)
    }

    /// Copies bytes into the free part of `buf` (its first chunk) and leaves them in the ring.
    /// Returns how many.
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
        // SAFETY: `copy` filled the first `count` bytes of the chunk, and no chunk is longer than
        // what remains.
        unsafe { buf.advance_mut(count) };
        Ok(count)
    }

    /// Shows what is next and lies in one piece, as far as the end of its segment or the next hop,
    /// and leaves it in the ring; `None` when that is empty.
    pub(crate) fn borrow(&mut self) -> Result<Option<Run<M::Segment>>, Violation> {
        // What has come since the last look may be seen, too.
        let (_, straight) = self.place.visit.locate(self.place.cons);
        if self.place.available() < straight as u64 {
            self.look()?;
        }
        let Place { cons, visit, .. } = self.place;
        let (offset, straight) = visit.locate(cons);
        let length = usize::try_from(self.place.available()).unwrap_or(usize::MAX).min(straight);
        let segment = || self.lent.of(&visit).clone();
        Ok((length > 0).then(|| Run::new(segment(), offset..offset + length, cons)))
    }

    /// Reads `count` bytes without a copy: those that were shown at `position`. Returns how many: 0
    /// when reading has gone on from there, or they never were shown.
    pub(crate) fn pass_over(&mut self, position: u64, count: usize) -> usize {
        if self.place.cons != position || self.place.available() < count as u64 {
            return 0;
        }
        self.take(count);
        count
    }

    /// Whether there is something to read.
    #[inline]
    pub(crate) fn is_readable(&mut self) -> Result<bool, Violation> {
        if self.place.available() == 0 {
            self.look()?;
        }
        Ok(self.place.available() > 0)
    }

    /// Whether the caller has to interrupt the sender with
    /// [`Signal::Space`](super::super::interrupt::Signal).
    ///
    /// To be called after every read that read something.
    #[inline]
    pub(crate) fn wake_writer(&self) -> bool {
        // Between publishing the cursor and reading the flag; pairs with the fence in
        // `Producer::wait`: either the sender sees the space or we see that it waits.
        fence(Ordering::SeqCst);
        let header = self.memory.header();
        // Acquire: the mark that goes with the flag (SYNC POINT: `Producer::arm_at`).
        header.space_armed.0.load(Ordering::Acquire) != 0
            && self.place.cons >= header.producer.wake_at.load(Ordering::Relaxed)
            && header.space_armed.0.swap(0, Ordering::AcqRel) != 0
    }

    /// Prepares to wait for data. True if the caller shall wait: it will be interrupted with
    /// [`Signal::Data`](super::super::interrupt::Signal). False if there are bytes or flags of the
    /// sender.
    ///
    /// To be called with the waker registered. The caller then looks again at all else it waits
    /// for, too.
    pub(crate) fn wait(&mut self) -> Result<bool, Violation> {
        self.arm();
        // An armed flag stays armed even when we go on: another task may have gone to sleep relying
        // on it.
        Ok(self.writer_flags().is_empty() && !self.is_readable()?)
    }

    /// Asks for an interrupt with the sender's next bytes or change of flags. The caller looks
    /// again after this.
    pub(crate) fn arm(&self) {
        // AcqRel: pairs with the swap in `Producer::wake_reader`. If that came before, the look
        // that follows here sees what was published before it.
        self.memory.header().producer.data_armed.swap(1, Ordering::AcqRel);
    }

    /// Bytes read so far.
    pub(crate) fn position(&self) -> u64 {
        self.place.cons
    }

    /// Adds to the receiver's flags. The caller wakes the sender after this.
    pub(crate) fn set_flags(&self, flags: Flags) {
        self.memory.header().reader.flags.fetch_or(flags.bits(), Ordering::Release);
    }

    /// The sender's flags. After the first sight of any, [`Consumer::is_readable`] decides whether
    /// bytes precede it.
    pub(crate) fn writer_flags(&self) -> Flags {
        // Acquire: the cursor published before the flag is there for the look that follows (SYNC
        // POINT: `Producer::set_flags`).
        Flags::from_bits(self.memory.header().producer.flags.load(Ordering::Acquire))
    }

    /// The memory of the DMB.
    pub(crate) fn memory(&self) -> &M {
        &self.memory
    }

    #[inline]
    fn read_into(&mut self, dst: &mut [MaybeUninit<u8>]) -> Result<usize, Violation> {
        if dst.len() as u64 <= self.place.available() && dst.len() < PUBLISH_EVERY {
            self.place.visit.copy_out(self.lent.of(&self.place.visit), self.place.cons, dst);
            self.take(dst.len());
            return Ok(dst.len());
        }
        self.read_pieces(dst)
    }

    /// So many bytes of this visit are read: they are the sender's again.
    #[inline]
    fn take(&mut self, count: usize) {
        self.place.cons += count as u64;
        self.publish();
    }

    fn read_pieces(&mut self, mut dst: &mut [MaybeUninit<u8>]) -> Result<usize, Violation> {
        // One look per call: a read ends with what was there, however fast the sender is.
        if self.place.available() < dst.len() as u64 {
            self.look()?;
            // Who waits finds nothing twice: before he says so, and after.
            if self.place.available() == 0 {
                return Ok(0);
            }
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
            self.go_to(place);
            self.publish();
            count += copied;
            if copied < piece.len() {
                break;
            }
            dst = rest;
        }
        Ok(count)
    }

    /// Fills `dst` with what is known to be there from `place` on, over the hops, and moves `place`
    /// there.
    fn copy(&self, place: &mut Place, dst: &mut [MaybeUninit<u8>]) -> Result<usize, Violation> {
        let mut count = 0;
        while count < dst.len() {
            place.follow(self.memory.header(), &self.lent, self.prod)?;
            let available = usize::try_from(place.available()).unwrap_or(usize::MAX);
            let run = available.min(dst.len() - count);
            if run == 0 {
                break;
            }
            let segment = self.lent.of(&place.visit);
            place.visit.copy_out(segment, place.cons, &mut dst[count..count + run]);
            place.cons += run as u64;
            count += run;
        }
        Ok(count)
    }

    fn publish(&mut self) {
        let line = &self.memory.header().consumer;
        if self.published_hop != self.place.hops {
            self.published_hop = self.place.hops;
            // Release: our loads of the record before its next use (SYNC POINT:
            // `Producer::has_free_record`).
            line.hop.store(self.published_hop, Ordering::Release);
        }
        // Release: our copies of the bytes before their overwriting (SYNC POINT: `Producer::look`).
        line.cons.store(self.place.cons, Ordering::Release);
    }

    /// Reads the sender's cursor, then what it has to say about hops.
    fn look(&mut self) -> Result<(), Violation> {
        // The bytes come with the cursor, and not after it.
        self.place.visit.prefetch(self.lent.of(&self.place.visit), self.place.cons);
        // Acquire: the bytes before the cursor, and the hops among them (SYNC POINT:
        // `Producer::publish`).
        let prod = self.memory.header().producer.prod.load(Ordering::Acquire);
        if prod < self.prod {
            return Err(Violation::new(Rule::ProducerMonotonic, prod, self.prod));
        }
        if prod - self.place.cons > self.lent.capacity {
            return Err(Violation::new(Rule::ProducerDistance, prod - self.place.cons, self.lent.capacity));
        }
        let mut place = self.place;
        place.extend(self.memory.header(), &self.lent, prod)?;
        place.follow(self.memory.header(), &self.lent, prod)?;
        self.prod = prod;
        self.go_to(place);
        Ok(())
    }

    /// Takes a step that was found good, and lets go of the segments that it has left.
    #[inline]
    fn go_to(&mut self, place: Place) {
        let left = place.left != self.place.left;
        self.place = place;
        if left {
            self.lent.keep(|number| number > place.left);
        }
    }
}
