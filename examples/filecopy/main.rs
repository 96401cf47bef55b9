//! Sends a file or a directory tree to another process and has its hash verified there.
//!
//! In two terminals:
//!
//! ```text
//! cargo run --release --example filecopy -- recv /tmp/inbox 127.0.0.1:7800
//! cargo run --release --example filecopy -- send ./some/tree 127.0.0.1:7800
//! ```
//!
//! Copied are regular files and directories (empty ones, too) with relative paths, contents and
//! permission bits (no setuid, setgid or sticky bit). The path given to `send` may be a symbolic
//! link and is followed; links within a tree, and devices, pipes and sockets, are left out and each
//! is named on standard error. Nothing at the receiver is overwritten or followed: what exists
//! already is refused, and so is every path that leaves the directory.
//!
//! The blake3 hash of every file is compared as it arrives, and one of all names, modes, sizes and
//! hashes at the end, which the receiver confirms to the sender. The format is written and read as
//! an ordinary byte stream (`Write` and `Read`) by a thread that may block on the disk; the
//! asynchronous part moves its chunks through the connection.

mod chunks;
mod tree;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_smc::{Config, SmcListener, SmcStream};

use crate::chunks::{AHEAD, CHUNK, Chunk, ChunkReader, ChunkWriter};

/// Both ends begin with it; the receiver first, so that the sender's first write is already an
/// answer.
const GREETING: &[u8; 8] = b"filecpy1";
/// A peer that moves nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(30);
const LONGEST_VERDICT: usize = 4096;

/// Copies a file or a directory tree to another process, verified by its hash.
#[derive(Parser)]
#[command(name = "filecopy", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Receive one transfer into DIR, which is created if need be; nothing in it is overwritten.
    Recv {
        dir: PathBuf,
        /// Where to listen, as 127.0.0.1:7800; port 0 takes a free one.
        addr: String,
    },
    /// Send the file or tree at PATH to the receiver at ADDR.
    Send { path: PathBuf, addr: String },
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Recv { dir, addr } => receive(&dir, &addr).await,
        Command::Send { path, addr } => send(path, &addr).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr().lock(), "filecopy: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the stream runs on, and why if not on shared memory.
fn runs_on(stream: &SmcStream) -> String {
    let transport = stream.transport();
    match &transport {
        tokio_smc::Transport::Tcp(reason) => format!("{transport} ({reason})"),
        _ => transport.to_string(),
    }
}

async fn patiently<T>(what: &str, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(PATIENCE, step).await {
        Ok(result) => result.map_err(|error| because(what, error)),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{what}: nothing moved for {} s", PATIENCE.as_secs()),
        )),
    }
}

fn because(what: impl std::fmt::Display, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn refused(words: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words.into())
}

async fn send(path: PathBuf, addr: &str) -> io::Result<()> {
    let mut stream =
        patiently(&format!("connecting to {addr}"), SmcStream::connect_with(addr, &Config::from_env()))
            .await?;
    let mut greeting = [0; GREETING.len()];
    patiently("the receiver's greeting", stream.read_exact(&mut greeting)).await?;
    if greeting != *GREETING {
        return Err(refused(format!("{addr} is not a filecopy receiver of this version")));
    }
    let start = Instant::now();
    let (chunks, from_disk) = mpsc::channel(AHEAD);
    let disk = tokio::task::spawn_blocking(move || tree::pack(&path, ChunkWriter::new(chunks)));

    let confirmed = deliver(from_disk, &mut stream).await;
    let time = start.elapsed();
    let runs_on = runs_on(&stream);
    drop(stream);
    // When the connection failed the disk thread only noticed that nobody wants its chunks.
    let confirmed = confirmed?;
    let summary = disk.await.map_err(io::Error::other)??;
    if confirmed != summary.encode() {
        return Err(refused("the receiver has confirmed something else than what was sent"));
    }
    writeln!(io::stdout().lock(), "{} by the receiver", summary.words("sent", time, &runs_on))
}

