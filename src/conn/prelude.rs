//! The CLC prelude of policy Handshake: Proposal, Accept and Confirm over TCP, before the
//! application's first byte (docs/protocol.md, "Policy Handshake").
//!
//! A word in the server's DMB makes certain to both ends which bytes are CLC. The server's end
//! holds both directions back while it says HELD: the client may turn it to GO, and whoever wants
//! to use the connection at the server turns it to OFF. That is decided once, and whichever
//! direction looks next obeys it.

use std::io;
use std::task::{Context, Poll};

use super::receive::{Receiver, closed, consistent};
use super::send::{Sender, context};
use super::{Connection, Effects, Role, Tcp};
use crate::config::UpgradePolicy;
use crate::ism::arena::DmbMemory;
use crate::ism::dmb::HandshakeWord;
use crate::ism::ring::Memory;
use crate::ism::sys;
use crate::link::stream::Prelude;
use crate::sync::lock;

/// CLC bytes at the front of the TCP stream that is read.
#[derive(Debug)]
pub(super) enum Incoming {
    None,
    /// S: the client may still go; then so many bytes are CLC.
    Held {
        word: DmbMemory,
        bytes: usize,
    },
    /// So many bytes are CLC.
    Skip(usize),
}

/// CLC bytes that go out before the application's first one.
#[derive(Debug)]
pub(super) enum Outgoing {
    None,
    /// S: the client may still go; then the Accept comes first.
    Held {
        word: DmbMemory,
        accept: Vec<u8>,
    },
    /// These bytes, of which so many were sent.
    Send {
        bytes: Vec<u8>,
        sent: usize,
    },
}

/// What is next on TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Front {
    /// The application's bytes, or the end that belongs to them.
    Data,
    /// The stream ended before the CLC did, or failed; [`Receiver::saved_error`] has the error.
    End,
}

/// S: from now on the client can not go any more. Did it?
fn went(word: &DmbMemory) -> bool {
    let header = word.header();
    let _ = header.move_handshake(HandshakeWord::Held, HandshakeWord::Off);
    header.handshake() == HandshakeWord::Go
}

impl<T: Tcp> Receiver<T> {
    /// Takes the CLC messages off the front of the stream.
    #[inline]
    pub(super) fn strip_prelude(&mut self) -> Poll<io::Result<Front>> {
        match self.prelude {
            Incoming::None => Poll::Ready(Ok(Front::Data)),
            _ => self.strip_some(),
        }
    }

    fn strip_some(&mut self) -> Poll<io::Result<Front>> {
        loop {
            match &self.prelude {
                Incoming::None => return Poll::Ready(Ok(Front::Data)),
                Incoming::Held { word, .. } => {
                    let undecided = word.header().handshake() == HandshakeWord::Held;
                    if undecided && self.look_at_tcp().is_pending() {
                        return Poll::Pending;
                    }
                    // GO comes before the client's first CLC byte, so what is there without it is
                    // data.
                    self.resolve_prelude();
                }
                Incoming::Skip(0) => self.prelude = Incoming::None,
                Incoming::Skip(left) => {
                    let left = *left;
                    let mut scratch = [0; 512];
                    let wanted = left.min(scratch.len());
                    let Some(socket) = self.socket.as_deref() else { return Poll::Ready(Err(closed())) };
                    let mut cx = Context::from_waker(&self.waker);
                    match socket.poll_read(&mut cx, &mut scratch[..wanted]) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Err(error)) => {
                            // Also who only waits for the CLC to pass may be the one that the
                            // socket tells.
                            return Poll::Ready(self.save_error(error).map(|()| Front::End));
                        }
                        Poll::Ready(Ok(0)) => return Poll::Ready(Ok(Front::End)),
                        Poll::Ready(Ok(length)) => {
                            self.prelude = Incoming::Skip(left - length);
                            self.count(length as u64);
                        }
                    }
                }
            }
        }
    }

    /// Bytes of CLC that are still on their way, once those were taken that have come.
    pub(super) fn prelude_left(&mut self) -> usize {
        match (self.strip_prelude(), &self.prelude) {
            (Poll::Pending, Incoming::Skip(left)) => *left,
            _ => 0,
        }
    }

    /// S: decides now which bytes are CLC.
    pub(super) fn resolve_prelude(&mut self) {
        if let Incoming::Held { word, bytes } = &self.prelude {
            self.prelude = if went(word) { Incoming::Skip(*bytes) } else { Incoming::None };
        }
    }
}

impl<T: Tcp> Sender<T> {
    /// May the application's bytes be next?
    pub(super) fn is_past_prelude(&self) -> bool {
        matches!(self.prelude, Outgoing::None)
    }

