//! Plain TCP on one side, SMC on the other, while SMC connections to the same port go on: not one
//! foreign byte.

#[path = "support/agree.rs"]
mod agree;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/watchdog.rs"]
mod watchdog;

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio_smc::{SmcListener, SmcStream, Transport, UpgradePolicy};

use agree::agree;
use lab::Lab;
use watchdog::{Flavour, step, watched};

const POLICIES: [UpgradePolicy; 3] =
    [UpgradePolicy::FirstTurn, UpgradePolicy::Eager, UpgradePolicy::Handshake];
const LENGTH: usize = 300_000;

fn bytes(seed: u8) -> Vec<u8> {
    (0..LENGTH).map(|at| (at % 251) as u8 ^ seed).collect()
}

/// Who sends its bytes before it has read any.
#[derive(Clone, Copy, Debug)]
enum First {
    Client,
    Server,
}

/// Five short turns, then everything at once both ways, then the end: nothing but these bytes may
/// come.
fn plain_talk(stream: &mut TcpStream, first: bool, mine: u8, theirs: u8) {
    // A short turn first, the shape that triggers an upgrade between two of ours.
    for turn in 0..5 {
        if first || turn > 0 {
            stream.write_all(&[mine, turn]).expect("write");
        }
        let mut got = [0; 2];
        stream.read_exact(&mut got).expect("read");
        assert_eq!(got, [theirs, turn], "a foreign byte");
        if !first && turn == 0 {
            stream.write_all(&[mine, turn]).expect("write");
        }
    }
    let mut reader = stream.try_clone().expect("try_clone");
    let reading = thread::spawn(move || {
        let mut got = Vec::new();
        reader.read_to_end(&mut got).expect("read");
        got
    });
    stream.write_all(&bytes(mine)).expect("write");
    stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
    assert!(reading.join().expect("no panic") == bytes(theirs), "a foreign or missing byte");
}

async fn smc_talk(mut stream: SmcStream, first: bool, mine: u8, theirs: u8) {
    for turn in 0..5 {
        if first || turn > 0 {
            stream.write_all(&[mine, turn]).await.expect("write");
        }
        let mut got = [0; 2];
        stream.read_exact(&mut got).await.expect("read");
        assert_eq!(got, [theirs, turn], "a foreign byte");
        if !first && turn == 0 {
            stream.write_all(&[mine, turn]).await.expect("write");
        }
    }
    assert!(matches!(stream.transport(), Transport::Tcp(_)), "the peer is plain: {}", stream.transport());
    let (mut reader, mut writer) = stream.into_split();
    let writing = tokio::spawn(async move {
        writer.write_all(&bytes(mine)).await.expect("write");
        writer.shutdown().await.expect("shutdown");
    });
    let mut got = Vec::new();
    reader.read_to_end(&mut got).await.expect("read");
    assert!(got == bytes(theirs), "a foreign or missing byte");
    writing.await.expect("no panic");
}

/// SMC connections that upgrade and echo for as long as the plain ones are tested.
fn neighbours(lab: &Lab, addr: SocketAddr, mut stop: oneshot::Receiver<()>) -> JoinHandle<usize> {
    let config = lab.config(UpgradePolicy::Eager);
    tokio::spawn(async move {
        let mut turns = 0;
        while stop.try_recv().is_err() {
            let mut stream = SmcStream::connect_with(addr, &config).await.expect("connect");
            agree(&mut stream, true).await;
            for turn in 0..100_u32 {
                stream.write_u32(turn).await.expect("write");
                assert_eq!(stream.read_u32().await.expect("read"), turn);
            }
            turns += 1;
        }
        turns
    })
}

async fn neighbour_server(mut stream: SmcStream) {
    agree(&mut stream, false).await;
    while let Ok(turn) = stream.read_u32().await {
        stream.write_u32(turn).await.expect("write");
    }
}

/// Ports of the plain clients: how the server tells them from ours without asking for a byte.
type Plain = Arc<Mutex<HashSet<u16>>>;

/// The client's side over std's blocking socket, announced before it connects.
fn plain_client(addr: SocketAddr, first: First, plain: &Plain) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
    let port = socket.local_addr().expect("an address").as_socket().expect("an IP address").port();
    plain.lock().expect("not poisoned").insert(port);
    socket.connect(&addr.into()).expect("connect");
    plain_talk(&mut socket.into(), matches!(first, First::Client), b'c', b's');
}

async fn plain_clients(first: First, policy: UpgradePolicy) {
    let lab = Lab::new();
    let listener = SmcListener::bind_with("127.0.0.1:0", &lab.config(policy)).await.expect("bind");
    let addr = listener.local_addr().expect("an address");
    let (stop, stopped) = oneshot::channel();
    let ours = neighbours(&lab, addr, stopped);
    let ports = Plain::default();
    let known = Arc::clone(&ports);
    let mut clients = tokio::task::spawn_blocking(move || {
        for turn in 0..5 {
            step(format!("{policy:?}: plain client {turn}"));
            plain_client(addr, first, &ports);
        }
    });
    let mut served = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, peer) = accepted.expect("accept");
                if known.lock().expect("not poisoned").contains(&peer.port()) {
                    served.spawn(smc_talk(stream, matches!(first, First::Server), b's', b'c'));
                } else {
                    served.spawn(neighbour_server(stream));
                }
            }
            Some(done) = served.join_next() => done.expect("no foreign byte at the server"),
            done = &mut clients => break done.expect("no foreign byte at the client"),
        }
    }
    // The neighbour may be in the middle of a connection, which still wants to be accepted.
    stop.send(()).expect("the neighbours still run");
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(neighbour_server(stream));
        }
    });
    assert!(ours.await.expect("no panic") > 0, "SMC connections went on beside the plain ones");
    serving.abort();
    while let Some(done) = served.join_next().await {
        done.expect("no foreign byte at the server");
    }
}

