//! The connection: two locked directions, their waiters, and what both share.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{OnceLock, Weak};
use std::task::{Context, Poll, Waker};

use super::descriptor::SocketCheck;
use super::listed::Record;
use super::op::{ReadOp, WriteOp};
use super::prelude::Front;
use super::receive::{self, Circumstances, Receiver, closed, consistent};
use super::send::{self, Sender};
use super::upgrade::{Phase, Upgrade};
use super::waiters::Waiters;
use super::{Directions, Effects, OnPending, Operation, Tcp, upgraded_error};
use crate::config::Config;
use crate::error::SmcError;
use crate::ism::dmb::{Direction, Flags};
use crate::ism::interrupt::Signal;
use crate::ism::ring::Memory;
use crate::ism::sys::{self, PeerCred};
use crate::link::stream::Death;
use crate::sync::{Arc, AtomicBool, AtomicU8, AtomicU64, Mutex, Ordering, lock, rank};
use crate::transport::{Counters, FallbackReason, Transport, UCred};

/// Which part a stream plays in its upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// From connect: it offers.
    Client,
    /// From a listener: it answers.
    Server,
    /// From a socket of unknown history: it offers when it is told to.
    Adopted,
}

/// One connection, from its TCP handshake to its close: a TCP socket, and the rings that take over
/// from it.
///
/// It does no work of its own. What drives it:
///
/// - The application's calls, by the stream that holds it: [`try_read`](Self::try_read),
///   [`poll_read`](Self::poll_read) and their counterparts for writing, with an operation of
///   [`op`](super::op); [`shutdown_write`](Self::shutdown_write); [`pin`](Self::pin) before anybody
///   gets the socket itself. After each of them that was ready, [`triggered`](Self::triggered)
///   tells whether to offer the upgrade now.
/// - The link, by [`LinkedStream`](crate::link::stream::LinkedStream) and `GrowingStream`: what it
///   attaches, what it is asked for, and the verdicts. It holds the connection weakly.
/// - The peer's interrupts, by [`Waiters`], which wake whoever waits and touch nothing else.
/// - The reactor, by the wakers it was given with TCP's `poll_` calls.
///
/// All of them may come at any time, from any thread and together: each direction has its lock, and
/// nobody is called with one held. A waker is registered in `waiters` before the attempt that arms
/// ([`OnPending::Arm`]); `poll_read` and `poll_write` do so themselves.
///
/// The stream owns it and ends it by [`close`](Self::close), after which every call answers that
/// the stream is closed; what there was to tell last ([`transport`](Self::transport),
/// [`counters`](Self::counters)) is kept for those who still hold it.
/// [`take_socket`](Self::take_socket) is for a connection that is pinned both ways, before its
/// close.
pub(crate) struct Connection<T: Tcp> {
    pub(super) rx: Mutex<Receiver<T>, rank::Receiver>,
    pub(super) tx: Mutex<Sender<T>, rank::Sender>,
    pub(crate) waiters: Waiters,
    pub(super) upgrade: Upgrade,
    pub(crate) role: Role,
    pub(crate) config: Config,
    /// 0, or why the link of a switched stream ended.
    pub(super) death: AtomicU8,
    /// The peer died before it read all of our ring.
    pub(super) peer_left_unread: AtomicBool,
    /// A reset that a ring showed was reported, which happens once.
    pub(super) reset_reported: AtomicBool,
    /// Whose fault it was that the stream was reset: what was found first. Boxed, as is all that
    /// few streams have: what a connection takes is paid at each open and close.
    pub(super) fault: OnceLock<Box<SmcError>>,
    /// What looks at the socket, once a link serves the stream.
    pub(super) socket_check: SocketCheck,
    /// Hints for the callers of the fast paths, written under the locks.
    rx_in_ring: AtomicBool,
    tx_in_ring: AtomicBool,
    /// For the trigger: bytes over TCP each way, and whether something was read.
    pub(super) read_bytes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    /// Position of the sending ring when it was last looked at for shrinking.
    pub(super) idle_since: AtomicU64,
    /// What there was to tell when the stream was closed; boxed, for few are asked then.
    last: OnceLock<Box<(Transport, Counters)>>,
    pub(super) record: Record,
    pub(super) this: Weak<Self>,
}

