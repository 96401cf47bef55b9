//! One connection whose both ends do whatever they are told, and what has to be true of it at each
//! step.

use std::io::{self, ErrorKind, IoSliceMut};
use std::os::fd::AsFd;
use std::task::{Context, Poll, Waker};

use socket2::SockRef;

use super::bytes;
use super::hosts::{CLIENT, Lab, Pair, SERVER, patiently};
use super::ops::{Task, parts, peeking, reading, reading_vectored, writing, writing_vectored};
use crate::config::UpgradePolicy;
use crate::conn::watch::WatchKey;
use crate::conn::{Directions, OnPending};
use crate::ism::sys;
use crate::link::stream::Death;
use crate::sync::{Arc, lock};

/// For how long a connection may stand still while the kernel works: its timers are shorter.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// What one end, or what its endpoint, does next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    /// A task writes; it waits when it has to.
    Write(usize),
    WriteParts(usize),
    /// Somebody else writes without waiting.
    TryWrite(usize),
    /// A task reads; it waits when it has to.
    Read(usize),
    TryRead(usize),
    ReadBoth(usize, usize),
    Peek(usize),
    /// The waiting tasks lose interest.
    Cancel,
    /// The endpoint takes that many messages.
    Pump(usize),
    /// The server's application accepts.
    Accept,
    /// The client begins the upgrade.
    Offer,
    /// The client looks whether it is upgraded, as `upgrade()` does.
    Watch,
    Nodelay(bool),
    Cork(bool),
    /// The application sends an urgent byte past the stream, once: a second one would make an
    /// ordinary byte of the first.
    Urgent,
    Shutdown,
    Close,
    /// `into_std`, as far as the switch is concerned.
    Pin,
    /// The link loses its connection.
    Cut,
    /// The link is declared dead by this end.
    Fault,
    /// The process of this end dies.
    Kill,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) handshake: bool,
    pub(super) small_buffers: bool,
    pub(super) dmb_size: usize,
    /// The upgrade is done before the first step.
    pub(super) upgraded: bool,
}

struct Waiting {
    task: Arc<Task>,
    length: usize,
}

impl Waiting {
    fn woken(waiting: Option<&Waiting>) -> bool {
        waiting.is_none_or(|waiting| waiting.task.is_woken())
    }
}

#[derive(Default)]
struct Side {
    written: u64,
    read: u64,
    /// How its incoming stream ended.
    end: Option<Result<(), ErrorKind>>,
    write_failed: bool,
    /// It has been told of an error; TCP tells of a reset once, to whoever asks first, and then of
    /// the end.
    told: bool,
    shut: bool,
    gone: bool,
    /// It closed with bytes that had come and were not read.
    left_unread: bool,
    pinned: bool,
    urgent: bool,
    reader: Option<Waiting>,
    writer: Option<Waiting>,
    /// What TCP had received when the ring took over.
    tcp_received: Option<u64>,
}

pub(super) struct Model {
    lab: Lab,
    pair: Pair,
    sides: [Side; 2],
    setup: Setup,
    /// The link has died, and whose fault it was does not matter.
    broken: bool,
    watch: WatchKey,
}

impl Model {
    pub(super) fn new(setup: Setup) -> Self {
        let mut lab = Lab::with_dmb_size(setup.dmb_size);
        let policy = if setup.handshake { UpgradePolicy::Handshake } else { UpgradePolicy::Manual };
        let mut pair = lab.connect(policy, setup.dmb_size);
        if setup.small_buffers {
            for side in [CLIENT, SERVER] {
                let socket = pair.tcp(side);
                SockRef::from(&socket.tcp).set_send_buffer_size(4096).expect("SO_SNDBUF");
                SockRef::from(&socket.tcp).set_recv_buffer_size(4096).expect("SO_RCVBUF");
            }
        }
        if setup.upgraded {
            pair.accept(&lab);
            pair.offer(&lab);
            lab.run();
        }
        Model { lab, pair, sides: Default::default(), setup, broken: false, watch: WatchKey::default() }
    }

