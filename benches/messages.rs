//! The three messages of a CLC handshake over loopback-ism.

use tokio_smc::engine::clc::{Answer, ClientHandshake, Dmb, Eid, Gid, LocalDevice, Message, ServerHandshake};

/// Proposal, Accept and Confirm of a link's first contact.
pub(crate) fn all() -> [(&'static str, Message); 3] {
    let device = LocalDevice { gid: Gid([7; 16]), eid: Eid::LOOPBACK, host: "node-a".into() };
    let (mut client, proposal) = ClientHandshake::new(&device);
    let mut server = ServerHandshake::on_proposal(&device, &proposal).expect("a proposal for this device");
    let accept = server.accept(Dmb { token: 11, bytes: 65536 }, 1, true).expect("an answer is due");
    let Ok(Answer::Accepted { .. }) = client.on_answer(&accept) else { unreachable!("the server accepted") };
    let confirm = client.confirm(Dmb { token: 22, bytes: 65536 }, 2).expect("a confirmation is due");
    let decoded = |bytes: &[u8]| Message::decode(bytes).expect("our own message");
    [("proposal", decoded(&proposal)), ("accept", decoded(&accept)), ("confirm", decoded(&confirm))]
}
