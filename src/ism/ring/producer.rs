//! The sending end of a ring.

use super::super::dmb::{Flags, HOPS};
use super::{Memory, PUBLISH_EVERY, Rule, Violation, Visit};
use crate::sync::{Ordering, fence};
use std::io::IoSlice;

/// How many times its segment a sender writes, after the kernel refused it a larger one, before it asks again.
const ASK_AGAIN: u64 = 16;

/// The sending end: writes bytes into the peer's DMB.
pub(crate) struct Producer<M> {
    memory: M,
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
    /// The kernel refused to grow: not to be asked again before this position.
    ask_at: u64,
}

impl<M: Memory> Producer<M> {
    /// The sender of a fresh slot: position 0, in segment 0, which has its memory.
    pub(crate) fn new(memory: M) -> Producer<M> {
        Producer {
            memory,
            prod: 0,
            published: 0,
            cons: 0,
            visit: Visit::new::<M>(0, 0),
            hops: 0,
            followed: 0,
            ask_at: 0,
        }
    }

    /// Writes what fits, and grows to make it fit. Returns how much that was: 0 means full.
    #[inline]
    pub(crate) fn write(&mut self, src: &[u8]) -> Result<usize, Violation> {
        let written = self.append(src)?;
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

    /// Whether the caller has to interrupt the receiver with [`Signal::Data`](super::super::interrupt::Signal).
    ///
    /// To be called after every write that wrote something and every change of flags.
    #[inline]
    pub(crate) fn wake_reader(&self) -> bool {
        // Between publishing the cursor and reading the flag; pairs with the fence in `Consumer::wait`: either the
        // receiver sees our bytes or we see that it waits. Release and Acquire alone lose wake-ups, on x86 too.
        fence(Ordering::SeqCst);
        let armed = &self.memory.header().data_armed.0;
        // The plain load keeps the line shared while nobody waits; the swap lets only one of us ring.
        armed.load(Ordering::Relaxed) != 0 && armed.swap(0, Ordering::AcqRel) != 0
    }

    /// Whether a write would write something: there is room, or may be after growing.
    #[inline]
    pub(crate) fn is_writable(&mut self) -> Result<bool, Violation> {
        if self.room() > 0 {
            return Ok(true);
        }
        self.look()?;
        if self.room() > 0 {
            return Ok(true);
        }
        self.may_grow()
    }

    /// Prepares to wait for space. True if the caller shall wait: it will be interrupted with
    /// [`Signal::Space`](super::super::interrupt::Signal) when half of the segment is free. False if it shall write.
    ///
    /// To be called, with the waker registered, after a write wrote nothing or [`Producer::is_writable`] said no;
    /// the low-water mark keeps writer and reader from passing single bytes to and fro.
    pub(crate) fn wait(&mut self) -> Result<bool, Violation> {
        if self.room() > 0 || self.may_grow()? {
            return Ok(false);
        }
        // The segment is full, so the visit is at least `size` long and this lies within it.
        let wake_at = self.prod - self.visit.size / 2;
        self.arm_at(wake_at);
        self.look()?;
        // An armed flag stays armed even when we go on: another task may have gone to sleep relying on it.
        Ok(self.cons < wake_at)
    }

    fn arm_at(&self, wake_at: u64) {
        let header = self.memory.header();
        header.producer.wake_at.store(wake_at, Ordering::Relaxed);
        // Release: who sees the flag sees the mark (SYNC POINT: `Consumer::wake_writer`). A flag still set from
        // before may go with the mark from before: marks only rise, so that one wakes early, never late.
        header.space_armed.0.store(1, Ordering::Release);
        // Between the flag and the look at the receiver's cursor; pairs with the fence in `Consumer::wake_writer`.
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
        // Release: who sees the flag sees the bytes before it (SYNC POINT: `Consumer::writer_flags`).
        self.memory.header().producer.flags.fetch_or(flags.bits(), Ordering::Release);
    }

    /// The receiver's flags.
    pub(crate) fn reader_flags(&self) -> Flags {
        Flags::from_bits(self.memory.header().consumer.flags.load(Ordering::Acquire))
    }

    /// Whether the ring lives in a larger segment than its first.
    pub(crate) fn is_grown(&self) -> bool {
        self.visit.segment != 0
    }

    /// Goes back to the first segment and gives the memory of the others back, if everything was read. True if the
    /// ring is small now.
    pub(crate) fn shrink(&mut self) -> Result<bool, Violation> {
        if !self.is_grown() {
            return Ok(true);
        }
        if !self.is_consumed()? || !self.has_free_record()? {
            return Ok(false);
        }
        let top = self.visit.segment;
        self.hop(0);
        self.ask_at = 0;
        for segment in 1..=top {
            // Every byte was read (cons == prod), and each segment is committed anew before it is entered again.
            // A kernel that refuses to take memory back only leaves it where it is.
            let _ = self.memory.punch(segment);
        }
        Ok(true)
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

    fn append_pieces(&mut self, src: &[u8]) -> Result<usize, Violation> {
        let mut rest = src;
        while !rest.is_empty() {
            if self.room() < rest.len() as u64 {
                self.look()?;
            }
            if self.room() == 0 && !self.grow()? {
                break;
            }
            let room = usize::try_from(self.room()).unwrap_or(usize::MAX);
            let (piece, behind) = rest.split_at(rest.len().min(room).min(PUBLISH_EVERY));
            self.copy(piece);
            if !behind.is_empty() {
                self.publish();
            }
            rest = behind;
        }
        Ok(src.len() - rest.len())
    }

    #[inline]
    fn copy(&mut self, src: &[u8]) {
        self.visit.copy_in(&self.memory, self.prod, src);
        self.prod += src.len() as u64;
    }

    #[inline]
    fn publish(&mut self) {
        if self.published != self.prod {
            self.published = self.prod;
            // Release: the bytes, and the hop that leads to them, before the cursor (SYNC POINT: `Consumer::look`).
            self.memory.header().producer.prod.store(self.prod, Ordering::Release);
        }
    }

    /// Reads the receiver's cursor.
    fn look(&mut self) -> Result<(), Violation> {
        // Acquire: the receiver's copies of these bytes are done before we overwrite them (SYNC POINT:
        // `Consumer::publish`).
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

    fn may_grow(&mut self) -> Result<bool, Violation> {
        Ok(self.visit.segment + 1 < self.memory.segments()
            && self.prod >= self.ask_at
            && self.has_free_record()?)
    }

    /// Moves on to the next segment, if there is one and the kernel has memory for it.
    #[cold]
    fn grow(&mut self) -> Result<bool, Violation> {
        if !self.may_grow()? {
            return Ok(false);
        }
        let next = self.visit.segment + 1;
        if self.memory.commit(next).is_err() {
            self.ask_at = self.prod.saturating_add(self.visit.size.saturating_mul(ASK_AGAIN));
            return Ok(false);
        }
        self.hop(next);
        Ok(true)
    }

    /// Makes `segment` the home of all bytes from here on. It holds no unread byte: on the way up none was there
    /// since the ring was last empty, and back to segment 0 only an empty ring goes.
    fn hop(&mut self, segment: u32) {
        let header = self.memory.header();
        let record = &header.hops.0[(self.hops % HOPS as u64) as usize];
        record.position.store(self.prod, Ordering::Relaxed);
        record.segment.store(u64::from(segment), Ordering::Relaxed);
        self.hops += 1;
        // Release: the record before the count; and the count before the next cursor, which is a Release store too
        // (SYNC POINT: `Consumer::latch_hop`).
        header.producer.hop_count.store(self.hops, Ordering::Release);
        self.visit = Visit::new::<M>(segment, self.prod);
    }
}
