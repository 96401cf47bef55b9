//! How the two ends of a connection tell each other that they know its initial sequence number,
//! and nobody else anything (docs/protocol.md, "Proof").
//!
//! First each sends a [`Commitment`], then the client a [`Reveal`], then the server. There are two
//! ways. By a **key**: each sends a share, both shares and the number make a key (CPace, a
//! password-authenticated key exchange, draft-irtf-cfrg-cpace), and what is revealed are tags made
//! with it. Who does not know the number learns from a tag whether the one number is right that he
//! has put into his share, and no more. By **hash**: each sends a hash of the number and a nonce,
//! and reveals both. That costs a hundredth, and tells the number to whoever was offered to.

use std::{fmt, io};

use curve25519_dalek::Scalar;
use curve25519_dalek::ristretto::{CompressedRistretto, RistrettoPoint};
use curve25519_dalek::traits::IsIdentity;

use crate::ism::sys;

/// What OFFER and MATCH carry: it binds its maker to one number, and tells nobody which.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commitment {
    /// To a [`Reveal::Number`].
    Hash([u8; 32]),
    /// A share of the key: a point of ristretto255.
    Share([u8; 32]),
}

/// What READY and PROVED carry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reveal {
    /// What a [`Commitment::Hash`] was made of, besides what both ends know.
    Number {
        /// The initial sequence number of the connection's client.
        sequence: u32,
        nonce: [u8; 32],
    },
    /// Who has made it has the key.
    Tag([u8; 32]),
}

impl fmt::Debug for Commitment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Commitment")
    }
}

// Nothing that proves something gets into a log.
impl fmt::Debug for Reveal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reveal")
    }
}

/// The part that somebody plays who commits itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Client,
    Server,
}

impl Part {
    fn other(self) -> Part {
        match self {
            Part::Client => Part::Server,
            Part::Server => Part::Client,
        }
    }
}

/// By which of the two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Hash,
    Key,
}

impl Commitment {
    pub(crate) fn how(&self) -> How {
        match self {
            Commitment::Hash(_) => How::Hash,
            Commitment::Share(_) => How::Key,
        }
    }
}

/// For whom, and for what, a commitment counts: it is of no use to anybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The name under which the client has reached the server's endpoint, which is the server's
    /// own. Who sits between two honest ends has another one.
    pub(crate) server: [u8; 16],
    /// The client's own name.
    pub(crate) client: [u8; 16],
    pub(crate) offer: u64,
}

impl Bound {
    fn add_to(&self, hash: &mut blake3::Hasher) {
        hash.update(&self.client);
        hash.update(&self.server);
        hash.update(&self.offer.to_le_bytes());
    }

    /// The hash that commits who plays that part to number and nonce.
    pub(crate) fn hash(&self, part: Part, sequence: u32, nonce: &[u8; 32]) -> [u8; 32] {
        let mut hash = blake3::Hasher::new_derive_key("tokio-smc 2026 possession of a TCP connection");
        hash.update(&[part as u8]);
        hash.update(&sequence.to_le_bytes());
        hash.update(nonce);
        self.add_to(&mut hash);
        hash.finalize().into()
    }

    /// The point that shares are multiples of: it depends on the number, and who does not know that
    /// can not tell of what a share is a multiple.
    fn generator(&self, sequence: u32) -> RistrettoPoint {
        let mut hash = blake3::Hasher::new_derive_key("tokio-smc 2026 CPace generator");
        hash.update(&sequence.to_le_bytes());
        self.add_to(&mut hash);
        let mut bytes = [0; 64];
        hash.finalize_xof().fill(&mut bytes);
        RistrettoPoint::from_uniform_bytes(&bytes)
    }
}

/// What one end has committed itself with, until the other has.
pub(crate) struct Secret {
    bound: Bound,
    part: Part,
    sequence: u32,
    kept: Kept,
}

