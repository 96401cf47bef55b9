//! Peers that take more than their share, or keep what is ours and say nothing.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::bytes;
use super::hosts::{CLIENT, Lab, MOMENTS, Pair, SERVER, patiently};
use super::watched;
use crate::config::UpgradePolicy;
use crate::conn::deserted::FIRST_LOOK;
use crate::conn::upgrade::Phase;
use crate::ism::budget;
use crate::ism::device::{Device, EndpointEntry, PortEntry};
use crate::ism::sys;
use crate::link::message::LONGEST;
use crate::transport::{FallbackReason, Transport};

/// Endpoints that listen on the server's port and never answer.
struct Silent {
    entries: Vec<(EndpointEntry, PortEntry)>,
    heard: Vec<OwnedFd>,
}

impl Silent {
    fn on(lab: &Lab, number: usize) -> Self {
        let device = Device::open(Some(lab.dir.path())).expect("the device");
        let entries = (0..number).map(|_| {
            let entry = device.create_endpoint().expect("an endpoint");
            let port = device.publish_port(lab.port(), entry.id()).expect("a port");
            (entry, port)
        });
        Silent { entries: entries.collect(), heard: Vec::new() }
    }

    /// Connections that stand at the moment, and those that ever came.
    fn asked(&mut self) -> (usize, usize) {
        for (entry, _) in &self.entries {
            let listener = entry.listener().expect("it listens");
            while let Some(socket) = sys::accept(listener).expect("accept") {
                self.heard.push(socket);
            }
        }
        let stands = |socket: &&OwnedFd| !sys::has_hung_up(socket.as_fd()).expect("poll");
        (self.heard.iter().filter(stands).count(), self.heard.len())
    }
}

fn reason(pair: &Pair) -> Transport {
    pair.conns[CLIENT].transport()
}

/// The client's end waits for nothing any more. (That the peer is late shows before.)
fn settled(pair: &Pair) -> bool {
    matches!(pair.conns[CLIENT].upgrade.phase(), Phase::Settled(_))
}

const IN_PROGRESS: Transport = Transport::Tcp(FallbackReason::InProgress);
const NO_ANSWER: Transport = Transport::Tcp(FallbackReason::NoAnswer);

#[test]
fn silent_candidates_are_asked_some_at_a_time_and_do_not_hide_the_owner() {
    watched(|| {
        let mut lab = Lab::new();
        let mut silent = Silent::on(&lab, 100);
        let pair = lab.pair();
        assert!(pair.offer(&lab));
        let mut most = 0;
        for _ in 0..20 {
            lab.run();
            most = silent.asked().0.max(most);
            lab.pass(Duration::from_secs(1));
        }
        // None, if the owner is among the first that are asked.
        assert!(most <= 16, "{most} descriptors at a time");
        pair.settle();
        assert!(pair.reads_ring(CLIENT) && pair.reads_ring(SERVER));
        assert_eq!(silent.asked().0, 0, "nobody is asked any more");
    });
}

#[test]
fn many_searches_share_the_places_to_ask_from_and_end() {
    watched(|| {
        let mut lab = Lab::new();
        let mut silent = Silent::on(&lab, 40);
        // Of a server that is none of ours: nobody holds these.
        let pairs: Vec<_> = (0..30).map(|_| lab.connect(UpgradePolicy::Manual, 64 << 10)).collect();
        lab.hosts[SERVER].dead = true;
        assert!(pairs.iter().all(|pair| pair.offer(&lab)));
        let mut most = 0;
        for _ in 0..1000 {
            lab.run();
            most = silent.asked().0.max(most);
            lab.pass(Duration::from_secs(1));
            if pairs.iter().all(settled) {
                break;
            }
        }
        assert!((17..=64).contains(&most), "{most} descriptors at a time");
        assert!(pairs.iter().all(settled) && pairs.iter().all(|pair| reason(pair) == NO_ANSWER));
        assert_eq!(silent.asked().0, 0);
    });
}

#[test]
fn an_endpoint_that_does_not_greet_holds_no_link_for_ever() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        assert!(pair.offer(&lab));
        let client = &mut lab.hosts[CLIENT];
        client.run();
        assert_eq!((client.links().len(), reason(&pair)), (1, IN_PROGRESS));
        client.pass(Duration::from_secs(29));
        client.run();
        assert_eq!((client.links().len(), reason(&pair)), (1, IN_PROGRESS));
        client.pass(Duration::from_secs(30));
        client.run();
        assert_eq!((client.links().len(), reason(&pair)), (0, NO_ANSWER));
        pair.write(CLIENT, b"hello");
        pair.expect(SERVER, b"hello");
    });
}

#[test]
fn queries_for_what_is_never_accepted_hold_so_many_descriptors_and_no_more() {
    watched(|| {
        let mut lab = Lab::new();
        let bystander = lab.upgraded();
        let most = budget::most_for_peers(1024);
        let (mut asked, mut refused) = (Vec::new(), 0);
        for number in 0..most + 20 {
            let port = 1 + u16::try_from(number).expect("few");
            asked.push(lab.question(port));
            lab.run();
        }
        for socket in &asked {
            if sys::recv(socket.as_fd(), &mut [0; LONGEST], 0).is_ok() {
                refused += 1;
            }
        }
        assert_eq!(refused, 20);
        for side in [CLIENT, SERVER] {
            bystander.write(side, &bytes(0, 700));
            bystander.expect(1 - side, &bytes(0, 700));
        }
        // Who asks for longer than anybody who is served is told to go.
        lab.pass(Duration::from_secs(61));
        let open = asked.iter().filter(|socket| !sys::has_hung_up(socket.as_fd()).expect("poll"));
        assert_eq!(open.count(), 0);
    });
}

