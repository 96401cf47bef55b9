//! What a process takes of its machine, as the kernel counts it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

/// One reading; sizes in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// VmSize.
    pub(crate) address_space: u64,
    /// VmData: private and writable, whether it has pages or not.
    pub(crate) data: u64,
    /// VmRSS.
    pub(crate) resident: u64,
    /// RssShmem: the resident part that is shared memory.
    pub(crate) shared: u64,
    /// All memory of the memory files that it maps, each counted once, whoever has touched it; 0 if
    /// that is not told.
    pub(crate) mapped: u64,
    /// VmPTE.
    pub(crate) page_tables: u64,
    pub(crate) descriptors: u64,
}

impl Footprint {
    /// Reads the process `id`; the reading itself costs that process nothing, unless it is this
    /// one.
    pub(crate) fn of(id: u32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
        };
        Ok(Self {
            address_space: field("VmSize"),
            data: field("VmData"),
            resident: field("VmRSS"),
            shared: field("RssShmem"),
            mapped: mapped(id),
            page_tables: field("VmPTE"),
            descriptors: fs::read_dir(format!("/proc/{id}/fd"))?.count() as u64,
        })
    }
}

/// Memory of the memory files that process `id` maps, KiB. Only root may look.
fn mapped(id: u32) -> u64 {
    let Ok(entries) = fs::read_dir(format!("/proc/{id}/map_files")) else { return 0 };
    let mut files = BTreeMap::new();
    for entry in entries.flatten() {
        let memfd = fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().contains("memfd:"));
        if let (true, Ok(meta)) = (memfd, fs::metadata(entry.path())) {
            files.insert((meta.dev(), meta.ino()), meta.blocks() / 2);
        }
    }
    files.values().sum()
}
