//! One runtime of one process on a device: its links, its accepted streams and its entries in the
//! directory.

mod elsewhere;
mod links;
mod upkeep;

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Weak;
use std::time::Duration;

use crate::clc::{Eid, Gid, LocalDevice};
use crate::config::{Config, Limits};
use crate::ism::budget;
use crate::ism::device::{Device, EndpointEntry, EndpointId, OnPort, PortEntry};
use crate::ism::interrupt::AS_GOOD_AS_NEW;
use crate::ism::sys::{self, PeerCred};
use crate::link::accepted::AcceptedStreams;
use crate::link::aside::ControlSocket;
use crate::link::lack::reason_of;
use crate::link::message::Destination;
#[cfg(feature = "blocking")]
use crate::link::message::Tuple;
use crate::link::pace::Pace;
use crate::link::proof::{self, Possession};
use crate::link::reactor::{Places, Reactor, cancellable};
use crate::link::search::{self, Search, Unsettled};
use crate::link::shares::Holders;
use crate::link::stream::{Death, Latest, LinkedStream};
use crate::link::timer::Timers;
use crate::link::turns::Turns;
use crate::peer::PeerPolicy;
use crate::sync::{Arc, AtomicBool, AtomicU8, AtomicU64, Mutex, Ordering, lock, rank};
use crate::transport::FallbackReason;

use elsewhere::Destinations;
#[cfg(test)]
pub(crate) use links::IDLE_LINK;
use links::Links;
pub(crate) use links::link_of_this_process;
#[cfg(any(test, fuzzing))]
pub(crate) use upkeep::AcceptedEntry;
pub(crate) use upkeep::ListedAsAccepted;

/// Closed streams that wait for their peer's last bytes.
const MOST_LEAVING: usize = 1024;
/// A poller that looks does so at least so often.
const OFTEN: Duration = Duration::from_micros(50);

/// One runtime of one process on a device.
///
/// A runtime opens it for the first listener that publishes a port, or the first stream that begins
/// an upgrade, and keeps it in its table; it holds the runtime only as a [`Reactor`]. Its tasks
/// ([`drive`](super::drive)) accept what connects to its control socket, look for interrupts and
/// serve its timer; each of its links has one more. When one of them ends, so does the endpoint
/// ([`Endpoint::shut_down`]): every link dies, and nothing starts any more.
///
/// - Clients call [`Endpoint::offer`], which looks in the device directory for who listens on the
///   peer's port, asks ([`search`]) where several do, and offers over the link to that endpoint.
/// - Servers call [`Endpoint::publish`] and [`Endpoint::accept`]; offers and queries for a stream
///   that is not accepted yet wait in [`AcceptedStreams`].
/// - Everything may be called from any thread, with no lock held, and by whoever is not a stream
///   inside a step of its own: an offer may end in a call of a stream.
pub(crate) struct Endpoint {
    device: Device,
    id: EndpointId,
    /// Gone once the runtime is.
    entry: Mutex<Option<EndpointEntry>>,
    clc: LocalDevice,
    eventfd: OwnedFd,
    accepted: AcceptedStreams,
    /// The peer policies of its listeners, and of the streams that have asked for an upgrade.
    let_in: Mutex<Vec<PeerPolicy>>,
    links: Mutex<Links, rank::EndpointLinks>,
    /// `SO_NETNS_COOKIE` of this process's network namespace.
    network: u64,
    destinations: Destinations,
    /// Counts changes of `links`, so that the poller keeps its own list.
    generation: AtomicU64,
    /// Streams whose sending ring has left its first segment.
    grown: Mutex<Vec<Weak<dyn LinkedStream>>>,
    /// Somebody comes to close idle links.
    looks_for_idle: AtomicBool,
    busy_poll: Duration,
    /// Peers rung awake so far, for streams.
    rings: AtomicU64,
    limits: Limits,
    /// For how long a peer may keep something of ours and say nothing.
    patience: Duration,
    /// How fast peers connect to its socket.
    pace: Pace,
    /// What work for them takes of the runtime's time.
    turns: Turns,
    /// Connections that have not said yet what they want.
    greetings: Arc<Holders<Weak<ControlSocket>>>,
    /// Queries that wait for their stream.
    queries: Arc<Holders<Weak<ControlSocket>>>,
    /// Queries of our own.
    asking: Arc<Places>,
    /// Sockets of closed streams that wait for their peer's last bytes.
    leaving: Arc<Places>,
    /// 0, or why it serves nobody any more: a `Death`.
    dead: AtomicU8,
    reactor: Arc<dyn Reactor>,
    timers: Arc<Timers>,
}

