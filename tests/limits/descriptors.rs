//! The last descriptors of a process.

use crate::scene::{LIVE, Moment, Outcome, Pair, SIDES, Scene, Side, all_well};
use crate::watchdog::{step, watched};
use crate::words::{DESCRIPTORS, LIMIT, NOT_YET, OTHERS};

/// For how many connections one of them must be upgraded when nothing is missing any more.
const SOON: usize = 40;

/// 64 connections stand; the 65th is there on TCP, and needs something new to be upgraded.
fn last(free: usize, side: Side) -> Result<Outcome, String> {
    let mut pair = Pair::start(|start, _| start)?;
    pair.open(LIVE)?;
    pair.client.tell("hold 1")?;
    for end in [&mut pair.client, &mut pair.server] {
        end.tell(&format!("ring {LIVE}"))?;
    }
    pair.side(side).tell(&format!("limit free {free}"))?;
    pair.client.tell("upgrade")?;
    pair.client.tell("settle")?;
    pair.client.tell("burst 60000")?;
    let report = pair.client.report()?;
    // What was missing is not missing for ever.
    pair.side(side).tell("limit lift")?;
    let mut more = 0;
    while pair.client.report()?.on_the_ring() <= report.on_the_ring() {
        if more == SOON {
            return Err(format!("no connection is upgraded any more: {:?}", pair.client.report()?.reasons()));
        }
        pair.open(1)?;
        more += 1;
    }
    pair.client.tell("burst 60000")?;
    let outcome = pair.finish()?;
    outcome.stayed_on_the_ring(LIVE)?;
    outcome.reasons_are(side, &[DESCRIPTORS, LIMIT, NOT_YET], OTHERS)?;
    Ok(outcome)
}

fn with_free(free: usize) {
    watched(move || {
        all_well(SIDES.map(|side| {
            step(format!("{free} left at the {side:?}"));
            last(free, side).map(drop).map_err(|error| format!("{free} left at the {side:?}: {error}"))
        }));
    });
}

#[test]
fn no_descriptor_left() {
    with_free(0);
}

#[test]
fn one_descriptor_left() {
    with_free(1);
}

#[test]
fn two_descriptors_left() {
    with_free(2);
}

#[test]
fn three_descriptors_left() {
    with_free(3);
}

/// What TCP serves is served: all else is 8 descriptors for an endpoint and 3 for the peer.
#[test]
fn the_table_is_small_from_the_start() {
    watched(|| {
        all_well(SIDES.map(|side| {
            // The connections under the limit are the last ones, so the first ones are all of them.
            let scene = Scene { more: 0, ..Scene::new("free 76", side, Moment::Before) };
            let outcome = scene.play()?;
            outcome.reasons_are(side, &[DESCRIPTORS, LIMIT, NOT_YET], OTHERS)
        }));
    });
}
