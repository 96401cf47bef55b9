//! What reading in place gains: a proxy that copies once instead of twice, and a codec that takes
//! out of the stream only what it wants. Each beside the usual way, in turns, with the processor
//! time of the process in question.
//!
//! ```text
//! cargo run --release --example in_place
//! cargo run --release --example in_place -- --rounds 9 --mib 2048
//! ```

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use clap::{Parser, Subcommand};
use futures::StreamExt as _;
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::{Config, SmcListener, SmcStream, UpgradePolicy};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

/// What a proxy reads and writes at once.
const PIECE: usize = 64 << 10;
/// Bytes of a frame.
const FRAME: usize = 16 << 10;
/// Of the frames, one in so many is wanted by who wants some.
const ONE_IN: usize = 8;

/// Compares reading in place with reading into a buffer.
#[derive(Parser)]
#[command(name = "in_place", version)]
struct Cli {
    /// Measurements of each way; the table has their medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// MiB that each of them moves.
    #[arg(long, default_value_t = 512)]
    mib: usize,
    #[command(subcommand)]
    role: Option<Role>,
}

/// The other processes, which this one starts.
#[derive(Subcommand)]
enum Role {
    /// Sends to everybody who connects: frames of so many bytes behind their length.
    #[command(hide = true)]
    Source { mib: usize, frame: usize },
    /// Reads what comes.
    #[command(hide = true)]
    Sink,
}

/// What is done with the bytes, and in which way.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// A proxy with a buffer.
    Copied,
    /// A proxy that writes from where the bytes lie.
    Shared,
    /// tokio-util's codec; one frame in so many is used.
    Codec { one_in: usize },
    /// The same frames, parsed where they lie; those that are not used are not copied.
    InPlace { one_in: usize },
}

/// A process that listens, until this is dropped or this process ends.
struct Peer {
    child: Child,
    addr: SocketAddr,
}

