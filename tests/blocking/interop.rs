//! A blocking end and a tokio end of one connection, in one process.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::{UpgradePolicy, blocking};

use crate::lab::Lab;
use crate::net::{Stream as _, smc_pair};
use crate::reading::bytes;
use crate::watchdog::{Flavour, step, watched};

const ROUNDS: u32 = 2_000;

fn talk_blocking(mut stream: blocking::SmcStream, begins: bool) {
    for round in 0..ROUNDS {
        let word = round.to_be_bytes();
        if begins {
            stream.write_all(&word).expect("write");
        }
        let mut got = [0; 4];
        stream.read_exact(&mut got).expect("read");
        assert_eq!(got, word);
        if !begins {
            stream.write_all(&word).expect("write");
        }
    }
    assert!(stream.transport().is_loopback_ism(), "{}", stream.transport());
    stream.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
}

async fn talk_tokio(mut stream: tokio_smc::SmcStream, begins: bool) {
    for round in 0..ROUNDS {
        let word = round.to_be_bytes();
        if begins {
            stream.write_all(&word).await.expect("write");
        }
        let mut got = [0; 4];
        stream.read_exact(&mut got).await.expect("read");
        assert_eq!(got, word);
        if !begins {
            stream.write_all(&word).await.expect("write");
        }
    }
    assert!(stream.transport().is_loopback_ism(), "{}", stream.transport());
    stream.shutdown().await.expect("shutdown");
    assert_eq!(stream.read(&mut [0]).await.expect("the end"), 0);
}

#[test]
fn two_blocking_ends() {
    watched(|| {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let listener = blocking::SmcListener::bind_with("127.0.0.1:0", &config).expect("bind");
        let addr = listener.local_addr().expect("an address");
        let client = std::thread::spawn(move || {
            talk_blocking(blocking::SmcStream::connect_with(addr, &config).expect("connect"), true);
        });
        talk_blocking(listener.accept().expect("accept").0, false);
        client.join().expect("the client");
    });
}

#[test]
fn a_blocking_client_and_a_tokio_server() {
    watched(|| {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let runtime = Flavour::MultiThread.runtime();
        let listener = runtime
            .block_on(async { tokio_smc::SmcListener::bind_with("127.0.0.1:0", &config).await })
            .expect("bind");
        let addr = listener.local_addr().expect("an address");
        let server = runtime.spawn(async move {
            talk_tokio(listener.accept().await.expect("accept").0, false).await;
        });
        step("the client");
        talk_blocking(blocking::SmcStream::connect_with(addr, &config).expect("connect"), true);
        step("the server's end");
        runtime.block_on(server).expect("the server");
    });
}

#[test]
fn a_tokio_client_and_a_blocking_server() {
    watched(|| {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let runtime = Flavour::CurrentThread.runtime();
        let listener = blocking::SmcListener::bind_with("127.0.0.1:0", &config).expect("bind");
        let addr = listener.local_addr().expect("an address");
        let server = std::thread::spawn(move || {
            talk_blocking(listener.accept().expect("accept").0, false);
        });
        runtime.block_on(async {
            let stream = tokio_smc::SmcStream::connect_with(addr, &config).await.expect("connect");
            talk_tokio(stream, true).await;
        });
        server.join().expect("the server");
    });
}

#[test]
fn connect_waits_for_the_upgrade_where_it_is_asked_to() {
    watched(|| {
        for policy in [UpgradePolicy::Require, UpgradePolicy::Handshake] {
            let lab = Lab::new();
            let config = lab.config(policy);
            let listener = blocking::SmcListener::bind_with("127.0.0.1:0", &config).expect("bind");
            let addr = listener.local_addr().expect("an address");
            let server = std::thread::spawn(move || {
                let mut stream = listener.accept().expect("accept").0;
                let mut word = [0; 4];
                stream.read_exact(&mut word).expect("read");
                stream.write_all(&word).expect("write");
                stream.upgrade()
            });
            let mut stream = blocking::SmcStream::connect_with(addr, &config).expect("connect");
            assert!(stream.transport().is_loopback_ism(), "{policy:?}: {}", stream.transport());
            stream.write_all(b"ping").expect("write");
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).expect("read");
            assert_eq!(&answer, b"ping");
            assert_eq!(stream.peer_cred().expect("credentials").pid(), Some(std::process::id() as i32));
            assert_eq!(stream.counters().tcp_bytes_written, 0);
            assert!(server.join().expect("the server").is_loopback_ism());
        }
    });
}

