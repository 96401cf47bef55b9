//! Accepted streams that may still be upgraded, and the offers and queries that wait for one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Weak;

use crate::ism::sys::canonical;
use crate::link::message::{Subject, Tuple};
use crate::link::stream::LinkedStream;
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering, lock};

/// Port of the listener and address of the client; the rest of the tuple is checked live at MATCH, so that accept
/// needs no further system call.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key {
    port: u16,
    client: SocketAddr,
}

impl Key {
    pub(crate) fn accepted(port: u16, client: SocketAddr) -> Self {
        Key { port, client: canonical(client) }
    }

    /// Where the other end of the connection that a client describes would be.
    pub(crate) fn of_client(tuple: Tuple) -> Self {
        Key { port: tuple.remote.port(), client: tuple.local }
    }
}

/// Something that waits until a stream is accepted; `None`: it never will be, by us.
pub(crate) type Waiting = Box<dyn FnOnce(Option<Arc<dyn LinkedStream>>) + Send>;

struct Waiter {
    number: u64,
    /// The connection whose stream it waits for, as its client sees it.
    theirs: Subject,
    /// How often the sweep has passed by.
    sweeps: u32,
    /// At the latest look it was not to come.
    doubted: bool,
    waiting: Waiting,
}

#[derive(Default)]
struct Table {
    streams: HashMap<Key, (u64, Weak<dyn LinkedStream>)>,
    next: u64,
    waiting: HashMap<Key, Vec<Waiter>>,
    /// Somebody sweeps as long as something waits.
    swept: bool,
}

impl Table {
    fn waiter(&mut self, key: Key, number: u64) -> Option<&mut Waiter> {
        self.waiting.get_mut(&key)?.iter_mut().find(|waiter| waiter.number == number)
    }
}

#[derive(Default)]
pub(crate) struct Accepted {
    table: Mutex<Table>,
    /// Number of entries in `waiting`: lets accept pass by without a look.
    waiting: AtomicUsize,
}

/// Waiting offers and queries of an endpoint; more are refused.
const MOST_WAITING: usize = 1024;

/// What the table knows about a client's connection.
pub(crate) enum Found {
    Stream(Arc<dyn LinkedStream>),
    /// Not accepted yet: it waits under this number. `first`: sweeping has to begin.
    Waits {
        number: u64,
        first: bool,
    },
    /// Not accepted yet, and too many wait already.
    Full,
}

