//! Reading in place: bytes are shown where they lie, and passed over when the reader has done with
//! them; and written from there to another stream.
//!
//! No lock is held while somebody looks at them. What may be passed over is what was shown, as long
//! as nobody has read anything meanwhile: a [`Mark`] tells.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll};

use bytes::BufMut;

use super::op::{ReadOp, Send, WriteOp};
use super::receive::{self, Mark};
use super::{Tcp, send};
use crate::ism::arena::DmbSegment;
use crate::ism::ring::{self, Violation};
use crate::ism::sys;

/// Bytes in a ring, as its memory is mapped here.
pub(crate) type Run = ring::Run<DmbSegment>;

/// What is next in a stream.
#[derive(Debug, Default)]
pub(crate) enum Shown {
    #[default]
    Nothing,
    /// In the ring.
    Ring(Run),
    /// A copy of what lies in the socket's buffer, from that place on.
    Tcp(Vec<u8>, usize),
}

impl Shown {
    pub(crate) fn len(&self) -> usize {
        match self {
            Shown::Nothing => 0,
            Shown::Ring(run) => run.len(),
            Shown::Tcp(copy, from) => copy.len() - from,
        }
    }

    /// The byte at `at`, as it is at this moment.
    #[inline]
    pub(crate) fn byte(&self, at: usize) -> Option<u8> {
        match self {
            Shown::Ring(run) if at < run.len() => {
                let (segment, range) = run.place();
                Some(segment.load(range.start + at))
            }
            Shown::Ring(_) | Shown::Nothing => None,
            Shown::Tcp(copy, from) => copy[*from..].get(at).copied(),
        }
    }

    /// Fills `dst` from `at` on, each byte read once.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub(crate) fn copy_into(&self, at: usize, dst: &mut [u8]) {
        let there = self.len().checked_sub(at).is_some_and(|rest| dst.len() <= rest);
        assert!(there, "{} bytes at {at} of {} that were borrowed", dst.len(), self.len());
        match self {
            Shown::Nothing => {}
            Shown::Ring(run) => {
                let (segment, range) = run.place();
                segment.load_into(range.start + at, dst);
            }
            Shown::Tcp(copy, from) => dst.copy_from_slice(&copy[from + at..][..dst.len()]),
        }
    }

    /// Appends those of `wanted` to `buf`, each byte read once.
    ///
    /// # Panics
    ///
    /// If there are not so many, or `buf` has no room for them.
    pub(crate) fn put_into(&self, wanted: Range<usize>, buf: &mut impl BufMut) {
        let there = wanted.start <= wanted.end && wanted.end <= self.len();
        assert!(there, "bytes {wanted:?} of {} that were borrowed", self.len());
        match self {
            Shown::Nothing => {}
            Shown::Ring(run) => {
                let (segment, range) = run.place();
                segment.put_into(range.start + wanted.start, wanted.len(), buf);
            }
            Shown::Tcp(copy, from) => buf.put_slice(&copy[*from..][wanted]),
        }
    }

    /// A copy of all.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        match self {
            Shown::Nothing => Vec::new(),
            Shown::Ring(run) => {
                let (segment, range) = run.place();
                segment.to_vec(range.start, range.len())
            }
            Shown::Tcp(copy, from) => copy[*from..].to_vec(),
        }
    }

    /// The first place of `byte`.
    pub(crate) fn find(&self, byte: u8) -> Option<usize> {
        match self {
            Shown::Nothing => None,
            Shown::Ring(run) => {
                let (segment, range) = run.place();
                segment.find(range.start, range.len(), byte)
            }
            Shown::Tcp(copy, from) => copy[*from..].iter().position(|other| *other == byte),
        }
    }

    /// What was copied; nothing of a ring.
    pub(crate) fn copied(&self) -> &[u8] {
        match self {
            Shown::Tcp(copy, from) => &copy[*from..],
            Shown::Nothing | Shown::Ring(_) => &[],
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Shown::Nothing => {}
            Shown::Ring(run) => run.advance(count),
            Shown::Tcp(_, from) => *from += count,
        }
    }
}

/// How TCP shows what is next: by a copy, which leaves the bytes in the socket's buffer.
pub(crate) type Copying<T> = fn(&T, &mut Context<'_>, &mut Vec<u8>) -> Poll<io::Result<usize>>;

/// Shows what is next.
pub(crate) struct Show<T> {
    tcp: Copying<T>,
    pub(crate) shown: Shown,
    pub(crate) mark: Mark,
}

impl<T> Show<T> {
    pub(crate) fn new(tcp: Copying<T>) -> Self {
        Show { tcp, shown: Shown::Nothing, mark: Mark::default() }
    }
}

impl<T: Tcp> ReadOp<T> for Show<T> {
    fn begin(&mut self, mark: impl FnOnce() -> Mark) -> io::Result<()> {
        self.mark = mark();
        Ok(())
    }

    fn tcp(&mut self, socket: &T, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut copy = Vec::new();
        let answer = (self.tcp)(socket, cx, &mut copy);
        if let Poll::Ready(Ok(1..)) = answer {
            self.shown = Shown::Tcp(copy, 0);
        }
        answer
    }

    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        if self.shown.len() > 0 {
            // At the switch: the rest of TCP is one piece, and the ring begins another.
            return Ok(0);
        }
        let Some(run) = ring.borrow()? else { return Ok(0) };
        let length = run.len();
        self.shown = Shown::Ring(run);
        Ok(length)
    }

    const CONSUMES: bool = false;
    const PEEKS: bool = true;
}