#[test]
fn a_thread_that_waits_on_tcp_is_woken_in_the_ring() {
    watched(|| {
        let lab = Lab::new();
        let (client, server) = smc_pair(&lab.config(UpgradePolicy::Manual));
        std::thread::scope(|scope| {
            let readers = [&client, &server].map(|stream| {
                scope.spawn(move || {
                    let mut got = [0; 16];
                    let length = stream.recv(&mut got).expect("read");
                    got[..length].to_vec()
                })
            });
            std::thread::sleep(Duration::from_millis(30));
            assert!(client.upgrade().is_loopback_ism(), "{}", client.transport());
            std::thread::sleep(Duration::from_millis(30));
            client.send(b"by the client").expect("write");
            server.send(b"by the server").expect("write");
            let [by_server, by_client] = readers.map(|reader| reader.join().expect("a reader"));
            assert_eq!((&by_client[..], &by_server[..]), (&b"by the client"[..], &b"by the server"[..]));
        });
        assert_eq!(client.counters().ism_bytes_read, 13);
        assert_eq!(server.counters().tcp_bytes_read, 0);
    });
}

#[test]
fn a_thread_that_waits_for_room_on_tcp_goes_on_in_the_ring() {
    watched(|| {
        let lab = Lab::new();
        let (client, mut server) = smc_pair(&lab.config(UpgradePolicy::Manual));
        let sent = bytes(20 << 20);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| client.send(&sent).expect("write"));
            std::thread::sleep(Duration::from_millis(50));
            scope.spawn(|| client.upgrade());
            std::thread::sleep(Duration::from_millis(50));
            let mut got = vec![0; sent.len()];
            server.read_exact(&mut got).expect("read");
            assert!(got == sent);
            assert_eq!(writer.join().expect("the writer"), sent.len());
        });
        let counters = server.counters();
        assert_eq!(counters.tcp_bytes_read + counters.ism_bytes_read, sent.len() as u64);
    });
}

/// Also one whose client's CLC is still on its way in TCP.
#[test]
fn who_closes_at_once_leaves_a_clean_end() {
    watched(|| {
        let lab = Lab::new();
        for policy in [UpgradePolicy::Handshake, UpgradePolicy::Eager, UpgradePolicy::Never] {
            let config = lab.config(policy);
            let listener = blocking::SmcListener::bind_with("127.0.0.1:0", &config).expect("bind");
            let addr = listener.local_addr().expect("an address");
            for round in 0..40 {
                step(format!("{policy:?}, {round}"));
                std::thread::scope(|scope| {
                    let client = scope.spawn(|| {
                        let mut stream = blocking::SmcStream::connect_with(addr, &config).expect("connect");
                        stream.read(&mut [0]).expect("the end")
                    });
                    let server = listener.accept().expect("accept").0;
                    std::thread::sleep(Duration::from_micros(100 * round));
                    drop(server);
                    assert_eq!(client.join().expect("the client"), 0);
                });
            }
        }
    });
}

/// What poll(2) says of a socket that nobody asks anything about.
fn troubles(stream: &impl AsFd) -> PollFlags {
    let mut polled = [PollFd::new(stream, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll");
    polled[0].revents()
}

/// The packet of the write that is to show the client's number is thrown away on its way, and shown
/// once more when it is sent once more. As long as it lies on the error queue it takes room of the
/// receive buffer, which the kernel of the peer can not use then.
#[test]
fn a_packet_that_is_shown_late_keeps_no_window_shut() {
    watched(|| {
        let lab = Lab::new();
        let (mut client, mut server) = smc_pair(&lab.config(UpgradePolicy::Manual));
        SockRef::from(&client).set_recv_buffer_size(16 << 10).expect("SO_RCVBUF");
        SockRef::from(&server).set_recv_buffer_size(1).expect("SO_RCVBUF");
        // Past the stream, so that its first write is what finds no room.
        let filler = bytes(4096);
        SockRef::from(&client).send(&filler).expect("send");
        let question = bytes(16 << 10);
        client.write_all(&question).expect("write");
        step("the packet that is sent once more");
        while troubles(&client) != PollFlags::ERR {
            std::thread::sleep(Duration::from_millis(1));
        }
        client.shutdown(Shutdown::Write).expect("shutdown");
        let answer = bytes(2 << 20);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                SockRef::from(&server).set_recv_buffer_size(1 << 20).expect("SO_RCVBUF");
                let mut got = Vec::new();
                server.read_to_end(&mut got).expect("read");
                assert!(got == [&filler[..], &question].concat());
                server.write_all(&answer).expect("write");
                server.shutdown(Shutdown::Write).expect("shutdown");
            });
            step("the answer");
            let mut got = Vec::new();
            client.read_to_end(&mut got).expect("read");
            assert!(got == answer);
        });
        assert!(!troubles(&client).contains(PollFlags::ERR));
    });
}