/// The client's process closes the socket, and nobody says so in the ring.
fn desert(pair: &Pair) {
    drop(pair.conns[CLIENT].take_socket().expect("the socket"));
    assert!(pair.socket(CLIENT).is_none());
}

#[test]
fn a_peer_that_closes_its_socket_without_a_word_is_not_waited_for() {
    watched(|| {
        for mixed in [false, true] {
            let mut lab = Lab::new();
            let pair = if mixed { super::aborts::mixed(&mut lab, SERVER) } else { lab.upgraded() };
            pair.write(CLIENT, &bytes(0, 700));
            pair.settle();
            desert(&pair);
            pair.turn();
            lab.run();
            pair.expect(SERVER, &bytes(0, 300));
            lab.pass(FIRST_LOOK);
            // What is in the ring is delivered.
            pair.expect(SERVER, &bytes(300, 400));
            let error = pair.end(SERVER).expect_err("a reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            pair.close(SERVER);
            assert!(pair.socket(SERVER).is_none(), "no descriptor is left");
        }
    });
}

#[test]
fn descriptors_that_run_short_are_not_lent_for_a_second() {
    watched(|| {
        let mut lab = Lab::new();
        for short in [false, true] {
            let address = lab.listener.local_addr().expect("an address");
            let client = TcpStream::connect(address).expect("connect");
            let mut server = lab.listener.accept().expect("accept").0;
            if short {
                // As if all numbers below were in use.
                let half = i32::try_from(sys::descriptor_limit() / 2).expect("a descriptor");
                server = rustix::io::fcntl_dupfd_cloexec(&server, half).expect("a copy").into();
            }
            let mut pair = Pair::new(client, server, UpgradePolicy::Manual, 64 << 10);
            pair.accept(&lab);
            pair.offer(&lab);
            lab.run();
            pair.settle();
            pair.write(CLIENT, &bytes(0, 700));
            desert(&pair);
            pair.turn();
            lab.run();
            lab.pass(FIRST_LOOK / 5);
            pair.expect(SERVER, &bytes(0, 700));
            let end = pair.try_read(SERVER, 1);
            assert_eq!(end.is_some(), short, "{end:?}");
        }
    });
}

#[test]
fn a_fin_of_a_socket_that_is_held_cuts_nobody_off() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.upgraded();
        pair.write(CLIENT, &bytes(0, 700));
        // By its descriptor; the client's runtime is stopped, and can not carry that over.
        pair.tcp(CLIENT).tcp.shutdown(std::net::Shutdown::Write).expect("shutdown");
        pair.tcp(SERVER).turn();
        lab.hosts[SERVER].run();
        for _ in 0..30 {
            lab.hosts[SERVER].pass(Duration::from_secs(64));
            lab.hosts[SERVER].run();
        }
        pair.expect(SERVER, &bytes(0, 700));
        assert!(pair.try_read(SERVER, 1).is_none(), "it may go on");
        pair.turn();
        lab.run();
        pair.end(SERVER).expect("the end of the stream");
        pair.write(SERVER, &bytes(0, 300));
        pair.expect(CLIENT, &bytes(0, 300));
    });
}

#[test]
fn a_process_that_ends_is_told_from_one_that_deserts() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.upgraded();
        pair.write(CLIENT, &bytes(0, 700));
        lab.kill(CLIENT, &pair);
        pair.turn();
        // Its link has ended, which this end has not noticed yet.
        lab.hosts[SERVER].work();
        lab.hosts[SERVER].pass(FIRST_LOOK);
        lab.run();
        pair.expect(SERVER, &bytes(0, 700));
        pair.end(SERVER).expect("the end of the stream");
    });
}

#[test]
fn a_closed_stream_does_not_wait_for_ever_for_the_peers_clc() {
    watched(|| {
        let mut leaving = 0;
        for (patience, moment) in
            [0, 30].into_iter().flat_map(|patience| (0..MOMENTS).map(move |m| (patience, m)))
        {
            let mut lab = Lab::with_patience(Duration::from_secs(patience));
            let pair = lab.pair_with(UpgradePolicy::Handshake);
            pair.offer(&lab);
            for _ in 0..moment {
                let _ = lab.hosts[SERVER].step() || lab.hosts[CLIENT].step();
            }
            // And the client says nothing from now on.
            lab.hosts[CLIENT].dead = true;
            pair.close(SERVER);
            let waits = pair.leaving();
            leaving += waits;
            pair.turn();
            assert_eq!(pair.leaving(), if patience == 0 { 0 } else { waits }, "after {moment} messages");
            if waits > 0 && patience == 0 {
                let mut rest = [0; 1000];
                patiently("the end of the socket", || match (&pair.tcp(CLIENT).tcp).read(&mut rest) {
                    Ok(length) => length == 0,
                    Err(error) => error.kind() != ErrorKind::WouldBlock,
                });
            }
        }
        assert!(leaving >= 2, "{leaving} wait");
    });
}
