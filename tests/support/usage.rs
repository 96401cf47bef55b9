//! What a process uses, as the kernel counts it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

/// One reading; travels as a line of text between processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Private memory in use, KiB.
    pub(crate) anonymous: u64,
    /// Memory of all memfds this process holds open or mapped, its own and its peers', KiB; each
    /// counted once.
    pub(crate) shared: u64,
    pub(crate) fds: u64,
    pub(crate) tasks: u64,
}

impl Usage {
    /// Reads this process.
    pub(crate) fn here() -> Self {
        let status = fs::read_to_string("/proc/self/status").expect("procfs");
        let anonymous = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok())
            .expect("RssAnon in /proc/self/status");
        // A program without a runtime has none.
        let tasks = Handle::try_current().map_or(0, |handle| handle.metrics().num_alive_tasks() as u64);
        let mut fds = 0;
        let mut memfds = std::collections::BTreeMap::new();
        // The descriptor that reads a directory is in it, and may be gone when it is looked at.
        for dir in ["/proc/self/fd", "/proc/self/map_files"] {
            let Ok(entries) = fs::read_dir(dir) else { continue };
            for entry in entries.flatten() {
                fds += u64::from(dir.ends_with("fd"));
                let memfd =
                    fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().contains("memfd:"));
                if let (true, Ok(meta)) = (memfd, fs::metadata(entry.path())) {
                    memfds.insert((meta.dev(), meta.ino()), meta.blocks() / 2);
                }
            }
        }
        Self { anonymous, shared: memfds.values().sum(), fds, tasks }
    }

    pub(crate) fn to_line(self) -> String {
        format!("{} {} {} {}", self.anonymous, self.shared, self.fds, self.tasks)
    }

    pub(crate) fn from_line(line: &str) -> Self {
        let mut numbers = line.split(' ').map(|number| number.parse().expect("a number"));
        let mut next = || numbers.next().expect("four numbers");
        Self { anonymous: next(), shared: next(), fds: next(), tasks: next() }
    }
}

/// Reads until `fits`, for what is given back a little after the last close; the last reading if it
/// never does.
pub(crate) fn settled<T>(mut read: impl FnMut() -> T, fits: impl Fn(&T) -> bool) -> T {
    let started = Instant::now();
    loop {
        let usage = read();
        if fits(&usage) || started.elapsed() > Duration::from_secs(60) {
            return usage;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
