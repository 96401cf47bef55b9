//! One runtime of one process on a device: its links, its accepted streams and its entries in the directory.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Weak;
use std::time::Duration;

use crate::clc::{Eid, Gid, LocalDevice};
use crate::config::Config;
use crate::ism::device::{Device, EndpointEntry, EndpointId, PortEntry};
use crate::ism::sys;
use crate::link::accepted::{Accepted, FIRST_LOOK, Found, Key};
use crate::link::lack::{no_link, reason_of};
use crate::link::message::Subject;
use crate::link::proof;
use crate::link::reactor::{Reactor, Watched, cancellable, yield_now};
use crate::link::search::{self, Unsettled};
use crate::link::stream::{Death, LinkedStream};
use crate::link::timer::Timers;
use crate::link::{Hold, Link};
use crate::peer::{PeerPolicy, is_same_user};
use crate::shield::{Panicked, guarded, shielded};
use crate::sync::{Arc, AtomicBool, AtomicU8, AtomicU64, Mutex, Ordering, lock, rank};
use crate::transport::FallbackReason;

/// Links an endpoint keeps at most.
const MOST_LINKS: usize = 1024;

/// For how long a link may be of no use before it is closed.
pub(crate) const IDLE_LINK: Duration = Duration::from_secs(10);

/// For how long a grown ring has to be idle before its memory is given back.
const SHRINK_AFTER: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Links {
    by_peer: HashMap<[u8; 16], Arc<Link>>,
    all: Vec<Arc<Link>>,
}

pub(crate) struct Endpoint {
    device: Device,
    id: EndpointId,
    /// Gone once the runtime is.
    entry: Mutex<Option<EndpointEntry>>,
    clc: LocalDevice,
    eventfd: OwnedFd,
    accepted: Accepted,
    /// The peer policies of its listeners, and of the streams that have asked for an upgrade.
    let_in: Mutex<Vec<PeerPolicy>>,
    links: Mutex<Links, rank::EndpointLinks>,
    /// Counts changes of `links`, so that the poller keeps its own list.
    generation: AtomicU64,
    /// Streams whose sending ring has left its first segment.
    grown: Mutex<Vec<Weak<dyn LinkedStream>>>,
    /// Somebody comes to close idle links.
    looks_for_idle: AtomicBool,
    busy_poll: Duration,
    /// 0, or why it serves nobody any more: a `Death`.
    dead: AtomicU8,
    reactor: Arc<dyn Reactor>,
    timers: Arc<Timers>,
}

impl Endpoint {
    /// Enters the device directory of `config`.
    pub(crate) fn open(config: &Config, reactor: Arc<dyn Reactor>) -> io::Result<Endpoint> {
        let device = Device::open(config.directory())?;
        let entry = device.create_endpoint()?;
        let clc = LocalDevice { gid: Gid(device.gid()), eid: Eid::LOOPBACK, host: sys::hostname() };
        let busy_poll = if sys::usable_cpus() > 1 { config.busy_poll } else { Duration::ZERO };
        Ok(Endpoint {
            device,
            id: entry.id(),
            entry: Mutex::new(Some(entry)),
            clc,
            eventfd: sys::eventfd()?,
            accepted: Accepted::default(),
            let_in: Mutex::default(),
            links: Mutex::default(),
            generation: AtomicU64::new(1),
            grown: Mutex::default(),
            looks_for_idle: AtomicBool::new(false),
            busy_poll,
            dead: AtomicU8::new(0),
            reactor,
            timers: Arc::new(Timers::new()?),
        })
    }

    pub(crate) fn reactor(&self) -> &dyn Reactor {
        &*self.reactor
    }

    pub(crate) fn timers(&self) -> &Arc<Timers> {
        &self.timers
    }

