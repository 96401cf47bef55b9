//! Time-outs, non-blocking mode, several threads; and the properties of a socket.

use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use tokio_smc::UpgradePolicy;
use tokio_smc::blocking::{SmcListener, SmcStream};

use crate::lab::Lab;
use crate::net::{Net, Stream as _};
use crate::watchdog::watched;
use crate::writing::Reader;

const SHORT: Duration = Duration::from_millis(40);

pub(crate) fn a_read_times_out<N: Net>(net: &N) {
    let (client, server) = net.pair();
    server.set_read_timeout(Some(SHORT)).expect("a timeout");
    for _ in 0..2 {
        let began = Instant::now();
        let error = server.recv(&mut [0]).expect_err("nobody writes");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(began.elapsed() >= SHORT - Duration::from_millis(5), "{:?}", began.elapsed());
    }
    assert_eq!(server.peek(&mut [0]).expect_err("nobody writes").kind(), ErrorKind::WouldBlock);
    // The stream is whole.
    client.send(b"x").expect("write");
    assert_eq!(server.recv(&mut [0]).expect("read"), 1);
    server.set_read_timeout(None).expect("no timeout");
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(2 * SHORT);
            client.send(b"x").expect("write");
        });
        assert_eq!(server.recv(&mut [0]).expect("read"), 1);
    });
}

pub(crate) fn a_write_times_out<N: Net>(net: &N) {
    let (client, server) = net.pair();
    client.set_write_timeout(Some(SHORT)).expect("a timeout");
    let chunk = vec![7; 1 << 20];
    let mut sent = 0;
    let error = loop {
        match client.send(&chunk) {
            Ok(length) => sent += length,
            Err(error) => break error,
        }
        assert!(sent < 1 << 30, "somewhere it has to end");
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    // What was said to be written is there, and no more.
    let mut got = vec![0; sent];
    Reader(&server).read_exact(&mut got).expect("read");
    drop(client);
    assert_eq!(server.recv(&mut [0]).expect("the end"), 0);
}

/// A reader that is slow, but not too slow for each of the pieces that it makes room for.
pub(crate) fn a_timeout_is_for_all_of_a_write<N: Net>(net: &N) {
    let (client, server) = net.pair();
    client.set_write_timeout(Some(SHORT * 8)).expect("a timeout");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut piece = vec![0; 64 << 10];
            while !done.load(Ordering::Relaxed) && server.recv(&mut piece).is_ok_and(|length| length > 0) {
                thread::sleep(SHORT);
            }
        });
        // As it reads, all of it would take minutes.
        let chunk = vec![7; 256 << 20];
        let written = client.send(&chunk).expect("a part of it");
        done.store(true, Ordering::Relaxed);
        assert!(written < chunk.len(), "all of it");
        client.shutdown(Shutdown::Write).expect("the end");
    });
}

pub(crate) fn timeouts_are_told<N: Net>(net: &N) {
    let (client, _server) = net.pair();
    assert_eq!(client.read_timeout().expect("told"), None);
    assert_eq!(client.write_timeout().expect("told"), None);
    let second = Some(Duration::from_secs(1));
    client.set_read_timeout(second).expect("a timeout");
    client.set_write_timeout(second).expect("a timeout");
    let clone = client.try_clone().expect("a clone");
    assert_eq!(clone.read_timeout().expect("told"), second);
    assert_eq!(clone.write_timeout().expect("told"), second);
}

pub(crate) fn no_timeout_is_zero<N: Net>(net: &N) {
    let (client, _server) = net.pair();
    let zero = Some(Duration::ZERO);
    assert_eq!(client.set_read_timeout(zero).expect_err("zero").kind(), ErrorKind::InvalidInput);
    assert_eq!(client.set_write_timeout(zero).expect_err("zero").kind(), ErrorKind::InvalidInput);
}

