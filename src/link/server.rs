//! The server's side of an upgrade: OFFER, MATCH, READY, PROVED, ATTACHED, REFUSE.

use std::sync::Weak;

use super::{Fault, Link, NewDmb, SignalEntry, TheirOffer, usable_window};
use crate::clc::{Confirmation, Diagnosis, Dmb, ServerHandshake};
use crate::ism::aside::NoThread;
use crate::ism::interrupt::CONNECTIONS;
use crate::ism::ring::{Consumer, Producer};
use crate::link::accepted::{Found, Key, rule_out};
use crate::link::endpoint::Endpoint;
use crate::link::lack::reason_of;
use crate::link::message::{DmbPlace, Message, Subject};
use crate::link::proof::{
    self, Bound, Commitment, Evidence, Exchange, How, NO_COOKIE, Ours, Part, Reveal, Secret,
};
use crate::link::slots::NoDmb;
use crate::link::stream::{Death, LinkedStream, PeerInterrupt, ReceiveDmb, SendDmb, Verdict};
use crate::peer::is_same_user;
use crate::shield::shielded;
use crate::sync::{Arc, Ordering, lock};
use crate::transport::FallbackReason;

/// What OFFER says.
pub(super) struct OfferMessage {
    pub(super) id: u64,
    pub(super) signal: u32,
    pub(super) handshake: bool,
    pub(super) subject: Subject,
    pub(super) commitment: Option<Commitment>,
    pub(super) clc: Vec<u8>,
}

/// What a MATCH that carries a commitment waits with for READY.
pub(super) struct Promised {
    stream: Weak<dyn LinkedStream>,
    clc: ServerHandshake,
    /// Our end of the connection, as it was when the offer came.
    subject: Subject,
    exchange: Exchange,
    dmb: NewDmb,
    peer_signal: u32,
    entry: Arc<SignalEntry>,
}

/// An OFFER whose CLC Proposal is understood.
struct Proposed {
    offered: OfferMessage,
    clc: ServerHandshake,
    /// Streams that are not the one.
    others: Vec<Weak<dyn LinkedStream>>,
}

impl Link {
    pub(super) fn on_offer(self: &Arc<Self>, offered: OfferMessage) -> Result<(), Fault> {
        if offered.signal >= CONNECTIONS {
            return Err(Fault("OFFER names a signal that does not exist"));
        }
        if self.reached.is_some() {
            return Err(Fault("OFFER by the end that was reached"));
        }
        let Some(endpoint) = self.endpoint.upgrade() else { return Ok(()) };
        let waiting = {
            let state = lock(&self.state);
            if state.their_offers.contains_key(offered.id) {
                return Err(Fault("OFFER repeats a number"));
            }
            state.their_offers.waiting()
        };
        let mut clc = match ServerHandshake::on_proposal(endpoint.clc_device(), &offered.clc) {
            Ok(clc) => clc,
            Err(refusal) if refusal.error.is_some() => return Err(Fault("OFFER carries no CLC Proposal")),
            Err(refusal) => {
                self.send(&Message::Refuse { id: offered.id, clc: refusal.decline });
                return Ok(());
            }
        };
        if waiting >= endpoint.accepted().most_of_a_link() {
            self.refuse(offered.id, &mut clc, FallbackReason::Limit);
            return Ok(());
        }
        self.find_stream(&endpoint, Proposed { offered, clc, others: Vec::new() });
        Ok(())
    }

