//! The ways to read and write that tokio's sockets have, each on both transports.

use std::io::{self, IoSlice, IoSliceMut};
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use super::tcp::{poll_late, without_budget};
use super::{TokioTcp, tcp};
use crate::conn::{ReadOp, WriteOp, receive, send};
use crate::ism::ring::{Room, Violation};
use crate::ism::sys;

fn pending<T>(answer: io::Result<T>) -> Poll<io::Result<T>> {
    match answer {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        answer => Poll::Ready(answer),
    }
}

/// `AsyncRead::poll_read`, and every other read into one buffer.
pub(crate) struct Reading<'a, 'b>(pub(crate) &'a mut ReadBuf<'b>);

impl ReadOp<TokioTcp> for Reading<'_, '_> {
    fn tcp(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        tcp::poll_read(socket, cx, self.0)
    }

    #[inline]
    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        ring.read(self.0)
    }

    fn has_room(&self) -> bool {
        self.0.remaining() > 0
    }
}

/// `poll_peek`: the bytes stay in the stream.
pub(crate) struct PeekBuf<'a, 'b>(pub(crate) &'a mut ReadBuf<'b>);

impl ReadOp<TokioTcp> for PeekBuf<'_, '_> {
    fn tcp(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        socket.poll_peek(cx, self.0)
    }

    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        ring.peek(self.0)
    }

    const CONSUMES: bool = false;
    const PEEKS: bool = true;
}

/// `peek`, which pays with the task's budget itself.
pub(crate) struct TryPeeking<'a, 'b>(pub(crate) &'a mut ReadBuf<'b>);

impl ReadOp<TokioTcp> for TryPeeking<'_, '_> {
    fn tcp(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        without_budget(cx, |cx| socket.poll_peek(cx, self.0))
    }

    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        ring.peek(self.0)
    }

    const CONSUMES: bool = false;
    const PEEKS: bool = true;
}

/// `try_read_vectored`.
pub(crate) struct ReadVectored<'a, 'b>(pub(crate) &'a mut [IoSliceMut<'b>]);

impl ReadOp<TokioTcp> for ReadVectored<'_, '_> {
    fn tcp(&mut self, socket: &TcpStream, _cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        pending(socket.try_read_vectored(self.0))
    }

    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        let mut total = 0;
        for slice in self.0.iter_mut() {
            let wanted = slice.len();
            let mut buffer = ReadBuf::new(slice);
            let length = ring.read(&mut buffer)?;
            total += length;
            if length < wanted {
                break;
            }
        }
        Ok(total)
    }
}

/// `try_read`: without a waker and without the task's budget.
pub(crate) struct TryReading<'a>(pub(crate) &'a mut [u8]);

impl ReadOp<TokioTcp> for TryReading<'_> {
    fn tcp(&mut self, socket: &TcpStream, _cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        pending(socket.try_read(self.0))
    }

    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        ring.read(&mut ReadBuf::new(self.0))
    }
}

/// `try_read_buf`. The caller's buffer is not here: its methods are the caller's code, and this runs under a lock.
pub(crate) struct TryReadingBuf<'a, 'b>(pub(crate) &'a mut Room<'b>);

impl ReadOp<TokioTcp> for TryReadingBuf<'_, '_> {
    fn tcp(&mut self, socket: &TcpStream, _cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        pending(socket.try_read_buf(self.0))
    }

    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        ring.read(self.0)
    }
}

/// Readable, at its end, or failed: all of these are ready.
pub(crate) struct ReadReady;

impl ReadOp<TokioTcp> for ReadReady {
    fn tcp(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        ready!(without_budget(cx, |cx| socket.poll_read_ready(cx)))?;
        Poll::Ready(Ok(1))
    }

    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        ring.is_readable().map(usize::from)
    }

    const CONSUMES: bool = false;
}

/// `AsyncWrite::poll_write`.
pub(crate) struct Writing<'a>(pub(crate) &'a [u8]);

impl WriteOp<TokioTcp> for Writing<'_> {
    fn tcp(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        tcp::poll_write(socket, cx, self.0)
    }

    #[inline]
    fn ring(&mut self, ring: &mut send::Ring) -> Result<usize, Violation> {
        ring.write(self.0)
    }

    fn late(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        poll_late(socket, cx, |fd| sys::send_bytes(fd, &[IoSlice::new(self.0)]))
    }

    fn is_short(&self, length: usize) -> bool {
        length < self.0.len()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `AsyncWrite::poll_write_vectored`.
pub(crate) struct WritingVectored<'a, 'b>(pub(crate) &'a [IoSlice<'b>]);

impl WriteOp<TokioTcp> for WritingVectored<'_, '_> {
    fn tcp(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            ready!(socket.poll_write_ready(cx))?;
            if let Poll::Ready(answer) = pending(socket.try_write_vectored(self.0)) {
                return Poll::Ready(answer);
            }
        }
    }

    fn ring(&mut self, ring: &mut send::Ring) -> Result<usize, Violation> {
        ring.write_vectored(self.0)
    }

    fn late(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        poll_late(socket, cx, |fd| sys::send_bytes(fd, self.0))
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|buf| buf.is_empty())
    }
}

/// `try_write`: without a waker and without the task's budget.
pub(crate) struct TryWriting<'a>(pub(crate) &'a [u8]);

impl WriteOp<TokioTcp> for TryWriting<'_> {
    fn tcp(&mut self, socket: &TcpStream, _cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        pending(socket.try_write(self.0))
    }

    fn ring(&mut self, ring: &mut send::Ring) -> Result<usize, Violation> {
        ring.write(self.0)
    }

    fn late(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        poll_late(socket, cx, |fd| sys::send_bytes(fd, &[IoSlice::new(self.0)]))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `try_write_vectored`.
pub(crate) struct TryWritingVectored<'a, 'b>(pub(crate) &'a [IoSlice<'b>]);

impl WriteOp<TokioTcp> for TryWritingVectored<'_, '_> {
    fn tcp(&mut self, socket: &TcpStream, _cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        pending(socket.try_write_vectored(self.0))
    }

    fn ring(&mut self, ring: &mut send::Ring) -> Result<usize, Violation> {
        ring.write_vectored(self.0)
    }

    fn late(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        poll_late(socket, cx, |fd| sys::send_bytes(fd, self.0))
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|buf| buf.is_empty())
    }
}

/// Writable, or failed.
pub(crate) struct WriteReady;

impl WriteOp<TokioTcp> for WriteReady {
    fn tcp(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        ready!(without_budget(cx, |cx| socket.poll_write_ready(cx)))?;
        Poll::Ready(Ok(1))
    }

    fn ring(&mut self, ring: &mut send::Ring) -> Result<usize, Violation> {
        ring.is_writable().map(usize::from)
    }

    fn late(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        poll_late(socket, cx, |fd| match sys::is_ready(fd, false, true)? {
            true => Ok(1),
            false => Err(io::ErrorKind::WouldBlock.into()),
        })
    }

    const WRITES: bool = false;
}
