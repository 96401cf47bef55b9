//! Links (link groups): control messages, offers, proof, tokens, life and death of a peer.
//!
//! A [`Link`] joins two [`Endpoint`]s. It knows streams only as
//! [`LinkedStream`]s and does its I/O through non-blocking calls on its own
//! descriptors, so any reactor can drive it.
//!
//! Locks: neither `state` nor that of `streams` is held while a stream or a waker is called.

pub(crate) mod accepted;
pub(crate) mod adopted;
pub(crate) mod aside;
mod bell;
mod client;
pub(crate) mod drive;
pub(crate) mod endpoint;
mod given;
pub(crate) mod greeting;
mod growth;
#[cfg(any(feature = "tokio", feature = "blocking"))]
pub(crate) mod home;
mod idle;
mod interrupts;
pub(crate) mod lack;
mod life;
pub(crate) mod look;
pub(crate) mod message;
mod numbers;
mod offers;
pub(crate) mod outbox;
mod pace;
pub(crate) mod proof;
pub(crate) mod reactor;
pub(crate) mod roster;
pub(crate) mod search;
mod serve;
mod server;
pub(crate) mod shares;
pub(crate) mod slots;
pub(crate) mod stream;
pub(crate) mod tally;
pub(crate) mod timer;
pub(crate) mod turns;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{OnceLock, Weak};
use std::task::Waker;

use crate::clc::{ClientHandshake, Gid};
use crate::error::SmcError;
use crate::ism::arena::{ArenaMap, DmbMemory};
use crate::ism::aside::Lane;
use crate::ism::budget::{self, Account, LinkPlace, Need};
use crate::ism::device::EndpointId;
use crate::ism::dmb::{LARGEST_SEGMENT, SMALLEST_SEGMENT};
use crate::ism::sys;
use crate::link::aside::ControlSocket;
use crate::link::endpoint::Endpoint;
use crate::link::lack::reason_of;
use crate::link::message::{Destination, DmbPlace, Message, Subject};
use crate::link::outbox::{Flushed, Flusher, Outbox};
use crate::link::proof::Secret;
use crate::link::reactor::Watched;
use crate::link::search::Search;
use crate::link::shares::Holder;
use crate::link::slots::{Allocated, OwnArenas, PeerArenas};
use crate::link::stream::{Death, LinkedStream};
use crate::link::turns::Taken;
use crate::sync::{Arc, AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Mutex, Ordering, fence, lock, rank};
use crate::transport::FallbackReason;

use bell::{OwnBell, PeerBell};
use client::Revealed;
pub(crate) use idle::Hold;
use interrupts::Registered;
pub(crate) use interrupts::SignalEntry;
use numbers::Numbers;
use offers::{TheirOffer, TheirOffers};

/// What became known with the peer's HELLO.
struct Peer {
    /// The peer's number for this link.
    link_id: u64,
    /// Its endpoint's name.
    endpoint: [u8; 16],
    /// The control page of this arena takes our interrupts.
    first_arena: Arc<ArenaMap>,
    bell: PeerBell,
    /// The other side of the link, when it lives in this process.
    here: Option<Weak<Link>>,
}

/// A stream that wants to offer, and whom it would ask next.
struct Wanting {
    stream: Weak<dyn LinkedStream>,
    destination: Destination,
    rest: Option<Search>,
}

/// C: an offer from OFFER to READY, or to PROVED, or to its end.
struct OurOffer {
    stream: Weak<dyn LinkedStream>,
    /// Whom to ask when it comes to nothing.
    rest: Option<Search>,
    subject: Subject,
    destination: Destination,
    clc: ClientHandshake,
    proposal: Vec<u8>,
    signal: u32,
    handshake: bool,
    /// What we have committed ourselves with. Without it the offer counts on cookies.
    secret: Option<Secret>,
    /// READY has gone.
    revealed: Option<Box<Revealed>>,
    /// The stream went on without waiting for PROVED, which is answered all the same.
    given_up: bool,
}

impl OurOffer {
    /// Who waits for what comes of it.
    fn waiting(&self) -> Option<Arc<dyn LinkedStream>> {
        if self.given_up { None } else { self.stream.upgrade() }
    }
}

struct State {
    own: OwnArenas,
    theirs: PeerArenas,
    next_offer: u64,
    /// C: addresses for which the peer has proved itself: connections to them it does accept, and
    /// may learn their numbers.
    accepts_at: BTreeSet<SocketAddr>,
    /// The CLC name of this link, once a connection of it was confirmed; the first one is its first
    /// contact.
    met: bool,
    our_offers: HashMap<u64, OurOffer>,
    their_offers: TheirOffers,
    /// Tokens of the peer that we owe a DETACH, with the stream that writes there.
    received: HashMap<u64, Weak<dyn LinkedStream>>,
    /// Streams that want to offer, until the peer's HELLO, or until it has read some of what is
    /// queued for it.
    wanting: VecDeque<Wanting>,
}

