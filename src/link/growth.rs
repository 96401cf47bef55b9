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
        &self,
        token: u64,
        segment: u64,
        bytes: u64,
        fd: Option<OwnedFd>,
    ) -> Result<(), Fault> {
        let stream = lock(&self.state).received.get(&token).and_then(|stream| stream.upgrade());
        // Unknown when it crossed our DETACH.
        let Some(stream) = stream else { return Ok(()) };
        // Before anything is mapped: what was not asked for costs nothing.
        match stream.awaits(segment, bytes) {
            Granted::NotAsked => {
                return Err(Fault("GRANT comes without an ASK, or larger than any answer to it"));
            }
            Granted::Gone => return Ok(()),
            Granted::Taken | Granted::Declined => {}
        }
        let attached = match fd.map(|fd| DmbSegment::attach(&fd, bytes)) {
            Some(Ok(attached)) => Some(attached),
            Some(Err(error)) if is_the_peers(&error) => {
                crate::trace::warning!("a segment of the peer is refused: {error}");
                return Err(Fault("GRANT is not acceptable"));
            }
            Some(Err(error)) => {
                crate::trace::debug!("a segment of the peer can not be mapped: {error}");
                None
            }
            None => None,
        };
        match stream.granted(segment, attached) {
            Granted::Taken | Granted::Gone => {}
            Granted::Declined => self.send_return(token, segment),
            Granted::NotAsked => return Err(Fault("GRANT comes without an ASK")),
        }
        Ok(())
    }

    pub(super) fn on_deny(&self, token: u64, why: Refusal) {
        let stream = lock(&self.state).received.get(&token).and_then(|stream| stream.upgrade());
        if let Some(stream) = stream {
            stream.denied(why);
        }
    }

    pub(super) fn on_return(&self, token: u64, segment: u64) {
        if let Some(stream) = self.reader(token) {
            stream.returned(segment);
        }
    }
}
