//! What has happened, in numbers.

use std::collections::BTreeMap;
use std::fmt;

use crate::judge::{End, Excuse, Fault};

#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) seasons: u64,
    pub(crate) processes: u64,
    pub(crate) streams: u64,
    /// Streams with both ends whole.
    pub(crate) whole: u64,
    /// Bytes that were heard, and those of them that came through a ring.
    pub(crate) heard: u64,
    pub(crate) on_ring: u64,
    pub(crate) ends: BTreeMap<String, u64>,
    pub(crate) excuses: BTreeMap<Excuse, u64>,
    pub(crate) not_begun: BTreeMap<String, u64>,
    pub(crate) nameless: u64,
    pub(crate) accepts_failed: u64,
    pub(crate) faults: BTreeMap<Fault, u64>,
    /// Processes that their own limits have ended.
    pub(crate) ended_by_limit: u64,
}

impl Figures {
    pub(crate) fn count(&mut self, end: &End) {
        self.heard += end.heard;
        self.on_ring += end.on_ring;
        *self.ends.entry(end.transport.clone()).or_default() += 1;
        if let Some(reason) = end.outcome.strip_prefix("no-begin ") {
            let words: Vec<_> = reason.splitn(3, ' ').take(2).collect();
            *self.not_begun.entry(words.join(" ")).or_default() += 1;
        }
    }

    pub(crate) fn fault(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} seasons, {} processes", self.seasons, self.processes)?;
        writeln!(f, "{} streams, {} of them whole at both ends", self.streams, self.whole)?;
        writeln!(f, "{} bytes heard, {} of them from a ring", self.heard, self.on_ring)?;
        writeln!(f, "ends by transport: {:?}", self.ends)?;
        writeln!(f, "ends that were not whole: {:?}", self.excuses)?;
        writeln!(f, "clients that did not begin: {:?}", self.not_begun)?;
        writeln!(f, "accepted and nameless: {}, accepts failed: {}", self.nameless, self.accepts_failed)?;
        writeln!(f, "faults: {:?}", self.faults)?;
        write!(f, "processes ended by their own limit: {}", self.ended_by_limit)
    }
}
