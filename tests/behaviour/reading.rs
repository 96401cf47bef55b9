//! Everything that takes bytes out.

use std::io::{ErrorKind, IoSliceMut};
use std::time::Duration;

use futures::FutureExt;
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::net::{Net, Stream};
use crate::tools::{pattern, would_block};
use crate::watchdog::step;

pub(crate) async fn reads_of_all_sizes<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let sizes = [1, 2, 3, 7, 64, 1000, 4095, 4096, 4097, 8192, 12_289, 65_536, 100_001];
    let mut at = 0;
    for size in sizes {
        step(format!("{size} bytes"));
        let sent = pattern(at, size);
        let mut got = vec![0; size];
        let (written, read) = tokio::join!(a.write_all(&sent), b.read_exact(&mut got));
        written.expect("write");
        read.expect("read");
        assert!(got == sent, "{size} bytes from {at} on");
        at += size;
    }
}

pub(crate) async fn short_buffers_lose_nothing<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let sent = pattern(0, 9000);
    a.write_all(&sent).await.expect("write");
    drop(a);
    let mut got = Vec::new();
    for size in (1..=17).cycle() {
        let mut buf = vec![0; size];
        let n = b.read(&mut buf).await.expect("read");
        assert!(n <= size);
        got.extend_from_slice(&buf[..n]);
        if n == 0 {
            break;
        }
    }
    assert!(got == sent);
}

pub(crate) async fn zero_length_read<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    a.write_all(b"x").await.expect("write");
    b.readable().await.expect("readable");
    assert_eq!(b.read(&mut []).await.expect("an empty read"), 0);
    let mut got = [0; 4];
    assert_eq!(b.read(&mut got).await.expect("read"), 1, "the empty read took nothing and ended nothing");
    assert_eq!(got[0], b'x');
}

pub(crate) async fn reads_into_vectored_buffers<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    let sent = pattern(0, 5000);
    a.write_all(&sent).await.expect("write");
    a.shutdown().await.expect("shutdown");
    let mut got = Vec::new();
    loop {
        b.readable().await.expect("readable");
        let (mut one, mut none, mut two) = ([0; 3], [0; 0], [0; 700]);
        let mut bufs = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut none), IoSliceMut::new(&mut two)];
        match b.try_read_vectored(&mut bufs) {
            Ok(0) => break,
            Ok(n) => {
                got.extend_from_slice(&one[..n.min(3)]);
                got.extend_from_slice(&two[..n.saturating_sub(3)]);
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert!(got == sent);
}

pub(crate) async fn reads_into_spare_capacity<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    a.write_all(b"hello").await.expect("write");
    let mut got = Vec::with_capacity(3);
    while got.len() < 3 {
        b.read_buf(&mut got).await.expect("read_buf");
    }
    assert_eq!(got, b"hel");
    b.readable().await.expect("readable");
    let mut rest = Vec::with_capacity(64);
    while rest.len() < 2 {
        match b.try_read_buf(&mut rest) {
            Ok(n) => assert_ne!(n, 0, "no end yet"),
            Err(_) => b.readable().await.expect("readable"),
        }
    }
    assert_eq!(rest, b"lo");
}

pub(crate) async fn peek_twice_then_read<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    a.write_all(b"peekaboo").await.expect("write");
    let (mut first, mut second) = ([0; 4], [0; 16]);
    assert_eq!(b.peek(&mut first).await.expect("peek"), 4);
    let n = b.peek(&mut second).await.expect("peek");
    assert_eq!(&first, b"peek");
    assert_eq!(&second[..n], &b"peekaboo"[..n]);
    let mut got = [0; 8];
    b.read_exact(&mut got).await.expect("read");
    assert_eq!(&got, b"peekaboo");
    assert!(would_block(&b.try_read(&mut got)), "peek left nothing behind");
}

pub(crate) async fn peek_waits_for_data<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    let peeker = tokio::spawn(async move {
        let mut buf = [0; 8];
        let n = b.peek(&mut buf).await.expect("peek");
        (b, buf[..n].to_vec())
    });
    tokio::task::yield_now().await;
    a.write_all(b"late").await.expect("write");
    let (mut b, seen) = peeker.await.expect("no panic");
    assert!(!seen.is_empty() && b"late".starts_with(&seen));
    let mut got = [0; 4];
    b.read_exact(&mut got).await.expect("read");
    assert_eq!(&got, b"late");
}

pub(crate) async fn peek_at_the_end<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    a.write_all(b"z").await.expect("write");
    drop(a);
    let mut buf = [0; 8];
    assert_eq!(b.peek(&mut buf).await.expect("peek"), 1);
    assert_eq!(b.read(&mut buf).await.expect("read"), 1);
    assert_eq!(b.peek(&mut buf).await.expect("peek of the end"), 0);
    assert_eq!(b.peek(&mut buf).await.expect("peek of the end, again"), 0);
    assert_eq!(b.read(&mut buf).await.expect("the end"), 0);
}

pub(crate) async fn try_read_of_an_idle_stream<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    let mut buf = [0; 8];
    for _ in 0..3 {
        assert!(would_block(&b.try_read(&mut buf)));
        assert!(would_block(&b.try_read_vectored(&mut [IoSliceMut::new(&mut buf)])));
        assert!(would_block(&b.try_read_buf(&mut Vec::with_capacity(8))));
    }
    a.write_all(b"!").await.expect("write");
    loop {
        b.readable().await.expect("readable");
        match b.try_read(&mut buf) {
            Ok(n) => break assert_eq!((n, buf[0]), (1, b'!')),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert!(would_block(&b.try_read(&mut buf)));
}

pub(crate) async fn lines_through_a_buf_reader<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    let writer = tokio::spawn(async move {
        for line in 0..2000 {
            a.write_all(format!("line {line}\n").as_bytes()).await.expect("write");
        }
        a.write_all(b"no newline at the end").await.expect("write");
    });
    let mut lines = BufReader::new(b).lines();
    for line in 0..2000 {
        let got = lines.next_line().await.expect("read");
        assert_eq!(got, Some(format!("line {line}")));
    }
    assert_eq!(lines.next_line().await.expect("read").as_deref(), Some("no newline at the end"));
    assert_eq!(lines.next_line().await.expect("read"), None);
    writer.await.expect("no panic");
}

