//! Everyone who waits for one direction of a stream, whatever it travels through.
//!
//! TCP's own waker slot always holds the set itself, so that no switch of the transport can lose a
//! waiter: first the mode changes, then the whole set wakes and looks again.

#[cfg(not(loom))]
use std::task::Wake;
use std::task::Waker;

#[cfg(not(loom))]
use crate::ism::interrupt::Signal;
#[cfg(not(loom))]
use crate::link::stream::InterruptHandler;
use crate::shield::wake_each;
use crate::sync::{Arc, AtomicU64, Mutex, Ordering, lock};
#[cfg(not(loom))]
use std::sync::OnceLock;

#[derive(Default)]
struct Set {
    /// Of the latest `poll_*` call: the last one wins, as in tokio.
    polled: Option<Waker>,
    /// Of `ready()`, `readable()`, `writable()`: any number of tasks.
    listed: Vec<(u64, Waker)>,
    next: u64,
}

/// Those who wait for one direction.
#[derive(Default)]
pub(crate) struct WakerSet {
    set: Mutex<Set>,
    /// Wake-ups so far.
    woken: AtomicU64,
}

impl WakerSet {
    /// How often everyone has been woken: who finds no more after registering than before it looked
    /// has missed nothing.
    pub(crate) fn wake_ups(&self) -> u64 {
        // Pairs with the store in `wake_all`: what was there before that wake-up is seen by the
        // look that follows.
        self.woken.load(Ordering::Acquire)
    }

    /// The latest `poll_*` call waits. What wakes everyone from now on wakes it; what did so before
    /// is seen in [`WakerSet::wake_ups`].
    pub(crate) fn register(&self, waker: &Waker) {
        // Cloning and dropping a waker runs its owner's code: never under the lock. Who waits has
        // mostly been woken since he last did: to look first whether he still is here would take
        // the lock once more, which costs what a clone costs.
        let waker = waker.clone();
        let stale = lock(&self.set).polled.replace(waker);
        drop(stale);
    }

    /// One more task waits, until [`WakerSet::delist`] or a wake-up.
    pub(crate) fn enlist(&self, key: &mut Option<u64>, waker: &Waker) {
        let is_listed = |(listed, known): &(u64, Waker)| Some(*listed) == *key && known.will_wake(waker);
        if key.is_some() && lock(&self.set).listed.iter().any(is_listed) {
            return;
        }
        let waker = waker.clone();
        let mut set = lock(&self.set);
        if let Some(entry) = key.and_then(|key| set.listed.iter_mut().find(|(listed, _)| *listed == key)) {
            let stale = std::mem::replace(&mut entry.1, waker);
            drop(set);
            drop(stale);
            return;
        }
        set.next += 1;
        let number = set.next;
        set.listed.push((number, waker));
        *key = Some(number);
    }

    pub(crate) fn delist(&self, key: &mut Option<u64>) {
        let Some(key) = key.take() else { return };
        let mut set = lock(&self.set);
        let gone =
            set.listed.iter().position(|(listed, _)| *listed == key).map(|at| set.listed.swap_remove(at));
        drop(set);
        drop(gone);
    }

    /// Wakes everyone who waits.
    pub(crate) fn wake_all(&self) {
        let (polled, listed) = {
            let mut set = lock(&self.set);
            // Pairs with the load in `wake_ups`. Under the lock: who registers after this wake-up
            // sees it.
            self.woken.store(self.woken.load(Ordering::Relaxed) + 1, Ordering::Release);
            if set.polled.is_none() && set.listed.is_empty() {
                return;
            }
            (set.polled.take(), std::mem::take(&mut set.listed))
        };
        wake_each(polled.into_iter().chain(listed.into_iter().map(|(_, waker)| waker)));
    }
}

/// Those who wait for either direction of a stream, kept apart from it so that an interrupt keeps
/// no socket open.
#[cfg(not(loom))]
#[derive(Default)]
pub(crate) struct Waiters {
    readers: Arc<WakerSet>,
    /// Made for the first of them: most streams are short, and none of their writes has to wait.
    writers: OnceLock<Arc<WakerSet>>,
}

#[cfg(not(loom))]
impl Waiters {
    #[inline]
    pub(crate) fn readers(&self) -> &Arc<WakerSet> {
        &self.readers
    }

    #[inline]
    pub(crate) fn writers(&self) -> &Arc<WakerSet> {
        self.writers.get_or_init(Arc::default)
    }

    /// Wakes everyone, whatever he waits for.
    pub(crate) fn wake_all(&self) {
        self.readers().wake_all();
        self.writers().wake_all();
    }

    /// Whoever waited in either direction does so no more.
    pub(crate) fn delist(&self, reader: &mut Option<u64>, writer: &mut Option<u64>) {
        self.readers().delist(reader);
        if writer.is_some() {
            self.writers().delist(writer);
        }
    }

    /// What wakes both.
    pub(crate) fn interrupt_handler(&self) -> Arc<dyn InterruptHandler> {
        Arc::new(Interrupted { readers: self.readers().clone(), writers: self.writers().clone() })
    }
}

#[cfg(not(loom))]
struct Interrupted {
    readers: Arc<WakerSet>,
    writers: Arc<WakerSet>,
}

#[cfg(not(loom))]
impl InterruptHandler for Interrupted {
    fn on_interrupt(&self, signal: Signal) {
        match signal {
            Signal::Data => self.readers.wake_all(),
            Signal::Space => self.writers.wake_all(),
        }
    }
}

// Loom's `Arc` is no waker.
#[cfg(not(loom))]
impl Wake for WakerSet {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::AtomicUsize;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_last_poll_wins_and_every_listed_task_wakes() {
        let waiters = WakerSet::default();
        let counts: Vec<_> = (0..4).map(|_| std::sync::Arc::new(Count::default())).collect();
        let wakers: Vec<Waker> = counts.iter().cloned().map(Waker::from).collect();
        waiters.register(&wakers[0]);
        waiters.register(&wakers[1]);
        let (mut second, mut third) = (None, None);
        waiters.enlist(&mut second, &wakers[2]);
        waiters.enlist(&mut third, &wakers[3]);
        waiters.delist(&mut second);
        waiters.wake_all();
        let woken: Vec<usize> = counts.iter().map(|count| count.0.load(Ordering::Relaxed)).collect();
        assert_eq!(woken, [0, 1, 0, 1]);
    }
}
