//! Who takes how much of this process's memory: an account for each link, and what all accounts of
//! one peer process have is counted together.
//!
//! Counted is what this process lends (its own segments, and the slots of its arenas) and, apart
//! from that, what it borrows: a peer can take the pages of its own file away at any time, and what
//! is written there then is charged to the writer. So all that a peer could make us pay is known,
//! and has the same limit.
//!
//! Nobody gets more than half of what all others leave: neither a process, nor all processes of a
//! foreign user together. So there is always some for the next one. Besides, the application may
//! have set how much a process gets.

use std::collections::BTreeMap;
use std::io;

use super::{LENT_PART, SEGMENT_PART, means};
use crate::ism::aside::Lane;
use crate::ism::sys::{self, PeerCred};
use crate::peer::is_same_user;
use crate::sync::{Arc, AtomicU64, Mutex, Ordering, lock};

/// Of what is free for it, a process or a foreign user gets this part.
const FAIR_PART: u64 = 2;

/// Set by the application; `u64::MAX`: by none.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);
/// The same, for each peer process.
static LIMIT_PER_PEER: AtomicU64 = AtomicU64::new(u64::MAX);
static NEXT: AtomicU64 = AtomicU64::new(1);
static BOOKS: Mutex<[Book; 2]> = Mutex::new([Book::new(), Book::new()]);

/// So much memory at most from now on, in all and for each peer process; the least that was ever
/// said counts.
pub(crate) fn limit_memory(all: Option<u64>, per_peer: Option<u64>) {
    for (limit, bytes) in [(&LIMIT, all), (&LIMIT_PER_PEER, per_peer)] {
        if let Some(bytes) = bytes {
            limit.fetch_min(bytes, Ordering::Relaxed);
        }
    }
}

/// Bytes that are lent at the moment.
pub(super) fn all_lent() -> u64 {
    lock(&BOOKS)[Kind::Lent as usize].all
}

/// Whose the memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Lent,
    Borrowed,
}

/// Who has a share of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Sharer {
    /// A process of that user with that number, with all its links. (Those that have no number
    /// here, for they are in another pid namespace, are one.)
    Process(u32, i32),
    /// A link of this process to itself, by its account. Each of the two ends has one.
    Here(u64),
}

/// What is taken at the moment.
#[derive(Debug)]
struct Book {
    all: u64,
    /// By each foreign user.
    users: BTreeMap<u32, u64>,
    sharers: BTreeMap<Sharer, u64>,
}

impl Book {
    const fn new() -> Book {
        Book { all: 0, users: BTreeMap::new(), sharers: BTreeMap::new() }
    }

    /// Bytes that one may take besides what it has.
    fn left(&self, limit: u64, per_peer: u64, sharer: Sharer, foreign_user: Option<u32>) -> u64 {
        let fair = |own: u64| (limit.saturating_sub(self.all - own) / FAIR_PART).saturating_sub(own);
        let own = self.sharers.get(&sharer).copied().unwrap_or(0);
        let left = match sharer {
            Sharer::Process(..) => fair(own).min(per_peer.saturating_sub(own)),
            Sharer::Here(_) => fair(own),
        };
        match foreign_user {
            Some(user) => left.min(fair(self.users.get(&user).copied().unwrap_or(0))),
            None => left,
        }
    }

    fn add(&mut self, bytes: u64, sharer: Sharer, foreign_user: Option<u32>) {
        self.all += bytes;
        *self.sharers.entry(sharer).or_default() += bytes;
        if let Some(user) = foreign_user {
            *self.users.entry(user).or_default() += bytes;
        }
    }

    fn remove(&mut self, bytes: u64, sharer: Sharer, foreign_user: Option<u32>) {
        self.all -= bytes;
        take(&mut self.sharers, sharer, bytes);
        if let Some(user) = foreign_user {
            take(&mut self.users, user, bytes);
        }
    }
}

/// Takes `bytes` from an entry, which ends when nothing is left in it.
fn take<K: Ord>(entries: &mut BTreeMap<K, u64>, key: K, bytes: u64) {
    if let Some(entry) = entries.get_mut(&key) {
        *entry -= bytes;
        if *entry == 0 {
            entries.remove(&key);
        }
    }
}

/// What one peer, at the other end of one link, takes of this process: memory, and threads that
/// work on memory it has, too.
#[derive(Debug)]
pub(crate) struct Account {
    number: u64,
    sharer: Sharer,
    /// Whose the peer is, unless it is this process's user or root.
    foreign_user: Option<u32>,
    lane: Lane,
}

