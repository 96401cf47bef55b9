//! An axum server on SMC: a JSON API, streaming bodies, uploads, a WebSocket. curl reaches it on
//! the same port over TCP.
//!
//! ```text
//! cargo run --release --example axum_server -- 127.0.0.1:3000
//! cargo run --release --example hyper_client -- 127.0.0.1:3000      # all of it over SMC
//! curl -i http://127.0.0.1:3000/transport                           # plain TCP
//! ```
//!
//! Every response has a header `x-transport`: what the connection ran on when the response began.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use clap::Parser;
use futures::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_smc::{SmcInfo, SmcListener, SmcSocket};

const MOST_NOTES: usize = 10_000;
const LONGEST_NOTE: usize = 4096;
/// Bytes of a streamed or an uploaded body.
const LARGEST_BODY: u64 = 16 << 30;
const LARGEST_MESSAGE: usize = 1 << 20;
const PIECE: usize = 64 << 10;
/// The byte at position n of a stream is n modulo this.
const PERIOD: u64 = 251;

const HELP: &str = "\
GET  /notes          all notes, as JSON
POST /notes          {\"text\": \"...\"} makes a note
GET  /notes/{id}     one note
GET  /stream/{bytes} a streamed body of that many bytes
POST /upload         counts the bytes of its body
GET  /echo           a WebSocket that answers every message with itself
GET  /transport      what this connection runs on
";

/// A web server on SMC and TCP.
#[derive(Parser)]
#[command(name = "axum_server", version)]
struct Cli {
    /// Where to listen; port 0 takes a free one.
    #[arg(default_value = "127.0.0.1:3000")]
    addr: SocketAddr,
    /// Seconds that open requests have to finish after Ctrl-C or SIGTERM.
    #[arg(long, default_value_t = 10)]
    grace: u64,
}

#[derive(Clone, Serialize)]
struct Note {
    id: u64,
    text: String,
}

#[derive(Deserialize)]
struct NewNote {
    text: String,
}

#[derive(Clone)]
struct Shop {
    notes: Arc<Mutex<BTreeMap<u64, Note>>>,
    /// Becomes true when the server is to end; WebSockets hold a receiver as long as they are open.
    closing: watch::Receiver<bool>,
}

impl Shop {
    fn notes(&self) -> MutexGuard<'_, BTreeMap<u64, Note>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match serve(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("axum_server: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(cli: Cli) -> io::Result<()> {
    let listener = listen(cli.addr)
        .map_err(|error| io::Error::new(error.kind(), format!("listening on {}: {error}", cli.addr)))?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    println!("serving http://{} (Ctrl-C ends it)", listener.local_addr()?);
    let (close, closing) = watch::channel(false);
    let service = router(Shop { notes: Arc::default(), closing: closing.clone() })
        .into_make_service_with_connect_info::<SmcInfo>();
    let server = axum::serve(listener, service).with_graceful_shutdown(closes(closing));
    let mut server = tokio::spawn(server.into_future());
    tokio::select! {
        ended = &mut server => return ended?,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    println!("ending: no new connections, open requests may finish");
    close.send_replace(true);
    let finishing = async {
        let _ = server.await;
        // axum does not wait for WebSockets.
        close.closed().await;
    };
    let finished = tokio::time::timeout(Duration::from_secs(cli.grace), finishing).await;
    println!("{}", if finished.is_ok() { "ended" } else { "ended; some requests were cut off" });
    Ok(())
}

/// Returns when the server is to end, or is gone.
async fn closes(mut closing: watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

fn listen(addr: SocketAddr) -> io::Result<SmcListener> {
    let socket = if addr.is_ipv4() { SmcSocket::new_v4()? } else { SmcSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Accepted streams have it from the listener.
    socket.set_nodelay(true)?;
    socket.bind(addr)?;
    socket.listen(1024)
}

fn router(shop: Shop) -> Router {
    Router::new()
        .route("/", get(|| async { HELP }))
        .route("/notes", get(list).post(create))
        .route("/notes/{id}", get(one))
        .route("/stream/{bytes}", get(streamed))
        .route("/upload", post(upload))
        .route("/echo", any(echo))
        .route("/transport", get(transport))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is no such page; / lists what there is\n") })
        .layer(middleware::from_fn(tell_transport))
        .with_state(shop)
}

/// Says in every response what its connection runs on.
async fn tell_transport(ConnectInfo(info): ConnectInfo<SmcInfo>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::try_from(info.transport().to_string()) {
        response.headers_mut().insert("x-transport", value);
    }
    response
}

async fn transport(ConnectInfo(info): ConnectInfo<SmcInfo>) -> Json<Value> {
    let (transport, counters) = (info.transport(), info.counters());
    Json(json!({
        "transport": transport.to_string(),
        "reason": transport.fallback_reason().map(|reason| reason.to_string()),
        "peer": info.peer_addr(),
        "peer_pid": info.peer_cred().ok().and_then(|credentials| credentials.pid()),
        "bytes_over_tcp": counters.tcp_bytes_read + counters.tcp_bytes_written,
        "bytes_over_loopback_ism": counters.ism_bytes_read + counters.ism_bytes_written,
    }))
}

// ---- JSON ----

fn refused(status: StatusCode, words: &str) -> Response {
    (status, Json(json!({ "error": words }))).into_response()
}

async fn list(State(shop): State<Shop>) -> Json<Vec<Note>> {
    Json(shop.notes().values().cloned().collect())
}

async fn create(State(shop): State<Shop>, Json(NewNote { text }): Json<NewNote>) -> Response {
    if text.len() > LONGEST_NOTE {
        return refused(StatusCode::PAYLOAD_TOO_LARGE, &format!("a note has at most {LONGEST_NOTE} bytes"));
    }
    let mut notes = shop.notes();
    if notes.len() >= MOST_NOTES {
        return refused(StatusCode::INSUFFICIENT_STORAGE, &format!("there are {MOST_NOTES} notes already"));
    }
    let id = notes.last_key_value().map_or(1, |(last, _)| last + 1);
    let note = Note { id, text };
    notes.insert(id, note.clone());
    (StatusCode::CREATED, [("location", format!("/notes/{id}"))], Json(note)).into_response()
}

async fn one(State(shop): State<Shop>, Path(id): Path<u64>) -> Response {
    match shop.notes().get(&id) {
        Some(note) => Json(note).into_response(),
        None => refused(StatusCode::NOT_FOUND, &format!("there is no note {id}")),
    }
}

// ---- bodies ----

async fn streamed(Path(length): Path<u64>) -> Response {
    static PATTERN: LazyLock<Bytes> =
        LazyLock::new(|| (0..PIECE as u64 + PERIOD).map(|at| (at % PERIOD) as u8).collect());
    if length > LARGEST_BODY {
        return refused(StatusCode::BAD_REQUEST, &format!("a body has at most {LARGEST_BODY} bytes"));
    }
    let pieces = (0..length).step_by(PIECE).map(move |position| {
        let start = (position % PERIOD) as usize;
        Ok::<_, io::Error>(PATTERN.slice(start..start + (length - position).min(PIECE as u64) as usize))
    });
    Body::from_stream(stream::iter(pieces)).into_response()
}

async fn upload(request: Request) -> Response {
    let mut pieces = request.into_body().into_data_stream();
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => bytes += piece.len() as u64,
            Err(error) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
        }
        if bytes > LARGEST_BODY {
            let words = format!("a body has at most {LARGEST_BODY} bytes");
            return refused(StatusCode::PAYLOAD_TOO_LARGE, &words);
        }
    }
    Json(json!({ "bytes": bytes })).into_response()
}

// ---- WebSocket ----

async fn echo(upgrade: WebSocketUpgrade, State(shop): State<Shop>) -> Response {
    upgrade.max_message_size(LARGEST_MESSAGE).on_upgrade(move |socket| answer(socket, shop.closing))
}

async fn answer(mut socket: WebSocket, closing: watch::Receiver<bool>) {
    let mut closing = std::pin::pin!(closes(closing));
    loop {
        tokio::select! {
            message = socket.recv() => {
                // Pings are answered below us; a close or an error ends the conversation.
                let Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) = message else {
                    if matches!(message, Some(Ok(Message::Ping(_) | Message::Pong(_)))) {
                        continue;
                    }
                    return;
                };
                if socket.send(message).await.is_err() {
                    return;
                }
            }
            () = &mut closing => {
                let farewell = CloseFrame { code: close_code::AWAY, reason: "the server ends".into() };
                let _ = socket.send(Message::Close(Some(farewell))).await;
                return;
            }
        }
    }
}
