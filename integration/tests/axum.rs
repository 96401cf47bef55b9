//! axum over SMC: both kinds of connect info, JSON, streamed bodies, WebSocket, graceful shutdown,
//! plain clients beside.

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
#[path = "../../tests/support/watchdog.rs"]
mod watchdog;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::ws::{self, WebSocket, WebSocketUpgrade};
use axum::extract::{ConnectInfo, Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use futures::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client as Legacy;
use hyper_util::rt::TokioExecutor;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_smc::hyper::SmcConnector;
use tokio_smc::{Config, FallbackReason, SmcInfo, SmcListener, SmcStream, UpgradePolicy};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use body::{Payload, check, sized};
use client::{Client, Version, info, text};
use ends::{until_loopback_ism, until_plain};
use lab::Lab;
use watchdog::{on_both_schedulers, step};

const LENGTH: u64 = 8 << 20;

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Item {
    name: String,
    sizes: Vec<u64>,
}

/// What the handlers know, and what they wait for.
#[derive(Clone, Default)]
struct Shop {
    seen: Arc<Mutex<Vec<SmcInfo>>>,
    begun: Arc<Notify>,
    go_on: Arc<Notify>,
}

impl Shop {
    /// The connection of the latest request for `/`, `/double`, `/ws` or `/slow`.
    fn latest(&self) -> SmcInfo {
        self.seen.lock().unwrap().last().expect("a request").clone()
    }

    fn saw(&self, info: SmcInfo) {
        self.seen.lock().unwrap().push(info);
    }
}

async fn hello(State(shop): State<Shop>, ConnectInfo(info): ConnectInfo<SmcInfo>) -> &'static str {
    shop.saw(info);
    "hello"
}

/// The item, with its sizes doubled.
async fn double(
    State(shop): State<Shop>,
    ConnectInfo(info): ConnectInfo<SmcInfo>,
    Json(mut item): Json<Item>,
) -> Json<Item> {
    shop.saw(info);
    item.sizes.iter_mut().for_each(|size| *size *= 2);
    Json(item)
}

async fn pattern(Path(length): Path<u64>) -> Body {
    Body::new(sized(length))
}

async fn take(body: Body) -> String {
    check(body).await.to_string()
}

async fn echo(body: Body) -> Body {
    body
}

/// Begins its answer, and ends it when it is told to.
async fn slow(State(shop): State<Shop>, ConnectInfo(info): ConnectInfo<SmcInfo>) -> Body {
    shop.saw(info);
    shop.begun.notify_one();
    let first = futures::stream::once(async { Ok::<_, io::Error>("begun, ") });
    let second = futures::stream::once(async move {
        shop.go_on.notified().await;
        Ok("ended")
    });
    Body::from_stream(first.chain(second))
}

async fn websocket(
    State(shop): State<Shop>,
    ConnectInfo(info): ConnectInfo<SmcInfo>,
    upgrade: WebSocketUpgrade,
) -> Response {
    shop.saw(info);
    upgrade.on_upgrade(converse).into_response()
}

/// Echoes until the client closes, which the socket itself answers.
async fn converse(mut socket: WebSocket) {
    while let Some(message) = socket.recv().await {
        match message.unwrap() {
            ws::Message::Close(_) => {}
            message => socket.send(message).await.unwrap(),
        }
    }
}

/// A running server.
struct Running {
    addr: SocketAddr,
    shop: Shop,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<io::Result<()>>,
}

async fn serve(config: &Config) -> Running {
    let shop = Shop::default();
    let router = Router::new()
        .route("/", get(hello))
        .route("/double", post(double))
        .route("/pattern/{length}", get(pattern))
        .route("/take", post(take))
        .route("/echo", post(echo))
        .route("/slow", get(slow))
        .route("/ws", any(websocket))
        .with_state(shop.clone());
    let listener = SmcListener::bind_with("127.0.0.1:0", config).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let service = router.into_make_service_with_connect_info::<SmcInfo>();
    let server = axum::serve(listener, service).with_graceful_shutdown(async {
        // A test that ends without a word takes the runtime with it.
        if stopped.await.is_err() {
            std::future::pending().await
        }
    });
    let serving = tokio::spawn(server.into_future());
    Running { addr, shop, stop, serving }
}

fn client(version: Version, server: SocketAddr, config: &Config) -> Client {
    let mut connector = SmcConnector::new();
    connector.set_config(config.clone());
    Client::with_connector(version, connector, format!("http://{server}"), 1)
}

