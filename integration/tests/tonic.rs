//! tonic over SMC: all four kinds of calls with their back-pressure, metadata, large messages,
//! graceful shutdown.

#[path = "support/certificate.rs"]
mod certificate;
#[path = "support/ends.rs"]
mod ends;
#[path = "support/grpc.rs"]
mod grpc;
#[path = "../../tests/support/lab.rs"]
mod lab;
#[path = "../../tests/support/watchdog.rs"]
mod watchdog;

use std::net::SocketAddr;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_smc::hyper::SmcConnector;
use tokio_smc::{Config, FallbackReason, SmcIncoming, SmcInfo, SmcListener, TransportWatch, UpgradePolicy};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::InterceptorLayer;
use tonic::transport::server::TcpConnectInfo;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Status, Streaming};
use tower::ServiceExt;

use certificate::certificate;
use ends::{until_loopback_ism, until_plain};
use grpc::{Note, NotesClient, NotesServer, STREAMED, check_metadata, with_metadata};
use lab::Lab;
use watchdog::{on_both_schedulers, step};

/// What the certificates are for.
const NAME: &str = "server.test";
const NOTES: u64 = 10_000;
/// HTTP/2 windows of a stream, in bytes; a connection has several times as much, so that a stream
/// that is held back does not hold back the others.
const WINDOW: u32 = 1 << 20;
/// How many notes may be under way in one direction: a window and what hyper and tonic buffer,
/// generously.
const AHEAD: u64 = 4 * WINDOW as u64 / STREAMED as u64;

/// A running server on SMC.
struct Running {
    addr: SocketAddr,
    service: NotesServer,
    accepted: mpsc::UnboundedReceiver<TransportWatch>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
}

fn builder() -> Server {
    Server::builder().initial_stream_window_size(WINDOW).initial_connection_window_size(8 * WINDOW)
}

async fn serve(config: &Config) -> Running {
    serve_by(builder(), config).await
}

async fn serve_by(mut builder: Server, config: &Config) -> Running {
    let incoming = SmcIncoming::from(SmcListener::bind_with("127.0.0.1:0", config).await.unwrap());
    let addr = incoming.local_addr().unwrap();
    let (accept, accepted) = mpsc::unbounded_channel();
    let incoming = incoming.inspect_ok(move |stream| {
        assert!(stream.nodelay().unwrap());
        // Not every test wants it.
        let _ = accept.send(stream.watch());
    });
    let service = NotesServer::new();
    let (stop, stopped) = oneshot::channel::<()>();
    let router = builder.add_service(service.clone());
    let serving = tokio::spawn(router.serve_with_incoming_shutdown(incoming, async {
        // Also when the test ends without a word.
        let _ = stopped.await;
    }));
    Running { addr, service, accepted, stop, serving }
}

/// A client and its end of the connection.
async fn connect(addr: SocketAddr, config: &Config) -> (NotesClient, TransportWatch, SocketAddr) {
    connect_to(endpoint(addr), config).await
}

async fn connect_to(endpoint: Endpoint, config: &Config) -> (NotesClient, TransportWatch, SocketAddr) {
    let (made, mut streams) = mpsc::unbounded_channel();
    let mut connector = SmcConnector::from(&endpoint);
    connector.set_config(config.clone());
    let connector = connector.map_response(move |stream| {
        assert!(stream.inner().nodelay().unwrap());
        made.send((stream.inner().watch(), stream.inner().local_addr().unwrap())).unwrap();
        stream
    });
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let (watch, local) = streams.recv().await.unwrap();
    (NotesClient::new(channel), watch, local)
}

fn endpoint(addr: SocketAddr) -> Endpoint {
    endpoint_of(format!("http://{addr}"))
}

fn endpoint_of(uri: String) -> Endpoint {
    Endpoint::from_shared(uri)
        .unwrap()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(8 * WINDOW)
}

/// A server and a client, both ends of whose connection run on loopback-ism.
async fn upgraded(lab: &Lab) -> (Running, NotesClient) {
    step("turns until loopback-ism");
    let config = lab.config(UpgradePolicy::FirstTurn);
    let mut server = serve(&config).await;
    let (mut client, here, _) = connect(server.addr, &config).await;
    let there = server.accepted.recv().await.unwrap();
    until_loopback_ism([&here, &there], async || client.turn().await).await;
    (server, client)
}

