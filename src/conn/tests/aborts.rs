//! Ends that are not peaceful: closes with unread bytes, deaths of links and peers, peers that lie in the ring
//! (hazards C1, H12, H14, H15, M8).

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::task::Poll;

use super::bytes;
use super::hosts::MOMENTS;
use super::hosts::{CLIENT, Lab, Pair, SERVER, patiently};
use super::watched;
use crate::conn::{Directions, OnPending};
use crate::ism::dmb::{DmbHeader, Flags};
use crate::ism::ring::Memory;
use crate::ism::sys;
use crate::link::stream::{Death, LinkedStream, Verdict};
use crate::sync::{Ordering, lock};
use crate::transport::FallbackReason;

/// How far the upgrade of a connection has come.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Tcp,
    /// The bytes that this side writes go through TCP, those of the other one through the ring.
    MixedByTcp(usize),
    Ring,
}

impl Mode {
    const ALL: [Mode; 4] = [Mode::Tcp, Mode::MixedByTcp(SERVER), Mode::MixedByTcp(CLIENT), Mode::Ring];

    fn pair(self, lab: &mut Lab) -> Pair {
        match self {
            Mode::Tcp => lab.pair(),
            Mode::MixedByTcp(side) => mixed(lab, side),
            Mode::Ring => lab.upgraded(),
        }
    }
}

