//! What work for peers takes of a runtime's time. Whoever asks makes us work: for messages, for
//! connections to our socket, for the ends of links. Others use the same thread, who have asked for
//! nothing. So that work comes in turns that are short, after which all the others have theirs; and
//! a peer gets a part of a thread's time, all peers together get more of it, and who is not let in
//! gets little. A peer that had its part waits: nothing of it is read until enough time has passed
//! without work for it, and it finds its socket full.
//!
//! An honest peer notices nothing of that: an upgrade that comes about brings what it takes, from
//! OFFER to DETACH, and a thousand may begin at once. It costs a connection that the application
//! has accepted, whoever makes it, and counts once for each.
//!
//! Time is that of the clock, not of the processor, which would cost a system call each time: where
//! the machine takes a thread away in the middle of such work, a peer pays for that, too, up to
//! what such work may take.

use std::time::Duration;

use crate::ism::sys::PeerCred;
use crate::link::pace::{Ledger, Peer, name_of};
use crate::sync::{Mutex, lock};

/// After so long a turn ends with what it is at: no shorter than it takes to match an offer, and so
/// short that whoever has to wait for some of them does not notice.
const TURN: Duration = Duration::from_micros(100);

/// What lasts longer is the machine's doing: a process that is stopped in the middle of a turn, for
/// an hour, does not make its peers wait for a day.
const LONGEST: Duration = Duration::from_millis(20);

/// A part of a thread's time.
struct Part {
    /// One in so many.
    of: u32,
    /// So much may be taken at once.
    at_once: Duration,
}

/// An honest peer that upgrades nothing asks, lends, and rings: less than that by far.
const OF_A_PEER: Part = Part { of: 8, at_once: Duration::from_millis(100) };
/// Else some processes of one user would take it all.
const OF_ALL_PEERS: Part = Part { of: 4, at_once: Duration::from_millis(200) };
/// Each costs some ten microseconds: that is some thousand in a second.
const OF_THE_TURNED_AWAY: Part = Part { of: 16, at_once: TURN };

impl Part {
    /// The latest time to be through at, for who may take more now.
    fn bound(&self, now: Duration) -> Duration {
        now + self.at_once * self.of
    }
}

/// An upgrade takes either end half of that, and where the machine is busy more.
const OF_AN_UPGRADE: Duration = Duration::from_micros(300);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Who {
    One(Peer),
    All,
    /// Whoever they are: what they are is not asked before they are turned away.
    TurnedAway,
}

/// The work that peers of an endpoint have caused lately.
#[derive(Default)]
pub(crate) struct Turns {
    taken: Mutex<Ledger<Who>>,
}

/// Some work that has begun.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    began: Duration,
}

impl Turn {
    /// Begins at that time of the monotonic clock; 0 where there is none, and then it has no end.
    pub(crate) fn begin(now: Duration) -> Self {
        Turn { began: now }
    }

    /// Should others have a turn?
    pub(crate) fn is_over(self, now: Duration) -> bool {
        self.taken(now) >= TURN
    }

    /// For how long it has lasted, as far as that counts.
    pub(crate) fn taken(self, now: Duration) -> Duration {
        now.saturating_sub(self.began).min(LONGEST)
    }
}

impl Turns {
    /// So much time was spent for `peer`.
    pub(crate) fn spent(&self, peer: &PeerCred, time: Duration, now: Duration) {
        let mut taken = lock(&self.taken);
        for (who, part) in [(Who::One(name_of(peer)), OF_A_PEER), (Who::All, OF_ALL_PEERS)] {
            let through = taken.through(&who, now) + time * part.of;
            taken.set(who, through, now);
        }
    }

    /// A connection to `peer` is upgraded.
    pub(crate) fn earned(&self, peer: &PeerCred, now: Duration) {
        let mut taken = lock(&self.taken);
        for (who, part) in [(Who::One(name_of(peer)), OF_A_PEER), (Who::All, OF_ALL_PEERS)] {
            let through = taken.through(&who, now).saturating_sub(OF_AN_UPGRADE * part.of);
            taken.set(who, through.max(now), now);
        }
    }

    /// For how long no more is to be done for `peer`, if it has had its part.
    pub(crate) fn pause(&self, peer: &PeerCred, now: Duration) -> Option<Duration> {
        let taken = lock(&self.taken);
        let of_one = taken.through(&Who::One(name_of(peer)), now).saturating_sub(OF_A_PEER.bound(now));
        let of_all = taken.through(&Who::All, now).saturating_sub(OF_ALL_PEERS.bound(now));
        Some(of_one.max(of_all)).filter(|pause| !pause.is_zero())
    }

