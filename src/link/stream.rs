//! What a link and a stream know of each other.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::ism::arena::{DmbMemory, DmbSegment};
use crate::ism::interrupt::Signal;
use crate::ism::ring::{Consumer, Producer, Refusal, Violation};
use crate::link::message::Subject;
use crate::link::{Link, SignalEntry};
use crate::peer::PeerPolicy;
use crate::sync::Arc;
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

/// The side of a stream that an interrupt reaches.
pub(crate) trait Interrupt: Send + Sync {
    fn interrupt(&self, signal: Signal);
}

/// Something that stands for a stream until it is dropped: an offer, or the search for whom to offer to.
pub(crate) type Standing = Box<dyn Send + Sync>;

/// CLC messages of a connection whose policy sends them over TCP (docs/protocol.md, "Policy Handshake").
#[derive(Clone, Debug)]
pub(crate) struct ClcOverTcp {
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
    /// That depends on what the reader does, or on what will be had then: it is to be asked again after that time.
    Later(Duration),
    /// The peer has broken a rule.
    Fault(&'static str),
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

/// The rings of a connection as they grow, as its link sees them: its own DMB, which its reader's end lends more memory,
/// and the peer's, which its writer asks more for.
pub(crate) trait GrowingStream {
    /// Lets the sending ring go back to its first segment if it was idle since the last call. `false`: ask again.
    fn shrink(&self) -> bool;

    /// The peer's writer wants a larger segment of our DMB.
    fn asked(&self, ask: Ask) -> Answer;

    /// A while after an [`Answer::Later`]; `None` when it needs no answer any more.
    fn ask_again(&self) -> Option<Answer>;

    /// That grant could not be sent; it is not given again at once.
    fn not_sent(&self, segment: u64) -> Answer;

    /// The peer's writer does not use the grants up to this number any more.
    fn returned(&self, segment: u64);

    /// Whether our writer waits for a grant of that number and size.
    fn awaits(&self, segment: u64, bytes: u64) -> Granted;

    /// The peer grants our writer a segment; `None` when this process lacks the means to map it.
    fn granted(&self, number: u64, segment: Option<DmbSegment>) -> Granted;

    /// The peer grants our writer none for now.
    fn denied(&self, why: Refusal);
}

/// A connection as its link sees it. No lock of the link is held during any of these calls, but for `has_ended`.
pub(crate) trait LinkedStream: GrowingStream + Send + Sync {
    /// Live facts from the kernel, or why this stream can not be upgraded.
    fn subject(&self) -> Result<Subject, FallbackReason>;

    /// Is its connection over both ways? Then another one may have its addresses; one that is half closed keeps them.
    fn has_ended(&self) -> bool;

    /// Bytes of the largest segment of this stream's DMB.
    fn dmb_size(&self) -> usize;

    /// Whose processes this stream may be upgraded with.
    fn peer_policy(&self) -> &PeerPolicy;

    /// Where the peer's interrupts for this stream go.
    fn interrupts(&self) -> Arc<dyn Interrupt>;

    /// Has connect asked for CLC over TCP?
    fn wants_clc_over_tcp(&self) -> bool;

    /// An offer for this stream stands, until `offer` is dropped.
    fn offered(&self, offer: Standing);

    /// S: an offer for this stream was refused; another one may come.
    fn refused(&self, reason: FallbackReason);

    /// From here on the reader obeys the word in `dmb`. With `hold` the client asks for CLC over TCP; if it goes,
    /// the Accept is that message.
    fn attach_receive(&self, dmb: ReceiveDmb, hold: Option<&[u8]>) -> Result<(), FallbackReason>;

    /// From here on the sender may switch to `dmb`.
    fn attach_send(&self, dmb: SendDmb);

    /// C with policy Handshake, between MATCH and READY: go, with these messages. The DMB is the server's.
    fn go(&self, server: &DmbMemory, clc: ClcOverTcp);

    /// S with policy Handshake, at READY: the client went or never will.
    fn gone(&self);

    /// The peer named a DMB that this end can not use: the sender stays on TCP.
    fn can_not_send(&self, reason: FallbackReason);

    /// Another stream of the same socket exists: neither can know what passes through it.
    fn shared(&self);

    /// The upgrade ends before READY: this stream stays on TCP.
    fn stay_on_tcp(&self, reason: FallbackReason);

    /// The peer will never read from its DMB.
    fn peer_pinned(&self);

    /// The peer will never write to our DMB: it stays on TCP if it has not switched.
    fn peer_detached(&self);

    /// The link of that number ended; it need not be the one this stream is attached to.
    fn link_died(&self, link: u64, death: Death);
}

/// How a stream interrupts its peer.
#[derive(Clone)]
pub(crate) struct Doorbell {
    pub(crate) link: Arc<Link>,
    /// The peer's number for this connection.
    pub(crate) index: u32,
}

impl Doorbell {
    /// Wakes the peer's reader (`Data`) or writer (`Space`).
    pub(crate) fn ring(&self, signal: Signal) {
        self.link.interrupt_peer(self.index, signal);
    }

    /// The same, if the peer lives in another process: `false` means that its wakers would be called here.
    #[inline]
    pub(crate) fn ring_if_remote(&self, signal: Signal) -> bool {
        self.link.interrupt_remote_peer(self.index, signal)
    }

    /// What the application is told of a rule that the peer broke in its ring.
    #[cold]
    pub(crate) fn violated(&self, violation: &Violation) -> io::Error {
        self.link.misbehaviour(violation).of(io::ErrorKind::ConnectionReset)
    }
}

/// The DMB that a stream reads from. Dropping it says that the stream is done with it.
pub(crate) struct ReceiveDmb {
    pub(crate) consumer: Consumer<DmbMemory>,
    pub(crate) doorbell: Doorbell,
    pub(crate) token: u64,
    /// Bytes of the largest segment that its sender may ask for while the reader reads.
    pub(crate) window: usize,
    /// Keeps the number of our signals.
    pub(crate) _entry: Arc<SignalEntry>,
}

impl ReceiveDmb {
    /// Ends the use of a DMB whose word this end has pinned: the producer has nothing to wait for.
    pub(crate) fn pinned(self) {
        self.doorbell.link.send_pinned(self.token);
    }
}

impl Drop for ReceiveDmb {
    fn drop(&mut self) {
        self.doorbell.link.stream_done(self.token);
    }
}

/// The peer's DMB that a stream writes to. Dropping it sends the one DETACH of its token.
pub(crate) struct SendDmb {
    pub(crate) producer: Producer<DmbMemory>,
    pub(crate) doorbell: Doorbell,
    pub(crate) token: u64,
    /// Bytes of the largest segment that the receiver lends while it reads.
    pub(crate) window: usize,
    /// Keeps the number of our signals, also when the receiving direction stayed on TCP.
    pub(crate) _entry: Arc<SignalEntry>,
}

impl Drop for SendDmb {
    fn drop(&mut self) {
        self.doorbell.link.learn(self.producer.needed());
        self.doorbell.link.detach(self.token);
    }
}
