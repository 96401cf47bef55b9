//! A gRPC chat: one bidirectional stream per person, on tonic over SMC. Messages and service are
//! written by hand, so that no code generator is needed.
//!
//! ```text
//! cargo run --release --example tonic_chat -- serve 127.0.0.1:50051
//! cargo run --release --example tonic_chat -- join alice 127.0.0.1:50051
//! ```
//!
//! `/who` lists the room and what each connection runs on, `/quit` leaves. As a `.proto` file it
//! would be:
//!
//! ```text
//! package chat;
//! message Line { string from = 1; string text = 2; }
//! service Room { rpc Talk(stream Line) returns (stream Line); }   // the first line brings the name
//! ```

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io::{self, BufRead as _, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::{Parser, Subcommand};
use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use hyper::http;
use hyper::http::uri::PathAndQuery;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_smc::hyper::SmcConnector;
use tokio_smc::{SmcIncoming, SmcInfo, SmcListener};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::Service;

const LONGEST_LINE: usize = 4096;
const LONGEST_NAME: usize = 24;
/// Lines that a slow reader may be behind.
const BACKLOG: usize = 256;
const MOST_PEOPLE: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(30);
const TALK: &str = "/chat.Room/Talk";

/// A chat room over gRPC on SMC and TCP.
#[derive(Parser)]
#[command(name = "tonic_chat", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Open a room until Ctrl-C or SIGTERM.
    Serve {
        /// Where to listen; port 0 takes a free one.
        #[arg(default_value = "127.0.0.1:50051")]
        addr: String,
    },
    /// Join a room as NAME; lines of standard input are said.
    Join {
        name: String,
        /// Where `tonic_chat serve` listens.
        #[arg(default_value = "127.0.0.1:50051")]
        addr: String,
    },
}

/// The only message, in both directions.
#[derive(Clone, PartialEq, prost::Message)]
struct Line {
    /// Empty in what the room itself says.
    #[prost(string, tag = "1")]
    from: String,
    #[prost(string, tag = "2")]
    text: String,
}

impl Line {
    fn of_room(text: impl Into<String>) -> Self {
        Line { from: String::new(), text: text.into() }
    }

