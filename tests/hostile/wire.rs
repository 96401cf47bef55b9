//! The wire format, a second time: docs/protocol.md, written down by hand, with nothing of the
//! crate's own code. What changes with a version of the protocol changes here.

use std::net::{IpAddr, SocketAddr};

/// The version that HELLO and QUERY name.
pub(crate) const VERSION: u16 = 5;
pub(crate) const MAGIC: [u8; 4] = *b"SMCL";
/// Longest control message, in bytes.
pub(crate) const LONGEST: usize = 4096;

// ---- types of messages ----

pub(crate) const HELLO: u8 = 1;
pub(crate) const ARENA: u8 = 2;
pub(crate) const OFFER: u8 = 3;
pub(crate) const MATCH: u8 = 4;
pub(crate) const READY: u8 = 5;
pub(crate) const REFUSE: u8 = 6;
pub(crate) const CANCEL: u8 = 7;
pub(crate) const PINNED: u8 = 8;
pub(crate) const DETACH: u8 = 9;
pub(crate) const QUERY: u8 = 10;
pub(crate) const ANSWER: u8 = 11;
pub(crate) const ASK: u8 = 12;
pub(crate) const GRANT: u8 = 13;
pub(crate) const DENY: u8 = 14;
pub(crate) const RETURN: u8 = 15;
pub(crate) const BYE: u8 = 16;
pub(crate) const LINK: u8 = 17;
pub(crate) const PROVED: u8 = 19;
pub(crate) const ATTACHED: u8 = 20;
/// Beyond the last type that means something.
pub(crate) const TYPES: u8 = 21;
/// Bytes of HELLO.
pub(crate) const HELLO_BYTES: usize = 52;

// ---- an arena ----

/// Bytes of the control page.
pub(crate) const CONTROL: usize = 16 << 10;
const HEADER: usize = 1 << 10;
/// Bytes of segment 0.
pub(crate) const FIRST: usize = 4096;
const PART: usize = 64 << 10;

/// Where the header of a slot lies.
pub(crate) fn header_at(slot: u32) -> usize {
    CONTROL + slot as usize * HEADER
}

/// Where segment 0 of a slot lies.
pub(crate) fn first_at(slots: u32, slot: u32) -> usize {
    (CONTROL + slots as usize * HEADER).next_multiple_of(PART) + slot as usize * FIRST
}

/// Bytes of the whole file.
pub(crate) fn arena_bytes(slots: u32) -> usize {
    first_at(slots, slots).next_multiple_of(PART)
}

// ---- the signal page, at the beginning of an arena ----

pub(crate) const NEAR_WORDS: usize = 8;
pub(crate) const NEAR: u64 = 7;
pub(crate) const SUMMARY: usize = 128;
pub(crate) const FAR_WORDS: usize = 256;
pub(crate) const CONNECTIONS: u32 = 32768;

// ---- a DMB's header ----

pub(crate) const PROD: usize = 0;
pub(crate) const HOP_COUNT: usize = 8;
pub(crate) const WAKE_AT: usize = 16;
pub(crate) const PRODUCER_FLAGS: usize = 24;
pub(crate) const DATA_ARMED: usize = 28;
pub(crate) const HOPS: usize = 128;
pub(crate) const CONS: usize = 384;
pub(crate) const FOLLOWED: usize = 392;
pub(crate) const CONSUMER_FLAGS: usize = 512;
pub(crate) const SPACE_ARMED: usize = 640;
pub(crate) const DIRECTION: usize = 768;
pub(crate) const HANDSHAKE: usize = 776;

pub(crate) const PINNED_WORD: u64 = u64::MAX;
pub(crate) const CLOSED: u32 = 0x40;

/// Where hop record number `k` has its position; its segment is 8 bytes behind.
pub(crate) fn hop_at(k: usize) -> usize {
    HOPS + (k % 16) * 16
}

// ---- messages that a peer makes ----

/// Puts fields one behind the other.
#[derive(Clone, Default)]
pub(crate) struct Packet(pub(crate) Vec<u8>);

impl Packet {
    pub(crate) fn new(kind: u8) -> Self {
        Packet(vec![kind])
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    pub(crate) fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn address(self, address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        self.bytes(&ip.octets()).u16(address.port()).u32(0)
    }

    fn subject(self, subject: &Subject) -> Self {
        let packet = self.address(subject.local).address(subject.remote);
        // It is the server's own address, not a translated one.
        packet.u64(subject.cookie).u64(subject.network_namespace).u8(0)
    }

    /// Says whether it is there, and then what it is.
    fn optional(self, bytes: Option<&[u8]>) -> Self {
        self.u8(u8::from(bytes.is_some())).bytes(bytes.unwrap_or_default())
    }

    fn commitment(self, commitment: Option<&[u8; 32]>) -> Self {
        match commitment {
            Some(&SHARE) => self.u8(2).bytes(&SHARE),
            hash => self.optional(hash.map(|hash| &hash[..])),
        }
    }

    fn place(self, place: Place) -> Self {
        self.u32(place.arena).u32(place.slot).u64(place.window)
    }
}

/// Which connection an offer is about, as the client sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) cookie: u64,
    pub(crate) network_namespace: u64,
}

