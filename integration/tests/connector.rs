//! `SmcConnector`: which address it takes, what its settings do to the connection, and how it
//! fails.

#[path = "support/addresses.rs"]
mod addresses;
#[path = "../../tests/support/agree.rs"]
mod agree;
#[path = "support/body.rs"]
mod body;
#[path = "support/client.rs"]
mod client;
#[path = "support/ends.rs"]
mod ends;
#[path = "../../tests/support/lab.rs"]
mod lab;
#[path = "support/limited.rs"]
mod limited;
#[path = "support/service.rs"]
mod service;
#[path = "../../tests/support/watchdog.rs"]
mod watchdog;
#[path = "support/web.rs"]
mod web;

use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::legacy::Client as Legacy;
use hyper_util::client::legacy::connect::dns::GaiResolver;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::net::sockopt;
use tokio::net::TcpListener;
use tokio_smc::hyper::{ConnectError, SmcConnector};
use tokio_smc::{Config, FallbackReason, SmcListener, SmcStream, Transport, UpgradePolicy};
use tower::Service;

use addresses::{Ignorant, Known, Refusing, Silent};
use agree::agree;
use body::Payload;
use client::{Client, Version};
use ends::until_loopback_ism;
use lab::Lab;
use watchdog::{on_both_schedulers, step};
use web::{Server, plain_server};

const V4: &str = "127.0.0.1";
const V6: &str = "::1";
/// Without a port: the one that the resolver says counts.
const BY_NAME: &str = "http://server.test";
/// Short: what it waits for does not happen in this test.
const SHORT: Duration = Duration::from_millis(20);
/// Long enough for a connection on this host; what else it waits for does not happen.
const ENOUGH: Duration = Duration::from_millis(500);
/// What it limits happens long before, or the watchdog ends the test.
const LONG: Duration = Duration::from_secs(3600);

/// A connector that answers "server.test" with these addresses.
fn connector_to<const N: usize>(config: &Config, addresses: [SocketAddr; N]) -> SmcConnector<Known> {
    let mut connector = SmcConnector::new_with_resolver(Known(addresses.to_vec()));
    connector.set_config(config.clone());
    connector
}

fn connector(config: &Config) -> SmcConnector {
    let mut connector = SmcConnector::new();
    connector.set_config(config.clone());
    connector
}

async fn call<C>(mut connector: C, uri: &str) -> Result<SmcStream, ConnectError>
where
    C: Service<Uri, Response = TokioIo<SmcStream>, Error = ConnectError>,
{
    poll_fn(|cx| connector.poll_ready(cx)).await?;
    connector.call(uri.parse().unwrap()).await.map(TokioIo::into_inner)
}

/// Makes requests over the connector until both ends of its connection to the server run on
/// loopback-ism; the address that the server sees.
async fn upgraded<C>(connector: C, origin: impl Into<String>, server: &Server) -> SocketAddr
where
    C: Service<Uri, Response = TokioIo<SmcStream>, Error = ConnectError, Future: Send + Unpin + 'static>,
    C: Clone + Send + Sync + 'static,
{
    step("turns until loopback-ism");
    let client = Client::with_connector(Version::One, connector, origin.into(), 1);
    let here = client.turn().await;
    assert_eq!(here.peer_addr(), Some(server.addr));
    let there = server.accepted().pop().unwrap();
    assert_eq!(there.peer_addr(), here.local_addr());
    until_loopback_ism([&here.watch(), &there.watch()], async || drop(client.turn().await)).await;
    there.peer_addr().unwrap()
}

