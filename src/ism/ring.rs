//! The ring of one direction: one sender, one receiver, a DMB between them that grows while it
//! runs.
//!
//! A DMB has one small segment of its own, number 0. A sender that finds it full asks for a larger
//! one; the receiver, whose memory it is, lends it under a number of its own (*grants* it), and
//! takes it back once the stream has left it. Bytes are numbered by their position in the stream,
//! from 0. The stream *visits* one segment after the other: a visit that begins at position B uses
//! its segment as a ring, position p at offset (p − B) mod size. When a segment is full and a
//! granted one is there the sender *hops*: it publishes the record {position, segment}, then the
//! number of hops, then its cursor. The receiver reads up to the position of its next hop and moves
//! on when there is something behind it. So no byte straddles two segments, and growing needs no
//! empty ring.
//!
//! Each end keeps its own cursor in private memory and publishes it by one `Release` store; of the
//! peer's cursors it keeps the last value it has seen, and looks again only when that does not
//! suffice. What is read from the header is checked once against private state, then only the copy
//! is used: a peer that breaks a rule earns a [`Violation`], and neither a panic, nor an access out
//! of bounds, nor an endless loop.
//!
//! Both ends take `&mut self`: whoever shares one among tasks puts its direction's lock around it.

#![expect(unsafe_code, reason = "fills the uninitialised part of the caller's buffers")]

mod consumer;
#[cfg(any(test, loom))]
pub(crate) mod heap;
#[cfg(all(test, loom))]
mod models;
mod producer;
mod room;
mod run;
#[cfg(all(test, not(loom)))]
mod tests;

pub(crate) use consumer::Consumer;
pub(crate) use producer::Producer;
pub(crate) use room::{Room, fill_room};
pub(crate) use run::Run;
use run::Source;

use super::dmb::DmbHeader;
use std::mem::MaybeUninit;
use std::{error, fmt};

pub(crate) use producer::{Refusal, Shrunk};

/// The memory of one DMB, as a ring sees it.
pub(crate) trait Memory {
    /// A piece of memory that bytes lie in.
    type Segment: Segment;

    /// The header, shared with the peer.
    fn header(&self) -> &DmbHeader;

    /// Segment 0, which belongs to the DMB and is always there.
    fn first(&self) -> Self::Segment;
}

/// A piece of memory that bytes lie in, the same at both ends.
pub(crate) trait Segment: Clone {
    /// Bytes; a power of two, and always the same.
    fn size(&self) -> u64;

    /// That byte, and some behind it, will be copied out.
    fn prefetch(&self, offset: usize);

    /// Copies `src` into it; panics, before it copies, if that would leave the segment.
    fn copy_in(&self, offset: usize, src: &[u8]);

    /// Fills `dst` from it (all of it); panics, before it copies, if that would leave the segment.
    fn copy_out(&self, offset: usize, dst: &mut [MaybeUninit<u8>]);

    /// Copies `len` bytes of `from` to `offset`; panics, before it copies, if that would leave
    /// either.
    fn copy_across(&self, offset: usize, from: &Self, at: usize, len: usize);
}

/// Number of the segment that belongs to the DMB itself.
const FIRST: u64 = 0;

/// Copies of at least this size are published in pieces, so that both ends can copy at the same
/// time.
const PUBLISH_EVERY: usize = 64 * 1024;

/// The peer broke a rule of the ring: nothing it published can be believed any more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Violation {
    rule: Rule,
    seen: u64,
    known: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    ProducerMonotonic,
    ProducerDistance,
    VisitSize,
    HopCount,
    HopPosition,
    HopSegment,
    EmptyHop,
    ConsumerMonotonic,
    ConsumerAhead,
    ConsumerHop,
}

impl Violation {
    #[cold]
    #[inline(never)]
    fn new(rule: Rule, seen: u64, known: u64) -> Violation {
        Violation { rule, seen, known }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { rule, seen, known } = self;
        match rule {
            Rule::ProducerMonotonic => write!(f, "producer cursor went back from {known} to {seen}"),
            Rule::ProducerDistance => write!(f, "producer cursor is {seen} bytes ahead in a DMB of {known}"),
            Rule::VisitSize => write!(f, "{seen} unread bytes in a segment of {known}"),
            Rule::HopCount => write!(f, "hop count is {seen} when hop {known} is the next"),
            Rule::HopPosition => write!(f, "hop at position {seen} when {known} bytes were read"),
            Rule::HopSegment => write!(f, "hop from segment {known} to segment {seen}"),
            Rule::EmptyHop => write!(f, "hop at position {seen} leaves segment {known} without a byte"),
            Rule::ConsumerMonotonic => write!(f, "consumer cursor went back from {known} to {seen}"),
            Rule::ConsumerAhead => write!(f, "consumer cursor is {seen} when {known} bytes were written"),
            Rule::ConsumerHop => {
                write!(f, "consumer follows hop {seen} when hop {known} was expected at most")
            }
        }
    }
}

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Violation({self})")
    }
}

impl error::Error for Violation {}

/// Where in which segment a position lies: one visit of the stream to a segment.
#[derive(Clone, Copy)]
struct Visit {
    /// Its number: 0, or what the grant said.
    segment: u64,
    /// First position of the visit.
    begin: u64,
    /// Size of the segment, a power of two.
    size: u64,
}

impl Visit {
    /// The offset of `position`, and how many bytes there are from there to the end of the segment.
    #[inline]
    fn locate(&self, position: u64) -> (usize, usize) {
        let offset = position.wrapping_sub(self.begin) & (self.size - 1);
        (offset as usize, (self.size - offset) as usize)
    }

    /// Copies `src` to `position` in the visit's segment; at most `size` bytes.
    #[inline]
    fn copy_in<S: Segment>(&self, segment: &S, position: u64, src: impl Source<S>) {
        let (offset, straight) = self.locate(position);
        if src.len() <= straight {
            src.put(segment, offset);
        } else {
            let (first, rest) = src.split_at(straight);
            first.put(segment, offset);
            rest.put(segment, 0);
        }
    }

    #[inline]
    fn prefetch(&self, segment: &impl Segment, position: u64) {
        segment.prefetch(self.locate(position).0);
    }

    /// Fills `dst` from `position` in the visit's segment; at most `size` bytes.
    #[inline]
    fn copy_out(&self, segment: &impl Segment, position: u64, dst: &mut [MaybeUninit<u8>]) {
        let (offset, straight) = self.locate(position);
        if dst.len() <= straight {
            segment.copy_out(offset, dst);
        } else {
            let (first, rest) = dst.split_at_mut(straight);
            segment.copy_out(offset, first);
            segment.copy_out(0, rest);
        }
    }
}
