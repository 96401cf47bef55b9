//! How a thread of the application waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, OnceLock};
use std::task::Wake;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::ism::sys;
use crate::rt::mio::SocketWaits;
use crate::sync::{Arc, PlainGuard, PlainMutex};

/// For how long who can not be woken in poll(2) waits before the next look.
const BLIND: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Awake,
    Woken,
    /// Waits for the condition.
    Parked,
    /// Waits in poll(2), for the eventfd among others.
    Polling,
}

/// What a thread waits at. As a waker, it lets that thread go on.
#[derive(Default)]
pub(super) struct Parker {
    /// Not in the order of locks: a condition needs the lock itself, and under it nothing is done.
    state: PlainMutex<State>,
    condition: Condvar,
    /// Made when somebody waits for a socket and for us.
    eventfd: OnceLock<OwnedFd>,
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let before = std::mem::replace(&mut *self.state(), State::Woken);
        match before {
            State::Awake | State::Woken => {}
            State::Parked => self.condition.notify_one(),
            State::Polling => {
                if let Some(eventfd) = self.eventfd.get() {
                    let _ = sys::ring(eventfd.as_fd());
                }
            }
        }
    }
}

impl Parker {
    fn state(&self) -> PlainGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Forgets wake-ups until now. To be called before its waker is given away.
    pub(super) fn begin(&self) {
        *self.state() = State::Awake;
    }

    /// Waits for a wake-up since [`Parker::begin`], or for the deadline.
    pub(super) fn park(&self, deadline: Option<Instant>) {
        let mut state = self.state();
        while *state != State::Woken {
            *state = State::Parked;
            state = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => self.condition.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner()),
                Some(Duration::ZERO) => break,
                Some(left) => {
                    self.condition
                        .wait_timeout(state, left)
                        .unwrap_or_else(|poisoned| poisoned.into_inner())
                        .0
                }
            };
        }
        *state = State::Awake;
    }

    /// As [`Parker::park`], and also for the socket.
    pub(super) fn poll(
        &self,
        socket: BorrowedFd<'_>,
        waits: SocketWaits,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        let eventfd = match self.eventfd.get() {
            Some(eventfd) => Some(eventfd),
            // Out of descriptors: TCP needs none to wait, so this may not fail for one.
            None => sys::eventfd().ok().map(|eventfd| self.eventfd.get_or_init(|| eventfd)),
        };
        {
            let mut state = self.state();
            if *state == State::Woken {
                return Ok(());
            }
            *state = State::Polling;
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = if eventfd.is_some() { left } else { Some(left.map_or(BLIND, |left| left.min(BLIND))) };
        let polled = wait_ready(socket, waits, eventfd.map(AsFd::as_fd), left);
        *self.state() = State::Awake;
        polled
    }

    pub(super) fn has_eventfd(&self) -> bool {
        self.eventfd.get().is_some()
    }
}

/// Waits until the socket is ready or the eventfd was rung, which is taken; or for `timeout`.
fn wait_ready(
    socket: BorrowedFd<'_>,
    waits: SocketWaits,
    eventfd: Option<BorrowedFd<'_>>,
    timeout: Option<Duration>,
) -> io::Result<()> {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN | PollFlags::RDHUP, waits.reads);
    flags.set(PollFlags::OUT, waits.writes);
    let rung = eventfd.map(|eventfd| PollFd::from_borrowed_fd(eventfd, PollFlags::IN));
    let count = 1 + usize::from(rung.is_some());
    let socket = PollFd::from_borrowed_fd(socket, flags);
    let mut both = [socket.clone(), rung.unwrap_or(socket)];
    let polled = &mut both[..count];
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    match poll(polled, timeout.as_ref()) {
        // After a signal, too, whoever waits looks again.
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    if let (Some(eventfd), Some(rung)) = (eventfd, polled.get(1)) {
        if rung.revents().contains(PollFlags::IN) {
            // Who has waited here looks anyway: nothing is lost if there is nothing to take.
            let _ = rustix::io::read(eventfd, &mut [0; 8]);
        }
    }
    Ok(())
}
