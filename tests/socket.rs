//! SmcSocket beside tokio's TcpSocket: the same calls, the same answers; and what its options mean
//! on shared memory.

#[path = "support/agree.rs"]
mod agree;
#[path = "support/bpf.rs"]
mod bpf;
#[path = "socket/every.rs"]
mod every;
#[path = "support/lab.rs"]
mod lab;
#[path = "socket/options.rs"]
mod options;
#[path = "socket/table.rs"]
mod table;
#[path = "support/watchdog.rs"]
mod watchdog;

use std::fmt::Debug;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::Duration;

use futures::FutureExt;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpSocket;
use tokio_smc::{Config, LoopbackIsm, SmcSocket, SmcStream, Transport, UpgradePolicy};

use agree::agree;
use lab::Lab;
use watchdog::{on_both_schedulers, step, watched};

const V4: &str = "127.0.0.1:0";
const V6: &str = "[::1]:0";

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// An answer so far as it can be the same for two sockets.
fn told<T: Debug>(answer: io::Result<T>) -> String {
    match answer {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("{:?}, errno {:?}", error.kind(), error.raw_os_error()),
    }
}

/// Asks tokio's socket and ours the same, in this order, and compares each answer.
macro_rules! beside {
    ($theirs:expr, $ours:expr; $(|$socket:ident| $call:expr;)+) => {$(
        let theirs = told((|$socket: &TcpSocket| $call)(&$theirs));
        let ours = told((|$socket: &SmcSocket| $call)(&$ours));
        assert_eq!(ours, theirs, "{}", stringify!($call));
    )+};
}

/// A socket that takes the place of `new_v4` or `new_v6`, where the host has that protocol.
fn fresh(at: SocketAddr) -> SmcSocket {
    if at.is_ipv4() { SmcSocket::new_v4() } else { SmcSocket::new_v6() }.expect("a socket")
}

/// A host without IPv6 has nothing to test there.
fn bindable(at: SocketAddr) -> bool {
    match fresh(at).bind(at) {
        Ok(()) => true,
        Err(error) => {
            assert!(at.is_ipv6() && error.kind() == ErrorKind::AddrNotAvailable, "{at}: {error}");
            false
        }
    }
}

/// Connects two prepared sockets and turns until both ends are on shared memory.
async fn upgraded(client: SmcSocket, server: SmcSocket, at: &str, config: &Config) -> (SmcStream, SmcStream) {
    server.bind(address(at)).expect("bind");
    let listener = server.listen_with(16, config).expect("listen");
    let to = listener.local_addr().expect("an address");
    let (client, server) = tokio::join!(client.connect_with(to, config), listener.accept());
    let (mut client, mut server) = (client.expect("connect"), server.expect("accept").0);
    step("upgrading");
    tokio::join!(agree(&mut client, true), agree(&mut server, false));
    (client, server)
}

