//! Reading in place: what is borrowed of a stream is what comes next, on TCP, on the ring and while
//! it moves from one to the other; and nothing is lost or doubled, whatever is done meanwhile.

#[path = "support/agree.rs"]
mod agree;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/watchdog.rs"]
mod watchdog;

use std::future::poll_fn;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::{SharedBytes, SmcListener, SmcStream, UpgradePolicy};

use lab::Lab;
use watchdog::{Flavour, on_both_schedulers, step, watched};

/// On the ring, and on TCP for good.
const BOTH: [UpgradePolicy; 2] = [UpgradePolicy::Eager, UpgradePolicy::Never];

/// A byte that tells its place in the stream.
fn at(place: usize) -> u8 {
    (place.wrapping_mul(0x9E37_79B1) >> 11) as u8
}

fn bytes(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(at).collect()
}

/// A pair whose upgrade begins at this moment, unless it never does.
async fn fresh(lab: &Lab, policy: UpgradePolicy) -> (SmcStream, SmcStream) {
    let listener = SmcListener::bind_with("127.0.0.1:0", &lab.config(policy)).await.expect("bind");
    let (addr, config) = (listener.local_addr().expect("an address"), lab.config(policy));
    let (client, server) = tokio::join!(SmcStream::connect_with(addr, &config), listener.accept());
    (client.expect("connect"), server.expect("accept").0)
}

/// A pair that runs on what the policy is about.
async fn pair(lab: &Lab, policy: UpgradePolicy) -> (SmcStream, SmcStream) {
    let (mut client, mut server) = fresh(lab, policy).await;
    if policy != UpgradePolicy::Never {
        tokio::join!(agree::agree(&mut client, true), agree::agree(&mut server, false));
    }
    (client, server)
}

/// Waits until so many bytes have come.
async fn arrived(stream: &SmcStream, count: usize) {
    let mut seen = vec![0; count];
    while stream.peek(&mut seen).await.expect("peek") < count {
        tokio::task::yield_now().await;
    }
}

#[test]
fn borrowed_bytes_stay_until_they_are_consumed() {
    on_both_schedulers(async || {
        for policy in BOTH {
            let lab = Lab::new();
            let (mut client, mut server) = pair(&lab, policy).await;
            client.write_all(b"one\ntwo\nthree").await.expect("write");
            arrived(&server, 13).await;
            drop(server.fill_buf().await.expect("bytes"));
            let mut got = server.fill_buf().await.expect("bytes");
            assert_eq!(got.is_shared(), policy == UpgradePolicy::Eager);
            assert_eq!((got.len(), got.is_empty()), (13, false), "dropping it has consumed nothing");
            assert_eq!(got.to_vec(), b"one\ntwo\nthree");
            assert_eq!((got.get(0), got.get(12), got.get(13)), (Some(b'o'), Some(b'e'), None));
            assert_eq!((got.find(b'\n'), got.find(b'e'), got.find(b'x')), (Some(3), Some(2), None));
            got.consume(4).expect("consume");
            assert_eq!((got.len(), got.find(b'\n'), got.get(0)), (9, Some(3), Some(b't')));
            let mut word = [0; 3];
            got.copy_to(4, &mut word);
            assert_eq!(&word, b"thr");
            let mut taken = b"> ".to_vec();
            got.put_into(1..6, &mut taken);
            got.put_into(9..9, &mut taken);
            assert_eq!(taken, b"> wo\nth");
            got.consume(0).expect("nothing");
            got.consume(4).expect("consume");
            assert_eq!(format!("{got:?}"), {
                let shared = policy == UpgradePolicy::Eager;
                format!("SharedBytes {{ len: 5, is_shared: {shared} }}")
            });
            let mut rest = [0; 5];
            server.read_exact(&mut rest).await.expect("read");
            assert_eq!(&rest, b"three", "a read goes on where the last byte was consumed");
            let counted = server.counters();
            let agreed = 13 + counted.ism_bytes_read + counted.tcp_bytes_read;
            client.write_all(b"four").await.expect("write");
            let mut got = server.fill_buf().await.expect("bytes");
            let length = got.len();
            got.consume(length).expect("consume");
            let counted = server.counters();
            assert_eq!(13 + counted.ism_bytes_read + counted.tcp_bytes_read, agreed + length as u64);
        }
    });
}

