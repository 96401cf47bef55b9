//! Peers of another user that do not trust ours: they hang up instead of greeting, at any moment.

use std::io::Write;
use std::os::fd::AsFd;

use super::hosts::{CLIENT, Host, Lab, SERVER, patiently};
use super::watched;
use crate::config::{Config, UpgradePolicy};
use crate::ism::sys;
use crate::link::Link;
use crate::link::message::{Destination, Message};
use crate::link::stream::Death;
use crate::peer::PeerPolicy;
use crate::sync::Arc;
use crate::transport::{FallbackReason, Transport};

/// A user that is nobody's.
const STRANGER: u32 = 64001;

/// As long as it lives this thread, and no other, belongs to another user than its peer.
pub(super) struct Disguise;

impl Disguise {
    pub(super) fn on() -> Self {
        Disguise::wear(STRANGER);
        Disguise
    }

    fn wear(user: u32) {
        let [keep, wear] = [0, user].map(rustix::process::Uid::from_raw);
        rustix::thread::set_thread_res_uid(keep, wear, keep).expect("another user id");
    }
}

impl Drop for Disguise {
    fn drop(&mut self) {
        Disguise::wear(0);
    }
}

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
    patiently("the end of the link", || match link.receive(&mut buffer, 1) {
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

/// Opens a directory to other users, as a shared one is.
fn share(dir: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o1777)).expect("chmod");
    for entry in std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            share(&entry);
        }
    }
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
