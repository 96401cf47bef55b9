//! What can be seen of a process from within: every stream from its creation to its end, and the
//! counters.

#![allow(clippy::disallowed_types, reason = "a test, which loom does not run")]

#[path = "support/agree.rs"]
mod agree;
#[allow(dead_code, reason = "not every test needs all of it")]
#[path = "support/child.rs"]
mod child;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/watchdog.rs"]
mod watchdog;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::{
    Config, FallbackReason, SmcListener, SmcStream, Stats, StreamRole, StreamStats, Transport, UpgradePolicy,
    stats, streams,
};

use agree::agree;
use child::{Child, next_word, role, tell};
use lab::Lab;
use watchdog::{Flavour, step, watched};

/// The counters are the process's: here one test runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[track_caller]
fn alone(body: impl AsyncFn() + Copy + Send + 'static) {
    watched(move || {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        for flavour in [Flavour::CurrentThread, Flavour::MultiThread] {
            flavour.runtime().block_on(body());
        }
    });
}

async fn connected(config: &Config) -> (SmcStream, SmcStream) {
    let listener = SmcListener::bind_with("127.0.0.1:0", config).await.expect("bind");
    let address = listener.local_addr().expect("an address");
    let (client, server) = tokio::join!(SmcStream::connect_with(address, config), listener.accept());
    (client.expect("connect"), server.expect("accept").0)
}

fn addresses(stream: &SmcStream) -> (SocketAddr, SocketAddr) {
    (stream.local_addr().expect("local"), stream.peer_addr().expect("peer"))
}

fn seen((local, peer): (SocketAddr, SocketAddr)) -> Option<StreamStats> {
    let mut found = streams();
    found.retain(|stream| (stream.local_addr, stream.peer_addr) == (Some(local), Some(peer)));
    assert!(found.len() <= 1, "twice: {found:?}");
    found.pop()
}

/// Streams that were counted as staying on TCP.
fn stayed(stats: &Stats) -> u64 {
    stats.reasons().map(|(_, streams)| streams).sum()
}

/// Not a test of its own: the door through which this binary becomes a second process, which sends
/// back what it reads.
#[test]
fn child_process() {
    if role().is_none() {
        return;
    }
    Flavour::MultiThread.runtime().block_on(async {
        let listener = SmcListener::bind("127.0.0.1:0").await.expect("bind");
        tell(&listener.local_addr().expect("an address").to_string());
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut byte = [0];
        while stream.read(&mut byte).await.expect("read") > 0 {
            stream.write_all(&byte).await.expect("write");
        }
    });
    assert_eq!(next_word(), None, "the parent has no more to say");
}

#[test]
fn every_stream_is_there_from_its_creation_to_its_end() {
    alone(async || {
        let lab = Lab::new();
        let began = SystemTime::now();
        let config = lab.config(UpgradePolicy::Manual);
        let (client, server) = connected(&config).await;
        let names = [addresses(&client), addresses(&server)];
        let [there, answers] = names.map(|name| seen(name).expect("it is open"));
        assert_eq!((there.role, answers.role), (StreamRole::Client, StreamRole::Server));
        assert_eq!(there.policy, UpgradePolicy::Manual);
        assert_eq!(there.transport, Transport::Tcp(FallbackReason::NotYet));
        assert_eq!(there.device_dir.as_deref(), Some(lab.dir()));
        assert_eq!(there.upgraded_after, None);
        assert!(there.created + Duration::from_secs(1) > began, "{there:?}");
        assert_ne!(there.id, answers.id);
        let line = there.to_string();
        assert!(line.starts_with(&format!("{} {} client tcp,", names[0].0, names[0].1)), "{line}");

        // Halves are the stream; what only tells of it is not.
        let info = client.info();
        let (read, write) = client.into_split();
        drop(read);
        assert_eq!(seen(names[0]).map(|stream| stream.id), Some(there.id));
        drop(write);
        assert_eq!(seen(names[0]), None);
        drop(info);
        let socket = server.into_std().expect("it stayed on TCP");
        assert_eq!(seen(names[1]), None);

        // A socket from outside, whose peer is plain TCP.
        let adopted = SmcStream::from_std(socket).expect("adopted");
        assert_eq!(addresses(&adopted), names[1]);
        drop(adopted);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let plain = std::net::TcpStream::connect(listener.local_addr().expect("local")).expect("connect");
        plain.set_nonblocking(true).expect("non-blocking");
        let (_peer, _) = listener.accept().await.expect("accept");
        let adopted = SmcStream::from_std(plain).expect("adopted");
        let stream = seen(addresses(&adopted)).expect("it is open");
        assert_eq!(stream.role, StreamRole::Adopted);
        let name = addresses(&adopted);
        drop(adopted);
        assert_eq!(seen(name), None);
    });
}

