//! Closes that may wait, and other ends that take long, on a thread of their own.
//!
//! The last close of a descriptor takes what it takes: a TCP socket with `SO_LINGER` waits until
//! its bytes are gone, a file of a file system in user space until that answers. Peers can send
//! such descriptors. They are never taken out of the queue of our socket (`sys::recv`), so it is
//! the close of that socket which closes them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll};

use crate::ism::sys;
use crate::link::reactor::{Interest, Reactor, Watched};
use crate::shield::shielded;
use crate::sync::{Arc, Mutex, lock};

/// What the thread is called.
pub(crate) const NAME: &str = "smc-lo-close";

/// The work is a few system calls.
const STACK: usize = 128 * 1024;

/// While so many closes wait, no control connection is made or accepted: each of them could be one
/// more. Those that there are already are bounded elsewhere.
const MOST_WAITING: usize = 64;

type Work = Box<dyn FnOnce() + Send>;

struct Closing {
    waiting: VecDeque<Work>,
    /// The process whose thread does it; a forked child inherits the value, but not the thread.
    thread_of: Option<u32>,
}

static CLOSING: Mutex<Closing> = Mutex::new(Closing { waiting: VecDeque::new(), thread_of: None });

/// Does what may wait, in its turn. The thread begins with the first and ends with the last.
pub(crate) fn run(work: impl FnOnce() + Send + 'static) {
    {
        let mut closing = lock(&CLOSING);
        closing.waiting.push_back(Box::new(work));
        let this = std::process::id();
        if closing.thread_of.replace(this) == Some(this) {
            return;
        }
    }
    if let Err(error) = sys::begin_thread(NAME, STACK, close_all) {
        crate::trace::warning!("no thread for what may wait: {error}");
        // It is done with the next that comes.
        lock(&CLOSING).thread_of = None;
    }
}

fn close_all() {
    while let Some(work) = next() {
        // Whoever comes after it has nothing to do with its trouble.
        let _ = shielded(work);
    }
}

fn next() -> Option<Work> {
    let mut closing = lock(&CLOSING);
    let work = closing.waiting.pop_front();
    if work.is_none() {
        closing.thread_of = None;
    }
    work
}

/// Whether so many closes wait that nothing should be begun which may end in one more.
pub(crate) fn is_full() -> bool {
    lock(&CLOSING).waiting.len() >= MOST_WAITING
}

/// A control socket, whose close waits on no thread of the application, whatever a peer has put
/// into its queue.
pub(crate) struct Fed<F: AsFd + Send + 'static> {
    socket: Option<F>,
    /// A forked child holds copies only, of what it must not end.
    process: u32,
}

/// A control socket in a reactor.
pub(crate) type ControlSocket = Fed<Arc<dyn Watched>>;

impl<F: AsFd + Send + 'static> Fed<F> {
    pub(crate) fn new(socket: F) -> Self {
        Fed { socket: Some(socket), process: std::process::id() }
    }

    fn socket(&self) -> &F {
        match &self.socket {
            Some(socket) => socket,
            None => unreachable!("only what consumes the value takes it"),
        }
    }
}

impl Fed<OwnedFd> {
    /// Registers the socket.
    pub(crate) fn watch(mut self, reactor: &dyn Reactor) -> io::Result<ControlSocket> {
        // A reactor that does not take it closes it: then that is not the last one.
        let spare = if sys::refuses_rights(self.as_fd()) { None } else { self.socket().try_clone().ok() };
        let Some(socket) = std::mem::replace(&mut self.socket, spare) else {
            unreachable!("only what consumes the value takes it")
        };
        let watched = Fed::new(reactor.watch(socket)?);
        // Nor is this.
        drop(self.socket.take());
        Ok(watched)
    }
}

impl<F: AsFd + Send + 'static> Drop for Fed<F> {
    fn drop(&mut self) {
        let Some(socket) = self.socket.take() else { return };
        if self.process != std::process::id() || sys::can_close_at_once(socket.as_fd()) {
            drop(socket);
        } else {
            // Not the close itself: a reactor may hold the socket for a moment longer, on a thread
            // that must not wait.
            run(move || sys::empty(socket.as_fd()));
        }
    }
}

impl<F: AsFd + Send + 'static> AsFd for Fed<F> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

impl Watched for ControlSocket {
    fn poll_ready(&self, interest: Interest, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket().poll_ready(interest, cx)
    }

    fn attempt(&self, interest: Interest, attempt: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        self.socket().attempt(interest, attempt)
    }
}