#[test]
fn more_than_is_borrowed_can_not_be_had() {
    watched(|| {
        Flavour::CurrentThread.runtime().block_on(async {
            for policy in BOTH {
                let lab = Lab::new();
                let (mut client, mut server) = pair(&lab, policy).await;
                client.write_all(b"12345").await.expect("write");
                arrived(&server, 5).await;
                let mut got = server.fill_buf().await.expect("bytes");
                got.consume(1).expect("consume");
                let tries: [&mut dyn FnMut(&mut SharedBytes<'_>); 3] =
                    [&mut |got| drop(got.consume(5)), &mut |got| got.copy_to(0, &mut [0; 5]), &mut |got| {
                        got.copy_to(5, &mut [])
                    }];
                for (number, attempt) in tries.into_iter().enumerate() {
                    let panics = catch_unwind(AssertUnwindSafe(|| attempt(&mut got))).is_err();
                    assert!(panics, "{policy:?}: attempt {number}");
                }
                got.copy_to(4, &mut []);
                drop(got);
                let mut rest = [0; 4];
                server.read_exact(&mut rest).await.expect("read");
                assert_eq!(&rest, b"2345");
            }
        });
    });
}

/// Every other piece goes by `fill_buf`, while the stream leaves TCP at some moment.
#[test]
fn nothing_is_lost_while_the_stream_moves_to_the_ring() {
    const TOTAL: usize = 200_000;
    watched(|| {
        for flavour in [Flavour::CurrentThread, Flavour::MultiThread] {
            flavour.runtime().block_on(async {
                let lab = Lab::new();
                let mut moved_under_a_loan = 0;
                // As many as it takes, that the case which this is about comes up.
                for moment in 0.. {
                    if moment >= 60 && moved_under_a_loan > 0 {
                        break;
                    }
                    step(format!("{flavour:?}, moment {moment}"));
                    let (mut client, mut server) = fresh(&lab, UpgradePolicy::Eager).await;
                    let writing = tokio::spawn(async move {
                        let mut place = 0;
                        while place < TOTAL {
                            let size = (1 + place * 7 % 3001 + moment).min(TOTAL - place);
                            client.write_all(&bytes(place, size)).await.expect("write");
                            place += size;
                            if place % 5 == 0 {
                                tokio::task::yield_now().await;
                            }
                        }
                    });
                    let (mut place, mut turn) = (0, moment);
                    loop {
                        turn += 1;
                        let wanted = 1 + turn * 13 % 1500;
                        if turn % 3 == 0 {
                            let mut buf = vec![0; wanted];
                            let length = server.read(&mut buf).await.expect("read");
                            assert!(buf[..length] == bytes(place, length), "a read at {place}");
                            place += length;
                            continue;
                        }
                        let on_tcp = !server.transport().is_loopback_ism();
                        let mut got = server.fill_buf().await.expect("bytes");
                        if got.is_empty() {
                            break;
                        }
                        // What is borrowed from TCP may be consumed when the stream has left it.
                        let borrowed_from_tcp = !got.is_shared();
                        for _ in 0..turn % 7 {
                            tokio::task::yield_now().await;
                        }
                        assert!(got.to_vec() == bytes(place, got.len()), "borrowed at {place}");
                        let count = wanted.min(got.len());
                        got.consume(count / 2).expect("consume");
                        got.consume(count - count / 2).expect("consume");
                        place += count;
                        let moved = server.transport().is_loopback_ism();
                        moved_under_a_loan += usize::from(on_tcp && borrowed_from_tcp && moved);
                    }
                    assert_eq!(place, TOTAL);
                    writing.await.expect("no panic");
                }
            });
        }
    });
}

#[test]
fn the_end_is_no_bytes_and_comes_behind_the_last_one() {
    on_both_schedulers(async || {
        for policy in BOTH {
            let lab = Lab::new();
            let (mut client, mut server) = pair(&lab, policy).await;
            client.write_all(b"last").await.expect("write");
            client.shutdown().await.expect("shutdown");
            arrived(&server, 4).await;
            let mut got = server.fill_buf().await.expect("bytes");
            assert_eq!(got.to_vec(), b"last");
            got.consume(4).expect("consume");
            assert!(got.is_empty());
            for _ in 0..2 {
                let mut end = server.fill_buf().await.expect("the end");
                assert!(end.is_empty() && end.to_vec().is_empty() && !end.is_shared());
                assert_eq!((end.get(0), end.find(0)), (None, None));
                end.consume(0).expect("nothing");
            }
            assert!(server.try_fill_buf().expect("the end").is_empty());
            // The other direction goes on.
            server.write_all(b"answer").await.expect("write");
            let mut got = [0; 6];
            client.read_exact(&mut got).await.expect("read");
            assert_eq!(&got, b"answer");
        }
    });
}

#[test]
fn a_peer_that_goes_leaves_what_is_borrowed() {
    on_both_schedulers(async || {
        for policy in BOTH {
            let lab = Lab::new();
            let (mut client, mut server) = pair(&lab, policy).await;
            client.write_all(b"testament").await.expect("write");
            arrived(&server, 9).await;
            let mut got = server.fill_buf().await.expect("bytes");
            client.set_zero_linger().expect("set_zero_linger");
            drop(client);
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
            assert_eq!(got.to_vec(), b"testament", "{policy:?}: a reset takes nothing back");
            got.consume(4).expect("consume");
            assert_eq!(got.to_vec(), b"ament");
            drop(got);
            let mut rest = [0; 5];
            server.read_exact(&mut rest).await.expect("read");
            assert_eq!(&rest, b"ament");
            let error = server.fill_buf().await.expect_err("a reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert!(server.fill_buf().await.expect("told once").is_empty());
        }
    });
}

/// The runtime of the peer ends, and with it its endpoint and the link.
#[test]
fn a_link_that_dies_leaves_what_is_borrowed() {
    const TOTAL: usize = 600_000;
    watched(|| {
        let (lab, other) = (Lab::new(), Flavour::MultiThread.runtime());
        let config = lab.config(UpgradePolicy::Eager);
        Flavour::CurrentThread.runtime().block_on(async {
            let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
            let addr = listener.local_addr().expect("an address");
            let (filled, full) = tokio::sync::oneshot::channel();
            let config = config.clone();
            other.spawn(async move {
                let mut client = SmcStream::connect_with(addr, &config).await.expect("connect");
                agree::agree(&mut client, true).await;
                // As much as fits, so that larger memory is in use.
                client.write_all(&bytes(0, TOTAL)).await.expect("write");
                filled.send(client).expect("it is waited for");
            });
            let mut server = listener.accept().await.expect("accept").0;
            agree::agree(&mut server, false).await;
            let client = full.await.expect("it has written");
            let (mut place, mut dead) = (0, Some((other, client)));
            while place < TOTAL {
                let mut got = server.fill_buf().await.expect("bytes");
                assert!(got.is_shared() && !got.is_empty());
                if place > 0 {
                    if let Some((runtime, client)) = dead.take() {
                        drop(client);
                        runtime.shutdown_background();
                        for _ in 0..100 {
                            tokio::task::yield_now().await;
                        }
                    }
                }
                assert!(got.to_vec() == bytes(place, got.len()), "borrowed at {place}");
                let count = got.len();
                got.consume(count).expect("consume");
                place += count;
            }
            assert!(dead.is_none());
        });
    });
}

#[test]
fn who_waits_is_woken_and_who_does_not_loses_nothing() {
    on_both_schedulers(async || {
        for policy in BOTH {
            let lab = Lab::new();
            let (mut client, mut server) = pair(&lab, policy).await;
            let error = server.try_fill_buf().expect_err("nothing there");
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            for turn in 0..20 {
                step(format!("{policy:?}, turn {turn}"));
                // Given up once, before anything has come.
                let mut nobody = Context::from_waker(Waker::noop());
                assert!(server.poll_fill_buf(&mut nobody).is_pending());
                let reading = async {
                    let mut got = server.fill_buf().await.expect("bytes");
                    assert_eq!(got.to_vec(), [turn]);
                    got.consume(1).expect("consume");
                };
                let writing = async {
                    tokio::task::yield_now().await;
                    client.write_all(&[turn]).await.expect("write");
                };
                tokio::join!(reading, writing);
            }
        }
    });
}

/// A writer that waits for room is woken by what is consumed, as by what is read.
#[test]
fn what_is_consumed_makes_room_for_the_writer() {
    const TOTAL: usize = 8 << 20;
    on_both_schedulers(async || {
        for policy in BOTH {
            let lab = Lab::new();
            let (mut client, mut server) = pair(&lab, policy).await;
            let writing = tokio::spawn(async move {
                let piece = bytes(0, 1 << 20);
                for _ in 0..TOTAL >> 20 {
                    client.write_all(&piece).await.expect("write");
                }
            });
            let expected = bytes(0, 1 << 20);
            let mut place = 0;
            loop {
                step(format!("{policy:?}, {place} bytes consumed"));
                let mut got = server.fill_buf().await.expect("bytes");
                if got.is_empty() {
                    break;
                }
                let from = place % (1 << 20);
                let count = got.len().min((1 << 20) - from);
                let mut copy = vec![0; count];
                got.copy_to(0, &mut copy);
                assert!(copy == expected[from..from + count], "borrowed at {place}");
                got.consume(count).expect("consume");
                place += count;
            }
            assert_eq!(place, TOTAL);
            writing.await.expect("no panic");
        }
    });
}

/// `AsRef` of the other half makes a second reader out of safe code.
#[test]
fn hazard_c4_a_second_reader_makes_a_loan_void() {
    on_both_schedulers(async || {
        for policy in BOTH {
            let lab = Lab::new();
            let (mut client, server) = pair(&lab, policy).await;
            client.write_all(b"first second").await.expect("write");
            arrived(&server, 12).await;
            let (mut read, write) = server.into_split();
            let mut got = read.fill_buf().await.expect("bytes");
            got.consume(1).expect("consume");
            let mut stolen = [0; 5];
            assert_eq!(write.as_ref().try_read(&mut stolen).expect("read"), 5);
            assert_eq!(&stolen, b"irst ");
            for _ in 0..2 {
                let error = got.consume(3).expect_err("they were read");
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
            }
            drop(got);
            let mut got = read.fill_buf().await.expect("bytes");
            assert_eq!(got.to_vec(), b"second", "nothing was lost or doubled");
            got.consume(6).expect("consume");
            drop(got);
            let server = read.reunite(write).expect("of one stream");
            assert_eq!(server.try_read(&mut [0]).expect_err("nothing").kind(), ErrorKind::WouldBlock);
        }
    });
}

#[test]
fn both_kinds_of_halves_lend_and_take() {
    on_both_schedulers(async || {
        for policy in BOTH {
            let lab = Lab::new();
            let (mut client, mut server) = pair(&lab, policy).await;
            for turn in 0..2 {
                client.write_all(b"there and back").await.expect("write");
                let mut back = [0; 14];
                let mut echoed = 0;
                if turn == 0 {
                    let (mut read, mut write) = server.split();
                    while echoed < 14 {
                        let mut got = read.fill_buf().await.expect("bytes");
                        let written = write.write_shared(&got).await.expect("write");
                        got.consume(written).expect("consume");
                        echoed += written;
                    }
                    assert_eq!(read.try_fill_buf().expect_err("nothing").kind(), ErrorKind::WouldBlock);
                } else {
                    let (mut read, write) = server.into_split();
                    while echoed < 14 {
                        let there = poll_fn(|cx| read.poll_fill_buf(cx).map_ok(|got| got.len())).await;
                        let mut got = read.try_fill_buf().expect("bytes");
                        assert!(got.len() >= there.expect("bytes"));
                        let written = write.try_write_shared(&got).expect("write");
                        got.consume(written).expect("consume");
                        echoed += written;
                    }
                    server = read.reunite(write).expect("of one stream");
                }
                client.read_exact(&mut back).await.expect("read");
                assert_eq!(&back, b"there and back");
            }
        }
    });
}

/// From each transport to each: a proxy in the middle.
#[test]
fn bytes_go_from_stream_to_stream() {
    const TOTAL: usize = 3_000_000;
    on_both_schedulers(async || {
        for (from, to) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let lab = Lab::new();
            let (mut source, mut incoming) = pair(&lab, BOTH[from]).await;
            let (mut outgoing, mut sink) = pair(&lab, BOTH[to]).await;
            let writing = tokio::spawn(async move {
                source.write_all(&bytes(0, TOTAL)).await.expect("write");
            });
            let forwarding = tokio::spawn(async move {
                loop {
                    let mut got = incoming.fill_buf().await.expect("bytes");
                    if got.is_empty() {
                        break;
                    }
                    let written = outgoing.write_shared(&got).await.expect("write");
                    got.consume(written).expect("consume");
                }
            });
            let mut got = Vec::new();
            step(format!("from {:?} to {:?}", BOTH[from], BOTH[to]));
            sink.read_to_end(&mut got).await.expect("read");
            assert!(got == bytes(0, TOTAL), "{} bytes", got.len());
            writing.await.expect("no panic");
            forwarding.await.expect("no panic");
        }
    });
}

#[test]
fn a_full_stream_takes_borrowed_bytes_when_there_is_room() {
    on_both_schedulers(async || {
        for policy in BOTH {
            let lab = Lab::new();
            let (mut source, mut incoming) = pair(&lab, UpgradePolicy::Eager).await;
            let (mut outgoing, mut sink) = pair(&lab, policy).await;
            source.write_all(b"behind").await.expect("write");
            arrived(&incoming, 6).await;
            let mut got = incoming.fill_buf().await.expect("bytes");
            let mut sent = 0;
            let full = loop {
                // Until nothing more fits for a while.
                match tokio::time::timeout(std::time::Duration::from_millis(50), outgoing.writable()).await {
                    Ok(ready) => ready.expect("writable"),
                    Err(_) => break outgoing.try_write_shared(&got),
                }
                if let Ok(length) = outgoing.try_write(&[7; 64 << 10]) {
                    sent += length;
                }
            };
            assert_eq!(full.expect_err("full").kind(), ErrorKind::WouldBlock);
            let mut nobody = Context::from_waker(Waker::noop());
            assert!(matches!(outgoing.poll_write_shared(&mut nobody, &got), Poll::Pending));
            let draining = tokio::spawn(async move {
                let mut all = Vec::new();
                sink.read_to_end(&mut all).await.expect("read");
                all
            });
            while !got.is_empty() {
                let written = outgoing.write_shared(&got).await.expect("write");
                got.consume(written).expect("consume");
            }
            drop(outgoing);
            let all = draining.await.expect("no panic");
            assert!(all.ends_with(b"behind") && all.len() == sent + 6, "{} bytes", all.len());
        }
    });
}

/// The socket of a stream on TCP can be had with bytes unread, borrowed once or not.
#[test]
fn what_was_borrowed_from_tcp_is_still_in_the_socket() {
    watched(|| {
        Flavour::CurrentThread.runtime().block_on(async {
            let lab = Lab::new();
            let (mut client, mut server) = pair(&lab, UpgradePolicy::Never).await;
            client.write_all(b"abcdef").await.expect("write");
            arrived(&server, 6).await;
            server.fill_buf().await.expect("bytes").consume(2).expect("consume");
            let socket = server.into_std().expect("a stream on TCP");
            let mut socket = tokio::net::TcpStream::from_std(socket).expect("a socket");
            let mut rest = [0; 4];
            socket.read_exact(&mut rest).await.expect("read");
            assert_eq!(&rest, b"cdef");
        });
    });
}

#[test]
fn borrowed_bytes_can_go_to_other_threads() {
    fn all<T: Send + Sync + Unpin>() {}
    all::<SharedBytes<'_>>();
    fn moves<F: Future + Send>(_: impl FnOnce(&'static mut SmcStream) -> F) {}
    moves(|stream| stream.fill_buf());
}

/// Whose descriptor was shut down reads the ring, then TCP, where somebody may have written past
/// the stream.
#[test]
fn what_tcp_has_behind_the_ring_can_be_consumed() {
    watched(|| {
        Flavour::CurrentThread.runtime().block_on(async {
            let lab = Lab::new();
            let (mut client, mut server) = pair(&lab, UpgradePolicy::Eager).await;
            client.write_all(b"ring").await.expect("write");
            arrived(&server, 4).await;
            socket2::SockRef::from(&client).send(b"behind").expect("send");
            socket2::SockRef::from(&server).shutdown(std::net::Shutdown::Read).expect("shutdown");
            let mut got = Vec::new();
            while got.len() < 10 {
                let mut bytes = server.fill_buf().await.expect("bytes");
                assert!(!bytes.is_empty(), "{got:?}");
                got.extend(bytes.to_vec());
                let length = bytes.len();
                bytes.consume(length).expect("consume");
            }
            assert_eq!(got, b"ringbehind");
        });
    });
}

/// Who reads the TCP socket itself reads past the stream, which knows how many bytes it has shown,
/// and not which.
#[test]
fn who_reads_past_the_stream_is_noticed_by_what_is_missing() {
    watched(|| {
        Flavour::CurrentThread.runtime().block_on(async {
            for more in [false, true] {
                let lab = Lab::new();
                let (mut client, mut server) = pair(&lab, UpgradePolicy::Never).await;
                client.write_all(b"first second").await.expect("write");
                arrived(&server, 12).await;
                let socket = server.as_fd().try_clone_to_owned().expect("a descriptor");
                let mut got = server.fill_buf().await.expect("bytes");
                let mut stolen = [std::mem::MaybeUninit::uninit(); 6];
                assert_eq!(socket2::SockRef::from(&socket).recv(&mut stolen).expect("recv"), 6);
                if more {
                    client.write_all(b" third").await.expect("write");
                    got.consume(12).expect("as many are there");
                    continue;
                }
                let error = got.consume(12).expect_err("they were read");
                assert_eq!((error.kind(), got.len()), (ErrorKind::InvalidInput, 6));
            }
        });
    });
}
