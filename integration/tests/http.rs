//! hyper over SMC: bodies of all sizes over HTTP/1.1 and HTTP/2, keep-alive, many requests at once,
//! plain peers.

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

use std::net::SocketAddr;

use bytes::Bytes;
use hyper::{Method, Request};
use hyper_util::client::legacy::Client as Legacy;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;
use tokio_smc::hyper::SmcConnector;
use tokio_smc::{Config, FallbackReason, SmcInfo, UpgradePolicy};

use body::{Payload, body, check, sized};
use client::{Client, Version, info, text};
use ends::{until_loopback_ism, until_plain};
use lab::Lab;
use service::MEETING;
use watchdog::{on_both_schedulers, step};
use web::{Server, plain_server};

const SMALL: [u64; 4] = [0, 1, 64 << 10, 1 << 20];
const LARGE: u64 = 256 << 20;
const REQUESTS: usize = 10_000;

/// A client of one server, which makes so many connections.
fn client(version: Version, server: SocketAddr, config: &Config, connections: usize) -> Client {
    let mut connector = SmcConnector::new();
    connector.set_config(config.clone());
    connector.set_nodelay(true);
    Client::with_connector(version, connector, format!("http://{server}"), connections)
}

/// A server, a client with one connection to it, and both ends of that, on loopback-ism.
async fn upgraded(lab: &Lab, version: Version) -> (Server, Client, [SmcInfo; 2]) {
    step(format!("HTTP/{version:?}: turns until loopback-ism"));
    let config = lab.config(UpgradePolicy::FirstTurn);
    let server = Server::start("127.0.0.1", &config).await;
    let client = client(version, server.addr, &config, 1);
    let here = client.turn().await;
    let there = server.accepted().remove(0);
    assert_eq!((here.local_addr(), here.peer_addr()), (there.peer_addr(), there.local_addr()));
    until_loopback_ism([&here.watch(), &there.watch()], async || drop(client.turn().await)).await;
    (server, client, [here, there])
}

/// Nobody has left loopback-ism, and nobody has connected anew.
fn still_upgraded(server: &Server, ends: &[SmcInfo]) {
    for end in ends {
        assert!(end.transport().is_loopback_ism(), "{end:?}");
    }
    assert_eq!(server.accepted().len(), 1);
}

/// A body to the server, one from it, and one there and back, whose two directions are under way at
/// once.
async fn bodies(client: &Client, length: u64) {
    step(format!("{length} bytes to the server"));
    let taken = client.ask(Method::POST, "/take", sized(length)).await;
    assert_eq!(text(taken).await, Bytes::from(length.to_string()));
    step(format!("{length} bytes from the server"));
    assert_eq!(
        check(client.ask(Method::GET, &format!("/{length}"), sized(0)).await.into_body()).await,
        length
    );
    step(format!("{length} bytes there and back"));
    assert_eq!(check(client.ask(Method::POST, "/echo", sized(length)).await.into_body()).await, length);
}

/// As `bodies`, of lengths that nobody tells in advance.
async fn chunked_bodies(client: &Client, length: u64) {
    step(format!("{length} bytes in chunks, there and back"));
    assert_eq!(check(client.ask(Method::POST, "/echo", body(length, false)).await.into_body()).await, length);
}

async fn small_bodies(client: &Client) {
    for length in SMALL {
        bodies(client, length).await;
        chunked_bodies(client, length).await;
    }
}

#[track_caller]
fn small(version: Version) {
    on_both_schedulers(async move || {
        let lab = Lab::new();
        let (server, client, ends) = upgraded(&lab, version).await;
        small_bodies(&client).await;
        still_upgraded(&server, &ends);
    });
}

#[test]
fn small_bodies_over_http1() {
    small(Version::One);
}

#[test]
fn small_bodies_over_http2() {
    small(Version::Two);
}

#[track_caller]
fn large(version: Version) {
    on_both_schedulers(async move || {
        let lab = Lab::new();
        let (server, client, ends) = upgraded(&lab, version).await;
        bodies(&client, LARGE).await;
        still_upgraded(&server, &ends);
        for end in &ends {
            let counters = end.counters();
            assert!(counters.ism_bytes_read > 2 * LARGE, "{counters:?}");
            assert!(counters.ism_bytes_written > 2 * LARGE, "{counters:?}");
        }
    });
}

#[test]
fn large_bodies_over_http1() {
    large(Version::One);
}

#[test]
fn large_bodies_over_http2() {
    large(Version::Two);
}

