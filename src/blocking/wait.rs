//! Waiting for one direction of a stream, in the thread of the application.
//!
//! A direction that will stay on TCP is left to the kernel: one system call that waits there. One
//! that may still switch is waited for in poll(2), for the socket and for the bell of a [`Parker`];
//! one that has switched is looked at for a while, and then waited for without a descriptor.

use std::io;
use std::os::fd::AsFd;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use super::looks::Looks;
use super::park::Parker;
use super::stream::Shared;
use crate::conn::op::{ReadOp, WriteOp};
use crate::conn::waiters::WakerSet;
use crate::conn::{OnPending, Operation};
use crate::rt::mio::{MioTcp, SocketWaits, noting_waits};
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering, lock};

/// What there is to wait for one direction of a stream.
pub(super) struct Direction {
    /// It stays on TCP for good: the kernel does it all.
    left_to_tcp: AtomicBool,
    /// In nanoseconds; 0: none.
    timeout: AtomicU64,
    /// Taken by the one thread that looks.
    looks: Mutex<Option<Looks>>,
}

impl Direction {
    pub(super) fn new(busy_poll: Duration, left_to_tcp: bool, timeout: Option<Duration>) -> Self {
        let direction = Direction {
            left_to_tcp: AtomicBool::new(left_to_tcp),
            timeout: AtomicU64::new(0),
            looks: Mutex::new(Some(Looks::new(busy_poll))),
        };
        direction.set_timeout(timeout);
        direction
    }

    pub(super) fn set_timeout(&self, timeout: Option<Duration>) {
        let nanos = timeout.map_or(0, |timeout| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
        self.timeout.store(nanos, Ordering::Relaxed);
    }

    /// Until when who begins to wait now may do so.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.timeout.load(Ordering::Relaxed) {
            0 => None,
            nanos => Instant::now().checked_add(Duration::from_nanos(nanos)),
        }
    }
}

/// As the kernel says it of a socket that does not wait, or not any longer.
fn would_block() -> io::Error {
    rustix::io::Errno::AGAIN.into()
}

/// Takes a place in a list of those who wait; leaves it again.
struct Enlisted<'a> {
    waiters: &'a WakerSet,
    key: Option<u64>,
}

impl Drop for Enlisted<'_> {
    fn drop(&mut self) {
        self.waiters.delist(&mut self.key);
    }
}

impl Shared {
    pub(super) fn direction(&self, operation: Operation) -> &Direction {
        match operation {
            Operation::Read => &self.reads,
            Operation::Write => &self.writes,
        }
    }

    /// Is this direction left to the kernel?
    pub(super) fn is_left_to_tcp(&self, operation: Operation) -> bool {
        self.direction(operation).left_to_tcp.load(Ordering::Relaxed)
    }

    /// Reads, or waits for it. `None`: the kernel does it.
    pub(super) fn read_with(&self, mut op: impl ReadOp<MioTcp>) -> Option<io::Result<usize>> {
        let in_ring = || self.conn.reads_ring();
        let deadline = self.reads.deadline();
        self.wait_for(Operation::Read, deadline, in_ring, |on_pending| {
            self.conn.try_read(&mut op, on_pending)
        })
    }

    /// Writes, or waits for it until the deadline. `None`: the kernel does it.
    pub(super) fn write_with(
        &self,
        deadline: Option<Instant>,
        mut op: impl WriteOp<MioTcp>,
    ) -> Option<io::Result<usize>> {
        let in_ring = || self.conn.writes_ring();
        self.wait_for(Operation::Write, deadline, in_ring, |on_pending| {
            self.conn.try_write(&mut op, on_pending)
        })
    }

    #[inline]
    fn wait_for(
        &self,
        operation: Operation,
        deadline: Option<Instant>,
        in_ring: impl Fn() -> bool,
        mut attempt: impl FnMut(OnPending) -> Poll<io::Result<usize>>,
    ) -> Option<io::Result<usize>> {
        if self.is_left_to_tcp(operation) {
            return None;
        }
        let nonblocking = self.is_nonblocking();
        if in_ring() || nonblocking {
            if let Poll::Ready(answer) = attempt(OnPending::Return) {
                return Some(answer);
            }
            return Some(if nonblocking {
                Err(would_block())
            } else {
                self.wait(operation, deadline, attempt)
            });
        }
        if self.conn.is_left_to_tcp(operation) {
            self.direction(operation).left_to_tcp.store(true, Ordering::Relaxed);
            return None;
        }
        // An attempt that finds nothing is a system call here: the one before the sleep is enough.
        Some(self.sleep_for(operation, deadline, attempt))
    }

    /// Waits for a ring: looks for a while, then sleeps.
    fn wait(
        &self,
        operation: Operation,
        deadline: Option<Instant>,
        mut attempt: impl FnMut(OnPending) -> Poll<io::Result<usize>>,
    ) -> io::Result<usize> {
        // Of several threads that wait one looks, and the others sleep.
        let place = &self.direction(operation).looks;
        let looks = lock(place).take();
        let Some(mut looks) = looks else { return self.sleep_for(operation, deadline, attempt) };
        let began = looks.begin();
        let answer = match looks.look(&began, || attempt(OnPending::Return)) {
            Poll::Ready(answer) => answer,
            Poll::Pending => self.sleep_for(operation, deadline, attempt),
        };
        looks.end(began);
        *lock(place) = Some(looks);
        answer
    }

    /// Sleeps until an attempt answers.
    fn sleep_for(
        &self,
        operation: Operation,
        deadline: Option<Instant>,
        mut attempt: impl FnMut(OnPending) -> Poll<io::Result<usize>>,
    ) -> io::Result<usize> {
        let waiters = match operation {
            Operation::Read => self.conn.waiters.readers(),
            Operation::Write => self.conn.waiters.writers(),
        };
        let parker = self.parker();
        let waker = Waker::from(parker.clone());
        let mut listed = Enlisted { waiters, key: None };
        let answer = loop {
            parker.begin();
            // Who was woken is not listed any more, whatever his key says.
            waiters.delist(&mut listed.key);
            waiters.enlist(&mut listed.key, &waker);
            let (answer, waits) = noting_waits(|| attempt(OnPending::Arm));
            if let Poll::Ready(answer) = answer {
                break answer;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break Err(would_block());
            }
            if let Err(error) = self.sleep(&parker, waits, deadline) {
                break Err(error);
            }
        };
        drop(listed);
        self.keep(parker);
        answer
    }

    /// Waits for a wake-up, and for the socket where that was found not ready.
    pub(super) fn sleep(
        &self,
        parker: &Parker,
        waits: SocketWaits,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        if waits == SocketWaits::default() {
            parker.park(deadline);
            return Ok(());
        }
        parker.poll(self.tcp.as_fd(), waits, deadline)
    }

    pub(super) fn parker(&self) -> Arc<Parker> {
        lock(&self.parkers).pop().unwrap_or_default()
    }

    /// For the next one who waits.
    pub(super) fn keep(&self, parker: Arc<Parker>) {
        // Its descriptor is of no use any more once both directions have left TCP, or one is left
        // to it for good.
        let in_ring = self.conn.reads_ring() && self.conn.writes_ring();
        let settled =
            in_ring || self.is_left_to_tcp(Operation::Read) || self.is_left_to_tcp(Operation::Write);
        if !(parker.has_descriptor() && settled) {
            lock(&self.parkers).push(parker);
        }
    }
}
