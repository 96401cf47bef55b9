//! What the system leaves to this process: memory, address space, locked memory, descriptors.
//!
//! Read from /proc and from the memory cgroups of either version, of every level above the process.
//! What can not be read does not limit.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::process::{Resource, soft_limit};

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Means {
    /// Memory of the cgroup with the least, or of the host.
    pub(crate) memory: u64,
    /// What is not used of it, or can be had back at once.
    pub(crate) memory_left: u64,
    /// What `RLIMIT_AS` leaves; `None` without a limit.
    pub(crate) address_space_left: Option<u64>,
    /// What `RLIMIT_MEMLOCK` leaves to a process that locks its memory; `None` without a limit.
    pub(crate) lockable_left: Option<u64>,
}

/// Looks at all of it: some ten small files.
pub(crate) fn means() -> Means {
    let meminfo = read("/proc/meminfo");
    let mut means = Means {
        memory: field(&meminfo, "MemTotal:").map_or(u64::MAX, kib),
        memory_left: field(&meminfo, "MemAvailable:").map_or(u64::MAX, kib),
        address_space_left: None,
        lockable_left: None,
    };
    for dir in memory_cgroups(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo")) {
        if let Some(Cgroup { limit, left }) = Cgroup::read(&dir) {
            means.memory = means.memory.min(limit);
            means.memory_left = means.memory_left.min(left);
        }
    }
    let (address_space, lockable) = (soft_limit(Resource::AddressSpace), soft_limit(Resource::LockedMemory));
    if address_space.is_some() || lockable.is_some() {
        let status = read("/proc/self/status");
        let used = |name| field(&status, name).map_or(0, kib);
        means.address_space_left = address_space.map(|limit| limit.saturating_sub(used("VmSize:")));
        // A process that locks nothing does not lock what it maps, either; and root may lock all.
        if used("VmLck:") > 0 && !has_capability(&status, CAP_IPC_LOCK) {
            means.lockable_left = lockable.map(|limit| limit.saturating_sub(used("VmLck:")));
        }
    }
    means
}

/// Largest file that this process may make, if that is limited: a larger one would end it
/// (SIGXFSZ).
pub(crate) fn largest_file() -> Option<u64> {
    soft_limit(Resource::FileSize)
}

/// Descriptors this process may have.
pub(crate) fn descriptor_limit() -> usize {
    soft_limit(Resource::Descriptors).map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Mappings this process may have.
pub(crate) fn most_mappings() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    // The kernel's default (Documentation/admin-guide/sysctl/vm.rst).
    *MOST.get_or_init(|| read("/proc/sys/vm/max_map_count").trim().parse().unwrap_or(65530))
}

/// Bytes that TCP holds of a stream for a receiver that does not read, at most: `tcp_rmem` of the
/// receiver and `tcp_wmem` of the sender, each the last of three numbers.
pub(crate) fn tcp_buffers() -> (u64, u64) {
    static BUFFERS: OnceLock<(u64, u64)> = OnceLock::new();
    let largest = |name: &str, otherwise: u64| {
        let text = read(&format!("/proc/sys/net/ipv4/{name}"));
        text.split_whitespace().nth(2).and_then(|bytes| bytes.parse().ok()).unwrap_or(otherwise)
    };
    // The kernel's defaults (Documentation/networking/ip-sysctl.rst).
    *BUFFERS.get_or_init(|| (largest("tcp_rmem", 6 << 20), largest("tcp_wmem", 4 << 20)))
}

fn read(path: &str) -> String {
    read_to_string(path).unwrap_or_default()
}

/// Linux include/uapi/linux/capability.h.
const CAP_IPC_LOCK: u32 = 14;

fn has_capability(status: &str, capability: u32) -> bool {
    let effective = word(status, "CapEff:").and_then(|bits| u64::from_str_radix(bits, 16).ok());
    effective.is_some_and(|bits| bits & 1 << capability != 0)
}

/// What follows `name` on its line.
fn word<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        if words.next() == Some(name) { words.next() } else { None }
    })
}

fn field(text: &str, name: &str) -> Option<u64> {
    word(text, name)?.parse().ok()
}

fn kib(kib: u64) -> u64 {
    kib.saturating_mul(1024)
}

struct Cgroup {
    limit: u64,
    left: u64,
}

