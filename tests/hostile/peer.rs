//! A peer made by hand: a link, arenas of its own, and connections on them. It keeps the rules
//! until its user does not.
#![allow(clippy::disallowed_types, reason = "this is another process than the one that loom sees")]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::raw::Memory;
use crate::target::{PATIENCE, Target, subject_of};
use crate::wire::{self, Packet, Place, Said, Subject};

/// A sealed memory file, as an honest owner makes them.
pub(crate) fn memory_file(bytes: usize) -> OwnedFd {
    let file = unpaid_file(bytes as u64);
    // Its owner pays, and nobody else. (Pages that were only allocated do not count as there.)
    let mut owner = File::from(file.try_clone().expect("a descriptor"));
    owner.write_all(&vec![0; bytes]).expect("memory");
    file
}

/// An arena of which only the control page is there.
pub(crate) fn control_page_file(bytes: usize) -> OwnedFd {
    let file = unpaid_file(bytes as u64);
    let mut owner = File::from(file.try_clone().expect("a descriptor"));
    owner.write_all(&[0; wire::CONTROL]).expect("memory");
    file
}

/// As it looks, but nothing of it is there yet: whoever writes pays.
pub(crate) fn unpaid_file(bytes: u64) -> OwnedFd {
    let file = memfd_create("hostile", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memfd");
    ftruncate(&file, bytes).expect("ftruncate");
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).expect("seals");
    file
}

/// The header and segment 0 of one direction.
#[derive(Clone)]
pub(crate) struct Dmb {
    memory: Arc<Memory>,
    header: usize,
    first: usize,
}

impl Dmb {
    pub(crate) fn new(memory: &Arc<Memory>, slots: u32, slot: u32) -> Self {
        Dmb { memory: Arc::clone(memory), header: wire::header_at(slot), first: wire::first_at(slots, slot) }
    }

    pub(crate) fn load(&self, field: usize) -> u64 {
        self.memory.u64(self.header + field).load(Ordering::Acquire)
    }

    pub(crate) fn store(&self, field: usize, value: u64) {
        self.memory.u64(self.header + field).store(value, Ordering::Release);
    }

    pub(crate) fn store32(&self, field: usize, value: u32) {
        self.memory.u32(self.header + field).store(value, Ordering::Release);
    }

