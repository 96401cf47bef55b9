//! Many client processes, few descriptors; and links that nobody uses.

use std::time::{Duration, Instant};

use crate::actor::{Actor, Start};
use crate::footprint::Footprint;
use crate::scene::{Pair, Side, conclude, device};
use crate::watchdog::{step, watched};
use crate::words::{DECLINED, DESCRIPTORS, LIMIT, NO_LISTENER, NOT_YET};

/// What an endpoint and each peer process may hold besides the connections.
pub(crate) const PER_ENDPOINT: u64 = 8;
pub(crate) const PER_PEER: u64 = 3;

const CLIENTS: usize = 80;
const LIMIT_OF_DESCRIPTORS: u64 = 128;

pub(crate) fn descriptors(actor: &Actor) -> u64 {
    Footprint::of(actor.id()).expect("it runs").descriptors
}

/// Descriptors of a server that has no connection and does not know this library.
fn bare() -> u64 {
    let dir = device();
    let mut server = Start::on(dir.path(), "never").with("SMC_LO", "off").role("server");
    server.answer("ready").expect("it runs");
    descriptors(&server)
}

#[test]
fn eighty_client_processes_and_128_descriptors() {
    watched(|| {
        let bare = bare();
        let dir = device();
        let start = Start::on(dir.path(), "eager");
        let mut server =
            start.clone().limited(&format!("rlimit nofile {LIMIT_OF_DESCRIPTORS}")).role("server");
        let to = server.answer("ready").expect("it runs");
        let mut clients: Vec<Actor> =
            (0..CLIENTS).map(|number| start.role(&format!("cheap {to} {number}"))).collect();
        for client in &mut clients {
            client.done("ready").expect("it runs");
            client.say("open 1").expect("it hears");
        }
        for word in ["open", "settle", "burst"] {
            for (number, client) in clients.iter_mut().enumerate() {
                step(format!("{word} of client {number}"));
                client.done(word).expect("it is served");
                let next = if word == "open" { "settle" } else { "burst 20000" };
                if word != "burst" {
                    client.say(next).expect("it hears");
                }
            }
        }
        let taken = descriptors(&server);
        let mut clients: Vec<&mut Actor> = clients.iter_mut().collect();
        let outcome = conclude(&mut server, &mut clients).expect("all bytes");
        assert_eq!(outcome.server.entries.len(), CLIENTS);
        let upgraded = outcome.server.on_the_ring() as u64;
        assert!(upgraded >= 4, "{upgraded} upgraded: {:?}", outcome.server.reasons());
        // Links have a quarter of the descriptors; for what each takes see `figures`.
        let allowed = bare + CLIENTS as u64 + PER_ENDPOINT + LIMIT_OF_DESCRIPTORS / 4;
        assert!(taken <= allowed, "{taken} descriptors with {upgraded} upgraded, {allowed} allowed");
        let own = [DESCRIPTORS, LIMIT, NOT_YET];
        let others = [DECLINED, DESCRIPTORS, LIMIT, NO_LISTENER];
        outcome.reasons_are(Side::Server, &own, &others).expect("true reasons");
        server.end().expect("the server lives");
    });
}

#[test]
fn links_that_nobody_uses_give_all_back() {
    watched(|| {
        let bare = bare();
        let mut pair = Pair::start(|start, _| start.with_a_heap_of_its_own()).expect("both run");
        let before =
            [Side::Server, Side::Client].map(|side| Footprint::of(pair.side(side).id()).expect("it runs"));
        for round in 0..2 {
            step(format!("round {round}"));
            pair.open(70).expect("connections");
            pair.client.tell("burst 200000").expect("rings that have grown");
            pair.client.tell("ring 70").expect("upgrades");
            pair.client.tell("finish").expect("it hears");
            for end in [&mut pair.client, &mut pair.server] {
                end.tell("ended").expect("all have ended");
                end.tell("again").expect("it hears");
            }
            for (side, before) in [Side::Server, Side::Client].into_iter().zip(before) {
                step(format!("round {round}: idle at the {side:?}"));
                let id = pair.side(side).id();
                let fits = |now: &Footprint| {
                    now.descriptors <= bare + PER_ENDPOINT && now.address_space <= before.address_space + 1024
                };
                let began = Instant::now();
                let mut now = Footprint::of(id).expect("it runs");
                while !fits(&now) && began.elapsed() < Duration::from_secs(60) {
                    std::thread::sleep(Duration::from_millis(50));
                    now = Footprint::of(id).expect("it runs");
                }
                assert!(fits(&now), "{side:?} holds {now:?} for nobody; before it had {before:?}");
            }
        }
    });
}
