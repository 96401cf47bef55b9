//! Growth of rings over the link: ASK, GRANT, DENY, RETURN (docs/protocol.md, "Growth").

use std::os::fd::OwnedFd;

use super::{Fault, Link};
use crate::ism::arena::DmbSegment;
use crate::ism::ring::Refusal;
use crate::link::message::Message;
use crate::link::slots::is_the_peers;
use crate::link::stream::{Answer, Ask, Death, Granted, LinkedStream};
use crate::shield::shielded;
use crate::sync::{Arc, Ordering, lock};

impl Link {
    /// Our writer to the DMB of that token has found it full.
    pub(crate) fn send_ask(&self, token: u64, Ask { bytes, held }: Ask) {
        self.send(&Message::Ask { token, bytes, held });
    }

    /// Our writer is back in its first segment.
    pub(crate) fn send_return(&self, token: u64, segment: u64) {
        self.send(&Message::Return { token, segment });
    }

    /// A stream has had a use for a segment of so many bytes.
    pub(crate) fn has_needed(&self, bytes: u64) {
        self.needed.fetch_max(bytes, Ordering::Relaxed);
    }

    /// A stream ends that had a use for so many bytes at most. What earlier ones needed is
    /// forgotten by halves.
    pub(crate) fn learn(&self, bytes: u64) {
        // A guess: of two that end at once one may be forgotten.
        let before = self.needed.load(Ordering::Relaxed);
        self.needed.store(bytes.max(before / 2), Ordering::Relaxed);
    }

    /// So many bytes the next stream is likely to have a use for: asked for as it begins, they are
    /// there in time.
    pub(crate) fn expected(&self) -> u64 {
        self.needed.load(Ordering::Relaxed)
    }

    /// The stream that reads from our DMB of that token; `None` also for one that has crossed its
    /// own DETACH.
    fn reader(&self, token: u64) -> Option<Arc<dyn LinkedStream>> {
        let stream = lock(&self.state).own.stream(token);
        stream.and_then(|stream| stream.upgrade())
    }

    pub(super) fn on_ask(self: &Arc<Self>, token: u64, ask: Ask) -> Result<(), Fault> {
        match self.reader(token) {
            Some(stream) => self.answer(token, &stream, stream.asked(ask)),
            // Nobody reads from it any more.
            None => {
                self.send(&Message::Deny { token, why: Refusal::Limit });
                Ok(())
            }
        }
    }

    fn answer(
        self: &Arc<Self>,
        token: u64,
        stream: &Arc<dyn LinkedStream>,
        answer: Answer,
    ) -> Result<(), Fault> {
        match answer {
            Answer::Grant { segment, bytes, fd } => {
                match self.send_fd(&Message::Grant { token, segment, bytes }, fd) {
                    Ok(flusher) => flusher.wake(),
                    // Not a grant again, so that this ends.
                    Err(error) => {
                        crate::trace::debug!("a link's socket does not take a segment: {error}");
                        return self.answer(token, stream, stream.not_sent(segment));
                    }
                }
            }
            Answer::Deny(why) => self.send(&Message::Deny { token, why }),
            Answer::Aside(lend) => {
                let (link, lender) = (self.clone(), Arc::downgrade(stream));
                let (works, left) = (Arc::new(lend), lender.clone());
                let work = works.clone();
                let made = self.account().lane().run(move || {
                    if let Some(stream) = lender.upgrade() {
                        link.answer_aside(token, &stream, || stream.lend(&work));
                    }
                });
                if made.is_err() {
                    crate::trace::debug!("no thread for a segment");
                    if let Some(stream) = left.upgrade() {
                        return self.answer(token, &stream, stream.not_made(&works));
                    }
                }
            }
            Answer::Later(pause) => {
                let Some(endpoint) = self.endpoint.upgrade() else { return Ok(()) };
                let link = self.clone();
                let late = move || {
                    if shielded(|| link.answer_late(token)).is_err() {
                        link.bury(Death::Failed);
                    }
                };
                endpoint.run_after(pause, late);
            }
            Answer::Fault(rule) => return Err(Fault(rule)),
        }
        Ok(())
    }

