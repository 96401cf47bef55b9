//! Messages that are none, that come out of turn, or whose answers nobody reads.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use crate::dice::Dice;
use crate::peer::{Peer, Target, subject_of};
use crate::wire::{self, Packet, Place};

pub(crate) fn junk(target: &Target) {
    for bytes in [&[0][..], &[200, 1, 2, 3], &[9; wire::LONGEST + 1], b"GET / HTTP/1.1\r\n\r\n"] {
        for greeted in [false, true] {
            let mut peer = if greeted { Peer::greeted(target, 4) } else { Peer::silent(target, 4) };
            // It may have hung up already.
            let _ = peer.send(&Packet(bytes.to_vec()));
            peer.must_end("junk");
        }
    }
    let mut dice = Dice::new(4, 1);
    for _ in 0..300 {
        let mut peer = Peer::greeted(target, 4);
        for _ in 0..20 {
            let length = 1 + dice.below(255) as usize;
            let mut bytes = dice.bytes(length);
            bytes[0] = 1 + dice.below(u64::from(wire::TYPES)) as u8;
            if peer.send(&Packet(bytes)).is_err() || !peer.pump() {
                break;
            }
        }
    }
}

pub(crate) fn junk_of_three_at_once(target: &Target) {
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| junk(target));
        }
    });
}

pub(crate) fn match_of_no_offer(target: &Target) {
    let mut peer = Peer::greeted(target, 4);
    let place = Place { arena: 0, slot: 0, window: 4096 };
    peer.send(&wire::match_offer(77, place, &[0; 130])).expect("sent");
    peer.must_end("MATCH of no offer");
}

pub(crate) fn detach_twice(target: &Target) {
    let mut peer = Peer::greeted(target, 64);
    let conn = peer.talking();
    for _ in 0..2 {
        // The first one may have ended it.
        let _ = peer.send(&wire::about(wire::DETACH, conn.their_token));
    }
    peer.must_end("DETACH twice");
}

/// OFFERs of connections that are somebody else's, who never accepts them.
pub(crate) fn offers_in_vain(target: &Target) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let to = listener.local_addr().expect("an address");
    let streams: Vec<_> = (0..100).map(|_| TcpStream::connect(to).expect("connect")).collect();
    let subjects: Vec<_> = streams.iter().map(subject_of).collect();
    let mut peer = Peer::greeted(target, 4);
    let clc = wire::proposal(peer.gid);
    for turn in 0..20_000 {
        peer.offer_with(0, &subjects[turn % 100], &clc);
        assert!(peer.pump(), "the link ends after {turn} offers");
        peer.inbox.clear();
    }
}

/// OFFERs that are refused at once, and nobody takes the answers: the victim's queue has a limit.
pub(crate) fn answers_never_read(target: &Target) {
    let subject = subject_of(&target.tcp());
    let clc = wire::proposal([7; 16]);
    let mut peers = Vec::new();
    for _ in 0..2 {
        let peer = Peer::greeted(target, 1);
        let ended = (1..400_000).any(|id| peer.send(&wire::offer(id, 0, 0, &subject, &clc)).is_err());
        assert!(ended, "the victim queues answers without end");
        peers.push(peer);
    }
}

/// MATCHed, and neither READY nor CANCEL: each is still a TCP connection.
pub(crate) fn matched_and_never_ready(target: &Target) {
    let mut peer = Peer::greeted(target, 512);
    let mut kept: Vec<_> =
        (0..200).map(|_| peer.upgrade_as(target.tcp(), 0, false).expect("MATCH")).collect();
    for conn in &mut kept {
        conn.tcp.write_all(b"eabc").expect("write");
        let mut got = [0; 3];
        conn.tcp.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"abc");
    }
    drop(kept);
    peer.must_live("offers that come to nothing");
}
