//! What is done to the TCP socket under a stream, and how the ring tells it: shutdowns and resets
//! of the descriptor, from this process and from outside (docs/protocol.md, "Closing").

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::task::Poll;

use super::aborts::{Mode, mixed};
use super::bytes;
use super::hosts::{CLIENT, Lab, SERVER, patiently};
use super::watched;
use crate::conn::OnPending;
use crate::ism::dmb::Flags;
use crate::ism::sys;
use crate::link::stream::{LinkedStream, Verdict};
use crate::sync::{Ordering, lock};
use crate::transport::FallbackReason;

#[test]
fn a_shut_descriptor_is_an_end_in_the_ring() {
    watched(|| {
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
    watched(|| {
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

/// After the first of two shutdowns of its descriptor the socket is still listened to, also when
/// nothing but an acknowledgement has happened in between.
#[test]
fn a_descriptor_is_heeded_until_both_directions_have_ended() {
    watched(|| {
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
    watched(|| {
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
    watched(|| {
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
    watched(|| {
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
    watched(|| {
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
    watched(|| {
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
    watched(|| {
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
    watched(|| {
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
    watched(|| {
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
