//! A TCP proxy: plain TCP in, SMC out, so that a program that knows nothing of SMC reaches a server
//! that does; or the other way round.
//!
//! ```text
//! cargo run --release --example proxy -- 127.0.0.1:7100 127.0.0.1:7000             # TCP in, SMC out
//! cargo run --release --example proxy -- 127.0.0.1:7100 127.0.0.1:7000 --reverse   # SMC in, TCP out
//! ```
//!
//! A line per connection says at its end how many bytes went each way, and over what.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_smc::{Counters, SmcListener, SmcStream, Transport};

const PIECE: usize = 64 << 10;
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Forwards connections: plain TCP in and SMC out, or the other way round.
#[derive(Parser)]
#[command(name = "proxy", version)]
struct Cli {
    /// Where to listen, as 127.0.0.1:7100; port 0 takes a free one.
    listen: String,
    /// Where to connect to, for every connection that comes in.
    target: String,
    /// SMC in and plain TCP out.
    #[arg(long)]
    reverse: bool,
    /// Seconds that open connections have to finish after Ctrl-C or SIGTERM.
    #[arg(long, default_value_t = 5)]
    grace: u64,
}

/// The side that clients come in on.
enum Listener {
    Tcp(TcpListener),
    Smc(SmcListener),
}

/// A connection that came in.
enum Incoming {
    Tcp(TcpStream),
    Smc(SmcStream),
}

impl Listener {
    async fn bind(cli: &Cli) -> io::Result<Self> {
        Ok(if cli.reverse {
            Listener::Smc(SmcListener::bind(&cli.listen).await?)
        } else {
            Listener::Tcp(TcpListener::bind(&cli.listen).await?)
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr(),
            Listener::Smc(listener) => listener.local_addr(),
        }
    }

    async fn accept(&self) -> io::Result<(Incoming, SocketAddr)> {
        Ok(match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                (Incoming::Tcp(stream), peer)
            }
            Listener::Smc(listener) => {
                let (stream, peer) = listener.accept().await?;
                (Incoming::Smc(stream), peer)
            }
        })
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxy: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> io::Result<()> {
    let listener =
        Listener::bind(&cli).await.map_err(|error| because(format!("listening on {}", cli.listen), error))?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (inside, outside) = if cli.reverse { ("smc", "tcp") } else { ("tcp", "smc") };
    println!("{inside} at {} -> {outside} to {} (Ctrl-C ends it)", listener.local_addr()?, cli.target);
    let mut connections = JoinSet::new();
    let (close, closed) = watch::channel(());
    let mut count = 0_u64;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((incoming, peer)) => {
                    count += 1;
                    let cut = cut_off(closed.clone(), Duration::from_secs(cli.grace));
                    connections.spawn(forward(count, incoming, peer, cli.target.clone(), cut));
                }
                Err(error) => {
                    eprintln!("proxy: accept: {error}");
                    // Most likely there is no file descriptor left: wait until one is given back.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    drop((listener, close));
    while connections.join_next().await.is_some() {}
    println!("ended: {count} connections");
    Ok(())
}

/// Returns when a connection has to end although it is open.
async fn cut_off(mut closed: watch::Receiver<()>, grace: Duration) {
    // Nothing is ever sent: an error means that the sender is gone.
    let _ = closed.changed().await;
    tokio::time::sleep(grace).await;
}

fn because(what: impl std::fmt::Display, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// One connection from its beginning to its end, or until it is cut.
async fn forward(
    number: u64,
    incoming: Incoming,
    peer: SocketAddr,
    target: String,
    cut: impl Future<Output = ()>,
) {
    let start = Instant::now();
    let story = match incoming {
        Incoming::Tcp(client) => tcp_to_smc(client, &target, cut).await,
        Incoming::Smc(client) => smc_to_tcp(client, &target, cut).await,
    };
    let seconds = start.elapsed().as_secs_f64();
    match story {
        // Standard output may have been closed.
        Ok(story) => _ = writeln!(io::stdout().lock(), "#{number} {peer}: {story}, {seconds:.3} s"),
        Err(error) => eprintln!("proxy: #{number} {peer}: {error}"),
    }
}

/// Copies both ways; on an error, too, the streams are still there to be asked.
async fn copy<A, B>(a: &mut A, b: &mut B, cut: impl Future<Output = ()>) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    tokio::select! {
        copied = copy_bidirectional_with_sizes(a, b, PIECE, PIECE) => copied.map(drop),
        () = cut => Err(io::Error::other("cut off at the end of the proxy")),
    }
}

async fn connected<S>(target: &str, connecting: impl Future<Output = io::Result<S>>) -> io::Result<S> {
    let outcome =
        timeout(CONNECT_PATIENCE, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    outcome.map_err(|error| because(format!("connecting to {target}"), error))
}

async fn tcp_to_smc(
    mut client: TcpStream,
    target: &str,
    cut: impl Future<Output = ()>,
) -> io::Result<String> {
    let mut server = connected(target, SmcStream::connect(target)).await?;
    // The proxy adds no delay of its own.
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let outcome = copy(&mut client, &mut server, cut).await;
    Ok(story(&server, "out", "back", outcome))
}

async fn smc_to_tcp(
    mut client: SmcStream,
    target: &str,
    cut: impl Future<Output = ()>,
) -> io::Result<String> {
    let mut server = connected(target, TcpStream::connect(target)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let outcome = copy(&mut client, &mut server, cut).await;
    Ok(story(&client, "back", "out", outcome))
}

/// What the SMC side of a connection has counted, which is known after an error, too.
fn story(smc: &SmcStream, written: &str, read: &str, outcome: io::Result<()>) -> String {
    let Counters { tcp_bytes_read, tcp_bytes_written, ism_bytes_read, ism_bytes_written, .. } =
        smc.counters();
    let bytes = |tcp: u64, ism: u64| match (tcp, ism) {
        (tcp, 0) => format!("{tcp} bytes (all over tcp)"),
        (tcp, ism) => format!("{} bytes ({tcp} over tcp, {ism} over loopback-ism)", tcp + ism),
    };
    let mut directions = [
        (written, bytes(tcp_bytes_written, ism_bytes_written)),
        (read, bytes(tcp_bytes_read, ism_bytes_read)),
    ];
    directions.sort_by_key(|(direction, _)| *direction != "out");
    let runs_on = match smc.transport() {
        transport @ Transport::Tcp(reason) => format!("{transport} ({reason})"),
        transport => transport.to_string(),
    };
    let end = outcome.err().map(|error| format!(", broken: {error}")).unwrap_or_default();
    let [(first, there), (second, back)] = directions;
    format!("smc side on {runs_on}, {first} {there}, {second} {back}{end}")
}
