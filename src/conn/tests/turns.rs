//! A stranger that knows the protocol, has a connection or two to speak of, and says everything at
//! any time: the upgrade under any order of messages, words and deeds. At most its own link ends,
//! and nothing is left.

#[cfg(test)]
mod random;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

use super::bytes;
use super::hosts::{CLIENT, Lab, Pair, SERVER};
use super::stranger::{Bystander, Stranger};
use crate::clc::{Answer, ClientHandshake, Dmb};
use crate::config::UpgradePolicy;
use crate::conn::Directions;
use crate::ism::arena::{ArenaMap, DmbMemory, DmbSegment};
use crate::ism::budget::Account;
use crate::ism::dmb::{Flags, HandshakeWord};
use crate::ism::interrupt::Signal;
use crate::ism::ring::{Memory, Refusal};
use crate::ism::sys;
use crate::link::message::{DmbPlace, LONGEST, Message};
use crate::link::proof::{Bound, Exchange, How, Part, Reveal, Secret};
use crate::link::stream::LinkedStream;
use crate::sync::{Arc, AtomicU64, Ordering};

/// Connections that the stranger speaks of.
const PAIRS: usize = 2;

/// What happens next. A `usize` beside others chooses among the connections.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// A whole upgrade, as it should be, the switch with it.
    Upgrade(usize, By),
    /// The server's application accepts.
    Accept(usize),
    Offer(usize, bool, By),
    /// READY for what was matched, or for what was not; with an honest slot or another.
    Ready(usize, u32),
    Cancel(u64),
    /// PROVED and ATTACHED for anything.
    Proved(u64),
    Attached(u64),
    Pinned(usize),
    Detach(usize),
    Ask(usize, u64),
    Grant(usize, u64, u32),
    Deny(usize),
    Return(usize, u64),
    Arena(u32),
    Bye,
    Hello,
    /// The stranger's word about the direction it sends in; -1 pins.
    Switch(usize, i64),
    /// The stranger pins the direction that it receives in.
    PinWord(usize),
    Handshake(usize, usize),
    /// Any value into one of the words of both DMBs.
    Scribble(usize, usize, u64),
    Flags(usize, u32),
    Signal(u32, bool),
    /// Bytes over TCP, its end, or both.
    Tcp(usize, usize),
    TcpEnd(usize),
    /// The server's application.
    Read(usize),
    Write(usize, usize),
    Shutdown(usize),
    Close(usize),
    Pin(usize),
    /// Everything that was sent is delivered.
    Run,
}

/// What an offer is to be proved by.
#[derive(Clone, Copy, Debug)]
enum By {
    Cookie,
    /// The right number, or another one.
    Number,
    Guess,
}

