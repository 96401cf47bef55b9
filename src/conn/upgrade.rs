//! The phases of an upgrade: when it begins, how far it is, and that it ends.

use std::sync::{OnceLock, Weak};
use std::time::Duration;

use super::sample::Wanted;
use super::waiters::WakerSet;
use super::{Connection, Role, Tcp};
use crate::config::{Config, UpgradePolicy};
use crate::ism::sys;
use crate::link::endpoint::{Endpoint, ListedAsAccepted};
use crate::link::stream::Latest;
use crate::link::tally;
use crate::sync::{AtomicBool, AtomicU32, Mutex, Ordering, lock, rank};
use crate::transport::{FallbackReason, LoopbackIsm};

/// For how long the peer may leave a step unanswered before who waits is told so. Nothing else ends
/// then.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How far the upgrade is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not begun, for this reason.
    Idle(FallbackReason),
    /// An offer is on its way, or expected to be answered.
    Offering,
    /// Both DMBs are known; each direction switches when it can.
    Attached,
    /// It stays TCP, for this reason.
    Settled(FallbackReason),
}

impl Phase {
    /// That of a stream which nobody has used.
    pub(super) fn first(config: &Config) -> Phase {
        Phase::Idle(if config.off {
            FallbackReason::SwitchedOff
        } else if config.upgrade_policy == UpgradePolicy::Never {
            FallbackReason::Policy
        } else {
            FallbackReason::NotYet
        })
    }

    /// Can an upgrade still begin, or has the configuration ruled it out?
    pub(super) fn may_begin(self) -> bool {
        self == Phase::Idle(FallbackReason::NotYet)
    }

    /// Will nothing more be attached to this stream?
    #[cfg(any(test, feature = "blocking"))]
    pub(super) fn is_final(self) -> bool {
        match self {
            Phase::Settled(_) => true,
            Phase::Idle(reason) => matches!(reason, FallbackReason::Policy | FallbackReason::SwitchedOff),
            Phase::Offering | Phase::Attached => false,
        }
    }
}

pub(super) struct State {
    pub(super) phase: Phase,
    /// When the peer's turn came.
    since: Duration,
    pub(super) offer: Option<Latest>,
    /// C: who offers once a write has shown what to prove by.
    pub(super) waits_for_write: Option<Weak<Endpoint>>,
    /// What lets a client find this stream, as long as it may still be upgraded.
    registration: Option<ListedAsAccepted>,
}

impl State {
    /// A step further, which the peer has to answer.
    pub(super) fn advance(&mut self, phase: Phase) {
        if phase == Phase::Offering {
            tally::count_tried();
        }
        self.phase = phase;
        self.since = sys::monotonic();
    }

    /// By when the peer should have answered; `None` when nothing is to be answered.
    pub(super) fn due(&self) -> Option<Duration> {
        let peers_turn =
            matches!(self.phase, Phase::Offering | Phase::Attached) && self.waits_for_write.is_none();
        peers_turn.then_some(self.since + ANSWER_WITHIN)
    }
}

pub(crate) struct Upgrade {
    pub(super) state: Mutex<State, rank::UpgradePhase>,
    /// The trigger is still to come: lets every read and write pass by with one load.
    pending: AtomicBool,
    /// C: which write is to show what to prove by.
    pub(super) sample: Wanted,
    /// A packet may come on the error queue later than its write, for the first or another time.
    pub(super) late: AtomicBool,
    /// S: the client's initial sequence number, once somebody wanted to prove something.
    pub(super) sequence: OnceLock<Result<u32, FallbackReason>>,
    /// Attempts to prove it that are used up.
    pub(super) failures: AtomicU32,
    /// Those who wait for a change of it.
    pub(super) watchers: WakerSet,
    /// When both directions had left TCP, and for what: noted once, and boxed, for few streams have
    /// it.
    done: OnceLock<Box<(Duration, LoopbackIsm)>>,
}

