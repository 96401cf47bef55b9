//! Other mount, pid and user namespaces, other users; and the hazards of addresses that repeat.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use crate::actor::Actor;
use crate::inside::isolated;
use crate::networks::{namespaces, wire};
use crate::talk::Report;

/// What a client says whose connection leads to nobody of its device.
const NOBODY: &[&str] = &["on another host, or behind a proxy"];
/// What a server says of a stream that nobody could prove to hold the other end of. An eager client
/// that it has refused for the namespace had not written yet, and neither had the proxy.
const UNTOUCHED: &[&str] =
    &["no upgrade was asked for yet", "could not be proved", "in another network namespace"];

pub(crate) fn start(before: &[&str], role: &str, device: &Path) -> Actor {
    let device = format!("SMC_LO_DIR={}", device.display());
    let words: Vec<&str> = before.iter().copied().chain(["env", &device]).collect();
    Actor::start(&words, role)
}

fn go(mut client: Actor) -> Report {
    assert_eq!(client.hear(), "connected");
    client.say("go");
    Report::heard(&client.hear())
}

/// A client and a server that are both done; what they ran on.
pub(crate) fn play(server_before: &[&str], client_before: &[&str], at: &str, device: &Path) -> [Report; 2] {
    let mut server = start(server_before, &format!("server {at} 0"), device);
    let address = server.hear();
    let client = start(client_before, &format!("client 0 {address} 0 eager"), device);
    [go(client), Report::heard(&server.hear())]
}

/// A directory that all users may use, as of a shared volume.
pub(crate) fn shared() -> TempDir {
    let shared = tempfile::tempdir().expect("a device directory");
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o1777)).expect("chmod");
    shared
}

#[test]
fn hazard_h5_a_proxy_that_keeps_the_source_is_never_bypassed() {
    isolated("walls::hazard_h5_a_proxy_that_keeps_the_source_is_never_bypassed", || {
        let lab = tempfile::tempdir().expect("a device directory");
        namespaces(&["near", "front", "back", "far"]);
        // The proxy has the server's address on one side and the client's on the other.
        wire("n", [("near", "10.77.1.2/16"), ("front", "10.77.2.2/16")]);
        wire("f", [("back", "10.77.1.2/16"), ("far", "10.77.2.2/16")]);
        let relay = tempfile::tempdir().expect("a temp dir");
        let relay = relay.path().join("relay");
        let relay = relay.to_str().expect("UTF-8");
        let mut server = start(&["ip", "netns", "exec", "far"], "server 10.77.2.2:8080 0", lab.path());
        server.hear();
        let role = format!("back 10.77.1.2 10.77.2.2:8080 {relay}");
        let mut back = start(&["ip", "netns", "exec", "back"], &role, lab.path());
        back.hear();
        let role = format!("front 10.77.2.2:8080 {relay}");
        let mut front = start(&["ip", "netns", "exec", "front"], &role, lab.path());
        front.hear();
        for policy in ["first-turn", "eager"] {
            let role = format!("client 0 10.77.2.2:8080 0 {policy}");
            let client = start(&["ip", "netns", "exec", "near"], &role, lab.path());
            go(client).stayed_on_tcp(NOBODY);
            Report::heard(&server.hear()).stayed_on_tcp(UNTOUCHED);
        }
    });
}

#[test]
fn hazard_h6_addresses_that_exist_twice_never_meet() {
    isolated("walls::hazard_h6_addresses_that_exist_twice_never_meet", || {
        let lab = tempfile::tempdir().expect("a device directory");
        // Two networks with the same addresses; in the first one the server does not know this
        // crate.
        for network in ["1", "2"] {
            let (client, server) = (format!("c{network}"), format!("s{network}"));
            namespaces(&[&client, &server]);
            wire(&format!("w{network}"), [(&client, "172.30.0.2/24"), (&server, "172.30.0.3/24")]);
        }
        let mut foreign = start(&["ip", "netns", "exec", "s1"], "plain-server 172.30.0.3:8080 1", lab.path());
        foreign.hear();
        let mut server = start(&["ip", "netns", "exec", "s2"], "server 172.30.0.3:8080 2", lab.path());
        server.hear();
        // One port only: both connections get the same addresses at both ends.
        let clients = ["2", "1"].map(|network| {
            let role = format!("client 41000 172.30.0.3:8080 {network} eager");
            let mut client = start(&["ip", "netns", "exec", &format!("c{network}")], &role, lab.path());
            assert_eq!(client.hear(), "connected");
            client
        });
        let reports = clients.map(|mut client| {
            client.say("go");
            client
        });
        let [own, stranger] = reports.map(|mut client| Report::heard(&client.hear()));
        own.upgraded();
        stranger.stayed_on_tcp(NOBODY);
    });
}

