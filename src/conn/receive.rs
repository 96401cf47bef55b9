//! The receiving direction: TCP up to the switch position, then the ring.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};

use super::growth::Stall;
use super::op::ReadOp;
use super::prelude::{Front, Incoming};
use super::{Effects, OnPending, Tcp};
use crate::clc::Diagnosis;
use crate::error::SmcError;
use crate::ism::arena::DmbMemory;
use crate::ism::dmb::{Direction, Flags};
use crate::ism::interrupt::Signal;
use crate::ism::ring::{Consumer, Memory, Violation};
use crate::ism::sys;
use crate::link::stream::{Ask, Death, ReceiveDmb};
use crate::sync::{Arc, AtomicBool, Ordering};
use crate::transport::FallbackReason;

/// The ring that a stream reads from.
pub(crate) type Ring = Consumer<DmbMemory>;

/// Where the next byte comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Tcp,
    /// The sender has switched at `until`; TCP has been read up to `at`.
    Draining {
        at: u64,
        until: u64,
    },
    Ring,
}

/// What tells a reader that waits of the next byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The reactor alone, which has been asked: there is no ring yet.
    Tcp,
    /// A ring, too, which has to be armed.
    Ring,
}

/// How far a stream has been read, on both transports: whatever is read changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Mark {
    pub(crate) tcp: u64,
    pub(crate) ring: u64,
}

pub(crate) struct Receiver<T: Tcp> {
    /// `None` once the stream is closed or its socket was taken out.
    pub(crate) socket: Option<Arc<T>>,
    pub(crate) path: Path,
    /// Apart: a stream that stays TCP has none, and each is made and ended with what is in here.
    pub(crate) dmb: Option<Box<ReceiveDmb>>,
    /// The word will never be, or is not any more, obeyed.
    pub(crate) pinned: bool,
    /// It was the peer who pinned it.
    pub(crate) declined: bool,
    pub(super) prelude: Incoming,
    /// The position by our own count: what the stream began with, and every byte that passed
    /// through it. `None` when the beginning is not known.
    pub(crate) own: Option<u64>,
    /// Bytes of TCP that have passed through the stream, wherever it began: before the ring, and
    /// behind it.
    passed: u64,
    /// The latest position that the kernel told, and bytes read since.
    last_position: Option<u64>,
    /// Nothing has found the ring empty since it was last found readable: as tokio's readiness,
    /// which lasts until a call says WouldBlock.
    ready: bool,
    /// An error (errno) that a look of ours took off the socket, which tells it once: the next
    /// read's.
    saved: Option<i32>,
    /// A request for more than the window that is not answered yet.
    pub(crate) stall: Option<Stall>,
    /// A segment is being made for the writer, who waits for the answer.
    pub(crate) makes: bool,
    /// What the latest grant answers, and how often something was lacking for it.
    pub(crate) granted: Option<(Ask, u32)>,
    /// The application was found not to read any further than this position of the ring.
    pub(crate) stalled_at: Option<u64>,
    /// Something ended TCP under the ring: once that is empty, TCP tells how.
    pub(crate) over: bool,
    /// Wakes everyone who waits to read.
    pub(crate) waker: Waker,
}

/// What else a reader has to know of its connection.
pub(crate) struct Circumstances<'a> {
    pub(crate) death: Option<Death>,
    /// The sending direction is in the ring and its peer died without reading all of it.
    pub(crate) peer_left_unread: bool,
    /// The reset of a connection was reported, to a reader or a writer; from then on there is only
    /// the end, as with TCP.
    pub(crate) reset_reported: &'a AtomicBool,
    pub(crate) fault: &'a OnceLock<Box<SmcError>>,
}

