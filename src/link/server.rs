//! The server's side of an upgrade: OFFER, MATCH, READY, REFUSE.

use super::{Fault, Link, SignalEntry, TheirOffer, usable_window};
use crate::clc::{Confirmation, Diagnosis, Dmb, ServerHandshake};
use crate::ism::interrupt::CONNECTIONS;
use crate::ism::ring::{Consumer, Producer};
use crate::link::accepted::{Found, Key};
use crate::link::message::{DmbPlace, Message, Subject};
use crate::link::proof::{self, Evidence, Ours};
use crate::link::slots::NoDmb;
use crate::link::stream::{Death, LinkedStream, PeerInterrupt, ReceiveDmb, SendDmb, Verdict};
use crate::shield::shielded;
use crate::sync::{Arc, Ordering, lock};
use crate::transport::FallbackReason;

/// Offers of one peer that may wait for their stream to be accepted.
const MOST_WAITING_OFFERS: usize = 256;

/// What OFFER says.
pub(super) struct OfferMessage {
    pub(super) id: u64,
    pub(super) signal: u32,
    pub(super) handshake: bool,
    pub(super) subject: Subject,
    pub(super) clc: Vec<u8>,
}

/// An OFFER whose CLC Proposal is understood.
struct Proposed {
    offered: OfferMessage,
    clc: ServerHandshake,
}

impl Link {
    pub(super) fn on_offer(self: &Arc<Self>, offered: OfferMessage) -> Result<(), Fault> {
        if offered.signal >= CONNECTIONS {
            return Err(Fault("OFFER names a signal that does not exist"));
        }
        let Some(endpoint) = self.endpoint.upgrade() else { return Ok(()) };
        if let Some(peer) = self.peer_endpoint() {
            // It has a use for the link, if we asked to close it: so has this end then.
            endpoint.greeted(self, peer);
        }
        let waiting = {
            let state = lock(&self.state);
            if state.their_offers.contains_key(&offered.id) {
                return Err(Fault("OFFER repeats a number"));
            }
            state.their_offers.values().filter(|offer| matches!(offer, TheirOffer::Waiting { .. })).count()
        };
        let mut clc = match ServerHandshake::on_proposal(endpoint.clc_device(), &offered.clc) {
            Ok(clc) => clc,
            Err(refusal) if refusal.error.is_some() => return Err(Fault("OFFER carries no CLC Proposal")),
            Err(refusal) => {
                self.send(&Message::Refuse { id: offered.id, clc: refusal.decline });
                return Ok(());
            }
        };
        if waiting >= MOST_WAITING_OFFERS {
            self.refuse(offered.id, &mut clc, FallbackReason::Limit);
            return Ok(());
        }
        let (id, subject) = (offered.id, offered.subject);
        let key = Key::of_client(subject.tuple);
        let mut proposed = Some(Proposed { offered, clc });
        let link = self.clone();
        // Under the state lock, so that the stream can not be accepted before its offer is known to
        // wait.
        let mut state = lock(&self.state);
        let found = endpoint.accepted().find_or_wait(&subject, self.credentials, || {
            let proposed = proposed.take();
            Box::new(move |stream| {
                if let Some(proposed) = proposed {
                    // It runs where nobody else would tell the client.
                    if shielded(|| link.accepted_late(proposed, stream)).is_err() {
                        link.bury(Death::Failed);
                    }
                }
            })
        });
        match found {
            Found::Waits { number, sweep, instead } => {
                state.their_offers.insert(id, TheirOffer::Waiting { key, number });
                // The burial may have passed by already.
                let buried = self.death().is_some();
                if buried {
                    state.their_offers.remove(&id);
                }
                drop(state);
                if buried {
                    endpoint.accepted().forget(key, number);
                }
                endpoint.after_waiting(sweep, instead);
            }
            Found::Stream(stream) => {
                drop(state);
                if let Some(proposed) = proposed.take() {
                    lock(&self.state).their_offers.insert(id, TheirOffer::Matching { cancelled: false });
                    self.match_stream(proposed, &stream);
                }
            }
            Found::Full => {
                drop(state);
                if let Some(mut proposed) = proposed.take() {
                    self.refuse(id, &mut proposed.clc, FallbackReason::Limit);
                }
            }
        }
        Ok(())
    }

