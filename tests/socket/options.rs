//! What options mean once a stream has come of them: inherited as tokio's are, and honoured on
//! shared memory.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use futures::FutureExt;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio_smc::{FallbackReason, SmcListener, SmcSocket, SmcStream, Transport, UpgradePolicy};

use crate::agree::agree;
use crate::lab::Lab;
use crate::watchdog::on_both_schedulers;
use crate::watchdog::step;
use crate::{V4, address, rings, told, upgraded};

/// The options of a socket that a program may have set before it was a stream.
fn options(socket: SockRef<'_>) -> Vec<String> {
    vec![
        told(socket.keepalive()),
        told(socket.tcp_nodelay()),
        told(socket.send_buffer_size()),
        told(socket.recv_buffer_size()),
        told(socket.linger()),
        told(socket.tos_v4()),
        told(socket.ttl_v4()),
        told(socket.reuse_address()),
        told(socket.reuse_port()),
    ]
}

/// Sets all of these on a socket of either kind.
macro_rules! prepare {
    ($socket:expr) => {{
        let socket = $socket.expect("a socket");
        socket.set_keepalive(true).expect("set");
        socket.set_nodelay(true).expect("set");
        socket.set_send_buffer_size(50_000).expect("set");
        socket.set_recv_buffer_size(60_000).expect("set");
        socket.set_tos_v4(96).expect("set");
        socket.set_reuseaddr(true).expect("set");
        socket.set_reuseport(true).expect("set");
        socket.set_zero_linger().expect("set");
        socket
    }};
}

#[test]
fn streams_have_the_options_of_their_sockets() {
    on_both_schedulers(async || {
        let theirs = prepare!(TcpSocket::new_v4());
        theirs.bind(address(V4)).expect("bind");
        let listener = theirs.listen(16).expect("listen");
        let to = listener.local_addr().expect("an address");
        let theirs = tokio::join!(prepare!(TcpSocket::new_v4()).connect(to), listener.accept());
        let theirs = [theirs.0.expect("connect"), theirs.1.expect("accept").0];

        let lab = Lab::new();
        let (client, server) = (prepare!(SmcSocket::new_v4()), prepare!(SmcSocket::new_v4()));
        let ours = upgraded(client, server, V4, &lab.config(UpgradePolicy::FirstTurn)).await;
        for (ours, theirs) in [ours.0, ours.1].iter().zip(&theirs) {
            assert_eq!(options(SockRef::from(ours)), options(SockRef::from(theirs)));
            assert_eq!(told(ours.linger()), told(theirs.linger()));
            assert_eq!(told(ours.nodelay()), told(theirs.nodelay()));
        }
    });
}

/// Bytes of `SO_RCVBUF` that anyone may set; it cuts down what is more.
fn largest_receive_buffer() -> usize {
    let text = std::fs::read_to_string("/proc/sys/net/core/rmem_max").expect("procfs");
    text.trim().parse().expect("a number")
}

/// The window that a receive buffer of this size stands for.
fn window(size: usize, dmb_size: usize) -> usize {
    size.min(largest_receive_buffer()).next_power_of_two().clamp(4096, dmb_size)
}

/// On what the receive buffer of a stream is chosen before it is upgraded.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Chosen {
    Socket,
    Listener,
    Stream,
    AcceptedStream,
}

#[test]
fn the_receive_buffer_bounds_the_dmb() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let sizes = [3000, 4096, 4097, 10_000, 1 << 16, 200_000, 1 << 30];
        for chosen in [Chosen::Socket, Chosen::Listener, Chosen::Stream, Chosen::AcceptedStream] {
            for (size, dmb_size) in sizes.into_iter().map(|size| (size, 4 << 20)).chain([(1 << 16, 1 << 13)])
            {
                step(format!("{size} on the {chosen:?}, DMBs of {dmb_size}"));
                let config = lab.config(UpgradePolicy::Manual).dmb_size(dmb_size);
                let (client, server) =
                    (SmcSocket::new_v4().expect("a socket"), SmcSocket::new_v4().expect("a socket"));
                match chosen {
                    Chosen::Socket => client.set_recv_buffer_size(size as u32).expect("set"),
                    Chosen::Listener => server.set_recv_buffer_size(size as u32).expect("set"),
                    _ => {}
                }
                server.bind(address(V4)).expect("bind");
                let listener = server.listen_with(16, &config).expect("listen");
                let to = listener.local_addr().expect("an address");
                let (client, server) = tokio::join!(client.connect_with(to, &config), listener.accept());
                let (mut client, mut server) = (client.expect("connect"), server.expect("accept").0);
                match chosen {
                    Chosen::Stream => SockRef::from(&client).set_recv_buffer_size(size).expect("set"),
                    Chosen::AcceptedStream => SockRef::from(&server).set_recv_buffer_size(size).expect("set"),
                    _ => {}
                }
                assert!(client.upgrade().await.is_loopback_ism(), "{}", client.transport());
                tokio::join!(agree(&mut client, true), agree(&mut server, false));
                let (bounded, free) = match chosen {
                    Chosen::Socket | Chosen::Stream => (&client, &server),
                    _ => (&server, &client),
                };
                assert_eq!(rings(bounded).receive_window, window(size, dmb_size));
                assert_eq!(rings(free).send_window, window(size, dmb_size), "the peer knows");
                assert_eq!((rings(free).receive_window, rings(bounded).send_window), (dmb_size, dmb_size));
            }
        }
    });
}

