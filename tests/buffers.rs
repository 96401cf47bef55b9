//! The caller's buffers are the caller's code: none of it runs where it could meet a lock of the
//! stream.
#![allow(unsafe_code, reason = "BufMut is unsafe to implement")]
#![allow(clippy::disallowed_types, reason = "a test, which loom does not run")]

#[path = "support/agree.rs"]
mod agree;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/watchdog.rs"]
mod watchdog;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use bytes::BufMut;
use bytes::buf::UninitSlice;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::{SmcListener, SmcStream, UpgradePolicy};

use lab::Lab;
use watchdog::{Flavour, step, watched};

/// A buffer that uses the stream it is filled from, whenever it is asked for anything.
struct Curious<'a> {
    bytes: Vec<u8>,
    stream: &'a SmcStream,
    asked: &'a AtomicUsize,
}

impl Curious<'_> {
    fn ask(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let _ = (self.stream.transport(), self.stream.counters(), self.stream.peer_cred());
        let _ = (self.stream.try_read(&mut []), self.stream.try_write(b"x"));
        let _ = self.stream.watch();
    }
}

// SAFETY: all is left to the vector.
unsafe impl BufMut for Curious<'_> {
    fn remaining_mut(&self) -> usize {
        self.ask();
        self.bytes.capacity() - self.bytes.len()
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        self.ask();
        UninitSlice::uninit(self.bytes.spare_capacity_mut())
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        self.ask();
        // SAFETY: as the caller says.
        unsafe { self.bytes.advance_mut(count) };
    }
}

async fn pair(lab: &Lab, policy: UpgradePolicy) -> (SmcStream, SmcStream) {
    let listener = SmcListener::bind_with("127.0.0.1:0", &lab.config(policy)).await.expect("bind");
    let (addr, config) = (listener.local_addr().expect("an address"), lab.config(policy));
    let (client, server) = tokio::join!(SmcStream::connect_with(addr, &config), listener.accept());
    let (mut client, mut server) = (client.expect("connect"), server.expect("accept").0);
    if policy != UpgradePolicy::Never {
        tokio::join!(agree::agree(&mut client, true), agree::agree(&mut server, false));
    }
    (client, server)
}

#[test]
fn a_buffer_may_use_the_stream_that_fills_it() {
    watched(|| {
        Flavour::CurrentThread.runtime().block_on(async {
            for policy in [UpgradePolicy::Never, UpgradePolicy::Eager] {
                step(format!("{policy:?}"));
                let lab = Lab::new();
                let (mut client, mut server) = pair(&lab, policy).await;
                for turn in 0..3 {
                    client.write_all(b"bytes").await.expect("write");
                    server.readable().await.expect("readable");
                    let asked = AtomicUsize::new(0);
                    let mut buf = Curious { bytes: Vec::with_capacity(64), stream: &server, asked: &asked };
                    while server.try_read_buf(&mut buf).is_err() {
                        tokio::task::yield_now().await;
                    }
                    assert_eq!(buf.bytes, b"bytes", "turn {turn}");
                    assert!(asked.load(Ordering::Relaxed) > 1);
                }
                client.write_all(b"more").await.expect("write");
                let asked = AtomicUsize::new(0);
                let (ours, theirs) = (&client, &mut server);
                let mut buf = Curious { bytes: Vec::with_capacity(64), stream: ours, asked: &asked };
                theirs.read_buf(&mut buf).await.expect("read");
                assert!(buf.bytes.starts_with(b"more"), "{:?}", buf.bytes);
            }
        });
    });
}

#[test]
fn a_buffer_without_room_takes_nothing() {
    watched(|| {
        Flavour::CurrentThread.runtime().block_on(async {
            for policy in [UpgradePolicy::Never, UpgradePolicy::Eager] {
                let lab = Lab::new();
                let (mut client, mut server) = pair(&lab, policy).await;
                client.write_all(b"bytes").await.expect("write");
                server.readable().await.expect("readable");
                assert_eq!(server.try_read_buf(&mut &mut [0_u8; 0][..]).expect("nothing"), 0);
                let mut got = [0; 5];
                server.read_exact(&mut got).await.expect("read");
                assert_eq!(&got, b"bytes");
            }
        });
    });
}

/// A waker that polls its stream when it is cloned or dropped.
struct Nosy(SmcStream, AtomicUsize);

static NOSY: RawWakerVTable = RawWakerVTable::new(
    |data| {
        // SAFETY: every waker holds one count of this `Arc`.
        let nosy = unsafe { Arc::from_raw(data.cast::<Nosy>()) };
        nosy.1.fetch_add(1, Ordering::Relaxed);
        let _ = nosy.0.poll_read_ready(&mut Context::from_waker(Waker::noop()));
        RawWaker::new(Arc::into_raw(nosy.clone()).cast::<()>(), {
            let _ = Arc::into_raw(nosy);
            &NOSY
        })
    },
    |_| {},
    |_| {},
    |data| {
        // SAFETY: as above, and this one ends here.
        let nosy = unsafe { Arc::from_raw(data.cast::<Nosy>()) };
        let _ = nosy.0.poll_read_ready(&mut Context::from_waker(Waker::noop()));
    },
);

#[test]
fn a_waker_may_use_the_stream_that_keeps_it() {
    watched(|| {
        Flavour::MultiThread.runtime().block_on(async {
            let lab = Lab::new();
            let (_client, server) = pair(&lab, UpgradePolicy::Eager).await;
            // Nothing is there any more.
            server.try_read(&mut [0; 8]).expect_err("an idle stream");
            let nosy = Arc::new(Nosy(server, AtomicUsize::new(0)));
            let raw = RawWaker::new(Arc::into_raw(nosy.clone()).cast(), &NOSY);
            // SAFETY: the table keeps the count of the `Arc`.
            let waker = unsafe { Waker::from_raw(raw) };
            let answer = nosy.0.poll_read_ready(&mut Context::from_waker(&waker));
            assert!(matches!(answer, Poll::Pending | Poll::Ready(Ok(()))));
            assert!(nosy.1.load(Ordering::Relaxed) > 0, "it was kept");
            // It is replaced by another one, which drops it.
            let _ = nosy.0.poll_read_ready(&mut Context::from_waker(Waker::noop()));
        });
    });
}