async fn unary(client: &mut NotesClient, lengths: &[usize]) {
    for length in lengths {
        step(format!("a message of {length} bytes"));
        let note = Note::new(0, *length);
        let answer = client.echo(with_metadata(note.clone())).await.unwrap();
        check_metadata(answer.metadata());
        assert!(*answer.get_ref() == note, "the note of {length} bytes differs");
    }
}

/// An error with details and metadata, in the trailers.
async fn refused(client: &mut NotesClient) {
    step("an error");
    let request = with_metadata(Note { number: Code::ResourceExhausted as u64, payload: Bytes::new() });
    let status = client.echo(request).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "as asked"));
    assert_eq!(status.details(), b"details");
    check_metadata(status.metadata());
}

/// All four kinds of calls, nothing held back.
async fn every_kind(client: &mut NotesClient) {
    unary(client, &[0, 1, 100_000]).await;
    refused(client).await;
    step("server streaming");
    expect(client.count(NOTES).await.unwrap(), 0, NOTES).await;
    step("client streaming");
    let notes = stream::iter(0..NOTES).map(|number| Note::new(number, STREAMED));
    assert_eq!(client.sum(notes).await.unwrap(), NOTES);
    step("bidirectional streaming");
    let notes = stream::iter(0..NOTES).map(|number| Note::new(number, STREAMED));
    expect(client.chat(notes).await.unwrap(), 0, NOTES).await;
}

/// These notes, in order, and then the end.
async fn expect(mut notes: Streaming<Note>, first: u64, end: u64) {
    for number in first..end {
        let note = notes.try_next().await.unwrap();
        assert!(note == Some(Note::new(number, STREAMED)), "note {number} differs");
    }
    assert!(notes.try_next().await.unwrap().is_none(), "more notes than there are");
}

/// Notes that count how many of them have been made.
fn counted() -> (watch::Receiver<u64>, impl futures::Stream<Item = Note> + Send + 'static) {
    let (made, making) = watch::channel(0);
    let notes = stream::iter(0..NOTES).map(move |number| {
        made.send_replace(number + 1);
        Note::new(number, STREAMED)
    });
    (making, notes)
}

/// Makes turns, on the connection of the held-back stream, until nothing more is made: how much
/// was.
async fn until_held_back(made: &watch::Receiver<u64>, client: &NotesClient) -> u64 {
    let mut client = client.clone();
    loop {
        let before = *made.borrow();
        for _ in 0..50 {
            client.turn().await;
        }
        if before > 0 && *made.borrow() == before {
            return before;
        }
    }
}

#[test]
fn unary_calls() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (server, mut client) = upgraded(&lab).await;
        unary(&mut client, &[0, 1, 1 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20]).await;
        refused(&mut client).await;
        step("many calls at once");
        let calls = (0..500).map(|number| {
            let mut client = client.clone();
            async move {
                let note = Note::new(number, 1000);
                assert_eq!(client.echo(Request::new(note.clone())).await.unwrap().into_inner(), note);
            }
        });
        futures::future::join_all(calls).await;
        drop(server);
    });
}

#[test]
fn addresses_of_the_peers() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let server = serve(&config).await;
        let (mut client, _, local) = connect(server.addr, &config).await;
        let answer = client.echo(Request::new(Note::new(0, 1))).await.unwrap();
        assert_eq!(answer.metadata().get("remote").unwrap(), &local.to_string());
        assert_eq!(answer.metadata().get("local").unwrap(), &server.addr.to_string());
        assert!(answer.metadata().get("transport").is_none());
    });
}

/// The interceptor of the documentation.
fn addresses(mut request: Request<()>) -> Result<Request<()>, Status> {
    let info = request.extensions().get::<SmcInfo>().expect("of SmcIncoming::with_info");
    let addresses = TcpConnectInfo { local_addr: info.local_addr(), remote_addr: info.peer_addr() };
    request.extensions_mut().insert(addresses);
    Ok(request)
}

