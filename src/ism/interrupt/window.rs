//! How long a poller that found work goes on looking before it sleeps.
//!
//! An *episode* lasts from one piece of work to the next, whether the poller slept in between or
//! looked all the time. Short episodes widen the window, a long one closes it; a window that does
//! not pay is shut for a while, and so is one that competes with other threads for the CPU. All
//! times are monotonic nanoseconds.

/// Width of a window that opens again.
const FIRST: u64 = 12_000;
/// Longer episodes are not worth a look.
const SHORT: u64 = 250_000;
/// Looks in vain at the full window before it is shut.
const FAILURES: u32 = 16;
/// Episodes it is then shut for, at first and at most.
const FIRST_REST: u32 = 4;
const LONGEST_REST: u32 = 16;
/// Episodes it is shut for when the poller lost its CPU to somebody. Few: often that is another
/// worker of the same runtime, or the kernel's housekeeping, and to sleep costs more than it gives
/// (docs/design.md, "The adaptive window").
const PREEMPTED_REST: u32 = 3;

/// The adaptive poll window of one poller.
#[derive(Debug)]
pub(crate) struct Window {
    cap: u64,
    width: u64,
    last_work: Option<u64>,
    /// The window of this episode was full and has passed without work.
    failed: bool,
    failures: u32,
    next_rest: u32,
    /// Episodes, with the current one, that the window stays shut.
    rest: u32,
}

impl Window {
    /// A window of at most `busy_poll_cap_ns`; 0 never polls.
    pub(crate) fn new(busy_poll_cap_ns: u64) -> Window {
        Window {
            cap: busy_poll_cap_ns,
            width: 0,
            last_work: None,
            failed: false,
            failures: 0,
            next_rest: FIRST_REST,
            rest: 0,
        }
    }

    /// A look found work: ends the episode and decides about the window of the next one.
    pub(crate) fn work(&mut self, now: u64) {
        let Some(last) = self.last_work.replace(now) else { return };
        let episode = now.saturating_sub(last);
        if self.failed {
            self.failed = false;
            self.failures += 1;
        } else if episode < self.width {
            // Found while looking: it pays.
            self.failures = 0;
            self.next_rest = FIRST_REST;
        }

        self.rest = self.rest.saturating_sub(1);
        if self.failures >= FAILURES {
            self.failures = 0;
            self.rest = self.next_rest;
            self.next_rest = (self.next_rest * 2).min(LONGEST_REST);
        }
        self.width = if self.rest > 0 || episode >= SHORT {
            0
        } else {
            self.width.saturating_mul(2).max(FIRST).min(self.cap)
        };
    }

    /// A look found nothing: whether to look again, and not to sleep.
    pub(crate) fn keep_polling(&mut self, now: u64) -> bool {
        let Some(last) = self.last_work else { return false };
        if now.saturating_sub(last) < self.width {
            return true;
        }
        self.failed |= self.width > 0 && self.width == self.cap;
        false
    }

    /// The thread lost its CPU since the last look: others need it more.
    pub(crate) fn preempted(&mut self) {
        self.width = 0;
        self.rest = PREEMPTED_REST;
        // This episode and its predecessors say nothing about an undisturbed window.
        self.failed = false;
        self.failures = 0;
    }
}
