//! How long a poller that has nothing to do goes on looking before it sleeps.
//!
//! An *episode* lasts from one piece of work to the next. What counts of it is for how long the
//! poller's side was *idle*: its own thinking is no reason to sleep, and looking costs nobody
//! anything meanwhile. To look for as long as an episode is idle costs that time; to sleep costs
//! the wake-up: a system call of the peer, one of ours, and the time that both take. So the window
//! is the one that would have cost least over the latest episodes.
//!
//! Two ends that both sleep see nothing but each other's wake-ups. So the time of a wake-up is
//! measured and not counted, and now and then an episode is looked through on trial.
//!
//! All times are monotonic nanoseconds.

/// What one wake-up costs, both sides together: so much looking it is worth. About the processor
/// time of a wake-up three times over, for it costs time, too. With more, a peer that sends at a
/// steady pace (every 50 µs, say) would be looked for all the time, which costs more than TCP.
const PRICE: u64 = 25_000;
/// Idle times are told apart by powers of two, from this one on.
const FIRST_END: u64 = 1_024;
const KINDS: usize = 10;
/// An episode in the sums, and the part of them that each new one replaces.
const ONE: u32 = 1 << 10;
const FORGET: u32 = 5;
/// So many of the usual episodes, which the window has covered, are counted in one step.
const BATCH: u8 = 8;
/// Episodes between two trials, at first, and at most when they are in vain.
const FEW: u32 = 8;
const MANY: u32 = 64;
/// Episodes in a row in which the peer had to be rung awake, after which nothing else is expected
/// of it; and trials in a row that show nothing else.
const PATIENCE: u32 = 8;
/// Episodes it is shut for when the poller lost its CPU to somebody. Few: often that is another
/// worker of the same runtime, or the kernel's housekeeping, and to sleep costs more than it gives
/// (docs/design.md, "The adaptive window").
const PREEMPTED_REST: u32 = 3;

/// How an episode has ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Episode {
    /// For how long this side had nothing to do, until the peer had something for it.
    pub(crate) idle: u64,
    /// From then until it was seen, when this side slept meanwhile.
    pub(crate) woken_after: Option<u64>,
    /// The peer had to be rung awake first.
    pub(crate) rang: bool,
}

/// The adaptive poll window of one poller.
#[derive(Debug)]
pub(crate) struct Window {
    cap: u64,
    width: u64,
    /// How often the idle time was of each kind, lately.
    seen: [u32; KINDS],
    /// Usual episodes that are not in these sums yet, and how many there are.
    usual: [u8; KINDS],
    batched: u8,
    /// What a wake-up takes here, from the ring to the look.
    wake: u64,
    /// Episodes in a row in which the peer had to be rung.
    rung: u32,
    /// Trials: this episode is one, the so-manieth in a row; episodes until the next, and from then
    /// to the one after.
    tries: bool,
    tried: u32,
    trial_in: u32,
    trial_every: u32,
    /// Episodes, with the current one, that the window stays shut.
    rest: u32,
}

fn kind(idle: u64) -> usize {
    ((u64::BITS - (idle / FIRST_END).leading_zeros()) as usize).min(KINDS - 1)
}

/// The shortest time that is longer than those of a kind.
fn end(kind: usize) -> u64 {
    FIRST_END << kind
}

impl Window {
    /// A window of at most `busy_poll_cap_ns`; 0 never polls.
    pub(crate) fn new(busy_poll_cap_ns: u64) -> Window {
        Window {
            cap: busy_poll_cap_ns,
            width: 0,
            seen: [0; KINDS],
            usual: [0; KINDS],
            batched: 0,
            wake: 0,
            rung: 0,
            tries: false,
            tried: 0,
            trial_in: 0,
            trial_every: FEW,
            rest: 0,
        }
    }

    /// The window may open at all.
    pub(crate) fn may_open(&self) -> bool {
        self.cap > 0
    }

    /// It pays, or is tried, to look in this episode.
    pub(crate) fn is_open(&self) -> bool {
        self.width > 0
    }

