//! The glue to programs without a runtime: one engine thread per process and device directory,
//! which waits in epoll through mio.
//!
//! The first listener that publishes its port, or the first stream that begins an upgrade, starts
//! the thread; each of them holds the [`Engine`], and with the last one the thread ends, and the
//! endpoint with it. Nothing of the application runs there but wakers.

mod executor;
mod ops;
mod registered;
mod tcp;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{OnceLock, Weak};
use std::time::Duration;

use crate::config::Config;
use crate::ism::sys;
use crate::link::drive::{Ended, Parked};
use crate::link::endpoint::Endpoint;
use crate::link::stream::Death;
use crate::sync::{Arc, Mutex, lock, rank};
use executor::Executor;

pub(crate) use ops::{
    peeking, read_readiness, reading, reading_vectored, write_readiness, writing, writing_vectored,
};
pub(crate) use tcp::{MioTcp, SocketWaits, drain, noting_waits};

/// For how long a thread may look for itself before it sleeps. With one CPU it would keep its peer
/// from running.
pub(crate) fn busy_poll(config: &Config) -> Duration {
    static CPUS: OnceLock<usize> = OnceLock::new();
    if *CPUS.get_or_init(sys::usable_cpus) > 1 { config.busy_poll } else { Duration::ZERO }
}

type Key = Option<Arc<Path>>;

type Table = HashMap<Key, Weak<Engine>>;

static ENGINES: Mutex<Option<Table>, rank::Endpoints> = Mutex::new(None);

/// The engine thread of a device directory, as long as somebody holds this.
pub(crate) struct Engine {
    executor: Arc<Executor>,
    endpoint: Mutex<Option<Arc<Endpoint>>, rank::EndpointOpening>,
    this: Weak<Engine>,
}

impl Engine {
    /// The engine on the device of `config`, started when there is none.
    pub(crate) fn hold(config: &Config) -> io::Result<Arc<Engine>> {
        let mut engines = lock(&ENGINES);
        let table = engines.get_or_insert_default();
        if let Some(engine) = Self::running_in(table, config) {
            return Ok(engine);
        }
        let executor = Executor::start()?;
        let engine =
            Arc::new_cyclic(|this| Engine { executor, endpoint: Mutex::default(), this: this.clone() });
        table.retain(|_, engine| engine.strong_count() > 0);
        table.insert(config.device_dir.clone(), Arc::downgrade(&engine));
        Ok(engine)
    }

    fn running_in(table: &Table, config: &Config) -> Option<Arc<Engine>> {
        let engine = table.get(&config.device_dir).and_then(Weak::upgrade)?;
        let serves = engine.executor.is_ours() && !engine.executor.has_ended();
        serves.then_some(engine)
    }

    /// Is there an engine on the device of `config`?
    pub(crate) fn is_running(config: &Config) -> bool {
        lock(&ENGINES).as_ref().is_some_and(|table| Self::running_in(table, config).is_some())
    }

    /// The endpoint that the thread serves; one that has failed has a successor.
    pub(crate) fn endpoint(&self, config: &Config) -> io::Result<Arc<Endpoint>> {
        let (endpoint, parked) = {
            let mut served = lock(&self.endpoint);
            if let Some(endpoint) = served.as_ref().filter(|endpoint| !endpoint.is_dead()) {
                return Ok(endpoint.clone());
            }
            let endpoint = Arc::new(Endpoint::open(config, self.executor.clone())?);
            let parked = Parked::new(endpoint.clone())?;
            *served = Some(endpoint.clone());
            (endpoint, parked)
        };
        parked.start(self.forget());
        Ok(endpoint)
    }

    /// Lets go of an endpoint that has ended.
    fn forget(&self) -> Ended {
        let this = self.this.clone();
        Box::new(move |endpoint| {
            let Some(engine) = this.upgrade() else { return };
            let gone = {
                let mut served = lock(&engine.endpoint);
                // There may be a younger one already.
                let ours = served.as_ref().is_some_and(|other| Arc::ptr_eq(other, endpoint));
                if ours { served.take() } else { None }
            };
            drop(gone);
        })
    }

    pub(crate) fn executor(&self) -> &Arc<Executor> {
        &self.executor
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if !self.executor.is_ours() {
            // The links are the parent's, who shares their sockets: they end with the parent.
            std::mem::forget((lock(&self.endpoint).take(), self.executor.clone()));
            return;
        }
        // At once: a program that ends now leaves nothing in the device directory.
        let served = lock(&self.endpoint).take();
        if let Some(endpoint) = served {
            endpoint.shut_down(Death::Runtime);
        }
        self.executor.end();
    }
}
