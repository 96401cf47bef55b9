//! Words of a DMB's header that lie.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::dice::Dice;
use crate::peer::{Conn, Peer, Signal};
use crate::target::Target;
use crate::wire;

/// For how long an attack that only goes on and on does so.
const WHILE: Duration = Duration::from_millis(1500);

/// Breaks a rule as the producer of a ring, which the victim sees at its next look.
fn lie(target: &Target, why: &str, deed: impl FnOnce(&Conn)) {
    let mut peer = Peer::greeted(target, 64);
    let conn = peer.talking();
    deed(&conn);
    peer.signal(&conn, Signal::Data);
    peer.must_end(why);
}

pub(crate) fn cursor_far_beyond(target: &Target) {
    lie(target, "a cursor far beyond", |conn| conn.theirs.store(wire::PROD, 1 << 40));
}

pub(crate) fn cursor_at_the_end(target: &Target) {
    lie(target, "a cursor at the end of all numbers", |conn| conn.theirs.store(wire::PROD, u64::MAX));
}

pub(crate) fn cursor_backwards(target: &Target) {
    lie(target, "a cursor that goes back", |conn| conn.theirs.store(wire::PROD, 1));
}

pub(crate) fn cursor_beyond_the_visit(target: &Target) {
    lie(target, "more bytes than the segment has", |conn| {
        conn.theirs.store(wire::PROD, conn.sent + wire::FIRST as u64 + 1);
    });
}

/// So many hops, the first of them to `segment` at `position`, and bytes behind.
fn hop(conn: &Conn, position: u64, segment: u64, count: u64) {
    conn.theirs.hop(0, position, segment);
    conn.theirs.store(wire::HOP_COUNT, count);
    conn.theirs.store(wire::PROD, conn.sent + 10);
}

pub(crate) fn hop_to_a_segment_not_lent(target: &Target) {
    lie(target, "a hop to segment 99", |conn| hop(conn, conn.sent, 99, 1));
}

pub(crate) fn hop_to_the_last_segment(target: &Target) {
    lie(target, "a hop to the last segment", |conn| hop(conn, conn.sent, u64::MAX, 1));
}

pub(crate) fn hop_in_the_past(target: &Target) {
    lie(target, "a hop in the past", |conn| hop(conn, 0, 1, 1));
}

pub(crate) fn hops_without_number(target: &Target) {
    lie(target, "1000 hops", |conn| hop(conn, conn.sent, 0, 1000));
}

pub(crate) fn empty_hops(target: &Target) {
    lie(target, "empty visits of segment 0", |conn| {
        (0..16).for_each(|k| conn.theirs.hop(k, conn.sent, 0));
        hop(conn, conn.sent, 0, 16);
    });
}

/// Makes the victim write, as its echo, until it has found out.
fn feed(peer: &mut Peer, conn: &mut Conn, why: &str, mut each: impl FnMut(&Conn)) {
    let started = Instant::now();
    while peer.pump() {
        // It catches hangs, it measures nothing.
        assert!(started.elapsed() < Duration::from_secs(60), "{why}: the victim keeps the link");
        each(conn);
        if conn.unread() < 2048 {
            peer.put(conn, &[7; 1024]);
        } else {
            sleep(Duration::from_micros(100));
        }
        peer.signal(conn, Signal::Space);
    }
}

pub(crate) fn reader_ahead(target: &Target) {
    let mut peer = Peer::greeted(target, 64);
    let mut conn = peer.talking();
    conn.ours.store(wire::CONS, 1 << 50);
    feed(&mut peer, &mut conn, "a reader ahead of the writer", |_| {});
}

pub(crate) fn reader_backwards(target: &Target) {
    let mut peer = Peer::greeted(target, 64);
    let mut conn = peer.talking();
    // It reads honestly until the victim must have seen that, and forgets what it has read.
    let mut read = 0;
    feed(&mut peer, &mut conn, "a reader that goes back", |conn| {
        read = if read < 3 * wire::FIRST as u64 { conn.ours.load(wire::PROD) } else { read };
        conn.ours.store(wire::CONS, if read < 3 * wire::FIRST as u64 { read } else { 1 });
    });
}

