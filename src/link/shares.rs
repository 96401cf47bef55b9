//! Who has how much of something of which there is only so much: when it is all given out, the
//! greediest peer gives way, with what it took last, and who has it for long keeps it. What is in
//! use is never taken back.

use std::collections::{BTreeSet, HashMap};

use crate::ism::sys::{self, PeerCred};
use crate::sync::{Arc, Mutex, lock, rank};

/// Of a user that is not ours at most this part.
const OTHERS_PART: usize = 2;

/// How many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Most {
    pub(crate) all: usize,
    /// How many of them a user may have that is not ours.
    pub(crate) of_a_user: usize,
    /// What one that wants many leaves.
    pub(crate) greed: Greed,
}

/// What one process, or a user that is not ours, leaves to those who come later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greed {
    /// Nothing: what others want is taken back.
    TakesAll,
    /// Half of what all others leave, for what is in use is not taken back.
    LeavesHalf,
}

impl Most {
    /// So many, of which a user that is not ours has half.
    pub(crate) fn of(all: usize) -> Most {
        Most { all, of_a_user: (all / OTHERS_PART).max(1), greed: Greed::TakesAll }
    }

    /// Whether who has `theirs` of the `given` has all that it may have.
    fn is_share(&self, theirs: usize, given: usize) -> bool {
        let left_by_others = self.all.saturating_sub(given - theirs);
        // The first is not from what has to be left.
        self.greed == Greed::LeavesHalf && theirs > 0 && theirs >= left_by_others.div_ceil(2)
    }
}

/// What one process, or one user, has: by number, the youngest last.
type Held = BTreeSet<u64>;

/// What is given out to peers, by user and process. (Processes that this one has no number for, for
/// they are in another pid namespace, are one.)
#[derive(Debug, Default)]
pub(crate) struct Shares {
    held: HashMap<(u32, i32), Held>,
    /// By user, how many.
    users: HashMap<u32, usize>,
    all: usize,
    next: u64,
}

/// The answer to who wants one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// It has this number now.
    Given(u64),
    /// The same, and that other one has been taken back: its holder has to be told.
    Instead { number: u64, of: u64 },
    /// Nobody has much more than the peer would have.
    Refused(Taken),
}

/// What is all given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    All,
    /// What the peer's process may have.
    OfTheProcess,
    /// What the peer's user may have.
    OfTheUser,
}

impl Shares {
    /// Gives `peer` one more of the `most` that there are; of what others have, `may_go` says
    /// whether it can be taken back, and if so it is.
    pub(crate) fn take(&mut self, most: Most, peer: &PeerCred, may_go: impl FnMut(u64) -> bool) -> Share {
        let of_user = self.users.get(&peer.uid).copied().unwrap_or(0);
        let of_process = self.held.get(&(peer.uid, peer.pid)).map_or(0, Held::len);
        let foreign = !sys::is_user(peer.uid, sys::effective_uid());
        let (among, taken) = if foreign && (of_user >= most.of_a_user || most.is_share(of_user, self.all)) {
            (Some(peer.uid), Taken::OfTheUser)
        } else if !sys::is_this_process(peer.pid) && most.is_share(of_process, self.all) {
            return Share::Refused(Taken::OfTheProcess);
        } else if self.all >= most.all {
            (None, Taken::All)
        } else {
            return Share::Given(self.give(peer));
        };
        let Some((greedy, of)) = self.greediest(among, of_process + 1, may_go) else {
            return Share::Refused(taken);
        };
        self.give_back(&greedy, of);
        Share::Instead { number: self.give(peer), of }
    }

    /// The process, of that user, that has the most of which something may go, and more than so
    /// many; and what it took last of that. Our own is none: it is not the one to be told from.
    fn greediest(
        &self,
        among: Option<u32>,
        more_than: usize,
        mut may_go: impl FnMut(u64) -> bool,
    ) -> Option<(PeerCred, u64)> {
        let greedy = self.held.iter().filter(|((uid, pid), held)| {
            among.is_none_or(|user| user == *uid) && !sys::is_this_process(*pid) && held.len() > more_than
        });
        let mut greedy = Vec::from_iter(greedy);
        greedy.sort_unstable_by_key(|(_, held)| std::cmp::Reverse((held.len(), held.last().copied())));
        greedy.into_iter().find_map(|(&(uid, pid), held)| {
            let of = held.iter().rev().copied().find(|number| may_go(*number))?;
            Some((PeerCred { pid, uid, gid: 0 }, of))
        })
    }

    fn give(&mut self, peer: &PeerCred) -> u64 {
        self.next += 1;
        self.held.entry((peer.uid, peer.pid)).or_default().insert(self.next);
        *self.users.entry(peer.uid).or_default() += 1;
        self.all += 1;
        self.next
    }

    fn has(&self, peer: &PeerCred, number: u64) -> bool {
        self.held.get(&(peer.uid, peer.pid)).is_some_and(|held| held.contains(&number))
    }

