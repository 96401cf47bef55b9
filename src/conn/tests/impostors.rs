//! Who poses as the server, under a name of its own or another's, and gets nothing by it
//! (docs/protocol.md, "Proof").

use std::io::{Read, Write};
use std::os::fd::AsFd;

use super::hosts::{CLIENT, Host, Lab, Pair, SERVER};
use super::peers::matching;
use super::proofs::{Thief, goes_on, number_of, subject_of, turn};
use super::stranger::{DMB, Impostor, PLACE, Stranger, TOKEN};
use super::{note, watched};
use crate::clc::{Answer, ClientHandshake, Confirmation, Dmb, ServerHandshake};
use crate::config::Config;
use crate::ism::sys;
use crate::link::message::{DmbPlace, Message};
use crate::link::proof::{Bound, Commitment, How, MOST_ATTEMPTS, Part, Reveal, Secret};
use crate::link::stream::LinkedStream;
use crate::peer::PeerPolicy;
use crate::sync::Arc;
use crate::transport::{FallbackReason, Transport};

/// Lets an impostor hear the offer of a client that has written.
fn hears_a_commitment(impostor: &mut Impostor) -> (Stranger, u64, Commitment, Vec<u8>) {
    impostor.client.write(CLIENT, b"password");
    impostor.innocent.set_nonblocking(false).unwrap();
    impostor.innocent.read_exact(&mut [0; 8]).unwrap();
    let (stranger, offer) = impostor.hears_an_offer();
    let Message::Offer { id, commitment: Some(commitment), clc, .. } = offer else {
        panic!("no commitment: {offer:?}")
    };
    (stranger, id, commitment, clc)
}

/// The cookie of the innocent server's socket, which the kernel tells everybody.
fn innocent_cookie(impostor: &Impostor) -> u64 {
    sys::cookie(impostor.innocent.as_fd()).unwrap()
}

/// MATCH with the right cookie and that commitment.
fn committed(
    impostor: &Impostor,
    stranger: &Stranger,
    (id, proposal): (u64, &[u8]),
    commitment: Option<Commitment>,
) -> Message {
    let cookie = innocent_cookie(impostor);
    match matching(impostor, stranger, id, proposal, cookie) {
        Message::Match { id, signal, dmb, cookie, clc, .. } => {
            Message::Match { id, signal, dmb, cookie, commitment, clc }
        }
        other => panic!("no MATCH: {other:?}"),
    }
}

/// The share of somebody who has guessed the number.
fn share_of_a_guess(stranger: &Stranger, client: &Host, offer: u64, guess: u32) -> Commitment {
    let bound = Bound { server: stranger.name, client: client.endpoint.id().0, offer };
    Secret::new(How::Key, Part::Server, bound, guess).unwrap().commitment()
}

/// Lets an impostor answer the offer with a guess, as far as READY.
fn guesses(impostor: &mut Impostor) -> Stranger {
    let (stranger, id, _, proposal) = hears_a_commitment(impostor);
    let guess = share_of_a_guess(&stranger, &impostor.host, id, 1);
    stranger.send(&committed(impostor, &stranger, (id, &proposal), Some(guess)));
    impostor.host.run();
    let answer = stranger.hear();
    assert!(matches!(answer, Ok(Some(Message::Ready { .. }))), "{answer:?}");
    stranger
}

#[test]
fn an_impostor_gets_nothing_revealed_for_what_proves_nothing() {
    watched(|| {
        let no_point = Commitment::Share([0xff; 32]);
        for commitment in [None, Some(Commitment::Hash([3; 32])), Some(no_point)] {
            let lab = Lab::new();
            let mut impostor = Impostor::new(&lab);
            let (stranger, id, _, proposal) = hears_a_commitment(&mut impostor);
            stranger.send(&committed(&impostor, &stranger, (id, &proposal), commitment));
            impostor.host.run();
            assert_eq!(stranger.hear(), Ok(Some(Message::Cancel { id })));
            impostor.is_unharmed(FallbackReason::Unproved);
        }
    });
}

