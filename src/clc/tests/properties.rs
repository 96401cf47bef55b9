//! Properties: no input panics, nothing is lost on the way, and no handshake ends in a wrong
//! agreement.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::*;
use super::strategies::{Damage, damage, message, proposal, terms};
use super::*;

/// Decodes whatever it is; what decodes must survive the way out and in again.
fn decode_anything(bytes: &[u8]) -> Result<(), TestCaseError> {
    let length = bytes.first_chunk().map(message_length);
    match Message::decode(bytes) {
        Ok(decoded) => {
            prop_assert_eq!(length, Some(Ok(bytes.len())));
            prop_assert!(bytes.len() <= MAX_MESSAGE_BYTES);
            // Reserved bytes and offsets may differ, the contents may not.
            let encoded = decoded.encode();
            prop_assert_eq!(Message::decode(&encoded), Ok(decoded));
        }
        Err(error) => prop_assert!(error.to_string().contains("expected"), "{error}"),
    }
    Ok(())
}

/// What may come to either side in place of the message it waits for.
#[derive(Clone, Debug)]
enum Input {
    Proposal,
    Accept,
    Confirm,
    Other(Message),
    Garbage(Vec<u8>),
}

/// One call to either side, in any order.
#[derive(Clone, Debug)]
enum Step {
    Answer(Input, Option<Damage>),
    Confirm,
    ClientDecline(u32),
    Accept,
    OnConfirm(Input, Option<Damage>),
    ServerDecline(u32),
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        2 => Just(Input::Proposal),
        5 => Just(Input::Accept),
        5 => Just(Input::Confirm),
        2 => message().prop_map(Input::Other),
        1 => vec(any::<u8>(), 0..200).prop_map(Input::Garbage),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let damage = || proptest::option::weighted(0.3, damage());
    prop_oneof![
        4 => (input(), damage()).prop_map(|(input, damage)| Step::Answer(input, damage)),
        3 => Just(Step::Confirm),
        1 => any::<u32>().prop_map(Step::ClientDecline),
        3 => Just(Step::Accept),
        4 => (input(), damage()).prop_map(|(input, damage)| Step::OnConfirm(input, damage)),
        1 => any::<u32>().prop_map(Step::ServerDecline),
    ]
}

/// Whether an answer names our device in the terms we proposed, judged from its bytes alone.
fn is_ours(bytes: &[u8], kind: u8) -> bool {
    let has_its_length = match bytes[7] {
        0x21 => bytes.len() == 78,
        0x29 if bytes[75] & 0x0f == 0 => bytes.len() == 114,
        0x29 if bytes[75] & 0x0f == 1 => bytes.len() == 130,
        _ => false,
    };
    has_its_length
        && bytes[4] == kind
        && bytes[8..16] == device().gid.0[..8]
        && bytes[24] == 0
        && bytes[32..34] == [0xff, 0xff]
        && bytes[34..66] == device().eid.as_bytes()[..]
        && bytes[66..74] == device().gid.0[8..]
}

/// Where a side must be, told without looking inside.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Turn {
    Waiting,
    Accepted,
    Ended,
}

