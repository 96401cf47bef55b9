//! The bytes of each message, and bytes that are none.

use super::*;
use proptest::prelude::*;

fn subject() -> Subject {
    Subject {
        tuple: Tuple::new(
            "127.0.0.1:4000".parse().expect("an address"),
            "[fe80::1%3]:80".parse().expect("an address"),
        ),
        cookie: 7,
        network_namespace: 1,
        destination: Destination::Own,
    }
}

const REVEAL: Reveal = Reveal::Number { sequence: u32::MAX, nonce: [5; 32] };

fn offer(commitment: Option<Commitment>) -> Message {
    Message::Offer { id: 1, signal: 2, handshake: true, subject: subject(), commitment, clc: vec![1, 2, 3] }
}

fn every_message() -> Vec<Message> {
    let dmb = DmbPlace { arena: 0, slot: 5, window: 4 << 20 };
    vec![
        Message::Link,
        Message::Hello { link_id: 9, endpoint: [3; 16], gid: [4; 16], slots: 64, bell: Bell::Socket },
        Message::Hello { link_id: 9, endpoint: [3; 16], gid: [4; 16], slots: 64, bell: Bell::Eventfd },
        Message::Arena { slots: 128 },
        offer(None),
        offer(Some(Commitment::Hash([6; 32]))),
        offer(Some(Commitment::Share([6; 32]))),
        Message::Match { id: 1, signal: 2, dmb, cookie: 99, commitment: None, clc: vec![9; 130] },
        Message::Match {
            id: 1,
            signal: 2,
            dmb,
            cookie: 99,
            commitment: Some(Commitment::Share([7; 32])),
            clc: vec![9; 130],
        },
        Message::Ready { id: 1, dmb, reveal: None, clc: vec![8; 78] },
        Message::Ready { id: 1, dmb, reveal: Some(REVEAL), clc: vec![8; 78] },
        Message::Ready { id: 1, dmb, reveal: Some(Reveal::Tag([5; 32])), clc: vec![8; 78] },
        Message::Proved { id: 1, reveal: REVEAL },
        Message::Proved { id: 1, reveal: Reveal::Tag([5; 32]) },
        Message::Attached { id: 1 },
        Message::Refuse { id: 1, clc: vec![7; 44] },
        Message::Cancel { id: 1 },
        Message::Pinned { token: u64::MAX },
        Message::Detach { token: 1 },
        Message::Query { subject: subject() },
        Message::Answer,
        Message::Ask { token: 1, bytes: 1 << 15, held: 4 << 20 },
        Message::Grant { token: 1, segment: 2, bytes: 1 << 15 },
        Message::Deny { token: 1, why: Refusal::NotNeeded },
        Message::Deny { token: 1, why: Refusal::Limit },
        Message::Deny { token: 1, why: Refusal::Memory },
        Message::Return { token: 1, segment: 3 },
        Message::Bye,
        Message::Wake,
    ]
}

#[test]
fn every_message_survives_the_wire() {
    for message in every_message() {
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }
}

#[test]
fn mapped_addresses_become_plain_ones() {
    let mapped: SocketAddr = "[::ffff:127.0.0.1]:80".parse().expect("an address");
    assert_eq!(canonical(mapped), "127.0.0.1:80".parse().expect("an address"));
}

#[test]
fn a_commitment_is_there_or_is_not() {
    let mut bytes = offer(None).encode();
    // Behind the type, the number, the signal, the flags and the subject.
    let at = 14 + 61;
    assert_eq!(bytes[at], 0);
    bytes[at] = 3;
    assert!(Message::decode(&bytes).is_err());
    bytes.truncate(at + 30);
    bytes[at] = 1;
    assert!(Message::decode(&bytes).is_err(), "it is cut");
}

#[test]
fn what_proves_something_is_not_logged() {
    let text = format!("{:?}", Message::Proved { id: 1, reveal: REVEAL });
    assert!(!text.contains(&u32::MAX.to_string()) && !text.contains("nonce"), "{text}");
}

proptest! {
    #[test]
    fn any_bytes_are_answered_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Message::decode(&bytes);
    }

    #[test]
    fn a_cut_message_is_malformed(which in 0..every_message().len(), cut in 1usize..20) {
        let whole = every_message()[which].encode();
        let kept = whole.len().saturating_sub(cut);
        if let Ok(message) = Message::decode(&whole[..kept]) {
            // Only the CLC part, which has lengths of its own, may come out shorter.
            let has_clc = matches!(
                message,
                Message::Offer { .. } | Message::Match { .. } | Message::Ready { .. } | Message::Refuse { .. }
            );
            prop_assert!(has_clc);
        }
    }
}
