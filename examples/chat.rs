//! A chat room of lines: people with SMC and people with `nc` in one room.
//!
//! ```text
//! cargo run --release --example chat -- serve 127.0.0.1:7300
//! cargo run --release --example chat -- join alice 127.0.0.1:7300
//! nc 127.0.0.1 7300                                             # plain TCP; the first line is the name
//! ```
//!
//! `/who` lists the room and what each connection runs on, `/quit` leaves.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::{Parser, Subcommand};
use futures::StreamExt as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_smc::{SmcListener, SmcStream, Transport, TransportWatch};
use tokio_util::codec::{FramedRead, LinesCodec};

const LONGEST_LINE: usize = 4096;
const LONGEST_NAME: usize = 24;
/// Lines that a slow reader may be behind.
const BACKLOG: usize = 256;
const MOST_PEOPLE: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(30);

/// A chat room over SMC and TCP.
#[derive(Parser)]
#[command(name = "chat", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Open a room until Ctrl-C or SIGTERM; people with plain TCP (`nc`) can join, too.
    Serve {
        /// Where to listen; port 0 takes a free one.
        #[arg(default_value = "127.0.0.1:7300")]
        addr: String,
    },
    /// Join a room as NAME; lines of standard input are said.
    Join {
        name: String,
        /// Where `chat serve` listens.
        #[arg(default_value = "127.0.0.1:7300")]
        addr: String,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve { addr } => serve(&addr).await,
        Command::Join { name, addr } => join(&name, &addr).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chat: {error}");
            ExitCode::FAILURE
        }
    }
}

fn because(what: impl std::fmt::Display, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// On standard output, which may have been closed.
fn tell(line: &str) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

fn words(transport: Transport) -> String {
    match transport {
        Transport::Tcp(reason) => format!("{transport} ({reason})"),
        _ => transport.to_string(),
    }
}

// ---- server ----

struct Room {
    people: Mutex<BTreeMap<String, TransportWatch>>,
    lines: broadcast::Sender<Arc<str>>,
}

impl Room {
    fn people(&self) -> MutexGuard<'_, BTreeMap<String, TransportWatch>> {
        self.people.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, line: String) {
        tell(&line);
        // Nobody may be there to hear it.
        let _ = self.lines.send(line.into());
    }

    fn who(&self) -> String {
        let people = self.people();
        let mut answer = format!("* {} here:", people.len());
        for (name, watch) in people.iter() {
            answer += &format!(" {name} on {},", watch.transport());
        }
        answer.pop();
        answer
    }
}

/// A name in the room; leaving gives it back.
struct Seat<'a>(&'a Room, String);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.people().remove(&self.1);
    }
}