    /// The peer does not hold that one any more; it may have been taken back already.
    pub(crate) fn give_back(&mut self, peer: &PeerCred, number: u64) {
        let holder = (peer.uid, peer.pid);
        let Some(held) = self.held.get_mut(&holder) else { return };
        if !held.remove(&number) {
            return;
        }
        if held.is_empty() {
            self.held.remove(&holder);
        }
        self.all -= 1;
        if let Some(count) = self.users.get_mut(&peer.uid) {
            *count -= 1;
            if *count == 0 {
                self.users.remove(&peer.uid);
            }
        }
    }
}

/// [`Shares`] of things, and how each of them is told that it was taken back.
pub(crate) struct Holders<T> {
    table: Mutex<(Shares, HashMap<u64, T>), rank::Shares>,
}

impl<T> Default for Holders<T> {
    fn default() -> Self {
        Holders { table: Mutex::default() }
    }
}

/// One share, until it is dropped.
pub(crate) struct Holder<T> {
    holders: Arc<Holders<T>>,
    peer: PeerCred,
    number: u64,
}

impl<T> Holders<T> {
    /// Gives `peer` one more of the `most` that there are, and returns what it was taken from, if
    /// it was: `goes` is asked until one thing does.
    ///
    /// # Errors
    ///
    /// Of what there is none for it.
    pub(crate) fn take(
        self: &Arc<Self>,
        most: Most,
        peer: PeerCred,
        mut goes: impl FnMut(&T) -> bool,
    ) -> Result<(Holder<T>, Option<T>), Taken> {
        let mut table = lock(&self.table);
        let (shares, things) = &mut *table;
        // Of one that is not known yet, it is being made.
        let may_go = |number| things.get(&number).is_some_and(&mut goes);
        let (number, of) = match shares.take(most, &peer, may_go) {
            Share::Given(number) => (number, None),
            Share::Instead { number, of } => (number, Some(of)),
            Share::Refused(taken) => return Err(taken),
        };
        let loser = of.and_then(|of| table.1.remove(&of));
        Ok((Holder { holders: self.clone(), peer, number }, loser))
    }
}

impl<T> Holder<T> {
    /// That is it; `false` when it was taken back already.
    pub(crate) fn is(&self, thing: T) -> bool {
        let mut table = lock(&self.holders.table);
        let held = table.0.has(&self.peer, self.number);
        if held {
            table.1.insert(self.number, thing);
        }
        held
    }
}

