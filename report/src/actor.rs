//! Processes of this program that do what no test of smcperf does: many clients of one server at
//! once, the price of an upgrade, connections that only exist.
//!
//! A client is told by a line of its standard input and answers with one of JSON; the server
//! answers whoever connects. Both end with their standard input.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_smc::{SmcListener, SmcStream};

/// Bytes of a message.
pub(crate) const MESSAGE: usize = 100;

/// How long a client may take beside what it is told to measure.
const SLACK: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Way {
    Tcp,
    Uds,
    Smc,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Tcp, Self::Uds, Self::Smc];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Uds => "uds",
            Self::Smc => "smc",
        }
    }
}

pub(crate) trait Both: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Both for S {}

pub(crate) type Stream = Box<dyn Both>;

// ---- the process that measures ----

/// Another process of this program, which ends when its handle does.
struct Process {
    child: Child,
    words: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Process {
    fn start(arguments: &[&str]) -> Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting a process of this program ({})", arguments.join(" ")))?;
        let words = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("a process without standard output")?);
        Ok(Self { child, words, answers })
    }

    fn say(&mut self, words: &str) -> Result<()> {
        let pipe = self.words.as_mut().context("a process without standard input")?;
        writeln!(pipe, "{words}").context("telling a process what to do: it has ended")
    }

    fn hear(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.answers.read_line(&mut line).context("listening to a process")? == 0 {
            let status = self.child.wait().context("waiting for a process")?;
            bail!("a process of the report ended without an answer ({status}); what it said is above");
        }
        let answer: Value =
            serde_json::from_str(&line).with_context(|| format!("a process answered {}", line.trim_end()))?;
        match answer["error"].as_str() {
            Some(error) => bail!("a process of the report says: {error}"),
            None => Ok(answer),
        }
    }

    fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.words.take());
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server, and clients of it.
pub(crate) struct Crowd {
    way: Way,
    addr: String,
    server: Process,
    clients: Vec<Process>,
}

impl Crowd {
    pub(crate) fn start(way: Way) -> Result<Self> {
        let mut server = Process::start(&["serve", way.word()])?;
        let hello = server.hear()?;
        let addr = hello["addr"].as_str().context("a server that names no address")?.to_owned();
        Ok(Self { way, addr, server, clients: Vec::new() })
    }

    pub(crate) fn add_client(&mut self) -> Result<()> {
        let mut client = Process::start(&["hold", self.way.word(), &self.addr])?;
        client.hear()?;
        self.clients.push(client);
        Ok(())
    }

    pub(crate) fn drop_clients(&mut self) {
        self.clients.clear();
    }

    /// Has all clients do the same at the same time.
    pub(crate) fn all(&mut self, words: &str) -> Result<Vec<Value>> {
        self.clients.iter_mut().try_for_each(|client| client.say(words))?;
        self.clients.iter_mut().map(Process::hear).collect()
    }

    /// CPU time of all processes so far, in seconds.
    pub(crate) fn cpu(&self) -> Result<f64> {
        self.ids().map(cpu_of).sum()
    }

    /// Memory of all processes in KiB, what they share counted once.
    pub(crate) fn memory(&self) -> Result<f64> {
        self.ids().map(memory_of).sum()
    }

    fn ids(&self) -> impl Iterator<Item = u32> {
        std::iter::once(&self.server).chain(&self.clients).map(Process::id)
    }
}

