//! One connection: its two directions, each on TCP, switching, or in a ring; the close rules; the
//! upgrade.
//!
//! Nothing here knows tokio: the TCP socket comes behind [`Tcp`], and whoever waits does so with a
//! plain `Waker`. Locks are taken receiver before sender; no waker is called, no message of a link
//! sent and no other stream called with one held, so every step collects its [`Effects`] and
//! carries them out afterwards. (An interrupt sets its bits in shared memory at once. That calls
//! nobody.)

pub(crate) mod close;
pub(crate) mod connection;
mod descriptor;
pub(crate) mod deserted;
mod effects;
pub(crate) mod growth;
pub(crate) mod in_place;
mod linked;
mod listed;
pub(crate) mod op;
mod prelude;
pub(crate) mod receive;
mod sample;
pub(crate) mod send;
#[cfg(test)]
mod tests;
/// What a fuzz target plays of them.
#[cfg(all(fuzzing, not(test)))]
#[allow(dead_code, unused_imports, reason = "the tests that need the rest are not built")]
mod tests {
    mod aid;
    mod by_hand;
    mod disguise;
    mod hosts;
    mod ops;
    mod socket;
    mod stranger;
    pub(crate) mod turns;

    use aid::{bytes, note, watched};
}
pub(crate) mod upgrade;
pub(crate) mod waiters;
pub(crate) mod watch;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll};

use crate::error::SmcError;

pub(crate) use connection::{Connection, Role};
pub(crate) use effects::Effects;
#[cfg(all(fuzzing, not(test)))]
pub(crate) use tests::turns::play as play_turns;

/// The TCP socket under a connection. Dropping it closes it without a word of its own: no FIN that
/// would turn a reset into an end.
pub(crate) trait Tcp: AsFd + Send + Sync + 'static {
    /// What a writer waits with once the reactor has taken a message on the error queue for the end
    /// of writing.
    type Apart: Send;

    /// Reads into `buffer`; 0 bytes mean the end. `Pending` keeps the waker of `cx`.
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Waits until a byte or the end can be read, without taking it; 0 means the end.
    fn poll_peek(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>>;

    /// Writes from `bytes`.
    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;

    /// Writes with `write`, which is asked at once; the reactor hears of it when that has to wait.
    /// For who writes after what the reactor knew of the socket was given up for
    /// [`Tcp::poll_write_event`].
    fn poll_direct(
        &self,
        cx: &mut Context<'_>,
        write: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>>;

    /// As [`Tcp::poll_direct`], of a socket that had something on its error queue: that looks like
    /// an end of writing, and where the reactor has seen it, it has to be asked by other means.
    fn poll_apart(
        &self,
        apart: &mut Option<Self::Apart>,
        cx: &mut Context<'_>,
        write: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>>;

    /// Does the reactor take something that was on the error queue for the end of writing?
    fn is_spoiled(&self) -> bool {
        false
    }

    /// Waits for anything that the reactor tells of a socket that nobody else waits to write to: a
    /// FIN, a reset, a shutdown of the descriptor at this end. Nothing is taken off the socket.
    /// Ready is the end of the socket: nothing else comes.
    fn poll_write_event(&self, apart: &mut Option<Self::Apart>, cx: &mut Context<'_>) -> Poll<()>;

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

/// How an application learns that it can not have the TCP socket of an upgraded stream.
pub(crate) fn upgraded_error(what: &str) -> io::Error {
    SmcError::Upgraded(what.into()).of(io::ErrorKind::Unsupported)
}
