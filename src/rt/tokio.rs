//! The glue to tokio: the only place that spawns its tasks and registers descriptors with it.
//!
//! One [`Endpoint`] serves a runtime on a device directory. It is made by the first stream or
//! listener that needs it and ends with its runtime: dropping the runtime drops the endpoint's
//! tasks, and with the first of them every link is declared dead, so that nobody waits for a
//! runtime that is gone. A task that panics or returns ends it, too: what it served has nobody left
//! to wait for. The next stream makes another endpoint then.

mod apart;
mod ops;
mod tcp;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll};

use tokio::net::UnixStream;
use tokio::runtime::{Handle, Id};

use crate::config::Config;
use crate::link::drive::{Ended, Parked};
use crate::link::endpoint::Endpoint;
use crate::link::reactor::{Interest, Reactor, Task, Watched};
use crate::sync::{Arc, Mutex, lock, rank};

pub(crate) use ops::{
    peeking, read_readiness, reading, showing, try_reading, try_reading_buf, try_reading_vectored,
    try_writing, try_writing_vectored, write_readiness, writing, writing_run, writing_vectored,
};
pub(crate) use tcp::{TokioTcp, drain, is_spoiled, tcp_ready};

type Key = (Id, Option<Arc<Path>>);

/// The endpoint of one runtime on one device. It is opened under the lock of this alone: a file
/// system that takes its time keeps nobody waiting but those who want that very endpoint.
type Home = Mutex<Option<Arc<Endpoint>>, rank::EndpointOpening>;

static HOMES: Mutex<Option<HashMap<Key, Arc<Home>>>, rank::Endpoints> = Mutex::new(None);

/// The endpoint of a runtime on the device of `config`, made when there is none.
pub(crate) fn endpoint(handle: &Handle, config: &Config) -> io::Result<Arc<Endpoint>> {
    let key = (handle.id(), config.device_dir.clone());
    let home = lock(&HOMES).get_or_insert_default().entry(key.clone()).or_default().clone();
    let (endpoint, parked) = {
        let mut lives = lock(&home);
        if let Some(endpoint) = lives.as_ref().filter(|endpoint| !endpoint.is_dead()) {
            return Ok(endpoint.clone());
        }
        let endpoint = Arc::new(Endpoint::open(config, Arc::new(Tokio(handle.clone())))?);
        let parked = Parked::new(endpoint.clone())?;
        *lives = Some(endpoint.clone());
        (endpoint, parked)
    };
    drop(home);
    parked.start(forget(key));
    Ok(endpoint)
}

/// Lets go of an endpoint that has ended.
fn forget(key: Key) -> Ended {
    Box::new(move |endpoint| {
        let Some(home) = lock(&HOMES).as_ref().and_then(|homes| homes.get(&key).cloned()) else { return };
        let gone = {
            let mut lives = lock(&home);
            // There may be a younger one already.
            let ours = lives.as_ref().is_some_and(|other| Arc::ptr_eq(other, endpoint));
            if ours { lives.take() } else { None }
        };
        drop((gone, home));
        let mut homes = lock(&HOMES);
        let homes = homes.get_or_insert_default();
        // Whoever else has it in hand is about to move in.
        let empty = |home: &Arc<Home>| Arc::strong_count(home) == 1 && lock(home).is_none();
        if homes.get(&key).is_some_and(empty) {
            homes.remove(&key);
        }
    })
}

/// A tokio runtime as the engine's reactor.
struct Tokio(Handle);

impl Reactor for Tokio {
    fn watch(&self, fd: OwnedFd) -> io::Result<Arc<dyn Watched>> {
        let _context = self.0.enter();
        // `UnixStream` serves any descriptor here: only its readiness is used, never its reads and
        // writes. (`AsyncFd` would say the same, but its registration is unsafe since tokio 1.54.)
        let registered = UnixStream::from_std(std::os::unix::net::UnixStream::from(fd))?;
        Ok(Arc::new(Registered(registered)))
    }

    fn spawn(&self, task: Task) {
        self.0.spawn(task);
    }

    /// A task that is merely woken is polled 61 times before tokio looks at its driver.
    fn poll_again(&self, cx: &mut Context<'_>) {
        // This one waits for the driver. To be polled once is all that there is to it.
        let _ = pin!(tokio::task::yield_now()).poll(cx);
    }
}

struct Registered(UnixStream);

impl AsFd for Registered {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Watched for Registered {
    fn poll_ready(&self, interest: Interest, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match interest {
            Interest::Read => self.0.poll_read_ready(cx),
            Interest::Write => self.0.poll_write_ready(cx),
        }
    }

    fn attempt(&self, interest: Interest, attempt: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let interest = match interest {
            Interest::Read => tokio::io::Interest::READABLE,
            Interest::Write => tokio::io::Interest::WRITABLE,
        };
        self.0.try_io(interest, attempt)
    }
}
