//! Networks as container engines build them.

use crate::actor::Actor;
use crate::inside::sh;
use crate::place::{HOST, Place, Volume, rootless_files};

/// A client and the server it is meant to reach.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) client: Place,
    pub(crate) server: Place,
    /// Where the server listens.
    pub(crate) at: &'static str,
    /// What the client dials.
    pub(crate) to: &'static str,
    /// The client's ports, one for each connection; 0 lets the kernel choose.
    pub(crate) from: u16,
}

impl Pair {
    fn new([client, server]: [Place; 2], at: &'static str, to: &'static str) -> Self {
        Self { client, server, at, to, from: 0 }
    }
}

/// Pairs that talk at the same time, and what stands between them.
pub(crate) struct Network {
    pub(crate) pairs: Vec<Pair>,
    pub(crate) helpers: Vec<Actor>,
    /// They go with the network.
    pub(crate) volumes: Vec<Volume>,
}

impl Network {
    fn of(pair: Pair, volumes: impl Into<Vec<Volume>>) -> Self {
        Self { pairs: vec![pair], helpers: Vec::new(), volumes: volumes.into() }
    }
}

// ---- the pieces ----

/// Network namespaces with their loopback interfaces.
pub(crate) fn namespaces(names: &[&str]) {
    for name in names {
        sh(&format!("ip netns add {name} && ip -n {name} link set lo up"));
    }
}

fn ip(network: &str) -> String {
    if network == HOST { "ip".to_owned() } else { format!("ip -n {network}") }
}

/// Runs a script in that network.
pub(crate) fn within(network: &str, script: &str) {
    match network {
        HOST => sh(script),
        _ => sh(&format!("ip netns exec {network} sh -ec '{script}'")),
    }
}

/// A wire between two namespaces: namespace and address of either end.
pub(crate) fn wire(name: &str, ends: [(&str, &str); 2]) {
    sh(&format!("ip link add {name}a type veth peer name {name}b"));
    for (end, (network, address)) in ["a", "b"].into_iter().zip(ends) {
        sh(&format!(
            "ip link set {name}{end} netns {network} && ip -n {network} addr add {address} dev {name}{end} && \
             ip -n {network} link set {name}{end} up"
        ));
    }
}

/// A bridge with addresses, behind each of which is the way to everywhere else.
fn bridge(network: &str, name: &str, addresses: &[&str]) {
    let ip = ip(network);
    sh(&format!("{ip} link add {name} type bridge && {ip} link set {name} up"));
    for address in addresses {
        sh(&format!("{ip} addr add {address} dev {name} {}", at_once(address)));
    }
}

/// An address of IPv6 is otherwise looked for on the network for some seconds first.
fn at_once(address: &str) -> &'static str {
    if address.contains(':') { "nodad" } else { "" }
}

/// Connects a container to the bridge `name` of `network`, with addresses and gateways.
fn plug(container: &str, (network, name): (&str, &str), addresses: &[(&str, &str)]) {
    let host = ip(network);
    sh(&format!(
        "{host} link add v-{container} type veth peer name eth0 netns {container} && \
         {host} link set v-{container} master {name} up && ip -n {container} link set eth0 up"
    ));
    for (address, gateway) in addresses {
        let at_once = at_once(address);
        sh(&format!(
            "ip -n {container} addr add {address} dev eth0 {at_once} && \
             ip -n {container} route add default via {gateway}"
        ));
    }
}

/// Makes a namespace pass packets on.
fn forwards(network: &str) {
    within(
        network,
        "echo 1 > /proc/sys/net/ipv4/ip_forward && echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
    );
}

/// Rules of nftables for `hook`, of the kind that containers' services are made of.
fn nat(network: &str, family: &str, hook: &str, rule: &str) {
    let priority = if hook == "postrouting" { 100 } else { -100 };
    within(
        network,
        &format!(
            "nft \"add table {family} lab; add chain {family} lab {hook} {{ type nat hook {hook} priority {priority}; }}; \
             add rule {family} lab {hook} {rule}\""
        ),
    );
}

/// Both of them, with one volume.
fn sharing(volume: &Volume) -> [Place; 2] {
    [Place::with("client", volume), Place::with("server", volume)]
}

fn containers() {
    namespaces(&["client", "server"]);
}

/// Two containers on one bridge of the host.
fn bridged() {
    containers();
    bridge(HOST, "br0", &["10.1.0.1/24", "fd00:1::1/64"]);
    plug("client", (HOST, "br0"), &[("10.1.0.2/24", "10.1.0.1"), ("fd00:1::2/64", "fd00:1::1")]);
    plug("server", (HOST, "br0"), &[("10.1.0.3/24", "10.1.0.1"), ("fd00:1::3/64", "fd00:1::1")]);
}

/// Two containers on bridges of their own, with a third namespace that routes.
fn between() {
    between_named("client", "router", "server");
}