/// One link (SMC's link group): a control socket to another endpoint, arenas in both directions,
/// and a signal page on each side, for all connections between the two.
///
/// The endpoint makes it ([`Endpoint::link_to`]) or accepts it, and keeps it until it dies; streams
/// keep it in memory through their DMBs and interrupts, also when it is dead. What drives it:
///
/// - Its task (`serve`), which takes the peer's messages one by one and obeys each at once
///   ([`Link::deliver`]), and sends what the socket did not take.
/// - Streams: [`Link::offer`] begins an upgrade; the drop of a DMB, of an offer or of a signal's
///   number says what the peer has to be told; [`Link::raise`] interrupts the peer.
/// - The endpoint's poller, which calls [`Link::drain_interrupts`].
/// - Whoever finds that it can not go on: [`Link::bury`], once, tells every stream and ends the
///   task.
///
/// Any thread may call it at any time, with no lock held; only [`Link::raise`] is for who holds the
/// lock of a direction. What happens after its death is nothing: messages are not sent, offers are
/// declined.
pub(crate) struct Link {
    pub(crate) id: u64,
    /// The device that both endpoints are on.
    pub(crate) device: Gid,
    endpoint: Weak<Endpoint>,
    /// The name under which this end has reached the other one. The end that was reached knows the
    /// other one's name by hearsay only: it never offers here.
    reached: Option<EndpointId>,
    this: Weak<Link>,
    bell: OwnBell,
    socket: Arc<ControlSocket>,
    /// The file of our first arena, until HELLO has taken it to the peer.
    first_file: Mutex<Option<OwnedFd>>,
    /// The task waits until a message of the peer was taken out of the queue elsewhere.
    takes_aside: AtomicBool,
    /// Its task has begun.
    served: AtomicBool,
    pub(crate) credentials: sys::PeerCred,
    /// What the peer takes of this process.
    account: Arc<Account>,
    /// What it has taken of the runtime's time.
    taken: Arc<Taken>,
    /// Messages that have brought an upgrade forward, and do not count for that.
    useful: AtomicU32,
    outbox: Outbox,
    own_signals: Arc<ArenaMap>,
    peer: OnceLock<Peer>,
    /// Its streams by the numbers of their signals, and the `Death` they are told of.
    streams: Numbers<Registered>,
    state: Mutex<State, rank::LinkState>,
    /// Of the descriptors that links may have.
    _place: LinkPlace,
    /// Of the links that its peer may have.
    share: Holder<Weak<Link>>,
    /// A fault or limit of this end made it hang up.
    faulty: AtomicBool,
    /// Whose fault it was that the link ended, if it was one.
    fault: OnceLock<SmcError>,
    /// This process may not send or receive messages any more: no offers.
    restricted: AtomicBool,
    /// Those who have got the link and are about to use it.
    users: AtomicUsize,
    /// Counts the connections it was used for, and what that was at the latest look for idle links.
    uses: AtomicU64,
    uses_seen: AtomicU64,
    /// What one of the two ends lacks for this link, by its own word.
    lack: OnceLock<FallbackReason>,
    /// Bytes of the segments that its connections had a use for lately.
    needed: AtomicU64,
    last_rung: AtomicU64,
    /// When the peer was told of our poller's CPU.
    cpu_told: AtomicU64,
    /// For offers whose match takes time: apart from memory, whose locks a peer may hold.
    matching: Lane,
    stale_after: u64,
    /// Wakes the task of this link when it has died.
    task: Mutex<Option<Waker>>,
}

/// Which end has opened a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// This one, which has reached the peer by that name: it says LINK, and HELLO after the peer's.
    Here(EndpointId),
    /// The peer: HELLO is the answer to its LINK.
    ByPeer,
}

impl Opened {
    fn reached(self) -> Option<EndpointId> {
        match self {
            Opened::Here(peer) => Some(peer),
            Opened::ByPeer => None,
        }
    }
}

