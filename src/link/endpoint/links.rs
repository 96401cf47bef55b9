//! The links of an endpoint: made for the first stream that needs one, closed when none has needed
//! it for a while.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::{LazyLock, Weak};
use std::time::Duration;

use super::Endpoint;
use crate::ism::device::EndpointId;
use crate::ism::{budget, sys};
use crate::link::aside::{self, ControlSocket, Fed};
use crate::link::lack::{no_link, reason_of};
use crate::link::shares::{Greed, Holders, Most, Taken};
use crate::link::stream::Death;
use crate::link::{Hold, Link, Opened};
use crate::sync::{Arc, Mutex, Ordering, lock};
use crate::transport::FallbackReason;

/// For how long a link may be of no use before it is closed.
pub(crate) const IDLE_LINK: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Links {
    pub(super) by_peer: HashMap<[u8; 16], Arc<Link>>,
    pub(super) all: Vec<Arc<Link>>,
}

/// Why there is no link; what there is to log about it waits until no lock is held.
struct NoLink {
    reason: FallbackReason,
    error: Option<io::Error>,
}

impl From<FallbackReason> for NoLink {
    fn from(reason: FallbackReason) -> Self {
        NoLink { reason, error: None }
    }
}

impl NoLink {
    /// An error that is told by its own reason, or else by `otherwise`.
    fn because(otherwise: FallbackReason) -> impl FnOnce(io::Error) -> Self {
        move |error| NoLink { reason: reason_of(&error, otherwise), error: Some(error) }
    }

    fn tell(self) -> FallbackReason {
        match self.error {
            // Each stream says so itself, and each would log it.
            Some(error) if self.reason == FallbackReason::PeerPolicy => {
                crate::trace::debug!("no link: {error}");
            }
            Some(error) => crate::trace::warning!("no link: {error}"),
            None => {}
        }
        self.reason
    }
}

/// The links that were looked at for one that may go, and the one that went: it is told when this
/// is dropped, which is for when no lock is held.
#[derive(Default)]
struct Evicted {
    seen: Vec<Arc<Link>>,
    loser: Option<Arc<Link>>,
}

impl Evicted {
    fn evict(&mut self, link: &Weak<Link>) -> bool {
        let Some(link) = link.upgrade() else { return false };
        let goes = link.evict();
        if goes {
            self.loser = Some(link);
        } else {
            self.seen.push(link);
        }
        goes
    }
}

impl Drop for Evicted {
    fn drop(&mut self) {
        if let Some(loser) = self.loser.take() {
            loser.evicted();
        }
    }
}

impl Endpoint {
    /// The link to that endpoint, made when there is none.
    pub(crate) fn link_to(self: &Arc<Self>, peer: EndpointId) -> Result<Hold, FallbackReason> {
        self.link_or_make(peer).map_err(NoLink::tell)
    }

    fn link_or_make(self: &Arc<Self>, peer: EndpointId) -> Result<Hold, NoLink> {
        // Declared before the lock is taken, and so dropped after it.
        let mut evicted = Evicted::default();
        let mut links = lock(&self.links);
        if let Some(link) = links.by_peer.get(&peer.0) {
            return Ok(link.hold());
        }
        if aside::is_full() {
            return Err(FallbackReason::Limit.into());
        }
        let socket = Fed::new(self.connect(peer)?);
        let socket = socket.watch(self.reactor()).map_err(NoLink::because(FallbackReason::LinkDown))?;
        let link = self.new_link(&mut links, &mut evicted, Arc::new(socket), Opened::Here(peer))?;
        links.by_peer.insert(peer.0, link.clone());
        let link = link.hold();
        drop(links);
        link.serve();
        Ok(link)
    }

    /// A peer's connection that begins with LINK; HELLO is the answer.
    pub(crate) fn accept_link(
        self: &Arc<Self>,
        socket: Arc<ControlSocket>,
    ) -> Result<Arc<Link>, FallbackReason> {
        let mut evicted = Evicted::default();
        let made = {
            let mut links = lock(&self.links);
            self.new_link(&mut links, &mut evicted, socket.clone(), Opened::ByPeer)
        };
        made.map_err(NoLink::tell).inspect_err(|reason| {
            if *reason != FallbackReason::PeerPolicy {
                let _ = sys::send(socket.as_fd(), &no_link(*reason).encode(), &[]);
            }
        })
    }

