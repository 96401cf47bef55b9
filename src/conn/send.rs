//! The sending direction: TCP until this end switches, then the ring.

use std::io;
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll, Waker};

use super::op::WriteOp;
use super::prelude::Outgoing;
use super::receive::{Circumstances, closed, consistent, failed};
use super::sample::Sample;
use super::{Effects, OnPending, Tcp};
use crate::clc::Diagnosis;
use crate::error::SmcError;
use crate::ism::arena::DmbMemory;
use crate::ism::dmb::Flags;
use crate::ism::interrupt::Signal;
use crate::ism::ring::{Memory, Producer, Violation};
use crate::ism::sys;
use crate::link::lack::reason_of;
use crate::link::stream::{Death, SendDmb};
use crate::sync::{Arc, Ordering};
use crate::transport::FallbackReason;

/// The ring that a stream writes to.
pub(crate) type Ring = Producer<DmbMemory>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Tcp,
    Ring,
}

pub(crate) struct Sender<T: Tcp> {
    /// `None` once the stream is closed or its socket was taken out.
    pub(crate) socket: Option<Arc<T>>,
    pub(crate) path: Path,
    /// Apart, as the receiver's is.
    pub(crate) dmb: Option<Box<SendDmb>>,
    /// This end will never switch.
    pub(crate) pinned: bool,
    /// Why not, where that is not this application's doing: known from the moment on in which it is
    /// seen that it will not, and before the upgrade is settled for it.
    pub(crate) why: Option<FallbackReason>,
    /// shutdown(Write) was called.
    pub(crate) shut: bool,
    /// This end has reset the ring: nothing may look like a clean end behind that.
    pub(crate) reset: bool,
    /// Nothing has found the ring full since it was last found writable; see `Receiver`.
    ready: bool,
    /// A write has failed: every later one fails.
    broken: bool,
    /// The ring is over, and nothing in it was lost: TCP takes what is written from here on, and
    /// tells what becomes of it. So a write that its peer's close has crossed is lost as on TCP,
    /// and the next one fails as there.
    pub(crate) over: bool,
    /// The reader has closed, and said so.
    closed: bool,
    /// It is taken for dead.
    silent: bool,
    /// Bytes went to a peer that was taken for dead. If it lives it must not read a clean end
    /// behind them.
    pub(crate) stray: bool,
    /// The peer died before it read everything: what TCP would tell.
    pub(crate) lost: Option<io::ErrorKind>,
    pub(super) prelude: Outgoing,
    /// What is known of the number that this end proves its connection by.
    pub(super) sample: Sample,
    /// With what a writer waits who can not trust the reactor any more.
    pub(super) apart: Option<T::Apart>,
    /// The most that one write has given to TCP: what the ring has to expect.
    pub(crate) largest_write: u64,
    /// The position by our own count, as `Receiver::own`.
    pub(crate) own: Option<u64>,
    /// What the SYN adds to the kernel's counter; known from the moment a DMB of ours was given
    /// away.
    pub(crate) syn: Option<u64>,
    /// Wakes everyone who waits to write, once somebody does.
    pub(crate) waker: Option<Waker>,
}

/// For who polls the socket. Before anybody waits there is nobody to wake: who does so next polls
/// with a waker ([`OnPending::Arm`]).
pub(super) fn context(waker: &Option<Waker>) -> Context<'_> {
    Context::from_waker(waker.as_ref().unwrap_or(Waker::noop()))
}

impl<T: Tcp> Sender<T> {
    #[inline]
    pub(crate) fn new(socket: Arc<T>, began_at: Option<u64>) -> Self {
        Sender {
            socket: Some(socket),
            largest_write: 0,
            own: began_at,
            path: Path::Tcp,
            dmb: None,
            pinned: false,
            why: None,
            shut: false,
            reset: false,
            ready: false,
            broken: false,
            over: false,
            closed: false,
            silent: false,
            stray: false,
            lost: None,
            prelude: Outgoing::None,
            sample: Sample::default(),
            apart: None,
            syn: None,
            waker: None,
        }
    }

