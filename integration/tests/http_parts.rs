//! What hyper, hyper-util and axum have beside a client and a server: connections made by hand,
//! HTTP upgrades that give the stream back, graceful shutdown, one connection for each origin,
//! tapped listeners.

#[path = "../../tests/support/agree.rs"]
mod agree;
#[path = "support/ends.rs"]
mod ends;
#[path = "../../tests/support/lab.rs"]
mod lab;
#[path = "support/pair.rs"]
mod pair;
#[path = "../../tests/support/watchdog.rs"]
mod watchdog;

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::ConnectInfo;
use axum::routing::get;
use axum::serve::ListenerExt;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn;
use hyper::header::{CONNECTION, UPGRADE};
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode, Uri, server};
use hyper_util::client::legacy::Client as Legacy;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio_smc::hyper::SmcConnector;
use tokio_smc::{Config, FallbackReason, SmcInfo, SmcListener, SmcStream, UpgradePolicy};

use agree::agree;
use ends::{until_loopback_ism, until_plain};
use lab::Lab;
use pair::{plain_client_pair, plain_server_pair, smc_pair};
use watchdog::{on_both_schedulers, step};

type Body = Full<Bytes>;
type Ended = JoinHandle<hyper::Result<()>>;

const LENGTH: usize = 1 << 20;
/// What the server says first after the upgrade, perhaps together with its answer.
const GREETING: &[u8] = b"now without HTTP";

fn pattern(length: usize) -> Bytes {
    (0..length).map(|at| (at % 251) as u8).collect()
}

async fn echo(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    Ok(Response::new(request.into_body().collect().await?.to_bytes().into()))
}

/// hyper's two kinds of senders.
trait Sender {
    async fn send(&mut self, request: Request<Body>) -> Response<Incoming>;

    async fn echoed(&mut self, length: usize) {
        let response = self.send(Request::post("/").body(pattern(length).into()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.into_body().collect().await.unwrap().to_bytes() == pattern(length), "it differs");
    }
}

impl Sender for conn::http1::SendRequest<Body> {
    async fn send(&mut self, request: Request<Body>) -> Response<Incoming> {
        self.ready().await.unwrap();
        self.send_request(request).await.unwrap()
    }
}

impl Sender for conn::http2::SendRequest<Body> {
    async fn send(&mut self, request: Request<Body>) -> Response<Incoming> {
        self.ready().await.unwrap();
        self.send_request(request).await.unwrap()
    }
}

/// Anything that hyper may drive.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

async fn http1(client: impl Stream, server: impl Stream) -> (conn::http1::SendRequest<Body>, [Ended; 2]) {
    let serving = server::conn::http1::Builder::new();
    let serving = serving.serve_connection(TokioIo::new(server), service_fn(echo));
    let (sender, asking) = conn::http1::handshake(TokioIo::new(client)).await.unwrap();
    (sender, [tokio::spawn(asking), tokio::spawn(serving)])
}

async fn http2(client: impl Stream, server: impl Stream) -> (conn::http2::SendRequest<Body>, [Ended; 2]) {
    let serving = server::conn::http2::Builder::new(TokioExecutor::new());
    let serving = serving.serve_connection(TokioIo::new(server), service_fn(echo));
    // The server has to run: this handshake waits for its settings.
    let serving = tokio::spawn(serving);
    let (sender, asking) = conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.unwrap();
    (sender, [tokio::spawn(asking), serving])
}

/// A large body there and back, and a clean end of both ends.
async fn finish(mut sender: impl Sender, ended: [Ended; 2]) {
    step("a large body");
    sender.echoed(LENGTH).await;
    sender.echoed(0).await;
    step("the end");
    drop(sender);
    for end in ended {
        end.await.unwrap().unwrap();
    }
}

/// A connection by hand, between ends of ours and with a plain one on either side.
macro_rules! by_hand {
    ($name:ident, $http:ident) => {
        #[test]
        fn $name() {
            on_both_schedulers(async || {
                let lab = Lab::new();
                let (client, server) = smc_pair(&lab).await;
                let ends = [client.info(), server.info()];
                let (mut sender, ended) = $http(client, server).await;
                step("turns until loopback-ism");
                let watches = ends.each_ref().map(SmcInfo::watch);
                until_loopback_ism(watches.each_ref(), async || sender.echoed(10).await).await;
                finish(sender, ended).await;
                for end in ends {
                    let counters = end.counters();
                    assert!(counters.ism_bytes_read > LENGTH as u64, "{counters:?}");
                    assert!(counters.ism_bytes_written > LENGTH as u64, "{counters:?}");
                }

                let (client, server) = plain_server_pair(&lab).await;
                // Otherwise Nagle and delayed acknowledgements make a test of patience of it.
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let here = client.watch();
                let (mut sender, ended) = $http(client, server).await;
                step("turns until it is decided");
                until_plain(&here, async || sender.echoed(10).await).await;
                finish(sender, ended).await;

                let (client, server) = plain_client_pair(&lab).await;
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let there = server.watch();
                let (mut sender, ended) = $http(client, server).await;
                step("turns of a plain client");
                for _ in 0..100 {
                    sender.echoed(10).await;
                }
                assert_eq!(there.transport().fallback_reason(), Some(FallbackReason::NotYet));
                finish(sender, ended).await;
            });
        }
    };
}

by_hand!(http1_by_hand, http1);
by_hand!(http2_by_hand, http2);

/// 100 requests that share a connection, as it moves to shared memory.
#[test]
fn streams_of_http2_by_hand() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, server) = smc_pair(&lab).await;
        let (here, there) = (client.watch(), server.watch());
        let (sender, ended) = http2(client, server).await;
        let round = async || {
            let mut requests = JoinSet::new();
            for number in 0..100 {
                let mut sender = sender.clone();
                requests.spawn(async move { sender.echoed(number * 1000).await });
            }
            requests.join_all().await
        };
        step("rounds until loopback-ism");
        until_loopback_ism([&here, &there], async || drop(round().await)).await;
        step("one more round");
        round().await;
        finish(sender, ended).await;
    });
}

