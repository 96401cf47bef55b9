//! Accepted streams that may still be upgraded, and the offers and queries that wait for one.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Weak;
use std::time::Duration;

use crate::ism::sys::{PeerCred, canonical, monotonic};
#[cfg(test)]
use crate::link::message::Tuple;
use crate::link::message::{Destination, Subject};
use crate::link::shares::{Most, Share, Shares};
use crate::link::stream::LinkedStream;
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering, lock, rank};
use crate::transport::FallbackReason;

/// Port of the listener and address of the client; the rest of the tuple is checked live at MATCH,
/// so that accept needs no further system call. A client may have one port for connections to
/// several addresses of ours: then several streams have one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key {
    port: u16,
    client: SocketAddr,
}

impl Hash for Key {
    /// In as few pieces as there can be: the hash that nobody can steer costs so much for each, and
    /// each accept takes it.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let ports = u64::from(self.port) << 16 | u64::from(self.client.port());
        match self.client.ip() {
            IpAddr::V4(ip) => state.write_u64(u64::from(u32::from(ip)) << 32 | ports),
            IpAddr::V6(ip) => {
                state.write_u128(ip.into());
                state.write_u64(ports);
            }
        }
    }
}

impl Key {
    pub(crate) fn accepted(port: u16, client: SocketAddr) -> Self {
        Key { port, client: canonical(client) }
    }

    /// Where the other end of the connection that a client describes would be.
    pub(crate) fn of_client(theirs: &Subject) -> Self {
        let port = match theirs.destination {
            Destination::Own => theirs.tuple.remote.port(),
            Destination::Translated => ANY_PORT,
        };
        Key { port, client: theirs.tuple.local }
    }
}

/// Under this port waits who does not know the listener's. (None has it.)
const ANY_PORT: u16 = 0;

/// One more that is not the stream that is looked for. Those that are gone are forgotten: whoever
/// waits long would keep their memory.
pub(crate) fn rule_out(others: &mut Vec<Weak<dyn LinkedStream>>, stream: &Arc<dyn LinkedStream>) {
    others.retain(|other| other.strong_count() > 0);
    others.push(Arc::downgrade(stream));
}

/// Something that waits until a stream is accepted; an error: it never will be, by us, or this end
/// can not know.
pub(crate) type Waiting = Box<dyn FnOnce(Result<Arc<dyn LinkedStream>, FallbackReason>) + Send>;

struct Waiter {
    number: u64,
    /// The connection whose stream it waits for, as its client sees it.
    theirs: Subject,
    /// Whose it is, and its number among those that wait.
    peer: PeerCred,
    share: u64,
    /// When to look whether that stream is still to come, and how long after the look before.
    due: Duration,
    pause: Duration,
    /// At the latest look it was not to come, or nothing was to be seen.
    doubted: bool,
    waiting: Waiting,
}

/// A stream, and its number.
type Numbered = (u64, Weak<dyn LinkedStream>);

#[derive(Default)]
struct Table {
    streams: HashMap<Key, Numbered>,
    /// Of all listeners that streams came from.
    ports: BTreeSet<u16>,
    /// Older ones with the same key.
    older: HashMap<Key, Vec<Numbered>>,
    next: u64,
    waiting: HashMap<Key, Vec<Waiter>>,
    /// Who of the peers waits how often, and under which key each of them.
    shares: Shares,
    shared: HashMap<u64, (Key, u64)>,
    /// When the next sweep comes, if one does.
    next_sweep: Option<Duration>,
}

impl Table {
    /// Somebody has stopped waiting.
    fn gave_up(&mut self, waiter: &Waiter) {
        self.shares.give_back(&waiter.peer, waiter.share);
        self.shared.remove(&waiter.share);
    }

