//! The ways to read and write that std's sockets have, each on both transports. None of them waits.

use std::io::{self, IoSlice, IoSliceMut};
use std::task::{Context, Poll, ready};

use rustix::net::RecvFlags;

use super::tcp::{MioTcp, receive, receive_vectored};
use crate::conn::{ReadOp, WriteOp, receive as rx, send as tx};
use crate::ism::ring::Violation;
use crate::ism::sys;

/// Readiness is what poll(2) would say now, and not, as with tokio, what was so when somebody tried last: each operation
/// ends it.
const EXACT: bool = true;

struct Reading<'a>(&'a mut [u8]);

/// Reads into one buffer.
#[inline]
pub(crate) fn reading(buffer: &mut [u8]) -> impl ReadOp<MioTcp> {
    Reading(buffer)
}

impl ReadOp<MioTcp> for Reading<'_> {
    fn tcp(&mut self, socket: &MioTcp, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        socket.reading(|fd| receive(fd, self.0, RecvFlags::empty()))
    }

    #[inline]
    fn ring(&mut self, ring: &mut rx::Ring) -> Result<usize, Violation> {
        ring.read(&mut &mut self.0[..])
    }

    fn has_room(&self) -> bool {
        EXACT
    }
}

struct ReadingVectored<'a, 'b>(&'a mut [IoSliceMut<'b>]);

/// Reads into several buffers.
pub(crate) fn reading_vectored(buffers: &mut [IoSliceMut<'_>]) -> impl ReadOp<MioTcp> {
    ReadingVectored(buffers)
}

impl ReadOp<MioTcp> for ReadingVectored<'_, '_> {
    fn tcp(&mut self, socket: &MioTcp, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        socket.reading(|fd| receive_vectored(fd, self.0))
    }

    fn ring(&mut self, ring: &mut rx::Ring) -> Result<usize, Violation> {
        let mut total = 0;
        for buffer in self.0.iter_mut() {
            let wanted = buffer.len();
            let length = ring.read(&mut &mut buffer[..])?;
            total += length;
            if length < wanted {
                break;
            }
        }
        Ok(total)
    }

    fn has_room(&self) -> bool {
        EXACT
    }
}

struct Peeking<'a>(&'a mut [u8], usize);

/// Shows what is next, and leaves it.
pub(crate) fn peeking(buffer: &mut [u8]) -> impl ReadOp<MioTcp> {
    Peeking(buffer, 0)
}

impl ReadOp<MioTcp> for Peeking<'_> {
    fn tcp(&mut self, socket: &MioTcp, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let length = ready!(socket.reading(|fd| receive(fd, self.0, RecvFlags::PEEK)))?;
        self.1 = length;
        Poll::Ready(Ok(length))
    }

    fn ring(&mut self, ring: &mut rx::Ring) -> Result<usize, Violation> {
        // What TCP has shown comes before.
        ring.peek(&mut &mut self.0[self.1..])
    }

    const CONSUMES: bool = false;
    const PEEKS: bool = true;
}

struct ReadReadiness;

/// Readable, at its end, or failed.
pub(crate) fn read_readiness() -> impl ReadOp<MioTcp> {
    ReadReadiness
}

impl ReadOp<MioTcp> for ReadReadiness {
    fn tcp(&mut self, socket: &MioTcp, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        socket.reading(|fd| match sys::is_ready(fd, true, false)? {
            true => Ok(1),
            false => Err(io::ErrorKind::WouldBlock.into()),
        })
    }

    fn ring(&mut self, ring: &mut rx::Ring) -> Result<usize, Violation> {
        ring.is_readable().map(usize::from)
    }

    const CONSUMES: bool = false;
}

struct Writing<'a>(&'a [u8]);

/// Writes from one buffer.
#[inline]
pub(crate) fn writing(bytes: &[u8]) -> impl WriteOp<MioTcp> {
    Writing(bytes)
}

impl WriteOp<MioTcp> for Writing<'_> {
    fn tcp(&mut self, socket: &MioTcp, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        socket.writing(|fd| sys::send_bytes(fd, &[IoSlice::new(self.0)]))
    }

    #[inline]
    fn ring(&mut self, ring: &mut tx::Ring) -> Result<usize, Violation> {
        ring.write(self.0)
    }

    fn late(&mut self, socket: &MioTcp, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.tcp(socket, cx)
    }

    fn is_short(&self, _: usize) -> bool {
        EXACT
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

struct WritingVectored<'a, 'b>(&'a [IoSlice<'b>]);

/// Writes from several buffers.
pub(crate) fn writing_vectored(buffers: &[IoSlice<'_>]) -> impl WriteOp<MioTcp> {
    WritingVectored(buffers)
}

impl WriteOp<MioTcp> for WritingVectored<'_, '_> {
    fn tcp(&mut self, socket: &MioTcp, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        socket.writing(|fd| sys::send_bytes(fd, self.0))
    }

    fn ring(&mut self, ring: &mut tx::Ring) -> Result<usize, Violation> {
        ring.write_vectored(self.0)
    }

    fn late(&mut self, socket: &MioTcp, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.tcp(socket, cx)
    }

    fn is_short(&self, _: usize) -> bool {
        EXACT
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|buffer| buffer.is_empty())
    }
}

struct WriteReadiness;

/// Writable, or failed.
pub(crate) fn write_readiness() -> impl WriteOp<MioTcp> {
    WriteReadiness
}

impl WriteOp<MioTcp> for WriteReadiness {
    fn tcp(&mut self, socket: &MioTcp, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        socket.writing(|fd| match sys::is_ready(fd, false, true)? {
            true => Ok(1),
            false => Err(io::ErrorKind::WouldBlock.into()),
        })
    }

    fn ring(&mut self, ring: &mut tx::Ring) -> Result<usize, Violation> {
        ring.is_writable().map(usize::from)
    }

    fn late(&mut self, socket: &MioTcp, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.tcp(socket, cx)
    }

    const WRITES: bool = false;
}
