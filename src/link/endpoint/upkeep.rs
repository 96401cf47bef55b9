//! What an endpoint does for streams that wait: for their accept, for an answer to a query, for
//! their memory's return.

use std::sync::Weak;
use std::time::Duration;

use super::Endpoint;
use crate::ism::device::PortEntry;
use crate::ism::sys::{self, PeerCred};
use crate::link::accepted::{FIRST_LOOK, Found, Key, Waiting, rule_out};
use crate::link::message::Subject;
use crate::link::proof;
use crate::link::reactor::yield_now;
use crate::link::stream::LinkedStream;
use crate::shield::{Panicked, guarded, shielded};
use crate::sync::{Arc, lock};
use crate::transport::FallbackReason;

/// For how long a grown ring has to be idle before its memory is given back.
const SHRINK_AFTER: Duration = Duration::from_secs(10);

/// An entry in the table of accepted streams.
#[derive(Clone, Copy)]
pub(crate) struct AcceptedEntry {
    key: Key,
    number: u64,
}

/// What lets the client of an accepted stream find it, as long as it may still be upgraded.
pub(crate) struct ListedAsAccepted {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) entry: AcceptedEntry,
    /// The port stays listed as long as a stream of it may need it.
    pub(crate) _port: Arc<PortEntry>,
}

impl Drop for ListedAsAccepted {
    fn drop(&mut self) {
        self.endpoint.forget_accepted(self.entry);
    }
}

impl Endpoint {
    /// Enters an accepted stream; offers that waited for it go on in the background.
    pub(crate) fn accept(
        &self,
        port: u16,
        client: std::net::SocketAddr,
        stream: &Arc<dyn LinkedStream>,
    ) -> AcceptedEntry {
        let key = Key::accepted(port, client);
        let (number, waited) = self.accepted.insert(key, Arc::downgrade(stream));
        if !waited.is_empty() {
            let stream = stream.clone();
            self.run(move || {
                for waiting in waited {
                    let _ = shielded(|| waiting(Ok(stream.clone())));
                }
            });
        }
        AcceptedEntry { key, number }
    }

    pub(crate) fn forget_accepted(&self, entry: AcceptedEntry) {
        self.accepted.remove(entry.key, entry.number);
    }

    /// Something waits in the table of accepted streams, perhaps instead of something else, and
    /// perhaps a sweep has to come.
    pub(crate) fn after_waiting(self: &Arc<Self>, sweep: bool, instead: Option<Waiting>) {
        if sweep {
            self.sweep_later();
        }
        if let Some(waiting) = instead {
            self.run(move || {
                let _ = shielded(|| waiting(Err(FallbackReason::Limit)));
            });
        }
    }

    /// Something waits in the table of accepted streams, and no sweep comes soon.
    fn sweep_later(self: &Arc<Self>) {
        let (timers, this) = (self.timers.clone(), Arc::downgrade(self));
        let reactor = self.share_reactor();
        let sweeping = this.clone();
        let sweeps = async move {
            timers.sleep(FIRST_LOOK).await;
            loop {
                let next = this.upgrade().and_then(|endpoint| endpoint.sweep(sys::monotonic()));
                let Some(next) = next else { return };
                if timers.have_ended() {
                    // The endpoint ends, and the sleep would not be one.
                    return;
                }
                match next.saturating_sub(sys::monotonic()) {
                    // More is due already: after the others had their turn.
                    Duration::ZERO => yield_now(&*reactor).await,
                    pause => timers.sleep(pause).await,
                }
            }
        };
        self.spawn(async move {
            if let (Err(Panicked), Some(endpoint)) = (guarded(sweeps).await, sweeping.upgrade()) {
                endpoint.accepted.sweep_failed();
            }
        });
    }

    /// Tells offers and queries that wait for a stream which will not come; see
    /// [`AcceptedStreams::sweep`](crate::link::accepted::AcceptedStreams::sweep).
    pub(crate) fn sweep(&self, now: Duration) -> Option<Duration> {
        self.accepted.sweep(now, proof::waits_for_accept)
    }

