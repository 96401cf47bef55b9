//! Who waits is woken: once the answer is there, and whoever asked last.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};

use crate::net::{Net, Stream};
use crate::tools::{Bell, broken, fill, nobody, pattern, would_block};
use crate::watchdog::step;

fn poll_read<S: Stream>(stream: &mut S, cx: &mut Context<'_>) -> Poll<std::io::Result<Vec<u8>>> {
    let mut bytes = [0; 64];
    let mut buf = ReadBuf::new(&mut bytes);
    Pin::new(stream).poll_read(cx, &mut buf).map_ok(|()| buf.filled().to_vec())
}

pub(crate) async fn the_latest_reader_waker_wins<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    for turn in 0..20 {
        let (_, stale) = Bell::new();
        assert!(poll_read(&mut b, &mut Context::from_waker(&stale)).is_pending());
        let (bell, latest) = Bell::new();
        assert!(poll_read(&mut b, &mut Context::from_waker(&latest)).is_pending());
        drop(stale);
        a.write_all(&[turn]).await.expect("write");
        loop {
            bell.rung().await;
            match poll_read(&mut b, &mut Context::from_waker(&latest)) {
                Poll::Ready(got) => break assert_eq!(got.expect("read"), [turn]),
                Poll::Pending => step("woken for nothing, waiting on"),
            }
        }
    }
}

pub(crate) async fn the_latest_writer_waker_wins<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let sent = fill(&a, 0).await;
    let (_, stale) = Bell::new();
    let (bell, latest) = Bell::new();
    let mut extra = 0;
    for waker in [&stale, &latest] {
        while let Poll::Ready(n) =
            Pin::new(&mut a).poll_write(&mut Context::from_waker(waker), &pattern(sent + extra, 4096))
        {
            extra += n.expect("write");
        }
    }
    drop(stale);
    let mut got = vec![0; sent + extra];
    b.read_exact(&mut got).await.expect("read");
    assert!(got == pattern(0, sent + extra));
    bell.rung().await;
    assert!(Pin::new(&mut a).poll_write(&mut Context::from_waker(&latest), b"room").is_ready());
}

pub(crate) async fn many_tasks_wait_until_readable<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    let b = Arc::new(b);
    let waiters: Vec<_> = (0..5)
        .map(|_| {
            let b = Arc::clone(&b);
            tokio::spawn(async move {
                loop {
                    b.readable().await.expect("readable");
                    let mut byte = [0];
                    match b.try_read(&mut byte) {
                        Ok(n) => break (n, byte[0]),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                    }
                }
            })
        })
        .collect();
    let mut expected = Vec::new();
    for value in 0..5 {
        tokio::task::yield_now().await;
        a.write_all(&[value]).await.expect("write");
        expected.push((1, value));
    }
    let mut got = Vec::new();
    for waiter in waiters {
        got.push(waiter.await.expect("no panic"));
    }
    got.sort_unstable();
    assert_eq!(got, expected);
}

pub(crate) async fn reader_and_writer_wait_at_once<N: Net>(net: &N) {
    let (a, mut b) = net.pair().await;
    let sent = fill(&a, 0).await;
    let (mut reader, mut writer) = a.into_split();
    let reads = tokio::spawn(async move {
        let mut got = [0; 4];
        reader.read_exact(&mut got).await.expect("read");
        (reader, got)
    });
    let writes = tokio::spawn(async move {
        writer.write_all(&pattern(sent, 1 << 20)).await.expect("write");
        writer
    });
    tokio::task::yield_now().await;
    step("the reader wakes while the writer stays blocked");
    b.write_all(b"ping").await.expect("write");
    let (_reader, got) = reads.await.expect("no panic");
    assert_eq!(&got, b"ping");
    step("the writer wakes");
    let mut got = vec![0; sent + (1 << 20)];
    b.read_exact(&mut got).await.expect("read");
    assert!(got == pattern(0, got.len()));
    let _writer = writes.await.expect("no panic");
}

