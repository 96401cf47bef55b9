//! What is done to the TCP socket of a stream that has left TCP.
//!
//! `shutdown` of its descriptor, by a watchdog or a load shedder that knows nothing of rings, or a reset from outside:
//! TCP itself would end then. The socket is idle, so nobody reads or writes who would notice. Therefore the
//! reactor is asked for any event there, once for each, and what has happened is carried over to the ring, as flags
//! for the peer. Only the end whose socket it was does that: its own lock orders the flag behind what was written.

use std::sync::{OnceLock, Weak};
use std::task::{Wake, Waker};

use super::receive::{self, Receiver};
use super::send::{self, Sender};
use super::{Connection, Effects, Tcp};
use crate::ism::dmb::Flags;
use crate::ism::interrupt::Signal;
use crate::ism::sys::{self, Ended};
use crate::link::endpoint::Endpoint;
use crate::sync::{Arc, AtomicBool, Ordering, lock};
use crate::transport::FallbackReason;

#[derive(Default)]
pub(crate) struct Heed {
    /// Somebody is on the way to look.
    called: AtomicBool,
    /// Whose runtime looks.
    pub(super) endpoint: OnceLock<Weak<Endpoint>>,
}

/// What the reactor calls.
struct Ear<T: Tcp>(Weak<Connection<T>>);

impl<T: Tcp> Wake for Ear<T> {
    fn wake(self: Arc<Self>) {
        if let Some(conn) = self.0.upgrade() {
            conn.heed_socket();
        }
    }
}

impl<T: Tcp> Connection<T> {
    /// Looks at the socket soon. Not at once: the reactor, or a task that holds a lock, may be the caller.
    pub(super) fn heed_socket(&self) {
        let Some(endpoint) = self.heed.endpoint.get().and_then(Weak::upgrade) else { return };
        if !self.heed.called.swap(true, Ordering::AcqRel) {
            let this = self.this.clone();
            endpoint.run(Box::new(move || {
                if let Some(conn) = this.upgrade() {
                    conn.obey_socket();
                }
            }));
        }
    }

    /// Ends in the ring what has ended on the socket.
    pub(super) fn obey_socket(&self) {
        // Before the look: what happens after it calls again.
        self.heed.called.store(false, Ordering::Release);
        let mut effects = Effects::default();
        {
            let (mut rx, mut tx) = (lock(&self.rx), lock(&self.tx));
            self.obey(&mut rx, &mut tx, &mut effects);
        }
        self.carry_out(effects);
    }

    fn obey(&self, rx: &mut Receiver<T>, tx: &mut Sender<T>, effects: &mut Effects) {
        if self.death().is_some() || rx.half.is_none() || (rx.dmb.is_none() && tx.dmb.is_none()) {
            return;
        }
        // First listen, then look.
        let failed = self.listen(rx, tx);
        let said = [
            rx.dmb.as_ref().map(|dmb| dmb.consumer.writer_flags()),
            tx.dmb.as_ref().map(|dmb| dmb.producer.reader_flags()),
        ];
        // The end of a stream is in the ring before its socket shows it.
        let gone = |flags: Flags| flags.contains(Flags::CLOSED) || flags.contains(Flags::ABORT);
        if said.into_iter().flatten().any(gone) {
            return;
        }
        let Ok(Ended { reads, writes, reset }) = rx.fd().and_then(sys::ended) else { return };
        if reset || failed {
            self.obey_reset(rx, tx, effects);
            return;
        }
        // Where neither end may send on the socket any more, the kernel refuses by itself what comes there.
        if reads && !rx.over && !(writes && Self::pin_receiver(rx, effects)) {
            rx.over = rx.path != receive::Path::Tcp;
            if let (true, true, Some(dmb)) = (writes, rx.over, rx.dmb.as_ref()) {
                // As the kernel answers what the peer sends from now on by a reset, so the peer shall send it there:
                // it knows before it reads our end.
                dmb.consumer.set_flags(Flags::SHUT);
                effects.ring(&dmb.doorbell, Signal::Space);
            }
            effects.wake = true;
        }
        if writes && tx.path == send::Path::Ring && !tx.over {
            // The socket itself refuses what is written, with its own error.
            (tx.shut, tx.over) = (true, true);
            if let Some(dmb) = tx.dmb.as_ref() {
                dmb.producer.set_flags(Flags::DONE_WRITING);
                dmb.producer.wake_reader();
                effects.ring(&dmb.doorbell, Signal::Data);
            }
            effects.wake = true;
        } else if writes && !tx.shut && Self::pin_sender(tx, effects) {
            tx.shut = true;
            effects.rare().settled = Some(FallbackReason::HalfClosed);
            effects.wake = true;
        }
    }

    /// The connection was reset under the ring: what was written is delivered, then TCP tells what it was.
    fn obey_reset(&self, rx: &mut Receiver<T>, tx: &mut Sender<T>, effects: &mut Effects) {
        if rx.path != receive::Path::Tcp {
            rx.over = true;
            if let Some(dmb) = rx.dmb.as_ref() {
                dmb.consumer.set_flags(Flags::ABORT);
                effects.ring(&dmb.doorbell, Signal::Space);
            }
        }
        if tx.path == send::Path::Ring {
            tx.over = true;
            if let Some(dmb) = tx.dmb.as_ref() {
                dmb.producer.set_flags(Flags::ABORT);
                effects.ring(&dmb.doorbell, Signal::Data);
            }
        }
        effects.wake = true;
    }

    /// Asks the reactor for the next event, by the direction that does not use the socket. True: it has failed, and
    /// has told so.
    fn listen(&self, rx: &mut Receiver<T>, tx: &mut Sender<T>) -> bool {
        let ear = Waker::from(Arc::new(Ear(self.this.clone())));
        let mut cx = std::task::Context::from_waker(&ear);
        if tx.path == send::Path::Ring {
            if let (false, Some(half)) = (tx.over, tx.half.as_mut()) {
                // Ready is an end that lasts: then this is the last look.
                let _ = T::poll_event(half, &mut cx);
            }
            return false;
        }
        rx.path == receive::Path::Ring && !rx.over && rx.fails_to_listen(&mut cx)
    }
}
