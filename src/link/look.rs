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

use crate::ism::interrupt::{Episode, Window};
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

/// A gap between two looks, in ns, up to which nothing else has run in between: this side is idle.
/// Where a look and the way to the next one take longer, it is twice as long as the shortest of
/// them lately, but never longer than the second of these.
const IDLE_GAP: u64 = 3_000;
const LONGEST_IDLE_GAP: u64 = 20_000;

/// A side that is idle looks so often at a link before it gives way to other tasks, for a fraction
/// of a µs in all: a scheduler takes ten times as long as a look. Where there are more links it
/// looks at all of them less often.
const LOOKS_IN_A_ROW: usize = 8;

/// After so many ns of idle time a look gives way to other threads, too: where nobody else wants to
/// run that costs a fraction of a µs, and where somebody does, looking was at his cost.
const PATIENT: u64 = 10_000;

/// Looks go on while the tasks of this side work, for it costs next to nothing, but not for longer
/// than so many ns after the latest piece of work: some runtimes always have something to do.
const LONGEST_BUSY: u64 = 200_000;

/// Of so many episodes whose peer was last seen on our CPU one is looked through: at first, and at
/// most when that changes nothing.
const SHARED_CPU_LOOKS: u32 = 8;
const MOST_SHARED: u32 = 1024;

/// For so many ns of idle time it is not asked on which CPU the peer is that was on another one the
/// last time: each of its looks writes to the line that has it.
const ELSEWHERE: u64 = 2_000;

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
#[derive(Clone, Default)]
struct Links {
    generation: u64,
    all: Arc<Vec<Arc<Link>>>,
}

/// What the task keeps between its turns of what it shares with the reactor's wakers, so that a
/// turn takes no lock for what has not changed.
#[derive(Default)]
struct Known {
    links: Links,
    waker: Option<Waker>,
}

impl Poller {
    /// The links to look at, each with a bell that is listened to.
    fn links(&self) -> Links {
        let generation = self.endpoint.generation();
        let known = {
            let mut known = lock(&self.links);
            if known.generation == generation {
                return known.clone();
            }
            *known = Links { generation, all: Arc::new(self.endpoint.links()) };
            known.clone()
        };
        for bell in known.all.iter().filter_map(|link| link.unheard_bell()) {
            self.listen(&bell);
        }
        known
    }

    fn listen(&self, bell: &Arc<dyn Watched>) {
        let ear = Ear { poller: self.this.clone(), bell: Arc::downgrade(bell) };
        Arc::new(ear).listen(&**bell);
    }

    /// One look at everything; returns which link was the last that had signals, and when the first
    /// of the peers has rung this poller awake, if it slept.
    fn look(links: &[Arc<Link>], now: u64, why: Why) -> (Option<usize>, Option<u64>) {
        let (mut found, mut rung_at) = (None, None::<u64>);
        for (at, link) in links.iter().enumerate() {
            // Before the look takes its place.
            if let Some(rung) = link.signals().rung_at() {
                rung_at = Some(rung_at.map_or(rung, |first| first.min(rung)));
            }
            match why {
                Why::Rung => link.signals().publish_answer(now),
                Why::Turn | Why::Row => link.signals().publish_look(now),
            }
            if !link.signals().is_idle() && link.drain_interrupts() > 0 {
                link.tell_cpu(now);
                found = Some(at);
            }
        }
        (found, rung_at)
    }

    /// Announces sleep on every page; `false` when one of them has signals.
    fn sleep(links: &[Arc<Link>]) -> bool {
        // No short cut: every page has to say that we sleep.
        links.iter().filter(|link| !link.signals().sleep()).count() == 0
    }

