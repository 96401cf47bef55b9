//! Who holds which end of a connection, and who only says so (docs/protocol.md, "Proof").

use std::io::{Read, Write};
use std::os::fd::AsFd;

use super::hosts::{CLIENT, Host, Lab, MOMENTS, Pair, SERVER};
use super::peers::matching;
use super::stranger::{DMB, Impostor, PLACE, Stranger, TOKEN};
use super::{bytes, note, watched};
use crate::clc::{Answer, ClientHandshake, Confirmation, Dmb, ServerHandshake};
use crate::config::Config;
use crate::ism::dmb::Direction;
use crate::ism::ring::Memory;
use crate::ism::sys;
use crate::link::message::{DmbPlace, Message, Subject};
use crate::link::proof::{Bound, Commitment, How, MOST_ATTEMPTS, MOST_FAILURES, Part, Reveal, Secret};
use crate::link::stream::LinkedStream;
use crate::peer::PeerPolicy;
use crate::sync::{Arc, lock};
use crate::transport::{FallbackReason, Transport};

/// Writes and reads until the client has written with a sample.
pub(super) fn turn(pair: &Pair) {
    pair.write(CLIENT, b"question");
    pair.expect(SERVER, b"question");
    pair.write(SERVER, b"answer");
    pair.expect(CLIENT, b"answer");
}

fn subject_of(pair: &Pair, side: usize) -> Subject {
    let linked: &dyn LinkedStream = &*pair.conns[side];
    linked.subject().expect("a subject")
}

/// The number that a client can prove its end by; the server's application does not know it.
pub(super) fn number_of(pair: &Pair) -> u32 {
    lock(&pair.conns[CLIENT].tx).sample.sequence.expect("a sample")
}

#[test]
fn who_has_written_proves_itself_by_the_sequence_number() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        turn(&pair);
        let sequence = number_of(&pair);
        let server: &dyn LinkedStream = &*pair.conns[SERVER];
        assert_eq!(server.initial_sequence(), Ok(sequence));
        assert!(pair.offer(&lab));
        lab.run();
        pair.settle();
        for side in [CLIENT, SERVER] {
            assert!(pair.conns[side].transport().is_loopback_ism(), "{side}");
        }
        turn(&pair);
        assert_eq!(lab.slots_in_use(), 2);
        drop(pair);
        lab.run();
        assert_eq!(lab.slots_in_use(), 0);
    });
}

#[test]
fn an_end_that_writes_and_closes_at_every_moment_loses_nothing() {
    watched(|| {
        for closer in [CLIENT, SERVER] {
            for half in [false, true] {
                for moment in 0..MOMENTS {
                    note(format!("{closer} closes after {moment} steps, half: {half}"));
                    let mut lab = Lab::new();
                    let pair = lab.pair();
                    turn(&pair);
                    assert!(pair.offer(&lab));
                    for _ in 0..moment {
                        let _ = lab.hosts[SERVER].step() || lab.hosts[CLIENT].step();
                    }
                    pair.write(closer, &bytes(0, 3000));
                    if half {
                        pair.conns[closer].shutdown_write().unwrap();
                    } else {
                        pair.close(closer);
                    }
                    let other = 1 - closer;
                    // Before its endpoint takes another message.
                    pair.settle();
                    lab.run();
                    pair.expect(other, &bytes(0, 3000));
                    pair.end(other).unwrap();
                    drop(pair);
                    lab.run();
                    assert_eq!(lab.slots_in_use(), 0);
                }
            }
        }
    });
}

#[test]
fn both_ends_write_at_every_moment_and_nothing_is_lost() {
    watched(|| {
        for moment in 0..MOMENTS {
            let mut lab = Lab::new();
            let pair = lab.pair();
            turn(&pair);
            assert!(pair.offer(&lab));
            for step in 0..MOMENTS {
                if step == moment {
                    for side in [CLIENT, SERVER] {
                        pair.write(side, &bytes(0, 700));
                        pair.expect(1 - side, &bytes(0, 700));
                    }
                }
                let _ = lab.hosts[SERVER].step() || lab.hosts[CLIENT].step();
            }
            pair.settle();
            for side in [CLIENT, SERVER] {
                assert!(pair.conns[side].transport().is_loopback_ism(), "{moment}");
                pair.write(side, &bytes(700, 700));
                pair.expect(1 - side, &bytes(700, 700));
            }
        }
    });
}

/// A third process, which knows of a connection what the kernel tells everybody.
struct Thief {
    stranger: Stranger,
    offers: u64,
}

