//! What keeps an endpoint going: its tasks, and the end of it all when one of them ends.

use std::future::Future;
use std::io;

use crate::ism::sys;
use crate::link::aside::Fed;
use crate::link::endpoint::Endpoint;
use crate::link::reactor::{Cancel, Watched, cancellable};
use crate::link::stream::Death;
use crate::link::{greeting, look, timer};
use crate::shield::guarded;
use crate::sync::{Arc, Mutex, lock};

/// Called once an endpoint serves nobody any more.
pub(crate) type Ended = Box<dyn FnOnce(&Arc<Endpoint>) + Send>;

/// How an endpoint ends; held by its tasks.
pub(crate) struct Drive {
    endpoint: Arc<Endpoint>,
    ended: Mutex<Option<Ended>>,
    tasks: Mutex<Vec<Cancel>>,
}

/// The registered descriptors of an endpoint whose tasks have still to begin.
pub(crate) struct Parked {
    endpoint: Arc<Endpoint>,
    listener: Arc<dyn Watched>,
    bell: Arc<dyn Watched>,
    timer: Arc<dyn Watched>,
}

impl Parked {
    /// Registers the descriptors: what can not be driven is no endpoint.
    pub(crate) fn new(endpoint: Arc<Endpoint>) -> io::Result<Self> {
        let reactor = endpoint.reactor();
        let listener = Arc::new(Fed::new(endpoint.take_listener()?).watch(reactor)?);
        let bell = reactor.watch(endpoint.eventfd().try_clone()?)?;
        let timer = endpoint.timers().watch(reactor)?;
        Ok(Parked { endpoint, listener, bell, timer })
    }

    /// Begins the tasks. To be called without a lock that `ended` takes: they may end at once.
    pub(crate) fn start(self, ended: Ended) {
        let Parked { endpoint, listener, bell, timer } = self;
        let drive = Drive::new(endpoint.clone(), ended);
        drive.serve(greeting::accept(listener, endpoint.clone()));
        drive.serve(look::run(bell, endpoint.clone(), sys::monotonic_ns));
        drive.serve(timer::run(timer, endpoint.timers().clone()));
    }
}

impl Drive {
    pub(crate) fn new(endpoint: Arc<Endpoint>, ended: Ended) -> Arc<Self> {
        Arc::new(Drive { endpoint, ended: Mutex::new(Some(ended)), tasks: Mutex::default() })
    }

    /// Begins a task that the endpoint can not be without.
    pub(crate) fn serve(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        // Dropped with the task, when the runtime drops that, also before its first turn.
        let last = Ending(self.clone(), Death::Runtime);
        let (cancel, task) = cancellable(async move {
            let mut last = last;
            let _ = guarded(task).await;
            last.1 = Death::Failed;
        });
        let late = {
            let mut tasks = lock(&self.tasks);
            // Else it has ended already, and nobody comes to cancel this one.
            if self.endpoint.is_dead() {
                Some(cancel)
            } else {
                tasks.push(cancel);
                None
            }
        };
        drop(late);
        self.endpoint.reactor().spawn(task);
    }

    /// Ends the endpoint, once: nobody finds it any more, nothing of it waits.
    fn end(&self, death: Death) {
        let endpoint = &self.endpoint;
        if death == Death::Failed && !endpoint.is_dead() {
            crate::trace::warning!("a task of endpoint {} has failed: it ends", endpoint.id());
        }
        endpoint.shut_down(death);
        let ended = lock(&self.ended).take();
        if let Some(ended) = ended {
            ended(endpoint);
        }
        endpoint.timers().end();
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        drop(tasks);
    }
}

/// The end of an endpoint that comes with the end of one of its tasks.
struct Ending(Arc<Drive>, Death);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end(self.1);
    }
}