    /// The task's turn; `true`: it wants another one.
    fn poll(&self, known: &mut Known, waker: &Waker) -> bool {
        if !known.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            known.waker = Some(waker.clone());
            let stale = lock(&self.task).replace(waker.clone());
            drop(stale);
        }
        if known.links.generation != self.endpoint.generation() {
            known.links = self.links();
        }
        let again = self.turn(&known.links.all, Why::Turn);
        if !again {
            // It may sleep for long, and a link that ends meanwhile is not its to keep.
            known.links = Links::default();
        }
        again
    }

    /// One look, and what follows from it: `true` to look again soon, `false` when the peers have
    /// to ring.
    fn turn(&self, links: &[Arc<Link>], why: Why) -> bool {
        let now = (self.clock)();
        let mut next = self.look_once(links, now, why);
        match next {
            // It took a fraction of a µs to see it: to ask what time it is would take a tenth of
            // that again, and whoever waits has still to be woken.
            Next::IdleLook if Self::is_something_new(links) => next = self.look_once(links, now, Why::Row),
            Next::PatientLook => std::thread::yield_now(),
            _ => {}
        }
        next != Next::Sleep || !Self::sleep(links)
    }

    /// Looks some more times at the links, and only that.
    fn is_something_new(links: &[Arc<Link>]) -> bool {
        (0..LOOKS_IN_A_ROW / links.len().max(1)).any(|_| {
            std::hint::spin_loop();
            links.iter().any(|link| !link.signals().is_idle())
        })
    }

    fn look_once(&self, links: &[Arc<Link>], now: u64, why: Why) -> Next {
        let (found, rung_at) = Self::look(links, now, why);
        let mut watch = lock(&self.watch);
        match why {
            // At the same time as the look before it.
            Why::Row => {}
            Why::Turn | Why::Rung => watch.count_gap(now, rung_at),
        }
        watch.ask_for_cpu(now);
        if let Some(at) = found {
            watch.work(now, self.endpoint.rings());
            watch.busiest = at;
        }
        // Without a clock no window would ever close.
        let keeps_looking = now > 0 && watch.keeps_looking(now, self.endpoint.rings(), links);
        watch.looks.count(found.is_some(), keeps_looking);
        watch.next(now, keeps_looking)
    }
}

/// What leads to a look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// A bell was rung.
    Rung,
    /// It is the task's turn.
    Turn,
    /// There was something new since the look before it, in the same turn.
    Row,
}

/// What follows from a look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// The peers have to ring.
    Sleep,
    /// Others first, then the next look.
    Look,
    /// The next look: nobody else had anything to do between the last two.
    IdleLook,
    /// The same, after other threads.
    PatientLook,
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
            poller.turn(&poller.links().all, Why::Rung)
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

/// What is known from one look to the next. All times are of the poller's clock, in ns.
struct Watch {
    window: Window,
    looks: Looks,
    cpu: Cpu,
    last_look: u64,
    last_work: u64,
    /// For how long this side has been idle since the last work.
    idle: u64,
    /// The last look came right after the one before, as looks do that have nothing in between.
    is_idle: bool,
    shortest_gap: u64,
    asleep_since: Option<u64>,
    woken_after: Option<u64>,
    /// Rings of the peers until the last work.
    rings: u64,
    /// Which link that came from.
    busiest: usize,
    /// Episodes in which its peer shared our CPU since one was looked through, how many there are
    /// to be, and whether this one is to be slept for that.
    shared_cpu: u32,
    most_shared: u32,
    gives_way: Option<bool>,
    /// The last look was a patient one, after which other threads had their turn.
    was_patient: bool,
}

impl Watch {
    fn new(window: Window, looks: Looks) -> Self {
        Watch {
            window,
            looks,
            cpu: Cpu::default(),
            last_look: 0,
            last_work: 0,
            idle: 0,
            is_idle: false,
            shortest_gap: IDLE_GAP,
            asleep_since: None,
            woken_after: None,
            rings: 0,
            busiest: 0,
            shared_cpu: 0,
            most_shared: SHARED_CPU_LOOKS,
            gives_way: None,
            was_patient: false,
        }
    }

