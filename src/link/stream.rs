//! What a link and a stream know of each other.

use std::os::fd::OwnedFd;
use std::sync::Weak;
use std::time::Duration;

use crate::ism::arena::{DmbMemory, DmbSegment};
use crate::ism::budget::Account;
use crate::ism::interrupt::Signal;
use crate::ism::ring::{Consumer, Producer, Refusal};
use crate::link::endpoint::Endpoint;
use crate::link::message::Subject;
use crate::link::proof::Possession;
use crate::link::{Link, SignalEntry};
use crate::peer::PeerPolicy;
use crate::sync::{Arc, AtomicU64, Ordering};
use crate::transport::FallbackReason;

/// Why a link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Death {
    /// The peer's process or runtime went away.
    Peer = 1,
    /// One of the two ends broke a rule, or a limit was hit.
    Fault = 2,
    /// Our own runtime is shut down.
    Runtime = 3,
    /// A task of ours has panicked or ended before its time.
    Failed = 4,
}

impl Death {
    pub(crate) fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Death::Peer),
            2 => Some(Death::Fault),
            3 => Some(Death::Runtime),
            4 => Some(Death::Failed),
            _ => None,
        }
    }
}

impl Death {
    /// Why a stream stays on TCP that was to be served.
    pub(crate) fn reason(self) -> FallbackReason {
        match self {
            Death::Peer | Death::Fault => FallbackReason::LinkDown,
            Death::Runtime => FallbackReason::NoRuntime,
            Death::Failed => FallbackReason::Failed,
        }
    }
}

/// Whom the peer's interrupts for a stream reach.
pub(crate) trait InterruptHandler: Send + Sync {
    fn on_interrupt(&self, signal: Signal);
}

/// What stands for a stream of this process now, an offer or the search for whom to offer to, until
/// it is dropped: of two the one that was made later counts, in whatever order the stream hears of
/// them.
pub(crate) struct Latest {
    number: u64,
    _standing: Box<dyn Send + Sync>,
}

impl Latest {
    /// To be made before anything can follow from it.
    pub(crate) fn new(standing: Box<dyn Send + Sync>) -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        Latest { number: MADE.fetch_add(1, Ordering::Relaxed), _standing: standing }
    }

    /// Keeps the later one in `place`; returns the other.
    pub(crate) fn keep(self, place: &mut Option<Latest>) -> Option<Latest> {
        if place.as_ref().is_some_and(|other| other.number > self.number) {
            Some(self)
        } else {
            place.replace(self)
        }
    }
}

/// The CLC messages of a connection that go over TCP before its first byte (docs/protocol.md,
/// "Policy Handshake").
#[derive(Clone, Debug)]
pub(crate) struct Prelude {
    pub(crate) proposal: Vec<u8>,
    pub(crate) accept: Vec<u8>,
    pub(crate) confirm: Vec<u8>,
}

/// What a writer asks of its reader's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    /// A segment of so many bytes.
    pub(crate) bytes: u64,
    /// So many bytes the writer's end would hold itself, if it were TCP.
    pub(crate) held: u64,
}

/// What a reader's end answers.
#[derive(Debug)]
pub(crate) enum Answer {
    Grant {
        segment: u64,
        bytes: u64,
        fd: OwnedFd,
    },
    Deny(Refusal),
    /// A segment is to be made, not here: [`GrowingStream::lend`] has the answer.
    Aside(Lend),
    /// That depends on what the reader does, or on what will be had then: it is to be asked again
    /// after that time.
    Later(Duration),
    /// The peer has broken a rule.
    Fault(&'static str),
}

/// A segment that is to be made and lent.
#[derive(Clone, Debug)]
pub(crate) struct Lend {
    pub(crate) ask: Ask,
    /// So many bytes, or less.
    pub(crate) wanted: u64,
    /// Less than this is no help.
    pub(crate) least: u64,
    /// How often something was lacking.
    pub(crate) tries: u32,
    pub(crate) account: Arc<Account>,
}

/// What became of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Granted {
    Taken,
    /// This end can not use it: the peer may have it back.
    Declined,
    /// The writer is gone; its DETACH is on the way.
    Gone,
    NotAsked,
}

