//! How a link begins, what it is told, and how it ends.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Weak;
use std::task::Waker;
use std::{fmt, io};

use super::client::MatchMessage;
use super::server::OfferMessage;
use super::{Fault, Link, Peer, TheirOffer, Wanting, has_hung_up};
use crate::clc::Decline;
use crate::error::SmcError;
use crate::ism::sys::{self, Carried};
use crate::link::aside;
use crate::link::lack::{NO_LINK, no_link, reason_of, silence_of};
use crate::link::message::{Bell, LONGEST, MOST_FDS, Message};
use crate::link::slots::{PeerArena, map_peers};
use crate::link::stream::{Ask, Death, LinkedStream, Verdict};
use crate::shield::shielded;
use crate::sync::{Arc, Ordering, lock};
use crate::transport::{FallbackReason, UCred};

/// How far the task of a link has come with what its peer has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nothing is left.
    Empty,
    /// There may be more: others should have a turn first.
    More,
    /// The next message is to be taken out of the queue first, by somebody who wakes the task then.
    TakesAside,
}

/// What HELLO says.
struct HelloMessage {
    link_id: u64,
    endpoint: [u8; 16],
    gid: [u8; 16],
    slots: u32,
}

impl Link {
    /// Reads and answers what has come, at most so many messages, until one of them was the last as
    /// `is_last` says; `Err` when the link has to end.
    pub(crate) fn receive(
        self: &Arc<Self>,
        buffer: &mut [u8; LONGEST],
        most: usize,
        mut is_last: impl FnMut() -> bool,
    ) -> Result<Heard, Death> {
        // Acquire: pairs with the Release of `take_aside`, after which the message is gone.
        if self.takes_aside.load(Ordering::Acquire) {
            return Ok(Heard::TakesAside);
        }
        let gone = || if self.faulty.load(Ordering::Acquire) { Death::Fault } else { Death::Peer };
        for _ in 0..most {
            if let Some(death) = self.death() {
                return Err(death);
            }
            let received = match sys::recv(self.socket(), buffer, MOST_FDS) {
                Ok(received) if received.len == 0 => return Err(gone()),
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Heard::Empty),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Told once, when the peer has closed without reading all of ours; what it said
                // before is still there.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    crate::trace::warning!("link ended: {error}");
                    self.blame(self.misbehaviour(error));
                    return Err(Death::Fault);
                }
                // This process lacks something, or may not ask any more: its connections need the
                // link only to grow and to free what they leave. They go on until the peer hangs
                // up.
                Err(error)
                    if reason_of(&error, FallbackReason::LinkDown) != FallbackReason::LinkDown
                        && sys::has_hung_up(self.socket()).is_ok_and(|gone| !gone) =>
                {
                    crate::trace::debug!("a link does not hear: {error}");
                    if reason_of(&error, FallbackReason::LinkDown) == FallbackReason::Denied {
                        self.restrict();
                    }
                    return Ok(Heard::Empty);
                }
                Err(error) => {
                    crate::trace::debug!("link ended: {error}");
                    return Err(gone());
                }
            };
            let message = Message::decode(&buffer[..received.len]).map_err(|malformed| {
                crate::trace::warning!("link ended: {malformed}");
                self.blame(self.misbehaviour(malformed));
                Death::Fault
            })?;
            let is_left = received.carried.left.is_some();
            self.deliver(message, received.carried)?;
            if is_left {
                self.take_aside();
                return Ok(Heard::TakesAside);
            }
            if is_last() {
                break;
            }
        }
        Ok(Heard::More)
    }

    /// Takes the message, which has descriptors that this process has no number for, out of the
    /// queue on the thread of what may wait; what is behind it comes after that.
    fn take_aside(&self) {
        self.takes_aside.store(true, Ordering::Relaxed);
        let this = self.this.clone();
        aside::run(move || {
            let Some(link) = this.upgrade() else { return };
            let _ = sys::take(link.socket());
            // Release: pairs with the Acquire of `receive`.
            link.takes_aside.store(false, Ordering::Release);
            let task = lock(&link.task).clone();
            if let Some(task) = task {
                task.wake();
            }
        });
    }

    /// Obeys one message: also the first of an accepted connection, which was read to see how it
    /// begins.
    pub(crate) fn deliver(self: &Arc<Self>, message: Message, carried: Carried) -> Result<(), Death> {
        self.on_message(message, carried).map_err(|Fault(rule)| {
            crate::trace::warning!(
                "link to process {} of user {} ended: {rule}",
                self.credentials.pid,
                self.credentials.uid
            );
            self.blame(self.misbehaviour(rule));
            Death::Fault
        })
    }

    fn on_message(self: &Arc<Self>, message: Message, carried: Carried) -> Result<(), Fault> {
        let Carried { mut fds, left } = carried;
        let expected = message.descriptors();
        // Those that this process had no place for, or may not ask about, are no fault of the peer.
        let lacks_ours = left.is_some() && fds.len() < expected.number;
        let lack = left.map_or(FallbackReason::Descriptors, |e| reason_of(&e, FallbackReason::Descriptors));
        if !lacks_ours && !expected.permits(fds.len()) {
            return Err(Fault("a message carries another number of descriptors than its type says"));
        }
        if let Message::Refuse { id: NO_LINK, clc } = &message {
            let Ok(decline) = Decline::decode(clc) else {
                return Err(Fault("REFUSE carries no CLC Decline"));
            };
            let _ = self.lack.set(FallbackReason::Declined(decline.diagnosis));
            return Ok(());
        }
        if self.peer.get().is_none() && !matches!(message, Message::Hello { .. }) {
            return Err(Fault("the first message is no HELLO"));
        }
        match message {
            Message::Hello { link_id, endpoint, gid, slots, bell } => {
                let eventfd = if bell == Bell::Eventfd { fds.pop() } else { None };
                let Some(arena_fd) = fds.pop().filter(|_| !lacks_ours) else {
                    self.give_up(lack);
                    return Ok(());
                };
                self.on_hello(HelloMessage { link_id, endpoint, gid, slots }, &arena_fd, eventfd)
            }
            Message::Arena { slots } => {
                self.take_arena(fds.pop().as_ref().ok_or(lack), slots).map(drop).map_err(|error| {
                    crate::trace::warning!("an arena of the peer is refused: {error}");
                    Fault("ARENA is not acceptable")
                })
            }
            Message::Offer { id, signal, handshake, subject, commitment, clc } => {
                self.on_offer(OfferMessage { id, signal, handshake, subject, commitment, clc })
            }
            Message::Match { id, signal, dmb, cookie, commitment, clc } => {
                self.on_match(&MatchMessage { id, signal, cookie, commitment, dmb }, &clc)
            }
            Message::Ready { id, dmb, reveal, clc } => self.on_ready(id, dmb, reveal, &clc),
            Message::Proved { id, reveal } => self.on_proved(id, &reveal),
            Message::Attached { id } => self.on_attached(id),
            Message::Refuse { id, clc } => self.on_refuse(id, &clc),
            Message::Cancel { id } => self.on_cancel(id),
            Message::Pinned { token } => {
                // Unknown when it crossed our DETACH or CANCEL.
                let stream = lock(&self.state).received.get(&token).and_then(|stream| stream.upgrade());
                if let Some(stream) = stream {
                    stream.verdict(Verdict::PeerPinned);
                }
                Ok(())
            }
            Message::Detach { token } => {
                let stream = lock(&self.state).own.stream(token).and_then(|stream| stream.upgrade());
                // Before the slot is free: the stream may still look at the word in it.
                if let Some(stream) = stream {
                    stream.verdict(Verdict::PeerDetached);
                }
                if lock(&self.state).own.detached(token) {
                    self.was_useful();
                    self.close_if_idle();
                    Ok(())
                } else {
                    Err(Fault("DETACH of a token that is not out"))
                }
            }
            Message::Ask { token, bytes, held } => self.on_ask(token, Ask { bytes, held }),
            Message::Grant { token, segment, bytes } => self.on_grant(token, segment, bytes, fds.pop()),
            Message::Deny { token, why } => {
                self.on_deny(token, why);
                Ok(())
            }
            Message::Return { token, segment } => {
                self.on_return(token, segment);
                Ok(())
            }
            Message::Bye => self.on_bye(),
            // Whoever has read it looks.
            Message::Wake => {
                if !self.is_idle() {
                    self.was_useful();
                }
                Ok(())
            }
            Message::Link => Err(Fault("LINK on a link")),
            Message::Query { .. } | Message::Answer => Err(Fault("a query on a link")),
        }
    }

    /// Maps an arena of the peer, which gets the next number.
    fn take_arena(&self, fd: Result<&OwnedFd, FallbackReason>, slots: u32) -> io::Result<PeerArena> {
        lock(&self.state).theirs.admit(slots)?;
        // Without the lock, and in the order in which they come, for only this task does it.
        let map = map_peers(fd, slots, &self.account)?;
        lock(&self.state).theirs.add(map.clone());
        Ok(map)
    }

    fn on_hello(
        self: &Arc<Self>,
        hello: HelloMessage,
        arena_fd: &OwnedFd,
        eventfd: Option<OwnedFd>,
    ) -> Result<(), Fault> {
        let HelloMessage { link_id, endpoint, gid, slots } = hello;
        if self.peer.get().is_some() {
            return Err(Fault("a second HELLO"));
        }
        let Some(ours) = self.endpoint.upgrade() else { return Ok(()) };
        if gid != ours.gid().0 {
            return Err(Fault("HELLO of another device"));
        }
        if self.reached.is_some_and(|reached| reached.0 != endpoint) {
            return Err(Fault("HELLO under another name than the peer was reached by"));
        }
        let first_arena = self.take_arena(Ok(arena_fd), slots).map_err(|error| {
            crate::trace::warning!("the first arena of the peer is refused: {error}");
            Fault("the arena of HELLO is not acceptable")
        })?;
        let first_arena = match first_arena {
            Ok(map) => map,
            Err(reason) => {
                self.give_up(reason);
                return Ok(());
            }
        };
        match eventfd.as_ref().map_or(Ok(true), |eventfd| sys::is_eventfd(eventfd.as_fd())) {
            Ok(true) => {}
            Ok(false) => return Err(Fault("HELLO carries no eventfd")),
            Err(error) => {
                crate::trace::debug!("what the peer sent for its eventfd can not be looked at: {error}");
                self.give_up(reason_of(&error, FallbackReason::Denied));
                return Ok(());
            }
        }
        // Its own came first: it takes descriptors now.
        if let Err(error) = self.send_hello(&ours) {
            if !has_hung_up(&error) {
                crate::trace::debug!("HELLO can not be sent: {error}");
                self.give_up(reason_of(&error, FallbackReason::LinkDown));
                return Ok(());
            }
        }
        let in_this_process = sys::is_this_process(self.credentials.pid);
        let here = if in_this_process { crate::link::endpoint::link_of_this_process(link_id) } else { None };
        let bell = self.bell_of_peer(eventfd);
        let peer = Peer { link_id, endpoint, first_arena, bell, here };
        {
            // Who looks under the lock and finds nothing has its stream in the list.
            let _state = lock(&self.state);
            // Checked above, and only this task sets it.
            let _ = self.peer.set(peer);
        }
        // What is left it does when it has sent that.
        self.offer_those_that_wait();
        Ok(())
    }

    /// No message will come any more, or none goes out: what waits for an answer stays on TCP.
    pub(super) fn restrict(&self) {
        if self.restricted.swap(true, Ordering::Relaxed) {
            return;
        }
        let (ours, matched, wanting) = {
            let mut state = lock(&self.state);
            let matched = state.their_offers.values().filter_map(|theirs| match theirs {
                TheirOffer::Matched { stream, .. } | TheirOffer::Proved { stream, .. } => {
                    Some(stream.clone())
                }
                _ => None,
            });
            let matched = Vec::from_iter(matched);
            let ours = Vec::from_iter(state.our_offers.keys().copied());
            (ours, matched, std::mem::take(&mut state.wanting))
        };
        // Their READY will not be heard.
        for stream in matched.iter().filter_map(Weak::upgrade) {
            stream.verdict(Verdict::CanNotSend(FallbackReason::Denied));
        }
        for id in ours {
            self.end_offer(id, FallbackReason::Denied);
        }
        for stream in wanting.iter().filter_map(|wanting| wanting.stream.upgrade()) {
            stream.stay_on_tcp(FallbackReason::Denied);
        }
    }

    /// This end can not serve the link, and says why to its own streams and to the peer; the link
    /// is to end.
    pub(crate) fn lacks(&self, reason: FallbackReason) {
        if self.lack.set(reason).is_ok() {
            self.send(&no_link(reason));
        }
    }

    /// The peer has had its time for HELLO.
    pub(super) fn was_not_greeted(&self) -> Death {
        let _ = self.lack.set(FallbackReason::NoAnswer);
        Death::Peer
    }

    /// Ends a link that no connection uses, for somebody else needs its place more than its peer,
    /// who has the most; what is left of that is for [`Link::evicted`], once no lock is held.
    /// Whether it has ended.
    pub(crate) fn evict(&self) -> bool {
        self.streams.die_if_empty(Death::Fault as u8)
    }

    /// Tells of the end by [`Link::evict`].
    pub(crate) fn evicted(&self) {
        crate::trace::warning!(
            "process {} of user {} has more links than others: the latest that is not in use ends",
            self.credentials.pid,
            self.credentials.uid
        );
        let _ = self.lack.set(FallbackReason::Limit);
        // It may not take it: then the end of the socket says no more than that.
        let _ = self.outbox.send(self.socket(), no_link(FallbackReason::Limit).encode());
        self.lay_to_rest(Death::Fault);
    }

    /// As [`Link::lacks`], and the link ends at once.
    fn give_up(&self, reason: FallbackReason) {
        self.lacks(reason);
        self.bury(Death::Fault);
    }

    /// The waker to call when the link dies.
    pub(crate) fn watch_death(&self, waker: &Waker) {
        let stale = lock(&self.task).replace(waker.clone());
        drop(stale);
    }

    /// Declares the link dead: every stream of it is told once, then the socket closes for both
    /// sides.
    pub(crate) fn bury(&self, death: Death) {
        let Some(streams) = self.streams.die(death as u8, |entry| entry.stream.upgrade()) else { return };
        for stream in &streams {
            // One stream's trouble is not to hide the news from the others.
            let _ = shielded(|| stream.verdict(Verdict::LinkDied { link: self.id, death }));
        }
        self.lay_to_rest(death);
    }

    /// What there is to do once the link has died and its streams were told.
    fn lay_to_rest(&self, death: Death) {
        let (ours, theirs, wanting) = {
            let mut state = lock(&self.state);
            let ours: Vec<u64> = state.our_offers.keys().copied().collect();
            (ours, std::mem::take(&mut state.their_offers), std::mem::take(&mut state.wanting))
        };
        let reason = self.reason_after(death);
        for id in ours {
            let _ = shielded(|| self.end_offer(id, reason));
        }
        if let Some(endpoint) = self.endpoint.upgrade() {
            let mut in_vain = 0;
            for theirs in theirs.into_values() {
                match theirs {
                    TheirOffer::Waiting { key, number } => endpoint.accepted().forget(key, number),
                    TheirOffer::Matched { .. } | TheirOffer::Promised(_) => in_vain += 1,
                    TheirOffer::Matching { .. } | TheirOffer::Proved { .. } => {}
                }
            }
            self.matched_in_vain(in_vain);
            endpoint.link_ended(self);
        }
        for Wanting { stream, destination, rest } in wanting {
            if let Some(stream) = stream.upgrade() {
                let _ = shielded(|| self.failed(&stream, destination, rest, reason));
            }
        }
        let _ = sys::shutdown_socket(self.socket());
        // Descriptors that wait there go nowhere any more.
        self.outbox.clear();
        let file = lock(&self.first_file).take();
        drop(file);
        let task = lock(&self.task).take();
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Why a stream stays on TCP that this link was to serve, now that it has died.
    pub(super) fn reason_after(&self, death: Death) -> FallbackReason {
        if let Some(reason) = self.lack.get() {
            return *reason;
        }
        match death {
            Death::Peer if self.peer.get().is_none() => silence_of(&self.credentials),
            death => death.reason(),
        }
    }

    /// A message has brought an upgrade forward, and does not count as work for the peer.
    pub(super) fn was_useful(&self) {
        // Relaxed: the number is all there is to it.
        self.useful.fetch_add(1, Ordering::Relaxed);
    }

    /// How many of so many messages that have come were no use; what was of use before may make up
    /// for some.
    pub(super) fn were_in_vain(&self, messages: u32) -> u32 {
        // Relaxed: as in `was_useful`.
        messages.saturating_sub(self.useful.load(Ordering::Relaxed))
    }

    /// So many were told by [`Link::was_useful`], and are behind us.
    pub(super) fn forget_useful(&self, messages: u32) {
        // Relaxed: as in `was_useful`.
        self.useful.fetch_sub(messages, Ordering::Relaxed);
    }

    /// So many offers that were matched have come to nothing.
    pub(super) fn matched_in_vain(&self, offers: u32) {
        if let Some(endpoint) = self.endpoint.upgrade() {
            self.taken.matched_in_vain(offers, endpoint.reactor().clock());
        }
    }

    /// A stream that was attached while the link died has missed the news.
    pub(super) fn bury_late(&self, stream: &Arc<dyn LinkedStream>) {
        if let Some(death) = self.death() {
            stream.verdict(Verdict::LinkDied { link: self.id, death });
        }
    }

    /// A stream found that the peer broke a rule of the rings.
    pub(crate) fn violated(&self, violation: &crate::ism::ring::Violation) {
        crate::trace::warning!(
            "link to process {} of user {} ended: {violation}",
            self.credentials.pid,
            self.credentials.uid
        );
        self.blame(self.misbehaviour(violation));
        self.bury(Death::Fault);
    }

    // ---- whose fault it is ----

    /// What the streams of this link are told when it ends by a fault; the first one counts.
    pub(super) fn blame(&self, why: SmcError) {
        let _ = self.fault.set(why);
    }

    /// The peer has broken `rule`.
    pub(crate) fn misbehaviour(&self, rule: impl fmt::Display) -> SmcError {
        let sys::PeerCred { pid, uid, gid } = self.credentials;
        SmcError::misbehaved(UCred { uid, gid, pid: (pid != 0).then_some(pid) }, rule)
    }

    /// Why a stream of this link was reset. A link that lives, or that ended otherwise, has nothing
    /// to do with it.
    #[cold]
    pub(crate) fn fault(&self) -> SmcError {
        self.fault.get().cloned().unwrap_or(SmcError::OutOfStep)
    }
}
