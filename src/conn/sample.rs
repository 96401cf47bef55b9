//! The number that a client proves its connection by, seen in a packet of its own
//! (docs/protocol.md, "Proof"), and the client's offer that waits for it.
//!
//! One write of the application's goes out so that the kernel puts the packet on the socket's error
//! queue, from where it is taken at once, under the lock of the direction. Only a stream that its
//! policy lets offer is asked for that, and only if somebody in the device directory listens on its
//! port.

use std::sync::Weak;
use std::task::Poll;

use super::op::{Send, WriteOp};
use super::receive::{closed, consistent};
use super::send::{Sender, context};
use super::upgrade::Phase;
use super::{Connection, Effects, Role, Tcp};
use crate::config::{Config, UpgradePolicy};
use crate::ism::device;
use crate::ism::sys;
use crate::link::endpoint::Endpoint;
use crate::link::lack::reason_of;
use crate::link::proof::Possession;
use crate::link::stream::LinkedStream;
use crate::sync::{Arc, AtomicU8, Ordering, lock};
use crate::transport::FallbackReason;

/// Writes without a packet to see after which none is expected any more: what keeps one back (a
/// full window) does so for a while, what keeps them all back does so for ever.
const MOST_TRIES: u32 = 8;

/// Which write is to show the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Which {
    None = 0,
    /// The one that triggers the upgrade.
    Trigger = 1,
    /// The first one.
    First = 2,
    /// The next one: an offer waits for it.
    Next = 3,
}

/// Which write is to show the number: a hint that lets all others pass by with one load.
pub(super) struct Wanted(AtomicU8);

impl Wanted {
    pub(super) fn new(role: Role, config: &Config) -> Self {
        let which = match config.upgrade_policy {
            _ if config.off || role != Role::Client => Which::None,
            UpgradePolicy::Never => Which::None,
            UpgradePolicy::FirstTurn => Which::Trigger,
            // What they offer before the first write may be refused after it.
            UpgradePolicy::Eager
            | UpgradePolicy::Manual
            | UpgradePolicy::Require
            | UpgradePolicy::Handshake => Which::First,
        };
        Wanted(AtomicU8::new(which as u8))
    }

    fn which(&self) -> Which {
        match self.0.load(Ordering::Relaxed) {
            1 => Which::Trigger,
            2 => Which::First,
            3 => Which::Next,
            _ => Which::None,
        }
    }

    fn set(&self, which: Which) {
        self.0.store(which as u8, Ordering::Relaxed);
    }