impl Circumstances<'_> {
    /// Whose fault it is that the stream was reset: what was found first, whatever comes later.
    #[cold]
    pub(crate) fn fault(&self, found: impl FnOnce() -> SmcError) -> SmcError {
        SmcError::clone(self.fault.get_or_init(|| Box::new(found())))
    }

    /// The same as an error of the stream.
    #[cold]
    pub(crate) fn reset(&self, found: impl FnOnce() -> SmcError) -> io::Error {
        self.fault(found).of(io::ErrorKind::ConnectionReset)
    }
}

impl<T: Tcp> Receiver<T> {
    #[inline]
    pub(crate) fn new(socket: Arc<T>, began_at: Option<u64>, waker: Waker) -> Self {
        Receiver {
            socket: Some(socket),
            own: began_at,
            path: Path::Tcp,
            dmb: None,
            pinned: false,
            declined: false,
            prelude: Incoming::None,
            passed: 0,
            last_position: None,
            ready: false,
            saved: None,
            stall: None,
            makes: false,
            granted: None,
            stalled_at: None,
            over: false,
            waker,
        }
    }

    pub(crate) fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        self.socket.as_deref().map(T::as_fd).ok_or_else(closed)
    }

    /// Given that the upgrade is settled: is there nothing left but to read from the socket?
    #[cfg(any(test, feature = "blocking"))]
    pub(crate) fn is_left_to_tcp(&self) -> bool {
        self.path == Path::Tcp
            && self.dmb.is_none()
            && matches!(self.prelude, Incoming::None)
            && self.saved.is_none()
    }

    /// One attempt to read.
    pub(crate) fn poll<'a, O: ReadOp<T>>(
        &mut self,
        op: &mut O,
        on_pending: OnPending,
        circumstances: impl Fn() -> Circumstances<'a>,
        effects: &mut Effects,
    ) -> Poll<io::Result<usize>> {
        op.begin(|| self.mark())?;
        loop {
            match self.path {
                Path::Ring => {
                    let answer = self.poll_ring(op, on_pending, circumstances, effects);
                    return self.remember(op, answer);
                }
                Path::Draining { at, until } if at == until => {
                    // A byte behind the switch position is none of this connection's, unless it is
                    // an urgent one: that never was in the stream.
                    let fd = self.fd()?;
                    let stray = sys::queued_in(fd).is_ok_and(|unread| unread > 0);
                    if stray && !sys::has_urgent(fd).unwrap_or(false) {
                        return self.broken(&circumstances(), effects);
                    }
                    self.path = Path::Ring;
                }
                Path::Draining { at, until } if at > until => return self.broken(&circumstances(), effects),
                Path::Draining { .. } | Path::Tcp => {
                    if let Some(answer) = self.poll_tcp(op, on_pending, &circumstances, effects) {
                        return answer;
                    }
                }
            }
        }
    }

    fn mark(&self) -> Mark {
        Mark { tcp: self.passed, ring: self.dmb.as_ref().map_or(0, |dmb| dmb.consumer.position()) }
    }

    /// Keeps readiness as tokio does: who only asks hears yes until someone has tried in vain.
    #[inline]
    fn remember<O: ReadOp<T>>(&mut self, op: &O, answer: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let asks = !O::CONSUMES && !O::PEEKS;
        if asks && self.ready && answer.is_pending() {
            return Poll::Ready(Ok(1));
        }
        self.ready = answer.is_ready() && (asks || !op.is_short());
        answer
    }

    /// Has the sender said in the ring that it ends?
    pub(crate) fn sender_is_done(&self) -> bool {
        self.path != Path::Tcp
            && (self.over || self.dmb.as_ref().is_some_and(|dmb| !dmb.consumer.writer_flags().is_empty()))
    }

    fn broken(&mut self, now: &Circumstances<'_>, effects: &mut Effects) -> Poll<io::Result<usize>> {
        effects.reset = true;
        Poll::Ready(Err(now.reset(|| SmcError::OutOfStep)))
    }

    pub(crate) fn source(&self) -> Source {
        if self.path == Path::Tcp && self.dmb.is_none() { Source::Tcp } else { Source::Ring }
    }

    /// `None`: the path has changed, look again.
    fn poll_tcp<'a, O: ReadOp<T>>(
        &mut self,
        op: &mut O,
        on_pending: OnPending,
        circumstances: &impl Fn() -> Circumstances<'a>,
        effects: &mut Effects,
    ) -> Option<Poll<io::Result<usize>>> {
        if let Err(error) = self.latch(effects) {
            return Some(Poll::Ready(Err(error)));
        }
        if matches!(self.path, Path::Draining { at, until } if at >= until) {
            return None;
        }
        match self.strip_prelude() {
            Poll::Ready(Ok(Front::Data)) => {}
            Poll::Ready(Ok(Front::End)) => {
                let end = self.saved_error::<O>().map_or(Ok(0), Err);
                return self.confirm_end(Poll::Ready(end), effects);
            }
            Poll::Ready(Err(error)) => return self.confirm_end(Poll::Ready(Err(error)), effects),
            Poll::Pending => return self.confirm_pending(on_pending),
        }
        if let Some(error) = self.saved_error::<O>() {
            return self.confirm_end(Poll::Ready(Err(error)), effects);
        }
        let Some(socket) = self.socket.as_deref() else { return Some(Poll::Ready(Err(closed()))) };
        match op.tcp(socket, &mut Context::from_waker(&self.waker)) {
            Poll::Ready(Ok(length)) if length > 0 => {
                if O::CONSUMES {
                    self.count(length as u64);
                }
                let behind = if O::PEEKS { self.peek_behind(op, length) } else { 0 };
                Some(Poll::Ready(Ok(length + behind)))
            }
            Poll::Ready(Ok(_)) if circumstances().peer_left_unread => {
                // The peer died with bytes of ours unread, which TCP would have told by a reset.
                let reset = circumstances().reset(|| SmcError::PeerGone);
                self.confirm_end(Poll::Ready(Err(reset)), effects)
            }
            Poll::Ready(end) => self.confirm_end(Poll::Ready(end), effects),
            Poll::Pending => self.confirm_pending(on_pending),
        }
    }

    /// An error that the socket will not tell again. Who only asks for readiness leaves it to the
    /// next read.
    fn saved_error<O: ReadOp<T>>(&mut self) -> Option<io::Error> {
        let code = if O::CONSUMES || O::PEEKS { self.saved.take() } else { self.saved };
        code.map(io::Error::from_raw_os_error)
    }

    /// Keeps an error that a look of ours took off the socket.
    ///
    /// # Errors
    ///
    /// That one, if it is not the kernel's: such a one is told again and again.
    pub(super) fn save_error(&mut self, error: io::Error) -> io::Result<()> {
        self.saved = error.raw_os_error();
        if self.saved.is_some() { Ok(()) } else { Err(error) }
    }

    /// Waits until TCP has a byte or its end (0). An error of the socket counts as the end;
    /// [`Receiver::saved_error`] has it.
    pub(super) fn look_at_tcp(&mut self) -> Poll<io::Result<usize>> {
        if self.saved.is_some() {
            return Poll::Ready(Ok(0));
        }
        let Some(socket) = self.socket.as_deref() else { return Poll::Ready(Err(closed())) };
        match socket.poll_peek(&mut Context::from_waker(&self.waker)) {
            Poll::Ready(Err(error)) => Poll::Ready(self.save_error(error).map(|()| 0)),
            looked => looked,
        }
    }

    /// What a peek sees behind TCP's last byte: who waits for more by peeking must not wait for
    /// ever.
    fn peek_behind<O: ReadOp<T>>(&mut self, op: &mut O, length: usize) -> usize {
        match (self.path, self.dmb.as_mut()) {
            (Path::Draining { at, until }, Some(dmb)) if at + length as u64 == until => {
                // A violation is the business of the read that gets there.
                op.ring(&mut dmb.consumer).unwrap_or(0)
            }
            _ => 0,
        }
    }

    pub(super) fn count(&mut self, length: u64) {
        self.passed += length;
        if let Path::Draining { at, .. } = &mut self.path {
            *at += length;
        }
        for position in [&mut self.last_position, &mut self.own].into_iter().flatten() {
            *position += length;
        }
    }

    /// Has TCP nothing more before X, though our own count is short of it? So somebody else has
    /// taken bytes, past this stream. Asked only when a read has found nothing: as long as TCP has
    /// bytes, our own count decides.
    pub(crate) fn is_drained(&mut self, until: u64) -> bool {
        // Right before an urgent byte the kernel has nothing to read either, and does not count
        // what lies behind it.
        let at_mark = |this: &Self| this.fd().and_then(sys::is_at_mark).unwrap_or(false);
        self.own == Some(until) || (matches!(self.look(), Ok(Some(at)) if at >= until) && !at_mark(self))
    }

    /// TCP says that the stream has ended: true only if the word agrees. Whoever switched before he
    /// closed has left the rest in the ring.
    fn confirm_end(
        &mut self,
        end: Poll<io::Result<usize>>,
        effects: &mut Effects,
    ) -> Option<Poll<io::Result<usize>>> {
        if let Err(error) = self.latch(effects) {
            return Some(Poll::Ready(Err(error)));
        }
        let Path::Draining { until, .. } = self.path else { return Some(end) };
        if !self.is_drained(until) {
            // Short of the switch: the descriptor was shut down, perhaps unheard.
            effects.socket_check = true;
            return Some(end);
        }
        self.path = Path::Draining { at: until, until };
        None
    }

    /// TCP has nothing now. A word that changed, or bytes that someone else read, change the
    /// answer.
    fn confirm_pending(&mut self, on_pending: OnPending) -> Option<Poll<io::Result<usize>>> {
        match self.path {
            Path::Draining { until, .. } => {
                if self.is_drained(until) {
                    self.path = Path::Draining { at: until, until };
                    return None;
                }
                Some(Poll::Pending)
            }
            _ => {
                if on_pending == OnPending::Return || self.pinned {
                    return Some(Poll::Pending);
                }
                let Some(dmb) = self.dmb.as_ref() else { return Some(Poll::Pending) };
                // The sender's switch rings only who has armed.
                dmb.consumer.arm();
                match dmb.consumer.memory().header().direction() {
                    Direction::Switched(_) => None,
                    Direction::Open | Direction::Pinned => Some(Poll::Pending),
                }
            }
        }
    }

    /// Obeys the word of this direction, once it has its final value.
    pub(crate) fn latch(&mut self, effects: &mut Effects) -> io::Result<()> {
        if self.path != Path::Tcp || self.pinned {
            return Ok(());
        }
        let Some(dmb) = self.dmb.as_ref() else { return Ok(()) };
        match dmb.consumer.memory().header().direction() {
            Direction::Open => Ok(()),
            Direction::Pinned => {
                self.be_declined(effects);
                Ok(())
            }
            Direction::Switched(until) => self.drain_until(until),
        }
    }

    /// The peer has pinned the word.
    #[cold]
    #[inline(never)]
    fn be_declined(&mut self, effects: &mut Effects) {
        (self.pinned, self.declined) = (true, true);
        effects.rare().settled = Some(FallbackReason::Declined(Diagnosis::PEERDECL));
    }

    /// The sender has switched there. How far this end has read says our own count: the kernel also
    /// counts as taken what lies before an urgent byte, or in a program's hands (BPF), and the
    /// application has yet to get it.
    pub(crate) fn drain_until(&mut self, until: u64) -> io::Result<()> {
        // For the case that the connection is closed before all is read: the kernel does not tell
        // any more then.
        let _ = self.look();
        let at = self.own.ok_or_else(|| SmcError::OutOfStep.of(io::ErrorKind::Other))?;
        self.path = Path::Draining { at, until };
        Ok(())
    }

    /// Bytes taken from TCP so far, from the kernel; after CLOSE from the last valid look and what
    /// was read since.
    pub(crate) fn look(&mut self) -> io::Result<Option<u64>> {
        let fd = self.fd()?;
        let position =
            consistent(|| sys::rx_counters(fd))?.and_then(|(look, queued)| look.rx_position(queued));
        if position.is_some() {
            self.last_position = position;
        }
        Ok(self.last_position)
    }

    /// Takes an urgent byte off the socket, which no read gets to any more.
    pub(crate) fn skip_urgent(&mut self) {
        if let (true, Some(socket)) =
            (self.fd().and_then(sys::is_at_mark).unwrap_or(false), self.socket.as_deref())
        {
            // In line it is read, out of line it is passed over.
            let _ = socket.poll_read(&mut Context::from_waker(&self.waker), &mut [0]);
        }
    }

    fn poll_ring<'a, O: ReadOp<T>>(
        &mut self,
        op: &mut O,
        on_pending: OnPending,
        circumstances: impl Fn() -> Circumstances<'a>,
        effects: &mut Effects,
    ) -> Poll<io::Result<usize>> {
        let Some(dmb) = self.dmb.as_mut() else { return Poll::Ready(Err(closed())) };
        loop {
            match Self::ring_step(dmb, op, on_pending, self.over, &circumstances) {
                Ok(Step::Read(length)) => {
                    if O::CONSUMES && dmb.consumer.wake_writer() {
                        effects.interrupt(&dmb.peer, Signal::Space);
                    }
                    return Poll::Ready(Ok(length));
                }
                Ok(Step::Again) => {}
                Ok(Step::Wait) => return Poll::Pending,
                Ok(Step::End) => return Poll::Ready(Ok(0)),
                Ok(Step::Reset) => {
                    let now = circumstances();
                    let why = now.fault(|| match now.death {
                        Some(Death::Fault) => dmb.peer.link.fault(),
                        _ => SmcError::PeerClosed,
                    });
                    return Poll::Ready(report_reset::<T, O>(now.reset_reported, why));
                }
                Ok(Step::Tcp) => {
                    if let Some(error) = self.saved_error::<O>() {
                        return Poll::Ready(Err(error));
                    }
                    let Some(socket) = self.socket.as_deref() else { return Poll::Ready(Err(closed())) };
                    let answer = op.tcp(socket, &mut Context::from_waker(&self.waker));
                    if let (true, Poll::Ready(Ok(length))) = (O::CONSUMES, &answer) {
                        self.passed += *length as u64;
                    }
                    return answer;
                }
                Ok(Step::Failed) => return Poll::Ready(Err(circumstances().reset(failed))),
                Ok(Step::AskTcp { peer_died, left_unread }) => {
                    let looked = self.look_at_tcp();
                    return match (looked, self.saved_error::<O>()) {
                        (Poll::Pending, _) => Poll::Pending,
                        (_, Some(error)) if !peer_died => Poll::Ready(Err(error)),
                        (Poll::Ready(Err(error)), None) if !peer_died => Poll::Ready(Err(error)),
                        (Poll::Ready(Ok(0)), None) if peer_died && !left_unread => Poll::Ready(Ok(0)),
                        _ => {
                            let now = circumstances();
                            let why = now
                                .fault(|| if peer_died { SmcError::PeerGone } else { SmcError::RuntimeGone });
                            Poll::Ready(report_reset::<T, O>(now.reset_reported, why))
                        }
                    };
                }
                Err(violation) => {
                    effects.rare().violation = Some((dmb.peer.clone(), violation));
                    return Poll::Ready(Err(circumstances().reset(|| dmb.peer.link.misbehaviour(violation))));
                }
            }
        }
    }

    #[inline]
    fn ring_step<'a, O: ReadOp<T>>(
        dmb: &mut ReceiveDmb,
        op: &mut O,
        on_pending: OnPending,
        over: bool,
        circumstances: &impl Fn() -> Circumstances<'a>,
    ) -> Result<Step, Violation> {
        let length = op.ring(&mut dmb.consumer)?;
        if length > 0 {
            return Ok(Step::Read(length));
        }
        let flags = dmb.consumer.writer_flags();
        // A reset behind the sender's end is not seen by who reads; the socket, which never saw the
        // end, would tell it.
        let ended = flags.contains(Flags::DONE_WRITING) && flags.contains(Flags::ABORT);
        if over && !ended {
            return Ok(Step::Tcp);
        }
        if flags != Flags::NONE {
            // Written before the flag, seen after it.
            if dmb.consumer.is_readable()? {
                return Ok(Step::Again);
            }
            if circumstances().death == Some(Death::Failed) && !flags.contains(Flags::DONE_WRITING) {
                // The peer closed because we have reset it: no end that an application may take for
                // the sender's.
                return Ok(Step::Failed);
            }
            // As with TCP, a reset behind the sender's FIN is not seen by who reads.
            let reset = flags.contains(Flags::ABORT) && !flags.contains(Flags::DONE_WRITING);
            return Ok(if reset { Step::Reset } else { Step::End });
        }
        let now = circumstances();
        match now.death {
            None if on_pending == OnPending::Return => Ok(Step::Wait),
            None => {
                if !dmb.consumer.wait()? {
                    return Ok(Step::Again);
                }
                // After arming: a death in between has already called its wake-ups.
                Ok(if circumstances().death.is_some() { Step::Again } else { Step::Wait })
            }
            Some(death) => {
                if dmb.consumer.is_readable()? || dmb.consumer.writer_flags() != Flags::NONE {
                    return Ok(Step::Again);
                }
                Ok(match death {
                    Death::Fault => Step::Reset,
                    Death::Failed => Step::Failed,
                    Death::Peer => Step::AskTcp { peer_died: true, left_unread: now.peer_left_unread },
                    Death::Runtime => Step::AskTcp { peer_died: false, left_unread: false },
                })
            }
        }
    }
}

