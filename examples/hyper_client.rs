//! A client of the example `axum_server`: everything it offers, through hyper over SMC.
//!
//! ```text
//! cargo run --release --example axum_server -- 127.0.0.1:3000
//! cargo run --release --example hyper_client -- 127.0.0.1:3000
//! ```
//!
//! Each line says what was done, what came of it, and what the connection ran on at this end and at
//! the server's.

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use clap::Parser;
use futures::{SinkExt as _, StreamExt as _, TryStreamExt as _, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio_smc::hyper::SmcConnector;
use tokio_smc::{SmcInfo, SmcStream};
use tokio_tungstenite::tungstenite::Message;

const PATIENCE: Duration = Duration::from_secs(60);
/// The byte at position n of a streamed body is n modulo this.
const PERIOD: u64 = 251;
const PIECE: usize = 64 << 10;

type Body = BoxBody<Bytes, Infallible>;

/// Uses all that `axum_server` offers, over SMC.
#[derive(Parser)]
#[command(name = "hyper_client", version)]
struct Cli {
    /// Where `axum_server` listens.
    #[arg(default_value = "127.0.0.1:3000")]
    addr: String,
    /// Small requests and WebSocket messages that are sent one after the other.
    #[arg(long, default_value_t = 1000)]
    requests: u32,
    /// MiB of the streamed and of the uploaded body.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=16384))]
    mib: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With its causes.
            eprintln!("hyper_client: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: &Cli) -> anyhow::Result<()> {
    let api = Api::new(&cli.addr, false);
    notes(&api).await?;
    small_requests(&api, cli.requests).await?;
    download(&api, cli.mib << 20).await?;
    upload(&api, cli.mib << 20).await?;
    websocket(&cli.addr, cli.requests).await?;
    http2(&Api::new(&cli.addr, true), cli.requests).await
}

fn report(what: &str, came_of_it: &str, here: impl std::fmt::Display, there: &str) {
    println!("{what:<22} {came_of_it:<34} here {here}, server {there}");
}

/// hyper-util's client with our connector: connections are pooled as usual.
struct Api {
    client: Client<SmcConnector, Body>,
    origin: String,
}

impl Api {
    fn new(addr: &str, http2: bool) -> Self {
        let mut connector = SmcConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(10)));
        let client = Client::builder(TokioExecutor::new()).http2_only(http2).build(connector);
        Api { client, origin: format!("http://{addr}") }
    }

    async fn send(&self, method: Method, path: &str, body: Body) -> anyhow::Result<Response<Incoming>> {
        let mut request = Request::builder().method(&method).uri(format!("{}{path}", self.origin));
        if method == Method::POST {
            request = request.header("content-type", "application/json");
        }
        let answer = tokio::time::timeout(PATIENCE, self.client.request(request.body(body)?)).await;
        let response =
            answer.map_err(|_| anyhow!("{method} {path}: no answer within {} s", PATIENCE.as_secs()))?;
        let response = response.map_err(|error| {
            let hint = if error.is_connect() { " (is `axum_server` running there?)" } else { "" };
            anyhow::Error::new(error).context(format!("{method} {}{path}{hint}", self.origin))
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let words = response.into_body().collect().await?.to_bytes();
        bail!("{method} {path}: {status}: {}", String::from_utf8_lossy(&words).trim_end())
    }

    async fn get(&self, path: &str) -> anyhow::Result<Response<Incoming>> {
        self.send(Method::GET, path, Empty::new().boxed()).await
    }

    /// What the server says about the connection that an idle client uses again.
    async fn transport(&self) -> anyhow::Result<String> {
        let answer = json_of(self.get("/transport").await?).await?;
        Ok(answer["transport"].as_str().unwrap_or("?").to_owned())
    }
}

/// What the response's connection runs on, at both ends.
fn ends(response: &Response<Incoming>) -> (String, String) {
    let here =
        response.extensions().get::<SmcInfo>().map_or("?".to_owned(), |info| info.transport().to_string());
    let there = response.headers().get("x-transport").and_then(|value| value.to_str().ok());
    (here, there.unwrap_or("? (no x-transport)").to_owned())
}

async fn json_of(response: Response<Incoming>) -> anyhow::Result<Value> {
    Ok(serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?)
}

async fn notes(api: &Api) -> anyhow::Result<()> {
    let mut last = Value::Null;
    for text in ["milk", "bread", "shared memory"] {
        let body = Full::new(json!({ "text": text }).to_string().into()).boxed();
        let response = api.send(Method::POST, "/notes", body).await?;
        if response.status() != StatusCode::CREATED {
            bail!("POST /notes: {} instead of 201", response.status());
        }
        let (here, there) = ends(&response);
        last = json_of(response).await?;
        report("POST /notes", &last.to_string(), here, &there);
    }
    let path = format!("/notes/{}", last["id"]);
    let response = api.get(&path).await?;
    let (here, there) = ends(&response);
    let note = json_of(response).await?;
    if note != last {
        bail!("GET {path}: {note} is not what was made: {last}");
    }
    report(&format!("GET {path}"), &note.to_string(), here, &there);
    let response = api.get("/notes").await?;
    let (here, there) = ends(&response);
    let all = json_of(response).await?;
    report("GET /notes", &format!("{} notes", all.as_array().map_or(0, Vec::len)), here, &there);
    Ok(())
}

async fn small_requests(api: &Api, count: u32) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut on = ("?".to_owned(), "?".to_owned());
    for _ in 0..count {
        let response = api.get("/notes").await?;
        on = ends(&response);
        response.into_body().collect().await?;
    }
    let rate = f64::from(count) / start.elapsed().as_secs_f64();
    report(&format!("GET /notes, {count} times"), &format!("{rate:.0} requests/s"), on.0, &on.1);
    Ok(())
}

fn amount(bytes: u64, time: Duration) -> String {
    format!("{bytes} bytes, {:.2} GB/s", bytes as f64 / time.as_secs_f64() / 1e9)
}

async fn download(api: &Api, length: u64) -> anyhow::Result<()> {
    let pattern: Vec<u8> = (0..PIECE as u64 + PERIOD).map(|at| (at % PERIOD) as u8).collect();
    let start = Instant::now();
    let response = api.get(&format!("/stream/{length}")).await?;
    let info = response.extensions().get::<SmcInfo>().cloned();
    let mut body = response.into_body();
    let mut position = 0;
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame?.into_data() else { continue };
        for part in piece.chunks(PIECE) {
            let start = (position % PERIOD) as usize;
            if part != &pattern[start..start + part.len()] {
                bail!("a wrong byte in the streamed body, within the {} behind {position}", part.len());
            }
            position += part.len() as u64;
        }
    }
    if position != length {
        bail!("the streamed body has {position} of {length} bytes");
    }
    let time = start.elapsed();
    let here = info.map_or("?".to_owned(), |info| info.transport().to_string());
    report("GET /stream", &amount(length, time), here, &api.transport().await?);
    Ok(())
}

