//! The switch under random interleavings of everything both ends, their endpoints and the kernel
//! can do.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::hosts::patiently;
use super::model::{Act, Model, Setup};
use super::{note, watched};

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 1..200usize, 2 => 200..9000usize, 1 => 9000..100_000usize]
}

/// What leaves a connection alive.
fn gentle() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => length().prop_map(Act::Write),
        2 => length().prop_map(Act::WriteParts),
        2 => length().prop_map(Act::TryWrite),
        6 => length().prop_map(Act::Read),
        3 => length().prop_map(Act::TryRead),
        2 => (1..50usize, length()).prop_map(|(first, second)| Act::ReadBoth(first, second)),
        2 => length().prop_map(Act::Peek),
        1 => Just(Act::Cancel),
        10 => (1..3usize).prop_map(Act::Pump),
        3 => Just(Act::Accept),
        4 => Just(Act::Offer),
        2 => Just(Act::Watch),
        1 => any::<bool>().prop_map(Act::Nodelay),
        1 => any::<bool>().prop_map(Act::Cork),
        1 => Just(Act::Urgent),
    ]
}

/// What ends it, or a part of it.
fn rough() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => Just(Act::Shutdown),
        4 => Just(Act::Close),
        3 => Just(Act::Pin),
        1 => Just(Act::Cut),
        1 => Just(Act::Fault),
        1 => Just(Act::Kill),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let dmb_size = prop_oneof![Just(4 << 10), Just(16 << 10), Just(64 << 10)];
    (any::<bool>(), prop::bool::weighted(0.1), dmb_size, prop::bool::weighted(0.25)).prop_map(
        |(handshake, small_buffers, dmb_size, upgraded)| Setup {
            handshake,
            small_buffers,
            dmb_size,
            upgraded,
        },
    )
}

type Steps = Vec<(usize, Act)>;

fn run(cases: u32, steps: impl Strategy<Value = Steps>) {
    let mut config = Config { failure_persistence: None, max_shrink_time: 60_000, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    let mut runner = TestRunner::new(config);
    let started = std::time::Instant::now();
    let result = runner.run(&(setup(), steps), |(setup, steps)| {
        note(format!("{:?} into the run: {setup:?}, {steps:?}", started.elapsed()));
        let mut model = Model::new(setup);
        for (side, act) in steps {
            model.step(side, act);
        }
        model.finish();
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn every_byte_arrives_through_the_switch() {
    watched(|| {
        run(1000, prop::collection::vec((0..2usize, gentle()), 1..80));
    });
}

#[test]
fn every_end_is_the_one_that_tcp_would_have_shown() {
    watched(|| {
        let act = prop_oneof![12 => gentle(), 1 => rough()];
        run(2000, prop::collection::vec((0..2usize, act), 1..60));
    });
}

/// The random plays met this once: who waits for the CLC to pass is told of the reset, and the
/// reader has to be, too.
#[test]
fn a_pin_leaves_the_reset_to_the_reader() {
    watched(|| {
        let setup = Setup { handshake: true, small_buffers: false, dmb_size: 4096, upgraded: true };
        let mut model = Model::new(setup);
        for (side, act) in [(0, Act::Fault), (1, Act::Pin), (1, Act::Read(1))] {
            model.step(side, act);
        }
        model.finish();
    });
}

/// As a random play that stood still: without a link each end waits for the other's end on TCP,
/// where an urgent byte lies that poll(2) calls readable and no read gets to. Who has nothing more
/// to do closes then.
#[test]
fn an_urgent_byte_is_no_news_for_ever() {
    watched(|| {
        let setup = Setup { handshake: false, small_buffers: false, dmb_size: 4096, upgraded: false };
        let mut model = Model::new(setup);
        model.narrow(1);
        model.step(1, Act::Accept);
        // Over TCP, in segments that are as large as the window.
        model.step(0, Act::TryWrite(60_000));
        patiently("what was written", || {
            model.step(1, Act::TryRead(60_000));
            model.unread_of(0) == 0
        });
        model.step(0, Act::Offer);
        for _ in 0..20 {
            model.step(0, Act::Pump(1));
            model.step(1, Act::Pump(1));
        }
        for (side, act) in [
            (0, Act::TryWrite(1)),
            (1, Act::TryWrite(1)),
            (0, Act::Cut),
            (0, Act::Pump(2)),
            // Its peer has died, as far as it knows, and has left a byte unread: it is told so.
            (0, Act::TryWrite(1)),
            (0, Act::Urgent),
            (1, Act::Shutdown),
        ] {
            model.step(side, act);
        }
        model.finish();
    });
}

/// The random plays met this at times: side 1 has lost the link and writes to TCP, and side 0
/// closes with that unread, before it has lost the link.
#[test]
fn who_closes_need_not_know_that_the_link_is_lost() {
    watched(|| {
        let setup = Setup { handshake: false, small_buffers: false, dmb_size: 4096, upgraded: true };
        for read in [None, Some((0, Act::TryRead(1)))] {
            let mut model = Model::new(setup);
            let cut = [(0, Act::Cut), (1, Act::Pump(1)), (0, Act::Write(1)), (1, Act::Write(1))];
            for (side, act) in read.into_iter().chain(cut).chain([(0, Act::Close)]) {
                model.step(side, act);
            }
            model.finish();
        }
    });
}

/// What a cork holds back has not come to who closes: both TCP and the ring show a clean end then.
#[test]
fn what_a_cork_holds_back_is_not_unread() {
    watched(|| {
        let setup = Setup { handshake: false, small_buffers: false, dmb_size: 4096, upgraded: false };
        let cork = [(1, Act::Accept), (1, Act::Cork(true)), (1, Act::Write(1)), (0, Act::Close)];
        let mut by_tcp = Model::new(setup);
        cork.into_iter().for_each(|(side, act)| by_tcp.step(side, act));
        assert_eq!(by_tcp.reads_end(1), Some(Ok(())));
        by_tcp.finish();

        let mut without_link = Model::new(Setup { upgraded: true, ..setup });
        let cut = [(1, Act::Write(1)), (0, Act::Read(1)), (0, Act::Cut), (1, Act::Pump(1))];
        cut.into_iter().chain(cork).for_each(|(side, act)| without_link.step(side, act));
        assert_eq!(without_link.reads_end(1), Some(Ok(())));
        without_link.finish();
    });
}
