//! The write that shows what a client proves itself by, and what keeps it from showing that.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::task::Poll;

use rustix::event::{PollFd, PollFlags};
use socket2::SockRef;

use super::hosts::{CLIENT, Lab, Pair, SERVER};
use super::ops::writing;
use super::proofs::{goes_on, number_of, turn};
use super::{bytes, watched};
use crate::config::UpgradePolicy;
use crate::conn::{Directions, OnPending, Operation};
use crate::ism::sys;
use crate::peer::PeerPolicy;
use crate::sync::lock;
use crate::transport::{FallbackReason, Transport};

#[test]
fn without_a_sample_the_next_write_goes_on() {
    watched(|| {
        let mut lab = Lab::new();
        // As a socket of unknown history: it has written before the stream was made.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        sys::save_syns(listener.as_fd()).unwrap();
        let port = listener.local_addr().unwrap();
        let _entry = lab.hosts[SERVER].endpoint.publish(port.port(), &PeerPolicy::SameUser).unwrap();
        let mut client = std::net::TcpStream::connect(port).unwrap();
        let mut server = listener.accept().unwrap().0;
        client.write_all(b"before").unwrap();
        server.read_exact(&mut [0; 6]).unwrap();
        server.write_all(b"behind").unwrap();
        client.read_exact(&mut [0; 6]).unwrap();
        let mut pair =
            Pair::of_roles(client, server, [crate::conn::Role::Adopted, crate::conn::Role::Server]);
        // What passed before passed through it.
        lock(&pair.conns[SERVER].rx).own = Some(6);
        lock(&pair.conns[SERVER].tx).own = Some(6);
        pair.accept(&lab);
        assert!(pair.offer(&lab));
        lab.run();
        let conn = &pair.conns[CLIENT];
        assert_eq!(conn.transport(), Transport::Tcp(FallbackReason::NextWrite));
        let mut key = crate::conn::watch::WatchKey::default();
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(conn.poll_upgraded(&mut cx, &mut key).is_ready(), "upgrade() says so");
        turn(&pair);
        lab.run();
        pair.settle();
        assert!(pair.conns[CLIENT].transport().is_loopback_ism(), "{}", pair.conns[CLIENT].transport());
        turn(&pair);
    });
}

#[test]
fn a_write_that_is_held_back_shows_it_all_the_same() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        rustix::net::sockopt::set_tcp_cork(&pair.tcp(CLIENT).tcp, true).unwrap();
        pair.write(CLIENT, b"corked");
        let _ = number_of(&pair);
        assert!(rustix::net::sockopt::tcp_cork(&pair.tcp(CLIENT).tcp).unwrap(), "untouched");
        assert!(pair.offer(&lab));
        lab.run();
        pair.expect(SERVER, b"corked");
        pair.settle();
        assert!(pair.conns[CLIENT].transport().is_loopback_ism());
    });
}