/// Bytes that say what happens, for a fuzzer. What they do not say is 0.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    /// Up to 65535, and small ones more often.
    fn length(&mut self) -> usize {
        let bits = self.below(17);
        usize::from(u16::from_le_bytes([self.byte(), self.byte()])) & ((1 << bits) - 1)
    }

    /// Small, or large, or near the end of all numbers.
    fn number(&mut self) -> u64 {
        let number = u64::from(self.byte());
        match self.byte() % 4 {
            0 => number % 8,
            1 => number << self.below(57),
            2 => 1 << 16,
            _ => u64::MAX - number,
        }
    }

    fn by(&mut self) -> By {
        [By::Cookie, By::Number, By::Guess][self.below(3)]
    }

    fn act(&mut self) -> Act {
        let (kind, at) = (self.byte(), self.below(PAIRS));
        match kind % 32 {
            0 | 1 => Act::Upgrade(at, self.by()),
            2 => Act::Accept(at),
            3 => Act::Offer(at, self.byte() % 2 == 0, self.by()),
            // Mostly as it should be.
            4 => Act::Ready(at, u32::from(self.byte()).saturating_sub(250)),
            5 => Act::Cancel(u64::from(self.byte() % 4)),
            6 => Act::Proved(u64::from(self.byte() % 4)),
            7 => Act::Attached(u64::from(self.byte() % 4)),
            8 => Act::Pinned(at),
            9 => Act::Detach(at),
            10 => Act::Ask(at, self.number()),
            11 => Act::Grant(at, self.number() % 4, 12 + u32::from(self.byte() % 8)),
            12 => Act::Deny(at),
            13 => Act::Return(at, u64::from(self.byte() % 4)),
            14 => Act::Arena(u32::from(self.byte() % 20)),
            15 => [Act::Bye, Act::Hello][self.below(2)],
            16 => Act::Switch(at, i64::from(self.byte().saturating_sub(250)) - 1),
            17 => Act::PinWord(at),
            18 => Act::Handshake(at, self.below(4)),
            19 => Act::Scribble(at, self.below(9), self.number()),
            20 => Act::Flags(at, u32::from(self.byte())),
            21 => Act::Signal(self.length() as u32, self.byte() % 2 == 0),
            22 => Act::Tcp(at, 1 + self.length() % 400),
            23 => Act::TcpEnd(at),
            24 => Act::Read(at),
            25 => Act::Write(at, 1 + self.length() % 9000),
            26 => Act::Shutdown(at),
            27 => Act::Close(at),
            28 => Act::Pin(at),
            29 => Act::Switch(at, 0),
            _ => Act::Run,
        }
    }
}

/// The turns that the bytes say, at most so many, against a server of its own; panics at what must
/// not be.
#[cfg(not(test))]
pub(crate) fn play(bytes: &[u8]) {
    play_script(bytes);
}

fn play_script(bytes: &[u8]) -> Reached {
    const MOST: usize = 120;
    let mut play = Play::new();
    let mut script = Script(bytes);
    for _ in 0..MOST {
        if script.0.is_empty() {
            break;
        }
        let act = script.act();
        play.act(act);
    }
    play.finish()
}

/// What the stranger knows of a connection.
#[derive(Default)]
struct Known {
    offer: Option<(u64, ClientHandshake)>,
    /// What that offer has committed it with.
    secret: Option<Secret>,
    exchange: Option<Exchange>,
    /// The victim's DMB, and its token.
    theirs: Option<(DmbMemory, u64)>,
    ours: Option<(DmbMemory, u64)>,
}

struct Play {
    lab: Lab,
    bystander: Bystander,
    links: usize,
    stranger: Stranger,
    pairs: Vec<Pair>,
    known: Vec<Known>,
    arenas: Vec<Arc<ArenaMap>>,
    /// Offers by number.
    offers: BTreeMap<u64, usize>,
    rung: AtomicU64,
    alive: bool,
}

impl Play {
    fn new() -> Self {
        let mut lab = Lab::new();
        let bystander = Bystander(lab.upgraded());
        let links = lab.hosts[SERVER].endpoint.links().len();
        let stranger = Stranger::to(&lab, SERVER);
        stranger.send(&Message::Link);
        lab.run();
        let pairs = (0..PAIRS).map(|_| lab.connect(UpgradePolicy::Handshake, 64 << 10)).collect();
        let known = (0..PAIRS).map(|_| Known::default()).collect();
        let (arenas, offers, rung) = (Vec::new(), BTreeMap::new(), AtomicU64::new(0));
        let mut play =
            Play { lab, bystander, links, stranger, pairs, known, arenas, offers, rung, alive: true };
        play.hear();
        assert_eq!(play.arenas.len(), 1, "HELLO");
        play.stranger.greet();
        play.lab.run();
        play
    }

    fn send(&mut self, message: &Message) {
        // Who has hung up takes nothing.
        let _ = sys::send(self.stranger.socket.as_fd(), &message.encode(), &[]);
    }

