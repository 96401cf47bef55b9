//! The engine thread: it polls the tasks of an endpoint, and sleeps in epoll when none of them has
//! anything to do.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Weak;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use mio::{Events, Token};

use super::registered::Registered;
use crate::ism::sys;
use crate::link::reactor::{Reactor, Task, Watched};
use crate::shield::shielded;
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, lock};

/// What the thread is called.
const NAME: &str = "smc-lo";
/// As std gives it: it calls the application's wakers.
const STACK: usize = 2 << 20;

/// The token of the thread's own waker; descriptors have other ones.
const WAKE_UP: Token = Token(usize::MAX);

/// Events that are taken from the kernel at once.
const EVENTS: usize = 256;

/// Rounds of tasks that are ready at once, after which the descriptors have a turn all the same:
/// the poller looks for a while without sleeping.
const ROUNDS: u32 = 16;

/// What the thread has to do.
#[derive(Default)]
struct Queue {
    fresh: Vec<Task>,
    woken: VecDeque<u64>,
    /// The thread is in epoll, or about to be, and has to be called.
    sleeps: bool,
    ended: bool,
}

/// The reactor that the thread serves.
pub(crate) struct Executor {
    registry: mio::Registry,
    waker: mio::Waker,
    queue: Mutex<Queue>,
    watched: Mutex<Descriptors>,
    ended: AtomicBool,
    process: u32,
    this: Weak<Executor>,
}

#[derive(Default)]
struct Descriptors {
    by_token: HashMap<usize, Weak<Registered>>,
    next: usize,
}

impl Executor {
    /// Starts a thread that ends by [`Executor::end`].
    pub(super) fn start() -> io::Result<Arc<Self>> {
        let poll = mio::Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let waker = mio::Waker::new(&registry, WAKE_UP)?;
        let executor = Arc::new_cyclic(|this| Executor {
            registry,
            waker,
            queue: Mutex::default(),
            watched: Mutex::default(),
            ended: AtomicBool::new(false),
            process: std::process::id(),
            this: this.clone(),
        });
        let driver = Driver { poll, executor: executor.clone(), tasks: HashMap::new(), next: 0 };
        sys::begin_thread(NAME, STACK, move || driver.run())?;
        Ok(executor)
    }

    /// Lets the thread drop all tasks, and end. What comes after this is dropped at once.
    pub(super) fn end(&self) {
        // Release: pairs with the Acquire of `has_ended`.
        self.ended.store(true, Ordering::Release);
        let sleeps = {
            let mut queue = lock(&self.queue);
            queue.ended = true;
            std::mem::take(&mut queue.sleeps)
        };
        if sleeps {
            self.call();
        }
    }

    /// A forked child inherits the value, but not the thread.
    pub(super) fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn call(&self) {
        if let Err(error) = self.waker.wake() {
            crate::trace::warning!("the engine thread can not be woken: {error}");
        }
    }

    fn woken(&self, task: u64) {
        let sleeps = {
            let mut queue = lock(&self.queue);
            queue.woken.push_back(task);
            std::mem::take(&mut queue.sleeps)
        };
        if sleeps {
            self.call();
        }
    }

    /// Registers whatever has a descriptor.
    pub(super) fn register(&self, fd: impl AsFd + Send + Sync + 'static) -> io::Result<Arc<Registered>> {
        let Some(this) = self.this.upgrade().filter(|this| !this.has_ended()) else {
            return Err(super::registered::gone());
        };
        let number = {
            let mut watched = lock(&self.watched);
            watched.next += 1;
            watched.next
        };
        let registered = Arc::new(Registered::new(this, number, Box::new(fd)));
        lock(&self.watched).by_token.insert(number, Arc::downgrade(&registered));
        // Known before the first event can come. If this fails, dropping it forgets it.
        registered.enter()?;
        Ok(registered)
    }

    pub(super) fn forget(&self, number: usize) {
        lock(&self.watched).by_token.remove(&number);
    }

    pub(super) fn registry(&self) -> &mio::Registry {
        &self.registry
    }

