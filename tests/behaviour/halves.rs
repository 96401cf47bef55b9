//! Split streams.

use std::io::ErrorKind;

use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::net::{Net, OwnedRead, OwnedWrite, Stream};
use crate::tools::{pattern, would_block};

pub(crate) async fn borrowed_halves_in_two_futures<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let sent = pattern(0, 8 << 20);
    let mut got = vec![0; sent.len()];
    {
        let (mut reader, mut writer) = a.split();
        let echo = async {
            let (mut reader, mut writer) = b.split();
            tokio::io::copy(&mut reader, &mut writer).await.expect("copy");
            writer.shutdown().await.expect("shutdown");
        };
        let write = async {
            writer.write_all(&sent).await.expect("write");
            writer.shutdown().await.expect("shutdown");
        };
        let (_, _, read) = tokio::join!(echo, write, reader.read_exact(&mut got));
        read.expect("read");
    }
    assert!(got == sent);
    assert_eq!(a.read(&mut [0; 8]).await.expect("the end, through the whole stream"), 0);
}

pub(crate) async fn owned_halves_in_two_tasks<N: Net>(net: &N) {
    let (a, b) = net.pair().await;
    let (mut reader, mut writer) = a.into_split();
    let total = 4 << 20;
    let echo = tokio::spawn(async move {
        let (mut reader, mut writer) = b.into_split();
        tokio::io::copy(&mut reader, &mut writer).await.expect("copy")
    });
    let write = tokio::spawn(async move {
        for at in (0..total).step_by(1 << 14) {
            writer.write_all(&pattern(at, 1 << 14)).await.expect("write");
        }
    });
    let mut got = Vec::new();
    reader.read_to_end(&mut got).await.expect("read");
    write.await.expect("no panic");
    assert_eq!(echo.await.expect("no panic"), total as u64);
    assert!(got == pattern(0, total));
}

pub(crate) async fn reunited_halves_work_on<N: Net>(net: &N) {
    let (a, mut b) = net.pair().await;
    let (reader, writer) = a.into_split();
    let a = reader.reunite(writer).expect("of one stream");
    let (reader, writer) = a.into_split();
    let mut a = writer.reunite(reader).expect("of one stream");
    a.write_all(b"whole").await.expect("write");
    let mut got = [0; 5];
    b.read_exact(&mut got).await.expect("read");
    assert_eq!(&got, b"whole");
    b.write_all(b"again").await.expect("write");
    a.read_exact(&mut got).await.expect("read");
    assert_eq!(&got, b"again");
}

pub(crate) async fn strangers_do_not_reunite<N: Net>(net: &N) {
    let (a, b) = net.pair().await;
    let (a_reader, a_writer) = a.into_split();
    let (b_reader, b_writer) = b.into_split();
    let Err((a_reader, b_writer)) = a_reader.reunite(b_writer) else { panic!("two streams became one") };
    let Err((b_reader, a_writer)) = a_writer.reunite(b_reader) else { panic!("two streams became one") };
    let mut a = a_reader.reunite(a_writer).expect("of one stream");
    let mut b = b_reader.reunite(b_writer).expect("of one stream");
    a.write_all(b"ok").await.expect("write");
    b.read_exact(&mut [0; 2]).await.expect("the failed reunions closed nothing");
}

pub(crate) async fn dropped_write_half_is_the_end<N: Net>(net: &N) {
    let (a, mut b) = net.pair().await;
    let (mut reader, mut writer) = a.into_split();
    writer.write_all(b"last words").await.expect("write");
    drop(writer);
    let mut got = Vec::new();
    b.read_to_end(&mut got).await.expect("read");
    assert_eq!(got, b"last words");
    b.write_all(b"heard").await.expect("write");
    let mut got = [0; 5];
    reader.read_exact(&mut got).await.expect("the read half lives on");
}

pub(crate) async fn dropped_write_half_during_a_pending_read<N: Net>(net: &N) {
    let (a, mut b) = net.pair().await;
    let (mut reader, writer) = a.into_split();
    let waiting = tokio::spawn(async move {
        let n = reader.read(&mut [0; 8]).await.expect("read");
        (reader, n)
    });
    tokio::task::yield_now().await;
    drop(writer);
    assert_eq!(b.read(&mut [0; 8]).await.expect("the end"), 0);
    b.write_all(b"+").await.expect("write");
    let (_reader, n) = waiting.await.expect("no panic");
    assert_eq!(n, 1);
}

pub(crate) async fn dropped_read_half_closes_nothing<N: Net>(net: &N) {
    let (a, mut b) = net.pair().await;
    let (reader, mut writer) = a.into_split();
    drop(reader);
    writer.write_all(b"one way").await.expect("write");
    let mut got = [0; 7];
    b.read_exact(&mut got).await.expect("read");
    b.write_all(b"nobody reads this").await.expect("the socket still takes it");
    assert!(would_block(&b.try_read(&mut [0; 8])), "and the stream did not end");
}

pub(crate) async fn forgotten_write_half_is_no_end<N: Net>(net: &N) {
    let (a, mut b) = net.pair().await;
    let (mut reader, writer) = a.into_split();
    writer.forget();
    b.write_all(b"x").await.expect("write");
    reader.read_exact(&mut [0; 1]).await.expect("read");
    assert!(b.read(&mut [0; 8]).now_or_never().is_none(), "forget sends no end");
    drop(reader);
    assert_eq!(b.read(&mut [0; 8]).await.expect("the last half does"), 0);
}

pub(crate) async fn shutdown_of_a_half_then_drop<N: Net>(net: &N) {
    let (a, mut b) = net.pair().await;
    let (mut reader, mut writer) = a.into_split();
    writer.shutdown().await.expect("shutdown");
    drop(writer);
    assert_eq!(b.read(&mut [0; 8]).await.expect("the end"), 0);
    b.write_all(b"tail").await.expect("write");
    drop(b);
    let mut got = Vec::new();
    reader.read_to_end(&mut got).await.expect("read");
    assert_eq!(got, b"tail");
}

pub(crate) async fn readiness_of_halves<N: Net>(net: &N) {
    let (a, b) = net.pair().await;
    let (mut reader, _keep) = a.into_split();
    let (peer, writer) = b.into_split();
    assert_eq!(reader.local_addr().expect("an address"), writer.peer_addr().expect("an address"));
    assert!(would_block(&reader.try_read(&mut [0; 8])));
    writer.writable().await.expect("writable");
    assert_eq!(writer.try_write(b"half").expect("room"), 4);
    reader.readable().await.expect("readable");
    let mut got = [0; 8];
    let n = reader.peek(&mut got).await.expect("peek");
    assert!(n > 0 && b"half".starts_with(&got[..n]));
    let n = reader.try_read(&mut got).expect("it is there");
    assert!(n > 0 && b"half".starts_with(&got[..n]));
    assert!(would_block(&peer.try_read(&mut got)));
}

/// Dropped one after the other, halves end as the whole stream does: unread data makes it a reset.
pub(crate) async fn a_half_resets_on_unread_data<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    a.write_all(b"never read").await.expect("write");
    let (reader, writer) = b.into_split();
    reader.readable().await.expect("readable");
    drop(writer);
    assert_eq!(a.read(&mut [0; 8]).await.expect("the write half's end"), 0);
    drop(reader);
    let error = loop {
        match a.write(b"more").await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error:?}");
}