enum Kept {
    Nonce([u8; 32]),
    /// How many times the generator the share is, and the share.
    Factor(Box<(Scalar, [u8; 32])>),
}

impl Secret {
    /// # Errors
    ///
    /// Where there are no random numbers.
    pub(crate) fn new(how: How, part: Part, bound: Bound, sequence: u32) -> io::Result<Secret> {
        let kept = match how {
            How::Hash => Kept::Nonce(sys::random_bytes()?),
            How::Key => {
                let factor = Scalar::from_bytes_mod_order_wide(&sys::random_bytes()?);
                let share = (bound.generator(sequence) * factor).compress();
                Kept::Factor(Box::new((factor, share.to_bytes())))
            }
        };
        Ok(Secret { bound, part, sequence, kept })
    }

    pub(crate) fn commitment(&self) -> Commitment {
        match &self.kept {
            Kept::Nonce(nonce) => Commitment::Hash(self.bound.hash(self.part, self.sequence, nonce)),
            Kept::Factor(kept) => Commitment::Share(kept.1),
        }
    }

    /// The other end has committed itself, too: what we reveal, and what it has to. `None`: with
    /// that it can prove nothing.
    pub(crate) fn meet(&self, theirs: Commitment) -> Option<Exchange> {
        match (&self.kept, theirs) {
            (Kept::Nonce(nonce), Commitment::Hash(hash)) => Some(Exchange {
                reveal: Reveal::Number { sequence: self.sequence, nonce: *nonce },
                expected: Expected::Opens { hash, bound: self.bound, part: self.part.other() },
                sequence: self.sequence,
            }),
            (Kept::Factor(kept), Commitment::Share(share)) => {
                let (factor, ours) = &**kept;
                let point = CompressedRistretto(share).decompress()? * factor;
                // As for the point zero, which tells of every generator the same.
                if point.is_identity() {
                    return None;
                }
                let (client, server) = match self.part {
                    Part::Client => (ours, &share),
                    Part::Server => (&share, ours),
                };
                let mut hash = blake3::Hasher::new_derive_key("tokio-smc 2026 CPace key");
                hash.update(point.compress().as_bytes());
                hash.update(client);
                hash.update(server);
                self.bound.add_to(&mut hash);
                let key = hash.finalize().into();
                let tag = |part| blake3::keyed_hash(&key, &[part as u8]);
                Some(Exchange {
                    reveal: Reveal::Tag(tag(self.part).into()),
                    expected: Expected::Tag(tag(self.part.other())),
                    sequence: self.sequence,
                })
            }
            _ => None,
        }
    }
}

/// Both ends have committed themselves.
pub(crate) struct Exchange {
    /// What this end reveals.
    pub(crate) reveal: Reveal,
    expected: Expected,
    sequence: u32,
}

enum Expected {
    Opens {
        hash: [u8; 32],
        bound: Bound,
        part: Part,
    },
    /// (It is compared in constant time.)
    Tag(blake3::Hash),
}