#[test]
fn an_impostor_never_gets_a_byte_nor_the_number() {
    watched(|| {
        // What it commits itself to: a guess, and what the client itself has sent.
        for echoes in [false, true] {
            let lab = Lab::new();
            let mut impostor = Impostor::new(&lab);
            let (stranger, id, theirs, proposal) = hears_a_commitment(&mut impostor);
            assert!(matches!(theirs, Commitment::Share(_)), "the peer has proved nothing yet");
            let guess = share_of_a_guess(&stranger, &impostor.host, id, 1);
            let commitment = Some(if echoes { theirs } else { guess });
            stranger.send(&committed(&impostor, &stranger, (id, &proposal), commitment));
            impostor.host.run();
            let Ok(Some(Message::Ready { reveal: Some(reveal), .. })) = stranger.hear() else {
                panic!("no READY")
            };
            assert!(matches!(reveal, Reveal::Tag(_)), "the number itself stays here");
            // The client waits, and is on TCP with both directions.
            impostor.client.write(CLIENT, b"secret");
            let mut got = [0; 6];
            impostor.innocent.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"secret");
            stranger.send(&Message::Proved { id, reveal });
            impostor.host.run();
            assert_eq!(stranger.hear(), Err(()), "the link ends");
            impostor.is_unharmed(FallbackReason::Unproved);
        }
    });
}

#[test]
fn impostors_have_no_more_guesses_than_anybody() {
    watched(|| {
        let lab = Lab::new();
        let mut impostor = Impostor::new(&lab);
        let linked: Arc<dyn LinkedStream> = impostor.client.conns[CLIENT].clone();
        // It knows whether it has guessed, and goes.
        drop(guesses(&mut impostor));
        impostor.host.run();
        for _ in 1..MOST_ATTEMPTS {
            assert!(linked.possession().is_ok());
            linked.attempt_is_used_up();
        }
        assert_eq!(linked.possession(), Err(FallbackReason::Unproved), "there is no further offer");
        impostor.is_unharmed(FallbackReason::LinkDown);
    });
}

#[test]
fn a_client_waits_for_an_impostor_without_harm() {
    watched(|| {
        let lab = Lab::new();
        let mut impostor = Impostor::new(&lab);
        let _stranger = guesses(&mut impostor);
        // The end of the innocent server is the end, whatever the impostor has written where.
        impostor.innocent.write_all(b"bye").unwrap();
        impostor.innocent.shutdown(std::net::Shutdown::Both).unwrap();
        impostor.client.expect(CLIENT, b"bye");
        impostor.client.end(CLIENT).unwrap();
    });
}

#[test]
fn a_name_in_hello_is_hearsay() {
    watched(|| {
        let mut lab = Lab::new();
        // Somebody greets the client as the server that it will look for.
        let mut liar = Stranger::to(&lab, CLIENT);
        liar.name = lab.hosts[SERVER].endpoint.id().0;
        let _ = liar.open(&mut lab);
        liar.greet();
        lab.run();
        let pair = lab.pair();
        assert!(pair.offer(&lab));
        lab.run();
        pair.settle();
        assert!(pair.conns[CLIENT].transport().is_loopback_ism(), "{}", pair.conns[CLIENT].transport());
        assert_eq!(liar.hear(), Ok(None), "no offer comes to it");
    });
}

#[test]
fn who_answers_under_another_name_is_no_peer() {
    watched(|| {
        let lab = Lab::new();
        let mut impostor = Impostor::new(&lab);
        assert!(impostor.client.conns[CLIENT].begin_upgrade());
        impostor.host.endpoint.offer(impostor.client.conns[CLIENT].clone());
        let stranger = impostor.takes_a_link();
        stranger.greet();
        impostor.host.run();
        assert_eq!(stranger.hear(), Err(()));
        assert!(matches!(impostor.client.conns[CLIENT].transport(), Transport::Tcp(_)));
    });
}