pub(crate) async fn a_full_stream_takes_more_after_a_read<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let mut at = 0;
    for round in 0..3 {
        step(format!("round {round}"));
        let filled = fill(&a, at).await;
        let writer = tokio::spawn(async move {
            a.write_all(&pattern(at + filled, 300_000)).await.expect("write");
            a
        });
        let mut got = vec![0; filled + 300_000];
        b.read_exact(&mut got).await.expect("read");
        assert!(got == pattern(at, got.len()));
        at += got.len();
        a = writer.await.expect("no panic");
    }
}

pub(crate) async fn a_full_stream_wakes_when_the_peer_goes<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    let sent = fill(&a, 0).await;
    assert!(sent > 0);
    let writer = tokio::spawn(async move { a.write_all(&pattern(sent, 64 << 20)).await });
    tokio::task::yield_now().await;
    drop(b);
    let error = writer.await.expect("no panic").expect_err("nobody will read it");
    assert!(broken(&error), "{error:?}");
}

pub(crate) async fn a_waiting_reader_wakes_at_the_end<N: Net>(net: &N) {
    for by_drop in [true, false] {
        let (mut a, mut b) = net.pair().await;
        let reader = tokio::spawn(async move { b.read(&mut [0; 8]).await });
        let _keep = if by_drop {
            drop(a);
            None
        } else {
            a.shutdown().await.expect("shutdown");
            Some(a)
        };
        assert_eq!(reader.await.expect("no panic").expect("a clean end"), 0);
    }
}

pub(crate) async fn readiness_is_level_until_would_block<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    a.write_all(&pattern(0, 10)).await.expect("write");
    let mut byte = [0];
    for at in 0..10 {
        // The stream stays ready while bytes are left, however often one asks.
        b.readable().await.expect("readable");
        b.readable().await.expect("readable");
        assert_eq!(b.try_read(&mut byte).expect("a byte is there"), 1);
        assert_eq!(byte[..], pattern(at, 1));
    }
    assert!(would_block(&b.try_read(&mut byte)));
    // The reactor may tell of the ten bytes once more, and late.
    for _ in 0..100 {
        if b.readable().now_or_never().is_none() {
            break;
        }
        assert!(would_block(&b.try_read(&mut byte)));
    }
    assert!(b.readable().now_or_never().is_none(), "WouldBlock ends readiness");
    a.write_all(b"!").await.expect("write");
    b.readable().await.expect("readable");
}

pub(crate) async fn ready_tells_of_the_end<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    let both = Interest::READABLE | Interest::WRITABLE;
    let ready = b.ready(both).await.expect("ready");
    assert!(ready.is_writable());
    a.shutdown().await.expect("shutdown");
    while !b.ready(Interest::READABLE).await.expect("ready").is_read_closed() {
        assert!(!matches!(b.try_read(&mut [0; 8]), Ok(n) if n > 0));
        tokio::task::yield_now().await;
    }
    assert_eq!(b.try_read(&mut [0; 8]).expect("the end"), 0);
    assert!(b.ready(Interest::WRITABLE).await.expect("ready").is_writable());
}

pub(crate) async fn ready_tells_of_a_reset<N: Net>(net: &N) {
    let (a, b) = net.pair().await;
    fill(&a, 0).await;
    drop(b);
    step("waiting for write_closed");
    while !a.ready(Interest::WRITABLE).await.expect("ready").is_write_closed() {
        let refused = a.try_write(b"?");
        assert!(refused.is_err(), "{refused:?}");
        tokio::task::yield_now().await;
    }
    assert!(broken(&a.try_write(b"?").expect_err("closed")));
}

