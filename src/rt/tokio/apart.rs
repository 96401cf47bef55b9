//! Another place to hear of sockets of which tokio has got something wrong.
//!
//! What was on a socket's error queue looks like an end of writing, and tokio keeps that for the
//! life of a registration (docs/design.md, "What was rejected"). Such a socket is told of here: by
//! an epoll instance that forgets each event once it was told. All sockets of a runtime share one,
//! and with it one descriptor.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{OnceLock, Weak};
use std::task::{Context, Poll, Waker};

use tokio::net::TcpStream;
use tokio::runtime::{Handle, Id};
use tokio::task::AbortHandle;

use super::Tokio;
use crate::ism::sys;
use crate::link::reactor::{Interest, Reactor, Watched, forget_readiness};
use crate::shield::shielded;
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, lock};

/// The queues of all runtimes that have one.
static QUEUES: Mutex<Option<HashMap<Id, Weak<Queue>>>> = Mutex::new(None);

/// A socket's place in the queue of a runtime, until it is dropped.
pub(crate) struct Apart {
    queue: Arc<Queue>,
    number: u64,
    fd: RawFd,
    news: Arc<News>,
}

/// Of one socket.
#[derive(Default)]
struct News {
    come: AtomicBool,
    /// Nothing comes any more: the runtime is gone.
    over: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl News {
    fn come(&self) {
        // Release: pairs with the Acquire in `Apart::poll`, whose caller looks at the socket then.
        self.come.store(true, Ordering::Release);
        let waker = lock(&self.waker).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

struct Queue {
    runtime: Id,
    watched: Arc<dyn Watched>,
    sockets: Mutex<Sockets>,
    task: OnceLock<AbortHandle>,
}

#[derive(Default)]
struct Sockets {
    /// Nobody tells any more.
    over: bool,
    /// How many there were.
    count: u64,
    news: HashMap<u64, Arc<News>>,
    /// Which socket has that descriptor now: a number is used again as soon as it is free.
    numbers: HashMap<RawFd, u64>,
}

impl Apart {
    /// `None` outside a runtime that could tell, and without a descriptor.
    pub(crate) fn new(tcp: &TcpStream) -> Option<Apart> {
        let handle = Handle::try_current().ok()?;
        let queue = Queue::of(&handle).ok()?;
        let (fd, news) = (tcp.as_raw_fd(), Arc::new(News::default()));
        let number = {
            let mut sockets = lock(&queue.sockets);
            if sockets.over {
                return None;
            }
            let number = sockets.count;
            sys::tell_of(queue.watched.as_fd(), tcp.as_fd(), number).ok()?;
            sockets.count += 1;
            sockets.news.insert(number, news.clone());
            sockets.numbers.insert(fd, number);
            number
        };
        Some(Apart { queue, number, fd, news })
    }

    /// Does nobody tell any more?
    pub(crate) fn is_over(&self) -> bool {
        self.news.over.load(Ordering::Acquire)
    }

    /// Forgets what has come.
    pub(crate) fn forget(&self) {
        self.news.come.store(false, Ordering::Relaxed);
    }

    /// Ready once for what has come since the last time. `Pending` keeps the waker, of the latest
    /// who waits.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.takes() {
            return Poll::Ready(());
        }
        let before = {
            let mut waker = lock(&self.news.waker);
            let same = waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
            if same { None } else { waker.replace(cx.waker().clone()) }
        };
        drop(before);
        if self.takes() {
            return Poll::Ready(());
        }
        if self.is_over() {
            // Whoever comes again finds a place elsewhere.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn takes(&self) -> bool {
        self.news.come.swap(false, Ordering::Acquire)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let mut sockets = lock(&self.queue.sockets);
        let news = sockets.news.remove(&self.number);
        // Another file with this descriptor by now stays in the queue. (One that was closed is not
        // in there any more.)
        if sockets.numbers.get(&self.fd) == Some(&self.number) {
            sockets.numbers.remove(&self.fd);
            sys::tell_no_more_of(self.queue.watched.as_fd(), self.fd);
        }
        drop(sockets);
        drop(news);
    }
}

impl Queue {
    fn of(handle: &Handle) -> io::Result<Arc<Queue>> {
        let there = |queues: &HashMap<Id, Weak<Queue>>| queues.get(&handle.id()).and_then(Weak::upgrade);
        if let Some(queue) = lock(&QUEUES).as_ref().and_then(there) {
            return Ok(queue);
        }
        let runtime = Tokio(handle.clone());
        // tokio panics where the runtime has no I/O: not the one of that socket, then.
        let watched = shielded(|| sys::event_queue().and_then(|queue| runtime.watch(queue)));
        let watched = watched.map_err(|_| io::Error::from(io::ErrorKind::Unsupported))??;
        let queue = Arc::new(Queue {
            runtime: handle.id(),
            watched: watched.clone(),
            sockets: Mutex::default(),
            task: OnceLock::new(),
        });
        // Without a lock, and before anybody has a place in it: a runtime that ends drops the task
        // here and now.
        let task = handle.spawn(serve(watched, Over(Arc::downgrade(&queue))));
        let _ = queue.task.set(task.abort_handle());
        let faster = {
            let mut queues = lock(&QUEUES);
            let queues = queues.get_or_insert_default();
            let faster = there(queues);
            if faster.is_none() {
                queues.insert(handle.id(), Arc::downgrade(&queue));
            }
            faster
        };
        // The other one is dropped without a lock.
        Ok(faster.unwrap_or(queue))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
        let mut queues = lock(&QUEUES);
        let queues = queues.get_or_insert_default();
        // There may be a younger one already.
        if queues.get(&self.runtime).is_some_and(|queue| queue.strong_count() == 0) {
            queues.remove(&self.runtime);
        }
    }
}

/// Tells each socket what has come for it.
async fn serve(watched: Arc<dyn Watched>, over: Over) {
    while std::future::poll_fn(|cx| watched.poll_ready(Interest::Read, cx)).await.is_ok() {
        // Before all that is there is taken: what comes after that is an event of its own.
        forget_readiness(&*watched, Interest::Read);
        loop {
            let taken = sys::take_events(watched.as_fd());
            let (Ok(told), Some(queue)) = (taken, over.0.upgrade()) else { return };
            if told.is_empty() {
                break;
            }
            let news: Vec<_> = {
                let sockets = lock(&queue.sockets);
                told.iter().filter_map(|number| sockets.news.get(number).cloned()).collect()
            };
            drop(queue);
            news.iter().for_each(|news| news.come());
        }
    }
}

/// When the task ends, for whatever reason, nobody tells any more.
struct Over(Weak<Queue>);

impl Drop for Over {
    fn drop(&mut self) {
        let Some(queue) = self.0.upgrade() else { return };
        let news: Vec<_> = {
            let mut sockets = lock(&queue.sockets);
            sockets.over = true;
            sockets.news.values().cloned().collect()
        };
        {
            // The next one to come finds none, and makes another.
            let mut queues = lock(&QUEUES);
            let queues = queues.get_or_insert_default();
            if queues.get(&queue.runtime).is_some_and(|listed| listed.ptr_eq(&self.0)) {
                queues.remove(&queue.runtime);
            }
        }
        drop(queue);
        for news in news {
            // Release: pairs with the Acquire in `is_over`.
            news.over.store(true, Ordering::Release);
            news.come();
        }
    }
}