#[test]
fn an_offer_by_the_end_that_was_reached_ends_the_link() {
    watched(|| {
        let lab = Lab::new();
        let mut impostor = Impostor::new(&lab);
        let subject = subject_of(&impostor.client, CLIENT);
        let (stranger, _) = impostor.hears_an_offer();
        let (_, clc) = ClientHandshake::new(&stranger.device());
        stranger.send(&Message::Offer { id: 1, signal: 0, handshake: false, subject, commitment: None, clc });
        impostor.host.run();
        assert_eq!(stranger.hear(), Err(()));
    });
}

/// The client offers to somebody who has published the server's port and says yes first.
fn links_to_a_liar(lab: &mut Lab, pair: &Pair) -> Stranger {
    let liar = Host::new(&Config::new().device_dir(lab.dir.path()).dmb_size(DMB));
    let port = pair.tcp(SERVER).tcp.local_addr().unwrap().port();
    let _entry = liar.endpoint.publish(port, &PeerPolicy::SameUser).unwrap();
    assert!(pair.offer(lab));
    // The liar says yes before the server has had a turn.
    while lab.hosts[CLIENT].step() {}
    let query = sys::accept(liar.listener()).unwrap().expect("a query");
    sys::send(query.as_fd(), &Message::Answer.encode(), &[]).unwrap();
    while lab.hosts[CLIENT].step() {}
    let link = sys::accept(liar.listener()).unwrap().expect("a link");
    Stranger { name: liar.endpoint.id().0, ..Stranger::on(link, liar.endpoint.gid().0) }
}

#[test]
fn who_was_offered_to_can_not_claim_the_other_end_with_it() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        turn(&pair);
        let subject = subject_of(&pair, CLIENT);
        let liar = links_to_a_liar(&mut lab, &pair);
        assert_eq!(liar.hear(), Ok(Some(Message::Link)));
        liar.greet();
        while lab.hosts[CLIENT].step() {}
        let Ok(Some(Message::Offer { id, commitment, clc: proposal, .. })) = liar.hear() else {
            panic!("no offer")
        };
        // It goes to the server as the client, with what the client has sent, and back.
        let mut thief = Thief::new(&mut lab);
        thief.offers = id;
        let (mut clc, answer) = thief.claim(&mut lab, subject, commitment);
        let Message::Match { id: claimed, cookie, commitment, clc: accept, .. } = answer else {
            panic!("{answer:?}")
        };
        let Ok(Answer::Accepted { .. }) = clc.on_answer(&accept) else { panic!("no Accept") };
        let mut server = ServerHandshake::on_proposal(&liar.device(), &proposal).expect("a Proposal");
        let accept = server.accept(Dmb { token: 1, bytes: DMB as u32 }, 256, true).unwrap();
        let dmb = DmbPlace { slot: liar.arena.allocate().unwrap().expect("a slot"), ..PLACE };
        liar.send(&Message::Match { id, signal: 3, dmb, cookie, commitment, clc: accept });
        while lab.hosts[CLIENT].step() {}
        let answer = liar.hear();
        let Ok(Some(Message::Ready { reveal, .. })) = answer else { panic!("no READY: {answer:?}") };
        assert!(matches!(reveal, Some(Reveal::Tag(_))));
        let answer = thief.ready(&mut lab, &mut clc, claimed, reveal);
        assert!(matches!(answer, Message::Refuse { .. }), "{answer:?}");
        goes_on(&pair);
        // The liar has nothing to reveal. The true server is asked then.
        drop(liar);
        lab.run();
        pair.settle();
        assert!(pair.conns[CLIENT].transport().is_loopback_ism());
    });
}

