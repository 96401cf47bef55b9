//! Random sessions: each is a link that begins somehow, some connections on it, and steps that keep
//! or break the rules, as the dice fall. A session follows from the seed and its number alone.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::child::tell;
use crate::dice::Dice;
use crate::judge::{Terms, Trial};
use crate::peer::{Conn, Peer, Signal, fresh_token, memory_file, send_on};
use crate::scenes::{DONE, rings::scribble};
use crate::target::{Target, subject_of};
use crate::watchdog::{Flavour, step};
use crate::wire::{self, Packet, Place, Said};

/// How many a test plays that is told nothing else, against each kind of runtime.
const SESSIONS: u64 = 150;
/// Sessions of one attacker's process, which is killed then.
const BATCH: u64 = 100;

// ---- the judge's side ----

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn parse<T: std::str::FromStr>(name: &str, word: &str) -> T {
    word.parse().unwrap_or_else(|_| panic!("{name} is {word:?}"))
}

/// Plays as many as the environment says against each kind of runtime.
pub(crate) fn play() {
    const NAMES: [&str; 3] = ["SMC_TEST_SEED", "SMC_TEST_SESSIONS", "SMC_TEST_SECONDS"];
    let seed = match variable(NAMES[0]) {
        Some(word) => parse(NAMES[0], &word),
        None => {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
            u64::from(std::process::id()) ^ now.tv_nsec.unsigned_abs()
        }
    };
    let seconds = variable(NAMES[2]).map(|word| Duration::from_secs(parse(NAMES[2], &word)));
    let which = match variable(NAMES[1]) {
        Some(word) => match word.split_once("..") {
            Some((from, to)) => parse(NAMES[1], from)..parse(NAMES[1], to),
            None => 0..parse(NAMES[1], &word),
        },
        // As many as there is time for.
        None if seconds.is_some() => 0..2_000_000,
        None => 0..2 * SESSIONS,
    };
    say(&format!("random sessions: SMC_TEST_SEED={seed} SMC_TEST_SESSIONS={}..{}", which.start, which.end));
    let half = which.start + (which.end - which.start) / 2;
    let one = |flavour, sessions: Range<u64>| against(flavour, seed, sessions, seconds.map(|time| time / 2));
    if which.end - which.start > 1 {
        one(Flavour::MultiThread, which.start..half);
    }
    one(Flavour::CurrentThread, half..which.end);
}

pub(crate) fn say(text: &str) {
    // For who reads the log; nothing depends on it.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn against(flavour: Flavour, seed: u64, sessions: Range<u64>, time: Option<Duration>) {
    let started = Instant::now();
    let mut trial = Trial::begin(Terms { flavour, ..Terms::USUAL });
    let mut from = sessions.start;
    let mut seen = Seen::default();
    while from < sessions.end && time.is_none_or(|time| started.elapsed() < time) {
        let to = sessions.end.min(from + BATCH);
        // A panic names what is known of it, and so does the watchdog.
        let which = format!("SMC_TEST_SEED={seed} SMC_TEST_SESSIONS={from}..{to}, {flavour:?}");
        step(which.clone());
        let mut attacker = trial.attacker(&format!("random {seed} {from} {to}"));
        seen.add(attacker.hear().strip_prefix(DONE).unwrap_or_else(|| panic!("no end of {which}")));
        trial.listen_to_witnesses();
        attacker.kill();
        trial.health();
        if from == sessions.start {
            trial.take_as_usual();
        }
        from = to;
    }
    let measured = trial.end(&format!("SMC_TEST_SEED={seed} SMC_TEST_SESSIONS={}..{from}", sessions.start));
    say(&format!(
        "{} sessions against {flavour:?} in {:.1} s: {} steps, {} connections upgraded, {} links ended by \
         the victim; {measured}",
        from - sessions.start,
        started.elapsed().as_secs_f64(),
        seen.steps,
        seen.upgraded,
        seen.ended,
    ));
}

/// What came of sessions; without it nobody would know that they reach anything.
#[derive(Clone, Copy, Default)]
struct Seen {
    steps: u64,
    upgraded: u64,
    ended: u64,
}

impl Seen {
    fn add(&mut self, line: &str) {
        let mut numbers = line.split_whitespace().map(|word| word.parse::<u64>().expect("a number"));
        for sum in [&mut self.steps, &mut self.upgraded, &mut self.ended] {
            *sum += numbers.next().expect("three numbers");
        }
    }
}

// ---- the attacker's side ----

