//! Who says that a connection of two others is its own, and that it is somebody else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use super::asker::Asker;
use super::diag::cookie_of;
use super::{needs_root, wait_for};
use crate::child::{Child, next_word, tell};
use crate::judge::{Terms, Trial};
use crate::peer::{Lost, Peer, Signal, fresh_token};
use crate::raw::{initial_sequence, network_namespace};
use crate::target::{Target, subject_of};
use crate::victim::bytes;
use crate::watchdog::{step, watched};
use crate::wire::{self, Bound, Place, Said, Subject};

/// For how long an answer is waited for that has to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// Wrong reveals of a connection after which no offer for it is taken.
pub(crate) const MOST_FAILURES: u32 = 3;

/// A client that others want to rob: it talks when it is asked, and each answer has to be right.
pub(crate) fn prey(addr: SocketAddr) {
    let mut tcp = TcpStream::connect(addr).expect("connect");
    tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut place = 0;
    let mut talk = |tcp: &mut TcpStream| {
        for length in [1, 700, 9000] {
            let sent = bytes(place, length);
            tcp.write_all(sent).expect("write");
            let mut got = vec![0; length];
            tcp.read_exact(&mut got).expect("read");
            assert!(got == sent, "other bytes at {place}");
            place += length as u64;
        }
    };
    tcp.write_all(b"e").expect("write");
    talk(&mut tcp);
    tell(&tcp.local_addr().expect("an address").to_string());
    while next_word().is_some() {
        talk(&mut tcp);
        tell("well");
    }
}

pub(crate) fn steal(target: &Target) {
    let mut prey = Child::start(&format!("prey {}", target.addr), &target.directory, &[]);
    let client = prey.hear().parse().expect("an address");
    claim_while(target, client, || assert_eq!(prey.ask("talk"), "well"));
}

/// The same with a prey that others watch.
pub(crate) fn claim(target: &Target, client: SocketAddr) {
    claim_while(target, client, || {});
}

/// Claims a client's end of its connection by all that the kernel tells everybody: addresses,
/// cookie, bytes so far.
fn claim_while(target: &Target, client: SocketAddr, mut talk: impl FnMut()) {
    let mut peer = Peer::greeted(target, 64);
    let server = target.addr;
    let subject = Subject {
        local: client,
        remote: server,
        cookie: cookie_of(client, server).expect("the kernel tells everybody"),
        network_namespace: network_namespace(target.tcp()).expect("SO_NETNS_COOKIE"),
    };
    let clc = wire::proposal(peer.gid);
    // By the cookie alone.
    let id = peer.offer_with(0, &subject, None, &clc);
    assert_eq!(peer.answer(id, PATIENCE).expect_err("a cookie is no proof"), Lost::Refused);
    talk();
    // By guesses: the number of a connection of its own, from the same moment, is none.
    let guess = initial_sequence(target.tcp(), b"e").expect("a sample");
    for attempt in 0..=MOST_FAILURES {
        let bound = Bound { client: peer.name(), server: target.endpoint_name(), offer: peer.next_offer() };
        let (commitment, reveal) = wire::commit(&bound, guess.wrapping_add(attempt), [7; 32]);
        let id = peer.offer_with(0, &subject, Some(&commitment), &clc);
        let answer = peer.answer(id, PATIENCE);
        assert_eq!(answer.is_ok(), attempt < MOST_FAILURES, "attempt {attempt}: {answer:?}");
        let Ok((signal, place, accept)) = answer else { continue };
        let (token, first_contact) = wire::accepted(&accept);
        // It is switched, as its producer says, and there are bytes.
        let theirs = peer.lent(place);
        theirs.decide(1);
        theirs.put(0, b"injected");
        theirs.store(wire::PROD, 8);
        for kind in [Signal::Data, Signal::Space] {
            peer.raise(signal, kind);
        }
        peer.ring();
        let _ = peer.send(&wire::about(wire::PINNED, token));
        talk();
        let slot = peer.slot();
        let confirm = wire::confirm(peer.gid, fresh_token(), first_contact);
        let at = Place { arena: 0, slot, window: 4096 };
        peer.send(&wire::ready(id, at, Some(&reveal), &confirm)).expect("sent");
        assert_eq!(peer.answer(id, PATIENCE).expect_err("a guess"), Lost::Refused);
        talk();
        assert_eq!(peer.own(slot).load(wire::PROD), 0, "bytes of the prey");
    }
    peer.must_live("guesses");
}