    pub(super) fn step(&mut self, side: usize, act: Act) {
        let gone = self.sides[side].gone;
        match act {
            Act::Pump(count) => {
                for _ in 0..count {
                    self.lab.hosts[side].step();
                }
            }
            _ if gone => {}
            Act::Accept if side == SERVER => self.pair.accept(&self.lab),
            Act::Offer if side == CLIENT => drop(self.pair.offer(&self.lab)),
            Act::Watch if side == CLIENT => {
                let mut cx = Context::from_waker(Waker::noop());
                let _ = self.pair.conns[CLIENT].poll_upgraded(&mut cx, &mut self.watch);
            }
            Act::Accept | Act::Offer | Act::Watch => {}
            Act::Cut => {
                if let Some(link) = self.lab.hosts[side].links().first() {
                    self.broken = true;
                    let _ = sys::shutdown_socket(link.socket());
                }
            }
            Act::Fault => {
                if let Some(link) = self.lab.hosts[side].links().first() {
                    self.broken = true;
                    link.bury(Death::Fault);
                }
            }
            // Before its application has accepted it, a server's stream does nothing.
            _ if side == SERVER && self.pair.accepted.is_none() => {}
            Act::Write(length) => self.write(side, length, Some(false)),
            Act::WriteParts(length) => self.write(side, length, Some(true)),
            Act::TryWrite(length) => self.write(side, length, None),
            Act::Read(length) => self.read_waiting(side, length),
            Act::TryRead(length) => {
                let mut buffer = vec![0; length];
                let answer =
                    self.pair.conns[side].try_read(&mut reading(&mut &mut buffer[..]), OnPending::Return);
                self.judge_read(side, &buffer, answer);
            }
            Act::ReadBoth(first, second) => {
                let (mut a, mut b) = (vec![0; first], vec![0; second]);
                let answer = self.pair.conns[side].try_read(
                    &mut reading_vectored(&mut [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)]),
                    OnPending::Return,
                );
                a.extend(b);
                self.judge_read(side, &a, answer);
            }
            Act::Peek(length) => self.peek(side, length),
            Act::Cancel => (self.sides[side].reader, self.sides[side].writer) = (None, None),
            Act::Nodelay(on) => drop(self.pair.tcp(side).tcp.set_nodelay(on)),
            Act::Cork(on) => drop(rustix::net::sockopt::set_tcp_cork(&self.pair.tcp(side).tcp, on)),
            Act::Urgent if self.sides[side].urgent => {}
            Act::Urgent => {
                let sent = SockRef::from(&self.pair.tcp(side).tcp).send_out_of_band(b"!");
                self.sides[side].urgent = sent.as_ref().is_ok_and(|sent| *sent == 1);
                // The error of the socket, which is told once.
                self.sides[side].told |= sent.is_err();
            }
            Act::Shutdown => self.shutdown(side),
            Act::Close => self.close(side),
            Act::Pin => match self.pair.conns[side].pin("into_std", Directions::Both) {
                Ok(()) => self.sides[side].pinned = true,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported),
            },
            Act::Kill => {
                self.leave(side);
                self.broken = true;
                self.lab.kill(side, &self.pair);
            }
        }
        self.pair.turn();
        self.look_at_tcp();
    }

    fn close(&mut self, side: usize) {
        self.sides[side].left_unread = self.unread_has_come(side);
        self.leave(side);
        self.pair.close(side);
        if side == CLIENT {
            self.pair.conns[CLIENT].forget_watch(&mut self.watch);
        }
    }

    fn leave(&mut self, side: usize) {
        let this = &mut self.sides[side];
        this.gone = true;
        (this.reader, this.writer) = (None, None);
    }

    /// Bytes of the peer have reached this end for certain, and it has not read them.
    fn unread_has_come(&self, side: usize) -> bool {
        let peer = 1 - side;
        if self.setup.handshake || self.sides[side].read == self.sides[peer].written {
            return false;
        }
        // What a peer without a link wrote last may be held back by a cork: that has not come.
        let in_ring = match lock(&self.pair.conns[peer].tx).dmb.as_mut() {
            Some(dmb) => !dmb.producer.is_consumed().expect("a ring in order"),
            None => false,
        };
        in_ring || sys::queued_in(self.pair.tcp(side).tcp.as_fd()).is_ok_and(|bytes| bytes > 0)
    }

    fn write(&mut self, side: usize, length: usize, waits: Option<bool>) {
        let this = &self.sides[side];
        if this.shut || this.write_failed || (waits.is_some() && !Waiting::woken(this.writer.as_ref())) {
            return;
        }
        let buffer = bytes(this.written, length);
        let conn = &self.pair.conns[side];
        let task = Task::new();
        let waker = Waker::from(task.clone());
        let mut cx = Context::from_waker(&waker);
        let answer = match waits {
            Some(false) => conn.poll_write(&mut cx, &mut writing(&buffer)),
            Some(true) => conn.poll_write(&mut cx, &mut writing_vectored(&parts(&buffer))),
            None => conn.try_write(&mut writing(&buffer), OnPending::Return),
        };
        let this = &mut self.sides[side];
        if waits.is_some() {
            this.writer = answer.is_pending().then_some(Waiting { task, length });
        }
        match answer {
            Poll::Pending => {}
            Poll::Ready(Ok(written)) => {
                assert!((1..=length).contains(&written), "{written} of {length} written");
                this.written += written as u64;
            }
            Poll::Ready(Err(error)) => {
                (this.write_failed, this.told, this.writer) = (true, true, None);
                let peer = &self.sides[1 - side];
                assert!(peer.gone || self.link_broke_it(), "side {side} can not write: {error}");
            }
        }
    }

    fn read_waiting(&mut self, side: usize, length: usize) {
        if !Waiting::woken(self.sides[side].reader.as_ref()) {
            return;
        }
        let mut buffer = vec![0; length];
        let task = Task::new();
        let waker = Waker::from(task.clone());
        let answer = self.pair.conns[side]
            .poll_read(&mut Context::from_waker(&waker), &mut reading(&mut &mut buffer[..]));
        self.sides[side].reader = answer.is_pending().then_some(Waiting { task, length });
        self.judge_read(side, &buffer, answer);
    }

    fn peek(&mut self, side: usize, length: usize) {
        let mut buffer = vec![0; length];
        let answer = self.pair.conns[side].try_read(&mut peeking(&mut &mut buffer[..]), OnPending::Return);
        if let Poll::Ready(Err(_)) = answer {
            self.sides[side].told = true;
        }
        if let Poll::Ready(Ok(peeked)) = answer {
            let (from, written) = (self.sides[side].read, self.sides[1 - side].written);
            assert!(
                from + peeked as u64 <= written,
                "side {side} peeks {peeked} bytes at {from} of {written}"
            );
            assert!(buffer[..peeked] == bytes(from, peeked), "side {side} peeks other bytes at {from}");
        }
    }

    fn judge_read(&mut self, side: usize, buffer: &[u8], answer: Poll<io::Result<usize>>) {
        let peer = &self.sides[1 - side];
        let this = &self.sides[side];
        let end = match answer {
            Poll::Pending => return,
            Poll::Ready(Ok(0)) => {
                assert!(peer.shut || peer.gone || this.told, "side {side} reads an end that nobody made");
                assert!(
                    this.told || this.read == peer.written,
                    "side {side} reads the end after {} of {} bytes",
                    this.read,
                    peer.written
                );
                Ok(())
            }
            Poll::Ready(Ok(read)) => {
                assert!(!matches!(this.end, Some(Ok(()))), "side {side} reads behind the end");
                let place = this.read;
                assert!(
                    place + read as u64 <= peer.written,
                    "side {side} reads {read} bytes at {place} of {}",
                    peer.written
                );
                assert!(buffer[..read] == bytes(place, read), "side {side} reads other bytes at {place}");
                self.sides[side].read += read as u64;
                return;
            }
            Poll::Ready(Err(error)) => {
                // As TCP does it: also an urgent byte that lies unread makes a close a reset.
                let left = peer.gone && (peer.read < this.written || this.urgent);
                assert!(
                    left || this.end.is_some() || self.link_broke_it(),
                    "side {side} reads an error for no reason: {error}"
                );
                Err(error.kind())
            }
        };
        let this = &mut self.sides[side];
        this.told |= end.is_err();
        this.end = this.end.or(Some(end));
    }

    /// The link died, and the connection had switched.
    fn link_broke_it(&self) -> bool {
        self.broken && (self.pair.writes_ring(CLIENT) || self.pair.writes_ring(SERVER))
    }

    fn shutdown(&mut self, side: usize) {
        let answer = self.pair.conns[side].shutdown_write();
        if let Err(error) = answer {
            assert!(self.sides[1 - side].gone || self.link_broke_it(), "shutdown: {error}");
        }
        self.sides[side].shut = true;
        self.sides[side].writer = None;
    }

    /// Reads until the end of what comes to `side`, and says how that was.
    pub(super) fn reads_end(&mut self, side: usize) -> Option<Result<(), ErrorKind>> {
        patiently("the end", || {
            self.step(side, Act::TryRead(1));
            self.sides[side].end.is_some()
        });
        self.sides[side].end
    }

    /// Leaves the kernel little room for what comes to `side`.
    pub(super) fn narrow(&self, side: usize) {
        SockRef::from(&self.pair.tcp(side).tcp).set_recv_buffer_size(4096).expect("SO_RCVBUF");
    }

    /// Bytes that `side` has written and the other end has not read.
    pub(super) fn unread_of(&self, side: usize) -> u64 {
        self.sides[side].written - self.sides[1 - side].read
    }

    /// TCP is silent once the ring has taken over.
    fn look_at_tcp(&mut self) {
        for side in [CLIENT, SERVER] {
            let (Some(socket), true) = (self.pair.socket(side), self.pair.reads_ring(side)) else { continue };
            if self.sides[1 - side].gone || self.sides[1 - side].urgent || self.link_broke_it() {
                continue;
            }
            let look = sys::tcp_look(socket.tcp.as_fd()).expect("TCP_INFO");
            let before = *self.sides[side].tcp_received.get_or_insert(look.bytes_received);
            assert_eq!(look.bytes_received, before, "TCP carries something to side {side}");
            assert_eq!(sys::queued_in(socket.tcp.as_fd()).expect("SIOCINQ"), 0);
        }
    }

    /// Lets everything come to its end: every message is delivered, what waits to be written is
    /// written, both ends shut down and read all there is. Whoever waits goes on only when it is
    /// woken.
    pub(super) fn finish(mut self) {
        self.pair.accept(&self.lab);
        for side in [CLIENT, SERVER] {
            if let (false, Some(socket)) = (self.sides[side].gone, self.pair.socket(side)) {
                let _ = rustix::net::sockopt::set_tcp_cork(&socket.tcp, false);
            }
        }
        let (mut since, mut before) = (std::time::Instant::now(), self.progress());
        while !self.is_over() {
            if !self.advance() && !self.give_up() {
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
            if self.progress() != before {
                (since, before) = (std::time::Instant::now(), self.progress());
            }
            assert!(since.elapsed() < PATIENCE, "it stands still: {}", self.describe());
            self.pair.turn();
            self.look_at_tcp();
        }
        for side in [CLIENT, SERVER] {
            self.judge_end(side);
        }
        for side in [CLIENT, SERVER] {
            if self.sides[side].pinned {
                let moved = self.pair.writes_ring(CLIENT) || self.pair.writes_ring(SERVER);
                assert!(!moved, "a pinned connection has switched");
            }
            if !self.sides[side].gone {
                self.pair.close(side);
            }
        }
        self.lab.run();
        if !self.broken {
            assert_eq!(self.lab.slots_in_use(), 0, "a slot leaks");
        }
    }

    /// Without a link both ends may have nothing but the other's end on TCP to wait for: one of
    /// them closes.
    fn give_up(&mut self) -> bool {
        if !self.link_broke_it() {
            return false;
        }
        self.pair.turn();
        let waits =
            |side: &Side| !side.gone && side.reader.as_ref().is_none_or(|reader| !reader.task.is_woken());
        let Some(side) = self.sides.iter().position(waits) else { return false };
        if self.sides[side].end.is_none() {
            let answer = self.pair.conns[side].try_read(&mut peeking(&mut &mut [0][..]), OnPending::Return);
            if answer.is_ready() {
                // Written by a peer that had not heard of the death, after this end had: TCP's end
                // would tell.
                self.sides[side].reader = None;
                return true;
            }
        }
        self.close(side);
        true
    }

    fn progress(&self) -> [(u64, u64, bool, bool, bool); 2] {
        self.sides.each_ref().map(|side| (side.read, side.written, side.end.is_some(), side.shut, side.gone))
    }

    fn is_over(&self) -> bool {
        self.sides.iter().all(|side| side.gone || (side.end.is_some() && (side.shut || side.write_failed)))
    }

    fn advance(&mut self) -> bool {
        let mut moved = self.lab.hosts[CLIENT].step() | self.lab.hosts[SERVER].step();
        for side in [CLIENT, SERVER] {
            let this = &self.sides[side];
            if this.gone {
                continue;
            }
            match &this.writer {
                Some(waiting) if waiting.task.is_woken() => {
                    let length = waiting.length;
                    moved = true;
                    self.write(side, length, Some(false));
                }
                Some(_) => {}
                None if !this.shut && !this.write_failed => {
                    moved = true;
                    self.shutdown(side);
                }
                None => {}
            }
            let this = &self.sides[side];
            if this.end.is_none() && Waiting::woken(this.reader.as_ref()) {
                moved = true;
                self.read_waiting(side, 30_000);
            }
        }
        moved
    }

    fn judge_end(&self, side: usize) {
        let (this, peer) = (&self.sides[side], &self.sides[1 - side]);
        if this.gone {
            return;
        }
        if !peer.gone && !self.broken {
            assert_eq!(this.end, Some(Ok(())), "side {side} ends");
            assert_eq!(this.read, peer.written);
            let transport = self.pair.conns[side].transport();
            let switched = self.pair.writes_ring(side) && self.pair.writes_ring(1 - side);
            assert_eq!(transport.is_loopback_ism(), switched, "side {side} says {transport:?}");
        }
        // After a FIN a reset comes too late to be read.
        if peer.left_unread && !peer.shut {
            assert!(this.told, "side {side} reads a clean end of an aborted stream");
        }
    }

    fn describe(&self) -> String {
        let side = |side: usize| {
            let this = &self.sides[side];
            let (rx, tx) = (lock(&self.pair.conns[side].rx), lock(&self.pair.conns[side].tx));
            format!(
                "side {side}: read {}, written {}, {:?} / {:?}, pinned {} / {}, CLC {:?} / {:?}, end {:?}, shut {}, \
                 gone {}, reader waits and is woken {:?}, writer {:?}; ",
                this.read,
                this.written,
                rx.path,
                tx.path,
                rx.pinned,
                tx.pinned,
                rx.prelude,
                tx.prelude,
                this.end,
                this.shut,
                this.gone,
                this.reader.as_ref().map(|reader| reader.task.is_woken()),
                this.writer.as_ref().map(|writer| writer.task.is_woken())
            )
        };
        side(CLIENT) + &side(SERVER)
    }
}