pub(crate) fn attack(target: &Target, seed: u64, sessions: Range<u64>) {
    let mut seen = Seen::default();
    for session in sessions {
        let mut dice = Dice::new(seed, session);
        let mut session = Session::begin(target, &mut dice);
        session.go_on(&mut dice);
        seen.steps += session.seen.steps;
        seen.upgraded += session.seen.upgraded;
        seen.ended += session.seen.ended;
    }
    tell(&format!("{DONE} {} {} {}", seen.steps, seen.upgraded, seen.ended));
}

struct Session {
    peer: Peer,
    conns: Vec<Conn>,
    /// Connections that came to nothing yet.
    plain: Vec<TcpStream>,
    seen: Seen,
}

/// A byte that tells the victim what to do.
fn wish(dice: &mut Dice) -> u8 {
    *dice.pick(b"eeeesshd")
}

impl Session {
    fn begin(target: &Target, dice: &mut Dice) -> Self {
        let slots = *dice.pick(&[1, 4, 64, 300]);
        let mut peer = Peer::silent(target, slots);
        if dice.one_in(6) {
            if dice.one_in(2) {
                let _ = peer.open();
            }
            bad_greeting(&peer, dice);
        } else {
            // It may be refused: too many links.
            let _ = peer.greet();
        }
        Session { peer, conns: Vec::new(), plain: Vec::new(), seen: Seen::default() }
    }

    fn go_on(&mut self, dice: &mut Dice) {
        if !self.peer.theirs.is_empty() {
            (0..dice.below(4)).for_each(|_| self.connect(dice));
        }
        for _ in 0..dice.below(80) {
            self.seen.steps += 1;
            let alive = match dice.below(16) {
                0..=5 => self.touch_memory(dice),
                6 | 7 => self.honest_bytes(dice),
                8 | 9 => self.touch_tcp(dice),
                10..=12 => self.signal(dice),
                13 if dice.one_in(3) => self.junk_message(dice),
                14 if dice.one_in(2) => self.message(dice),
                15 if dice.one_in(4) && !self.peer.theirs.is_empty() => {
                    self.connect(dice);
                    true
                }
                _ => {
                    // The victim has its turn.
                    sleep(Duration::from_micros(dice.below(200)));
                    true
                }
            };
            if !alive || !self.peer.pump() {
                self.seen.ended += 1;
                return;
            }
        }
    }

    fn connect(&mut self, dice: &mut Dice) {
        let mut tcp = self.peer.target.tcp();
        let mut subject = subject_of(&tcp);
        // Then a cookie is no proof any more, and there is no other one.
        let early = dice.one_in(4);
        if early {
            first_bytes(&mut tcp, dice);
        }
        let commitment = dice.one_in(if early { 2 } else { 8 }).then(|| match dice.below(5) {
            0 | 1 => wire::SHARE,
            byte => [byte as u8; 32],
        });
        let mut clc = wire::proposal(self.peer.gid);
        if dice.one_in(8) {
            match dice.below(4) {
                0 => subject.cookie = dice.next(),
                1 => subject.network_namespace ^= 1,
                2 => std::mem::swap(&mut subject.local, &mut subject.remote),
                _ => mutate(&mut clc, dice),
            }
        }
        let id = self.peer.offer_with(dice.next() as u8, &subject, commitment.as_ref(), &clc);
        let Ok((signal, place, clc)) = self.peer.answer(id, Duration::from_millis(20)) else {
            self.plain.push(tcp);
            return;
        };
        if !early && dice.one_in(2) {
            first_bytes(&mut tcp, dice);
        }
        let (their_token, first_contact) = wire::accepted(&clc);
        let slot = self.peer.slot();
        let our_token = fresh_token();
        let mut at = Place { arena: 0, slot, window: 1 << (12 + dice.below(10)) };
        let mut confirm = wire::confirm(self.peer.gid, our_token, first_contact);
        match dice.below(24) {
            0 => at.arena = dice.evil(0) as u32,
            1 => at.slot = dice.evil(u64::from(self.peer.slots)) as u32,
            2 => at.window = dice.evil(1 << 30),
            3 => mutate(&mut confirm, dice),
            _ => {}
        }
        match dice.below(12) {
            0 => drop(self.peer.send(&wire::about(wire::CANCEL, id))),
            1 => {}
            _ => {
                let reveals = commitment.is_some() != dice.one_in(24);
                let reveal = reveals.then(|| [dice.next() as u8; 36]);
                let by_key = (commitment == Some(wire::SHARE)) != dice.one_in(24);
                drop(self.peer.send(&match reveal {
                    Some(_) if by_key => wire::ready_with_tag(id, at, &[dice.next() as u8; 32], &confirm),
                    reveal => wire::ready(id, at, reveal.as_ref(), &confirm),
                }));
            }
        }
        self.seen.upgraded += 1;
        let (theirs, ours) = (self.peer.lent(place), self.peer.own(slot));
        let conn = Conn { tcp, theirs, ours, signal, their_token, our_token, sent: 0 };
        match dice.below(6) {
            0 => conn.theirs.decide(dice.evil(300)),
            1 => {}
            // Where its stream is, if nothing was written.
            _ => conn.theirs.decide(1),
        }
        self.conns.push(conn);
    }

