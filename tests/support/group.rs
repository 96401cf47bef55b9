//! Memory control groups, as root can make them.

use std::path::{Path, PathBuf};

/// A memory control group of version 1 or 2. It goes when this is dropped, after the processes in
/// it.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    version: u8,
}

impl Group {
    /// One group in each version whose memory controller this machine offers.
    pub(crate) fn each(name: &str, bytes: u64) -> Vec<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("procfs");
        let name = format!("smc-test-{name}-{}", std::process::id());
        let mut groups = Vec::new();
        for mount in mounts.lines() {
            let words: Vec<&str> = mount.split(' ').collect();
            let [_, at, kind, options, ..] = words[..] else { continue };
            let at = Path::new(at);
            let version = match kind {
                "cgroup" if options.split(',').any(|option| option == "memory") => 1,
                "cgroup2" if offers_memory(at) => 2,
                _ => continue,
            };
            let path = at.join(&name);
            if std::fs::create_dir(&path).is_err() {
                continue;
            }
            let group = Self { path, version };
            let file = if version == 1 { "memory.limit_in_bytes" } else { "memory.max" };
            std::fs::write(group.path.join(file), bytes.to_string()).expect("a limit");
            groups.push(group);
        }
        groups
    }

    #[allow(dead_code, reason = "not every test needs all of it")]
    pub(crate) fn version(&self) -> u8 {
        self.version
    }

    /// Whoever writes its process id there is in.
    pub(crate) fn door(&self) -> String {
        self.path.join("cgroup.procs").display().to_string()
    }

    /// How many processes the OOM killer has taken.
    pub(crate) fn killed(&self) -> u64 {
        let file = if self.version == 1 { "memory.oom_control" } else { "memory.events" };
        let text = std::fs::read_to_string(self.path.join(file)).expect("the group's file");
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|number| number.trim().parse().ok()).expect("a number of kills")
    }
}

/// Whether groups of version 2 below `at` may have limits on memory.
fn offers_memory(at: &Path) -> bool {
    let lists = |file: &str| {
        let text = std::fs::read_to_string(at.join(file)).unwrap_or_default();
        text.split_whitespace().any(|controller| controller == "memory")
    };
    // It may be offered and not be passed on yet.
    lists("cgroup.controllers")
        && (lists("cgroup.subtree_control")
            || std::fs::write(at.join("cgroup.subtree_control"), "+memory").is_ok())
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that has just died may still be counted.
        for _ in 0..200 {
            if std::fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