pub(crate) async fn poll_readiness<N: Net>(net: &N) {
    let (a, b) = net.pair().await;
    assert!(would_block(&b.try_read(&mut [0; 8])));
    let (bell, waker) = Bell::new();
    assert!(b.poll_read_ready(&mut Context::from_waker(&waker)).is_pending());
    poll_fn(|cx| a.poll_write_ready(cx)).await.expect("ready");
    assert_eq!(a.try_write(b"poll").expect("room"), 4);
    bell.rung().await;
    poll_fn(|cx| b.poll_read_ready(cx)).await.expect("ready");
    let mut bytes = [0; 8];
    let mut buf = ReadBuf::new(&mut bytes);
    let n = poll_fn(|cx| b.poll_peek(cx, &mut buf)).await.expect("peek");
    assert_eq!(buf.filled(), &b"poll"[..n]);
    let mut got = Vec::with_capacity(8);
    assert_eq!(b.try_read_buf(&mut got).expect("read"), 4);
}

/// Readiness is what tokio says it is: it lasts until a call says WouldBlock, whatever is there
/// meanwhile.
pub(crate) async fn readiness_lasts_until_would_block<N: Net>(net: &N) {
    let (a, b) = net.pair().await;
    assert!(would_block(&b.try_read(&mut [0; 8])));
    a.writable().await.expect("writable");
    assert_eq!(a.try_write(b"here").expect("room"), 4);
    b.readable().await.expect("readable");
    assert_eq!(b.try_read(&mut [0; 4]).expect("bytes"), 4);
    assert!(b.readable().now_or_never().is_some(), "empty, but nobody has found out");
    assert!(poll_fn(|cx| Poll::Ready(b.poll_read_ready(cx).is_ready())).await);
    assert!(would_block(&b.try_read(&mut [0; 4])));
    assert!(b.readable().now_or_never().is_none(), "found empty");

    while a.try_write(&[7; 4000]).is_ok() {
        assert!(a.writable().now_or_never().is_some(), "nobody has found it full");
    }
    // A ring may have grown since; then there is room, and not only readiness.
    while a.writable().now_or_never().is_some() {
        assert!(a.try_write(&[7; 4000]).is_ok(), "found full");
    }
}

/// A read that did not fill its buffer has found the end of what is there.
pub(crate) async fn a_short_read_ends_readiness<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    // The driver has told of the bytes before they are read: news that came later would be another
    // readiness.
    assert!(would_block(&b.try_read(&mut [0; 8])));
    a.write_all(b"here").await.expect("write");
    b.readable().await.expect("readable");
    assert_eq!(b.read(&mut [0; 8]).await.expect("read"), 4);
    assert!(b.readable().now_or_never().is_none(), "the short read has found it empty");
    a.write_all(b"more").await.expect("write");
    step("waiting for the second message");
    b.readable().await.expect("readable");
    assert_eq!(b.read(&mut [0; 4]).await.expect("read"), 4);
    assert!(b.readable().now_or_never().is_some(), "nobody has found it empty");
}

/// A write that did not fit whole has found the stream full.
pub(crate) async fn a_short_write_ends_readiness<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    let much = vec![0; 64 << 20];
    assert!(a.write(&much).await.expect("write") < much.len(), "64 MiB fit at once");
    // A ring may have grown meanwhile; then there is room, and not only readiness.
    while a.writable().now_or_never().is_some() {
        let mut written = a.try_write(&much);
        assert!(written.is_ok(), "the short write has found it full: {written:?}");
        // A short `try_write` leaves the readiness, as tokio's does; one that finds nothing ends
        // it.
        while let Ok(length) = written {
            assert!(length < much.len(), "another 64 MiB fit at once");
            written = a.try_write(&much);
        }
    }
    let mut buf = vec![0; 1 << 20];
    step("draining");
    let drained = tokio::spawn(async move {
        while b.readable().await.is_ok() && b.try_read(&mut buf).is_ok_and(|length| length > 0) {}
        b
    });
    a.writable().await.expect("writable");
    drop(a);
    drained.await.expect("no panic");
}