#[test]
fn what_a_server_knows_of_its_transport() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        for intercepted in [false, true] {
            let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.unwrap();
            let incoming = SmcIncoming::from(listener).with_info();
            let addr = incoming.local_addr().unwrap();
            if intercepted {
                let mut builder = builder().layer(InterceptorLayer::new(addresses));
                tokio::spawn(builder.add_service(NotesServer::new()).serve_with_incoming(incoming));
            } else {
                tokio::spawn(builder().add_service(NotesServer::new()).serve_with_incoming(incoming));
            }
            let (mut client, here, local) = connect(addr, &config).await;
            step("the first call");
            let answer = client.echo(Request::new(Note::new(0, 1))).await.unwrap();
            let transport = answer.metadata().get("transport").unwrap().to_str().unwrap();
            // HTTP/2's settings may have been turns enough.
            assert!(["tcp", "loopback-ism"].contains(&transport), "{transport}");
            assert_eq!(answer.metadata().get("peer").unwrap(), &local.to_string());
            let remote = answer.metadata().get("remote").map(|remote| remote.to_str().unwrap().to_owned());
            assert_eq!(remote, intercepted.then(|| local.to_string()));
            step("turns until loopback-ism, which the server tells of");
            until_loopback_ism([&here], async || client.turn().await).await;
            loop {
                let answer = client.echo(Request::new(Note::new(0, 1))).await.unwrap();
                if answer.metadata().get("transport").unwrap() == "loopback-ism" {
                    break;
                }
            }
        }
    });
}

#[test]
fn server_streaming_with_a_slow_consumer() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (server, mut client) = upgraded(&lab).await;
        let made = server.service.counted.subscribe();
        let mut notes = client.count(NOTES).await.unwrap();
        step("the server is held back");
        let held = until_held_back(&made, &client).await;
        assert!((2..=AHEAD).contains(&held), "{held} notes made, none taken");
        step("it goes on as the client takes");
        for number in 0..NOTES {
            let note = notes.try_next().await.unwrap();
            assert!(note == Some(Note::new(number, STREAMED)), "note {number} differs");
            let ahead = made.borrow().saturating_sub(number + 1);
            assert!(ahead <= AHEAD, "{ahead} notes ahead after note {number}");
        }
        assert!(notes.try_next().await.unwrap().is_none());
        assert_eq!(*made.borrow(), NOTES);
    });
}

#[test]
fn client_streaming_with_a_slow_consumer() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (server, client) = upgraded(&lab).await;
        server.service.allowed.send_replace(0);
        let (made, notes) = counted();
        let mut caller = client.clone();
        let call = tokio::spawn(async move { caller.sum(notes).await });
        let mut taken = 0;
        while taken < NOTES {
            step(format!("the client is held back after {taken} notes"));
            let ahead = until_held_back(&made, &client).await.saturating_sub(taken);
            let least = 2.min(NOTES - taken);
            assert!((least..=AHEAD).contains(&ahead), "{ahead} notes made after {taken} taken");
            taken += NOTES / 10;
            server.service.allowed.send_replace(taken);
        }
        step("the end");
        server.service.allowed.send_replace(u64::MAX);
        assert_eq!(call.await.unwrap().unwrap(), NOTES);
        assert_eq!(*made.borrow(), NOTES);
    });
}

/// The server answers each note at once; nobody takes the answers, so the client is held back
/// through the server.
#[test]
fn bidirectional_streaming_with_a_slow_consumer() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (server, mut client) = upgraded(&lab).await;
        let (made, notes) = counted();
        let mut answers = client.chat(notes).await.unwrap();
        step("the client is held back");
        let held = until_held_back(&made, &client).await;
        assert!((2..=2 * AHEAD).contains(&held), "{held} notes made, no answer taken");
        step("it goes on as the answers are taken");
        for number in 0..NOTES {
            let note = answers.try_next().await.unwrap();
            assert!(note == Some(Note::new(number, STREAMED)), "answer {number} differs");
            let ahead = made.borrow().saturating_sub(number + 1);
            assert!(ahead <= 2 * AHEAD, "{ahead} notes ahead after answer {number}");
        }
        assert!(answers.try_next().await.unwrap().is_none());
        drop(server);
    });
}

/// A conversation in turns: each note waits for the answer to the one before.
#[test]
fn a_conversation() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (server, mut client) = upgraded(&lab).await;
        let (say, said) = mpsc::channel(1);
        let mut answers = client.chat(tokio_stream::wrappers::ReceiverStream::new(said)).await.unwrap();
        for number in 0..2_000 {
            step(format!("note {number}"));
            say.send(Note::new(number, 100)).await.unwrap();
            assert_eq!(answers.try_next().await.unwrap(), Some(Note::new(number, 100)));
        }
        drop(say);
        assert_eq!(answers.try_next().await.unwrap(), None);
        drop(server);
    });
}

