//! The sending direction: TCP until this end switches, then the ring.

use std::io;
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll, Waker};

use super::receive::{closed, failed, whole};
use super::{Effects, Tcp, WriteOp};
use crate::ism::arena::DmbMemory;
use crate::ism::dmb::{Flags, HandshakeWord};
use crate::ism::interrupt::Signal;
use crate::ism::ring::{Memory, Producer, Violation};
use crate::ism::sys;
use crate::link::stream::{Death, SendDmb};
use crate::transport::FallbackReason;

/// The ring that a stream writes to.
pub(crate) type Ring = Producer<DmbMemory>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Tcp,
    Ring,
}

/// CLC bytes that go out before the application's first one (policy Handshake).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Clc {
    None,
    /// S: the client may still go; then these bytes come first.
    Held(Vec<u8>),
    /// These bytes, from this index on.
    Send(Vec<u8>, usize),
}

pub(crate) struct Sender<T: Tcp> {
    /// `None` once the stream is closed or its socket was taken out.
    pub(crate) half: Option<T::Write>,
    pub(crate) path: Path,
    pub(crate) dmb: Option<SendDmb>,
    /// This end will never switch.
    pub(crate) pinned: bool,
    /// shutdown(Write) was called.
    pub(crate) shut: bool,
    /// Nothing has found the ring full since it was last found writable; see `Receiver`.
    ready: bool,
    /// The reader has closed or aborted: every later write fails.
    broken: bool,
    /// The ring could not be shrunk when it was idle; after the next write it is tried again.
    pub(crate) shrink_at_write: bool,
    pub(crate) clc: Clc,
    /// What the SYN adds to the kernel's counter; known from the moment a DMB of ours was given away.
    pub(crate) syn: Option<u64>,
    /// Wakes everyone who waits to write.
    pub(crate) waiters: Waker,
}

impl<T: Tcp> Sender<T> {
    pub(crate) fn new(half: T::Write, waiters: Waker) -> Self {
        Sender {
            half: Some(half),
            path: Path::Tcp,
            dmb: None,
            pinned: false,
            shut: false,
            ready: false,
            broken: false,
            shrink_at_write: false,
            clc: Clc::None,
            syn: None,
            waiters,
        }
    }

