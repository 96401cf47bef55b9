//! Policy Handshake: CLC over TCP before the first byte, or not at all (rules of GO and OFF).

use std::os::fd::AsFd;
use std::task::{Context, Waker};

use super::bytes;
use super::hosts::MOMENTS;
use super::hosts::{CLIENT, Lab, Pair, SERVER, patiently};
use super::watched;
use crate::clc::PROPOSAL_BYTES;
use crate::config::UpgradePolicy;
use crate::conn::Directions;
use crate::conn::watch::WatchKey;
use crate::ism::dmb::HandshakeWord;
use crate::ism::ring::Memory;
use crate::ism::sys;
use crate::sync::lock;

/// Bytes that TCP has brought to a side, its end not among them.
fn received(pair: &Pair, side: usize) -> u64 {
    sys::tcp_look(pair.tcp(side).tcp.as_fd()).expect("TCP_INFO").bytes_received
}

/// What connect does while it waits.
fn drive(pair: &Pair) {
    let mut key = WatchKey::default();
    let mut cx = Context::from_waker(Waker::noop());
    let _ = pair.conns[CLIENT].poll_upgraded(&mut cx, &mut key);
    pair.conns[CLIENT].forget_watch(&mut key);
}

/// Both ends are on the ring, and nothing but the application's bytes is seen.
#[track_caller]
fn runs(lab: &mut Lab, pair: &Pair, from: [u64; 2]) {
    for side in [CLIENT, SERVER] {
        lab.write(pair, side, &bytes(from[side], 5000));
        pair.expect(1 - side, &bytes(from[side], 5000));
        assert!(pair.conns[side].transport().is_loopback_ism());
    }
}

/// Delivers messages until the server holds both directions for the handshake.
fn until_held(lab: &mut Lab, pair: &Pair) {
    let held = || {
        let rx = lock(&pair.conns[SERVER].rx);
        rx.dmb.as_ref().is_some_and(|dmb| dmb.consumer.memory().header().handshake() == HandshakeWord::Held)
    };
    while !held() {
        assert!(lab.hosts[SERVER].step() || lab.hosts[CLIENT].step(), "HELD");
    }
}

#[test]
fn the_handshake_goes_over_tcp_and_nobody_reads_it() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair_with(UpgradePolicy::Handshake);
        let waiting = [CLIENT, SERVER].map(|side| pair.park_reader(side));
        pair.offer(&lab);
        lab.run();
        patiently("Proposal and Accept", || {
            drive(&pair);
            pair.settle();
            pair.writes_ring(CLIENT) && pair.writes_ring(SERVER)
        });
        patiently("the Confirm", || {
            pair.settle();
            pair.reads_ring(CLIENT) && pair.reads_ring(SERVER)
        });
        assert!(received(&pair, SERVER) > PROPOSAL_BYTES as u64, "Proposal and Confirm");
        assert!(received(&pair, CLIENT) > 0, "the Accept");
        drop(waiting);
        runs(&mut lab, &pair, [0, 0]);
    });
}

#[test]
fn a_server_application_that_writes_first_turns_it_off() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair_with(UpgradePolicy::Handshake);
        pair.offer(&lab);
        until_held(&mut lab, &pair);
        pair.write(SERVER, &bytes(0, 77));
        lab.run();
        drive(&pair);
        pair.expect(CLIENT, &bytes(0, 77));
        assert_eq!((received(&pair, SERVER), received(&pair, CLIENT)), (0, 77), "no CLC over TCP");
        runs(&mut lab, &pair, [0, 77]);
    });
}

#[test]
fn a_client_application_that_writes_first_turns_it_off() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair_with(UpgradePolicy::Handshake);
        pair.offer(&lab);
        until_held(&mut lab, &pair);
        pair.write(CLIENT, &bytes(0, 77));
        // The server's reader finds data without GO.
        pair.expect(SERVER, &bytes(0, 77));
        lab.run();
        assert_eq!((received(&pair, SERVER), received(&pair, CLIENT)), (77, 0), "no CLC over TCP");
        runs(&mut lab, &pair, [77, 0]);
    });
}

type Race = fn(&Pair, &mut Lab);