/// A connection of which one direction has switched and the other one never will: what `by_tcp` writes goes through TCP.
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
fn hazard_h14_c1_a_close_is_a_reset_or_delivers_everything_in_every_mode() {
    watched("hazard_h14_c1_a_close_is_a_reset_or_delivers_everything_in_every_mode", || {
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

/// A peer that loses the link first takes this end for dead and writes to TCP. To close with that
/// unread is a reset, as always, whether this end has lost the link as well or not, and whether it
/// has read since the switch or not.
#[test]
fn what_comes_by_tcp_after_the_link_is_unread_like_anything_else() {
    watched("what_comes_by_tcp_after_the_link_is_unread_like_anything_else", || {
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
fn a_shut_descriptor_is_an_end_in_the_ring() {
    watched("a_shut_descriptor_is_an_end_in_the_ring", || {
        for mode in Mode::ALL {
            for kicked in [CLIENT, SERVER] {
                let mut lab = Lab::new();
                let pair = mode.pair(&mut lab);
                pair.settle();
                let other = 1 - kicked;
                lab.run();
                pair.write(kicked, &bytes(0, 100));
                pair.write(other, &bytes(0, 100));
                pair.tcp(kicked).tcp.shutdown(std::net::Shutdown::Both).unwrap();
                pair.turn();
                lab.run();
                pair.expect(other, &bytes(0, 100));
                pair.end(other).unwrap_or_else(|error| panic!("{mode:?}, side {kicked}: {error}"));
                pair.expect(kicked, &bytes(0, 100));
                pair.end(kicked).unwrap_or_else(|error| panic!("{mode:?}, side {kicked}: {error}"));
                let refused = pair.conns[kicked].try_write(&mut super::ops::writing(b"x"), OnPending::Return);
                let Poll::Ready(Err(error)) = refused else { panic!("{mode:?}, side {kicked} writes") };
                assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{mode:?}, side {kicked}");
            }
        }
    });
}

#[test]
fn a_reset_from_outside_is_a_reset_in_the_ring() {
    watched("a_reset_from_outside_is_a_reset_in_the_ring", || {
        let mut lab = Lab::new();
        let pair = lab.upgraded();
        pair.write(SERVER, &bytes(0, 100));
        sys::reset_connection(pair.tcp(SERVER).tcp.as_fd()).unwrap();
        pair.turn();
        lab.run();
        pair.expect(CLIENT, &bytes(0, 100));
        assert_eq!(pair.end(CLIENT).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
    });
}

/// After the first of two shutdowns of its descriptor the socket is still listened to, also when nothing but an
/// acknowledgement has happened in between.
#[test]
fn a_descriptor_is_heeded_until_both_directions_have_ended() {
    watched("a_descriptor_is_heeded_until_both_directions_have_ended", || {
        for kicked in [CLIENT, SERVER] {
            use std::net::Shutdown::{Both, Read, Write};
            for (first, how) in [(Write, Read), (Write, Both), (Read, Write), (Read, Both)] {
                let mut lab = Lab::new();
                let pair = lab.upgraded();
                lab.run();
                let socket = pair.tcp(kicked);
                let mut turn = || {
                    socket.turn();
                    lab.hosts[kicked].run();
                };
                socket.tcp.shutdown(first).unwrap();
                turn();
                patiently("the acknowledgement", || {
                    turn();
                    let state = sys::tcp_look(socket.tcp.as_fd()).unwrap().state;
                    first == Read || state == sys::TcpState::FinWait2
                });
                turn();
                let reader = (first == Write).then(|| pair.park_reader(kicked));
                socket.tcp.shutdown(how).unwrap();
                turn();
                assert!(reader.is_none_or(|reader| reader.is_woken()));
                pair.end(kicked).unwrap();
                let flags =
                    lock(&pair.conns[1 - kicked].tx).dmb.as_ref().expect("a DMB").producer.reader_flags();
                assert!(flags.contains(Flags::SHUT), "{flags:?}");
            }
        }
    });
}

/// Where one direction stays on TCP, the reset is told once, to who writes there as well.
#[test]
fn a_reset_of_a_mixed_stream_is_left_to_who_asks_first() {
    watched("a_reset_of_a_mixed_stream_is_left_to_who_asks_first", || {
        for (kicked, reads_first) in [(CLIENT, false), (CLIENT, true), (SERVER, false), (SERVER, true)] {
            let mut lab = Lab::new();
            // It reads the ring and writes to TCP.
            let pair = mixed(&mut lab, kicked);
            pair.settle();
            lab.run();
            pair.write(1 - kicked, &bytes(0, 100));
            sys::reset_connection(pair.tcp(1 - kicked).tcp.as_fd()).unwrap();
            let socket = pair.tcp(kicked);
            patiently("the reset", || {
                sys::tcp_look(socket.tcp.as_fd()).unwrap().state == sys::TcpState::Close
            });
            socket.turn();
            lab.hosts[kicked].run();
            let write =
                || match pair.conns[kicked].try_write(&mut super::ops::writing(b"x"), OnPending::Return) {
                    Poll::Ready(Err(error)) => error.kind(),
                    answer => panic!("{answer:?}"),
                };
            if !reads_first {
                assert_eq!(write(), ErrorKind::ConnectionReset);
            }
            pair.expect(kicked, &bytes(0, 100));
            let end = pair.end(kicked).map_err(|error| error.kind());
            assert_eq!(end, if reads_first { Err(ErrorKind::ConnectionReset) } else { Ok(()) });
            assert_eq!(write(), ErrorKind::BrokenPipe);
        }
    });
}

#[test]
fn what_comes_over_tcp_to_a_mixed_stream_needs_no_task() {
    watched("what_comes_over_tcp_to_a_mixed_stream_needs_no_task", || {
        for reads_tcp in [CLIENT, SERVER] {
            let mut lab = Lab::new();
            let pair = mixed(&mut lab, 1 - reads_tcp);
            pair.settle();
            lab.run();
            for turn in 0..5 {
                pair.write(1 - reads_tcp, &bytes(turn * 100, 100));
                let socket = pair.tcp(reads_tcp);
                patiently("the bytes", || {
                    sys::queued_in(socket.tcp.as_fd()).is_ok_and(|unread| unread == 100)
                });
                socket.turn();
                assert!(!lab.hosts[reads_tcp].has_work(), "turn {turn}");
                pair.expect(reads_tcp, &bytes(turn * 100, 100));
            }
            // It still listens.
            sys::reset_connection(pair.tcp(reads_tcp).tcp.as_fd()).unwrap();
            pair.tcp(reads_tcp).turn();
            assert!(lab.hosts[reads_tcp].has_work());
            lab.hosts[reads_tcp].run();
            assert_eq!(pair.end(1 - reads_tcp).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
        }
    });
}

/// `take_error`, `SO_ERROR`: the one error of the socket is gone before anybody else has looked.
#[test]
fn a_reset_of_which_somebody_was_told_is_a_reset_all_the_same() {
    watched("a_reset_of_which_somebody_was_told_is_a_reset_all_the_same", || {
        for kicked in [CLIENT, SERVER] {
            let mut lab = Lab::new();
            let pair = lab.upgraded();
            lab.run();
            pair.write(kicked, &bytes(0, 100));
            sys::reset_connection(pair.tcp(1 - kicked).tcp.as_fd()).unwrap();
            let socket = pair.tcp(kicked);
            patiently("the reset", || {
                sys::tcp_look(socket.tcp.as_fd()).unwrap().state == sys::TcpState::Close
            });
            assert!(socket.tcp.take_error().unwrap().is_some());
            socket.turn();
            lab.hosts[kicked].run();
            pair.expect(1 - kicked, &bytes(0, 100));
            assert_eq!(pair.end(1 - kicked).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
        }
    });
}

/// Both FINs have come before anybody looks.
#[test]
fn a_socket_that_came_to_its_end_is_no_reset() {
    watched("a_socket_that_came_to_its_end_is_no_reset", || {
        for kicked in [CLIENT, SERVER] {
            let mut lab = Lab::new();
            let pair = lab.upgraded();
            lab.run();
            pair.write(kicked, &bytes(0, 100));
            pair.tcp(kicked).tcp.shutdown(std::net::Shutdown::Write).unwrap();
            let (here, there) = (pair.tcp(kicked), pair.tcp(1 - kicked));
            patiently("the FIN", || {
                sys::tcp_look(there.tcp.as_fd()).unwrap().state == sys::TcpState::CloseWait
            });
            there.tcp.shutdown(std::net::Shutdown::Write).unwrap();
            patiently("the end", || sys::tcp_look(here.tcp.as_fd()).unwrap().state == sys::TcpState::Close);
            let ended = sys::ended(here.tcp.as_fd()).unwrap();
            assert!(!ended.reads && ended.writes && !ended.reset, "{ended:?}");
            here.turn();
            lab.hosts[kicked].run();
            pair.expect(1 - kicked, &bytes(0, 100));
            pair.end(1 - kicked).unwrap();
        }
    });
}

/// The server has no memory for the client's ring, say: its own direction stays on TCP for good.
#[test]
fn who_can_not_send_heeds_its_descriptor_too() {
    watched("who_can_not_send_heeds_its_descriptor_too", || {
        let mut lab = Lab::new();
        let pair = lab.pair();
        pair.offer(&lab);
        while lock(&pair.conns[SERVER].rx).dmb.is_none() {
            assert!(lab.hosts[SERVER].step() || lab.hosts[CLIENT].step(), "MATCH");
        }
        pair.conns[SERVER].verdict(Verdict::CanNotSend(FallbackReason::Memory));
        lab.hosts[CLIENT].run();
        assert!(pair.writes_ring(CLIENT));
        pair.settle();
        lab.hosts[SERVER].work();
        let reader = pair.park_reader(SERVER);
        pair.tcp(SERVER).tcp.shutdown(std::net::Shutdown::Read).unwrap();
        pair.tcp(SERVER).turn();
        lab.hosts[SERVER].work();
        assert!(reader.is_woken());
        pair.end(SERVER).unwrap();
    });
}

#[test]
fn a_look_that_panics_resets_the_stream() {
    watched("a_look_that_panics_resets_the_stream", || {
        for kicked in [CLIENT, SERVER] {
            let mut lab = Lab::new();
            let pair = lab.upgraded();
            lab.run();
            let socket = pair.tcp(kicked);
            socket.broken.store(true, Ordering::Relaxed);
            socket.tcp.shutdown(std::net::Shutdown::Write).unwrap();
            socket.turn();
            lab.hosts[kicked].run();
            assert_eq!(pair.end(1 - kicked).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn a_shutdown_behind_a_reset_from_outside_is_no_end_to_the_peer() {
    watched("a_shutdown_behind_a_reset_from_outside_is_no_end_to_the_peer", || {
        for (kicked, closes) in [(CLIENT, false), (CLIENT, true), (SERVER, false), (SERVER, true)] {
            let mut lab = Lab::new();
            let pair = lab.upgraded();
            lab.run();
            pair.write(kicked, &bytes(0, 100));
            sys::reset_connection(pair.tcp(kicked).tcp.as_fd()).unwrap();
            // The peer's own reactor is slower.
            pair.tcp(kicked).turn();
            lab.hosts[kicked].run();
            pair.conns[kicked].shutdown_write().unwrap();
            if closes {
                pair.close(kicked);
            }
            pair.expect(1 - kicked, &bytes(0, 100));
            assert_eq!(pair.end(1 - kicked).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
        }
    });
}

/// A stream whose peer has switched long ago, and which has not read since.
#[test]
fn what_ends_before_the_first_read_of_the_ring_is_not_forgotten() {
    watched("what_ends_before_the_first_read_of_the_ring_is_not_forgotten", || {
        for (kicked, resets) in [(CLIENT, false), (CLIENT, true), (SERVER, false), (SERVER, true)] {
            let mut lab = Lab::new();
            let pair = lab.pair();
            pair.offer(&lab);
            lab.run();
            assert!(pair.writes_ring(1 - kicked) && !pair.reads_ring(kicked));
            pair.write(1 - kicked, &bytes(0, 100));
            let socket = pair.tcp(kicked);
            if resets {
                sys::reset_connection(socket.tcp.as_fd()).unwrap();
            } else {
                socket.tcp.shutdown(std::net::Shutdown::Read).unwrap();
            }
            socket.turn();
            lab.hosts[kicked].run();
            pair.expect(kicked, &bytes(0, 100));
            let end = pair.end(kicked).map_err(|error| error.kind());
            let expected = if resets { Err(ErrorKind::ConnectionReset) } else { Ok(()) };
            assert_eq!(end, expected, "side {kicked}, resets {resets}");
        }
    });
}

#[test]
fn hazard_h15_a_link_that_dies_at_every_moment_resets_only_what_has_switched() {
    watched("hazard_h15_a_link_that_dies_at_every_moment_resets_only_what_has_switched", || {
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
    watched("hazard_h12_the_death_of_a_peer_ends_as_tcp_would", || {
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
    watched("hazard_m8_hostile_cursors_cost_the_link_and_only_the_switched_streams", || {
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
