//! Ways to read and write, on either transport.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::task::{Context, Poll, Wake, ready};

use super::socket::StdTcp;
use crate::conn::{ReadOp, WriteOp, receive, send};
use crate::ism::ring::Violation;
use crate::sync::{Arc, AtomicBool, Ordering};

pub(super) struct ReadSlice<'a>(pub(super) &'a mut [u8]);

impl ReadOp<StdTcp> for ReadSlice<'_> {
    fn tcp(&mut self, socket: &StdTcp, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        socket.reading(cx, |mut tcp| tcp.read(self.0))
    }

    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        ring.read(&mut &mut self.0[..])
    }
}

/// Looks at what is next; the second field says how much of it is there.
pub(super) struct PeekSlice<'a>(pub(super) &'a mut [u8], pub(super) usize);

impl ReadOp<StdTcp> for PeekSlice<'_> {
    fn tcp(&mut self, socket: &StdTcp, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let peeked = ready!(socket.reading(cx, |tcp| tcp.peek(&mut self.0[self.1..])))?;
        self.1 += peeked;
        Poll::Ready(Ok(peeked))
    }

    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        let peeked = ring.peek(&mut &mut self.0[self.1..])?;
        self.1 += peeked;
        Ok(peeked)
    }

    const CONSUMES: bool = false;
    const PEEKS: bool = true;
}

/// Asks whether a read would answer, as a reactor does: nothing is taken off the socket.
pub(super) struct AskReadable;

impl ReadOp<StdTcp> for AskReadable {
    fn tcp(&mut self, socket: &StdTcp, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        socket
            .reading(cx, |_| if socket.is_readable() { Ok(1) } else { Err(io::ErrorKind::WouldBlock.into()) })
    }

    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        ring.is_readable().map(usize::from)
    }

    const CONSUMES: bool = false;
}

/// Reads into two buffers.
pub(super) struct ReadBoth<'a>(pub(super) &'a mut [u8], pub(super) &'a mut [u8]);

impl ReadOp<StdTcp> for ReadBoth<'_> {
    fn tcp(&mut self, socket: &StdTcp, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut slices = [IoSliceMut::new(self.0), IoSliceMut::new(self.1)];
        socket.reading(cx, |mut tcp| tcp.read_vectored(&mut slices))
    }

    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        let first = ring.read(&mut &mut self.0[..])?;
        if first < self.0.len() {
            return Ok(first);
        }
        Ok(first + ring.read(&mut &mut self.1[..])?)
    }
}

pub(super) struct WriteSlice<'a>(pub(super) &'a [u8]);

impl WriteOp<StdTcp> for WriteSlice<'_> {
    fn tcp(&mut self, socket: &StdTcp, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        socket.writing(cx, |mut tcp| tcp.write(self.0))
    }

    fn ring(&mut self, ring: &mut send::Ring) -> Result<usize, Violation> {
        ring.write(self.0)
    }

    fn late(&mut self, socket: &StdTcp, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.tcp(socket, cx)
    }
}

/// Writes from three buffers, one of them empty.
pub(super) struct WriteParts<'a>(pub(super) &'a [u8]);

impl WriteParts<'_> {
    fn slices(&self) -> [IoSlice<'_>; 3] {
        let (first, second) = self.0.split_at(self.0.len() / 3);
        [IoSlice::new(first), IoSlice::new(&[]), IoSlice::new(second)]
    }
}

impl WriteOp<StdTcp> for WriteParts<'_> {
    fn tcp(&mut self, socket: &StdTcp, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        socket.writing(cx, |mut tcp| tcp.write_vectored(&self.slices()))
    }

    fn ring(&mut self, ring: &mut send::Ring) -> Result<usize, Violation> {
        ring.write_vectored(&self.slices())
    }

    fn late(&mut self, socket: &StdTcp, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.tcp(socket, cx)
    }
}

/// A task that waits: whether it was woken.
#[derive(Default)]
pub(super) struct Task {
    woken: AtomicBool,
}

impl Task {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(super) fn is_woken(&self) -> bool {
        self.woken.load(Ordering::Relaxed)
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Relaxed);
    }
}
