//! What a process takes of its machine, as the kernel counts it.

use std::fs;
use std::io;

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
    /// VmPTE.
    pub(crate) page_tables: u64,
    pub(crate) descriptors: u64,
}

impl Footprint {
    /// Reads the process `id`; the reading itself costs that process nothing, unless it is this one.
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
            page_tables: field("VmPTE"),
            descriptors: fs::read_dir(format!("/proc/{id}/fd"))?.count() as u64,
        })
    }
}