    fn find(&self, token: Token) -> Option<Arc<Registered>> {
        lock(&self.watched).by_token.get(&token.0).and_then(Weak::upgrade)
    }
}

impl Reactor for Executor {
    /// The threads that wait look for themselves: this one would take their CPU.
    fn busy_poll(&self, _: Duration) -> Duration {
        Duration::ZERO
    }

    fn watch(&self, fd: OwnedFd) -> io::Result<Arc<dyn Watched>> {
        Ok(self.register(fd)?)
    }

    fn spawn(&self, task: Task) {
        let sleeps = {
            let mut queue = lock(&self.queue);
            if queue.ended {
                drop(queue);
                drop(task);
                return;
            }
            queue.fresh.push(task);
            std::mem::take(&mut queue.sleeps)
        };
        if sleeps {
            self.call();
        }
    }
}

/// What a task is woken by.
struct TaskWaker {
    executor: Arc<Executor>,
    number: u64,
    /// It is in the queue already.
    queued: AtomicBool,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // AcqRel: pairs with the swap of the thread, before it polls. What led to this wake-up is
        // seen by that poll, or this one queues the task again.
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.executor.woken(self.number);
        }
    }
}

struct Running {
    task: Task,
    state: Arc<TaskWaker>,
    waker: Waker,
}

/// What the thread has for itself.
struct Driver {
    poll: mio::Poll,
    executor: Arc<Executor>,
    tasks: HashMap<u64, Running>,
    next: u64,
}

impl Driver {
    fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        let mut rounds = 0;
        loop {
            let (fresh, woken) = {
                let mut queue = lock(&self.executor.queue);
                if queue.ended {
                    return;
                }
                (std::mem::take(&mut queue.fresh), std::mem::take(&mut queue.woken))
            };
            for task in fresh {
                self.begin(task);
            }
            for number in woken {
                self.turn(number);
            }
            let timeout = {
                let mut queue = lock(&self.executor.queue);
                let idle = queue.fresh.is_empty() && queue.woken.is_empty() && !queue.ended;
                queue.sleeps = idle;
                if idle { None } else { Some(Duration::ZERO) }
            };
            rounds += 1;
            if timeout.is_some() && rounds < ROUNDS {
                continue;
            }
            rounds = 0;
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    crate::trace::warning!("the engine thread ends: {error}");
                    return;
                }
                Err(_) => continue,
                Ok(()) => lock(&self.executor.queue).sleeps = false,
            }
            for event in &events {
                if let Some(registered) = self.executor.find(event.token()) {
                    registered.tell(event);
                }
            }
        }
    }

    fn begin(&mut self, task: Task) {
        self.next += 1;
        let number = self.next;
        let queued = AtomicBool::new(true);
        let state = Arc::new(TaskWaker { executor: self.executor.clone(), number, queued });
        let waker = Waker::from(state.clone());
        self.tasks.insert(number, Running { task, state, waker });
        self.turn(number);
    }

    fn turn(&mut self, number: u64) {
        let Some(running) = self.tasks.get_mut(&number) else { return };
        running.state.queued.swap(false, Ordering::AcqRel);
        let mut cx = Context::from_waker(&running.waker);
        // One that panics ends, and no other.
        let polled = shielded(|| running.task.as_mut().poll(&mut cx));
        if !matches!(polled, Ok(Poll::Pending)) {
            let done = self.tasks.remove(&number);
            let _ = shielded(|| drop(done));
        }
    }
}

/// Also when the thread can not go on: the endpoint ends with its tasks.
impl Drop for Driver {
    fn drop(&mut self) {
        self.executor.end();
        for (_, running) in self.tasks.drain() {
            let _ = shielded(|| drop(running));
        }
        // Nobody adds to them any more.
        let fresh = std::mem::take(&mut lock(&self.executor.queue).fresh);
        for task in fresh {
            let _ = shielded(|| drop(task));
        }
        let watched =
            Vec::from_iter(lock(&self.executor.watched).by_token.values().filter_map(Weak::upgrade));
        watched.iter().for_each(|registered| registered.end());
    }
}
