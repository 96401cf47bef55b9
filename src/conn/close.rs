//! The end of a connection, with what TCP would have shown (docs/protocol.md, "Closing").

use std::future::Future;
use std::sync::Weak;
use std::time::Duration;

use super::upgrade::Phase;
use super::{Connection, Effects, Tcp, receive, send};
use crate::ism::dmb::Flags;
use crate::ism::interrupt::Signal;
use crate::ism::sys;
use crate::link::reactor::Place;
use crate::link::timer::Timers;
use crate::sync::{Arc, lock};

/// A closed connection whose peer's CLC messages are still on their way: closing the socket now
/// would make them a reset, and throw away what was sent.
pub(crate) struct Leftover<T: Tcp> {
    pub(crate) socket: Arc<T>,
    pub(crate) clc_left: usize,
    patience: Patience,
}

/// For how long a closed connection waits for its peer.
struct Patience {
    timers: Arc<Timers>,
    deadline: Duration,
    /// Of those that may wait at one time.
    _place: Place,
}

impl<T: Tcp> Leftover<T> {
    /// What `read` gives; `None` when the peer has had its time.
    pub(crate) fn in_time<F: Future>(&self, read: F) -> impl Future<Output = Option<F::Output>> + use<F, T> {
        let Patience { timers, deadline, .. } = &self.patience;
        timers.timeout(deadline.saturating_sub(sys::monotonic()), read)
    }
}

impl<T: Tcp> Connection<T> {
    /// Closes the connection; whatever the peer may still read stays readable. Returns a socket
    /// from which CLC bytes have still to be read before it is closed.
    pub(crate) fn close(&self) -> Option<Leftover<T>> {
        if self.upgrade.withdraw() == Phase::Attached {
            self.note_upgrade();
        }
        self.save_last_word();
        let mut effects = Effects::default();
        let (socket, receive_dmb, send_dmb, clc_left) = {
            let (mut rx, mut tx) = (lock(&self.rx), lock(&self.tx));
            // CLC that was promised goes out before the end.
            let _ = tx.send_prelude();
            Self::pin_receiver(&mut rx, &mut effects);
            Self::pin_sender(&mut tx, &mut effects);
            let switched = rx.path != receive::Path::Tcp || tx.path == send::Path::Ring;
            let mut clc_left = rx.prelude_left();
            if switched {
                let path = rx.path;
                let in_tcp = match path {
                    receive::Path::Draining { until, .. }
                        if !rx.is_drained(until.saturating_sub(clc_left as u64)) =>
                    {
                        true
                    }
                    // CLC that is still on its way is nobody's data, though it may come in this
                    // moment.
                    _ if clc_left > 0 => false,
                    receive::Path::Tcp => rx.fd().is_ok_and(sys::has_unread),
                    // Without a link, what the peer wrote last is there, and the peer may have lost
                    // the link first. As long as this end has it, an urgent byte is no reason for a
                    // reset.
                    receive::Path::Draining { .. } | receive::Path::Ring => rx.fd().is_ok_and(|fd| {
                        let is_urgent = || sys::is_at_mark(fd).unwrap_or(false);
                        sys::has_unread(fd) && (self.death().is_some() || !is_urgent())
                    }),
                };
                let in_ring = rx.path != receive::Path::Tcp
                    && rx.dmb.as_mut().is_some_and(|dmb| dmb.consumer.is_readable().unwrap_or(false));
                let unread = in_tcp || in_ring;
                let abort = unread || tx.stray || rx.fd().and_then(sys::linger_is_zero).unwrap_or(false);
                let flags = if abort { Flags::ABORT } else { Flags::CLOSED };
                // A reset behind the end of our stream is another thing than one without. The
                // descriptor may have been shut down a moment ago.
                let has_sent_fin =
                    || rx.fd().and_then(sys::tcp_look).is_ok_and(|look| look.state.has_sent_fin());
                // A reset by this end is not behind it, nor is anything that got lost.
                let ended = tx.shut || (!tx.reset && !tx.stray && has_sent_fin());
                let before = if ended { Flags::DONE_WRITING } else { Flags::NONE };
                if let Some(dmb) = rx.dmb.as_ref() {
                    dmb.consumer.set_flags(before);
                    dmb.consumer.set_flags(flags);
                    effects.interrupt(&dmb.peer, Signal::Space);
                }
                if let Some(dmb) = tx.dmb.as_ref() {
                    dmb.producer.set_flags(before);
                    dmb.producer.set_flags(flags);
                    effects.interrupt(&dmb.peer, Signal::Data);
                }
                if let (true, Ok(fd)) = (abort, rx.fd()) {
                    let _ = sys::set_zero_linger(fd);
                }
            }
            if tx.path == send::Path::Tcp && rx.path == receive::Path::Ring {
                // An urgent byte from after the switch must not make the close a reset of the other
                // direction.
                rx.skip_urgent();
            }
            if clc_left > 0 && rx.fd().and_then(sys::linger_is_zero).unwrap_or(false) {
                // It ends in a reset anyway.
                clc_left = 0;
            }
            (rx.socket.take().and(tx.socket.take()), rx.dmb.take(), tx.dmb.take(), clc_left)
        };
        // The flags are in the rings before the socket says anything.
        self.carry_out(effects);
        drop((receive_dmb, send_dmb));
        self.upgrade.close();
        self.record.listing.leave();
        let socket = socket.filter(|_| clc_left > 0)?;
        // The peer may be silent for ever, and there may be many of them: those that find no place
        // close at once.
        let endpoint = self.socket_check.endpoint.get().and_then(Weak::upgrade)?;
        let place = endpoint.leaving().try_take()?;
        let (timers, deadline) = (endpoint.timers().clone(), sys::monotonic() + endpoint.patience());
        Some(Leftover { socket, clc_left, patience: Patience { timers, deadline, _place: place } })
    }
}