/// The upgrade happens under a large body: nothing has waited for it.
#[test]
fn a_large_body_from_the_first_byte() {
    on_both_schedulers(async || {
        for version in [Version::One, Version::Two] {
            let lab = Lab::new();
            let config = lab.config(UpgradePolicy::FirstTurn);
            let server = Server::start("127.0.0.1", &config).await;
            let client = client(version, server.addr, &config, 1);
            step(format!("HTTP/{version:?}: the body"));
            let response = client.ask(Method::POST, "/echo", sized(LARGE / 8)).await;
            let (here, there) = (info(&response), server.accepted().remove(0));
            assert_eq!(check(response.into_body()).await, LARGE / 8);
            step("turns until loopback-ism");
            until_loopback_ism([&here.watch(), &there.watch()], async || drop(client.turn().await)).await;
            still_upgraded(&server, &[here, there]);
        }
    });
}

/// One after the other, all on the one connection that may be made.
#[track_caller]
fn keep_alive(version: Version) {
    on_both_schedulers(async move || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let server = Server::start("127.0.0.1", &config).await;
        let client = client(version, server.addr, &config, 1);
        let first = client.turn().await;
        for number in 1..REQUESTS {
            step(format!("request {number}"));
            assert_eq!(client.turn().await.local_addr(), first.local_addr());
        }
        still_upgraded(&server, &[first, server.accepted().remove(0)]);
    });
}

#[test]
fn keep_alive_over_http1() {
    keep_alive(Version::One);
}

#[test]
fn keep_alive_over_http2() {
    keep_alive(Version::Two);
}

/// As many requests as meet at the server, none of which is answered before all have come; their
/// connections.
async fn meet(client: &Client) -> Vec<SmcInfo> {
    let mut requests = JoinSet::new();
    for _ in 0..MEETING {
        let client = client.clone();
        requests.spawn(async move {
            let response = client.ask(Method::GET, "/meet", sized(0)).await;
            let info = info(&response);
            assert_eq!(text(response).await, "met");
            info
        });
    }
    let infos = requests.join_all().await;
    assert_eq!(infos.len(), MEETING);
    infos
}

#[track_caller]
fn at_once(version: Version, connections: usize) {
    on_both_schedulers(async move || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let server = Server::start("127.0.0.1", &config).await;
        let client = client(version, server.addr, &config, connections);
        step("the first round");
        let mut infos = meet(&client).await;
        assert_eq!(server.accepted().len(), connections);
        step("rounds until loopback-ism");
        infos.extend(server.accepted());
        let ends: Vec<_> = infos.iter().map(SmcInfo::watch).collect();
        for end in &ends {
            // Every round has a request on every connection, for none is answered before all have
            // come.
            until_loopback_ism([end], async || drop(meet(&client).await)).await;
        }
        step("the last round");
        meet(&client).await;
        assert_eq!(server.accepted().len(), connections, "the pooled connections were not used again");
        assert!(infos.iter().all(|info| info.transport().is_loopback_ism()));
    });
}

#[test]
fn requests_at_once_over_http1() {
    at_once(Version::One, MEETING);
}

#[test]
fn requests_at_once_over_http2() {
    at_once(Version::Two, 1);
}

#[track_caller]
fn to_a_plain_server(version: Version) {
    on_both_schedulers(async move || {
        let lab = Lab::new();
        let addr = plain_server().await;
        let client = client(version, addr, &lab.config(UpgradePolicy::FirstTurn), 1);
        let here = client.turn().await;
        step("turns until it is decided");
        until_plain(&here.watch(), async || drop(client.turn().await)).await;
        small_bodies(&client).await;
        assert_eq!(here.transport().fallback_reason(), Some(FallbackReason::NoSmcListener));
    });
}

#[test]
fn a_plain_server_of_http1() {
    to_a_plain_server(Version::One);
}

#[test]
fn a_plain_server_of_http2() {
    to_a_plain_server(Version::Two);
}

/// hyper-util's own connector, at a server of ours that has a client of ours at the same time.
#[track_caller]
fn of_a_plain_client(version: Version) {
    on_both_schedulers(async move || {
        let lab = Lab::new();
        let (server, client, ends) = upgraded(&lab, version).await;
        let plain: Legacy<_, Payload> =
            Legacy::builder(TokioExecutor::new()).http2_only(version == Version::Two).build_http();
        for length in SMALL {
            step(format!("{length} bytes over plain TCP"));
            let uri = format!("http://{}/echo", server.addr);
            let response = plain.request(Request::post(uri).body(sized(length)).unwrap()).await.unwrap();
            assert!(response.extensions().get::<SmcInfo>().is_none());
            assert_eq!(check(response.into_body()).await, length);
            client.turn().await;
        }
        for info in server.accepted().iter().skip(1) {
            assert_eq!(info.transport().fallback_reason(), Some(FallbackReason::NotYet));
        }
        assert!(server.accepted().len() > 1);
        assert!(ends.iter().all(|end| end.transport().is_loopback_ism()));
    });
}

#[test]
fn a_plain_client_of_http1() {
    of_a_plain_client(Version::One);
}

#[test]
fn a_plain_client_of_http2() {
    of_a_plain_client(Version::Two);
}
