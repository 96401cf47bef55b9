//! Processor time of processes, as the kernel's scheduler has counted it.

use std::fs;
use std::time::Duration;

/// What the threads of these processes have taken together so far; `None` where the kernel does not
/// tell.
pub(crate) fn of(processes: &[u32]) -> Option<Duration> {
    processes.iter().map(|&process| of_threads(process)).sum()
}

fn of_threads(process: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    threads
        .filter_map(|thread| {
            // One that has ended meanwhile has nothing to tell.
            let account = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            Some(account.split(' ').next().and_then(|ns| ns.parse().ok()).map(Duration::from_nanos))
        })
        .sum()
}
