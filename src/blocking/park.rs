//! How a thread of the application waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, OnceLock};
use std::task::Wake;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::bell::Bell;
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
    /// Waits in poll(2), at that side of the bell among others.
    Polling(usize),
}

/// What a thread waits at. As a waker, it lets that thread go on.
#[derive(Default)]
pub(super) struct Parker {
    /// Not in the order of locks: a condition needs the lock itself, and under it nothing is done.
    state: PlainMutex<State>,
    condition: Condvar,
    /// Taken when somebody waits for a socket and for us.
    bell: OnceLock<Arc<Bell>>,
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
            State::Polling(side) => {
                if let Some(bell) = self.bell.get() {
                    bell.call(side);
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
        let bell = match self.bell.get() {
            Some(bell) => Some(bell),
            // Out of descriptors: TCP needs none to wait, so this may not fail for one.
            None => Bell::place().ok().map(|bell| self.bell.get_or_init(|| bell)),
        };
        let side = bell.map(|bell| bell.enter());
        {
            let mut state = self.state();
            if *state == State::Woken {
                return Ok(());
            }
            // Without a bell a call is seen at the next look.
            *state = side.as_ref().map_or(State::Awake, |side| State::Polling(side.number()));
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = if side.is_some() { left } else { Some(left.map_or(BLIND, |left| left.min(BLIND))) };
        let polled = wait_ready(socket, waits, side.as_ref().map(AsFd::as_fd), left);
        // Before the side is left: nobody is called there who is not.
        *self.state() = State::Awake;
        drop(side);
        polled
    }

    pub(super) fn has_descriptor(&self) -> bool {
        self.bell.get().is_some()
    }
}

/// Waits until the socket is ready or the bell rings; or for `timeout`.
fn wait_ready(
    socket: BorrowedFd<'_>,
    waits: SocketWaits,
    bell: Option<BorrowedFd<'_>>,
    timeout: Option<Duration>,
) -> io::Result<()> {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN | PollFlags::RDHUP, waits.reads);
    flags.set(PollFlags::OUT, waits.writes);
    let socket = PollFd::from_borrowed_fd(socket, flags);
    let rings = bell.map(|bell| PollFd::from_borrowed_fd(bell, PollFlags::IN));
    let count = 1 + usize::from(rings.is_some());
    let mut both = [socket.clone(), rings.unwrap_or(socket)];
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    match poll(&mut both[..count], timeout.as_ref()) {
        // After a signal, too, whoever waits looks again.
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