fn rings(stream: &SmcStream) -> LoopbackIsm {
    match stream.transport() {
        Transport::LoopbackIsm(ism) => ism,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_option_answers_as_tokios() {
    watched(|| {
        for v6 in [false, true] {
            let (theirs, ours) = if v6 {
                (TcpSocket::new_v6().expect("a socket"), SmcSocket::new_v6().expect("a socket"))
            } else {
                (TcpSocket::new_v4().expect("a socket"), SmcSocket::new_v4().expect("a socket"))
            };
            for on in [true, false, true] {
                beside! { theirs, ours;
                    |socket| socket.set_keepalive(on); |socket| socket.keepalive();
                    |socket| socket.set_reuseaddr(on); |socket| socket.reuseaddr();
                    |socket| socket.set_reuseport(on); |socket| socket.reuseport();
                    |socket| socket.set_nodelay(on); |socket| socket.nodelay();
                }
            }
            for size in [0, 1, 4096, 100_000, 1 << 30, u32::MAX] {
                beside! { theirs, ours;
                    |socket| socket.set_send_buffer_size(size); |socket| socket.send_buffer_size();
                    |socket| socket.set_recv_buffer_size(size); |socket| socket.recv_buffer_size();
                }
            }
            for class in [0, 8, 96, 255, 256, u32::MAX] {
                beside! { theirs, ours;
                    |socket| socket.set_tos_v4(class); |socket| socket.tos_v4();
                    |socket| socket.set_tclass_v6(class); |socket| socket.tclass_v6();
                }
            }
            beside! { theirs, ours; |socket| socket.linger(); |socket| socket.set_zero_linger(); |socket| socket.linger(); }
            for interface in [Some(&b"lo"[..]), Some(b"no-such-device"), Some(&[b'x'; 40]), Some(b""), None] {
                beside! { theirs, ours; |socket| socket.bind_device(interface); |socket| socket.device(); }
            }
            beside! { theirs, ours; |socket| socket.take_error().map(|error| error.map(|error| error.kind())); }
        }
    });
}

#[test]
#[expect(deprecated, reason = "the old names act as tokio's old names do")]
fn deprecated_options_answer_as_tokios() {
    watched(|| {
        let (theirs, ours) = (TcpSocket::new_v4().expect("a socket"), SmcSocket::new_v4().expect("a socket"));
        for linger in
            [Some(Duration::from_secs(10)), Some(Duration::ZERO), Some(Duration::from_millis(1)), None]
        {
            beside! { theirs, ours; |socket| socket.set_linger(linger); |socket| socket.linger(); }
        }
        for class in [96, 4, u32::MAX] {
            beside! { theirs, ours; |socket| socket.set_tos(class); |socket| socket.tos(); }
        }
    });
}

#[test]
fn binding_answers_as_tokios() {
    watched(|| {
        let holder = std::net::TcpListener::bind(V4).expect("bind");
        let taken = holder.local_addr().expect("an address");
        // Of the last one no byte is ever sent: it is an address of documentation, which no host
        // has.
        for at in [taken, address(V6), address("192.0.2.1:0")] {
            let (theirs, ours) =
                (TcpSocket::new_v4().expect("a socket"), SmcSocket::new_v4().expect("a socket"));
            beside! { theirs, ours; |socket| socket.local_addr(); |socket| socket.bind(at); |socket| socket.local_addr(); }
        }
        drop(holder);
        let (theirs, ours) = (TcpSocket::new_v4().expect("a socket"), SmcSocket::new_v4().expect("a socket"));
        beside! { theirs, ours;
            |socket| socket.bind(address(V4));
            |socket| socket.bind(address(V4));
            |socket| socket.local_addr().map(|at| (at.ip(), at.port() != 0));
        }
    });
}

#[test]
fn connecting_and_listening_fail_as_tokios() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        for policy in [UpgradePolicy::FirstTurn, UpgradePolicy::Require, UpgradePolicy::Never] {
            let config = lab.config(policy);
            let gone = std::net::TcpListener::bind(V4).expect("bind").local_addr().expect("an address");
            let theirs = TcpSocket::new_v4().expect("a socket").connect(gone).await.map(drop);
            let ours = SmcSocket::new_v4().expect("a socket").connect_with(gone, &config).await.map(drop);
            assert_eq!(theirs.as_ref().map_err(io::Error::kind), Err(ErrorKind::ConnectionRefused));
            assert_eq!(told(ours), told(theirs));
            let theirs = TcpSocket::new_v4().expect("a socket").connect(address("[::1]:9")).await.map(drop);
            let ours = SmcSocket::new_v4().expect("a socket").connect_with(address("[::1]:9"), &config).await;
            assert_eq!(told(ours.map(drop)), told(theirs));
        }
        // The address is taken by a listener that both may bind beside, and neither may listen
        // beside.
        let (first, second) =
            (TcpSocket::new_v4().expect("a socket"), SmcSocket::new_v4().expect("a socket"));
        let third = TcpSocket::new_v4().expect("a socket");
        for socket in [&first, &third] {
            socket.set_reuseaddr(true).expect("set");
        }
        second.set_reuseaddr(true).expect("set");
        first.bind(address(V4)).expect("bind");
        let at = first.local_addr().expect("an address");
        second.bind(at).expect("bind");
        third.bind(at).expect("bind");
        let _listening = first.listen(1).expect("listen");
        let config = lab.config(UpgradePolicy::FirstTurn);
        let (ours, theirs) = (second.listen_with(1, &config), third.listen(1));
        assert_eq!(theirs.as_ref().map(drop).map_err(io::Error::kind), Err(ErrorKind::AddrInUse));
        assert_eq!(told(ours.map(drop)), told(theirs.map(drop)));
    });
}

/// How long a queue the kernel has for this listener.
fn backlog(at: SocketAddr) -> String {
    let answer = Command::new("ss").args(["-tlnHO"]).output().expect("ss of iproute2 runs");
    let table = String::from_utf8(answer.stdout).expect("text");
    let line = table.lines().find(|line| line.split_whitespace().any(|word| word == at.to_string()));
    line.expect("the listener is listed").split_whitespace().nth(2).expect("a column").to_owned()
}

#[test]
fn the_backlog_is_tokios() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        for wanted in [0, 1, 77, i32::MAX as u32, i32::MAX as u32 + 1, u32::MAX] {
            let (theirs, ours) =
                (TcpSocket::new_v4().expect("a socket"), SmcSocket::new_v4().expect("a socket"));
            beside! { theirs, ours; |socket| socket.bind(address(V4)); }
            let theirs = theirs.listen(wanted).expect("listen");
            let ours = ours.listen_with(wanted, &lab.config(UpgradePolicy::FirstTurn)).expect("listen");
            let [ours, theirs] =
                [ours.local_addr(), theirs.local_addr()].map(|at| backlog(at.expect("an address")));
            assert_eq!(ours, theirs, "{wanted}");
        }
    });
}

