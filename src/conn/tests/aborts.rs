//! Ends that are not peaceful: closes with unread bytes, deaths of links and peers, peers that lie
//! in the ring (hazards C1, H12, H14, H15, M8).

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::task::Poll;

use super::bytes;
use super::hosts::MOMENTS;
use super::hosts::{CLIENT, Lab, Pair, SERVER, patiently};
use super::ops::writing;
use super::watched;
use crate::conn::{Directions, OnPending};
use crate::ism::dmb::DmbHeader;
use crate::ism::ring::Memory;
use crate::ism::sys;
use crate::link::stream::Death;
use crate::sync::{Ordering, lock};
use crate::transport::FallbackReason;

/// How far the upgrade of a connection has come.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mode {
    Tcp,
    /// The bytes that this side writes go through TCP, those of the other one through the ring.
    MixedByTcp(usize),
    Ring,
}

impl Mode {
    pub(super) const ALL: [Mode; 4] =
        [Mode::Tcp, Mode::MixedByTcp(SERVER), Mode::MixedByTcp(CLIENT), Mode::Ring];

    pub(super) fn pair(self, lab: &mut Lab) -> Pair {
        match self {
            Mode::Tcp => lab.pair(),
            Mode::MixedByTcp(side) => mixed(lab, side),
            Mode::Ring => lab.upgraded(),
        }
    }
}

/// A connection of which one direction has switched and the other one never will: what `by_tcp`
/// writes goes through TCP.
pub(super) fn mixed(lab: &mut Lab, by_tcp: usize) -> Pair {
    let pair = lab.pair();
    pair.offer(lab);
    // Until MATCH is on its way.
    while lock(&pair.conns[SERVER].rx).dmb.is_none() {
        assert!(lab.hosts[SERVER].step() || lab.hosts[CLIENT].step(), "MATCH");
    }
    let pinned = if by_tcp == CLIENT { Directions::Read } else { Directions::Write };
    pair.conns[SERVER].pin("a test", pinned).expect("nothing has switched");
    lab.run();
    assert!(pair.writes_ring(1 - by_tcp) && !pair.writes_ring(by_tcp));
    pair
}

/// What is done before a close, and what the other end has to see of it.
#[derive(Clone, Copy, Debug)]
enum Close {
    /// All was read: what the closer wrote arrives, then the end.
    AllRead,
    /// Some was not: a reset.
    Unread,
    /// `SO_LINGER` of no time: a reset, whatever was read.
    ZeroLinger,
}

/// Hazards H14 (a close that loses data is a reset) and C1 (any other one loses nothing).
#[test]
fn hazard_h14_a_close_is_a_reset_or_delivers_everything_in_every_mode() {
    watched(|| {
        for (mode, how) in Mode::ALL
            .into_iter()
            .flat_map(|mode| [Close::AllRead, Close::Unread, Close::ZeroLinger].map(|how| (mode, how)))
        {
            for closer in [CLIENT, SERVER] {
                let story = format!("{mode:?}, {how:?}, side {closer} closes");
                let mut lab = Lab::new();
                let pair = mode.pair(&mut lab);
                let other = 1 - closer;
                match how {
                    Close::AllRead => {
                        pair.write(other, &bytes(0, 100));
                        pair.expect(closer, &bytes(0, 100));
                        pair.write(closer, &bytes(0, 3000));
                    }
                    Close::Unread => {
                        pair.write(other, &bytes(0, 100));
                        pair.expect(closer, &bytes(0, 60));
                    }
                    Close::ZeroLinger => sys::set_zero_linger(pair.tcp(closer).tcp.as_fd()).unwrap(),
                }
                pair.close(closer);
                if let Close::AllRead = how {
                    pair.expect(other, &bytes(0, 3000));
                    pair.end(other).unwrap_or_else(|error| panic!("{story}: {error}"));
                } else {
                    let error = pair.end(other).expect_err(&story);
                    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{story}");
                }
            }
        }
    });
}