#[test]
fn an_upgraded_stream_tells_where_its_bytes_went() {
    alone(async || {
        let lab = Lab::new();
        let before = stats();
        let (mut client, mut server) = connected(&lab.config(UpgradePolicy::FirstTurn)).await;
        tokio::join!(agree(&mut client, true), agree(&mut server, false));
        client.write_all(&[7; 1000]).await.expect("write");
        server.read_exact(&mut [0; 1000]).await.expect("read");
        for end in [&client, &server] {
            let stream = seen(addresses(end)).expect("it is open");
            assert_eq!(stream.transport, end.transport());
            assert_eq!(stream.counters, end.counters());
            let after = stream.upgraded_after.expect("it was upgraded");
            assert!(after <= stream.age, "{after:?} of {:?}", stream.age);
        }
        let now = stats();
        assert_eq!(now.streams_created - before.streams_created, 2);
        assert_eq!(now.streams_open - before.streams_open, 2);
        assert_eq!(now.upgrades_tried - before.upgrades_tried, 2);
        assert_eq!(now.upgrades_done - before.upgrades_done, 2);
        // Each waited for the other's bytes, whose wakers were called in this process.
        assert!(now.wakeups_saved > before.wakeups_saved);
        assert_eq!(now.wakeups_sent, before.wakeups_sent);
        drop((client, server));
        let closed = stats();
        assert_eq!(closed.streams_open, before.streams_open);
        assert_eq!(closed.upgrades_done, now.upgrades_done);
        assert_eq!(stayed(&closed), stayed(&before), "none of them stayed on TCP");
    });
}

#[test]
fn the_reason_of_a_stream_counts_once() {
    alone(async || {
        let lab = Lab::new();
        let before = stats();
        let grown = |reason| stats().reason(reason) - before.reason(reason);

        // Known while it is open, and no other one when it is closed.
        let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = plain.local_addr().expect("an address");
        let config = lab.config(UpgradePolicy::Manual);
        let client = SmcStream::connect_with(address, &config).await.expect("connect");
        for _ in 0..2 {
            assert_eq!(client.upgrade().await, Transport::Tcp(FallbackReason::NoSmcListener));
        }
        assert_eq!(grown(FallbackReason::NoSmcListener), 1);
        drop(client);
        assert_eq!(grown(FallbackReason::NoSmcListener), 1);

        // Nothing was asked for: two ends, at their close.
        drop(connected(&config).await);
        assert_eq!(grown(FallbackReason::NotYet), 2);
        drop(connected(&lab.config(UpgradePolicy::Never)).await);
        assert_eq!(grown(FallbackReason::Policy), 2);

        // The application keeps it there; the shutdown and the close behind it add nothing.
        let (mut client, server) = connected(&config).await;
        client.shutdown().await.expect("shutdown");
        assert_eq!(grown(FallbackReason::HalfClosed), 1);
        let socket = client.into_std().expect("it stayed on TCP");
        drop((socket, server));
        assert_eq!(grown(FallbackReason::HalfClosed), 1);
        assert_eq!(grown(FallbackReason::NotYet), 3);

        let now = stats();
        let created = now.streams_created - before.streams_created;
        assert_eq!(created, 7);
        assert_eq!(stayed(&now) - stayed(&before) + now.upgrades_done - before.upgrades_done, created);
        assert_eq!(now.streams_open, before.streams_open);
        assert_eq!(now.upgrades_tried - before.upgrades_tried, 1);
    });
}

#[test]
fn a_peer_that_declines_counts_by_its_diagnosis() {
    alone(async || {
        let lab = Lab::new();
        let before = stats();
        let config = lab.config(UpgradePolicy::Manual);
        let (client, server) = connected(&config).await;
        // Its socket is the application's from here on.
        let _ = server.try_io(tokio::io::Interest::READABLE, || Ok(()));
        let reason = client.upgrade().await.fallback_reason().expect("no upgrade");
        assert!(matches!(reason, FallbackReason::Declined(_)), "{reason:?}");
        assert_eq!(stats().reason(reason) - before.reason(reason), 1);
        drop((client, server));
        assert_eq!(stats().reason(reason) - before.reason(reason), 1);
        let told = stats().to_string();
        assert!(told.lines().any(|line| line.starts_with("Declined(")), "{told}");
    });
}

