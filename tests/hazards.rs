//! Interleavings that broke earlier drafts of the switch, each named after what it broke; run while
//! connections move from TCP to the ring, in both of tokio's schedulers, at many different moments
//! of the switch.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/watchdog.rs"]
mod watchdog;

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio_smc::{IntoStdError, SmcListener, SmcStream, Transport, UpgradePolicy};

use lab::Lab;
use watchdog::{Flavour, step, watched};

/// A byte that tells its place in the stream.
fn at(place: usize) -> u8 {
    (place.wrapping_mul(0x9E37_79B1) >> 11) as u8
}

fn bytes(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(at).collect()
}

/// A device with one listener, whose connections begin to upgrade on the moment.
struct Scene {
    lab: Lab,
    listener: SmcListener,
}

impl Scene {
    async fn new() -> Self {
        let lab = Lab::new();
        let listener =
            SmcListener::bind_with("127.0.0.1:0", &lab.config(UpgradePolicy::Eager)).await.expect("bind");
        Self { lab, listener }
    }

    async fn pair(&self, policy: UpgradePolicy) -> (SmcStream, SmcStream) {
        let addr = self.listener.local_addr().expect("an address");
        let config = self.lab.config(policy);
        let (client, server) = tokio::join!(SmcStream::connect_with(addr, &config), self.listener.accept());
        (client.expect("connect"), server.expect("accept").0)
    }
}

/// Runs `test` on both schedulers with a rising number, by which it picks the moment of the
/// interleaving.
#[track_caller]
fn moments(count: usize, test: impl AsyncFn(&Scene, usize) + Send + Copy + 'static) {
    watched(move || {
        for flavour in [Flavour::CurrentThread, Flavour::MultiThread] {
            flavour.runtime().block_on(async {
                let scene = Scene::new().await;
                for moment in 0..count {
                    step(format!("{flavour:?}, moment {moment}"));
                    test(&scene, moment).await;
                }
            });
        }
    });
}

/// Lets the rest of the process run for a while that differs from moment to moment.
async fn pass(moment: usize) {
    for _ in 0..moment % 23 {
        tokio::task::yield_now().await;
    }
}

async fn expect_rest(stream: &mut SmcStream, from: usize, total: usize) {
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.expect("a clean end");
    assert!(got == bytes(from, total - from), "{} bytes from {from} on, {total} sent", got.len());
}

#[test]
fn hazard_c1_a_close_during_the_upgrade_loses_nothing() {
    moments(30, async |scene, moment| {
        const TOTAL: usize = 2 << 20;
        let (mut client, mut server) = scene.pair(UpgradePolicy::Eager).await;
        client.write_all(b"request").await.expect("write");
        let serving = tokio::spawn(async move {
            server.read_exact(&mut [0; 7]).await.expect("read");
            pass(moment).await;
            server.write_all(&bytes(0, TOTAL)).await.expect("write");
        });
        expect_rest(&mut client, 0, TOTAL).await;
        serving.await.expect("no panic");
        // The mirror image: the client writes everything and goes, the server reads late.
        let (mut client, mut server) = scene.pair(UpgradePolicy::Eager).await;
        let writing = tokio::spawn(async move {
            pass(moment).await;
            client.write_all(&bytes(0, TOTAL)).await.expect("write");
        });
        expect_rest(&mut server, 0, TOTAL).await;
        writing.await.expect("no panic");
    });
}

