//! The table of networks: what each is meant to run on, and why if that is TCP.
//!
//! Every row is played with three policies. Bytes are exact in both directions, and TCP has carried
//! exactly what the applications had written before their switch, as captured beside either end.

use crate::actor::Actor;
use crate::inside::{isolated, say, works};
use crate::networks::{self, Network, changed};
use crate::talk::Report;
use crate::wire::Seen;

/// What a network's connections run on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expected {
    Ring,
    /// TCP, and any of these reasons at either end.
    Tcp {
        client: &'static [&'static str],
        server: &'static [&'static str],
    },
}
use Expected::Ring;

const fn tcp(client: &'static [&'static str], server: &'static [&'static str]) -> Expected {
    Expected::Tcp { client, server }
}

const NOT_YET: &str = "no upgrade was asked for yet";
const NO_LISTENER: &str = "the peer does not speak SMC on this host";
const NO_DIRECTORY: &str = "the device directory can not be used";
const ELSEWHERE: &str = "the peer is on another host, or behind a proxy or source nat";
const DECLINED: &str = "the peer declined";
const UNPROVED: &str = "the peer could not be proved to hold the other end";
const LINK_DOWN: &str = "the link to the peer's endpoint broke";
const DENIED: &str = "the system denies a call that shared memory needs";

/// Nobody was asked, or nobody there was.
const NOBODY: Expected = tcp(&[NO_LISTENER], &[NOT_YET]);
/// The connection of the client leads to a proxy, or the server does not see the client's address.
const ANOTHER: Expected = tcp(&[ELSEWHERE], &[NOT_YET, UNPROVED]);

macro_rules! rows {
    ($($name:ident: $network:expr, $expected:expr;)+) => {
        $(
            #[test]
            fn $name() {
                isolated(concat!("rows::", stringify!($name)), || {
                    play(stringify!($name), $network, $expected);
                });
            }
        )+
    };
}

rows! {
    // One network namespace.
    same_pod: networks::same_pod(), Ring;
    same_pod_without_volume: networks::same_pod_without_volume(), NOBODY;
    service_in_the_same_pod: networks::service_in_the_same_pod(), NOBODY;
    rootless_pod: networks::rootless_pod(), Ring;

    // The same addresses at both ends.
    one_wire: networks::one_wire(), Ring;
    one_bridge: networks::one_bridge(), Ring;
    one_bridge_ipv6: networks::one_bridge_ipv6(), Ring;
    dual_stack: networks::dual_stack(), Ring;
    routed: networks::routed(), Ring;
    routed_ipv6: networks::routed_ipv6(), Ring;
    host_to_container: networks::host_to_container(), Ring;
    container_to_host: networks::container_to_host(), Ring;
    macvlan: networks::macvlan(), Ring;
    rootless_on_a_bridge: networks::rootless_on_a_bridge(), Ring;
    rootless_and_its_user: networks::rootless_and_its_user(), Ring;

    // Another destination than was dialled.
    service: networks::service(), Ring;
    service_at_one_address: networks::service_at_one_address(), Ring;
    service_at_the_same_port: networks::service_at_the_same_port(), Ring;
    service_ipv6: networks::service_ipv6(), Ring;
    redirected: networks::redirected(), Ring;
    published_by_nat: networks::published_by_nat(), Ring;
    published_to_the_host: networks::published_to_the_host(), Ring;

    // Another connection, or another source.
    published_by_a_proxy: networks::published_by_a_proxy(), ANOTHER;
    published_by_socat: networks::published_by_socat(), ANOTHER;
    source_nat: networks::source_nat(), ANOTHER;

    // The same addresses twice.
    overlapping: networks::overlapping(), Ring;
    overlapping_services: networks::overlapping_services(), Ring;
    two_ways_to_the_same_addresses: networks::two_ways_to_the_same_addresses(), Ring;

    // No directory in common, or none that can be used.
    one_bridge_without_volume: networks::one_bridge_without_volume(), NOBODY;
    one_bridge_two_volumes: networks::one_bridge_two_volumes(), NOBODY;
    client_with_a_volume_to_read: changed(|client| client.after(READ_ONLY), |server| server), NO_ROOM_AT_CLIENT;
    server_with_a_volume_to_read: changed(|client| client, |server| server.after(READ_ONLY)), NO_ROOM_AT_SERVER;
    client_with_a_full_volume: changed(|client| client.after(FULL), |server| server), NO_ROOM_AT_CLIENT;
    server_with_a_full_volume: changed(|client| client, |server| server.after(FULL)), NO_ROOM_AT_SERVER;

    // A sandbox.
    client_without_netlink: changed(|client| client.without("netlink", "EPERM"), |server| server), Ring;
    server_without_netlink: changed(|client| client, |server| server.without("netlink", "EPERM")), Ring;
    client_without_memfd: changed(|client| client.without("memfd_create", "EPERM"), |server| server), LACKING_CLIENT;
    server_without_memfd: changed(|client| client, |server| server.without("memfd_create", "EPERM")), LACKING_SERVER;
    client_without_sendmsg: changed(|client| client.without("sendmsg", "EPERM"), |server| server), LACKING_CLIENT;
    server_without_sendmsg: changed(|client| client, |server| server.without("sendmsg", "EPERM")), LACKING_SERVER;
}