    /// Answers from where a panic concerns nobody else.
    fn answer_aside(
        self: &Arc<Self>,
        token: u64,
        stream: &Arc<dyn LinkedStream>,
        answer: impl FnOnce() -> Answer,
    ) {
        // What is a fault was one when the ASK came.
        if shielded(|| self.answer(token, stream, answer())).is_err() {
            self.bury(Death::Failed);
        }
    }

    fn answer_late(self: &Arc<Self>, token: u64) {
        // Gone meanwhile: its writer hears that by other ways.
        let Some(stream) = self.reader(token) else { return };
        if let Some(answer) = stream.ask_again() {
            // What is a fault was one when the ASK came.
            let _ = self.answer(token, &stream, answer);
        }
    }

    /// `fd` is missing when one of the two processes had none left for it.
    pub(super) fn on_grant(
        self: &Arc<Self>,
        token: u64,
        segment: u64,
        bytes: u64,
        fd: Option<OwnedFd>,
    ) -> Result<(), Fault> {
        // Unknown when it crossed our DETACH.
        let Some(stream) = self.writer(token) else { return Ok(()) };
        // Before anything is mapped: what was not asked for costs nothing.
        match stream.awaits(segment, bytes) {
            Granted::NotAsked => {
                return Err(Fault("GRANT comes without an ASK, or larger than any answer to it"));
            }
            Granted::Gone => return Ok(()),
            Granted::Taken | Granted::Declined => {}
        }
        let Some(fd) = fd else { return self.granted(token, segment, None) };
        let link = self.clone();
        let mapped = self.account().lane().run(move || {
            let done = shielded(|| link.map_grant(token, segment, bytes, &fd));
            match done {
                Ok(Ok(())) => {}
                Ok(Err(Fault(rule))) => {
                    link.blame(link.misbehaviour(rule));
                    link.bury(Death::Fault);
                }
                Err(_) => link.bury(Death::Failed),
            }
        });
        if mapped.is_err() {
            crate::trace::debug!("no thread to map a segment");
            return self.granted(token, segment, None);
        }
        Ok(())
    }

    /// Maps a segment that was asked for; may wait for what the peer does with it.
    fn map_grant(&self, token: u64, segment: u64, bytes: u64, fd: &OwnedFd) -> Result<(), Fault> {
        match DmbSegment::attach(fd, bytes, self.account()) {
            Ok(attached) => self.granted(token, segment, Some(attached)),
            Err(error) if is_the_peers(&error) => {
                crate::trace::warning!("a segment of the peer is refused: {error}");
                Err(Fault("GRANT is not acceptable"))
            }
            Err(error) => {
                crate::trace::debug!("a segment of the peer can not be mapped: {error}");
                self.granted(token, segment, None)
            }
        }
    }

    fn granted(&self, token: u64, segment: u64, attached: Option<DmbSegment>) -> Result<(), Fault> {
        let Some(stream) = self.writer(token) else { return Ok(()) };
        match stream.granted(segment, attached) {
            Granted::Taken | Granted::Gone => {}
            Granted::Declined => self.send_return(token, segment),
            Granted::NotAsked => return Err(Fault("GRANT comes without an ASK")),
        }
        Ok(())
    }

    /// The stream that writes to the peer's DMB of that token.
    fn writer(&self, token: u64) -> Option<Arc<dyn LinkedStream>> {
        let stream = lock(&self.state).received.get(&token).cloned();
        stream.and_then(|stream| stream.upgrade())
    }

    pub(super) fn on_deny(&self, token: u64, why: Refusal) {
        if let Some(stream) = self.writer(token) {
            stream.denied(why);
        }
    }

    pub(super) fn on_return(&self, token: u64, segment: u64) {
        if let Some(stream) = self.reader(token) {
            stream.returned(segment);
        }
    }
}
