//! What wakes a thread that waits in poll(2) for a socket and for us.
//!
//! A thread that waits for TCP has no descriptor but the socket, so that one which also waits for
//! us should not need another one either: a few of them share a bell. A call for one of them wakes
//! all who are at the bell; the others find nothing, and come again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Weak};

use crate::ism::sys;
use crate::sync::{Arc, Mutex, PlainGuard, PlainMutex, lock};

/// Threads that share a bell, as long as the process has descriptors left.
const SHARE: usize = 16;

/// The bells of the process, none of which outlives its threads.
static BELLS: Mutex<Vec<Weak<Bell>>> = Mutex::new(Vec::new());

/// Two eventfds, one of which is waited for while the other one rings: who was woken for nothing
/// would else be woken again until all of the others have gone.
pub(super) struct Bell {
    sides: [OwnedFd; 2],
    /// Not in the order of locks: a condition needs the lock itself, and under it nothing is done.
    state: PlainMutex<State>,
    /// A side has gone silent.
    silence: Condvar,
    /// A forked child would take the calls of its parent.
    process: u32,
}

#[derive(Default)]
struct State {
    /// Where the next ones wait.
    open: usize,
    /// Who is at each side, from before poll(2) until after it.
    present: [usize; 2],
    rings: [bool; 2],
}

impl Bell {
    /// A place at a bell, as long as it is held.
    ///
    /// # Errors
    ///
    /// When the process has no bell, and no descriptor for one.
    pub(super) fn place() -> io::Result<Arc<Bell>> {
        let process = std::process::id();
        // Held until the place is taken: two must not take the same last one.
        let mut bells = lock(&BELLS);
        bells.retain(|bell| bell.strong_count() > 0);
        let ours = bells.iter().filter_map(Weak::upgrade).filter(|bell| bell.process == process);
        match ours.min_by_key(Arc::strong_count) {
            // One of the holders is this look.
            Some(bell) if Arc::strong_count(&bell) <= SHARE => Ok(bell),
            crowded => match Self::new(process) {
                Ok(bell) => {
                    bells.push(Arc::downgrade(&bell));
                    Ok(bell)
                }
                Err(error) => crowded.ok_or(error),
            },
        }
    }

    fn new(process: u32) -> io::Result<Arc<Bell>> {
        let sides = [sys::eventfd()?, sys::eventfd()?];
        Ok(Arc::new(Bell { sides, state: PlainMutex::default(), silence: Condvar::new(), process }))
    }

    /// Comes to a side that does not ring.
    pub(super) fn enter(&self) -> Side<'_> {
        let mut state = self.state();
        // Those who are there are awake, and leave.
        while state.rings[state.open] {
            state = self.silence.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        let side = state.open;
        state.present[side] += 1;
        Side { bell: self, side }
    }

    /// Calls who is at that side.
    pub(super) fn call(&self, side: usize) {
        let mut state = self.state();
        // Who has left is awake.
        if state.present[side] > 0 && !state.rings[side] {
            state.rings[side] = sys::ring(self.sides[side].as_fd()).is_ok();
            let other = 1 - side;
            if !state.rings[other] {
                state.open = other;
            }
        }
    }

    fn state(&self) -> PlainGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn leave(&self, side: usize) {
        let mut state = self.state();
        state.present[side] -= 1;
        if state.present[side] == 0 && state.rings[side] {
            let _ = rustix::io::read(&self.sides[side], &mut [0; 8]);
            state.rings[side] = false;
            if state.rings[state.open] {
                state.open = side;
            }
            self.silence.notify_all();
        }
    }
}

/// A thread at a bell, until it is dropped.
pub(super) struct Side<'a> {
    bell: &'a Bell,
    side: usize,
}

impl Side<'_> {
    /// Where to call.
    pub(super) fn number(&self) -> usize {
        self.side
    }
}

impl AsFd for Side<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.sides[self.side].as_fd()
    }
}

impl Drop for Side<'_> {
    fn drop(&mut self) {
        self.bell.leave(self.side);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::thread;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;
    use crate::blocking::park::Parker;
    use crate::rt::mio::SocketWaits;
    use crate::sync::{AtomicUsize, Ordering};

    const THREADS: usize = 3 * SHARE + 2;
    const ROUNDS: usize = 100;

    struct Waiter {
        parker: Arc<Parker>,
        /// Never ready.
        socket: (OwnedFd, OwnedFd),
        told: AtomicUsize,
    }

    impl Waiter {
        fn new() -> Waiter {
            let socket = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .expect("a pair");
            Waiter { parker: Arc::default(), socket, told: AtomicUsize::new(0) }
        }

        fn tell(&self) {
            self.told.fetch_add(1, Ordering::SeqCst);
            std::task::Wake::wake_by_ref(&self.parker);
        }

        fn wait_until_told(&self, times: usize) {
            let waits = SocketWaits { reads: true, writes: false };
            loop {
                self.parker.begin();
                if self.told.load(Ordering::SeqCst) >= times {
                    return;
                }
                self.parker.poll(self.socket.0.as_fd(), waits, None).expect("poll");
            }
        }
    }

    /// Several calls go round at once, so that threads of one bell are called together: one that
    /// took another one's call would leave that waiting for ever.
    #[test]
    fn each_call_reaches_its_thread() {
        let waiters = Arc::new(Vec::from_iter((0..THREADS).map(|_| Waiter::new())));
        let threads = Vec::from_iter((0..THREADS).map(|at| {
            let waiters = waiters.clone();
            thread::spawn(move || {
                for round in 1..=ROUNDS {
                    waiters[at].wait_until_told(round);
                    waiters[(at + 1) % THREADS].tell();
                }
            })
        }));
        for at in (0..THREADS).step_by(5) {
            waiters[at].tell();
        }
        for thread in threads {
            thread.join().expect("no panic");
        }
    }

    #[test]
    fn a_few_threads_share_a_descriptor() {
        let places = Vec::from_iter((0..THREADS).map(|_| Bell::place().expect("a place")));
        let mut bells = Vec::from_iter(places.iter().map(Arc::as_ptr));
        bells.sort_unstable();
        bells.dedup();
        // Other tests have places, too.
        assert!(bells.len() <= THREADS.div_ceil(SHARE) + 1, "{}", bells.len());
        assert!(places.iter().all(|bell| Arc::strong_count(bell) <= SHARE + 1));
    }
}
