//! The sending end of a ring.

use super::super::dmb::{Flags, HOPS, LARGEST_SEGMENT};
use super::{FIRST, Memory, PUBLISH_EVERY, Rule, Run, Segment, Source, Violation, Visit};
use crate::sync::{Ordering, fence};
use std::io::IoSlice;

/// How many times its segment a sender writes, after it was refused a larger one, before it asks
/// again.
const ASK_AGAIN: u64 = 16;
/// A sender asks for a segment of so many times the present one: few round trips lead to the
/// largest.
const STEP: u64 = 8;
/// If not even an empty one would take what it could not write, it knows what it needs: that, but
/// so many times the present one at least.
const KNOWN_STEP: u64 = 4;
/// What is expected only is asked for up to this size.
const MOST_EXPECTED: u64 = 256 * 1024;

/// The sending end: writes bytes into the peer's DMB.
pub(crate) struct Producer<M: Memory> {
    memory: M,
    first: M::Segment,
    /// What the visit is to, unless to segment 0.
    larger: Option<M::Segment>,
    /// Bytes of the largest segment to ask for.
    window: u64,
    /// Bytes written.
    prod: u64,
    /// Bytes written that the peer may know of.
    published: u64,
    /// Bytes read, when we last looked.
    cons: u64,
    visit: Visit,
    /// Hops made, and hops the receiver had followed when we last looked.
    hops: u64,
    followed: u64,
    /// Granted, and to be entered when the present segment is full.
    next: Option<(u64, M::Segment)>,
    /// Number of the latest grant; numbers rise.
    latest: u64,
    growth: Growth,
    /// A larger segment was refused: not to be asked for before this position.
    ask_at: u64,
    /// Bytes of the largest segment that the ring was too full to do without.
    needed: u64,
}

/// How far the wish for a larger segment is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Growth {
    /// There is none.
    Content,
    /// A segment of so many bytes is to be asked for.
    Wanted(u64),
    /// The receiver was asked, and has not answered.
    Asked,
    /// It has answered with the grant of this number, which is being mapped.
    Comes(u64),
}

/// What came of [`Producer::shrink`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shrunk {
    /// The ring is small already.
    Small,
    /// It is small now: the receiver is to be told that all grants up to this number are free.
    GaveBack(u64),
    /// It can not be small yet.
    NotYet,
}

impl<M: Memory> Producer<M> {
    /// The sender of a fresh slot: position 0, in segment 0. It asks for segments of up to `window`
    /// bytes.
    pub(crate) fn new(memory: M, window: usize) -> Producer<M> {
        let first = memory.first();
        let visit = Visit { segment: FIRST, begin: 0, size: first.size() };
        let window = (window.min(LARGEST_SEGMENT) as u64).max(visit.size);
        Producer {
            memory,
            first,
            larger: None,
            window,
            prod: 0,
            published: 0,
            cons: 0,
            visit,
            hops: 0,
            followed: 0,
            next: None,
            latest: FIRST,
            growth: Growth::Content,
            ask_at: 0,
            needed: 0,
        }
    }

    /// Writes what fits, entering a granted segment to make it fit. Returns how much that was: 0
    /// means full.
    #[inline]
    pub(crate) fn write(&mut self, src: &[u8]) -> Result<usize, Violation> {
        let written = self.append(src)?;
        self.publish();
        Ok(written)
    }

    /// As [`Producer::write`], of bytes that lie in another ring: they are copied from there.
    #[inline(never)]
    pub(crate) fn write_run(&mut self, run: &Run<M::Segment>) -> Result<usize, Violation> {
        let written = self.append_pieces(run.part())?;
        self.publish();
        Ok(written)
    }

    /// Writes of all slices together what fits. Returns how much that was: 0 means full.
    pub(crate) fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> Result<usize, Violation> {
        let mut written = 0;
        for slice in slices {
            let more = self.append(slice)?;
            written += more;
            if more < slice.len() {
                break;
            }
        }
        self.publish();
        Ok(written)
    }

