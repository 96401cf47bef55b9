//! The header of a direct memory buffer (DMB): everything both ends of one direction share besides
//! the bytes.
//!
//! A DMB lies in memory of the direction's receiver and is written by its sender. The header holds,
//! each on cache lines of its own, what the sender publishes (cursor, hops, flags), what the
//! receiver publishes (cursor, hop number), its flags, the writer's "wake me" flag, and the words
//! that decide whether this direction left TCP. The reader's "wake me" flag is beside the sender's
//! cursor: who has just moved that asks for no other line, and each costs a tenth of a µs. Both
//! processes may write every byte of it: whoever reads a word validates it and keeps the copy.

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Room a header takes in an arena.
pub(crate) const HEADER_BYTES: usize = 1024;
/// Size of segment 0, which every DMB has; larger ones are lent to its sender when it needs them.
pub(crate) const SMALLEST_SEGMENT: usize = 4096;
/// Bytes of the largest segment there can be, which is the largest that an application may ask for.
pub(crate) const LARGEST_SEGMENT: usize = 64 << 20;
/// Hops that can be on their way at once: the records live in a small ring of their own.
#[cfg(not(loom))]
pub(crate) const HOPS: usize = 16;
/// Few enough for a model.
#[cfg(loom)]
pub(crate) const HOPS: usize = 2;

/// Connection state flags, as in the CDC message of SMC-D (RFC 7609, section A.4): each end only
/// ever adds some.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Flags(u32);

impl Flags {
    /// No flag.
    pub(crate) const NONE: Flags = Flags(0);
    /// The sender will write no more: end of stream after the last byte.
    pub(crate) const DONE_WRITING: Flags = Flags(0x80);
    /// The end is gone, with everything delivered to it that it wanted.
    pub(crate) const CLOSED: Flags = Flags(0x40);
    /// The end is gone and threw data away: the connection is reset.
    pub(crate) const ABORT: Flags = Flags(0x20);
    /// The receiver reads what is there, and no more: its descriptor was shut down. (Not one of
    /// SMC's.)
    pub(crate) const SHUT: Flags = Flags(0x10);

    const KNOWN: u32 = Self::DONE_WRITING.0 | Self::CLOSED.0 | Self::ABORT.0 | Self::SHUT.0;

    /// The flags a peer published; bits without a meaning are dropped.
    pub(crate) const fn from_bits(bits: u32) -> Flags {
        Flags(bits & Self::KNOWN)
    }