    fn new_link(
        self: &Arc<Self>,
        links: &mut Links,
        evicted: &mut Evicted,
        socket: Arc<ControlSocket>,
        opened: Opened,
    ) -> Result<Arc<Link>, NoLink> {
        self.check_life()?;
        // Before it may send descriptors, and gets ours.
        let peer = self.check_user(socket.as_fd()).map_err(NoLink::because(FallbackReason::PeerPolicy))?;
        let (most, wanted) = (self.limits.links, self.limits.links_per_user);
        let affordable = budget::most_links();
        let half = Most::of(most.min(affordable));
        let of_a_user = wanted.unwrap_or(half.of_a_user);
        // One that carries a connection stays, or that would lose what TCP keeps.
        let most_shared = Most { of_a_user, greed: Greed::LeavesHalf, ..half };
        let given = SHARES.take(most_shared, peer, |link| evicted.evict(link));
        let (place, _) = given.map_err(|taken| {
            let is_set = taken == Taken::OfTheUser && wanted.is_some();
            let descriptors = affordable < most && !is_set;
            if descriptors { FallbackReason::Descriptors } else { FallbackReason::Limit }
        })?;
        let link = Link::new(self, socket, opened, place).map_err(NoLink::because(FallbackReason::Memory))?;
        lock(&LINKS).get_or_insert_default().insert(link.id, Arc::downgrade(&link));
        links.all.push(link.clone());
        // Perhaps nobody ever uses it.
        self.close_idle_links_later();
        self.generation.fetch_add(1, Ordering::Release);
        // The poller has to listen to its bell.
        self.ring();
        Ok(link)
    }

    pub(crate) fn link_ended(&self, link: &Link) {
        lock(&LINKS).get_or_insert_default().remove(&link.id);
        let gone = {
            let mut links = lock(&self.links);
            let peer = links.by_peer.iter().find(|(_, other)| other.id == link.id).map(|(peer, _)| *peer);
            let mut gone = Vec::from_iter(peer.and_then(|peer| links.by_peer.remove(&peer)));
            if let Some(at) = links.all.iter().position(|other| other.id == link.id) {
                gone.push(links.all.swap_remove(at));
            }
            gone
        };
        self.generation.fetch_add(1, Ordering::Release);
        drop(gone);
        // The poller has a list of its own, which keeps the memory of the dead.
        self.ring();
    }

    /// Some link has lost its last connection: it is closed when it has been idle for a while.
    pub(crate) fn close_idle_links_later(self: &Arc<Self>) {
        if self.looks_for_idle.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = Arc::downgrade(self);
        let work = move || {
            if let Some(this) = this.upgrade() {
                this.looks_for_idle.store(false, Ordering::Release);
                if this.close_idle_links() {
                    this.close_idle_links_later();
                }
            }
        };
        self.run_after(IDLE_LINK, work);
    }

    /// Closes the links that were of no use since the last call; `true` while some may become so.
    pub(crate) fn close_idle_links(&self) -> bool {
        let mut again = false;
        for link in self.links() {
            let mut links = lock(&self.links);
            if !link.is_idle() {
                // Whoever ends its use comes here again; of one without HELLO nobody may.
                again |= link.peer_endpoint().is_none();
                continue;
            }
            if !link.is_unused() {
                again = true;
                continue;
            }
            // Nobody gets it for an offer any more, unless the peer has a use for it.
            links.by_peer.retain(|_, other| other.id != link.id);
            drop(links);
            match link.peer_endpoint() {
                Some(_) => link.say_bye(),
                None => link.bury(Death::Peer),
            }
        }
        again
    }

    /// The peer has no use for the link: whether this end has none either, and will have none.
    pub(crate) fn lets_go(&self, link: &Link) -> bool {
        let mut links = lock(&self.links);
        let idle = link.is_idle();
        if idle {
            links.by_peer.retain(|_, other| other.id != link.id);
        }
        idle
    }

    /// Changes whenever [`Endpoint::links`] would answer something else.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        lock(&self.links).all.clone()
    }
}

/// The links of this process, by whom they lead to: one process that makes many must not keep the
/// others out.
static SHARES: LazyLock<Arc<Holders<Weak<Link>>>> = LazyLock::new(Arc::default);

/// All links of this process by their number, so that two ends that meet here wake each other
/// directly.
static LINKS: Mutex<Option<HashMap<u64, Weak<Link>>>> = Mutex::new(None);

/// The link of that number, if it is one of this process.
pub(crate) fn link_of_this_process(id: u64) -> Option<Weak<Link>> {
    lock(&LINKS).as_ref()?.get(&id).cloned()
}