impl Cgroup {
    /// A memory cgroup with a limit, of either version.
    fn read(dir: &Path) -> Option<Cgroup> {
        let text = |name: &str| read_to_string(dir.join(name)).ok();
        let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
        // Without a limit it says "max", or a number beyond every memory.
        let (limit, used) = match number("memory.max") {
            Some(limit) => (limit, number("memory.current")?),
            None => (number("memory.limit_in_bytes")?, number("memory.usage_in_bytes")?),
        };
        let stat = text("memory.stat").unwrap_or_default();
        // Of the file cache, which goes when somebody needs the memory. The totals of version 1
        // include children.
        let cached: u64 = match field(&stat, "total_inactive_file") {
            Some(inactive) => inactive + field(&stat, "total_active_file").unwrap_or(0),
            None => ["inactive_file", "active_file"].into_iter().filter_map(|name| field(&stat, name)).sum(),
        };
        Some(Cgroup { limit, left: limit.saturating_sub(used.saturating_sub(cached)) })
    }
}

/// The directories of the memory cgroups that the process is in, with all above them.
fn memory_cgroups(membership: &str, mountinfo: &str) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for line in membership.lines() {
        // hierarchy:controllers:path
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let version_2 = number == "0" && controllers.is_empty();
        if !version_2 && !controllers.split(',').any(|name| name == "memory") {
            continue;
        }
        let Some((root, mount)) = mountinfo.lines().find_map(|line| memory_mount(line, version_2)) else {
            continue;
        };
        // A mount may show a part of the hierarchy only, as in a container.
        let below = path.strip_prefix(root).filter(|below| below.is_empty() || below.starts_with('/'));
        let below = below.unwrap_or("").trim_start_matches('/');
        let mount = Path::new(mount);
        // Joining nothing would add a slash.
        let mut dir = if below.is_empty() { mount.to_owned() } else { mount.join(below) };
        while dir.starts_with(mount) {
            dirs.push(dir.clone());
            if !dir.pop() {
                break;
            }
        }
    }
    dirs
}

/// Root and place of a mount, if it is one of memory cgroups (Linux
/// Documentation/filesystems/proc.rst, mountinfo).
fn memory_mount(line: &str, version_2: bool) -> Option<(&str, &str)> {
    let (before, behind) = line.split_once(" - ")?;
    let mut kind = behind.split(' ');
    let (kind, options) = (kind.next()?, kind.nth(1)?);
    let fits = match version_2 {
        true => kind == "cgroup2",
        false => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
    };
    let mut fields = before.split(' ');
    let (root, mount) = (fields.nth(3)?, fields.next()?);
    fits.then_some((root.trim_end_matches('/'), mount))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_means() {
        let means = means();
        assert!(means.memory > 1 << 20 && means.memory_left <= means.memory, "{means:?}");
        assert!(descriptor_limit() > 10);
        let (receive, send) = tcp_buffers();
        assert!(receive >= 4096 && send >= 4096);
    }

    #[test]
    fn cgroups_of_both_versions_are_found_up_to_their_mount() {
        let mountinfo = "\
            30 1 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            31 1 0:27 /outer /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n\
            32 1 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = memory_cgroups("4:memory:/outer/a/b\n3:cpu:/x\n0::/\n", mountinfo);
        let names: Vec<_> = found.iter().map(|dir| dir.to_str().unwrap()).collect();
        let v1 = "/sys/fs/cgroup/memory";
        assert_eq!(names, [&format!("{v1}/a/b"), &format!("{v1}/a"), v1, "/sys/fs/cgroup/unified"]);
        assert_eq!(memory_cgroups("0::/user\n", mountinfo).len(), 2);
        assert!(memory_cgroups("", mountinfo).is_empty() && memory_cgroups("4:memory:/", "").is_empty());
    }

    #[test]
    fn the_cache_of_a_cgroup_counts_as_left() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert!(Cgroup::read(dir.path()).is_none());
        put("memory.max", "max\n");
        put("memory.current", "600\n");
        assert!(Cgroup::read(dir.path()).is_none(), "no limit");
        put("memory.max", "1000\n");
        put("memory.stat", "anon 300\ninactive_file 200\nactive_file 50\nshmem 100\n");
        let Cgroup { limit, left } = Cgroup::read(dir.path()).unwrap();
        assert_eq!((limit, left), (1000, 650));

        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        put("memory.limit_in_bytes", "1000\n");
        put("memory.usage_in_bytes", "1200\n");
        put("memory.stat", "inactive_file 1\ntotal_inactive_file 300\ntotal_active_file 0\n");
        let Cgroup { limit, left } = Cgroup::read(dir.path()).unwrap();
        assert_eq!((limit, left), (1000, 100));
    }

    #[test]
    fn capabilities_are_bits() {
        let status = "Name:\tx\nVmLck:\t      12 kB\nCapEff:\t0000000000004000\n";
        assert!(has_capability(status, CAP_IPC_LOCK) && !has_capability(status, 13));
        assert_eq!(field(status, "VmLck:"), Some(12));
        assert!(!has_capability("", CAP_IPC_LOCK));
    }
}