/// Where a DMB is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) arena: u32,
    pub(crate) slot: u32,
    pub(crate) window: u64,
}

/// Opens a link.
pub(crate) fn link() -> Packet {
    Packet::new(LINK).bytes(&MAGIC).u16(VERSION)
}

/// HELLO; its descriptors are arena 0 and the eventfd, in this order.
pub(crate) fn hello(link: u64, endpoint: [u8; 16], gid: [u8; 16], slots: u32) -> Packet {
    let rung_by_eventfd = 1;
    let hello = Packet::new(HELLO).bytes(&MAGIC).u16(VERSION).u64(link).bytes(&endpoint);
    hello.bytes(&gid).u32(slots).u8(rung_by_eventfd)
}

pub(crate) fn arena(slots: u32) -> Packet {
    Packet::new(ARENA).u32(slots)
}

/// A commitment that is a share of a key, of whose number nobody knows anything: a point of
/// ristretto255 (its generator). All other commitments are hashes.
pub(crate) const SHARE: [u8; 32] = [
    0xe2, 0xf2, 0xae, 0x0a, 0x6a, 0xbc, 0x4e, 0x71, 0xa8, 0x84, 0xa9, 0x61, 0xc5, 0x00, 0x51, 0x5f, 0x58,
    0xe3, 0x0b, 0x6a, 0xa5, 0x82, 0xdd, 0x8d, 0xb6, 0xa6, 0x59, 0x45, 0xe0, 0x8d, 0x2d, 0x76,
];

/// Without a commitment it counts on the cookie, and nothing may have been written before.
pub(crate) fn offer(
    id: u64,
    signal: u32,
    flags: u8,
    subject: &Subject,
    commitment: Option<&[u8; 32]>,
    clc: &[u8],
) -> Packet {
    let offer = Packet::new(OFFER).u64(id).u32(signal).u8(flags).subject(subject);
    offer.commitment(commitment).bytes(clc)
}

pub(crate) fn match_offer(id: u64, place: Place, clc: &[u8]) -> Packet {
    Packet::new(MATCH).u64(id).u32(0).place(place).u64(1).optional(None).bytes(clc)
}

/// MATCH of who claims to be the server, whose socket has that cookie.
pub(crate) fn match_claimed(
    id: u64,
    place: Place,
    cookie: u64,
    commitment: Option<&[u8; 32]>,
    clc: &[u8],
) -> Packet {
    let packet = Packet::new(MATCH).u64(id).u32(3).place(place).u64(cookie);
    packet.commitment(commitment).bytes(clc)
}

/// For whom a commitment counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) client: [u8; 16],
    pub(crate) server: [u8; 16],
    pub(crate) offer: u64,
}

/// What a client commits itself to, and what opens that.
pub(crate) fn commit(bound: &Bound, sequence: u32, nonce: [u8; 32]) -> ([u8; 32], [u8; 36]) {
    let mut hash = blake3::Hasher::new_derive_key("tokio-smc 2026 possession of a TCP connection");
    hash.update(&[0]).update(&sequence.to_le_bytes()).update(&nonce);
    hash.update(&bound.client).update(&bound.server).update(&bound.offer.to_le_bytes());
    let reveal = Packet::default().u32(sequence).bytes(&nonce);
    (hash.finalize().into(), reveal.0.try_into().expect("36 bytes"))
}

/// `reveal` answers a commitment.
pub(crate) fn ready(id: u64, place: Place, reveal: Option<&[u8; 36]>, clc: &[u8]) -> Packet {
    Packet::new(READY).u64(id).place(place).optional(reveal.map(|reveal| &reveal[..])).bytes(clc)
}

/// READY with a tag, which answers a share.
pub(crate) fn ready_with_tag(id: u64, place: Place, tag: &[u8; 32], clc: &[u8]) -> Packet {
    Packet::new(READY).u64(id).place(place).u8(2).bytes(tag).bytes(clc)
}

pub(crate) fn proved(id: u64, reveal: &[u8; 36]) -> Packet {
    about(PROVED, id).u8(1).bytes(reveal)
}

pub(crate) fn proved_with_tag(id: u64, tag: &[u8; 32]) -> Packet {
    about(PROVED, id).u8(2).bytes(tag)
}

pub(crate) fn answer() -> Packet {
    Packet::new(ANSWER)
}

pub(crate) fn query(subject: &Subject) -> Packet {
    Packet::new(QUERY).bytes(&MAGIC).u16(VERSION).subject(subject)
}

