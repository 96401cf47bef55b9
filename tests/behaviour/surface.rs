//! Addresses, options, accepting, connecting.

use std::future::poll_fn;
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::net::{Listener, Net, Stream};
use crate::tools::{nobody, pattern};

pub(crate) async fn addresses_mirror<N: Net>(net: &N) {
    let (a, b) = net.pair().await;
    assert_eq!(a.local_addr().expect("an address"), b.peer_addr().expect("an address"));
    assert_eq!(b.local_addr().expect("an address"), a.peer_addr().expect("an address"));
}

pub(crate) async fn addresses_after_half_close<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    let (local, peer) = (a.local_addr().expect("an address"), a.peer_addr().expect("an address"));
    a.shutdown().await.expect("shutdown");
    assert_eq!(b.read(&mut [0; 1]).await.expect("the end"), 0);
    assert_eq!(a.peer_addr().expect("an address"), peer);
    assert_eq!(b.peer_addr().expect("an address"), local);
    drop(b);
    assert_eq!(a.read(&mut [0; 1]).await.expect("the end"), 0);
    assert_eq!(a.local_addr().expect("an address"), local);
}

pub(crate) async fn options_stay<N: Net>(net: &N) {
    let (mut a, mut b) = net.pair().await;
    for on in [true, false, true] {
        a.set_nodelay(on).expect("set_nodelay");
        assert_eq!(a.nodelay().expect("nodelay"), on);
    }
    a.set_ttl(42).expect("set_ttl");
    assert_eq!(a.ttl().expect("ttl"), 42);
    assert_eq!(a.linger().expect("linger"), None);
    a.write_all(b"x").await.expect("write");
    assert_eq!(b.read_u8().await.expect("read"), b'x');
    a.set_zero_linger().expect("set_zero_linger");
    assert_eq!(a.linger().expect("linger"), Some(Duration::ZERO));
}

pub(crate) async fn no_error_to_take<N: Net>(net: &N) {
    let (a, mut b) = net.pair().await;
    assert!(a.take_error().expect("take_error").is_none());
    drop(a);
    assert_eq!(b.read(&mut [0; 1]).await.expect("the end"), 0);
    assert!(b.take_error().expect("take_error").is_none());
}

/// On TCP the socket is handed out with every byte in place; on the ring there is nothing to hand
/// out.
pub(crate) async fn into_std_where_it_is_tcp<N: Net>(net: &N) {
    let (mut a, b) = net.pair().await;
    a.write_all(b"for std").await.expect("write");
    match b.into_std() {
        Ok(mut std) => {
            assert!(!N::RING, "bytes may sit in the ring");
            std.set_nonblocking(false).expect("set_nonblocking");
            let mut got = [0; 7];
            std.read_exact(&mut got).expect("read");
            assert_eq!(&got, b"for std");
            std.write_all(b"from std").expect("write");
            let mut got = [0; 8];
            a.read_exact(&mut got).await.expect("read");
            assert_eq!(&got, b"from std");
        }
        Err(error) => {
            assert!(N::RING, "{error:?}");
            assert_eq!(error.kind(), ErrorKind::Unsupported);
        }
    }
}

pub(crate) async fn accept_many<N: Net>(net: &N) {
    let listener = net.bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("an address");
    for _ in 0..30 {
        let (connected, accepted) = tokio::join!(net.connect(addr), listener.accept());
        let mut connected = connected.expect("connect");
        let (mut accepted, peer) = accepted.expect("accept");
        assert_eq!(peer, connected.local_addr().expect("an address"));
        accepted.write_all(b"hi").await.expect("write");
        connected.read_exact(&mut [0; 2]).await.expect("read");
    }
}

pub(crate) async fn accept_can_be_dropped<N: Net>(net: &N) {
    let listener = net.bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("an address");
    for _ in 0..10 {
        assert!(listener.accept().now_or_never().is_none());
    }
    let mut connected = net.connect(addr).await.expect("connect");
    // Whichever polls are dropped from now on, the one connection is accepted exactly once.
    let (mut accepted, _) = loop {
        match listener.accept().now_or_never() {
            Some(accepted) => break accepted.expect("accept"),
            None => tokio::task::yield_now().await,
        }
    };
    connected.write_all(b"once").await.expect("write");
    accepted.read_exact(&mut [0; 4]).await.expect("read");
    assert!(listener.accept().now_or_never().is_none());
}