    /// The latest stream under that key, or of the client where it does not know the port, but none
    /// of `others`; all that was looked at is kept for its drop.
    fn find(
        &self,
        key: Key,
        others: &[Weak<dyn LinkedStream>],
        seen: &mut Vec<Arc<dyn LinkedStream>>,
    ) -> Option<Arc<dyn LinkedStream>> {
        let mut look = |key: Key| {
            let older = self.older.get(&key).into_iter().flatten().rev();
            for (number, stream) in self.streams.get(&key).into_iter().chain(older) {
                let is_another = others.iter().any(|other| other.ptr_eq(stream));
                if is_another {
                    continue;
                }
                let Some(stream) = stream.upgrade() else { continue };
                seen.push(stream.clone());
                // A stream that has ended may have left its address to a younger one, which is
                // still to be accepted.
                if !stream.has_ended() {
                    return Some((*number, stream));
                }
            }
            None
        };
        if key.port != ANY_PORT {
            return look(key).map(|(_, stream)| stream);
        }
        let mut latest = None;
        for port in &self.ports {
            let found = look(Key { port: *port, ..key });
            latest = found.into_iter().chain(latest).max_by_key(|(number, _)| *number);
        }
        latest.map(|(_, stream)| stream)
    }

    fn waiter(&mut self, key: Key, number: u64) -> Option<&mut Waiter> {
        self.waiting.get_mut(&key)?.iter_mut().find(|waiter| waiter.number == number)
    }
}

pub(crate) struct AcceptedStreams {
    table: Mutex<Table, rank::AcceptedStreams>,
    /// Offers and queries that may wait; more are refused.
    most: usize,
    /// Number of entries in `waiting`: lets accept pass by without a look.
    waiting: AtomicUsize,
}

/// What waits is first looked at after this time, then after twice, four times as much, and so on.
pub(crate) const FIRST_LOOK: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(16);
/// Looks of one sweep: each costs some system calls, and other tasks wait for their end.
const MOST_LOOKS: usize = 32;

/// Ports that are looked at for a client that does not know its listener's.
const MOST_PORTS: usize = 64;
/// Streams with one key, besides the newest, that can be found.
const MOST_OLDER: usize = 8;

/// Of those that wait a link has at most this part.
const LINKS_PART: usize = 2;

/// What the table knows about a client's connection.
pub(crate) enum Found {
    Stream(Arc<dyn LinkedStream>),
    /// Not accepted yet: it waits under this number. `sweep`: somebody has to come after
    /// [`FIRST_LOOK`]. `instead`: too many wait, and so this one does no more, to be told without a
    /// lock.
    Waits {
        number: u64,
        sweep: bool,
        instead: Option<Waiting>,
    },
    /// Not accepted yet, and too many wait already.
    Full,
}

impl AcceptedStreams {
    /// So many may wait.
    pub(crate) fn new(most: usize) -> Self {
        AcceptedStreams { table: Mutex::default(), most, waiting: AtomicUsize::new(0) }
    }

    /// Offers of one link that may wait.
    pub(crate) fn most_of_a_link(&self) -> usize {
        self.most.div_ceil(LINKS_PART)
    }