fn drive(steps: Vec<Step>, first_contact: bool) -> Result<(), TestCaseError> {
    let (server_dmb, client_dmb) = (Dmb { token: 0x5e, bytes: 1 << 20 }, Dmb { token: 0xc1, bytes: 1 << 14 });
    let (mut client, sent) = ClientHandshake::new(&device());
    let mut server = ServerHandshake::on_proposal(&device(), &sent).unwrap();
    // Genuine messages of another run, so that they are at hand before their time.
    let accept = server.clone().accept(server_dmb, 1, first_contact).unwrap();
    let mut other = client.clone();
    other.on_answer(&accept).unwrap();
    let confirm = other.confirm(client_dmb, 2).unwrap();
    let bytes = |input: Input, damage: Option<Damage>| {
        let bytes = match input {
            Input::Proposal => sent.clone(),
            Input::Accept => accept.clone(),
            Input::Confirm => confirm.clone(),
            Input::Other(message) => message.encode(),
            Input::Garbage(bytes) => bytes,
        };
        damage.map_or(bytes.clone(), |damage| damage.apply(bytes))
    };
    let (mut at_client, mut at_server) = (Turn::Waiting, Turn::Waiting);
    for step in steps {
        match step {
            Step::Answer(input, damage) => {
                let bytes = bytes(input, damage);
                let turn = std::mem::replace(&mut at_client, Turn::Ended);
                match client.on_answer(&bytes) {
                    Ok(Answer::Accepted { dmb, .. }) => {
                        prop_assert!(turn == Turn::Waiting && is_ours(&bytes, 2), "{turn:?} {bytes:02x?}");
                        prop_assert_eq!(dmb.token.to_be_bytes(), &bytes[16..24]);
                        at_client = Turn::Accepted;
                    }
                    Ok(Answer::Declined(_)) => prop_assert!(turn == Turn::Waiting && bytes[4] == 4),
                    Err(_) => prop_assert!(turn != Turn::Waiting || bytes != accept, "a good Accept"),
                }
            }
            Step::Confirm => {
                let turn = std::mem::replace(&mut at_client, Turn::Ended);
                prop_assert_eq!(client.confirm(client_dmb, 2).is_ok(), turn == Turn::Accepted);
            }
            Step::Accept => {
                let turn = std::mem::replace(&mut at_server, Turn::Ended);
                let made = server.accept(server_dmb, 1, first_contact);
                prop_assert_eq!(made.is_ok(), turn == Turn::Waiting);
                if let Ok(made) = made {
                    prop_assert_eq!(&made, &accept);
                    at_server = Turn::Accepted;
                }
            }
            Step::OnConfirm(input, damage) => {
                let bytes = bytes(input, damage);
                let turn = std::mem::replace(&mut at_server, Turn::Ended);
                match server.on_confirm(&bytes) {
                    Ok(Confirmation::Confirmed { dmb, .. }) => {
                        prop_assert!(turn == Turn::Accepted && is_ours(&bytes, 3), "{turn:?} {bytes:02x?}");
                        prop_assert_eq!(dmb.token.to_be_bytes(), &bytes[16..24]);
                        prop_assert_eq!(bytes.len(), accept.len(), "first contact and release are repeated");
                    }
                    Ok(Confirmation::Declined(_)) => prop_assert!(turn == Turn::Accepted && bytes[4] == 4),
                    Err(_) => prop_assert!(turn != Turn::Accepted || bytes != confirm, "a good Confirm"),
                }
            }
            Step::ClientDecline(code) => {
                at_client = Turn::Ended;
                let decline = Decline::decode(&client.decline(Diagnosis::from_code(code))).unwrap();
                prop_assert_eq!(decline.diagnosis.code(), code);
            }
            Step::ServerDecline(code) => {
                at_server = Turn::Ended;
                let decline = Decline::decode(&server.decline(Diagnosis::from_code(code))).unwrap();
                prop_assert_eq!(decline.diagnosis.code(), code);
            }
        }
    }
    Ok(())
}

/// Four times the usual number of cases, which `PROPTEST_CASES` sets. Failing cases are printed,
/// not kept in files.
fn config() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { failure_persistence: None, cases: usual.cases.saturating_mul(4), ..usual }
}

