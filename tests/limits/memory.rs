//! Memory: what others of the process still get, locked memory, core files, control groups.

use std::fs;
use std::time::{Duration, Instant};

use crate::actor::{Actor, PATIENCE, Start};
use crate::footprint::Footprint;
use crate::group::Group;
use crate::root::{not_run, privileged};
use crate::scene::{MOMENTS, Pair, SIDES, Scene, Side, all_well, conclude, device, meet};
use crate::watchdog::{step, watched};
use crate::words::{LIMIT, MEMORY, NOT_YET, OTHERS};

/// KiB.
const MIB: u64 = 1024;

fn footprint(actor: &Actor) -> Footprint {
    Footprint::of(actor.id()).expect("it runs")
}

#[test]
fn two_idle_peers_leave_400_mib_of_2_5_gb() {
    watched(|| {
        let dir = device();
        let start = Start::on(dir.path(), "eager");
        let limited = start.clone().limited("rlimit as 2500000000");
        let (mut server, mut client) = meet(&limited, &start).expect("both run");
        let to = server.ask("where").expect("an address");
        let mut other = start.role(&format!("client {to} 1000"));
        other.done("ready").expect("it runs");
        for client in [&mut client, &mut other] {
            client.tell("open 1").expect("a connection");
            client.tell("ring 1").expect("an upgrade");
        }
        server.tell("load 419430400").expect("400 MiB of its own");
        conclude(&mut server, &mut [&mut client, &mut other]).expect("all bytes");
        server.end().expect("no abort");
    });
}

#[test]
fn locked_memory_is_that_of_tcp_and_8_mib() {
    privileged(|| {
        for side in SIDES {
            let [tcp, smc] = ["never", "eager"].map(|policy| {
                step(format!("{policy}, locked at the {side:?}"));
                let mut pair = Pair::start(|start, at| {
                    let start = start.with("SMC_LO_UPGRADE", policy);
                    if at == side { start.limited("lock") } else { start }
                })
                .expect("both run");
                pair.open(1).expect("a connection");
                let resident = footprint(pair.side(side)).resident;
                let outcome = pair.finish().expect("all bytes");
                assert_eq!(outcome.client.on_the_ring(), usize::from(policy == "eager"));
                resident
            });
            assert!(smc <= tcp + 8 * MIB, "{side:?}: {smc} KiB resident, {tcp} KiB on TCP");
        }
    });
}

/// Only root may lock what it likes: others have a limit, and then a mapping fails that would
/// exceed it.
#[test]
fn locked_memory_within_a_limit() {
    privileged(|| {
        all_well(SIDES.into_iter().flat_map(|side| MOMENTS.map(|moment| (side, moment))).map(
            |(side, moment)| {
                let limit = "lock-future 262144";
                let start = Start::with_a_heap_of_its_own;
                let scene = Scene { start, unprivileged: true, ..Scene::new(limit, side, moment) };
                scene.play()?.reasons_are(side, &[MEMORY, LIMIT, NOT_YET], OTHERS)
            },
        ));
    });
}

#[test]
fn core_files_are_those_of_tcp_and_4_mib() {
    privileged(|| {
        let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("procfs");
        // Elsewhere the core goes to a program or to a directory that is not ours.
        let here = !pattern.starts_with('|') && !pattern.contains('/');
        let [tcp, smc] = ["never", "eager"].map(|policy| {
            step(policy);
            let cores = device();
            let Pair { mut server, mut client, dir: _dir } = Pair::start(|start, side| {
                let start = start.with("SMC_LO_UPGRADE", policy);
                if side == Side::Server { start.limited("rlimit core 9000000000") } else { start }
            })
            .expect("both run");
            client.tell("open 4").and_then(|()| client.tell("settle")).expect("connections");
            client.tell("burst 4000000").expect("rings that have grown");
            let shared = dumped(server.id());
            server.say(&format!("abort {}", cores.path().display())).expect("it runs");
            server.wait_for_death();
            let core = fs::read_dir(cores.path()).expect("a directory").flatten().next();
            assert_eq!(core.is_some(), here, "a core file, as {pattern:?} says");
            (shared, core.map_or(0, |core| core.metadata().expect("a file").len() / 1024))
        });
        assert!(smc.0 <= tcp.0 + 4 * MIB, "{} KiB of shared memory to be dumped, {} on TCP", smc.0, tcp.0);
        assert!(smc.1 <= tcp.1 + 4 * MIB, "a core of {} KiB, on TCP {}", smc.1, tcp.1);
    });
}

/// Shared anonymous memory that a core dump of the process holds by default, KiB.
fn dumped(id: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{id}/smaps")).expect("it runs");
    let (mut sum, mut size, mut counts) = (0, 0, false);
    for line in maps.lines() {
        if let Some(rest) = line.strip_prefix("Size:") {
            size = rest.trim().trim_end_matches("kB").trim().parse().expect("a size");
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            let has = |flag| flags.split_whitespace().any(|known| known == flag);
            sum += if counts && has("sh") && !has("dd") { size } else { 0 };
        } else if line.split(' ').next().is_some_and(|word| word.contains('-')) {
            counts = line.contains("memfd:");
        }
    }
    sum
}

const CROWD: usize = 8;
const EACH: usize = 5;
const SMALL: u64 = 64 << 20;

/// 40 connections whose readers do not read, while their writers write whatever they may.
fn in_each_group(word: &str) {
    let groups = Group::each(word, SMALL);
    if groups.is_empty() {
        return not_run(word, "no memory control group can be made");
    }
    for group in groups {
        step(format!("{word}, control group version {}", group.version()));
        in_group(&group, word);
        assert_eq!(group.killed(), 0, "nobody is killed");
    }
}

fn in_group(group: &Group, word: &str) {
    let dir = device();
    let start = Start::on(dir.path(), "eager");
    let mut server = start.clone().limited(&format!("cgroup {}", group.door())).role("server");
    let to = server.answer("ready").expect("an address");
    let mut clients: Vec<Actor> =
        (0..CROWD).map(|number| start.role(&format!("cheap {to} {}", number * 1000))).collect();
    for client in &mut clients {
        client.done("ready").expect("it runs");
        client.tell(&format!("{word} {EACH}")).expect("connections");
    }
    let mut clients: Vec<&mut Actor> = clients.iter_mut().collect();
    let sent = |server: &mut Actor, clients: &mut [&mut Actor]| {
        let mut reports = vec![server.report().expect("the server lives")];
        reports.extend(clients.iter_mut().map(|client| client.report().expect("the client lives")));
        reports.iter().flat_map(|report| report.entries.values()).map(|entry| entry.sent).sum::<u64>()
    };
    let (began, mut before) = (Instant::now(), 0);
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = sent(&mut server, &mut clients);
        if now == before && now > 0 {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "it never ends: {now} bytes are in nobody's hands");
        before = now;
    }
    let outcome = conclude(&mut server, &mut clients).expect("all bytes");
    assert_eq!(outcome.server.entries.len(), CROWD * EACH);
    assert!(outcome.client.on_the_ring() > 0, "some were upgraded: {:?}", outcome.client.reasons());
    outcome.reasons_are(Side::Server, &[MEMORY, LIMIT, NOT_YET], OTHERS).expect("true reasons");
    server.end().expect("the server lives");
}

#[test]
fn a_group_of_64_mib_that_writes_to_40_who_do_not_read() {
    privileged(|| in_each_group("pull"));
}

#[test]
fn a_group_of_64_mib_that_does_not_read_from_40() {
    privileged(|| in_each_group("push"));
}
