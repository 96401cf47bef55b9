//! Device directories in which nothing more can be made.

use std::path::Path;

use crate::root::{AS_USER, hand_over, sh, with_own_mounts};
use crate::scene::{LIVE, MOMENTS, Moment, Pair, SIDES, all_well, conclude, device};
use crate::watchdog::step;
use crate::words::{DECLINED, DIRECTORY, NO_LISTENER, NOT_YET};

/// What a directory is before, and what becomes of it.
struct Fate {
    name: &'static str,
    make: &'static str,
    spoil: &'static str,
    moments: &'static [Moment],
    unprivileged: bool,
}

fn play(fate: &Fate, moment: Moment) -> Result<(), String> {
    step(format!("{}, {moment:?}", fate.name));
    let dir = device();
    let script = |words: &str| sh(&words.replace("DIR", &dir.path().display().to_string()));
    script(fate.make);
    if fate.unprivileged {
        hand_over(dir.path());
    }
    if moment == Moment::Before {
        script(fate.spoil);
    }
    let played = played(fate, moment, dir.path(), &script);
    sh(&format!("umount -l {0} 2>/dev/null || true; chmod -R u+rwx {0}", dir.path().display()));
    played.map_err(|error| format!("{}, {moment:?}: {error}", fate.name))
}

fn played(fate: &Fate, moment: Moment, dir: &Path, script: &dyn Fn(&str)) -> Result<(), String> {
    let mut pair =
        Pair::start_on(dir, |start, _| if fate.unprivileged { start.through(AS_USER) } else { start })?;
    pair.open(LIVE)?;
    if moment != Moment::Before {
        pair.client.tell(&format!("ring {LIVE}"))?;
        pair.server.tell(&format!("ring {LIVE}"))?;
    }
    if moment == Moment::During {
        pair.client.say("open 66")?;
        script(fate.spoil);
        pair.client.done("open")?;
        pair.client.tell("settle")?;
    } else {
        if moment == Moment::Standing {
            script(fate.spoil);
        }
        pair.open(66)?;
    }
    // Somebody who has nothing there yet.
    let to = pair.server.ask("where")?;
    let newcomer = crate::actor::Start::on(dir, "eager");
    let newcomer = if fate.unprivileged { newcomer.through(AS_USER) } else { newcomer };
    let mut newcomer = newcomer.role(&format!("client {to} 1000"));
    newcomer.done("ready")?;
    newcomer.tell("open 5")?;
    newcomer.tell("settle")?;
    newcomer.tell("burst 60000")?;
    pair.client.tell("burst 60000")?;
    let outcome = conclude(&mut pair.server, &mut [&mut pair.client, &mut newcomer])?;
    if moment != Moment::Before {
        outcome.stayed_on_the_ring(LIVE)?;
    }
    let allowed = [DIRECTORY, NO_LISTENER, DECLINED, NOT_YET];
    for side in SIDES {
        outcome.reasons_are(side, &allowed, &allowed)?;
    }
    pair.server.end()
}

fn spoiled(fate: &Fate) {
    all_well(fate.moments.iter().map(|&moment| play(fate, moment)));
}

#[test]
fn full() {
    with_own_mounts("directory::full", || {
        spoiled(&Fate {
            name: "full",
            make: "mount -t tmpfs -o size=16k,mode=700 none DIR",
            spoil: "dd if=/dev/zero of=DIR/filler bs=4k 2>/dev/null || true",
            moments: &MOMENTS,
            unprivileged: false,
        });
    });
}

#[test]
fn out_of_inodes() {
    with_own_mounts("directory::out_of_inodes", || {
        spoiled(&Fate {
            name: "out of inodes",
            make: "mount -t tmpfs -o nr_inodes=64,mode=700 none DIR",
            spoil: "n=0; while touch DIR/filler$n 2>/dev/null; do n=$((n + 1)); done",
            moments: &MOMENTS,
            unprivileged: false,
        });
    });
}

#[test]
fn read_only() {
    with_own_mounts("directory::read_only", || {
        spoiled(&Fate {
            name: "read-only",
            make: "true",
            spoil: "mount --bind DIR DIR && mount -o remount,ro,bind DIR",
            moments: &[Moment::Before],
            unprivileged: false,
        });
    });
}

#[test]
fn not_writable() {
    with_own_mounts("directory::not_writable", || {
        spoiled(&Fate {
            name: "not writable",
            make: "true",
            spoil: "chmod 500 DIR DIR/* DIR/*/* 2>/dev/null || chmod 500 DIR",
            moments: &MOMENTS,
            unprivileged: true,
        });
    });
}

#[test]
fn emptied() {
    with_own_mounts("directory::emptied", || {
        spoiled(&Fate {
            name: "emptied",
            make: "true",
            spoil: "rm -rf DIR/*",
            moments: &[Moment::Standing, Moment::During],
            unprivileged: false,
        });
    });
}
