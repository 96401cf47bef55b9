//! The connection as its link sees it: what is attached, what has to be told, how it ends.

use std::io::ErrorKind;
use std::sync::Weak;

use super::receive::{self, Receiver, consistent};
use super::send::{self, Sender};
use super::upgrade::Phase;
use super::{Connection, Directions, Effects, Role, Tcp};
use crate::clc::Diagnosis;
use crate::config::usable_dmb_size;
use crate::error::SmcError;
use crate::ism::arena::DmbMemory;
use crate::ism::dmb::{Direction, Flags};
use crate::ism::interrupt::Signal;
use crate::ism::ring::Memory;
use crate::ism::sys;
use crate::link::endpoint::Endpoint;
use crate::link::lack::reason_of;
use crate::link::message::{Destination, Subject, Tuple};
use crate::link::proof::{MOST_ATTEMPTS, MOST_FAILURES, Possession};
use crate::link::stream::{
    Death, InterruptHandler, Latest, LinkedStream, Prelude, ReceiveDmb, SendDmb, Verdict,
};
use crate::peer::PeerPolicy;
use crate::sync::{Arc, Ordering, assert_unlocked, lock};
use crate::transport::FallbackReason;

impl<T: Tcp> LinkedStream for Connection<T> {
    fn subject(&self) -> Result<Subject, FallbackReason> {
        assert_unlocked("a stream");
        let rx = lock(&self.rx);
        let fd = rx.fd().map_err(|_| FallbackReason::HalfClosed)?;
        let gone = |error| reason_of(&error, FallbackReason::Unproved);
        match sys::ineligible(fd) {
            Ok(None) => {}
            Ok(Some(_)) => return Err(FallbackReason::SocketOption),
            Err(error) => return Err(reason_of(&error, FallbackReason::SocketOption)),
        }
        match sys::tcp_look(fd) {
            // SO_MAX_PACING_RATE: a ring has no speed limit.
            Ok(look) if look.max_pacing != u64::MAX => return Err(FallbackReason::SocketOption),
            Ok(look) if look.state == sys::TcpState::Established => {}
            Ok(_) => return Err(FallbackReason::HalfClosed),
            Err(error) => return Err(reason_of(&error, FallbackReason::Positions)),
        }
        let tuple = Tuple::new(sys::local_addr(fd).map_err(gone)?, sys::peer_addr(fd).map_err(gone)?);
        let cookie = sys::cookie(fd).map_err(gone)?;
        let network_namespace =
            sys::netns_cookie(fd).map_err(|error| reason_of(&error, FallbackReason::NetworkNamespace))?;
        Ok(Subject { tuple, cookie, network_namespace, destination: Destination::Own })
    }

    fn may_meet(&self, theirs: &Subject) -> bool {
        assert_unlocked("a stream");
        let rx = lock(&self.rx);
        // One whose socket is gone had them, as far as anybody knows; one that is over has none.
        let Ok(fd) = rx.fd() else { return true };
        let Ok(peer) = sys::peer_addr(fd) else { return false };
        let ours = sys::local_addr(fd).map(|local| Tuple::new(local, peer));
        ours.is_ok_and(|ours| match theirs.destination {
            Destination::Own => ours == theirs.tuple.mirrored(),
            Destination::Translated => ours.remote == theirs.tuple.local,
        })
    }

    fn possession(&self) -> Result<Possession, FallbackReason> {
        assert_unlocked("a stream");
        if self.upgrade.failures.load(Ordering::Relaxed) >= MOST_ATTEMPTS {
            return Err(FallbackReason::Unproved);
        }
        lock(&self.tx).possession()
    }

    fn offer_with_next_write(&self, endpoint: Weak<Endpoint>) {
        assert_unlocked("a stream");
        self.wait_for_sample(endpoint);
    }

    fn initial_sequence(&self) -> Result<u32, FallbackReason> {
        if self.role == Role::Client || self.upgrade.failures.load(Ordering::Relaxed) >= MOST_FAILURES {
            return Err(FallbackReason::Unproved);
        }
        let read = || {
            let rx = lock(&self.rx);
            let fd = rx.fd().map_err(|_| FallbackReason::HalfClosed)?;
            let sequence = sys::saved_initial_sequence(fd);
            let sequence = sequence.map_err(|error| reason_of(&error, FallbackReason::NoSequence))?;
            sequence.ok_or(FallbackReason::NoSequence)
        };
        // The kernel tells it once.
        *self.upgrade.sequence.get_or_init(read)
    }

