//! What a process of the laboratory says about its connections: one line of JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio_smc::Transport;

/// One connection, as one end of it sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Bytes of the pattern that were written, and read and found exact.
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Both ends were seen by this end.
    pub(crate) ended: bool,
    /// What went wrong, and where.
    pub(crate) error: Option<String>,
    /// Why it runs on TCP; `None` on the ring.
    pub(crate) reason: Option<String>,
}

impl Entry {
    pub(crate) fn is_on_the_ring(&self) -> bool {
        self.reason.is_none()
    }
}

/// All connections of a process by the number that both ends know them by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) entries: BTreeMap<u64, Entry>,
}

impl Report {
    pub(crate) fn to_line(&self) -> String {
        let entries: Vec<Value> = self
            .entries
            .iter()
            .map(|(id, entry)| {
                json!([id, entry.sent, entry.received, entry.ended, entry.error, entry.reason])
            })
            .collect();
        Value::from(entries).to_string()
    }

    pub(crate) fn from_line(line: &str) -> Self {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let number = |value: &Value| value.as_u64().expect("a number");
        let lines: Vec<Value> = serde_json::from_str(line).expect("a report");
        let entries = lines
            .iter()
            .map(|line| {
                let entry = Entry {
                    sent: number(&line[1]),
                    received: number(&line[2]),
                    ended: line[3].as_bool().expect("a truth"),
                    error: text(&line[4]),
                    reason: text(&line[5]),
                };
                (number(&line[0]), entry)
            })
            .collect();
        Self { entries }
    }

    /// How many connections run on the ring.
    pub(crate) fn on_the_ring(&self) -> usize {
        self.entries.values().filter(|entry| entry.is_on_the_ring()).count()
    }

    /// Every reason for TCP, with the number of connections that have it.
    pub(crate) fn reasons(&self) -> BTreeMap<&str, usize> {
        let mut reasons = BTreeMap::new();
        for reason in self.entries.values().filter_map(|entry| entry.reason.as_deref()) {
            *reasons.entry(reason).or_default() += 1;
        }
        reasons
    }
}

/// The reason as users see it.
pub(crate) fn reason(transport: Transport) -> Option<String> {
    transport.fallback_reason().map(|reason| reason.to_string())
}
