//! Doorbells: how the two ends of a link wake each other's poller.
//!
//! Nothing that blocks is ever done to what somebody else holds, too. So each link has a bell of
//! its own at each end, which that end only listens to:
//!
//! - An eventfd, for a peer that could as well kill this process: its holder can make it blocking
//!   while another one writes.
//! - For all others the link's own socket: any message on it is an edge.
//!
//! Whoever finds an eventfd full or blocking sends a message instead. A socket that is full needs
//! none: the task of the link looks at the signals after it has read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Link;
use crate::ism::sys::{self, PeerCred};
use crate::link::aside::Fed;
use crate::link::message::{Bell, Message};
use crate::link::outbox::{AGAIN, lacks_memory};
use crate::link::reactor::{Reactor, Watched};
use crate::peer::is_same_user;
use crate::sync::{Arc, AtomicBool, Ordering};

/// What this end listens to.
pub(super) struct OwnBell {
    kind: Bell,
    edges: Arc<dyn Watched>,
    /// The poller listens.
    heard: AtomicBool,
}

/// Could the peer stop this process anyway? Only a process of its user may send it signals, and
/// only one that has a number for it.
fn could_kill_us(socket: BorrowedFd<'_>, peer: &PeerCred) -> bool {
    is_same_user(peer) && sys::shares_pid_namespace(socket)
}

impl OwnBell {
    pub(super) fn new(reactor: &dyn Reactor, socket: BorrowedFd<'_>, peer: &PeerCred) -> io::Result<Self> {
        let (kind, edges) = if could_kill_us(socket, peer) {
            (Bell::Eventfd, reactor.watch(sys::eventfd()?)?)
        } else {
            // A registration of its own, whose readiness is nobody else's.
            let edges: Arc<dyn Watched> = Arc::new(Fed::new(socket.try_clone_to_owned()?).watch(reactor)?);
            (Bell::Socket, edges)
        };
        Ok(OwnBell { kind, edges, heard: AtomicBool::new(false) })
    }

    pub(super) fn kind(&self) -> Bell {
        self.kind
    }

    /// The eventfd that the peer gets.
    pub(super) fn eventfd(&self) -> Option<BorrowedFd<'_>> {
        (self.kind == Bell::Eventfd).then(|| self.edges.as_fd())
    }
}

/// How the peer is rung.
pub(super) enum PeerBell {
    Eventfd(OwnedFd),
    Socket,
}

impl Link {
    /// The bell of a link that the poller does not listen to yet; once.
    pub(crate) fn unheard_bell(&self) -> Option<Arc<dyn Watched>> {
        (!self.bell.heard.swap(true, Ordering::Relaxed)).then(|| self.bell.edges.clone())
    }

    /// Is no eventfd shared with that peer?
    #[cfg(test)]
    pub(crate) fn is_rung_by_messages(&self) -> bool {
        self.bell.kind == Bell::Socket
    }

    /// What an eventfd of the peer is good for.
    pub(super) fn bell_of_peer(&self, eventfd: Option<OwnedFd>) -> PeerBell {
        match eventfd {
            // The same question as for our own.
            Some(eventfd) if self.bell.kind == Bell::Eventfd => PeerBell::Eventfd(eventfd),
            _ => PeerBell::Socket,
        }
    }

    /// Wakes the peer's poller.
    pub(super) fn ring(&self, bell: &PeerBell) {
        if let PeerBell::Eventfd(eventfd) = bell {
            match sys::ring_shared(eventfd.as_fd()) {
                Ok(()) => return,
                Err(error) => crate::trace::debug!("the peer's eventfd does not ring: {error}"),
            }
        }
        self.ring_by_message();
    }

    fn ring_by_message(&self) {
        let Err(error) = sys::send(self.socket(), &Message::Wake.encode(), &[]) else { return };
        // Full: the peer's task looks once it has read.
        if error.kind() == io::ErrorKind::WouldBlock {
            return;
        }
        if !lacks_memory(&error) {
            // Whatever it is, the task of the link meets it, too.
            crate::trace::debug!("the peer is not rung: {error}");
            return;
        }
        if let (Some(endpoint), None) = (self.endpoint.upgrade(), self.death()) {
            let this = self.this.clone();
            endpoint.run_after(AGAIN, move || {
                if let Some(link) = this.upgrade() {
                    link.ring_by_message();
                }
            });
        }
    }

    /// To be called after messages were read: the peer may have found the socket full when it rang.
    pub(super) fn look_after_messages(&self) {
        if !self.signals().is_idle() {
            if let Some(endpoint) = self.endpoint.upgrade() {
                endpoint.ring();
            }
        }
    }
}