#[test]
fn a_server_that_has_proved_itself_by_a_key_may_have_the_number() {
    watched(|| {
        let mut lab = Lab::new();
        let first = lab.pair();
        turn(&first);
        assert!(first.offer(&lab));
        lab.run();
        assert!(first.conns[CLIENT].transport().is_loopback_ism());
        let address = first.tcp(SERVER).tcp.local_addr().unwrap();
        let link = lab.hosts[CLIENT].links().pop().expect("a link");
        assert!(link.has_proved_itself_at(address), "and later offers are cheap");
        let elsewhere = std::net::SocketAddr::new(address.ip(), address.port() ^ 1);
        assert!(!link.has_proved_itself_at(elsewhere), "but to other addresses");
    });
}

#[test]
fn a_yes_without_proof_does_not_end_the_search() {
    watched(|| {
        for written in [false, true] {
            for silent in [false, true] {
                note(format!("written: {written}, silent: {silent}"));
                let mut lab = Lab::new();
                let pair = lab.pair();
                if written {
                    turn(&pair);
                }
                let link = links_to_a_liar(&mut lab, &pair);
                if silent {
                    lab.run();
                    assert!(!pair.writes_ring(CLIENT), "it waits for the liar");
                    lab.pass(std::time::Duration::from_secs(6));
                } else {
                    drop(link);
                    lab.run();
                }
                pair.settle();
                assert!(
                    pair.conns[CLIENT].transport().is_loopback_ism(),
                    "{}",
                    pair.conns[CLIENT].transport()
                );
            }
        }
    });
}

#[test]
fn who_is_silent_after_ready_does_not_end_the_search() {
    watched(|| {
        for late in [false, true] {
            note(format!("it proves itself in the end: {late}"));
            let mut lab = Lab::new();
            let pair = lab.pair();
            turn(&pair);
            let stranger = links_to_a_liar(&mut lab, &pair);
            assert_eq!(stranger.hear(), Ok(Some(Message::Link)));
            stranger.greet();
            while lab.hosts[CLIENT].step() {}
            let Ok(Some(Message::Offer { id, commitment, clc, .. })) = stranger.hear() else {
                panic!("no offer")
            };
            let mut server = ServerHandshake::on_proposal(&stranger.device(), &clc).expect("a Proposal");
            let slot = stranger.arena.allocate().unwrap().expect("a slot");
            let clc = server.accept(Dmb { token: TOKEN, bytes: DMB as u32 }, 256, true).unwrap();
            let cookie = sys::cookie(pair.tcp(SERVER).tcp.as_fd()).unwrap();
            let client = lab.hosts[CLIENT].endpoint.id().0;
            let bound = Bound { server: stranger.name, client, offer: id };
            let secret = Secret::new(How::Key, Part::Server, bound, number_of(&pair)).unwrap();
            let reveal = secret.meet(commitment.expect("a commitment")).expect("a share").reveal;
            let commitment = Some(secret.commitment());
            let dmb = DmbPlace { slot, ..PLACE };
            stranger.send(&Message::Match { id, signal: 3, dmb, cookie, commitment, clc });
            while lab.hosts[CLIENT].step() {}
            let Ok(Some(Message::Ready { clc, .. })) = stranger.hear() else { panic!("no READY") };
            let Ok(Confirmation::Confirmed { dmb: theirs, .. }) = server.on_confirm(&clc) else {
                panic!("no Confirm")
            };
            lab.pass(std::time::Duration::from_secs(6));
            lab.run();
            pair.settle();
            let transport = pair.conns[CLIENT].transport();
            assert!(transport.is_loopback_ism(), "{transport}");
            if late {
                stranger.send(&Message::Proved { id, reveal });
                lab.run();
                let mut heard = Vec::new();
                while let Some(message) = stranger.hear().expect("the link lives") {
                    heard.push(message);
                }
                let token = theirs.token;
                let expected =
                    [Message::Attached { id }, Message::Pinned { token }, Message::Detach { token: TOKEN }];
                assert_eq!(heard, expected);
                stranger.send(&Message::Detach { token });
            }
            drop(stranger);
            lab.run();
            turn(&pair);
            assert!(pair.reads_ring(CLIENT) && pair.reads_ring(SERVER));
            assert_eq!(lab.slots_in_use(), 2);
        }
    });
}