async fn upload(api: &Api, length: u64) -> anyhow::Result<()> {
    let piece = Bytes::from(vec![b'u'; PIECE]);
    let pieces = (0..length).step_by(piece.len()).map(move |at| {
        let piece = piece.slice(..(length - at).min(piece.len() as u64) as usize);
        Ok::<_, Infallible>(Frame::data(piece))
    });
    let start = Instant::now();
    let body = BodyExt::boxed(StreamBody::new(stream::iter(pieces)));
    let response = api.send(Method::POST, "/upload", body).await?;
    let time = start.elapsed();
    let (here, there) = ends(&response);
    let answer = json_of(response).await?;
    if answer["bytes"] != json!(length) {
        bail!("POST /upload: the server has got {answer} of {length} bytes");
    }
    report("POST /upload", &amount(length, time), here, &there);
    Ok(())
}

async fn websocket(addr: &str, count: u32) -> anyhow::Result<()> {
    // The stream is ours here: any library that takes a stream works the same way.
    let stream = SmcStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let info = stream.info();
    let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{addr}/echo"), stream).await?;
    let start = Instant::now();
    for number in 0..count {
        let message = Message::text(format!("message {number}"));
        socket.send(message.clone()).await?;
        let echo = tokio::time::timeout(PATIENCE, socket.try_next()).await.context("no echo in time")??;
        if echo.as_ref() != Some(&message) {
            bail!("an echo is wrong: {echo:?}");
        }
    }
    let rate = f64::from(count) / start.elapsed().as_secs_f64();
    let here = info.transport();
    socket.close(None).await?;
    // The server's answer to the close.
    while socket.next().await.is_some() {}
    report("WebSocket /echo", &format!("{count} messages, {rate:.0}/s"), here, "answered every one");
    Ok(())
}

async fn http2(api: &Api, count: u32) -> anyhow::Result<()> {
    let start = Instant::now();
    let requests = stream::iter(0..count).map(|_| async {
        let response = api.get("/notes").await?;
        let on = ends(&response);
        response.into_body().collect().await?;
        anyhow::Ok(on)
    });
    let answers: Vec<_> = requests.buffer_unordered(100).try_collect().await?;
    let rate = f64::from(count) / start.elapsed().as_secs_f64();
    let what = format!("HTTP/2, {count} requests");
    let (here, there) = answers.last().cloned().unwrap_or_default();
    report(&what, &format!("{rate:.0} requests/s, 100 at a time"), here, &there);
    Ok(())
}