/// A server, a client, and both ends of the one connection between them, on loopback-ism.
async fn upgraded(lab: &Lab, version: Version) -> (Running, Client, [SmcInfo; 2]) {
    step(format!("HTTP/{version:?}: turns until loopback-ism"));
    let config = lab.config(UpgradePolicy::FirstTurn);
    let server = serve(&config).await;
    let client = client(version, server.addr, &config);
    let here = client.turn().await;
    let there = server.shop.latest();
    assert_eq!((here.local_addr(), here.peer_addr()), (there.peer_addr(), there.local_addr()));
    until_loopback_ism([&here.watch(), &there.watch()], async || drop(client.turn().await)).await;
    (server, client, [here, there])
}

fn json(item: &Item) -> Payload {
    let body = serde_json::to_vec(item).unwrap();
    http_body_util::Full::new(body.into()).map_err(|never| match never {}).boxed()
}

#[track_caller]
fn everything(version: Version) {
    on_both_schedulers(async move || {
        let lab = Lab::new();
        let (server, client, ends) = upgraded(&lab, version).await;
        step("bodies");
        for length in [0, 1, LENGTH] {
            let streamed = client.ask(Method::GET, &format!("/pattern/{length}"), sized(0)).await;
            assert_eq!(check(streamed.into_body()).await, length);
            let taken = client.ask(Method::POST, "/take", sized(length)).await;
            assert_eq!(text(taken).await, length.to_string());
            let echoed = client.ask(Method::POST, "/echo", sized(length)).await;
            assert_eq!(check(echoed.into_body()).await, length);
        }
        let streamed = client.ask(Method::GET, "/slow", sized(0)).await;
        step("the first part of an answer");
        let mut body = streamed.into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first, "begun, ");
        step("the rest of it");
        server.shop.go_on.notify_one();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "ended");
        for end in ends {
            assert!(end.transport().is_loopback_ism());
            let counters = end.counters();
            assert!(counters.ism_bytes_read > 2 * LENGTH, "{counters:?}");
            assert!(counters.ism_bytes_written > 2 * LENGTH, "{counters:?}");
        }
    });
}

#[test]
fn everything_over_http1() {
    everything(Version::One);
}

#[test]
fn everything_over_http2() {
    everything(Version::Two);
}

#[test]
fn json_both_ways() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (server, _, _) = upgraded(&lab, Version::One).await;
        let mut connector = SmcConnector::new();
        connector.set_config(lab.config(UpgradePolicy::Eager));
        let client: Legacy<_, Payload> = Legacy::builder(TokioExecutor::new()).build(connector);
        let mut item = Item { name: "Grüße".to_owned(), sizes: (0..1000).collect() };
        let ask = async |body: Payload| {
            let request = Request::post(format!("http://{}/double", server.addr));
            client
                .request(request.header("content-type", "application/json").body(body).unwrap())
                .await
                .unwrap()
        };
        let mut settled = None;
        for _ in 0..10 {
            let response = ask(json(&item)).await;
            settled.get_or_insert_with(|| info(&response).watch());
            let got: Item = serde_json::from_slice(&text(response).await).unwrap();
            item.sizes.iter_mut().for_each(|size| *size *= 2);
            assert_eq!(got, item);
        }
        step("the upgrade");
        assert!(settled.unwrap().settled().await.is_loopback_ism());
        assert!(server.shop.latest().watch().settled().await.is_loopback_ism());
        step("what is no item");
        assert_eq!(ask(sized(10)).await.status(), StatusCode::BAD_REQUEST);
    });
}

/// A handler that says `ConnectInfo<SocketAddr>`, as over tokio's listener.
#[test]
fn the_peer_address_through_tap_io() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (accepted, seen) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let taps = Arc::clone(&accepted);
        let listener = listener.tap_io(move |stream: &mut SmcStream| {
            stream.set_nodelay(true).unwrap();
            taps.lock().unwrap().push(stream.info());
        });
        let peers = Arc::clone(&seen);
        let hello = async move |ConnectInfo(peer): ConnectInfo<SocketAddr>| {
            peers.lock().unwrap().push(peer);
            "hello"
        };
        let router = Router::new().route("/", get(hello));
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(axum::serve(listener, service).into_future());
        let client = client(Version::One, addr, &config);
        let here = client.turn().await;
        let there = accepted.lock().unwrap().remove(0);
        until_loopback_ism([&here.watch(), &there.watch()], async || drop(client.turn().await)).await;
        assert!(seen.lock().unwrap().iter().all(|peer| Some(*peer) == here.local_addr()));
        assert!(accepted.lock().unwrap().is_empty(), "one connection");
    });
}

async fn speak<S>(socket: &mut WebSocketStream<S>, message: Message)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    socket.send(message.clone()).await.unwrap();
    assert!(socket.next().await.expect("an echo").unwrap() == message, "the message differs");
}

/// Large messages, then the close handshake.
async fn finish<S>(mut socket: WebSocketStream<S>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    step("large messages");
    for number in 0..8 {
        let large: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8 ^ number).collect();
        speak(&mut socket, Message::binary(large)).await;
    }
    step("the close handshake");
    socket.close(None).await.unwrap();
    assert!(socket.next().await.expect("an answer").unwrap().is_close());
    assert!(socket.next().await.is_none(), "a message after the close");
}