/// Both ends of a connection that the connector has made to a listener of this configuration.
async fn pair(connector: SmcConnector, config: &Config) -> (SmcStream, SmcStream) {
    let listener = SmcListener::bind_with((V4, 0), config).await.unwrap();
    let uri = format!("http://{}/", listener.local_addr().unwrap());
    let client = call(connector, &uri).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

async fn upgrade(client: &mut SmcStream, server: &mut SmcStream) {
    step("turns until loopback-ism");
    tokio::join!(agree(client, true), agree(server, false));
}

/// The `io::Error` at the end of the sources.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> &'a io::Error {
    let mut error = Some(error);
    while let Some(here) = error {
        if let Some(found) = here.downcast_ref::<io::Error>() {
            return found;
        }
        error = here.source();
    }
    panic!("no io::Error among the sources");
}

#[test]
fn literal_addresses_and_names() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let (v4, v6) = (Server::start(V4, &config).await, Server::start(V6, &config).await);
        upgraded(connector(&config), format!("http://{}", v4.addr), &v4).await;
        upgraded(connector(&config), format!("http://{}", v6.addr), &v6).await;
        step("localhost");
        upgraded(connector(&config), format!("http://localhost:{}", v4.addr.port()), &v4).await;
    });
}

#[test]
fn ports() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let (server, refusing) = (Server::start(V4, &config).await, Refusing::new(V4));
        step("the resolver's, for a URI that has none");
        upgraded(connector_to(&config, [server.addr]), BY_NAME, &server).await;
        step("the URI's");
        let origin = format!("{BY_NAME}:{}", server.addr.port());
        upgraded(connector_to(&config, [refusing.addr]), origin, &server).await;
    });
}

/// The first address does not answer in its way, the other one does; of both families.
#[test]
fn happy_eyeballs() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        for (first, other) in [(V6, V4), (V4, V6)] {
            let (server, unused) = (Server::start(other, &config).await, Server::start(first, &config).await);
            let (refusing, silent) = (Refusing::new(first), Silent::new(first).await);
            step(format!("{first} refuses"));
            let mut connector = connector_to(&config, [refusing.addr, server.addr]);
            // Nobody waits for it.
            connector.set_happy_eyeballs_timeout(Some(LONG));
            upgraded(connector, BY_NAME, &server).await;
            step(format!("{first} is silent"));
            let mut connector = connector_to(&config, [silent.addr, server.addr]);
            connector.set_happy_eyeballs_timeout(Some(SHORT));
            upgraded(connector, BY_NAME, &server).await;
            step(format!("{first} is silent, and {other} refuses at first"));
            let refused = Refusing::new(other);
            let mut connector = connector_to(&config, [silent.addr, refused.addr, server.addr]);
            connector.set_happy_eyeballs_timeout(Some(SHORT));
            upgraded(connector, BY_NAME, &server).await;
            step("one after the other");
            let mut connector = connector_to(&config, [refusing.addr, refused.addr, server.addr]);
            connector.set_happy_eyeballs_timeout(None);
            upgraded(connector, BY_NAME, &server).await;
            step("the first one answers");
            let mut connector = connector_to(&config, [server.addr, unused.addr]);
            connector.set_happy_eyeballs_timeout(Some(LONG));
            upgraded(connector, BY_NAME, &server).await;
            assert!(unused.accepted().is_empty());
        }
    });
}

/// A plain server behind a refusing address: the fallback is the usual one.
#[test]
fn happy_eyeballs_to_a_plain_server() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (addr, silent) = (plain_server().await, Silent::new(V6).await);
        let connector = connector_to(&lab.config(UpgradePolicy::FirstTurn), [silent.addr, addr]);
        let client = Client::with_connector(Version::One, connector, BY_NAME.to_owned(), 1);
        let here = client.turn().await;
        ends::until_plain(&here.watch(), async || drop(client.turn().await)).await;
    });
}