impl Account {
    /// The account of a link to that process.
    pub(crate) fn of(peer: &PeerCred) -> Arc<Account> {
        let foreign_user = (peer.uid != 0 && !is_same_user(peer)).then_some(peer.uid);
        let is_here = sys::is_this_process(peer.pid);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let sharer = if is_here { Sharer::Here(number) } else { Sharer::Process(peer.uid, peer.pid) };
        Arc::new(Account { number, sharer, foreign_user, lane: Lane::new() })
    }

    /// The account of this process as its own peer.
    #[cfg(any(test, feature = "unstable-engine"))]
    pub(crate) fn of_ourselves() -> Arc<Account> {
        Account::of(&PeerCred {
            pid: i32::try_from(std::process::id()).unwrap_or_default(),
            uid: sys::effective_uid(),
            gid: 0,
        })
    }

    /// What it has lent and borrowed, with the others of its process.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> [u64; 2] {
        let books = lock(&BOOKS);
        [Kind::Lent, Kind::Borrowed]
            .map(|kind| books[kind as usize].sharers.get(&self.sharer).copied().unwrap_or(0))
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Whether what comes from the peer may have been made by this process.
    pub(crate) fn is_here(&self) -> bool {
        matches!(self.sharer, Sharer::Here(_))
    }

    /// Where work is done that may have to wait for the peer.
    pub(crate) fn lane(&self) -> &Lane {
        &self.lane
    }

    /// Takes `bytes` of the memory that may be lent.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` when that is too much.
    pub(crate) fn lend(self: &Arc<Self>, bytes: usize) -> io::Result<Charge> {
        self.take(Kind::Lent, bytes as u64)
    }

    /// Counts `bytes` of the peer's memory.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` when that is too much.
    pub(crate) fn borrow(self: &Arc<Self>, bytes: usize) -> io::Result<Charge> {
        self.take(Kind::Borrowed, bytes as u64)
    }

    /// The largest power of two up to `bytes` that may be lent at the moment in one segment; 0 when
    /// that is less than `least`.
    pub(crate) fn affordable(&self, bytes: u64, least: u64) -> u64 {
        // Before the lock: it reads files.
        let bounds = Bounds::now();
        let most = self.left(&lock(&BOOKS)[Kind::Lent as usize], Kind::Lent, &bounds).min(bytes);
        let fits = if most == 0 { 0 } else { 1 << most.ilog2() };
        if fits < least { 0 } else { fits }
    }

    fn take(self: &Arc<Self>, kind: Kind, bytes: u64) -> io::Result<Charge> {
        // Before the lock: it reads files.
        let bounds = Bounds::now();
        let mut books = lock(&BOOKS);
        let book = &mut books[kind as usize];
        if bytes <= self.left(book, kind, &bounds) {
            book.add(bytes, self.sharer, self.foreign_user);
            return Ok(Charge { account: self.clone(), kind, bytes });
        }
        let words =
            format!("{bytes} more bytes are beyond this peer's share of the memory ({} are taken)", book.all);
        Err(io::Error::new(io::ErrorKind::OutOfMemory, words))
    }

    fn left(&self, book: &Book, kind: Kind, bounds: &Bounds) -> u64 {
        let left = book.left(bounds.limit, bounds.per_peer, self.sharer, self.foreign_user);
        match kind {
            Kind::Lent => left.min(bounds.one_more(book.all)),
            Kind::Borrowed => left,
        }
    }
}

/// What the system and the application allow.
struct Bounds {
    limit: u64,
    per_peer: u64,
    /// Left in the system, when so much was lent.
    left: u64,
    lent: u64,
}

impl Bounds {
    fn now() -> Bounds {
        let known = means();
        let limit = LIMIT.load(Ordering::Relaxed).min(known.means.memory / LENT_PART);
        let per_peer = LIMIT_PER_PEER.load(Ordering::Relaxed);
        Bounds { limit, per_peer, left: known.means.memory_left, lent: known.lent }
    }

    /// Bytes that one more segment may have when `lent` are lent: the nearer the end, the smaller
    /// the steps.
    fn one_more(&self, lent: u64) -> u64 {
        self.left.saturating_sub(lent.saturating_sub(self.lent)) / SEGMENT_PART
    }
}

