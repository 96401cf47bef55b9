//! Readiness sets under a real epoll.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::Timespec;
use tokio_smc::UpgradePolicy;
use tokio_smc::blocking::{Interest, ReadyEvent, ReadySet, SmcListener, SmcStream};

use crate::lab::Lab;
use crate::net::{Stream as _, smc_pair};
use crate::reading::bytes;
use crate::watchdog::watched;

const POLICIES: [UpgradePolicy; 3] = [UpgradePolicy::Never, UpgradePolicy::Manual, UpgradePolicy::Require];

/// An epoll that waits for these, each with its index.
fn epoll_of(sources: &[&dyn AsFd], flags: EventFlags) -> OwnedFd {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
    for (index, source) in (0..).zip(sources) {
        epoll::add(&epoll, source.as_fd(), EventData::new_u64(index), EventFlags::IN | flags).expect("added");
    }
    epoll
}

/// What the epoll tells, within a time.
fn told(epoll: &OwnedFd, patience: Duration) -> Vec<u64> {
    let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 8];
    let patience = Timespec { tv_sec: 0, tv_nsec: patience.subsec_nanos().into() };
    let count = epoll::wait(epoll, &mut events[..], Some(&patience)).expect("epoll_wait");
    events[..count].iter().map(|event| event.data.u64()).collect()
}

const SOON: Duration = Duration::from_millis(900);
const NOW: Duration = Duration::ZERO;

/// A whole server on one thread: it accepts, reads and writes when its epoll says so.
fn serve(listener: &SmcListener, connections: usize, flags: EventFlags) {
    struct Echo {
        stream: SmcStream,
        pending: Vec<u8>,
        ended: bool,
    }
    listener.set_nonblocking(true).expect("non-blocking");
    let mut set = ReadySet::new().expect("a set");
    let epoll = epoll_of(&[listener, &set], flags);
    let (mut served, mut left) = (HashMap::new(), connections);
    let mut events = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    while left > 0 {
        told(&epoll, SOON);
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).expect("non-blocking");
            let token = served.len();
            set.add(&stream, token, Interest::Read).expect("added");
            served.insert(token, Some(Echo { stream, pending: Vec::new(), ended: false }));
        }
        while set.events(&mut events).expect("events") > 0 {
            for event in &events {
                let place = served.get_mut(&event.token()).expect("one of ours");
                let echo = place.as_mut().expect("open");
                if event.is_readable() && !echo.ended {
                    loop {
                        match echo.stream.read(&mut buffer) {
                            Ok(0) => break echo.ended = true,
                            Ok(length) => echo.pending.extend(&buffer[..length]),
                            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
                while !echo.pending.is_empty() {
                    match echo.stream.write(&echo.pending) {
                        Ok(length) => drop(echo.pending.drain(..length)),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                let interest = match (echo.ended, echo.pending.is_empty()) {
                    (true, true) => {
                        *place = None;
                        left -= 1;
                        continue;
                    }
                    (true, false) => Interest::Write,
                    (false, true) => Interest::Read,
                    (false, false) => Interest::Both,
                };
                set.modify(event.token(), interest).expect("modified");
            }
        }
    }
}

fn talk(mut stream: SmcStream) {
    let reader = stream.try_clone().expect("a clone");
    for round in 0..300u32 {
        stream.write_all(&round.to_be_bytes()).expect("write");
        let mut got = [0; 4];
        (&reader).read_exact(&mut got).expect("read");
        assert_eq!(got, round.to_be_bytes());
    }
    let much = bytes(3 << 20);
    thread::scope(|scope| {
        scope.spawn(|| {
            stream.send(&much).expect("write");
            stream.shutdown(Shutdown::Write).expect("shutdown");
        });
        let mut got = Vec::new();
        (&reader).read_to_end(&mut got).expect("read");
        assert!(got == much);
    });
}

fn echo_server(policy: UpgradePolicy, flags: EventFlags) {
    const CLIENTS: usize = 6;
    let lab = Lab::new();
    let config = lab.config(policy);
    let listener = SmcListener::bind_with("127.0.0.1:0", &config).expect("bind");
    let addr = listener.local_addr().expect("an address");
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let stream = SmcStream::connect_with(addr, &config).expect("connect");
                let watched = stream.try_clone().expect("a clone");
                talk(stream);
                let wanted = policy != UpgradePolicy::Never;
                assert_eq!(watched.counters().ism_bytes_read > 0, wanted, "{}", watched.transport());
            });
        }
        serve(&listener, CLIENTS, flags);
    });
}