    /// Lets the runtime do `task`.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.reactor.spawn(Box::pin(task));
    }

    /// Does something in the runtime, not in the caller.
    pub(crate) fn run(&self, work: impl FnOnce() + Send + 'static) {
        self.spawn(async move { work() });
    }

    /// Does something after a pause.
    pub(crate) fn run_after(&self, pause: Duration, work: impl FnOnce() + Send + 'static) {
        let timers = self.timers.clone();
        self.spawn(async move {
            timers.sleep(pause).await;
            // Else that was not its time: the timer's task has ended, and the endpoint ends with it.
            if !timers.have_ended() {
                work();
            }
        });
    }

    pub(crate) fn id(&self) -> EndpointId {
        self.id
    }

    pub(crate) fn gid(&self) -> Gid {
        self.clc.gid
    }

    pub(crate) fn clc_device(&self) -> &LocalDevice {
        &self.clc
    }

    /// The socket that peers connect to; it is given out once.
    pub(crate) fn take_listener(&self) -> io::Result<OwnedFd> {
        let mut entry = lock(&self.entry);
        let listener = entry.as_mut().and_then(EndpointEntry::take_listener);
        listener.ok_or_else(|| io::Error::other("this endpoint listens already"))
    }

    pub(crate) fn eventfd(&self) -> &OwnedFd {
        &self.eventfd
    }

    pub(crate) fn accepted(&self) -> &Accepted {
        &self.accepted
    }

    pub(crate) fn busy_poll(&self) -> Duration {
        self.busy_poll
    }

    /// Age in ns from which a poller's last look counts as stale.
    pub(crate) fn stale_after(&self) -> u64 {
        2 * u64::try_from(self.busy_poll.as_nanos()).unwrap_or(u64::MAX / 2).min(u64::MAX / 2)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire) != 0
    }

    /// Why its streams stay on TCP, when it is dead.
    fn check_life(&self) -> Result<(), FallbackReason> {
        Death::from_u8(self.dead.load(Ordering::Acquire)).map_or(Ok(()), |death| Err(death.reason()))
    }

    /// From now on processes that `policy` admits may link with us. Each stream asks its own policy besides.
    pub(crate) fn let_in(&self, policy: &PeerPolicy) {
        let mut let_in = lock(&self.let_in);
        if !let_in.contains(policy) {
            let_in.push(policy.clone());
        }
    }

    /// Refuses a connection of a process that no policy in use admits.
    pub(crate) fn check_user(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let peer = sys::peer_cred(socket)?;
        if lock(&self.let_in).iter().any(|policy| policy.admits(&peer)) {
            return Ok(());
        }
        if is_same_user(&peer) {
            // Silence would tell it nothing; what it tells others is in `silence_of`.
            let _ = sys::send(socket, &no_link(FallbackReason::PeerPolicy).encode(), &[]);
        }
        let words = format!("no peer policy in use admits user {}", peer.uid);
        Err(io::Error::new(io::ErrorKind::PermissionDenied, words))
    }

    /// Says in the device directory that we listen on `port`, for those whom `policy` admits, as long as the entry
    /// lives.
    pub(crate) fn publish(&self, port: u16, policy: &PeerPolicy) -> io::Result<Arc<PortEntry>> {
        self.let_in(policy);
        self.device.publish_port(port, self.id()).map(Arc::new)
    }

    /// C: looks for the other end of `stream` and offers the upgrade.
    pub(crate) fn offer(self: &Arc<Self>, stream: Arc<dyn LinkedStream>) {
        if let Err(reason) = self.try_offer(&stream) {
            stream.stay_on_tcp(reason);
        }
    }

    fn try_offer(self: &Arc<Self>, stream: &Arc<dyn LinkedStream>) -> Result<(), FallbackReason> {
        self.check_life()?;
        self.let_in(stream.peer_policy());
        let subject = stream.subject()?;
        proof::suitable(subject.tuple)?;
        let mut candidates = self.device.endpoints_on_port(subject.tuple.remote.port()).map_err(|error| {
            crate::trace::warning!("the device directory does not list a port: {error}");
            reason_of(&error, FallbackReason::NoDevice)
        })?;
        match (candidates.pop(), candidates.is_empty()) {
            (None, _) => Err(FallbackReason::NoSmcListener),
            (Some(only), true) => {
                self.link_to(only)?.offer(stream.clone());
                Ok(())
            }
            (Some(last), false) => {
                candidates.push(last);
                self.search(stream, subject, candidates);
                Ok(())
            }
        }
    }

    /// C: asks several endpoints which of them holds the other end, in the background.
    fn search(
        self: &Arc<Self>,
        stream: &Arc<dyn LinkedStream>,
        subject: Subject,
        candidates: Vec<EndpointId>,
    ) {
        let found = Arc::downgrade(stream);
        let search = search::run(self.clone(), found.clone(), subject, candidates);
        let (cancel, search) = cancellable(Unsettled::during(found, search));
        // Before it begins: it must not end in an offer before the stream knows of it.
        stream.offered(Box::new(cancel));
        self.reactor.spawn(search);
    }

    /// Opens a connection to another endpoint of the device.
    pub(crate) fn connect(&self, peer: EndpointId) -> Result<OwnedFd, FallbackReason> {
        self.device.connect(peer).map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => FallbackReason::NoSmcListener,
            // Too many wait there to be accepted.
            io::ErrorKind::WouldBlock => FallbackReason::Limit,
            _ => {
                crate::trace::debug!("no connection to an endpoint: {error}");
                reason_of(&error, FallbackReason::LinkDown)
            }
        })
    }

    /// The link to that endpoint, made when there is none.
    pub(crate) fn link_to(self: &Arc<Self>, peer: EndpointId) -> Result<Hold, FallbackReason> {
        let mut links = lock(&self.links);
        if let Some(link) = links.by_peer.get(&peer.0) {
            return Ok(link.hold());
        }
        let link = self.new_link(&mut links, self.watch(self.connect(peer)?)?)?;
        links.by_peer.insert(peer.0, link.clone());
        let link = link.hold();
        drop(links);
        link.serve();
        Ok(link)
    }

    fn watch(&self, socket: OwnedFd) -> Result<Arc<dyn Watched>, FallbackReason> {
        self.reactor.watch(socket).map_err(|error| {
            crate::trace::warning!("a link's socket can not be watched: {error}");
            reason_of(&error, FallbackReason::LinkDown)
        })
    }

    /// A peer's connection that begins with HELLO; to be served once that is delivered.
    pub(crate) fn accept_link(
        self: &Arc<Self>,
        socket: Arc<dyn Watched>,
    ) -> Result<Arc<Link>, FallbackReason> {
        let made = {
            let mut links = lock(&self.links);
            self.new_link(&mut links, socket.clone())
        };
        made.inspect_err(|reason| {
            if *reason != FallbackReason::PeerPolicy {
                let _ = sys::send(socket.as_fd(), &no_link(*reason).encode(), &[]);
            }
        })
    }

    fn new_link(
        self: &Arc<Self>,
        links: &mut Links,
        socket: Arc<dyn Watched>,
    ) -> Result<Arc<Link>, FallbackReason> {
        if links.all.len() >= MOST_LINKS {
            return Err(FallbackReason::Limit);
        }
        self.check_life()?;
        // Before HELLO: it carries descriptors.
        self.check_user(socket.as_fd()).map_err(|error| {
            crate::trace::warning!("no link: {error}");
            reason_of(&error, FallbackReason::PeerPolicy)
        })?;
        let link = Link::new(self, socket).map_err(|error| {
            crate::trace::warning!("no link: {error}");
            reason_of(&error, FallbackReason::Memory)
        })?;
        lock(&LINKS).get_or_insert_default().insert(link.id, Arc::downgrade(&link));
        links.all.push(link.clone());
        // Perhaps nobody ever uses it.
        self.close_idle_links_later();
        self.generation.fetch_add(1, Ordering::Release);
        Ok(link)
    }

    /// HELLO of `peer` came: from now on this link serves our own offers too.
    pub(crate) fn greeted(&self, link: &Arc<Link>, peer: [u8; 16]) {
        let mut links = lock(&self.links);
        // A link dies before it is taken out of here, under this lock.
        if peer != self.id().0 && link.death().is_none() {
            links.by_peer.entry(peer).or_insert_with(|| link.clone());
        }
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
        let _ = sys::ring(self.eventfd.as_fd());
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

    /// Enters an accepted stream; offers that waited for it go on in the background.
    pub(crate) fn accept(
        &self,
        port: u16,
        client: std::net::SocketAddr,
        stream: &Arc<dyn LinkedStream>,
    ) -> AcceptedEntry {
        let key = Key::accepted(port, client);
        let (number, waited) = self.accepted.insert(key, Arc::downgrade(stream));
        if !waited.is_empty() {
            let stream = stream.clone();
            self.run(move || {
                for waiting in waited {
                    let _ = shielded(|| waiting(Ok(stream.clone())));
                }
            });
        }
        AcceptedEntry { key, number }
    }

    pub(crate) fn forget_accepted(&self, entry: AcceptedEntry) {
        self.accepted.remove(entry.key, entry.number);
    }

    /// Something waits in the table of accepted streams, and no sweep comes soon.
    pub(crate) fn sweep_later(self: &Arc<Self>) {
        let (timers, this) = (self.timers.clone(), Arc::downgrade(self));
        let sweeping = this.clone();
        let sweeps = async move {
            timers.sleep(FIRST_LOOK).await;
            loop {
                let next = this.upgrade().and_then(|endpoint| endpoint.sweep(sys::monotonic()));
                let Some(next) = next else { return };
                match next.saturating_sub(sys::monotonic()) {
                    // More is due already: after the others had their turn.
                    Duration::ZERO => yield_now().await,
                    pause => timers.sleep(pause).await,
                }
            }
        };
        self.spawn(async move {
            if let (Err(Panicked), Some(endpoint)) = (guarded(sweeps).await, sweeping.upgrade()) {
                endpoint.accepted.sweep_failed();
            }
        });
    }

    /// Tells offers and queries that wait for a stream which will not come; see [`Accepted::sweep`].
    pub(crate) fn sweep(&self, now: Duration) -> Option<Duration> {
        self.accepted.sweep(now, proof::waits_for_accept)
    }

    /// S: calls `answer` once it is known whether the other end of the client's connection is here. Returns what to
    /// forget when nobody wants to know any more, or `None` when the answer was given.
    pub(crate) fn on_query(
        self: &Arc<Self>,
        theirs: Subject,
        answer: impl FnOnce(bool) + Send + 'static,
    ) -> Option<AcceptedEntry> {
        let answer = move |stream: Result<Arc<dyn LinkedStream>, FallbackReason>| {
            let ours = stream.and_then(|stream| stream.subject());
            answer(ours.is_ok_and(|ours| proof::same_place(&ours, &theirs).is_ok()));
        };
        let mut answer = Some(answer);
        let found = self.accepted.find_or_wait(&theirs, || {
            let answer = answer.take();
            Box::new(move |stream| {
                if let Some(answer) = answer {
                    answer(stream);
                }
            })
        });
        let stream = match found {
            Found::Waits { number, sweep } => {
                if sweep {
                    self.sweep_later();
                }
                return Some(AcceptedEntry { key: Key::of_client(theirs.tuple), number });
            }
            Found::Stream(stream) => Ok(stream),
            Found::Full => Err(FallbackReason::Limit),
        };
        if let Some(answer) = answer {
            answer(stream);
        }
        None
    }

    pub(crate) fn forget_query(&self, entry: AcceptedEntry) {
        self.accepted.forget(entry.key, entry.number);
    }

    /// A stream's sending ring has left its first segment: [`Endpoint::shrink`] comes once it was idle for a while.
    pub(crate) fn grown(self: &Arc<Self>, stream: Weak<dyn LinkedStream>) {
        let first = {
            let mut grown = lock(&self.grown);
            grown.push(stream);
            grown.len() == 1
        };
        if first {
            self.shrink_later();
        }
    }

    fn shrink_later(self: &Arc<Self>) {
        let (timers, this) = (self.timers.clone(), Arc::downgrade(self));
        let shrinking = this.clone();
        let shrinks = async move {
            loop {
                timers.sleep(SHRINK_AFTER).await;
                if !this.upgrade().is_some_and(|endpoint| endpoint.shrink()) {
                    return;
                }
            }
        };
        self.spawn(async move {
            if let (Err(Panicked), Some(endpoint)) = (guarded(shrinks).await, shrinking.upgrade()) {
                // The next ring that grows begins anew.
                let forgotten = std::mem::take(&mut *lock(&endpoint.grown));
                drop(forgotten);
            }
        });
    }

    /// Gives back the memory of rings that were idle since the last call; `true` while some are left.
    pub(crate) fn shrink(&self) -> bool {
        let (looked_at, streams) = {
            let grown = lock(&self.grown);
            (grown.len(), grown.iter().filter_map(Weak::upgrade).collect::<Vec<_>>())
        };
        let busy: Vec<_> = streams.iter().filter(|stream| !stream.shrink()).map(Arc::downgrade).collect();
        let mut grown = lock(&self.grown);
        // What came while we looked stays, behind those still in use.
        let fresh = grown.split_off(looked_at);
        *grown = busy;
        grown.extend(fresh);
        !grown.is_empty()
    }

    /// The runtime is gone, or a task has failed: every link dies, and nothing starts any more.
    pub(crate) fn shut_down(&self, death: Death) {
        if self.dead.compare_exchange(0, death as u8, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return;
        }
        let entry = lock(&self.entry).take();
        drop(entry);
        for link in self.links() {
            link.bury(death);
        }
        // Those of links are forgotten already: what is left are queries.
        self.accepted.give_up();
    }
}

/// An entry in the table of accepted streams.
#[derive(Clone, Copy)]
pub(crate) struct AcceptedEntry {
    key: Key,
    number: u64,
}

/// All links of this process by their number, so that two ends that meet here wake each other directly.
static LINKS: Mutex<Option<HashMap<u64, Weak<Link>>>> = Mutex::new(None);

/// The link of that number, if it is one of this process.
pub(crate) fn link_of_this_process(id: u64) -> Option<Weak<Link>> {
    lock(&LINKS).as_ref()?.get(&id).cloned()
}
