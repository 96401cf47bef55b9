//! Accepted streams that may still be upgraded, and the offers and queries that wait for one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Weak;

use crate::ism::sys::canonical;
use crate::link::message::Tuple;
use crate::link::stream::LinkedStream;
use crate::sync::{AtomicUsize, Mutex, Ordering, lock};

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

/// Something that waits until a stream is accepted.
pub(crate) type Waiting = Box<dyn FnOnce(std::sync::Arc<dyn LinkedStream>) + Send>;

#[derive(Default)]
struct Table {
    streams: HashMap<Key, (u64, Weak<dyn LinkedStream>)>,
    next: u64,
    waiting: HashMap<Key, Vec<(u64, Waiting)>>,
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
    Stream(std::sync::Arc<dyn LinkedStream>),
    /// Not accepted yet: it waits under this number.
    Waits(u64),
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
        (number, waited.into_iter().map(|(_, waiting)| waiting).collect())
    }

    pub(crate) fn remove(&self, key: Key, number: u64) {
        let mut table = lock(&self.table);
        if table.streams.get(&key).is_some_and(|(newest, _)| *newest == number) {
            table.streams.remove(&key);
        }
    }

    /// The stream of that key; when there is none yet, `waiting` is called once it is accepted.
    pub(crate) fn find_or_wait(&self, key: Key, waiting: impl FnOnce() -> Waiting) -> Found {
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
        table.waiting.entry(key).or_default().push((number, waiting()));
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Found::Waits(number)
    }

    /// Forgets something that waited; it may have been called meanwhile.
    pub(crate) fn forget(&self, key: Key, number: u64) {
        let mut table = lock(&self.table);
        let Some(list) = table.waiting.get_mut(&key) else { return };
        let gone = list.iter().position(|(waiting, _)| *waiting == number).map(|at| list.swap_remove(at));
        let empty = if list.is_empty() { table.waiting.remove(&key) } else { None };
        self.waiting.fetch_sub(usize::from(gone.is_some()), Ordering::Relaxed);
        drop(table);
        // What waited may hold a link: dropped without the lock.
        drop((gone, empty));
    }
}