const READ_ONLY: &str = "mount -o remount,ro,bind DIR";
/// Another one, in which nothing can be made.
const FULL: &str = "mount -t tmpfs -o size=16k,mode=700 none DIR && { dd if=/dev/zero of=DIR/filler bs=4k 2>/dev/null || true; }";
const NO_ROOM_AT_CLIENT: Expected = tcp(&[NO_DIRECTORY], &[NOT_YET]);
const NO_ROOM_AT_SERVER: Expected = tcp(&[NO_LISTENER], &[NO_DIRECTORY, NOT_YET]);
const LACKING_CLIENT: Expected = tcp(&[DENIED], &[DECLINED, NOT_YET]);
const LACKING_SERVER: Expected = tcp(&[DECLINED, NO_LISTENER, LINK_DOWN], &[DENIED, NOT_YET]);

#[test]
fn ipvlan() {
    isolated("rows::ipvlan", || {
        if works("ip link add p0 type dummy && ip link add link p0 name p1 type ipvlan && ip link del p0") {
            play("macvlan", networks::ipvlan(), Ring);
        } else {
            say("ipvlan: this kernel has none (CONFIG_IPVLAN); macvlan is played by a row of its own");
        }
    });
}

/// When the upgrade begins, which decides what is known of the connection by then.
const POLICIES: [&str; 3] = ["first-turn", "eager", "manual"];

fn play(name: &str, mut network: Network, expected: Expected) {
    let mut servers: Vec<Actor> = Vec::new();
    for (number, pair) in network.pairs.iter().enumerate() {
        let mut server = Actor::start(&pair.server.words(), &format!("server {} {number}", pair.at));
        server.hear();
        servers.push(server);
    }
    for (turn, policy) in POLICIES.iter().enumerate() {
        let reports = converse(&network, &mut servers, policy, turn as u16);
        for [client, server] in reports {
            say(&format!(
                "{name}, {policy}: {} ({}), {} ({})",
                client.transport, client.reason, server.transport, server.reason
            ));
            match expected {
                Ring => [client, server].iter().for_each(Report::upgraded),
                Expected::Tcp { client: reasons, server: at_server } => {
                    client.stayed_on_tcp(reasons);
                    server.stayed_on_tcp(at_server);
                }
            }
        }
    }
    drop(servers);
    network.helpers.clear();
    network.volumes.clear();
}

/// One connection of each pair, all at the same time; what both ends say of it. The wire is looked
/// at beside each of them.
fn converse(network: &Network, servers: &mut [Actor], policy: &str, turn: u16) -> Vec<[Report; 2]> {
    let capture = |words: &[String]| {
        let mut capture = Actor::start(words, "capture");
        capture.hear();
        capture
    };
    let mut captures = Vec::new();
    for pair in &network.pairs {
        captures.push([capture(&pair.client.network_words()), capture(&pair.server.network_words())]);
    }
    let mut clients = Vec::new();
    for (number, pair) in network.pairs.iter().enumerate() {
        let from = if pair.from == 0 { 0 } else { pair.from + turn };
        let mut client =
            Actor::start(&pair.client.words(), &format!("client {from} {} {number} {policy}", pair.to));
        assert_eq!(client.hear(), "connected");
        clients.push(client);
    }
    clients.iter_mut().for_each(|client| client.say("go"));
    let mut reports = Vec::new();
    for ((client, server), captures) in clients.iter_mut().zip(servers).zip(captures) {
        let ends = [Report::heard(&client.hear()), Report::heard(&server.hear())];
        let [client, server] = &ends;
        assert_eq!(
            client.tcp_written + client.ism_written,
            server.tcp_read + server.ism_read,
            "{client:?}, {server:?}"
        );
        for (capture, end) in captures.into_iter().zip(&ends) {
            Seen::by(capture).agrees_with(end);
        }
        reports.push(ends);
    }
    reports
}