/// As a FIN does, the end shows at once in what `ready` says, also while bytes before it are
/// unread.
pub(crate) async fn the_end_shows_before_the_last_bytes_are_read<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    a.write_all(b"last").await.expect("write");
    a.shutdown().await.expect("shutdown");
    step("waiting for read_closed");
    while !b.ready(Interest::READABLE).await.expect("ready").is_read_closed() {
        tokio::task::yield_now().await;
    }
    assert_eq!(b.try_read(&mut [0; 8]).expect("bytes"), 4);
    assert_eq!(b.try_read(&mut [0; 8]).expect("the end"), 0);
}

/// `poll_*_ready` spend tokio's budget, `ready()` does not and answers when it is spent.
pub(crate) async fn ready_answers_when_the_budget_is_spent<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    a.write_all(b"here").await.expect("write");
    b.readable().await.expect("ready");
    tokio::task::yield_now().await;
    let spent = poll_fn(|cx| Poll::Ready((0..1000).any(|_| b.poll_read_ready(cx).is_pending()))).await;
    assert!(spent, "a thousand polls in a row never gave way");
    assert!(b.readable().now_or_never().is_some(), "readable");
    assert!(a.writable().now_or_never().is_some(), "writable");
    assert!(a.ready(Interest::READABLE | Interest::WRITABLE).now_or_never().is_some(), "ready");
    tokio::task::yield_now().await;
    let spent = poll_fn(|cx| Poll::Ready((0..1000).any(|_| a.poll_write_ready(cx).is_pending()))).await;
    assert!(spent, "a thousand polls in a row never gave way");
}

pub(crate) async fn ten_thousand_turns<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let echo = tokio::spawn(async move {
        let mut turns = 0;
        loop {
            match b.read_u32().await {
                Ok(value) => b.write_u32(value).await.expect("write"),
                Err(error) => break assert_eq!(error.kind(), ErrorKind::UnexpectedEof),
            }
            turns += 1;
            step(format!("{turns} turns"));
        }
    });
    for value in 0..10_000 {
        a.write_u32(value).await.expect("write");
        assert_eq!(a.read_u32().await.expect("read"), value);
    }
    drop(a);
    echo.await.expect("no panic");
}

pub(crate) async fn a_reader_moves_to_another_task<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    for turn in 0..50 {
        // Pending in this task first, then waiting in another: the other one must be woken.
        assert!(poll_read(&mut b, &mut nobody()).is_pending());
        let reader = tokio::spawn(async move {
            let got = b.read_u8().await.expect("read");
            (b, got)
        });
        tokio::task::yield_now().await;
        a.write_u8(turn).await.expect("write");
        let (back, got) = reader.await.expect("no panic");
        assert_eq!(got, turn);
        b = back;
    }
}

pub(crate) async fn dropped_waiters_take_no_wakeup_along<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    let b = Arc::new(b);
    for turn in 0..50 {
        assert!(would_block(&b.try_read(&mut [0; 8])));
        let mut gone: Vec<_> = (0..4).map(|_| Box::pin(b.readable())).collect();
        for waiter in &mut gone {
            assert!(waiter.as_mut().poll(&mut nobody()).is_pending());
        }
        let stays = Arc::clone(&b);
        let waiter = tokio::spawn(async move { stays.readable().await });
        tokio::task::yield_now().await;
        a.write_u8(turn).await.expect("write");
        drop(gone);
        waiter.await.expect("no panic").expect("readable");
        assert_eq!(b.try_read(&mut [0; 8]).expect("a byte"), 1);
    }
}

/// One task owns both ends and only tries: nothing may need a second task to make progress (no
/// control message, no wake-up that blocks).
pub(crate) async fn a_full_pair_in_one_task<N: Net>(net: &N) {
    let (a, b) = net.pair().await;
    let (mut sent, mut received) = (0, 0);
    let mut buf = vec![0; 100_000];
    while received < 8 << 20 {
        for _ in 0..4 {
            match a.try_write(&pattern(sent, 100_000)) {
                Ok(n) => sent += n,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        match b.try_read(&mut buf) {
            Ok(n) => {
                assert!(buf[..n] == pattern(received, n));
                received += n;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        // TCP's readiness comes from the driver, which runs when this task gives way.
        tokio::task::yield_now().await;
    }
}
