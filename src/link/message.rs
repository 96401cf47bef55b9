//! The messages of a link: little-endian fields after one type byte, one message per packet.
//!
//! docs/protocol.md, "Link messages". The CLC messages travel inside, in their own wire form.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::ism::ring::Refusal;
use crate::ism::sys::canonical;
use crate::link::proof::{Commitment, Reveal};

/// Version of the link protocol; ends that differ stay on TCP.
pub(crate) const VERSION: u16 = 5;
const MAGIC: [u8; 4] = *b"SMCL";
/// Longest message a link carries, in bytes.
pub(crate) const LONGEST: usize = 4096;

/// The two addresses of a TCP connection as one of its ends sees them, canonical (no v4-mapped
/// addresses).
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

/// Where a DMB is, and how far it may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DmbPlace {
    pub(crate) arena: u32,
    pub(crate) slot: u32,
    /// Bytes of the largest segment that its owner lends at once.
    pub(crate) window: u64,
}

/// Which connection an OFFER or a QUERY is about, as the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) tuple: Tuple,
    /// `SO_COOKIE` of the client's socket.
    pub(crate) cookie: u64,
    /// `SO_NETNS_COOKIE` of the client's socket.
    pub(crate) network_namespace: u64,
    pub(crate) destination: Destination,
}

/// What the remote address of a client's connection is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// It is the server's own.
    Own,
    /// It may be translated on the way to a server in another network namespace (DNAT): all that is
    /// known there is the client's own address.
    Translated,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// Opens a link: may this process have one? HELLO is the answer, and the answer to that.
    Link,
    /// First on every link, both ways, but for LINK; carries the first arena, and perhaps an
    /// eventfd.
    Hello { link_id: u64, endpoint: [u8; 16], gid: [u8; 16], slots: u32, bell: Bell },
    /// A further arena, numbered in the order of arrival.
    Arena { slots: u32 },
    /// C: may this connection be upgraded?
    Offer {
        id: u64,
        signal: u32,
        handshake: bool,
        subject: Subject,
        commitment: Option<Commitment>,
        clc: Vec<u8>,
    },
    /// S: yes, and here is my DMB.
    Match { id: u64, signal: u32, dmb: DmbPlace, cookie: u64, commitment: Option<Commitment>, clc: Vec<u8> },
    /// C: proved, or here is my part of the proof; here is my DMB.
    Ready { id: u64, dmb: DmbPlace, reveal: Option<Reveal>, clc: Vec<u8> },
    /// S: right, and here is mine.
    Proved { id: u64, reveal: Reveal },
    /// C: right. Both DMBs are in use now.
    Attached { id: u64 },
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
    /// The producer of this DMB has found it full: a segment of so many bytes, please. It would
    /// itself hold so many more of them, if it were TCP.
    Ask { token: u64, bytes: u64, held: u64 },
    /// The owner lends a segment, which it carries, under this number.
    Grant { token: u64, segment: u64, bytes: u64 },
    /// It does not, for now.
    Deny { token: u64, why: Refusal },
    /// The producer will not use the grants up to this number, but for what unread bytes lie in.
    Return { token: u64, segment: u64 },
    /// This end has nothing to do with the link: close it, if you have not either.
    Bye,
    /// There are signals. That the message comes is all that it says.
    Wake,
}

/// How its sender is rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bell {
    /// By messages on the link's own socket.
    Socket,
    /// By the eventfd that comes along.
    Eventfd,
}

/// How many descriptors a message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptors {
    pub(crate) number: usize,
    /// Its sender may have had none to send: the message counts without them, too.
    optional: bool,
}

impl Descriptors {
    const NONE: Descriptors = Descriptors { number: 0, optional: false };

    /// May the message come with so many?
    pub(crate) fn permits(self, number: usize) -> bool {
        number == self.number || (self.optional && number < self.number)
    }
}

/// The most descriptors that any message carries.
pub(crate) const MOST_FDS: usize = 2;

/// What is wrong with a message of the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed link message: {}", self.0)
    }
}

