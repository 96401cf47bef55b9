//! The bytes that travel, known to both ends, so that every received byte can be compared with what
//! must stand there.
//!
//! A checksum that both ends compute would cost the sender one more pass over the data and could
//! still be fooled. Instead both ends hold the same pool of random bytes and block `n` of a stream
//! is a window of the pool whose start depends on `n`: the sender writes slices of the pool as they
//! are, and the receiver compares what it got with the slice that belongs at that position
//! (`memcmp` from the cache, at about the speed of one more copy). A lost, repeated, changed or
//! reordered byte shows as a difference at the exact position.

use crate::wire::FRAME;

/// Bytes of one write of the throughput test, unless it is told another number.
pub(crate) const BLOCK: usize = 64 * 1024;

/// Number of different windows. A prime: a ring whose size is a power of two never holds, at one
/// place, the same window in two consecutive laps, so bytes left over from an earlier lap are
/// noticed.
pub(crate) const WINDOWS: u64 = 1021;

/// Blocks after which a stream of writes repeats itself whose size is no part of a block: the
/// sender holds all of them in a row, about what a core's own cache holds. A prime, for the same
/// reason.
pub(crate) const SHORT_LAP: u64 = 17;

/// Distance of two windows; a cache line keeps both sides of the comparison aligned.
const STRIDE: usize = 64;

/// Bytes of the sequence number that every message starts with.
const SEQUENCE: usize = 8;

pub(crate) struct Pattern(Box<[u8]>);

impl Pattern {
    pub(crate) fn new() -> Self {
        // splitmix64: the same bytes in every process, without structure that a shifted stream
        // could match.
        let mut state = 0x736d_6370_6572_6631_u64;
        let words = (BLOCK + WINDOWS as usize * STRIDE) / 8;
        let pool = (0..words).flat_map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = state;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (word ^ (word >> 31)).to_le_bytes()
        });
        Self(pool.collect())
    }

    fn window(&self, index: u64) -> &[u8] {
        let start = (index % WINDOWS) as usize * STRIDE;
        &self.0[start..start + BLOCK]
    }

    /// The content of block `index` of a stream of blocks.
    pub(crate) fn block(&self, index: u64) -> &[u8] {
        self.window(index)
    }

    /// The writes of a stream of blocks, `bytes` each.
    pub(crate) fn writes(&self, bytes: usize) -> Writes<'_> {
        if BLOCK % bytes == 0 {
            return Writes { pattern: self, bytes, lap: WINDOWS, row: Vec::new() };
        }
        // What begins in the last block goes on in the first.
        let blocks = (0..).map(|index| self.block(index % SHORT_LAP));
        let row = blocks.flatten().copied().take(SHORT_LAP as usize * BLOCK + bytes).collect();
        Writes { pattern: self, bytes, lap: SHORT_LAP, row }
    }

    /// Compares bytes received at `position` of a stream of blocks, which repeats itself after
    /// `lap` of them, with what must stand there; the position of the first byte that differs is
    /// the error.
    pub(crate) fn check_blocks(&self, lap: u64, mut position: u64, mut received: &[u8]) -> Result<(), u64> {
        let lap = lap.max(1);
        while !received.is_empty() {
            let offset = (position % BLOCK as u64) as usize;
            let expected = &self.block(position / BLOCK as u64 % lap)[offset..];
            let (piece, rest) = received.split_at(received.len().min(expected.len()));
            if piece != &expected[..piece.len()] {
                let same = piece.iter().zip(expected).take_while(|(got, due)| got == due).count();
                return Err(position + same as u64);
            }
            position += piece.len() as u64;
            received = rest;
        }
        Ok(())
    }

    /// Writes message `index`: its number, or as much of it as there is room for, then bytes that
    /// depend on the number.
    ///
    /// Of a message longer than a block only the begin of each block is written, so that writing is
    /// no part of what is measured: the rest has to be there, and is the same in all of them.
    pub(crate) fn stamp(&self, index: u64, message: &mut [u8]) {
        if message.len() > BLOCK {
            for (number, block) in (index..).zip(message.chunks_mut(BLOCK)) {
                let head = FRAME.min(block.len());
                self.stamp(number, &mut block[..head]);
            }
            return;
        }
        let (number, rest) = message.split_at_mut(message.len().min(SEQUENCE));
        number.copy_from_slice(&index.to_le_bytes()[..number.len()]);
        rest.copy_from_slice(&self.window(index)[..rest.len()]);
    }

    /// What stands in a message of `bytes` before it is stamped.
    pub(crate) fn message(&self, bytes: usize) -> Vec<u8> {
        (0..).flat_map(|index| self.window(index)).copied().take(bytes).collect()
    }

    /// Whether `message` is message `index`, in every byte.
    pub(crate) fn is_message<const N: usize>(&self, index: u64, message: &[u8; N]) -> bool {
        message[..SEQUENCE] == index.to_le_bytes()
            && message[SEQUENCE..] == self.window(index)[..N - SEQUENCE]
    }
}