/// Echoes, or says farewell to HTTP and sends what comes after it to `raw`.
async fn echo_or_upgrade(
    mut request: Request<Incoming>,
    raw: Arc<Mutex<Option<oneshot::Sender<Upgraded>>>>,
) -> Result<Response<Body>, hyper::Error> {
    if !request.headers().contains_key(UPGRADE) {
        return echo(request).await;
    }
    let upgrading = hyper::upgrade::on(&mut request);
    let raw = raw.lock().unwrap().take().expect("one upgrade");
    tokio::spawn(async move { raw.send(upgrading.await.unwrap()).unwrap() });
    let answer = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    Ok(answer.header(CONNECTION, "upgrade").header(UPGRADE, "raw").body(Body::default()).unwrap())
}

/// The stream that was given to hyper, and the bytes that hyper has read too many.
fn given_back<S: Stream>(upgraded: Upgraded) -> (S, Bytes) {
    let parts = upgraded.downcast::<TokioIo<S>>().expect("what hyper was given");
    (parts.io.into_inner(), parts.read_buf)
}

/// Some requests, then an HTTP upgrade: the streams that hyper gives back, after the server's
/// greeting.
async fn upgraded<C: Stream + Debug, S: Stream + Debug>(
    client: C,
    server: S,
    requests: impl AsyncFnOnce(&mut conn::http1::SendRequest<Body>),
) -> (C, S) {
    let (raw, server_raw) = oneshot::channel();
    let raw = Arc::new(Mutex::new(Some(raw)));
    let service = service_fn(move |request| echo_or_upgrade(request, Arc::clone(&raw)));
    let serving = server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service);
    tokio::spawn(async { serving.with_upgrades().await.unwrap() });
    let (mut sender, asking) = conn::http1::handshake(TokioIo::new(client)).await.unwrap();
    tokio::spawn(async { asking.with_upgrades().await.unwrap() });
    requests(&mut sender).await;
    step("the HTTP upgrade");
    let request = Request::get("/").header(CONNECTION, "upgrade").header(UPGRADE, "raw");
    let response = sender.send(request.body(Body::default()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let (mut server, early) = given_back::<S>(server_raw.await.unwrap());
    assert!(early.is_empty(), "the client has waited");
    server.write_all(GREETING).await.unwrap();
    let (mut client, early) = given_back::<C>(hyper::upgrade::on(response).await.unwrap());
    let mut greeting = early.to_vec();
    let missing = GREETING.len() - greeting.len();
    (&mut client).take(missing as u64).read_to_end(&mut greeting).await.unwrap();
    assert_eq!(greeting, GREETING);
    (client, server)
}

/// A turn without HTTP.
async fn raw_turn(client: &mut impl Stream, server: &mut impl Stream) {
    client.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    server.read_exact(&mut got).await.unwrap();
    server.write_all(&got).await.unwrap();
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ping");
}

/// Many bytes at once, then the end both ways.
async fn raw_finish(mut client: impl Stream, mut server: impl Stream) {
    step("many bytes without HTTP");
    let sent = pattern(LENGTH);
    let mut got = Vec::new();
    tokio::join!(
        async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
        },
        async { server.read_to_end(&mut got).await.unwrap() },
    );
    assert!(got == sent, "it differs");
    drop(server);
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

/// The HTTP upgrade gives the stream back: on TCP still, or on shared memory already.
#[test]
fn an_http_upgrade() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        step("turns after it");
        let (client, server) = smc_pair(&lab).await;
        let (mut client, mut server) = upgraded(client, server, async |_: &mut _| {}).await;
        assert!(!client.transport().is_loopback_ism(), "nobody has written after having read");
        tokio::join!(agree(&mut client, true), agree(&mut server, false));
        raw_finish(client, server).await;

        step("turns before it");
        let (client, server) = smc_pair(&lab).await;
        let (here, there) = (client.watch(), server.watch());
        let before = async |sender: &mut conn::http1::SendRequest<Body>| {
            until_loopback_ism([&here, &there], async || sender.echoed(10).await).await
        };
        let (mut client, mut server) = upgraded(client, server, before).await;
        assert!(client.transport().is_loopback_ism() && server.transport().is_loopback_ism());
        raw_turn(&mut client, &mut server).await;
        raw_finish(client, server).await;
    });
}

