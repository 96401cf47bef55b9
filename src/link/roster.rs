//! The roster: every stream of this process from its creation to its end, for whoever wants to see
//! them.
//!
//! A stream enters when it is made and leaves when it is closed, whether it ever needs an endpoint
//! or not. Either costs one lock of a shard, which is held for a few moves of memory, and no system
//! call: what there is to tell of a stream is asked of the stream itself, when somebody looks. A
//! look holds one shard at a time, only to copy weak handles, and waits for the locks of a stream
//! no longer than [`Patience`] lets it: others hold them over system calls.

use std::sync::Weak;

use crate::ism::sys;
use crate::link::tally;
use crate::stats::{Stats, StreamStats};
use crate::sync::rank::Rank;
use crate::sync::{AtomicU32, Mutex, MutexGuard, Ordering, lock, try_lock};

/// A stream as the roster sees it.
pub(crate) trait Listed: Send + Sync {
    /// What there is to tell of it under this number; `None` when it has ended meanwhile. No waker
    /// is called.
    fn tell(&self, id: u64, patience: &mut Patience) -> Option<StreamStats>;
}

const SHARDS: usize = 16;
/// Streams that a look copies, and places that it passes, before it lets others have the shard.
const MOST_COPIED: usize = 64;
const MOST_PASSED: usize = 1024;
/// Places of an empty shard that are kept for the next streams.
const FEW: usize = 64;

/// No place: the end of the list of free ones, and where a stream is that has left.
const NOWHERE: u32 = u32::MAX;

enum Place {
    /// The next free one.
    Free(u32),
    Taken(u64, Weak<dyn Listed>),
}

struct Places {
    all: Vec<Place>,
    first_free: u32,
    taken: u32,
    /// Streams that have ever been entered.
    entered: u64,
}

/// On lines of its own: threads that connect at the same time shall not meet here.
#[repr(align(128))]
struct Shard(Mutex<Places>);

static SHARD: [Shard; SHARDS] =
    [const { Shard(Mutex::new(Places { all: Vec::new(), first_free: NOWHERE, taken: 0, entered: 0 })) };
        SHARDS];

/// A stream's place in the roster; dropping it leaves, too.
pub(crate) struct Listing {
    shard: usize,
    place: AtomicU32,
}

impl Listing {
    /// Enters a stream. It may still be under construction: it is seen once its handle can be
    /// upgraded.
    pub(crate) fn enter(stream: Weak<dyn Listed>) -> Listing {
        // Spread by address, which costs nothing that threads share. Bits above those that all
        // allocations have alike.
        let address = stream.as_ptr().cast::<u8>().addr() as u64;
        let shard = ((address >> 6).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 60) as usize % SHARDS;
        let mut places = lock(&SHARD[shard].0);
        places.entered += 1;
        let entry = Place::Taken(places.entered * SHARDS as u64 + shard as u64, stream);
        let place = match places.all.get(places.first_free as usize) {
            Some(Place::Free(next)) => {
                let (place, next) = (places.first_free, *next);
                places.all[place as usize] = entry;
                places.first_free = next;
                place
            }
            _ => {
                places.all.push(entry);
                places.all.len() as u32 - 1
            }
        };
        places.taken += 1;
        Listing { shard, place: AtomicU32::new(place) }
    }