/// Why a stream stays on TCP when nobody that might be admitted listens on its peer's port.
fn nobody_on_port(found: &OnPort) -> FallbackReason {
    if found.others { FallbackReason::PeerPolicy } else { FallbackReason::NoSmcListener }
}

impl Endpoint {
    /// Enters the device directory of `config`.
    pub(crate) fn open(config: &Config, reactor: Arc<dyn Reactor>) -> io::Result<Endpoint> {
        let limits = config.limits();
        budget::limit_memory(limits.memory, limits.memory_per_peer);
        let device = Device::open(config.directory())?;
        let entry = device.create_endpoint()?;
        device.tidy_later(entry.id());
        let clc = LocalDevice { gid: Gid(device.gid()), eid: Eid::LOOPBACK, host: sys::hostname() };
        // (A kernel that does not say it finds nobody elsewhere either.)
        let network = entry.network().unwrap_or_default();
        let busy_poll = if sys::usable_cpus() > 1 { config.busy_poll } else { Duration::ZERO };
        Ok(Endpoint {
            device,
            id: entry.id(),
            entry: Mutex::new(Some(entry)),
            clc,
            eventfd: sys::eventfd()?,
            accepted: AcceptedStreams::new(limits.waiting_offers),
            let_in: Mutex::default(),
            links: Mutex::default(),
            network,
            destinations: Destinations::default(),
            generation: AtomicU64::new(1),
            grown: Mutex::default(),
            looks_for_idle: AtomicBool::new(false),
            busy_poll,
            rings: AtomicU64::new(0),
            limits,
            patience: config.peer_timeout,
            pace: Pace::new(limits.queries_per_second),
            turns: Turns::default(),
            greetings: Arc::default(),
            queries: Arc::default(),
            asking: Places::new(search::most_asked()),
            leaving: Places::new(budget::most_for_peers(MOST_LEAVING)),
            dead: AtomicU8::new(0),
            reactor,
            timers: Arc::new(Timers::new()?),
        })
    }

    pub(crate) fn reactor(&self) -> &dyn Reactor {
        &*self.reactor
    }