#[test]
fn websocket_echo() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let server = serve(&config).await;
        let stream = SmcStream::connect_with(server.addr, &config).await.unwrap();
        let here = stream.watch();
        let (mut socket, response) = client_async("ws://server.test/ws", stream).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let there = server.shop.latest();
        step("turns until loopback-ism");
        until_loopback_ism([&here, &there.watch()], async || {
            speak(&mut socket, Message::text("Grüße")).await
        })
        .await;
        finish(socket).await;
        assert!(there.counters().ism_bytes_read > 8 << 20);
    });
}

#[test]
fn websocket_of_a_plain_client() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let server = serve(&lab.config(UpgradePolicy::FirstTurn)).await;
        let stream = TcpStream::connect(server.addr).await.unwrap();
        let (mut socket, _) = client_async("ws://server.test/ws", stream).await.unwrap();
        for _ in 0..100 {
            speak(&mut socket, Message::text("Grüße")).await;
        }
        assert_eq!(server.shop.latest().transport().fallback_reason(), Some(FallbackReason::NotYet));
        finish(socket).await;
    });
}

/// On one port at one time: a client over SMC, one of hyper over TCP, and one that writes HTTP by
/// hand.
#[test]
fn plain_clients_beside() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (server, client, ends) = upgraded(&lab, Version::One).await;
        let plain: Legacy<_, Payload> = Legacy::builder(TokioExecutor::new()).build_http();
        let mut by_hand = TcpStream::connect(server.addr).await.unwrap();
        let port = by_hand.local_addr().unwrap();
        for number in 0..100 {
            step(format!("round {number}"));
            let over_smc = async { drop(client.turn().await) };
            let over_tcp = async {
                let uri = format!("http://{}/echo", server.addr);
                let request = Request::post(uri).body(sized(100_000)).unwrap();
                let response = plain.request(request).await.unwrap();
                assert_eq!(check(response.into_body()).await, 100_000);
            };
            let written = async {
                by_hand.write_all(b"GET / HTTP/1.1\r\nhost: server.test\r\n\r\n").await.unwrap();
                let mut answer = Vec::new();
                while !answer.ends_with(b"hello") {
                    assert!(by_hand.read_buf(&mut answer).await.unwrap() > 0, "the end");
                }
                assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
            };
            tokio::join!(over_smc, over_tcp, written);
        }
        let seen = server.shop.seen.lock().unwrap();
        let plain_one = seen.iter().find(|info| info.peer_addr() == Some(port)).unwrap();
        assert_eq!(plain_one.transport().fallback_reason(), Some(FallbackReason::NotYet));
        assert!(ends.iter().all(|end| end.transport().is_loopback_ism()));
    });
}

/// Our client at an axum on tokio's listener.
#[test]
fn a_plain_server() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(async || "hello")).route("/echo", post(echo));
        tokio::spawn(axum::serve(listener, router).into_future());
        let client = client(Version::One, addr, &lab.config(UpgradePolicy::FirstTurn));
        let here = client.turn().await;
        until_plain(&here.watch(), async || drop(client.turn().await)).await;
        let echoed = client.ask(Method::POST, "/echo", sized(LENGTH)).await;
        assert_eq!(check(echoed.into_body()).await, LENGTH);
    });
}

/// A request is under way and another connection is idle, both on loopback-ism: the one is
/// finished, the other is closed, then the server ends.
#[track_caller]
fn graceful_shutdown(version: Version) {
    on_both_schedulers(async move || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let (server, busy, ends) = upgraded(&lab, version).await;
        let idle = client(version, server.addr, &config);
        let here = idle.turn().await;
        let there = server.shop.latest();
        until_loopback_ism([&here.watch(), &there.watch()], async || drop(idle.turn().await)).await;
        step("a request under way");
        let response = busy.ask(Method::GET, "/slow", sized(0)).await;
        server.shop.begun.notified().await;
        let mut body = response.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "begun, ");
        step("the shutdown, which closes the idle connection");
        server.stop.send(()).unwrap();
        let mut watch = here.watch();
        while watch.changed().await.is_some() {}
        assert!(!server.serving.is_finished(), "a request is under way");
        step("the rest of the answer");
        server.shop.go_on.notify_one();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "ended");
        step("the end of the server");
        server.serving.await.unwrap().unwrap();
        step("nobody listens");
        let error = TcpStream::connect(server.addr).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(ends.iter().all(|end| end.transport().is_loopback_ism()));
    });
}

#[test]
fn graceful_shutdown_over_http1() {
    graceful_shutdown(Version::One);
}

#[test]
fn graceful_shutdown_over_http2() {
    graceful_shutdown(Version::Two);
}
