//! Whose memory a DMB is at which time (hazards C5, M13).

use super::bytes;
use super::hosts::MOMENTS;
use super::hosts::{CLIENT, Lab, SERVER};
use super::watched;
use crate::conn::Directions;
use crate::ism::interrupt::Signal;
use crate::ism::ring::{Memory, Segment};
use crate::link::Link;
use crate::sync::{Ordering, lock};

#[test]
fn hazard_c5_a_slot_is_free_after_its_detach_and_its_own_streams_end() {
    watched(|| {
        for first in [CLIENT, SERVER] {
            let mut lab = Lab::new();
            let pair = lab.upgraded();
            assert_eq!(lab.slots_in_use(), 2);
            pair.close(first);
            assert_eq!(lab.slots_in_use(), 2, "nothing was said yet");
            lab.run();
            assert_eq!(lab.slots_in_use(), 2, "the other end still has both");
            pair.close(1 - first);
            lab.run();
            assert_eq!(lab.slots_in_use(), 0);
        }
    });
}

#[test]
fn hazard_c5_a_late_producer_writes_into_nobody_elses_dmb() {
    watched(|| {
        let mut lab = Lab::new();
        let old = lab.upgraded();
        // The reader is gone; its peer was stopped in the middle of a write and knows nothing of
        // it.
        let late = lock(&old.conns[CLIENT].tx).dmb.as_ref().expect("a DMB").producer.memory().clone();
        old.close(SERVER);
        lab.run();
        let new: Vec<_> = (0..8).map(|_| lab.upgraded()).collect();
        late.first().copy_in(0, &[0xEE; 4096]);
        late.header().producer.prod.store(4096, Ordering::Release);
        late.header().producer.flags.store(0xFF, Ordering::Release);
        for pair in &new {
            for side in [CLIENT, SERVER] {
                lab.write(pair, side, &bytes(0, 9000));
                pair.expect(1 - side, &bytes(0, 9000));
            }
        }
        old.close(CLIENT);
        lab.run();
        assert_eq!(lab.slots_in_use(), 16);
        // Now it is free, and nothing of the late writer is left in it.
        let reused = lab.upgraded();
        assert!(reused.try_read(SERVER, 10).is_none() && reused.try_read(CLIENT, 10).is_none());
    });
}

#[test]
fn hazard_c5_an_end_at_every_moment_frees_every_slot() {
    watched(|| {
        // One lab for all: what an earlier round leaks, a later one sees.
        let mut lab = Lab::new();
        for round in 0..20 {
            for moment in 0..MOMENTS {
                for first in [CLIENT, SERVER] {
                    let pair = lab.pair();
                    pair.offer(&lab);
                    for _ in 0..moment {
                        let _ = lab.hosts[SERVER].step() || lab.hosts[CLIENT].step();
                    }
                    if round % 3 == 0 {
                        let both = round % 2 == 0;
                        let directions = if both { Directions::Both } else { Directions::Write };
                        let _ = pair.conns[first].pin("a test", directions);
                    }
                    pair.close(first);
                    if round % 4 < 2 {
                        lab.run();
                    }
                    pair.close(1 - first);
                    lab.run();
                    assert_eq!(lab.slots_in_use(), 0, "round {round}, moment {moment}, side {first} first");
                }
            }
        }
        lab.upgraded();
    });
}

/// As a stream's end does it.
fn interrupt(link: &Link, index: u32, signal: Signal) {
    if let Some(undelivered) = link.raise(index, signal) {
        link.deliver_interrupt(index, undelivered);
    }
}

#[test]
fn hazard_m13_the_entry_of_a_signal_is_there_before_its_token_leaves() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        let reader = pair.park_reader(CLIENT);
        pair.offer(&lab);
        while lab.hosts[SERVER].links().is_empty() || lab.hosts[CLIENT].step() {
            lab.hosts[SERVER].step();
            if reader.is_woken() {
                break;
            }
            // The first connection of a link has the first number.
            if let Some(link) = lab.hosts[SERVER].links().first() {
                interrupt(link, 0, Signal::Data);
            }
        }
        assert!(reader.is_woken(), "the signal in OFFER has its entry");
        lab.run();
        pair.settle();
        let reader = pair.park_reader(SERVER);
        // Signals of connections that are gone or never were wake nobody and hurt nobody.
        for index in [1, 77, u32::MAX] {
            for host in &lab.hosts {
                interrupt(&host.links()[0], index, Signal::Space);
            }
        }
        assert!(!reader.is_woken());
        pair.write(CLIENT, b"x");
        assert!(reader.is_woken());
    });
}