    /// There is a look now: what was between it and the last one?
    fn count_gap(&mut self, now: u64, rung_at: Option<u64>) {
        let gap = now.saturating_sub(std::mem::replace(&mut self.last_look, now));
        if let Some(since) = self.asleep_since.take() {
            // The ring is what ended the idle time; the rest was the way to here.
            let until = rung_at.unwrap_or(now).clamp(since, now.max(since));
            self.idle += until - since;
            self.woken_after = rung_at.map(|_| now.saturating_sub(until));
            self.is_idle = false;
            self.was_patient = false;
            self.cpu.begin(now);
            return;
        }
        if std::mem::take(&mut self.was_patient) {
            // Whoever ran meanwhile, this side had nothing to do.
            self.idle += gap;
            return;
        }
        self.shortest_gap = self.shortest_gap.min(gap);
        self.is_idle = gap < (2 * self.shortest_gap).clamp(IDLE_GAP, LONGEST_IDLE_GAP);
        if self.is_idle {
            self.idle += gap;
        }
    }

    /// Others need the CPU more if the thread lost it since the last look.
    fn ask_for_cpu(&mut self, now: u64) {
        if self.window.may_open() && self.cpu.was_lost(now) {
            self.window.preempted();
        }
    }

    fn work(&mut self, now: u64, rings: u64) {
        let rang = std::mem::replace(&mut self.rings, rings) != rings;
        let episode =
            Episode { idle: std::mem::take(&mut self.idle), woken_after: self.woken_after.take(), rang };
        self.window.work(episode);
        self.is_idle = false;
        self.gives_way = None;
        // The machine may have become slower.
        self.shortest_gap = (self.shortest_gap + self.shortest_gap / 64 + 1).min(LONGEST_IDLE_GAP);
        self.last_work = now;
    }

    /// Whether to look again, and not to sleep.
    fn keeps_looking(&mut self, now: u64, rings: u64, links: &[Arc<Link>]) -> bool {
        if !self.window.is_open() || self.gives_way(links) {
            return false;
        }
        if !self.is_idle {
            // What was found may have made work for this side, and what comes meanwhile needs no
            // ring.
            return now.saturating_sub(self.last_work) < LONGEST_BUSY;
        }
        self.window.keeps_looking(self.idle, rings != self.rings)
    }

    fn next(&mut self, now: u64, keeps_looking: bool) -> Next {
        if !keeps_looking {
            self.asleep_since = Some(now);
            return Next::Sleep;
        }
        match self.is_idle {
            false => Next::Look,
            true if self.idle < PATIENT => Next::IdleLook,
            true => {
                self.was_patient = true;
                Next::PatientLook
            }
        }
    }

    /// Is the peer on this CPU, so that it has something for us only after we sleep? Now and then
    /// this side looks all the same: the scheduler sees two who want to run, and moves one.
    fn gives_way(&mut self, links: &[Arc<Link>]) -> bool {
        if let Some(known) = self.gives_way {
            return known;
        }
        if self.shared_cpu == 0 && self.idle < ELSEWHERE {
            return false;
        }
        let peer = links.get(self.busiest).and_then(|link| link.peer_cpu());
        let gives_way = self.is_to_give_way(peer == Some(sys::current_cpu()));
        self.gives_way = Some(gives_way);
        gives_way
    }

    fn is_to_give_way(&mut self, shares_cpu: bool) -> bool {
        if !shares_cpu {
            (self.shared_cpu, self.most_shared) = (0, SHARED_CPU_LOOKS);
            return false;
        }
        self.shared_cpu += 1;
        if self.shared_cpu < self.most_shared {
            return true;
        }
        // Who shares for long is held there, or there is no other CPU to be had.
        (self.shared_cpu, self.most_shared) = (0, (self.most_shared * 2).min(MOST_SHARED));
        false
    }
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
    let watch = Watch::new(Window::new(cap), looks);
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
    let mut known = Known::default();
    std::future::poll_fn(move |cx| {
        if poller.failed.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        if !listening {
            listening = true;
            poller.listen(&bell);
        }
        if poller.poll(&mut known, cx.waker()) {
            // Behind everything that is ready to run: the looks are cooperative.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await;
}

#[cfg(all(test, not(loom)))]
mod tests;