#[test]
fn connect_timeout() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let (silent, server) = (Silent::new(V4).await, Server::start(V4, &config).await);
        step("one address");
        let mut connector = connector_to(&config, [silent.addr]);
        connector.set_connect_timeout(Some(SHORT));
        let error = call(connector, BY_NAME).await.unwrap_err();
        assert_eq!(cause(&error).kind(), io::ErrorKind::TimedOut, "{error}");
        assert_eq!(error.address(), Some(silent.addr));
        assert!(error.to_string().contains(&silent.addr.to_string()), "{error}");
        step("two families");
        let other = Silent::new(V6).await;
        let mut connector = connector_to(&config, [silent.addr, other.addr]);
        connector.set_connect_timeout(Some(SHORT));
        connector.set_happy_eyeballs_timeout(Some(SHORT / 2));
        let error = call(connector, BY_NAME).await.unwrap_err();
        assert_eq!(cause(&error).kind(), io::ErrorKind::TimedOut, "{error}");
        step("the next address of the family has its share of the time");
        let mut connector = connector_to(&config, [silent.addr, server.addr]);
        // Half of it has to do for a connection on this host.
        connector.set_connect_timeout(Some(Duration::from_secs(4)));
        upgraded(connector, BY_NAME, &server).await;
    });
}

/// A connection that waits for its upgrade is made: no other address is tried.
#[test]
fn happy_eyeballs_end_when_tcp_is_connected() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::Require);
        for (first, other) in [(V6, V4), (V4, V6)] {
            let listener = SmcListener::bind_with((first, 0), &config).await.unwrap();
            let unused = TcpListener::bind((other, 0)).await.unwrap();
            let addresses = [listener.local_addr().unwrap(), unused.local_addr().unwrap()];
            let mut connector = connector_to(&config, addresses);
            connector.set_happy_eyeballs_timeout(Some(ENOUGH));
            let connecting = tokio::spawn(call(connector, BY_NAME));
            step(format!("{first}: not accepted until the other family would have had its turn"));
            tokio::time::sleep(ENOUGH * 2).await;
            let accepted = listener.accept().await.unwrap().0;
            let stream = connecting.await.unwrap().unwrap();
            assert!(stream.transport().is_loopback_ism());
            assert_eq!(accepted.peer_addr().unwrap(), stream.local_addr().unwrap());
            let dialled = tokio::time::timeout(SHORT, unused.accept()).await;
            assert!(dialled.is_err(), "{other} was dialled, too");
        }
    });
}

/// The wait of `Require` is limited, too: here nobody ever accepts.
#[test]
fn connect_timeout_of_a_required_upgrade() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::Require);
        let listener = SmcListener::bind_with((V4, 0), &config).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut connector = connector(&config);
        connector.set_connect_timeout(Some(ENOUGH));
        let error = call(connector.clone(), &format!("http://{addr}/")).await.unwrap_err();
        assert_eq!(cause(&error).kind(), io::ErrorKind::TimedOut, "{error}");
        assert_eq!(error.address(), Some(addr));
        step("Handshake asks for less: it stays on TCP");
        connector.set_config(lab.config(UpgradePolicy::Handshake).handshake_timeout(LONG));
        let stream = call(connector, &format!("http://{addr}/")).await.unwrap();
        assert!(!stream.transport().is_loopback_ism());
    });
}

#[test]
fn a_required_upgrade() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::Require);
        let server = Server::start(V4, &config).await;
        step("connect");
        let stream = call(connector(&config), &format!("http://{}/", server.addr)).await.unwrap();
        assert!(stream.transport().is_loopback_ism());
        upgraded(connector(&config), format!("http://{}", server.addr), &server).await;
        step("a plain server");
        let addr = plain_server().await;
        let error = call(connector(&config), &format!("http://{addr}/")).await.unwrap_err();
        let cause = cause(&error);
        assert_eq!(cause.kind(), io::ErrorKind::Unsupported);
        let reason = cause.get_ref().and_then(|source| source.downcast_ref::<FallbackReason>());
        assert_eq!(reason, Some(&FallbackReason::NoSmcListener));
    });
}