    fn touch_memory(&mut self, dice: &mut Dice) -> bool {
        if self.conns.is_empty() {
            return true;
        }
        let at = dice.below(self.conns.len() as u64) as usize;
        let conn = &self.conns[at];
        match dice.below(12) {
            0 => conn.theirs.decide(*dice.pick(&[1, 2, 355, wire::PINNED_WORD])),
            1 => conn.ours.decide(*dice.pick(&[1, 2, 131, wire::PINNED_WORD])),
            2 => conn.theirs.store(wire::DIRECTION, dice.evil(1)),
            3 => conn.theirs.store32(wire::HANDSHAKE, dice.below(5) as u32),
            4 => conn.theirs.put(dice.below(4000) as usize, &[dice.next() as u8; 96]),
            _ => scribble(conn, dice),
        }
        true
    }

    /// Writes to a ring, or reads from one, as one should.
    fn honest_bytes(&mut self, dice: &mut Dice) -> bool {
        if self.conns.is_empty() {
            return true;
        }
        let at = dice.below(self.conns.len() as u64) as usize;
        let conn = &mut self.conns[at];
        if dice.one_in(3) {
            conn.ours.store(wire::CONS, conn.ours.load(wire::PROD));
            self.peer.signal(&self.conns[at], Signal::Space);
        } else if conn.unread() < 3000 {
            let mut bytes = vec![wish(dice)];
            bytes.resize(1 + dice.below(1000) as usize, b'x');
            self.peer.put(conn, &bytes);
        }
        true
    }

    fn touch_tcp(&mut self, dice: &mut Dice) -> bool {
        let count = (self.conns.len() + self.plain.len()) as u64;
        if count == 0 {
            return true;
        }
        let at = dice.below(count) as usize;
        let tcp = match self.conns.get_mut(at) {
            Some(conn) => &mut conn.tcp,
            None => &mut self.plain[at - self.conns.len()],
        };
        // Each may fail: the connection may be at its end.
        let _ = match dice.below(7) {
            0 => tcp.shutdown(Shutdown::Write),
            1 => tcp.shutdown(Shutdown::Both),
            2 => tcp.set_nonblocking(true).and_then(|()| tcp.read(&mut [0; 4096]).map(drop)),
            3 => socket2::SockRef::from(&*tcp).send_out_of_band(b"!").map(drop),
            4 => {
                if at < self.conns.len() {
                    self.conns.swap_remove(at);
                } else {
                    self.plain.swap_remove(at - self.conns.len());
                }
                Ok(())
            }
            5 => socket2::SockRef::from(&*tcp).set_linger(Some(Duration::ZERO)),
            _ => {
                let length = dice.below(2000) as usize;
                tcp.set_nonblocking(true).and_then(|()| tcp.write(&vec![wish(dice); length]).map(drop))
            }
        };
        true
    }

    fn signal(&mut self, dice: &mut Dice) -> bool {
        if self.peer.theirs.is_empty() {
            return true;
        }
        let signal = if dice.one_in(2) { Signal::Data } else { Signal::Space };
        let index = match self.conns.first() {
            Some(_) if !dice.one_in(4) => dice.pick(&self.conns).signal,
            _ => dice.below(u64::from(wire::CONNECTIONS)) as u32,
        };
        self.peer.raise(index, signal);
        self.peer.ring();
        true
    }

    /// A number that names something, or nothing.
    fn token(&self, dice: &mut Dice) -> u64 {
        match self.conns.first() {
            Some(_) if !dice.one_in(5) => {
                let conn = dice.pick(&self.conns);
                if dice.one_in(2) { conn.their_token } else { conn.our_token }
            }
            _ => dice.evil(1),
        }
    }