fn between_named(client: &str, router: &str, server: &str) {
    namespaces(&[client, router, server]);
    forwards(router);
    bridge(router, "br1", &["10.1.0.1/24", "fd00:1::1/64"]);
    bridge(router, "br2", &["10.2.0.1/24", "fd00:2::1/64"]);
    plug(client, (router, "br1"), &[("10.1.0.2/24", "10.1.0.1"), ("fd00:1::2/64", "fd00:1::1")]);
    plug(server, (router, "br2"), &[("10.2.0.2/24", "10.2.0.1"), ("fd00:2::2/64", "fd00:2::1")]);
}

/// A container on the host's bridge, and a client on another.
fn published() {
    containers();
    forwards(HOST);
    bridge(HOST, "docker0", &["172.17.0.1/16"]);
    bridge(HOST, "br1", &["10.1.0.1/24"]);
    plug("server", (HOST, "docker0"), &[("172.17.0.2/16", "172.17.0.1")]);
    plug("client", (HOST, "br1"), &[("10.1.0.2/24", "10.1.0.1")]);
}

// ---- the topologies ----

pub(crate) fn same_pod() -> Network {
    namespaces(&["pod"]);
    let volume = Volume::new();
    let ends = [Place::with("pod", &volume), Place::with("pod", &volume)];
    Network::of(Pair::new(ends, "127.0.0.1:8080", "127.0.0.1:8080"), [volume])
}

/// Containers that have a `/dev/shm` of their own each, and no volume.
pub(crate) fn same_pod_without_volume() -> Network {
    namespaces(&["pod"]);
    let ends = [Place::bare("pod"), Place::bare("pod")];
    Network::of(Pair::new(ends, "127.0.0.1:8080", "127.0.0.1:8080"), [])
}

pub(crate) fn one_wire() -> Network {
    containers();
    wire("w", [("client", "10.1.0.2/24"), ("server", "10.1.0.3/24")]);
    let volume = Volume::new();
    Network::of(Pair::new(sharing(&volume), "10.1.0.3:8080", "10.1.0.3:8080"), [volume])
}

pub(crate) fn one_bridge() -> Network {
    bridged();
    let volume = Volume::new();
    Network::of(Pair::new(sharing(&volume), "10.1.0.3:8080", "10.1.0.3:8080"), [volume])
}

pub(crate) fn one_bridge_ipv6() -> Network {
    bridged();
    let volume = Volume::new();
    Network::of(Pair::new(sharing(&volume), "[fd00:1::3]:8080", "[fd00:1::3]:8080"), [volume])
}

/// The server listens for both families, and the client comes by IPv4.
pub(crate) fn dual_stack() -> Network {
    bridged();
    let volume = Volume::new();
    Network::of(Pair::new(sharing(&volume), "[::]:8080", "10.1.0.3:8080"), [volume])
}

pub(crate) fn one_bridge_without_volume() -> Network {
    bridged();
    let ends = [Place::bare("client"), Place::bare("server")];
    Network::of(Pair::new(ends, "10.1.0.3:8080", "10.1.0.3:8080"), [])
}

/// Each container has a volume, and not the same.
pub(crate) fn one_bridge_two_volumes() -> Network {
    bridged();
    let volumes = [Volume::new(), Volume::new()];
    let ends = [Place::with("client", &volumes[0]), Place::with("server", &volumes[1])];
    Network::of(Pair::new(ends, "10.1.0.3:8080", "10.1.0.3:8080"), volumes)
}

pub(crate) fn routed() -> Network {
    between();
    let volume = Volume::new();
    Network::of(Pair::new(sharing(&volume), "10.2.0.2:8080", "10.2.0.2:8080"), [volume])
}

pub(crate) fn routed_ipv6() -> Network {
    between();
    let volume = Volume::new();
    Network::of(Pair::new(sharing(&volume), "[fd00:2::2]:8080", "[fd00:2::2]:8080"), [volume])
}

/// A Service's address, as kube-proxy makes one.
pub(crate) fn service() -> Network {
    between();
    nat("router", "ip", "prerouting", "ip daddr 10.96.0.10 tcp dport 80 dnat to 10.2.0.2:8080");
    let volume = Volume::new();
    Network::of(Pair::new(sharing(&volume), "0.0.0.0:8080", "10.96.0.10:80"), [volume])
}

/// The same, and the server listens at its own address only.
pub(crate) fn service_at_one_address() -> Network {
    let mut network = service();
    network.pairs[0].at = "10.2.0.2:8080";
    network
}

/// The same where the port is the same, too.
pub(crate) fn service_at_the_same_port() -> Network {
    between();
    nat("router", "ip", "prerouting", "ip daddr 10.96.0.10 tcp dport 8080 dnat to 10.2.0.2:8080");
    let volume = Volume::new();
    Network::of(Pair::new(sharing(&volume), "0.0.0.0:8080", "10.96.0.10:8080"), [volume])
}