impl Thief {
    fn new(lab: &mut Lab) -> Self {
        let stranger = Stranger::to(lab, SERVER);
        let _ = stranger.open(lab);
        stranger.greet();
        lab.run();
        assert_eq!(stranger.hear(), Ok(None));
        Thief { stranger, offers: 0 }
    }

    fn bound(&self, lab: &Lab) -> Bound {
        let server = lab.hosts[SERVER].endpoint.id().0;
        Bound { server, client: self.stranger.name, offer: self.offers }
    }

    /// Claims the client's end; the CLC handshake and what the server says.
    fn claim(
        &mut self,
        lab: &mut Lab,
        subject: Subject,
        commitment: Option<Commitment>,
    ) -> (ClientHandshake, Message) {
        let (clc, proposal) = ClientHandshake::new(&self.stranger.device());
        let id = self.offers;
        self.stranger.send(&Message::Offer {
            id,
            signal: 0,
            handshake: false,
            subject,
            commitment,
            clc: proposal,
        });
        lab.run();
        (clc, self.stranger.hear().expect("the link lives").expect("an answer"))
    }

    /// Claims it with a guess; what the server says to that.
    fn guess(&mut self, lab: &mut Lab, subject: Subject, sequence: u32, how: How) -> Message {
        self.offers += 1;
        let secret = Secret::new(how, Part::Client, self.bound(lab), sequence).unwrap();
        let (mut clc, answer) = self.claim(lab, subject, Some(secret.commitment()));
        let Message::Match { id, clc: accept, commitment, .. } = answer else { return answer };
        let reveal = secret.meet(commitment.expect("a commitment")).expect("of the same kind").reveal;
        let Ok(Answer::Accepted { .. }) = clc.on_answer(&accept) else { panic!("no Accept") };
        let slot = self.stranger.arena.allocate().unwrap().expect("a slot");
        let confirm = clc.confirm(Dmb { token: 4711 + id, bytes: DMB as u32 }, 256).unwrap();
        let dmb = DmbPlace { slot, ..PLACE };
        self.stranger.send(&Message::Ready { id, dmb, reveal: Some(reveal), clc: confirm });
        lab.run();
        self.stranger.hear().expect("the link lives").expect("an answer")
    }
}

/// The connection is what it was: nobody has come between.
#[track_caller]
pub(super) fn goes_on(pair: &Pair) {
    turn(pair);
    for side in [CLIENT, SERVER] {
        assert!(!pair.reads_ring(side) && !pair.writes_ring(side));
        assert!(lock(&pair.conns[side].rx).dmb.is_none() && lock(&pair.conns[side].tx).dmb.is_none());
    }
}

#[test]
fn a_cookie_is_no_proof_of_a_connection_that_was_written_to() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        turn(&pair);
        let mut thief = Thief::new(&mut lab);
        thief.offers = 1;
        let (_, answer) = thief.claim(&mut lab, subject_of(&pair, CLIENT), None);
        assert!(matches!(answer, Message::Refuse { id: 1, .. }), "{answer:?}");
        goes_on(&pair);
        assert_eq!(lab.slots_in_use(), 0);
        // Its own client is served all the same.
        assert!(pair.offer(&lab));
        lab.run();
        pair.settle();
        assert!(pair.conns[CLIENT].transport().is_loopback_ism());
    });
}

#[test]
fn who_guesses_is_told_nothing_and_not_for_long() {
    watched(|| {
        for how in [How::Hash, How::Key] {
            let mut lab = Lab::new();
            let pair = lab.pair();
            turn(&pair);
            let right = number_of(&pair);
            let subject = subject_of(&pair, CLIENT);
            let mut thief = Thief::new(&mut lab);
            for guess in 1..=MOST_FAILURES {
                let answer = thief.guess(&mut lab, subject, right.wrapping_add(guess), how);
                assert!(matches!(answer, Message::Refuse { .. }), "{answer:?}");
                // It is told what becomes of its own token, and nothing else.
                assert!(matches!(thief.stranger.hear(), Ok(Some(Message::Detach { .. }))));
                assert_eq!(thief.stranger.hear(), Ok(None));
                goes_on(&pair);
            }
            // Even the right one is late.
            let answer = thief.guess(&mut lab, subject, right, how);
            assert!(matches!(answer, Message::Refuse { .. }), "{answer:?}");
            assert_eq!(thief.stranger.hear(), Ok(None), "refused at OFFER");
            goes_on(&pair);
        }
    });
}

