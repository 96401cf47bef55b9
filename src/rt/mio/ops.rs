//! The ways to read and write that std's sockets have, as far as they ask TCP; the rest is in
//! [`crate::conn::op`]. None of them waits.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll};

use rustix::net::RecvFlags;

use super::tcp::{MioTcp, receive, receive_vectored};
use crate::conn::op::{
    Peek, Read, ReadOp, ReadVectored, Readable, Send, Writable, Write, WriteOp, WriteVectored,
};
use crate::conn::{receive as rx, send as tx};
use crate::ism::ring::Violation;
use crate::ism::sys;

/// An operation after which readiness is what poll(2) would say, and not, as with tokio, what was
/// so when somebody tried last: each one ends what was known, as a short one does.
struct Exact<O>(O);

impl<O: ReadOp<MioTcp>> ReadOp<MioTcp> for Exact<O> {
    fn tcp(&mut self, socket: &MioTcp, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.0.tcp(socket, cx)
    }

    #[inline]
    fn ring(&mut self, ring: &mut rx::Ring) -> Result<usize, Violation> {
        self.0.ring(ring)
    }

    fn is_short(&self) -> bool {
        true
    }

    const CONSUMES: bool = O::CONSUMES;
    const PEEKS: bool = O::PEEKS;
}

impl<O: WriteOp<MioTcp>> WriteOp<MioTcp> for Exact<O> {
    fn tcp(&mut self, socket: &MioTcp, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.0.tcp(socket, cx)
    }

    fn attempt(&mut self, fd: BorrowedFd<'_>, send: Send) -> io::Result<usize> {
        self.0.attempt(fd, send)
    }

    #[inline]
    fn ring(&mut self, ring: &mut tx::Ring) -> Result<usize, Violation> {
        self.0.ring(ring)
    }

    fn is_short(&self, _: usize) -> bool {
        true
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    const WRITES: bool = O::WRITES;
}

/// Reads into one buffer.
#[inline]
pub(crate) fn reading(buffer: &mut &mut [u8]) -> impl ReadOp<MioTcp> {
    Exact(Read::new(buffer, |socket: &MioTcp, _, buffer: &mut &mut [u8]| {
        socket.reading(|fd| receive(fd, buffer, RecvFlags::empty()))
    }))
}

/// Reads into several buffers.
pub(crate) fn reading_vectored(buffers: &mut [IoSliceMut<'_>]) -> impl ReadOp<MioTcp> {
    Exact(ReadVectored::new(buffers, |socket: &MioTcp, _, buffers| {
        socket.reading(|fd| receive_vectored(fd, buffers))
    }))
}

/// Shows what is next, and leaves it.
pub(crate) fn peeking(buffer: &mut &mut [u8]) -> impl ReadOp<MioTcp> {
    Exact(Peek::new(buffer, |socket: &MioTcp, _, buffer: &mut &mut [u8]| {
        socket.reading(|fd| {
            let length = receive(fd, buffer, RecvFlags::PEEK)?;
            // What is in the ring comes behind it.
            *buffer = &mut std::mem::take(buffer)[length..];
            Ok(length)
        })
    }))
}

/// Readable, at its end, or failed.
pub(crate) fn read_readiness() -> impl ReadOp<MioTcp> {
    Readable::new(|socket: &MioTcp, _| socket.reading(|fd| ready(sys::is_ready(fd, true, false))))
}

/// Writes from one buffer.
#[inline]
pub(crate) fn writing(bytes: &[u8]) -> impl WriteOp<MioTcp> {
    Exact(Write::new(bytes, |socket: &MioTcp, _, bytes: &[u8]| {
        socket.writing(|fd| sys::send_bytes(fd, &[IoSlice::new(bytes)]))
    }))
}

/// Writes from several buffers.
pub(crate) fn writing_vectored(buffers: &[IoSlice<'_>]) -> impl WriteOp<MioTcp> {
    Exact(WriteVectored::new(buffers, |socket: &MioTcp, _, buffers| {
        socket.writing(|fd| sys::send_bytes(fd, buffers))
    }))
}

/// Writable, or failed.
pub(crate) fn write_readiness() -> impl WriteOp<MioTcp> {
    Writable::new(|socket: &MioTcp, _| socket.writing(|fd| ready(sys::is_ready(fd, false, true))))
}

fn ready(polled: io::Result<bool>) -> io::Result<()> {
    if polled? { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
}