/// A connection of its own, upgraded by its number; what proved it, and the offer.
fn proved(peer: &mut Peer) -> (TcpStream, u64, u32, [u8; 32], [u8; 36]) {
    let tcp = peer.target.tcp();
    let sequence = initial_sequence(&tcp, b"e").expect("a sample");
    let id = peer.next_offer();
    let bound = Bound { client: peer.name(), server: peer.target.endpoint_name(), offer: id };
    let (commitment, reveal) = wire::commit(&bound, sequence, [9; 32]);
    let answer = try_to_prove(peer, &subject_of(&tcp), &commitment, &reveal);
    answer.expect("who holds the connection proves it");
    (tcp, id, sequence, commitment, reveal)
}

/// OFFER, READY, ATTACHED.
fn try_to_prove(
    peer: &mut Peer,
    subject: &Subject,
    commitment: &[u8; 32],
    reveal: &[u8; 36],
) -> Result<u64, Lost> {
    let clc = wire::proposal(peer.gid);
    let id = peer.offer_with(0, subject, Some(commitment), &clc);
    let (_, _, accept) = peer.answer(id, PATIENCE)?;
    let (_, first_contact) = wire::accepted(&accept);
    let confirm = wire::confirm(peer.gid, fresh_token(), first_contact);
    let at = Place { arena: 0, slot: peer.slot(), window: 4096 };
    peer.send(&wire::ready(id, at, Some(reveal), &confirm)).map_err(|_| Lost::Ended)?;
    peer.wait(PATIENCE, |said| match said {
        Said::Proved { id: at } if *at == id => Some(Ok(())),
        Said::Refuse { id: at } if *at == id => Some(Err(Lost::Refused)),
        _ => None,
    })?;
    peer.send(&wire::about(wire::ATTACHED, id)).map_err(|_| Lost::Ended)?;
    Ok(id)
}

/// What has proved one connection proves no other one, in whatever way it is said again.
pub(crate) fn replays(target: &Target) {
    let mut peer = Peer::greeted(target, 64);
    let (own, first, sequence, commitment, reveal) = proved(&mut peer);
    let network_namespace = network_namespace(&own).expect("SO_NETNS_COOKIE");
    for how in 0..3 {
        // One wrong reveal of a connection is the last.
        let mut prey = Child::start(&format!("prey {}", target.addr), &target.directory, &[]);
        let client: SocketAddr = prey.hear().parse().expect("an address");
        let cookie = cookie_of(client, target.addr).expect("the kernel tells everybody");
        let theirs = Subject { local: client, remote: target.addr, cookie, network_namespace };
        let again = match how {
            // As it was said.
            0 => try_to_prove(&mut peer, &theirs, &commitment, &reveal),
            // The number of another connection, bound to the new offer.
            1 => {
                let offer = peer.next_offer();
                let bound = Bound { client: peer.name(), server: target.endpoint_name(), offer };
                let (commitment, reveal) = wire::commit(&bound, sequence, [9; 32]);
                try_to_prove(&mut peer, &theirs, &commitment, &reveal)
            }
            // Under the number of that offer, on a link of its own, as somebody else would.
            _ => {
                let mut other = Peer::greeted(target, 64);
                for _ in 1..first {
                    let _ = other.offer_with(0, &theirs, None, &wire::proposal(peer.gid));
                }
                assert_eq!(other.next_offer(), first);
                try_to_prove(&mut other, &theirs, &commitment, &reveal)
            }
        };
        assert_eq!(again.expect_err("said before"), Lost::Refused, "{how}");
        assert_eq!(prey.ask("talk"), "well");
    }
    // The right number of a connection that it holds, bound to another server, client or offer.
    for wrong in 0..3 {
        let tcp = target.tcp();
        let sequence = initial_sequence(&tcp, b"e").expect("a sample");
        let offer = peer.next_offer();
        let mut bound = Bound { client: peer.name(), server: target.endpoint_name(), offer };
        match wrong {
            0 => bound.client = [1; 16],
            1 => bound.server = peer.name(),
            _ => bound.offer -= 1,
        }
        let (commitment, reveal) = wire::commit(&bound, sequence, [9; 32]);
        let answer = try_to_prove(&mut peer, &subject_of(&tcp), &commitment, &reveal);
        assert_eq!(answer.expect_err("bound to others"), Lost::Refused, "{wrong}");
    }
    peer.must_live("replays");
}

