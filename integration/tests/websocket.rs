//! tokio-tungstenite over SMC: text, large binary messages, pings, the close handshake.

#[path = "support/ends.rs"]
mod ends;
#[path = "../../tests/support/lab.rs"]
mod lab;
#[path = "support/pair.rs"]
mod pair;
#[path = "../../tests/support/watchdog.rs"]
mod watchdog;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio_smc::FallbackReason;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use ends::{until_loopback_ism, until_plain};
use lab::Lab;
use pair::{plain_client_pair, plain_server_pair, smc_pair};
use watchdog::{on_both_schedulers, step};

const URL: &str = "ws://server.test/chat";
const LENGTH: usize = 1 << 20;
const LARGE_MESSAGES: u8 = 32;

fn farewell() -> CloseFrame {
    CloseFrame { code: CloseCode::Away, reason: "that is all".into() }
}

/// Echoes messages until the client closes; what it gave as the reason.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> Option<CloseFrame> {
    let mut socket = accept_async(stream).await.unwrap();
    let mut closing = None;
    // After the close message the stream of messages ends, once the answer to it is out.
    while let Some(message) = socket.next().await {
        match message.unwrap() {
            message @ (Message::Text(_) | Message::Binary(_)) => socket.send(message).await.unwrap(),
            Message::Close(frame) => closing = frame,
            Message::Ping(_) => {}
            other => panic!("not sent by the client: {other:?}"),
        }
    }
    closing
}

async fn connect<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> WebSocketStream<S> {
    let (socket, response) = client_async(URL, stream).await.unwrap();
    assert_eq!(response.status(), 101);
    socket
}

async fn turn<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) {
    let message = Message::text("Grüße");
    socket.send(message.clone()).await.unwrap();
    assert_eq!(socket.next().await.expect("an echo").unwrap(), message);
}

fn large(number: u8) -> Message {
    Message::binary((0..LENGTH).map(|at| (at % 251) as u8 ^ number).collect::<Bytes>())
}

/// A ping, 1 MiB messages one after the other and all at once, then the close handshake.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    mut socket: WebSocketStream<S>,
    serving: JoinHandle<Option<CloseFrame>>,
) {
    step("a ping");
    socket.send(Message::Ping("alive?".into())).await.unwrap();
    assert_eq!(socket.next().await.expect("a pong").unwrap(), Message::Pong("alive?".into()));
    step("one large message");
    socket.send(large(0)).await.unwrap();
    assert!(socket.next().await.expect("an echo").unwrap() == large(0), "the message differs");
    step("many large messages");
    let (mut sink, mut stream) = socket.split();
    tokio::join!(
        async {
            for number in 0..LARGE_MESSAGES {
                sink.send(large(number)).await.unwrap();
            }
        },
        async {
            for number in 0..LARGE_MESSAGES {
                let got = stream.next().await.expect("an echo").unwrap();
                assert!(got == large(number), "message {number} differs");
            }
        },
    );
    step("the close handshake");
    let mut socket = sink.reunite(stream).unwrap();
    socket.close(Some(farewell())).await.unwrap();
    assert_eq!(socket.next().await.expect("an answer").unwrap(), Message::Close(Some(farewell())));
    assert!(socket.next().await.is_none(), "a message after the close");
    assert_eq!(serving.await.unwrap(), Some(farewell()));
}

#[test]
fn websocket() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, server) = smc_pair(&lab).await;
        let (here, there) = (client.watch(), server.watch());
        let serving = tokio::spawn(serve(server));
        let mut socket = connect(client).await;
        step("turns until loopback-ism");
        until_loopback_ism([&here, &there], async || turn(&mut socket).await).await;
        converse(socket, serving).await;
    });
}

#[test]
fn websocket_to_a_plain_server() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, server) = plain_server_pair(&lab).await;
        let watch = client.watch();
        let serving = tokio::spawn(serve(server));
        let mut socket = connect(client).await;
        step("turns until it is decided");
        until_plain(&watch, async || turn(&mut socket).await).await;
        converse(socket, serving).await;
    });
}

#[test]
fn websocket_of_a_plain_client() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, server) = plain_client_pair(&lab).await;
        let watch = server.watch();
        let serving = tokio::spawn(serve(server));
        let mut socket = connect(client).await;
        step("turns");
        for _ in 0..100 {
            turn(&mut socket).await;
        }
        assert_eq!(watch.transport().fallback_reason(), Some(FallbackReason::NotYet));
        converse(socket, serving).await;
    });
}