#[test]
fn a_server_in_an_epoll_loop_crosses_the_switch() {
    watched(|| {
        echo_server(UpgradePolicy::FirstTurn, EventFlags::empty());
    });
}

#[test]
fn an_edge_triggered_loop_loses_nothing() {
    watched(|| {
        for policy in [UpgradePolicy::FirstTurn, UpgradePolicy::Eager, UpgradePolicy::Never] {
            echo_server(policy, EventFlags::ET);
        }
    });
}

/// The events of a set that has one stream.
fn only(set: &mut ReadySet) -> Option<ReadyEvent> {
    let mut events = Vec::new();
    let count = set.events(&mut events).expect("events");
    assert!(count == events.len() && count <= 1);
    events.pop()
}

#[test]
fn what_is_read_is_not_ready_any_more() {
    watched(|| {
        for policy in POLICIES {
            let lab = Lab::new();
            let (client, server) = smc_pair(&lab.config(policy));
            let mut set = ReadySet::new().expect("a set");
            let epoll = epoll_of(&[&set], EventFlags::empty());
            set.add(&server, 3, Interest::Read).expect("added");
            assert_eq!(
                set.add(&server, 4, Interest::Read).expect_err("twice").kind(),
                ErrorKind::AlreadyExists
            );
            assert_eq!(set.remove(4).expect_err("unknown").kind(), ErrorKind::NotFound);
            for length in [1, 5, 4096] {
                assert_eq!(only(&mut set), None);
                assert!(told(&epoll, NOW).is_empty());
                client.send(&bytes(length)).expect("write");
                assert_eq!(told(&epoll, SOON), [0]);
                for _ in 0..2 {
                    // As long as nobody reads.
                    let event = only(&mut set).expect("ready");
                    assert!(event.token() == 3 && event.is_readable() && !event.is_writable());
                    assert_eq!(told(&epoll, NOW), [0]);
                }
                let mut got = vec![0; length];
                crate::writing::Reader(&server).read_exact(&mut got).expect("read");
            }
            assert_eq!(only(&mut set), None);
            drop(client);
            assert_eq!(told(&epoll, SOON), [0]);
            assert!(only(&mut set).expect("the end").is_readable());
            assert_eq!(server.recv(&mut [0]).expect("the end"), 0);
            assert!(only(&mut set).expect("still the end").is_readable());
            set.remove(3).expect("removed");
            assert!(told(&epoll, NOW).is_empty());
        }
    });
}

#[test]
fn room_is_told() {
    watched(|| {
        for policy in POLICIES {
            let lab = Lab::new();
            let (client, server) = smc_pair(&lab.config(policy));
            client.set_nonblocking(true).expect("non-blocking");
            let mut set = ReadySet::new().expect("a set");
            let epoll = epoll_of(&[&set], EventFlags::empty());
            set.add(&client, 0, Interest::Both).expect("added");
            assert!(only(&mut set).is_some_and(|event| event.is_writable() && !event.is_readable()));
            let mut sent = 0;
            let chunk = vec![1; 64 << 10];
            loop {
                while let Ok(length) = client.send(&chunk) {
                    sent += length;
                }
                if only(&mut set).is_none() && told(&epoll, NOW).is_empty() {
                    break;
                }
                // The ring has grown meanwhile.
                sent += client.send(&chunk).unwrap_or_else(|error| panic!("{policy:?}: {error}, but told"));
            }
            let mut got = vec![0; sent];
            crate::writing::Reader(&server).read_exact(&mut got).expect("read");
            assert_eq!(told(&epoll, SOON), [0]);
            assert!(only(&mut set).expect("room").is_writable());
            set.modify(0, Interest::Read).expect("modified");
            assert_eq!(only(&mut set), None);
        }
    });
}