/// Sends the chunks and waits for the receiver's confirmation.
async fn deliver(from_disk: mpsc::Receiver<Chunk>, stream: &mut SmcStream) -> io::Result<Vec<u8>> {
    let (mut reader, mut writer) = stream.split();
    // The receiver may refuse at any time, also while this side is still writing.
    let mut verdict = std::pin::pin!(read_verdict(&mut reader));
    let sent = tokio::select! {
        early = &mut verdict => return early.map_err(|error| because("the receiver", error)),
        sent = forward(from_disk, &mut writer) => sent,
    };
    match sent {
        Ok(true) => patiently("the receiver's confirmation", verdict).await,
        // The disk thread has ended with an error, which counts.
        Ok(false) => Ok(Vec::new()),
        // A write that failed may have its cause at the other end, which said it before.
        Err(error) => match tokio::time::timeout(Duration::from_secs(1), verdict).await {
            Ok(Err(word)) if word.kind() == io::ErrorKind::InvalidData => Err(word),
            _ => Err(error),
        },
    }
}

/// Writes the chunks as they come; false when the disk thread ended without the last one.
async fn forward<W: AsyncWrite + Unpin>(
    mut chunks: mpsc::Receiver<Chunk>,
    writer: &mut W,
) -> io::Result<bool> {
    while let Some(chunk) = chunks.recv().await {
        match chunk {
            Chunk::Bytes(bytes) => patiently("sending", writer.write_all(&bytes)).await?,
            Chunk::Last => {
                patiently("sending", writer.shutdown()).await?;
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The receiver's last word: an encoded summary, or why it refused.
async fn read_verdict<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<Vec<u8>> {
    let sound = reader.read_u8().await? == 1;
    let length = reader.read_u32_le().await? as usize;
    if length > LONGEST_VERDICT {
        return Err(refused("an impossible answer of the receiver"));
    }
    let mut words = vec![0; length];
    reader.read_exact(&mut words).await?;
    if sound {
        Ok(words)
    } else {
        Err(refused(format!("refused by the other end: {}", String::from_utf8_lossy(&words))))
    }
}

async fn receive(dir: &Path, addr: &str) -> io::Result<()> {
    fs::create_dir_all(dir).map_err(|error| because(dir.display(), error))?;
    let listener =
        SmcListener::bind_with(addr, &Config::from_env()).await.map_err(|error| because(addr, error))?;
    writeln!(io::stdout().lock(), "receiving into {} at {}", dir.display(), listener.local_addr()?)?;
    let (mut stream, peer) = listener.accept().await?;
    let start = Instant::now();
    patiently("greeting the sender", stream.write_all(GREETING)).await?;

    let (to_disk, chunks) = mpsc::channel(AHEAD);
    let dir = dir.to_owned();
    let disk = tokio::task::spawn_blocking(move || tree::unpack(&dir, &mut ChunkReader::new(chunks)));
    let arrived = collect(&mut stream, to_disk).await;
    let unpacked = disk.await.map_err(io::Error::other)?;
    let outcome = arrived.and(unpacked);
    let time = start.elapsed();
    let runs_on = runs_on(&stream);

    let (sound, words) = match &outcome {
        Ok(summary) => (1, summary.encode()),
        Err(error) => (0, error.to_string().into_bytes()),
    };
    let words = &words[..words.len().min(LONGEST_VERDICT)];
    let mut verdict = vec![sound];
    verdict.extend_from_slice(&(words.len() as u32).to_le_bytes());
    verdict.extend_from_slice(words);
    let told = async {
        stream.write_all(&verdict).await?;
        stream.shutdown().await?;
        // What is still on its way would turn the close into a reset and take the verdict with it.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    let told = patiently("answering the sender", told).await;
    let summary = outcome?;
    told?;
    writeln!(io::stdout().lock(), "{} from {peer}", summary.words("received", time, &runs_on))
}

/// Hands everything that arrives to the disk thread, until the end of the stream or until the
/// thread has failed.
async fn collect<R: AsyncRead + Unpin>(stream: &mut R, to_disk: mpsc::Sender<Chunk>) -> io::Result<()> {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let received = tokio::select! {
            () = to_disk.closed() => return Ok(()),
            received = patiently("receiving", stream.read_buf(&mut chunk)) => received?,
        };
        let chunk = if received == 0 { Chunk::Last } else { Chunk::Bytes(chunk) };
        if to_disk.send(chunk).await.is_err() || received == 0 {
            return Ok(());
        }
    }
}
