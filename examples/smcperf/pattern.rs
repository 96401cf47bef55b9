//! The bytes that travel, known to both ends, so that every received byte can be compared with what
//! must stand there.
//!
//! A checksum that both ends compute would cost the sender one more pass over the data and could
//! still be fooled. Instead both ends hold the same pool of random bytes and block `n` of a stream
//! is a window of the pool whose start depends on `n`: the sender writes slices of the pool as they
//! are, and the receiver compares what it got with the slice that belongs at that position
//! (`memcmp` from the cache, at about the speed of one more copy). A lost, repeated, changed or
//! reordered byte shows as a difference at the exact position.

/// Bytes of one write of the throughput test.
pub(crate) const BLOCK: usize = 64 * 1024;

/// Number of different windows. A prime: a ring whose size is a power of two never holds, at one
/// place, the same window in two consecutive laps, so bytes left over from an earlier lap are
/// noticed.
const WINDOWS: u64 = 1021;

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

    /// Compares bytes received at `position` of a stream of blocks with what must stand there; the
    /// position of the first byte that differs is the error.
    pub(crate) fn check_blocks(&self, mut position: u64, mut received: &[u8]) -> Result<(), u64> {
        while !received.is_empty() {
            let offset = (position % BLOCK as u64) as usize;
            let expected = &self.block(position / BLOCK as u64)[offset..];
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

    /// Writes message `index`: its number, then bytes that depend on the number.
    pub(crate) fn stamp<const N: usize>(&self, index: u64, message: &mut [u8; N]) {
        message[..SEQUENCE].copy_from_slice(&index.to_le_bytes());
        message[SEQUENCE..].copy_from_slice(&self.window(index)[..N - SEQUENCE]);
    }

    /// Whether `message` is message `index`, in every byte.
    pub(crate) fn is_message<const N: usize>(&self, index: u64, message: &[u8; N]) -> bool {
        message[..SEQUENCE] == index.to_le_bytes()
            && message[SEQUENCE..] == self.window(index)[..N - SEQUENCE]
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
                assert_eq!(pattern.check_blocks(position, piece), Ok(()));
                position += piece.len() as u64;
            }
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
            assert_eq!(pattern.check_blocks(0, &changed(at)), Err(at as u64));
        }
        let mut lost = sound.clone();
        lost.remove(70_000);
        let found = pattern.check_blocks(0, &lost).unwrap_err();
        assert!((70_000..70_010).contains(&found), "{found}");
        let mut swapped = sound.clone();
        swapped.swap(100_000, 100_001);
        assert_eq!(pattern.check_blocks(0, &swapped), Err(100_000));
        let mut repeated = sound.clone();
        repeated.copy_within(0..BLOCK, BLOCK);
        assert!(pattern.check_blocks(0, &repeated).is_err());
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
    }
}