#[test]
fn a_full_window_shows_nothing_and_a_later_write_does() {
    watched(|| {
        let mut lab = Lab::new();
        let mut pair = lab.connect(UpgradePolicy::FirstTurn, 64 << 10);
        pair.accept(&lab);
        for side in [CLIENT, SERVER] {
            SockRef::from(&pair.tcp(side).tcp).set_send_buffer_size(64 << 10).unwrap();
            SockRef::from(&pair.tcp(side).tcp).set_recv_buffer_size(4096).unwrap();
        }
        let mut written = 0;
        let mut fill = |most: u32| {
            for _ in 0..most {
                let chunk = bytes(written, 9000);
                match pair.conns[CLIENT].try_write(&mut writing(&chunk), OnPending::Return) {
                    Poll::Ready(length) => written += length.unwrap() as u64,
                    Poll::Pending => break,
                }
            }
            written
        };
        // The window is full before anything may be sampled.
        pair.conns[CLIENT].upgrade.sample.want_none();
        let mut read = 0;
        let full = fill(u32::MAX);
        assert!(pair.offer(&lab));
        lab.run();
        let conn = &pair.conns[CLIENT];
        assert_eq!(conn.transport(), Transport::Tcp(FallbackReason::NextWrite));
        let mut total = full;
        while conn.transport() == Transport::Tcp(FallbackReason::NextWrite) {
            pair.expect(SERVER, &bytes(read, (total - read) as usize));
            read = total;
            total = fill(1);
            lab.run();
        }
        pair.expect(SERVER, &bytes(read, (total - read) as usize));
        pair.settle();
        assert!(conn.transport().is_loopback_ism(), "{:?}", conn.transport());
        // Nothing is left on the error queue.
        let socket = pair.tcp(CLIENT);
        let mut polled = [PollFd::new(&socket.tcp, PollFlags::empty())];
        rustix::event::poll(&mut polled, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
        assert_eq!(polled[0].revents(), PollFlags::empty());
    });
}

#[test]
fn a_reset_is_told_by_the_write_that_would_be_sampled() {
    watched(|| {
        let lab = Lab::new();
        let pair = lab.pair();
        pair.conns[CLIENT].upgrade.sample.want_next();
        sys::set_zero_linger(pair.tcp(SERVER).tcp.as_fd()).unwrap();
        pair.close(SERVER);
        // As Linux tells it: once, and then that nobody reads.
        for kind in [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe] {
            match pair.conns[CLIENT].try_write(&mut writing(b"late"), OnPending::Return) {
                Poll::Ready(Err(error)) => assert_eq!(error.kind(), kind),
                answer => panic!("{answer:?}"),
            }
        }
    });
}

/// What poll(2) says of a client's socket that nobody asks anything about.
fn troubles(pair: &Pair) -> PollFlags {
    let socket = pair.tcp(CLIENT);
    let mut polled = [PollFd::new(&socket.tcp, PollFlags::empty())];
    rustix::event::poll(&mut polled, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
    polled[0].revents()
}

/// A peer has the sampled packet thrown away, by a buffer that it makes small behind the kernel's
/// back: it is sent again, and each time its sender is shown it.
fn shown_again() -> (Lab, Pair, Vec<u8>) {
    for before in (20..60).step_by(4) {
        let lab = Lab::new();
        let mut pair = lab.connect(UpgradePolicy::FirstTurn, 64 << 10);
        pair.accept(&lab);
        rustix::net::sockopt::set_tcp_nodelay(&pair.tcp(CLIENT).tcp, true).unwrap();
        SockRef::from(&pair.tcp(SERVER).tcp).set_recv_buffer_size(1).unwrap();
        // More would take minutes to arrive.
        SockRef::from(&pair.tcp(CLIENT).tcp).set_send_buffer_size(16 << 10).unwrap();
        pair.conns[CLIENT].upgrade.sample.want_none();
        let sent = bytes(0, before + 100);
        for byte in &sent[..before] {
            pair.write(CLIENT, &[*byte]);
        }
        pair.conns[CLIENT].upgrade.sample.want_next();
        pair.write(CLIENT, &sent[before..]);
        if lock(&pair.conns[CLIENT].tx).sample.sequence.is_none() {
            continue;
        }
        assert_eq!(troubles(&pair), PollFlags::empty(), "taken at once");
        // The kernel waits 200 ms before it sends it again.
        for _ in 0..100 {
            if troubles(&pair) == PollFlags::ERR {
                return (lab, pair, sent);
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    panic!("no packet was thrown away: the test shows nothing");
}

#[test]
fn who_waits_is_not_woken_for_ever_by_a_packet_that_is_sent_again() {
    watched(|| {
        for writes in [false, true] {
            let (mut lab, pair, mut sent) = shown_again();
            if writes {
                let full = bytes(0, 1 << 20);
                let mut written = 0;
                while let Poll::Ready(length) =
                    pair.conns[CLIENT].try_write(&mut writing(&full[written..]), OnPending::Return)
                {
                    written += length.unwrap();
                }
                sent.extend(&full[..written]);
            } else {
                assert!(pair.try_read(CLIENT, 10).is_none());
            }
            assert_eq!(troubles(&pair), PollFlags::empty(), "who waits would find it at each look");
            SockRef::from(&pair.tcp(SERVER).tcp).set_recv_buffer_size(1 << 20).unwrap();
            pair.expect(SERVER, &sent);
            assert!(pair.offer(&lab));
            lab.run();
            turn(&pair);
            pair.settle();
            assert!(pair.conns[CLIENT].transport().is_loopback_ism(), "{}", pair.conns[CLIENT].transport());
            super::hosts::patiently("the end of it", || {
                assert!(pair.try_read(CLIENT, 10).is_none());
                !lock(&pair.conns[CLIENT].tx).sample.late
            });
        }
    });
}

/// Whoever has the socket alone from then on knows nothing of our packets.
#[test]
fn a_direction_is_not_left_to_tcp_before_the_last_packet_was_shown() {
    watched(|| {
        let (mut lab, pair, sent) = shown_again();
        let conn = &pair.conns[CLIENT];
        let is_left = || [Operation::Read, Operation::Write].map(|direction| conn.is_left_to_tcp(direction));
        assert_eq!(is_left(), [false, false], "it may still leave TCP");
        conn.shutdown_write().unwrap();
        SockRef::from(&pair.tcp(SERVER).tcp).set_recv_buffer_size(1 << 20).unwrap();
        super::hosts::patiently("the end of it", || is_left() == [true, true]);
        assert_eq!(troubles(&pair), PollFlags::empty(), "what was shown is taken");
        pair.expect(SERVER, &sent);
        pair.end(SERVER).unwrap();
        lab.run();
    });
}

#[test]
fn who_takes_the_socket_finds_no_packet_of_ours() {
    watched(|| {
        let (_lab, pair, _) = shown_again();
        pair.conns[CLIENT].pin("into_std", Directions::Both).unwrap();
        assert_eq!(troubles(&pair), PollFlags::empty());
    });
}

#[test]
fn an_application_with_an_error_queue_of_its_own_keeps_it() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        let socket = pair.tcp(CLIENT);
        sys::use_error_queue(socket.tcp.as_fd()).unwrap();
        turn(&pair);
        assert!(!lock(&pair.conns[CLIENT].tx).sample.asked);
        assert!(pair.offer(&lab));
        lab.run();
        assert_eq!(pair.conns[CLIENT].transport(), Transport::Tcp(FallbackReason::NoSequence));
        turn(&pair);
    });
}

#[test]
fn a_server_without_the_syn_refuses() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        // Somebody has taken it before.
        assert!(sys::saved_initial_sequence(pair.tcp(SERVER).tcp.as_fd()).unwrap().is_some());
        turn(&pair);
        assert!(pair.offer(&lab));
        lab.run();
        let refused = FallbackReason::Declined(FallbackReason::NoSequence.diagnosis());
        assert_eq!(pair.conns[CLIENT].transport(), Transport::Tcp(refused));
        goes_on(&pair);
    });
}