#[test]
fn an_http_upgrade_with_plain_peers() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        step("a plain server");
        let (client, server) = plain_server_pair(&lab).await;
        let here = client.watch();
        let (mut client, mut server) = upgraded(client, server, async |_: &mut _| {}).await;
        until_plain(&here, async || raw_turn(&mut client, &mut server).await).await;
        raw_finish(client, server).await;

        step("a plain client");
        let (client, server) = plain_client_pair(&lab).await;
        let (mut client, mut server) = upgraded(client, server, async |_: &mut _| {}).await;
        for _ in 0..100 {
            raw_turn(&mut client, &mut server).await;
        }
        assert_eq!(server.transport().fallback_reason(), Some(FallbackReason::NotYet));
        raw_finish(client, server).await;
    });
}

/// hyper-util's graceful shutdown: the idle connection ends, the busy one when it has answered.
#[test]
fn graceful_shutdown_by_hyper_util() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let graceful = GracefulShutdown::new();
        let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let mut senders = Vec::new();
        let mut ends = Vec::new();
        for number in 0..2 {
            let (client, server) = smc_pair(&lab).await;
            let (here, there) = (client.watch(), server.watch());
            let (begun, go_on) = (Arc::clone(&begun), Arc::clone(&go_on));
            let service = service_fn(move |request: Request<Incoming>| {
                let (begun, go_on) = (Arc::clone(&begun), Arc::clone(&go_on));
                async move {
                    if request.uri().path() == "/slow" {
                        begun.notify_one();
                        go_on.notified().await;
                    }
                    echo(request).await
                }
            });
            let serving = server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service);
            let serving = tokio::spawn(graceful.watch(serving));
            let (mut sender, asking) = conn::http1::handshake(TokioIo::new(client)).await.unwrap();
            let asking = tokio::spawn(asking);
            step(format!("connection {number}: turns until loopback-ism"));
            until_loopback_ism([&here, &there], async || sender.echoed(10).await).await;
            senders.push(sender);
            ends.push([asking, serving]);
        }
        let mut busy = senders.remove(0);
        let asking = tokio::spawn(async move {
            let response = busy.send(Request::post("/slow").body(pattern(LENGTH).into()).unwrap()).await;
            response.into_body().collect().await.unwrap().to_bytes()
        });
        step("a request under way");
        begun.notified().await;
        step("the idle connection ends");
        let shutdown = tokio::spawn(graceful.shutdown());
        for end in ends.remove(1) {
            end.await.unwrap().unwrap();
        }
        assert!(!shutdown.is_finished(), "a request is under way");
        step("the answer");
        go_on.notify_one();
        assert!(asking.await.unwrap() == pattern(LENGTH), "it differs");
        step("the end");
        shutdown.await.unwrap();
        for end in ends.remove(0) {
            end.await.unwrap().unwrap();
        }
    });
}

