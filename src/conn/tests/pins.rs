//! The application takes the TCP socket while the upgrade is on its way (hazards C5, H9, M10).

use std::io::{Read, Write};

use super::bytes;
use super::hosts::{CLIENT, Lab, MOMENTS, Pair, SERVER};
use super::watched;
use crate::conn::{Directions, Operation};
use crate::transport::{FallbackReason, Transport};

/// An offer so many messages after its begin; each way something is in TCP already.
fn offered(moment: usize) -> (Lab, Pair) {
    let mut lab = Lab::new();
    let pair = lab.pair();
    pair.write(CLIENT, &bytes(0, 300));
    pair.write(SERVER, &bytes(0, 200));
    pair.offer(&lab);
    for _ in 0..moment {
        let _ = lab.hosts[SERVER].step() || lab.hosts[CLIENT].step();
    }
    (lab, pair)
}

#[test]
fn hazard_h9_into_std_at_every_moment_of_the_upgrade() {
    watched(|| {
        let mut outcomes = [0, 0];
        for side in [CLIENT, SERVER] {
            for moment in 0..MOMENTS {
                let (mut lab, pair) = offered(moment);
                let peer = 1 - side;
                let (sent, coming) = if side == CLIENT { (300, 200) } else { (200, 300) };
                match pair.conns[side].pin("into_std", Directions::Both) {
                    Ok(()) => {
                        outcomes[0] += 1;
                        let taken = pair.conns[side].take_socket().expect("the socket");
                        pair.write(peer, &bytes(coming, 100));
                        lab.run();
                        assert!(!pair.writes_ring(CLIENT) && !pair.writes_ring(SERVER), "moment {moment}");
                        pair.write(peer, &bytes(coming + 100, 100));
                        let socket = &taken.tcp;
                        socket.set_nonblocking(false).unwrap();
                        let mut got = vec![0; coming as usize + 200];
                        (&*socket).read_exact(&mut got).unwrap();
                        assert!(got == bytes(0, got.len()), "only the application's bytes");
                        (&*socket).write_all(&bytes(sent, 50)).unwrap();
                        pair.expect(peer, &bytes(0, sent as usize + 50));
                        // It was not its application that took a socket.
                        let (transport, own) = (pair.conns[peer].transport(), FallbackReason::Pinned);
                        assert!(
                            matches!(transport, Transport::Tcp(reason) if reason != own),
                            "{transport:?}"
                        );
                        assert_eq!(pair.conns[side].transport(), Transport::Tcp(own));
                        drop(taken);
                        pair.end(peer).unwrap();
                        pair.close(peer);
                        pair.close(side);
                        lab.run();
                        assert_eq!(lab.slots_in_use(), 0, "side {side}, moment {moment}");
                    }
                    Err(error) => {
                        outcomes[1] += 1;
                        assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
                        lab.run();
                        pair.write(CLIENT, &bytes(300, 100));
                        pair.write(SERVER, &bytes(200, 100));
                        pair.expect(SERVER, &bytes(0, 400));
                        pair.expect(CLIENT, &bytes(0, 300));
                    }
                }
            }
        }
        assert!(outcomes[0] > 2 && outcomes[1] > 2, "both answers were given: {outcomes:?}");
    });
}

#[test]
fn hazard_h9_one_direction_is_pinned_and_the_other_one_switches() {
    watched(|| {
        for by_tcp in [CLIENT, SERVER] {
            let mut lab = Lab::new();
            let pair = super::aborts::mixed(&mut lab, by_tcp);
            let raw = pair.tcp(SERVER);
            if by_tcp == CLIENT {
                pair.write(CLIENT, b"raw");
                let mut got = [0; 3];
                raw.tcp.set_nonblocking(false).unwrap();
                (&raw.tcp).read_exact(&mut got).unwrap();
                assert_eq!(&got, b"raw");
            } else {
                (&raw.tcp).write_all(b"raw").unwrap();
                pair.expect(CLIENT, b"raw");
            }
            for side in [CLIENT, SERVER] {
                let transport = pair.conns[side].transport();
                assert!(matches!(transport, Transport::Tcp(_)), "{transport:?}");
            }
            let error = pair.conns[SERVER].pin("into_std", Directions::Both).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
        }
    });
}

#[test]
fn hazard_m10_a_half_closed_stream_is_refused_or_settles() {
    watched(|| {
        for side in [CLIENT, SERVER] {
            for moment in 0..MOMENTS {
                let mut lab = Lab::new();
                let pair = lab.pair();
                pair.offer(&lab);
                for _ in 0..moment {
                    let _ = lab.hosts[SERVER].step() || lab.hosts[CLIENT].step();
                }
                pair.write(side, &bytes(0, 500));
                pair.conns[side].shutdown_write().unwrap();
                lab.run();
                pair.write(1 - side, &bytes(0, 800));
                pair.expect(1 - side, &bytes(0, 500));
                pair.end(1 - side).unwrap();
                pair.expect(side, &bytes(0, 800));
                pair.conns[1 - side].shutdown_write().unwrap();
                pair.end(side).unwrap();
                drop(pair);
                lab.run();
                assert_eq!(lab.slots_in_use(), 0, "side {side}, moment {moment}");
            }
        }
    });
}

/// A direction that one end has called TCP's for good the other end does not switch any more,
/// whatever was under way between them.
#[test]
fn what_is_left_to_tcp_stays_there_at_every_moment() {
    type Deed = fn(&Pair, usize);
    let deeds: [(&str, Deed); 3] = [
        ("shuts down", |pair, side| pair.conns[side].shutdown_write().unwrap()),
        ("pins", |pair, side| drop(pair.conns[side].pin("a test", Directions::Both))),
        ("closes", |pair, side| pair.close(side)),
    ];
    watched(move || {
        let mut left = 0;
        for (deed, does) in deeds {
            for side in [CLIENT, SERVER] {
                for moment in 0..MOMENTS {
                    let (mut lab, pair) = offered(moment);
                    does(&pair, side);
                    let mut are_left = [[false; 2]; 2];
                    loop {
                        for end in [CLIENT, SERVER] {
                            let reads = pair.conns[end].is_left_to_tcp(Operation::Read);
                            let writes = pair.conns[end].is_left_to_tcp(Operation::Write);
                            are_left[end][0] |= reads;
                            are_left[end][1] |= writes;
                        }
                        if !(lab.hosts[SERVER].step() || lab.hosts[CLIENT].step()) {
                            break;
                        }
                    }
                    lab.run();
                    let story = format!("side {side} {deed} after {moment} messages");
                    for end in [CLIENT, SERVER] {
                        let [reads, writes] = are_left[end];
                        left += usize::from(reads) + usize::from(writes);
                        assert!(!(reads && pair.writes_ring(1 - end)), "{story}: {end} reads TCP");
                        assert!(!(writes && pair.writes_ring(end)), "{story}: {end} writes TCP");
                    }
                }
            }
        }
        assert!(left > 100, "the test shows little: {left}");
    });
}