/// CANCEL, PINNED, DETACH, ATTACHED: one number.
pub(crate) fn about(kind: u8, number: u64) -> Packet {
    Packet::new(kind).u64(number)
}

pub(crate) fn ask(token: u64, bytes: u64, held: u64) -> Packet {
    Packet::new(ASK).u64(token).u64(bytes).u64(held)
}

pub(crate) fn grant(token: u64, segment: u64, bytes: u64) -> Packet {
    Packet::new(GRANT).u64(token).u64(segment).u64(bytes)
}

pub(crate) fn deny(token: u64, why: u8) -> Packet {
    Packet::new(DENY).u64(token).u8(why)
}

pub(crate) fn give_back(token: u64, segment: u64) -> Packet {
    Packet::new(RETURN).u64(token).u64(segment)
}

// ---- messages that a peer gets ----

/// What the victim says, as far as a peer makes use of it.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    Hello { slots: u32 },
    Arena { slots: u32 },
    Match { id: u64, signal: u32, place: Place, clc: Vec<u8> },
    Refuse { id: u64 },
    Ask { token: u64 },
    Proved { id: u64 },
    Other,
}

/// Reads a message of the victim, which is honest.
pub(crate) fn read(message: &[u8]) -> Said {
    let u32_at = |at: usize| u32::from_le_bytes(message[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(message[at..at + 8].try_into().expect("8 bytes"));
    match message[0] {
        HELLO => Said::Hello { slots: u32_at(47) },
        ARENA => Said::Arena { slots: u32_at(1) },
        MATCH => Said::Match {
            id: u64_at(1),
            signal: u32_at(9),
            place: Place { arena: u32_at(13), slot: u32_at(17), window: u64_at(21) },
            clc: message[if message[37] == 0 { 38 } else { 70 }..].to_vec(),
        },
        REFUSE => Said::Refuse { id: u64_at(1) },
        ASK => Said::Ask { token: u64_at(1) },
        PROVED => Said::Proved { id: u64_at(1) },
        _ => Said::Other,
    }
}

// ---- CLC messages: big-endian ----

const SMCR: [u8; 4] = [0xE2, 0xD4, 0xC3, 0xD9];
const SMCD: [u8; 4] = [0xE2, 0xD4, 0xC3, 0xC4];
const LOOPBACK_CHID: [u8; 2] = [0xFF; 2];

fn eid() -> [u8; 32] {
    let mut eid = [b' '; 32];
    eid[..18].copy_from_slice(b"TOKIO-SMC-LOOPBACK");
    eid
}

pub(crate) fn proposal(gid: [u8; 16]) -> Vec<u8> {
    let mut clc = vec![0; 224];
    clc[..4].copy_from_slice(&SMCR);
    clc[4..8].copy_from_slice(&[1, 0, 224, 0x26]);
    clc[51] = 28;
    clc[80..84].copy_from_slice(&[1, 2, 0, 0x10]);
    clc[87] = 64;
    clc[107] = 1;
    clc[120..152].copy_from_slice(&eid());
    for (entry, half) in [(200, &gid[..8]), (210, &gid[8..])] {
        clc[entry..entry + 8].copy_from_slice(half);
        clc[entry + 8..entry + 10].copy_from_slice(&LOOPBACK_CHID);
    }
    clc[220..].copy_from_slice(&SMCR);
    clc
}

/// The token in an Accept, and whether it says "first contact".
pub(crate) fn accepted(clc: &[u8]) -> (u64, bool) {
    (u64::from_be_bytes(clc[16..24].try_into().expect("8 bytes")), clc[7] & 8 != 0)
}

pub(crate) fn confirm(gid: [u8; 16], token: u64, first_contact: bool) -> Vec<u8> {
    let length = if first_contact { 130 } else { 78 };
    let mut clc = vec![0; length];
    clc[..4].copy_from_slice(&SMCD);
    clc[4..8].copy_from_slice(&[3, 0, length as u8, if first_contact { 0x29 } else { 0x21 }]);
    clc[8..16].copy_from_slice(&gid[..8]);
    clc[16..24].copy_from_slice(&token.to_be_bytes());
    clc[28..32].copy_from_slice(&7u32.to_ne_bytes());
    clc[32..34].copy_from_slice(&LOOPBACK_CHID);
    clc[34..66].copy_from_slice(&eid());
    clc[66..74].copy_from_slice(&gid[8..]);
    if first_contact {
        clc[75] = 0x21;
        clc[78..110].copy_from_slice(b"hostile                         ");
        clc[113] = 1;
    }
    clc[length - 4..].copy_from_slice(&SMCD);
    clc
}

/// An Accept at first contact.
pub(crate) fn accept(gid: [u8; 16], token: u64) -> Vec<u8> {
    let mut clc = confirm(gid, token, true);
    clc[4] = 2;
    clc
}