    pub(crate) fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        self.half.as_ref().map(T::write_fd).ok_or_else(closed)
    }

    /// One attempt to write; `look_at_peer` when something may have happened to the reader.
    pub(crate) fn poll<O: WriteOp<T>>(
        &mut self,
        op: &mut O,
        park: bool,
        look_at_peer: bool,
        death: Option<Death>,
        handshake: impl Fn() -> HandshakeWord,
        effects: &mut Effects,
    ) -> Poll<io::Result<usize>> {
        if self.path == Path::Tcp {
            if self.dmb.is_some() {
                self.try_switch(effects);
            }
            if self.path == Path::Tcp {
                // To ask whether one could write is not to write: it leaves the client free to go.
                if O::WRITES {
                    match self.send_clc(&handshake) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                let Some(half) = self.half.as_mut() else { return Poll::Ready(Err(closed())) };
                return op.tcp(half, &mut Context::from_waker(&self.waiters));
            }
        }
        let answer = self.poll_ring(op, park, look_at_peer, death, effects);
        if !O::WRITES && self.ready && answer.is_pending() {
            return Poll::Ready(Ok(1));
        }
        self.ready = match &answer {
            Poll::Ready(Ok(length)) => !(O::WRITES && op.is_short(*length)),
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        answer
    }

    fn poll_ring<O: WriteOp<T>>(
        &mut self,
        op: &mut O,
        park: bool,
        look_at_peer: bool,
        death: Option<Death>,
        effects: &mut Effects,
    ) -> Poll<io::Result<usize>> {
        if self.shut || self.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        match death {
            None => {}
            Some(Death::Peer) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Some(Death::Fault) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Some(Death::Failed) => return Poll::Ready(Err(failed())),
            Some(Death::Runtime) => return Poll::Ready(self.runtime_error()),
        }
        let Some(dmb) = self.dmb.as_mut() else { return Poll::Ready(Err(closed())) };
        match Self::ring_step(dmb, op, park, look_at_peer, &mut self.shrink_at_write, effects) {
            Ok(answer) => {
                self.broken = O::WRITES && matches!(answer, Poll::Ready(Err(_)));
                answer
            }
            Err(violation) => {
                effects.rare().violation = Some((dmb.doorbell.clone(), violation));
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
        }
    }

    #[inline]
    fn ring_step<O: WriteOp<T>>(
        dmb: &mut SendDmb,
        op: &mut O,
        park: bool,
        look_at_peer: bool,
        shrink_at_write: &mut bool,
        effects: &mut Effects,
    ) -> Result<Poll<io::Result<usize>>, Violation> {
        if look_at_peer {
            if let Some(error) = reader_gone(&dmb.producer) {
                return Ok(Poll::Ready(Err(error)));
            }
        }
        let was_grown = dmb.producer.is_grown();
        loop {
            let length = op.ring(&mut dmb.producer)?;
            if length > 0 {
                if O::WRITES {
                    if dmb.producer.wake_reader() {
                        effects.ring(&dmb.doorbell, Signal::Data);
                    }
                    if dmb.producer.is_grown() && (!was_grown || std::mem::take(shrink_at_write)) {
                        effects.rare().grown = Some(dmb.doorbell.clone());
                    }
                }
                return Ok(Poll::Ready(Ok(length)));
            }
            if let Some(error) = reader_gone(&dmb.producer) {
                return Ok(Poll::Ready(Err(error)));
            }
            if !park {
                return Ok(Poll::Pending);
            }
            if dmb.producer.wait()? {
                // Its flags are published before its bell, and we have armed: look once more.
                return Ok(match reader_gone(&dmb.producer) {
                    Some(error) => Poll::Ready(Err(error)),
                    None => Poll::Pending,
                });
            }
        }
    }

    /// The error of a socket whose runtime is gone, as tokio words it if it does.
    fn runtime_error(&mut self) -> io::Result<usize> {
        if let Some(half) = self.half.as_mut() {
            let mut cx = Context::from_waker(&self.waiters);
            if let Poll::Ready(Err(error)) = T::poll_write(half, &mut cx, &[]) {
                return Err(error);
            }
        }
        Err(io::Error::other("the runtime that drives this stream has been shut down"))
    }

    /// Switches to the ring at this very position, if this end may and the kernel tells where it is.
    pub(crate) fn try_switch(&mut self, effects: &mut Effects) {
        if self.path == Path::Ring || self.pinned || self.shut || !matches!(self.clc, Clc::None) {
            return;
        }
        let (Some(syn), Some(dmb), Some(half)) = (self.syn, self.dmb.as_ref(), self.half.as_ref()) else {
            return;
        };
        let fd = T::write_fd(half);
        let Ok(Some((look, queued))) = whole(|| sys::tx_counters(fd)) else { return };
        if !matches!(look.state, sys::TcpState::Established | sys::TcpState::CloseWait) {
            return;
        }
        let Some(position) = look.tx_position(queued, syn) else { return };
        if dmb.producer.memory().header().switch(position).is_err() {
            // The reader has pinned it. Its PINNED is answered here, whether it came already or not.
            self.pinned = true;
            effects.rare().unused = self.dmb.take();
            effects.rare().settled = Some(FallbackReason::Pinned);
            return;
        }
        self.path = Path::Ring;
        // What Nagle's algorithm or a cork hold back would be waited for until the next acknowledgement.
        if queued > 0 && sys::unsent_out(fd).is_ok_and(|unsent| unsent > 0) {
            let _ = sys::push_unsent(fd);
        }
        if dmb.producer.wake_reader() {
            effects.ring(&dmb.doorbell, Signal::Data);
        }
        effects.wake = true;
    }

    /// Sends the CLC messages that come first; `handshake` tells S whether the client went.
    pub(crate) fn send_clc(&mut self, handshake: impl Fn() -> HandshakeWord) -> Poll<io::Result<()>> {
        self.send_clc_until(usize::MAX, handshake)
    }

    /// S: obeys the word, which `handshake` has decided.
    pub(crate) fn resolve_handshake(&mut self, handshake: impl Fn() -> HandshakeWord) {
        if let Clc::Held(bytes) = &mut self.clc {
            let bytes = std::mem::take(bytes);
            self.clc = match handshake() {
                HandshakeWord::Go => Clc::Send(bytes, 0),
                _ => Clc::None,
            };
        }
    }

    /// Sends the first `limit` bytes of them.
    pub(crate) fn send_clc_until(
        &mut self,
        limit: usize,
        handshake: impl Fn() -> HandshakeWord,
    ) -> Poll<io::Result<()>> {
        self.resolve_handshake(handshake);
        loop {
            let Clc::Send(bytes, at) = &mut self.clc else { return Poll::Ready(Ok(())) };
            if *at == bytes.len() {
                self.clc = Clc::None;
                return Poll::Ready(Ok(()));
            }
            let end = bytes.len().min(limit);
            if *at >= end {
                return Poll::Ready(Ok(()));
            }
            let Some(half) = self.half.as_mut() else { return Poll::Ready(Err(closed())) };
            let mut cx = Context::from_waker(&self.waiters);
            match T::poll_write(half, &mut cx, &bytes[*at..end]) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(length)) => *at += length,
            }
        }
    }
}

/// The error of writing to a reader that has closed or aborted.
fn reader_gone(producer: &Ring) -> Option<io::Error> {
    let flags = producer.reader_flags();
    if flags.contains(Flags::ABORT) {
        Some(io::ErrorKind::ConnectionReset.into())
    } else if flags.contains(Flags::CLOSED) {
        Some(io::ErrorKind::BrokenPipe.into())
    } else {
        None
    }
}
