//! The glue to tokio: the only place that spawns its tasks and registers descriptors with it.
//!
//! One [`Endpoint`] serves a runtime on a device directory. It is made by the first stream or listener that needs
//! it and ends with its runtime: dropping the runtime drops the endpoint's tasks, and with the first of them every
//! link is declared dead, so that nobody waits for a runtime that is gone. A task that panics or returns ends it, too:
//! what it served has nobody left to wait for. The next stream makes another endpoint then.

mod link;
mod ops;
mod poller;
mod tcp;
#[cfg(test)]
mod tests;
mod timer;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Weak;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::runtime::{Handle, Id};
use tokio::task::AbortHandle;

use crate::config::Config;
use crate::ism::device::EndpointId;
use crate::ism::sys;
use crate::link::endpoint::{Endpoint, Reactor, Watched, Work};
use crate::link::message::Subject;
use crate::link::stream::{Death, LinkedStream};
use crate::shield::{Panicked, guarded};
use crate::sync::{Arc, Mutex, lock};
use crate::transport::FallbackReason;

pub(crate) use ops::{
    peeking, read_readiness, reading, try_peeking, try_reading, try_reading_buf, try_reading_vectored,
    try_writing, try_writing_vectored, write_readiness, writing, writing_vectored,
};
pub(crate) use tcp::{TokioTcp, drain, tcp_ready};
pub(crate) use timer::{Sleep, Timers};

/// An endpoint with the runtime that drives it.
#[derive(Clone)]
pub(crate) struct Driven {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) timers: Arc<Timers>,
}

type Key = (Id, Option<Arc<Path>>);

static ENDPOINTS: Mutex<Option<HashMap<Key, Driven>>> = Mutex::new(None);

/// The endpoint of the current runtime on the device of `config`, made when there is none.
pub(crate) fn endpoint(handle: &Handle, config: &Config) -> io::Result<Driven> {
    let key = (handle.id(), config.device_dir.clone());
    let mut endpoints = lock(&ENDPOINTS);
    let table = endpoints.get_or_insert_default();
    if let Some(driven) = table.get(&key) {
        if !driven.endpoint.is_dead() {
            return Ok(driven.clone());
        }
    }
    let _context = handle.enter();
    let endpoint = Arc::new(Endpoint::open(config)?);
    let timers = Arc::new(Timers::new()?);
    let tokio = Arc::new(Tokio {
        handle: handle.clone(),
        endpoint: Arc::downgrade(&endpoint),
        timers: timers.clone(),
    });
    endpoint.start(tokio);
    // Before anybody finds it: what can not be driven is none.
    let listener = watch(endpoint.take_listener()?)?;
    let eventfd = watch(endpoint.eventfd().try_clone()?)?;
    let timer = timers.watch()?;
    let driven = Driven { endpoint: endpoint.clone(), timers: timers.clone() };
    table.insert(key.clone(), driven.clone());
    drop(endpoints);
    let end = Arc::new(End { key, driven: driven.clone(), tasks: Mutex::default() });
    // Without the lock, which the end of a task takes.
    end.serve(handle, link::accept(listener, endpoint.clone(), timers.clone()));
    end.serve(handle, poller::run(eventfd, endpoint, sys::monotonic_ns));
    end.serve(handle, timer::run(timer, timers));
    Ok(driven)
}

/// How an endpoint ends; held by its tasks.
struct End {
    key: Key,
    driven: Driven,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl End {
    /// Spawns a task that the endpoint can not be without.
    fn serve(self: &Arc<Self>, handle: &Handle, task: impl Future<Output = ()> + Send + 'static) {
        // Dropped with the task, when the runtime drops that, also before its first turn.
        let last = Ending(self.clone(), Death::Runtime);
        let task = handle.spawn(async move {
            let mut last = last;
            let _ = guarded(task).await;
            last.1 = Death::Failed;
        });
        lock(&self.tasks).push(task.abort_handle());
        if self.driven.endpoint.is_dead() {
            // Faster than we are.
            task.abort();
        }
    }

    /// Ends the endpoint, once: nobody finds it any more, nothing of it waits.
    fn come(&self, death: Death) {
        let Driven { endpoint, timers } = &self.driven;
        if death == Death::Failed && !endpoint.is_dead() {
            crate::trace::warning!("a task of endpoint {} has failed: it ends", endpoint.id());
        }
        endpoint.shut_down(death);
        let gone = {
            let mut endpoints = lock(&ENDPOINTS);
            let table = endpoints.get_or_insert_default();
            // There may be a younger one already.
            let ours = table.get(&self.key).is_some_and(|driven| Arc::ptr_eq(&driven.endpoint, endpoint));
            if ours { table.remove(&self.key) } else { None }
        };
        drop(gone);
        timers.end();
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        tasks.iter().for_each(AbortHandle::abort);
    }
}

/// The end of an endpoint that comes with the end of one of its tasks.
struct Ending(Arc<End>, Death);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.come(self.1);
    }
}