#[test]
fn local_addresses() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let (v4, v6) = (Server::start(V4, &config).await, Server::start(V6, &config).await);
        let local = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
        let mut connector = connector_to(&config, [v6.addr, v4.addr]);
        connector.set_local_address(Some(local));
        assert_eq!(upgraded(connector.clone(), BY_NAME, &v4).await.ip(), local);
        assert!(v6.accepted().is_empty(), "the local address is none of this family");
        step("none again");
        connector.set_local_address(None);
        assert_eq!(upgraded(connector.clone(), BY_NAME, &v6).await.ip(), IpAddr::V6(Ipv6Addr::LOCALHOST));
        step("one for each family");
        connector.set_local_addresses(Ipv4Addr::new(127, 0, 0, 3), Ipv6Addr::LOCALHOST);
        assert_eq!(upgraded(connector, BY_NAME, &v6).await.ip(), IpAddr::V6(Ipv6Addr::LOCALHOST));
        let mut connector = connector_to(&config, [v4.addr, v6.addr]);
        connector.set_local_addresses(Ipv4Addr::new(127, 0, 0, 3), Ipv6Addr::LOCALHOST);
        assert_eq!(upgraded(connector, BY_NAME, &v4).await.ip(), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3)));
        step("no address of its family");
        let mut connector = connector_to(&config, [v6.addr]);
        connector.set_local_address(Some(local));
        let error = call(connector, BY_NAME).await.unwrap_err();
        assert!(error.to_string().contains("local address"), "{error}");
        assert_eq!(error.address(), None);
    });
}

#[test]
fn socket_options() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        step("none");
        let (mut client, mut server) = pair(connector(&config), &config).await;
        assert!(!client.nodelay().unwrap());
        assert!(!sockopt::socket_keepalive(&client).unwrap());
        assert!(!sockopt::socket_reuseaddr(&client).unwrap());
        upgrade(&mut client, &mut server).await;
        step("all");
        let mut connector = connector(&config);
        connector.set_nodelay(true);
        connector.set_keepalive(Some(Duration::from_secs(71)));
        connector.set_keepalive_interval(Some(Duration::from_secs(13)));
        connector.set_keepalive_retries(Some(7));
        connector.set_reuse_address(true);
        connector.set_send_buffer_size(Some(20_000));
        let (mut client, mut server) = pair(connector, &config).await;
        assert!(client.nodelay().unwrap());
        assert!(sockopt::socket_keepalive(&client).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&client).unwrap(), Duration::from_secs(71));
        assert_eq!(sockopt::tcp_keepintvl(&client).unwrap(), Duration::from_secs(13));
        assert_eq!(sockopt::tcp_keepcnt(&client).unwrap(), 7);
        assert!(sockopt::socket_reuseaddr(&client).unwrap());
        // Linux doubles it.
        assert_eq!(sockopt::socket_send_buffer_size(&client).unwrap(), 40_000);
        upgrade(&mut client, &mut server).await;
    });
}

#[test]
fn the_receive_buffer_bounds_the_window() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn).dmb_size(1 << 18);
        for (size, window) in [(None, 1 << 18), (Some(10_000), 1 << 14), (Some(1 << 19), 1 << 18)] {
            step(format!("SO_RCVBUF {size:?}"));
            let mut connector = connector(&config);
            connector.set_recv_buffer_size(size);
            let (mut client, mut server) = pair(connector, &config).await;
            upgrade(&mut client, &mut server).await;
            let Transport::LoopbackIsm(here) = client.transport() else { panic!("it was there") };
            let Transport::LoopbackIsm(there) = server.transport() else { panic!("it was there") };
            assert_eq!((here.receive_window, here.send_window), (window, 1 << 18));
            assert_eq!((there.receive_window, there.send_window), (1 << 18, window));
        }
    });
}

