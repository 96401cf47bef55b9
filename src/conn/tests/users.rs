//! Peers of another user that do not trust ours: they hang up instead of greeting, at any moment.

use std::io::Write;
use std::os::fd::AsFd;

use super::disguise::{Disguise, STRANGER, share};
use super::hosts::{CLIENT, Host, Lab, SERVER, patiently};
use super::proofs::{goes_on, turn};
use super::watched;
use crate::config::{Config, UpgradePolicy};
use crate::ism::sys;
use crate::link::Link;
use crate::link::message::{Bell, Destination, Message};
use crate::link::stream::Death;
use crate::peer::PeerPolicy;
use crate::sync::Arc;
use crate::transport::{FallbackReason, Transport};

/// Lets the server hang up without a word on all that have connected to it.
fn hang_up(lab: &mut Lab) {
    let listener = lab.hosts[SERVER].listener();
    while let Some(socket) = sys::accept(listener).expect("accept") {
        drop(socket);
    }
}

/// What the task of a link does when the peer has hung up.
fn notice(link: &Arc<Link>) {
    let mut buffer = [0; crate::link::message::LONGEST];
    patiently("the end of the link", || match link.receive(&mut buffer, 1, || false) {
        Ok(_) => false,
        Err(death) => {
            link.bury(death);
            true
        }
    });
    assert_eq!(link.death(), Some(Death::Peer));
}

/// Plays one order of the offer and the end of its link; what the stream then says.
fn hears_of_the_policy(name: &str, play: impl FnOnce(&mut Lab, &dyn Fn(&Arc<Link>))) {
    let mut lab = Lab::new();
    let pair = lab.connect(UpgradePolicy::Manual, 64 << 10);
    assert!(pair.conns[CLIENT].begin_upgrade());
    play(&mut lab, &|link| link.offer(pair.conns[CLIENT].clone(), Destination::Own, None));
    assert_eq!(pair.conns[CLIENT].transport(), Transport::Tcp(FallbackReason::PeerPolicy), "{name}");
    assert!(lab.hosts[CLIENT].endpoint.links().is_empty(), "{name}: a link is left");
}

#[test]
fn a_peer_that_hangs_up_on_another_user_is_named_as_such_however_early_it_does() {
    if sys::effective_uid() != 0 {
        // CI is root.
        let _ = writeln!(std::io::stderr(), "not root: what other users hear is not tested");
        return;
    }
    watched(|| {
        let ends = |lab: &Lab| {
            let server = lab.hosts[SERVER].endpoint.id();
            (lab.hosts[CLIENT].endpoint.clone(), server)
        };
        hears_of_the_policy("after the offer", |lab, offer| {
            let (client, server) = ends(lab);
            let link = client.link_to(server).expect("a link");
            offer(&link);
            hang_up(lab);
            let _stranger = Disguise::on();
            notice(&link);
        });
        hears_of_the_policy("between the link and the offer", |lab, offer| {
            let (client, server) = ends(lab);
            let link = client.link_to(server).expect("a link");
            hang_up(lab);
            let _stranger = Disguise::on();
            notice(&link);
            offer(&link);
        });
        hears_of_the_policy("before our LINK", |lab, offer| {
            let (client, server) = ends(lab);
            let socket = client.connect(server).expect("a connection");
            hang_up(lab);
            let _stranger = Disguise::on();
            // As `link_to` goes on after its connect.
            let link = client.accept_link(lab.hosts[CLIENT].watched(socket)).expect("a link");
            offer(&link);
            notice(&link);
        });
    });
}

#[test]
fn the_own_user_is_told_that_only_root_is_admitted() {
    if sys::effective_uid() != 0 {
        // CI is root.
        let _ = writeln!(std::io::stderr(), "not root: what other users hear is not tested");
        return;
    }
    watched(|| {
        for policy in [PeerPolicy::Root, PeerPolicy::SameUser] {
            let _stranger = Disguise::on();
            let mut lab = Lab::whose_server_admits(&policy);
            let pair = lab.pair_that_admits(&policy);
            assert!(pair.offer(&lab));
            lab.run();
            let told = [CLIENT, SERVER].map(|side| pair.conns[side].transport().fallback_reason());
            if policy == PeerPolicy::Root {
                let refusal = FallbackReason::Declined(FallbackReason::PeerPolicy.diagnosis());
                assert_eq!(told, [Some(refusal), Some(FallbackReason::PeerPolicy)]);
                assert_eq!(lab.hosts[SERVER].links().len(), 1, "the link is there for the next one");
            } else {
                pair.settle();
                assert!(pair.conns.iter().all(|conn| conn.transport().is_loopback_ism()), "{told:?}");
            }
        }
    });
}

