//! Chaos: processes that talk to each other while one fault after the other befalls them: `kill
//! -9`, SIGSTOP, lowered limits, forks, restarted listeners, two processes on one port, dropped
//! runtimes, panics, streams that are dropped in the middle, a device directory that is removed.
//! Some are on tokio's runtimes, some block, some know only TCP.
//!
//! Each direction of a stream is a sequence of its own ([`sequence`]), and the receiver knows what
//! every byte has to be. Each end is whole or broken, and if it is broken the judge has to know why
//! ([`judge`]): a stream of which both ends were left in peace is whole. Nothing hangs, and nothing
//! is left ([`leavings`]).
//!
//! `SMC_TEST_SEED` is the seed (it is printed), `SMC_TEST_SECONDS` for how long. What the seed does
//! not decide is when each step happens.
#![allow(clippy::disallowed_types, reason = "a test, which loom does not run")]

#[allow(dead_code, reason = "answers come by a thread here")]
#[path = "../support/child.rs"]
mod child;
#[allow(dead_code, reason = "the hostile peer needs more of it")]
#[path = "../hostile/dice.rs"]
mod dice;
#[allow(dead_code, reason = "settings come from the environment here")]
#[path = "../support/lab.rs"]
mod lab;
#[allow(dead_code, reason = "readings are waited for otherwise here")]
#[path = "../support/usage.rs"]
mod usage;
#[path = "../support/watchdog.rs"]
mod watchdog;

mod async_worker;
mod crew;
mod faults;
mod figures;
mod harm;
mod judge;
mod leavings;
mod plan;
mod plant;
mod report;
mod season;
mod sequence;
mod talk;
mod thread_worker;
mod worker;

use std::io::Write;
use std::time::{Duration, Instant};

use figures::Figures;
use plant::Plant;
use season::{Settings, play};
use watchdog::{step, watched};
use worker::{KINDS, Kind, Seat};

/// The length of a season; what a process has left behind is seen at its end.
const SEASON: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(60);
/// For how long something may be given back late: closed streams wait for their peers up to
/// `peer_timeout`, tidying up is done by a thread.
const LATE: Duration = Duration::from_secs(60);

/// Not a test of its own: the door through which this binary becomes a worker.
#[test]
fn child_process() {
    let Some(role) = child::role() else { return };
    let words: Vec<_> = role.splitn(5, ' ').collect();
    let [kind, seed, address, shared, log] = words[..] else { panic!("no role {role}") };
    let kind = KINDS.into_iter().find(|known| format!("{known:?}") == kind).expect("a kind");
    let seat = Seat {
        seed: seed.parse().expect("a number"),
        address: address.parse().expect("an address"),
        shared: shared == "true",
    };
    worker::work(kind, seat, log);
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect(name))
}

fn say(text: &str) {
    writeln!(std::io::stderr(), "{text}").expect("stderr");
}

#[test]
fn chaos() {
    watched(|| {
        let seed = variable("SMC_TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 16);
        let seconds = Duration::from_secs(variable("SMC_TEST_SECONDS").unwrap_or(5));
        say(&format!("SMC_TEST_SEED={seed}, for {seconds:?}"));
        let mut figures = Figures::default();
        let began = Instant::now();
        let mut number = 0;
        loop {
            let left = seconds.saturating_sub(began.elapsed());
            if left.is_zero() {
                break;
            }
            number += 1;
            step(format!("season {number} of seed {seed}"));
            let settings = Settings {
                seed,
                number,
                length: left.min(SEASON),
                kinds: vec![
                    Kind::MultiThread,
                    Kind::CurrentThread,
                    Kind::CurrentThread,
                    Kind::MultiThread,
                    Kind::Blocking,
                    Kind::Blocking,
                    Kind::Plain,
                ],
                sharing: 2,
                faults: true,
                patience: PATIENCE,
                late: LATE,
                crowd: 24,
                plant: None,
            };
            let failures = play(settings, &mut figures);
            if number % 10 == 0 {
                say(&format!("after {:?}:\n{figures}", began.elapsed()));
            }
            if !failures.is_empty() {
                say(&figures.to_string());
                let all = failures.join("\n\n");
                panic!("season {number} of seed {seed}, {} failures:\n\n{all}", failures.len());
            }
        }
        say(&format!("after {:?}, no failure:\n{figures}", began.elapsed()));
        assert!(figures.whole > 0 && figures.on_ring > 0, "nothing was tested");
    });
}

/// A short season in peace, with a plant.
fn season_with(plant: Plant) -> Vec<String> {
    let settings = Settings {
        seed: 1,
        number: 1,
        length: Duration::from_millis(1500),
        kinds: vec![Kind::MultiThread, Kind::Blocking],
        sharing: 0,
        faults: false,
        patience: if plant == Plant::MissingEnd { Duration::from_secs(2) } else { PATIENCE },
        late: Duration::from_secs(8),
        crowd: 12,
        plant: Some(plant),
    };
    play(settings, &mut Figures::default())
}

#[track_caller]
fn finds(plant: Plant, words: &str) {
    let failures = watched(move || season_with(plant));
    let all = failures.join("\n\n");
    assert!(all.contains(words), "{plant:?} is not found; what is: {all}");
}

#[test]
fn a_wrong_byte_is_found() {
    finds(Plant::FlippedByte, "wrong at");
}

#[test]
fn an_end_without_reason_is_found() {
    finds(Plant::EarlyEnd, "nothing excuses that");
}

#[test]
fn a_stream_that_hangs_is_found() {
    finds(Plant::MissingEnd, "hangs");
}

/// Of the judge's words about the last process.
const LEFT: &str = "something is left of what it has had to do with others";

#[test]
fn a_descriptor_that_is_left_is_found() {
    finds(Plant::Descriptor, LEFT);
}

#[test]
fn a_thread_that_is_left_is_found() {
    finds(Plant::Thread, LEFT);
}

#[test]
fn memory_that_is_left_is_found() {
    finds(Plant::SharedMemory, LEFT);
}

#[test]
fn a_file_that_is_left_is_found() {
    finds(Plant::DirectoryEntry, "device/left");
}
