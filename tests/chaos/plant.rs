//! Faults that are put in on purpose, so that the judge can be seen to find them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The variable that names the plant of a worker.
pub(crate) const VARIABLE: &str = "SMC_TEST_PLANT";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    /// A byte is sent wrong.
    FlippedByte,
    /// A stream is dropped that was to go on, and nobody says so.
    EarlyEnd,
    /// The end of a stream is never sent.
    MissingEnd,
    /// A descriptor stays.
    Descriptor,
    /// A thread stays.
    Thread,
    /// Memory in a file stays.
    SharedMemory,
    /// Files stay in the device directory.
    DirectoryEntry,
}

pub(crate) const ALL: [Plant; 7] = [
    Plant::FlippedByte,
    Plant::EarlyEnd,
    Plant::MissingEnd,
    Plant::Descriptor,
    Plant::Thread,
    Plant::SharedMemory,
    Plant::DirectoryEntry,
];

impl Plant {
    /// Whether it comes up here: now and then, in a worker that has it.
    pub(crate) fn grows(self) -> bool {
        static OURS: OnceLock<Option<Plant>> = OnceLock::new();
        static PLACES: AtomicU64 = AtomicU64::new(0);
        let ours = OURS.get_or_init(|| {
            let name = std::env::var(VARIABLE).ok()?;
            ALL.into_iter().find(|plant| format!("{plant:?}") == name)
        });
        *ours == Some(self) && PLACES.fetch_add(1, Ordering::Relaxed) % 10 == 9
    }

    pub(crate) fn sow(self, harm: impl FnOnce()) {
        if self.grows() {
            harm();
        }
    }
}
