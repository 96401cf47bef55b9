//! The ways to read and to write, each on both transports.
//!
//! Here is what each of them does to a ring, and what its answer says of the ring. How it asks TCP
//! is up to the runtime, which adds a function for that.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll};

use bytes::BufMut;

use super::{Tcp, receive, send};
use crate::ism::ring::Violation;
use crate::ism::sys;

/// How bytes are sent by a system call of ours: as few or as many as go now.
pub(crate) type Send = fn(BorrowedFd<'_>, &[IoSlice<'_>]) -> io::Result<usize>;

/// One way to read, on either transport.
pub(crate) trait ReadOp<T: Tcp> {
    /// Bytes read; 0 is the end of the stream.
    fn tcp(&mut self, socket: &T, cx: &mut Context<'_>) -> Poll<io::Result<usize>>;

    /// Bytes read; 0 is an empty ring.
    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation>;

    /// After a read: was it a short one, so that the ring is known to be empty?
    fn is_short(&self) -> bool {
        false
    }

    /// Before the attempt: how far reading has come.
    ///
    /// # Errors
    ///
    /// That it makes no sense from there.
    fn begin(&mut self, _mark: impl FnOnce() -> receive::Mark) -> io::Result<()> {
        Ok(())
    }

    /// Bytes it reports are gone from the stream (not so for peek and readiness).
    const CONSUMES: bool = true;

    /// It shows bytes and leaves them: at the switch both transports together hold what is next.
    const PEEKS: bool = false;
}

/// One way to write, on either transport.
pub(crate) trait WriteOp<T: Tcp> {
    /// Bytes written.
    fn tcp(&mut self, socket: &T, cx: &mut Context<'_>) -> Poll<io::Result<usize>>;

    /// One attempt at the socket, whatever the reactor knows of it; bytes go out by `send`.
    fn attempt(&mut self, fd: BorrowedFd<'_>, send: Send) -> io::Result<usize>;

    /// As `tcp`, by [`Tcp::poll_direct`].
    fn direct(&mut self, socket: &T, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        socket.poll_direct(cx, |fd| self.attempt(fd, sys::send_bytes))
    }

    /// Bytes written; 0 is a full ring.
    fn ring(&mut self, ring: &mut send::Ring) -> Result<usize, Violation>;

    /// Was a write of `length` bytes a short one, so that the ring is known to be full?
    fn is_short(&self, _length: usize) -> bool {
        false
    }

    /// Is nothing to be written? Then a full ring is no reason to wait, nor is it a turn of the
    /// application.
    fn is_empty(&self) -> bool {
        false
    }

    /// Bytes it reports have entered the stream (not so for readiness).
    const WRITES: bool = true;
}

/// Reads into one buffer. That is never a type of the application, for its methods run under a
/// lock.
pub(crate) struct Read<'a, B, F> {
    buffer: &'a mut B,
    tcp: F,
}

impl<'a, B, F> Read<'a, B, F> {
    #[inline]
    pub(crate) fn new<T>(buffer: &'a mut B, tcp: F) -> Self
    where
        F: FnMut(&T, &mut Context<'_>, &mut B) -> Poll<io::Result<usize>>,
    {
        Read { buffer, tcp }
    }
}

impl<T: Tcp, B: BufMut, F> ReadOp<T> for Read<'_, B, F>
where
    F: FnMut(&T, &mut Context<'_>, &mut B) -> Poll<io::Result<usize>>,
{
    fn tcp(&mut self, socket: &T, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        (self.tcp)(socket, cx, self.buffer)
    }

    #[inline]
    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        ring.read(self.buffer)
    }

    fn is_short(&self) -> bool {
        self.buffer.has_remaining_mut()
    }
}

/// Reads into several buffers.
pub(crate) struct ReadVectored<'a, 'b, F> {
    buffers: &'a mut [IoSliceMut<'b>],
    tcp: F,
}

impl<'a, 'b, F> ReadVectored<'a, 'b, F> {
    pub(crate) fn new<T>(buffers: &'a mut [IoSliceMut<'b>], tcp: F) -> Self
    where
        F: FnMut(&T, &mut Context<'_>, &mut [IoSliceMut<'b>]) -> Poll<io::Result<usize>>,
    {
        ReadVectored { buffers, tcp }
    }
}

impl<'b, T: Tcp, F> ReadOp<T> for ReadVectored<'_, 'b, F>
where
    F: FnMut(&T, &mut Context<'_>, &mut [IoSliceMut<'b>]) -> Poll<io::Result<usize>>,
{
    fn tcp(&mut self, socket: &T, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        (self.tcp)(socket, cx, self.buffers)
    }

    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        let mut total = 0;
        for buffer in self.buffers.iter_mut() {
            let wanted = buffer.len();
            let length = ring.read(&mut &mut buffer[..])?;
            total += length;
            if length < wanted {
                break;
            }
        }
        Ok(total)
    }
}

/// Shows what is next and leaves it in the stream; of the buffer the same holds as for [`Read`].
pub(crate) struct Peek<'a, B, F> {
    buffer: &'a mut B,
    tcp: F,
}