impl Link {
    /// Starts a link on a connected socket, whose peer may send descriptors from now on.
    pub(crate) fn new(
        endpoint: &Arc<Endpoint>,
        socket: Arc<ControlSocket>,
        opened: Opened,
        share: Holder<Weak<Link>>,
    ) -> io::Result<Arc<Link>> {
        budget::spare_the_last(socket.as_fd().as_raw_fd(), Need::Lasting)?;
        let place = budget::place_for_link()?;
        let credentials = sys::peer_cred(socket.as_fd())?;
        let bell = OwnBell::new(endpoint.reactor(), socket.as_fd(), &credentials)?;
        let account = Account::of(&credentials);
        let most_streams = endpoint.limits().streams_per_link;
        let (own, first, file) = OwnArenas::new(account.clone(), most_streams)?;
        let id = sys::random_u64()?;
        sys::allow_rights(socket.as_fd());
        let link = Arc::new_cyclic(|this| Link {
            id,
            device: endpoint.gid(),
            endpoint: Arc::downgrade(endpoint),
            reached: opened.reached(),
            this: this.clone(),
            bell,
            socket,
            first_file: Mutex::new(Some(file)),
            takes_aside: AtomicBool::new(false),
            served: AtomicBool::new(false),
            credentials,
            taken: endpoint.turns().of(&credentials, endpoint.reactor().clock()),
            useful: AtomicU32::new(0),
            outbox: Outbox::default(),
            own_signals: first,
            _place: place,
            share,
            peer: OnceLock::new(),
            streams: Numbers::new(most_streams),
            state: Mutex::new(State {
                own,
                theirs: PeerArenas::new(account.clone()),
                next_offer: 1,
                accepts_at: BTreeSet::new(),
                met: false,
                our_offers: HashMap::new(),
                their_offers: TheirOffers::default(),
                received: HashMap::new(),
                wanting: VecDeque::new(),
            }),
            account,
            faulty: AtomicBool::new(false),
            fault: OnceLock::new(),
            restricted: AtomicBool::new(false),
            users: AtomicUsize::new(0),
            uses: AtomicU64::new(0),
            // The first look always finds it used.
            uses_seen: AtomicU64::new(u64::MAX),
            lack: OnceLock::new(),
            needed: AtomicU64::new(0),
            last_rung: AtomicU64::new(0),
            cpu_told: AtomicU64::new(0),
            matching: Lane::new(),
            stale_after: endpoint.stale_after(),
            task: Mutex::default(),
        });
        if !link.share.is(Arc::downgrade(&link)) {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "others had to have its place"));
        }
        let begun = match opened {
            Opened::Here(_) => sys::send(link.socket(), &Message::Link.encode(), &[]),
            Opened::ByPeer => link.send_hello(endpoint),
        };
        match begun {
            // A peer that hung up already is noticed where all others are: by the task of this
            // link.
            Err(error) if !has_hung_up(&error) => Err(error),
            _ => Ok(link),
        }
    }

    /// HELLO, once: to a peer that takes descriptors.
    fn send_hello(&self, endpoint: &Endpoint) -> io::Result<()> {
        let Some(file) = lock(&self.first_file).take() else { return Ok(()) };
        let hello = Message::Hello {
            link_id: self.id,
            endpoint: endpoint.id().0,
            gid: endpoint.gid().0,
            slots: self.own_signals.slots(),
            bell: self.bell.kind(),
        };
        let fds = Vec::from_iter(std::iter::once(file.as_fd()).chain(self.bell.eventfd()));
        sys::send(self.socket(), &hello.encode(), &fds)
    }

    /// The end of this link that is ours.
    pub(crate) fn endpoint(&self) -> &Weak<Endpoint> {
        &self.endpoint
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn watched(&self) -> &dyn Watched {
        &*self.socket
    }

    /// Begins the task of this link, once.
    pub(crate) fn serve(self: &Arc<Self>) {
        if let (false, Some(endpoint)) = (self.served.swap(true, Ordering::Relaxed), self.endpoint.upgrade())
        {
            endpoint.spawn(serve::run(self.clone(), endpoint.share_reactor()));
        }
    }

    /// The number that both ends know this link by, once the peer has said its own.
    pub(crate) fn shared_id(&self) -> u64 {
        self.id ^ self.peer.get().map_or(0, |peer| peer.link_id)
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn matching(&self) -> &Lane {
        &self.matching
    }

    pub(crate) fn death(&self) -> Option<Death> {
        Death::from_u8(self.streams.death())
    }

    /// The sending ring of `stream` grew: it is given back once it has been idle.
    pub(crate) fn grown(&self, stream: Arc<dyn LinkedStream>) {
        if let Some(endpoint) = self.endpoint.upgrade() {
            endpoint.grown(Arc::downgrade(&stream));
        }
    }

    // ---- sending ----

    fn send(&self, message: &Message) {
        if self.death().is_some() {
            return;
        }
        // The task of this link sees the same error or the end of the socket and buries the link.
        let error = match self.outbox.send(self.socket(), message.encode()) {
            Ok(flusher) => return flusher.wake(),
            Err(error) => error,
        };
        crate::trace::debug!("a link's socket does not take messages: {error}");
        if reason_of(&error, FallbackReason::LinkDown) == FallbackReason::Denied {
            // What is not said costs slots and growth, no connection.
            self.restrict();
            return;
        }
        if !has_hung_up(&error) {
            self.blame(match error.raw_os_error() {
                None => SmcError::Limit(error.to_string().into()),
                Some(_) => SmcError::OwnFailure(format!("its control socket: {error}").into()),
            });
            self.faulty.store(true, Ordering::Release);
        }
        let _ = sys::shutdown_socket(self.socket());
    }

    /// Sends a message with a descriptor; an error says that it could not be, and that nothing has
    /// happened. Whom to wake then comes back, since a lock may be held.
    fn send_fd(&self, message: &Message, fd: OwnedFd) -> io::Result<Flusher> {
        self.outbox.send_fd(self.socket(), message.encode(), fd)
    }

    /// Sends what is queued, as far as that goes.
    ///
    /// # Errors
    ///
    /// What the link dies of.
    pub(crate) fn flush(&self, flusher: &Waker) -> Result<Flushed, Death> {
        self.outbox.flush(self.socket(), flusher).or_else(|error| {
            crate::trace::debug!("a link's socket does not take what was queued: {error}");
            if reason_of(&error, FallbackReason::LinkDown) == FallbackReason::Denied {
                self.outbox.clear();
                self.restrict();
                return Ok(Flushed::All);
            }
            Err(if self.faulty.load(Ordering::Acquire) { Death::Fault } else { Death::Peer })
        })
    }

    pub(crate) fn send_pinned(&self, token: u64) {
        self.send(&Message::Pinned { token });
    }

    /// The stream is done with our DMB of that token.
    pub(crate) fn stream_done(&self, token: u64) {
        lock(&self.state).own.stream_done(token);
        self.close_if_idle();
    }

    /// The producer will not touch the peer's DMB any more.
    pub(crate) fn detach(&self, token: u64) {
        // Whatever the producer stored comes before the peer's reuse of the memory, which the
        // message allows.
        fence(Ordering::SeqCst);
        let owed = {
            let mut state = lock(&self.state);
            state.theirs.release(token);
            state.received.remove(&token).is_some()
        };
        if owed {
            self.send(&Message::Detach { token });
            self.close_if_idle();
        }
    }

    fn allocate(&self, stream: &Arc<dyn LinkedStream>) -> Result<NewDmb, FallbackReason> {
        let window = stream.dmb_size();
        // ARENA is sent under the lock, so that no other thread can name the arena first.
        let mut flusher = Flusher::default();
        let announce = |slots: u32, fd: OwnedFd| {
            flusher = self.send_fd(&Message::Arena { slots }, fd)?;
            Ok(())
        };
        let allocated = lock(&self.state).own.allocate(Arc::downgrade(stream), announce);
        flusher.wake();
        let Allocated { arena, slot, token, memory } = allocated.map_err(|error| {
            crate::trace::debug!("no DMB: {error}");
            match error.kind() {
                // The peer is slow to read, or many descriptors are on their way to others.
                io::ErrorKind::WouldBlock => FallbackReason::Limit,
                _ => reason_of(&error, FallbackReason::Memory),
            }
        })?;
        let place = DmbPlace { arena, slot, window: window as u64 };
        Ok(NewDmb { place, token, memory, window })
    }

    /// Its first arena.
    #[cfg(test)]
    pub(crate) fn own_signals(&self) -> &ArenaMap {
        &self.own_signals
    }

    /// What the peer takes of this process.
    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Takes back a DMB whose token never left this process.
    fn take_back(&self, token: u64) {
        lock(&self.state).own.detached(token);
    }

    /// The CLC name of this link: any number serves, the peer only compares it.
    fn linkid(&self) -> u32 {
        self.id as u32
    }

    /// Shows every DMB of ours whose token is out.
    #[cfg(test)]
    pub(crate) fn every_own_dmb(&self, show: &mut dyn FnMut(&DmbMemory)) {
        lock(&self.state).own.every_dmb(show);
    }

    /// Slots of ours that are not free, in all arenas of this link.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn slots_in_use(&self) -> u32 {
        lock(&self.state).own.in_use()
    }
}

/// A DMB of ours that a stream is about to get.
struct NewDmb {
    place: DmbPlace,
    token: u64,
    memory: DmbMemory,
    window: usize,
}

/// Whether an error of sending only says that the peer has gone.
fn has_hung_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Bytes of the largest segment that a peer lends, if there can be such a segment.
fn usable_window(window: u64) -> Option<usize> {
    let usable = usize::try_from(window).ok().filter(|bytes| bytes.is_power_of_two());
    usable.filter(|bytes| (SMALLEST_SEGMENT..=LARGEST_SEGMENT).contains(bytes))
}

/// A rule that the peer broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault(pub(crate) &'static str);