    /// Takes what the victim has said.
    fn hear(&mut self) {
        let mut buffer = [0; LONGEST];
        while self.alive {
            let received = match sys::recv(self.stranger.socket.as_fd(), &mut buffer, 2) {
                Ok(received) if received.len > 0 => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => {
                    self.alive = false;
                    return;
                }
            };
            match Message::decode(&buffer[..received.len]).expect("our own message") {
                Message::Hello { slots, .. } | Message::Arena { slots } => {
                    let file = received.carried.fds.first().expect("an arena");
                    self.arenas.push(
                        ArenaMap::attach(file, slots, &Account::of_ourselves()).expect("an arena of our own"),
                    );
                }
                Message::Match { id, dmb, commitment, clc, .. } => {
                    let Some(at) = self.offers.get(&id) else { panic!("MATCH of no offer") };
                    let known = &mut self.known[*at];
                    let Some((_, handshake)) = known.offer.as_mut().filter(|(number, _)| *number == id)
                    else {
                        continue;
                    };
                    if let Ok(Answer::Accepted { dmb: Dmb { token, .. }, .. }) = handshake.on_answer(&clc) {
                        let memory = self.arenas[dmb.arena as usize].dmb(dmb.slot).expect("a slot");
                        known.theirs = Some((memory, token));
                        let secret = known.secret.as_ref().zip(commitment);
                        known.exchange = secret.and_then(|(ours, theirs)| ours.meet(theirs));
                    }
                }
                Message::Proved { id, .. } => self.send(&Message::Attached { id }),
                _ => {}
            }
        }
    }

    /// A token of the connection, of either direction.
    fn token(&self, at: usize, ours: bool) -> Option<u64> {
        let known = if ours { &self.known[at].ours } else { &self.known[at].theirs };
        known.as_ref().map(|(_, token)| *token)
    }

