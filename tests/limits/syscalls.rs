//! A sandbox that denies one system call, at either end, before, while and after connections are
//! upgraded.

use crate::denied::CALLS;
use crate::scene::{MOMENTS, Moment, SIDES, Scene, Side, all_well};
use crate::watchdog::watched;
use crate::words::{
    DENIED, DIRECTORY, IN_PROGRESS, LINK_DOWN, NO_ANSWER, NO_SEQUENCE, NOT_YET, OTHERS, UNPROVED,
};

/// Each call at each end with both errors, but not at every moment with both.
#[track_caller]
fn denied(side: Side, moment: Moment) {
    watched(move || {
        let errno = match (side, moment) {
            (Side::Server, Moment::Before | Moment::During) | (Side::Client, Moment::Standing) => "ENOSYS",
            (Side::Server, Moment::Standing) | (Side::Client, Moment::Before | Moment::During) => "EPERM",
        };
        let calls = CALLS.iter().filter(|call| !is_tokios(call.name, side, moment));
        all_well(calls.map(|call| {
            let limit = format!("deny {} {errno}", call.name);
            let scene = Scene { more: 3, ..Scene::new(&limit, side, moment) };
            let outcome = scene.play()?;
            let own = [DENIED, DIRECTORY, UNPROVED, NO_SEQUENCE, NOT_YET];
            // Who may not speak any more leaves the other end without an answer.
            let silence = [LINK_DOWN, NO_ANSWER, IN_PROGRESS];
            let others: Vec<&str> = OTHERS.iter().copied().chain(silence).collect();
            outcome.reasons_are(side, &own, &others).map_err(|error| format!("{}: {error}", scene.name()))
        }));
    });
}

/// Debug builds of tokio look whether a listener's socket blocks.
fn is_tokios(call: &str, side: Side, moment: Moment) -> bool {
    (call, side, moment) == ("fcntl-getfl", Side::Server, Moment::Before)
}

#[test]
fn denied_at_the_server_before() {
    denied(Side::Server, Moment::Before);
}

#[test]
fn denied_at_the_client_before() {
    denied(Side::Client, Moment::Before);
}

#[test]
fn denied_at_the_server_standing() {
    denied(Side::Server, Moment::Standing);
}

#[test]
fn denied_at_the_client_standing() {
    denied(Side::Client, Moment::Standing);
}

#[test]
fn denied_at_the_server_during() {
    denied(Side::Server, Moment::During);
}

#[test]
fn denied_at_the_client_during() {
    denied(Side::Client, Moment::During);
}

/// Calls that a filter does not know end the process under systemd's `SystemCallFilter`. Of those
/// that the library could use its `@system-service` leaves out one.
#[test]
fn a_filter_that_kills_for_what_services_do_not_call() {
    watched(|| {
        all_well(SIDES.into_iter().flat_map(|side| MOMENTS.map(|moment| (side, moment))).map(
            |(side, moment)| {
                let scene = Scene { more: 3, ..Scene::new("deny mincore kill", side, moment) };
                let outcome = scene.play()?;
                outcome.stayed_on_the_ring(outcome.client.entries.len())
            },
        ));
    });
}
