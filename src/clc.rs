//! SMC's connection layer control (CLC): wire messages and handshake, without I/O.
//!
//! The messages have the wire form of SMC-D v2.1 as Linux speaks it (`net/smc/smc_clc.h`; the
//! version 1 forms go back to RFC 7609, appendix A): a client sends a [`Proposal`], the server
//! answers with an [`Accept`], the client ends with a [`Confirm`], and either side may send a
//! [`Decline`] in place of its message. Bytes come in, bytes go out; who carries them is the
//! caller's affair. Each message is one `Vec`, meant for one write, for dissectors recognise a
//! message only at the start of a segment.
//!
//! Everything received is hostile until checked: lengths are exact, each of a Proposal's three
//! offsets is bounded before it is followed, and no input makes this module panic. Values that a
//! later release may give a meaning (feature bits, OS types, diagnosis codes, further EIDs and
//! GIDs, the version 1 and SMC-R parts) are kept and tolerated as Linux does; reserved fields are
//! sent as zero and ignored.
//!
#![cfg_attr(feature = "unstable-engine", doc = "```")]
#![cfg_attr(not(feature = "unstable-engine"), doc = "```text")]
//! use tokio_smc::engine::clc::{
//!     Answer, ClientHandshake, Confirmation, Dmb, Eid, Gid, LocalDevice, ServerHandshake,
//! };
//!
//! let device = LocalDevice { gid: Gid([7; 16]), eid: Eid::LOOPBACK, host: "node-a".into() }; let
//! (mut client, proposal) = ClientHandshake::new(&device); let mut server =
//! ServerHandshake::on_proposal(&device, &proposal)?; let accept = server.accept(Dmb { token: 11,
//! bytes: 65536 }, 1, true)?; let Answer::Accepted { dmb, .. } = client.on_answer(&accept)? else {
//! unreachable!("the server accepted") }; assert_eq!(dmb.token, 11); let confirm =
//! client.confirm(Dmb { token: 22, bytes: 65536 }, 2)?; let answer = server.on_confirm(&confirm)?;
//! assert_eq!(answer, Confirmation::Confirmed { dmb: Dmb { token: 22, bytes: 65536 }, linkid: 2 });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod accept;
mod diagnosis;
mod error;
mod handshake;
mod id;
mod message;
mod proposal;
#[cfg(test)]
mod tests;
mod wire;

pub use accept::{Accept, Confirm, Dmb, FirstContact, FirstContactV21, Form, Terms};
pub use diagnosis::Diagnosis;
pub use error::ClcError;
pub use handshake::{
    Answer, ClientHandshake, Confirmation, LocalDevice, PROPOSAL_BYTES, Refusal, ServerHandshake,
    answer_bytes,
};
pub use id::{Chid, Eid, Gid, OsType};
pub use message::{Decline, Message};
pub use proposal::{GidEntry, Ipv6Prefix, Paths, Proposal, SmcdExtension, V1Offer, V2Extension, V2Paths};
pub use wire::{HEADER_BYTES, MAX_MESSAGE_BYTES, message_length};

/// The newest release of version 2 spoken here: 1, that is SMC v2.1.
pub const RELEASE: u8 = 1;

/// The feature bit for emulated ISM devices with 128-bit GIDs, the only one Linux knows and always
/// offers.
pub const FEATURE_EMULATED_ISM: u16 = 0x0001;