enum Step {
    Read(usize),
    Again,
    Wait,
    End,
    Reset,
    /// TCP has its own end to tell.
    Tcp,
    /// A task of ours has ended the link, and the connection with it.
    Failed,
    /// The link is gone: TCP tells how the connection ends.
    AskTcp {
        peer_died: bool,
        left_unread: bool,
    },
}

/// Linux tells of a reset once, whoever asks first; then there is the end. Who only asks for
/// readiness takes nothing.
#[cold]
fn report_reset<T: Tcp, O: ReadOp<T>>(told: &AtomicBool, why: SmcError) -> io::Result<usize> {
    let takes = O::CONSUMES || O::PEEKS;
    if if takes { told.swap(true, Ordering::Relaxed) } else { told.load(Ordering::Relaxed) } {
        return Ok(0);
    }
    Err(why.of(io::ErrorKind::ConnectionReset))
}

/// Looks that may be torn before a position counts as unknown; each costs three system calls.
const LOOKS: usize = 64;

/// Repeats a look until it is not torn.
pub(crate) fn consistent<L>(mut look: impl FnMut() -> io::Result<Option<L>>) -> io::Result<Option<L>> {
    for _ in 0..LOOKS {
        if let Some(look) = look()? {
            return Ok(Some(look));
        }
    }
    Ok(None)
}

/// Why a failed task of ours has reset the stream.
pub(crate) fn failed() -> SmcError {
    SmcError::OwnFailure("a task that serves shared memory has failed".into())
}

/// The answer of a stream that was closed under a waiter.
pub(crate) fn closed() -> io::Error {
    SmcError::Closed.of(io::ErrorKind::NotConnected)
}
