//! What one direction of a connection carries: a head that says whose it is, then bytes that follow
//! from its seed. So every byte can be checked wherever it is seen, also on the wire.

/// Length of the head.
pub(crate) const HEAD: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// All bytes are below 0x80, which no byte of an EBCDIC eye catcher is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub(crate) side: Side,
    /// In which network both ends are.
    pub(crate) network: u8,
    pub(crate) seed: u64,
}

impl Sequence {
    fn head(self) -> [u8; HEAD] {
        let side = match self.side {
            Side::Client => "client",
            Side::Server => "server",
        };
        let head = format!("lab {side} {:03} {:016x}\n", self.network, self.seed);
        head.into_bytes().try_into().expect("a head of that length")
    }

    /// Whose sequence begins with these bytes.
    pub(crate) fn begun_by(bytes: &[u8]) -> Option<Self> {
        let head = std::str::from_utf8(bytes.get(..HEAD)?).ok()?;
        let words: Vec<&str> = head.trim_end().split(' ').collect();
        let ["lab", side, network, seed] = words[..] else { return None };
        let side = match side {
            "client" => Side::Client,
            "server" => Side::Server,
            _ => return None,
        };
        Some(Self { side, network: network.parse().ok()?, seed: u64::from_str_radix(seed, 16).ok()? })
    }

    /// What the server answers.
    pub(crate) fn answer(self) -> Self {
        Self { side: Side::Server, ..self }
    }

    /// `length` bytes from position `from` on.
    pub(crate) fn bytes(self, from: u64, length: usize) -> Vec<u8> {
        let key =
            self.seed ^ u64::from(self.network) << 56 ^ if self.side == Side::Client { 0 } else { 0x55 };
        let first = from / 8;
        let skipped = (from % 8) as usize;
        let words = (skipped + length).div_ceil(8);
        let mut bytes = Vec::with_capacity(words * 8);
        for word in first..first + words as u64 {
            bytes.extend_from_slice(&(mixed(key.wrapping_add(word)) & 0x7f7f_7f7f_7f7f_7f7f).to_le_bytes());
        }
        bytes.drain(..skipped);
        bytes.truncate(length);
        if let Some(head) = self.head().get(from as usize..) {
            let length = head.len().min(length);
            bytes[..length].copy_from_slice(&head[..length]);
        }
        bytes
    }

    /// Position of the first of these bytes that is another one than the sequence has there.
    pub(crate) fn first_wrong(self, from: u64, bytes: &[u8]) -> Option<u64> {
        let right = self.bytes(from, bytes.len());
        if right == bytes {
            return None;
        }
        let wrong = right.iter().zip(bytes).position(|(right, byte)| right != byte)?;
        Some(from + wrong as u64)
    }
}

/// SplitMix64.
pub(crate) fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
