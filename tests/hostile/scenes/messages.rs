//! Messages that are none, that come out of turn, or whose answers nobody reads.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::dice::Dice;
use crate::judge::Terms;
use crate::peer::{Lost, Peer, fresh_token};
use crate::scenes::claims::MOST_FAILURES;
use crate::target::{Target, subject_of};
use crate::wire::{self, Packet, Place};

/// For how long an answer is waited for that has to come.
const PATIENCE: Duration = Duration::from_secs(60);

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
        peer.offer_with(0, &subjects[turn % 100], None, &clc);
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
        let ended = (1..400_000).any(|id| peer.send(&wire::offer(id, 0, 0, &subject, None, &clc)).is_err());
        assert!(ended, "the victim queues answers without end");
        peers.push(peer);
    }
}

/// MATCHed, and neither READY nor CANCEL: each is still a TCP connection.
pub(crate) fn matched_and_never_ready(target: &Target) {
    let mut peer = Peer::greeted(target, 512);
    let mut kept: Vec<_> = (0..Terms::OF_A_CROWD.crowd)
        .map(|_| peer.upgrade_as(target.tcp(), 0, false).expect("MATCH"))
        .collect();
    for conn in &mut kept {
        conn.tcp.write_all(b"eabc").expect("write");
        let mut got = [0; 3];
        conn.tcp.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"abc");
    }
    drop(kept);
    peer.must_live("offers that come to nothing");
}

/// Commitments to numbers that are wrong: nothing is proved, and each connection is what it was.
pub(crate) fn proofs_of_nothing(target: &Target) {
    let mut peer = Peer::greeted(target, 64);
    for turn in 0..100 {
        let mut tcp = target.tcp();
        tcp.write_all(b"e").expect("write");
        // After these no offer for it is taken.
        for attempt in 0..=MOST_FAILURES {
            let clc = wire::proposal(peer.gid);
            let id = peer.offer_with(0, &subject_of(&tcp), Some(&[turn; 32]), &clc);
            let answer = peer.answer(id, PATIENCE);
            assert_eq!(answer.is_ok(), attempt < MOST_FAILURES, "attempt {attempt}: {answer:?}");
            let Ok((_, _, clc)) = answer else { continue };
            let (_, first_contact) = wire::accepted(&clc);
            let confirm = wire::confirm(peer.gid, fresh_token(), first_contact);
            let place = Place { arena: 0, slot: peer.slot(), window: 4096 };
            peer.send(&wire::ready(id, place, Some(&[turn; 36]), &confirm)).expect("sent");
            assert_eq!(peer.answer(id, PATIENCE).expect_err("a proof"), Lost::Refused);
        }
        tcp.write_all(b"abc").expect("write");
        let mut got = [0; 3];
        tcp.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"abc");
    }
    peer.must_live("proofs of nothing");
}

/// PROVED and ATTACHED where there was no READY, and READY that proves otherwise than OFFER said.
pub(crate) fn proofs_out_of_turn(target: &Target) {
    for kind in 0..4 {
        let mut peer = Peer::greeted(target, 64);
        let tcp = target.tcp();
        let commitment = (kind == 0).then_some(&[1; 32]);
        let clc = wire::proposal(peer.gid);
        let id = peer.offer_with(0, &subject_of(&tcp), commitment, &clc);
        let (_, _, clc) = peer.answer(id, PATIENCE).expect("MATCH");
        let (_, first_contact) = wire::accepted(&clc);
        let confirm = wire::confirm(peer.gid, fresh_token(), first_contact);
        let place = Place { arena: 0, slot: 0, window: 4096 };
        let packet = match kind {
            0 => wire::ready(id, place, None, &confirm),
            1 => wire::ready(id, place, Some(&[1; 36]), &confirm),
            2 => wire::proved(id, &[1; 36]),
            _ => wire::about(wire::ATTACHED, id),
        };
        peer.send(&packet).expect("sent");
        peer.must_end("a proof out of turn");
    }
}