pub(crate) fn service_ipv6() -> Network {
    between();
    nat("router", "ip6", "prerouting", "ip6 daddr fd00:96::10 tcp dport 80 dnat to [fd00:2::2]:8080");
    let volume = Volume::new();
    Network::of(Pair::new(sharing(&volume), "[::]:8080", "[fd00:96::10]:80"), [volume])
}

/// A Service whose server is in the client's own pod.
pub(crate) fn service_in_the_same_pod() -> Network {
    bridged();
    nat("server", "ip", "output", "ip daddr 10.96.0.10 tcp dport 80 dnat to 10.1.0.3:8080");
    let volume = Volume::new();
    let ends = [Place::with("server", &volume), Place::with("server", &volume)];
    Network::of(Pair::new(ends, "0.0.0.0:8080", "10.96.0.10:80"), [volume])
}

/// The server's own network leads one port to another.
pub(crate) fn redirected() -> Network {
    bridged();
    nat("server", "ip", "prerouting", "tcp dport 80 redirect to :8080");
    let volume = Volume::new();
    Network::of(Pair::new(sharing(&volume), "0.0.0.0:8080", "10.1.0.3:80"), [volume])
}

/// Who goes out is given the router's address.
pub(crate) fn source_nat() -> Network {
    between();
    nat("router", "ip", "postrouting", "oifname br2 masquerade");
    let volume = Volume::new();
    Network::of(Pair::new(sharing(&volume), "10.2.0.2:8080", "10.2.0.2:8080"), [volume])
}

const PUBLISHED: &str = "tcp dport 18080 fib daddr type local dnat to 172.17.0.2:8080";

/// A published port, as seen from another container.
pub(crate) fn published_by_nat() -> Network {
    published();
    nat(HOST, "ip", "prerouting", PUBLISHED);
    let volume = Volume::new();
    Network::of(Pair::new(sharing(&volume), "0.0.0.0:8080", "10.1.0.1:18080"), [volume])
}

/// A published port, as seen from the host.
pub(crate) fn published_to_the_host() -> Network {
    published();
    nat(HOST, "ip", "output", PUBLISHED);
    let volume = Volume::new();
    let ends = [Place::with(HOST, &volume), Place::with("server", &volume)];
    Network::of(Pair::new(ends, "0.0.0.0:8080", "10.1.0.1:18080"), [volume])
}

pub(crate) fn published_by_a_proxy() -> Network {
    published();
    let mut proxy = Actor::start(&["env"], "forward 0.0.0.0:18080 172.17.0.2:8080");
    proxy.hear();
    let volume = Volume::new();
    let mut network = Network::of(Pair::new(sharing(&volume), "0.0.0.0:8080", "10.1.0.1:18080"), [volume]);
    network.helpers.push(proxy);
    network
}

/// The proxy is another program, which has the server's port, too.
pub(crate) fn published_by_socat() -> Network {
    published();
    let socat = ["socat", "TCP-LISTEN:8080,fork,reuseaddr", "TCP:172.17.0.2:8080"];
    let proxy = Actor::program(&socat);
    within(
        "client",
        "for try in $(seq 100); do socat -u OPEN:/dev/null TCP:10.1.0.1:8080 && exit; sleep 0.05; done; exit 1",
    );
    let volume = Volume::new();
    let mut network = Network::of(Pair::new(sharing(&volume), "0.0.0.0:8080", "10.1.0.1:8080"), [volume]);
    network.helpers.push(proxy);
    network
}

pub(crate) fn host_to_container() -> Network {
    published();
    let volume = Volume::new();
    let ends = [Place::with(HOST, &volume), Place::with("server", &volume)];
    Network::of(Pair::new(ends, "172.17.0.2:8080", "172.17.0.2:8080"), [volume])
}

pub(crate) fn container_to_host() -> Network {
    published();
    let volume = Volume::new();
    let ends = [Place::with("client", &volume), Place::with(HOST, &volume)];
    Network::of(Pair::new(ends, "10.1.0.1:8080", "10.1.0.1:8080"), [volume])
}

/// Containers whose interfaces are of the kind `kind`, on one interface of the host's.
fn on_one_interface(kind: &str) -> Network {
    containers();
    sh("ip link add up0 type veth peer name up1 && ip link set up0 up && ip link set up1 up");
    for (container, address) in [("client", "10.1.0.2/24"), ("server", "10.1.0.3/24")] {
        sh(&format!(
            "ip link add link up0 name eth0 netns {container} type {kind} && ip -n {container} addr add {address} dev eth0 && \
             ip -n {container} link set eth0 up"
        ));
    }
    let volume = Volume::new();
    Network::of(Pair::new(sharing(&volume), "10.1.0.3:8080", "10.1.0.3:8080"), [volume])
}

