//! The messages of a link: little-endian fields after one type byte, one message per packet.
//!
//! docs/protocol.md, "Link messages". The CLC messages travel inside, in their own wire form.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::ism::sys::canonical;

/// Version of the link protocol; ends that differ stay on TCP.
pub(crate) const VERSION: u16 = 1;
const MAGIC: [u8; 4] = *b"SMCL";
/// Longest message a link carries, in bytes.
pub(crate) const LONGEST: usize = 4096;

/// The two addresses of a TCP connection as one of its ends sees them, canonical (no v4-mapped addresses).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tuple {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

impl Tuple {
    pub(crate) fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Tuple { local: canonical(local), remote: canonical(remote) }
    }

    /// The same connection as the other end sees it.
    pub(crate) fn mirrored(self) -> Self {
        Tuple { local: self.remote, remote: self.local }
    }
}

/// Slots and DMB size of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ArenaShape {
    pub(crate) slots: u32,
    pub(crate) dmb_size: u64,
}

/// Which connection an OFFER or a QUERY is about, as the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) tuple: Tuple,
    /// `SO_COOKIE` of the client's socket.
    pub(crate) cookie: u64,
    /// `SO_NETNS_COOKIE` of the client's socket.
    pub(crate) network_namespace: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// First on every link, both ways; carries the eventfd and the first arena.
    Hello { link_id: u64, endpoint: [u8; 16], gid: [u8; 16], arena: ArenaShape },
    /// A further arena, numbered in the order of arrival.
    Arena { shape: ArenaShape },
    /// C: may this connection be upgraded?
    Offer { id: u64, signal: u32, handshake: bool, subject: Subject, clc: Vec<u8> },
    /// S: yes, and here is my DMB.
    Match { id: u64, signal: u32, arena: u32, slot: u32, cookie: u64, clc: Vec<u8> },
    /// C: proved; here is mine.
    Ready { id: u64, arena: u32, slot: u32, clc: Vec<u8> },
    /// S: no.
    Refuse { id: u64, clc: Vec<u8> },
    /// C: not any more.
    Cancel { id: u64 },
    /// The owner of this DMB will never read from it.
    Pinned { token: u64 },
    /// The producer of this DMB will never touch it again.
    Detach { token: u64 },
    /// Instead of HELLO: does this endpoint hold the other end of that connection?
    Query { subject: Subject },
    /// Yes; a no is the end of the connection.
    Answer,
}

/// What is wrong with a message of the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed link message: {}", self.0)
    }
}

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        match self {
            Message::Hello { link_id, endpoint, gid, arena } => {
                out.push(1);
                out.extend(MAGIC);
                out.extend(VERSION.to_le_bytes());
                out.extend(link_id.to_le_bytes());
                out.extend(endpoint);
                out.extend(gid);
                encode_shape(&mut out, arena);
            }
            Message::Arena { shape } => {
                out.push(2);
                encode_shape(&mut out, shape);
            }
            Message::Offer { id, signal, handshake, subject, clc } => {
                out.push(3);
                out.extend(id.to_le_bytes());
                out.extend(signal.to_le_bytes());
                out.push(u8::from(*handshake));
                encode_subject(&mut out, subject);
                out.extend(clc);
            }
            Message::Match { id, signal, arena, slot, cookie, clc } => {
                out.push(4);
                out.extend(id.to_le_bytes());
                out.extend(signal.to_le_bytes());
                out.extend(arena.to_le_bytes());
                out.extend(slot.to_le_bytes());
                out.extend(cookie.to_le_bytes());
                out.extend(clc);
            }
            Message::Ready { id, arena, slot, clc } => {
                out.push(5);
                out.extend(id.to_le_bytes());
                out.extend(arena.to_le_bytes());
                out.extend(slot.to_le_bytes());
                out.extend(clc);
            }
            Message::Refuse { id, clc } => {
                out.push(6);
                out.extend(id.to_le_bytes());
                out.extend(clc);
            }
            Message::Cancel { id } => {
                out.push(7);
                out.extend(id.to_le_bytes());
            }
            Message::Pinned { token } => {
                out.push(8);
                out.extend(token.to_le_bytes());
            }
            Message::Detach { token } => {
                out.push(9);
                out.extend(token.to_le_bytes());
            }
            Message::Query { subject } => {
                out.push(10);
                out.extend(MAGIC);
                out.extend(VERSION.to_le_bytes());
                encode_subject(&mut out, subject);
            }
            Message::Answer => out.push(11),
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(bytes);
        let message = match fields.u8()? {
            1 => {
                fields.greeting()?;
                Message::Hello {
                    link_id: fields.u64()?,
                    endpoint: fields.array()?,
                    gid: fields.array()?,
                    arena: fields.shape()?,
                }
            }
            2 => Message::Arena { shape: fields.shape()? },
            3 => Message::Offer {
                id: fields.u64()?,
                signal: fields.u32()?,
                handshake: fields.u8()? & 1 != 0,
                subject: fields.subject()?,
                clc: fields.rest(),
            },
            4 => Message::Match {
                id: fields.u64()?,
                signal: fields.u32()?,
                arena: fields.u32()?,
                slot: fields.u32()?,
                cookie: fields.u64()?,
                clc: fields.rest(),
            },
            5 => Message::Ready {
                id: fields.u64()?,
                arena: fields.u32()?,
                slot: fields.u32()?,
                clc: fields.rest(),
            },
            6 => Message::Refuse { id: fields.u64()?, clc: fields.rest() },
            7 => Message::Cancel { id: fields.u64()? },
            8 => Message::Pinned { token: fields.u64()? },
            9 => Message::Detach { token: fields.u64()? },
            10 => {
                fields.greeting()?;
                Message::Query { subject: fields.subject()? }
            }
            11 => Message::Answer,
            _ => return Err(Malformed("unknown type")),
        };
        if fields.0.is_empty() { Ok(message) } else { Err(Malformed("longer than its type allows")) }
    }
}