    /// Whether the caller has to interrupt the receiver with
    /// [`Signal::Data`](super::super::interrupt::Signal).
    ///
    /// To be called after every write that wrote something and every change of flags.
    #[inline]
    pub(crate) fn wake_reader(&self) -> bool {
        // AcqRel: pairs with the swap in `Consumer::arm`. Of two swaps of one word one comes first:
        // either this one takes the flag, or the receiver's, which comes after it, brings what was
        // published before it. A load here would need a fence on both sides: Release and Acquire
        // alone lose wake-ups, on x86 too. And it costs no line but the one that the cursor is on.
        self.memory.header().producer.data_armed.swap(0, Ordering::AcqRel) != 0
    }

    /// Whether a write would write something: there is room, or may be after growing.
    #[inline]
    pub(crate) fn is_writable(&mut self) -> Result<bool, Violation> {
        if self.room() > 0 {
            return Ok(true);
        }
        self.look()?;
        Ok(self.room() > 0 || self.may_hop()?)
    }

    /// Prepares to wait for space. True if the caller shall wait: it will be interrupted with
    /// [`Signal::Space`](super::super::interrupt::Signal) when half of the segment is free. False
    /// if it shall write.
    ///
    /// To be called, with the waker registered, after a write wrote nothing or
    /// [`Producer::is_writable`] said no; the low-water mark keeps writer and reader from passing
    /// single bytes to and fro.
    pub(crate) fn wait(&mut self) -> Result<bool, Violation> {
        if self.room() > 0 || self.may_hop()? {
            return Ok(false);
        }
        self.want(1);
        // The segment is full, so the visit is at least `size` long and this lies within it.
        let wake_at = self.prod - self.visit.size / 2;
        self.arm_at(wake_at);
        self.look()?;
        // An armed flag stays armed even when we go on: another task may have gone to sleep relying
        // on it.
        Ok(self.cons < wake_at)
    }

    fn arm_at(&self, wake_at: u64) {
        let header = self.memory.header();
        header.producer.wake_at.store(wake_at, Ordering::Relaxed);
        // Release: who sees the flag sees the mark (SYNC POINT: `Consumer::wake_writer`). A flag
        // still set from before may go with the mark from before: marks only rise, so that one
        // wakes early, never late.
        header.space_armed.0.store(1, Ordering::Release);
        // Between the flag and the look at the receiver's cursor; pairs with the fence in
        // `Consumer::wake_writer`.
        fence(Ordering::SeqCst);
    }

    /// Whether the receiver has read everything.
    pub(crate) fn is_consumed(&mut self) -> Result<bool, Violation> {
        if self.cons != self.prod {
            self.look()?;
        }
        Ok(self.cons == self.prod)
    }

    /// Bytes written so far.
    pub(crate) fn position(&self) -> u64 {
        self.prod
    }

    /// Adds to the sender's flags. The caller wakes the receiver after this.
    pub(crate) fn set_flags(&self, flags: Flags) {
        // Release: who sees the flag sees the bytes before it (SYNC POINT:
        // `Consumer::writer_flags`).
        self.memory.header().producer.flags.fetch_or(flags.bits(), Ordering::Release);
    }

    /// The receiver's flags.
    pub(crate) fn reader_flags(&self) -> Flags {
        Flags::from_bits(self.memory.header().reader.flags.load(Ordering::Acquire))
    }

    /// Whether larger segments than the first are lent to this ring.
    pub(crate) fn is_grown(&self) -> bool {
        self.larger.is_some() || self.next.is_some()
    }

    /// So many bytes are likely to be written at once, some time.
    pub(crate) fn expect(&mut self, bytes: u64) {
        if bytes > self.visit.size {
            self.ask_for(bytes.min(MOST_EXPECTED));
        }
    }

    /// Bytes of the largest segment that was of use so far; 0 if the first one was enough.
    pub(crate) fn needed(&self) -> u64 {
        self.needed
    }

    /// Bytes of the segment that the receiver has to be asked for now, if any. Answers once; then
    /// the receiver's answer is due: [`Producer::granted`] or [`Producer::refused`].
    #[inline]
    pub(crate) fn take_wish(&mut self) -> Option<u64> {
        let Growth::Wanted(bytes) = self.growth else { return None };
        self.growth = Growth::Asked;
        Some(bytes)
    }