pub(crate) fn macvlan() -> Network {
    on_one_interface("macvlan mode bridge")
}

pub(crate) fn ipvlan() -> Network {
    on_one_interface("ipvlan mode l2")
}

/// Two networks with the same addresses, whose connections have the same ports at the same time,
/// and all four ends share a volume.
pub(crate) fn overlapping() -> Network {
    let volume = Volume::new();
    let mut pairs = Vec::new();
    for [client, server] in [["client", "server"], ["client2", "server2"]] {
        namespaces(&[client, server]);
        wire(&format!("w-{client}-"), [(client, "172.30.0.2/24"), (server, "172.30.0.3/24")]);
        let ends = [Place::with(client, &volume), Place::with(server, &volume)];
        pairs.push(Pair { from: 41000, ..Pair::new(ends, "172.30.0.3:8080", "172.30.0.3:8080") });
    }
    Network { pairs, helpers: Vec::new(), volumes: vec![volume] }
}

/// The same behind a Service's address.
pub(crate) fn overlapping_services() -> Network {
    let mut network = overlapping();
    for pair in &mut network.pairs {
        nat(
            &pair.server.network,
            "ip",
            "prerouting",
            "ip daddr 10.96.0.10 tcp dport 80 dnat to 172.30.0.3:8080",
        );
        sh(&format!("ip -n {} route add 10.96.0.0/16 via 172.30.0.3", pair.client.network));
        pair.to = "10.96.0.10:80";
    }
    network
}

/// One network's server is this crate's, and the other network dials it by its Service: the same
/// tuple at the client, and at the server.
pub(crate) fn two_ways_to_the_same_addresses() -> Network {
    let mut network = overlapping_services();
    network.pairs[1].to = "172.30.0.3:8080";
    network
}

/// Two clusters with the same addresses and one volume: a server of this crate's and a plain one,
/// services of both, and a proxy.
pub(crate) fn overlapping_clusters() -> Network {
    let volume = Volume::new();
    let mut network = Network { pairs: Vec::new(), helpers: Vec::new(), volumes: Vec::new() };
    let clusters = [["client", "router", "server"], ["client2", "router2", "server2"]];
    for (number, [client, router, server]) in clusters.into_iter().enumerate() {
        between_named(client, router, server);
        let service = "ip daddr 10.96.0.10 tcp dport 80 dnat to 10.2.0.2:8080";
        nat(router, "ip", "prerouting", service);
        let plain = "ip daddr 10.96.0.11 tcp dport 80 dnat to 10.2.0.2:9090";
        within(router, &format!("nft \"add rule ip lab prerouting {plain}\""));
        let volumes = [Place::with(client, &volume), Place::with(server, &volume)];
        let helpers = [
            (&volumes[1], format!("plain-server 0.0.0.0:9090 {number}")),
            (&Place::bare(router), "forward 10.1.0.1:8080 10.2.0.2:8080".to_owned()),
        ];
        for (place, role) in helpers {
            let mut helper = Actor::start(&place.words(), &role);
            helper.hear();
            network.helpers.push(helper);
        }
        let to = "direct@10.2.0.2:8080 service@10.96.0.10:80 service@10.96.0.10:80 plain@10.96.0.11:80 \
                  proxy@10.1.0.1:8080";
        network.pairs.push(Pair::new(volumes, "0.0.0.0:8080", to));
    }
    network.volumes.push(volume);
    network
}

/// Rootless containers of one user, each with a user namespace of its own, in one network.
pub(crate) fn rootless_pod() -> Network {
    namespaces(&["pod"]);
    rootless_files();
    let ends = [Place::rootless("pod"), Place::rootless("pod")];
    Network::of(Pair::new(ends, "127.0.0.1:8080", "127.0.0.1:8080"), [])
}

/// The same on a bridge.
pub(crate) fn rootless_on_a_bridge() -> Network {
    bridged();
    rootless_files();
    let ends = [Place::rootless("client"), Place::rootless("server")];
    Network::of(Pair::new(ends, "10.1.0.3:8080", "10.1.0.3:8080"), [])
}

/// A user, and its own rootless container.
pub(crate) fn rootless_and_its_user() -> Network {
    bridged();
    rootless_files();
    let ends = [Place::of_user("client"), Place::rootless("server")];
    Network::of(Pair::new(ends, "10.1.0.3:8080", "10.1.0.3:8080"), [])
}

/// `one_bridge` with something changed about either end.
pub(crate) fn changed(client: impl FnOnce(Place) -> Place, server: impl FnOnce(Place) -> Place) -> Network {
    let mut network = one_bridge();
    let pair = &mut network.pairs[0];
    pair.client = client(pair.client.clone());
    pair.server = server(pair.server.clone());
    network
}
