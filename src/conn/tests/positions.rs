//! Positions: who else reads and writes the socket, and what the kernel still holds back (hazards
//! C3, H3, M1).

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::task::{Context, Poll, Waker};

use socket2::SockRef;

use super::bytes;
use super::hosts::{CLIENT, Host, Lab, MOMENTS, Pair, SERVER, patiently};
use super::ops::writing;
use super::watched;
use crate::config::UpgradePolicy;
use crate::conn::watch::WatchKey;
use crate::conn::{Effects, OnPending, Role};
use crate::ism::sys;
use crate::peer::PeerPolicy;
use crate::sync::lock;
use crate::transport::{FallbackReason, Transport};

fn pass_on(pair: &Pair, from: usize, length: usize) {
    let data = bytes(7, length);
    pair.write(from, &data);
    pair.expect(1 - from, &data);
}

fn is_upgraded(pair: &Pair) -> bool {
    pair.settle();
    pair.conns.iter().all(|conn| conn.transport().is_loopback_ism())
}

#[test]
fn hazard_c3_bytes_that_passed_before_the_stream_was_made() {
    watched(|| {
        let mut lab = Lab::new();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        sys::save_syns(listener.as_fd()).unwrap();
        let port = listener.local_addr().unwrap().port();
        let _entry = lab.hosts[SERVER].endpoint.publish(port, &PeerPolicy::SameUser).unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut server = listener.accept().unwrap().0;
        client.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nfirst").unwrap();
        server.read_exact(&mut [0; 36]).unwrap();
        server.write_all(b"welcome").unwrap();
        client.read_exact(&mut [0; 3]).unwrap();
        let mut pair = Pair::of_roles(client, server, [Role::Adopted; 2]);
        pair.accept(&lab);
        pair.offer(&lab);
        lab.run();
        // What was written before did not show what the client proves itself by.
        pair.write(CLIENT, b"second");
        lab.run();
        pair.write(SERVER, b"back");
        assert!(pair.writes_ring(CLIENT) && pair.writes_ring(SERVER));
        pair.expect(SERVER, b"firstsecond");
        pair.expect(CLIENT, b"comeback");
        assert!(is_upgraded(&pair));
    });
}

/// What the kernel does not count as this stream does went past it: whoever sees that before the
/// switch stays on TCP. Nobody loses a byte of what is left.
#[test]
fn hazard_c3_others_read_and_write_the_socket_during_the_upgrade() {
    watched(|| {
        let mut on_the_ring = [false; MOMENTS];
        // The number of messages delivered before others touch the socket.
        for (moment, on_the_ring) in on_the_ring.iter_mut().enumerate() {
            let mut lab = Lab::new();
            let pair = lab.pair();
            pair.offer(&lab);
            pair.write(CLIENT, &bytes(0, 100));
            for _ in 0..moment {
                let _ = lab.hosts[SERVER].step() || lab.hosts[CLIENT].step();
            }
            // Past the crate, as SockRef or libc would.
            let raw = pair.tcp(SERVER);
            let mut taken = [0; 60];
            (&raw.tcp).read_exact(&mut taken).unwrap();
            assert_eq!(taken, bytes(0, 60)[..]);
            let switched = pair.writes_ring(CLIENT);
            if !switched {
                (&pair.tcp(CLIENT).tcp).write_all(&bytes(100, 50)).unwrap();
                pair.write(CLIENT, &bytes(150, 10));
            } else {
                pair.write(CLIENT, &bytes(100, 60));
            }
            lab.run();
            pair.write(CLIENT, &bytes(160, 40));
            pair.expect(SERVER, &bytes(60, 140));
            assert_eq!(pair.writes_ring(CLIENT), switched, "moment {moment}");
            if !switched {
                let reason =
                    pair.conns[CLIENT].transport().fallback_reason().map(|reason| reason.diagnosis());
                assert_eq!(reason, Some(FallbackReason::Positions.diagnosis()));
            }
            pass_on(&pair, SERVER, 100);
            *on_the_ring = switched;
        }
        assert!(on_the_ring.contains(&false) && on_the_ring.contains(&true), "{on_the_ring:?}");
    });
}

/// The server's end is the one whose socket others read or write, and the client's knows nothing of
/// it.
#[test]
fn hazard_c3_either_end_may_be_the_one_that_notices() {
    watched(|| {
        for side in [CLIENT, SERVER] {
            for reads in [false, true] {
                let mut lab = Lab::new();
                let pair = lab.pair();
                pass_on(&pair, 1 - side, 50);
                let raw = pair.tcp(side);
                if reads {
                    pair.write(1 - side, b"taken");
                    patiently("the bytes", || sys::queued_in(raw.tcp.as_fd()).unwrap() == 5);
                    (&raw.tcp).read_exact(&mut [0; 5]).unwrap();
                } else {
                    (&raw.tcp).write_all(b"given").unwrap();
                    pair.expect(1 - side, b"given");
                }
                pair.offer(&lab);
                lab.run();
                for from in [CLIENT, SERVER] {
                    pass_on(&pair, from, 1000);
                    lab.run();
                    assert!(!pair.writes_ring(from), "side {side}, reads: {reads}");
                }
                let reason =
                    pair.conns[CLIENT].transport().fallback_reason().map(|reason| reason.diagnosis());
                assert_eq!(reason, Some(FallbackReason::Positions.diagnosis()));
                assert_eq!(lab.slots_in_use(), 0);
            }
        }
    });
}