/// Positions of a socket of unknown history, as the kernel tells them: bytes read and written
/// before the stream was made.
fn history(fd: BorrowedFd<'_>) -> (Option<u64>, Option<u64>) {
    let received = match sys::has_urgent(fd) {
        // Before the mark of urgent data the kernel does not tell how much is unread.
        Ok(true) | Err(_) => None,
        Ok(false) => consistent(|| sys::rx_counters(fd))
            .ok()
            .flatten()
            .and_then(|(look, queued)| look.rx_position(queued)),
    };
    let sent = consistent(|| sys::tx_counters(fd)).ok().flatten();
    let sent = sent.and_then(|(look, queued)| look.tx_position(queued, look.syn(queued)?));
    (received, sent)
}

/// Bytes in one direction that trigger the upgrade with policy FirstTurn.
const MANY_BYTES: u64 = 64 << 10;

impl<T: Tcp> Connection<T> {
    pub(crate) fn new(socket: Arc<T>, role: Role, config: Config) -> Arc<Self> {
        let waiters = Waiters::default();
        let phase = Phase::first(&config);
        let (read_before, written_before) = match role {
            Role::Client | Role::Server => (Some(0), Some(0)),
            Role::Adopted if phase.may_begin() => history(socket.as_fd()),
            Role::Adopted => (None, None),
        };
        Arc::new_cyclic(|this| Connection {
            this: this.clone(),
            rx: Mutex::new(Receiver::new(
                socket.clone(),
                read_before,
                Waker::from(waiters.readers().clone()),
            )),
            tx: Mutex::new(Sender::new(socket, written_before)),
            waiters,
            upgrade: Upgrade::new(phase, role, &config),
            role,
            config,
            death: AtomicU8::new(0),
            peer_left_unread: AtomicBool::new(false),
            reset_reported: AtomicBool::new(false),
            fault: OnceLock::new(),
            socket_check: SocketCheck::default(),
            rx_in_ring: AtomicBool::new(false),
            tx_in_ring: AtomicBool::new(false),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            last: OnceLock::new(),
            record: Record::new(this.clone()),
        })
    }

    /// Does the receiving direction use the ring? (A hint: it may do so from the next call on.)
    pub(crate) fn reads_ring(&self) -> bool {
        self.rx_in_ring.load(Ordering::Relaxed)
    }

    /// Are the last bytes before the ring still to be read from TCP?
    pub(crate) fn is_draining(&self) -> bool {
        matches!(lock(&self.rx).path, receive::Path::Draining { .. })
    }

    /// Has the sender said in the ring that it ends, whatever is still to be read?
    pub(crate) fn sender_is_done(&self) -> bool {
        lock(&self.rx).sender_is_done()
    }

    /// Does the sending direction use the ring? (A hint.)
    pub(crate) fn writes_ring(&self) -> bool {
        self.tx_in_ring.load(Ordering::Relaxed)
    }

    /// Will this direction never leave TCP, so that nothing of it has to pass through here any
    /// more?
    #[cfg(any(test, feature = "blocking"))]
    pub(crate) fn is_left_to_tcp(&self, direction: Operation) -> bool {
        self.upgrade.phase().is_final()
            && !self.awaits_late_packets()
            && match direction {
                Operation::Read => lock(&self.rx).is_left_to_tcp(),
                Operation::Write => {
                    let mut tx = lock(&self.tx);
                    let left = tx.is_left_to_tcp();
                    // A DMB that is still on its way is not switched to.
                    tx.pinned |= left;
                    left
                }
            }
    }

    /// Bytes have gone past here: see [`Connection::is_left_to_tcp`].
    #[cfg(feature = "blocking")]
    pub(crate) fn count_past(&self, direction: Operation, bytes: usize) {
        let total = match direction {
            Operation::Read => &self.read_bytes,
            Operation::Write => &self.written_bytes,
        };
        total.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn death(&self) -> Option<Death> {
        Death::from_u8(self.death.load(Ordering::Acquire))
    }

    fn circumstances(&self) -> Circumstances<'_> {
        Circumstances {
            death: self.death(),
            peer_left_unread: self.peer_left_unread.load(Ordering::Relaxed),
            reset_reported: &self.reset_reported,
            fault: &self.fault,
        }
    }