    fn attempt_is_used_up(&self) {
        self.upgrade.failures.fetch_add(1, Ordering::Relaxed);
    }

    fn has_received(&self) -> bool {
        let rx = lock(&self.rx);
        rx.fd().and_then(sys::tcp_look).map_or(true, |look| look.bytes_received > 0)
    }

    fn has_ended(&self) -> bool {
        let rx = lock(&self.rx);
        let look = rx.fd().and_then(sys::tcp_look);
        look.map_or(true, |look| look.state == sys::TcpState::Close)
    }

    fn dmb_size(&self) -> usize {
        let chosen = lock(&self.rx).fd().and_then(sys::chosen_receive_buffer).ok().flatten();
        chosen.map_or(self.config.dmb_size, |bytes| usable_dmb_size(bytes).min(self.config.dmb_size))
    }

    fn peer_policy(&self) -> &PeerPolicy {
        &self.config.peer_policy
    }

    fn wants_prelude(&self) -> bool {
        self.has_prelude()
    }

    fn interrupt_handler(&self) -> Arc<dyn InterruptHandler> {
        self.waiters.interrupt_handler()
    }

    fn offered(&self, offer: Latest) {
        assert_unlocked("a stream");
        let gone = {
            let mut state = lock(&self.upgrade.state);
            // Closed or pinned meanwhile: dropping the offer takes it back.
            if state.phase == Phase::Offering { offer.keep(&mut state.offer) } else { Some(offer) }
        };
        drop(gone);
    }

    fn attach_receive(&self, dmb: ReceiveDmb, accept: Option<&[u8]>) -> Result<(), FallbackReason> {
        assert_unlocked("a stream");
        let (mut rx, mut tx) = (lock(&self.rx), lock(&self.tx));
        if rx.socket.is_none() || tx.socket.is_none() || tx.shut {
            return Err(FallbackReason::HalfClosed);
        }
        if rx.dmb.is_some() || rx.path != receive::Path::Tcp {
            return Err(FallbackReason::InProgress);
        }
        if rx.pinned || tx.pinned {
            return Err(FallbackReason::Pinned);
        }
        let fd = tx.fd().map_err(|_| FallbackReason::HalfClosed)?;
        let (look, queued) = match consistent(|| sys::tx_counters(fd)) {
            Ok(Some(look)) => look,
            Ok(None) => return Err(FallbackReason::Positions),
            Err(error) => return Err(reason_of(&error, FallbackReason::Positions)),
        };
        let syn = look.syn(queued).ok_or(FallbackReason::Positions)?;
        let sent = look.tx_position(queued, syn).ok_or(FallbackReason::Positions)?;
        let received = match rx.look() {
            Ok(Some(position)) => position,
            Ok(None) => return Err(FallbackReason::Positions),
            Err(error) => return Err(reason_of(&error, FallbackReason::Positions)),
        };
        // What the kernel counts and did not pass through here went past this stream; see
        // `Sender::try_switch`.
        if tx.own != Some(sent) || rx.own != Some(received) {
            return Err(FallbackReason::Positions);
        }
        {
            let mut state = lock(&self.upgrade.state);
            match state.phase {
                Phase::Idle(_) => state.advance(Phase::Offering),
                Phase::Offering | Phase::Attached => {}
                // Closed or pinned in this moment.
                Phase::Settled(reason) => return Err(reason),
            }
        }
        tx.syn = Some(syn);
        if let (Some(accept), 0, 0) = (accept, received, sent) {
            Self::hold_prelude(&mut rx, &mut tx, dmb.consumer.memory(), accept);
        }
        // Also where our own direction never leaves TCP.
        let _ = self.socket_check.endpoint.set(dmb.peer.link.endpoint().clone());
        rx.dmb = Some(Box::new(dmb));
        Ok(())
    }

