//! Wakers of the application that panic: whoever they belong to has the damage, nobody else.

#[path = "support/agree.rs"]
mod agree;
#[allow(dead_code, reason = "not every test needs all of it")]
#[path = "support/child.rs"]
mod child;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/watchdog.rs"]
mod watchdog;

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio_smc::{SmcListener, SmcStream, UpgradePolicy};

use agree::agree;
use child::{Child, next_word, role, tell};
use lab::Lab;
use watchdog::{Flavour, step, watched};

/// Not a test of its own: the door through which this binary becomes the server.
#[test]
fn child_process() {
    if role().is_none() {
        return;
    }
    let runtime = Flavour::MultiThread.runtime();
    let _context = runtime.enter();
    let listener = runtime.block_on(SmcListener::bind("127.0.0.1:0")).expect("bind");
    tell(&listener.local_addr().expect("an address").to_string());
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    // Until the parent ends.
    while next_word().is_some() {}
}

/// Echoes, after a while: whoever asks waits.
async fn serve(mut stream: SmcStream) {
    while let Ok(byte) = stream.read_u8().await {
        if byte == b'u' {
            agree(&mut stream, false).await;
            continue;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        if stream.write_u8(byte).await.is_err() {
            return;
        }
    }
}

#[derive(Default)]
struct Panicking(Mutex<usize>);

impl Panicking {
    /// How often it was called.
    fn calls(&self) -> usize {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Panicking {
    fn wake(self: Arc<Self>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        panic!("a panic that belongs to the test");
    }
}

async fn echo(stream: &mut SmcStream) {
    for byte in *b"echo" {
        stream.write_u8(byte).await.expect("write");
        assert_eq!(stream.read_u8().await.expect("read"), byte);
    }
}

async fn on(policy: UpgradePolicy) {
    let lab = Lab::new();
    let mut server = Child::start("server", lab.dir(), &[]);
    let address = server.hear();
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = SmcStream::connect_with(&address, &lab.config(policy)).await.expect("connect");
        if policy == UpgradePolicy::Eager {
            stream.write_u8(b'u').await.expect("write");
            agree(&mut stream, true).await;
        }
        streams.push(stream);
    }
    let panicking = Arc::new(Panicking::default());
    let waker = Waker::from(panicking.clone());
    let mut ill = streams.pop().expect("eight");
    for round in 1..=20 {
        step(format!("{policy:?}, round {round}"));
        ill.write_u8(b'!').await.expect("write");
        let mut byte = [0];
        let polled = pin!(&mut ill).poll_read(&mut Context::from_waker(&waker), &mut ReadBuf::new(&mut byte));
        assert!(polled.is_pending(), "the echo takes its time");
        // Neighbours of the same link wait at the same time.
        let healthy = streams.iter_mut().map(echo);
        futures::future::join_all(healthy).await;
        while panicking.calls() < round {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(ill.read_u8().await.expect("read"), b'!', "what its waker was called for is there");
    }
    // A waiting `upgrade()` as well.
    let mut late =
        SmcStream::connect_with(&address, &lab.config(UpgradePolicy::Manual)).await.expect("connect");
    {
        let mut upgrade = Box::pin(late.upgrade());
        assert_eq!(upgrade.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Pending);
        assert!(upgrade.await.is_loopback_ism());
    }
    echo(&mut late).await;
    for stream in &mut streams {
        echo(stream).await;
        assert_eq!(stream.transport().is_loopback_ism(), policy == UpgradePolicy::Eager);
    }
}

#[test]
fn a_waker_that_panics_hurts_nobody_else() {
    watched(|| {
        for flavour in [Flavour::CurrentThread, Flavour::MultiThread] {
            for policy in [UpgradePolicy::Manual, UpgradePolicy::Eager] {
                flavour.runtime().block_on(on(policy));
            }
        }
    });
}
