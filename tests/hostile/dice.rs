//! Numbers that come out the same again: everything random in a session follows from its seed.

/// SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The dice of session number `session` under `seed`.
    pub(crate) fn new(seed: u64, session: u64) -> Self {
        let mut dice = Dice(seed);
        dice.0 = dice.next().wrapping_add(session);
        dice.next();
        dice
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Less than `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.below(among.len() as u64) as usize]
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// A number of the kinds that break things: small, large, near a bound, any.
    pub(crate) fn evil(&mut self, near: u64) -> u64 {
        match self.below(8) {
            0 => self.next(),
            1 => self.below(16),
            2 => near.wrapping_add(self.below(64)),
            3 => near.wrapping_sub(self.below(64)),
            4 => near.wrapping_add(4096),
            5 => u64::MAX - self.below(3),
            6 => 1 << self.below(64),
            _ => self.below(8192),
        }
    }
}
