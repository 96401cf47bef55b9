//! Resource limits that a process has from its shell, its service manager or itself.

use crate::actor::Start;
use crate::root::privileged;
use crate::scene::{MOMENTS, Moment, Outcome, SIDES, Scene, all_well};
use crate::watchdog::watched;
use crate::words::{DIRECTORY, LIMIT, MEMORY, NOT_YET, OTHERS};

/// Plays a limit at either end and at each moment.
#[track_caller]
fn everywhere(limit: &str, start: fn(Start) -> Start, fits: fn(&Scene, Outcome) -> Result<(), String>) {
    let limit = limit.to_owned();
    watched(move || {
        all_well(SIDES.into_iter().flat_map(|side| MOMENTS.map(|moment| (side, moment))).map(
            |(side, moment)| {
                let scene = Scene { start, ..Scene::new(&limit, side, moment) };
                let outcome = scene.play()?;
                fits(&scene, outcome).map_err(|error| format!("{}: {error}", scene.name()))
            },
        ));
    });
}

fn as_it_is(start: Start) -> Start {
    start
}

/// Not one stays on TCP.
fn all_upgraded(_: &Scene, outcome: Outcome) -> Result<(), String> {
    outcome.stayed_on_the_ring(outcome.client.entries.len())
}

/// Some stay on TCP, and say that it is for memory.
fn short_of_memory(scene: &Scene, outcome: Outcome) -> Result<(), String> {
    // In the middle of it the limit may come when the last arena is mapped already.
    if scene.moment != Moment::During && outcome.stayed_on_the_ring(outcome.client.entries.len()).is_ok() {
        return Err("all were upgraded: the limit was none".to_owned());
    }
    outcome.reasons_are(scene.side, &[MEMORY, LIMIT, NOT_YET], OTHERS)
}

/// Whatever of it is upgraded.
fn none_ended(scene: &Scene, outcome: Outcome) -> Result<(), String> {
    outcome.reasons_are(scene.side, &[MEMORY, LIMIT, NOT_YET], OTHERS)
}

#[test]
fn files_of_100_mib_are_large_enough() {
    everywhere("rlimit fsize 104857600", as_it_is, all_upgraded);
}

/// SIGXFSZ would kill.
#[test]
fn files_of_64_kib() {
    everywhere("rlimit fsize 65536", as_it_is, none_ended);
}

/// Device directories have an empty file or two.
#[test]
fn files_of_no_byte() {
    everywhere("rlimit fsize 0", as_it_is, |scene, outcome| {
        outcome.reasons_are(scene.side, &[MEMORY, LIMIT, DIRECTORY, NOT_YET], OTHERS)
    });
}

/// No arena can be mapped: neither an own one nor one of the peer's.
#[test]
fn address_space_for_no_arena() {
    let limit = "headroom as 262144";
    everywhere(limit, Start::with_a_heap_of_its_own, short_of_memory);
}

/// One more arena can be mapped, but not two: what is missing is that of the peer, or our own.
#[test]
fn address_space_for_one_arena() {
    let limit = "headroom as 614400";
    everywhere(limit, Start::with_a_heap_of_its_own, short_of_memory);
}

/// Shared memory is no data.
#[test]
fn data_of_a_mebibyte() {
    let limit = "headroom data 1048576";
    everywhere(limit, Start::with_a_heap_of_its_own, all_upgraded);
}

/// A core file of no byte, or of any number, is nothing a living process notices.
#[test]
fn no_core() {
    everywhere("rlimit core 0", as_it_is, all_upgraded);
}

/// No thread is begun. (Root is under no such limit.)
#[test]
fn no_further_process() {
    privileged(|| {
        all_well(SIDES.into_iter().flat_map(|side| MOMENTS.map(|moment| (side, moment))).map(
            |(side, moment)| {
                let scene = Scene { unprivileged: true, ..Scene::new("rlimit nproc 0", side, moment) };
                all_upgraded(&scene, scene.play()?)
            },
        ));
    });
}