/// One byte there and one back, a thousand times, with a second process.
async fn ping_pong(config: &Config, child: &mut Child) {
    let address = child.hear();
    let mut stream = SmcStream::connect_with(address, config).await.expect("connect");
    stream.write_all(b"x").await.expect("write");
    stream.read_exact(&mut [0]).await.expect("read");
    while !stream.upgrade().await.is_loopback_ism() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for _ in 0..1000 {
        stream.write_all(b"x").await.expect("write");
        stream.read_exact(&mut [0]).await.expect("read");
    }
}

#[test]
fn wake_ups_are_sent_to_who_sleeps_and_saved_for_who_looks() {
    alone(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::Manual);
        step("pollers that always sleep");
        let before = stats();
        let mut child = Child::start("echo", lab.dir(), &[("SMC_LO_BUSY_POLL_US", "0")]);
        ping_pong(&config.clone().busy_poll(Duration::ZERO), &mut child).await;
        child.kill();
        let now = stats();
        assert!(now.wakeups_sent > before.wakeups_sent, "{now}");
        assert_eq!((now.polls_paid, now.polls_in_vain), (before.polls_paid, before.polls_in_vain));
        // The child's reader waits at most once for each byte; the rest is the upgrade's own.
        let woken = now.wakeups_sent + now.wakeups_saved - before.wakeups_sent - before.wakeups_saved;
        assert!(woken < 1200, "{woken}");
    });
}

#[test]
fn looks_of_a_poller_that_does_not_sleep_are_counted() {
    alone(async || {
        if thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2) {
            // It never polls there.
            return;
        }
        let before = stats();
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::Manual);
        // On a busy machine the window opens now and then only.
        for round in 0.. {
            step(format!("round {round}"));
            let mut child = Child::start("echo", lab.dir(), &[]);
            ping_pong(&config, &mut child).await;
            child.kill();
            let now = stats();
            if now.polls_paid > before.polls_paid && now.polls_in_vain > before.polls_in_vain {
                break;
            }
        }
    });
}

#[test]
fn a_thousand_streams_come_and_go_beside_snapshots() {
    alone(async || {
        let lab = Lab::new();
        let before = stats();
        let over = Arc::new(AtomicBool::new(false));
        let looking = {
            let over = over.clone();
            thread::spawn(move || {
                let (mut looks, mut most) = (0, 0);
                while !over.load(Ordering::Relaxed) {
                    let seen = streams();
                    let mut ids: Vec<_> = seen.iter().map(|stream| stream.id).collect();
                    ids.sort_unstable();
                    ids.dedup();
                    assert_eq!(ids.len(), seen.len(), "one stream twice");
                    assert!(seen.is_sorted_by(|older, younger| older.age >= younger.age));
                    most = most.max(seen.len());
                    looks += 1;
                    thread::yield_now();
                }
                (looks, most)
            })
        };
        let config = lab.config(UpgradePolicy::FirstTurn);
        let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
        let address = listener.local_addr().expect("an address");
        for round in 0..25 {
            step(format!("round {round}"));
            let mut open = Vec::new();
            for _ in 0..20 {
                let (client, server) =
                    tokio::join!(SmcStream::connect_with(address, &config), listener.accept());
                open.push((client.expect("connect"), server.expect("accept").0));
            }
            for (number, (mut client, mut server)) in open.into_iter().enumerate() {
                if number % 4 == 0 {
                    tokio::join!(agree(&mut client, true), agree(&mut server, false));
                }
                if number % 4 == 1 {
                    // The upgrade is under way when they are closed.
                    client.write_all(b"x").await.expect("write");
                    server.read_exact(&mut [0]).await.expect("read");
                    server.write_all(b"x").await.expect("write");
                    client.read_exact(&mut [0]).await.expect("read");
                    client.write_all(b"x").await.expect("write");
                }
                drop((client, server));
            }
        }
        over.store(true, Ordering::Relaxed);
        let (looks, most) = looking.join().expect("no panic");
        assert!(looks > 0 && most > 0, "{looks} looks, at most {most} streams");
        let now = stats();
        assert_eq!(now.streams_created - before.streams_created, 1000);
        assert_eq!(now.streams_open, before.streams_open);
        let done = now.upgrades_done - before.upgrades_done;
        assert!((250..=500).contains(&done), "{done}");
        assert_eq!(stayed(&now) - stayed(&before) + done, 1000);
        assert!(!streams().iter().any(|stream| stream.local_addr == Some(address)));
    });
}