    fn shown(&self) -> String {
        // Nothing that a terminal would obey.
        let printable = |words: &str| words.chars().filter(|letter| !letter.is_control()).collect::<String>();
        match printable(&self.from).as_str() {
            "" => format!("* {}", printable(&self.text)),
            from => format!("{from}: {}", printable(&self.text)),
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve { addr } => serve(&addr).await,
        Command::Join { name, addr } => join(name, &addr).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With its causes.
            eprintln!("tonic_chat: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// On standard output, which may have been closed.
fn tell(line: &str) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---- server ----

#[derive(Clone)]
struct Room {
    people: Arc<Mutex<BTreeMap<String, Option<SmcInfo>>>>,
    /// What is known of the connections, by their clients' addresses.
    connections: Arc<Mutex<HashMap<SocketAddr, SmcInfo>>>,
    lines: broadcast::Sender<Line>,
    closed: watch::Receiver<()>,
}

impl Room {
    fn say(&self, line: Line) {
        tell(&line.shown());
        // Nobody may be there to hear it.
        let _ = self.lines.send(line);
    }

    fn who(&self) -> Line {
        let people = lock(&self.people);
        let on = |info: &Option<SmcInfo>| {
            info.as_ref().map_or("?".to_owned(), |info| info.transport().to_string())
        };
        let list: Vec<String> = people.iter().map(|(name, info)| format!("{name} on {}", on(info))).collect();
        Line::of_room(format!("{} here: {}", list.len(), list.join(", ")))
    }

    /// The handler of `Talk`: what the caller says comes as a stream, what it hears is a stream.
    async fn talk(
        self,
        request: Request<Streaming<Line>>,
    ) -> Result<Response<ReceiverStream<Result<Line, Status>>>, Status> {
        let info = request.remote_addr().and_then(|peer| lock(&self.connections).get(&peer).cloned());
        let mut said = request.into_inner();
        let first = tokio::time::timeout(PATIENCE, said.try_next()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no name in time"))??;
        let name =
            first.ok_or_else(|| Status::invalid_argument("the first line has to bring the name"))?.from;
        self.seat(&name, info)?;
        let (answers, hears) = mpsc::channel(16);
        tokio::spawn(async move {
            let heard = self.lines.subscribe();
            // First of all, so that the caller knows that it is in.
            let _ = answers.send(Ok(Line::of_room(format!("welcome {name}; {}", self.who().text)))).await;
            self.say(Line::of_room(format!("{name} joins")));
            let farewell = self.listen(&name, said, heard, &answers).await;
            let info = lock(&self.people).remove(&name).flatten();
            let ran_on = info.map_or("?".to_owned(), |info| info.transport().to_string());
            self.say(Line::of_room(format!("{name} {farewell}; the connection ran on {ran_on}")));
        });
        Ok(Response::new(ReceiverStream::new(hears)))
    }

    fn seat(&self, name: &str, info: Option<SmcInfo>) -> Result<(), Status> {
        let fine = |letter: char| letter.is_alphanumeric() || matches!(letter, '-' | '_' | '.');
        if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(fine) {
            let words = format!("a name has 1 to {LONGEST_NAME} letters, digits, '-', '_' or '.'");
            return Err(Status::invalid_argument(words));
        }
        let mut people = lock(&self.people);
        if people.len() >= MOST_PEOPLE {
            return Err(Status::resource_exhausted("the room is full"));
        }
        if people.contains_key(name) {
            return Err(Status::already_exists(format!("there is a {name} here already: take another name")));
        }
        people.insert(name.to_owned(), info);
        Ok(())
    }

    /// Until somebody leaves; the words for it.
    async fn listen(
        &self,
        name: &str,
        mut said: Streaming<Line>,
        mut heard: broadcast::Receiver<Line>,
        answers: &mpsc::Sender<Result<Line, Status>>,
    ) -> String {
        let mut closed = self.closed.clone();
        loop {
            let answer = tokio::select! {
                line = said.try_next() => match line {
                    Ok(Some(line)) => match line.text.trim() {
                        "" => continue,
                        "/quit" => return "leaves".to_owned(),
                        "/who" => self.who(),
                        command if command.starts_with('/') => Line::of_room("/who lists the room, /quit leaves"),
                        words if words.len() > LONGEST_LINE => Line::of_room("that line is too long"),
                        words => {
                            self.say(Line { from: name.to_owned(), text: words.to_owned() });
                            continue;
                        }
                    },
                    Ok(None) => return "leaves".to_owned(),
                    Err(status) => return format!("is gone ({})", status.message()),
                },
                line = heard.recv() => match line {
                    Ok(line) => line,
                    Err(broadcast::error::RecvError::Lagged(lost)) => Line::of_room(format!("you missed {lost} lines")),
                    Err(broadcast::error::RecvError::Closed) => return "leaves".to_owned(),
                },
                _ = closed.changed() => {
                    let _ = answers.send(Ok(Line::of_room("the room closes"))).await;
                    return "has to go".to_owned();
                }
            };
            match tokio::time::timeout(PATIENCE, answers.send(Ok(answer))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return "is gone (hears no more)".to_owned(),
                Err(_) => return "is gone (does not read)".to_owned(),
            }
        }
    }
}

impl tonic::server::NamedService for Room {
    const NAME: &'static str = "chat.Room";
}

impl Service<http::Request<Body>> for Room {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let room = self.clone();
        Box::pin(async move {
            if request.uri().path() != TALK {
                return Ok(Status::unimplemented("there is only chat.Room/Talk").into_http());
            }
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Line, Line>::default());
            Ok(grpc.streaming(tower::service_fn(move |request| room.clone().talk(request)), request).await)
        })
    }
}

async fn serve(addr: &str) -> anyhow::Result<()> {
    let listener = SmcListener::bind(addr).await.with_context(|| format!("listening on {addr}"))?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tell(&format!("gRPC chat room at {} (Ctrl-C closes it)", listener.local_addr()?));
    let (close, closed) = watch::channel(());
    let room = Room {
        people: Arc::default(),
        connections: Arc::default(),
        lines: broadcast::Sender::new(BACKLOG),
        closed,
    };
    // tonic takes the streams; what is needed of them is noted before.
    let connections = room.connections.clone();
    let incoming = SmcIncoming::from(listener).inspect_ok(move |stream| {
        let Ok(peer) = stream.peer_addr() else { return };
        lock(&connections).insert(peer, stream.info());
        let (connections, mut watch) = (connections.clone(), stream.watch());
        tokio::spawn(async move {
            // It has no more changes when the stream is closed.
            while watch.changed().await.is_some() {}
            lock(&connections).remove(&peer);
        });
    });
    let ending = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        drop(close);
    };
    Server::builder().add_service(room).serve_with_incoming_shutdown(incoming, ending).await?;
    tell("the room is closed");
    Ok(())
}

// ---- client ----

async fn join(name: String, addr: &str) -> anyhow::Result<()> {
    let endpoint = Endpoint::new(format!("http://{addr}"))
        .with_context(|| format!("{addr} is no address"))?
        .connect_timeout(Duration::from_secs(10));
    // tonic's channel takes any connector; this one notes what is needed of its stream.
    let noted: Arc<Mutex<Option<SmcInfo>>> = Arc::default();
    let note = noted.clone();
    let mut connector = SmcConnector::new();
    connector.set_nodelay(true);
    let connector = tower::service_fn(move |uri: http::Uri| {
        let (connecting, note) = (connector.call(uri), note.clone());
        async move { connecting.await.inspect(|stream| *lock(&note) = Some(stream.inner().info())) }
    });
    let channel = endpoint
        .connect_with_connector(connector)
        .await
        .with_context(|| format!("cannot join {addr} (is `tonic_chat serve {addr}` running?)"))?;
    let outcome = talk(channel, name).await;
    if let Some(info) = &*lock(&noted) {
        let counters = info.counters();
        eprintln!(
            "the connection ran on {} ({} bytes over tcp, {} over loopback-ism)",
            info.transport(),
            counters.tcp_bytes_read + counters.tcp_bytes_written,
            counters.ism_bytes_read + counters.ism_bytes_written,
        );
    }
    outcome
}

async fn talk(channel: tonic::transport::Channel, name: String) -> anyhow::Result<()> {
    let (say, said) = mpsc::channel(16);
    say.send(Line { from: name.clone(), text: String::new() }).await?;
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await?;
    let codec = ProstCodec::<Line, Line>::default();
    let request = Request::new(ReceiverStream::new(said));
    let answer = grpc.streaming(request, PathAndQuery::from_static(TALK), codec).await;
    let mut heard = answer.map_err(|status| anyhow!("not let in: {}", status.message()))?.into_inner();

    // A thread that ends with the process: a blocked read of a terminal can not be cancelled.
    let (typed, mut lines) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if line.map(|line| typed.blocking_send(line)).is_err() {
                return;
            }
        }
    });
    let mut say = Some(say);
    loop {
        tokio::select! {
            line = heard.try_next() => match line {
                Ok(Some(line)) => tell(&line.shown()),
                Ok(None) if say.is_none() => return Ok(()),
                Ok(None) => bail!("the server has ended the conversation"),
                Err(status) => bail!("the server is gone ({})", status.message()),
            },
            text = lines.recv(), if say.is_some() => match (text, &say) {
                (Some(text), Some(to_server)) if text.trim() != "/quit" => {
                    // The end of the conversation says why, when this fails.
                    let _ = to_server.send(Line { from: name.clone(), text }).await;
                }
                // Ending what we say is how to leave.
                _ => say = None,
            },
        }
    }
}