impl<T> Drop for Holder<T> {
    fn drop(&mut self) {
        let gone = {
            let mut table = lock(&self.holders.table);
            table.0.give_back(&self.peer, self.number);
            table.1.remove(&self.number)
        };
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(pid: i32) -> PeerCred {
        PeerCred { pid, uid: sys::effective_uid(), gid: 0 }
    }

    fn theirs(pid: i32) -> PeerCred {
        PeerCred { pid, uid: sys::effective_uid() ^ 1, gid: 0 }
    }

    fn take(shares: &mut Shares, most: Most, peer: &PeerCred) -> Share {
        shares.take(most, peer, |_| true)
    }

    fn fill(shares: &mut Shares, most: usize, peers: &[PeerCred]) -> Vec<Share> {
        peers.iter().map(|peer| take(shares, Most::of(most), peer)).collect()
    }

    // Process 1 is no test.
    const GREEDY: i32 = 1;

    #[test]
    fn the_greediest_gives_way_with_what_it_took_last() {
        let mut shares = Shares::default();
        fill(&mut shares, 6, &[ours(2), ours(GREEDY), ours(GREEDY), ours(GREEDY), ours(GREEDY), ours(3)]);
        assert_eq!(
            take(&mut shares, Most::of(6), &ours(GREEDY)),
            Share::Refused(Taken::All),
            "the newest of the greediest is itself"
        );
        assert_eq!(take(&mut shares, Most::of(6), &ours(4)), Share::Instead { number: 7, of: 5 });
        assert_eq!(take(&mut shares, Most::of(6), &ours(5)), Share::Instead { number: 8, of: 4 });
        assert_eq!(take(&mut shares, Most::of(6), &ours(6)), Share::Instead { number: 9, of: 3 });
        assert_eq!(
            take(&mut shares, Most::of(6), &ours(7)),
            Share::Refused(Taken::All),
            "all have one: those of long ago stay"
        );
        shares.give_back(&ours(GREEDY), 2);
        // It was taken back long ago.
        shares.give_back(&ours(GREEDY), 5);
        assert_eq!(take(&mut shares, Most::of(6), &ours(7)), Share::Given(10));
    }

    #[test]
    fn many_processes_of_another_user_have_half_at_most() {
        let mut shares = Shares::default();
        let given = fill(&mut shares, 8, &[1, 2, 3, 4].map(theirs));
        assert!(given.iter().all(|share| matches!(share, Share::Given(_))));
        assert_eq!(take(&mut shares, Most::of(8), &theirs(5)), Share::Refused(Taken::OfTheUser));
        assert_eq!(take(&mut shares, Most::of(8), &ours(6)), Share::Given(5));
        // And who is greedy among them gives way to its own.
        shares.give_back(&theirs(1), 1);
        shares.give_back(&theirs(2), 2);
        fill(&mut shares, 8, &[theirs(3), theirs(3)]);
        assert_eq!(take(&mut shares, Most::of(8), &theirs(9)), Share::Instead { number: 8, of: 7 });
    }

    #[test]
    fn another_user_has_as_many_as_it_may_have() {
        let (mut shares, most) = (Shares::default(), Most { of_a_user: 2, ..Most::of(8) });
        assert_eq!(take(&mut shares, most, &theirs(1)), Share::Given(1));
        assert_eq!(take(&mut shares, most, &theirs(1)), Share::Given(2));
        assert_eq!(take(&mut shares, most, &theirs(1)), Share::Refused(Taken::OfTheUser));
        assert_eq!(take(&mut shares, most, &theirs(2)), Share::Instead { number: 3, of: 2 });
        assert_eq!(take(&mut shares, most, &theirs(3)), Share::Refused(Taken::OfTheUser));
        assert_eq!(take(&mut shares, most, &ours(4)), Share::Given(4));
        let none = Most { of_a_user: 0, ..Most::of(8) };
        assert_eq!(take(&mut Shares::default(), none, &theirs(1)), Share::Refused(Taken::OfTheUser));
        assert_eq!(take(&mut Shares::default(), none, &ours(1)), Share::Given(1));
    }

    #[test]
    fn this_process_is_not_told_from() {
        let mut shares = Shares::default();
        let own = ours(i32::try_from(std::process::id()).unwrap());
        fill(&mut shares, 4, &[own, own, own, own]);
        assert_eq!(take(&mut shares, Most::of(4), &ours(1)), Share::Refused(Taken::All));
        assert_eq!(take(&mut shares, Most::of(5), &ours(1)), Share::Given(5));
    }

    #[test]
    fn what_is_given_back_leaves_nothing() {
        let mut shares = Shares::default();
        for _ in 0..3 {
            let Share::Given(number) = take(&mut shares, Most::of(1), &theirs(1)) else {
                panic!("it is free")
            };
            assert_eq!(take(&mut shares, Most::of(1), &ours(2)), Share::Refused(Taken::All));
            shares.give_back(&theirs(1), number);
            shares.give_back(&theirs(1), number);
        }
        assert!(shares.held.is_empty() && shares.users.is_empty() && shares.all == 0);
    }

    #[test]
    fn what_is_in_use_stays_whoever_is_greedy() {
        let mut shares = Shares::default();
        fill(&mut shares, 7, &[ours(GREEDY), ours(GREEDY), ours(GREEDY), ours(2), ours(2), ours(3), ours(3)]);
        let one = |shares: &mut Shares, free: &[u64]| {
            shares.take(Most::of(7), &ours(4), |number| free.contains(&number))
        };
        assert_eq!(one(&mut shares, &[]), Share::Refused(Taken::All));
        assert_eq!(one(&mut shares, &[1, 2, 7]), Share::Instead { number: 8, of: 2 });
        // It has as many as would then have the one that asks.
        assert_eq!(one(&mut shares, &[1, 8]), Share::Refused(Taken::All));
        assert_eq!(
            shares.take(Most::of(7), &ours(5), |number| number == 6),
            Share::Instead { number: 9, of: 6 },
            "nothing of the greediest may go, and of who has less"
        );
    }

    #[test]
    fn who_is_greedy_leaves_half_of_what_others_leave() {
        let mut shares = Shares::default();
        let most = Most { greed: Greed::LeavesHalf, ..Most::of(16) };
        let mut take_all = |peer: &PeerCred, last: Taken| {
            let mut given = 0;
            loop {
                match shares.take(most, peer, |_| false) {
                    Share::Given(_) => given += 1,
                    Share::Refused(taken) if taken == last => return given,
                    share => panic!("{share:?} after {given}"),
                }
            }
        };
        assert_eq!(take_all(&theirs(1), Taken::OfTheUser), 8);
        assert_eq!(take_all(&theirs(2), Taken::OfTheUser), 0, "the user has its share");
        assert_eq!(take_all(&ours(1), Taken::OfTheProcess), 4);
        assert_eq!(take_all(&ours(2), Taken::OfTheProcess), 2);
        assert_eq!(take_all(&ours(3), Taken::OfTheProcess), 1);
        let own = ours(i32::try_from(std::process::id()).unwrap());
        assert_eq!(take_all(&own, Taken::All), 1, "this process takes what there is");
        assert_eq!(take_all(&ours(4), Taken::All), 0);
    }

    #[test]
    fn a_limit_that_was_lowered_takes_nothing_back() {
        let mut shares = Shares::default();
        fill(&mut shares, 8, &[ours(GREEDY), ours(GREEDY), ours(GREEDY), ours(2)]);
        let low = Most { greed: Greed::LeavesHalf, ..Most::of(2) };
        assert_eq!(shares.take(low, &ours(GREEDY), |_| false), Share::Refused(Taken::OfTheProcess));
        assert_eq!(shares.take(low, &ours(3), |_| false), Share::Refused(Taken::All));
        assert_eq!(shares.take(low, &ours(3), |_| true), Share::Instead { number: 5, of: 3 });
    }
}
