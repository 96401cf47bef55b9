//! Everything that puts bytes in.

use std::io::IoSlice;

use bytes::{Buf, Bytes};
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::net::{Net, Stream};
use crate::tools::{pattern, would_block};
use crate::watchdog::step;

pub(crate) async fn writes_of_all_sizes<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let sizes = [1, 5, 100, 4096, 4097, 20_000, 65_535, 65_536, 200_000, 1 << 20, 3];
    let total = sizes.iter().sum::<usize>();
    let reader = tokio::spawn(async move {
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.expect("read");
        got
    });
    let mut at = 0;
    for size in sizes {
        step(format!("write of {size} bytes"));
        a.write_all(&pattern(at, size)).await.expect("write");
        a.flush().await.expect("flush");
        at += size;
    }
    a.shutdown().await.expect("shutdown");
    assert!(reader.await.expect("no panic") == pattern(0, total));
}

pub(crate) async fn vectored_writes_keep_their_order<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    assert!(a.is_write_vectored(), "hyper copies every body otherwise");
    let total = 300_000;
    let sent = pattern(0, total);
    let expected = sent.clone();
    let reader = tokio::spawn(async move {
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.expect("read");
        assert!(got == expected, "{} of {total} bytes", got.len());
    });
    let mut at = 0;
    while at < total {
        let rest = &sent[at..];
        let cut = |from: usize, to: usize| IoSlice::new(&rest[from.min(rest.len())..to.min(rest.len())]);
        let slices = [
            cut(0, 1),
            cut(1, 1),
            cut(1, 500),
            cut(500, 501),
            cut(501, 9000),
            cut(9000, 9000),
            cut(9000, 30_000),
        ];
        let n = a.write_vectored(&slices).await.expect("write_vectored");
        assert!(n > 0);
        at += n;
    }
    drop(a);
    reader.await.expect("no panic");
}

pub(crate) async fn zero_length_write<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    assert_eq!(a.write(&[]).await.expect("an empty write"), 0);
    assert_eq!(a.write_vectored(&[IoSlice::new(&[]), IoSlice::new(&[])]).await.expect("an empty write"), 0);
    assert_eq!(a.try_write(&[]).expect("an empty write"), 0);
    assert!(would_block(&b.try_read(&mut [0; 4])), "nothing was sent and nothing ended");
    a.write_all(b"y").await.expect("write");
    let mut buf = [0; 4];
    let mut b = b;
    assert_eq!(b.read(&mut buf).await.expect("read"), 1);
}

pub(crate) async fn try_write_of_slices<N: Net>(net: &N) {
    let (a, mut b) = net.pair().await;
    a.writable().await.expect("writable");
    let n = a
        .try_write_vectored(&[IoSlice::new(b"one "), IoSlice::new(b""), IoSlice::new(b"two")])
        .expect("room");
    assert_eq!(n, 7);
    let mut got = [0; 7];
    b.read_exact(&mut got).await.expect("read");
    assert_eq!(&got, b"one two");
}

pub(crate) async fn write_all_buf_of_a_chain<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let sent = pattern(0, 150_000);
    let mut chain = Bytes::from(sent[..70_000].to_vec()).chain(Bytes::from(sent[70_000..].to_vec()));
    let mut got = vec![0; sent.len()];
    let (written, read) = tokio::join!(a.write_all_buf(&mut chain), b.read_exact(&mut got));
    written.expect("write");
    read.expect("read");
    assert!(got == sent);
}

pub(crate) async fn a_large_write<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let sent = pattern(0, 12 << 20);
    let expected = sent.clone();
    let reader = tokio::spawn(async move {
        let mut got = Vec::with_capacity(expected.len());
        b.read_to_end(&mut got).await.expect("read");
        assert!(got == expected, "{} bytes", got.len());
    });
    a.write_all(&sent).await.expect("write");
    drop(a);
    reader.await.expect("no panic");
}

/// A dropped `write_all` may have sent some of its bytes, but only a prefix of them.
pub(crate) async fn a_dropped_write_all_leaves_a_prefix<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let sent = pattern(0, 64 << 20);
    assert!(a.write_all(&sent).now_or_never().is_none(), "no transport takes 64 MiB without a reader");
    drop(a);
    let mut got = Vec::new();
    b.read_to_end(&mut got).await.expect("read");
    assert!(!got.is_empty() && sent.starts_with(&got), "{} bytes are no prefix", got.len());
}

pub(crate) async fn many_small_writes_arrive_in_order<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let writer = tokio::spawn(async move {
        for value in 0..20_000_u32 {
            a.write_u32(value).await.expect("write");
        }
    });
    for value in 0..20_000 {
        assert_eq!(b.read_u32().await.expect("read"), value);
    }
    writer.await.expect("no panic");
}