    /// The stream that an offer waited for has been accepted, or will never be.
    fn accepted_late(
        self: &Arc<Self>,
        mut proposed: Proposed,
        stream: Result<Arc<dyn LinkedStream>, FallbackReason>,
    ) {
        let id = proposed.offered.id;
        {
            let mut state = lock(&self.state);
            let Some(TheirOffer::Waiting { .. }) = state.their_offers.get(&id) else { return };
            match &stream {
                Ok(_) => state.their_offers.insert(id, TheirOffer::Matching { cancelled: false }),
                Err(_) => state.their_offers.remove(&id),
            };
        }
        match stream {
            Ok(stream) => self.match_stream(proposed, &stream),
            // Somebody else has accepted it, or the application has taken or closed it before the
            // offer came, or this end lacks what it takes to know.
            Err(reason) => self.refuse(id, &mut proposed.clc, reason),
        }
    }

    fn refuse(&self, id: u64, clc: &mut ServerHandshake, reason: FallbackReason) {
        self.send(&Message::Refuse { id, clc: clc.decline(reason.diagnosis()) });
    }

    fn match_stream(self: &Arc<Self>, mut proposed: Proposed, stream: &Arc<dyn LinkedStream>) {
        if let Err(reason) = self.try_match(&mut proposed, stream) {
            crate::trace::debug!("offer refused: {reason}");
            lock(&self.state).their_offers.remove(&proposed.offered.id);
            self.refuse(proposed.offered.id, &mut proposed.clc, reason);
            stream.verdict(Verdict::OfferRefused(reason));
        }
    }

    fn try_match(
        self: &Arc<Self>,
        proposed: &mut Proposed,
        stream: &Arc<dyn LinkedStream>,
    ) -> Result<(), FallbackReason> {
        let offered = &proposed.offered;
        if self.restricted.load(Ordering::Relaxed) {
            return Err(FallbackReason::Denied);
        }
        if !stream.peer_policy().admits(&self.credentials) {
            return Err(FallbackReason::PeerPolicy);
        }
        let (ours, evidence) =
            (Ours::Described { theirs: offered.subject }, Evidence::Cookie(offered.subject.cookie));
        let subject = proof::prove(&**stream, ours, evidence, &self.credentials)?;

        let allocated = self.allocate(stream)?;
        let token = allocated.token;
        let first_contact = !std::mem::replace(&mut lock(&self.state).met, true);
        let dmb = Dmb { token, bytes: allocated.window as u32 };
        let accept = proposed.clc.accept(dmb, self.linkid(), first_contact);
        let Ok(accept) = accept else {
            lock(&self.state).own.stream_done(token);
            self.take_back(token);
            return Err(FallbackReason::Protocol);
        };
        // Before MATCH leaves: from then on the peer may raise this signal and switch.
        let Some(signal) = self.register(stream) else {
            lock(&self.state).own.stream_done(token);
            self.take_back(token);
            return Err(FallbackReason::Limit);
        };
        let entry = Arc::new(SignalEntry { link: self.clone(), index: signal });
        let peer = PeerInterrupt { link: self.clone(), index: offered.signal };
        let receive = ReceiveDmb {
            consumer: Consumer::new(allocated.memory),
            peer,
            token,
            window: allocated.window,
            _entry: entry.clone(),
        };
        if let Err(reason) = stream.attach_receive(receive, offered.handshake.then_some(&accept[..])) {
            self.take_back(token);
            return Err(reason);
        }
        let offer = TheirOffer::Matched {
            stream: Arc::downgrade(stream),
            clc: proposed.clc.clone(),
            token,
            peer_signal: offered.signal,
            handshake: offered.handshake,
            entry,
        };
        {
            let mut state = lock(&self.state);
            if let Some(TheirOffer::Matching { cancelled: true }) = state.their_offers.get(&offered.id) {
                state.their_offers.remove(&offered.id);
                drop(state);
                // Before the slot is free: the stream may still look at the word in it.
                stream.stay_on_tcp(FallbackReason::Declined(Diagnosis::PEERDECL));
                self.take_back(token);
                return Ok(());
            }
            state.their_offers.insert(offered.id, offer);
        }
        if self.death().is_some() {
            // The burial has passed by: what it left here would keep the link for ever.
            let late = lock(&self.state).their_offers.remove(&offered.id);
            drop(late);
        }
        self.send(&Message::Match {
            id: offered.id,
            signal,
            dmb: allocated.place,
            cookie: subject.cookie,
            clc: accept,
        });
        if self.restricted.load(Ordering::Relaxed) {
            // `restrict` sets the mark before it looks for matches, and may have looked before this
            // one was there.
            stream.verdict(Verdict::CanNotSend(FallbackReason::Denied));
        }
        self.bury_late(stream);
        Ok(())
    }