/// A window of one page takes a page and no more, and whatever is sent goes through it.
#[test]
fn a_small_window_holds_the_writer_and_loses_nothing() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, server) =
            (SmcSocket::new_v4().expect("a socket"), SmcSocket::new_v4().expect("a socket"));
        server.set_recv_buffer_size(4096).expect("set");
        let (mut client, mut server) =
            upgraded(client, server, V4, &lab.config(UpgradePolicy::FirstTurn)).await;
        let sent: Vec<u8> =
            (0..1 << 20).map(|place: u32| (place.wrapping_mul(0x9E37_79B1) >> 13) as u8).collect();
        let mut taken = 0;
        while let Ok(length) = client.try_write(&sent[taken..]) {
            taken += length;
        }
        assert!((1..=4096).contains(&taken), "{taken} bytes without a reader");
        step("sending 1 MiB through one page");
        let mut got = vec![0; sent.len()];
        let (wrote, read) = tokio::join!(client.write_all(&sent[taken..]), server.read_exact(&mut got));
        wrote.expect("write");
        read.expect("read");
        assert!(got == sent, "a foreign byte");
        // Later it is too late: the memory is there.
        SockRef::from(&server).set_recv_buffer_size(1 << 16).expect("set");
        assert_eq!(rings(&server).receive_window, 4096);
    });
}

#[test]
fn a_bound_device_stays_on_tcp() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::Manual);
        let listener = SmcListener::bind_with(V4, &config).await.expect("bind");
        let to = listener.local_addr().expect("an address");
        let client = SmcSocket::new_v4().expect("a socket");
        client.bind_device(Some(b"lo")).expect("a device that every host has");
        let (client, server) = tokio::join!(client.connect_with(to, &config), listener.accept());
        let (mut client, mut server) = (client.expect("connect"), server.expect("accept").0);
        assert_eq!(client.upgrade().await, Transport::Tcp(FallbackReason::SocketOption));
        client.write_all(b"over TCP").await.expect("write");
        server.read_exact(&mut [0; 8]).await.expect("read");
    });
}

/// What the reader of an aborted connection sees.
async fn last_word(mut reader: impl AsyncRead + Unpin) -> Result<usize, ErrorKind> {
    reader.read(&mut [0; 8]).await.map_err(|error| error.kind())
}

/// Zero linger, set on a socket, makes the drop of its stream a reset at the other end; a listener
/// hands it on.
#[test]
fn zero_linger_of_a_socket_aborts_on_the_ring() {
    on_both_schedulers(async || {
        for on_the_listener in [false, true] {
            let lab = Lab::new();
            let (client, server) =
                (TcpSocket::new_v4().expect("a socket"), TcpSocket::new_v4().expect("a socket"));
            if on_the_listener { &server } else { &client }.set_zero_linger().expect("set");
            server.bind(address(V4)).expect("bind");
            let listener = server.listen(16).expect("listen");
            let to = listener.local_addr().expect("an address");
            let (client, server) = tokio::join!(client.connect(to), listener.accept());
            let (client, server) = (client.expect("connect"), server.expect("accept").0);
            let (dropped, kept) = if on_the_listener { (server, client) } else { (client, server) };
            drop(dropped);
            let theirs = last_word(kept).await;
            assert_eq!(theirs, Err(ErrorKind::ConnectionReset));

            let (client, server) =
                (SmcSocket::new_v4().expect("a socket"), SmcSocket::new_v4().expect("a socket"));
            if on_the_listener { &server } else { &client }.set_zero_linger().expect("set");
            let (client, server) = upgraded(client, server, V4, &lab.config(UpgradePolicy::FirstTurn)).await;
            let (dropped, kept) = if on_the_listener { (server, client) } else { (client, server) };
            assert_eq!(dropped.linger().expect("get"), Some(Duration::ZERO));
            assert!(rings(&kept).receive_window > 0);
            step("waiting for the reset");
            let reader = tokio::spawn(last_word(kept));
            tokio::task::yield_now().await;
            drop(dropped);
            assert_eq!(reader.await.expect("no panic"), theirs);
        }
    });
}

/// Dropped before it is connected, the socket is closed, and the server hears of it.
#[test]
fn a_dropped_connect_closes_the_socket() {
    on_both_schedulers(async || {
        async fn heard(listener: &SmcListener) -> io::Result<usize> {
            let (mut server, _): (SmcStream, SocketAddr) = listener.accept().await?;
            server.read(&mut [0; 1]).await
        }
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::Eager);
        let listener = SmcListener::bind_with(V4, &config).await.expect("bind");
        let to = listener.local_addr().expect("an address");
        drop(TcpSocket::new_v4().expect("a socket").connect(to).now_or_never());
        step("waiting for tokio's end");
        let theirs = heard(&listener).await;
        drop(SmcSocket::new_v4().expect("a socket").connect_with(to, &config).now_or_never());
        step("waiting for our end");
        assert_eq!(told(heard(&listener).await), told(theirs));
    });
}
