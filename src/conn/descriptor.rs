//! What is done to the TCP socket of a stream that has left TCP.
//!
//! `shutdown` of its descriptor, by a watchdog or a load shedder that knows nothing of rings, or a
//! reset from outside: TCP itself would end then. The socket is idle, so nobody reads or writes who
//! would notice. Therefore the reactor is asked for any event there, once for each, and what has
//! happened is carried over to the ring, as flags for the peer. Only the end whose socket it was
//! does that: its own lock orders the flag behind what was written.

use std::sync::{OnceLock, Weak};
use std::task::{Wake, Waker};

use super::receive::{self, Receiver};
use super::send::{self, Sender};
use super::{Connection, Effects, Tcp};
use crate::ism::dmb::Flags;
use crate::ism::interrupt::Signal;
use crate::ism::sys::{self, Ended};
use crate::link::endpoint::Endpoint;
use crate::link::stream::Death;
use crate::shield::shielded;
use crate::sync::{Arc, AtomicBool, Ordering, lock, try_lock};
use crate::transport::FallbackReason;

#[derive(Default)]
pub(crate) struct SocketCheck {
    /// Somebody is on the way to look.
    scheduled: AtomicBool,
    /// Somebody comes to see whether the peer has closed its socket.
    pub(super) deserted: AtomicBool,
    /// Whose runtime looks.
    pub(super) endpoint: OnceLock<Weak<Endpoint>>,
}

/// What the reactor calls.
struct SocketEvent<T: Tcp>(Weak<Connection<T>>);

impl<T: Tcp> Wake for SocketEvent<T> {
    fn wake(self: Arc<Self>) {
        match self.0.upgrade() {
            Some(conn) if !conn.nothing_has_ended() => conn.schedule_socket_check(),
            _ => {}
        }
    }
}

impl<T: Tcp> Connection<T> {
    /// Looks at the socket soon. Not at once: the reactor, or a task that holds a lock, may be the
    /// caller.
    pub(crate) fn schedule_socket_check(&self) {
        let Some(endpoint) = self.socket_check.endpoint.get().and_then(Weak::upgrade) else { return };
        if !self.socket_check.scheduled.swap(true, Ordering::AcqRel) {
            let this = self.this.clone();
            endpoint.run(move || {
                let Some(conn) = this.upgrade() else { return };
                if shielded(|| conn.check_socket()).is_err() {
                    // Nobody looks any more, and that is our fault.
                    conn.death.store(Death::Failed as u8, Ordering::Release);
                    conn.reset();
                }
            });
        }
    }

    /// Listens on where nothing has ended, for the reactor, which waits for nobody: while the other
    /// direction is on TCP each segment that comes is an event, and shall not cost a task.
    fn nothing_has_ended(&self) -> bool {
        let (Some(mut rx), Some(mut tx)) = (try_lock(&self.rx), try_lock(&self.tx)) else { return false };
        if self.death().is_some() {
            // The socket is its users' again.
            return true;
        }
        let heard = shielded(|| {
            self.arm_socket_event(&mut rx, &mut tx);
            rx.fd().and_then(sys::ended)
        });
        match heard {
            Ok(Ok(Ended { reads: false, writes: false, reset: false, fin, .. })) => {
                !fin || Self::has_gone(&rx, &tx)
            }
            _ => false,
        }
    }

    /// Has the peer said that it is done with the connection?
    pub(super) fn has_gone(rx: &Receiver<T>, tx: &Sender<T>) -> bool {
        let said = [
            rx.dmb.as_ref().map(|dmb| dmb.consumer.writer_flags()),
            tx.dmb.as_ref().map(|dmb| dmb.producer.reader_flags()),
        ];
        let gone = |flags: Flags| flags.contains(Flags::CLOSED) || flags.contains(Flags::ABORT);
        said.into_iter().flatten().any(gone)
    }

    /// Ends in the ring what has ended on the socket.
    pub(crate) fn check_socket(&self) {
        // Before the look: what happens after it calls again.
        self.socket_check.scheduled.store(false, Ordering::Release);
        let mut effects = Effects::default();
        {
            let (mut rx, mut tx) = (lock(&self.rx), lock(&self.tx));
            self.carry_over_end(&mut rx, &mut tx, &mut effects);
        }
        self.carry_out(effects);
    }