#[test]
fn what_a_user_says_who_is_not_admitted_counts_for_nothing() {
    if sys::effective_uid() != 0 {
        let _ = writeln!(std::io::stderr(), "not root: what other users say is not tested");
        return;
    }
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        share(lab.dir.path());
        let port = pair.tcp(SERVER).tcp.local_addr().expect("an address").port();
        let (liar, _entry) = {
            let _stranger = Disguise::on();
            let liar = Host::new(&Config::new().device_dir(lab.dir.path()));
            let entry = liar.endpoint.publish(port, &PeerPolicy::SameUser).expect("publish");
            (liar, entry)
        };
        assert!(pair.offer(&lab));
        // All are asked before anybody has had a turn to answer.
        while lab.hosts[CLIENT].step() {}
        while let Some(asked) = sys::accept(liar.listener()).expect("accept") {
            let _ = sys::send(asked.as_fd(), &Message::Answer.encode(), &[]);
            let question = sys::recv(asked.as_fd(), &mut [0; 128], 0);
            assert_eq!(question.expect("the end").len, 0, "not even asked");
        }
        lab.run();
        pair.settle();
        assert!(pair.conns[CLIENT].transport().is_loopback_ism(), "{}", pair.conns[CLIENT].transport());
    });
}

/// What both ends of a connection between root and a stranger say, whose client has written.
fn meet(policies: [&PeerPolicy; 2]) -> [Transport; 2] {
    let mut lab = Lab::of_two_users(policies);
    let pair = lab.pair_of_two_users(policies);
    turn(&pair);
    assert!(pair.offer(&lab));
    lab.run_as_two();
    pair.settle();
    // Whatever they run on.
    turn(&pair);
    let said = [CLIENT, SERVER].map(|side| pair.conns[side].transport());
    if !said[CLIENT].is_loopback_ism() {
        goes_on(&pair);
    }
    said
}

#[test]
fn two_users_who_admit_each_other_are_upgraded_and_no_others() {
    if sys::effective_uid() != 0 {
        let _ = writeln!(std::io::stderr(), "not root: connections of two users are not tested");
        return;
    }
    let users = |users: &[u32]| PeerPolicy::Users(users.into());
    watched(move || {
        let (any, same, group) = (PeerPolicy::AnyUser, PeerPolicy::SameUser, PeerPolicy::Group(0));
        // The stranger here has root's group.
        for [ours, theirs] in [
            [&any, &any],
            [&any, &same],
            [&any, &PeerPolicy::Root],
            [&users(&[7, STRANGER]), &users(&[0])],
            [&group, &group],
            [&group, &users(&[STRANGER, 0])],
        ] {
            let said = meet([ours, theirs]);
            assert!(said.iter().all(Transport::is_loopback_ism), "{ours:?} {theirs:?}: {said:?}");
        }
        let refused = Transport::Tcp(FallbackReason::PeerPolicy);
        for [ours, theirs] in [
            [&same, &any],
            [&PeerPolicy::Root, &any],
            [&users(&[0, 7]), &any],
            [&PeerPolicy::Group(7), &any],
            [&any, &users(&[STRANGER])],
            [&any, &PeerPolicy::Group(7)],
        ] {
            let [client, server] = meet([ours, theirs]);
            assert_eq!(client, refused, "{ours:?} {theirs:?}");
            assert_eq!(server, Transport::Tcp(FallbackReason::NotYet), "{ours:?} {theirs:?}");
        }
    });
}

#[test]
fn a_policy_of_one_stream_is_none_of_another_one() {
    if sys::effective_uid() != 0 {
        return;
    }
    watched(|| {
        // The endpoints admit each other, for the sake of others of their streams.
        let (any, same) = (PeerPolicy::AnyUser, PeerPolicy::SameUser);
        let users = PeerPolicy::Users([STRANGER].into());
        let mut lab = Lab::of_two_users([&any, &any]);
        for [ours, theirs] in [[&same, &any], [&any, &users]] {
            let pair = lab.pair_of_two_users([ours, theirs]);
            turn(&pair);
            assert!(pair.offer(&lab));
            lab.run_as_two();
            let told = pair.conns[CLIENT].transport().fallback_reason();
            let refusal = FallbackReason::Declined(FallbackReason::PeerPolicy.diagnosis());
            assert_eq!(told, Some(if *ours == same { FallbackReason::PeerPolicy } else { refusal }));
            goes_on(&pair);
        }
    });
}

