//! The bars: what a link and an endpoint take while nothing has grown.

use std::io::Write;

use crate::actor::{Actor, Start};
use crate::crowd::{PER_ENDPOINT, PER_PEER};
use crate::footprint::Footprint;
use crate::scene::device;
use crate::watchdog::watched;

const PEERS: u64 = 6;
/// KiB of address space that a link may take until something grows.
const PER_LINK: u64 = 8 << 10;

fn of(actor: &Actor) -> Footprint {
    Footprint::of(actor.id()).expect("it runs")
}

/// A server and its footprints: before any connection, with one peer process, and with all of them.
fn grow_a_crowd(policy: &str) -> ([Footprint; 3], Footprint) {
    let dir = device();
    let start = Start::on(dir.path(), policy).with_a_heap_of_its_own();
    let mut server = start.role("server");
    let to = server.answer("ready").expect("it runs");
    let bare = of(&server);
    let mut clients = Vec::new();
    let mut footprints = vec![bare];
    for number in 0..=PEERS {
        let mut client = start.role(&format!("cheap {to} {number}"));
        client.done("ready").expect("it runs");
        client.tell("open 1").and_then(|()| client.tell("settle")).expect("a connection");
        clients.push(client);
        if number == 0 || number == PEERS {
            if policy == "eager" {
                server.tell(&format!("ring {}", number + 1)).expect("upgrades");
            }
            footprints.push(of(&server));
        }
    }
    let client = of(&clients[0]);
    (footprints.try_into().expect("three"), client)
}

#[test]
fn links_and_endpoints_take_little() {
    watched(|| {
        let (tcp, tcp_client) = grow_a_crowd("never");
        let (smc, smc_client) = grow_a_crowd("eager");
        let endpoint = smc[0].descriptors - tcp[0].descriptors;
        let descriptors = smc[2].descriptors - smc[1].descriptors - PEERS;
        let address_space = (smc[2].address_space - smc[1].address_space) / PEERS;
        let first = smc[1].address_space - smc[0].address_space;
        let client = smc_client.descriptors - tcp_client.descriptors;
        writeln!(
            std::io::stderr(),
            "a link: {address_space} KiB of address space (the first {first} KiB), {} of {PEERS} descriptors; an \
             endpoint: {endpoint} descriptors; a client with one link: {client} descriptors, {} KiB of address space",
            descriptors as f64 / PEERS as f64,
            smc_client.address_space.saturating_sub(tcp_client.address_space),
        )
        .expect("stderr");
        assert!(address_space <= PER_LINK, "a link takes {address_space} KiB of address space");
        assert!(first <= PER_LINK, "the first link takes {first} KiB of address space");
        assert!(descriptors <= PER_PEER * PEERS, "{PEERS} links take {descriptors} descriptors");
        assert!(endpoint <= PER_ENDPOINT, "an endpoint takes {endpoint} descriptors");
        assert!(client <= PER_ENDPOINT + PER_PEER, "a client with one link takes {client} descriptors");
        let more = smc_client.address_space.saturating_sub(tcp_client.address_space);
        assert!(more <= PER_LINK, "a client with one link takes {more} KiB of address space");
    });
}