    fn carry_over_end(&self, rx: &mut Receiver<T>, tx: &mut Sender<T>, effects: &mut Effects) {
        if self.death().is_some() || rx.socket.is_none() || (rx.dmb.is_none() && tx.dmb.is_none()) {
            return;
        }
        // Who has not read since the peer switched does not know of it yet.
        let _ = rx.latch(effects);
        // First listen, then look.
        self.arm_socket_event(rx, tx);
        let Ok(socket) = rx.fd() else { return };
        let Ok(Ended { reads, writes, reset, fin, acked }) = sys::ended(socket) else { return };
        // The end of a stream is in the ring before its socket shows it, so it is looked for after
        // that.
        if Self::has_gone(rx, tx) {
            return;
        }
        if fin {
            self.look_for_desertion(socket);
        }
        // A closed socket whose error somebody was told already has come to its end only if our FIN
        // did: that is the one number behind our last byte.
        let last = tx.own.zip(tx.syn).map(|(own, syn)| own + syn);
        let cut_off = acked.is_some_and(|acked| last.is_some_and(|last| acked <= last));
        if reset || cut_off {
            self.carry_over_reset(rx, tx, effects);
            return;
        }
        // What the stream ended in the ring alone TCP has to know now: it refuses what is sent to
        // who has ended both ways.
        let ended_here = reads && tx.shut && tx.path == send::Path::Ring;
        let writes =
            writes || (ended_here && tx.socket.as_deref().is_some_and(|socket| socket.shutdown().is_ok()));
        // Where neither end may send on the socket any more, the kernel refuses by itself what
        // comes there.
        if reads && !rx.over && !(writes && Self::pin_receiver(rx, effects)) {
            rx.over = rx.path != receive::Path::Tcp;
            effects.wake = true;
        }
        if let (true, true, true, Some(dmb)) = (reads, writes, rx.over, rx.dmb.as_ref()) {
            // As the kernel answers what the peer sends from now on by a reset, so the peer shall
            // send it there: it knows before it reads our end.
            dmb.consumer.set_flags(Flags::SHUT);
            effects.interrupt(&dmb.peer, Signal::Space);
        }
        if writes && tx.path == send::Path::Ring && !tx.over {
            // The socket itself refuses what is written, with its own error.
            (tx.shut, tx.over) = (true, true);
            if let Some(dmb) = tx.dmb.as_ref() {
                dmb.producer.set_flags(Flags::DONE_WRITING);
                dmb.producer.wake_reader();
                effects.interrupt(&dmb.peer, Signal::Data);
            }
            effects.wake = true;
        } else if writes && !tx.shut && Self::pin_sender(tx, effects) {
            tx.shut = true;
            effects.rare().settled = Some(FallbackReason::HalfClosed);
            effects.wake = true;
        }
    }

    /// The connection was reset under the ring: what was written is delivered, then TCP tells what
    /// it was.
    fn carry_over_reset(&self, rx: &mut Receiver<T>, tx: &mut Sender<T>, effects: &mut Effects) {
        if rx.path != receive::Path::Tcp {
            rx.over = true;
            if let Some(dmb) = rx.dmb.as_ref() {
                dmb.consumer.set_flags(Flags::ABORT);
                effects.interrupt(&dmb.peer, Signal::Space);
            }
        }
        if tx.path == send::Path::Ring {
            (tx.over, tx.reset) = (true, true);
            if let Some(dmb) = tx.dmb.as_ref() {
                dmb.producer.set_flags(Flags::ABORT);
                effects.interrupt(&dmb.peer, Signal::Data);
            }
        }
        effects.wake = true;
    }

    /// Asks the reactor for the next event, by a direction that does not use the socket.
    fn arm_socket_event(&self, rx: &mut Receiver<T>, tx: &mut Sender<T>) {
        // A packet on the error queue looks like an end that comes with an error.
        tx.drop_late_packets();
        let event = Waker::from(Arc::new(SocketEvent(self.this.clone())));
        let mut cx = std::task::Context::from_waker(&event);
        let read_event = rx.path == receive::Path::Ring && !rx.over;
        // Ready is an end that lasts: then this is the last look. Where writing has ended nobody
        // waits to write.
        if tx.path == send::Path::Ring && (tx.shut || !tx.over) {
            if let Some(socket) = tx.socket.as_deref() {
                let heard = socket.poll_write_event(&mut tx.apart, &mut cx);
                // Where it has to be told of elsewhere, and there is no descriptor for that, the
                // other waker slot tells of everything but a `shutdown(Write)`.
                if heard.is_ready() && read_event && tx.sample.asked && tx.apart.is_none() {
                    let _ = socket.poll_read_event(&mut cx);
                }
            }
        } else if read_event {
            // What is written from now on, if anything, is the socket's to refuse.
            if let Some(socket) = rx.socket.as_deref() {
                let _ = socket.poll_read_event(&mut cx);
            }
        }
    }
}
