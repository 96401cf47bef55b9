//! Urgent data (`MSG_OOB`): a byte that is no part of the stream, though the kernel counts it as
//! one. The application sends it past the stream, for tokio has no call for it.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::task::{Context, Poll, Waker};

use socket2::SockRef;

use super::hosts::{CLIENT, Lab, MOMENTS, Pair, SERVER, patiently};
use super::ops::{Task, writing};
use super::socket::StdTcp;
use super::{bytes, note, watched};
use crate::conn::{Directions, OnPending, Role, Tcp};
use crate::ism::sys;
use crate::peer::PeerPolicy;
use crate::transport::FallbackReason;

fn pump(lab: &mut Lab, count: usize) {
    for _ in 0..count {
        let _ = lab.hosts[SERVER].step() || lab.hosts[CLIENT].step();
    }
}

fn send_urgent(pair: &Pair, side: usize) {
    assert_eq!(SockRef::from(&pair.tcp(side).tcp).send_out_of_band(b"!").unwrap(), 1);
}

/// Both directions work, and end as they should.
fn finish(pair: &Pair) {
    for side in [CLIENT, SERVER] {
        pair.write(side, &bytes(500, 3000));
        pair.expect(1 - side, &bytes(500, 3000));
    }
    for side in [CLIENT, SERVER] {
        pair.conns[side].shutdown_write().unwrap();
        pair.end(1 - side).unwrap();
    }
}

/// What the reader has done by the time of the upgrade.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Read {
    Nothing,
    /// It stands right before the urgent byte.
    UpToTheMark,
    Everything,
    /// It has taken the urgent byte out of line, and nothing else.
    TheUrgentByte,
}

/// The byte comes before the upgrade, at any moment of it, or after it: the rest of the stream
/// arrives, in order, and nothing ends. Before the switch it keeps its direction on TCP.
#[test]
fn an_urgent_byte_at_any_moment_costs_no_other_byte() {
    watched(|| {
        let mut switched = [false; 2];
        for moment in 0..MOMENTS {
            for from in [CLIENT, SERVER] {
                for read in [Read::Nothing, Read::UpToTheMark, Read::Everything, Read::TheUrgentByte] {
                    note(format!("moment {moment}, from {from}, {read:?}"));
                    let mut lab = Lab::new();
                    let pair = lab.pair();
                    pair.offer(&lab);
                    pair.write(from, &bytes(0, 4));
                    pump(&mut lab, moment);
                    let before = pair.writes_ring(from);
                    send_urgent(&pair, from);
                    pair.write(from, &bytes(4, 4));
                    let reader = pair.tcp(1 - from);
                    patiently("the urgent byte", || sys::has_urgent(reader.tcp.as_fd()).unwrap());
                    let done = match read {
                        Read::Nothing => 0,
                        Read::UpToTheMark => 4,
                        Read::Everything => 8,
                        Read::TheUrgentByte => {
                            let mut byte = [std::mem::MaybeUninit::uninit()];
                            assert_eq!(SockRef::from(&reader.tcp).recv_out_of_band(&mut byte).unwrap(), 1);
                            0
                        }
                    };
                    pair.expect(1 - from, &bytes(0, done));
                    lab.run();
                    assert_eq!(pair.writes_ring(from), before, "it stays where it was");
                    pair.write(from, &bytes(8, 4));
                    pair.expect(1 - from, &bytes(done as u64, 12 - done));
                    switched[usize::from(before)] = true;
                    finish(&pair);
                    assert_eq!(pair.reads_ring(1 - from), before);
                }
            }
        }
        assert_eq!(switched, [true; 2], "both kinds of moments were met");
    });
}

/// The reader, whose socket is the only one that knows of the byte (the sender has sent it before
/// it made a stream of its socket), refuses; if the byte comes too late for that, nothing hangs.
#[test]
fn the_reader_alone_may_notice() {
    watched(|| {
        for read in [0, 4, 8] {
            let mut lab = Lab::new();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            sys::save_syns(listener.as_fd()).unwrap();
            let _entry = lab.hosts[SERVER]
                .endpoint
                .publish(listener.local_addr().unwrap().port(), &PeerPolicy::SameUser)
                .unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let server = listener.accept().unwrap().0;
            client.write_all(&bytes(0, 4)).unwrap();
            SockRef::from(&client).send_out_of_band(b"!").unwrap();
            client.write_all(&bytes(4, 4)).unwrap();
            // Only this stream is new: it takes the kernel's word for what was sent before.
            let mut pair = Pair::of_roles(client, server, [Role::Adopted, Role::Server]);
            pair.accept(&lab);
            patiently("the urgent byte", || sys::has_urgent(pair.tcp(SERVER).tcp.as_fd()).unwrap());
            pair.expect(SERVER, &bytes(0, read));
            pair.offer(&lab);
            // With what it proves itself by.
            pair.write(CLIENT, &bytes(8, 4));
            lab.run();
            assert!(!pair.writes_ring(CLIENT) && !pair.writes_ring(SERVER));
            let reason = pair.conns[CLIENT].transport().fallback_reason().map(|reason| reason.diagnosis());
            assert_eq!(reason, Some(FallbackReason::Positions.diagnosis()));
            pair.expect(SERVER, &bytes(read as u64, 12 - read));
            finish(&pair);
        }
    });
}