    /// S: calls `answer` once it is known whether the other end of the client's connection is here.
    /// Returns what to forget when nobody wants to know any more, or `None` when the answer was
    /// given.
    pub(crate) fn on_query(
        self: &Arc<Self>,
        theirs: Subject,
        peer: PeerCred,
        answer: impl FnOnce(bool) + Send + 'static,
    ) -> Option<AcceptedEntry> {
        self.find_for_query(theirs, peer, Box::new(answer), Vec::new())
    }

    /// The same, when `others`, which have the key of the one that is asked for, are not it.
    fn find_for_query(
        self: &Arc<Self>,
        theirs: Subject,
        peer: PeerCred,
        answer: Box<dyn FnOnce(bool) + Send>,
        others: Vec<Weak<dyn LinkedStream>>,
    ) -> Option<AcceptedEntry> {
        let mut answer = Some(answer);
        let found = self.accepted.find_or_wait(&theirs, peer, &others, || {
            let (answer, this, others) = (answer.take(), Arc::downgrade(self), others.clone());
            Box::new(move |stream| match (answer, this.upgrade()) {
                (Some(answer), Some(this)) => drop(this.answer_query(theirs, peer, answer, others, stream)),
                (answer, _) => answer.into_iter().for_each(|answer| answer(false)),
            })
        });
        let stream = match found {
            Found::Waits { number, sweep, instead } => {
                self.after_waiting(sweep, instead);
                return Some(AcceptedEntry { key: Key::of_client(&theirs), number });
            }
            Found::Stream(stream) => Ok(stream),
            Found::Full => Err(FallbackReason::Limit),
        };
        self.answer_query(theirs, peer, answer?, others, stream)
    }

    /// Says whether that is the stream; another one may be still to come.
    fn answer_query(
        self: &Arc<Self>,
        theirs: Subject,
        peer: PeerCred,
        answer: Box<dyn FnOnce(bool) + Send>,
        mut others: Vec<Weak<dyn LinkedStream>>,
        stream: Result<Arc<dyn LinkedStream>, FallbackReason>,
    ) -> Option<AcceptedEntry> {
        let here = match &stream {
            Ok(stream) if !stream.may_meet(&theirs) => {
                rule_out(&mut others, stream);
                return self.find_for_query(theirs, peer, answer, others);
            }
            Ok(stream) => stream.subject().is_ok_and(|ours| proof::may_be_same(&ours, &theirs).is_ok()),
            Err(_) => false,
        };
        answer(here);
        None
    }

    pub(crate) fn forget_query(&self, entry: AcceptedEntry) {
        self.accepted.forget(entry.key, entry.number);
    }

    /// A stream's sending ring has left its first segment: [`Endpoint::shrink`] comes once it was
    /// idle for a while.
    pub(crate) fn grown(self: &Arc<Self>, stream: Weak<dyn LinkedStream>) {
        let first = {
            let mut grown = lock(&self.grown);
            grown.push(stream);
            grown.len() == 1
        };
        if first {
            self.shrink_later();
        }
    }

    fn shrink_later(self: &Arc<Self>) {
        let (timers, this) = (self.timers.clone(), Arc::downgrade(self));
        let shrinking = this.clone();
        let shrinks = async move {
            loop {
                timers.sleep(SHRINK_AFTER).await;
                if !this.upgrade().is_some_and(|endpoint| endpoint.shrink()) {
                    return;
                }
            }
        };
        self.spawn(async move {
            if let (Err(Panicked), Some(endpoint)) = (guarded(shrinks).await, shrinking.upgrade()) {
                // The next ring that grows begins anew.
                let forgotten = std::mem::take(&mut *lock(&endpoint.grown));
                drop(forgotten);
            }
        });
    }

    /// Gives back the memory of rings that were idle since the last call; `true` while some are
    /// left.
    pub(crate) fn shrink(&self) -> bool {
        let (looked_at, streams) = {
            let grown = lock(&self.grown);
            (grown.len(), grown.iter().filter_map(Weak::upgrade).collect::<Vec<_>>())
        };
        let busy: Vec<_> = streams.iter().filter(|stream| !stream.shrink()).map(Arc::downgrade).collect();
        let mut grown = lock(&self.grown);
        // What came while we looked stays, behind those still in use.
        let fresh = grown.split_off(looked_at);
        *grown = busy;
        grown.extend(fresh);
        !grown.is_empty()
    }
}
