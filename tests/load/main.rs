//! Many of everything: connections between two processes, processes at one server, connections one
//! after the other. All bytes are checked, and what was taken is given back.
//!
//! `cargo test` plays a small piece of each. The sizes are variables of the environment; all of it,
//! as `ci/load.sh` plays it:
//!
//! | variable | what | default | full |
//! |---|---|---|---|
//! | `SMC_TEST_UPGRADED` | upgraded connections between two processes at one time | 2000 | 10000 |
//! | `SMC_TEST_CLIENTS` | client processes at a server with 1024 descriptors | 60 | 200 |
//! | `SMC_TEST_CONNECTIONS` | short connections | 10000 | 1000000 |
//!
//! The figures are printed (`-- --nocapture`). Counters that could wrap have their tests where they
//! are: docs/design.md, "Counters".
#![allow(clippy::disallowed_types, reason = "a test, which loom does not run")]
#![allow(clippy::print_stdout, reason = "figures, for who asks for them")]

#[allow(dead_code, reason = "nobody is killed here")]
#[path = "../support/child.rs"]
mod child;
#[path = "../support/footprint.rs"]
mod footprint;
#[path = "../support/watchdog.rs"]
mod watchdog;

mod crowd;
mod many;
mod program;
mod reading;
mod short;
mod talk;
mod wrap;

/// Not a test of its own: the door through which this binary becomes another process.
#[test]
fn child_process() {
    program::run();
}

/// How many of something, by a variable or the default.
fn size(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().map_or(default, |value| value.parse().expect("a number"))
}
