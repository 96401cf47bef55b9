//! The bytes of one direction of a stream: each tells its place, and whose it is.

use crate::dice::Dice;

/// Where a receiver stands in a direction, or its sender.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    key: u64,
    place: u64,
}

impl Sequence {
    /// The direction whose sequence `key` names, from its start.
    pub(crate) fn new(key: u64) -> Self {
        Self { key, place: 0 }
    }

    /// The next bytes; the place stays.
    pub(crate) fn fill(&self, buffer: &mut [u8]) {
        let (mut at, mut word) = (self.place, 0);
        for (index, byte) in buffer.iter_mut().enumerate() {
            if index == 0 || at % 8 == 0 {
                word = Dice::new(self.key, at / 8).next();
            }
            *byte = word.to_le_bytes()[(at % 8) as usize];
            at += 1;
        }
    }

    pub(crate) fn advance(&mut self, bytes: usize) {
        self.place += bytes as u64;
    }

    /// Goes on behind `got`, if these are the next bytes; else says at which place the first wrong
    /// one is.
    pub(crate) fn take(&mut self, got: &[u8]) -> Result<(), u64> {
        let mut right = vec![0; got.len()];
        self.fill(&mut right);
        match got.iter().zip(&right).position(|(got, right)| got != right) {
            Some(wrong) => Err(self.place + wrong as u64),
            None => {
                self.advance(got.len());
                Ok(())
            }
        }
    }
}