    /// The flags as they stand in memory.
    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` are set.
    pub(crate) const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether no flag is set.
    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What was decided about a direction: who carries its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    /// TCP so far; either end may still decide.
    Open,
    /// The ring, from this position of the byte stream on. Final.
    Switched(u64),
    /// TCP for good. Final.
    Pinned,
}

const OPEN: u64 = 0;
const PINNED: u64 = u64::MAX;

impl Direction {
    const fn from_word(word: u64) -> Direction {
        match word {
            OPEN => Direction::Open,
            PINNED => Direction::Pinned,
            next => Direction::Switched(next - 1),
        }
    }
}

/// State of a CLC handshake over the TCP connection itself (policy `Handshake`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum HandshakeWord {
    /// Not begun.
    None = 0,
    /// The server keeps both directions at position 0 for it.
    Held = 1,
    /// Certain: the first bytes of both directions are CLC messages.
    Go = 2,
    /// Will not happen: the CLC messages travel on the link.
    Off = 3,
}

impl HandshakeWord {
    // A value nobody defines comes from a peer that breaks the rules; `Off` gives it nothing to
    // decide.
    const fn from_word(word: u32) -> HandshakeWord {
        match word {
            0 => HandshakeWord::None,
            1 => HandshakeWord::Held,
            2 => HandshakeWord::Go,
            _ => HandshakeWord::Off,
        }
    }
}

/// What the sender publishes.
#[repr(C, align(128))]
pub(crate) struct ProducerLine {
    /// Bytes written so far.
    pub prod: AtomicU64,
    /// Hops made so far.
    pub hop_count: AtomicU64,
    /// A waiting sender wants no wake-up before the receiver's cursor is here.
    pub wake_at: AtomicU64,
    /// The sender's [`Flags`].
    pub flags: AtomicU32,
    /// The receiver waits for data: as [`ArmedLine`].
    pub data_armed: AtomicU32,
}

/// One change of segment: the bytes from `position` on lie in `segment`.
#[repr(C)]
pub(crate) struct HopRecord {
    /// First position that lies in the new segment.
    pub position: AtomicU64,
    /// Number of the new segment: 0, or that of a grant.
    pub segment: AtomicU64,
}

/// The last [`HOPS`] changes of segment; hop number k (from 0) is `[k mod 16]`.
#[repr(C, align(128))]
pub(crate) struct HopLines(pub [HopRecord; HOPS]);

/// What the receiver publishes.
#[repr(C, align(128))]
pub(crate) struct ConsumerLine {
    /// Bytes read so far.
    pub cons: AtomicU64,
    /// Hops followed so far.
    pub hop: AtomicU64,
}

/// What a sender looks at with every write. So it hears of a receiver's end from the next one on,
/// as on TCP, and the receiver's cursor, which moves all the time, costs it nothing.
#[repr(C, align(128))]
pub(crate) struct ReaderLine {
    /// The receiver's [`Flags`].
    pub flags: AtomicU32,
}

/// A "wake me" flag: set by the end that waits, cleared (by swap) by the end that wakes.
#[repr(C, align(128))]
pub(crate) struct ArmedLine(pub AtomicU32);

/// The words that decide whether a direction leaves TCP.
#[repr(C, align(128))]
pub(crate) struct SwitchLine {
    direction: AtomicU64,
    handshake: AtomicU32,
}

/// The header of a DMB, at the start of its slot.
#[repr(C, align(128))]
pub(crate) struct DmbHeader {
    /// Written by the sender, and by a receiver that wishes to be woken.
    pub producer: ProducerLine,
    /// Written by the sender.
    pub hops: HopLines,
    /// Written by the receiver.
    pub consumer: ConsumerLine,
    /// Written by the receiver.
    pub reader: ReaderLine,
    /// The sender waits for space.
    pub space_armed: ArmedLine,
    switch: SwitchLine,
}

#[cfg(not(loom))]
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<DmbHeader>() <= HEADER_BYTES);
    assert!(offset_of!(DmbHeader, hops) == 128);
    assert!(offset_of!(DmbHeader, consumer) == 384);
    assert!(offset_of!(DmbHeader, reader) == 512);
    assert!(offset_of!(DmbHeader, space_armed) == 640);
    assert!(offset_of!(DmbHeader, switch) == 768);
};

impl DmbHeader {
    /// A header in its first state, for memory that is not mapped.
    pub(crate) fn new() -> DmbHeader {
        let header = DmbHeader {
            producer: ProducerLine {
                prod: AtomicU64::new(0),
                hop_count: AtomicU64::new(0),
                wake_at: AtomicU64::new(0),
                flags: AtomicU32::new(0),
                data_armed: AtomicU32::new(0),
            },
            hops: HopLines(std::array::from_fn(|_| HopRecord {
                position: AtomicU64::new(0),
                segment: AtomicU64::new(0),
            })),
            consumer: ConsumerLine { cons: AtomicU64::new(0), hop: AtomicU64::new(0) },
            reader: ReaderLine { flags: AtomicU32::new(0) },
            space_armed: ArmedLine(AtomicU32::new(0)),
            switch: SwitchLine { direction: AtomicU64::new(OPEN), handshake: AtomicU32::new(0) },
        };
        header.arm_both();
        header
    }

    /// Puts the header of a slot into its first state; by the owner, before the token leaves the
    /// process.
    ///
    /// The message that carries the token orders these stores before whatever the peer does with
    /// it.
    pub(crate) fn initialise(&self) {
        self.producer.prod.store(0, Ordering::Relaxed);
        self.producer.hop_count.store(0, Ordering::Relaxed);
        self.producer.wake_at.store(0, Ordering::Relaxed);
        self.producer.flags.store(0, Ordering::Relaxed);
        for record in &self.hops.0 {
            record.position.store(0, Ordering::Relaxed);
            record.segment.store(0, Ordering::Relaxed);
        }
        self.consumer.cons.store(0, Ordering::Relaxed);
        self.consumer.hop.store(0, Ordering::Relaxed);
        self.reader.flags.store(0, Ordering::Relaxed);
        self.switch.direction.store(OPEN, Ordering::Relaxed);
        self.switch.handshake.store(HandshakeWord::None as u32, Ordering::Relaxed);
        self.arm_both();
    }

    // Somebody may already wait on TCP when a slot is made, and must hear of the first thing that
    // happens in it.
    fn arm_both(&self) {
        self.producer.data_armed.store(1, Ordering::Relaxed);
        self.space_armed.0.store(1, Ordering::Release);
    }

    /// What was decided about the direction so far.
    pub(crate) fn direction(&self) -> Direction {
        Direction::from_word(self.switch.direction.load(Ordering::Acquire))
    }

    /// Moves the direction onto the ring from `position` on; by the sender. The error is what was
    /// decided before.
    pub(crate) fn switch(&self, position: u64) -> Result<(), Direction> {
        match position.checked_add(1) {
            Some(word) if word != PINNED => self.decide(word),
            // No such position can be told to the peer, so the bytes have to stay where they are.
            _ => Err(self.pin()),
        }
    }

    /// Keeps the direction on TCP if nothing else was decided; by either end. Returns the final
    /// value.
    pub(crate) fn pin(&self) -> Direction {
        match self.decide(PINNED) {
            Ok(()) => Direction::Pinned,
            Err(decided) => decided,
        }
    }

    fn decide(&self, word: u64) -> Result<(), Direction> {
        self.switch
            .direction
            .compare_exchange(OPEN, word, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
            .map_err(Direction::from_word)
    }

    /// State of the handshake over TCP.
    pub(crate) fn handshake(&self) -> HandshakeWord {
        HandshakeWord::from_word(self.switch.handshake.load(Ordering::Acquire))
    }

    /// Moves the handshake over TCP from one state to another. The error is the state it was in
    /// instead.
    pub(crate) fn move_handshake(&self, from: HandshakeWord, to: HandshakeWord) -> Result<(), HandshakeWord> {
        self.switch
            .handshake
            .compare_exchange(from as u32, to as u32, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
            .map_err(HandshakeWord::from_word)
    }
}

impl Default for DmbHeader {
    fn default() -> DmbHeader {
        DmbHeader::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_header_is_zero_but_armed() {
        let header = DmbHeader::new();
        header.producer.prod.store(7, Ordering::Relaxed);
        header.producer.flags.store(7, Ordering::Relaxed);
        header.consumer.cons.store(9, Ordering::Relaxed);
        header.hops.0[15].position.store(3, Ordering::Relaxed);
        header.producer.data_armed.store(0, Ordering::Relaxed);
        header.space_armed.0.store(0, Ordering::Relaxed);
        header.switch(12).unwrap();
        header.initialise();
        assert_eq!(header.producer.prod.load(Ordering::Relaxed), 0);
        assert_eq!(header.producer.flags.load(Ordering::Relaxed), 0);
        assert_eq!(header.consumer.cons.load(Ordering::Relaxed), 0);
        assert_eq!(header.hops.0[15].position.load(Ordering::Relaxed), 0);
        assert_eq!(header.producer.data_armed.load(Ordering::Relaxed), 1);
        assert_eq!(header.space_armed.0.load(Ordering::Relaxed), 1);
        assert_eq!(header.direction(), Direction::Open);
        assert_eq!(header.handshake(), HandshakeWord::None);
    }

    #[test]
    fn the_first_decision_about_a_direction_is_final() {
        let header = DmbHeader::new();
        assert_eq!(header.switch(0), Ok(()));
        assert_eq!(header.direction(), Direction::Switched(0), "position 0 is a position");
        assert_eq!(header.switch(5), Err(Direction::Switched(0)));
        assert_eq!(header.pin(), Direction::Switched(0));

        let header = DmbHeader::new();
        assert_eq!(header.pin(), Direction::Pinned);
        assert_eq!(header.pin(), Direction::Pinned);
        assert_eq!(header.switch(5), Err(Direction::Pinned));
    }

    #[test]
    fn positions_at_the_end_of_the_world_pin() {
        for position in [u64::MAX - 1, u64::MAX] {
            let header = DmbHeader::new();
            assert_eq!(header.switch(position), Err(Direction::Pinned));
            assert_eq!(header.direction(), Direction::Pinned);
        }
        let header = DmbHeader::new();
        assert_eq!(header.switch(u64::MAX - 2), Ok(()));
        assert_eq!(header.direction(), Direction::Switched(u64::MAX - 2));
    }

    #[test]
    fn the_handshake_word_moves_only_from_where_it_is() {
        use HandshakeWord::*;
        let header = DmbHeader::new();
        assert_eq!(header.move_handshake(Held, Go), Err(None));
        assert_eq!(header.move_handshake(None, Held), Ok(()));
        assert_eq!(header.move_handshake(Held, Go), Ok(()));
        assert_eq!(header.move_handshake(Held, Off), Err(Go));
        header.switch.handshake.store(77, Ordering::Relaxed);
        assert_eq!(header.handshake(), Off, "garbage decides nothing");
    }

    #[test]
    fn unknown_flag_bits_are_dropped() {
        let flags = Flags::from_bits(u32::MAX);
        assert_eq!(flags.bits(), 0xf0);
        assert!(Flags::NONE.is_empty());
        let one = Flags::CLOSED;
        assert!(one.contains(Flags::CLOSED) && !one.contains(Flags::DONE_WRITING));
        assert!(!one.contains(Flags(0x60)), "all of them, not one of them");
    }
}