#[test]
fn who_waits_for_tcp_is_told_in_the_ring() {
    watched(|| {
        let lab = Lab::new();
        let (client, server) = smc_pair(&lab.config(UpgradePolicy::Manual));
        let mut set = ReadySet::new().expect("a set");
        set.add(&server, 0, Interest::Read).expect("added");
        assert_eq!(only(&mut set), None);
        assert!(client.upgrade().is_loopback_ism());
        let writer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            client.send(b"in the ring").expect("write");
            client
        });
        let mut events = Vec::new();
        assert_eq!(set.wait(&mut events, None).expect("events"), 1);
        assert_eq!(server.recv(&mut [0; 32]).expect("read"), 11);
        assert_eq!(set.wait(&mut events, Some(Duration::from_millis(20))).expect("none"), 0);
        drop(writer.join().expect("the writer"));
    });
}

#[test]
fn a_stream_that_is_closed_has_left() {
    watched(|| {
        for policy in POLICIES {
            let lab = Lab::new();
            let (client, server) = smc_pair(&lab.config(policy));
            let mut set = ReadySet::new().expect("a set");
            set.add(&server, 0, Interest::Both).expect("added");
            assert!(only(&mut set).is_some());
            drop(server);
            assert_eq!(only(&mut set), None);
            let (other, _peer) = smc_pair(&lab.config(policy));
            set.add(&other, 0, Interest::Write).expect("its token is free");
            assert!(only(&mut set).is_some());
            drop(client);
        }
    });
}

/// A child that was forked, or whoever was sent it, may have the socket of a closed stream.
#[test]
fn a_socket_that_outlives_its_stream_is_told_of_once() {
    watched(|| {
        for policy in [UpgradePolicy::Never, UpgradePolicy::Manual] {
            let lab = Lab::new();
            let (mut client, server) = smc_pair(&lab.config(policy));
            let mut set = ReadySet::new().expect("a set");
            set.add(&server, 0, Interest::Read).expect("added");
            let copy = server.as_fd().try_clone_to_owned().expect("a copy");
            drop(server);
            client.write_all(b"for the copy").expect("write");
            let outer = epoll_of(&[&set], EventFlags::empty());
            while !told(&outer, NOW).is_empty() {
                assert_eq!(only(&mut set), None);
            }
            drop(copy);
        }
    });
}

#[test]
fn streams_come_and_go_under_their_tokens() {
    watched(|| {
        fn is_send_and_sync<T: Send + Sync>(_: &T) {}
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::Manual);
        let mut set = ReadySet::new().expect("a set");
        is_send_and_sync(&set);
        let pairs = (0..40).map(|_| smc_pair(&config)).collect::<Vec<_>>();
        for (token, (_, server)) in pairs.iter().enumerate() {
            set.add(server, token, Interest::Read).expect("added");
        }
        let error = set.add(&pairs[0].1, usize::MAX, Interest::Read).expect_err("reserved");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let mut events = Vec::new();
        for odd in [1, 0] {
            for (client, _) in pairs.iter().skip(odd).step_by(2) {
                client.send(b"x").expect("write");
            }
            while set.wait(&mut events, Some(SOON)).expect("events") < 20 {}
            assert!(events.iter().all(|event| event.token() % 2 == odd), "{events:?}");
            for event in &events {
                assert_eq!(pairs[event.token()].1.recv(&mut [0; 4]).expect("read"), 1);
            }
        }
        assert_eq!(set.events(&mut events).expect("none"), 0);
        for (token, (_, server)) in pairs.iter().enumerate() {
            set.remove(token).expect("removed");
            set.add(server, 1000 + token, Interest::Read).expect("added");
        }
        assert_eq!(set.remove(0).expect_err("not here").kind(), ErrorKind::NotFound);
        pairs[7].0.send(b"x").expect("write");
        assert_eq!(set.wait(&mut events, None).expect("events"), 1);
        assert_eq!(events[0].token(), 1007);
        drop(pairs);
        assert_eq!(set.events(&mut events).expect("none"), 0);
    });
}