    /// Says something about a connection, if there is anything to speak of.
    fn about(&mut self, at: usize, ours: bool, message: impl FnOnce(u64) -> Message) {
        if let Some(token) = self.token(at, ours) {
            self.send(&message(token));
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Upgrade(at, by) => {
                let offer = Act::Offer(at, false, by);
                let steps = [Act::Accept(at), offer, Act::Run, Act::Ready(at, 0), Act::Run, Act::Run];
                steps.into_iter().for_each(|act| self.act(act));
                self.act(Act::Switch(at, 0));
            }
            Act::Accept(at) => self.pairs[at].accept(&self.lab),
            Act::Offer(at, handshake, by) => {
                let linked: &dyn LinkedStream = &*self.pairs[at].conns[CLIENT];
                let Ok(subject) = linked.subject() else { return };
                let id = self.offers.len() as u64;
                self.offers.insert(id, at);
                let (client, clc) = ClientHandshake::new(&self.stranger.device());
                self.known[at].offer = Some((id, client));
                let secret = self.secret(at, by, id);
                let commitment = secret.as_ref().map(Secret::commitment);
                (self.known[at].secret, self.known[at].exchange) = (secret, None);
                self.send(&Message::Offer { id, signal: id as u32, handshake, subject, commitment, clc });
            }
            Act::Ready(at, off) => self.ready(at, off),
            Act::Cancel(id) => self.send(&Message::Cancel { id }),
            Act::Proved(id) => {
                self.send(&Message::Proved { id, reveal: Reveal::Number { sequence: 0, nonce: [0; 32] } });
            }
            Act::Attached(id) => self.send(&Message::Attached { id }),
            Act::Pinned(at) => self.about(at, true, |token| Message::Pinned { token }),
            Act::Detach(at) => self.about(at, false, |token| Message::Detach { token }),
            Act::Ask(at, bytes) => self.about(at, false, |token| Message::Ask { token, bytes, held: 0 }),
            Act::Grant(at, segment, bits) => {
                let bytes = 1 << bits;
                let Ok((_, file)) = DmbSegment::create(bytes, &Account::of_ourselves()) else { return };
                let Some(token) = self.token(at, true) else { return };
                let grant = Message::Grant { token, segment, bytes: bytes as u64 };
                let _ = sys::send(self.stranger.socket.as_fd(), &grant.encode(), &[file.as_fd()]);
            }
            Act::Deny(at) => self.about(at, true, |token| Message::Deny { token, why: Refusal::Limit }),
            Act::Return(at, segment) => {
                self.about(at, false, |token| Message::Return { token, segment });
            }
            Act::Arena(slots) => {
                let Ok((_, file)) = crate::ism::arena::Arena::create(slots.max(1), &Account::of_ourselves())
                else {
                    return;
                };
                let arena = Message::Arena { slots };
                let _ = sys::send(self.stranger.socket.as_fd(), &arena.encode(), &[file.as_fd()]);
            }
            Act::Bye => self.send(&Message::Bye),
            Act::Hello => self.send(&self.stranger.hello()),
            Act::Switch(at, x) => {
                let Some((theirs, _)) = &self.known[at].theirs else { return };
                let _ = match u64::try_from(x) {
                    Ok(x) => theirs.header().switch(x).is_ok(),
                    Err(_) => theirs.header().pin() == crate::ism::dmb::Direction::Pinned,
                };
            }
            Act::PinWord(at) => {
                if let Some((ours, _)) = &self.known[at].ours {
                    ours.header().pin();
                }
            }
            Act::Handshake(at, to) => {
                use HandshakeWord::{Go, Held, None, Off};
                let Some((theirs, _)) = &self.known[at].theirs else { return };
                let _ =
                    theirs.header().move_handshake(theirs.header().handshake(), [None, Held, Go, Off][to]);
            }
            Act::Scribble(at, field, value) => self.scribble(at, field, value),
            Act::Flags(at, bits) => {
                if let Some((theirs, _)) = &self.known[at].theirs {
                    theirs.header().producer.flags.store(bits, Ordering::Release);
                }
                if let Some((ours, _)) = &self.known[at].ours {
                    ours.header().reader.flags.store(Flags::from_bits(bits).bits(), Ordering::Release);
                }
            }
            Act::Signal(index, data) => {
                let signal = if data { Signal::Data } else { Signal::Space };
                let index = index % crate::ism::interrupt::CONNECTIONS;
                self.arenas[0].signals().raise(index, signal, || 1, u64::MAX, &self.rung);
            }
            Act::Tcp(at, length) => {
                if let Some(socket) = self.pairs[at].socket(CLIENT) {
                    let _ = io::Write::write(&mut &socket.tcp, &bytes(0, length));
                }
            }
            Act::TcpEnd(at) => {
                if let Some(socket) = self.pairs[at].socket(CLIENT) {
                    let _ = socket.tcp.shutdown(std::net::Shutdown::Write);
                }
            }
            Act::Run => {
                self.lab.run();
                self.hear();
            }
            _ => self.application(act),
        }
    }

    /// What the server's application does with its end.
    fn application(&mut self, act: Act) {
        let (Act::Read(at) | Act::Write(at, _) | Act::Shutdown(at) | Act::Close(at) | Act::Pin(at)) = act
        else {
            return;
        };
        let pair = &self.pairs[at];
        if pair.accepted.is_none() || pair.socket(SERVER).is_none() {
            return;
        }
        let conn = &pair.conns[SERVER];
        match act {
            Act::Read(_) => drop(pair.try_read(SERVER, 500)),
            Act::Write(_, length) => {
                let bytes = bytes(0, length);
                let mut op = super::ops::writing(&bytes);
                let _ = conn.try_write(&mut op, crate::conn::OnPending::Return);
            }
            Act::Shutdown(_) => {
                let _ = conn.shutdown_write();
            }
            Act::Pin(_) => drop(conn.pin("into_std", Directions::Both)),
            _ => pair.close(SERVER),
        }
    }

