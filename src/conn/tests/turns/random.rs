//! The turns in a random order.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};

use super::super::{note, watched};
use super::{Act, By, PAIRS, Play, play_script};

fn act() -> impl Strategy<Value = Act> {
    let which = 0..PAIRS;
    let number = prop_oneof![3 => 0..8u64, 1 => any::<u64>(), 1 => Just(1 << 16)];
    prop_oneof![
        12 => (which.clone(), by()).prop_map(|(at, by)| Act::Upgrade(at, by)),
        8 => which.clone().prop_map(Act::Accept),
        8 => (which.clone(), any::<bool>(), by()).prop_map(|(at, handshake, by)| Act::Offer(at, handshake, by)),
        8 => (which.clone(), prop_oneof![12 => Just(0), 1 => 1..6u32]).prop_map(|(at, off)| Act::Ready(at, off)),
        1 => (0..4u64).prop_map(Act::Cancel),
        1 => prop_oneof![(0..4u64).prop_map(Act::Proved), (0..4u64).prop_map(Act::Attached)],
        2 => which.clone().prop_map(Act::Pinned),
        2 => which.clone().prop_map(Act::Detach),
        2 => (which.clone(), number.clone()).prop_map(|(at, bytes)| Act::Ask(at, bytes)),
        2 => (which.clone(), 0..4u64, 12..20u32).prop_map(|(at, segment, bits)| Act::Grant(at, segment, bits)),
        1 => which.clone().prop_map(Act::Deny),
        1 => (which.clone(), 0..4u64).prop_map(|(at, segment)| Act::Return(at, segment)),
        1 => (0..20u32).prop_map(Act::Arena),
        1 => prop_oneof![Just(Act::Bye), Just(Act::Hello)],
        6 => (which.clone(), prop_oneof![4 => Just(0), 1 => -1..3i64]).prop_map(|(at, x)| Act::Switch(at, x)),
        2 => which.clone().prop_map(Act::PinWord),
        2 => (which.clone(), 0..4usize).prop_map(|(at, word)| Act::Handshake(at, word)),
        3 => (which.clone(), 0..9usize, number).prop_map(|(at, field, value)| Act::Scribble(at, field, value)),
        2 => (which.clone(), any::<u32>()).prop_map(|(at, bits)| Act::Flags(at, bits)),
        2 => (0..40_000u32, any::<bool>()).prop_map(|(index, data)| Act::Signal(index, data)),
        6 => (which.clone(), 1..400usize).prop_map(|(at, length)| Act::Tcp(at, length)),
        1 => which.clone().prop_map(Act::TcpEnd),
        10 => which.clone().prop_map(Act::Read),
        10 => (which.clone(), 1..9000usize).prop_map(|(at, length)| Act::Write(at, length)),
        1 => which.clone().prop_map(Act::Shutdown),
        1 => which.clone().prop_map(Act::Close),
        1 => which.prop_map(Act::Pin),
        20 => Just(Act::Run),
    ]
}

fn by() -> impl Strategy<Value = By> {
    prop_oneof![4 => Just(By::Cookie), 4 => Just(By::Number), 1 => Just(By::Guess)]
}

#[test]
fn any_order_of_anything_ends_the_strangers_link_at_most() {
    watched(|| {
        let mut config = Config { failure_persistence: None, max_shrink_time: 60_000, ..Config::default() };
        if std::env::var_os("PROPTEST_CASES").is_none() {
            config.cases = 500;
        }
        let (rings, faults) = (Cell::new(0), Cell::new(0));
        let result = TestRunner::new(config).run(&prop::collection::vec(act(), 1..80), |acts| {
            note(format!("{acts:?}"));
            let mut play = Play::new();
            for act in acts {
                play.act(act);
            }
            let reached = play.finish();
            rings.set(rings.get() + u32::from(reached.ring));
            faults.set(faults.get() + u32::from(reached.fault));
            Ok(())
        });
        match result {
            Ok(()) => {}
            Err(TestError::Fail(why, acts)) => panic!("{why} after {acts:?}"),
            Err(error) => panic!("{error}"),
        }
        assert!(rings.get() > 0 && faults.get() > 0, "{rings:?} plays reach a ring, {faults:?} a fault");
    });
}

/// What a fuzzer says leads as far as what a test says.
#[test]
fn a_script_reaches_a_ring_and_a_fault() {
    watched(|| {
        // Upgrade by a number, bytes each way; then the same, and a token that is not out.
        let upgraded = [0, 0, 1, 30, 0, 25, 0, 9, 50, 0, 30, 0, 24, 0];
        assert!(play_script(&upgraded).ring);
        let broken = [&upgraded[..], &[9, 0, 30, 0, 9, 0, 30, 0]].concat();
        let reached = play_script(&broken);
        assert!(reached.ring && reached.fault);
        assert!(!play_script(&[]).ring);
    });
}
