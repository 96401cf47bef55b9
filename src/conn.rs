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
pub(crate) mod op;
mod prelude;
pub(crate) mod receive;
pub(crate) mod send;
#[cfg(test)]
mod tests;
pub(crate) mod upgrade;
pub(crate) mod waiters;
pub(crate) mod watch;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll};

use crate::error::SmcError;
use crate::ism::interrupt::Signal;
use crate::ism::ring::Violation;
use crate::link::stream::{PeerInterrupt, ReceiveDmb, SendDmb, Undelivered};
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

    /// Writes with `write`, which is asked at once; the reactor hears of it when that has to wait. For who writes after
    /// what the reactor knew of the socket was given up for [`Tcp::poll_write_event`].
    fn poll_direct(
        &self,
        cx: &mut Context<'_>,
        write: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>>;

    /// Waits for anything that the reactor tells of a socket that nobody else waits to write to: a FIN, a reset, a
    /// shutdown of the descriptor at this end. Nothing is taken off the socket. Ready is an end that lasts.
    fn poll_write_event(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// As [`Tcp::poll_write_event`], of a socket that nobody else waits to read from.
    fn poll_read_event(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Sends a FIN behind what was written.
    fn shutdown(&self) -> io::Result<()>;
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
    /// Interrupts that are not delivered yet.
    interrupts: [Option<(PeerInterrupt, Undelivered)>; 2],
    /// TCP carried other bytes than the switch allows: this connection is reset, its link lives.
    pub(crate) reset: bool,
    /// Everyone who waits looks again.
    pub(crate) wake: bool,
    /// A direction has left TCP: from now on somebody has to look at what is done to the idle socket.
    pub(crate) socket_check: bool,
    /// Kept apart, so that the common step builds and drops next to nothing.
    rare: Option<Box<Rare>>,
}

/// The effects that few steps have.
#[derive(Default)]
pub(crate) struct Rare {
    /// The peer broke a rule: its link ends.
    pub(crate) violation: Option<(PeerInterrupt, Violation)>,
    /// The ring is full: the peer is to be asked for a segment of so many bytes for the DMB of that token.
    pub(crate) ask: Option<(PeerInterrupt, u64, u64)>,
    /// This end has pinned the word of this DMB.
    pub(crate) pinned: Option<ReceiveDmb>,
    /// The sender will never use this DMB.
    pub(crate) unused: Option<SendDmb>,
    /// One direction will never leave TCP.
    pub(crate) settled: Option<FallbackReason>,
}

impl Effects {
    /// Interrupts the peer. What that takes besides the bits in its memory is done later.
    #[inline]
    pub(crate) fn interrupt(&mut self, peer: &PeerInterrupt, signal: Signal) {
        if let Some(undelivered) = peer.raise(signal) {
            let free = usize::from(self.interrupts[0].is_some());
            self.interrupts[free] = Some((peer.clone(), undelivered));
        }
    }

    pub(crate) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    #[inline]
    fn is_empty(&self) -> bool {
        !self.reset && !self.wake && !self.socket_check && self.rare.is_none() && self.interrupts[0].is_none()
    }
}

/// How an application learns that it can not have the TCP socket of an upgraded stream.
pub(crate) fn upgraded_error(what: &str) -> io::Error {
    SmcError::Upgraded(what.into()).of(io::ErrorKind::Unsupported)
}
