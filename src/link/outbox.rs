//! Messages on their way to the peer: sent at once when the socket takes them, queued otherwise,
//! never blocking.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::Waker;
use std::time::Duration;

use rustix::io::Errno;

use crate::ism::sys;
use crate::sync::{Mutex, assert_unlocked, lock};

/// A peer that lets this many bytes of control messages pile up is not working any more.
const MOST_QUEUED: usize = 8 << 20;
/// Until a message is tried again for which the kernel had no memory.
pub(crate) const AGAIN: Duration = Duration::from_millis(10);

/// Descriptors that may wait with their messages: a peer that does not read must not keep more of
/// them open.
const MOST_FDS_QUEUED: usize = 16;

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    bytes: usize,
    fds: usize,
    /// Of the task that flushes.
    flusher: Option<Waker>,
}

/// The task that has to flush what was queued; to be woken once no lock is held.
#[must_use]
#[derive(Debug, Default)]
pub(crate) struct Flusher(Option<Waker>);

impl Flusher {
    pub(crate) fn wake(self) {
        if let Some(waker) = self.0 {
            assert_unlocked("the task of a link");
            waker.wake();
        }
    }
}

/// How far a flush went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    All,
    /// When it takes more, it is writable.
    SocketFull,
    /// The kernel has none for a message at the moment. The socket would take it: no readiness
    /// will tell when.
    NoMemory,
}

#[derive(Default)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
}

impl Outbox {
    /// Sends or queues one message. An error means that the link can not go on.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>, bytes: Vec<u8>) -> io::Result<Flusher> {
        self.send_or_queue(socket, bytes, None)
    }

    /// Sends or queues one message with a descriptor.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when too many of that kind wait; `ETOOMANYREFS` when too many descriptors of
    /// this user are on their way to others. Nothing has happened then. Else as [`Outbox::send`].
    pub(crate) fn send_fd(&self, socket: BorrowedFd<'_>, bytes: Vec<u8>, fd: OwnedFd) -> io::Result<Flusher> {
        self.send_or_queue(socket, bytes, Some(fd))
    }

    fn send_or_queue(
        &self,
        socket: BorrowedFd<'_>,
        bytes: Vec<u8>,
        fd: Option<OwnedFd>,
    ) -> io::Result<Flusher> {
        let mut queue = lock(&self.queue);
        if queue.waiting.is_empty() {
            match transmit(socket, &bytes, fd.as_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock || lacks_memory(&error) => {}
                sent => return sent.map(|()| Flusher::default()),
            }
        }
        if fd.is_some() && queue.fds == MOST_FDS_QUEUED {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        queue.bytes += bytes.len();
        if queue.bytes > MOST_QUEUED {
            return Err(io::Error::other("the peer does not read its control messages"));
        }
        queue.fds += usize::from(fd.is_some());
        queue.waiting.push_back((bytes, fd));
        Ok(Flusher(queue.flusher.take()))
    }

    /// Forgets what waits.
    pub(crate) fn clear(&self) {
        let gone = {
            let mut queue = lock(&self.queue);
            (queue.bytes, queue.fds) = (0, 0);
            std::mem::take(&mut queue.waiting)
        };
        drop(gone);
    }

    /// Has the peer left so much unread that nothing new should be begun?
    pub(crate) fn is_clogged(&self) -> bool {
        lock(&self.queue).bytes > MOST_QUEUED / 8
    }

    /// Sends what is queued, as far as that goes. `flusher` is woken when more was queued
    /// meanwhile, unless the socket is full.
    pub(crate) fn flush(&self, socket: BorrowedFd<'_>, flusher: &Waker) -> io::Result<Flushed> {
        let mut queue = lock(&self.queue);
        let mut flushed = Flushed::All;
        while let Some((bytes, fd)) = queue.waiting.front() {
            let sent = match transmit(socket, bytes, fd.as_ref()) {
                // The peer makes do without: it takes what did not come for what it had no place
                // for.
                Err(error) if is_too_many_refs(&error) => transmit(socket, bytes, None),
                sent => sent,
            };
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flushed::SocketFull),
                Err(error) if lacks_memory(&error) => {
                    flushed = Flushed::NoMemory;
                    break;
                }
                Err(error) => return Err(error),
                Ok(()) => {
                    if let Some((bytes, fd)) = queue.waiting.pop_front() {
                        queue.bytes -= bytes.len();
                        queue.fds -= usize::from(fd.is_some());
                    }
                }
            }
        }
        let stale = queue.flusher.replace(flusher.clone());
        drop(queue);
        drop(stale);
        Ok(flushed)
    }
}

fn transmit(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<&OwnedFd>) -> io::Result<()> {
    match fd {
        Some(fd) => sys::send(socket, bytes, &[fd.as_fd()]),
        None => sys::send(socket, bytes, &[]),
    }
}

/// Whether the kernel has no memory for a message at the moment.
pub(super) fn lacks_memory(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOBUFS | Errno::NOMEM))
}

/// Whether the kernel says that too many descriptors of this user are on their way.
fn is_too_many_refs(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::TOOMANYREFS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two connected sockets of a link.
    fn pair() -> (OwnedFd, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = sys::seqpacket_listen(&path).unwrap();
        let client = sys::seqpacket_connect(&path).unwrap();
        let server = sys::accept(listener.as_fd()).unwrap().unwrap();
        sys::allow_rights(server.as_fd());
        (client, server)
    }

    #[test]
    fn messages_wait_with_their_descriptors_and_keep_their_order() {
        let (ours, theirs) = pair();
        let outbox = Outbox::default();
        let mut sent = 0_u32;
        while lock(&outbox.queue).waiting.is_empty() {
            outbox.send(ours.as_fd(), sent.to_ne_bytes().to_vec()).unwrap().wake();
            sent += 1;
        }
        let with_fd = |number: u32| {
            let eventfd = sys::eventfd().unwrap();
            outbox.send_fd(ours.as_fd(), number.to_ne_bytes().to_vec(), eventfd).map(Flusher::wake)
        };
        let first_fd = sent;
        for _ in 0..MOST_FDS_QUEUED {
            with_fd(sent).unwrap();
            sent += 1;
        }
        assert_eq!(with_fd(sent).unwrap_err().kind(), io::ErrorKind::WouldBlock, "no more descriptors wait");
        outbox.send(ours.as_fd(), sent.to_ne_bytes().to_vec()).unwrap().wake();
        sent += 1;

        let mut buffer = [0; 8];
        for number in 0..sent {
            let received = sys::recv(theirs.as_fd(), &mut buffer, 1).unwrap();
            assert_eq!(buffer[..received.len], number.to_ne_bytes());
            let carries = (first_fd..first_fd + MOST_FDS_QUEUED as u32).contains(&number);
            assert_eq!(received.carried.fds.len(), usize::from(carries), "message {number}");
            outbox.flush(ours.as_fd(), Waker::noop()).unwrap();
        }
        {
            let queue = lock(&outbox.queue);
            assert_eq!((queue.bytes, queue.fds), (0, 0));
        }
        with_fd(sent).unwrap();
        assert_eq!(sys::recv(theirs.as_fd(), &mut buffer, 1).unwrap().carried.fds.len(), 1);
    }
}
