//! The end of a link that nobody needs: its descriptors and its memory are not held for a peer
//! without connections.

use super::{Fault, Link};
use crate::link::message::Message;
use crate::link::stream::Death;
use crate::sync::{Arc, Ordering, lock};

/// Keeps a link that somebody is about to use from being closed as idle.
pub(crate) struct Hold(Arc<Link>);

impl std::ops::Deref for Hold {
    type Target = Arc<Link>;

    fn deref(&self) -> &Arc<Link> {
        &self.0
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::Release);
        self.0.close_if_idle();
    }
}

impl Link {
    /// To be called with the lock of the endpoint's links held, as everything that decides whether
    /// it is idle.
    pub(crate) fn hold(self: &Arc<Self>) -> Hold {
        self.users.fetch_add(1, Ordering::Relaxed);
        Hold(self.clone())
    }

    /// Whether nothing of this end depends on the link.
    pub(crate) fn is_idle(&self) -> bool {
        // Acquire: pairs with the Release of `Hold::drop`; what the user has left here is seen.
        if self.users.load(Ordering::Acquire) != 0 || !self.streams.is_empty() {
            return false;
        }
        let state = lock(&self.state);
        state.own.is_idle()
            && state.received.is_empty()
            && state.our_offers.is_empty()
            && state.their_offers.is_empty()
            // One that has gone waits for nothing.
            && state.wanting.iter().all(|wanting| wanting.stream.strong_count() == 0)
    }

    /// Something that used the link is gone; if it was the last, the link is closed after a while.
    pub(super) fn close_if_idle(&self) {
        if self.death().is_none() && self.is_idle() {
            if let Some(endpoint) = self.endpoint.upgrade() {
                endpoint.close_idle_links_later();
            }
        }
    }

    /// Whether it was not used since the last call of this.
    pub(crate) fn is_unused(&self) -> bool {
        let uses = self.uses.load(Ordering::Relaxed);
        self.uses_seen.swap(uses, Ordering::Relaxed) == uses
    }

    /// Name of the peer's endpoint, once it has said HELLO.
    pub(crate) fn peer_endpoint(&self) -> Option<[u8; 16]> {
        self.peer.get().map(|peer| peer.endpoint)
    }

    /// Asks the peer to close the link; from here on no offer of ours goes out on it.
    pub(crate) fn say_bye(&self) {
        self.send(&Message::Bye);
    }

    pub(super) fn on_bye(&self) -> Result<(), Fault> {
        // What comes before our end of the socket was sent before BYE, and nothing comes after it.
        if self.endpoint.upgrade().is_some_and(|endpoint| endpoint.lets_go(self)) {
            self.bury(Death::Peer);
        }
        Ok(())
    }
}