/// Passes over the first bytes of what was shown.
pub(crate) struct PassOver<'a> {
    shown: &'a mut Shown,
    mark: &'a mut Mark,
    count: usize,
    done: usize,
}

impl<'a> PassOver<'a> {
    /// # Panics
    ///
    /// If fewer than `count` bytes were shown.
    pub(crate) fn new(shown: &'a mut Shown, mark: &'a mut Mark, count: usize) -> Self {
        assert!(count <= shown.len(), "{count} bytes of the {} that were borrowed", shown.len());
        PassOver { shown, mark, count, done: 0 }
    }

    /// Done with what could be done.
    ///
    /// # Errors
    ///
    /// When those bytes were not next any more.
    pub(crate) fn end(self) -> io::Result<()> {
        self.shown.advance(self.done);
        match self.shown {
            Shown::Ring(_) => self.mark.ring += self.done as u64,
            _ => self.mark.tcp += self.done as u64,
        }
        if self.done == self.count { Ok(()) } else { Err(read_meanwhile()) }
    }
}

#[cold]
fn read_meanwhile() -> io::Error {
    let words = "somebody else has read from this stream since these bytes were borrowed";
    io::Error::new(io::ErrorKind::InvalidInput, words)
}

impl<T: Tcp> ReadOp<T> for PassOver<'_> {
    fn begin(&mut self, mark: impl FnOnce() -> Mark) -> io::Result<()> {
        if mark() == *self.mark { Ok(()) } else { Err(read_meanwhile()) }
    }

    fn tcp(&mut self, socket: &T, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Shown::Tcp(copy, from) = &mut *self.shown else { return Poll::Ready(Err(read_meanwhile())) };
        // They are in the socket's buffer, whatever the reactor knows of that.
        while self.done < self.count {
            match sys::take_bytes(socket.as_fd(), &mut copy[*from + self.done..*from + self.count]) {
                Ok(length @ 1..) => self.done += length,
                // Something reads past the stream.
                Ok(0) | Err(_) => break,
            }
        }
        match self.done {
            0 => Poll::Ready(Err(read_meanwhile())),
            done => Poll::Ready(Ok(done)),
        }
    }

    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        match &*self.shown {
            Shown::Ring(run) => self.done = ring.pass_over(run.position(), self.count),
            // TCP has shown them: behind the ring, if the stream reads there.
            _ if !ring.is_readable()? => return Ok(0),
            _ => {}
        }
        // The mark was right. Not 0, which would say that the ring is empty.
        Ok(self.done.max(1))
    }
}

/// Bytes of a ring that go over TCP at once: they are copied for it.
const MOST_COPIED: usize = 64 << 10;

/// Writes bytes that lie in another ring.
pub(crate) struct WriteRun<'a, T> {
    run: &'a Run,
    copy: Vec<u8>,
    tcp: fn(&T, &mut Context<'_>, &[u8]) -> Poll<io::Result<usize>>,
    /// It is of the `try_` kind, as [`Try`](super::op::Try).
    tries: bool,
}

impl<'a, T> WriteRun<'a, T> {
    pub(crate) fn new(
        run: &'a Run,
        tries: bool,
        tcp: fn(&T, &mut Context<'_>, &[u8]) -> Poll<io::Result<usize>>,
    ) -> Self {
        WriteRun { run, copy: Vec::new(), tcp, tries }
    }

    /// For TCP: no system call is given memory that changes.
    fn copied(&mut self) -> &[u8] {
        if self.copy.is_empty() {
            let (segment, range) = self.run.place();
            self.copy = segment.to_vec(range.start, range.len().min(MOST_COPIED));
        }
        &self.copy
    }
}

impl<T: Tcp> WriteOp<T> for WriteRun<'_, T> {
    fn tcp(&mut self, socket: &T, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        (self.tcp)(socket, cx, self.copied())
    }

    fn attempt(&mut self, fd: BorrowedFd<'_>, send: Send) -> io::Result<usize> {
        send(fd, &[IoSlice::new(self.copied())])
    }

    fn ring(&mut self, ring: &mut send::Ring) -> Result<usize, Violation> {
        ring.write_run(self.run)
    }

    fn is_short(&self, length: usize) -> bool {
        !self.tries && length < self.run.len()
    }

    fn is_empty(&self) -> bool {
        self.run.len() == 0
    }
}
