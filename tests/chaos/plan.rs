//! What the two ends of a stream do: all of it follows from the seed and the stream's number, so
//! both ends know it, and the judge does.

use std::fmt;

use tokio_smc::UpgradePolicy;

use crate::dice::Dice;

/// Bytes of the [name](Plan::name) that a client sends first.
pub(crate) const NAME: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    pub(crate) fn other(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Client => "client",
            Side::Server => "server",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Both directions at once, by one task (or two threads).
    Duplex,
    /// Both at once, by a task for each half.
    Halves,
    /// The client sends a part and hears a part of the answer, so many times.
    Turns(u64),
}

/// How an end leaves its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With all sent, all heard, and the end of both.
    Whole,
    /// By a drop in the middle, when it has heard so many bytes.
    DropsAfter(u64),
    /// By a panic of its task in the middle.
    PanicsAfter(u64),
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    seed: u64,
    pub(crate) id: u64,
    pub(crate) policy: UpgradePolicy,
    pub(crate) pattern: Pattern,
    /// By side: bytes that it sends.
    lengths: [u64; 2],
    endings: [Ending; 2],
    /// The most bytes of one read or write.
    pub(crate) piece: u64,
    /// One of so many pieces is followed by a pause.
    pub(crate) haste: u64,
}

const POLICIES: [UpgradePolicy; 9] = [
    UpgradePolicy::Eager,
    UpgradePolicy::Eager,
    UpgradePolicy::Eager,
    UpgradePolicy::FirstTurn,
    UpgradePolicy::FirstTurn,
    UpgradePolicy::Manual,
    UpgradePolicy::Handshake,
    UpgradePolicy::Require,
    UpgradePolicy::Never,
];

/// Of a direction, in bytes; any length up to it.
const LONGEST: [u64; 10] =
    [0, 5000, 64 << 10, 64 << 10, 64 << 10, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 8 << 20];

impl Plan {
    pub(crate) fn new(seed: u64, id: u64) -> Plan {
        let mut dice = Dice::new(seed, id);
        let lengths = [length(&mut dice), length(&mut dice)];
        let pattern = match dice.below(4) {
            0 => Pattern::Duplex,
            1 => Pattern::Halves,
            _ => Pattern::Turns(1 + dice.below(60)),
        };
        let mut ending = |heard: u64| match dice.below(24) {
            0 => Ending::DropsAfter(dice.below(heard + 1)),
            1 => Ending::PanicsAfter(dice.below(heard + 1)),
            _ => Ending::Whole,
        };
        let endings = [ending(lengths[1]), ending(lengths[0])];
        let policy = *dice.pick(&POLICIES);
        let piece = *dice.pick(&[50, 1000, 16 << 10, 100 << 10]);
        // A stream of small pieces would last too long otherwise.
        let piece = piece.max((lengths[0] + lengths[1]) / 300);
        Plan { seed, id, policy, pattern, lengths, endings, piece, haste: *dice.pick(&[2, 10, 100]) }
    }

    /// What a client says first: the number, and what shows that it is one.
    pub(crate) fn name(&self) -> [u8; NAME] {
        let mut name = [0; NAME];
        name[..8].copy_from_slice(&self.id.to_le_bytes());
        name[8..].copy_from_slice(&Dice::new(!self.seed, self.id).next().to_le_bytes());
        name
    }

    /// The plan of the stream that begins with this name, if it is one.
    pub(crate) fn named(seed: u64, name: &[u8; NAME]) -> Option<Plan> {
        let id = u64::from_le_bytes(name[..8].try_into().expect("8 bytes"));
        let plan = Plan::new(seed, id);
        (plan.name() == *name).then_some(plan)
    }

    pub(crate) fn length(&self, side: Side) -> u64 {
        self.lengths[side as usize]
    }

    pub(crate) fn ending(&self, side: Side) -> Ending {
        self.endings[side as usize]
    }

    /// Names the sequence that `side` sends.
    pub(crate) fn key(&self, side: Side) -> u64 {
        Dice::new(self.seed.rotate_left(32), 2 * self.id + side as u64).next()
    }

    /// Chance of one end, which need not be the other's.
    pub(crate) fn chance(&self, side: Side) -> Dice {
        Dice::new(self.key(side), 0)
    }
}

fn length(dice: &mut Dice) -> u64 {
    let most = *dice.pick(&LONGEST);
    dice.below(most + 1)
}