    /// For a task that does not keep the endpoint.
    pub(crate) fn share_reactor(&self) -> Arc<dyn Reactor> {
        self.reactor.clone()
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
            // Else that was not its time: the timer's task has ended, and the endpoint ends with
            // it.
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

    /// Wakes its poller; nobody else has this eventfd.
    pub(crate) fn eventfd(&self) -> &OwnedFd {
        &self.eventfd
    }

    /// Lets its poller look.
    pub(crate) fn ring(&self) {
        let _ = sys::ring(self.eventfd.as_fd());
    }

    pub(crate) fn accepted(&self) -> &AcceptedStreams {
        &self.accepted
    }

    pub(crate) fn busy_poll(&self) -> Duration {
        self.busy_poll
    }

    /// A peer was rung awake, for a stream.
    pub(crate) fn count_ring(&self) {
        self.rings.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that was.
    pub(crate) fn rings(&self) -> u64 {
        self.rings.load(Ordering::Relaxed)
    }

    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn pace(&self) -> &Pace {
        &self.pace
    }

    pub(crate) fn turns(&self) -> &Turns {
        &self.turns
    }

    pub(crate) fn greetings(&self) -> &Arc<Holders<Weak<ControlSocket>>> {
        &self.greetings
    }

    pub(crate) fn queries(&self) -> &Arc<Holders<Weak<ControlSocket>>> {
        &self.queries
    }

    pub(crate) fn leaving(&self) -> &Arc<Places> {
        &self.leaving
    }

    pub(crate) fn asking(&self) -> &Arc<Places> {
        &self.asking
    }

    /// Age in ns from which a poller's last look counts as stale: one that looks does so much more
    /// often, unless its task is stuck. It says so less often, though.
    pub(crate) fn stale_after(&self) -> u64 {
        let often = (2 * self.busy_poll.min(OFTEN)).as_nanos() as u64;
        often.max(4 * AS_GOOD_AS_NEW)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire) != 0
    }

    /// Why its streams stay on TCP, when it is dead.
    fn check_life(&self) -> Result<(), FallbackReason> {
        Death::from_u8(self.dead.load(Ordering::Acquire)).map_or(Ok(()), |death| Err(death.reason()))
    }

    /// From now on processes that `policy` has to do with may link with us. Each stream asks its
    /// own policy besides.
    pub(crate) fn let_in(&self, policy: &PeerPolicy) {
        let known = lock(&self.let_in).contains(policy);
        if known {
            return;
        }
        self.device.visit(policy.visits());
        let mut let_in = lock(&self.let_in);
        if !let_in.contains(policy) {
            let_in.push(policy.clone());
        }
    }

    /// Refuses a connection of a process that no policy in use has to do with.
    pub(crate) fn check_user(&self, socket: BorrowedFd<'_>) -> io::Result<PeerCred> {
        let peer = sys::peer_cred(socket)?;
        if lock(&self.let_in).iter().any(|policy| policy.hears(&peer, socket)) {
            return Ok(peer);
        }
        let words = format!("no peer policy in use admits user {}", peer.uid);
        Err(io::Error::new(io::ErrorKind::PermissionDenied, words))
    }

    /// Says in the device directory that we listen on `port`, for those whom `policy` admits, as
    /// long as the entry lives.
    pub(crate) fn publish(&self, port: u16, policy: &PeerPolicy) -> io::Result<PortEntry> {
        self.let_in(policy);
        self.device.publish_port(port, self.id())
    }

    /// The same for a listener. Where the kernel does not say which network namespace it is in, no
    /// client whose destination is translated finds it.
    pub(crate) fn publish_listener(
        &self,
        listener: BorrowedFd<'_>,
        policy: &PeerPolicy,
    ) -> io::Result<PortEntry> {
        let mut entry = self.publish(sys::local_addr(listener)?.port(), policy)?;
        if let Err(error) = sys::netns_cookie(listener).and_then(|cookie| entry.list_network(cookie)) {
            crate::trace::debug!("a listener is not found through translated addresses: {error}");
        }
        Ok(entry)
    }

    /// C: looks for the other end of `stream` and offers the upgrade.
    pub(crate) fn offer(self: &Arc<Self>, stream: Arc<dyn LinkedStream>) {
        if let Err(reason) = self.try_offer(&stream) {
            self.not_found(&stream, Destination::Own, reason);
        }
    }

    fn try_offer(self: &Arc<Self>, stream: &Arc<dyn LinkedStream>) -> Result<(), FallbackReason> {
        self.check_life()?;
        self.let_in(stream.peer_policy());
        let subject = stream.subject()?;
        proof::suitable(subject.tuple)?;
        let found = self.device.endpoints_on_port(subject.tuple.remote.port()).map_err(|error| {
            crate::trace::warning!("the device directory does not list a port: {error}");
            reason_of(&error, FallbackReason::NoDevice)
        })?;
        let nobody = nobody_on_port(&found);
        let mut candidates = found.endpoints;
        if candidates.is_empty() {
            return Err(nobody);
        }
        if stream.possession()? == Possession::WithNextWrite {
            stream.offer_with_next_write(Arc::downgrade(self));
            return Ok(());
        }
        match (candidates.pop(), candidates.is_empty()) {
            (None, _) => Err(nobody),
            (Some(only), true) => {
                self.link_to(only)?.offer(stream.clone(), Destination::Own, None);
                Ok(())
            }
            (Some(last), false) => {
                candidates.push(last);
                let policy = stream.peer_policy().clone();
                self.search(stream, Search::new(self, policy, subject, candidates));
                Ok(())
            }
        }
    }

    /// C: looks for the other end among several endpoints, in the background.
    pub(crate) fn search(self: &Arc<Self>, stream: &Arc<dyn LinkedStream>, search: Search) {
        let found = Arc::downgrade(stream);
        let search = search::run(self.clone(), found.clone(), search);
        let (cancel, search) = cancellable(Unsettled::during(found, search));
        // Before it begins: it must not end in an offer before the stream knows of it.
        stream.offered(Latest::new(Box::new(cancel)));
        self.reactor.spawn(search);
    }

    /// Does anybody on the device of `config` listen where the connection goes to? Asked without an
    /// endpoint of our own.
    #[cfg(feature = "blocking")]
    pub(crate) fn check_for_listeners(config: &Config, tuple: Tuple) -> Result<(), FallbackReason> {
        proof::suitable(tuple)?;
        let found = Device::open(config.directory())
            .and_then(|device| {
                device.visit(config.peer_policy.visits());
                device.endpoints_on_port(tuple.remote.port())
            })
            .map_err(|error| {
                crate::trace::warning!("no loopback-ism device: {error}");
                reason_of(&error, FallbackReason::NoDevice)
            })?;
        if found.endpoints.is_empty() { Err(nobody_on_port(&found)) } else { Ok(()) }
    }

    /// Opens a connection to another endpoint of the device.
    pub(crate) fn connect(&self, peer: EndpointId) -> Result<OwnedFd, FallbackReason> {
        self.device.connect(peer).map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
                self.device.bury_later();
                FallbackReason::NoSmcListener
            }
            // Too many wait there to be accepted.
            io::ErrorKind::WouldBlock => FallbackReason::Limit,
            _ => {
                crate::trace::debug!("no connection to an endpoint: {error}");
                reason_of(&error, FallbackReason::LinkDown)
            }
        })
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
