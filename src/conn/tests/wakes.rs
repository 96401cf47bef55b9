//! Nobody sleeps through a change (hazards H1, H13).

use std::task::{Context, Waker};

use super::bytes;
use super::hosts::{CLIENT, Lab, MOMENTS, Pair, SERVER};
use super::ops::{Task, writing};
use super::watched;
use crate::conn::watch::WatchKey;
use crate::conn::{Directions, OnPending};
use crate::link::stream::Death;
use crate::sync::{Arc, lock};

/// Writes until the task has to wait.
fn park_writer(pair: &Pair, side: usize) -> (Arc<Task>, u64) {
    let mut written = 0;
    loop {
        let task = Task::new();
        let waker = Waker::from(task.clone());
        let data = bytes(written, 64 << 10);
        match pair.conns[side].poll_write(&mut Context::from_waker(&waker), &mut writing(&data)) {
            std::task::Poll::Ready(length) => written += length.unwrap() as u64,
            std::task::Poll::Pending => return (task, written),
        }
    }
}

#[test]
fn hazard_h1_a_reader_that_waits_on_tcp_hears_of_the_switch_at_every_moment() {
    watched(|| {
        for side in [CLIENT, SERVER] {
            for moment in 0..MOMENTS {
                let mut lab = Lab::new();
                let pair = lab.pair();
                pair.offer(&lab);
                for _ in 0..moment {
                    let _ = lab.hosts[SERVER].step() || lab.hosts[CLIENT].step();
                }
                let reader = pair.park_reader(side);
                lab.run();
                // It may have been woken by the switch already; if it sleeps on, the bytes must
                // wake it.
                let reader = if reader.is_woken() { pair.park_reader(side) } else { reader };
                assert!(pair.writes_ring(1 - side));
                pair.write(1 - side, b"x");
                assert!(reader.is_woken(), "side {side}, moment {moment}");
                pair.expect(side, b"x");
            }
        }
    });
}

#[test]
fn hazard_h1_a_writer_that_waits_on_tcp_hears_of_its_switch() {
    watched(|| {
        for side in [CLIENT, SERVER] {
            let mut lab = Lab::new();
            let pair = lab.pair();
            let (writer, written) = park_writer(&pair, side);
            pair.offer(&lab);
            lab.run();
            assert!(writer.is_woken(), "side {side}");
            pair.write(side, &bytes(written, 1000));
            pair.expect(1 - side, &bytes(0, written as usize + 1000));
        }
    });
}

#[test]
fn hazard_h13_a_death_between_look_and_sleep_wakes_readers_and_writers() {
    watched(|| {
        for death in [Death::Peer, Death::Fault, Death::Runtime] {
            for side in [CLIENT, SERVER] {
                let mut lab = Lab::new();
                let pair = lab.upgraded();
                let reader = pair.park_reader(side);
                let (writer, _) = park_writer(&pair, side);
                lab.hosts[side].links()[0].bury(death);
                assert!(reader.is_woken() && writer.is_woken(), "{death:?}, side {side}");
                let answer = pair.conns[side].try_write(&mut writing(b"x"), OnPending::Return);
                assert!(matches!(answer, std::task::Poll::Ready(Err(_))), "{death:?}: {answer:?}");
            }
        }
    });
}

#[test]
fn hazard_h13_close_and_shutdown_wake_whoever_waits() {
    watched(|| {
        for side in [CLIENT, SERVER] {
            let mut lab = Lab::new();
            let pair = lab.upgraded();
            let reader = pair.park_reader(side);
            pair.conns[1 - side].shutdown_write().unwrap();
            assert!(reader.is_woken(), "shutdown");
            pair.end(side).unwrap();
            let (writer, written) = park_writer(&pair, side);
            pair.expect(1 - side, &bytes(0, written as usize));
            assert!(writer.is_woken(), "space");
            let (writer, _) = park_writer(&pair, side);
            pair.close(1 - side);
            assert!(writer.is_woken(), "close");
        }
    });
}

/// Everything that ends an upgrade ends the waiting for it.
#[test]
fn whoever_waits_for_the_upgrade_hears_of_its_end() {
    watched(|| {
        type Ending = fn(&Pair, &Lab);
        let endings: [(&str, Ending); 6] = [
            ("the server shuts down", |pair, _| pair.conns[SERVER].shutdown_write().unwrap()),
            ("the server pins reading", |pair, _| {
                pair.conns[SERVER].pin("try_io", Directions::Read).unwrap()
            }),
            ("the server pins writing", |pair, _| {
                pair.conns[SERVER].pin("try_io", Directions::Write).unwrap()
            }),
            ("the server closes", |pair, _| pair.close(SERVER)),
            ("the client shuts down", |pair, _| pair.conns[CLIENT].shutdown_write().unwrap()),
            ("the link dies", |_, lab| lab.hosts[CLIENT].links()[0].bury(Death::Peer)),
        ];
        for (name, ending) in endings {
            for moment in 1..8 {
                let mut lab = Lab::new();
                let pair = lab.pair();
                let mut key = WatchKey::default();
                pair.offer(&lab);
                for _ in 0..moment {
                    let _ = lab.hosts[SERVER].step() || lab.hosts[CLIENT].step();
                }
                if pair.writes_ring(SERVER) || pair.writes_ring(CLIENT) && name.contains("pins reading") {
                    continue;
                }
                if name == "the server closes" && lock(&pair.conns[SERVER].rx).dmb.is_none() {
                    // An offer that finds no stream waits for one.
                    continue;
                }
                let waits = |key: &mut WatchKey| {
                    let task = Task::new();
                    let waker = Waker::from(task.clone());
                    let answer = pair.conns[CLIENT].poll_upgraded(&mut Context::from_waker(&waker), key);
                    answer.is_pending().then_some(task)
                };
                let mut waiting = waits(&mut key);
                ending(&pair, &lab);
                lab.run();
                while let Some(task) = waiting {
                    assert!(task.is_woken(), "{name} after {moment} messages: nobody wakes upgrade()");
                    waiting = waits(&mut key);
                }
            }
        }
    });
}
