//! The counters of this process: upgrades and reasons, wake-ups, looks of the pollers.
//!
//! What happens once for a stream is counted in one place. What happens with every message is
//! counted on one of several lines, by link and connection or by endpoint, so that two threads
//! seldom write the same one; who reads adds them up. All of them are Relaxed: nothing follows from
//! a number but the number.

use crate::clc::Diagnosis;
use crate::stats::Stats;
use crate::sync::{AtomicU64, Mutex, Ordering, lock};
use crate::transport::FallbackReason;

const LINES: usize = 16;

#[derive(Default)]
#[repr(align(128))]
struct Line {
    sent: AtomicU64,
    saved: AtomicU64,
    paid: AtomicU64,
    in_vain: AtomicU64,
}

static LINE: [Line; LINES] = [const {
    Line {
        sent: AtomicU64::new(0),
        saved: AtomicU64::new(0),
        paid: AtomicU64::new(0),
        in_vain: AtomicU64::new(0),
    }
}; LINES];

/// What a wake-up of a peer cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WakeUp {
    /// Its bell was rung.
    Sent,
    /// No system call.
    Saved,
}

/// A signal for connection `index` of link `link` was raised.
#[inline]
pub(crate) fn count_wake_up(link: u64, index: u32, what: WakeUp) {
    let line = &LINE[(link as usize).wrapping_add(index as usize) % LINES];
    let counter = match what {
        WakeUp::Sent => &line.sent,
        WakeUp::Saved => &line.saved,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The looks of one poller while it does not sleep. They are added to those of the process when one
/// has found something, or the poller stops: a look in vain costs nothing.
#[derive(Debug)]
pub(crate) struct Looks {
    line: usize,
    /// The next look is made instead of sleeping.
    polls: bool,
    in_vain: u64,
}

impl Looks {
    /// Those of the poller of an endpoint with this name.
    pub(crate) fn new(endpoint: [u8; 16]) -> Looks {
        Looks { line: usize::from(endpoint[0]) % LINES, polls: false, in_vain: 0 }
    }

    /// A look was made, and the next one is, or is not, made instead of sleeping.
    pub(crate) fn count(&mut self, found: bool, polls_on: bool) {
        let (paid, in_vain) = self.judge(found, polls_on);
        let line = &LINE[self.line];
        if paid > 0 {
            line.paid.fetch_add(paid, Ordering::Relaxed);
        }
        if in_vain > 0 {
            line.in_vain.fetch_add(in_vain, Ordering::Relaxed);
        }
    }

    /// Looks to be added: those that paid, those in vain.
    fn judge(&mut self, found: bool, polls_on: bool) -> (u64, u64) {
        let polled = std::mem::replace(&mut self.polls, polls_on);
        self.in_vain += u64::from(polled && !found);
        let over = found || !polls_on;
        (u64::from(polled && found), if over { std::mem::take(&mut self.in_vain) } else { 0 })
    }
}

static TRIED: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);
static REASONS: [AtomicU64; FallbackReason::OWN.len()] =
    [const { AtomicU64::new(0) }; FallbackReason::OWN.len()];
/// The peers' own diagnoses.
static DECLINED: Mutex<Declined> = Mutex::new(Declined(Vec::new()));

struct Declined(Vec<(Diagnosis, u64)>);

/// Different diagnoses that are kept: a peer can make up as many as there are numbers.
const MOST_DIAGNOSES: usize = 64;

impl Declined {
    fn add(&mut self, diagnosis: Diagnosis) {
        let Declined(counts) = self;
        let place = |counts: &[(Diagnosis, u64)], name| counts.iter().position(|(known, _)| *known == name);
        let at = place(counts, diagnosis).or_else(|| {
            // The last place is for all the others.
            if counts.len() < MOST_DIAGNOSES - 1 { None } else { place(counts, Diagnosis::PEERDECL) }
        });
        match at {
            Some(at) => counts[at].1 += 1,
            None if counts.len() < MOST_DIAGNOSES - 1 => counts.push((diagnosis, 1)),
            None => counts.push((Diagnosis::PEERDECL, 1)),
        }
    }
}

/// The upgrade of a stream has begun.
pub(crate) fn count_tried() {
    TRIED.fetch_add(1, Ordering::Relaxed);
}

/// A stream has left TCP both ways.
pub(crate) fn count_done() {
    DONE.fetch_add(1, Ordering::Relaxed);
}

/// A stream stays on TCP, for this reason.
pub(crate) fn count_reason(reason: FallbackReason) {
    let diagnosis = match (reason.number(), reason) {
        (Some(number), _) => {
            REASONS[number].fetch_add(1, Ordering::Relaxed);
            return;
        }
        (None, FallbackReason::Declined(diagnosis)) => diagnosis,
        (None, other) => other.diagnosis(),
    };
    lock(&DECLINED).add(diagnosis);
}

/// All but what the roster counts.
pub(super) fn stats() -> Stats {
    let sum = |counter: fn(&Line) -> &AtomicU64| -> u64 {
        LINE.iter().map(|line| counter(line).load(Ordering::Relaxed)).sum()
    };
    let own = FallbackReason::OWN.iter().zip(&REASONS);
    let mut reasons: Vec<_> = own
        .map(|(reason, count)| (*reason, count.load(Ordering::Relaxed)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let declined = lock(&DECLINED).0.clone();
    reasons
        .extend(declined.into_iter().map(|(diagnosis, count)| (FallbackReason::Declined(diagnosis), count)));
    Stats {
        streams_created: 0,
        streams_open: 0,
        upgrades_tried: TRIED.load(Ordering::Relaxed),
        upgrades_done: DONE.load(Ordering::Relaxed),
        wakeups_sent: sum(|line| &line.sent),
        wakeups_saved: sum(|line| &line.saved),
        polls_paid: sum(|line| &line.paid),
        polls_in_vain: sum(|line| &line.in_vain),
        reasons,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_pays_only_if_the_poller_did_not_sleep() {
        let mut looks = Looks::new([0; 16]);
        assert_eq!(looks.judge(true, true), (0, 0), "it was rung");
        assert_eq!(looks.judge(false, true), (0, 0), "it goes on");
        assert_eq!(looks.judge(true, true), (1, 1));
        assert_eq!(looks.judge(true, true), (1, 0));
        assert_eq!(looks.judge(false, true), (0, 0));
        assert_eq!(looks.judge(false, false), (0, 2), "it sleeps");
        assert_eq!(looks.judge(true, false), (0, 0), "it was rung");
        assert_eq!(looks.judge(false, false), (0, 0), "the last look before it sleeps");
    }

    #[test]
    fn a_reason_has_its_own_number() {
        for (number, reason) in FallbackReason::OWN.iter().enumerate() {
            assert_eq!(reason.number(), Some(number));
        }
    }

    #[test]
    fn a_peer_that_makes_up_diagnoses_fills_no_memory() {
        let mut declined = Declined(Vec::new());
        for code in 1..=1000 {
            for _ in 0..2 {
                declined.add(Diagnosis::from_code(code));
            }
        }
        declined.add(Diagnosis::from_code(1));
        let Declined(counts) = declined;
        assert_eq!(counts.len(), MOST_DIAGNOSES);
        assert_eq!(counts[0], (Diagnosis::from_code(1), 3));
        assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), 2001);
        assert_eq!(counts.last(), Some(&(Diagnosis::PEERDECL, 2 * (1000 - 63))));
    }
}
