//! What work for peers takes of a runtime's time. Whoever asks makes us work: for messages, for
//! connections to our socket, for the ends of links. Others use the same thread, who have asked for
//! nothing. So that work comes in turns that are short, after which all the others have theirs; and
//! what a peer makes us do in vain has a part of a thread's time. A peer that had its part waits:
//! nothing of it is read until enough time has passed without such work, and it finds its socket
//! full.
//!
//! An honest peer notices nothing of that. What brings an upgrade forward is not counted at all,
//! for it costs a connection that the application has accepted: an offer that is matched, each step
//! after that, the DETACH at its end. (One that was matched for nothing is counted in the end.)
//! What it does besides, it asks, lends and rings, is far less than its part; and nobody waits for
//! what others did.
//!
//! Time is that of the clock, which costs no system call. Where the machine takes a thread away in
//! the middle of a turn, no peer pays for that: of a turn that was long the kernel is asked. A turn
//! of useful messages is as long as it is.

use std::cell::Cell;
use std::time::Duration;

use crate::ism::sys::PeerCred;
use crate::link::pace::{Known, name_of};
use crate::link::reactor::Reactor;
use crate::sync::{Arc, AtomicU64, Mutex, Ordering, lock};

/// After so long a turn ends with what it is at: no shorter than it takes to match an offer, and so
/// short that whoever has to wait for some of them does not notice.
const TURN: Duration = Duration::from_micros(100);

/// What it takes to match an offer, to undo that, and to end what was begun for its stream; where
/// that takes less, who has offers matched for nothing pays more.
const OF_A_MATCH: Duration = Duration::from_micros(300);

/// A part of a thread's time.
struct Part {
    /// One in so many.
    of: u32,
    /// So much may be taken at once.
    at_once: Duration,
}

const OF_A_PEER: Part = Part { of: 8, at_once: Duration::from_millis(100) };
/// When all of them have taken that, time counts [`CROWDED`] times for each: else some processes of
/// one user would take it all.
const OF_ALL_PEERS: Part = Part { of: 4, at_once: Duration::from_millis(200) };
const CROWDED: u32 = 4;
/// Each costs some ten microseconds: that is some thousand in a second.
const OF_THE_TURNED_AWAY: Part = Part { of: 16, at_once: TURN };

/// Nobody waits for longer than that before something of it is read: far less than anybody waits
/// for a step of an upgrade.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

impl Part {
    /// `through` is when somebody would be through with what it has taken if it had taken no more
    /// than its part at any time. Adds `time`, as far as that counts.
    fn take(&self, through: &AtomicU64, time: Duration, now: Duration) {
        let latest = now + self.at_once * self.of + LONGEST_PAUSE;
        // Relaxed: the number is all there is to it.
        let mut before = through.load(Ordering::Relaxed);
        loop {
            let after = Duration::from_nanos(before).max(now) + time * self.of;
            let after = after.min(latest).as_nanos() as u64;
            match through.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => before = other,
            }
        }
    }

    /// For how long who is through then may take no more.
    fn pause(&self, through: &AtomicU64, now: Duration) -> Option<Duration> {
        // Relaxed: as in `take`.
        let through = Duration::from_nanos(through.load(Ordering::Relaxed));
        Some(through.saturating_sub(now + self.at_once * self.of)).filter(|pause| !pause.is_zero())
    }
}

/// Some work that has begun.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    began: Duration,
}

impl Turn {
    pub(crate) fn begin(reactor: &dyn Reactor) -> Self {
        Turn { began: reactor.clock() }
    }

    /// Should others have a turn?
    pub(crate) fn is_over(self, reactor: &dyn Reactor) -> bool {
        reactor.clock().saturating_sub(self.began) >= TURN
    }

    /// What it has taken of this thread, and when that was.
    pub(crate) fn taken(self, reactor: &dyn Reactor) -> (Duration, Duration) {
        let now = reactor.clock();
        let time = now.saturating_sub(self.began);
        let was_away = time > TURN && was_away(reactor.switches());
        (if was_away { TURN } else { time }, now)
    }
}

/// Whether others have run instead of this thread, which they did so often, since that was asked
/// the last time.
fn was_away(often: u64) -> bool {
    thread_local! {
        static KNOWN: Cell<u64> = const { Cell::new(0) };
    }
    // A thread that ends asks nobody any more.
    KNOWN.try_with(|known| known.replace(often) != often).unwrap_or(true)
}

/// The work that peers of an endpoint have caused lately.
#[derive(Default)]
pub(crate) struct Turns {
    peers: Mutex<Known<Arc<Taken>>>,
    all: Arc<AtomicU64>,
    /// Whoever they are: what they are is not asked before they are turned away.
    turned_away: AtomicU64,
}

/// What a process has taken, over all its links.
pub(crate) struct Taken {
    through: AtomicU64,
    all: Arc<AtomicU64>,
}

impl Turns {
    /// What is known of that one, on which its links agree.
    pub(crate) fn of(&self, peer: &PeerCred, now: Duration) -> Arc<Taken> {
        let mut peers = lock(&self.peers);
        // Relaxed: as in `take`.
        let counts = |taken: &Taken| taken.through.load(Ordering::Relaxed) > now.as_nanos() as u64;
        peers.forget_unless(|taken| Arc::strong_count(taken) > 1 || counts(taken));
        let fresh = || Arc::new(Taken { through: AtomicU64::new(0), all: self.all.clone() });
        peers.of.entry(name_of(peer)).or_insert_with(fresh).clone()
    }