/// A call that the client gives up does not disturb the others.
#[test]
fn a_cancelled_call() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (server, mut client) = upgraded(&lab).await;
        // Together they leave more unread than the windows of the connection have.
        for _ in 0..20 {
            let mut notes = client.count(NOTES).await.unwrap();
            assert_eq!(notes.try_next().await.unwrap(), Some(Note::new(0, STREAMED)));
            drop(notes);
            client.turn().await;
        }
        step("a whole one");
        expect(client.count(NOTES).await.unwrap(), 0, NOTES).await;
        drop(server);
    });
}

#[test]
fn graceful_shutdown() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (server, mut client) = upgraded(&lab).await;
        let made = server.service.counted.subscribe();
        let mut notes = client.count(NOTES).await.unwrap();
        assert_eq!(notes.try_next().await.unwrap(), Some(Note::new(0, STREAMED)));
        until_held_back(&made, &client).await;
        step("the shutdown");
        server.stop.send(()).unwrap();
        // The call that is under way is finished, and only then does the server end.
        expect(notes, 1, NOTES).await;
        server.serving.await.unwrap().unwrap();
        // A call that still finds the closing connection in the channel is cancelled; the next one
        // connects anew.
        let status = loop {
            let status = client.echo(Request::new(Note::new(0, 1))).await.unwrap_err();
            if status.code() != Code::Cancelled {
                break status;
            }
        };
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    });
}

/// A server on a listener of tokio's.
async fn serve_plain(mut builder: Server) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let router = builder.add_service(NotesServer::new());
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    addr
}

#[test]
fn a_plain_server() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let addr = serve_plain(builder()).await;
        let (mut client, watch, _) = connect(addr, &lab.config(UpgradePolicy::FirstTurn)).await;
        step("turns until it is decided");
        until_plain(&watch, async || client.turn().await).await;
        every_kind(&mut client).await;
    });
}

#[test]
fn a_plain_client() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let mut server = serve(&lab.config(UpgradePolicy::FirstTurn)).await;
        let channel: Channel = endpoint(server.addr).connect().await.unwrap();
        let watch = server.accepted.recv().await.unwrap();
        let mut client = NotesClient::new(channel);
        every_kind(&mut client).await;
        assert_eq!(watch.transport().fallback_reason(), Some(FallbackReason::NotYet));
    });
}

/// A server that proves to be `NAME`, and what its clients trust.
fn tls() -> (Server, ClientTlsConfig) {
    let (certificate, key) = certificate(NAME, "one");
    let identity = Identity::from_pem(certificate.pem(), key.serialize_pem());
    let server = builder().tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
    let trusted = Certificate::from_pem(certificate.pem());
    (server, ClientTlsConfig::new().ca_certificate(trusted).domain_name(NAME))
}

fn https(addr: SocketAddr, tls: ClientTlsConfig) -> Endpoint {
    endpoint_of(format!("https://{addr}")).tls_config(tls).unwrap()
}

#[test]
fn tls_of_tonic() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let (builder, tls) = tls();
        let mut server = serve_by(builder, &config).await;
        let (mut client, here, _) = connect_to(https(server.addr, tls), &config).await;
        let there = server.accepted.recv().await.unwrap();
        step("turns until loopback-ism");
        until_loopback_ism([&here, &there], async || client.turn().await).await;
        every_kind(&mut client).await;
    });
}

#[test]
fn tls_of_tonic_to_a_plain_server() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (builder, tls) = tls();
        let addr = serve_plain(builder).await;
        let config = lab.config(UpgradePolicy::FirstTurn);
        let (mut client, watch, _) = connect_to(https(addr, tls), &config).await;
        until_plain(&watch, async || client.turn().await).await;
        every_kind(&mut client).await;
    });
}

/// Nothing waits for the upgrade, which happens under the calls.
#[test]
fn every_kind_from_the_first_byte() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let mut server = serve(&config).await;
        let (mut client, here, _) = connect(server.addr, &config).await;
        let there = server.accepted.recv().await.unwrap();
        every_kind(&mut client).await;
        step("turns until loopback-ism");
        until_loopback_ism([&here, &there], async || client.turn().await).await;
    });
}
