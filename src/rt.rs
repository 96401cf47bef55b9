//! The glue to tokio: the only place that spawns tasks and registers descriptors.
//!
//! One [`Endpoint`] serves a runtime on a device directory. It is made by the first stream or listener that needs
//! it and ends with its runtime: dropping the runtime drops the endpoint's tasks, and with the last guard of them
//! every link is declared dead, so that nobody waits for a runtime that is gone.

mod link;
mod ops;
mod poller;
mod tcp;
mod timer;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::runtime::{Handle, Id};

use crate::config::Config;
use crate::ism::device::EndpointId;
use crate::link::endpoint::{Endpoint, Reactor, Watched, Work};
use crate::link::message::Subject;
use crate::link::stream::LinkedStream;
use crate::sync::{Arc, Mutex, lock};

pub(crate) use ops::{
    PeekBuf, ReadReady, ReadVectored, Reading, TryPeeking, TryReading, TryReadingBuf, TryWriting,
    TryWritingVectored, WriteReady, Writing, WritingVectored,
};
pub(crate) use tcp::{TokioTcp, drain};
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
    let driven = Driven { endpoint: endpoint.clone(), timers: timers.clone() };
    table.insert(key.clone(), driven.clone());
    drop(endpoints);
    let end = Arc::new(EndOfRuntime { key, endpoint: endpoint.clone() });
    let listener = watch(endpoint.take_listener()?)?;
    let eventfd = watch(endpoint.eventfd().try_clone()?)?;
    let timer = timers.watch()?;
    handle.spawn(link::accept(listener, endpoint.clone(), timers.clone(), end.clone()));
    handle.spawn(poller::run(eventfd, endpoint, end.clone()));
    handle.spawn(timer::run(timer, timers, end));
    Ok(driven)
}

/// Held by the tasks of an endpoint. They never return, so it is dropped when the runtime drops them.
struct EndOfRuntime {
    key: Key,
    endpoint: Arc<Endpoint>,
}

impl Drop for EndOfRuntime {
    fn drop(&mut self) {
        let gone = {
            let mut endpoints = lock(&ENDPOINTS);
            endpoints.as_mut().and_then(|table| table.remove(&self.key))
        };
        drop(gone);
        self.endpoint.shut_down();
    }
}

struct Tokio {
    handle: Handle,
    endpoint: std::sync::Weak<Endpoint>,
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
            self.handle.spawn(timer::shrink(self.timers.clone(), Arc::downgrade(&endpoint)));
        }
    }

    fn sweep_later(&self) {
        self.handle.spawn(timer::sweep(self.timers.clone(), self.endpoint.clone()));
    }

    fn run(&self, work: Work) {
        self.handle.spawn(async move { work() });
    }

    fn run_after(&self, pause: Duration, work: Work) {
        let timers = self.timers.clone();
        self.handle.spawn(async move {
            timers.sleep(pause).await;
            work();
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
