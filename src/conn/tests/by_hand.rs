//! A runtime without a thread of its own: it does one thing at a time, when the test says so.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Weak;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::ism::sys::{self, FileId};
use crate::link::reactor::{Interest, Reactor, Task, Watched};
use crate::sync::{Arc, Mutex, lock};

#[derive(Default)]
pub(super) struct ByHand {
    /// Not polled yet.
    fresh: Mutex<VecDeque<Task>>,
    tasks: Mutex<BTreeMap<u64, Task>>,
    woken: Arc<Mutex<VecDeque<u64>>>,
    next: Mutex<u64>,
    watched: Mutex<Vec<Weak<Descriptor>>>,
    /// What its clock says, and how much later it is whenever somebody has looked. At first there
    /// is none.
    clock: Mutex<(Duration, Duration)>,
    /// How often others have run instead of it, and how often more whenever somebody has asked.
    preempted: Mutex<(u64, u64)>,
    /// It takes many messages in a turn, not one.
    takes_many: Mutex<bool>,
}

/// A descriptor, and who waits for it to be readable and writable.
struct Descriptor {
    fd: OwnedFd,
    waiting: Mutex<[Option<Waker>; 2]>,
}

impl Descriptor {
    fn is_ready(&self, interest: Interest) -> bool {
        let (read, write) = (interest == Interest::Read, interest == Interest::Write);
        sys::is_ready(self.fd.as_fd(), read, write).expect("poll")
    }

    /// Wakes who waits for what is so now.
    fn turn(&self) {
        for interest in [Interest::Read, Interest::Write] {
            let waker =
                if self.is_ready(interest) { lock(&self.waiting)[interest as usize].take() } else { None };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Watched for Descriptor {
    fn poll_ready(&self, interest: Interest, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_ready(interest) {
            return Poll::Ready(Ok(()));
        }
        lock(&self.waiting)[interest as usize] = Some(cx.waker().clone());
        Poll::Pending
    }

    fn attempt(&self, _: Interest, attempt: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        attempt()
    }
}

struct Woken {
    task: u64,
    queue: Arc<Mutex<VecDeque<u64>>>,
}

impl Wake for Woken {
    fn wake(self: std::sync::Arc<Self>) {
        let mut queue = lock(&self.queue);
        if !queue.contains(&self.task) {
            queue.push_back(self.task);
        }
    }
}

impl Reactor for ByHand {
    fn watch(&self, fd: OwnedFd) -> io::Result<Arc<dyn Watched>> {
        let descriptor = Arc::new(Descriptor { fd, waiting: Mutex::default() });
        lock(&self.watched).push(Arc::downgrade(&descriptor));
        Ok(descriptor)
    }

    fn spawn(&self, task: Task) {
        lock(&self.fresh).push_back(task);
    }

    fn messages_per_turn(&self) -> usize {
        if *lock(&self.takes_many) { 16 } else { 1 }
    }

    fn clock(&self) -> Duration {
        let mut clock = lock(&self.clock);
        let (now, step) = *clock;
        clock.0 = now + step;
        now
    }

    fn switches(&self) -> u64 {
        let mut preempted = lock(&self.preempted);
        preempted.0 += preempted.1;
        preempted.0
    }
}

impl ByHand {
    /// It is that time now, and so much later whenever somebody has looked.
    pub(super) fn set_clock(&self, now: Duration, step: Duration) {
        *lock(&self.clock) = (now, step);
    }

    /// Takes as many messages in a turn as others do, not one.
    pub(super) fn take_many(&self) {
        *lock(&self.takes_many) = true;
    }

    /// From now on others run in between whenever it is asked.
    pub(super) fn preempt(&self) {
        lock(&self.preempted).1 = 1;
    }

    /// Is that socket among those that wake a task? It may be by another descriptor.
    pub(super) fn watches(&self, socket: BorrowedFd<'_>) -> bool {
        let file = |fd: BorrowedFd<'_>| FileId::of(fd).expect("fstat");
        let watched = lock(&self.watched);
        watched.iter().filter_map(Weak::upgrade).any(|other| file(other.as_fd()) == file(socket))
    }

    fn poll(&self, number: u64, mut task: Task) {
        let waker = Waker::from(std::sync::Arc::new(Woken { task: number, queue: self.woken.clone() }));
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            lock(&self.tasks).insert(number, task);
        }
    }

    /// Begins one task that was not begun yet. False: there is none.
    fn begin_one(&self) -> bool {
        let Some(task) = lock(&self.fresh).pop_front() else { return false };
        let number = {
            let mut next = lock(&self.next);
            *next += 1;
            *next
        };
        self.poll(number, task);
        true
    }

    fn poll_woken(&self, number: u64) {
        let task = lock(&self.tasks).remove(&number);
        if let Some(task) = task {
            self.poll(number, task);
        }
    }

    /// Is something to be begun?
    pub(super) fn has_work(&self) -> bool {
        !lock(&self.fresh).is_empty()
    }

    /// Begins what is to be begun, and lets nobody else have a turn.
    pub(super) fn work(&self) {
        while self.begin_one() {}
    }

    /// Lets one task have a turn. False: none of them has anything to do.
    pub(super) fn step(&self) -> bool {
        if self.begin_one() {
            return true;
        }
        let watched = {
            let mut watched = lock(&self.watched);
            watched.retain(|descriptor| descriptor.strong_count() > 0);
            Vec::from_iter(watched.iter().filter_map(Weak::upgrade))
        };
        watched.iter().for_each(|descriptor| descriptor.turn());
        let Some(number) = lock(&self.woken).pop_front() else { return false };
        self.poll_woken(number);
        true
    }

    /// Does something that wakes tasks, and lets these, and what they begin, have their turn.
    pub(super) fn with(&self, wakes: impl FnOnce()) {
        let others = std::mem::take(&mut *lock(&self.woken));
        wakes();
        let woken = std::mem::replace(&mut *lock(&self.woken), others);
        woken.into_iter().for_each(|number| self.poll_woken(number));
    }

    /// Drops all tasks: they keep what keeps them.
    pub(super) fn end(&self) {
        let fresh = std::mem::take(&mut *lock(&self.fresh));
        let begun = std::mem::take(&mut *lock(&self.tasks));
        drop((fresh, begun));
    }
}