/// What shared memory can not honour keeps the connection on TCP, where it works.
#[test]
fn options_that_need_tcp() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let server = Server::start(V4, &config).await;
        let origin = format!("http://{}", server.addr);
        let mut timeout = connector(&config);
        timeout.set_tcp_user_timeout(Some(Duration::from_secs(100)));
        let mut interface = connector(&config);
        interface.set_interface("lo");
        for (what, connector) in [("TCP_USER_TIMEOUT", timeout), ("SO_BINDTODEVICE", interface)] {
            step(what);
            let client = Client::with_connector(Version::One, connector, origin.clone(), 1);
            let here = client.turn().await;
            client.turn().await;
            let settled = here.watch().settled().await;
            assert_eq!(settled.fallback_reason(), Some(FallbackReason::SocketOption), "{what}");
            client.turn().await;
            let there = server.accepted().pop().unwrap();
            assert!(!there.transport().is_loopback_ism(), "{what}");
        }
        step("an interface that there is not");
        let mut connector = connector(&config);
        connector.set_interface("no-such-one");
        let error = call(connector, &origin).await.unwrap_err();
        assert_eq!(cause(&error).raw_os_error(), Some(rustix::io::Errno::NODEV.raw_os_error()), "{error}");
        assert_eq!(error.address(), Some(server.addr));
    });
}

/// The client of hyper-util hands out the connector's error as its source.
#[test]
fn refused() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let refusing = Refusing::new(V4);
        let config = lab.config(UpgradePolicy::FirstTurn);
        let client: Legacy<_, Payload> = Legacy::builder(TokioExecutor::new()).build(connector(&config));
        let uri: Uri = format!("http://{}/", refusing.addr).parse().unwrap();
        let error = client.get(uri).await.unwrap_err();
        assert!(error.is_connect(), "{error:?}");
        assert_eq!(cause(&error).kind(), io::ErrorKind::ConnectionRefused);
        let source = error.source().and_then(|source| source.downcast_ref::<ConnectError>()).unwrap();
        assert_eq!(source.address(), Some(refusing.addr));
        assert!(source.to_string().contains(&refusing.addr.to_string()), "{source}");
        step("all of several addresses");
        let other = Refusing::new(V6);
        let error = call(connector_to(&config, [refusing.addr, other.addr]), BY_NAME).await.unwrap_err();
        assert_eq!(cause(&error).kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(error.address(), Some(other.addr), "the last one is told");
    });
}

#[test]
fn wrong_uris() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let listener = TcpListener::bind((V4, 0)).await.unwrap();
        let secure = format!("https://{}/", listener.local_addr().unwrap());
        let mut connector = connector(&config);
        for (uri, why) in [
            (secure.as_str(), "scheme is not http"),
            ("/path", "scheme is missing"),
            ("a.test:80", "scheme is missing"),
        ] {
            step(uri);
            let error = call(connector.clone(), uri).await.unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
            assert!(error.to_string().contains(uri), "{error}");
            assert_eq!(error.address(), None);
        }
        step("https may be connected to");
        connector.enforce_http(false);
        let stream = call(connector.clone(), &secure).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
        step("a scheme is wanted nevertheless");
        call(connector, "/path").await.unwrap_err();
    });
}

#[test]
fn unknown_names() {
    on_both_schedulers(async || {
        step("the resolver fails");
        let error = call(SmcConnector::new_with_resolver(Ignorant), BY_NAME).await.unwrap_err();
        assert!(error.to_string().contains("dns error"), "{error}");
        assert_eq!(error.source().unwrap().to_string(), "nobody knows server.test");
        step("the resolver has no address");
        let error = call(SmcConnector::new_with_resolver(Known(Vec::new())), BY_NAME).await.unwrap_err();
        assert!(error.to_string().contains("address"), "{error}");
        step("getaddrinfo fails");
        let connector = SmcConnector::new_with_resolver(GaiResolver::new());
        let error = call(connector, "http://name.invalid/").await.unwrap_err();
        assert!(error.to_string().contains("dns error"), "{error}");
        assert_eq!(error.address(), None);
    });
}
