//! The upgrade as the application sees it: when it begins, how far it is, who waits for it.

use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Duration;

use super::send;
use super::waiters::Waiters;
use super::{Connection, Effects, Role, Tcp};
use crate::config::{Config, UpgradePolicy};
use crate::ism::arena::DmbMemory;
use crate::ism::dmb::Direction;
use crate::ism::ring::Memory;
use crate::ism::sys;
use crate::link::stream::Standing;
use crate::link::tally;
use crate::sync::{AtomicBool, Mutex, Ordering, lock, rank};
use crate::transport::{FallbackReason, LoopbackIsm, Transport};

/// For how long the peer may leave a step unanswered before who waits is told so. Nothing else ends then.
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

pub(super) struct State {
    pub(super) phase: Phase,
    /// When the peer's turn came.
    since: Duration,
    pub(super) offer: Option<Standing>,
    /// S with policy Handshake: where the word is that the client may turn to GO.
    pub(super) hold: Option<DmbMemory>,
    /// What lets a client find this stream, as long as it may still be upgraded.
    anchor: Option<Standing>,
}

impl State {
    /// A step further, which the peer has to answer.
    pub(super) fn go_on(&mut self, phase: Phase) {
        if phase == Phase::Offering {
            tally::count_tried();
        }
        self.phase = phase;
        self.since = sys::monotonic();
    }

    /// By when the peer should have answered; `None` when nothing is to be answered.
    fn due(&self) -> Option<Duration> {
        matches!(self.phase, Phase::Offering | Phase::Attached).then_some(self.since + ANSWER_WITHIN)
    }
}

pub(crate) struct Upgrade {
    pub(super) state: Mutex<State, rank::UpgradePhase>,
    /// The trigger is still to come: lets every read and write pass by with one load.
    pending: AtomicBool,
    /// `upgrade()` calls that wait.
    watchers: Waiters,
    /// When both directions had left TCP, and for what: noted once.
    done: OnceLock<(Duration, LoopbackIsm)>,
}

impl Upgrade {
    pub(super) fn new(role: Role, config: &Config) -> Self {
        let idle = if config.off {
            FallbackReason::SwitchedOff
        } else if config.upgrade_policy == UpgradePolicy::Never {
            FallbackReason::Policy
        } else {
            FallbackReason::NotYet
        };
        let triggers = idle == FallbackReason::NotYet
            && role == Role::Client
            && matches!(config.upgrade_policy, UpgradePolicy::FirstTurn);
        Upgrade {
            state: Mutex::new(State {
                phase: Phase::Idle(idle),
                since: Duration::ZERO,
                offer: None,
                hold: None,
                anchor: None,
            }),
            pending: AtomicBool::new(triggers),
            watchers: Waiters::default(),
            done: OnceLock::new(),
        }
    }

    /// Can an upgrade still begin, or has the configuration ruled it out?
    pub(super) fn may_begin(&self) -> bool {
        self.phase() == Phase::Idle(FallbackReason::NotYet)
    }

    pub(super) fn phase(&self) -> Phase {
        lock(&self.state).phase
    }

    /// Has the peer left its turn unanswered for too long?
    pub(super) fn is_overdue(&self) -> bool {
        lock(&self.state).due().is_some_and(|due| due <= sys::monotonic())
    }

    /// Makes the peer late.
    #[cfg(test)]
    pub(super) fn grow_old(&self) {
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
        let begins = matches!(state.phase, Phase::Idle(FallbackReason::NotYet));
        if begins {
            state.go_on(Phase::Offering);
        }
        drop(state);
        if begins {
            self.watchers.wake_all();
        }
        begins
    }

    /// Both directions have left TCP.
    pub(super) fn is_done(&self, ism: LoopbackIsm) {
        if self.done.get().is_none() && self.done.set((sys::monotonic(), ism)).is_ok() {
            tally::count_done();
        }
    }

    /// When that was (monotonic), and what the stream runs on since.
    pub(super) fn done(&self) -> Option<(Duration, LoopbackIsm)> {
        self.done.get().copied()
    }

    /// It stays TCP. Says so once; an attached stream has its own story.
    pub(super) fn settle(&self, reason: FallbackReason) -> bool {
        self.settle_as(reason, |_| reason)
    }

    /// The stream is closed. What it ran on until now is what counts.
    pub(super) fn close(&self) {
        self.settle_as(FallbackReason::HalfClosed, |phase| match phase {
            Phase::Idle(reason) | Phase::Settled(reason) => reason,
            Phase::Offering | Phase::Attached => FallbackReason::InProgress,
        });
    }

    /// Settles for `reason`; the process counts the one that `counted` makes of the phase before.
    fn settle_as(&self, reason: FallbackReason, counted: impl FnOnce(Phase) -> FallbackReason) -> bool {
        self.pending.store(false, Ordering::Relaxed);
        let (before, gone) = {
            let mut state = lock(&self.state);
            if matches!(state.phase, Phase::Settled(_)) {
                return false;
            }
            let before = std::mem::replace(&mut state.phase, Phase::Settled(reason));
            // The anchor stays: an offer for a stream that lives is refused, not kept waiting.
            (before, state.offer.take())
        };
        drop(gone);
        if self.done.get().is_none() {
            tally::count_reason(counted(before));
        }
        crate::trace::debug!("stays on tcp: {reason}");
        self.watchers.wake_all();
        true
    }