/// A stream that waits for a task of ours to find its peer. If nobody finds it, it stays on TCP.
pub(crate) struct Unsettled {
    stream: Option<Weak<dyn LinkedStream>>,
    reason: FallbackReason,
}

impl Unsettled {
    /// Does `task`, which ends with an offer or a reason for that stream.
    pub(crate) fn during<F>(stream: Weak<dyn LinkedStream>, task: F) -> impl Future<Output = ()> + Send
    where
        F: Future<Output = ()> + Send,
    {
        // Not done: its runtime drops it.
        let unsettled = Unsettled { stream: Some(stream), reason: FallbackReason::NoRuntime };
        async move {
            let mut unsettled = unsettled;
            match guarded(task).await {
                Ok(()) => unsettled.stream = None,
                Err(Panicked) => unsettled.reason = FallbackReason::Failed,
            }
        }
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take().and_then(|stream| stream.upgrade()) {
            stream.stay_on_tcp(self.reason);
        }
    }
}

struct Tokio {
    handle: Handle,
    endpoint: Weak<Endpoint>,
    timers: Arc<Timers>,
}

impl Reactor for Tokio {
    fn watch(&self, socket: OwnedFd) -> io::Result<Watched> {
        let _context = self.handle.enter();
        Ok(link::watched(&self.handle, Arc::new(watch(socket)?)))
    }

    fn query(&self, stream: Arc<dyn LinkedStream>, subject: Subject, candidates: Vec<EndpointId>) {
        if let Some(endpoint) = self.endpoint.upgrade() {
            let search = link::query(endpoint, Arc::downgrade(&stream), subject, candidates);
            let search = Unsettled::during(Arc::downgrade(&stream), search);
            // The search must not end in an offer before the stream knows of the search.
            let (start, started) = tokio::sync::oneshot::channel::<()>();
            let task = self.handle.spawn(async move {
                if started.await.is_ok() {
                    search.await;
                }
            });
            stream.offered(Box::new(AbortOnDrop(task.abort_handle())));
            let _ = start.send(());
        }
    }

    fn shrink_later(&self) {
        if let Some(endpoint) = self.endpoint.upgrade() {
            let endpoint = Arc::downgrade(&endpoint);
            let shrinker = timer::shrink(self.timers.clone(), endpoint.clone());
            self.handle.spawn(async move {
                if let (Err(Panicked), Some(endpoint)) = (guarded(shrinker).await, endpoint.upgrade()) {
                    endpoint.shrink_failed();
                }
            });
        }
    }

    fn sweep_later(&self) {
        let (sweeper, endpoint) =
            (timer::sweep(self.timers.clone(), self.endpoint.clone()), self.endpoint.clone());
        self.handle.spawn(async move {
            if let (Err(Panicked), Some(endpoint)) = (guarded(sweeper).await, endpoint.upgrade()) {
                endpoint.accepted().sweep_failed();
            }
        });
    }

    fn run(&self, work: Work) {
        self.handle.spawn(async move { work() });
    }

    fn run_after(&self, pause: Duration, work: Work) {
        let timers = self.timers.clone();
        self.handle.spawn(async move {
            timers.sleep(pause).await;
            // Else that was not its time: the timer's task has ended, and the endpoint ends with it.
            if !timers.have_ended() {
                work();
            }
        });
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Registers a descriptor with the current runtime's reactor.
///
/// `UnixStream` serves any descriptor here: only its readiness is used, never its reads and writes. (`AsyncFd` would
/// say the same, but its registration is unsafe since tokio 1.54.)
fn watch(fd: OwnedFd) -> io::Result<UnixStream> {
    UnixStream::from_std(std::os::unix::net::UnixStream::from(fd))
}
