//! The client's side of an upgrade: OFFER, MATCH, READY, PROVED, ATTACHED, CANCEL.

use std::collections::VecDeque;
use std::sync::Weak;

use super::{Fault, Link, NewDmb, OurOffer, SignalEntry, Wanting, usable_window};
use crate::clc::{Answer, ClientHandshake, Decline, Dmb};
use crate::ism::arena::DmbMemory;
use crate::ism::interrupt::CONNECTIONS;
use crate::ism::ring::{Consumer, Memory, Producer};
use crate::link::lack::reason_of;
use crate::link::message::{Destination, DmbPlace, Message, Subject};
use crate::link::proof::{
    self, Bound, Commitment, Evidence, Exchange, How, Ours, Part, Possession, Reveal, Secret,
};
use crate::link::search::Search;
use crate::link::slots::NoDmb;
use crate::link::stream::{Latest, LinkedStream, PeerInterrupt, Prelude, ReceiveDmb, SendDmb, Verdict};
use crate::peer::is_same_user;
use crate::sync::{Arc, Ordering, lock};
use crate::transport::FallbackReason;

/// Addresses at which a peer is known to accept connections; at others it proves it by a key each
/// time.
const MOST_PROVED: usize = 64;

/// Streams that had to wait offer so many at a time: to prove a connection takes some system calls.
const OFFERS_PER_TURN: usize = 16;

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
    pub(super) commitment: Option<Commitment>,
    pub(super) dmb: DmbPlace,
}

/// What an offer waits with for PROVED, once READY has revealed our part of the proof.
pub(super) struct Revealed {
    exchange: Exchange,
    /// Ours, whose token the server has; the stream has not got it.
    receive: NewDmb,
    /// The server's.
    send: DmbMemory,
    window: usize,
    token: u64,
    peer_signal: u32,
    entry: Arc<SignalEntry>,
}

impl Link {
    /// Offers `stream` to the peer, at once, after its HELLO, or when it has read some of what is
    /// queued for it. If that comes to nothing, `rest` is asked.
    pub(crate) fn offer(
        self: &Arc<Self>,
        stream: Arc<dyn LinkedStream>,
        destination: Destination,
        rest: Option<Search>,
    ) {
        if self.has_to_wait() {
            // Dropped once the lock is not held any more.
            let _gone;
            let mut state = lock(&self.state);
            if self.restricted.load(Ordering::Relaxed) {
                drop(state);
                stream.stay_on_tcp(FallbackReason::Denied);
                return;
            }
            if self.has_to_wait() && self.death().is_none() {
                if state.wanting.len() >= self.streams.most() {
                    // Those that have gone meanwhile need no place.
                    let all = std::mem::take(&mut state.wanting).into_iter();
                    let gone: VecDeque<Wanting>;
                    (state.wanting, gone) = all.partition(|wanting| wanting.stream.strong_count() > 0);
                    _gone = gone;
                }
                if state.wanting.len() < self.streams.most() {
                    state.wanting.push_back(Wanting { stream: Arc::downgrade(&stream), destination, rest });
                } else {
                    drop(state);
                    stream.stay_on_tcp(FallbackReason::Limit);
                }
                return;
            }
        }
        let mut rest = rest;
        if let Err(reason) = self.send_offer(&stream, destination, &mut rest) {
            self.failed(&stream, destination, rest, reason);
        }
    }

    /// Is an offer for later? What the connections of this link have to say needs the room in its
    /// queue: a full one ends them all.
    fn has_to_wait(&self) -> bool {
        self.peer.get().is_none() || self.outbox.is_clogged()
    }