    fn attach_send(&self, dmb: SendDmb) {
        assert_unlocked("a stream");
        let _ = self.socket_check.endpoint.set(dmb.peer.link.endpoint().clone());
        let mut effects = Effects::default();
        {
            let mut state = lock(&self.upgrade.state);
            if state.phase == Phase::Offering {
                state.advance(Phase::Attached);
            }
        }
        {
            let mut tx = lock(&self.tx);
            if tx.pinned || tx.shut || tx.socket.is_none() {
                // A pin made before the DMB was known is put into its word; its DETACH goes out at
                // once.
                dmb.producer.memory().header().pin();
                effects.interrupt(&dmb.peer, Signal::Data);
                effects.rare().unused = Some(Box::new(dmb));
                effects.rare().settled = Some(FallbackReason::Pinned);
            } else {
                tx.dmb = Some(Box::new(dmb));
                tx.try_switch(&mut effects);
                let largest = tx.largest_write;
                if let (send::Path::Ring, Some(dmb)) = (tx.path, tx.dmb.as_mut()) {
                    // Whoever wrote much at once will do so again, as will one like those before
                    // it: asked now, the segment is there in time.
                    dmb.producer.expect(largest.max(dmb.peer.link.expected()));
                    Sender::<T>::note_ask(dmb, &mut effects);
                }
            }
        }
        effects.wake = true;
        effects.socket_check = false;
        self.carry_out(effects);
        self.upgrade.end_registration();
        // What was done to the socket until now did not concern the ring.
        self.check_socket();
    }

    fn start_prelude(&self, word: &DmbMemory, messages: Prelude) {
        assert_unlocked("a stream");
        self.begin_prelude(word, messages);
    }

    fn prelude_decided(&self) {
        assert_unlocked("a stream");
        self.end_prelude();
    }

    fn verdict(&self, verdict: Verdict) {
        assert_unlocked("a stream");
        match verdict {
            Verdict::StayOnTcp(reason) => self.stay_on_tcp(reason),
            Verdict::OfferRefused(reason) => self.offer_refused(reason),
            Verdict::CanNotSend(reason) => self.can_not_send(reason),
            Verdict::SocketShared => self.socket_shared(),
            Verdict::PeerPinned => self.peer_pinned(),
            Verdict::PeerDetached => self.peer_detached(),
            Verdict::LinkDied { link, death } => self.link_died(link, death),
        }
    }
}

impl<T: Tcp> Connection<T> {
    // ---- the verdicts ----

    fn can_not_send(&self, reason: FallbackReason) {
        lock(&self.tx).pinned = true;
        self.upgrade.settle(reason);
        // As in `attach_send`.
        self.check_socket();
    }

    fn offer_refused(&self, reason: FallbackReason) {
        let mut state = lock(&self.upgrade.state);
        if let Phase::Idle(_) = state.phase {
            state.phase = Phase::Idle(reason);
        }
    }

    fn socket_shared(&self) {
        // A direction that has switched already goes on in its ring.
        let _ = self.pin("a shared socket", Directions::Both);
        // One that has left TCP both ways counts as upgraded, though nobody has seen it yet.
        self.note_upgrade();
        self.upgrade.settle(FallbackReason::Pinned);
    }

    fn stay_on_tcp(&self, reason: FallbackReason) {
        let unused = {
            let mut rx = lock(&self.rx);
            // Before the DMB with the word is given back.
            lock(&self.tx).resolve_prelude();
            self.abandon_receiver(&mut rx)
        };
        drop(unused);
        self.upgrade.settle(reason);
    }

    fn peer_pinned(&self) {
        let unused = {
            let mut tx = lock(&self.tx);
            if tx.path == send::Path::Tcp {
                (tx.pinned, tx.why) = (true, Some(FallbackReason::Declined(Diagnosis::PEERDECL)));
                tx.dmb.take()
            } else {
                None
            }
        };
        if unused.is_some() {
            drop(unused);
            self.upgrade.settle(FallbackReason::Declined(Diagnosis::PEERDECL));
        }
    }

    fn peer_detached(&self) {
        let mut effects = Effects::default();
        let stays = Self::pin_receiver(&mut lock(&self.rx), &mut effects);
        self.carry_out(effects);
        if stays {
            self.upgrade.settle(FallbackReason::Declined(Diagnosis::PEERDECL));
        }
    }