    /// So much time was spent to turn somebody away: for how long nobody is to be now.
    pub(crate) fn turned_away(&self, (time, now): (Duration, Duration)) -> Option<Duration> {
        OF_THE_TURNED_AWAY.take(&self.turned_away, time, now);
        // Some in a row, and then all of the pause: each has a cost of its own.
        let pause = OF_THE_TURNED_AWAY.pause(&self.turned_away, now)?;
        Some(pause + OF_THE_TURNED_AWAY.at_once * OF_THE_TURNED_AWAY.of)
    }
}

impl Taken {
    /// So much was done in vain.
    pub(crate) fn spent(&self, (time, now): (Duration, Duration)) {
        let crowded = OF_ALL_PEERS.pause(&self.all, now).is_some();
        OF_ALL_PEERS.take(&self.all, time, now);
        OF_A_PEER.take(&self.through, if crowded { time * CROWDED } else { time }, now);
    }

    /// So many offers were matched for nothing.
    pub(crate) fn matched_in_vain(&self, offers: u32, now: Duration) {
        // Without a clock nothing is measured.
        if offers > 0 && !now.is_zero() {
            self.spent((OF_A_MATCH * offers, now));
        }
    }

    /// For how long no more is to be done, if it has had its part.
    pub(crate) fn pause(&self, reactor: &dyn Reactor) -> Option<Duration> {
        // Who has done nothing in vain is not even looked at. Relaxed: as in `take`.
        if self.through.load(Ordering::Relaxed) == 0 {
            return None;
        }
        OF_A_PEER.pause(&self.through, reactor.clock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ism::sys;
    use crate::link::pace::FEW;

    const NOW: Duration = Duration::from_secs(1_000_000);
    const SOME: Duration = Duration::from_millis(1);

    fn ours(pid: i32) -> PeerCred {
        PeerCred { pid, uid: sys::effective_uid(), gid: 0 }
    }

    fn pause(taken: &Taken, now: Duration) -> Option<Duration> {
        OF_A_PEER.pause(&taken.through, now)
    }

    /// How much a peer gets done until it has to pause, without any time between.
    fn at_once(taken: &Taken, now: Duration) -> Duration {
        let mut done = Duration::ZERO;
        while pause(taken, now).is_none() {
            taken.spent((SOME, now));
            done += SOME;
        }
        done
    }

    #[test]
    fn a_peer_has_its_part_at_once_and_then_as_time_brings_it() {
        let turns = Turns::default();
        let taken = turns.of(&ours(1), NOW);
        assert_eq!(at_once(&taken, NOW), OF_A_PEER.at_once + SOME);
        assert_eq!(pause(&turns.of(&ours(1), NOW), NOW), Some(SOME * OF_A_PEER.of), "all links of it");
        let later = NOW + Duration::from_millis(88);
        assert_eq!(at_once(&taken, later), Duration::from_millis(11), "an eighth");
        let much_later = NOW + Duration::from_secs(3600);
        assert_eq!(at_once(&taken, much_later), OF_A_PEER.at_once + SOME, "and no more");
    }

    #[test]
    fn when_all_have_had_their_part_each_gets_less_and_who_did_nothing_in_vain_does_not_wait() {
        let turns = Turns::default();
        let some = OF_A_PEER.at_once + SOME;
        assert_eq!(at_once(&turns.of(&ours(1), NOW), NOW), some);
        assert_eq!(at_once(&turns.of(&ours(2), NOW), NOW), some);
        let honest = turns.of(&ours(3), NOW);
        assert_eq!(pause(&honest, NOW), None);
        let less = at_once(&honest, NOW);
        assert!(less < OF_A_PEER.at_once / (CROWDED - 1), "{less:?}");
    }

    #[test]
    fn nobody_waits_for_long() {
        let taken = Turns::default().of(&ours(1), NOW);
        taken.spent((Duration::from_secs(3600), NOW));
        taken.matched_in_vain(u32::MAX, NOW);
        assert_eq!(pause(&taken, NOW), Some(LONGEST_PAUSE));
    }

    #[test]
    fn who_has_gone_and_is_through_is_forgotten() {
        let turns = Turns::default();
        let stays = turns.of(&ours(1), NOW);
        stays.spent((SOME, NOW));
        for round in 0..100_u32 {
            let now = NOW + Duration::from_secs(1) * round;
            for pid in 0..50 {
                turns.of(&ours(2 + pid + 50 * round as i32), now).spent((SOME, now));
            }
        }
        let known = lock(&turns.peers).of.len();
        assert!(known <= 2 * FEW + 50, "{known} of 5000");
        assert!(Arc::ptr_eq(&stays, &turns.of(&ours(1), NOW)));
    }

    #[test]
    fn who_is_turned_away_is_so_in_short_turns() {
        let turns = Turns::default();
        let step = Duration::from_micros(10);
        let mut now = NOW;
        for round in 0..5 {
            let taken = (1..100).find(|_| {
                now += step;
                turns.turned_away((step, now)).is_some()
            });
            assert!(matches!(taken, Some(10..=11)), "round {round}: {taken:?}");
            now += TURN * OF_THE_TURNED_AWAY.of;
        }
        assert_eq!(pause(&turns.of(&ours(1), now), now), None, "that is nobody's part");
    }

    #[test]
    fn without_a_clock_nothing_is_measured() {
        let taken = Turns::default().of(&ours(1), Duration::ZERO);
        for _ in 0..100_000 {
            taken.spent((Duration::ZERO, Duration::ZERO));
            taken.matched_in_vain(1, Duration::ZERO);
        }
        assert_eq!(pause(&taken, Duration::ZERO), None);
    }

    #[test]
    fn others_have_run_or_not_since_the_last_time() {
        let asked = [0, 3, 3, 3, 4, 4].map(was_away);
        assert_eq!(asked, [false, true, false, false, true, false]);
    }
}
