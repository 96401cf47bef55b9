//! The client's side of an upgrade: OFFER, MATCH, READY, CANCEL.

use super::{Fault, Link, OurOffer, SignalEntry, usable_window};
use crate::clc::{Answer, ClientHandshake, Dmb};
use crate::ism::interrupt::CONNECTIONS;
use crate::ism::ring::{Consumer, Producer};
use crate::link::message::{DmbPlace, Message};
use crate::link::proof::{self, Evidence, Ours};
use crate::link::slots::NoDmb;
use crate::link::stream::{LinkedStream, PeerInterrupt, Prelude, ReceiveDmb, SendDmb, Verdict};
use crate::sync::{Arc, Ordering, lock};
use crate::transport::FallbackReason;

/// Streams that may wait for the peer's HELLO.
const MOST_BEFORE_HELLO: usize = 4096;

/// An offer that stands; dropping it takes it back with CANCEL, unless the upgrade went on
/// meanwhile.
struct StandingOffer {
    link: Arc<Link>,
    id: u64,
}

impl Drop for StandingOffer {
    fn drop(&mut self) {
        self.link.cancel(self.id);
    }
}

/// What MATCH says, besides its CLC Accept.
pub(super) struct MatchMessage {
    pub(super) id: u64,
    pub(super) signal: u32,
    pub(super) cookie: u64,
    pub(super) dmb: DmbPlace,
}

impl Link {
    /// Offers `stream` to the peer, at once or after its HELLO.
    pub(crate) fn offer(self: &Arc<Self>, stream: Arc<dyn LinkedStream>) {
        if self.peer.get().is_none() {
            let mut state = lock(&self.state);
            if self.restricted.load(Ordering::Relaxed) {
                drop(state);
                stream.stay_on_tcp(FallbackReason::Denied);
                return;
            }
            if self.peer.get().is_none() && self.death.load(Ordering::Acquire) == 0 {
                if state.before_hello.len() < MOST_BEFORE_HELLO {
                    state.before_hello.push(Arc::downgrade(&stream));
                } else {
                    drop(state);
                    stream.stay_on_tcp(FallbackReason::Limit);
                }
                return;
            }
        }
        if let Err(reason) = self.send_offer(&stream) {
            stream.stay_on_tcp(reason);
        }
    }

    fn send_offer(self: &Arc<Self>, stream: &Arc<dyn LinkedStream>) -> Result<(), FallbackReason> {
        if let Some(death) = self.death() {
            return Err(self.reason_after(death));
        }
        if self.restricted.load(Ordering::Relaxed) {
            return Err(FallbackReason::Denied);
        }
        let endpoint = self.endpoint.upgrade().ok_or(FallbackReason::NoRuntime)?;
        if !stream.peer_policy().admits(&self.credentials) {
            return Err(FallbackReason::PeerPolicy);
        }
        if self.outbox.is_clogged() {
            // What the connections of this link have to say needs the room: a full queue ends them
            // all.
            return Err(FallbackReason::NoAnswer);
        }
        let subject = stream.subject()?;
        let handshake = stream.wants_prelude();
        // Before OFFER leaves: from then on the peer may raise this signal.
        let signal = self.register(stream).ok_or(FallbackReason::Limit)?;
        let (clc, proposal) = ClientHandshake::new(endpoint.clc_device());
        let offer = OurOffer {
            stream: Arc::downgrade(stream),
            subject,
            clc,
            proposal: proposal.clone(),
            signal,
            handshake,
        };
        let id = {
            let mut state = lock(&self.state);
            let id = state.next_offer;
            state.next_offer += 1;
            state.our_offers.insert(id, offer);
            id
        };
        self.send(&Message::Offer { id, signal, handshake, subject, clc: proposal });
        // After OFFER, for dropping it sends CANCEL. If MATCH was faster, dropping it does nothing.
        stream.offered(Box::new(StandingOffer { link: self.clone(), id }));
        if let Some(death) = self.death() {
            // The burial may have passed by before the entry was there.
            self.end_offer(id, self.reason_after(death));
        }
        if self.restricted.load(Ordering::Relaxed) {
            // Nobody heard of it, or nobody can answer. (`restrict` sets the mark before it looks
            // for offers.)
            self.end_offer(id, FallbackReason::Denied);
        }
        Ok(())
    }

    /// Takes an offer back, if it still stands.
    fn cancel(&self, id: u64) {
        let offer = lock(&self.state).our_offers.remove(&id);
        if let Some(offer) = offer {
            self.unregister(offer.signal);
            self.send(&Message::Cancel { id });
        }
    }

    pub(super) fn end_offer(&self, id: u64, reason: FallbackReason) {
        let offer = lock(&self.state).our_offers.remove(&id);
        if let Some(offer) = offer {
            self.unregister(offer.signal);
            if let Some(stream) = offer.stream.upgrade() {
                stream.stay_on_tcp(reason);
            }
        }
    }