    // ---- reading ----

    /// One attempt.
    #[inline]
    pub(crate) fn try_read<O: ReadOp<T>>(
        &self,
        op: &mut O,
        on_pending: OnPending,
    ) -> Poll<io::Result<usize>> {
        self.attempt_read(op, on_pending).0
    }

    /// The same, and what a wait has to hear of.
    #[inline]
    fn attempt_read<O: ReadOp<T>>(
        &self,
        op: &mut O,
        on_pending: OnPending,
    ) -> (Poll<io::Result<usize>>, receive::Source) {
        let mut effects = Effects::default();
        let (answer, source) = {
            let mut rx = lock(&self.rx);
            let answer = rx.poll(op, on_pending, || self.circumstances(), &mut effects);
            if rx.path == receive::Path::Ring {
                if !self.reads_ring() {
                    self.rx_in_ring.store(true, Ordering::Relaxed);
                    effects.socket_check = true;
                }
            } else if let (true, Poll::Ready(Ok(length))) = (O::CONSUMES, &answer) {
                self.read_bytes.fetch_add(*length as u64, Ordering::Relaxed);
            }
            (answer, rx.source())
        };
        if answer.is_pending() && self.upgrade.late.load(Ordering::Relaxed) {
            self.drop_late_packets();
        }
        self.carry_out(effects);
        (answer, source)
    }

    /// Reads, or waits in the slot of the latest `poll_*` call.
    #[inline]
    pub(crate) fn poll_read<O: ReadOp<T>>(
        &self,
        cx: &mut Context<'_>,
        op: &mut O,
    ) -> Poll<io::Result<usize>> {
        let wake_ups = self.waiters.readers().wake_ups();
        let (answer, source) = self.attempt_read(op, OnPending::Return);
        if answer.is_ready() {
            return answer;
        }
        // Registered before the last look, so that nothing can happen in between unheard.
        self.waiters.readers().register(cx.waker());
        if source == receive::Source::Tcp && self.waiters.readers().wake_ups() == wake_ups {
            // Whatever changes that wakes the readers, and nothing has.
            return Poll::Pending;
        }
        self.try_read(op, OnPending::Arm)
    }

    // ---- writing ----

