//! Ways to read and write, on either transport, that never wait for a reactor.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::task::Wake;

use super::socket::StdTcp;
use crate::conn::op::{Peek, Read, ReadOp, ReadVectored, Readable, Try, Write, WriteOp, WriteVectored};
use crate::sync::{Arc, AtomicBool, Ordering};

/// Reads into the slice, which is then what is left of it.
pub(super) fn reading(buffer: &mut &mut [u8]) -> impl ReadOp<StdTcp> {
    Try(Read::new(buffer, |socket: &StdTcp, cx, buffer| socket.reading(cx, |mut tcp| tcp.read(buffer))))
}

/// Looks at what is next; the slice is then what is left of it.
pub(super) fn peeking(buffer: &mut &mut [u8]) -> impl ReadOp<StdTcp> {
    Peek::new(buffer, |socket: &StdTcp, cx, buffer: &mut &mut [u8]| {
        socket.reading(cx, |tcp| {
            let length = tcp.peek(buffer)?;
            *buffer = &mut std::mem::take(buffer)[length..];
            Ok(length)
        })
    })
}

/// Asks whether a read would answer, as a reactor does: nothing is taken off the socket.
pub(super) fn read_readiness() -> impl ReadOp<StdTcp> {
    Readable::new(|socket: &StdTcp, cx| {
        let ready = if socket.is_readable() { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) };
        socket.reading(cx, |_| ready)
    })
}

/// Reads into several buffers.
pub(super) fn reading_vectored(buffers: &mut [IoSliceMut<'_>]) -> impl ReadOp<StdTcp> {
    ReadVectored::new(buffers, |socket: &StdTcp, cx, buffers| {
        socket.reading(cx, |mut tcp| tcp.read_vectored(buffers))
    })
}

pub(super) fn writing(bytes: &[u8]) -> impl WriteOp<StdTcp> {
    Try(Write::new(bytes, |socket: &StdTcp, cx, bytes| socket.writing(cx, |mut tcp| tcp.write(bytes))))
}

/// Three buffers, one of them empty.
pub(super) fn parts(bytes: &[u8]) -> [IoSlice<'_>; 3] {
    let (first, second) = bytes.split_at(bytes.len() / 3);
    [IoSlice::new(first), IoSlice::new(&[]), IoSlice::new(second)]
}

pub(super) fn writing_vectored(buffers: &[IoSlice<'_>]) -> impl WriteOp<StdTcp> {
    WriteVectored::new(buffers, |socket: &StdTcp, cx, buffers| {
        socket.writing(cx, |mut tcp| tcp.write_vectored(buffers))
    })
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
