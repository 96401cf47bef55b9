//! The setup that figures mean nothing without.

use std::fs;

use tokio::runtime::{Handle, RuntimeFlavor};

/// Processor, number of usable CPUs and kernel.
pub(crate) fn description() -> String {
    let cpus = std::thread::available_parallelism().map_or_else(|_| "?".to_owned(), |cpus| cpus.to_string());
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| {
            line.strip_prefix("model name").map(|rest| rest.trim_start_matches(['\t', ' ', ':']))
        })
        .unwrap_or(std::env::consts::ARCH);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "?".to_owned());
    format!("{model}, {cpus} usable CPUs, Linux {}", kernel.trim())
}

/// Flavour and size of the runtime that this is called on.
pub(crate) fn runtime() -> String {
    let handle = Handle::current();
    match handle.runtime_flavor() {
        RuntimeFlavor::CurrentThread => "current_thread".to_owned(),
        RuntimeFlavor::MultiThread => format!("multi_thread ({} workers)", handle.metrics().num_workers()),
        other => format!("{other:?}"),
    }
}

/// The variables that change how SMC behaves, as they are set here.
pub(crate) fn variables() -> Option<String> {
    let mut set: Vec<String> = std::env::vars()
        .filter(|(name, _)| name == "SMC_LO" || name.starts_with("SMC_LO_"))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    set.sort();
    (!set.is_empty()).then(|| set.join(" "))
}

/// Lets this process open as many files as it may.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Without it the test with most connections fails later and says so itself.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
