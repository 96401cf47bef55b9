//! A descriptor in the engine thread's epoll.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::task::{Context, Poll, Waker};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest as Events, Token};

use super::executor::Executor;
use crate::error::SmcError;
use crate::ism::sys;
use crate::link::reactor::{Interest, Watched};
use crate::shield::wake_each;
use crate::sync::{Arc, Mutex, lock};

/// What is known of one interest.
#[derive(Default)]
struct Slot {
    ready: bool,
    /// Counts the events, so that an attempt ends only the readiness that it knew.
    events: u64,
    /// This direction is over: that lasts.
    closed: bool,
    waker: Option<Waker>,
}

pub(super) struct Registered {
    executor: Arc<Executor>,
    number: usize,
    fd: Box<dyn Descriptor>,
    slots: Mutex<[Slot; 2]>,
}

trait Descriptor: AsFd + Send + Sync {}
impl<F: AsFd + Send + Sync> Descriptor for F {}

/// The engine thread has ended.
pub(super) fn gone() -> io::Error {
    SmcError::RuntimeGone.of(io::ErrorKind::Other)
}

impl Registered {
    pub(super) fn new(
        executor: Arc<Executor>,
        number: usize,
        fd: Box<impl AsFd + Send + Sync + 'static>,
    ) -> Self {
        Registered { executor, number, fd, slots: Mutex::default() }
    }

    /// Begins to be told of events, the first one being what there is now.
    pub(super) fn enter(&self) -> io::Result<()> {
        let fd = self.fd.as_fd().as_raw_fd();
        self.executor.registry().register(
            &mut SourceFd(&fd),
            Token(self.number),
            Events::READABLE | Events::WRITABLE,
        )
    }

    /// The thread tells of an event.
    pub(super) fn tell(&self, event: &Event) {
        let reads = event.is_readable() || event.is_read_closed() || event.is_error();
        let writes = event.is_writable() || event.is_write_closed() || event.is_error();
        // A message on the error queue looks like an end, until somebody has taken it.
        let write_closed = event.is_write_closed()
            && (!event.is_error() || sys::ended(self.fd.as_fd()).map_or(true, |ended| ended.writes));
        let wakers = {
            let mut slots = lock(&self.slots);
            let told = [(reads, event.is_read_closed()), (writes, write_closed)];
            let mut wakers = [None, None];
            for (at, (ready, closed)) in told.into_iter().enumerate() {
                let slot = &mut slots[at];
                if ready {
                    slot.ready = true;
                    slot.events += 1;
                    slot.closed |= closed;
                    wakers[at] = slot.waker.take();
                }
            }
            wakers
        };
        wake_each(wakers.into_iter().flatten());
    }

    /// The thread has ended: who waits looks for himself.
    pub(super) fn end(&self) {
        let wakers = lock(&self.slots).each_mut().map(|slot| slot.waker.take());
        wake_each(wakers.into_iter().flatten());
    }

    fn let_go(&self, interest: Interest) {
        let waker = lock(&self.slots)[interest as usize].waker.take();
        drop(waker);
    }

    /// Waits in a waker slot for whatever epoll tells. Ready: nothing will come that is not there
    /// already.
    pub(super) fn poll_event(&self, interest: Interest, cx: &mut Context<'_>) -> Poll<()> {
        let waker = cx.waker().clone();
        let stale = {
            let mut slots = lock(&self.slots);
            let slot = &mut slots[interest as usize];
            if slot.closed {
                return Poll::Ready(());
            }
            // What was told until now is forgotten: the next event tells it again.
            slot.ready = false;
            slot.waker.replace(waker)
        };
        drop(stale);
        if self.executor.has_ended() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl AsFd for Registered {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Watched for Registered {
    fn poll_ready(&self, interest: Interest, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.executor.has_ended() {
            self.let_go(interest);
            return Poll::Ready(Err(gone()));
        }
        {
            let slots = lock(&self.slots);
            let slot = &slots[interest as usize];
            if slot.ready {
                return Poll::Ready(Ok(()));
            }
            if slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                return Poll::Pending;
            }
        }
        // Not under the lock: it runs its owner's code.
        let waker = cx.waker().clone();
        let stale = {
            let mut slots = lock(&self.slots);
            let slot = &mut slots[interest as usize];
            if slot.ready {
                return Poll::Ready(Ok(()));
            }
            slot.waker.replace(waker)
        };
        drop(stale);
        if self.executor.has_ended() {
            // Perhaps after its last look at this descriptor.
            self.let_go(interest);
            return Poll::Ready(Err(gone()));
        }
        Poll::Pending
    }

    fn attempt(&self, interest: Interest, attempt: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let known = lock(&self.slots)[interest as usize].events;
        let answer = attempt();
        if matches!(&answer, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            let mut slots = lock(&self.slots);
            let slot = &mut slots[interest as usize];
            // An event that came during the attempt tells of something the attempt may not have
            // seen.
            if slot.events == known {
                slot.ready = false;
            }
        }
        answer
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if !self.executor.is_ours() {
            // The epoll is the one of a parent, which goes on with its own copy of the descriptor.
            return;
        }
        self.executor.forget(self.number);
        let fd = self.fd.as_fd().as_raw_fd();
        // Never entered, or gone with the thread's epoll.
        let _ = self.executor.registry().deregister(&mut SourceFd(&fd));
    }
}
