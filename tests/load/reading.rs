//! What a process holds, read again until it has given back what it is to give back.

use std::time::{Duration, Instant};

use crate::footprint::Footprint;

/// Links end when nobody has used them for some ten seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// One reading of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub(crate) memory: Footprint,
    pub(crate) threads: u64,
}

impl Reading {
    pub(crate) fn of(id: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
        let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse().ok());
        Reading {
            memory: Footprint::of(id).expect("it runs"),
            threads: threads.expect("Threads in /proc/<pid>/status"),
        }
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
            && self.threads <= before.threads
            && self.memory.mapped <= before.memory.mapped
            && self.memory.resident <= before.memory.resident + heap
    }
}

/// A heap that gives back what it has: without that a process keeps what its tasks took, as any
/// program of tokio's does.
pub(crate) const TIDY_HEAP: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_TRIM_THRESHOLD_", "131072"), ("MALLOC_MMAP_THRESHOLD_", "131072")];
