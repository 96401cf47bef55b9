//! A signal page on the heap, and the window of a poller that looks at one.

use crate::ism::interrupt;
use crate::sync::AtomicU64;

/// Connections that a page has signals for.
pub const CONNECTIONS: u32 = interrupt::CONNECTIONS;

/// What a connection is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// Its receive ring has data, or its sender's flags changed.
    Data,
    /// Its send ring has space, or its receiver's flags changed.
    Space,
}

/// The signal bits of an endpoint's connections, and what one sender remembers of it.
pub struct SignalPage {
    page: Box<interrupt::SignalPage>,
    last_rung: AtomicU64,
}

impl SignalPage {
    /// A page without signals whose poller sleeps.
    #[expect(clippy::new_without_default, reason = "not an API")]
    pub fn new() -> SignalPage {
        SignalPage { page: Box::new(interrupt::SignalPage::new()), last_rung: AtomicU64::new(0) }
    }

    /// Tells connection `index` of a signal. True if the poller has to be rung awake.
    ///
    /// Times are nanoseconds of any clock that the poller looks at, too.
    #[inline]
    pub fn raise(&self, index: u32, signal: Signal, now: impl FnOnce() -> u64, stale_after: u64) -> bool {
        let signal = match signal {
            Signal::Data => interrupt::Signal::Data,
            Signal::Space => interrupt::Signal::Space,
        };
        self.page.raise(index, signal, now, stale_after, &self.last_rung)
    }

    /// Takes all signals and names each. Returns how many there were.
    #[inline]
    pub fn drain(&self, mut found: impl FnMut(u32, Signal)) -> usize {
        self.page.drain(
            || CONNECTIONS,
            |index, signal| {
                found(
                    index,
                    match signal {
                        interrupt::Signal::Data => Signal::Data,
                        interrupt::Signal::Space => Signal::Space,
                    },
                );
            },
        )
    }

    /// Is there nothing to drain?
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.page.is_idle()
    }

    /// Says that the poller is awake and looked at `now_ns`.
    #[inline]
    pub fn publish_look(&self, now_ns: u64) {
        self.page.publish_look(now_ns);
    }

    /// Announces that the poller goes to sleep. True if it may.
    #[inline]
    pub fn sleep(&self) -> bool {
        self.page.sleep()
    }
}

/// The adaptive poll window of one poller.
pub struct Window(interrupt::Window);

impl Window {
    /// A window of at most `busy_poll_cap_ns`; 0 never polls.
    pub fn new(busy_poll_cap_ns: u64) -> Window {
        Window(interrupt::Window::new(busy_poll_cap_ns))
    }

    /// A look found work after so many ns without anything to do.
    #[inline]
    pub fn work(&mut self, idle: u64) {
        self.0.work(interrupt::Episode { idle, ..interrupt::Episode::default() });
    }

    /// A look found nothing, so many ns after this side had something to do: is there to be another
    /// one, and no sleep?
    #[inline]
    pub fn keeps_looking(&self, idle: u64) -> bool {
        self.0.keeps_looking(idle, false)
    }
}