/// The rings of a connection as they grow, as its link sees them: its own DMB, which its reader's
/// end lends more memory, and the peer's, which its writer asks more for.
pub(crate) trait GrowingStream {
    /// Lets the sending ring go back to its first segment if it was idle since the last call.
    /// `false`: ask again.
    fn shrink(&self) -> bool;

    /// The peer's writer wants a larger segment of our DMB.
    fn asked(&self, ask: Ask) -> Answer;

    /// Makes a segment, which may take its time, and answers.
    fn lend(&self, lend: &Lend) -> Answer;

    /// No segment could be made; it is not tried again at once.
    fn not_made(&self, lend: &Lend) -> Answer;

    /// A while after an [`Answer::Later`]; `None` when it needs no answer any more.
    fn ask_again(&self) -> Option<Answer>;

    /// That grant could not be sent; it is not given again at once.
    fn not_sent(&self, segment: u64) -> Answer;

    /// The peer's writer does not use the grants up to this number any more.
    fn returned(&self, segment: u64);

    /// Whether our writer waits for a grant of that number and size: for one only.
    fn awaits(&self, segment: u64, bytes: u64) -> Granted;

    /// The peer grants our writer a segment; `None` when this process lacks the means to map it.
    fn granted(&self, number: u64, segment: Option<DmbSegment>) -> Granted;

    /// The peer grants our writer none for now.
    fn denied(&self, why: Refusal);
}

/// What ends an upgrade, or a part of it, or what came of it. What has switched is not turned back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The upgrade ends before READY: this stream stays on TCP.
    StayOnTcp(FallbackReason),
    /// S: an offer for this stream was refused; another one may come.
    OfferRefused(FallbackReason),
    /// The peer named a DMB that this end can not use, or nothing can be said on the link: the
    /// sender stays on TCP.
    CanNotSend(FallbackReason),
    /// Another stream of the same socket exists: neither can know what passes through it.
    SocketShared,
    /// The peer will never read from its DMB: the sender stays on TCP if it has not switched.
    PeerPinned,
    /// The peer will never write to our DMB: the receiver stays on TCP if it has not switched.
    PeerDetached,
    /// The link of that number ended; it need not be the one this stream is attached to.
    LinkDied { link: u64, death: Death },
}

/// A connection as its link sees it. No lock of the link is held during any of these calls, but for
/// `has_ended`.
pub(crate) trait LinkedStream: GrowingStream + Send + Sync {
    /// Live facts from the kernel, or why this stream can not be upgraded.
    fn subject(&self) -> Result<Subject, FallbackReason>;

    /// S: may its connection be the one that a client describes, by its addresses?
    fn may_meet(&self, theirs: &Subject) -> bool;

    /// C: what can be proved by. What a write may still show is waited for with
    /// [`LinkedStream::offer_with_next_write`].
    ///
    /// # Errors
    ///
    /// Why no write will ever show it.
    fn possession(&self) -> Result<Possession, FallbackReason>;

    /// C: once a write has shown what to prove by, `endpoint` offers for this stream.
    fn offer_with_next_write(&self, endpoint: Weak<Endpoint>);

    /// S: the initial sequence number of the client.
    ///
    /// # Errors
    ///
    /// Why it is not known, or not asked for any more.
    fn initial_sequence(&self) -> Result<u32, FallbackReason>;

    /// Somebody has tried to prove that he holds the other end, and could not; or, at C, can tell
    /// now whether he could.
    fn attempt_is_used_up(&self);

    /// S: has the client written anything?
    fn has_received(&self) -> bool;

    /// Is its connection over both ways? Then another one may have its addresses; one that is half
    /// closed keeps them.
    fn has_ended(&self) -> bool;

    /// Bytes of the largest segment of this stream's DMB.
    fn dmb_size(&self) -> usize;

    /// Whose processes this stream may be upgraded with.
    fn peer_policy(&self) -> &PeerPolicy;

    /// Where the peer's interrupts for this stream go.
    fn interrupt_handler(&self) -> Arc<dyn InterruptHandler>;

    /// Has connect asked for CLC over TCP?
    fn wants_prelude(&self) -> bool;

    /// An offer for this stream stands, until `offer` is dropped.
    fn offered(&self, offer: Latest);