    fn link_died(&self, link: u64, mut death: Death) {
        let mut effects = Effects::default();
        let mut unused = (None, None);
        {
            let (mut rx, mut tx) = (lock(&self.rx), lock(&self.tx));
            let peers = [rx.dmb.as_ref().map(|dmb| &dmb.peer), tx.dmb.as_ref().map(|dmb| &dmb.peer)];
            if !peers.into_iter().flatten().any(|peer| peer.link.id == link) {
                return;
            }
            if rx.path == receive::Path::Tcp && !rx.pinned {
                if let Some(dmb) = rx.dmb.as_ref() {
                    match dmb.consumer.memory().header().pin() {
                        Direction::Switched(until) => drop(rx.drain_until(until)),
                        _ => rx.pinned = true,
                    }
                }
            }
            if tx.path == send::Path::Tcp {
                tx.pinned = true;
            }
            // GO is final, whatever becomes of the link.
            rx.resolve_prelude();
            tx.resolve_prelude();
            if rx.path == receive::Path::Tcp && tx.path == send::Path::Tcp {
                unused = (rx.dmb.take(), tx.dmb.take());
            } else {
                if matches!(death, Death::Fault | Death::Failed)
                    && Self::was_reset_by_peer(&rx, &tx)
                    && matches!(self.fault.get().map(Box::as_ref), None | Some(SmcError::PeerClosed))
                {
                    // For this stream the peer was gone already.
                    death = Death::Peer;
                }
                if let (Death::Peer, send::Path::Ring, Some(dmb)) = (death, tx.path, tx.dmb.as_mut()) {
                    let consumed = dmb.producer.is_consumed().unwrap_or(false);
                    self.peer_left_unread.store(!consumed, Ordering::Relaxed);
                    let ended = rx
                        .dmb
                        .as_ref()
                        .is_some_and(|dmb| dmb.consumer.writer_flags().contains(Flags::DONE_WRITING));
                    let kind = if ended { ErrorKind::BrokenPipe } else { ErrorKind::ConnectionReset };
                    tx.lost = (!consumed).then_some(kind);
                }
                // A stream that was reset for its own positions stays so.
                if self.death().is_none() {
                    self.death.store(death as u8, Ordering::Release);
                }
                effects.reset = matches!(death, Death::Fault | Death::Failed);
                effects.wake = true;
            }
        }
        if effects.wake {
            self.carry_out(effects);
        } else {
            self.upgrade.settle(death.reason());
        }
        drop(unused);
    }

    /// Has the peer said that it reset the connection, in every ring that is attached?
    fn was_reset_by_peer(rx: &Receiver<T>, tx: &Sender<T>) -> bool {
        let said = [
            rx.dmb.as_ref().map(|dmb| dmb.consumer.writer_flags()),
            tx.dmb.as_ref().map(|dmb| dmb.producer.reader_flags()),
        ];
        said.into_iter().flatten().all(|flags| flags.contains(Flags::ABORT))
    }

    /// Resets a connection whose rings or positions can not be trusted, on both transports.
    pub(super) fn reset(&self) {
        let mut effects = Effects::default();
        {
            let (rx, mut tx) = (lock(&self.rx), lock(&self.tx));
            tx.reset = true;
            if let Some(dmb) = rx.dmb.as_ref() {
                dmb.consumer.set_flags(Flags::ABORT);
                effects.interrupt(&dmb.peer, Signal::Space);
            }
            if let Some(dmb) = tx.dmb.as_ref() {
                dmb.producer.set_flags(Flags::ABORT);
                effects.interrupt(&dmb.peer, Signal::Data);
            }
            if let Ok(fd) = tx.fd() {
                let _ = sys::reset_connection(fd);
            }
            if self.death() != Some(Death::Failed) {
                self.death.store(Death::Fault as u8, Ordering::Release);
            }
        }
        effects.wake = true;
        self.carry_out(effects);
    }

    /// Drops the receive DMB of an upgrade that ended before its READY, if the word allows.
    fn abandon_receiver(&self, rx: &mut Receiver<T>) -> Option<Box<ReceiveDmb>> {
        if rx.path != receive::Path::Tcp {
            return None;
        }
        rx.resolve_prelude();
        rx.pinned = true;
        let dmb = rx.dmb.take()?;
        dmb.consumer.memory().header().pin();
        Some(dmb)
    }
}
