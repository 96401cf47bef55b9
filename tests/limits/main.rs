//! The laboratory of limits: what a process lacks never ends a connection, never kills it, and is
//! told as it is.

#[path = "../support/footprint.rs"]
mod footprint;
#[path = "../support/group.rs"]
mod group;
#[path = "../support/watchdog.rs"]
mod watchdog;

mod actor;
mod crowd;
mod denied;
mod descriptors;
mod directory;
mod figures;
mod limit;
mod memory;
mod program;
mod report;
mod rlimits;
mod root;
mod scene;
mod syscalls;
mod talk;
mod words;

/// Not a test of its own: the door through which this binary becomes another process.
#[test]
fn child_process() {
    program::run();
}