    /// A grant of that number has come, and is to be mapped before it is
    /// [`granted`](Producer::granted) or [`declined`](Producer::declined). `false`: it was not
    /// asked for.
    pub(crate) fn expects(&mut self, number: u64) -> bool {
        let asked = self.growth == Growth::Asked && number > self.latest;
        if asked {
            self.growth = Growth::Comes(number);
        }
        asked
    }

    /// Whether a grant of that number would answer what was asked.
    fn awaits(&self, number: u64) -> bool {
        match self.growth {
            Growth::Asked => number > self.latest,
            Growth::Comes(coming) => number == coming,
            Growth::Content | Growth::Wanted(_) => false,
        }
    }

    /// The receiver has lent `segment` under that number. `false`: it was not asked to.
    pub(crate) fn granted(&mut self, number: u64, segment: M::Segment) -> bool {
        if !self.awaits(number) {
            return false;
        }
        self.growth = Growth::Content;
        self.latest = number;
        self.next = Some((number, segment));
        true
    }

    /// As [`Producer::granted`], but this end can not use it; the receiver is to be told so.
    pub(crate) fn declined(&mut self, number: u64) -> bool {
        if !self.awaits(number) {
            return false;
        }
        self.latest = number;
        self.refused(Refusal::Memory);
        true
    }

    /// The receiver does not lend a larger segment now. When it is asked again depends on why.
    pub(crate) fn refused(&mut self, why: Refusal) {
        self.growth = Growth::Content;
        self.ask_at = match why {
            Refusal::NotNeeded => self.prod,
            Refusal::Limit => self.prod.saturating_add(self.visit.size),
            Refusal::Memory => self.prod.saturating_add(self.visit.size.saturating_mul(ASK_AGAIN)),
        };
    }

    /// Goes back to the first segment and lets go of all others, if everything was read.
    pub(crate) fn shrink(&mut self) -> Result<Shrunk, Violation> {
        if !self.is_grown() {
            return Ok(Shrunk::Small);
        }
        if self.larger.is_some() {
            if !self.is_consumed()? || !self.has_free_record()? {
                return Ok(Shrunk::NotYet);
            }
            self.hop(FIRST, None);
        }
        self.next = None;
        if !matches!(self.growth, Growth::Asked | Growth::Comes(_)) {
            // Else the answer is still to come; a grant has a higher number.
            self.growth = Growth::Content;
        }
        self.ask_at = 0;
        Ok(Shrunk::GaveBack(self.latest))
    }

    /// The memory of the DMB.
    pub(crate) fn memory(&self) -> &M {
        &self.memory
    }

    /// Free bytes of the current segment, as far as we know.
    #[inline]
    fn room(&self) -> u64 {
        self.visit.size - (self.prod - self.cons.max(self.visit.begin))
    }

    /// Copies what fits behind the bytes there are; without publishing it, unless it is much.
    #[inline]
    fn append(&mut self, src: &[u8]) -> Result<usize, Violation> {
        if src.len() as u64 <= self.room() && src.len() < PUBLISH_EVERY {
            self.copy(src);
            return Ok(src.len());
        }
        self.append_pieces(src)
    }

    fn append_pieces(&mut self, src: impl Source<M::Segment>) -> Result<usize, Violation> {
        let mut rest = src;
        while rest.len() > 0 {
            if self.room() < rest.len() as u64 {
                self.look()?;
            }
            if self.room() == 0 && !self.enter_next()? {
                self.want(rest.len() as u64);
                break;
            }
            let room = usize::try_from(self.room()).unwrap_or(usize::MAX);
            let (piece, behind) = rest.split_at(rest.len().min(room).min(PUBLISH_EVERY));
            self.copy(piece);
            if behind.len() > 0 {
                self.publish();
            }
            rest = behind;
        }
        Ok(src.len() - rest.len())
    }

    #[inline]
    fn copy(&mut self, src: impl Source<M::Segment>) {
        self.visit.copy_in(self.larger.as_ref().unwrap_or(&self.first), self.prod, src);
        self.prod += src.len() as u64;
    }