impl Exchange {
    /// Does this prove that the other end knows the number?
    pub(crate) fn is_proved_by(&self, theirs: &Reveal) -> bool {
        match (&self.expected, theirs) {
            (Expected::Opens { hash, bound, part }, Reveal::Number { sequence, nonce }) => {
                bound.hash(*part, *sequence, nonce) == *hash && *sequence == self.sequence
            }
            (Expected::Tag(expected), Reveal::Tag(tag)) => *expected == *tag,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Bound = Bound { server: [1; 16], client: [2; 16], offer: 3 };
    const WAYS: [How; 2] = [How::Hash, How::Key];

    fn secret(how: How, part: Part, sequence: u32) -> Secret {
        Secret::new(how, part, BOUND, sequence).expect("random numbers")
    }

    fn elsewhere() -> [Bound; 4] {
        [
            Bound { server: [9; 16], ..BOUND },
            Bound { client: [9; 16], ..BOUND },
            Bound { offer: 4, ..BOUND },
            Bound { server: BOUND.client, client: BOUND.server, ..BOUND },
        ]
    }

    /// What the client makes of what this server reveals, and the server of the client's.
    fn outcome(client: &Secret, server: &Secret) -> (bool, bool) {
        let at_client = client.meet(server.commitment()).expect("of the same kind");
        let at_server = server.meet(client.commitment()).expect("of the same kind");
        (at_client.is_proved_by(&at_server.reveal), at_server.is_proved_by(&at_client.reveal))
    }

    #[test]
    fn who_knows_the_number_proves_it_and_nobody_else() {
        for how in WAYS {
            let client = secret(how, Part::Client, 4711);
            assert_eq!(outcome(&client, &secret(how, Part::Server, 4711)), (true, true), "{how:?}");
            let wrong = secret(how, Part::Server, 4712);
            assert_eq!(outcome(&client, &wrong), (false, false), "{how:?}: another connection");
            for bound in elsewhere() {
                let server = Secret::new(how, Part::Server, bound, 4711).expect("random numbers");
                assert_eq!(outcome(&client, &server), (false, false), "{how:?}: {bound:?}");
            }
        }
    }

    #[test]
    fn what_is_sent_back_to_its_maker_proves_nothing() {
        for how in WAYS {
            let client = secret(how, Part::Client, 4711);
            let exchange = client.meet(client.commitment()).expect("of the same kind");
            assert!(!exchange.is_proved_by(&exchange.reveal), "{how:?}");
        }
    }

    #[test]
    fn only_what_was_committed_opens_a_hash() {
        let (client, server) = (secret(How::Hash, Part::Client, 4711), secret(How::Hash, Part::Server, 4711));
        let exchange = server.meet(client.commitment()).expect("of the same kind");
        let Some(Exchange { reveal: Reveal::Number { nonce, .. }, .. }) = client.meet(server.commitment())
        else {
            panic!("a number")
        };
        assert!(exchange.is_proved_by(&Reveal::Number { sequence: 4711, nonce }));
        assert!(!exchange.is_proved_by(&Reveal::Number { sequence: 4712, nonce }));
        assert!(!exchange.is_proved_by(&Reveal::Number { sequence: 4711, nonce: [0; 32] }));
        // Who has committed itself to another number can not show the one it has learned since.
        let blind = secret(How::Hash, Part::Client, 0);
        let exchange = server.meet(blind.commitment()).expect("of the same kind");
        assert!(!exchange.is_proved_by(&Reveal::Number { sequence: 4711, nonce }));
    }

    #[test]
    fn the_ways_do_not_mix() {
        let (client, server) = (secret(How::Hash, Part::Client, 1), secret(How::Key, Part::Server, 1));
        assert!(client.meet(server.commitment()).is_none() && server.meet(client.commitment()).is_none());
        let other = secret(How::Hash, Part::Server, 1);
        let exchange = client.meet(other.commitment()).expect("of the same kind");
        assert!(!exchange.is_proved_by(&Reveal::Tag([0; 32])));
        let other = secret(How::Key, Part::Client, 1);
        let exchange = server.meet(other.commitment()).expect("of the same kind");
        assert!(!exchange.is_proved_by(&Reveal::Number { sequence: 1, nonce: [0; 32] }));
    }

    #[test]
    fn a_share_that_is_no_point_or_zero_is_none() {
        let client = secret(How::Key, Part::Client, 1);
        assert!(client.meet(Commitment::Share([0; 32])).is_none(), "zero: the key would not be secret");
        assert!(client.meet(Commitment::Share([0xff; 32])).is_none());
    }

    #[test]
    fn equal_numbers_do_not_show() {
        for how in WAYS {
            let [one, other] = [(); 2].map(|()| secret(how, Part::Client, 1).commitment());
            assert!(one != other);
        }
    }
}
