//! Interrupts over a link: raised in the peer's signal page, delivered to the streams that the
//! peer's are for.

use std::sync::Weak;

use super::Link;
use crate::ism::interrupt::{Signal, SignalPage};
use crate::ism::sys;
use crate::link::stream::{InterruptHandler, LinkedStream, Undelivered};
use crate::link::tally::{self, WakeUp};
use crate::sync::{Arc, Ordering};

/// So many ns after the peer was told of our CPU it is told again: to ask for it takes a part of
/// what a look takes.
const CPU_NEWS: u64 = 20_000;

/// A stream under its number.
pub(super) struct Registered {
    handler: Arc<dyn InterruptHandler>,
    pub(super) stream: Weak<dyn LinkedStream>,
}

/// The number of a stream's signals on a link; dropping it frees the number.
pub(crate) struct SignalEntry {
    pub(super) link: Arc<Link>,
    pub(super) index: u32,
}

impl Drop for SignalEntry {
    fn drop(&mut self) {
        self.link.unregister(self.index);
    }
}

impl Link {
    /// Where the peer raises our interrupts.
    pub(crate) fn signals(&self) -> &SignalPage {
        self.own_signals.signals()
    }

    /// Something was found: tells the peer on which CPU, if it has not heard of that lately.
    pub(crate) fn tell_cpu(&self, now: u64) {
        if now.saturating_sub(self.cpu_told.load(Ordering::Relaxed)) < CPU_NEWS {
            return;
        }
        self.cpu_told.store(now, Ordering::Relaxed);
        self.signals().publish_cpu(sys::current_cpu());
    }

    /// The CPU on which the peer has last found something.
    pub(crate) fn peer_cpu(&self) -> Option<u32> {
        self.peer.get()?.first_arena.signals().cpu()
    }

    /// Raises a signal for the peer's end of connection `index`. That calls nobody; what is left to
    /// do, once no lock is held, is for [`Link::deliver_interrupt`].
    #[inline]
    pub(crate) fn raise(&self, index: u32, signal: Signal) -> Option<Undelivered> {
        let peer = self.peer.get()?;
        if peer.here.is_some() {
            return Some(Undelivered::Handler(signal));
        }
        let page = peer.first_arena.signals();
        if page.raise(index, signal, sys::monotonic_ns, self.stale_after, &self.last_rung) {
            return Some(Undelivered::Ring);
        }
        tally::count_wake_up(self.id, index, WakeUp::Saved);
        None
    }

    /// Does what [`Link::raise`] has left to do.
    pub(crate) fn deliver_interrupt(&self, index: u32, undelivered: Undelivered) {
        let Some(peer) = self.peer.get() else { return };
        match undelivered {
            Undelivered::Ring => {
                tally::count_wake_up(self.id, index, WakeUp::Sent);
                if let Some(endpoint) = self.endpoint.upgrade() {
                    endpoint.count_ring();
                }
                self.ring(&peer.bell);
            }
            Undelivered::Handler(signal) => {
                if let Some(link) = peer.here.as_ref().and_then(Weak::upgrade) {
                    tally::count_wake_up(self.id, index, WakeUp::Saved);
                    link.interrupted(index, signal);
                }
            }
        }
    }

    fn interrupted(&self, index: u32, signal: Signal) {
        let handler = self.streams.look(|table| table.get(index).map(|entry| entry.handler.clone()));
        if let Some(handler) = handler {
            handler.on_interrupt(signal);
        }
    }

    /// Takes what the peer has raised and wakes the streams concerned; returns how many signals
    /// there were.
    pub(crate) fn drain_interrupts(&self) -> usize {
        const BATCH: usize = 16;
        let page = self.signals();
        let mut batch: [(u32, Signal); BATCH] = [(0, Signal::Data); BATCH];
        let mut held = 0;
        let flush = |batch: &[(u32, Signal)]| {
            let mut woken: [Option<(Arc<dyn InterruptHandler>, Signal)>; BATCH] = [const { None }; BATCH];
            self.streams.look(|table| {
                for (slot, (index, signal)) in woken.iter_mut().zip(batch) {
                    *slot = table.get(*index).map(|entry| (entry.handler.clone(), *signal));
                }
            });
            for (handler, signal) in woken.into_iter().take(batch.len()).flatten() {
                handler.on_interrupt(signal);
            }
        };
        // A peer knows of a number after it is in the table.
        let known = || self.streams.bound();
        let found = page.drain(known, |index, signal| {
            batch[held] = (index, signal);
            held += 1;
            if held == BATCH {
                flush(&batch);
                held = 0;
            }
        });
        if held > 0 {
            flush(&batch[..held]);
        }
        found
    }

    pub(super) fn register(self: &Arc<Self>, stream: &Arc<dyn LinkedStream>) -> Option<u32> {
        let registered = Registered { handler: stream.interrupt_handler(), stream: Arc::downgrade(stream) };
        let index = self.streams.take(registered)?;
        self.uses.fetch_add(1, Ordering::Relaxed);
        Some(index)
    }

    pub(super) fn unregister(&self, index: u32) {
        let gone = self.streams.give_back(index);
        drop(gone);
        self.close_if_idle();
    }
}
