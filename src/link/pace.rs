//! How fast each peer may connect to an endpoint's socket: so many times in a second for long, and
//! ten seconds' worth of them at once.

use std::collections::HashMap;
use std::time::Duration;

use crate::ism::sys::PeerCred;
use crate::peer::is_same_user;
use crate::sync::{Mutex, lock};

/// What may come at once comes so early at most.
const BURST: Duration = Duration::from_secs(10);
/// Peers that are remembered before those are forgotten that have waited long enough.
pub(super) const FEW: usize = 64;

/// A process of this user (processes that have no number here are one), or another user.
pub(super) type Peer = (u32, Option<i32>);

pub(super) fn name_of(peer: &PeerCred) -> Peer {
    (peer.uid, is_same_user(peer).then_some(peer.pid))
}

/// What is remembered of peers.
pub(super) struct Known<T> {
    pub(super) of: HashMap<Peer, T>,
    /// Of how many on those are looked for that need not be known.
    many: usize,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Known { of: HashMap::new(), many: 0 }
    }
}

impl<T> Known<T> {
    /// Where there are many forgets those that are not `needed`.
    pub(super) fn forget_unless(&mut self, needed: impl Fn(&T) -> bool) {
        if self.of.len() > self.many.max(FEW) {
            self.of.retain(|_, known| needed(known));
            // Twice as many have to come before the next look.
            self.many = 2 * self.of.len();
        }
    }
}

pub(crate) struct Pace {
    /// Between two connections of a peer; `None`: nobody may come.
    step: Option<Duration>,
    /// When each would be through if it had come no faster than it may; who is through already need
    /// not be known.
    peers: Mutex<Known<Duration>>,
}

impl Pace {
    pub(crate) fn new(per_second: usize) -> Self {
        let nanos = 1_000_000_000_usize.checked_div(per_second);
        Pace { step: nanos.map(|nanos| Duration::from_nanos(nanos as u64)), peers: Mutex::default() }
    }

    /// Whether `peer` may come once more at that time of the monotonic clock.
    pub(crate) fn admits(&self, peer: &PeerCred, now: Duration) -> bool {
        let Some(step) = self.step else { return false };
        if now.is_zero() {
            // There is no clock.
            return true;
        }
        let peer = name_of(peer);
        let mut peers = lock(&self.peers);
        let through = peers.of.get(&peer).map_or(now, |through| now.max(*through)) + step;
        if through > now + BURST {
            return false;
        }
        peers.of.insert(peer, through);
        peers.forget_unless(|through| *through > now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ism::sys;

    const NOW: Duration = Duration::from_secs(1_000_000);

    fn ours(pid: i32) -> PeerCred {
        PeerCred { pid, uid: sys::effective_uid(), gid: 0 }
    }

    fn admitted(pace: &Pace, peer: &PeerCred, now: Duration) -> usize {
        (0..100_000).take_while(|_| pace.admits(peer, now)).count()
    }

    #[test]
    fn ten_seconds_worth_may_come_at_once_and_then_as_many_as_time_brings() {
        let pace = Pace::new(100);
        assert_eq!(admitted(&pace, &ours(1), NOW), 1000);
        assert_eq!(admitted(&pace, &ours(2), NOW), 1000, "each process has its own");
        assert_eq!(admitted(&pace, &ours(1), NOW), 0);
        assert_eq!(admitted(&pace, &ours(1), NOW + Duration::from_millis(30)), 3);
        assert_eq!(admitted(&pace, &ours(1), NOW + Duration::from_secs(1)), 97);
        assert_eq!(admitted(&pace, &ours(1), NOW + Duration::from_secs(3600)), 1000, "and no more");
    }

    #[test]
    fn processes_of_another_user_are_one() {
        let theirs = |pid| PeerCred { uid: sys::effective_uid() ^ 1, ..ours(pid) };
        let pace = Pace::new(1);
        assert_eq!(admitted(&pace, &theirs(1), NOW), 10);
        assert_eq!(admitted(&pace, &theirs(2), NOW), 0);
        assert_eq!(admitted(&pace, &ours(1), NOW), 10);
    }

    #[test]
    fn none_is_none_and_very_many_are_all() {
        assert_eq!(admitted(&Pace::new(0), &ours(1), NOW), 0);
        assert_eq!(admitted(&Pace::new(usize::MAX), &ours(1), NOW), 100_000);
        assert_eq!(admitted(&Pace::new(1), &ours(1), Duration::ZERO), 100_000, "no clock");
    }

    #[test]
    fn who_waits_long_enough_is_forgotten() {
        let pace = Pace::new(1000);
        for round in 0..100_u32 {
            let now = NOW + Duration::from_secs(1) * round;
            for pid in 0..50 {
                assert!(pace.admits(&ours(1 + pid + 50 * round as i32), now));
            }
        }
        let known = lock(&pace.peers).of.len();
        assert!(known <= FEW + 50, "{known} of 5000");
    }
}