impl<'a, B, F> Peek<'a, B, F> {
    pub(crate) fn new<T>(buffer: &'a mut B, tcp: F) -> Self
    where
        F: FnMut(&T, &mut Context<'_>, &mut B) -> Poll<io::Result<usize>>,
    {
        Peek { buffer, tcp }
    }
}

impl<T: Tcp, B: BufMut, F> ReadOp<T> for Peek<'_, B, F>
where
    F: FnMut(&T, &mut Context<'_>, &mut B) -> Poll<io::Result<usize>>,
{
    fn tcp(&mut self, socket: &T, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        (self.tcp)(socket, cx, self.buffer)
    }

    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        ring.peek(self.buffer)
    }

    const CONSUMES: bool = false;
    const PEEKS: bool = true;
}

/// Asks whether there is something to read, an end or an error: all of these are ready.
pub(crate) struct Readable<F> {
    tcp: F,
}

impl<F> Readable<F> {
    pub(crate) fn new<T>(tcp: F) -> Self
    where
        F: FnMut(&T, &mut Context<'_>) -> Poll<io::Result<()>>,
    {
        Readable { tcp }
    }
}

impl<T: Tcp, F> ReadOp<T> for Readable<F>
where
    F: FnMut(&T, &mut Context<'_>) -> Poll<io::Result<()>>,
{
    fn tcp(&mut self, socket: &T, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        (self.tcp)(socket, cx).map_ok(|()| 1)
    }

    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        ring.is_readable().map(usize::from)
    }

    const CONSUMES: bool = false;
}

/// Writes from one buffer.
pub(crate) struct Write<'a, F> {
    bytes: &'a [u8],
    tcp: F,
}

impl<'a, F> Write<'a, F> {
    #[inline]
    pub(crate) fn new<T>(bytes: &'a [u8], tcp: F) -> Self
    where
        F: FnMut(&T, &mut Context<'_>, &[u8]) -> Poll<io::Result<usize>>,
    {
        Write { bytes, tcp }
    }
}

impl<T: Tcp, F> WriteOp<T> for Write<'_, F>
where
    F: FnMut(&T, &mut Context<'_>, &[u8]) -> Poll<io::Result<usize>>,
{
    fn tcp(&mut self, socket: &T, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        (self.tcp)(socket, cx, self.bytes)
    }

    fn attempt(&mut self, fd: BorrowedFd<'_>, send: Send) -> io::Result<usize> {
        send(fd, &[IoSlice::new(self.bytes)])
    }

    #[inline]
    fn ring(&mut self, ring: &mut send::Ring) -> Result<usize, Violation> {
        ring.write(self.bytes)
    }

    fn is_short(&self, length: usize) -> bool {
        length < self.bytes.len()
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Writes from several buffers.
pub(crate) struct WriteVectored<'a, 'b, F> {
    buffers: &'a [IoSlice<'b>],
    tcp: F,
}

impl<'a, 'b, F> WriteVectored<'a, 'b, F> {
    pub(crate) fn new<T>(buffers: &'a [IoSlice<'b>], tcp: F) -> Self
    where
        F: FnMut(&T, &mut Context<'_>, &[IoSlice<'b>]) -> Poll<io::Result<usize>>,
    {
        WriteVectored { buffers, tcp }
    }
}

impl<'b, T: Tcp, F> WriteOp<T> for WriteVectored<'_, 'b, F>
where
    F: FnMut(&T, &mut Context<'_>, &[IoSlice<'b>]) -> Poll<io::Result<usize>>,
{
    fn tcp(&mut self, socket: &T, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        (self.tcp)(socket, cx, self.buffers)
    }

    fn attempt(&mut self, fd: BorrowedFd<'_>, send: Send) -> io::Result<usize> {
        send(fd, self.buffers)
    }

    fn ring(&mut self, ring: &mut send::Ring) -> Result<usize, Violation> {
        ring.write_vectored(self.buffers)
    }

    fn is_empty(&self) -> bool {
        self.buffers.iter().all(|buffer| buffer.is_empty())
    }
}

/// Asks whether something can be written, or writing has failed: both are ready.
pub(crate) struct Writable<F> {
    tcp: F,
}

impl<F> Writable<F> {
    pub(crate) fn new<T>(tcp: F) -> Self
    where
        F: FnMut(&T, &mut Context<'_>) -> Poll<io::Result<()>>,
    {
        Writable { tcp }
    }
}

impl<T: Tcp, F> WriteOp<T> for Writable<F>
where
    F: FnMut(&T, &mut Context<'_>) -> Poll<io::Result<()>>,
{
    fn tcp(&mut self, socket: &T, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        (self.tcp)(socket, cx).map_ok(|()| 1)
    }

    fn attempt(&mut self, fd: BorrowedFd<'_>, _: Send) -> io::Result<usize> {
        match sys::is_ready(fd, false, true)? {
            true => Ok(1),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn ring(&mut self, ring: &mut send::Ring) -> Result<usize, Violation> {
        ring.is_writable().map(usize::from)
    }

    const WRITES: bool = false;
}

/// An operation of the `try_` kind: as with tokio's, a short one leaves the stream ready, and only
/// one that finds nothing ends that.
pub(crate) struct Try<O>(pub(crate) O);

impl<T: Tcp, O: ReadOp<T>> ReadOp<T> for Try<O> {
    fn tcp(&mut self, socket: &T, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.0.tcp(socket, cx)
    }

    #[inline]
    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation> {
        self.0.ring(ring)
    }

    fn begin(&mut self, mark: impl FnOnce() -> receive::Mark) -> io::Result<()> {
        self.0.begin(mark)
    }

    const CONSUMES: bool = O::CONSUMES;
    const PEEKS: bool = O::PEEKS;
}

impl<T: Tcp, O: WriteOp<T>> WriteOp<T> for Try<O> {
    fn tcp(&mut self, socket: &T, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.0.tcp(socket, cx)
    }

    fn attempt(&mut self, fd: BorrowedFd<'_>, send: Send) -> io::Result<usize> {
        self.0.attempt(fd, send)
    }

    #[inline]
    fn ring(&mut self, ring: &mut send::Ring) -> Result<usize, Violation> {
        self.0.ring(ring)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    const WRITES: bool = O::WRITES;
}
