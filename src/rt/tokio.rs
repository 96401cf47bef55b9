//! The glue to tokio: the only place that spawns its tasks and registers descriptors with it.
//!
//! One [`Endpoint`] serves a runtime on a device directory. It is made by the first stream or
//! listener that needs it and ends with its runtime: dropping the runtime drops the endpoint's
//! tasks, and with the first of them every link is declared dead, so that nobody waits for a
//! runtime that is gone. A task that panics or returns ends it, too: what it served has nobody left
//! to wait for. The next stream makes another endpoint then.

mod ops;
mod tcp;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::task::{Context, Poll};

use tokio::net::UnixStream;
use tokio::runtime::{Handle, Id};

use crate::config::Config;
use crate::link::drive::{Ended, Parked};
use crate::link::endpoint::Endpoint;
use crate::link::reactor::{Interest, Reactor, Task, Watched};
use crate::sync::{Arc, Mutex, lock, rank};

pub(crate) use ops::{
    peeking, read_readiness, reading, try_reading, try_reading_buf, try_reading_vectored, try_writing,
    try_writing_vectored, write_readiness, writing, writing_vectored,
};
pub(crate) use tcp::{TokioTcp, drain, is_spoiled, tcp_ready};

type Key = (Id, Option<Arc<Path>>);

static ENDPOINTS: Mutex<Option<HashMap<Key, Arc<Endpoint>>>, rank::Endpoints> = Mutex::new(None);

/// The endpoint of a runtime on the device of `config`, made when there is none.
pub(crate) fn endpoint(handle: &Handle, config: &Config) -> io::Result<Arc<Endpoint>> {
    let key = (handle.id(), config.device_dir.clone());
    let (endpoint, parked) = {
        let mut endpoints = lock(&ENDPOINTS);
        let table = endpoints.get_or_insert_default();
        if let Some(endpoint) = table.get(&key).filter(|endpoint| !endpoint.is_dead()) {
            return Ok(endpoint.clone());
        }
        let endpoint = Arc::new(Endpoint::open(config, Arc::new(Tokio(handle.clone())))?);
        let parked = Parked::new(endpoint.clone())?;
        table.insert(key.clone(), endpoint.clone());
        (endpoint, parked)
    };
    parked.start(forget(key));
    Ok(endpoint)
}

/// Takes an endpoint that has ended out of the table.
fn forget(key: Key) -> Ended {
    Box::new(move |endpoint| {
        let gone = {
            let mut endpoints = lock(&ENDPOINTS);
            let table = endpoints.get_or_insert_default();
            // There may be a younger one already.
            let ours = table.get(&key).is_some_and(|other| Arc::ptr_eq(other, endpoint));
            if ours { table.remove(&key) } else { None }
        };
        drop(gone);
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
