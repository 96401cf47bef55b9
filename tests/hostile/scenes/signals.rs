//! Signals: a hint to look, and no more.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::peer::{Peer, Signal};
use crate::target::Target;
use crate::wire;

const WHILE: Duration = Duration::from_millis(1500);

/// All bits of the page, again and again.
pub(crate) fn storm(target: &Target) {
    let mut peer = Peer::greeted(target, 64);
    let _conn = peer.talking();
    let started = Instant::now();
    while started.elapsed() < WHILE {
        for index in 0..wire::CONNECTIONS {
            peer.raise(index, Signal::Data);
            peer.raise(index, Signal::Space);
        }
        peer.ring();
    }
    peer.must_live("surplus signals");
}

/// One bit, whenever a poller might be about to sleep.
pub(crate) fn trickle(target: &Target) {
    let mut peer = Peer::greeted(target, 64);
    let conn = peer.talking();
    let started = Instant::now();
    while started.elapsed() < WHILE {
        peer.signal(&conn, Signal::Data);
        sleep(Duration::from_micros(40));
    }
    peer.must_live("surplus signals");
}

/// The bell and nothing else: each stroke is a wake-up for nothing.
pub(crate) fn bell_without_end(target: &Target) {
    let mut peer = Peer::greeted(target, 64);
    let _conn = peer.talking();
    let started = Instant::now();
    while started.elapsed() < WHILE {
        (0..100).for_each(|_| peer.ring());
    }
    peer.must_live("surplus rings");
}
