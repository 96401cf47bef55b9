//! Tests of the codec and the handshake.

mod handshake;
mod kernel;
mod properties;
mod strategies;
mod vectors;

use super::{Chid, Eid, Gid, LocalDevice, Message, Proposal};

const GID: Gid =
    Gid([0x0f, 0x1e, 0x2d, 0x3c, 0x4b, 0x5a, 0x49, 0x78, 0x87, 0x96, 0xa5, 0xb4, 0xc3, 0xd2, 0xe1, 0xf0]);

/// The device of the worked examples.
fn device() -> LocalDevice {
    LocalDevice { gid: GID, eid: Eid::new("MYORG-SMC-EID-01").unwrap(), host: "node-a".into() }
}

/// Changes one byte of a message, then decodes it.
fn with_byte(mut bytes: Vec<u8>, offset: usize, value: u8) -> Result<Message, super::ClcError> {
    bytes[offset] = value;
    Message::decode(&bytes)
}

fn proposal() -> Vec<u8> {
    Proposal::new(Chid::LOOPBACK, &device().gid, device().eid).encode()
}