/// A direction that has switched leaves an urgent byte on the socket; to close it with that unread
/// would be a reset, and throw away what the other direction has still to send over TCP.
#[test]
fn an_urgent_byte_left_behind_resets_no_direction_that_is_on_tcp() {
    watched(|| {
        let mut met = 0;
        for moment in 0..MOMENTS {
            let mut lab = Lab::new();
            let pair = lab.pair();
            pair.offer(&lab);
            pump(&mut lab, moment);
            let _ = pair.conns[SERVER].pin("a test", Directions::Write);
            lab.run();
            pair.settle();
            if !pair.reads_ring(SERVER) || pair.writes_ring(SERVER) {
                continue;
            }
            met += 1;
            let mut written = 0;
            while let Poll::Ready(Ok(length)) =
                pair.conns[SERVER].try_write(&mut writing(&bytes(written, 50_000)), OnPending::Return)
            {
                written += length as u64;
            }
            send_urgent(&pair, CLIENT);
            patiently("the urgent byte", || sys::has_urgent(pair.tcp(SERVER).tcp.as_fd()).unwrap());
            pair.close(SERVER);
            pair.expect(CLIENT, &bytes(0, written as usize));
            pair.end(CLIENT).unwrap();
        }
        assert!(met > 0, "one direction alone on the ring");
    });
}

/// Bytes that are urgent when the reader has still to read up to the switch, one or several, in
/// line or not.
#[test]
fn urgent_bytes_right_behind_the_switch_are_no_foreign_ones() {
    watched(|| {
        for count in [1, 2] {
            for in_line in [false, true] {
                note(format!("{count} bytes, in line: {in_line}"));
                let mut lab = Lab::new();
                let pair = lab.pair();
                pair.write(CLIENT, &bytes(0, 100));
                pair.offer(&lab);
                lab.run();
                assert!(pair.writes_ring(CLIENT) && !pair.reads_ring(SERVER));
                SockRef::from(&pair.tcp(SERVER).tcp).set_out_of_band_inline(in_line).unwrap();
                for _ in 0..count {
                    send_urgent(&pair, CLIENT);
                }
                let received = || sys::tcp_look(pair.tcp(SERVER).tcp.as_fd()).unwrap().bytes_received;
                patiently("the urgent bytes", || received() == 100 + count);
                pair.write(CLIENT, &bytes(100, 100));
                // As far as TCP goes, and no further: one read must not take what is urgent.
                pair.expect(SERVER, &bytes(0, 100));
                pair.expect(SERVER, &bytes(100, 100));
                finish(&pair);
                assert!(pair.reads_ring(SERVER));
            }
        }
    });
}

/// On plain TCP poll(2) calls a socket readable whose one byte is an urgent one, if the window is
/// narrow, and no read gets to it. The reactor of these tests must not tell of that for ever, as no
/// edge-triggered one does.
#[test]
fn a_reactor_tells_once_of_what_no_read_gets_to() {
    watched(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let receiver = StdTcp::new(listener.accept().unwrap().0);
        SockRef::from(&receiver.tcp).set_recv_buffer_size(4096).unwrap();
        let sent = std::thread::spawn(move || {
            // In segments as large as the window.
            sender.write_all(&[0; 60_000]).unwrap();
            SockRef::from(&sender).send_out_of_band(b"!").unwrap();
            sender
        });
        let mut cx = Context::from_waker(Waker::noop());
        let mut left = 60_000;
        patiently("what was sent", || {
            if let Poll::Ready(length) = receiver.poll_read(&mut cx, &mut [0; 60_000][..left]) {
                left -= length.unwrap();
            }
            left == 0
        });
        patiently("the urgent byte", || sys::has_urgent(receiver.tcp.as_fd()).unwrap());
        let mut sender = sent.join().unwrap();
        let waits = || {
            let task = Task::new();
            let waker = Waker::from(task.clone());
            assert!(receiver.poll_peek(&mut Context::from_waker(&waker)).is_pending());
            receiver.turn();
            task
        };
        // What is left of the sender's last segments may be news once.
        let woken = (0..10).filter(|_| waits().is_woken()).count();
        assert!(woken <= 1, "woken {woken} times");
        let task = waits();
        sender.write_all(b"x").unwrap();
        patiently("a byte that reads get to", || {
            receiver.turn();
            task.is_woken()
        });
    });
}
