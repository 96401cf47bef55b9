//! One connection: its two directions, each on TCP, switching, or in a ring; the close rules; the upgrade.
//!
//! Nothing here knows tokio: the TCP socket comes behind [`Tcp`], and whoever waits does so with a plain `Waker`. Locks are taken receiver before sender; no waker, no link and no other stream is called with one
//! held, so every step collects its [`Effects`] and carries them out afterwards.

pub(crate) mod close;
pub(crate) mod connection;
mod descriptor;
pub(crate) mod growth;
mod linked;
mod listed;
pub(crate) mod receive;
pub(crate) mod send;
#[cfg(test)]
mod tests;
pub(crate) mod upgrade;
pub(crate) mod waiters;

use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll};

use crate::error::SmcError;
use crate::ism::interrupt::Signal;
use crate::ism::ring::Violation;
use crate::link::stream::{Doorbell, ReceiveDmb, SendDmb};
use crate::transport::FallbackReason;

pub(crate) use connection::{Connection, Role};

/// The TCP socket under a connection. Dropping it closes it without a word of its own: no FIN that would turn a reset
/// into an end.
pub(crate) trait Tcp: AsFd + Send + Sync + 'static {
    /// Reads into `buffer`; 0 bytes mean the end. `Pending` keeps the waker of `cx`.
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Waits until a byte or the end can be read, without taking it; 0 means the end.
    fn poll_peek(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>>;

    /// Writes from `bytes`.
    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;

    /// Waits for anything that the reactor tells of a socket that nobody else waits to write to: a FIN, a reset, a
    /// shutdown of the descriptor at this end. Nothing is taken off the socket. Ready is an end that lasts.
    fn poll_write_event(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// As [`Tcp::poll_write_event`], of a socket that nobody else waits to read from.
    fn poll_read_event(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Sends a FIN behind what was written.
    fn shutdown(&self) -> io::Result<()>;
}

/// One way to read, on either transport.
pub(crate) trait ReadOp<T: Tcp> {
    /// Bytes read; 0 is the end of the stream.
    fn tcp(&mut self, socket: &T, cx: &mut Context<'_>) -> Poll<io::Result<usize>>;

    /// Bytes read; 0 is an empty ring.
    fn ring(&mut self, ring: &mut receive::Ring) -> Result<usize, Violation>;

    /// After a read: its buffer was not filled, so the ring it read from is known to be empty.
    fn has_room(&self) -> bool {
        false
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

    /// Bytes written; 0 is a full ring.
    fn ring(&mut self, ring: &mut send::Ring) -> Result<usize, Violation>;

    /// As `tcp`, but asks the socket itself: what the reactor knows of its readiness was given up for
    /// [`Tcp::poll_write_event`].
    fn late(&mut self, socket: &T, cx: &mut Context<'_>) -> Poll<io::Result<usize>>;

    /// Was a write of `length` bytes a short one, so that the ring is known to be full?
    fn is_short(&self, _length: usize) -> bool {
        false
    }

    /// Is nothing to be written? Then a full ring is no reason to wait, nor is it a turn of the application.
    fn is_empty(&self) -> bool {
        false
    }

    /// Bytes it reports have entered the stream (not so for readiness).
    const WRITES: bool = true;
}

/// What an attempt to read or write does when it has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnPending {
    /// It says so, and leaves everything as it is.
    Return,
    /// It has armed every wake-up there is. The caller has registered its waker before.
    Arm,
}

/// What an application does with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
}

/// The directions of a stream, as this end uses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Directions {
    Read,
    Write,
    Both,
}

/// What a step under a lock asks for once the lock is free.
#[derive(Default)]
pub(crate) struct Effects {
    /// Interrupts for peers in this process, whose wakers they call.
    bells: [Option<(Doorbell, Signal)>; 2],
    /// TCP carried other bytes than the switch allows: this connection is reset, its link lives.
    pub(crate) reset: bool,
    /// Everyone who waits looks again.
    pub(crate) wake: bool,
    /// A direction has left TCP: from now on somebody has to look at what is done to the idle socket.
    pub(crate) heed: bool,
    /// Kept apart, so that the common step builds and drops next to nothing.
    rare: Option<Box<Rare>>,
}

/// The effects that few steps have.
#[derive(Default)]
pub(crate) struct Rare {
    /// The peer broke a rule: its link ends.
    pub(crate) violation: Option<(Doorbell, Violation)>,
    /// The ring is full: the peer is to be asked for a segment of so many bytes for the DMB of that token.
    pub(crate) wish: Option<(Doorbell, u64, u64)>,
    /// This end has pinned the word of this DMB.
    pub(crate) pinned: Option<ReceiveDmb>,
    /// The sender will never use this DMB.
    pub(crate) unused: Option<SendDmb>,
    /// One direction will never leave TCP.
    pub(crate) settled: Option<FallbackReason>,
}

impl Effects {
    /// Interrupts the peer: one in another process at once, for that calls nobody; one in this process later.
    #[inline]
    pub(crate) fn ring(&mut self, doorbell: &Doorbell, signal: Signal) {
        if !doorbell.ring_if_remote(signal) {
            let free = usize::from(self.bells[0].is_some());
            self.bells[free] = Some((doorbell.clone(), signal));
        }
    }

    pub(crate) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    #[inline]
    fn is_empty(&self) -> bool {
        !self.reset && !self.wake && !self.heed && self.rare.is_none() && self.bells[0].is_none()
    }
}

/// How an application learns that it can not have the TCP socket of an upgraded stream.
pub(crate) fn upgraded_error(what: &str) -> io::Error {
    SmcError::Upgraded(what.into()).of(io::ErrorKind::Unsupported)
}
