//! Programs that write much before they read: wherever this host's TCP absorbs it, the ring does,
//! too.

#[path = "support/watchdog.rs"]
mod watchdog;

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_smc::{Config, SmcListener, SmcStream, UpgradePolicy};

use watchdog::{Flavour, step, watched};

/// Bytes that both ends write before either reads.
const SIZES: [usize; 6] = [1 << 20, 3 << 20, 6 << 20, 9 << 20, 12 << 20, 16 << 20];
/// What passes each way before, so that TCP's buffers have the size of a busy connection's.
const BUSY: usize = 64 << 20;
/// TCP that has not absorbed it by then never will.
const STUCK: Duration = Duration::from_secs(3);

fn byte(seed: usize, at: usize) -> u8 {
    (at.wrapping_mul(0x9E37_79B1) >> 13) as u8 ^ seed as u8
}

fn chunk(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| byte(seed, at)).collect()
}

async fn pass(from: &mut (impl AsyncWrite + Unpin), to: &mut (impl AsyncRead + Unpin)) {
    let sent = vec![7; 256 << 10];
    let mut got = vec![0; 256 << 10];
    for _ in 0..BUSY / sent.len() {
        let (written, read) = tokio::join!(from.write_all(&sent), to.read_exact(&mut got));
        written.expect("write");
        read.expect("read");
    }
}

/// Both write, then both read; `false` when they are stuck.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send>(mut ends: [S; 2], size: usize) -> bool {
    let [a, b] = &mut ends;
    pass(a, b).await;
    pass(b, a).await;
    let sent = [chunk(1, size), chunk(2, size)];
    let both = async {
        let written = tokio::join!(a.write_all(&sent[0]), b.write_all(&sent[1]));
        written.0.and(written.1).expect("write");
    };
    if tokio::time::timeout(STUCK, both).await.is_err() {
        return false;
    }
    let mut got = [vec![0; size], vec![0; size]];
    let [from_a, from_b] = &mut got;
    let read = tokio::join!(b.read_exact(from_a), a.read_exact(from_b));
    read.0.and(read.1).expect("read");
    assert!(got == sent, "other bytes");
    true
}

async fn tcp() -> io::Result<[TcpStream; 2]> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (client, server) = tokio::join!(TcpStream::connect(listener.local_addr()?), listener.accept());
    Ok([client?, server?.0])
}

async fn smc() -> io::Result<[SmcStream; 2]> {
    let listener = SmcListener::bind("127.0.0.1:0").await?;
    let config = Config::from_env().upgrade_policy(UpgradePolicy::Manual);
    let address = listener.local_addr()?;
    let (client, server) = tokio::join!(SmcStream::connect_with(address, &config), listener.accept());
    let (client, server) = (client?, server?.0);
    assert!(client.upgrade().await.is_loopback_ism());
    assert!(server.upgrade().await.is_loopback_ism());
    Ok([client, server])
}

#[test]
fn whatever_tcp_absorbs_the_ring_absorbs() {
    watched(|| {
        for flavour in [Flavour::CurrentThread, Flavour::MultiThread] {
            flavour.runtime().block_on(compare());
        }
    });
}

async fn compare() {
    for size in SIZES {
        step(format!("{} MiB each way over TCP", size >> 20));
        let absorbed = exchange(tcp().await.expect("a connection"), size).await;
        step(format!("{} MiB each way over the ring; TCP absorbs them: {absorbed}", size >> 20));
        assert!(absorbed || size > SIZES[0], "TCP here absorbs nothing: there is nothing to compare");
        let rung = exchange(smc().await.expect("a connection"), size).await;
        assert!(rung || !absorbed, "{} MiB each way: TCP absorbs them, the ring does not", size >> 20);
    }
}