/// Serves echoes until the runtime ends; the connections that it accepts.
async fn serve(config: &Config) -> (SocketAddr, Arc<Mutex<Vec<SmcInfo>>>) {
    let listener = SmcListener::bind_with("127.0.0.1:0", config).await.unwrap();
    let (addr, accepted) = (listener.local_addr().unwrap(), Arc::default());
    let connections: Arc<Mutex<Vec<_>>> = Arc::clone(&accepted);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.lock().unwrap().push(stream.info());
            tokio::spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                // The client ends it as it likes.
                let _ = builder.serve_connection(TokioIo::new(stream), service_fn(echo)).await;
            });
        }
    });
    (addr, accepted)
}

/// A client as one makes it, nothing around the connector: each origin gets its connection, however
/// many clones ask.
#[test]
fn one_connection_for_each_origin() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let servers = [serve(&config).await, serve(&config).await];
        let mut connector = SmcConnector::new();
        connector.set_config(config);
        let client: Legacy<_, Body> = Legacy::builder(TokioExecutor::new()).http2_only(true).build(connector);
        let ask = async |addr: SocketAddr| {
            let uri: Uri = format!("http://{addr}/").parse().unwrap();
            let response =
                client.clone().request(Request::post(uri).body(pattern(100).into()).unwrap()).await;
            let response = response.unwrap();
            let info = response.extensions().get::<SmcInfo>().expect("the connector's info").clone();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), pattern(100));
            assert_eq!(info.peer_addr(), Some(addr));
            info
        };
        for (addr, accepted) in &servers {
            let here = ask(*addr).await;
            let there = accepted.lock().unwrap()[0].clone();
            assert_eq!(here.local_addr(), there.peer_addr());
            step("turns until loopback-ism");
            until_loopback_ism([&here.watch(), &there.watch()], async || drop(ask(*addr).await)).await;
        }
        step("requests to both in turns");
        for _ in 0..100 {
            for (addr, _) in &servers {
                assert!(ask(*addr).await.transport().is_loopback_ism());
            }
        }
        for (_, accepted) in &servers {
            assert_eq!(accepted.lock().unwrap().len(), 1);
        }
        step("the client goes, and its connections with it");
        let watches: Vec<_> =
            servers.iter().map(|(_, accepted)| accepted.lock().unwrap()[0].watch()).collect();
        drop(client);
        for mut watch in watches {
            while watch.changed().await.is_some() {}
            assert!(watch.transport().is_loopback_ism(), "it tells what it ran on last");
        }
    });
}

/// `ConnectInfo<SmcInfo>` of streams that go through `tap_io`.
#[test]
fn connect_info_of_a_tapped_listener() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let listener = listener.tap_io(|stream: &mut SmcStream| stream.set_nodelay(true).unwrap());
        let seen: Arc<Mutex<Vec<SmcInfo>>> = Arc::default();
        let infos = Arc::clone(&seen);
        let hello = async move |ConnectInfo(info): ConnectInfo<SmcInfo>| {
            infos.lock().unwrap().push(info);
            "hello"
        };
        let service = Router::new().route("/", get(hello)).into_make_service_with_connect_info::<SmcInfo>();
        tokio::spawn(axum::serve(listener, service).into_future());
        let stream = SmcStream::connect_with(addr, &config).await.unwrap();
        let here = stream.info();
        let (mut sender, asking) = conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(asking);
        let mut turn = async || {
            let response = sender.send(Request::get("/").body(Body::default()).unwrap()).await;
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
        };
        turn().await;
        let there = seen.lock().unwrap()[0].clone();
        assert_eq!((there.local_addr(), there.peer_addr()), (Some(addr), here.local_addr()));
        step("turns until loopback-ism");
        until_loopback_ism([&here.watch(), &there.watch()], turn).await;
        assert_eq!(there.peer_cred().unwrap().pid(), Some(std::process::id() as i32));

        step("a plain client");
        let stream = TcpStream::connect(addr).await.unwrap();
        let port = stream.local_addr().unwrap();
        let (mut sender, asking) = conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(asking);
        for _ in 0..100 {
            let response = sender.send(Request::get("/").body(Body::default()).unwrap()).await;
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
        }
        let plain = seen.lock().unwrap().last().unwrap().clone();
        assert_eq!(plain.peer_addr(), Some(port));
        assert_eq!(plain.transport().fallback_reason(), Some(FallbackReason::NotYet));
    });
}