    /// Offers some of the streams that had to wait; whether there are more, which need not wait any
    /// longer. The link's task asks whenever it has sent what the peer's socket takes.
    ///
    /// A stream that comes to wait meanwhile is seen the next time: the queue is not empty then,
    /// and the task will send it.
    pub(super) fn offer_those_that_wait(self: &Arc<Self>) -> bool {
        for _ in 0..OFFERS_PER_TURN {
            // The list first, which is empty but for a moment.
            let next = {
                let mut state = lock(&self.state);
                if state.wanting.is_empty() || self.has_to_wait() {
                    return false;
                }
                state.wanting.pop_front()
            };
            let Some(Wanting { stream, destination, rest }) = next else { return false };
            if let Some(stream) = stream.upgrade() {
                self.offer(stream, destination, rest);
            }
        }
        !lock(&self.state).wanting.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn offers_that_wait(&self) -> usize {
        lock(&self.state).wanting.len()
    }

    /// An offer has come to nothing: the next candidate is asked, or the stream stays on TCP.
    pub(super) fn failed(
        &self,
        stream: &Arc<dyn LinkedStream>,
        destination: Destination,
        rest: Option<Search>,
        reason: FallbackReason,
    ) {
        match (rest, self.endpoint.upgrade()) {
            (Some(rest), Some(endpoint)) => endpoint.search(stream, rest.after(reason)),
            (None, Some(endpoint)) => endpoint.not_found(stream, destination, reason),
            (_, None) => stream.stay_on_tcp(reason),
        }
    }

    /// The same of an offer that was made.
    fn offer_failed(&self, offer: OurOffer, reason: FallbackReason) {
        if let Some(stream) = offer.waiting() {
            self.failed(&stream, offer.destination, offer.rest, reason);
        }
    }

    /// C: may the peer learn the numbers of connections to that address?
    #[cfg(test)]
    pub(crate) fn has_proved_itself_at(&self, server: std::net::SocketAddr) -> bool {
        lock(&self.state).accepts_at.contains(&server)
    }

    fn send_offer(
        self: &Arc<Self>,
        stream: &Arc<dyn LinkedStream>,
        destination: Destination,
        rest: &mut Option<Search>,
    ) -> Result<(), FallbackReason> {
        if let Some(death) = self.death() {
            return Err(self.reason_after(death));
        }
        if self.restricted.load(Ordering::Relaxed) {
            return Err(FallbackReason::Denied);
        }
        let endpoint = self.endpoint.upgrade().ok_or(FallbackReason::NoRuntime)?;
        if !stream.peer_policy().admits(&self.credentials, self.socket()) {
            return Err(FallbackReason::PeerPolicy);
        }
        // Only who has reached the peer under a name offers to it.
        let server = self.reached.ok_or(FallbackReason::LinkDown)?;
        let subject = stream.subject()?;
        let sequence = match stream.possession()? {
            Possession::Sequence(sequence) => Some(sequence),
            Possession::Unwritten if is_same_user(&self.credentials) => None,
            // What a cookie proves is not enough for another user's process.
            Possession::Unwritten | Possession::WithNextWrite => {
                stream.offer_with_next_write(Arc::downgrade(&endpoint));
                return Ok(());
            }
        };
        let (id, how) = {
            let mut state = lock(&self.state);
            let id = state.next_offer;
            state.next_offer += 1;
            // At a translated address others accept, too.
            let known = destination == Destination::Own && state.accepts_at.contains(&subject.tuple.remote);
            (id, if known { How::Hash } else { How::Key })
        };
        let bound = Bound { server: server.0, client: endpoint.id().0, offer: id };
        let secret = sequence.map(|sequence| Secret::new(how, Part::Client, bound, sequence)).transpose();
        let secret = secret.map_err(|error| reason_of(&error, FallbackReason::Unproved))?;
        let commitment = secret.as_ref().map(Secret::commitment);
        let handshake = stream.wants_prelude();
        // Before OFFER leaves: from then on the peer may raise this signal.
        let signal = self.register(stream).ok_or(FallbackReason::Limit)?;
        let (clc, proposal) = ClientHandshake::new(endpoint.clc_device());
        let offer = OurOffer {
            stream: Arc::downgrade(stream),
            rest: rest.take(),
            subject,
            destination,
            clc,
            proposal: proposal.clone(),
            signal,
            handshake,
            secret,
            revealed: None,
            given_up: false,
        };
        lock(&self.state).our_offers.insert(id, offer);
        // The answer may be here before the stream hears of this, and another offer have followed.
        let standing = Latest::new(Box::new(StandingOffer { link: self.clone(), id }));
        let subject = Subject { destination, ..subject };
        self.send(&Message::Offer { id, signal, handshake, subject, commitment, clc: proposal });
        // After OFFER, for dropping it sends CANCEL. If MATCH was faster, dropping it does nothing.
        stream.offered(standing);
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

    /// The peer has had its time to take the offer of a stream for which others could be asked.
    pub(crate) fn offer_is_overdue(&self, stream: &Weak<dyn LinkedStream>) {
        let (waits, offer) = {
            let mut state = lock(&self.state);
            let waiting = &mut state.wanting;
            let waits = waiting.iter().position(|wanting| wanting.stream.ptr_eq(stream));
            let waits = waits.and_then(|at| waiting.remove(at));
            let of_the_stream =
                |offer: &OurOffer| !offer.given_up && offer.stream.ptr_eq(stream) && offer.rest.is_some();
            let offer = state.our_offers.iter_mut().find(|(_, offer)| of_the_stream(offer));
            match offer {
                // After READY the server answers it, whoever else is asked meanwhile.
                Some((_, offer)) if offer.revealed.is_some() => {
                    offer.given_up = true;
                    let (stream, rest) = (offer.stream.clone(), offer.rest.take());
                    (Some(Wanting { stream, destination: offer.destination, rest }), None)
                }
                offer => {
                    let id = offer.map(|(id, _)| *id);
                    (waits, id.and_then(|id| Some((id, state.our_offers.remove(&id)?))))
                }
            }
        };
        if let (Some(wanting), Some(stream)) = (waits, stream.upgrade()) {
            self.failed(&stream, wanting.destination, wanting.rest, FallbackReason::NoAnswer);
        }
        if let Some((id, offer)) = offer {
            self.unregister(offer.signal);
            self.send(&Message::Cancel { id });
            self.offer_failed(offer, FallbackReason::NoAnswer);
        }
    }

    /// Takes an offer back, if it still stands.
    fn cancel(&self, id: u64) {
        let offer = {
            let mut state = lock(&self.state);
            // After READY the server answers it, and is told then.
            let stands = state.our_offers.get(&id).is_some_and(|offer| offer.revealed.is_none());
            if stands { state.our_offers.remove(&id) } else { None }
        };
        if let Some(offer) = offer {
            self.unregister(offer.signal);
            self.send(&Message::Cancel { id });
        }
    }

    pub(super) fn end_offer(&self, id: u64, reason: FallbackReason) {
        let offer = lock(&self.state).our_offers.remove(&id);
        if let Some(offer) = offer {
            if offer.revealed.is_none() {
                self.unregister(offer.signal);
            }
            self.offer_failed(offer, reason);
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
        self.was_useful();
        if offer.revealed.is_some() {
            return self.on_refused_proof(offer, clc);
        }
        self.unregister(offer.signal);
        let mut offer = offer;
        let Ok(Answer::Declined(diagnosis)) = offer.clc.on_answer(clc) else {
            self.offer_failed(offer, FallbackReason::Protocol);
            return Err(Fault("REFUSE carries no CLC Decline"));
        };
        let elsewhere = diagnosis == FallbackReason::NetworkNamespace.diagnosis();
        if offer.secret.is_none() && (elsewhere || diagnosis == FallbackReason::Unproved.diagnosis()) {
            // Perhaps it was written to since, and the server has seen that.
            if let (Some(stream), Some(endpoint)) = (offer.waiting(), self.endpoint.upgrade()) {
                match stream.possession() {
                    // From another namespace only the number proves anything.
                    Ok(Possession::Unwritten) if elsewhere && offer.rest.is_none() => {
                        stream.offer_with_next_write(Arc::downgrade(&endpoint));
                        return Ok(());
                    }
                    Ok(Possession::Unwritten) => {}
                    Ok(_) => {
                        endpoint.offer(stream);
                        return Ok(());
                    }
                    Err(reason) => {
                        self.offer_failed(offer, reason);
                        return Ok(());
                    }
                }
            }
        }
        self.offer_failed(offer, FallbackReason::Declined(diagnosis));
        Ok(())
    }

    /// REFUSE after READY: what it revealed was wrong, or the server can not do it any more.
    fn on_refused_proof(&self, mut offer: OurOffer, clc: &[u8]) -> Result<(), Fault> {
        let diagnosis = Decline::decode(clc).map(|decline| decline.diagnosis);
        self.abandon(&mut offer);
        let reason = diagnosis
            .as_ref()
            .map_or(FallbackReason::Protocol, |diagnosis| FallbackReason::Declined(*diagnosis));
        self.offer_failed(offer, reason);
        diagnosis.map(drop).map_err(|_| Fault("REFUSE carries no CLC Decline"))
    }

    /// Gives back the DMBs of an offer that has come to nothing after READY.
    fn abandon(&self, offer: &mut OurOffer) {
        let Some(revealed) = offer.revealed.take() else { return };
        // Its DETACH is the server's to send.
        {
            let mut state = lock(&self.state);
            state.own.stream_done(revealed.receive.token);
            state.theirs.release(revealed.token);
        }
        self.send(&Message::Detach { token: revealed.token });
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
        self.was_useful();
        let entry = Arc::new(SignalEntry { link: self.clone(), index: offer.signal });
        let (answer, window) = (offer.clc.on_answer(accept), usable_window(matched.dmb.window));
        let (Ok(Answer::Accepted { dmb: accepted, .. }), Some(window), true) =
            (answer, window, matched.signal < CONNECTIONS)
        else {
            self.offer_failed(offer, FallbackReason::Protocol);
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
                self.offer_failed(offer, FallbackReason::Protocol);
                return Err(fault);
            }
            Err(NoDmb::Lacking(reason)) => {
                self.send(&Message::Cancel { id });
                stream.stay_on_tcp(reason);
                return Ok(());
            }
        };
        let cookie = matched.cookie;
        let evidence = Evidence::new(cookie, offer.secret.is_some());
        let proved = proof::prove(&*stream, Ours::Told(offer.subject), evidence, &self.credentials);
        let exchange = proved.and_then(|_| match &offer.secret {
            None => Ok(None),
            // Without a commitment it does not mean to prove anything.
            Some(ours) => {
                let exchange = matched.commitment.and_then(|theirs| ours.meet(theirs));
                exchange.map(Some).ok_or(FallbackReason::Unproved)
            }
        });
        let allocated = exchange.and_then(|exchange| Ok((self.allocate(&stream)?, exchange)));
        let (allocated, exchange) = match allocated {
            Ok(allocated) => allocated,
            Err(reason) => {
                lock(&self.state).theirs.release(accepted.token);
                self.send(&Message::Cancel { id });
                self.failed(&stream, offer.destination, offer.rest, reason);
                return Ok(());
            }
        };
        let (token, linkid) = (allocated.token, self.linkid());
        let Ok(confirm) = offer.clc.confirm(Dmb { token, bytes: allocated.window as u32 }, linkid) else {
            stream.stay_on_tcp(FallbackReason::Protocol);
            return Err(Fault("the CLC handshake is out of order"));
        };
        if let Some(exchange) = exchange {
            let (place, reveal) = (allocated.place, exchange.reveal);
            // From what READY reveals the peer can tell whether it has guessed.
            stream.attempt_is_used_up();
            offer.revealed = Some(Box::new(Revealed {
                exchange,
                receive: allocated,
                send: server_dmb,
                window,
                token: accepted.token,
                peer_signal: matched.signal,
                entry,
            }));
            lock(&self.state).our_offers.insert(id, offer);
            self.send(&Message::Ready { id, dmb: place, reveal: Some(reveal), clc: confirm });
            if let Some(death) = self.death() {
                self.end_offer(id, self.reason_after(death));
            }
            if self.restricted.load(Ordering::Relaxed) {
                // As in `send_offer`.
                self.end_offer(id, FallbackReason::Denied);
            }
            return Ok(());
        }
        let ready = Message::Ready { id, dmb: allocated.place, reveal: None, clc: confirm.clone() };
        let peer = PeerInterrupt { link: self.clone(), index: matched.signal };
        let receive = ReceiveDmb {
            consumer: Consumer::new(allocated.memory),
            peer: peer.clone(),
            token,
            window: allocated.window,
            _entry: entry.clone(),
        };
        lock(&self.state).own.use_it(token);
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

    /// The server has taken our part of the proof, and reveals its own.
    pub(super) fn on_proved(self: &Arc<Self>, id: u64, reveal: &Reveal) -> Result<(), Fault> {
        let offer = {
            let mut state = lock(&self.state);
            let waits = state.our_offers.get(&id).is_some_and(|offer| offer.revealed.is_some());
            if waits { state.our_offers.remove(&id) } else { None }
        };
        let Some(mut offer) = offer else { return Err(Fault("PROVED without READY")) };
        let Some(revealed) = offer.revealed.take() else { return Err(Fault("PROVED without READY")) };
        let Revealed { exchange, receive: dmb, send, window, token, peer_signal, entry } = *revealed;
        if !exchange.is_proved_by(reveal) {
            self.offer_failed(offer, FallbackReason::Unproved);
            return Err(Fault("PROVED proves nothing"));
        }
        self.was_useful();
        {
            let mut state = lock(&self.state);
            state.own.use_it(dmb.token);
            if !offer.given_up {
                state.received.insert(token, offer.stream.clone());
            }
            if offer.destination == Destination::Own && state.accepts_at.len() < MOST_PROVED {
                state.accepts_at.insert(offer.subject.tuple.remote);
            }
        }
        if let (Destination::Translated, Some(endpoint)) = (offer.destination, self.endpoint.upgrade()) {
            endpoint.was_found(offer.subject.tuple.remote);
        }
        let peer = PeerInterrupt { link: self.clone(), index: peer_signal };
        let word = dmb.memory.clone();
        let receive = ReceiveDmb {
            consumer: Consumer::new(dmb.memory),
            peer: peer.clone(),
            token: dmb.token,
            window: dmb.window,
            _entry: entry.clone(),
        };
        // Dropped unused it sends the DETACH that every received token is owed.
        let send = SendDmb { producer: Producer::new(send, window), peer, token, window, _entry: entry };
        let Some(stream) = offer.waiting() else {
            word.header().pin();
            self.send(&Message::Attached { id });
            receive.pinned();
            drop(send);
            if offer.given_up {
                // It was never entered, for the stream may be on another link by now.
                self.send(&Message::Detach { token });
            }
            return Ok(());
        };
        let attached =
            proof::still_is(&*stream, &offer.subject).and_then(|()| stream.attach_receive(receive, None));
        if attached.is_err() {
            // Before ATTACHED, after which the server may switch.
            word.header().pin();
        }
        self.send(&Message::Attached { id });
        if let Err(reason) = attached {
            self.send_pinned(dmb.token);
            stream.stay_on_tcp(reason);
            return Ok(());
        }
        if self.restricted.load(Ordering::Relaxed) {
            // The peer does not hear of it, and neither of a switch then.
            stream.verdict(Verdict::CanNotSend(FallbackReason::Denied));
            return Ok(());
        }
        stream.attach_send(send);
        self.bury_late(&stream);
        Ok(())
    }
}