pub(crate) async fn accept_by_poll<N: Net>(net: &N) {
    let listener = net.bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("an address");
    assert!(listener.poll_accept(&mut nobody()).is_pending());
    let (connected, accepted) = tokio::join!(net.connect(addr), poll_fn(|cx| listener.poll_accept(cx)));
    let (connected, (accepted, _)) = (connected.expect("connect"), accepted.expect("accept"));
    assert_eq!(connected.peer_addr().expect("an address"), accepted.local_addr().expect("an address"));
}

pub(crate) async fn two_tasks_accept<N: Net>(net: &N) {
    let listener = std::sync::Arc::new(net.bind("127.0.0.1:0").await.expect("bind"));
    let addr = listener.local_addr().expect("an address");
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let listener = std::sync::Arc::clone(&listener);
            tokio::spawn(async move { listener.accept().await.expect("accept") })
        })
        .collect();
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(net.connect(addr).await.expect("connect"));
    }
    let mut ports = Vec::new();
    for task in tasks {
        ports.push(task.await.expect("no panic").1.port());
    }
    let mut expected: Vec<_> =
        clients.iter().map(|client| client.local_addr().expect("an address").port()).collect();
    ports.sort_unstable();
    expected.sort_unstable();
    assert_eq!(ports, expected);
}

pub(crate) async fn listener_options<N: Net>(net: &N) {
    let listener = net.bind("127.0.0.1:0").await.expect("bind");
    listener.set_ttl(77).expect("set_ttl");
    assert_eq!(listener.ttl().expect("ttl"), 77);
    let taken = net
        .bind(&listener.local_addr().expect("an address").to_string())
        .await
        .expect_err("the port is taken");
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
}

pub(crate) async fn ipv6<N: Net>(net: &N) {
    let listener = match net.bind("[::1]:0").await {
        Ok(listener) => listener,
        // A host without IPv6 has nothing to test here.
        Err(error) => return assert_eq!(error.kind(), ErrorKind::AddrNotAvailable),
    };
    let addr = listener.local_addr().expect("an address");
    let (connected, accepted) = tokio::join!(net.connect(addr), listener.accept());
    let (mut connected, mut accepted) = (connected.expect("connect"), accepted.expect("accept").0);
    for turn in 0..100 {
        connected.write_all(&pattern(turn, 300)).await.expect("write");
        let mut got = [0; 300];
        accepted.read_exact(&mut got).await.expect("read");
        assert!(got[..] == pattern(turn, 300));
        accepted.write_u8(1).await.expect("write");
        connected.read_u8().await.expect("read");
    }
}

pub(crate) async fn a_refused_connection<N: Net>(net: &N) {
    let listener = net.bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("an address");
    drop(listener);
    let error = net.connect(addr).await.expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

pub(crate) async fn bytes_sent_before_accept<N: Net>(net: &N) {
    let listener = net.bind("127.0.0.1:0").await.expect("bind");
    let mut connected = net.connect(listener.local_addr().expect("an address")).await.expect("connect");
    connected.write_all(&pattern(0, 20_000)).await.expect("write");
    connected.shutdown().await.expect("shutdown");
    let (mut accepted, _) = listener.accept().await.expect("accept");
    let mut got = Vec::new();
    accepted.read_to_end(&mut got).await.expect("read");
    assert!(got == pattern(0, 20_000));
    accepted.write_all(b"late").await.expect("write");
    drop(accepted);
    let mut got = Vec::new();
    connected.read_to_end(&mut got).await.expect("read");
    assert_eq!(got, b"late");
}

pub(crate) async fn futures_are_small_and_send<N: Net>(net: &N) {
    fn small<F: Future + Send>(future: F) {
        let size = size_of_val(&future);
        assert!(size < 1024, "a future of {size} bytes: does it hold a buffer?");
    }
    let listener = net.bind("127.0.0.1:0").await.expect("bind");
    small(listener.accept());
    let (a, _b) = net.pair().await;
    let mut buf = [0; 4096];
    small(a.peek(&mut buf));
    small(a.readable());
    small(a.writable());
}

pub(crate) async fn a_connection_dropped_before_accept<N: Net>(net: &N) {
    let listener = net.bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("an address");
    drop(net.connect(addr).await.expect("connect"));
    let mut second = net.connect(addr).await.expect("connect");
    let (mut accepted, _) = listener.accept().await.expect("accept");
    assert_eq!(accepted.read(&mut [0; 1]).await.expect("the end"), 0);
    let (mut accepted, _) = listener.accept().await.expect("accept");
    second.write_all(b"second").await.expect("write");
    accepted.read_exact(&mut [0; 6]).await.expect("read");
}
