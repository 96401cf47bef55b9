//! The lock of a memory file, which its owner keeps from those who use it, too.

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};

use crate::peer::{Peer, Signal};
use crate::raw::FileLock;
use crate::target::Target;
use crate::wire;

const WHILE: Duration = Duration::from_millis(1500);

/// The attacker keeps its arena's file busy, and takes its pages away, while the victim has to do
/// with it.
pub(crate) fn busy(target: &Target) {
    const SLOTS: u32 = 4096;
    let mut peer = Peer::greeted(target, SLOTS);
    let size = wire::arena_bytes(SLOTS) as u64;
    let started = Instant::now();
    thread::scope(|scope| {
        for turn in 0..2 {
            let file = peer.file.try_clone().expect("a descriptor");
            scope.spawn(move || {
                let keep = FallocateFlags::KEEP_SIZE;
                while started.elapsed() < WHILE {
                    if turn == 0 {
                        fallocate(&file, keep | FallocateFlags::PUNCH_HOLE, 0, size).expect("punch");
                    }
                    fallocate(&file, keep, 0, size).expect("fallocate");
                }
            });
        }
        while started.elapsed() < WHILE {
            // The words that lose their values may cost the link.
            if let Ok(conn) = peer.upgrade(target.tcp()) {
                conn.theirs.decide(1);
                peer.signal(&conn, Signal::Data);
            } else {
                peer = Peer::greeted(target, SLOTS);
            }
        }
    });
}

/// A write that waits for a page which never comes has the lock for ever: of the attacker's arena,
/// of the victim's, and of a segment that the attacker lends.
pub(crate) fn locked_for_ever(target: &Target) {
    for whose in ["ours", "theirs"] {
        let mut peer = Peer::greeted(target, 64);
        let mut conn = peer.talking();
        let file = if whose == "ours" { peer.file.as_fd() } else { peer.theirs[0].2.as_fd() };
        let Some(lock) = FileLock::hold(file) else {
            crate::random::say("locked_for_ever: the kernel gives this user no page that never comes");
            return;
        };
        let started = Instant::now();
        for round in 0..20 {
            // All of it goes on: connections that are there, new ones, and their end.
            peer.put(&mut conn, b"hello");
            let more = peer.upgrade(target.tcp());
            assert!(more.is_ok(), "{whose}, upgrade {round}: {:?} after {:?}", more.err(), started.elapsed());
            drop(more);
        }
        // Nobody else lets go of it.
        std::mem::forget(lock);
        std::mem::forget(peer);
    }
}
