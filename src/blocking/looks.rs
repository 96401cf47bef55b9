//! How long a thread looks for itself before it sleeps.

use std::task::Poll;
use std::time::Duration;

use crate::ism::interrupt::{Episode, Window};
use crate::ism::sys;
use crate::link::look::Cpu;

/// For how long a wait keeps the CPU to itself, in ns: an answer that comes at once is not waited
/// for any longer.
const ALONE: u64 = 3_000;

/// The looks of those who wait for one direction. They are idle for as long as they wait.
pub(super) struct Looks {
    window: Window,
    cpu: Cpu,
}

/// A wait, from its beginning on.
pub(super) struct Began(u64);

impl Looks {
    pub(super) fn new(busy_poll: Duration) -> Self {
        let cap = u64::try_from(busy_poll.as_nanos()).unwrap_or(u64::MAX);
        Looks { window: Window::new(cap), cpu: Cpu::default() }
    }

    pub(super) fn begin(&self) -> Began {
        Began(if self.window.may_open() { sys::monotonic_ns() } else { 0 })
    }

    /// Looks as long as that pays.
    pub(super) fn look<R>(&mut self, began: &Began, mut attempt: impl FnMut() -> Poll<R>) -> Poll<R> {
        if began.0 == 0 {
            return Poll::Pending;
        }
        self.cpu.begin(began.0);
        loop {
            let now = sys::monotonic_ns();
            if self.cpu.was_lost(now) {
                self.window.preempted();
            }
            if now == 0 || !self.window.keeps_looking(now.saturating_sub(began.0), false) {
                return Poll::Pending;
            }
            if now.saturating_sub(began.0) < ALONE {
                std::hint::spin_loop();
            } else {
                // Perhaps it is on this CPU that what is waited for has to be done.
                std::thread::yield_now();
            }
            if let Poll::Ready(answer) = attempt() {
                return Poll::Ready(answer);
            }
        }
    }

    /// The wait has come to what was waited for.
    pub(super) fn end(&mut self, began: Began) {
        if began.0 > 0 {
            let idle = sys::monotonic_ns().saturating_sub(began.0);
            self.window.work(Episode { idle, ..Episode::default() });
        }
    }
}
