//! GET and SET through the `redis` crate: TCP and SMC in turns, in one run, against one server.

use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::Args;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio_smc::{SmcStream, TransportWatch};

use crate::demo::{client, lost, unreachable};
use crate::{Outcome, resp};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Args)]
pub(crate) struct Options {
    /// Where `kv serve` listens; without it the bench starts a server process of its own.
    addr: Option<String>,
    /// How many connections; every number is a row of the table.
    #[arg(long, value_delimiter = ',', default_value = "1,50,200",
          value_parser = clap::value_parser!(u16).range(1..))]
    connections: Vec<u16>,
    /// Bytes of a value.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(..=(resp::LARGEST_ARGUMENT as i64)))]
    size: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// How often each measurement is made; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Commands that are sent together.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pipeline: u16,
}

fn seconds(word: &str) -> Result<f64, String> {
    word.parse().ok().filter(|value| (0.01..=3600.0).contains(value)).ok_or("from 0.01 to 3600".into())
}

/// Ends this process when whoever started it is gone.
pub(crate) fn end_with_standard_input() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
}

async fn own_server() -> Outcome<(Child, String)> {
    let mut server = Command::new(std::env::current_exe()?)
        .args(["serve", "127.0.0.1:0", "--tethered"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut line = String::new();
    let stdout = server.stdout.take().ok_or("the server has no standard output")?;
    BufReader::new(stdout).read_line(&mut line).await?;
    let addr = line.split(' ').nth(2).ok_or("the server process did not start")?;
    Ok((server, addr.to_owned()))
}

/// The connections of one transport, in use for a whole row.
struct Side {
    connections: Vec<MultiplexedConnection>,
    watches: Vec<TransportWatch>,
}

impl Side {
    async fn open(addr: &str, count: u16, smc: bool) -> Outcome<Self> {
        let mut side = Side { connections: Vec::new(), watches: Vec::new() };
        for _ in 0..count {
            side.connections.push(if smc {
                let stream = SmcStream::connect(addr).await.map_err(|error| unreachable(addr, error))?;
                stream.set_nodelay(true)?;
                side.watches.push(stream.watch());
                client(stream).await?
            } else {
                let stream = TcpStream::connect(addr).await.map_err(|error| unreachable(addr, error))?;
                stream.set_nodelay(true)?;
                client(stream).await?
            });
        }
        Ok(side)
    }

    /// Makes turns until every connection has moved to shared memory or is known to stay on TCP.
    async fn settle(&mut self) -> Outcome<()> {
        for (connection, watch) in self.connections.iter_mut().zip(&mut self.watches) {
            let turns = async {
                loop {
                    redis::cmd("PING").query_async::<()>(connection).await.map_err(lost)?;
                    if tokio::time::timeout(Duration::from_millis(1), watch.settled()).await.is_ok() {
                        return Ok::<(), String>(());
                    }
                }
            };
            tokio::time::timeout(PATIENCE, turns)
                .await
                .map_err(|_| "a connection did not settle in time")??;
        }
        Ok(())
    }

    /// What its connections run on.
    fn runs_on(&self) -> String {
        let total = self.watches.len();
        let moved = self.watches.iter().filter(|watch| watch.transport().is_loopback_ism()).count();
        let stays = self.watches.iter().find_map(|watch| watch.transport().fallback_reason());
        match stays {
            None => "loopback-ism".to_owned(),
            Some(reason) => format!("{moved} of {total} on loopback-ism, tcp: {reason}"),
        }
    }

    async fn measure(&self, test: &Test, time: Duration) -> Outcome<Figures> {
        let mut workers = JoinSet::new();
        let start = Instant::now();
        for (index, connection) in self.connections.iter().enumerate() {
            workers.spawn(work(connection.clone(), test.commands(index), start + time));
        }
        let mut latencies = Vec::new();
        while let Some(worker) = workers.join_next().await {
            latencies.append(&mut worker??);
        }
        let elapsed = start.elapsed().as_secs_f64();
        latencies.sort_unstable();
        let last = latencies.len().checked_sub(1).ok_or("no answer within the time of a measurement")?;
        let percentile = |share: f64| f64::from(latencies[((last as f64 * share) as usize).min(last)]);
        Ok(Figures {
            rate: latencies.len() as f64 * f64::from(test.pipeline) / elapsed,
            p50: percentile(0.5),
            p99: percentile(0.99),
        })
    }
}

struct Test {
    name: &'static str,
    size: usize,
    pipeline: u16,
}

/// What one worker sends again and again, a command alone or a pipeline, and what it expects for
/// each command: a value of so many bytes, or OK.
enum Commands {
    One(Cmd, Option<usize>),
    Many(redis::Pipeline, Option<usize>, usize),
}

fn is_right(answer: &Value, expected: Option<usize>) -> bool {
    match (answer, expected) {
        (Value::Okay, None) => true,
        (Value::BulkString(bytes), Some(length)) => bytes.len() == length,
        _ => false,
    }
}

impl Test {
    fn commands(&self, index: usize) -> Commands {
        let mut command = redis::cmd(self.name);
        command.arg(format!("bench:{index}"));
        let expected = if self.name == "SET" {
            command.arg(vec![b'x'; self.size]);
            None
        } else {
            Some(self.size)
        };
        if self.pipeline == 1 {
            return Commands::One(command, expected);
        }
        let mut pipeline = redis::pipe();
        for _ in 0..self.pipeline {
            pipeline.add_command(command.clone());
        }
        Commands::Many(pipeline, expected, self.pipeline.into())
    }
}

/// Nanoseconds of each turn, until `end`; every answer is looked at.
async fn work(mut connection: MultiplexedConnection, commands: Commands, end: Instant) -> Outcome<Vec<u32>> {
    let mut latencies = Vec::with_capacity(1 << 14);
    loop {
        let begin = Instant::now();
        if begin >= end {
            return Ok(latencies);
        }
        let right = match &commands {
            Commands::One(command, expected) => {
                is_right(&command.query_async(&mut connection).await.map_err(lost)?, *expected)
            }
            Commands::Many(pipeline, expected, count) => {
                let answers: Vec<Value> = pipeline.query_async(&mut connection).await.map_err(lost)?;
                answers.len() == *count && answers.iter().all(|answer| is_right(answer, *expected))
            }
        };
        if !right {
            return Err("an answer of the server is wrong".into());
        }
        latencies.push(u32::try_from(begin.elapsed().as_nanos()).unwrap_or(u32::MAX));
    }
}

#[derive(Clone, Copy, Default)]
struct Figures {
    /// Commands per second.
    rate: f64,
    p50: f64,
    p99: f64,
}

fn median(figures: &[Figures]) -> Figures {
    let of = |pick: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = figures.iter().map(pick).collect();
        values.sort_unstable_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Figures { rate: of(|one| one.rate), p50: of(|one| one.p50), p99: of(|one| one.p99) }
}

pub(crate) async fn bench(options: &Options) -> Outcome<()> {
    let (_server, addr) = match &options.addr {
        Some(addr) => (None, addr.clone()),
        None => own_server().await.map(|(server, addr)| (Some(server), addr))?,
    };
    println!(
        "redis crate against {addr}: values of {} bytes, pipelines of {}, medians of {} rounds of {} s, tcp and smc in turns",
        options.size, options.pipeline, options.rounds, options.seconds
    );
    println!(
        "{:>4} {:>5}  {:>10} {:>10} {:>6}  {:>9} {:>9}  {:>9} {:>9}  smc ran on",
        "test", "conns", "tcp op/s", "smc op/s", "ratio", "tcp p50", "smc p50", "tcp p99", "smc p99"
    );
    let time = Duration::from_secs_f64(options.seconds);
    for &count in &options.connections {
        let tcp = Side::open(&addr, count, false).await?;
        let mut smc = Side::open(&addr, count, true).await?;
        smc.settle().await?;
        for name in ["SET", "GET"] {
            let test = Test { name, size: options.size as usize, pipeline: options.pipeline };
            let (mut of_tcp, mut of_smc) = (Vec::new(), Vec::new());
            for _ in 0..options.rounds {
                of_tcp.push(tcp.measure(&test, time).await?);
                of_smc.push(smc.measure(&test, time).await?);
            }
            let (tcp, on_smc) = (median(&of_tcp), median(&of_smc));
            let microseconds = |nanoseconds: f64| format!("{:.1} µs", nanoseconds / 1000.0);
            println!(
                "{name:>4} {count:>5}  {:>10.0} {:>10.0} {:>5.2}×  {:>9} {:>9}  {:>9} {:>9}  {}",
                tcp.rate,
                on_smc.rate,
                on_smc.rate / tcp.rate,
                microseconds(tcp.p50),
                microseconds(on_smc.p50),
                microseconds(tcp.p99),
                microseconds(on_smc.p99),
                smc.runs_on(),
            );
        }
    }
    Ok(())
}