    pub(super) fn on_refuse(&self, id: u64, clc: &[u8]) -> Result<(), Fault> {
        let offer = {
            let mut state = lock(&self.state);
            match state.our_offers.remove(&id) {
                Some(offer) => offer,
                // It crossed our CANCEL.
                None if id < state.next_offer => return Ok(()),
                None => return Err(Fault("REFUSE of an offer never made")),
            }
        };
        self.unregister(offer.signal);
        let mut handshake = offer.clc;
        let Ok(Answer::Declined(diagnosis)) = handshake.on_answer(clc) else {
            if let Some(stream) = offer.stream.upgrade() {
                stream.stay_on_tcp(FallbackReason::Protocol);
            }
            return Err(Fault("REFUSE carries no CLC Decline"));
        };
        if let Some(stream) = offer.stream.upgrade() {
            stream.stay_on_tcp(FallbackReason::Declined(diagnosis));
        }
        Ok(())
    }

    pub(super) fn on_match(self: &Arc<Self>, matched: &MatchMessage, accept: &[u8]) -> Result<(), Fault> {
        let id = matched.id;
        let mut offer = {
            let mut state = lock(&self.state);
            let Some(offer) = state.our_offers.remove(&id) else {
                // It crossed our CANCEL, which stands for the DETACH of its token.
                return if id < state.next_offer {
                    Ok(())
                } else {
                    Err(Fault("MATCH of an offer never made"))
                };
            };
            offer
        };
        let entry = Arc::new(SignalEntry { link: self.clone(), index: offer.signal });
        let (answer, window) = (offer.clc.on_answer(accept), usable_window(matched.dmb.window));
        let (Ok(Answer::Accepted { dmb: accepted, .. }), Some(window), true) =
            (answer, window, matched.signal < CONNECTIONS)
        else {
            if let Some(stream) = offer.stream.upgrade() {
                stream.stay_on_tcp(FallbackReason::Protocol);
            }
            return Err(Fault(
                "MATCH carries no CLC Accept for its Proposal, an impossible window or a signal that does not exist",
            ));
        };
        let Some(stream) = offer.stream.upgrade() else {
            self.send(&Message::Cancel { id });
            return Ok(());
        };
        let place = matched.dmb;
        let server_dmb = lock(&self.state).theirs.claim(place.arena, place.slot, accepted.token);
        let server_dmb = match server_dmb {
            Ok(dmb) => dmb,
            Err(NoDmb::Fault(fault)) => {
                stream.stay_on_tcp(FallbackReason::Protocol);
                return Err(fault);
            }
            Err(NoDmb::Lacking(reason)) => {
                self.send(&Message::Cancel { id });
                stream.stay_on_tcp(reason);
                return Ok(());
            }
        };
        let (ours, evidence) = (Ours::Told(offer.subject), Evidence::Cookie(matched.cookie));
        let proved = proof::prove(&*stream, ours, evidence, &self.credentials);
        let allocated = proved.and_then(|_| self.allocate(&stream));
        let allocated = match allocated {
            Ok(allocated) => allocated,
            Err(reason) => {
                lock(&self.state).theirs.release(accepted.token);
                self.send(&Message::Cancel { id });
                stream.stay_on_tcp(reason);
                return Ok(());
            }
        };
        let (token, linkid) = (allocated.token, self.linkid());
        let Ok(confirm) = offer.clc.confirm(Dmb { token, bytes: allocated.window as u32 }, linkid) else {
            stream.stay_on_tcp(FallbackReason::Protocol);
            return Err(Fault("the CLC handshake is out of order"));
        };
        let ready = Message::Ready { id, dmb: allocated.place, clc: confirm.clone() };
        let peer = PeerInterrupt { link: self.clone(), index: matched.signal };
        let receive = ReceiveDmb {
            consumer: Consumer::new(allocated.memory),
            peer: peer.clone(),
            token,
            window: allocated.window,
            _entry: entry.clone(),
        };
        if let Err(reason) = stream.attach_receive(receive, None) {
            self.take_back(token);
            lock(&self.state).theirs.release(accepted.token);
            self.send(&Message::Cancel { id });
            stream.stay_on_tcp(reason);
            return Ok(());
        }
        lock(&self.state).received.insert(accepted.token, Arc::downgrade(&stream));
        if offer.handshake {
            stream.start_prelude(
                &server_dmb,
                Prelude { proposal: offer.proposal, accept: accept.to_vec(), confirm },
            );
        }
        // READY before the first CAS of the word: the server learns of the DMB before it hears of a
        // switch.
        self.send(&ready);
        if self.restricted.load(Ordering::Relaxed) {
            // The peer does not hear of it, and neither of a switch then.
            stream.verdict(Verdict::CanNotSend(FallbackReason::Denied));
            return Ok(());
        }
        stream.attach_send(SendDmb {
            producer: Producer::new(server_dmb, window),
            peer,
            token: accepted.token,
            window,
            _entry: entry,
        });
        self.bury_late(&stream);
        Ok(())
    }
}
