//! What a process holds, read again until it has given back what it is to give back.

use std::time::{Duration, Instant};

use crate::footprint::Footprint;

/// Links end when nobody has used them for some ten seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// One reading of a process.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) memory: Footprint,
    /// Their names: who finds one too many wants to know whose it is.
    pub(crate) threads: Vec<String>,
}

impl Reading {
    pub(crate) fn of(id: u32) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{id}/task")).expect("it runs");
        // One that has ended meanwhile has no name any more, and does not count.
        let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
        let threads = tasks.filter_map(|task| Some(name(task.ok()?)?.trim_end().to_owned())).collect();
        Reading { memory: Footprint::of(id).expect("it runs"), threads }
    }

    /// Reads until `fits`, or for long enough.
    pub(crate) fn until(id: u32, fits: impl Fn(&Reading) -> bool) -> Self {
        let began = Instant::now();
        loop {
            let reading = Reading::of(id);
            if fits(&reading) || began.elapsed() > PATIENCE {
                return reading;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Whether all that `before` did not hold is given back, but for so many KiB of the heap.
    pub(crate) fn is_back(&self, before: &Reading, heap: u64) -> bool {
        self.memory.descriptors <= before.memory.descriptors
            && self.threads.len() <= before.threads.len()
            && self.memory.mapped <= before.memory.mapped
            && self.memory.resident <= before.memory.resident + heap
    }
}

/// A heap that gives back what it has: without that a process keeps what its tasks took, as any
/// program of tokio's does.
pub(crate) const TIDY_HEAP: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_TRIM_THRESHOLD_", "131072"), ("MALLOC_MMAP_THRESHOLD_", "131072")];