    /// Unless another one is wanted meanwhile.
    fn end(&self, which: Which) {
        let none = Which::None as u8;
        let _ = self.0.compare_exchange(which as u8, none, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The next write, without a look into a device directory.
    #[cfg(any(test, fuzzing))]
    pub(super) fn want_next(&self) {
        self.set(Which::Next);
    }

    /// None, until an offer wants one.
    #[cfg(test)]
    pub(super) fn want_none(&self) {
        self.set(Which::None);
    }

    #[inline]
    pub(super) fn may_be_this(&self) -> bool {
        self.0.load(Ordering::Relaxed) != Which::None as u8
    }
}

/// The number of the SYN of a stream whose byte at `position` has the number `end`. The SYN has a
/// number of its own. The numbers go round, the position does not.
fn first_number(end: u32, position: u64) -> u32 {
    end.wrapping_sub(position as u32).wrapping_sub(1)
}

/// What a sender knows of the number.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    /// The client's initial sequence number.
    pub(crate) sequence: Option<u32>,
    /// Why it will never be known.
    never: Option<FallbackReason>,
    tries: u32,
    /// A write was sampled: what the reactor says of the end of writing may be a mistake.
    pub(crate) asked: bool,
    /// A packet that was asked for may still come: until the peer has all of it, the kernel may
    /// send it once more, and shows it once more.
    pub(crate) late: bool,
    /// What the peer has acknowledged when nothing comes any more.
    until: u64,
}

impl Sample {
    fn is_decided(&self) -> bool {
        self.sequence.is_some() || self.never.is_some()
    }
}

impl<T: Tcp> Sender<T> {
    /// A write to TCP that is to be sampled, or one after that.
    pub(super) fn poll_sampled<O: WriteOp<T>>(
        &mut self,
        op: &mut O,
        wanted: bool,
        effects: &mut Effects,
    ) -> Poll<std::io::Result<usize>> {
        let wanted = wanted && !op.is_empty() && !self.sample.is_decided();
        if wanted && self.can_be_sampled() {
            let Some(socket) = self.socket.as_deref() else { return Poll::Ready(Err(closed())) };
            // What did not go out at once was more than the window took.
            let send: Send = if self.sample.tries == 0 { sys::send_sampled } else { sys::send_small_sample };
            let written = op.attempt(socket.as_fd(), send);
            match written {
                Ok(length) => {
                    self.sample.asked = true;
                    self.count(length);
                    self.see_packet();
                    if self.sample.is_decided() {
                        effects.rare().sampled = true;
                    }
                    return Poll::Ready(Ok(length));
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if sys::refuses_samples(&error) => {
                    self.sample.never = Some(reason_of(&error, FallbackReason::NoSequence));
                }
                // The kernel tells an error of the connection once.
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if wanted && self.sample.is_decided() {
            effects.rare().sampled = true;
        }
        // What lies on the queue wakes whoever waits, and looks like an end.
        self.drop_late_packets();
        let Some(socket) = self.socket.as_deref() else { return Poll::Ready(Err(closed())) };
        let mut cx = context(&self.waker);
        // Whether one could write the reactor knows, as of any other socket, unless it is mistaken.
        let answer = if self.sample.asked && (O::WRITES || socket.is_spoiled()) {
            socket.poll_apart(&mut self.apart, &mut cx, |fd| op.attempt(fd, sys::send_bytes))
        } else {
            op.tcp(socket, &mut cx)
        };
        if let (true, Poll::Ready(Ok(length))) = (O::WRITES, &answer) {
            self.count(*length);
        }
        answer
    }

    /// Given that the upgrade is settled: may a packet still come that somebody has to take off the
    /// error queue? If not, no write will be sampled any more.
    #[cfg(any(test, feature = "blocking"))]
    fn awaits_late_packets(&mut self) -> bool {
        self.drop_late_packets();
        if !self.sample.late {
            self.sample.never.get_or_insert(FallbackReason::NoSequence);
        }
        self.sample.late
    }

    /// Takes off the error queue what has come later than its write. Nobody knows any more which
    /// place of the stream it tells.
    pub(super) fn drop_late_packets(&mut self) {
        if !self.sample.late {
            return;
        }
        let Ok(fd) = self.fd() else { return };
        // First what the peer has, then the queue: of what has arrived nothing is sent again.
        let arrived = sys::queued_out(fd).map_or(true, |bytes| bytes == 0)
            || sys::tcp_look(fd).map_or(true, |look| look.bytes_acked >= self.sample.until);
        if sys::drop_samples(fd).is_err() || arrived {
            self.sample.late = false;
        }
    }

    /// May the next write be sampled, and would its packet be sent at once?
    fn can_be_sampled(&mut self) -> bool {
        self.drop_late_packets();
        let Ok(fd) = self.fd() else { return false };
        if self.sample.tries == 0 && sys::uses_error_queue(fd).unwrap_or(true) {
            self.sample.never = Some(FallbackReason::NoSequence);
            return false;
        }
        let unsent = match sys::unsent_out(fd) {
            Ok(unsent) => unsent,
            // It does not tell later, either.
            Err(error) => {
                self.sample.never = Some(reason_of(&error, FallbackReason::NoSequence));
                return false;
            }
        };
        let has_gone_out = || sys::unsent_out(fd).is_ok_and(|unsent| unsent == 0);
        // What Nagle's algorithm or a cork hold back is no reason; a full window is one.
        let free = unsent == 0 || (sys::push_unsent(fd).is_ok() && has_gone_out());
        free && !self.sample.late
    }

    /// Looks at the packet of the write that was just made.
    fn see_packet(&mut self) {
        self.sample.tries += 1;
        let Ok(fd) = self.fd() else { return };
        let mut packet = sys::take_sample(fd);
        if matches!(packet, Ok(None)) && sys::push_unsent(fd).is_ok() {
            packet = sys::take_sample(fd);
        }
        let look = consistent(|| sys::tx_counters(fd)).ok().flatten();
        if let Ok(Some(end)) = packet {
            self.sample.sequence = look.and_then(|(look, queued)| {
                let position = look.tx_position(queued, look.syn(queued)?)?;
                Some(first_number(end, position))
            });
        }
        let until = look.map_or(u64::MAX, |(look, queued)| look.bytes_acked + u64::from(queued));
        (self.sample.until, self.sample.late) = (until, true);
        self.drop_late_packets();
        if self.sample.sequence.is_none() && self.sample.tries >= MOST_TRIES {
            self.sample.never = Some(FallbackReason::NoSequence);
        }
    }

    /// What there is to prove by.
    pub(super) fn possession(&self) -> Result<Possession, FallbackReason> {
        if let Some(sequence) = self.sample.sequence {
            return Ok(Possession::Sequence(sequence));
        }
        let fd = self.fd().map_err(|_| FallbackReason::HalfClosed)?;
        let counters = consistent(|| sys::tx_counters(fd));
        let counters = counters.map_err(|error| reason_of(&error, FallbackReason::Positions))?;
        let (look, queued) = counters.ok_or(FallbackReason::Positions)?;
        let position = look.syn(queued).and_then(|syn| look.tx_position(queued, syn));
        match (position, self.sample.never) {
            (None, _) => Err(FallbackReason::Positions),
            // What went past this stream is not made good by its next write.
            (position, _) if position != self.own => Err(FallbackReason::Positions),
            (Some(0), _) => Ok(Possession::Unwritten),
            (Some(_), Some(reason)) => Err(reason),
            (Some(_), None) => Ok(Possession::WithNextWrite),
        }
    }
}

impl<T: Tcp> Connection<T> {
    /// From now on it is as if a write had been sampled.
    #[cfg(test)]
    pub(crate) fn pretend_a_sample(&self) {
        lock(&self.tx).sample.asked = true;
    }

    /// Is this write to show the number?
    #[cold]
    pub(super) fn samples_this(&self) -> bool {
        let which = self.upgrade.sample.which();
        if matches!(self.upgrade.phase(), Phase::Settled(_) | Phase::Attached) {
            self.upgrade.sample.end(which);
            return false;
        }
        match which {
            Which::None => false,
            Which::Next => true,
            Which::Trigger if self.upgrade.waits_for_trigger() && !self.is_turn() => false,
            Which::Trigger | Which::First => {
                // Once: what the directory does not show now, it shows to the offer.
                self.upgrade.sample.end(which);
                let port = lock(&self.tx).fd().and_then(sys::peer_addr).map(|peer| peer.port());
                port.is_ok_and(|port| device::may_list(self.config.directory(), port))
            }
        }
    }

    /// An offer waits for what the next write shows.
    pub(super) fn wait_for_sample(&self, endpoint: Weak<Endpoint>) {
        lock(&self.upgrade.state).waits_for_write = Some(endpoint);
        self.upgrade.sample.set(Which::Next);
        // A write may have shown it meanwhile.
        if lock(&self.tx).sample.is_decided() {
            self.offer_at_last();
        }
        self.upgrade.changed();
    }

    /// Takes what came on the error queue too late, so that nobody is woken by it for ever.
    #[cold]
    pub(super) fn drop_late_packets(&self) {
        let mut tx = lock(&self.tx);
        tx.drop_late_packets();
        self.upgrade.late.store(tx.sample.late, Ordering::Relaxed);
    }

    /// Given that the upgrade is settled: has somebody still to look at the error queue? What lies
    /// there looks like an error to who waits, and takes room of the receive buffer: as long as it
    /// does so the kernel may keep the window shut, and nothing comes that would wake a reader.
    #[cfg(any(test, feature = "blocking"))]
    pub(super) fn awaits_late_packets(&self) -> bool {
        let mut tx = lock(&self.tx);
        let awaits = tx.awaits_late_packets();
        self.upgrade.late.store(awaits, Ordering::Relaxed);
        awaits
    }

    /// It is known what to prove by, or that it never will be: an offer that waits for it goes on.
    pub(super) fn offer_at_last(&self) {
        self.upgrade.sample.set(Which::None);
        let endpoint = lock(&self.upgrade.state).waits_for_write.take();
        let (Some(endpoint), Some(this)) =
            (endpoint.and_then(|endpoint| endpoint.upgrade()), self.this.upgrade())
        else {
            return;
        };
        let stream: Arc<dyn LinkedStream> = this;
        let offering = endpoint.clone();
        // Not in the caller, who writes.
        endpoint.run(move || offering.offer(stream));
    }
}

#[cfg(test)]
mod tests {
    use super::first_number;

    #[test]
    fn numbers_go_round_and_positions_do_not() {
        for first in [0, 1, 77, u32::MAX - 1, u32::MAX] {
            for position in [0, 1, 300, (1 << 32) - 1, 1 << 32, (1 << 32) + 5, (7 << 32) + 99] {
                let end = ((u64::from(first) + 1 + position) % (1 << 32)) as u32;
                assert_eq!(first_number(end, position), first, "{position} bytes behind {first}");
            }
        }
    }
}