#[test]
fn hazard_c2_no_foreign_byte_in_any_kind_of_read() {
    moments(40, async |scene, moment| {
        const TOTAL: usize = 200_000;
        let (mut client, mut server) = scene.pair(UpgradePolicy::Eager).await;
        let writing = tokio::spawn(async move {
            let mut place = 0;
            while place < TOTAL {
                let size = (1 + place * 7 % 3001 + moment).min(TOTAL - place);
                let chunk = bytes(place, size);
                let (one, two) = chunk.split_at(size / 3);
                place += client.write_vectored(&[IoSlice::new(one), IoSlice::new(two)]).await.expect("write");
                if place % 5 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        });
        let (mut place, mut turn) = (0, 0);
        loop {
            turn += 1;
            let size = 1 + turn * 13 % 1500;
            let mut buf = vec![0; size];
            let n = match turn % 4 {
                0 => server.read(&mut buf).await.expect("read"),
                1 => {
                    let n = server.peek(&mut buf).await.expect("peek");
                    assert!(buf[..n] == bytes(place, n), "peek at {place}");
                    continue;
                }
                2 => {
                    server.readable().await.expect("readable");
                    let (one, two) = buf.split_at_mut(size / 2);
                    match server.try_read_vectored(&mut [IoSliceMut::new(one), IoSliceMut::new(two)]) {
                        Ok(n) => n,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                        Err(error) => panic!("{error}"),
                    }
                }
                _ => {
                    let mut spare = Vec::with_capacity(size);
                    let n = server.read_buf(&mut spare).await.expect("read_buf");
                    buf[..n].copy_from_slice(&spare);
                    n
                }
            };
            if n == 0 {
                break;
            }
            assert!(buf[..n] == bytes(place, n), "{n} bytes at {place}");
            place += n;
        }
        assert_eq!(place, TOTAL);
        writing.await.expect("no panic");
    });
}

/// `&self` methods let safe code run two producers and two consumers at once; no byte may be lost
/// or doubled.
#[test]
fn hazard_c4_two_producers_and_two_consumers() {
    moments(4, async |scene, _| {
        const EACH: usize = 20_000;
        let (client, server) = scene.pair(UpgradePolicy::Eager).await;
        let (client, server) = (Arc::new(client), Arc::new(server));
        let counts = Arc::new(Mutex::new([0_usize; 2]));
        let mut tasks = tokio::task::JoinSet::new();
        for value in 0..2_u8 {
            let client = Arc::clone(&client);
            tasks.spawn(async move {
                let mut left = EACH;
                while left > 0 {
                    client.writable().await.expect("writable");
                    match client.try_write(&vec![value; left.min(97)]) {
                        Ok(n) => left -= n,
                        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                    }
                }
            });
            let (server, counts) = (Arc::clone(&server), Arc::clone(&counts));
            tasks.spawn(async move {
                loop {
                    if counts.lock().expect("not poisoned").iter().sum::<usize>() == 2 * EACH {
                        return;
                    }
                    let mut buf = [9; 61];
                    match server.try_read(&mut buf) {
                        Ok(n) => {
                            let mut counts = counts.lock().expect("not poisoned");
                            buf[..n].iter().for_each(|&value| counts[usize::from(value)] += 1);
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::WouldBlock);
                            tokio::task::yield_now().await;
                        }
                    }
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.expect("no panic");
        }
        assert_eq!(*counts.lock().expect("not poisoned"), [EACH, EACH]);
    });
}

/// The reader goes while the peer writes, and the next connection takes what it had: none of the
/// old bytes show up.
#[test]
fn hazard_c5_a_late_producer_never_writes_into_the_next_connection() {
    moments(150, async |scene, moment| {
        let (client, mut server) = scene.pair(UpgradePolicy::Eager).await;
        let mark = moment as u8;
        let writing = tokio::spawn(async move {
            let mut client = client;
            while client.write(&[mark; 3000]).await.is_ok() {}
        });
        let mut buf = vec![0; 50_000 + moment * 100];
        server.read_exact(&mut buf).await.expect("read");
        assert!(buf.iter().all(|&byte| byte == mark), "bytes of another connection");
        drop(server);
        // The writer is left to itself while the next connection begins.
        if moment % 3 == 0 {
            writing.await.expect("no panic");
        }
    });
}

/// Every way to wait, begun before the switch; the byte comes after it.
#[test]
fn hazard_h1_a_waiter_from_before_the_switch_wakes_after_it() {
    moments(60, async |scene, moment| {
        let (mut client, server) = scene.pair(UpgradePolicy::Manual).await;
        let waiting = tokio::spawn(async move {
            let mut server = server;
            match moment % 4 {
                0 => assert_eq!(server.read_u8().await.expect("read"), 7),
                1 => {
                    let mut byte = [0];
                    assert_eq!(server.peek(&mut byte).await.expect("peek"), 1);
                }
                2 => loop {
                    server.readable().await.expect("readable");
                    match server.try_read(&mut [0; 1]) {
                        Ok(n) => break assert_eq!(n, 1),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                    }
                },
                _ => loop {
                    if server.ready(Interest::READABLE).await.expect("ready").is_readable()
                        && server.try_read(&mut [0; 1]).is_ok()
                    {
                        break;
                    }
                },
            }
        });
        pass(moment).await;
        if moment % 2 == 0 {
            client.upgrade().await;
            client.write_u8(7).await.expect("write");
        } else {
            let client = &mut client;
            let upgrading =
                tokio::time::timeout(std::time::Duration::from_micros(moment as u64), client.upgrade());
            drop(upgrading.await);
            client.write_u8(7).await.expect("write");
        }
        waiting.await.expect("no panic");
    });
}

/// One half's task drives the switch while the other half's waits: neither takes the other's waker.
#[test]
fn hazard_h2_halves_keep_their_wakers_through_the_switch() {
    moments(6, async |scene, moment| {
        const TOTAL: usize = 3 << 20;
        let (client, server) = scene.pair(UpgradePolicy::Eager).await;
        let mut tasks = tokio::task::JoinSet::new();
        for (stream, seed) in [(client, 0), (server, 1000)] {
            let other = 1000 - seed;
            let (mut reader, mut writer) = stream.into_split();
            tasks.spawn(async move {
                pass(moment).await;
                writer.write_all(&bytes(seed, TOTAL)).await.expect("write");
            });
            tasks.spawn(async move {
                let mut got = Vec::new();
                reader.read_to_end(&mut got).await.expect("read");
                assert!(got == bytes(other, TOTAL));
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.expect("no panic");
        }
    });
}

/// The server only ever writes and leaves the client's bytes unread: they are all still there at
/// the end.
#[test]
fn hazard_h4_a_stream_that_is_only_written_reads_nothing_ahead() {
    moments(4, async |scene, _| {
        const UNREAD: usize = 100_000;
        const TOTAL: usize = 4 << 20;
        let (mut client, mut server) = scene.pair(UpgradePolicy::Eager).await;
        client.write_all(&bytes(0, UNREAD)).await.expect("write");
        let serving = tokio::spawn(async move {
            server.write_all(&bytes(9, TOTAL)).await.expect("write");
            let mut got = vec![0; UNREAD];
            server.read_exact(&mut got).await.expect("read");
            assert!(got == bytes(0, UNREAD));
        });
        let mut got = vec![0; TOTAL];
        client.read_exact(&mut got).await.expect("read");
        assert!(got == bytes(9, TOTAL));
        serving.await.expect("no panic");
    });
}

/// `into_std` at any moment: either it is still TCP and every byte passes through std, or it says
/// `Unsupported`.
#[test]
fn hazard_h9_into_std_races_the_switch() {
    moments(60, async |scene, moment| {
        let (mut client, mut server) = scene.pair(UpgradePolicy::Eager).await;
        client.write_all(b"before").await.expect("write");
        server.read_exact(&mut [0; 6]).await.expect("read");
        pass(moment).await;
        match server.into_std() {
            Ok(mut std) => {
                std.set_nonblocking(false).expect("set_nonblocking");
                let echo = tokio::task::spawn_blocking(move || {
                    let mut got = [0; 5];
                    std.read_exact(&mut got).expect("read");
                    std.write_all(&got).expect("write");
                    let mut rest = Vec::new();
                    std.read_to_end(&mut rest).expect("read");
                    (got, rest)
                });
                client.write_all(b"after").await.expect("write");
                client.read_exact(&mut [0; 5]).await.expect("read");
                client.shutdown().await.expect("shutdown");
                let (got, rest) = echo.await.expect("no panic");
                assert_eq!((&got, rest.len()), (b"after", 0), "a foreign byte in the user's own socket");
                assert!(matches!(client.transport(), Transport::Tcp(_)), "{}", client.transport());
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                let upgraded = error.into_inner().expect("a source").downcast::<IntoStdError>();
                let mut server = upgraded.expect("the stream").into_stream();
                client.write_all(b"after").await.expect("write");
                let mut got = [0; 5];
                server.read_exact(&mut got).await.expect("read");
                assert_eq!(&got, b"after", "the stream goes on as it was");
                server.write_all(&got).await.expect("write");
                client.read_exact(&mut got).await.expect("read");
                drop(server);
                assert_eq!(client.read(&mut got).await.expect("the end"), 0);
            }
        }
    });
}

/// Both write what TCP absorbs before either reads, with the switch anywhere in between.
#[test]
fn hazard_h10_both_write_before_they_read_during_the_switch() {
    moments(10, async |scene, moment| {
        const TOTAL: usize = 1 << 20;
        let (mut client, mut server) = scene.pair(UpgradePolicy::Eager).await;
        for stream in [&mut client, &mut server] {
            let mut place = 0;
            while place < TOTAL {
                let size = (10_000 + moment * 4_000).min(TOTAL - place);
                stream.write_all(&bytes(place, size)).await.expect("write");
                place += size;
                pass(moment).await;
            }
        }
        for stream in [&mut client, &mut server] {
            let mut got = vec![0; TOTAL];
            stream.read_exact(&mut got).await.expect("read");
            assert!(got == bytes(0, TOTAL));
        }
    });
}

/// A waiter on either side of every turn: one lost wake-up in 100,000 is a hang, and the watchdog
/// names it.
#[test]
fn hazard_h13_no_wakeup_is_lost_between_look_and_sleep() {
    moments(4, async |scene, _| {
        let (mut client, mut server) = scene.pair(UpgradePolicy::Eager).await;
        let echo = tokio::spawn(async move {
            while let Ok(value) = server.read_u16().await {
                server.write_u16(value).await.expect("write");
            }
        });
        for turn in 0..12_000_u16 {
            client.write_u16(turn).await.expect("write");
            assert_eq!(client.read_u16().await.expect("read"), turn);
        }
        drop(client);
        echo.await.expect("no panic");
    });
}