    /// Nobody needs to find this stream any more.
    pub(super) fn weigh_anchor(&self) {
        let anchor = lock(&self.state).anchor.take();
        drop(anchor);
    }

    pub(super) fn hold(&self) -> Option<DmbMemory> {
        lock(&self.state).hold.clone()
    }

    /// Something that an upgrade waits for has changed.
    pub(super) fn changed(&self) {
        self.watchers.wake_all();
    }

    /// Takes back an offer that still stands.
    pub(super) fn withdraw(&self) {
        let offer = lock(&self.state).offer.take();
        drop(offer);
    }
}

impl<T: Tcp> Connection<T> {
    /// `anchor` lets a client find this stream, until it is upgraded or closed.
    pub(crate) fn anchor(&self, anchor: Standing) {
        let mut state = lock(&self.upgrade.state);
        if state.phase != Phase::Attached {
            state.anchor = Some(anchor);
        }
    }

    /// Begins an upgrade that the application asked for; `false` when one runs, has ended, or is not possible.
    pub(crate) fn begin_upgrade(&self) -> bool {
        self.role != Role::Server && self.upgrade.begin()
    }

    /// When who waits for the upgrade, or for a change, has to look again, though nothing happened.
    pub(crate) fn answer_due(&self) -> Option<Duration> {
        lock(&self.upgrade.state).due().filter(|due| *due > sys::monotonic())
    }

    /// Waits until the stream is upgraded, or is known to stay on TCP, or the peer has left its turn unanswered for too
    /// long (see [`Connection::answer_due`]).
    pub(crate) fn poll_upgraded(&self, cx: &mut Context<'_>, key: &mut WatchKey) -> Poll<Transport> {
        self.upgrade.watchers.enlist(&mut key.changed, cx.waker());
        // The peer's switch of our receiving direction comes as an interrupt for data.
        self.wakes.readers.enlist(&mut key.readers, cx.waker());
        self.drive_clc();
        let transport = self.transport();
        let runs = matches!(self.upgrade.phase(), Phase::Offering | Phase::Attached)
            && !transport.is_loopback_ism()
            && self.death().is_none();
        if runs {
            let decided = {
                let rx = lock(&self.rx);
                rx.pinned
                    || rx.dmb.as_ref().is_some_and(|dmb| {
                        dmb.consumer.arm();
                        dmb.consumer.memory().header().direction() != Direction::Open
                    })
            };
            let sends = {
                let tx = lock(&self.tx);
                tx.path == send::Path::Ring || tx.pinned || tx.shut
            };
            let over = decided && sends && self.upgrade.phase() == Phase::Attached;
            if !over && !self.upgrade.is_overdue() {
                return Poll::Pending;
            }
            if over && !self.transport().is_loopback_ism() {
                // One of the two directions will never leave TCP.
                self.upgrade.settle(FallbackReason::Pinned);
            }
        }
        self.forget_watch(key);
        Poll::Ready(self.transport())
    }

    /// Waits until the transport is not `seen` any more; `None` when the stream is closed.
    pub(crate) fn poll_changed(
        &self,
        cx: &mut Context<'_>,
        key: &mut WatchKey,
        seen: Transport,
    ) -> Poll<Option<Transport>> {
        self.upgrade.watchers.enlist(&mut key.changed, cx.waker());
        if matches!(self.upgrade.phase(), Phase::Offering | Phase::Attached) && !seen.is_loopback_ism() {
            // The peer's switch of our receiving direction comes as an interrupt for data.
            self.wakes.readers.enlist(&mut key.readers, cx.waker());
            if let Some(dmb) = lock(&self.rx).dmb.as_ref() {
                dmb.consumer.arm();
            }
        }
        if self.is_closed() {
            self.forget_watch(key);
            return Poll::Ready(None);
        }
        let now = self.transport();
        if now == seen {
            return Poll::Pending;
        }
        self.forget_watch(key);
        Poll::Ready(Some(now))
    }

    /// C: takes the Accept off the stream, then sends the Confirm and switches.
    fn drive_clc(&self) {
        if self.role != Role::Client || self.config.upgrade_policy != UpgradePolicy::Handshake {
            return;
        }
        let mut effects = Effects::default();
        {
            let mut rx = lock(&self.rx);
            if rx.socket.is_none() || !rx.strip_clc().is_ready() {
                return;
            }
            let mut tx = lock(&self.tx);
            if tx.socket.is_some() && tx.send_clc(|| self.stop_handshake()).is_ready() {
                tx.try_switch(&mut effects);
            }
        }
        let switched = std::mem::take(&mut effects.wake);
        self.carry_out(effects);
        if switched {
            self.wakes.writers.wake_all();
        }
    }

    pub(crate) fn forget_watch(&self, key: &mut WatchKey) {
        self.upgrade.watchers.delist(&mut key.changed);
        self.wakes.readers.delist(&mut key.readers);
    }
}

/// Where a waiting `upgrade()` is listed.
#[derive(Debug, Default)]
pub(crate) struct WatchKey {
    changed: Option<u64>,
    readers: Option<u64>,
}