    /// So much time was spent to turn somebody away: for how long nobody is to be now.
    pub(crate) fn turned_away(&self, time: Duration, now: Duration) -> Option<Duration> {
        let mut taken = lock(&self.taken);
        let through = taken.through(&Who::TurnedAway, now) + time * OF_THE_TURNED_AWAY.of;
        taken.set(Who::TurnedAway, through, now);
        // Some in a row, and then all of the pause: each has a cost of its own.
        (through > OF_THE_TURNED_AWAY.bound(now)).then(|| through - now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ism::sys;

    const NOW: Duration = Duration::from_secs(1_000_000);
    const SOME: Duration = Duration::from_millis(1);

    fn ours(pid: i32) -> PeerCred {
        PeerCred { pid, uid: sys::effective_uid(), gid: 0 }
    }

    /// How much a peer gets done until it has to pause, without any time between.
    fn at_once(turns: &Turns, peer: &PeerCred, now: Duration) -> Duration {
        let mut done = Duration::ZERO;
        while turns.pause(peer, now).is_none() {
            turns.spent(peer, SOME, now);
            done += SOME;
        }
        done
    }

    #[test]
    fn a_peer_has_its_part_at_once_and_then_as_time_brings_it() {
        let turns = Turns::default();
        assert_eq!(at_once(&turns, &ours(1), NOW), OF_A_PEER.at_once + SOME);
        assert_eq!(turns.pause(&ours(1), NOW), Some(SOME * OF_A_PEER.of));
        let later = NOW + Duration::from_millis(88);
        assert_eq!(at_once(&turns, &ours(1), later), Duration::from_millis(11), "an eighth");
        let much_later = NOW + Duration::from_secs(3600);
        assert_eq!(at_once(&turns, &ours(1), much_later), OF_A_PEER.at_once + SOME, "and no more");
    }

    #[test]
    fn many_peers_share_what_all_of_them_have() {
        let turns = Turns::default();
        let done: Duration = (1..=5).map(|pid| at_once(&turns, &ours(pid), NOW)).sum();
        assert_eq!(done, OF_ALL_PEERS.at_once + SOME);
        assert!(turns.pause(&ours(6), NOW).is_some());
        assert_eq!(turns.pause(&ours(6), NOW + OF_ALL_PEERS.of * SOME), None);
    }

    #[test]
    fn an_upgrade_brings_what_it_takes_and_nothing_for_later() {
        let turns = Turns::default();
        turns.earned(&ours(1), NOW);
        at_once(&turns, &ours(1), NOW);
        for _ in 0..1000 {
            turns.earned(&ours(1), NOW);
        }
        assert_eq!(at_once(&turns, &ours(1), NOW), OF_A_PEER.at_once + SOME, "no more than at first");
        for _ in 0..10_000 {
            turns.spent(&ours(2), OF_AN_UPGRADE, NOW);
            turns.earned(&ours(2), NOW);
        }
        assert_eq!(turns.pause(&ours(2), NOW), None);
    }

    #[test]
    fn who_is_turned_away_is_so_in_short_turns() {
        let turns = Turns::default();
        let step = Duration::from_micros(10);
        let mut now = NOW;
        for round in 0..5 {
            let taken = (1..100).find(|_| {
                now += step;
                turns.turned_away(step, now).is_some()
            });
            assert!(matches!(taken, Some(10..=11)), "round {round}: {taken:?}");
            now += TURN * OF_THE_TURNED_AWAY.of;
        }
        assert_eq!(turns.pause(&ours(1), now), None, "that is nobody's part");
    }

    #[test]
    fn without_a_clock_nothing_is_measured() {
        let (turns, turn) = (Turns::default(), Turn::begin(Duration::ZERO));
        for _ in 0..100_000 {
            turns.spent(&ours(1), turn.taken(Duration::ZERO), Duration::ZERO);
            assert!(!turn.is_over(Duration::ZERO));
        }
        assert_eq!(turns.pause(&ours(1), Duration::ZERO), None);
    }

    #[test]
    fn a_turn_is_over_after_its_time() {
        let turn = Turn::begin(NOW);
        assert!(!turn.is_over(NOW + TURN / 2) && turn.is_over(NOW + TURN));
        assert_eq!(turn.taken(NOW + TURN), TURN);
        let an_hour = NOW + Duration::from_secs(3600);
        assert_eq!(turn.taken(an_hour), LONGEST, "the process was stopped");
    }
}
