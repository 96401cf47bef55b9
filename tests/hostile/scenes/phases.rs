//! An attacker that is stopped (SIGSTOP) in the middle of an upgrade, for as long as it likes, and
//! then goes on as if nothing had happened.

use std::time::Duration;

use super::stop;
use crate::peer::Peer;
use crate::target::Target;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connect,
    Hello,
    Offer,
    Match,
    Ready,
    Switch,
    Data,
}

fn stop_after(target: &Target, phase: Phase) {
    let mut peer = Peer::silent(target, 64);
    if phase == Phase::Connect {
        stop();
    }
    peer.open().expect("HELLO");
    if phase == Phase::Hello {
        stop();
    }
    peer.greet_back().expect("HELLO");
    if phase == Phase::Offer {
        let tcp = target.tcp();
        let id = peer.offer(&tcp);
        stop();
        peer.answer(id, Duration::from_secs(60)).expect("MATCH");
        return;
    }
    let mut conn = peer.upgrade_as(target.tcp(), 0, phase != Phase::Match).expect("MATCH");
    if phase == Phase::Match || phase == Phase::Ready {
        stop();
    }
    if phase != Phase::Match {
        conn.theirs.decide(1);
        if phase == Phase::Switch {
            stop();
        }
        peer.put(&mut conn, b"ehello");
        if phase == Phase::Data {
            stop();
        }
        peer.put(&mut conn, b"again");
    }
    peer.must_live("the link, after a while");
}

pub(crate) fn before_hello(target: &Target) {
    stop_after(target, Phase::Connect);
}

pub(crate) fn after_hello(target: &Target) {
    stop_after(target, Phase::Hello);
}

pub(crate) fn after_offer(target: &Target) {
    stop_after(target, Phase::Offer);
}

pub(crate) fn after_match(target: &Target) {
    stop_after(target, Phase::Match);
}

pub(crate) fn after_ready(target: &Target) {
    stop_after(target, Phase::Ready);
}

pub(crate) fn after_switch(target: &Target) {
    stop_after(target, Phase::Switch);
}

pub(crate) fn after_data(target: &Target) {
    stop_after(target, Phase::Data);
}