/// User and system time of a process, in seconds.
fn cpu_of(id: u32) -> Result<f64> {
    let mut nanos = 0;
    let tasks = std::fs::read_dir(format!("/proc/{id}/task"));
    for task in tasks.with_context(|| format!("the threads of process {id}"))? {
        let path = task.context("a thread")?.path().join("schedstat");
        // A thread may end meanwhile.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        nanos += text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(nanos as f64 / 1e9)
}

/// What is shared counts in parts in each process that shares it.
fn memory_of(id: u32) -> Result<f64> {
    let path = format!("/proc/{id}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    kib(&text, "Pss").with_context(|| format!("{path} has no Pss"))
}

/// The figure of a line `NAME: 123 kB`.
pub(crate) fn kib(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

// ---- the measured ones ----

pub(crate) fn serve(way: Way) -> Result<()> {
    end_with_standard_input();
    runtime()?.block_on(async {
        match way {
            Way::Tcp => {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                say(&json!({ "addr": listener.local_addr()?.to_string() }))?;
                loop {
                    let (stream, _) = listener.accept().await?;
                    stream.set_nodelay(true)?;
                    tokio::spawn(echo(stream));
                }
            }
            Way::Uds => {
                let name = format!("smc-report-{}", std::process::id());
                let listener = UnixListener::bind(format!("\0{name}"))?;
                say(&json!({ "addr": name }))?;
                loop {
                    tokio::spawn(echo(listener.accept().await?.0));
                }
            }
            Way::Smc => {
                let listener = SmcListener::bind("127.0.0.1:0").await?;
                say(&json!({ "addr": listener.local_addr()?.to_string() }))?;
                loop {
                    let (stream, _) = listener.accept().await?;
                    stream.set_nodelay(true)?;
                    tokio::spawn(echo(stream));
                }
            }
        }
    })
}

fn end_with_standard_input() {
    std::thread::spawn(|| {
        let mut line = String::new();
        while matches!(std::io::stdin().lock().read_line(&mut line), Ok(1..)) {
            line.clear();
        }
        std::process::exit(0);
    });
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")
}

fn say(answer: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{answer}").and_then(|()| out.flush()).context("answering")
}

/// Sends back messages until the other end closes.
pub(crate) async fn echo(mut stream: impl Both) -> std::io::Result<()> {
    let mut message = [0; MESSAGE];
    loop {
        stream.read_exact(&mut message).await?;
        stream.write_all(&message).await?;
    }
}

async fn connect(way: Way, addr: &str, upgrade: bool) -> Result<(Stream, Duration)> {
    Ok(match way {
        Way::Tcp => {
            let stream = TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            (Box::new(stream), Duration::ZERO)
        }
        Way::Uds => (Box::new(UnixStream::connect(format!("\0{addr}")).await?), Duration::ZERO),
        Way::Smc => {
            let stream = SmcStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            let mut took = Duration::ZERO;
            if upgrade {
                let began = Instant::now();
                let transport = stream.upgrade().await;
                took = began.elapsed();
                if !transport.is_loopback_ism() {
                    bail!("a connection was not upgraded: {:?}", transport.fallback_reason());
                }
            }
            (Box::new(stream), took)
        }
    })
}

pub(crate) fn hold(way: Way, addr: &str) -> Result<()> {
    let runtime = runtime()?;
    say(&json!({ "ready": true }))?;
    let mut streams = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.context("hearing what to do")?;
        let done = runtime.block_on(obey(way, addr, &mut streams, &line));
        say(&done.unwrap_or_else(|error| json!({ "error": format!("{line}: {error:#}") })))?;
    }
    Ok(())
}

async fn obey(way: Way, addr: &str, streams: &mut Vec<Stream>, line: &str) -> Result<Value> {
    let (word, number) = line.split_once(' ').context("a word and a number are wanted")?;
    let number: f64 = number.parse().context("no number")?;
    let limit = SLACK + Duration::from_secs_f64(number.min(1e4));
    let doing = async {
        match word {
            "open" => open(way, addr, streams, number as usize).await,
            "ping" => ping(streams, Duration::from_secs_f64(number)).await,
            "connect" => connects(way, addr, number as usize, false).await,
            "upgrade" => connects(way, addr, number as usize, true).await,
            "storm" => storm(addr, number as usize).await,
            _ => bail!("no such word"),
        }
    };
    tokio::time::timeout(limit, doing).await.context("it hangs")?
}

/// More connections, upgraded where they can be; each has made a round trip.
async fn open(way: Way, addr: &str, streams: &mut Vec<Stream>, count: usize) -> Result<Value> {
    for number in 1..=count {
        let opened = async {
            let (mut stream, _) = connect(way, addr, true).await?;
            trip(&mut stream, 0).await?;
            Ok::<_, anyhow::Error>(stream)
        };
        streams.push(opened.await.with_context(|| format!("connection {number} of {count}"))?);
    }
    Ok(json!({ "connections": streams.len() }))
}

/// Message `number` there and back.
async fn trip(stream: &mut (impl Both + ?Sized), number: u64) -> Result<()> {
    let mut message = [b'.'; MESSAGE];
    message[..8].copy_from_slice(&number.to_le_bytes());
    stream.write_all(&message).await?;
    let mut answer = [0; MESSAGE];
    stream.read_exact(&mut answer).await?;
    if answer == message { Ok(()) } else { bail!("a message came back changed") }
}

/// Round trips until `end`, one after the other; their times, of those that end from `begin` on.
pub(crate) async fn trips(
    stream: &mut (impl Both + ?Sized),
    begin: Instant,
    end: Instant,
) -> Result<Histogram<u64>> {
    let mut times = histogram()?;
    let (mut number, mut last) = (0, Instant::now());
    while last < end {
        trip(stream, number).await?;
        number += 1;
        let now = Instant::now();
        if now >= begin {
            times.saturating_record((now - last).as_nanos() as u64);
        }
        last = now;
    }
    Ok(times)
}

/// Round trips on all connections at the same time.
async fn ping(streams: &mut Vec<Stream>, time: Duration) -> Result<Value> {
    let mut playing = JoinSet::new();
    let begin = Instant::now() + time / 5;
    let end = begin + time;
    for mut stream in streams.drain(..) {
        playing.spawn(async move {
            let times = trips(&mut *stream, begin, end).await?;
            Ok::<_, anyhow::Error>((stream, times))
        });
    }
    let mut all = histogram()?;
    while let Some(played) = playing.join_next().await {
        let (stream, times) = played??;
        all.add(times)?;
        streams.push(stream);
    }
    let mut figures = percentiles(&all);
    figures["msgs_per_s"] = json!(all.len() as f64 / time.as_secs_f64());
    Ok(figures)
}

/// Connections one after the other: connect, upgrade or not, a round trip, close.
async fn connects(way: Way, addr: &str, count: usize, upgrade: bool) -> Result<Value> {
    let mut upgrades = histogram()?;
    let began = Instant::now();
    for number in 0..count {
        let (mut stream, took) = connect(way, addr, upgrade).await?;
        upgrades.saturating_record(took.as_nanos() as u64);
        trip(&mut stream, number as u64).await?;
    }
    let took = began.elapsed().as_secs_f64();
    let p50 = upgrades.value_at_quantile(0.5) as f64 / 1e3;
    Ok(json!({ "connects_per_s": count as f64 / took, "upgrade_us": upgrade.then_some(p50) }))
}

/// Upgrades of so many connections, all at the same time.
async fn storm(addr: &str, count: usize) -> Result<Value> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(SmcStream::connect(addr).await?);
    }
    let began = Instant::now();
    let mut upgrading = JoinSet::new();
    for stream in streams {
        upgrading.spawn(async move { (stream.upgrade().await, stream) });
    }
    let mut upgraded = 0;
    let mut last = began;
    let (mut held, mut why) = (Vec::new(), None);
    while let Some(joined) = upgrading.join_next().await {
        let (transport, stream) = joined?;
        if transport.is_loopback_ism() {
            (upgraded, last) = (upgraded + 1, Instant::now());
        } else {
            why = transport.fallback_reason().map(|reason| reason.to_string());
        }
        // A closed one would make room for others.
        held.push(stream);
    }
    let took = (last - began).as_secs_f64();
    let per_s = (upgraded > 0).then(|| f64::from(upgraded) / took);
    Ok(json!({ "upgrades_per_s": per_s, "left_on_tcp": count as u32 - upgraded, "why": why }))
}

fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).context("a histogram")
}

/// In microseconds.
pub(crate) fn percentiles(times: &Histogram<u64>) -> Value {
    let at = |quantile| (!times.is_empty()).then(|| times.value_at_quantile(quantile) as f64 / 1e3);
    json!({ "rtt_p50_us": at(0.5), "rtt_p99_us": at(0.99) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_proc_are_read_and_others_are_none() {
        let text = "Rss:    100 kB\nPss:                 42 kB\nPss_Dirty:  7 kB\nHugepages: 3\nBad: x kB\n";
        assert_eq!(kib(text, "Pss"), Some(42.0));
        assert_eq!(kib(text, "Pss_Dirty"), Some(7.0));
        for name in ["Hugepages", "Bad", "Nothing", ""] {
            assert_eq!(kib(text, name), None, "{name}");
        }
        let own = std::process::id();
        assert!(memory_of(own).unwrap() > 0.0 && cpu_of(own).is_ok());
        assert!(memory_of(u32::MAX).is_err() && cpu_of(u32::MAX).is_err());
    }

    #[test]
    fn a_client_says_what_it_does_not_understand() {
        let runtime = runtime().unwrap();
        for line in ["", "open", "open x", "dance 1", "connect 1"] {
            let mut streams = Vec::new();
            assert!(
                runtime.block_on(obey(Way::Uds, "nobody listens here", &mut streams, line)).is_err(),
                "{line}"
            );
        }
    }

    #[test]
    fn nothing_recorded_has_no_percentiles() {
        assert_eq!(percentiles(&histogram().unwrap()), json!({ "rtt_p50_us": null, "rtt_p99_us": null }));
    }
}