/// A reset behind the end of its sender is a broken pipe to who writes, also where that end came by
/// the ring and the kernel does not know of it.
#[test]
fn a_reset_behind_an_end_is_a_broken_pipe_in_every_mode() {
    watched(|| {
        for mode in Mode::ALL {
            for closer in [CLIENT, SERVER] {
                for shut in [false, true] {
                    let story = format!("{mode:?}, side {closer} closes, the other has ended: {shut}");
                    let mut lab = Lab::new();
                    let pair = mode.pair(&mut lab);
                    let other = 1 - closer;
                    if shut {
                        let descriptor = pair.tcp(other);
                        descriptor.tcp.shutdown(std::net::Shutdown::Write).unwrap();
                    }
                    pair.conns[closer].shutdown_write().unwrap();
                    pair.end(other).unwrap_or_else(|error| panic!("{story}: {error}"));
                    sys::set_zero_linger(pair.tcp(closer).tcp.as_fd()).unwrap();
                    pair.close(closer);
                    lab.run();
                    let mut broken = None;
                    patiently("an error", || {
                        let mut op = writing(b"x");
                        match pair.conns[other].try_write(&mut op, OnPending::Return) {
                            Poll::Ready(Err(error)) => broken = Some(error.kind()),
                            _ => pair.turn(),
                        }
                        broken.is_some()
                    });
                    assert_eq!(broken, Some(ErrorKind::BrokenPipe), "{story}");
                }
            }
        }
    });
}