impl Upgrade {
    #[inline]
    pub(super) fn new(phase: Phase, role: Role, config: &Config) -> Self {
        let triggers = phase.may_begin()
            && role == Role::Client
            && matches!(config.upgrade_policy, UpgradePolicy::FirstTurn);
        Upgrade {
            state: Mutex::new(State {
                phase,
                since: Duration::ZERO,
                offer: None,
                waits_for_write: None,
                registration: None,
            }),
            pending: AtomicBool::new(triggers),
            sample: Wanted::new(role, config),
            late: AtomicBool::new(false),
            sequence: OnceLock::new(),
            failures: AtomicU32::new(0),
            watchers: WakerSet::default(),
            done: OnceLock::new(),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        lock(&self.state).phase
    }

    /// Has the peer left its turn unanswered for too long?
    pub(super) fn is_overdue(&self) -> bool {
        lock(&self.state).due().is_some_and(|due| due <= sys::monotonic())
    }

    /// Has the application to write before the upgrade goes on?
    pub(super) fn waits_for_write(&self) -> bool {
        lock(&self.state).waits_for_write.is_some()
    }

    /// Makes the peer late.
    #[cfg(test)]
    pub(super) fn make_overdue(&self) {
        lock(&self.state).since -= ANSWER_WITHIN;
    }

    #[inline]
    pub(super) fn waits_for_trigger(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// Begins the upgrade if nobody has, and if it may begin at all.
    pub(super) fn begin(&self) -> bool {
        self.pending.store(false, Ordering::Relaxed);
        let mut state = lock(&self.state);
        let begins = state.phase.may_begin();
        if begins {
            state.advance(Phase::Offering);
        }
        drop(state);
        if begins {
            self.watchers.wake_all();
        }
        begins
    }

    /// Both directions have left TCP.
    pub(super) fn is_done(&self, ism: LoopbackIsm) {
        if self.done.get().is_none() && self.done.set(Box::new((sys::monotonic(), ism))).is_ok() {
            tally::count_done();
        }
    }

    /// When that was (monotonic), and what the stream runs on since.
    pub(super) fn done(&self) -> Option<(Duration, LoopbackIsm)> {
        self.done.get().map(|done| **done)
    }

    /// It stays TCP. Says so once; an attached stream has its own story.
    pub(super) fn settle(&self, reason: FallbackReason) -> bool {
        self.pending.store(false, Ordering::Relaxed);
        let gone = {
            let mut state = lock(&self.state);
            if matches!(state.phase, Phase::Settled(_)) {
                return false;
            }
            state.phase = Phase::Settled(reason);
            // The registration stays: an offer for a stream that lives is refused, not kept
            // waiting.
            state.waits_for_write = None;
            state.offer.take()
        };
        drop(gone);
        self.count(reason);
        self.watchers.wake_all();
        true
    }

    /// The stream is closed: nobody needs to find it any more, and who watches learns that it is
    /// gone. What it ran on until now is what counts.
    pub(super) fn close(&self) {
        self.pending.store(false, Ordering::Relaxed);
        let (before, gone) = {
            let mut state = lock(&self.state);
            let before = state.phase;
            if !matches!(before, Phase::Settled(_)) {
                state.phase = Phase::Settled(FallbackReason::HalfClosed);
            }
            state.waits_for_write = None;
            (before, (state.offer.take(), state.registration.take()))
        };
        drop(gone);
        match before {
            Phase::Idle(reason) => self.count(reason),
            Phase::Offering | Phase::Attached => self.count(FallbackReason::InProgress),
            // It was counted when it settled.
            Phase::Settled(_) => {}
        }
        self.watchers.wake_all();
    }

    /// Counts why it stays TCP, unless it has left it.
    fn count(&self, reason: FallbackReason) {
        if self.done.get().is_none() {
            tally::count_reason(reason);
        }
        crate::trace::debug!("stays on tcp: {reason}");
    }

    /// Nobody needs to find this stream any more.
    pub(super) fn end_registration(&self) {
        let registration = lock(&self.state).registration.take();
        drop(registration);
    }

    /// Something that an upgrade waits for has changed.
    pub(super) fn changed(&self) {
        self.watchers.wake_all();
    }

    /// Takes back an offer that still stands. Returns how far the upgrade is.
    pub(super) fn withdraw(&self) -> Phase {
        let (phase, offer) = {
            let mut state = lock(&self.state);
            state.waits_for_write = None;
            (state.phase, state.offer.take())
        };
        drop(offer);
        phase
    }
}

impl<T: Tcp> Connection<T> {
    /// Keeps what lets a client find this stream, until it is upgraded or closed.
    pub(crate) fn keep_registration(&self, registration: ListedAsAccepted) {
        let mut state = lock(&self.upgrade.state);
        if state.phase != Phase::Attached {
            state.registration = Some(registration);
        }
    }

    /// Begins an upgrade that the application asked for; `false` when one runs, has ended, or is
    /// not possible.
    pub(crate) fn begin_upgrade(&self) -> bool {
        self.role != Role::Server && self.upgrade.begin()
    }
}
