//! Growth of rings over the link: ASK, GRANT, DENY, RETURN (docs/protocol.md, "Growth").

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::{Fault, Link};
use crate::ism::arena::DmbSegment;
use crate::ism::ring::Refusal;
use crate::link::message::Message;
use crate::link::slots::is_the_peers;
use crate::link::stream::{Answer, Ask, Death, Granted, LinkedStream};
use crate::shield::shielded;
use crate::sync::{Arc, lock};

/// A reader that has not read for so long is one that does not read.
const STALLED_AFTER: Duration = Duration::from_millis(25);

impl Link {
    /// Our writer to the DMB of that token has found it full.
    pub(crate) fn send_ask(&self, token: u64, Ask { bytes, held }: Ask) {
        self.send(&Message::Ask { token, bytes, held });
    }

    /// Our writer is back in its first segment.
    pub(crate) fn send_return(&self, token: u64, segment: u64) {
        self.send(&Message::Return { token, segment });
    }

    fn reader(&self, token: u64) -> Result<Option<Arc<dyn LinkedStream>>, Fault> {
        let stream = lock(&self.state).own.stream(token);
        Ok(stream.ok_or(Fault("a message names a token that is not out"))?.upgrade())
    }

    pub(super) fn on_ask(self: &Arc<Self>, token: u64, ask: Ask) -> Result<(), Fault> {
        match self.reader(token)? {
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
                if self.send_fd(&Message::Grant { token, segment, bytes }, fd).is_err() {
                    stream.not_sent(segment);
                    self.send(&Message::Deny { token, why: Refusal::Memory });
                }
            }
            Answer::Deny(why) => self.send(&Message::Deny { token, why }),
            Answer::Later => {
                let Some(endpoint) = self.endpoint.upgrade() else { return Ok(()) };
                let link = self.clone();
                let late = move || {
                    if shielded(|| link.answer_late(token)).is_err() {
                        link.bury(Death::Failed);
                    }
                };
                endpoint.run_after(STALLED_AFTER, Box::new(late));
            }
            Answer::Fault(rule) => return Err(Fault(rule)),
        }
        Ok(())
    }

    fn answer_late(self: &Arc<Self>, token: u64) {
        // Gone meanwhile: its writer hears that by other ways.
        let stream = lock(&self.state).own.stream(token).and_then(|stream| stream.upgrade());
        let Some(stream) = stream else { return };
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

    pub(super) fn on_return(&self, token: u64, segment: u64) -> Result<(), Fault> {
        if let Some(stream) = self.reader(token)? {
            stream.returned(segment);
        }
        Ok(())
    }
}
