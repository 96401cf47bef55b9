//! The poller of an endpoint: takes the interrupts of all its links and wakes the streams they are
//! for.
//!
//! While there is work it looks again and again, giving way to other tasks between looks, within an
//! adaptive window; then it arms and sleeps in the reactor. The bells, one of each link and one of
//! the endpoint's own, are served by wakers that drain the signals inside the reactor's own turn,
//! so that a handler which blocks the worker the poller sits on delays nobody else (the peers ring
//! when the poller's last look is stale). docs/design.md, "Wake-ups".

use std::sync::Weak;
use std::task::{Context, Poll, Wake, Waker};

use crate::ism::interrupt::Window;
use crate::ism::sys;
use crate::link::Link;
use crate::link::endpoint::Endpoint;
use crate::link::reactor::{Interest, Watched, forget_readiness};
use crate::link::tally::Looks;
use crate::shield::shielded;
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, lock, rank};

/// A gap between two looks, in ns, from which the thread may have been preempted; only then the
/// kernel is asked.
const SUSPICIOUS_GAP: u64 = 10_000;

/// What both the task and the reactor's wakers use.
struct Poller {
    this: Weak<Poller>,
    endpoint: Arc<Endpoint>,
    links: Mutex<Links, rank::PollerLinks>,
    watch: Mutex<Watch>,
    task: Mutex<Option<Waker>>,
    /// A look inside the reactor's turn has panicked.
    failed: AtomicBool,
    clock: fn() -> u64,
}

/// The endpoint's links as of a generation.
#[derive(Default)]
struct Links {
    generation: u64,
    all: Arc<Vec<Arc<Link>>>,
}

impl Poller {
    /// The links to look at, each with a bell that is listened to.
    fn links(&self) -> Arc<Vec<Arc<Link>>> {
        let generation = self.endpoint.generation();
        let all = {
            let mut links = lock(&self.links);
            if links.generation == generation {
                return links.all.clone();
            }
            *links = Links { generation, all: Arc::new(self.endpoint.links()) };
            links.all.clone()
        };
        for bell in all.iter().filter_map(|link| link.unheard_bell()) {
            self.listen(&bell);
        }
        all
    }

    fn listen(&self, bell: &Arc<dyn Watched>) {
        let ear = Ear { poller: self.this.clone(), bell: Arc::downgrade(bell) };
        Arc::new(ear).listen(&**bell);
    }

    /// One look at everything; returns how many signals there were.
    fn look(links: &[Arc<Link>], now: u64) -> usize {
        let mut found = 0;
        for link in links {
            link.signals().publish_look(now);
            if !link.signals().is_idle() {
                found += link.drain_interrupts();
            }
        }
        found
    }

    /// Announces sleep on every page; `false` when one of them has signals.
    fn sleep(links: &[Arc<Link>]) -> bool {
        // No short cut: every page has to say that we sleep.
        links.iter().filter(|link| !link.signals().sleep()).count() == 0
    }

    /// One look, and what follows from it: `true` to look again soon, `false` when the peers have
    /// to ring.
    fn turn(&self) -> bool {
        let links = self.links();
        let now = (self.clock)();
        let found = Self::look(&links, now);
        let keep_polling = {
            let mut watch = lock(&self.watch);
            if watch.polls && watch.cpu.was_lost(now) {
                watch.window.preempted();
            }
            if found > 0 {
                watch.window.work(now);
            }
            // Without a clock no window would ever close.
            let keep_polling = now > 0 && watch.window.keep_polling(now);
            watch.looks.count(found > 0, keep_polling);
            keep_polling
        };
        keep_polling || !Self::sleep(&links)
    }
}

/// What the reactor calls when a bell was rung, on whichever thread it runs. The reactor keeps it
/// as long as the bell.
struct Ear {
    poller: Weak<Poller>,
    bell: Weak<dyn Watched>,
}

impl Ear {
    /// Asks the reactor to call us with the next edge; returns once that is so.
    fn listen(self: &Arc<Self>, bell: &dyn Watched) {
        let waker = Waker::from(self.clone());
        let mut cx = Context::from_waker(&waker);
        let mut again = false;
        while let Poll::Ready(Ok(())) = bell.poll_ready(Interest::Read, &mut cx) {
            // That a peer has hung up can not be forgotten. It does not ring any more, and the task
            // of its link hears of it.
            if again && sys::has_hung_up(bell.as_fd()).unwrap_or(true) {
                return;
            }
            // Never read: what is rung next makes another edge.
            forget_readiness(bell, Interest::Read);
            again = true;
        }
    }
}

impl Wake for Ear {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let (Some(poller), Some(bell)) = (self.poller.upgrade(), self.bell.upgrade()) else { return };
        let looked = shielded(|| {
            // First listen, then look: what is raised after the look makes a new edge.
            self.listen(&*bell);
            poller.turn()
        });
        if looked.is_err() {
            // The reactor is the whole runtime's: it goes on, and the task ends the endpoint.
            poller.failed.store(true, Ordering::Release);
        }
        // A window that is shut needs no task: the streams are awake, and the pages say that we
        // sleep.
        if looked.unwrap_or(true) {
            let task = lock(&poller.task).clone();
            if let Some(task) = task {
                task.wake();
            }
        }
    }
}

/// What is known from one look to the next.
struct Watch {
    window: Window,
    looks: Looks,
    /// The window may open at all.
    polls: bool,
    cpu: Cpu,
}

/// The CPU of a thread that looks for work, which others may need more.
#[derive(Default)]
pub(crate) struct Cpu {
    last_look: u64,
    thread: u32,
    switches: u64,
}

impl Cpu {
    /// There is a look now. Was the thread preempted since the last one? Only the kernel knows, and
    /// only a long gap makes us ask.
    pub(crate) fn was_lost(&mut self, now: u64) -> bool {
        if now.saturating_sub(std::mem::replace(&mut self.last_look, now)) < SUSPICIOUS_GAP {
            return false;
        }
        let (thread, switches) = (sys::thread_id(), sys::involuntary_switches());
        let lost = thread == self.thread && switches > self.switches;
        (self.thread, self.switches) = (thread, switches);
        lost
    }

    /// Looks begin: what was before does not count.
    #[cfg(feature = "blocking")]
    pub(crate) fn begin(&mut self, now: u64) {
        self.last_look = now;
    }
}

/// Serves the interrupts of an endpoint, whose own bell is `bell`; returns when that is not
/// possible any more.
pub(crate) async fn run(bell: Arc<dyn Watched>, endpoint: Arc<Endpoint>, clock: fn() -> u64) {
    let busy_poll = endpoint.reactor().busy_poll(endpoint.busy_poll());
    let cap = u64::try_from(busy_poll.as_nanos()).unwrap_or(u64::MAX);
    let looks = Looks::new(endpoint.id().0);
    let watch = Watch { window: Window::new(cap), looks, polls: cap > 0, cpu: Cpu::default() };
    let poller = Arc::new_cyclic(|this| Poller {
        this: this.clone(),
        endpoint,
        links: Mutex::default(),
        watch: Mutex::new(watch),
        task: Mutex::new(None),
        failed: AtomicBool::new(false),
        clock,
    });
    let mut listening = false;
    std::future::poll_fn(move |cx| {
        if poller.failed.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        {
            let mut task = lock(&poller.task);
            if !task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
                *task = Some(cx.waker().clone());
            }
        }
        if !listening {
            listening = true;
            poller.listen(&bell);
        }
        if poller.turn() {
            // Behind everything that is ready to run: the looks are cooperative.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await;
}
