//! Link groups: control messages, offers, proof, tokens, life and death of a peer.
//!
//! A [`Link`](group::Link) joins two [`Endpoint`](endpoint::Endpoint)s. It knows streams only as
//! [`LinkedStream`](stream::LinkedStream)s and does its I/O through non-blocking calls on its own descriptors, so
//! any reactor can drive it.

pub(crate) mod accepted;
pub(crate) mod adopted;
pub(crate) mod endpoint;
pub(crate) mod group;
pub(crate) mod lack;
pub(crate) mod message;
pub(crate) mod outbox;
pub(crate) mod proof;
pub(crate) mod slots;
pub(crate) mod stream;
