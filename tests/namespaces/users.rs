//! Users who admit each other, and those who do not.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use tokio_smc::{Config, SmcStream, UpgradePolicy};

use crate::actor::tell;
use crate::inside::{isolated, sh};
use crate::networks::{namespaces, wire};
use crate::walls::{play, shared, start};

/// Tells why it gets no stream without an upgrade.
pub(crate) async fn client_that_requires(to: SocketAddr) {
    let config = Config::from_env().upgrade_policy(UpgradePolicy::Require);
    match SmcStream::connect_with(to, &config).await {
        Ok(stream) => tell(&stream.transport().to_string()),
        Err(error) => tell(&format!("error: {error}")),
    }
}

/// A process of that user, with that group and others, which admits those peers.
fn of(user: &str, groups: &str, peers: &str) -> Vec<String> {
    let (group, others) = groups.split_once('+').unwrap_or((groups, ""));
    let others = if others.is_empty() { "--clear-groups".to_owned() } else { format!("--groups={others}") };
    let words = ["setpriv", &format!("--reuid={user}"), &format!("--regid={group}"), &others, "env"];
    words.into_iter().map(str::to_owned).chain([format!("SMC_LO_PEERS={peers}")]).collect()
}

fn words(of: &[String]) -> Vec<&str> {
    of.iter().map(String::as_str).collect()
}

/// Server and client: user, groups, whom it admits.
type Meeting = [(&'static str, &'static str, &'static str); 2];

const FRIENDS: [Meeting; 8] = [
    [("64001", "64001", "any"), ("64002", "64002", "any")],
    [("64001", "64001", "uid:64002"), ("64002", "64002", "uid:64001")],
    [("64001", "64001", "uid:64001,64002"), ("64002", "64002", "uid:64001,64002")],
    [("64001", "64100", "gid:64100"), ("64002", "64002+64009,64100", "gid:64100")],
    [("64001", "64001+64100", "gid:64100"), ("64002", "64100", "any")],
    [("0", "0", "any"), ("64002", "64002", "same")],
    [("0", "0", "uid:64002"), ("64002", "64002", "root")],
    [("64001", "64001", "root"), ("0", "0", "gid:64001")],
];

/// One end alone does not make it, and nobody knows who nobody is.
const STRANGERS: [Meeting; 10] = [
    [("64001", "64001", "any"), ("64002", "64002", "same")],
    [("64001", "64001", "same"), ("64002", "64002", "any")],
    [("64001", "64001", "uid:64003"), ("64002", "64002", "any")],
    [("64001", "64001", "any"), ("64002", "64002", "uid:64002,64003")],
    [("64001", "64100", "gid:64100"), ("64002", "64002+64009", "gid:64100")],
    [("0", "0", "same"), ("64002", "64002", "any")],
    [("65534", "64001", "any"), ("64002", "64002", "any")],
    [("64001", "64001", "any"), ("65534", "64002", "any")],
    [("64001", "64001", "uid:64002"), ("64001", "64001", "uid:64002")],
    // A word that is not understood counts as none.
    [("64001", "64001", "everybody"), ("64002", "64002", "any")],
];

#[test]
fn users_are_upgraded_with_those_who_admit_them_and_whom_they_admit() {
    isolated("users::users_are_upgraded_with_those_who_admit_them_and_whom_they_admit", || {
        let shared = shared();
        for meeting in FRIENDS {
            let [one, other] = meeting.map(|(user, groups, peers)| of(user, groups, peers));
            for said in play(&words(&one), &words(&other), "127.0.0.1:0", shared.path()) {
                assert!(said.on_the_ring(), "{meeting:?}: {said:?}");
            }
        }
        for meeting in STRANGERS {
            let [one, other] = meeting.map(|(user, groups, peers)| of(user, groups, peers));
            let [client, server] = play(&words(&one), &words(&other), "127.0.0.1:0", shared.path());
            let reasons = [
                "the peer policy does not admit",
                "the peer declined",
                // A user without a name has no room that could be trusted.
                "the device directory can not be used",
                "the peer does not speak SMC on this host",
                "no upgrade was asked for",
            ];
            server.stayed_on_tcp(&reasons);
            let named = !meeting.iter().any(|(user, ..)| *user == "65534");
            client.stayed_on_tcp(if named { &reasons[..2] } else { &reasons[..4] });
        }
        // The number that proves it is seen in the first write: who wants it before says so.
        let [one, other] = [of("64001", "64001", "any"), of("64002", "64002", "any")];
        let mut server = start(&words(&one), "server 127.0.0.1:0 0", shared.path());
        let role = format!("client-that-requires {}", server.hear());
        let said = start(&words(&other), &role, shared.path()).hear();
        assert!(said.starts_with("error: ") && said.contains("the next write goes on"), "{said}");
    });
}

/// Two containers of two users: both walls at once.
#[test]
fn users_in_networks_of_their_own_are_upgraded() {
    isolated("users::users_in_networks_of_their_own_are_upgraded", || {
        let shared = shared();
        namespaces(&["left", "right"]);
        wire("w", [("left", "10.77.1.1/24"), ("right", "10.77.1.2/24")]);
        for [server, client] in [FRIENDS[0], FRIENDS[1], FRIENDS[3], FRIENDS[5]] {
            let [server, client] =
                [("right", server), ("left", client)].map(|(at, (user, groups, peers))| {
                    let inside = ["ip", "netns", "exec", at].map(str::to_owned);
                    Vec::from_iter(inside.into_iter().chain(of(user, groups, peers)))
                });
            for said in play(&words(&server), &words(&client), "10.77.1.2:0", shared.path()) {
                assert!(said.on_the_ring(), "{server:?} and {client:?}: {said:?}");
            }
        }
    });
}

#[test]
fn a_group_meets_in_a_directory_of_its_own() {
    isolated("users::a_group_meets_in_a_directory_of_its_own", || {
        let shared = tempfile::tempdir().expect("a device directory");
        std::os::unix::fs::chown(shared.path(), Some(0), Some(64100)).expect("chown");
        fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o3770)).expect("chmod");
        let one = of("64001", "64001+64100", "gid:64100");
        let other = of("64002", "64100", "gid:64100");
        for said in play(&words(&one), &words(&other), "127.0.0.1:0", shared.path()) {
            assert!(said.on_the_ring(), "{said:?}");
        }
        let outside = of("64003", "64003", "any");
        let [client, _] = play(&words(&one), &words(&outside), "127.0.0.1:0", shared.path());
        client.stayed_on_tcp(&["the device directory can not be used"]);
    });
}

#[test]
fn a_room_that_is_mounted_is_not_visited() {
    isolated("users::a_room_that_is_mounted_is_not_visited", || {
        let shared = shared();
        let room = shared.path().join("u64001");
        fs::create_dir(&room).expect("a room");
        sh(&format!("mount -t tmpfs -o mode=755,uid=64001,gid=64001 none {}", room.display()));
        let [one, other] = [of("64001", "64001", "any"), of("64002", "64002", "any")];
        let [client, _] = play(&words(&one), &words(&other), "127.0.0.1:0", shared.path());
        client.stayed_on_tcp(&["the peer does not speak SMC on this host"]);
        // Its owner is at home there.
        for said in play(&words(&one), &words(&one), "127.0.0.1:0", shared.path()) {
            assert!(said.on_the_ring(), "{said:?}");
        }
    });
}