pub(crate) fn flags_at_random(target: &Target) {
    let mut peer = Peer::greeted(target, 64);
    let conn = peer.talking();
    let mut dice = Dice::new(1, 1);
    let started = Instant::now();
    while started.elapsed() < WHILE {
        conn.theirs.store32(wire::PRODUCER_FLAGS, dice.next() as u32);
        conn.ours.store32(wire::CONSUMER_FLAGS, dice.next() as u32);
        peer.signal(&conn, Signal::Data);
        peer.signal(&conn, Signal::Space);
    }
    peer.must_live("flags mean this connection only");
}

/// Flags come and go, without a system call between: no look of the victim may follow them for
/// ever.
pub(crate) fn flags_faster_than_looks(target: &Target) {
    flicker(target, |conn, turn| {
        conn.theirs.store32(wire::PRODUCER_FLAGS, wire::CLOSED);
        (0..turn % 7).for_each(|_| std::hint::spin_loop());
        conn.theirs.store32(wire::PRODUCER_FLAGS, 0);
        (0..turn % 5).for_each(|_| std::hint::spin_loop());
    });
}

/// The measure for [`flags_faster_than_looks`]: the same signals, and no flags.
pub(crate) fn without_flags_as_fast(target: &Target) {
    flicker(target, |_, _| (0..12).for_each(|_| std::hint::spin_loop()));
}

fn flicker(target: &Target, each: impl Fn(&Conn, u32)) {
    let mut peer = Peer::greeted(target, 64);
    let conn = peer.talking();
    let started = Instant::now();
    while started.elapsed() < WHILE {
        (0..2000).for_each(|turn| each(&conn, turn));
        peer.signal(&conn, Signal::Data);
    }
    peer.must_live("flags mean this connection only");
}

/// Writes one word of either ring, as nobody may.
pub(crate) fn scribble(conn: &Conn, dice: &mut Dice) {
    let near = conn.sent;
    let value = dice.evil(near);
    let record = dice.below(16) as usize;
    match dice.below(14) {
        0 => conn.theirs.store(wire::PROD, value),
        1 => conn.theirs.store(wire::HOP_COUNT, value % 20),
        2 => conn.theirs.store(wire::WAKE_AT, value),
        3 => conn.theirs.store32(wire::PRODUCER_FLAGS, value as u32),
        4 => conn.theirs.store(wire::hop_at(record), value),
        5 => conn.theirs.store(wire::hop_at(record) + 8, value % 12),
        6 => conn.theirs.store(wire::CONS, value),
        7 => conn.theirs.store32(wire::DATA_ARMED, value as u32),
        8 => conn.ours.store(wire::CONS, value),
        9 => conn.ours.store(wire::FOLLOWED, value),
        10 => conn.ours.store32(wire::SPACE_ARMED, value as u32),
        11 => conn.ours.store32(wire::CONSUMER_FLAGS, value as u32),
        12 => conn.ours.store(wire::PROD, value),
        _ => conn.theirs.store(wire::HOP_COUNT, value),
    }
}

pub(crate) fn words_at_random(target: &Target) {
    let mut dice = Dice::new(2, 1);
    let mut peer = Peer::greeted(target, 64);
    let conn = peer.talking();
    let started = Instant::now();
    while started.elapsed() < WHILE && peer.pump() {
        scribble(&conn, &mut dice);
        peer.signal(&conn, if dice.one_in(2) { Signal::Data } else { Signal::Space });
    }
}

pub(crate) fn words_at_random_again_and_again(target: &Target) {
    let mut dice = Dice::new(3, 1);
    for _ in 0..100 {
        let mut peer = Peer::greeted(target, 64);
        let mut conn = peer.upgrade(target.tcp()).expect("an upgrade");
        conn.theirs.decide(1);
        for _ in 0..200 {
            match dice.below(16) {
                0 => conn.theirs.decide(wire::PINNED_WORD),
                1..=5 if conn.sent < 4000 => peer.put(&mut conn, &[b'e'; 13]),
                _ => scribble(&conn, &mut dice),
            }
            peer.signal(&conn, if dice.one_in(2) { Signal::Data } else { Signal::Space });
            if !peer.pump() {
                break;
            }
        }
    }
}