#[test]
fn what_is_revealed_to_others_than_the_committed_counts_for_nothing() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        turn(&pair);
        let sequence = number_of(&pair);
        let mut thief = Thief::new(&mut lab);
        // It commits itself to what it does not know, and learns it then.
        thief.offers = 1;
        let nonce = [7; 32];
        let commitment = Commitment::Hash(thief.bound(&lab).hash(Part::Client, 0, &nonce));
        let (mut clc, answer) = thief.claim(&mut lab, subject_of(&pair, CLIENT), Some(commitment));
        let Message::Match { id, clc: accept, .. } = answer else { panic!("{answer:?}") };
        let Ok(Answer::Accepted { .. }) = clc.on_answer(&accept) else { panic!("no Accept") };
        let slot = thief.stranger.arena.allocate().unwrap().expect("a slot");
        let confirm = clc.confirm(Dmb { token: 1, bytes: DMB as u32 }, 256).unwrap();
        let reveal = Some(Reveal::Number { sequence, nonce });
        thief.stranger.send(&Message::Ready { id, dmb: DmbPlace { slot, ..PLACE }, reveal, clc: confirm });
        lab.run();
        assert!(matches!(thief.stranger.hear(), Ok(Some(Message::Refuse { .. }))));
        goes_on(&pair);
    });
}

#[test]
fn an_unproved_peer_has_no_say_in_a_stream() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        turn(&pair);
        let mut thief = Thief::new(&mut lab);
        thief.offers = 1;
        let commitment = Some(Commitment::Hash([1; 32]));
        let (mut clc, answer) = thief.claim(&mut lab, subject_of(&pair, CLIENT), commitment);
        let Message::Match { clc: accept, .. } = answer else { panic!("{answer:?}") };
        let Ok(Answer::Accepted { dmb, .. }) = clc.on_answer(&accept) else { panic!("no Accept") };
        thief.stranger.send(&Message::Pinned { token: dmb.token });
        thief.stranger.send(&Message::Detach { token: dmb.token });
        lab.run();
        goes_on(&pair);
        // Neither direction was pinned.
        assert!(pair.offer(&lab));
        lab.run();
        pair.settle();
        assert!(pair.conns[SERVER].transport().is_loopback_ism());
        turn(&pair);
    });
}

#[test]
fn a_word_in_an_unearned_dmb_is_not_obeyed() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        turn(&pair);
        let mut thief = Thief::new(&mut lab);
        thief.offers = 1;
        let commitment = Some(Commitment::Hash([1; 32]));
        let (_, answer) = thief.claim(&mut lab, subject_of(&pair, CLIENT), commitment);
        let Message::Match { .. } = answer else { panic!("{answer:?}") };
        // As the thief would do it: every DMB of the server says that it is switched.
        for link in lab.hosts[SERVER].links() {
            link.every_own_dmb(&mut |memory| {
                let _ = memory.header().switch(8);
                assert!(matches!(memory.header().direction(), Direction::Switched(8)));
            });
        }
        goes_on(&pair);
    });
}

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
        let (stranger, id, _, proposal) = hears_a_commitment(&mut impostor);
        let guess = share_of_a_guess(&stranger, &impostor.host, id, 1);
        stranger.send(&committed(&impostor, &stranger, (id, &proposal), Some(guess)));
        impostor.host.run();
        // It knows now whether that was right, and goes.
        let answer = stranger.hear();
        assert!(matches!(answer, Ok(Some(Message::Ready { .. }))), "{answer:?}");
        drop(stranger);
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
        let (stranger, id, _, proposal) = hears_a_commitment(&mut impostor);
        let guess = share_of_a_guess(&stranger, &impostor.host, id, 1);
        stranger.send(&committed(&impostor, &stranger, (id, &proposal), Some(guess)));
        impostor.host.run();
        assert!(matches!(stranger.hear(), Ok(Some(Message::Ready { .. }))));
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
        let slot = thief.stranger.arena.allocate().unwrap().expect("a slot");
        let confirm = clc.confirm(Dmb { token: 1, bytes: DMB as u32 }, 256).unwrap();
        let dmb = DmbPlace { slot, ..PLACE };
        thief.stranger.send(&Message::Ready { id: claimed, dmb, reveal, clc: confirm });
        lab.run();
        assert!(matches!(thief.stranger.hear(), Ok(Some(Message::Refuse { .. }))));
        goes_on(&pair);
        // The liar has nothing to reveal; then the true server is asked.
        drop(liar);
        lab.run();
        pair.settle();
        assert!(pair.conns[CLIENT].transport().is_loopback_ism(), "{}", pair.conns[CLIENT].transport());
        turn(&pair);
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
