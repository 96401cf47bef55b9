//! Whatever a peer sends, the CLC codec and both sides of the handshake neither panic nor lose
//! anything they took.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tokio_smc::engine::clc::{
    Accept, Answer, ClientHandshake, Confirm, Confirmation, Decline, Dmb, Eid, Gid, LocalDevice,
    MAX_MESSAGE_BYTES, Message, Proposal, ServerHandshake, message_length,
};

fuzz_target!(|bytes: &[u8]| {
    decode(bytes);
    shake_hands(bytes);
});

/// What decodes must come out of its own wire form again, and only as what it is.
fn decode(bytes: &[u8]) {
    let length = bytes.first_chunk().map(message_length);
    let decoded = Message::decode(bytes);
    assert_eq!(Proposal::decode(bytes).is_ok(), matches!(decoded, Ok(Message::Proposal(_))));
    assert_eq!(Accept::decode(bytes).is_ok(), matches!(decoded, Ok(Message::Accept(_))));
    assert_eq!(Confirm::decode(bytes).is_ok(), matches!(decoded, Ok(Message::Confirm(_))));
    assert_eq!(Decline::decode(bytes).is_ok(), matches!(decoded, Ok(Message::Decline(_))));
    match decoded {
        Ok(message) => {
            assert_eq!(length, Some(Ok(bytes.len())));
            assert!(bytes.len() <= MAX_MESSAGE_BYTES);
            let encoded = message.encode();
            assert_eq!(Message::decode(&encoded).as_ref(), Ok(&message));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The input in place of each message of a handshake.
fn shake_hands(bytes: &[u8]) {
    let device = LocalDevice { gid: Gid(*b"0123456789abcdef"), eid: Eid::LOOPBACK, host: "fuzz".into() };
    let dmb = Dmb { token: 1, bytes: 65536 };
    let (mut client, proposal) = ClientHandshake::new(&device);
    if let Ok(mut server) = ServerHandshake::on_proposal(&device, bytes) {
        let accept = server.accept(dmb, 1, true).expect("the first Accept after a Proposal");
        assert!(client.clone().on_answer(&accept).is_ok());
    }
    for first_contact in [false, true] {
        let mut server = ServerHandshake::on_proposal(&device, &proposal).expect("our own Proposal");
        server.accept(dmb, 1, first_contact).expect("the first Accept after a Proposal");
        if let Ok(Confirmation::Confirmed { .. }) = server.on_confirm(bytes) {
            let Ok(Confirm(terms)) = Confirm::decode(bytes) else { panic!("confirmed by something else") };
            assert_eq!(terms.gid(), device.gid);
        }
        assert!(server.on_confirm(bytes).is_err(), "once only");
    }
    if let Ok(Answer::Accepted { .. }) = client.on_answer(bytes) {
        let Ok(Accept(terms)) = Accept::decode(bytes) else { panic!("accepted by something else") };
        assert_eq!(terms.gid(), device.gid);
        client.confirm(dmb, 1).expect("the first Confirm after an Accept");
    }
    assert!(client.confirm(dmb, 1).is_err(), "once only");
}