    /// What the stranger, which holds the client's end, can say of it.
    fn secret(&self, at: usize, by: By, offer: u64) -> Option<Secret> {
        let stream: &dyn LinkedStream = &*self.pairs[at].conns[SERVER];
        let sequence = match by {
            By::Cookie => return None,
            By::Number => stream.initial_sequence().unwrap_or_default(),
            By::Guess => 0,
        };
        let how = if offer % 2 == 0 { How::Key } else { How::Hash };
        let server = self.lab.hosts[SERVER].endpoint.id().0;
        let bound = Bound { server, client: self.stranger.name, offer };
        Some(Secret::new(how, Part::Client, bound, sequence).expect("random numbers"))
    }

    fn ready(&mut self, at: usize, off: u32) {
        // Before MATCH only one that is wrong anyhow.
        let known = &mut self.known[at];
        let Some((id, handshake)) = known.offer.as_mut().filter(|_| off > 0 || known.theirs.is_some()) else {
            return;
        };
        let id = *id;
        // Without MATCH there is nothing to confirm.
        let token = 1000 + id;
        let clc = handshake.confirm(Dmb { token, bytes: 4096 }, 7).unwrap_or_default();
        let Ok(Some(slot)) = self.stranger.arena.allocate() else { return };
        if let Some(memory) = self.stranger.arena.map().dmb(slot) {
            self.known[at].ours = Some((memory, token));
        }
        let dmb = DmbPlace { arena: off / 5, slot: slot + off, window: 4096 };
        let known = &self.known[at];
        let early = known.secret.as_ref().map(|_| Reveal::Tag([0; 32]));
        let reveal = known.exchange.as_ref().map_or(early, |exchange| Some(exchange.reveal));
        self.send(&Message::Ready { id, dmb, reveal, clc });
    }

    fn scribble(&mut self, at: usize, field: usize, value: u64) {
        let known = &self.known[at];
        if let Some((theirs, _)) = &known.theirs {
            let header = theirs.header();
            let producer = &header.producer;
            match field {
                0 => producer.prod.store(value, Ordering::Release),
                1 => producer.hop_count.store(value, Ordering::Release),
                2 => producer.wake_at.store(value, Ordering::Release),
                3 => header.hops.0[value as usize % 16].position.store(value, Ordering::Release),
                4 => header.hops.0[value as usize % 16].segment.store(value % 5, Ordering::Release),
                5 => header.consumer.cons.store(value, Ordering::Release),
                _ => {}
            }
        }
        if let Some((ours, _)) = &known.ours {
            match field {
                6 => ours.header().consumer.cons.store(value, Ordering::Release),
                7 => ours.header().consumer.hop.store(value, Ordering::Release),
                8 => ours.header().space_armed.0.store(value as u32, Ordering::Release),
                _ => {}
            }
        }
    }

    /// The stranger goes, and so do the connections: nobody else has noticed, and nothing is left.
    /// Answers how far it came.
    fn finish(mut self) -> Reached {
        self.lab.run();
        self.hear();
        self.bystander.is_well();
        let reached = Reached {
            ring: (0..PAIRS)
                .any(|at| self.pairs[at].reads_ring(SERVER) || self.pairs[at].writes_ring(SERVER)),
            fault: !self.alive,
        };
        let Play { mut lab, bystander, links, stranger, pairs, known, arenas, .. } = self;
        drop((stranger, known, arenas));
        lab.run();
        drop(pairs);
        lab.run();
        assert_eq!(lab.hosts[SERVER].endpoint.links().len(), links, "a link is left");
        bystander.is_well();
        assert_eq!(lab.slots_in_use(), 2, "a slot is left");
        reached
    }
}

/// Without it nobody would know that the plays lead anywhere.
#[derive(Clone, Copy)]
struct Reached {
    /// A connection has switched.
    ring: bool,
    /// The victim has ended the link.
    fault: bool,
}