    /// Decides about the direction, if nobody has.
    pub(crate) fn decide(&self, word: u64) {
        let place = self.memory.u64(self.header + wire::DIRECTION);
        let _ = place.compare_exchange(0, word, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Bytes of segment 0.
    pub(crate) fn put(&self, at: usize, bytes: &[u8]) {
        self.memory.put(self.first + at, bytes);
    }

    pub(crate) fn hop(&self, k: usize, position: u64, segment: u64) {
        self.store(wire::hop_at(k), position);
        self.store(wire::hop_at(k) + 8, segment);
    }
}

/// Why there was no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lost {
    Ended,
    Refused,
    Silent,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Signal {
    Data,
    Space,
}

/// One end of a link, by hand.
pub(crate) struct Peer {
    pub(crate) target: Target,
    pub(crate) socket: OwnedFd,
    pub(crate) gid: [u8; 16],
    pub(crate) slots: u32,
    pub(crate) file: OwnedFd,
    pub(crate) eventfd: OwnedFd,
    memory: Arc<Memory>,
    next_slot: u32,
    /// The victim's arenas: memory, slots, descriptor.
    pub(crate) theirs: Vec<(Arc<Memory>, u32, OwnedFd)>,
    pub(crate) their_eventfd: Option<OwnedFd>,
    pub(crate) inbox: VecDeque<Said>,
    next_offer: u64,
}

/// An upgraded connection.
pub(crate) struct Conn {
    pub(crate) tcp: TcpStream,
    /// Lent by the victim: this end writes.
    pub(crate) theirs: Dmb,
    /// Lent to the victim.
    pub(crate) ours: Dmb,
    /// The victim's number for signals.
    pub(crate) signal: u32,
    pub(crate) their_token: u64,
    pub(crate) our_token: u64,
    pub(crate) sent: u64,
}

impl Peer {
    /// A link on which nothing was said.
    pub(crate) fn silent(target: &Target, slots: u32) -> Self {
        let file = memory_file(wire::arena_bytes(slots));
        let memory = Arc::new(Memory::map(&file).expect("mmap"));
        Peer {
            target: target.clone(),
            socket: target.knock(),
            gid: target.gid(),
            slots,
            file,
            eventfd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd"),
            memory,
            next_slot: 0,
            theirs: Vec::new(),
            their_eventfd: None,
            inbox: VecDeque::new(),
            next_offer: 1,
        }
    }

    /// A link that has begun as it should.
    pub(crate) fn greeted(target: &Target, slots: u32) -> Self {
        let mut peer = Peer::silent(target, slots);
        peer.greet().expect("HELLO");
        peer
    }

    pub(crate) fn hello(&self) -> Packet {
        self.hello_as(self.name())
    }

    /// Its own name, of an endpoint that there is not.
    pub(crate) fn name(&self) -> [u8; 16] {
        self.gid.map(|byte| !byte)
    }

    pub(crate) fn hello_as(&self, name: [u8; 16]) -> Packet {
        let link = rustix::net::sockopt::socket_cookie(&self.socket).expect("SO_COOKIE");
        wire::hello(link, name, self.gid, self.slots)
    }

    /// Says LINK, and HELLO after the victim's.
    pub(crate) fn greet(&mut self) -> Result<(), Lost> {
        self.open()?;
        self.greet_back()
    }

    /// Says HELLO, to who has said it.
    pub(crate) fn greet_back(&self) -> Result<(), Lost> {
        let sent = self.send_with(&self.hello(), &[self.file.as_fd(), self.eventfd.as_fd()]);
        sent.map_err(|_| Lost::Ended)
    }

    /// Says LINK, and hears HELLO: from then on the victim takes descriptors.
    pub(crate) fn open(&mut self) -> Result<(), Lost> {
        self.send(&wire::link()).map_err(|_| Lost::Ended)?;
        self.await_hello()
    }

    fn await_hello(&mut self) -> Result<(), Lost> {
        let started = Instant::now();
        while self.theirs.is_empty() {
            if !self.pump() {
                return Err(Lost::Ended);
            }
            if started.elapsed() > PATIENCE {
                return Err(Lost::Silent);
            }
            sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// An error when the link has ended, or nobody takes messages any more.
    pub(crate) fn send_with(&self, packet: &Packet, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        send_on(&self.socket, &packet.0, descriptors)
    }

    pub(crate) fn send(&self, packet: &Packet) -> io::Result<()> {
        self.send_with(packet, &[])
    }

    /// Takes what has come. False: the link has ended.
    pub(crate) fn pump(&mut self) -> bool {
        loop {
            let mut buffer = [0; wire::LONGEST];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let length = match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags)
            {
                Ok(received) if received.bytes == 0 => return false,
                Ok(received) => received.bytes,
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            };
            let mut descriptors: Vec<OwnedFd> = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            let said = wire::read(&buffer[..length]);
            match said {
                Said::Hello { slots } | Said::Arena { slots } => {
                    // Without its descriptor it counts, and nothing can be done with it.
                    let mut descriptors = descriptors.into_iter();
                    let Some(file) = descriptors.next() else { continue };
                    self.their_eventfd = self.their_eventfd.take().or(descriptors.next());
                    let memory = Arc::new(Memory::map(&file).expect("the victim's arena"));
                    self.theirs.push((memory, slots, file));
                }
                other => self.inbox.push_back(other),
            }
        }
    }

    /// Waits for a message that `want` takes; the others are dropped.
    pub(crate) fn wait<R>(
        &mut self,
        patience: Duration,
        mut want: impl FnMut(&Said) -> Option<Result<R, Lost>>,
    ) -> Result<R, Lost> {
        let started = Instant::now();
        loop {
            let alive = self.pump();
            while let Some(said) = self.inbox.pop_front() {
                if let Some(found) = want(&said) {
                    return found;
                }
            }
            if !alive {
                return Err(Lost::Ended);
            }
            if started.elapsed() > patience {
                return Err(Lost::Silent);
            }
            sleep(Duration::from_micros(100));
        }
    }

    /// The victim has to end the link.
    #[track_caller]
    pub(crate) fn must_end(&mut self, why: &str) {
        let started = Instant::now();
        while self.pump() {
            assert!(started.elapsed() < PATIENCE, "{why}: the victim keeps the link");
            sleep(Duration::from_millis(1));
        }
    }

    /// The victim has to keep the link: it still answers on it.
    #[track_caller]
    pub(crate) fn must_live(&mut self, why: &str) {
        let conn = self.upgrade(self.target.tcp());
        assert!(conn.is_ok(), "{why}: {:?} instead of another upgrade", conn.err());
    }

    pub(crate) fn offer_with(
        &mut self,
        flags: u8,
        subject: &Subject,
        commitment: Option<&[u8; 32]>,
        clc: &[u8],
    ) -> u64 {
        let id = self.next_offer();
        self.next_offer += 1;
        let signal = (id % u64::from(wire::CONNECTIONS)) as u32;
        // The answer tells, or the end of the link.
        let _ = self.send(&wire::offer(id, signal, flags, subject, commitment, clc));
        id
    }

    /// The number that the next offer has.
    pub(crate) fn next_offer(&self) -> u64 {
        self.next_offer
    }

    pub(crate) fn offer(&mut self, tcp: &TcpStream) -> u64 {
        let clc = wire::proposal(self.gid);
        self.offer_with(0, &subject_of(tcp), None, &clc)
    }

    /// What the victim says to an offer.
    pub(crate) fn answer(&mut self, id: u64, patience: Duration) -> Result<(u32, Place, Vec<u8>), Lost> {
        self.wait(patience, |said| match said {
            Said::Match { id: at, signal, place, clc } if *at == id => {
                Some(Ok((*signal, *place, clc.clone())))
            }
            Said::Refuse { id: at } if *at == id => Some(Err(Lost::Refused)),
            _ => None,
        })
    }

    /// A slot of this end's first arena, in its first state.
    pub(crate) fn slot(&mut self) -> u32 {
        let slot = self.next_slot % self.slots;
        self.next_slot += 1;
        let dmb = self.own(slot);
        (0..wire::HANDSHAKE + 8).step_by(8).for_each(|field| dmb.store(field, 0));
        dmb.store32(wire::DATA_ARMED, 1);
        dmb.store32(wire::SPACE_ARMED, 1);
        slot
    }

    pub(crate) fn own(&self, slot: u32) -> Dmb {
        Dmb::new(&self.memory, self.slots, slot)
    }

    /// A slot of the victim's.
    pub(crate) fn lent(&self, place: Place) -> Dmb {
        let (memory, slots, _) = &self.theirs[place.arena as usize];
        Dmb::new(memory, *slots, place.slot)
    }

    /// Offers a connection that nothing was written to, and answers MATCH with READY unless `ready`
    /// is not wanted.
    pub(crate) fn upgrade_as(&mut self, tcp: TcpStream, flags: u8, ready: bool) -> Result<Conn, Lost> {
        let clc = wire::proposal(self.gid);
        let id = self.offer_with(flags, &subject_of(&tcp), None, &clc);
        let (signal, place, clc) = self.answer(id, PATIENCE)?;
        let (their_token, first_contact) = wire::accepted(&clc);
        let slot = self.slot();
        let our_token = fresh_token();
        if ready {
            let at = Place { arena: 0, slot, window: 1 << 20 };
            let confirm = wire::confirm(self.gid, our_token, first_contact);
            self.send(&wire::ready(id, at, None, &confirm)).map_err(|_| Lost::Ended)?;
        }
        let (theirs, ours) = (self.lent(place), self.own(slot));
        Ok(Conn { tcp, theirs, ours, signal, their_token, our_token, sent: 0 })
    }

    pub(crate) fn upgrade(&mut self, tcp: TcpStream) -> Result<Conn, Lost> {
        self.upgrade_as(tcp, 0, true)
    }

    /// An upgraded connection over whose rings the victim has echoed something.
    pub(crate) fn talking(&mut self) -> Conn {
        let mut conn = self.upgrade(self.target.tcp()).expect("an upgrade");
        conn.theirs.decide(1);
        self.put(&mut conn, b"e");
        let started = Instant::now();
        // What it writes before it has READY goes over TCP.
        while conn.ours.load(wire::PROD) == 0 {
            assert!(started.elapsed() < PATIENCE, "no echo");
            self.put(&mut conn, b"hello");
            while self.pump() && conn.unread() > 0 {
                sleep(Duration::from_micros(200));
            }
            sleep(Duration::from_millis(1));
        }
        conn
    }

    /// Tells the victim to look at a connection.
    pub(crate) fn raise(&self, index: u32, signal: Signal) {
        let (page, ..) = &self.theirs[0];
        let bit = (u64::from(index) * 2 + u64::from(signal == Signal::Space)) % (1024 * 64);
        let word = bit / 64;
        let set = |words: usize, at: u64, bit: u64| {
            page.u64(words + at as usize * 8).fetch_or(1 << bit, Ordering::AcqRel);
        };
        let Some(far) = word.checked_sub(wire::NEAR) else {
            return set(wire::NEAR_WORDS, word, bit % 64);
        };
        set(wire::FAR_WORDS, far, bit % 64);
        set(wire::SUMMARY, far / 64, far % 64);
    }

    pub(crate) fn ring(&self) {
        if let Some(eventfd) = &self.their_eventfd {
            // Full: it is awake.
            let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
        }
    }

    pub(crate) fn signal(&self, conn: &Conn, signal: Signal) {
        self.raise(conn.signal, signal);
        self.ring();
    }

    /// Writes into segment 0, as much as it holds at most, without a look at the reader.
    pub(crate) fn put(&self, conn: &mut Conn, bytes: &[u8]) {
        let at = (conn.sent % wire::FIRST as u64) as usize;
        let (first, rest) = bytes.split_at(bytes.len().min(wire::FIRST - at));
        conn.theirs.put(at, first);
        conn.theirs.put(0, rest);
        conn.sent += bytes.len() as u64;
        conn.theirs.store(wire::PROD, conn.sent);
        self.signal(conn, Signal::Data);
    }
}

impl Conn {
    /// How many bytes of this end's the victim has not read.
    pub(crate) fn unread(&self) -> u64 {
        self.sent.saturating_sub(self.theirs.load(wire::CONS))
    }
}

/// A number that no other connection of this process has.
pub(crate) fn fresh_token() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Sends one packet, waiting for room; a packet that is never taken is an error.
pub(crate) fn send_on(socket: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let started = Instant::now();
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)), "too many descriptors");
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(_) => return Ok(()),
            Err(Errno::AGAIN | Errno::TOOMANYREFS) if started.elapsed() < PATIENCE => {
                sleep(Duration::from_micros(200));
            }
            Err(error) => return Err(error.into()),
        }
    }
}
