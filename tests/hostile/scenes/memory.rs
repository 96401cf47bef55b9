//! What a peer would have the victim map, allocate and pay for.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::peer::{Peer, control_page_file, fresh_token, memory_file, unpaid_file};
use crate::target::{PATIENCE, Target};
use crate::wire::{self, Place, Said};

use super::victim_of;

const MIB: u64 = 1 << 20;

/// A line of the victim's /proc/<pid>/status, in bytes.
fn status(peer: &Peer, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", victim_of(peer))).expect("procfs");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
    let kib = line.trim_start_matches(':').trim().trim_end_matches("kB").trim();
    kib.parse::<u64>().expect("a number") << 10
}

/// Two connections whose bytes would go to one place: two producers of the victim's, in one ring.
pub(crate) fn one_slot_twice(target: &Target) {
    let mut peer = Peer::greeted(target, 64);
    let mut conns = Vec::new();
    for _ in 0..2 {
        let tcp = target.tcp();
        let id = peer.offer(&tcp);
        let (_, _, clc) = peer.answer(id, PATIENCE).expect("MATCH");
        let (_, first_contact) = wire::accepted(&clc);
        let clc = wire::confirm(peer.gid, fresh_token(), first_contact);
        let place = Place { arena: 0, slot: 7, window: 4096 };
        peer.send(&wire::ready(id, place, None, &clc)).expect("sent");
        conns.push(tcp);
    }
    peer.must_end("one slot for two");
}

/// What the victim lends comes back: it would write where it reads. Neither may a file that is
/// known already come again.
pub(crate) fn own_arena_back(target: &Target) {
    for own in [true, false] {
        let mut peer = Peer::greeted(target, 64);
        let (slots, file) = if own { (peer.theirs[0].1, &peer.theirs[0].2) } else { (64, &peer.file) };
        peer.send_with(&wire::arena(slots), &[file.as_fd()]).expect("sent");
        peer.must_end("an arena that has a use already");
    }
}

/// Arenas that would fill the address space: what is too large is a violation, and what is not is
/// bounded for each link.
pub(crate) fn tebibytes(target: &Target) {
    const TIB: u64 = 1 << 40;
    let file = unpaid_file(64 * TIB);
    for slots in [u32::MAX, 1 << 30, 1 << 16, 0] {
        let mut peer = Peer::silent(target, 1);
        peer.open().expect("HELLO");
        peer.slots = slots;
        peer.send_with(&peer.hello(), &[file.as_fd(), peer.eventfd.as_fd()]).expect("sent");
        peer.must_end("a first arena that is too large");
        let mut peer = Peer::greeted(target, 1);
        peer.send_with(&wire::arena(slots), &[file.as_fd()]).expect("sent");
        peer.must_end("a further arena that is too large");
    }
    // As many as there may be on a link, on many links.
    const MOST: u32 = 1 << 15;
    let large = || control_page_file(wire::arena_bytes(MOST));
    let (mut peers, mut before) = (Vec::new(), None);
    for link in 0..40 {
        let mut peer = Peer::greeted(target, 1);
        let before = *before.get_or_insert_with(|| status(&peer, "VmSize"));
        peer.send_with(&wire::arena(MOST), &[large().as_fd()]).expect("sent");
        peer.must_live("32769 slots");
        let grown = status(&peer, "VmSize").saturating_sub(before);
        assert!(grown < TIB / 16, "{grown} bytes are mapped for {link} links");
        if link % 4 == 0 {
            peer.send_with(&wire::arena(MOST), &[large().as_fd()]).expect("sent");
            peer.must_end("65537 slots");
        }
        peers.push(peer);
    }
    std::mem::forget(peers);
}

/// Wants the most of each kind of memory: rings of the victim's that are filled and never read, of
/// its own that are never filled, segments that the victim would pay for by writing there, and
/// gives nothing back.
pub(crate) fn greedy(target: &Target) {
    let mut peer = Peer::greeted(target, 64);
    let used = |peer: &Peer| status(peer, "RssAnon") + status(peer, "RssShmem");
    let before = used(&peer);
    let (mut ours, mut asked) = (0, 0);
    for turn in 0..16 {
        let mut conn = peer.talking();
        let (started, mut segment) = (Instant::now(), 0);
        // It echoes what it gets, which nobody reads.
        while started.elapsed() < Duration::from_millis(100) && peer.pump() {
            if conn.unread() < 2048 {
                peer.put(&mut conn, &[7; 1024]);
            }
            conn.ours.store32(wire::DATA_ARMED, 1);
            let asks = peer.inbox.drain(..).filter(|said| matches!(said, Said::Ask { .. })).count();
            asked += asks;
            for _ in 0..asks {
                segment += 1;
                let file = if turn % 2 == 0 {
                    ours += 4 * MIB;
                    memory_file(4 << 20)
                } else {
                    unpaid_file(4 * MIB)
                };
                let _ = peer.send_with(&wire::grant(conn.our_token, segment, 4 * MIB), &[file.as_fd()]);
            }
            sleep(Duration::from_micros(200));
        }
        let (bytes, held) =
            [(64 * MIB, 0), (u64::MAX, 1 << 50), (1 << 13, 0), (64 * MIB, u64::MAX)][turn % 4];
        let _ = peer.send(&wire::ask(conn.their_token, bytes, held));
        let grown = used(&peer).saturating_sub(before + ours);
        // Rings that may grow are lent out of a quarter of the memory, of which a link gets half.
        assert!(grown < 128 * MIB, "turn {turn}: the victim pays {grown} bytes");
        // No DETACH, and its socket stays open.
        std::mem::forget(conn);
        if !peer.pump() {
            peer = Peer::greeted(target, 64);
        }
    }
    assert!(asked > 0, "who writes wants more than a page");
    std::mem::forget(peer);
}

/// Connection after connection on one link, and no DETACH for any: each keeps its slot, which is
/// what one costs, and nothing else. That a link's end gives all of it back is the judge's to see.
pub(crate) fn never_detached(target: &Target) {
    const MOST: u32 = 500;
    let mut peer = Peer::greeted(target, MOST);
    let before = (super::descriptors_of(&peer), status(&peer, "RssAnon") + status(&peer, "RssShmem"));
    for _ in 0..MOST {
        let mut tcp = peer.upgrade(target.tcp()).expect("an upgrade").tcp;
        let _ = tcp.write_all(b"d");
        drop(tcp);
        peer.inbox.clear();
    }
    let started = Instant::now();
    while super::descriptors_of(&peer) > before.0 + 64 {
        assert!(started.elapsed() < PATIENCE, "connections that have ended keep their descriptors");
        sleep(Duration::from_millis(20));
    }
    let grown = (status(&peer, "RssAnon") + status(&peer, "RssShmem")).saturating_sub(before.1);
    // Two slots of 5 KiB, its words, and what the allocator has not given back.
    assert!(grown < u64::from(MOST) * (32 << 10) + 8 * MIB, "{grown} bytes for {MOST} connections");
    peer.must_live("slots that are not given back");
    std::mem::forget(peer);
}