    /// Matches an offer with its stream, now or when it is accepted.
    fn find_stream(self: &Arc<Self>, endpoint: &Arc<Endpoint>, proposed: Proposed) {
        let (id, subject) = (proposed.offered.id, proposed.offered.subject);
        let key = Key::of_client(&subject);
        let others = proposed.others.clone();
        let mut proposed = Some(proposed);
        let link = self.clone();
        // Under the state lock, so that the stream can not be accepted before its offer is known to
        // wait.
        let mut state = lock(&self.state);
        if let Some(TheirOffer::Matching { cancelled: true }) = state.their_offers.get(id) {
            state.their_offers.remove(id);
            return;
        }
        let found = endpoint.accepted().find_or_wait(&subject, self.credentials, &others, || {
            let proposed = proposed.take();
            Box::new(move |stream| {
                if let Some(proposed) = proposed {
                    link.or_bury(|| link.accepted_late(proposed, stream));
                }
            })
        });
        match found {
            Found::Waits { number, sweep, instead } => {
                state.their_offers.insert(id, TheirOffer::Waiting { key, number });
                // The burial may have passed by already.
                let buried = self.death().is_some();
                if buried {
                    state.their_offers.remove(id);
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
                state.their_offers.remove(id);
                drop(state);
                if let Some(mut proposed) = proposed.take() {
                    self.refuse(id, &mut proposed.clc, FallbackReason::Limit);
                }
            }
        }
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
            let Some(TheirOffer::Waiting { .. }) = state.their_offers.get(id) else { return };
            match &stream {
                Ok(_) => state.their_offers.insert(id, TheirOffer::Matching { cancelled: false }),
                Err(_) => state.their_offers.remove(id),
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

    /// Does something where nobody else would tell the client of a panic.
    fn or_bury(&self, work: impl FnOnce()) {
        if shielded(work).is_err() {
            self.bury(Death::Failed);
        }
    }

    /// Matches an offer with a stream that may be its own: on another thread where that means to
    /// reckon with keys, for others wait for the runtime's.
    fn match_stream(self: &Arc<Self>, proposed: Proposed, stream: &Arc<dyn LinkedStream>) {
        let commitment = proposed.offered.commitment.as_ref();
        if commitment.is_none_or(|commitment| commitment.how() == How::Hash) {
            return self.match_here(proposed, stream);
        }
        let (link, stream) = (self.clone(), stream.clone());
        let matched = self.matching.run(move || link.or_bury(|| link.match_here(proposed, &stream)));
        if let Err(NoThread(work)) = matched {
            work();
        }
    }

    fn match_here(self: &Arc<Self>, mut proposed: Proposed, stream: &Arc<dyn LinkedStream>) {
        if let Err(reason) = self.try_match(&mut proposed, stream) {
            let theirs = &proposed.offered.subject;
            if let (false, Some(endpoint)) = (stream.may_meet(theirs), self.endpoint.upgrade()) {
                rule_out(&mut proposed.others, stream);
                return self.find_stream(&endpoint, proposed);
            }
            crate::trace::debug!("offer refused: {reason}");
            lock(&self.state).their_offers.remove(proposed.offered.id);
            // A client that has written since goes on with the number; anybody else's claim says
            // nothing of the stream.
            if proposed.offered.commitment.is_some() || !stream.has_received() {
                // Before the client can tell anybody.
                stream.verdict(Verdict::OfferRefused(reason));
            }
            self.refuse(proposed.offered.id, &mut proposed.clc, reason);
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
        if !stream.peer_policy().admits(&self.credentials, self.socket()) {
            return Err(FallbackReason::PeerPolicy);
        }
        let evidence = Evidence::new(offered.subject.cookie, offered.commitment.is_some());
        let ours = Ours::Described { theirs: offered.subject };
        let subject = proof::prove(&**stream, ours, evidence, &self.credentials)?;
        let proof = match offered.commitment {
            // Who has written has seen more than a cookie, and another user's process has to.
            None if stream.has_received() || !is_same_user(&self.credentials) => {
                return Err(FallbackReason::Unproved);
            }
            None => None,
            Some(theirs) => {
                let (sequence, bound) = (stream.initial_sequence()?, self.bound_to_theirs(offered.id));
                let ours = Secret::new(theirs.how(), Part::Server, bound, sequence);
                let ours = ours.map_err(|error| reason_of(&error, FallbackReason::Unproved))?;
                let exchange = ours.meet(theirs).ok_or(FallbackReason::Unproved)?;
                Some((exchange, ours.commitment()))
            }
        };

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
        let (id, place) = (offered.id, allocated.place);
        if let Some((exchange, commitment)) = proof {
            let promised = Promised {
                stream: Arc::downgrade(stream),
                clc: proposed.clc.clone(),
                subject,
                exchange,
                dmb: allocated,
                peer_signal: offered.signal,
                entry,
            };
            if !self.enter_match(id, token, TheirOffer::Promised(Box::new(promised))) {
                return Ok(());
            }
            let commitment = Some(commitment);
            // In another namespace it could not be looked at.
            let here = subject.network_namespace == offered.subject.network_namespace;
            let cookie = if here { subject.cookie } else { NO_COOKIE };
            self.send(&Message::Match { id, signal, dmb: place, cookie, commitment, clc: accept });
            return Ok(());
        }
        let peer = PeerInterrupt { link: self.clone(), index: offered.signal };
        lock(&self.state).own.use_it(token);
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
        if !self.enter_match(id, token, offer) {
            return Ok(());
        }
        let cookie = subject.cookie;
        self.send(&Message::Match { id, signal, dmb: place, cookie, commitment: None, clc: accept });
        if self.restricted.load(Ordering::Relaxed) {
            // `restrict` sets the mark before it looks for matches, and may have looked before this
            // one was there.
            stream.verdict(Verdict::CanNotSend(FallbackReason::Denied));
        }
        self.bury_late(stream);
        Ok(())
    }

    /// What an offer of the peer is bound to: it has reached us under our name.
    fn bound_to_theirs(&self, offer: u64) -> Bound {
        let server = self.endpoint.upgrade().map_or([0; 16], |endpoint| endpoint.id().0);
        Bound { server, client: self.peer_endpoint().unwrap_or_default(), offer }
    }

    /// The offer waits for READY from now on; `false`: CANCEL was faster, or the link has died.
    fn enter_match(&self, id: u64, token: u64, offer: TheirOffer) -> bool {
        let stream = match &offer {
            TheirOffer::Matched { stream, .. } => stream.upgrade(),
            _ => None,
        };
        let cancelled = {
            let mut state = lock(&self.state);
            let cancelled =
                matches!(state.their_offers.get(id), Some(TheirOffer::Matching { cancelled: true }));
            if cancelled {
                state.their_offers.remove(id);
                Some(offer)
            } else {
                state.their_offers.insert(id, offer);
                None
            }
        };
        if let Some(offer) = cancelled {
            match stream {
                // Before the slot is free: the stream may still look at the word in it.
                Some(stream) => stream.stay_on_tcp(FallbackReason::Declined(Diagnosis::PEERDECL)),
                None => lock(&self.state).own.stream_done(token),
            }
            self.take_back(token);
            drop(offer);
            return false;
        }
        if self.death().is_some() {
            // The burial has passed by: what it left here would keep the link for ever.
            let late = lock(&self.state).their_offers.remove(id);
            drop(late);
        }
        self.was_useful();
        true
    }

    pub(super) fn on_ready(
        self: &Arc<Self>,
        id: u64,
        place: DmbPlace,
        reveal: Option<Reveal>,
        confirm: &[u8],
    ) -> Result<(), Fault> {
        let window = usable_window(place.window).ok_or(Fault("READY names an impossible window"))?;
        let offer = lock(&self.state).their_offers.remove(id);
        let (stream, mut clc, peer_signal, handshake, entry) = match (offer, reveal) {
            (Some(TheirOffer::Matched { stream, clc, peer_signal, handshake, entry, .. }), None) => {
                (stream, clc, peer_signal, handshake, entry)
            }
            (Some(TheirOffer::Promised(promised)), Some(reveal)) => {
                return self.on_reveal(id, *promised, &reveal, (place, window), confirm);
            }
            _ => return Err(Fault("READY without MATCH, or not the one for it")),
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
            self.was_useful();
            stream.attach_send(send);
            self.bury_late(&stream);
        }
        Ok(())
    }

    /// READY has revealed what the client has committed itself to.
    fn on_reveal(
        self: &Arc<Self>,
        id: u64,
        promised: Promised,
        reveal: &Reveal,
        (place, window): (DmbPlace, usize),
        confirm: &[u8],
    ) -> Result<(), Fault> {
        let Promised { stream, mut clc, subject, exchange, dmb, peer_signal, entry } = promised;
        let Ok(Confirmation::Confirmed { dmb: confirmed, .. }) = clc.on_confirm(confirm) else {
            return Err(Fault("READY carries no CLC Confirm for its Accept"));
        };
        let client_dmb = {
            let mut state = lock(&self.state);
            if state.received.contains_key(&confirmed.token) {
                return Err(Fault("READY repeats a token"));
            }
            state.theirs.claim(place.arena, place.slot, confirmed.token)
        };
        let right = exchange.is_proved_by(reveal);
        let stream = stream.upgrade();
        if let (false, Some(stream)) = (right, &stream) {
            stream.attempt_is_used_up();
        }
        let peer = PeerInterrupt { link: self.clone(), index: peer_signal };
        let refused = stream.clone().filter(|_| right);
        let proved = match (right, stream, client_dmb) {
            (_, _, Err(NoDmb::Fault(fault))) => return Err(fault),
            (false, _, _) => Err(FallbackReason::Unproved),
            (_, None, _) => Err(FallbackReason::HalfClosed),
            (_, _, Err(NoDmb::Lacking(reason))) => Err(reason),
            (true, Some(stream), Ok(memory)) => {
                proof::still_is(&*stream, &subject).map(|()| (stream, memory))
            }
        };
        let token = dmb.token;
        let attached = proved.and_then(|(stream, memory)| {
            lock(&self.state).own.use_it(token);
            let receive = ReceiveDmb {
                consumer: Consumer::new(dmb.memory),
                peer: peer.clone(),
                token,
                window: dmb.window,
                _entry: entry.clone(),
            };
            stream.attach_receive(receive, None)?;
            Ok((stream, memory))
        });
        let (stream, memory) = match attached {
            Ok(attached) => attached,
            Err(reason) => {
                crate::trace::debug!("offer refused at READY: {reason}");
                self.matched_in_vain(1);
                // Of both DMBs nobody has made any use; the client answers for ours.
                {
                    let mut state = lock(&self.state);
                    state.own.stream_done(token);
                    state.theirs.release(confirmed.token);
                }
                // Who has proved nothing says nothing of the stream; whom it belongs to does not
                // ask again, and can not tell anybody before this end knows.
                if let Some(stream) = refused.filter(|_| reason != FallbackReason::InProgress) {
                    stream.stay_on_tcp(reason);
                }
                self.refuse(id, &mut clc, reason);
                self.send(&Message::Detach { token: confirmed.token });
                return Ok(());
            }
        };
        // Dropped unused it sends the DETACH that every received token is owed.
        self.was_useful();
        let token = confirmed.token;
        let send = SendDmb { producer: Producer::new(memory, window), peer, token, window, _entry: entry };
        let offer = TheirOffer::Proved { stream: Arc::downgrade(&stream), send };
        {
            let mut state = lock(&self.state);
            state.received.insert(token, Arc::downgrade(&stream));
            state.their_offers.insert(id, offer);
        }
        if self.death().is_some() {
            // As in `enter_match`.
            let late = lock(&self.state).their_offers.remove(id);
            drop(late);
        }
        self.send(&Message::Proved { id, reveal: exchange.reveal });
        if self.restricted.load(Ordering::Relaxed) {
            stream.verdict(Verdict::CanNotSend(FallbackReason::Denied));
        }
        self.bury_late(&stream);
        Ok(())
    }

    /// The client reads from its DMB: from now on our sender may switch.
    pub(super) fn on_attached(self: &Arc<Self>, id: u64) -> Result<(), Fault> {
        let offer = {
            let mut state = lock(&self.state);
            let proved = matches!(state.their_offers.get(id), Some(TheirOffer::Proved { .. }));
            if proved { state.their_offers.remove(id) } else { None }
        };
        let Some(TheirOffer::Proved { stream, send }) = offer else {
            return Err(Fault("ATTACHED without PROVED"));
        };
        if let Some(stream) = stream.upgrade() {
            self.was_useful();
            stream.attach_send(send);
            self.bury_late(&stream);
        }
        Ok(())
    }

    pub(super) fn on_cancel(&self, id: u64) -> Result<(), Fault> {
        let offer = {
            let mut state = lock(&self.state);
            match state.their_offers.get(id) {
                Some(TheirOffer::Matching { .. }) => {
                    state.their_offers.insert(id, TheirOffer::Matching { cancelled: true });
                    None
                }
                Some(TheirOffer::Proved { .. }) => return Err(Fault("CANCEL after READY")),
                _ => state.their_offers.remove(id),
            }
        };
        match offer {
            // It crossed our REFUSE, or the match in progress will see it.
            None | Some(TheirOffer::Matching { .. } | TheirOffer::Proved { .. }) => {}
            Some(TheirOffer::Promised(promised)) => {
                self.matched_in_vain(1);
                let mut state = lock(&self.state);
                state.own.stream_done(promised.dmb.token);
                state.own.detached(promised.dmb.token);
            }
            Some(TheirOffer::Waiting { key, number }) => {
                if let Some(endpoint) = self.endpoint.upgrade() {
                    endpoint.accepted().forget(key, number);
                }
            }
            Some(TheirOffer::Matched { stream, token, .. }) => {
                self.matched_in_vain(1);
                if let Some(stream) = stream.upgrade() {
                    stream.stay_on_tcp(FallbackReason::Declined(Diagnosis::PEERDECL));
                }
                lock(&self.state).own.detached(token);
            }
        }
        Ok(())
    }
}