#[test]
fn hazard_c3_two_streams_of_one_connection() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        // Another stream on a copy of the client's descriptor: both offer, each tells the same
        // cookie.
        let copy = pair.tcp(CLIENT).tcp.try_clone().unwrap();
        let unused = lab.pair();
        let other = Pair::new(copy, unused.tcp(SERVER).tcp.try_clone().unwrap(), UpgradePolicy::Manual, 4096);
        pair.offer(&lab);
        other.offer(&lab);
        lab.run();
        let switched = usize::from(pair.writes_ring(CLIENT)) + usize::from(other.writes_ring(CLIENT));
        assert!(switched <= 1, "one connection, one upgrade");
        pass_on(&pair, SERVER, 100);
        pass_on(&pair, CLIENT, 100);
    });
}

#[test]
fn hazard_h3_a_switch_behind_a_full_socket() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        for side in [CLIENT, SERVER] {
            SockRef::from(&pair.tcp(side).tcp).set_send_buffer_size(8192).unwrap();
            SockRef::from(&pair.tcp(side).tcp).set_recv_buffer_size(8192).unwrap();
        }
        let mut written = 0;
        while let Poll::Ready(Ok(length)) =
            pair.conns[CLIENT].try_write(&mut writing(&bytes(written, 5000)), OnPending::Return)
        {
            written += length as u64;
        }
        pair.offer(&lab);
        lab.run();
        assert!(pair.writes_ring(CLIENT), "a full socket keeps nobody on TCP");
        pair.write(CLIENT, &bytes(written, 3000));
        pair.expect(SERVER, &bytes(0, written as usize + 3000));
        assert!(is_upgraded(&pair));
    });
}

#[test]
fn hazard_m1_what_nagle_or_a_cork_hold_back_is_pushed() {
    watched(|| {
        for corked in [false, true] {
            let mut lab = Lab::new();
            let pair = lab.pair();
            let socket = pair.tcp(CLIENT);
            socket.tcp.set_nodelay(false).unwrap();
            rustix::net::sockopt::set_tcp_cork(&socket.tcp, corked).unwrap();
            // Of small writes in a row Nagle's algorithm holds back all but the first.
            pair.write(CLIENT, &bytes(0, 100));
            pair.write(CLIENT, &bytes(100, 100));
            pair.offer(&lab);
            lab.run();
            assert!(pair.writes_ring(CLIENT));
            assert_eq!(sys::unsent_out(socket.tcp.as_fd()).unwrap(), 0, "corked: {corked}");
            patiently("the rest", || sys::queued_in(pair.tcp(SERVER).tcp.as_fd()).unwrap() == 200);
            pair.write(CLIENT, &bytes(200, 100));
            pair.expect(SERVER, &bytes(0, 300));
            assert!(!socket.tcp.nodelay().unwrap(), "restored");
            assert_eq!(rustix::net::sockopt::tcp_cork(&socket.tcp).unwrap(), corked, "untouched");
        }
    });
}

#[test]
fn bytes_behind_the_switch_reset_the_connection_and_nothing_else() {
    watched(|| {
        let mut lab = Lab::new();
        let (pair, other) = (lab.upgraded(), lab.upgraded());
        let third = lab.pair();
        third.offer(&lab);
        lab.run();
        third.write(CLIENT, b"in the ring");
        // Somebody writes to the socket of a switched direction; its reader has yet to see the
        // switch.
        (&third.tcp(CLIENT).tcp).write_all(b"foreign").unwrap();
        patiently("the foreign bytes", || sys::queued_in(third.tcp(SERVER).tcp.as_fd()).unwrap() == 7);
        let error = third.end(SERVER).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert!(third.try_read(CLIENT, 10).unwrap().is_err());
        lab.run();
        pass_on(&pair, CLIENT, 1000);
        pass_on(&other, SERVER, 1000);
        assert!(is_upgraded(&lab.upgraded()), "the link lives");
    });
}

/// The reason is settled for once the lock is free, and who waits for the upgrade may look before.
#[test]
fn who_waits_is_told_why_a_direction_stays_and_not_that_it_does() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        assert!(pair.offer(&lab));
        let conn = &pair.conns[SERVER];
        // Without this number the server does not switch, until it is back.
        let mut syn = None;
        loop {
            syn = lock(&conn.tx).syn.take().or(syn);
            lab.hosts.iter().for_each(Host::settle);
            if !(lab.hosts[CLIENT].step() | lab.hosts[SERVER].step()) {
                break;
            }
        }
        assert!(syn.is_some() && lock(&conn.tx).dmb.is_some() && !pair.writes_ring(SERVER));
        pair.turn();
        SockRef::from(&*pair.tcp(SERVER)).send_out_of_band(b"!").unwrap();
        let mut effects = Effects::default();
        {
            let mut tx = lock(&conn.tx);
            tx.syn = syn;
            tx.try_switch(&mut effects);
            assert!(tx.pinned, "it has found the byte");
        }
        let mut cx = Context::from_waker(Waker::noop());
        let seen = conn.poll_upgraded(&mut cx, &mut WatchKey::default());
        assert_eq!(seen, Poll::Ready(Transport::Tcp(FallbackReason::Positions)));
        conn.carry_out(effects);
        assert_eq!(conn.transport(), Transport::Tcp(FallbackReason::Positions));
    });
}