    /// Work was found: decides about the window until the next.
    #[inline]
    pub(crate) fn work(&mut self, episode: Episode) {
        // The usual one decides nothing: that costs more than the look that has found the work.
        if self.is_usual(&episode) && self.batched < BATCH {
            self.usual[kind(episode.idle)] += 1;
            self.batched += 1;
        } else {
            self.decide(episode);
        }
    }

    /// The peer was awake, this side looked, and that was no trial.
    fn is_usual(&self, episode: &Episode) -> bool {
        let awake = !episode.rang && self.rung == 0 && episode.woken_after.is_none();
        awake && self.rest == 0 && !self.tries && episode.idle < self.width
    }

    fn decide(&mut self, episode: Episode) {
        self.note_usual();
        if let Some(wake) = episode.woken_after {
            // Of the latest ones, as a mean.
            self.wake = self.wake - self.wake / 8 + wake.min(self.cap.max(PRICE)) / 8;
        }
        self.rung = if episode.rang { self.rung.saturating_add(1) } else { 0 };
        let idle = episode.idle.saturating_sub(self.patience(episode.rang));
        self.judge_trial(idle < PRICE && episode.woken_after.is_none());
        if self.rest > 0 {
            self.rest -= 1;
        } else {
            self.note(idle);
        }
        self.width = if self.rest > 0 { 0 } else { self.best() };
        self.tries = self.rest == 0 && self.width == 0 && self.is_time_for_trial();
        if self.tries {
            self.width = PRICE;
        }
        self.width = self.width.min(self.cap);
    }

    /// Nothing was found, and this side is idle for that long: whether to look again, and not to
    /// sleep. `rang`: the peer had to be rung awake in this episode.
    pub(crate) fn keeps_looking(&self, idle: u64, rang: bool) -> bool {
        idle < self.limit(rang)
    }

    fn limit(&self, rang: bool) -> u64 {
        if self.width == 0 { 0 } else { (self.width + self.patience(rang)).min(self.cap) }
    }

    /// How long the peer takes to wake up, as long as it may be awake the next time.
    fn patience(&self, rang: bool) -> u64 {
        if rang && (self.tries || self.rung <= PATIENCE) { self.wake } else { 0 }
    }

    fn note(&mut self, idle: u64) {
        self.forget();
        self.seen[kind(idle)] += ONE;
    }

    fn note_usual(&mut self) {
        for _ in 0..std::mem::take(&mut self.batched) {
            self.forget();
        }
        for (seen, usual) in self.seen.iter_mut().zip(&mut self.usual) {
            *seen += ONE * u32::from(std::mem::take(usual));
        }
    }

    fn forget(&mut self) {
        for seen in &mut self.seen {
            *seen -= *seen >> FORGET;
        }
    }

    /// The width that would have cost least.
    fn best(&self) -> u64 {
        let all: u64 = self.seen.iter().map(|seen| u64::from(*seen)).sum();
        let (mut least, mut best) = (all * PRICE, 0);
        let (mut looked, mut caught) = (0, 0);
        for (kind, seen) in self.seen.iter().enumerate().take(KINDS - 1) {
            let (seen, end) = (u64::from(*seen), end(kind));
            caught += seen;
            looked += seen * (end - end / 4);
            let cost = looked + (all - caught) * (end + PRICE);
            if cost < least {
                (least, best) = (cost, end);
            }
        }
        // Wide enough for one that is late: where it pays to look, it is seldom in vain.
        if best == 0 { 0 } else { best.max(PRICE) }
    }

    /// A trial that was not in vain is followed by the next one at once.
    fn judge_trial(&mut self, paid: bool) {
        if !std::mem::take(&mut self.tries) {
            return;
        }
        self.tried += 1;
        if paid && self.tried <= PATIENCE {
            self.trial_every = FEW;
            self.trial_in = 1;
        } else {
            self.tried = 0;
            self.trial_every = (self.trial_every * 2).min(MANY);
            self.trial_in = self.trial_every;
        }
    }

    fn is_time_for_trial(&mut self) -> bool {
        self.trial_in = self.trial_in.saturating_sub(1);
        self.trial_in == 0
    }

    /// The thread lost its CPU since the last look: others need it more.
    pub(crate) fn preempted(&mut self) {
        self.width = 0;
        self.rest = PREEMPTED_REST;
        // This episode says nothing about an undisturbed window.
        self.tries = false;
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