#[test]
fn other_mount_and_pid_namespaces_are_upgraded() {
    isolated("walls::other_mount_and_pid_namespaces_are_upgraded", || {
        let lab = tempfile::tempdir().expect("a device directory");
        let walls: [&[&str]; 4] = [
            &["unshare", "--mount", "--fork", "--kill-child"],
            &["unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"],
            &["unshare", "--ipc", "--uts", "--fork", "--kill-child"],
            &["env"],
        ];
        for (server, client) in
            walls.iter().flat_map(|server| walls.iter().map(move |client| (server, client)))
        {
            for said in play(server, client, "127.0.0.1:0", lab.path()) {
                assert!(said.on_the_ring(), "{server:?} and {client:?}: {said:?}");
            }
        }
    });
}

/// Users that are nobody's.
fn user(id: &str) -> [String; 4] {
    ["setpriv".to_owned(), format!("--reuid={id}"), format!("--regid={id}"), "--clear-groups".to_owned()]
}

#[test]
fn other_users_stay_on_tcp_and_say_why() {
    isolated("walls::other_users_stay_on_tcp_and_say_why", || {
        let shared = shared();
        let users = [user("64001"), user("64002")];
        let [one, other] = users.each_ref().map(|words| words.each_ref().map(String::as_str));
        let root: &[&str] = &["env"];
        for (server, client) in [(root, &one[..]), (&one[..], root), (&one[..], &other[..])] {
            let [client_said, server_said] = play(server, client, "127.0.0.1:0", shared.path());
            let words = &["the peer policy does not admit", "the peer declined", "no upgrade was asked for"];
            server_said.stayed_on_tcp(words);
            client_said.stayed_on_tcp(&words[..2]);
        }
        // Two servers on that port, which are both asked for the stream.
        let mut server = start(root, "server 127.0.0.1:0 0", shared.path());
        let address = server.hear();
        let second = address.replace("127.0.0.1", "127.0.0.2");
        let mut second = start(root, &format!("server {second} 0"), shared.path());
        second.hear();
        let client = start(&one, &format!("client 0 {address} 0 eager"), shared.path());
        go(client).stayed_on_tcp(&["the peer policy does not admit"]);
        // A user is at home with itself.
        for said in play(&one, &one, "127.0.0.1:0", shared.path()) {
            said.upgraded();
        }
        // A directory of root's alone is none for others.
        let private = tempfile::tempdir().expect("a device directory");
        let [client_said, _] = play(root, &one, "127.0.0.1:0", private.path());
        client_said.stayed_on_tcp(&["the device directory can not be used"]);
    });
}

#[test]
fn hazard_m2_users_without_a_name_are_never_the_same() {
    isolated("walls::hazard_m2_users_without_a_name_are_never_the_same", || {
        let shared = shared();
        let nobody = user("65534");
        let nobody = nobody.each_ref().map(String::as_str);
        // In a user namespace without a map everybody looks like the overflow user.
        let unmapped: &[&str] = &["unshare", "--user", "--fork", "--kill-child"];
        for (server, client) in [(&nobody[..], unmapped), (unmapped, &nobody[..]), (&nobody[..], &nobody[..])]
        {
            for said in play(server, client, "127.0.0.1:0", shared.path()) {
                assert!(!said.on_the_ring(), "{server:?} and {client:?}: {said:?}");
            }
        }
    });
}