#[test]
fn before_the_first_write_another_user_proves_nothing_and_waits_for_it() {
    if sys::effective_uid() != 0 {
        return;
    }
    watched(|| {
        let any = PeerPolicy::AnyUser;
        let mut lab = Lab::of_two_users([&any, &any]);
        let pair = lab.pair_of_two_users([&any, &any]);
        assert!(pair.offer(&lab));
        lab.run_as_two();
        let waits = Transport::Tcp(FallbackReason::NextWrite);
        assert_eq!(pair.conns[CLIENT].transport(), waits);
        let mut key = crate::conn::watch::WatchKey::default();
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(pair.conns[CLIENT].poll_upgraded(&mut cx, &mut key).is_ready(), "upgrade() says so");
        assert_eq!(pair.conns[SERVER].transport(), Transport::Tcp(FallbackReason::NotYet), "not even asked");
        pair.write(CLIENT, b"first");
        lab.run_as_two();
        pair.expect(SERVER, b"first");
        pair.settle();
        turn(&pair);
        assert!(
            pair.conns.iter().all(|conn| conn.transport().is_loopback_ism()),
            "{:?}",
            pair.conns[CLIENT].transport()
        );
    });
}

#[test]
fn an_offer_of_another_user_with_a_cookie_alone_is_refused() {
    if sys::effective_uid() != 0 {
        return;
    }
    watched(|| {
        let any = PeerPolicy::AnyUser;
        let mut lab = Lab::of_two_users([&any, &any]);
        let pair = lab.pair_of_two_users([&any, &any]);
        let server = lab.hosts[SERVER].endpoint.id();
        let _link = lab.hosts[CLIENT].endpoint.link_to(server).expect("a link");
        lab.run_as_two();
        {
            // It takes itself for a process of the server's user, which the kernel denies.
            let _stranger = Disguise::on();
            assert!(pair.offer(&lab));
            while lab.hosts[CLIENT].step() {}
        }
        lab.run_as_two();
        let told = [CLIENT, SERVER].map(|side| pair.conns[side].transport().fallback_reason());
        let unproved = FallbackReason::Unproved;
        assert_eq!(told, [Some(FallbackReason::Declined(unproved.diagnosis())), Some(unproved)]);
        goes_on(&pair);
    });
}

#[test]
fn other_users_are_rung_by_messages() {
    if sys::effective_uid() != 0 {
        return;
    }
    watched(|| {
        let any = PeerPolicy::AnyUser;
        let mut lab = Lab::of_two_users([&any, &any]);
        let server = lab.hosts[SERVER].endpoint.id();
        let socket = lab.hosts[CLIENT].endpoint.connect(server).expect("a connection");
        sys::allow_rights(socket.as_fd());
        sys::send(socket.as_fd(), &Message::Link.encode(), &[]).expect("sent");
        lab.run_as_two();
        let mut buffer = [0; 128];
        let greeting = sys::recv(socket.as_fd(), &mut buffer, 2).expect("HELLO");
        let hello = Message::decode(&buffer[..greeting.len]);
        assert!(matches!(hello, Ok(Message::Hello { bell: Bell::Socket, .. })), "{hello:?}");
        assert_eq!(greeting.carried.fds.len(), 1, "an arena, and no eventfd");
        // And the other way round, of root to a user.
        let link = lab.hosts[CLIENT].endpoint.link_to(server).expect("a link").clone();
        assert!(link.is_rung_by_messages());
    });
}

#[test]
fn an_endpoint_with_too_many_waiting_is_not_called_broken() {
    watched(|| {
        let lab = Lab::new();
        let pair = lab.pair();
        let endpoint = &lab.hosts[CLIENT].endpoint;
        let mut waiting = Vec::new();
        let full = loop {
            match endpoint.connect(lab.hosts[SERVER].endpoint.id()) {
                Ok(socket) => waiting.push(socket),
                Err(reason) => break reason,
            }
        };
        assert_eq!(full, FallbackReason::Limit, "after {}", waiting.len());
        assert!(pair.offer(&lab));
        assert_eq!(pair.conns[CLIENT].transport(), Transport::Tcp(FallbackReason::Limit));
        assert!(endpoint.links().is_empty());
    });
}