/// A stream of blocks as it is sent: a slice of what is there already for each write.
pub(crate) struct Writes<'a> {
    pattern: &'a Pattern,
    bytes: usize,
    lap: u64,
    /// The blocks of a lap, where a write may reach over more than one.
    row: Vec<u8>,
}

impl Writes<'_> {
    /// After how many blocks the stream repeats itself.
    pub(crate) fn lap(&self) -> u64 {
        self.lap
    }

    /// Write `index`.
    pub(crate) fn at(&self, index: u64) -> &[u8] {
        let position = index * self.bytes as u64;
        let from = |start: u64| start as usize..start as usize + self.bytes;
        if self.row.is_empty() {
            &self.pattern.block(position / BLOCK as u64)[from(position % BLOCK as u64)]
        } else {
            &self.row[from(position % (self.lap * BLOCK as u64))]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(pattern: &Pattern, blocks: u64) -> Vec<u8> {
        (0..blocks).flat_map(|index| pattern.block(index).to_vec()).collect()
    }

    #[test]
    fn the_stream_itself_passes_in_pieces_of_any_size() {
        let pattern = Pattern::new();
        let stream = stream(&pattern, 4);
        for step in [1000, BLOCK - 1, BLOCK, 3 * BLOCK + 7] {
            let mut position = 0;
            for piece in stream.chunks(step) {
                assert_eq!(pattern.check_blocks(WINDOWS, position, piece), Ok(()));
                position += piece.len() as u64;
            }
        }
    }

    #[test]
    fn writes_of_any_size_are_the_stream() {
        let pattern = Pattern::new();
        for bytes in [1, 64, 100, BLOCK, BLOCK + 1, 1 << 20] {
            let writes = pattern.writes(bytes);
            let rounds = (3 * SHORT_LAP as usize * BLOCK / bytes) as u64;
            let mut position = 0;
            for index in (0..100).chain(100.max(rounds.saturating_sub(100))..rounds) {
                position = position.max(index * bytes as u64);
                assert_eq!(pattern.check_blocks(writes.lap(), position, writes.at(index)), Ok(()));
                position += bytes as u64;
            }
            let other = if writes.lap() == WINDOWS { SHORT_LAP } else { WINDOWS };
            assert!(
                pattern.check_blocks(other, (SHORT_LAP + 1) * BLOCK as u64, writes.at(rounds - 1)).is_err()
            );
        }
    }

    #[test]
    fn every_kind_of_damage_is_found_where_it_is() {
        let pattern = Pattern::new();
        let sound = stream(&pattern, 4);
        let changed = |at: usize| {
            let mut stream = sound.clone();
            stream[at] ^= 1;
            stream
        };
        for at in [0, 1, 77_777, sound.len() - 1] {
            assert_eq!(pattern.check_blocks(WINDOWS, 0, &changed(at)), Err(at as u64));
        }
        let mut lost = sound.clone();
        lost.remove(70_000);
        let found = pattern.check_blocks(WINDOWS, 0, &lost).unwrap_err();
        assert!((70_000..70_010).contains(&found), "{found}");
        let mut swapped = sound.clone();
        swapped.swap(100_000, 100_001);
        assert_eq!(pattern.check_blocks(WINDOWS, 0, &swapped), Err(100_000));
        let mut repeated = sound.clone();
        repeated.copy_within(0..BLOCK, BLOCK);
        assert!(pattern.check_blocks(WINDOWS, 0, &repeated).is_err());
    }

    #[test]
    fn bytes_of_an_earlier_lap_of_any_ring_are_found() {
        let pattern = Pattern::new();
        for bits in 0..=15 {
            let lap = 1 << bits;
            assert_ne!(pattern.block(7)[..64], pattern.block(7 + lap)[..64], "ring of {lap} blocks");
        }
    }

    #[test]
    fn messages_are_told_apart() {
        let pattern = Pattern::new();
        let mut message = [0; 100];
        pattern.stamp(41, &mut message);
        assert!(pattern.is_message(41, &message));
        assert!(!pattern.is_message(42, &message));
        message[99] ^= 0x80;
        assert!(!pattern.is_message(41, &message));
        for bytes in [1, 7, 8, 9, BLOCK, BLOCK + 1, 3 * BLOCK + 5] {
            let mut messages = [pattern.message(bytes), pattern.message(bytes)];
            pattern.stamp(41, &mut messages[0]);
            pattern.stamp(42, &mut messages[1]);
            assert!(messages[0].len() == bytes && messages[0] != messages[1], "{bytes}");
        }
    }
}
