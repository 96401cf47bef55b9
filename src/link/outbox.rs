//! Messages on their way to the peer: sent at once when the socket takes them, queued otherwise, never blocking.
//!
//! A message with descriptors is sent at once or not at all: nothing holds descriptors while a peer does not read.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::task::Waker;

use crate::ism::sys;
use crate::sync::{Mutex, lock};

/// A peer that lets this many bytes of control messages pile up is not working any more.
const MOST_QUEUED: usize = 8 << 20;

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Vec<u8>>,
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
    pub(crate) fn send(&self, socket: BorrowedFd<'_>, bytes: Vec<u8>) -> io::Result<()> {
        let flusher = {
            let mut queue = lock(&self.queue);
            if queue.waiting.is_empty() {
                match sys::send(socket, &bytes, &[]) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    sent => return sent,
                }
            }
            queue.bytes += bytes.len();
            if queue.bytes > MOST_QUEUED {
                return Err(io::Error::other("the peer does not read its control messages"));
            }
            queue.waiting.push_back(bytes);
            queue.flusher.take()
        };
        if let Some(flusher) = flusher {
            flusher.wake();
        }
        Ok(())
    }

    /// Sends one message with descriptors, now.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when others wait or the socket is full; `ETOOMANYREFS` when too many descriptors of this user are
    /// on their way already. Neither ends the link.
    pub(crate) fn send_fds(
        &self,
        socket: BorrowedFd<'_>,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let queue = lock(&self.queue);
        if !queue.waiting.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        sys::send(socket, bytes, fds)
    }

    /// Sends what is queued. `false`: the socket is full, `flusher` is woken when more was queued meanwhile.
    pub(crate) fn flush(&self, socket: BorrowedFd<'_>, flusher: &Waker) -> io::Result<bool> {
        let mut queue = lock(&self.queue);
        while let Some(bytes) = queue.waiting.front() {
            match sys::send(socket, bytes, &[]) {
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