#[test]
fn without_a_runtime_it_panics_as_tokios() {
    watched(|| {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let listener = std::net::TcpListener::bind(V4).expect("bind");
        let to = listener.local_addr().expect("an address");
        let panic = |call: &dyn Fn()| {
            let payload = catch_unwind(AssertUnwindSafe(call)).expect_err("no runtime");
            payload
                .downcast_ref::<String>()
                .cloned()
                .or(payload.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        };
        let theirs = panic(&|| drop(TcpSocket::new_v4().expect("a socket").listen(1)));
        let ours = panic(&|| drop(SmcSocket::new_v4().expect("a socket").listen_with(1, &config)));
        assert_eq!(ours, theirs);
        let theirs = panic(&|| drop(TcpSocket::new_v4().expect("a socket").connect(to).now_or_never()));
        let ours =
            panic(&|| drop(SmcSocket::new_v4().expect("a socket").connect_with(to, &config).now_or_never()));
        assert_eq!(ours, theirs);
        assert!(ours.is_some_and(|text| text.contains("no reactor running")));
    });
}

#[test]
fn both_ends_upgrade_on_both_protocols() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        for at in [V4, V6].map(address) {
            for policy in [
                UpgradePolicy::FirstTurn,
                UpgradePolicy::Eager,
                UpgradePolicy::Require,
                UpgradePolicy::Handshake,
            ] {
                if !bindable(at) {
                    continue;
                }
                step(format!("{at} with {policy:?}"));
                let client = fresh(at);
                client.bind(at).expect("bind");
                let from = client.local_addr().expect("an address");
                let (client, server) =
                    upgraded(client, fresh(at), &at.to_string(), &lab.config(policy)).await;
                assert_eq!(client.local_addr().expect("an address"), from);
                assert_eq!(server.peer_addr().expect("an address"), from);
                assert_eq!(rings(&client).link, rings(&server).link);
            }
        }
    });
}

#[test]
fn listeners_that_share_a_port_both_upgrade() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let mut at = address(V4);
        let listeners = [(); 2].map(|()| {
            let socket = SmcSocket::new_v4().expect("a socket");
            socket.set_reuseport(true).expect("set");
            socket.bind(at).expect("bind");
            at = socket.local_addr().expect("an address");
            socket.listen_with(128, &config).expect("listen")
        });
        let mut accepted = [0; 2];
        for connection in 0..64 {
            step(format!("connection {connection}"));
            let mut client = SmcStream::connect_with(at, &config).await.expect("connect");
            let (mut server, which) = tokio::select! {
                accepted = listeners[0].accept() => (accepted.expect("accept").0, 0),
                accepted = listeners[1].accept() => (accepted.expect("accept").0, 1),
            };
            accepted[which] += 1;
            tokio::join!(agree(&mut client, true), agree(&mut server, false));
        }
        assert!(accepted.iter().all(|&count| count > 0), "the kernel spreads connections: {accepted:?}");
    });
}

#[test]
fn a_socket_made_elsewhere_is_taken_with_its_options() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let made = || {
            let socket =
                Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP)).expect("a socket");
            socket.set_keepalive(true).expect("set");
            socket.set_tcp_nodelay(true).expect("set");
            socket.bind(&address(V4).into()).expect("bind");
            socket
        };
        let client = SmcSocket::from_std_stream(made().into());
        let from = client.local_addr().expect("an address");
        assert!(client.keepalive().expect("get") && client.nodelay().expect("get"));
        // As a listener of the other kind: through the descriptor.
        let listening = SmcSocket::from(OwnedFd::from(made()));
        let listener = listening.listen_with(16, &lab.config(UpgradePolicy::FirstTurn)).expect("listen");
        let to = listener.local_addr().expect("an address");
        let config = lab.config(UpgradePolicy::FirstTurn);
        let (client, server) = tokio::join!(client.connect_with(to, &config), listener.accept());
        let (mut client, mut server) = (client.expect("connect"), server.expect("accept").0);
        assert_eq!(client.local_addr().expect("an address"), from);
        for stream in [&client, &server] {
            let socket = SockRef::from(stream);
            assert!(socket.keepalive().expect("get") && stream.nodelay().expect("get"));
        }
        tokio::join!(agree(&mut client, true), agree(&mut server, false));
    });
}

#[test]
#[allow(unsafe_code, reason = "FromRawFd is unsafe to call")]
fn a_raw_descriptor_goes_out_and_in() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let socket = SmcSocket::new_v4().expect("a socket");
        socket.bind(address(V4)).expect("bind");
        let at = socket.local_addr().expect("an address");
        let raw = socket.as_raw_fd();
        assert_eq!(socket.as_fd().as_raw_fd(), raw);
        assert_eq!(socket.into_raw_fd(), raw);
        // SAFETY: the descriptor was just given out, to nobody else.
        let socket = unsafe { SmcSocket::from_raw_fd(raw) };
        assert_eq!((socket.as_raw_fd(), socket.local_addr().expect("an address")), (raw, at));
        assert!(format!("{socket:?}").contains(&raw.to_string()), "{socket:?}");
        let config = lab.config(UpgradePolicy::FirstTurn);
        let listener = socket.listen_with(16, &config).expect("listen");
        assert_eq!(listener.as_raw_fd(), raw);
        let client = SmcSocket::new_v4().expect("a socket");
        let raw = client.as_raw_fd();
        let client = client.connect_with(at, &config).await.expect("connect");
        assert_eq!(client.as_raw_fd(), raw);
    });
}
