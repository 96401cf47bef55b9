//! What attackers do, one function each. A scene's own assertions say what the protocol promises:
//! the link ends, or lives. That nobody is harmed is the judge's to see.
//!
//! What a test elsewhere shows already is not played here again:
//!
//! | what | where |
//! |---|---|
//! | an honest server that is stopped: does `upgrade()` answer? | `tests/stopped.rs` |
//! | urgent data at any moment of an upgrade, between honest ends | `src/conn/tests/urgent.rs` |
//! | a client out of descriptors when an arena is announced | `tests/limits/descriptors.rs` |
//! | a buffer of the caller's that calls the stream | `tests/buffers.rs` |
//! | `RLIMIT_FSIZE`, `RLIMIT_AS` at honest ends | `tests/limits/rlimits.rs`, `memory.rs` |
//! | many honest client processes and few descriptors | `tests/limits/crowd.rs` |
//! | honest ends in a small memory control group | `tests/limits/memory.rs` |
//! | all links taken by honest runtimes of one process | `tests/greedy.rs` |
//! | silent endpoints in the directory, for a client | `src/conn/tests/greedy.rs` |
//! | a segment that is not paid for; one granted twice; two answers | `src/conn/tests/memory.rs` |
//! | one arm for each message with a descriptor whose close waits | `src/conn/tests/descriptors.rs` |

pub(crate) mod asker;
pub(crate) mod blocking;
pub(crate) mod callers;
pub(crate) mod claims;
pub(crate) mod descriptors;
pub(crate) mod diag;
pub(crate) mod directory;
pub(crate) mod files;
pub(crate) mod memory;
pub(crate) mod messages;
pub(crate) mod phases;
pub(crate) mod quotas;
pub(crate) mod rings;
pub(crate) mod signals;
pub(crate) mod strangers;
pub(crate) mod words;

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::child::Child;
use crate::peer::Peer;

/// What an attacker says at its end; it lives until the judge kills it.
pub(crate) const DONE: &str = "done";
/// What it says, before what came of them, when it has played its scene more than once.
pub(crate) const PLAYED: &str = "played ";
/// What it says before it stops itself.
pub(crate) const STOPPED: &str = "stopped";
/// What it says, before an address, that the victim is to connect to.
pub(crate) const CALL: &str = "call ";

/// The victim's process.
fn victim_of(peer: &Peer) -> i32 {
    let other = rustix::net::sockopt::socket_peercred(&peer.socket).expect("SO_PEERCRED");
    other.pid.as_raw_nonzero().get()
}

/// How many descriptors the victim has, which is of the same user.
fn descriptors_of(peer: &Peer) -> u64 {
    fs::read_dir(format!("/proc/{}/fd", victim_of(peer))).expect("procfs").count() as u64
}

/// Whether a test that only root can play can be played. Where CI runs, it has to be.
pub(crate) fn needs_root(name: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "{name}: CI has to be root");
    if !root {
        crate::random::say(&format!("{name}: not played, for only root can"));
    }
    root
}

/// Does something again and again until the attacker is done.
pub(crate) fn wait_for(attacker: &mut Child, mut meanwhile: impl FnMut()) {
    std::thread::scope(|scope| {
        let said = scope.spawn(|| attacker.hear());
        while !said.is_finished() {
            meanwhile();
            sleep(Duration::from_millis(5));
        }
        assert_eq!(said.join().expect("the attacker lives"), DONE);
    });
}

/// Stops this process until the judge continues it.
fn stop() {
    crate::child::tell(STOPPED);
    kill_process(rustix::process::getpid(), Signal::STOP).expect("SIGSTOP");
}

pub(crate) fn wait_until_stopped(id: u32) {
    loop {
        let text = fs::read_to_string(format!("/proc/{id}/stat")).expect("the attacker lives");
        let state = text.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
        if state == Some('T') {
            return;
        }
        sleep(Duration::from_millis(1));
    }
}

pub(crate) fn continue_process(id: u32) {
    let pid = Pid::from_raw(id as i32).expect("a process");
    kill_process(pid, Signal::CONT).expect("SIGCONT");
}