pub(crate) fn nonblocking_reads_and_writes<N: Net>(net: &N) {
    let (client, server) = net.pair();
    client.set_nonblocking(true).expect("non-blocking");
    assert_eq!(client.recv(&mut [0]).expect_err("nothing there").kind(), ErrorKind::WouldBlock);
    assert_eq!(client.peek(&mut [0]).expect_err("nothing there").kind(), ErrorKind::WouldBlock);
    let chunk = vec![7; 100_000];
    let mut sent = 0;
    loop {
        match client.send(&chunk) {
            Ok(length) => sent += length,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                break;
            }
        }
    }
    let mut got = vec![0; sent];
    Reader(&server).read_exact(&mut got).expect("read");
    // Back again.
    client.set_nonblocking(false).expect("blocking");
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(SHORT);
            server.send(b"x").expect("write");
        });
        assert_eq!(client.recv(&mut [0]).expect("read"), 1);
    });
}

pub(crate) fn nonblocking_is_for_all_clones<N: Net>(net: &N) {
    let (client, _server) = net.pair();
    let clone = client.try_clone().expect("a clone");
    clone.set_nonblocking(true).expect("non-blocking");
    assert_eq!(client.recv(&mut [0]).expect_err("nothing there").kind(), ErrorKind::WouldBlock);
}

pub(crate) fn readers_of_one_stream_share_its_bytes<N: Net>(net: &N) {
    let (client, server) = net.pair();
    let total = 400_000;
    let (got, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut buffer = [0; 1000];
                loop {
                    let length = server.recv(&mut buffer).expect("read");
                    if length == 0 {
                        return;
                    }
                    got.fetch_add(length, Ordering::Relaxed);
                    let bytes = buffer[..length].iter().map(|byte| usize::from(*byte)).sum();
                    sum.fetch_add(bytes, Ordering::Relaxed);
                }
            });
        }
        for at in 0..total / 100 {
            client.send(&[at as u8; 100]).expect("write");
            if at % 500 == 0 {
                // They all wait for a moment.
                thread::sleep(Duration::from_millis(2));
            }
        }
        drop(client);
    });
    let expected = (0..total / 100).map(|at| 100 * usize::from(at as u8)).sum::<usize>();
    assert_eq!((got.into_inner(), sum.into_inner()), (total, expected));
}

pub(crate) fn properties<N: Net>(net: &N) {
    let (client, server) = net.pair();
    assert_eq!(client.local_addr().expect("told"), server.peer_addr().expect("told"));
    assert_eq!(client.peer_addr().expect("told"), server.local_addr().expect("told"));
    assert!(client.take_error().expect("told").is_none());
    assert!(!client.nodelay().expect("told"));
    client.set_nodelay(true).expect("set");
    assert!(client.nodelay().expect("told"));
    client.set_ttl(42).expect("set");
    assert_eq!(client.ttl().expect("told"), 42);
    assert!(format!("{client:?}").contains("127.0.0.1"));
}

/// As the kernel hands them on.
#[test]
fn a_listener_s_timeouts_are_those_of_its_streams() {
    watched(|| {
        let lab = Lab::new();
        for policy in [UpgradePolicy::Never, UpgradePolicy::Manual, UpgradePolicy::Require] {
            let listener = SmcListener::bind_with("127.0.0.1:0", &lab.config(policy)).expect("bind");
            for timeout in [Timeout::Recv, Timeout::Send] {
                set_socket_timeout(&listener, timeout, Some(SHORT)).expect("a timeout");
            }
            let addr = listener.local_addr().expect("an address");
            thread::scope(|scope| {
                let client =
                    scope.spawn(|| SmcStream::connect_with(addr, &lab.config(policy)).expect("connect"));
                let server = listener.accept().expect("accept").0;
                server.upgrade();
                let _client = client.join().expect("no panic");
                assert_eq!(server.read_timeout().expect("told").map(|told| told >= SHORT), Some(true));
                assert_eq!(server.recv(&mut [0]).expect_err("nobody writes").kind(), ErrorKind::WouldBlock);
                let chunk = vec![7; 1 << 20];
                let mut sent = 0;
                while let Ok(length) = server.send(&chunk) {
                    sent += length;
                    assert!(sent < 1 << 30, "somewhere it has to end");
                }
            });
        }
    });
}