impl Peer {
    fn start(arguments: &[String]) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let addr = line.trim().parse().map_err(|_| io::Error::other("a peer has not begun"))?;
        Ok(Peer { child, addr })
    }

    async fn connect(&self) -> io::Result<SmcStream> {
        let config = Config::from_env().upgrade_policy(UpgradePolicy::Require);
        SmcStream::connect_with(self.addr, &config).await
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn listen() -> io::Result<SmcListener> {
    std::thread::spawn(|| {
        // Nothing is sent: its end is that of whoever has started this.
        let _ = io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let listener = SmcListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    Ok(listener)
}

/// Sends frames until there were so many bytes.
async fn source(mib: usize, frame: usize) -> io::Result<()> {
    let listener = listen().await?;
    let length = u32::try_from(frame).map_err(io::Error::other)?;
    let mut piece = Vec::new();
    while piece.len() < PIECE {
        piece.extend_from_slice(&length.to_be_bytes());
        piece.resize(piece.len() + frame, b'.');
    }
    loop {
        let (mut stream, _) = listener.accept().await?;
        for _ in 0..(mib << 20) / piece.len() {
            stream.write_all(&piece).await?;
        }
        stream.shutdown().await?;
        // It has all of it when it goes.
        let _ = stream.read(&mut [0]).await;
    }
}

async fn sink() -> io::Result<()> {
    let listener = listen().await?;
    let mut buffer = vec![0; PIECE];
    loop {
        let (mut stream, _) = listener.accept().await?;
        while stream.read(&mut buffer).await? > 0 {}
    }
}

/// What `way` did: bytes.
async fn play(way: Way, from: &mut SmcStream, to: Option<&mut SmcStream>) -> io::Result<usize> {
    match (way, to) {
        (Way::Copied, Some(to)) => copied(from, to).await,
        (Way::Shared, Some(to)) => shared(from, to).await,
        (Way::Codec { one_in }, _) => codec(from, one_in).await,
        (Way::InPlace { one_in }, _) => in_place(from, one_in).await,
        (Way::Copied | Way::Shared, None) => Err(io::Error::other("a proxy without a target")),
    }
}

async fn copied(from: &mut SmcStream, to: &mut SmcStream) -> io::Result<usize> {
    let (mut buffer, mut total) = (vec![0; PIECE], 0);
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(total);
        }
        to.write_all(&buffer[..length]).await?;
        total += length;
    }
}

async fn shared(from: &mut SmcStream, to: &mut SmcStream) -> io::Result<usize> {
    let mut total = 0;
    loop {
        let mut bytes = from.fill_buf().await?;
        if bytes.is_empty() {
            return Ok(total);
        }
        let written = to.write_shared(&bytes).await?;
        bytes.consume(written)?;
        total += written;
    }
}

/// Uses a frame: whatever is done with one, both ways do it.
fn use_frame(frame: &[u8]) {
    std::hint::black_box(frame);
}

async fn codec(from: &mut SmcStream, one_in: usize) -> io::Result<usize> {
    let (mut frames, mut number, mut total) = (FramedRead::new(from, LengthDelimitedCodec::new()), 0, 0);
    while let Some(frame) = frames.next().await {
        let frame: BytesMut = frame?;
        if number % one_in == 0 {
            use_frame(&frame);
        }
        number += 1;
        total += 4 + frame.len();
    }
    Ok(total)
}

async fn in_place(from: &mut SmcStream, one_in: usize) -> io::Result<usize> {
    /// What LengthDelimitedCodec allows.
    const LARGEST: usize = 8 << 20;
    // What there is of the length that is next, and how much of its frame is still to come.
    let (mut length, mut have, mut left) = ([0; 4], 0, 0);
    let (mut frame, mut number, mut total) = (Vec::new(), 0, 0);
    loop {
        let mut bytes = from.fill_buf().await?;
        if bytes.is_empty() {
            return Ok(total);
        }
        let mut at = 0;
        while at < bytes.len() {
            let wanted = number % one_in == 0;
            if have < 4 {
                let count = (4 - have).min(bytes.len() - at);
                // A copy is checked and used, not what the peer could change in between.
                bytes.copy_to(at, &mut length[have..have + count]);
                (at, have) = (at + count, have + count);
                if have == 4 {
                    left = u32::from_be_bytes(length) as usize;
                    if left > LARGEST {
                        return Err(io::Error::other("a frame that is too large"));
                    }
                    if wanted {
                        frame.clear();
                        frame.reserve(left);
                    }
                }
            } else {
                let count = left.min(bytes.len() - at);
                if wanted {
                    bytes.put_into(at..at + count, &mut frame);
                }
                (at, left) = (at + count, left - count);
            }
            if have == 4 && left == 0 {
                if wanted {
                    use_frame(&frame);
                }
                (have, number) = (0, number + 1);
            }
        }
        bytes.consume(at)?;
        total += at;
    }
}

/// Processor time that this process has taken.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What a measurement came to.
struct Measured {
    gib_per_s: f64,
    cpu_us_per_mib: f64,
}

async fn measure(way: Way, source: &Peer, sink: Option<&Peer>) -> io::Result<Measured> {
    let mut from = source.connect().await?;
    let mut to = match sink {
        Some(sink) => Some(sink.connect().await?),
        None => None,
    };
    let (began, cpu_before) = (Instant::now(), cpu());
    let total = play(way, &mut from, to.as_mut()).await?;
    if let Some(to) = to.as_mut() {
        to.shutdown().await?;
        // The sink closes when it has read everything.
        let _ = to.read(&mut [0]).await;
    }
    let (wall, cpu) = (began.elapsed().as_secs_f64(), (cpu() - cpu_before).as_secs_f64());
    let total = total as f64;
    Ok(Measured {
        gib_per_s: total / wall / f64::from(1 << 30),
        cpu_us_per_mib: cpu * 1e6 / (total / f64::from(1 << 20)),
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

async fn compare(cli: &Cli) -> io::Result<()> {
    let ways = [
        ("proxy, read and write_all", Way::Copied),
        ("proxy, fill_buf and write_shared", Way::Shared),
        ("codec, every frame", Way::Codec { one_in: 1 }),
        ("in place, every frame", Way::InPlace { one_in: 1 }),
        ("codec, one frame in 8", Way::Codec { one_in: ONE_IN }),
        ("in place, one frame in 8", Way::InPlace { one_in: ONE_IN }),
    ];
    let source = Peer::start(&["source".into(), cli.mib.to_string(), FRAME.to_string()])?;
    let sink = Peer::start(&["sink".into()])?;
    let mut found = ways.map(|_| Vec::new());
    // The first round brings the memory of the rings.
    for round in 0..=cli.rounds {
        for ((_, way), found) in ways.iter().zip(&mut found) {
            let sink = matches!(way, Way::Copied | Way::Shared).then_some(&sink);
            let measured = measure(*way, &source, sink).await?;
            if round > 0 {
                found.push(measured);
            }
        }
    }
    println!(
        "{:<34} {:>8} {:>16}",
        format!("medians of {}, in turns", cli.rounds),
        "GiB/s",
        "CPU µs per MiB"
    );
    for ((name, _), found) in ways.iter().zip(&found) {
        let rate = median(found.iter().map(|measured| measured.gib_per_s).collect());
        let cost = median(found.iter().map(|measured| measured.cpu_us_per_mib).collect());
        println!("{name:<34} {rate:>8.2} {cost:>16.0}");
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.role {
        Some(Role::Source { mib, frame }) => source(*mib, *frame).await,
        Some(Role::Sink) => sink().await,
        None => compare(&cli).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("in_place: {error}");
            ExitCode::FAILURE
        }
    }
}
