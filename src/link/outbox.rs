//! Messages on their way to the peer: sent at once when the socket takes them, queued otherwise, never blocking.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::Waker;

use crate::ism::sys;
use crate::sync::{Arc, Mutex, lock};

/// A peer that lets this many bytes of control messages pile up is not working any more.
const MOST_QUEUED: usize = 8 << 20;

/// A descriptor that travels with a message: ours to share, not to give away.
pub(crate) type SharedFd = Arc<OwnedFd>;

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Vec<u8>, Vec<SharedFd>)>,
    bytes: usize,
    /// Of the task that flushes.
    flusher: Option<Waker>,
}

#[derive(Default)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
}

impl Outbox {
    /// Sends or queues one message. An error means that the link can not go on.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>, bytes: Vec<u8>, fds: Vec<SharedFd>) -> io::Result<()> {
        let flusher = {
            let mut queue = lock(&self.queue);
            if queue.waiting.is_empty() {
                match transmit(socket, &bytes, &fds) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    sent => return sent,
                }
            }
            queue.bytes += bytes.len();
            if queue.bytes > MOST_QUEUED {
                return Err(io::Error::other("the peer does not read its control messages"));
            }
            queue.waiting.push_back((bytes, fds));
            queue.flusher.take()
        };
        if let Some(flusher) = flusher {
            flusher.wake();
        }
        Ok(())
    }

    /// Has the peer left so much unread that nothing new should be begun?
    pub(crate) fn is_clogged(&self) -> bool {
        lock(&self.queue).bytes > MOST_QUEUED / 8
    }

    /// Sends what is queued. `false`: the socket is full, `flusher` is woken when more was queued meanwhile.
    pub(crate) fn flush(&self, socket: BorrowedFd<'_>, flusher: &Waker) -> io::Result<bool> {
        let mut queue = lock(&self.queue);
        while let Some((bytes, fds)) = queue.waiting.front() {
            match transmit(socket, bytes, fds) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
                Ok(()) => {
                    let length = bytes.len();
                    queue.bytes -= length;
                    queue.waiting.pop_front();
                }
            }
        }
        let stale = queue.flusher.replace(flusher.clone());
        drop(queue);
        drop(stale);
        Ok(true)
    }
}

fn transmit(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[SharedFd]) -> io::Result<()> {
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
    sys::send(socket, bytes, &borrowed)
}
