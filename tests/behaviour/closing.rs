//! The ways a stream ends.

use std::io::ErrorKind;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};

use crate::net::{Net, Stream};
use crate::tools::{broken, fill, pattern};
use crate::watchdog::step;

async fn half_close<S: Stream>(mut first: S, mut second: S) {
    first.write_all(b"request").await.expect("write");
    first.shutdown().await.expect("shutdown");
    let mut got = Vec::new();
    second.read_to_end(&mut got).await.expect("read");
    assert_eq!(got, b"request");
    // The other direction lives on, also for more than any buffer holds.
    let answer = pattern(0, 6 << 20);
    let expected = answer.clone();
    let reader = tokio::spawn(async move {
        let mut got = Vec::new();
        first.read_to_end(&mut got).await.expect("read");
        assert!(got == expected, "{} bytes", got.len());
    });
    second.write_all(&answer).await.expect("write");
    second.shutdown().await.expect("shutdown");
    reader.await.expect("no panic");
}

pub(crate) async fn half_close_of_the_client<N: Net>(net: &N) {
    let (a, b) = net.pair().await;
    half_close(a, b).await;
}

pub(crate) async fn half_close_of_the_server<N: Net>(net: &N) {
    let (a, b) = net.pair().await;
    half_close(b, a).await;
}

pub(crate) async fn drop_is_the_end_of_the_stream<N: Net>(net: &N) {
    for client_first in [true, false] {
        let (a, b) = net.pair().await;
        let (gone, mut stays) = if client_first { (a, b) } else { (b, a) };
        drop(gone);
        assert_eq!(stays.read(&mut [0; 8]).await.expect("a clean end"), 0);
    }
}

pub(crate) async fn data_before_the_end_is_delivered<N: Net>(net: &N) {
    for size in [1, 4096, 4097, 100_000, 1 << 20] {
        step(format!("{size} bytes"));
        let (mut a, mut b) = net.pair().await;
        a.write_all(&pattern(0, size)).await.expect("write");
        drop(a);
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.expect("read");
        assert!(got == pattern(0, size), "{} of {size} bytes", got.len());
    }
}

pub(crate) async fn drop_with_unread_data_resets<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    a.write_all(b"never read").await.expect("write");
    b.readable().await.expect("readable");
    drop(b);
    let error = a.read(&mut [0; 8]).await.expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

pub(crate) async fn data_before_a_reset_is_delivered<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    b.write_all(&pattern(0, 5000)).await.expect("write");
    a.readable().await.expect("readable");
    a.write_all(b"never read").await.expect("write");
    b.readable().await.expect("readable");
    drop(b);
    let mut got = vec![0; 5000];
    a.read_exact(&mut got).await.expect("what came before the reset");
    assert!(got == pattern(0, 5000));
    let error = a.read(&mut [0; 8]).await.expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

pub(crate) async fn zero_linger_resets<N: Net>(net: &N) {
    for client_first in [true, false] {
        let (a, b) = net.pair().await;
        let (gone, mut stays) = if client_first { (a, b) } else { (b, a) };
        gone.set_zero_linger().expect("set_zero_linger");
        drop(gone);
        let error = stays.read(&mut [0; 8]).await.expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

pub(crate) async fn zero_linger_resets_a_waiting_reader<N: Net>(net: &N) {
    let (a, mut b) = net.pair().await;
    let reader = tokio::spawn(async move { b.read(&mut [0; 8]).await });
    tokio::task::yield_now().await;
    a.set_zero_linger().expect("set_zero_linger");
    // Owned halves end the same way: the option, not the type, decides.
    drop(a.into_split());
    let outcome = reader.await.expect("no panic");
    // tokio's write half sends a FIN before the socket closes, so TCP may show the end before the
    // reset.
    match outcome {
        Ok(n) => assert_eq!(n, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

pub(crate) async fn writes_after_the_peer_went_fail<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    drop(b);
    let error = loop {
        match a.write(b"anybody there?").await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert!(broken(&error), "{error:?}");
    let error = a.write(b"still?").await.expect_err("it stays broken");
    assert!(broken(&error), "{error:?}");
}

pub(crate) async fn write_after_shutdown_fails<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    a.shutdown().await.expect("shutdown");
    let error = a.write(b"too late").await.expect_err("the direction is closed");
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    let error = a.try_write(b"too late").expect_err("the direction is closed");
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    assert_eq!(b.read(&mut [0; 8]).await.expect("the end"), 0);
    b.write_all(b"but this way works").await.expect("write");
    let mut got = [0; 18];
    a.read_exact(&mut got).await.expect("read");
}

pub(crate) async fn shutdown_three_times<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    for _ in 0..3 {
        a.shutdown().await.expect("shutdown is idempotent");
    }
    assert_eq!(b.read(&mut [0; 8]).await.expect("the end"), 0);
    b.shutdown().await.expect("shutdown");
    assert_eq!(a.read(&mut [0; 8]).await.expect("the end"), 0);
    a.shutdown().await.expect("shutdown of a stream that is closed both ways");
}

pub(crate) async fn shutdown_after_reset<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    b.set_zero_linger().expect("set_zero_linger");
    drop(b);
    let error = a.read(&mut [0; 8]).await.expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    a.shutdown().await.expect("nothing is left to shut down, and that is fine");
}

pub(crate) async fn end_is_sticky<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    a.shutdown().await.expect("shutdown");
    for _ in 0..5 {
        assert_eq!(b.read(&mut [0; 8]).await.expect("the end"), 0);
        assert_eq!(b.peek(&mut [0; 8]).await.expect("the end"), 0);
        assert_eq!(b.try_read(&mut [0; 8]).expect("the end"), 0);
    }
}

pub(crate) async fn both_ends_shut_down_and_drop<N: Net>(net: &N) {
    for _ in 0..20 {
        let (mut a, mut b) = net.pair().await;
        let end = async |stream: &mut N::Stream| {
            stream.write_all(b"bye").await.expect("write");
            stream.shutdown().await.expect("shutdown");
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.expect("read");
            assert_eq!(got, b"bye");
        };
        tokio::join!(end(&mut a), end(&mut b));
    }
}

pub(crate) async fn shutdown_with_an_unresponsive_peer<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let sent = fill(&a, 0).await;
    a.shutdown().await.expect("shutdown waits for nobody");
    let mut got = Vec::new();
    b.read_to_end(&mut got).await.expect("read");
    assert!(got == pattern(0, sent), "{} of {sent} bytes", got.len());
}

pub(crate) async fn drop_while_the_peer_writes<N: Net>(net: &N) {
    for turn in 0..10 {
        let (mut a, mut b) = net.pair().await;
        let writer = tokio::spawn(async move {
            let mut at = 0;
            loop {
                match a.write(&pattern(at, 10_000)).await {
                    Ok(n) => at += n,
                    Err(error) => break (error, at),
                }
            }
        });
        let mut got = vec![0; 1 + 7777 * turn];
        b.read_exact(&mut got).await.expect("read");
        assert!(got == pattern(0, got.len()));
        let ready = b.ready(Interest::READABLE).await.expect("ready");
        assert!(ready.is_readable() || ready.is_empty());
        drop(b);
        let (error, written) = writer.await.expect("no panic");
        assert!(broken(&error), "{error:?} after {written} bytes");
        assert!(written >= got.len());
    }
}