    pub(super) fn on_ready(self: &Arc<Self>, id: u64, place: DmbPlace, confirm: &[u8]) -> Result<(), Fault> {
        let window = usable_window(place.window).ok_or(Fault("READY names an impossible window"))?;
        let offer = lock(&self.state).their_offers.remove(&id);
        let Some(TheirOffer::Matched { stream, mut clc, peer_signal, handshake, entry, .. }) = offer else {
            return Err(Fault("READY without MATCH"));
        };
        let Ok(Confirmation::Confirmed { dmb, .. }) = clc.on_confirm(confirm) else {
            return Err(Fault("READY carries no CLC Confirm for its Accept"));
        };
        let client_dmb = {
            let mut state = lock(&self.state);
            if state.received.contains_key(&dmb.token) {
                return Err(Fault("READY repeats a token"));
            }
            state.received.insert(dmb.token, stream.clone());
            state.theirs.claim(place.arena, place.slot, dmb.token)
        };
        let stream = stream.upgrade();
        if let (true, Some(stream)) = (handshake, &stream) {
            stream.prelude_decided();
        }
        let client_dmb = match client_dmb {
            Ok(dmb) => dmb,
            Err(NoDmb::Fault(fault)) => return Err(fault),
            Err(NoDmb::Lacking(reason)) => {
                self.detach(dmb.token);
                if let Some(stream) = stream {
                    stream.verdict(Verdict::CanNotSend(reason));
                }
                return Ok(());
            }
        };
        // Dropped unused it sends the DETACH that every received token is owed.
        let send = SendDmb {
            producer: Producer::new(client_dmb, window),
            peer: PeerInterrupt { link: self.clone(), index: peer_signal },
            token: dmb.token,
            window,
            _entry: entry,
        };
        if let Some(stream) = stream {
            stream.attach_send(send);
            self.bury_late(&stream);
        }
        Ok(())
    }

    pub(super) fn on_cancel(&self, id: u64) -> Result<(), Fault> {
        let offer = {
            let mut state = lock(&self.state);
            match state.their_offers.get_mut(&id) {
                Some(TheirOffer::Matching { cancelled }) => {
                    *cancelled = true;
                    None
                }
                _ => state.their_offers.remove(&id),
            }
        };
        match offer {
            // It crossed our REFUSE, or the match in progress will see it.
            None | Some(TheirOffer::Matching { .. }) => {}
            Some(TheirOffer::Waiting { key, number }) => {
                if let Some(endpoint) = self.endpoint.upgrade() {
                    endpoint.accepted().forget(key, number);
                }
            }
            Some(TheirOffer::Matched { stream, token, .. }) => {
                if let Some(stream) = stream.upgrade() {
                    stream.stay_on_tcp(FallbackReason::Declined(Diagnosis::PEERDECL));
                }
                lock(&self.state).own.detached(token);
            }
        }
        Ok(())
    }
}