    #[inline]
    fn publish(&mut self) {
        if self.published != self.prod {
            self.published = self.prod;
            // Release: the bytes, and the hop that leads to them, before the cursor (SYNC POINT:
            // `Consumer::look`).
            self.memory.header().producer.prod.store(self.prod, Ordering::Release);
        }
    }

    /// Reads the receiver's cursor.
    fn look(&mut self) -> Result<(), Violation> {
        // Acquire: the receiver's copies of these bytes are done before we overwrite them (SYNC
        // POINT: `Consumer::publish`).
        let cons = self.memory.header().consumer.cons.load(Ordering::Acquire);
        if cons < self.cons {
            return Err(Violation::new(Rule::ConsumerMonotonic, cons, self.cons));
        }
        // More than we ever told it of cannot have been read.
        if cons > self.published {
            return Err(Violation::new(Rule::ConsumerAhead, cons, self.published));
        }
        self.cons = cons;
        Ok(())
    }

    /// Whether a hop record is free, as the receiver has followed the hop that it held.
    fn has_free_record(&mut self) -> Result<bool, Violation> {
        if self.hops - self.followed >= HOPS as u64 {
            // Acquire: the receiver's loads of the record are done before we overwrite it.
            let followed = self.memory.header().consumer.hop.load(Ordering::Acquire);
            if followed < self.followed || followed > self.hops {
                return Err(Violation::new(Rule::ConsumerHop, followed, self.hops));
            }
            self.followed = followed;
        }
        Ok(self.hops - self.followed < HOPS as u64)
    }

    /// Whether the ring is not full after all: a granted segment waits.
    fn may_hop(&mut self) -> Result<bool, Violation> {
        Ok(self.next.is_some() && self.has_free_record()?)
    }

    /// Moves on to the granted segment, if there is one.
    #[cold]
    fn enter_next(&mut self) -> Result<bool, Violation> {
        if !self.may_hop()? {
            return Ok(false);
        }
        let Some((number, segment)) = self.next.take() else { return Ok(false) };
        self.hop(number, Some(segment));
        self.needed = self.needed.max(self.visit.size);
        Ok(true)
    }

    /// The ring is full, with `more` bytes behind: a larger segment would help, or another one of
    /// the largest size while the receiver does not read.
    #[cold]
    fn want(&mut self, more: u64) {
        let wanted = self.ask_for(more);
        self.needed = self.needed.max(wanted);
    }

    /// Asks for a segment that `more` bytes fit into, unless it is too early to ask; returns how
    /// large that would be.
    fn ask_for(&mut self, more: u64) -> u64 {
        let enough = more.checked_next_power_of_two().unwrap_or(self.window);
        let step = if more > self.visit.size { KNOWN_STEP } else { STEP };
        let wanted = enough.max(self.visit.size.saturating_mul(step)).min(self.window);
        if self.growth == Growth::Content && self.next.is_none() && self.prod >= self.ask_at {
            self.growth = Growth::Wanted(wanted);
        }
        wanted
    }

    /// Makes `segment` the home of all bytes from here on. It holds no unread byte: each grant is
    /// entered once, and back to segment 0 only an empty ring goes.
    fn hop(&mut self, number: u64, segment: Option<M::Segment>) {
        let header = self.memory.header();
        let record = &header.hops.0[(self.hops % HOPS as u64) as usize];
        record.position.store(self.prod, Ordering::Relaxed);
        record.segment.store(number, Ordering::Relaxed);
        self.hops += 1;
        // Release: the record before the count; and the count before the next cursor, which is a
        // Release store too (SYNC POINT: `Consumer::latch_hop`).
        header.producer.hop_count.store(self.hops, Ordering::Release);
        let size = segment.as_ref().unwrap_or(&self.first).size();
        self.visit = Visit { segment: number, begin: self.prod, size };
        // What was left is the receiver's alone: it may still read there.
        self.larger = segment;
    }
}

/// Why a larger segment is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// The receiver reads: the ring is not full any more.
    NotNeeded,
    /// The ring holds as much as TCP would.
    Limit,
    /// The receiver's memory does not allow it.
    Memory,
}