async fn serve(addr: &str) -> io::Result<()> {
    let listener = SmcListener::bind(addr).await.map_err(|error| because(addr, error))?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tell(&format!("chat room at {} (Ctrl-C closes it)", listener.local_addr()?));
    let room = Arc::new(Room { people: Mutex::default(), lines: broadcast::Sender::new(BACKLOG) });
    let (close, closed) = tokio::sync::watch::channel(());
    let mut visits = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    visits.spawn(visit(room.clone(), stream, peer, closed.clone()));
                }
                Err(error) => {
                    eprintln!("chat: accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = visits.join_next() => {}
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    drop((listener, close));
    let _ = timeout(Duration::from_secs(3), async { while visits.join_next().await.is_some() {} }).await;
    tell("the room is closed");
    Ok(())
}

/// One person, from the question for the name to the farewell.
async fn visit(
    room: Arc<Room>,
    mut stream: SmcStream,
    peer: SocketAddr,
    mut closed: tokio::sync::watch::Receiver<()>,
) {
    let watch = stream.watch();
    let (reader, mut writer) = stream.split();
    // What is longer than the limit ends the visit: nobody types that.
    let mut said = FramedRead::new(reader, LinesCodec::new_with_max_length(LONGEST_LINE));
    let entering = async {
        writer.write_all(b"* your name?\n").await?;
        let name = said.next().await.ok_or(io::ErrorKind::UnexpectedEof)?.map_err(io::Error::other)?;
        let seat = seat(&room, name.trim(), watch).map_err(io::Error::other)?;
        writer.write_all(format!("* welcome {}; {}\n", seat.1, &room.who()[2..]).as_bytes()).await?;
        Ok::<_, io::Error>(seat)
    };
    let seat = match timeout(PATIENCE, entering).await {
        Ok(Ok(seat)) => seat,
        outcome => {
            let reason = match outcome {
                Ok(Err(error)) => error.to_string(),
                _ => "no name in time".to_owned(),
            };
            eprintln!("chat: {peer} did not come in: {reason}");
            let _ = writer.write_all(format!("* {reason}\n").as_bytes()).await;
            return;
        }
    };
    let name = &seat.1;
    let mut heard = room.lines.subscribe();
    room.say(format!("* {name} joins from {peer}"));
    let farewell = loop {
        let line: Arc<str> = tokio::select! {
            line = said.next() => match line {
                None => break "is gone (the connection ended)".to_owned(),
                Some(Err(error)) => break format!("is gone ({error})"),
                Some(Ok(line)) => match printable(&line).trim() {
                    "" => continue,
                    "/quit" => break "leaves".to_owned(),
                    "/who" => room.who().into(),
                    command if command.starts_with('/') => "* /who lists the room, /quit leaves".into(),
                    words => {
                        room.say(format!("{name}: {words}"));
                        continue;
                    }
                },
            },
            line = heard.recv() => match line {
                Ok(line) => line,
                Err(broadcast::error::RecvError::Lagged(lost)) => format!("* you missed {lost} lines").into(),
                Err(broadcast::error::RecvError::Closed) => return,
            },
            _ = closed.changed() => {
                let _ = writer.write_all(b"* the room closes\n").await;
                return;
            }
        };
        // A reader that takes nothing for so long is no longer there.
        let line = format!("{line}\n");
        match timeout(PATIENCE, writer.write_all(line.as_bytes())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => break format!("is gone ({error})"),
            Err(_) => break "is gone (does not read)".to_owned(),
        }
    };
    let name = seat.1.clone();
    drop((seat, said, writer));
    let ran_on = words(stream.transport());
    room.say(format!("* {name} {farewell}; the connection ran on {ran_on}"));
}

fn seat<'a>(room: &'a Room, name: &str, watch: TransportWatch) -> Result<Seat<'a>, String> {
    let fine = |letter: char| letter.is_alphanumeric() || matches!(letter, '-' | '_' | '.');
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(fine) {
        return Err(format!("a name has 1 to {LONGEST_NAME} letters, digits, '-', '_' or '.'"));
    }
    let mut people = room.people();
    if people.len() >= MOST_PEOPLE {
        return Err("the room is full".to_owned());
    }
    if people.contains_key(name) {
        return Err(format!("there is a {name} here already: take another name"));
    }
    people.insert(name.to_owned(), watch);
    Ok(Seat(room, name.to_owned()))
}

/// Nothing that a terminal would obey.
fn printable(line: &str) -> String {
    line.chars().filter(|letter| !letter.is_control()).collect()
}

// ---- client ----

async fn join(name: &str, addr: &str) -> io::Result<()> {
    let stream = SmcStream::connect(addr).await;
    let mut stream = stream
        .map_err(|error| because(format!("cannot join {addr} (is `chat serve {addr}` running?)"), error))?;
    // A thread that ends with the process: a blocked read of a terminal can not be cancelled.
    let (typed, mut lines) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if line.map(|line| typed.blocking_send(line)).is_err() {
                return;
            }
        }
    });
    let outcome = talk(name, &mut stream, &mut lines).await;
    eprintln!("the connection ran on {}", words(stream.transport()));
    outcome
}

async fn talk(name: &str, stream: &mut SmcStream, lines: &mut mpsc::Receiver<String>) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut heard = BufReader::new(reader);
    let mut line = Vec::new();
    // Its first line asks for the name, and the name is the first answer.
    timeout(PATIENCE, (&mut heard).take(LONGEST_LINE as u64).read_until(b'\n', &mut line))
        .await
        .map_err(|_| io::Error::other("the server says nothing: is it a chat room?"))??;
    if line != b"* your name?\n" {
        return Err(io::Error::other("the server is no chat room of this kind"));
    }
    writer.write_all(format!("{name}\n").as_bytes()).await?;
    let (mut welcome, mut leaving) = (false, false);
    let mut heard = heard.lines();
    loop {
        tokio::select! {
            line = heard.next_line() => match line {
                Ok(Some(line)) if !welcome && !line.starts_with("* welcome ") => {
                    return Err(io::Error::other(format!("not let in: {}", printable(&line).trim_start_matches("* "))));
                }
                Ok(Some(line)) => {
                    welcome = true;
                    tell(&printable(&line));
                }
                Ok(None) if leaving => return Ok(()),
                Ok(None) => return Err(io::Error::other("the server is gone (the connection ended)")),
                Err(error) => return Err(because("the server is gone", error)),
            },
            line = lines.recv(), if !leaving => {
                // The end of the input leaves as well.
                let line = line.unwrap_or_else(|| "/quit".to_owned());
                leaving = line.trim() == "/quit";
                writer.write_all(format!("{line}\n").as_bytes()).await.map_err(|error| because("the server is gone", error))?;
            }
        }
    }
}