    /// Enters a stream. Returns its number and what waited for one with that key.
    pub(crate) fn insert(&self, key: Key, stream: Weak<dyn LinkedStream>) -> (u64, Vec<Waiting>) {
        let mut table = lock(&self.table);
        table.next += 1;
        let number = table.next;
        if let Some(older) = table.streams.insert(key, (number, stream)) {
            let list = table.older.entry(key).or_default();
            list.retain(|(_, stream)| stream.strong_count() > 0);
            if list.len() == MOST_OLDER {
                list.remove(0);
            }
            list.push(older);
        }
        if !table.ports.contains(&key.port) {
            if table.ports.len() == MOST_PORTS {
                table.ports.pop_first();
            }
            table.ports.insert(key.port);
        }
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return (number, Vec::new());
        }
        let mut waited = table.waiting.remove(&key).unwrap_or_default();
        waited.extend(table.waiting.remove(&Key { port: ANY_PORT, ..key }).unwrap_or_default());
        waited.iter().for_each(|waiter| table.gave_up(waiter));
        self.waiting.fetch_sub(waited.len(), Ordering::Relaxed);
        (number, waited.into_iter().map(|waiter| waiter.waiting).collect())
    }

    pub(crate) fn remove(&self, key: Key, number: u64) {
        let mut table = lock(&self.table);
        let Table { streams, older: all_older, .. } = &mut *table;
        let mut older = all_older.get_mut(&key);
        if let Some(older) = &mut older {
            older.retain(|(other, stream)| *other != number && stream.strong_count() > 0);
        }
        if let Entry::Occupied(mut newest) = streams.entry(key) {
            if newest.get().0 == number {
                match older.as_mut().and_then(|older| older.pop()) {
                    Some(next) => drop(newest.insert(next)),
                    None => drop(newest.remove()),
                }
            }
        }
        if older.is_some_and(|older| older.is_empty()) {
            all_older.remove(&key);
        }
    }

    /// Our stream of the connection that a client describes, as far as its key tells; when there is
    /// none yet but `others`, `waiting` is called once it is accepted.
    pub(crate) fn find_or_wait(
        &self,
        theirs: &Subject,
        peer: PeerCred,
        others: &[Weak<dyn LinkedStream>],
        waiting: impl FnOnce() -> Waiting,
    ) -> Found {
        let key = Key::of_client(theirs);
        // Declared before the lock is taken, and so dropped after it: one may have become the last
        // handle, and what a stream drops comes back here.
        let mut seen = Vec::new();
        let mut table = lock(&self.table);
        if let Some(stream) = table.find(key, others, &mut seen) {
            return Found::Stream(stream);
        }
        let (share, of) = match table.shares.take(Most::of(self.most), &peer, |_| true) {
            Share::Given(share) => (share, None),
            Share::Instead { number, of } => (number, Some(of)),
            Share::Refused(_) => return Found::Full,
        };
        let instead = of.and_then(|of| table.shared.get(&of).copied());
        let instead = instead.and_then(|(key, number)| self.take(&mut table, key, number));
        let instead = instead.map(|waiter| waiter.waiting);
        table.next += 1;
        let number = table.next;
        let due = monotonic() + FIRST_LOOK;
        table.shared.insert(share, (key, number));
        let (theirs, waiting) = (*theirs, waiting());
        let waiter = Waiter { number, theirs, peer, share, due, pause: FIRST_LOOK, doubted: false, waiting };
        table.waiting.entry(key).or_default().push(waiter);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let sweep = table.next_sweep.is_none_or(|next| due < next);
        if sweep {
            table.next_sweep = Some(due);
        }
        Found::Waits { number, sweep, instead }
    }

    /// Tells those who wait in vain, for connections that are not `to_come` any more. Returns when
    /// this sweeper has to come again; `None` when nobody waits, or another sweeper comes before.
    ///
    /// It takes two looks to find one: between accept and insertion a stream looks like one that
    /// does not come. Who waits is looked at ever more rarely: what waits for long mostly waits for
    /// a server that is busy.
    pub(crate) fn sweep(
        &self,
        now: Duration,
        to_come: impl Fn(&Subject) -> Result<(), FallbackReason>,
    ) -> Option<Duration> {
        let mut due = Vec::new();
        {
            let mut table = lock(&self.table);
            table.next_sweep = table.next_sweep.filter(|next| *next > now);
            for (key, waiters) in &table.waiting {
                let looks = waiters.iter().filter(|waiter| waiter.due <= now);
                due.extend(looks.map(|waiter| (*key, waiter.number, waiter.theirs)));
            }
        }
        for (key, number, theirs) in due.into_iter().take(MOST_LOOKS) {
            let to_come = to_come(&theirs);
            let in_vain = {
                let mut table = lock(&self.table);
                // If it is gone, then whoever took it out calls it.
                let Some(waiter) = table.waiter(key, number) else { continue };
                if to_come.is_err() && waiter.doubted {
                    self.take(&mut table, key, number)
                } else {
                    waiter.doubted = to_come.is_err();
                    waiter.pause =
                        if to_come.is_ok() { (waiter.pause * 2).min(LONGEST_PAUSE) } else { FIRST_LOOK };
                    waiter.due = now + waiter.pause;
                    None
                }
            };
            if let (Some(waiter), Err(reason)) = (in_vain, to_come) {
                (waiter.waiting)(Err(reason));
            }
        }
        let mut table = lock(&self.table);
        let next = table.waiting.values().flatten().map(|waiter| waiter.due).min()?;
        if table.next_sweep.is_some_and(|other| other <= next) {
            return None;
        }
        table.next_sweep = Some(next);
        Some(next)
    }

    /// Whoever was to come for the next sweep will not: the next one that waits asks again.
    pub(crate) fn sweep_failed(&self) {
        lock(&self.table).next_sweep = None;
    }

    /// Nothing is accepted any more: forgets all that waits.
    pub(crate) fn give_up(&self) {
        let gone = {
            let mut table = lock(&self.table);
            self.waiting.store(0, Ordering::Relaxed);
            (table.shares, table.shared) = Default::default();
            std::mem::take(&mut table.waiting)
        };
        drop(gone);
    }

    /// Forgets something that waited; it may have been called meanwhile.
    pub(crate) fn forget(&self, key: Key, number: u64) {
        let gone = self.take(&mut lock(&self.table), key, number);
        // What waited may hold a link: dropped without the lock.
        drop(gone);
    }

    fn take(&self, table: &mut Table, key: Key, number: u64) -> Option<Waiter> {
        let list = table.waiting.get_mut(&key)?;
        let at = list.iter().position(|waiter| waiter.number == number)?;
        let waiter = list.swap_remove(at);
        if list.is_empty() {
            table.waiting.remove(&key);
        }
        table.gave_up(&waiter);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST_WAITING: usize = 1024;

    fn theirs(port: u16) -> Subject {
        let (local, remote) = (([127, 0, 0, 1], port).into(), ([127, 0, 0, 1], 80).into());
        Subject {
            tuple: Tuple { local, remote },
            cookie: 1,
            network_namespace: 1,
            destination: Destination::Own,
        }
    }

    fn if_so(to_come: bool) -> Result<(), FallbackReason> {
        if to_come { Ok(()) } else { Err(FallbackReason::Unproved) }
    }

    /// Lets something wait; what it has been told.
    fn wait(table: &AcceptedStreams, theirs: &Subject) -> (u64, bool, std::sync::mpsc::Receiver<bool>) {
        let (tell, told) = std::sync::mpsc::channel();
        let waiting = || -> Waiting { Box::new(move |stream| tell.send(stream.is_ok()).unwrap()) };
        match table.find_or_wait(theirs, PeerCred { pid: 1, uid: 1, gid: 1 }, &[], waiting) {
            Found::Waits { number, sweep, instead: None } => (number, sweep, told),
            _ => panic!("there is no such stream"),
        }
    }

    #[test]
    fn who_waits_in_vain_is_told_at_the_second_look() {
        let table = AcceptedStreams::new(MOST_WAITING);
        let (number, sweep, told) = wait(&table, &theirs(1));
        assert!(sweep);
        let (_, sweep, patient) = wait(&table, &theirs(2));
        assert!(!sweep, "a sweeper comes already");
        let to_come = |theirs: &Subject| if_so(theirs.tuple.local.port() == 2);
        let start = monotonic() + FIRST_LOOK;
        table.sweep(start, to_come).unwrap();
        assert!(told.try_recv().is_err(), "it may have been accepted a moment ago");
        table.sweep(start + FIRST_LOOK, to_come).unwrap();
        assert_eq!(told.try_recv(), Ok(false));
        assert!(patient.try_recv().is_err());
        table.forget(Key::of_client(&theirs(1)), number);
        let at = table.sweep(start + FIRST_LOOK * 2, |_| if_so(false)).unwrap();
        assert_eq!(table.sweep(at, |_| if_so(false)), None, "nobody waits any more");
        assert_eq!(patient.try_recv(), Ok(false));
        assert!(wait(&table, &theirs(3)).1, "and the next one starts it again");
    }

    #[test]
    fn a_doubt_is_not_kept() {
        let table = AcceptedStreams::new(MOST_WAITING);
        let (_, _, told) = wait(&table, &theirs(1));
        let mut at = monotonic() + FIRST_LOOK;
        for to_come in [false, true, true, false, true, true] {
            at = table.sweep(at, |_| if_so(to_come)).unwrap();
        }
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn who_waits_for_long_is_looked_at_ever_more_rarely() {
        let table = AcceptedStreams::new(MOST_WAITING);
        let _told = wait(&table, &theirs(1));
        let mut at = monotonic() + FIRST_LOOK;
        for pause in [2, 4, 8, 16, 16, 16] {
            let next = table.sweep(at, |_| if_so(true)).unwrap();
            assert_eq!(next - at, Duration::from_secs(pause));
            at = next;
        }
    }

    #[test]
    fn who_comes_while_the_sweeper_sleeps_long_gets_another_one() {
        let table = AcceptedStreams::new(MOST_WAITING);
        let _told = wait(&table, &theirs(1));
        let soon = monotonic() + FIRST_LOOK;
        // Its next look is two seconds away, and there is one to come in a second.
        let late = table.sweep(soon, |_| if_so(true)).unwrap();
        let (_, sweep, told) = wait(&table, &theirs(2));
        assert!(sweep);
        assert!(!wait(&table, &theirs(3)).1);
        let to_come = |theirs: &Subject| if_so(theirs.tuple.local.port() != 2);
        // Whichever sweeper comes looks at all that is due.
        table.sweep(late, to_come).unwrap();
        table.sweep(late + FIRST_LOOK, to_come).unwrap();
        assert_eq!(told.try_recv(), Ok(false));
        assert_eq!(table.sweep(late + FIRST_LOOK, to_come), None, "one sweeper is enough");
    }

    #[test]
    fn many_are_looked_at_in_turns() {
        let (table, looks) = (AcceptedStreams::new(MOST_WAITING), std::cell::Cell::new(0));
        let _told: Vec<_> = (0..MOST_LOOKS as u16 + 1).map(|port| wait(&table, &theirs(port))).collect();
        let now = monotonic() + FIRST_LOOK;
        let look = |_: &Subject| {
            looks.set(looks.get() + 1);
            Ok(())
        };
        assert!(table.sweep(now, look).unwrap() <= now, "some are still due");
        assert_eq!(looks.get(), MOST_LOOKS);
        assert!(table.sweep(now, look).unwrap() > now);
        assert_eq!(looks.get(), MOST_LOOKS + 1);
    }

    #[test]
    fn who_is_accepted_during_a_look_is_not_told_by_the_sweep() {
        let table = AcceptedStreams::new(MOST_WAITING);
        let (_, _, told) = wait(&table, &theirs(1));
        let at = table.sweep(monotonic() + FIRST_LOOK, |_| if_so(false)).unwrap();
        table.sweep(at, |theirs| {
            // As insertion does it.
            let waited = lock(&table.table).waiting.remove(&Key::of_client(theirs)).unwrap();
            table.waiting.fetch_sub(waited.len(), Ordering::Relaxed);
            if_so(false)
        });
        assert!(told.try_recv().is_err(), "whoever took it out tells it");
    }

    #[test]
    fn who_waits_most_gives_way_to_who_waits_for_the_first_time() {
        let table = AcceptedStreams::new(MOST_WAITING);
        let (tell, told) = std::sync::mpsc::channel();
        let us = crate::ism::sys::effective_uid();
        let wait = |pid, port| {
            let tell = tell.clone();
            let waiting = || -> Waiting { Box::new(move |stream| tell.send((port, stream.err())).unwrap()) };
            table.find_or_wait(&theirs(port), PeerCred { pid, uid: us, gid: 0 }, &[], waiting)
        };
        let most = u16::try_from(MOST_WAITING).unwrap();
        let mut first = None;
        for port in 1..=most {
            let Found::Waits { number, instead: None, .. } = wait(1, port) else { panic!("there is room") };
            first.get_or_insert(number);
        }
        assert!(matches!(wait(1, most + 1), Found::Full));
        let Found::Waits { instead: Some(latest), .. } = wait(2, most + 2) else { panic!("none gives way") };
        latest(Err(FallbackReason::Limit));
        assert_eq!(told.try_recv(), Ok((most, Some(FallbackReason::Limit))));
        assert!(matches!(wait(1, most + 3), Found::Full));
        // Who does not wait any more has left room.
        table.forget(Key::of_client(&theirs(1)), first.expect("the first one"));
        assert!(matches!(wait(1, most + 4), Found::Waits { instead: None, .. }));
    }
}