fn encode_shape(out: &mut Vec<u8>, shape: &ArenaShape) {
    out.extend(shape.slots.to_le_bytes());
    out.extend(shape.dmb_size.to_le_bytes());
}

fn encode_subject(out: &mut Vec<u8>, subject: &Subject) {
    encode_address(out, subject.tuple.local);
    encode_address(out, subject.tuple.remote);
    out.extend(subject.cookie.to_le_bytes());
    out.extend(subject.network_namespace.to_le_bytes());
}

/// IPv4 travels v4-mapped; decoding makes it canonical again.
fn encode_address(out: &mut Vec<u8>, address: SocketAddr) {
    let (ip, scope) = match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
        SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
    };
    out.extend(ip.octets());
    out.extend(address.port().to_le_bytes());
    out.extend(scope.to_le_bytes());
}

/// What is left of a message while its fields are taken off the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (field, rest) =
            self.0.split_first_chunk::<N>().ok_or(Malformed("shorter than its type needs"))?;
        self.0 = rest;
        Ok(*field)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0).to_vec()
    }

    fn greeting(&mut self) -> Result<(), Malformed> {
        if self.array()? != MAGIC {
            return Err(Malformed("not a link of this crate"));
        }
        if self.u16()? != VERSION {
            return Err(Malformed("another version of the link protocol"));
        }
        Ok(())
    }

    fn shape(&mut self) -> Result<ArenaShape, Malformed> {
        Ok(ArenaShape { slots: self.u32()?, dmb_size: self.u64()? })
    }

    fn subject(&mut self) -> Result<Subject, Malformed> {
        let tuple = Tuple::new(self.address()?, self.address()?);
        Ok(Subject { tuple, cookie: self.u64()?, network_namespace: self.u64()? })
    }

    fn address(&mut self) -> Result<SocketAddr, Malformed> {
        let ip = Ipv6Addr::from(self.array::<16>()?);
        let port = self.u16()?;
        let scope = self.u32()?;
        Ok(canonical(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope))))
    }
}

#[cfg(test)]
mod tests {
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
        }
    }

    fn every_message() -> Vec<Message> {
        let arena = ArenaShape { slots: 64, dmb_size: 4 << 20 };
        vec![
            Message::Hello { link_id: 9, endpoint: [3; 16], gid: [4; 16], arena },
            Message::Arena { shape: arena },
            Message::Offer { id: 1, signal: 2, handshake: true, subject: subject(), clc: vec![1, 2, 3] },
            Message::Match { id: 1, signal: 2, arena: 0, slot: 5, cookie: 99, clc: vec![9; 130] },
            Message::Ready { id: 1, arena: 0, slot: 6, clc: vec![8; 78] },
            Message::Refuse { id: 1, clc: vec![7; 44] },
            Message::Cancel { id: 1 },
            Message::Pinned { token: u64::MAX },
            Message::Detach { token: 1 },
            Message::Query { subject: subject() },
            Message::Answer,
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

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::decode(&bytes);
        }

        #[test]
        fn a_cut_message_is_malformed(which in 0usize..11, cut in 1usize..20) {
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
}
