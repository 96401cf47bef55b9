//! What the roster tells of a connection, and that it waits for nobody.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use super::hosts::{CLIENT, Lab, Pair, SERVER, patiently};
use super::socket::StdTcp;
use super::watched;
use crate::config::{Config, UpgradePolicy};
use crate::conn::{Connection, Role};
use crate::ism::sys;
use crate::link::accepted::Found;
use crate::link::endpoint::ListedAsAccepted;
use crate::link::message::{Destination, Subject, Tuple};
use crate::link::roster::streams;
use crate::link::stream::{LinkedStream, Verdict};
use crate::peer::PeerPolicy;
use crate::stats::{StreamRole, StreamStats};
use crate::sync::{Arc, lock};
use crate::transport::{FallbackReason, Transport};

/// The addresses of one end, its own first.
fn addresses(pair: &Pair, side: usize) -> (SocketAddr, SocketAddr) {
    let socket = pair.tcp(side);
    (socket.tcp.local_addr().expect("local"), socket.tcp.peer_addr().expect("peer"))
}

/// That end, as the roster has it.
fn seen((local, peer): (SocketAddr, SocketAddr)) -> Option<StreamStats> {
    let mut found = streams();
    found.retain(|stream| (stream.local_addr, stream.peer_addr) == (Some(local), Some(peer)));
    assert!(found.len() <= 1, "twice: {found:?}");
    found.pop()
}

#[test]
fn a_stream_is_in_the_roster_until_it_is_closed() {
    watched(|| {
        let lab = Lab::new();
        let pair = lab.connect(UpgradePolicy::Manual, 64 << 10);
        let names = [CLIENT, SERVER].map(|side| addresses(&pair, side));
        let [client, server] = names.map(|name| seen(name).expect("it is open"));
        assert_eq!((client.role, server.role), (StreamRole::Client, StreamRole::Server));
        assert_eq!(client.policy, UpgradePolicy::Manual);
        assert_eq!(client.transport, Transport::Tcp(FallbackReason::NotYet));
        assert_eq!(client.upgraded_after, None);
        pair.write(CLIENT, b"hello");
        pair.expect(SERVER, b"hello");
        let [client, server] = names.map(|name| seen(name).expect("it is open"));
        assert_eq!((client.counters, server.counters), (pair.conns[0].counters(), pair.conns[1].counters()));
        assert_eq!((client.counters.tcp_bytes_written, server.counters.tcp_bytes_read), (5, 5));
        // As a `TransportWatch` keeps it.
        let kept = pair.conns[CLIENT].clone();
        pair.close(CLIENT);
        assert_eq!(seen(names[CLIENT]), None);
        assert!(seen(names[SERVER]).is_some());
        drop(pair);
        assert_eq!(seen(names[SERVER]), None);
        drop(kept);
    });
}

#[test]
fn an_upgrade_is_noted_when_the_last_direction_has_left_tcp() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        assert!(pair.offer(&lab));
        lab.run();
        // Nobody has asked for the transport.
        pair.settle();
        for side in [CLIENT, SERVER] {
            let done = pair.conns[side].upgrade.done().expect("noted");
            let stream = seen(addresses(&pair, side)).expect("it is open");
            assert_eq!(stream.transport, Transport::LoopbackIsm(done.1));
            assert!(stream.upgraded_after.is_some_and(|after| after <= stream.age));
            assert_eq!(pair.conns[side].upgrade.done(), Some(done));
        }
    });
}

#[test]
fn an_upgrade_counts_though_its_socket_is_shared() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        assert!(pair.offer(&lab));
        lab.run();
        for side in [CLIENT, SERVER] {
            // Nobody has looked since both directions left TCP.
            pair.conns[side].verdict(Verdict::SocketShared);
            let noted = pair.conns[side].upgrade.done().is_some();
            assert!(noted && pair.conns[side].transport().is_loopback_ism(), "{side}");
        }
    });
}

#[test]
fn a_look_waits_for_nobody_s_lock() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.upgraded();
        let name = addresses(&pair, CLIENT);
        pair.write(CLIENT, b"hello");
        let before = seen(name).expect("it is open");
        assert_eq!(before.counters.ism_bytes_written, 5);
        pair.write(CLIENT, b"again");
        {
            // Whoever reads and writes is stopped in the middle of it.
            let (_rx, _tx) = (lock(&pair.conns[CLIENT].rx), lock(&pair.conns[CLIENT].tx));
            let stopped = seen(name).expect("it is open");
            assert_eq!(stopped.counters, before.counters, "what was seen last");
            assert_eq!(stopped.transport, before.transport);
            assert!(stopped.transport.is_loopback_ism());
            assert_eq!((stopped.id, stopped.upgraded_after), (before.id, before.upgraded_after));
        }
        assert_eq!(seen(name).expect("it is open").counters.ism_bytes_written, 10);
    });
}

#[test]
fn the_last_handle_of_a_stream_is_not_dropped_under_the_accepted_table() {
    watched(|| {
        let lab = Lab::new();
        let endpoint = lab.hosts[SERVER].endpoint.clone();
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = endpoint.publish_listener(listener.as_fd(), &PeerPolicy::SameUser).expect("a port");
        let port = Arc::new(port);
        for _ in 0..100 {
            let client = TcpStream::connect(listener.local_addr().expect("local")).expect("connect");
            let server = listener.accept().expect("accept").0;
            let (local, remote) = (client.local_addr().expect("local"), client.peer_addr().expect("peer"));
            let theirs = Subject {
                tuple: Tuple::new(local, remote),
                cookie: 1,
                network_namespace: 1,
                destination: Destination::Own,
            };
            let conn = Connection::new(StdTcp::new(server), Role::Server, Config::new());
            let linked: Arc<dyn LinkedStream> = conn.clone();
            let entry = endpoint.accept(port.port(), local, &linked);
            conn.keep_registration(ListedAsAccepted {
                endpoint: endpoint.clone(),
                entry,
                _port: port.clone(),
            });
            drop(linked);
            // It has ended, and its owner lets go of it without a close while somebody looks for
            // it.
            drop(conn.take_socket());
            let alive = Arc::downgrade(&conn);
            std::thread::scope(|scope| {
                let held = lock(&conn.rx);
                let finder = scope.spawn(|| {
                    let found = endpoint.accepted().find_or_wait(&theirs, us(), &[], || Box::new(|_| ()));
                    assert!(!matches!(found, Found::Stream(_)));
                });
                // The finder has a handle, and waits for the lock to ask whether the stream has
                // ended.
                patiently("the finder", || alive.strong_count() > 1);
                drop(held);
                drop(conn);
                finder.join().expect("no panic");
            });
        }
    });
}

/// A peer that is this process.
fn us() -> sys::PeerCred {
    let pid = i32::try_from(std::process::id()).expect("a process id");
    sys::PeerCred { pid, uid: sys::effective_uid(), gid: 0 }
}