    /// The stream has ended. Once is enough.
    pub(crate) fn leave(&self) {
        // Whoever takes the place out gives it back; nothing else goes along with it.
        let place = self.place.swap(NOWHERE, Ordering::Relaxed);
        if place == NOWHERE {
            return;
        }
        let mut places = lock(&SHARD[self.shard].0);
        let next = places.first_free;
        let entry = std::mem::replace(&mut places.all[place as usize], Place::Free(next));
        places.first_free = place;
        places.taken -= 1;
        let mut emptied = Vec::new();
        if places.taken == 0 && places.all.len() > FEW {
            places.first_free = NOWHERE;
            emptied = std::mem::take(&mut places.all);
        }
        drop(places);
        // A weak handle may be the last one to the memory.
        drop((entry, emptied));
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Places {
    /// Copies some handles from place `from` on. Returns where to go on; `None` at the end.
    fn copy(&self, from: usize, handles: &mut Vec<(u64, Weak<dyn Listed>)>) -> Option<usize> {
        let until = self.all.len().min(from.saturating_add(MOST_PASSED));
        for (at, place) in self.all.iter().enumerate().take(until).skip(from) {
            if let Place::Taken(id, stream) = place {
                if handles.len() == MOST_COPIED {
                    return Some(at);
                }
                handles.push((*id, stream.clone()));
            }
        }
        (until < self.all.len()).then_some(until)
    }
}

/// How long a look waits for locks that others hold: as long as somebody copies or calls the
/// system, and not as long as somebody is stopped.
pub(crate) struct Patience {
    /// Nanoseconds left for this look.
    left: u64,
}

impl Patience {
    /// For one lock, and for all locks of one look, in ns.
    const ONCE: u64 = 50_000;
    const IN_ALL: u64 = 2_000_000;
    /// Also where there is no clock it ends.
    const ROUNDS: u32 = 4096;

    pub(crate) fn new() -> Patience {
        Patience { left: Self::IN_ALL }
    }

    /// Locks `mutex` as [`lock`] does, or gives up.
    pub(crate) fn lock<'a, T, R: Rank>(&mut self, mutex: &'a Mutex<T, R>) -> Option<MutexGuard<'a, T>> {
        if let Some(guard) = try_lock(mutex) {
            return Some(guard);
        }
        let most = self.left.min(Self::ONCE);
        let (begin, mut waited, mut rounds) = (sys::monotonic_ns(), 0, 0);
        let mut guard = None;
        while guard.is_none() && waited < most && rounds < Self::ROUNDS {
            for _ in 0..16 {
                std::hint::spin_loop();
            }
            guard = try_lock(mutex);
            waited = sys::monotonic_ns().saturating_sub(begin);
            rounds += 1;
        }
        self.left -= waited.min(self.left);
        guard
    }
}

/// Every stream of this process that is open now, the oldest first: connected, accepted and adopted
/// ones, on TCP and on loopback-ism.
///
/// A stream is there from the moment in which it was made until it is closed. Taking the snapshot
/// stops nobody, and waits for nobody: of a stream whose application is in the middle of a read or
/// write, and does not get on with it, the snapshot has the bytes that were counted at the snapshot
/// before. Streams that are opened and closed meanwhile may or may not be in it.
///
/// Each stream that is seen for the first time costs two system calls, for its addresses.
///
/// ```
/// use tokio_smc::{SmcListener, SmcStream};
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// let listener = SmcListener::bind("127.0.0.1:0").await?;
/// let stream = SmcStream::connect(listener.local_addr()?).await?;
/// for seen in tokio_smc::streams() {
///     println!("{seen}");
/// }
/// assert!(tokio_smc::streams().iter().any(|seen| seen.local_addr == stream.local_addr().ok()));
/// # Ok(()) }
/// ```
pub fn streams() -> Vec<StreamStats> {
    let mut patience = Patience::new();
    let mut seen = Vec::new();
    let mut handles = Vec::with_capacity(MOST_COPIED);
    for shard in &SHARD {
        let mut from = Some(0);
        while let Some(at) = from {
            // The handles have their room already: nothing is allocated under the lock.
            from = lock(&shard.0).copy(at, &mut handles);
            for (id, stream) in handles.drain(..) {
                // Our own handle may turn out to be the last one: it is dropped here, where no lock
                // is held.
                if let Some(stream) = stream.upgrade() {
                    seen.extend(stream.tell(id, &mut patience));
                }
            }
        }
    }
    seen.sort_by_key(|stream| std::cmp::Reverse(stream.age));
    seen
}

