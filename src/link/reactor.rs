//! What the engine needs of a runtime, and what it makes of that for itself.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use crate::ism::sys;
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, lock};

/// A task of the engine: it is polled whenever its waker was called, by whoever drives the engine.
pub(crate) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What one waits for on a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    Read,
    Write,
}

/// A runtime, as the engine sees it: it tells of descriptors and polls tasks. (Time is a
/// descriptor, too.)
pub(crate) trait Reactor: Send + Sync {
    /// Registers a descriptor.
    fn watch(&self, fd: OwnedFd) -> io::Result<Arc<dyn Watched>>;

    /// Polls `task` until it is done. A runtime that ends drops it, also one that has ended
    /// already.
    fn spawn(&self, task: Task);

    /// For how long at most its poller looks for more interrupts before it sleeps.
    fn busy_poll(&self, wanted: Duration) -> Duration {
        wanted
    }

    /// Messages of one link that are answered before others have a turn: so few that a turn is
    /// short, whoever sends them.
    fn messages_per_turn(&self) -> usize {
        16
    }

    /// The monotonic clock, by which work for peers is measured; 0 where there is none, and then it
    /// is not.
    fn clock(&self) -> Duration {
        sys::monotonic()
    }

    /// How often others have run instead of the calling thread, since it began: it was preempted,
    /// or waited for one that was.
    fn switches(&self) -> u64 {
        sys::all_switches()
    }

    /// Has a task polled again that has more to do: after other tasks and, where the reactor does
    /// not see to that by itself, after descriptors and timers. Else a task that a peer keeps busy
    /// would have many turns before any of those has one.
    fn poll_again(&self, cx: &mut Context<'_>) {
        cx.waker().wake_by_ref();
    }
}

/// A registered descriptor. Its readiness is a guess that holds until an attempt has failed:
/// edge-triggered reactors tell of every change once.
pub(crate) trait Watched: AsFd + Send + Sync {
    /// Ready when an attempt may succeed. `Pending` keeps the waker of `cx`, one for each interest:
    /// the latest.
    fn poll_ready(&self, interest: Interest, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Makes an attempt. One that answers `WouldBlock` ends the readiness that was known before it,
    /// and no later one.
    fn attempt(&self, interest: Interest, attempt: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()>;
}

/// Forgets a readiness; the next change makes another.
pub(crate) fn forget_readiness(watched: &dyn Watched, interest: Interest) {
    let _ = watched.attempt(interest, &mut || Err(io::ErrorKind::WouldBlock.into()));
}

/// Waits until `attempt` gives something else than `WouldBlock`.
pub(crate) fn poll_attempt<R>(
    watched: &dyn Watched,
    interest: Interest,
    cx: &mut Context<'_>,
    mut attempt: impl FnMut() -> io::Result<R>,
) -> Poll<io::Result<R>> {
    loop {
        ready!(watched.poll_ready(interest, cx))?;
        let mut answer = None;
        let attempted = watched.attempt(interest, &mut || match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            other => {
                answer = Some(other);
                Ok(())
            }
        });
        match (answer, attempted) {
            (Some(answer), _) => return Poll::Ready(answer),
            (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                return Poll::Ready(Err(error));
            }
            (None, _) => {}
        }
    }
}

/// As [`poll_attempt`], for who can read.
pub(crate) async fn when_readable<R>(
    watched: &dyn Watched,
    mut attempt: impl FnMut() -> io::Result<R>,
) -> io::Result<R> {
    poll_fn(|cx| poll_attempt(watched, Interest::Read, cx, &mut attempt)).await
}

/// Lets the others have a turn.
pub(crate) async fn yield_now(reactor: &dyn Reactor) {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        reactor.poll_again(cx);
        Poll::Pending
    })
    .await;
}

#[derive(Default)]
struct Cancelled {
    flag: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// Ends a task when it is dropped.
pub(crate) struct Cancel(Arc<Cancelled>);

impl Drop for Cancel {
    fn drop(&mut self) {
        // Release: pairs with the Acquire of the task, which drops what it holds then.
        self.0.flag.store(true, Ordering::Release);
        let waker = lock(&self.0.waker).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A task that ends when it is done, or when the other value is dropped.
pub(crate) fn cancellable(task: impl Future<Output = ()> + Send + 'static) -> (Cancel, Task) {
    let cancelled = Arc::new(Cancelled::default());
    let (cancel, mut task) = (Cancel(cancelled.clone()), Some(Box::pin(task)));
    let polled = poll_fn(move |cx| {
        let Some(running) = task.as_mut() else { return Poll::Ready(()) };
        // Before the flag is looked at: who sets it after that finds the waker.
        let known = lock(&cancelled.waker).as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if !known {
            let waker = cx.waker().clone();
            let stale = lock(&cancelled.waker).replace(waker);
            drop(stale);
        }
        if !cancelled.flag.load(Ordering::Acquire) && running.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        task = None;
        Poll::Ready(())
    });
    (cancel, Box::pin(polled))
}

/// A number of places.
pub(crate) struct Places {
    free: Mutex<usize>,
}

/// One of them, until it is dropped.
pub(crate) struct Place(Arc<Places>);

impl Places {
    pub(crate) fn new(number: usize) -> Arc<Self> {
        Arc::new(Places { free: Mutex::new(number) })
    }

    /// Takes a place, if one is free.
    pub(crate) fn try_take(self: &Arc<Self>) -> Option<Place> {
        let mut free = lock(&self.free);
        *free = free.checked_sub(1)?;
        Some(Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *lock(&self.0.free) += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::AtomicUsize;

    struct Dropped(Arc<AtomicBool>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    struct Woken(AtomicUsize);

    impl std::task::Wake for Woken {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_cancelled_task_wakes_and_drops_what_it_holds() {
        let woken = std::sync::Arc::new(Woken(AtomicUsize::new(0)));
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let gone = Arc::new(AtomicBool::new(false));
        let held = Dropped(gone.clone());
        let (cancel, mut task) = cancellable(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        assert!(task.as_mut().poll(&mut cx).is_pending());
        assert!(!gone.load(Ordering::Relaxed));
        drop(cancel);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(task.as_mut().poll(&mut cx).is_ready());
        assert!(gone.load(Ordering::Relaxed));
    }

    #[test]
    fn a_task_that_is_done_needs_no_cancel() {
        let (_cancel, mut task) = cancellable(async {});
        assert!(task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
    }

    #[test]
    fn there_are_so_many_places() {
        let places = Places::new(1);
        let place = places.try_take().expect("there is one");
        assert!(places.try_take().is_none());
        drop(place);
        assert!(places.try_take().is_some());
    }
}
