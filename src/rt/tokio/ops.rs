//! The ways to read and write that tokio's sockets have, as far as they ask TCP; the rest is in
//! [`crate::conn::op`].

use std::io::{self, IoSlice, IoSliceMut};
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use super::tcp::{TokioTcp, poll_read, poll_write, without_budget};
use crate::conn::in_place::{Run, Show, WriteRun};
use crate::conn::op::{
    Peek, Read, ReadOp, ReadVectored, Readable, Try, Writable, Write, WriteOp, WriteVectored,
};
use crate::ism::ring::Room;

/// A `try_` call asks no waker and costs none of the task's budget.
fn pending(answer: io::Result<usize>) -> Poll<io::Result<usize>> {
    match answer {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        answer => Poll::Ready(answer),
    }
}

/// `AsyncRead::poll_read`, and every other read into one buffer.
#[inline]
pub(crate) fn reading(buffer: &mut ReadBuf<'_>) -> impl ReadOp<TokioTcp> {
    Read::new(buffer, poll_read)
}

/// `poll_peek` and `peek`: the bytes stay in the stream.
pub(crate) fn peeking(buffer: &mut ReadBuf<'_>) -> impl ReadOp<TokioTcp> {
    Peek::new(buffer, |socket: &TcpStream, cx, buffer: &mut ReadBuf<'_>| {
        without_budget(cx, |cx| socket.poll_peek(cx, buffer))
    })
}

/// Most bytes that are copied to be looked at over TCP.
const MOST_SHOWN: usize = 16 * 1024;

/// `fill_buf`: shows what is next, and leaves it in the stream.
pub(crate) fn showing() -> Show<TokioTcp> {
    Show::new(|socket, cx, copy| {
        // Nothing is allocated for who has to wait.
        ready!(without_budget(cx, |cx| socket.poll_read_ready(cx)))?;
        copy.resize(MOST_SHOWN, 0);
        let mut buffer = ReadBuf::new(copy);
        let length = ready!(without_budget(cx, |cx| socket.poll_peek(cx, &mut buffer)))?;
        copy.truncate(length);
        Poll::Ready(Ok(length))
    })
}

/// `write_shared` and, if it `tries` only, `try_write_shared`; of bytes in a ring.
pub(crate) fn writing_run(run: &Run, tries: bool) -> WriteRun<'_, TokioTcp> {
    // To try leaves the stream's own waker with the socket, which wakes nobody who does not wait.
    WriteRun::new(run, tries, poll_write)
}

/// `try_read_vectored`.
pub(crate) fn try_reading_vectored(buffers: &mut [IoSliceMut<'_>]) -> impl ReadOp<TokioTcp> {
    ReadVectored::new(buffers, |socket: &TcpStream, _, buffers| pending(socket.try_read_vectored(buffers)))
}

/// `try_read`.
pub(crate) fn try_reading(buffer: &mut ReadBuf<'_>) -> impl ReadOp<TokioTcp> {
    // All of it is initialised: the slice is cheaper than the buffer.
    Try(Read::new(buffer, |socket: &TcpStream, _, buffer: &mut ReadBuf<'_>| {
        let answer = socket.try_read(buffer.initialize_unfilled());
        if let Ok(length) = &answer {
            buffer.advance(*length);
        }
        pending(answer)
    }))
}

/// `try_read_buf`. The caller's buffer is not here: its methods are the caller's code, and this
/// runs under a lock.
pub(crate) fn try_reading_buf(room: &mut Room<'_>) -> impl ReadOp<TokioTcp> {
    Try(Read::new(room, |socket: &TcpStream, _, room| pending(socket.try_read_buf(room))))
}

/// Readable, at its end, or failed.
pub(crate) fn read_readiness() -> impl ReadOp<TokioTcp> {
    Readable::new(|socket: &TcpStream, cx| without_budget(cx, |cx| socket.poll_read_ready(cx)))
}

/// `AsyncWrite::poll_write`.
#[inline]
pub(crate) fn writing(bytes: &[u8]) -> impl WriteOp<TokioTcp> {
    Write::new(bytes, poll_write)
}

/// `AsyncWrite::poll_write_vectored`.
pub(crate) fn writing_vectored(buffers: &[IoSlice<'_>]) -> impl WriteOp<TokioTcp> {
    WriteVectored::new(buffers, |socket: &TcpStream, cx: &mut Context<'_>, buffers| {
        loop {
            ready!(without_budget(cx, |cx| socket.poll_write_ready(cx)))?;
            if let Poll::Ready(answer) = pending(socket.try_write_vectored(buffers)) {
                return Poll::Ready(answer);
            }
        }
    })
}

/// `try_write`.
pub(crate) fn try_writing(bytes: &[u8]) -> impl WriteOp<TokioTcp> {
    Try(Write::new(bytes, |socket: &TcpStream, _, bytes| pending(socket.try_write(bytes))))
}

/// `try_write_vectored`.
pub(crate) fn try_writing_vectored(buffers: &[IoSlice<'_>]) -> impl WriteOp<TokioTcp> {
    WriteVectored::new(buffers, |socket: &TcpStream, _, buffers| pending(socket.try_write_vectored(buffers)))
}

/// Writable, or failed.
pub(crate) fn write_readiness() -> impl WriteOp<TokioTcp> {
    Writable::new(|socket: &TcpStream, cx| without_budget(cx, |cx| socket.poll_write_ready(cx)))
}