    /// From here on the reader obeys the word in `dmb`. With `accept` the client asks for CLC over
    /// TCP; if it goes, the Accept is that message.
    fn attach_receive(&self, dmb: ReceiveDmb, accept: Option<&[u8]>) -> Result<(), FallbackReason>;

    /// From here on the sender may switch to `dmb`.
    fn attach_send(&self, dmb: SendDmb);

    /// C with policy Handshake, between MATCH and READY: sends these messages over TCP, if the word
    /// in the server's DMB lets it.
    fn start_prelude(&self, word: &DmbMemory, messages: Prelude);

    /// S with policy Handshake, at READY: the client has started its prelude or never will.
    fn prelude_decided(&self);

    /// It stays on TCP, one direction of it does, or its link has ended.
    fn verdict(&self, verdict: Verdict);
}

impl dyn LinkedStream {
    /// [`Verdict::StayOnTcp`]
    pub(crate) fn stay_on_tcp(&self, reason: FallbackReason) {
        self.verdict(Verdict::StayOnTcp(reason));
    }
}

/// How a stream interrupts its peer.
#[derive(Clone)]
pub(crate) struct PeerInterrupt {
    pub(crate) link: Arc<Link>,
    /// The peer's number for this connection.
    pub(crate) index: u32,
}

/// What an interrupt takes besides the bits in the peer's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undelivered {
    /// The peer's poller sleeps, or has not looked for a while: it has to be rung.
    Ring,
    /// The peer is in this process: its handler has to be called.
    Handler(Signal),
}

impl PeerInterrupt {
    /// Interrupts the peer's reader (`Data`) or writer (`Space`), as far as that calls nobody: what
    /// is left is for [`PeerInterrupt::deliver`], once no lock is held.
    #[inline]
    pub(crate) fn raise(&self, signal: Signal) -> Option<Undelivered> {
        self.link.raise(self.index, signal)
    }

    /// Does what [`PeerInterrupt::raise`] has left.
    pub(crate) fn deliver(&self, undelivered: Undelivered) {
        self.link.deliver_interrupt(self.index, undelivered);
    }
}

/// The DMB that a stream reads from. Dropping it says that the stream is done with it.
pub(crate) struct ReceiveDmb {
    pub(crate) consumer: Consumer<DmbMemory>,
    pub(crate) peer: PeerInterrupt,
    pub(crate) token: u64,
    /// Bytes of the largest segment that its sender may ask for while the reader reads.
    pub(crate) window: usize,
    /// Keeps the number of our signals.
    pub(crate) _entry: Arc<SignalEntry>,
}

impl ReceiveDmb {
    /// Ends the use of a DMB whose word this end has pinned: the producer has nothing to wait for.
    pub(crate) fn pinned(self) {
        self.peer.link.send_pinned(self.token);
    }
}

impl Drop for ReceiveDmb {
    fn drop(&mut self) {
        self.peer.link.stream_done(self.token);
    }
}

/// The peer's DMB that a stream writes to. Dropping it sends the one DETACH of its token.
pub(crate) struct SendDmb {
    pub(crate) producer: Producer<DmbMemory>,
    pub(crate) peer: PeerInterrupt,
    pub(crate) token: u64,
    /// Bytes of the largest segment that the receiver lends while it reads.
    pub(crate) window: usize,
    /// Keeps the number of our signals, also when the receiving direction stayed on TCP.
    pub(crate) _entry: Arc<SignalEntry>,
}

impl Drop for SendDmb {
    fn drop(&mut self) {
        self.peer.link.learn(self.producer.needed());
        self.peer.link.detach(self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dropped(std::sync::mpsc::Sender<&'static str>, &'static str);

    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.send(self.1);
        }
    }

    #[test]
    fn what_was_made_later_stands_whoever_comes_first() {
        for older_first in [true, false] {
            let (tell, dropped) = std::sync::mpsc::channel();
            let [older, newer] =
                ["older", "newer"].map(|name| Latest::new(Box::new(Dropped(tell.clone(), name))));
            let mut place = None;
            for latest in if older_first { [older, newer] } else { [newer, older] } {
                drop(latest.keep(&mut place));
            }
            assert_eq!(dropped.try_recv(), Ok("older"));
            assert!(dropped.try_recv().is_err(), "the newer one stands");
        }
    }
}