    /// A message of a known type about something that may exist, whether it is its turn or not.
    fn message(&mut self, dice: &mut Dice) -> bool {
        let token = self.token(dice);
        let asked = self.peer.inbox.drain(..).find_map(|said| match said {
            Said::Ask { token } => Some(token),
            _ => None,
        });
        let file;
        let mut descriptors: Vec<BorrowedFd<'_>> = Vec::new();
        let packet = match dice.below(14) {
            0 => wire::about(wire::DETACH, token),
            1 => wire::about(wire::PINNED, token),
            2 => wire::about(wire::CANCEL, dice.below(6)),
            3 => wire::ask(token, dice.evil(1 << 20), dice.evil(0)),
            4 | 5 => {
                let bytes = 1 << (12 + dice.below(12));
                file = memory_file(bytes);
                descriptors.push(file.as_fd());
                let told = if dice.one_in(4) { dice.evil(4096) } else { bytes as u64 };
                wire::grant(asked.unwrap_or(token), 1 + dice.below(3), told)
            }
            6 => wire::deny(asked.unwrap_or(token), dice.next() as u8),
            7 => wire::give_back(token, dice.evil(1)),
            8 => Packet::new(wire::BYE),
            9 => {
                let slots = *dice.pick(&[1, 4, 1000]);
                file = memory_file(wire::arena_bytes(slots));
                descriptors.push(file.as_fd());
                wire::arena(if dice.one_in(4) { dice.evil(1) as u32 } else { slots })
            }
            10 => {
                let place = Place { arena: 0, slot: dice.below(4) as u32, window: 4096 };
                let confirm = wire::confirm(self.peer.gid, token, dice.one_in(2));
                let reveal = dice.one_in(2).then(|| [dice.next() as u8; 36]);
                wire::ready(dice.below(6), place, reveal.as_ref(), &confirm)
            }
            11 if dice.one_in(2) => wire::proved_with_tag(dice.below(6), &[dice.next() as u8; 32]),
            11 => wire::proved(dice.below(6), &[dice.next() as u8; 36]),
            12 => wire::about(wire::ATTACHED, dice.below(6)),
            _ => self.peer.hello(),
        };
        if dice.one_in(10) {
            descriptors.push(self.peer.eventfd.as_fd());
        }
        self.peer.send_with(&packet, &descriptors).is_ok()
    }

    fn junk_message(&mut self, dice: &mut Dice) -> bool {
        let length = 1 + dice.below(400) as usize;
        let mut bytes = dice.bytes(length);
        bytes[0] = 1 + dice.below(u64::from(wire::TYPES)) as u8;
        self.peer.send(&Packet(bytes)).is_ok()
    }
}

/// What the victim's application is to do, and something for it to do that with.
fn first_bytes(tcp: &mut TcpStream, dice: &mut Dice) {
    let _ = tcp.write_all(&[wish(dice)]);
    let length = dice.below(300) as usize;
    let _ = tcp.write_all(&dice.bytes(length));
}

/// Something that is neither LINK nor HELLO, or one that is wrong in one place.
fn bad_greeting(peer: &Peer, dice: &mut Dice) {
    let mut packet = peer.hello();
    let mut descriptors = vec![peer.file.as_fd(), peer.eventfd.as_fd()];
    let target = peer.target.clone();
    let tcp;
    match dice.below(8) {
        0 => mutate(&mut packet.0, dice),
        1 => packet.0.truncate(dice.below(wire::HELLO_BYTES as u64 - 1) as usize + 1),
        2 => packet.0.push(0),
        3 => descriptors.clear(),
        4 => descriptors.swap(0, 1),
        5 => descriptors.push(peer.eventfd.as_fd()),
        6 => {
            descriptors.clear();
            tcp = target.tcp();
            packet = wire::query(&subject_of(&tcp));
        }
        _ => {
            descriptors.clear();
            let length = 1 + dice.below(5000) as usize;
            packet = Packet(dice.bytes(length));
        }
    }
    // Too long a packet is not even sent.
    let _ = send_on(&peer.socket, &packet.0, &descriptors);
}

fn mutate(bytes: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..=dice.below(3) {
        let at = dice.below(bytes.len() as u64) as usize;
        match dice.below(4) {
            0 => bytes[at] = dice.next() as u8,
            1 => bytes[at] ^= 1 << dice.below(8),
            2 => bytes.truncate(at.max(1)),
            _ => bytes.insert(at, dice.next() as u8),
        }
    }
}
