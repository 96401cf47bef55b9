//! Much data: back-pressure, both directions at once, tokio's own copying.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::net::{Net, Stream, fresh};
use crate::tools::{fill, pattern};
use crate::watchdog::step;

/// TCP on loopback absorbs megabytes without a reader; a program that counts on it must not hang on
/// the ring.
pub(crate) async fn both_write_before_they_read<N: Net>(net: &N) {
    for size in [65 << 10, 1 << 20] {
        step(format!("{size} bytes each way"));
        let (mut a, mut b) = net.pair().await;
        let sent = pattern(0, size);
        a.write_all(&sent).await.expect("write");
        b.write_all(&sent).await.expect("write");
        for stream in [&mut a, &mut b] {
            let mut got = vec![0; size];
            stream.read_exact(&mut got).await.expect("read");
            assert!(got == sent);
        }
    }
}

async fn blast<S: Stream>(stream: S, bytes: usize, seed: u64) -> (blake3::Hash, blake3::Hash) {
    let (mut reader, mut writer) = stream.into_split();
    let sending = tokio::spawn(async move {
        let mut hash = blake3::Hasher::new();
        let (mut at, mut state) = (0, seed);
        while at < bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let size = (1 + (state >> 33) as usize % 90_000).min(bytes - at);
            let chunk = pattern(at ^ seed as usize, size);
            hash.update(&chunk);
            writer.write_all(&chunk).await.expect("write");
            at += size;
        }
        hash.finalize()
    });
    let mut hash = blake3::Hasher::new();
    let mut buf = vec![0; 50_000];
    let mut total = 0;
    loop {
        let n = reader.read(&mut buf).await.expect("read");
        if n == 0 {
            break;
        }
        hash.update(&buf[..n]);
        total += n;
    }
    assert_eq!(total, bytes);
    (sending.await.expect("no panic"), hash.finalize())
}

pub(crate) async fn full_duplex_with_checksums<N: Net>(net: &N) {
    let (a, b) = net.pair().await;
    let bytes = 8 << 20;
    let other = tokio::spawn(blast(b, bytes, 2));
    let (a_sent, a_got) = blast(a, bytes, 1).await;
    let (b_sent, b_got) = other.await.expect("no panic");
    assert_eq!((a_sent, b_sent), (b_got, a_got));
}

pub(crate) async fn copy_in_both_directions<N: Net>(net: &N) {
    let (mut client, mut left) = net.pair().await;
    let (mut right, mut server) = net.pair().await;
    let proxy =
        tokio::spawn(
            async move { tokio::io::copy_bidirectional(&mut left, &mut right).await.expect("copy") },
        );
    let answering = tokio::spawn(async move {
        let mut request = Vec::new();
        server.read_to_end(&mut request).await.expect("read");
        server.write_all(&pattern(7, 3 << 20)).await.expect("write");
        request
    });
    client.write_all(&pattern(0, 2 << 20)).await.expect("write");
    client.shutdown().await.expect("shutdown");
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.expect("read");
    assert!(answer == pattern(7, 3 << 20));
    assert!(answering.await.expect("no panic") == pattern(0, 2 << 20));
    assert_eq!(proxy.await.expect("no panic"), (2 << 20, 3 << 20));
}

/// No transport may take bytes without bound: memory is the reader's to give.
pub(crate) async fn a_slow_reader_holds_the_writer<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let total = 64 << 20;
    let taken = fill(&a, 0).await;
    assert!(taken < total, "{taken} bytes without a reader");
    let writer = tokio::spawn(async move {
        a.write_all(&pattern(taken, 1 << 20)).await.expect("write");
    });
    let mut at = 0;
    let mut buf = vec![0; 300_000];
    loop {
        let n = b.read(&mut buf).await.expect("read");
        if n == 0 {
            break;
        }
        assert!(buf[..n] == pattern(at, n));
        at += n;
        tokio::task::yield_now().await;
    }
    assert_eq!(at, taken + (1 << 20));
    writer.await.expect("no panic");
}

pub(crate) async fn many_streams_at_once<N: Net>(net: &N) {
    let mut tasks = Vec::new();
    for turn in 0..40 {
        let (mut a, mut b) = net.pair().await;
        tasks.push(tokio::spawn(async move {
            for message in 0..50 {
                a.write_all(&pattern(turn * message, 100)).await.expect("write");
                let mut got = [0; 100];
                a.read_exact(&mut got).await.expect("read");
                assert!(got[..] == pattern(turn * message, 100));
            }
        }));
        tasks.push(tokio::spawn(async move {
            let mut got = [0; 100];
            for _ in 0..50 {
                b.read_exact(&mut got).await.expect("read");
                b.write_all(&got).await.expect("write");
            }
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
}

pub(crate) async fn bursts_after_silence<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    for (turn, size) in [10, 500_000, 3, 2 << 20, 1].into_iter().enumerate() {
        step(format!("burst {turn}"));
        tokio::time::sleep(Duration::from_millis(5)).await;
        let sent = pattern(turn, size);
        let mut got = vec![0; size];
        let (written, read) = tokio::join!(a.write_all(&sent), b.read_exact(&mut got));
        written.expect("write");
        read.expect("read");
        assert!(got == sent);
        std::mem::swap(&mut a, &mut b);
    }
}

/// Writers and readers that never agree on a size meet every wrap and every seam of a buffer.
pub(crate) async fn unequal_chunks<N: Net>(net: &N) {
    let (mut a, mut b) = fresh(net).await;
    let total = 3_000_017;
    let writer = tokio::spawn(async move {
        let (mut at, mut turn) = (0, 0);
        while at < total {
            turn += 1;
            let size = (turn * turn * 31 % 20_011 + 1).min(total - at);
            at += a.write(&pattern(at, size)).await.expect("write");
        }
    });
    let (mut at, mut turn) = (0, 0);
    loop {
        turn += 1;
        let mut buf = vec![0; turn * turn * 17 % 15_013 + 1];
        let n = if turn % 5 == 0 { b.peek(&mut buf).await } else { b.read(&mut buf).await }.expect("read");
        assert!(buf[..n] == pattern(at, n), "{n} bytes at {at}");
        if n == 0 {
            break;
        }
        if turn % 5 != 0 {
            at += n;
        }
    }
    assert_eq!(at, total);
    writer.await.expect("no panic");
}

pub(crate) async fn io_copy_of_a_stream<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let writer = tokio::spawn(async move {
        tokio::io::copy(&mut &pattern(0, 5 << 20)[..], &mut a).await.expect("copy");
    });
    let mut got = Vec::new();
    tokio::io::copy(&mut b, &mut got).await.expect("copy");
    writer.await.expect("no panic");
    assert!(got == pattern(0, 5 << 20));
}