/// Each step of a proof once more when it is done with.
pub(crate) fn twice(target: &Target) {
    for kind in 0..5 {
        let mut peer = Peer::greeted(target, 64);
        let (tcp, id, _, commitment, reveal) = proved(&mut peer);
        let confirm = wire::confirm(peer.gid, fresh_token(), false);
        let at = Place { arena: 0, slot: peer.slot(), window: 4096 };
        let packet = match kind {
            0 => wire::about(wire::ATTACHED, id),
            1 => wire::ready(id, at, Some(&reveal), &confirm),
            2 => wire::proved(id, &reveal),
            3 => wire::ready(id, at, None, &confirm),
            _ => {
                let subject = subject_of(&tcp);
                let clc = wire::proposal(peer.gid);
                // Another offer for a connection that is upgraded; then its number once more.
                let late = peer.offer_with(0, &subject, Some(&commitment), &clc);
                assert_eq!(peer.answer(late, PATIENCE).expect_err("upgraded"), Lost::Refused);
                wire::offer(late, 0, 0, &subject, Some(&commitment), &clc)
            }
        };
        peer.send(&packet).expect("sent");
        if kind == 4 {
            // A number that was answered is free to be answered again.
            assert_eq!(peer.answer(id + 1, PATIENCE).expect_err("upgraded"), Lost::Refused);
        } else {
            peer.must_end("a step of a proof, once more");
        }
    }
}

/// A client is greeted as by the server that it looks for later; and the server as by the client.
pub(crate) fn under_another_name(target: &Target) {
    let mut asker = Asker::start(target);
    let client = Target { directory: target.directory.clone(), addr: asker.addr };
    let mut liars = Vec::new();
    for (reached, name) in [(&client, target.endpoint_name()), (target, client.endpoint_name())] {
        let mut liar = Peer::silent(reached, 64);
        liar.open().expect("HELLO");
        let hello = liar.hello_as(name);
        liar.send_with(&hello, &[liar.file.as_fd(), liar.eventfd.as_fd()]).expect("sent");
        liars.push(liar);
    }
    let said = asker.ask(target.addr, 4);
    assert_eq!(said.upgraded, 4, "offers to the true one finish: {said:?}");
    for liar in &mut liars {
        assert!(liar.pump(), "a link is kept, whatever its name");
        assert!(!liar.inbox.iter().any(|said| matches!(said, Said::Match { .. })), "{:?}", liar.inbox);
        assert!(liar.inbox.is_empty(), "an offer for somebody else: {:?}", liar.inbox);
    }
}

/// As [`steal`], from a container beside: another pid namespace, the same user and network.
#[test]
fn steal_from_another_pid_namespace() {
    if !needs_root("steal_from_another_pid_namespace") {
        return;
    }
    watched(|| {
        let trial = Trial::begin(Terms::USUAL);
        let mut prey = Child::start(&format!("prey {}", trial.addr()), trial.dir(), &[]);
        let client = prey.hear();
        step("the attack");
        let role = format!("attack {} claim {client}", trial.addr());
        let before = ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child", "--"];
        let mut thief = Child::start_behind(&before, &role, trial.dir(), &[]);
        wait_for(&mut thief, || assert_eq!(prey.ask("talk"), "well"));
        trial.listen_to_witnesses();
        trial.meet_a_newcomer();
        thief.kill();
        drop(prey);
        trial.end("steal_from_another_pid_namespace");
    });
}