/// What has happened in this process since it began, in numbers.
///
/// The counters are read one after the other, while they go on: two that belong together may differ
/// by what happens in between.
///
/// ```
/// let before = tokio_smc::stats();
/// // ... the process does its work ...
/// let now = tokio_smc::stats();
/// println!("{} upgrades", now.upgrades_done - before.upgrades_done);
/// for (reason, streams) in now.reasons() {
///     println!("{streams} stayed on TCP: {reason}");
/// }
/// ```
pub fn stats() -> Stats {
    let mut stats = tally::stats();
    for shard in &SHARD {
        let places = lock(&shard.0);
        stats.streams_created += places.entered;
        stats.streams_open += u64::from(places.taken);
    }
    stats
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Arc;
    use std::time::{Duration, Instant};

    /// A stream that has nothing to tell but that the test has asked it. Other tests look, too, and
    /// may be in the middle of it: there is one roster for the process.
    struct Silent {
        asked: AtomicU32,
        by: std::thread::ThreadId,
    }

    impl Default for Silent {
        fn default() -> Self {
            Silent { asked: AtomicU32::new(0), by: std::thread::current().id() }
        }
    }

    impl Listed for Silent {
        fn tell(&self, _: u64, _: &mut Patience) -> Option<StreamStats> {
            if std::thread::current().id() == self.by {
                self.asked.store(1, Ordering::Relaxed);
            }
            None
        }
    }

    impl Silent {
        fn was_asked(&self) -> bool {
            self.asked.swap(0, Ordering::Relaxed) == 1
        }
    }

    fn enter(stream: &Arc<Silent>) -> Listing {
        let listed: Arc<dyn Listed> = stream.clone();
        Listing::enter(Arc::downgrade(&listed))
    }

    #[test]
    fn a_stream_is_asked_until_it_leaves() {
        let stream = Arc::new(Silent::default());
        let listing = enter(&stream);
        streams();
        assert!(stream.was_asked());
        listing.leave();
        streams();
        assert!(!stream.was_asked());
        // Its place may be another one's by now.
        listing.leave();
        let again = enter(&stream);
        drop(listing);
        streams();
        assert!(stream.was_asked());
        drop(again);
        streams();
        assert!(!stream.was_asked());
    }

    #[test]
    fn each_of_many_is_asked_whoever_has_left() {
        let all: Vec<_> = (0..5000).map(|_| Arc::new(Silent::default())).collect();
        let listings: Vec<_> = all.iter().map(enter).collect();
        streams();
        assert!(all.iter().all(|stream| stream.was_asked()));
        for listing in listings.iter().step_by(3) {
            listing.leave();
        }
        streams();
        let asked: Vec<_> = all.iter().map(|stream| stream.was_asked()).collect();
        assert!((0..).zip(&asked).all(|(number, asked)| *asked == (number % 3 != 0)));
        // Who comes now takes the places that are free.
        let again: Vec<_> = all.iter().step_by(3).map(enter).collect();
        streams();
        assert!(all.iter().all(|stream| stream.was_asked()));
        drop((again, listings));
        streams();
        assert!(!all.iter().any(|stream| stream.was_asked()));
    }

    #[test]
    fn the_last_handle_may_be_the_look_s_own() {
        /// Leaves the roster, by a lock of its shard, when it is dropped: in the look.
        struct Last(Mutex<Option<(Arc<Last>, Listing)>>);
        impl Listed for Last {
            fn tell(&self, _: u64, _: &mut Patience) -> Option<StreamStats> {
                let last = lock(&self.0).take();
                drop(last);
                None
            }
        }
        let last = Arc::new(Last(Mutex::default()));
        let listed: Arc<dyn Listed> = last.clone();
        let listing = Listing::enter(Arc::downgrade(&listed));
        let gone = Arc::downgrade(&last);
        *lock(&last.0) = Some((last.clone(), listing));
        drop((last, listed));
        // The look of another test may be the one that has it, and be slow.
        let began = Instant::now();
        while gone.strong_count() > 0 {
            assert!(began.elapsed() < Duration::from_secs(60), "somebody keeps it");
            streams();
            std::thread::yield_now();
        }
    }

    #[test]
    fn patience_ends() {
        let held: Mutex<()> = Mutex::new(());
        let mut patience = Patience::new();
        let _guard = lock(&held);
        let begin = Instant::now();
        for _ in 0..10_000 {
            assert!(patience.lock(&held).is_none());
        }
        // 10,000 times the patience for one lock were half a second and more.
        assert!(begin.elapsed() < Duration::from_millis(400), "{:?}", begin.elapsed());
    }
}