async fn plain_server(first: First, policy: UpgradePolicy) {
    let lab = Lab::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = listener.local_addr().expect("an address");
    let serving = tokio::task::spawn_blocking(move || {
        for turn in 0..5 {
            step(format!("{policy:?}: plain server, connection {turn}"));
            let (mut stream, _) = listener.accept().expect("accept");
            plain_talk(&mut stream, matches!(first, First::Server), b's', b'c');
        }
    });
    for _ in 0..5 {
        let stream = SmcStream::connect_with(addr, &lab.config(policy)).await.expect("connect");
        smc_talk(stream, matches!(first, First::Client), b'c', b's').await;
    }
    serving.await.expect("no foreign byte at the server");
}

#[track_caller]
fn run(test: impl AsyncFn(UpgradePolicy) + Send + Copy + 'static) {
    watched(move || {
        for policy in POLICIES {
            for flavour in [Flavour::CurrentThread, Flavour::MultiThread] {
                flavour.runtime().block_on(test(policy));
            }
        }
    });
}

#[test]
fn plain_clients_that_speak_first() {
    run(async |policy| plain_clients(First::Client, policy).await);
}

#[test]
fn plain_clients_that_listen_first() {
    run(async |policy| plain_clients(First::Server, policy).await);
}

#[test]
fn plain_servers_that_speak_first() {
    run(async |policy| plain_server(First::Server, policy).await);
}

#[test]
fn plain_servers_that_listen_first() {
    run(async |policy| plain_server(First::Client, policy).await);
}

/// A byte-moving proxy joins two TCP connections into one talk; neither end may take the other for
/// its own peer.
#[test]
fn hazard_h5_a_plain_proxy_between_two_of_ours() {
    watched(|| {
        Flavour::MultiThread.runtime().block_on(async {
            let lab = Lab::new();
            let config = lab.config(UpgradePolicy::Eager);
            let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
            let behind = listener.local_addr().expect("an address");
            let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
            let front = proxy.local_addr().expect("an address");
            let moving = tokio::spawn(async move {
                let (mut left, _) = proxy.accept().await.expect("accept");
                let mut right = tokio::net::TcpStream::connect(behind).await.expect("connect");
                tokio::io::copy_bidirectional(&mut left, &mut right).await.expect("copy")
            });
            let (client, server) = tokio::join!(SmcStream::connect_with(front, &config), listener.accept());
            let (client, server) = (client.expect("connect"), server.expect("accept").0);
            tokio::join!(smc_talk(client, true, b'c', b's'), smc_talk(server, false, b's', b'c'));
            let talked = (10 + LENGTH) as u64;
            assert_eq!(
                moving.await.expect("no panic"),
                (talked, talked),
                "every byte went through the proxy"
            );
        });
    });
}

/// The port passes from one of ours to a plain server while an accepted stream of ours lives on:
/// its entry in the device directory still names the port, and the plain server must not notice.
#[test]
fn hazard_h7_the_port_now_belongs_to_a_plain_server() {
    watched(|| {
        Flavour::MultiThread.runtime().block_on(async {
            let lab = Lab::new();
            let config = lab.config(UpgradePolicy::Eager);
            let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
            let addr = listener.local_addr().expect("an address");
            let quiet = lab.config(UpgradePolicy::Never);
            let (old, kept) = tokio::join!(SmcStream::connect_with(addr, &quiet), listener.accept());
            let (old, kept) = (old.expect("connect"), kept.expect("accept"));
            drop(listener);
            let plain = TcpListener::bind(addr).expect("the port is free for a listener");
            let serving = tokio::task::spawn_blocking(move || {
                let (mut stream, _) = plain.accept().expect("accept");
                plain_talk(&mut stream, false, b's', b'c');
            });
            let stream = SmcStream::connect_with(addr, &config).await.expect("connect");
            smc_talk(stream, true, b'c', b's').await;
            serving.await.expect("no foreign byte at the server");
            drop((old, kept));
        });
    });
}

/// The client's port is used again for a second connection while the server still holds the first,
/// long dead one.
#[test]
fn hazard_h7_the_tuple_is_used_again() {
    watched(|| {
        Flavour::MultiThread.runtime().block_on(async {
            let lab = Lab::new();
            let config = lab.config(UpgradePolicy::Eager);
            let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
            let addr = listener.local_addr().expect("an address");
            for turn in 0..5_u32 {
                step(format!("tuple {turn}"));
                let first = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                first.set_reuse_address(true).expect("set_reuse_address");
                first.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
                let local = first.local_addr().expect("an address");
                first.connect(&addr.into()).expect("connect");
                let (stale, _) = listener.accept().await.expect("accept");
                first.set_linger(Some(Duration::ZERO)).expect("set_linger");
                drop(first);
                let second = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                second.set_reuse_address(true).expect("set_reuse_address");
                second.bind(&local).expect("bind to the same port");
                second.connect(&addr.into()).expect("connect");
                let (live, _) = listener.accept().await.expect("accept");
                let talk = tokio::task::spawn_blocking(move || {
                    plain_talk(&mut second.into(), true, b'c', b's');
                });
                smc_talk(live, false, b's', b'c').await;
                talk.await.expect("no foreign byte");
                let error = stale.try_read(&mut [0; 1]).expect_err("the first connection was reset");
                assert!(
                    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::WouldBlock),
                    "{error:?}"
                );
            }
        });
    });
}