/// Devices that often, but not always, have a GID and an EID in common.
fn some_device() -> impl Strategy<Value = LocalDevice> {
    (0..3_u8, 0..2_u8, any::<String>()).prop_map(|(gid, eid, host)| {
        let gid = if gid < 2 { GID } else { Gid([gid; 16]) };
        let eid = if eid == 0 { Eid::LOOPBACK } else { device().eid };
        LocalDevice { gid, eid, host }
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_encoded_decodes_to_the_same(message in message()) {
        let bytes = message.encode();
        prop_assert_eq!(message_length(bytes.first_chunk().unwrap()), Ok(bytes.len()));
        prop_assert_eq!(Message::decode(&bytes), Ok(message));
    }

    #[test]
    fn each_kind_decodes_as_itself_only(proposal in proposal(), terms in terms()) {
        let (accept, confirm) = (Accept(terms.clone()), Confirm(terms));
        prop_assert_eq!(Proposal::decode(&proposal.encode()), Ok(proposal.clone()));
        prop_assert_eq!(Accept::decode(&accept.encode()), Ok(accept.clone()));
        prop_assert_eq!(Confirm::decode(&confirm.encode()), Ok(confirm.clone()));
        prop_assert!(Proposal::decode(&accept.encode()).is_err());
        prop_assert!(Accept::decode(&confirm.encode()).is_err());
        prop_assert!(Confirm::decode(&accept.encode()).is_err());
        prop_assert!(Decline::decode(&proposal.encode()).is_err());
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..700)) {
        decode_anything(&bytes)?;
        prop_assert!(ServerHandshake::on_proposal(&device(), &bytes).is_err());
    }

    #[test]
    fn arbitrary_bodies_do_no_harm(
        kind in 1..=4_u8,
        flags in any::<u8>(),
        mut body in vec(prop_oneof![4 => Just(0_u8), 2 => 0..64_u8, 1 => any::<u8>()], 20..645),
    ) {
        // A frame that holds, so that the contents are looked at.
        let length = u16::try_from(body.len() + 12).unwrap().to_be_bytes();
        let mut bytes = vec![0xe2, 0xd4, 0xc3, 0xd9, kind, length[0], length[1], flags];
        bytes.append(&mut body);
        bytes.extend([0xe2, 0xd4, 0xc3, 0xd9]);
        decode_anything(&bytes)?;
    }

    #[test]
    fn damaged_messages_do_no_harm(message in message(), damage in damage()) {
        let bytes = damage.apply(message.encode());
        decode_anything(&bytes)?;
        let _ = ServerHandshake::on_proposal(&device(), &bytes);
    }

    #[test]
    fn two_sides_agree_if_and_only_if_they_share_a_device_and_an_id(
        (at_client, at_server) in (some_device(), some_device()),
        tokens in any::<[u64; 2]>(),
        sizes in any::<[u32; 2]>(),
        linkids in any::<[u32; 2]>(),
        first_contact in any::<bool>(),
    ) {
        let [server_dmb, client_dmb] = [0, 1].map(|side| Dmb { token: tokens[side], bytes: sizes[side] });
        let announced = |dmb: Dmb| Dmb::from_code(dmb.token, dmb.size_code());
        let (mut client, sent) = ClientHandshake::new(&at_client);
        prop_assert_eq!(sent.len(), PROPOSAL_BYTES);
        let mut server = match ServerHandshake::on_proposal(&at_server, &sent) {
            Ok(server) => server,
            Err(refusal) => {
                prop_assert!(at_client.gid != at_server.gid || at_client.eid != at_server.eid);
                let answer = client.on_answer(&refusal.decline);
                prop_assert_eq!(answer, Ok(Answer::Declined(refusal.diagnosis)));
                return Ok(());
            }
        };
        prop_assert!(at_client.gid == at_server.gid && at_client.eid == at_server.eid);
        let sent = server.accept(server_dmb, linkids[0], first_contact).unwrap();
        prop_assert_eq!(sent.len(), answer_bytes(first_contact));
        let expected = Answer::Accepted { dmb: announced(server_dmb), linkid: linkids[0], first_contact };
        prop_assert_eq!(client.on_answer(&sent), Ok(expected));
        let sent = client.confirm(client_dmb, linkids[1]).unwrap();
        prop_assert_eq!(sent.len(), answer_bytes(first_contact));
        let expected = Confirmation::Confirmed { dmb: announced(client_dmb), linkid: linkids[1] };
        prop_assert_eq!(server.on_confirm(&sent), Ok(expected));
    }

    #[test]
    fn no_order_of_events_ends_in_a_wrong_agreement(
        steps in vec(step(), 0..10),
        first_contact in any::<bool>(),
    ) {
        drive(steps, first_contact)?;
    }

    #[test]
    fn a_damaged_proposal_is_taken_only_with_our_device_and_id(damage in damage()) {
        let bytes = damage.apply(super::proposal());
        match ServerHandshake::on_proposal(&device(), &bytes) {
            Ok(_) => {
                let v2 = Proposal::decode(&bytes).unwrap().v2.unwrap();
                prop_assert!(v2.ueids.contains(&device().eid));
                prop_assert!(v2.smcd().unwrap().devices().any(|found| found == (Chid::LOOPBACK, device().gid)));
            }
            Err(refusal) => {
                let peer_declined = refusal.diagnosis == Diagnosis::PEERDECL;
                prop_assert_eq!(refusal.decline.is_empty(), peer_declined);
                if !peer_declined {
                    prop_assert_eq!(Decline::decode(&refusal.decline).unwrap().diagnosis, refusal.diagnosis);
                }
            }
        }
    }
}