/// Memory that is counted, until it is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    account: Arc<Account>,
    kind: Kind,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        let Account { sharer, foreign_user, .. } = *self.account;
        lock(&BOOKS)[self.kind as usize].remove(self.bytes, sharer, foreign_user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No limit per peer.
    const ANY: u64 = u64::MAX;

    fn process(pid: i32) -> Sharer {
        Sharer::Process(1000, pid)
    }

    #[test]
    fn steps_get_smaller_towards_the_end() {
        let bounds = Bounds { limit: 1 << 30, per_peer: u64::MAX, left: 800, lent: 100 };
        assert_eq!(bounds.one_more(100), 100, "an eighth of what is left");
        assert_eq!(bounds.one_more(500), 50, "what was lent since is not left");
        assert_eq!(bounds.one_more(50), 100, "less lent than a moment ago");
        assert_eq!(bounds.one_more(10_000), 0);
    }

    #[test]
    fn nobody_gets_more_than_half_of_what_the_others_leave() {
        let mut book = Book::new();
        assert_eq!(book.left(1000, ANY, process(1), None), 500);
        book.add(500, process(1), None);
        assert_eq!(book.left(1000, ANY, process(1), None), 0);
        assert_eq!(book.left(1000, ANY, process(2), None), 250);
        book.add(100, process(2), None);
        assert_eq!(book.left(1000, ANY, process(2), None), 150);
        // However many links a foreign user has, its part is that of one.
        for account in 3..100 {
            let bytes = book.left(1000, ANY, process(account), Some(77));
            book.add(bytes, process(account), Some(77));
        }
        let theirs = book.users[&77];
        assert!((195..=200).contains(&theirs), "{theirs}");
        assert_eq!(book.left(1000, ANY, process(100), Some(77)), 0);
        assert_eq!(
            book.left(1000, ANY, process(100), Some(78)),
            (400 - theirs) / 2,
            "another one has its own part"
        );
        assert_eq!(book.left(1000, ANY, process(100), None), (400 - theirs) / 2);
        // A limit that got smaller.
        assert_eq!(book.left(10, ANY, process(1), None), 0);
    }

    #[test]
    fn a_process_gets_no_more_than_is_set_and_this_one_is_no_peer() {
        let mut book = Book::new();
        assert_eq!(book.left(1000, 80, process(1), None), 80);
        book.add(50, process(1), None);
        assert_eq!(book.left(1000, 80, process(1), None), 30);
        assert_eq!(book.left(1000, 20, process(1), None), 0, "a limit that got smaller");
        assert_eq!(book.left(100, 80, process(2), None), 25, "half of what is left");
        assert_eq!(book.left(1000, 80, Sharer::Here(1), None), 475);
    }

    #[test]
    fn links_of_one_process_share_and_those_of_this_one_do_not() {
        let elsewhere = PeerCred { pid: 1, uid: sys::effective_uid(), gid: 0 };
        let [one, other] = [(); 2].map(|()| Account::of(&elsewhere));
        let held = one.lend(1 << 16).unwrap();
        assert_eq!(other.taken(), [1 << 16, 0]);
        drop(held);
        assert_eq!(other.taken(), [0, 0]);
        let [one, other] = [(); 2].map(|()| Account::of_ourselves());
        let _held = one.lend(1 << 16).unwrap();
        assert_eq!(other.taken(), [0, 0]);
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let mut book = Book::new();
        book.add(300, process(1), Some(7));
        book.add(100, process(1), Some(7));
        book.remove(300, process(1), Some(7));
        assert_eq!((book.all, book.users[&7], book.sharers[&process(1)]), (100, 100, 100));
        book.remove(100, process(1), Some(7));
        assert!(book.all == 0 && book.users.is_empty() && book.sharers.is_empty());
    }

    #[test]
    fn a_charge_lasts_until_it_is_dropped() {
        let account = Account::of_ourselves();
        for kind in [Kind::Lent, Kind::Borrowed] {
            let taken = |account: &Account| account.taken()[kind as usize];
            let held = account.take(kind, 1 << 16).unwrap();
            assert_eq!(taken(&account), 1 << 16);
            drop(held);
            let error = account.take(kind, u64::MAX / 2).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
            assert_eq!(taken(&account), 0, "a refused charge is not kept");
        }
        assert_eq!(account.affordable(5000, 4096), 4096);
        assert_eq!(account.affordable(5000, 8192), 0);
    }

    #[test]
    fn a_foreign_user_is_neither_ours_nor_root() {
        let (us, nobody) = (sys::effective_uid(), sys::overflow_uid());
        let stranger = (1..).find(|uid| ![us, nobody].contains(uid)).unwrap();
        let user = |uid| Account::of(&PeerCred { pid: 1, uid, gid: 0 }).foreign_user;
        assert_eq!((user(us), user(0), user(stranger)), (None, None, Some(stranger)));
        assert_eq!(user(nobody), Some(nobody), "whoever that is");
        assert!(Account::of_ourselves().is_here());
    }
}
