//! Time without a runtime's timer: one timerfd per endpoint, armed only while someone waits.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pin_project_lite::pin_project;

use crate::ism::sys;
use crate::link::reactor::{Interest, Reactor, Watched, forget_readiness};
use crate::shield::wake_each;
use crate::sync::{Arc, Mutex, lock};

/// What a new timer is set to for once.
const SOME_TIME: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Waiting {
    /// By their deadline on the monotonic clock; what is not here any more has expired.
    wakers: BTreeMap<(Duration, u64), Waker>,
    next: u64,
    /// Nobody serves this timer any more: all that wait look again.
    ended: bool,
}

pub(crate) struct Timers {
    fd: OwnedFd,
    waiting: Mutex<Waiting>,
}

impl Timers {
    pub(crate) fn new() -> io::Result<Self> {
        let fd = sys::timerfd()?;
        // What can not be armed would let everybody wait for ever: found out before somebody does.
        sys::arm_timer(fd.as_fd(), Some(SOME_TIME))?;
        sys::arm_timer(fd.as_fd(), None)?;
        Ok(Timers { fd, waiting: Mutex::default() })
    }

    pub(super) fn watch(&self, reactor: &dyn Reactor) -> io::Result<Arc<dyn Watched>> {
        reactor.watch(self.fd.try_clone()?)
    }

    /// Waits for `duration`.
    pub(crate) fn sleep(self: &Arc<Self>, duration: Duration) -> Sleep {
        self.sleep_until(sys::monotonic().saturating_add(duration))
    }

    /// Waits for `future`, but not longer than `limit`: `None` then.
    pub(crate) fn timeout<F: Future>(self: &Arc<Self>, limit: Duration, future: F) -> Timeout<F> {
        Timeout { future, sleep: self.sleep(limit) }
    }

    /// Waits until `deadline`.
    pub(crate) fn sleep_until(self: &Arc<Self>, deadline: Duration) -> Sleep {
        Sleep { timers: self.clone(), deadline, number: None }
    }

    /// Sets the timer to the earliest deadline; to be called with the lock held, so that no older
    /// one overwrites it.
    fn arm(&self, waiting: &Waiting) -> io::Result<()> {
        let first = waiting.wakers.first_key_value().map(|((deadline, _), _)| {
            // Zero would disarm it.
            deadline.saturating_sub(sys::monotonic()).max(Duration::from_nanos(1))
        });
        sys::arm_timer(self.fd.as_fd(), first)
    }

    fn expire(&self) {
        let (expired, armed) = {
            let mut waiting = lock(&self.waiting);
            let now = match sys::monotonic() {
                // There is no clock. The timer has one: the first of those who wait is due.
                Duration::ZERO => waiting.wakers.keys().next().map_or(Duration::ZERO, |(first, _)| *first),
                now => now,
            };
            let later = waiting.wakers.split_off(&(now, u64::MAX));
            let expired = std::mem::replace(&mut waiting.wakers, later);
            let armed = self.arm(&waiting);
            (expired, armed)
        };
        tell(armed);
        wake_each(expired.into_values());
    }

    /// Nothing wakes sleepers any more: lets them all look for themselves.
    pub(crate) fn end(&self) {
        let left = {
            let mut waiting = lock(&self.waiting);
            waiting.ended = true;
            std::mem::take(&mut waiting.wakers)
        };
        wake_each(left.into_values());
    }

    /// Lets time pass, for those who sleep now.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn pass(&self, time: Duration) {
        let expired = {
            let mut waiting = lock(&self.waiting);
            let later = waiting.wakers.split_off(&(sys::monotonic() + time, u64::MAX));
            std::mem::replace(&mut waiting.wakers, later)
        };
        wake_each(expired.into_values());
    }

    /// When the next one wakes.
    #[cfg(test)]
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        lock(&self.waiting).wakers.keys().next().map(|(deadline, _)| *deadline)
    }

    pub(super) fn have_ended(&self) -> bool {
        lock(&self.waiting).ended
    }
}

/// Tells of a timer that can not be set, without its lock.
fn tell(armed: io::Result<()>) {
    if let Err(error) = armed {
        crate::trace::warning!("the timer can not be set: {error}");
    }
}

/// See [`Timers::sleep`].
pub(crate) struct Sleep {
    timers: Arc<Timers>,
    pub(crate) deadline: Duration,
    number: Option<u64>,
}

impl Sleep {
    /// It has ended with its timer, not in its time.
    pub(super) fn was_cut_short(&self) -> bool {
        self.timers.have_ended()
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if sys::monotonic() >= self.deadline {
            return Poll::Ready(());
        }
        let timers = self.timers.clone();
        // Before the lock: it runs its owner's code.
        let waker = cx.waker().clone();
        let (stale, armed) = {
            let mut waiting = lock(&timers.waiting);
            let expired =
                self.number.is_some_and(|number| !waiting.wakers.contains_key(&(self.deadline, number)));
            if waiting.ended || expired {
                return Poll::Ready(());
            }
            let number = *self.number.get_or_insert_with(|| {
                waiting.next += 1;
                waiting.next
            });
            let stale = waiting.wakers.insert((self.deadline, number), waker);
            (stale, timers.arm(&waiting))
        };
        tell(armed);
        drop(stale);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let (gone, armed) = {
            let mut waiting = lock(&self.timers.waiting);
            let gone = waiting.wakers.remove(&(self.deadline, number));
            let armed = if gone.is_some() { self.timers.arm(&waiting) } else { Ok(()) };
            (gone, armed)
        };
        tell(armed);
        drop(gone);
    }
}

pin_project! {
    /// See [`Timers::timeout`].
    pub(crate) struct Timeout<F> {
        #[pin]
        future: F,
        #[pin]
        sleep: Sleep,
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<F::Output>> {
        let this = self.project();
        match this.future.poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending => this.sleep.poll(cx).map(|()| None),
        }
    }
}

/// Serves the timer of an endpoint.
pub(super) async fn run(timer: Arc<dyn Watched>, timers: Arc<Timers>) {
    loop {
        if poll_fn(|cx| timer.poll_ready(Interest::Read, cx)).await.is_err() {
            return std::future::pending().await;
        }
        let cleared = timer.attempt(Interest::Read, &mut || match sys::clear_timer(timer.as_fd()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(error),
        });
        if cleared.is_err() {
            // A sandbox may deny it: the next deadline arms the timer anew, which is another edge.
            forget_readiness(&*timer, Interest::Read);
        }
        timers.expire();
    }
}