pub(crate) async fn read_to_end_of_many_writes<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let writer = tokio::spawn(async move {
        let mut at = 0;
        for size in (0..300).map(|turn| turn * 37 % 5000) {
            a.write_all(&pattern(at, size)).await.expect("write");
            at += size;
        }
        at
    });
    let mut got = Vec::new();
    b.read_to_end(&mut got).await.expect("read");
    let sent = writer.await.expect("no panic");
    assert!(got == pattern(0, sent), "{} of {sent} bytes", got.len());
}

pub(crate) async fn a_dropped_read_loses_nothing<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let total = 40_000;
    let writer = tokio::spawn(async move {
        for at in (0..total).step_by(40) {
            a.write_all(&pattern(at, 40)).await.expect("write");
            if at % 400 == 0 {
                tokio::task::yield_now().await;
            }
        }
    });
    let mut got = Vec::new();
    loop {
        let mut buf = [0; 64];
        // Polled once, then dropped: either it answers now or it must not have taken anything.
        let answer = b.read(&mut buf).now_or_never();
        match answer {
            Some(n) => match n.expect("read") {
                0 => break,
                n => got.extend_from_slice(&buf[..n]),
            },
            None => {
                drop(b.peek(&mut buf).now_or_never());
                drop(b.readable().now_or_never());
                tokio::task::yield_now().await;
            }
        }
    }
    writer.await.expect("no panic");
    assert!(got == pattern(0, total), "{} of {total} bytes", got.len());
}

pub(crate) async fn a_timeout_leaves_the_stream_whole<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let mut buf = [0; 8];
    for turn in 0..5 {
        let short = Duration::from_millis(5);
        tokio::time::timeout(short, b.read(&mut buf)).await.expect_err("nothing was sent");
        tokio::time::timeout(short, b.peek(&mut buf)).await.expect_err("nothing was sent");
        a.write_all(&[turn; 8]).await.expect("write");
        b.read_exact(&mut buf).await.expect("read");
        assert_eq!(buf, [turn; 8]);
    }
}

/// A stream that always has bytes must not keep the thread: its reads spend tokio's budget as TCP's
/// do.
pub(crate) async fn reads_give_way_to_other_tasks<N: Net>(net: &N) {
    const BYTES: usize = 50_000;
    // Where another worker may run it, the count says nothing; who never gives way is ended by the
    // watchdog.
    let alone = Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread;
    let (mut a, mut b) = net.pair().await;
    let (started, mut other) = tokio::sync::oneshot::channel();
    let mut reads = 0;
    let reader = async {
        tokio::spawn(async move { started.send(()) });
        let mut byte = [0];
        while reads < BYTES || !alone {
            if reads % BYTES == 0 {
                a.write_all(&pattern(0, BYTES)).await.expect("write");
            }
            b.read_exact(&mut byte).await.expect("read");
            reads += 1;
            if other.try_recv().is_ok() {
                return;
            }
        }
        panic!("{BYTES} reads in a row and the other task never ran");
    };
    reader.await;
}

/// So do its peeks.
pub(crate) async fn peeks_give_way_to_other_tasks<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    a.write_all(b"peek").await.expect("write");
    let (started, mut other) = tokio::sync::oneshot::channel();
    tokio::spawn(async move { started.send(()) });
    let alone = Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread;
    let mut peeks = 0;
    while peeks < 50_000 || !alone {
        peeks += 1;
        let mut bytes = [0; 8];
        let n = b.peek(&mut bytes).await.expect("peek");
        assert_eq!(bytes[..n], b"peek"[..n]);
        if other.try_recv().is_ok() {
            return;
        }
    }
    panic!("50000 peeks in a row and the other task never ran");
}

/// It goes past the stream, on any socket, and everything before and behind it arrives.
pub(crate) async fn an_urgent_byte_is_no_part_of_the_stream<N: Net>(net: &N) {
    for turn in 0..20 {
        let (mut a, mut b) = net.pair().await;
        let sent = pattern(turn, 3000);
        a.write_all(&sent[..1000]).await.expect("write");
        assert_eq!(SockRef::from(&a).send_out_of_band(b"!").expect("urgent"), 1);
        a.write_all(&sent[1000..2000]).await.expect("write");
        let mut got = vec![0; sent.len()];
        // A read ends before the byte; one that is short would end tokio's readiness, and what lies
        // behind the byte would wait for more to come.
        for part in got[..2000].chunks_mut(1000) {
            b.read_exact(part).await.expect("read");
        }
        a.write_all(&sent[2000..]).await.expect("write");
        b.read_exact(&mut got[2000..]).await.expect("read");
        assert!(got == sent, "turn {turn}");
        b.write_all(&sent).await.expect("write");
        a.read_exact(&mut got).await.expect("read");
        assert!(got == sent);
        a.shutdown().await.expect("shutdown");
        assert_eq!(b.read(&mut got).await.expect("the end"), 0);
        drop(b);
        assert_eq!(a.read(&mut got).await.expect("the end, though an urgent byte was not looked at"), 0);
    }
}