impl Accepted {
    /// Enters a stream; the newest of a key wins. Returns its number and what waited for it.
    pub(crate) fn insert(&self, key: Key, stream: Weak<dyn LinkedStream>) -> (u64, Vec<Waiting>) {
        let mut table = lock(&self.table);
        table.next += 1;
        let number = table.next;
        table.streams.insert(key, (number, stream));
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return (number, Vec::new());
        }
        let waited = table.waiting.remove(&key).unwrap_or_default();
        self.waiting.fetch_sub(waited.len(), Ordering::Relaxed);
        (number, waited.into_iter().map(|waiter| waiter.waiting).collect())
    }

    pub(crate) fn remove(&self, key: Key, number: u64) {
        let mut table = lock(&self.table);
        if table.streams.get(&key).is_some_and(|(newest, _)| *newest == number) {
            table.streams.remove(&key);
        }
    }

    /// Our stream of the connection that a client describes; when there is none yet, `waiting` is called once it is
    /// accepted.
    pub(crate) fn find_or_wait(&self, theirs: &Subject, waiting: impl FnOnce() -> Waiting) -> Found {
        let key = Key::of_client(theirs.tuple);
        let mut table = lock(&self.table);
        if let Some(stream) = table.streams.get(&key).and_then(|(_, stream)| stream.upgrade()) {
            // A stream that has ended may have left its address to a younger one, which is still to be accepted.
            if !stream.has_ended() {
                return Found::Stream(stream);
            }
        }
        if self.waiting.load(Ordering::Relaxed) >= MOST_WAITING {
            return Found::Full;
        }
        table.next += 1;
        let number = table.next;
        let waiter = Waiter { number, theirs: *theirs, sweeps: 0, doubted: false, waiting: waiting() };
        table.waiting.entry(key).or_default().push(waiter);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let first = !std::mem::replace(&mut table.swept, true);
        Found::Waits { number, first }
    }

    /// Tells those who wait in vain, for connections that are not `to_come` any more; `false` when nobody waits, and
    /// the sweeping ends.
    ///
    /// It takes two sweeps to find one: between accept and insertion a stream looks like one that does not come. Who
    /// waits is looked at ever more rarely: what waits for long mostly waits for a server that is busy.
    pub(crate) fn sweep(&self, to_come: impl Fn(&Subject) -> bool) -> bool {
        let mut due = Vec::new();
        {
            let mut table = lock(&self.table);
            if table.waiting.is_empty() {
                table.swept = false;
                return false;
            }
            for (key, waiters) in &mut table.waiting {
                for waiter in waiters {
                    waiter.sweeps += 1;
                    if waiter.doubted || waiter.sweeps.is_power_of_two() {
                        due.push((*key, waiter.number, waiter.theirs));
                    }
                }
            }
        }
        for (key, number, theirs) in due {
            let doubted = !to_come(&theirs);
            let in_vain = {
                let mut table = lock(&self.table);
                let waiter = table.waiter(key, number);
                // If it is gone, then whoever took it calls it.
                match waiter.map(|waiter| std::mem::replace(&mut waiter.doubted, doubted)) {
                    Some(true) if doubted => self.take(&mut table, key, number),
                    _ => None,
                }
            };
            if let Some(waiter) = in_vain {
                (waiter.waiting)(None);
            }
        }
        true
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
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn theirs(port: u16) -> Subject {
        let (local, remote) = (([127, 0, 0, 1], port).into(), ([127, 0, 0, 1], 80).into());
        Subject { tuple: Tuple { local, remote }, cookie: 1, network_namespace: 1 }
    }

    /// Lets something wait; what it has been told.
    fn wait(table: &Accepted, theirs: &Subject) -> (u64, bool, std::sync::mpsc::Receiver<bool>) {
        let (tell, told) = std::sync::mpsc::channel();
        let waiting = || -> Waiting { Box::new(move |stream| tell.send(stream.is_some()).unwrap()) };
        match table.find_or_wait(theirs, waiting) {
            Found::Waits { number, first } => (number, first, told),
            _ => panic!("there is no such stream"),
        }
    }

    #[test]
    fn who_waits_in_vain_is_told_at_the_second_look() {
        let table = Accepted::default();
        let (number, first, told) = wait(&table, &theirs(1));
        assert!(first);
        let (_, first, patient) = wait(&table, &theirs(2));
        assert!(!first, "it is swept already");
        let to_come = |theirs: &Subject| theirs.tuple.local.port() == 2;
        assert!(table.sweep(to_come));
        assert!(told.try_recv().is_err(), "it may have been accepted a moment ago");
        assert!(table.sweep(to_come));
        assert_eq!(told.try_recv(), Ok(false));
        assert!(patient.try_recv().is_err());
        table.forget(Key::of_client(theirs(1).tuple), number);
        assert!(table.sweep(|_| false) && table.sweep(|_| false) && table.sweep(|_| false));
        assert_eq!(patient.try_recv(), Ok(false));
        assert!(!table.sweep(|_| false), "nobody waits any more");
        assert!(wait(&table, &theirs(3)).1, "and the next one starts it again");
    }

    #[test]
    fn a_doubt_is_not_kept() {
        let table = Accepted::default();
        let (_, _, told) = wait(&table, &theirs(1));
        for to_come in [false, true, true, false, true, true] {
            table.sweep(|_| to_come);
        }
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn who_waits_for_long_is_looked_at_ever_more_rarely() {
        let (table, looks) = (Accepted::default(), std::cell::Cell::new(0));
        let _told = wait(&table, &theirs(1));
        for _ in 0..1000 {
            table.sweep(|_| {
                looks.set(looks.get() + 1);
                true
            });
        }
        assert_eq!(looks.get(), 10);
    }

    #[test]
    fn who_is_accepted_during_a_look_is_told_once() {
        let table = Accepted::default();
        let (_, _, told) = wait(&table, &theirs(1));
        table.sweep(|_| false);
        table.sweep(|theirs| {
            // As insertion does it.
            let waited = lock(&table.table).waiting.remove(&Key::of_client(theirs.tuple)).unwrap();
            table.waiting.fetch_sub(waited.len(), Ordering::Relaxed);
            false
        });
        assert!(told.try_recv().is_err(), "whoever took it out tells it");
    }
}
