//! Who holds which end of a connection, and who only says so (docs/protocol.md, "Proof").

use super::hosts::{CLIENT, Lab, MOMENTS, Pair, SERVER};
use super::stranger::{DMB, PLACE, Stranger};
use super::{bytes, note, watched};
use crate::clc::{Answer, ClientHandshake, Dmb};
use crate::ism::dmb::Direction;
use crate::ism::ring::Memory;
use crate::link::message::{DmbPlace, Message, Subject};
use crate::link::proof::{Bound, Commitment, How, MOST_FAILURES, Part, Reveal, Secret};
use crate::link::stream::LinkedStream;
use crate::sync::lock;

/// Writes and reads until the client has written with a sample.
pub(super) fn turn(pair: &Pair) {
    pair.write(CLIENT, b"question");
    pair.expect(SERVER, b"question");
    pair.write(SERVER, b"answer");
    pair.expect(CLIENT, b"answer");
}

pub(super) fn subject_of(pair: &Pair, side: usize) -> Subject {
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
pub(super) struct Thief {
    pub(super) stranger: Stranger,
    pub(super) offers: u64,
}

impl Thief {
    pub(super) fn new(lab: &mut Lab) -> Self {
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
    pub(super) fn claim(
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
        self.ready(lab, &mut clc, id, Some(reveal))
    }

    /// Answers MATCH, as if it had what it says; what the server says to that.
    pub(super) fn ready(
        &self,
        lab: &mut Lab,
        clc: &mut ClientHandshake,
        id: u64,
        reveal: Option<Reveal>,
    ) -> Message {
        let slot = self.stranger.arena.allocate().unwrap().expect("a slot");
        let confirm = clc.confirm(Dmb { token: 4711 + id, bytes: DMB as u32 }, 256).unwrap();
        let dmb = DmbPlace { slot, ..PLACE };
        self.stranger.send(&Message::Ready { id, dmb, reveal, clc: confirm });
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
        let answer = thief.ready(&mut lab, &mut clc, id, Some(Reveal::Number { sequence, nonce }));
        assert!(matches!(answer, Message::Refuse { .. }), "{answer:?}");
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
