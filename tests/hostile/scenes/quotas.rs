//! What one process holds of its victim, for as long as it likes.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};

use crate::peer::{Peer, control_page_file};
use crate::target::{PATIENCE, Target, subject_of};
use crate::victim::DESCRIPTORS;
use crate::wire::{self, Subject};

use super::descriptors_of;

/// What others have meanwhile: witnesses come and go.
const OTHERS: u64 = 16;
/// And those that all links may have together, while some of them are about to end.
const OF_LINKS: u64 = DESCRIPTORS * 3 / 8;
/// Of connections that have not said what they want.
const OF_GREETINGS: u64 = 256;

/// The victim has to get back what it had, while the attacker is still there.
#[track_caller]
fn must_let_go(peer: &mut Peer, before: u64, what: &str) {
    let started = Instant::now();
    loop {
        let held = descriptors_of(peer).saturating_sub(before);
        if held <= OTHERS {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{what}: the victim holds {held} descriptors");
        peer.pump();
        peer.inbox.clear();
        sleep(Duration::from_millis(50));
    }
}

/// More links than there are: a newcomer gets one all the same, which is the judge's to see.
pub(crate) fn links(target: &Target) {
    let peer = Peer::greeted(target, 1);
    let before = descriptors_of(&peer);
    let mut more = Vec::new();
    for _ in 0..400 {
        let mut one = Peer::silent(target, 1);
        // It may be refused.
        if one.open().is_ok() {
            let _ = one.greet_back();
        }
        more.push(one);
        let held = descriptors_of(&peer).saturating_sub(before);
        assert!(held <= OF_LINKS + OTHERS, "{} links hold {held} descriptors", more.len());
    }
    let alive = more.iter_mut().filter_map(|one| one.pump().then_some(())).count();
    assert!(alive > 10, "as long as nobody else wants them there are some: {alive}");
    // They stay until the judge has seen the newcomer.
    std::mem::forget((peer, more));
}

/// Each arena is a mapping, of which the kernel allows so many.
pub(crate) fn links_with_all_arenas(target: &Target) {
    const MOST: usize = 256;
    let mut peers = Vec::new();
    for link in 0..6 {
        let mut peer = Peer::greeted(target, 1);
        let before = descriptors_of(&peer);
        for _ in 1..MOST {
            let file = control_page_file(wire::arena_bytes(1));
            peer.send_with(&wire::arena(1), &[file.as_fd()]).expect("sent");
        }
        peer.must_live("as many arenas as a link may have");
        let held = descriptors_of(&peer).saturating_sub(before);
        assert!(held <= OTHERS, "the arenas hold {held} descriptors");
        if link % 2 == 0 {
            let file = control_page_file(wire::arena_bytes(1));
            peer.send_with(&wire::arena(1), &[file.as_fd()]).expect("sent");
            peer.must_end("one arena more");
        }
        peers.push(peer);
    }
    std::mem::forget(peers);
}

/// Connections to the control socket that say nothing.
pub(crate) fn greetings(target: &Target) {
    let peer = Peer::greeted(target, 1);
    let before = descriptors_of(&peer);
    let mut kept = Vec::new();
    for _ in 0..1000 {
        kept.push(target.knock());
        let held = descriptors_of(&peer).saturating_sub(before);
        assert!(held <= OF_GREETINGS + OTHERS, "{} connections hold {held} descriptors", kept.len());
    }
    std::mem::forget((peer, kept));
}

/// Questions about connections that nobody ever accepts.
pub(crate) fn queries(target: &Target) {
    let mut peer = Peer::greeted(target, 1);
    let before = descriptors_of(&peer);
    let real = subject_of(&target.tcp());
    let mut kept = Vec::new();
    for port in 1..=800 {
        let local = SocketAddr::new(real.local.ip(), port);
        let socket = target.knock();
        let _ = send(&socket, &wire::query(&Subject { local, ..real }).0, SendFlags::NOSIGNAL);
        kept.push(socket);
        let held = descriptors_of(&peer).saturating_sub(before);
        // Whoever has asked is a greeting first.
        assert!(held <= DESCRIPTORS / 16 + OF_GREETINGS + OTHERS, "{} questions: {held}", kept.len());
    }
    must_let_go(&mut peer, before, "800 questions");
    std::mem::forget((peer, kept));
}

/// Switched both ways, and then only the TCP socket is closed: no flag says so in the ring.
pub(crate) fn closed_without_a_flag(target: &Target) {
    let mut peer = Peer::greeted(target, 512);
    let before = descriptors_of(&peer);
    for _ in 0..200 {
        drop(peer.talking());
        peer.inbox.clear();
    }
    must_let_go(&mut peer, before, "200 connections that were closed");
    std::mem::forget(peer);
}

/// Policy Handshake: GO, and then not a byte of it on TCP. The victim's application lets go at
/// once, and the socket waits for the rest.
pub(crate) fn silent_after_go(target: &Target) {
    let mut peer = Peer::greeted(target, 512);
    let before = descriptors_of(&peer);
    let (mut kept, mut went) = (Vec::new(), 0);
    for _ in 0..200 {
        let Ok(conn) = peer.upgrade_as(target.tcp(), 1, false) else { continue };
        if conn.theirs.load(wire::HANDSHAKE) as u32 == 1 {
            conn.theirs.store32(wire::HANDSHAKE, 2);
            went += 1;
        }
        kept.push(conn);
    }
    assert!(went > 0, "the victim holds some of them for CLC");
    must_let_go(&mut peer, before, "200 streams that wait for CLC");
    std::mem::forget((peer, kept));
}