impl Message {
    /// The descriptors it comes with.
    pub(crate) fn descriptors(&self) -> Descriptors {
        match self {
            // The first arena; the eventfd.
            Message::Hello { bell: Bell::Socket, .. } => Descriptors { number: 1, optional: false },
            Message::Hello { bell: Bell::Eventfd, .. } => Descriptors { number: 2, optional: false },
            // The arena; the segment.
            Message::Arena { .. } | Message::Grant { .. } => Descriptors { number: 1, optional: true },
            Message::Link
            | Message::Wake
            | Message::Offer { .. }
            | Message::Match { .. }
            | Message::Ready { .. }
            | Message::Proved { .. }
            | Message::Attached { .. }
            | Message::Refuse { .. }
            | Message::Cancel { .. }
            | Message::Pinned { .. }
            | Message::Detach { .. }
            | Message::Query { .. }
            | Message::Answer
            | Message::Ask { .. }
            | Message::Deny { .. }
            | Message::Return { .. }
            | Message::Bye => Descriptors::NONE,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        match self {
            Message::Link => {
                out.push(17);
                out.extend(MAGIC);
                out.extend(VERSION.to_le_bytes());
            }
            Message::Hello { link_id, endpoint, gid, slots, bell } => {
                out.push(1);
                out.extend(MAGIC);
                out.extend(VERSION.to_le_bytes());
                out.extend(link_id.to_le_bytes());
                out.extend(endpoint);
                out.extend(gid);
                out.extend(slots.to_le_bytes());
                out.push(match bell {
                    Bell::Socket => 0,
                    Bell::Eventfd => 1,
                });
            }
            Message::Arena { slots } => {
                out.push(2);
                out.extend(slots.to_le_bytes());
            }
            Message::Offer { id, signal, handshake, subject, commitment, clc } => {
                out.push(3);
                out.extend(id.to_le_bytes());
                out.extend(signal.to_le_bytes());
                out.push(u8::from(*handshake));
                encode_subject(&mut out, subject);
                encode_commitment(&mut out, commitment.as_ref());
                out.extend(clc);
            }
            Message::Match { id, signal, dmb, cookie, commitment, clc } => {
                out.push(4);
                out.extend(id.to_le_bytes());
                out.extend(signal.to_le_bytes());
                encode_place(&mut out, dmb);
                out.extend(cookie.to_le_bytes());
                encode_commitment(&mut out, commitment.as_ref());
                out.extend(clc);
            }
            Message::Ready { id, dmb, reveal, clc } => {
                out.push(5);
                out.extend(id.to_le_bytes());
                encode_place(&mut out, dmb);
                encode_reveal(&mut out, reveal.as_ref());
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
            Message::Ask { token, bytes, held } => encode_numbers(&mut out, 12, &[*token, *bytes, *held]),
            Message::Grant { token, segment, bytes } => {
                encode_numbers(&mut out, 13, &[*token, *segment, *bytes]);
            }
            Message::Deny { token, why } => {
                encode_numbers(&mut out, 14, &[*token]);
                out.push(match why {
                    Refusal::NotNeeded => 0,
                    Refusal::Limit => 1,
                    Refusal::Memory => 2,
                });
            }
            Message::Return { token, segment } => encode_numbers(&mut out, 15, &[*token, *segment]),
            Message::Bye => out.push(16),
            Message::Wake => out.push(18),
            Message::Proved { id, reveal } => {
                encode_numbers(&mut out, 19, &[*id]);
                encode_reveal(&mut out, Some(reveal));
            }
            Message::Attached { id } => encode_numbers(&mut out, 20, &[*id]),
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
                    slots: fields.u32()?,
                    bell: match fields.u8()? {
                        0 => Bell::Socket,
                        1 => Bell::Eventfd,
                        _ => return Err(Malformed("an unknown kind of doorbell")),
                    },
                }
            }
            2 => Message::Arena { slots: fields.u32()? },
            3 => Message::Offer {
                id: fields.u64()?,
                signal: fields.u32()?,
                handshake: fields.u8()? & 1 != 0,
                subject: fields.subject()?,
                commitment: fields.commitment()?,
                clc: fields.rest(),
            },
            4 => Message::Match {
                id: fields.u64()?,
                signal: fields.u32()?,
                dmb: fields.place()?,
                cookie: fields.u64()?,
                commitment: fields.commitment()?,
                clc: fields.rest(),
            },
            5 => Message::Ready {
                id: fields.u64()?,
                dmb: fields.place()?,
                reveal: fields.reveal()?,
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
            12 => Message::Ask { token: fields.u64()?, bytes: fields.u64()?, held: fields.u64()? },
            13 => Message::Grant { token: fields.u64()?, segment: fields.u64()?, bytes: fields.u64()? },
            14 => Message::Deny {
                token: fields.u64()?,
                why: match fields.u8()? {
                    0 => Refusal::NotNeeded,
                    1 => Refusal::Limit,
                    _ => Refusal::Memory,
                },
            },
            15 => Message::Return { token: fields.u64()?, segment: fields.u64()? },
            16 => Message::Bye,
            17 => {
                fields.greeting()?;
                Message::Link
            }
            18 => Message::Wake,
            19 => Message::Proved {
                id: fields.u64()?,
                reveal: fields.reveal()?.ok_or(Malformed("PROVED without what proves"))?,
            },
            20 => Message::Attached { id: fields.u64()? },
            _ => return Err(Malformed("unknown type")),
        };
        if fields.0.is_empty() { Ok(message) } else { Err(Malformed("longer than its type allows")) }
    }
}

fn encode_place(out: &mut Vec<u8>, place: &DmbPlace) {
    out.extend(place.arena.to_le_bytes());
    out.extend(place.slot.to_le_bytes());
    out.extend(place.window.to_le_bytes());
}

fn encode_numbers(out: &mut Vec<u8>, kind: u8, numbers: &[u64]) {
    out.push(kind);
    out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

fn encode_commitment(out: &mut Vec<u8>, commitment: Option<&Commitment>) {
    let (kind, bytes) = match commitment {
        None => (0, &[][..]),
        Some(Commitment::Hash(hash)) => (1, &hash[..]),
        Some(Commitment::Share(share)) => (2, &share[..]),
    };
    out.push(kind);
    out.extend(bytes);
}

fn encode_reveal(out: &mut Vec<u8>, reveal: Option<&Reveal>) {
    match reveal {
        None => out.push(0),
        Some(Reveal::Number { sequence, nonce }) => {
            out.push(1);
            out.extend(sequence.to_le_bytes());
            out.extend(nonce);
        }
        Some(Reveal::Tag(tag)) => {
            out.push(2);
            out.extend(tag);
        }
    }
}

fn encode_subject(out: &mut Vec<u8>, subject: &Subject) {
    encode_address(out, subject.tuple.local);
    encode_address(out, subject.tuple.remote);
    out.extend(subject.cookie.to_le_bytes());
    out.extend(subject.network_namespace.to_le_bytes());
    out.push(match subject.destination {
        Destination::Own => 0,
        Destination::Translated => 1,
    });
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

    fn place(&mut self) -> Result<DmbPlace, Malformed> {
        Ok(DmbPlace { arena: self.u32()?, slot: self.u32()?, window: self.u64()? })
    }

    fn commitment(&mut self) -> Result<Option<Commitment>, Malformed> {
        Ok(match self.u8()? {
            0 => None,
            1 => Some(Commitment::Hash(self.array()?)),
            2 => Some(Commitment::Share(self.array()?)),
            _ => return Err(Malformed("an unknown kind of commitment")),
        })
    }

    fn reveal(&mut self) -> Result<Option<Reveal>, Malformed> {
        Ok(match self.u8()? {
            0 => None,
            1 => Some(Reveal::Number { sequence: self.u32()?, nonce: self.array()? }),
            2 => Some(Reveal::Tag(self.array()?)),
            _ => return Err(Malformed("an unknown kind of proof")),
        })
    }

    fn subject(&mut self) -> Result<Subject, Malformed> {
        let tuple = Tuple::new(self.address()?, self.address()?);
        let (cookie, network_namespace) = (self.u64()?, self.u64()?);
        let destination = match self.u8()? {
            0 => Destination::Own,
            1 => Destination::Translated,
            _ => return Err(Malformed("an unknown kind of destination")),
        };
        Ok(Subject { tuple, cookie, network_namespace, destination })
    }

    fn address(&mut self) -> Result<SocketAddr, Malformed> {
        let ip = Ipv6Addr::from(self.array::<16>()?);
        let port = self.u16()?;
        let scope = self.u32()?;
        Ok(canonical(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope))))
    }
}

#[cfg(test)]
mod tests;
