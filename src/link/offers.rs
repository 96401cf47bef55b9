//! What a client has offered on a link, and how many of that wait.

use std::collections::HashMap;
use std::sync::Weak;

use super::SignalEntry;
use super::server::Promised;
use crate::clc::ServerHandshake;
use crate::link::accepted::Key;
use crate::link::stream::{LinkedStream, SendDmb};
use crate::sync::Arc;

/// S: an offer from its arrival to READY, or to ATTACHED, or to CANCEL or REFUSE.
pub(super) enum TheirOffer {
    /// Its stream is not accepted yet.
    Waiting { key: Key, number: u64 },
    /// Its stream is being proved; CANCEL may come meanwhile.
    Matching { cancelled: bool },
    Matched {
        stream: Weak<dyn LinkedStream>,
        clc: ServerHandshake,
        token: u64,
        peer_signal: u32,
        handshake: bool,
        entry: Arc<SignalEntry>,
    },
    /// The client has to reveal what it has committed itself to; its stream knows nothing yet.
    Promised(Box<Promised>),
    /// It has revealed the right thing, and reads from its DMB soon.
    Proved { stream: Weak<dyn LinkedStream>, send: SendDmb },
}

impl TheirOffer {
    fn waits(&self) -> bool {
        matches!(self, TheirOffer::Waiting { .. })
    }
}

/// The offers of a client, by its numbers for them. Which of them wait is counted as they come and
/// go.
#[derive(Default)]
pub(super) struct TheirOffers {
    all: HashMap<u64, TheirOffer>,
    waiting: usize,
}

impl TheirOffers {
    /// How many wait for their stream to be accepted.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn contains_key(&self, id: u64) -> bool {
        self.all.contains_key(&id)
    }

    pub(super) fn get(&self, id: u64) -> Option<&TheirOffer> {
        self.all.get(&id)
    }

    /// Enters it, instead of what had that number.
    pub(super) fn insert(&mut self, id: u64, offer: TheirOffer) -> Option<TheirOffer> {
        self.waiting += usize::from(offer.waits());
        let before = self.all.insert(id, offer);
        self.waiting -= usize::from(before.as_ref().is_some_and(TheirOffer::waits));
        before
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<TheirOffer> {
        let gone = self.all.remove(&id);
        self.waiting -= usize::from(gone.as_ref().is_some_and(TheirOffer::waits));
        gone
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &TheirOffer> {
        self.all.values()
    }

    pub(super) fn into_values(self) -> impl Iterator<Item = TheirOffer> {
        self.all.into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting() -> TheirOffer {
        TheirOffer::Waiting { key: Key::accepted(80, ([127, 0, 0, 1], 1).into()), number: 1 }
    }

    #[test]
    fn those_that_wait_are_counted() {
        let mut offers = TheirOffers::default();
        for id in 0..5 {
            offers.insert(id, waiting());
        }
        assert_eq!(offers.waiting(), 5);
        offers.insert(0, waiting());
        assert_eq!(offers.waiting(), 5, "the same number");
        offers.insert(1, TheirOffer::Matching { cancelled: false });
        offers.insert(1, TheirOffer::Matching { cancelled: true });
        assert_eq!((offers.waiting(), offers.values().count()), (4, 5));
        for id in 0..9 {
            offers.remove(id);
        }
        assert!(offers.waiting() == 0 && offers.is_empty());
    }
}
