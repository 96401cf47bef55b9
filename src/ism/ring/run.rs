//! Bytes that stay where they are, for who looks at them there; and what can be written to a ring.

use super::Segment;
use std::ops::Range;

/// Bytes of the stream in one piece, where the sender has put them.
///
/// It keeps their memory, and nothing else: as soon as they are read, the sender may write there,
/// and a hostile one at any time.
#[derive(Clone, Debug)]
pub(crate) struct Run<S> {
    segment: S,
    range: Range<usize>,
    /// Of the first byte.
    position: u64,
}

impl<S: Segment> Run<S> {
    pub(super) fn new(segment: S, range: Range<usize>, position: u64) -> Run<S> {
        Run { segment, range, position }
    }

    /// How many there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.range.len()
    }

    /// Where in the stream the first one is.
    #[inline]
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The segment, and where in it they are.
    #[inline]
    pub(crate) fn place(&self) -> (&S, Range<usize>) {
        (&self.segment, self.range.clone())
    }

    /// Is without the first `count` bytes.
    ///
    /// # Panics
    ///
    /// If it has fewer.
    pub(crate) fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "{count} of {} bytes", self.len());
        self.range.start += count;
        self.position += count as u64;
    }

    /// To be written to another ring.
    pub(super) fn part(&self) -> Part<'_, S> {
        Part { segment: &self.segment, offset: self.range.start, len: self.range.len() }
    }
}

/// Bytes that can be copied into a segment.
pub(super) trait Source<S: Segment>: Copy {
    fn len(self) -> usize;

    /// The first `mid` bytes, and the rest; panics if there are fewer.
    fn split_at(self, mid: usize) -> (Self, Self);

    /// Copies all of it to `offset`.
    fn put(self, segment: &S, offset: usize);
}

impl<S: Segment> Source<S> for &[u8] {
    #[inline]
    fn len(self) -> usize {
        <[u8]>::len(self)
    }

    #[inline]
    fn split_at(self, mid: usize) -> (Self, Self) {
        <[u8]>::split_at(self, mid)
    }

    #[inline]
    fn put(self, segment: &S, offset: usize) {
        segment.copy_in(offset, self);
    }
}

/// A part of another ring.
pub(super) struct Part<'a, S> {
    segment: &'a S,
    offset: usize,
    len: usize,
}

impl<S> Clone for Part<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Part<'_, S> {}

impl<S: Segment> Source<S> for Part<'_, S> {
    fn len(self) -> usize {
        self.len
    }

    fn split_at(self, mid: usize) -> (Self, Self) {
        assert!(mid <= self.len, "{mid} of {} bytes", self.len);
        (Part { len: mid, ..self }, Part { offset: self.offset + mid, len: self.len - mid, ..self })
    }

    fn put(self, segment: &S, offset: usize) {
        segment.copy_across(offset, self.segment, self.offset, self.len);
    }
}