    pub(crate) fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        self.socket.as_deref().map(T::as_fd).ok_or_else(closed)
    }

    /// Given that the upgrade is settled: is there nothing left but to write to the socket?
    #[cfg(any(test, feature = "blocking"))]
    pub(crate) fn is_left_to_tcp(&self) -> bool {
        self.path == Path::Tcp && self.dmb.is_none() && matches!(self.prelude, Outgoing::None)
    }

    /// One attempt to write.
    pub(crate) fn poll<'a, O: WriteOp<T>>(
        &mut self,
        op: &mut O,
        on_pending: OnPending,
        sampled: bool,
        circumstances: impl Fn() -> Circumstances<'a>,
        effects: &mut Effects,
    ) -> Poll<io::Result<usize>> {
        if self.path == Path::Tcp {
            if self.dmb.is_some() {
                self.try_switch(effects);
            }
            if self.path == Path::Tcp {
                // To ask whether one could write is not to write: it leaves the client free to go.
                if O::WRITES && !op.is_empty() {
                    match self.send_prelude() {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                if sampled || self.sample.asked {
                    return self.poll_sampled(op, sampled, effects);
                }
                let Some(socket) = self.socket.as_deref() else { return Poll::Ready(Err(closed())) };
                let answer = op.tcp(socket, &mut context(&self.waker));
                if let (true, Poll::Ready(Ok(length))) = (O::WRITES, &answer) {
                    self.count(*length);
                }
                return answer;
            }
        }
        let answer = self.poll_ring(op, on_pending, circumstances, effects);
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

    fn poll_ring<'a, O: WriteOp<T>>(
        &mut self,
        op: &mut O,
        on_pending: OnPending,
        circumstances: impl Fn() -> Circumstances<'a>,
        effects: &mut Effects,
    ) -> Poll<io::Result<usize>> {
        if self.broken {
            let why = circumstances().fault(|| self.reader_fault());
            return Poll::Ready(Err(why.of(io::ErrorKind::BrokenPipe)));
        }
        if self.over {
            return self.poll_direct(op);
        }
        let Some(dmb) = self.dmb.as_mut() else { return Poll::Ready(Err(closed())) };
        let now = circumstances();
        let stepped = match now.death {
            None | Some(Death::Peer) if self.shut => match (reader_gone(&dmb.producer), self.lost) {
                // A reset is told also to who has no right to write any more.
                (Some(Gone::Reset(kind)), _) | (None, Some(kind)) => Ok(Err(Gone::Reset(kind))),
                _ => return Poll::Ready(Err(SmcError::ShutDown.of(io::ErrorKind::BrokenPipe))),
            },
            None => Self::ring_step(dmb, op, on_pending, effects),
            Some(Death::Peer) => Ok(Err(match (reader_gone(&dmb.producer), self.lost) {
                (None, Some(kind)) => Gone::Reset(kind),
                (None, None) => Gone::Silent,
                (Some(gone), _) => gone,
            })),
            Some(Death::Fault) => {
                return Poll::Ready(Err(now.reset(|| dmb.peer.link.fault())));
            }
            Some(Death::Failed) => return Poll::Ready(Err(now.reset(failed))),
            Some(Death::Runtime) => return Poll::Ready(self.runtime_error()),
        };
        match stepped {
            Ok(Ok(answer)) => answer,
            Ok(Err(Gone::Reset(kind))) => {
                self.broken = O::WRITES;
                // Linux tells of a reset once, whoever asks first.
                let told = kind == io::ErrorKind::ConnectionReset
                    && if O::WRITES {
                        now.reset_reported.swap(true, Ordering::Relaxed)
                    } else {
                        now.reset_reported.load(Ordering::Relaxed)
                    };
                let kind = if told { io::ErrorKind::BrokenPipe } else { kind };
                Poll::Ready(Err(now.fault(|| self.reader_fault()).of(kind)))
            }
            // A write has crossed the close, as on TCP whose answer to it would be here by now.
            Ok(Err(Gone::Closed)) if !dmb.producer.is_consumed().unwrap_or(false) => {
                self.broken = O::WRITES;
                Poll::Ready(Err(SmcError::PeerClosed.of(io::ErrorKind::BrokenPipe)))
            }
            Ok(Err(gone)) => {
                self.over = true;
                self.closed = matches!(gone, Gone::Closed);
                self.silent = matches!(gone, Gone::Silent);
                self.poll_direct(op)
            }
            Err(violation) => {
                effects.rare().violation = Some((dmb.peer.clone(), violation));
                Poll::Ready(Err(now.reset(|| dmb.peer.link.misbehaviour(violation))))
            }
        }
    }

    /// The way of what is written when the ring is over.
    fn poll_direct<O: WriteOp<T>>(&mut self, op: &mut O) -> Poll<io::Result<usize>> {
        // As for every other write.
        self.drop_late_packets();
        let Some(socket) = self.socket.as_deref() else { return Poll::Ready(Err(closed())) };
        let mut cx = context(&self.waker);
        let answer = if self.sample.asked {
            socket.poll_apart(&mut self.apart, &mut cx, |fd| op.attempt(fd, sys::send_bytes))
        } else {
            op.direct(socket, &mut cx)
        };
        match answer {
            // It has closed, but its socket was still open when our bytes came there. To who writes
            // that is one event.
            Poll::Ready(Err(error))
                if error.kind() == io::ErrorKind::ConnectionReset
                    && (self.closed
                        || matches!(self.gone(), Some(Gone::Reset(io::ErrorKind::BrokenPipe)))) =>
            {
                Poll::Ready(Err(SmcError::PeerClosed.of(io::ErrorKind::BrokenPipe)))
            }
            Poll::Ready(Ok(length)) => {
                self.stray |= O::WRITES && self.silent && length > 0;
                Poll::Ready(Ok(length))
            }
            answer => answer,
        }
    }

    /// Has the reader thrown data away, which the next write is told?
    pub(crate) fn was_reset(&self) -> bool {
        matches!(self.gone(), Some(Gone::Reset(_)))
    }

    /// Has the reader turned to TCP, for whatever comes behind what is in the ring?
    pub(crate) fn reader_reads_tcp(&self) -> bool {
        matches!(self.gone(), Some(Gone::Shut))
    }

    /// Who is to blame that nobody reads any more: the application at the other end, or its
    /// process's end.
    fn reader_fault(&self) -> SmcError {
        if self.gone().is_none() && self.lost.is_some() { SmcError::PeerGone } else { SmcError::PeerClosed }
    }

    fn gone(&self) -> Option<Gone> {
        self.dmb.as_ref().and_then(|dmb| reader_gone(&dmb.producer))
    }

    #[inline]
    fn ring_step<O: WriteOp<T>>(
        dmb: &mut SendDmb,
        op: &mut O,
        on_pending: OnPending,
        effects: &mut Effects,
    ) -> Result<Result<Poll<io::Result<usize>>, Gone>, Violation> {
        loop {
            if let Some(gone) = reader_gone(&dmb.producer) {
                return Ok(Err(gone));
            }
            let length = op.ring(&mut dmb.producer)?;
            Self::note_ask(dmb, effects);
            if length > 0 {
                if O::WRITES && dmb.producer.wake_reader() {
                    effects.interrupt(&dmb.peer, Signal::Data);
                }
                return Ok(Ok(Poll::Ready(Ok(length))));
            }
            if op.is_empty() {
                return Ok(Ok(Poll::Ready(Ok(0))));
            }
            if on_pending == OnPending::Return {
                return Ok(Ok(Poll::Pending));
            }
            let waits = dmb.producer.wait()?;
            Self::note_ask(dmb, effects);
            if waits {
                // Its flags are published before its interrupt, and we have armed: look once more.
                return Ok(reader_gone(&dmb.producer).map_or(Ok(Poll::Pending), Err));
            }
        }
    }

    /// A full ring wishes to be larger.
    #[inline]
    pub(crate) fn note_ask(dmb: &mut SendDmb, effects: &mut Effects) {
        if let Some(bytes) = dmb.producer.take_wish() {
            effects.rare().ask = Some((dmb.peer.clone(), dmb.token, bytes));
        }
    }

    /// The error of a socket whose runtime is gone, as tokio words it if it does.
    fn runtime_error(&mut self) -> io::Result<usize> {
        if let Some(socket) = self.socket.as_deref() {
            let mut cx = context(&self.waker);
            if let Poll::Ready(Err(error)) = socket.poll_write(&mut cx, &[]) {
                return Err(error);
            }
        }
        Err(SmcError::RuntimeGone.of(io::ErrorKind::Other))
    }

    pub(super) fn count(&mut self, length: usize) {
        self.largest_write = self.largest_write.max(length as u64);
        if let Some(own) = &mut self.own {
            *own += length as u64;
        }
    }

    fn stays(&mut self, reason: FallbackReason, effects: &mut Effects) {
        self.why = Some(reason);
        effects.rare().settled = Some(reason);
    }

    /// Switches to the ring at this very position, if this end may and the kernel tells where it
    /// is. When the kernel has another number of bytes than passed through here (urgent data,
    /// `SockRef`, splice(2), a BPF program that redirects or changes them), nobody knows what the
    /// reader gets: the direction stays on TCP.
    pub(crate) fn try_switch(&mut self, effects: &mut Effects) {
        if self.path == Path::Ring || self.pinned || self.shut || !self.is_past_prelude() {
            return;
        }
        let (Some(syn), Some(dmb), Some(socket)) = (self.syn, self.dmb.as_ref(), self.socket.as_deref())
        else {
            return;
        };
        let fd = socket.as_fd();
        let (look, queued) = match consistent(|| sys::tx_counters(fd)) {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(error) => {
                // What a sandbox denies will never be known.
                if reason_of(&error, FallbackReason::Positions) == FallbackReason::Denied {
                    self.pinned = true;
                    dmb.producer.memory().header().pin();
                    effects.interrupt(&dmb.peer, Signal::Data);
                    effects.rare().unused = self.dmb.take();
                    self.stays(FallbackReason::Denied, effects);
                }
                return;
            }
        };
        if !matches!(look.state, sys::TcpState::Established | sys::TcpState::CloseWait) {
            return;
        }
        let Some(position) = look.tx_position(queued, syn) else { return };
        if self.own != Some(position) {
            self.pinned = true;
            dmb.producer.memory().header().pin();
            effects.interrupt(&dmb.peer, Signal::Data);
            effects.rare().unused = self.dmb.take();
            self.stays(FallbackReason::Positions, effects);
            return;
        }
        if dmb.producer.memory().header().switch(position).is_err() {
            // The reader has pinned it. Its PINNED is answered here, whether it came already or
            // not.
            self.pinned = true;
            effects.rare().unused = self.dmb.take();
            self.stays(FallbackReason::Declined(Diagnosis::PEERDECL), effects);
            return;
        }
        self.path = Path::Ring;
        effects.socket_check = true;
        // What Nagle's algorithm or a cork hold back would be waited for until the next
        // acknowledgement.
        if queued > 0 && sys::unsent_out(fd).is_ok_and(|unsent| unsent > 0) {
            let _ = sys::push_unsent(fd);
        }
        if dmb.producer.wake_reader() {
            effects.interrupt(&dmb.peer, Signal::Data);
        }
        effects.wake = true;
    }
}

/// How the reader went.
#[derive(Clone, Copy)]
enum Gone {
    /// With everything read.
    Closed,
    /// Its descriptor was shut down; what was written it still reads.
    Shut,
    /// Its process died with everything read; TCP tells the rest.
    Silent,
    /// With bytes unread: what TCP tells then.
    Reset(io::ErrorKind),
}

fn reader_gone(producer: &Ring) -> Option<Gone> {
    let flags = producer.reader_flags();
    if flags.contains(Flags::ABORT) {
        // A reset behind the FIN of its sender is a broken pipe, to Linux.
        let ended = flags.contains(Flags::DONE_WRITING);
        let kind = if ended { io::ErrorKind::BrokenPipe } else { io::ErrorKind::ConnectionReset };
        Some(Gone::Reset(kind))
    } else if flags.contains(Flags::CLOSED) {
        Some(Gone::Closed)
    } else if flags.contains(Flags::SHUT) {
        Some(Gone::Shut)
    } else {
        None
    }
}