    /// One attempt.
    #[inline]
    pub(crate) fn try_write<O: WriteOp<T>>(
        &self,
        op: &mut O,
        on_pending: OnPending,
    ) -> Poll<io::Result<usize>> {
        let mut effects = Effects::default();
        let sampled = O::WRITES && self.upgrade.sample.may_be_this() && self.samples_this();
        let answer = {
            let mut tx = lock(&self.tx);
            if on_pending == OnPending::Arm && tx.waker.is_none() {
                tx.waker = Some(Waker::from(self.waiters.writers().clone()));
            }
            let answer = tx.poll(op, on_pending, sampled, || self.circumstances(), &mut effects);
            if sampled {
                self.upgrade.late.store(tx.sample.late, Ordering::Relaxed);
            }
            let in_ring = tx.path == send::Path::Ring && !tx.over;
            if in_ring != self.writes_ring() {
                self.tx_in_ring.store(in_ring, Ordering::Relaxed);
            }
            if let (false, true, Poll::Ready(Ok(length))) = (in_ring, O::WRITES, &answer) {
                self.written_bytes.fetch_add(*length as u64, Ordering::Relaxed);
            }
            answer
        };
        if answer.is_pending() && self.upgrade.late.load(Ordering::Relaxed) {
            self.drop_late_packets();
        }
        self.carry_out(effects);
        match answer {
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.behind_the_end(error))),
            answer => answer,
        }
    }

    /// The kernel's error of a write, as it would be if the kernel knew how the peer has ended: a
    /// reset behind the FIN of its sender is a broken pipe, and that end may have come by the ring.
    #[cold]
    fn behind_the_end(&self, error: io::Error) -> io::Error {
        let is_reset = error.raw_os_error() == Some(libc::ECONNRESET);
        let ended = || {
            let rx = lock(&self.rx);
            rx.dmb.as_ref().is_some_and(|dmb| dmb.consumer.writer_flags().contains(Flags::DONE_WRITING))
        };
        if is_reset && ended() { io::Error::from_raw_os_error(libc::EPIPE) } else { error }
    }

    /// Writes, or waits in the slot of the latest `poll_*` call.
    #[inline]
    pub(crate) fn poll_write<O: WriteOp<T>>(
        &self,
        cx: &mut Context<'_>,
        op: &mut O,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(answer) = self.try_write(op, OnPending::Return) {
            return Poll::Ready(answer);
        }
        self.waiters.writers().register(cx.waker());
        self.try_write(op, OnPending::Arm)
    }

    /// Ends the sending direction; what was written still arrives.
    pub(crate) fn shutdown_write(&self) -> io::Result<()> {
        let mut effects = Effects::default();
        let answer = {
            let mut tx = lock(&self.tx);
            if tx.path == send::Path::Ring {
                if tx.reset || tx.was_reset() {
                    // Nothing is left to end, and the next write is told why.
                    return Ok(());
                }
                let late = tx.over && !tx.shut;
                // Whose descriptor was shut down reads the rest, and how it ends, from TCP.
                let tells_tcp = late && tx.reader_reads_tcp();
                if !tx.shut {
                    tx.shut = !late;
                    if let (false, Some(dmb)) = (tells_tcp, tx.dmb.as_ref()) {
                        dmb.producer.set_flags(if tx.stray { Flags::ABORT } else { Flags::DONE_WRITING });
                        dmb.producer.wake_reader();
                        effects.interrupt(&dmb.peer, Signal::Data);
                    }
                }
                match tx.socket.as_deref() {
                    // TCP refuses by itself what is written then.
                    Some(socket) if late => socket.shutdown(),
                    _ => Ok(()),
                }
            } else {
                if let Poll::Ready(Err(error)) = tx.send_prelude() {
                    return Err(error);
                }
                Self::pin_sender(&mut tx, &mut effects);
                tx.shut = true;
                effects.rare().settled = Some(FallbackReason::HalfClosed);
                let socket = tx.socket.as_deref().ok_or_else(closed)?;
                socket.shutdown()
            }
        };
        self.carry_out(effects);
        if lock(&self.rx).over {
            // Ended both ways now.
            self.check_socket();
        }
        answer
    }

    // ---- pins ----

    /// Keeps the sending direction on TCP for good; `false` when it has switched.
    pub(super) fn pin_sender(tx: &mut Sender<T>, effects: &mut Effects) -> bool {
        if tx.path == send::Path::Ring {
            return false;
        }
        tx.pinned = true;
        if let Some(dmb) = tx.dmb.take() {
            // Only this end switches it, and it has not: the reader learns that it never will.
            dmb.producer.memory().header().pin();
            effects.interrupt(&dmb.peer, Signal::Data);
            effects.rare().unused = Some(dmb);
        }
        true
    }

    /// Keeps the receiving direction on TCP for good; `false` when the peer has switched.
    pub(super) fn pin_receiver(rx: &mut Receiver<T>, effects: &mut Effects) -> bool {
        if rx.path != receive::Path::Tcp {
            return false;
        }
        rx.resolve_prelude();
        if let (false, Some(dmb)) = (rx.pinned, rx.dmb.as_ref()) {
            if let Direction::Switched(until) = dmb.consumer.memory().header().pin() {
                // A position that the kernel does not tell is found out by the reader.
                let _ = rx.drain_until(until);
                return false;
            }
        }
        rx.pinned = true;
        if let Some(dmb) = rx.dmb.take() {
            effects.rare().pinned = Some(dmb);
        }
        true
    }

    /// Keeps the directions asked for on TCP, for an application that wants the socket itself.
    ///
    /// # Errors
    ///
    /// `Unsupported` when one of them has already left TCP; the other stays pinned.
    pub(crate) fn pin(&self, what: &str, directions: Directions) -> io::Result<()> {
        let mut effects = Effects::default();
        let read_pinned = directions == Directions::Write || {
            let mut rx = lock(&self.rx);
            // CLC that is promised to this socket must not be read by the application.
            Self::pin_receiver(&mut rx, &mut effects)
                && matches!(rx.strip_prelude(), Poll::Ready(Ok(Front::Data)))
        };
        let write_pinned = directions == Directions::Read || {
            let mut tx = lock(&self.tx);
            // The application's bytes may be next: CLC that was promised goes first.
            let sent = matches!(tx.send_prelude(), Poll::Ready(Ok(())));
            // The application would take it for an error of its own.
            tx.drop_late_packets();
            Self::pin_sender(&mut tx, &mut effects) && sent
        };
        self.carry_out(effects);
        if !(read_pinned && write_pinned) {
            return Err(upgraded_error(what));
        }
        self.upgrade.settle(FallbackReason::Pinned);
        Ok(())
    }

    /// Takes the socket out of a connection that is pinned both ways.
    pub(crate) fn take_socket(&self) -> Option<Arc<T>> {
        let (mut rx, mut tx) = (lock(&self.rx), lock(&self.tx));
        rx.socket.take().and(tx.socket.take())
    }

    // ---- what runs ----

    /// Keeps what there is to tell, for those who ask after the close.
    pub(super) fn save_last_word(&self) {
        // Besides the stream itself nobody can begin to hold it now: who will ask holds it already.
        if self.this.strong_count() > 1 {
            let _ = self.last.set(Box::new((self.transport(), self.counters())));
        }
    }

    /// What the stream runs on now; once it is closed, what it ran on last.
    pub(crate) fn transport(&self) -> Transport {
        if let Some(last) = self.last.get() {
            return last.0;
        }
        let receives = lock(&self.rx).ring_window();
        let sends = lock(&self.tx).sending_ring();
        self.transport_of(receives, sends)
    }

    /// Who holds the other end, or why nobody knows.
    pub(crate) fn peer_cred(&self) -> Result<UCred, FallbackReason> {
        if let Transport::Tcp(reason) = self.transport() {
            return Err(reason);
        }
        let tx = lock(&self.tx);
        let dmb = tx.dmb.as_ref().ok_or(FallbackReason::HalfClosed)?;
        let PeerCred { pid, uid, gid } = dmb.peer.link.credentials;
        Ok(UCred { uid, gid, pid: (pid != 0).then_some(pid) })
    }

    pub(crate) fn counters(&self) -> Counters {
        if let Some(last) = self.last.get() {
            return last.1;
        }
        Counters {
            tcp_bytes_read: self.read_bytes.load(Ordering::Relaxed),
            tcp_bytes_written: self.written_bytes.load(Ordering::Relaxed),
            ism_bytes_read: lock(&self.rx).dmb.as_ref().map_or(0, |dmb| dmb.consumer.position()),
            ism_bytes_written: lock(&self.tx).dmb.as_ref().map_or(0, |dmb| dmb.producer.position()),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.rx).socket.is_none()
    }

    /// Is this error of the socket one that the application does not know? (The ring tells of a
    /// reset, too.)
    pub(crate) fn is_news(&self, error: &io::Error) -> bool {
        let switched = self.reads_ring() || self.writes_ring();
        let is_reset = switched && error.kind() == io::ErrorKind::ConnectionReset;
        !is_reset || !self.reset_reported.swap(true, Ordering::Relaxed)
    }

    /// Has the time come to offer the upgrade, after a successful read or write? Answers yes once.
    #[inline]
    pub(crate) fn triggered(&self, operation: Operation) -> bool {
        if !self.upgrade.waits_for_trigger() {
            return false;
        }
        let (read, written) =
            (self.read_bytes.load(Ordering::Relaxed), self.written_bytes.load(Ordering::Relaxed));
        // A write after a read is the turn.
        ((operation == Operation::Write && read > 0) || read.max(written) >= MANY_BYTES)
            && self.upgrade.begin()
    }

    /// Would a write be the turn that triggers the upgrade?
    pub(super) fn is_turn(&self) -> bool {
        self.read_bytes.load(Ordering::Relaxed) > 0
    }

    /// The sending ring is grown: it is looked at until it has been idle.
    pub(super) fn shrink_when_idle(&self) {
        let link = lock(&self.tx).dmb.as_ref().map(|dmb| dmb.peer.link.clone());
        if let (Some(link), Some(this)) = (link, self.this.upgrade()) {
            link.grown(this);
        }
    }
}