#[test]
fn go_and_off_race_at_every_moment() {
    watched(|| {
        let races: [(&str, Race); 7] = [
            ("the server writes", |pair, _| pair.write(SERVER, &bytes(0, 50))),
            ("the client writes", |pair, _| pair.write(CLIENT, &bytes(0, 50))),
            ("both read", |pair, _| pair.settle()),
            ("connect looks", |pair, _| drive(pair)),
            ("the server pins", |pair, _| drop(pair.conns[SERVER].pin("a test", Directions::Both))),
            ("the client pins", |pair, _| drop(pair.conns[CLIENT].pin("a test", Directions::Both))),
            ("the link is cut", |_, lab| {
                if let Some(link) = lab.hosts[CLIENT].links().first() {
                    let _ = sys::shutdown_socket(link.socket());
                }
            }),
        ];
        for (first_name, first) in races {
            for (second_name, second) in races {
                for moment in 0..MOMENTS {
                    let mut lab = Lab::new();
                    let pair = lab.pair_with(UpgradePolicy::Handshake);
                    pair.offer(&lab);
                    for _ in 0..moment {
                        let _ = lab.hosts[SERVER].step() || lab.hosts[CLIENT].step();
                    }
                    let cut = first_name.contains("cut") || second_name.contains("cut");
                    let mut written = [0, 0];
                    for (name, race) in [(first_name, first), (second_name, second)] {
                        let writer = usize::from(name.contains("server"));
                        if name.contains("writes") && written[writer] > 0 {
                            continue;
                        }
                        race(&pair, &mut lab);
                        if name.contains("writes") {
                            written[writer] = 50;
                        }
                        let _ = lab.hosts[CLIENT].step() || lab.hosts[SERVER].step();
                    }
                    lab.run();
                    let story = format!("{first_name}, {second_name}, after {moment} messages");
                    if cut && (pair.writes_ring(CLIENT) || pair.writes_ring(SERVER)) {
                        continue;
                    }
                    exchange(&pair, &mut lab, written, &story);
                }
            }
        }
    });
}

/// Both ends write on and end; each gets exactly what the other one wrote.
fn exchange(pair: &Pair, lab: &mut Lab, written: [usize; 2], story: &str) {
    for side in [CLIENT, SERVER] {
        pair.write(side, &bytes(written[side] as u64, 400));
    }
    let mut got = [Vec::new(), Vec::new()];
    patiently(story, || {
        drive(pair);
        lab.run();
        for side in [CLIENT, SERVER] {
            match pair.try_read(side, 100) {
                Some(Ok(read)) => {
                    assert!(!read.is_empty(), "{story}: an end that nobody made");
                    got[side].extend(read);
                }
                Some(Err(error)) => panic!("{story}: {error}"),
                None => {}
            }
        }
        got[CLIENT].len() >= 400 + written[SERVER] && got[SERVER].len() >= 400 + written[CLIENT]
    });
    assert!(got[CLIENT] == bytes(0, 400 + written[SERVER]), "{story}: the client reads other bytes");
    assert!(got[SERVER] == bytes(0, 400 + written[CLIENT]), "{story}: the server reads other bytes");
    pair.conns[CLIENT].shutdown_write().unwrap();
    pair.end(SERVER).unwrap_or_else(|error| panic!("{story}: {error}"));
    pair.conns[SERVER].shutdown_write().unwrap();
    pair.end(CLIENT).unwrap_or_else(|error| panic!("{story}: {error}"));
}

#[test]
fn a_close_at_every_moment_of_the_handshake_is_a_clean_end() {
    watched(|| {
        for closer in [CLIENT, SERVER] {
            for writes in [0, 3000] {
                for moment in 0..MOMENTS {
                    let mut lab = Lab::new();
                    let pair = lab.pair_with(UpgradePolicy::Handshake);
                    pair.offer(&lab);
                    for _ in 0..moment {
                        let _ = lab.hosts[SERVER].step() || lab.hosts[CLIENT].step();
                    }
                    if writes > 0 {
                        pair.write(closer, &bytes(0, writes));
                    }
                    pair.close(closer);
                    let other = 1 - closer;
                    let mut got = Vec::new();
                    let story = format!("side {closer} closes after {moment} messages and {writes} bytes");
                    let mut ended = false;
                    patiently(&story, || {
                        lab.run();
                        pair.turn();
                        match pair.try_read(other, 1000) {
                            Some(Ok(read)) if read.is_empty() => ended = true,
                            Some(Ok(read)) => got.extend(read),
                            Some(Err(error)) => panic!("{story}: {error}"),
                            None => {}
                        }
                        ended
                    });
                    assert!(got == bytes(0, writes), "{story}: {} bytes", got.len());
                    pair.close(other);
                    lab.run();
                    assert_eq!(lab.slots_in_use(), 0, "{story}");
                }
            }
        }
    });
}
