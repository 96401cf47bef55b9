//! Addresses that do not connect, each in its way, and resolvers that know them.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::vec;

use hyper_util::client::legacy::connect::dns::Name;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tower::Service;

fn bound(host: &str) -> (TcpSocket, SocketAddr) {
    let any = SocketAddr::new(host.parse().unwrap(), 0);
    let socket = if any.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
    socket.bind(any).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

/// An address that refuses: it is taken, so that nobody else can listen there, but nobody listens.
pub(crate) struct Refusing {
    pub(crate) addr: SocketAddr,
    _socket: TcpSocket,
}

impl Refusing {
    pub(crate) fn new(host: &str) -> Self {
        let (_socket, addr) = bound(host);
        Refusing { addr, _socket }
    }
}

/// An address that never answers: the queue of its listener is full, so that the kernel drops
/// further attempts.
pub(crate) struct Silent {
    pub(crate) addr: SocketAddr,
    _listener: TcpListener,
    _queued: TcpStream,
}

impl Silent {
    pub(crate) async fn new(host: &str) -> Self {
        let (socket, addr) = bound(host);
        // Linux queues one connection more than this.
        let _listener = socket.listen(0).unwrap();
        let _queued = TcpStream::connect(addr).await.unwrap();
        while queued(addr) == 0 {
            tokio::task::yield_now().await;
        }
        Silent { addr, _listener, _queued }
    }
}

/// How many connections wait to be accepted at `addr`: the receive queue of a listening socket.
fn queued(addr: SocketAddr) -> u64 {
    let table = if addr.is_ipv4() { "/proc/self/net/tcp" } else { "/proc/self/net/tcp6" };
    let port = format!(":{:04X}", addr.port());
    let sockets = std::fs::read_to_string(table).unwrap();
    let listening = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // sl, local_address, rem_address, st (0A listens), tx_queue:rx_queue
    let mut listening = listening.filter(|words| words[1].ends_with(&port) && words[3] == "0A");
    let words = listening.next().expect("the listener is in the table");
    u64::from_str_radix(words[4].split_once(':').unwrap().1, 16).unwrap()
}

/// Answers every name with these addresses.
#[derive(Clone, Debug)]
pub(crate) struct Known(pub(crate) Vec<SocketAddr>);

impl Service<Name> for Known {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = Infallible;
    type Future = Ready<Result<vec::IntoIter<SocketAddr>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        assert_eq!(name.as_str(), "server.test");
        ready(Ok(self.0.clone().into_iter()))
    }
}

/// Knows no name.
#[derive(Clone, Debug)]
pub(crate) struct Ignorant;

impl Service<Name> for Ignorant {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = String;
    type Future = Ready<Result<vec::IntoIter<SocketAddr>, String>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), String>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        ready(Err(format!("nobody knows {name}")))
    }
}