/// A peer that loses the link first takes this end for dead and writes to TCP. To close with that
/// unread is a reset, as always, whether this end has lost the link as well or not, and whether it
/// has read since the switch or not.
#[test]
fn what_comes_by_tcp_after_the_link_is_unread_like_anything_else() {
    watched(|| {
        for case in 0..32 {
            let [by_ring, settled, heard, comes, by_client] = [1, 2, 4, 8, 16].map(|bit| case & bit != 0);
            let (closer, other) = if by_client { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
            let story = format!(
                "side {closer} closes, writes the ring {by_ring}, settled {settled}, has heard {heard}, unread {comes}"
            );
            let mut lab = Lab::new();
            let pair = if by_ring { lab.pair() } else { mixed(&mut lab, closer) };
            pair.offer(&lab);
            lab.run();
            if settled {
                pair.settle();
            }
            let _ = sys::shutdown_socket(lab.hosts[closer].links()[0].socket());
            lab.hosts[other].run();
            pair.write(closer, &bytes(0, 100));
            if comes {
                pair.write(other, b"x");
                let socket = pair.tcp(closer);
                patiently("the byte", || sys::queued_in(socket.tcp.as_fd()).unwrap() == 1);
            }
            if heard {
                lab.hosts[closer].run();
            }
            pair.close(closer);
            pair.expect(other, &bytes(0, 100));
            match pair.end(other) {
                Err(error) if comes => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{story}"),
                end => assert_eq!(end.is_err(), comes, "{story}: {end:?}"),
            }
        }
    });
}

#[test]
fn hazard_h15_a_link_that_dies_at_every_moment_resets_only_what_has_switched() {
    watched(|| {
        for death in [Death::Fault, Death::Peer] {
            for side in [CLIENT, SERVER] {
                for moment in 1..MOMENTS {
                    let mut lab = Lab::new();
                    let pair = lab.pair();
                    let bystander = lab.pair();
                    pair.write(CLIENT, &bytes(0, 100));
                    pair.write(SERVER, &bytes(0, 100));
                    pair.offer(&lab);
                    for _ in 0..moment {
                        let _ = lab.hosts[SERVER].step() || lab.hosts[CLIENT].step();
                    }
                    let Some(link) = lab.hosts[side].links().first().cloned() else { continue };
                    link.bury(death);
                    lab.run();
                    let switched = pair.writes_ring(CLIENT) || pair.writes_ring(SERVER);
                    for from in [CLIENT, SERVER] {
                        bystander.write(from, &bytes(0, 100));
                        bystander.expect(1 - from, &bytes(0, 100));
                        if !switched {
                            pair.write(from, &bytes(100, 100));
                            pair.expect(1 - from, &bytes(0, 200));
                            let reason = pair.conns[from].transport().fallback_reason();
                            assert!(reason.is_some_and(|reason| reason != FallbackReason::InProgress));
                        }
                    }
                    if switched && death == Death::Fault {
                        for end in [CLIENT, SERVER] {
                            let mut last = None;
                            patiently("the reset", || {
                                last = pair.try_read(end, 1000);
                                matches!(&last, Some(Err(_)))
                                    || matches!(&last, Some(Ok(read)) if read.is_empty())
                            });
                            let error = last.expect("an end").expect_err("a reset");
                            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "moment {moment}");
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn hazard_h12_the_death_of_a_peer_ends_as_tcp_would() {
    watched(|| {
        for (mode, leaves_unread) in Mode::ALL.into_iter().flat_map(|mode| [(mode, false), (mode, true)]) {
            for dies in [CLIENT, SERVER] {
                let mut lab = Lab::new();
                let pair = mode.pair(&mut lab);
                let lives = 1 - dies;
                pair.write(lives, &bytes(0, 100));
                pair.expect(dies, &bytes(0, if leaves_unread { 50 } else { 100 }));
                if !leaves_unread {
                    pair.write(dies, &bytes(0, 2000));
                }
                lab.kill(dies, &pair);
                lab.run();
                if !leaves_unread {
                    pair.expect(lives, &bytes(0, 2000));
                }
                // To ask for readiness takes nothing away from the read that follows.
                patiently("readiness", || {
                    pair.conns[lives]
                        .try_read(&mut super::ops::read_readiness(), OnPending::Return)
                        .is_ready()
                });
                let end = pair.end(lives);
                assert_eq!(end.is_err(), leaves_unread, "{mode:?}, side {dies} dies: {end:?}");
            }
        }
    });
}

#[test]
fn hazard_m8_hostile_cursors_cost_the_link_and_only_the_switched_streams() {
    watched(|| {
        type Lie = fn(&DmbHeader);
        // What the peer's sender can write, and what its reader can.
        let lies: [(&str, bool, Lie); 5] = [
            ("prod far ahead", true, |dmb| dmb.producer.prod.store(u64::MAX, Ordering::Release)),
            ("prod beyond the segment", true, |dmb| dmb.producer.prod.store(5000, Ordering::Release)),
            ("prod back", true, |dmb| dmb.producer.prod.store(1, Ordering::Release)),
            ("hops that are none", true, |dmb| {
                dmb.producer.hop_count.store(u64::MAX, Ordering::Release);
                dmb.producer.prod.store(200, Ordering::Release);
            }),
            ("cons ahead", false, |dmb| dmb.consumer.cons.store(1 << 40, Ordering::Release)),
        ];
        for (name, by_sender, lie) in lies {
            for victim in [CLIENT, SERVER] {
                let mut lab = Lab::new();
                let (pair, other, plain) = (lab.upgraded(), lab.upgraded(), lab.pair());
                for side in [CLIENT, SERVER] {
                    pair.write(side, &bytes(0, 100));
                    pair.expect(1 - side, &bytes(0, 100));
                }
                let conn = &pair.conns[victim];
                if by_sender {
                    lie(lock(&conn.rx).dmb.as_ref().expect("a DMB").consumer.memory().header());
                    let error = pair.try_read(victim, 1000).expect("an answer").expect_err(name);
                    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{name}");
                } else {
                    lie(lock(&conn.tx).dmb.as_ref().expect("a DMB").producer.memory().header());
                    let mut error = None;
                    patiently("the writer looks", || {
                        let data = vec![0; 60_000];
                        let answer = conn.try_write(&mut super::ops::writing(&data), OnPending::Return);
                        if let std::task::Poll::Ready(Err(refused)) = answer {
                            error = Some(refused);
                        }
                        error.is_some()
                    });
                    assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::ConnectionReset), "{name}");
                }
                lab.run();
                for end in [CLIENT, SERVER] {
                    let answer = other.try_read(end, 10).expect("an end");
                    assert!(answer.is_err(), "{name}: the other switched stream of the link");
                    plain.write(end, &bytes(0, 100));
                    plain.expect(1 - end, &bytes(0, 100));
                }
                // The next connection has a new link.
                let next = lab.upgraded();
                assert!(next.conns[CLIENT].transport().is_loopback_ism(), "{name}");
            }
        }
    });
}