    /// Sends the CLC messages that come first. At the server the application's turn ends the
    /// client's chance to go.
    #[inline]
    pub(super) fn send_prelude(&mut self) -> Poll<io::Result<()>> {
        match self.prelude {
            Outgoing::None => Poll::Ready(Ok(())),
            _ => self.send_prelude_until(usize::MAX),
        }
    }

    /// Sends the first `limit` bytes of them.
    fn send_prelude_until(&mut self, limit: usize) -> Poll<io::Result<()>> {
        self.resolve_prelude();
        loop {
            let Outgoing::Send { bytes, sent } = &mut self.prelude else { return Poll::Ready(Ok(())) };
            if *sent == bytes.len() {
                self.prelude = Outgoing::None;
                return Poll::Ready(Ok(()));
            }
            let end = bytes.len().min(limit);
            if *sent >= end {
                return Poll::Ready(Ok(()));
            }
            let Some(socket) = self.socket.as_deref() else { return Poll::Ready(Err(closed())) };
            let mut cx = context(&self.waker);
            match socket.poll_write(&mut cx, &bytes[*sent..end]) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(length)) => {
                    *sent += length;
                    self.count(length);
                }
            }
        }
    }

    /// S: decides now whether the Accept goes over TCP.
    pub(super) fn resolve_prelude(&mut self) {
        if let Outgoing::Held { word, accept } = &mut self.prelude {
            let bytes = std::mem::take(accept);
            self.prelude = if went(word) { Outgoing::Send { bytes, sent: 0 } } else { Outgoing::None };
        }
    }
}

impl<T: Tcp> Connection<T> {
    /// Has connect asked for it?
    pub(super) fn has_prelude(&self) -> bool {
        self.role == Role::Client && self.config.upgrade_policy == UpgradePolicy::Handshake
    }

    /// S: lets the client go, whose offer asks for that; both directions are at position 0.
    pub(super) fn hold_prelude(rx: &mut Receiver<T>, tx: &mut Sender<T>, word: &DmbMemory, accept: &[u8]) {
        let unread = rx.fd().and_then(sys::queued_in).unwrap_or(1);
        if unread > 0 || word.header().move_handshake(HandshakeWord::None, HandshakeWord::Held).is_err() {
            return;
        }
        // The Confirm mirrors the Accept, field by field.
        let bytes = crate::clc::PROPOSAL_BYTES + accept.len();
        rx.prelude = Incoming::Held { word: word.clone(), bytes };
        tx.prelude = Outgoing::Held { word: word.clone(), accept: accept.to_vec() };
    }

    /// C: goes, if nothing has passed either way and the server's end lets it.
    pub(super) fn begin_prelude(&self, word: &DmbMemory, messages: Prelude) {
        let (mut rx, mut tx) = (lock(&self.rx), lock(&self.tx));
        if rx.pinned || tx.pinned || tx.shut || (rx.own, tx.own) != (Some(0), Some(0)) {
            return;
        }
        let untouched = tx.syn.is_some_and(|syn| {
            let Ok(fd) = tx.fd() else { return false };
            let sent = consistent(|| sys::tx_counters(fd)).ok().flatten();
            sent.and_then(|(look, queued)| look.tx_position(queued, syn)) == Some(0)
        });
        let unread = rx.fd().and_then(sys::queued_in).unwrap_or(1);
        if !untouched || unread != 0 || !matches!(rx.look(), Ok(Some(0))) {
            return;
        }
        if word.header().move_handshake(HandshakeWord::Held, HandshakeWord::Go).is_err() {
            return;
        }
        rx.prelude = Incoming::Skip(messages.accept.len());
        let proposal = messages.proposal.len();
        let mut bytes = messages.proposal;
        bytes.extend(messages.confirm);
        tx.prelude = Outgoing::Send { bytes, sent: 0 };
        // The Confirm waits for the Accept, unless the application is faster.
        let _ = tx.send_prelude_until(proposal);
    }

    /// S: the client went, or never will.
    pub(super) fn end_prelude(&self) {
        let (mut rx, mut tx) = (lock(&self.rx), lock(&self.tx));
        rx.resolve_prelude();
        // At once: the client waits for the Accept. What does not fit goes before the application's
        // first byte.
        let _ = tx.send_prelude();
    }

    /// C: takes the Accept off the stream, then sends the Confirm and switches.
    pub(super) fn drive_prelude(&self) {
        if !self.has_prelude() {
            return;
        }
        let mut effects = Effects::default();
        {
            let mut rx = lock(&self.rx);
            if rx.socket.is_none() || !rx.strip_prelude().is_ready() {
                return;
            }
            let mut tx = lock(&self.tx);
            if tx.socket.is_some() && tx.send_prelude().is_ready() {
                tx.try_switch(&mut effects);
            }
        }
        let switched = std::mem::take(&mut effects.wake);
        self.carry_out(effects);
        if switched {
            self.waiters.writers().wake_all();
        }
    }
}
