//! What `tokio_smc::blocking` costs beside std's own sockets: `cargo run --release --example
//! blockingperf`.
//!
//! Each row has two processes of its own, a server and a client with one thread for the connection,
//! and the rows take turns in each round. Every echo is compared with what was sent; CPU time is
//! that of both processes, of all their threads.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand, ValueEnum};
use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio_smc::blocking::{SmcListener, SmcStream};
use tokio_smc::{Config, UpgradePolicy};

/// Bytes of a message; its first byte says what it is.
const MESSAGE: usize = 64;
const ECHO: u8 = 1;
/// Asks for the CPU time of the server's process.
const CPU: u8 = 2;
/// Blocks follow, up to one that begins with [`LAST`]; then the message comes back.
const BLOCKS: u8 = 3;
const BLOCK: usize = 64 << 10;
const LAST: u8 = 1;

/// Few enough that three rounds of all rows do not use up the local ports.
const CONNECTS: usize = 400;

#[derive(Parser)]
#[command(about = "Compares tokio_smc::blocking with std's own sockets, in two processes")]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
struct Options {
    /// Time of each measurement in each round, in seconds.
    #[arg(long, default_value_t = 0.5, value_name = "S")]
    seconds: f64,
    /// The rows take turns so often, and the figures are medians.
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: usize,
    /// Rows to measure, separated by commas [default: all].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ROW")]
    row: Vec<Row>,
    /// One JSON object per line, the medians of a row, instead of the table.
    #[arg(long)]
    json: bool,
}

/// What the processes of a row are started with.
#[derive(Subcommand)]
enum Part {
    #[command(hide = true)]
    Serve { row: Row },
    #[command(hide = true)]
    Run { row: Row, address: String, seconds: f64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Row {
    /// std's TcpStream.
    Std,
    /// std's UnixStream.
    Uds,
    /// blocking::SmcStream, upgraded.
    Smc,
    /// The same with `busy_poll` 0.
    NoLook,
    /// blocking::SmcStream on TCP, which may still be upgraded.
    Manual,
    /// blocking::SmcStream on TCP for good.
    Never,
}

impl Row {
    fn name(self) -> &'static str {
        match self {
            Row::Std => "std::net",
            Row::Uds => "unix socket",
            Row::Smc => "loopback-ism",
            Row::NoLook => "loopback-ism, busy_poll 0",
            Row::Manual => "on TCP, and may leave it",
            Row::Never => "on TCP for good (Never)",
        }
    }

    fn config(self) -> Config {
        match self {
            Row::NoLook => Config::from_env().busy_poll(Duration::ZERO),
            Row::Manual => Config::from_env().upgrade_policy(UpgradePolicy::Manual),
            Row::Never => Config::from_env().upgrade_policy(UpgradePolicy::Never),
            Row::Std | Row::Uds | Row::Smc => Config::from_env(),
        }
    }

    fn upgrades(self) -> bool {
        matches!(self, Row::Smc | Row::NoLook)
    }

    fn word(self) -> String {
        self.to_possible_value().expect("no row is hidden").get_name().to_owned()
    }
}

fn main() -> io::Result<()> {
    let Arguments { part, options } = Arguments::parse();
    match part {
        None => compare(&options),
        Some(Part::Serve { row }) => {
            end_with_standard_input();
            serve(row)
        }
        Some(Part::Run { row, address, seconds }) => {
            end_with_standard_input();
            run(row, &address, Duration::from_secs_f64(seconds))
        }
    }
}

// ---- both processes ----

trait Stream: Read + Write + Send + 'static {
    fn runs_on(&self) -> String;
}

impl Stream for TcpStream {
    fn runs_on(&self) -> String {
        "tcp".to_owned()
    }
}

impl Stream for UnixStream {
    fn runs_on(&self) -> String {
        "uds".to_owned()
    }
}

impl Stream for SmcStream {
    fn runs_on(&self) -> String {
        if self.transport().is_loopback_ism() { "loopback-ism".to_owned() } else { "tcp".to_owned() }
    }
}

/// CPU time of this process so far, in nanoseconds.
fn cpu_time() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Ends this process when the one that started it is done or gone.
fn end_with_standard_input() {
    thread::spawn(|| {
        let mut nothing = [0; 64];
        while matches!(io::stdin().lock().read(&mut nothing), Ok(1..)) {}
        std::process::exit(0);
    });
}

// ---- the server ----

fn serve(row: Row) -> io::Result<()> {
    match row {
        Row::Std => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            announce(&listener.local_addr()?.to_string())?;
            loop {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                thread::spawn(move || attend(stream));
            }
        }
        Row::Uds => {
            let name = format!("blockingperf-{}", std::process::id());
            let listener = UnixListener::bind_addr(&UnixAddr::from_abstract_name(&name)?)?;
            announce(&name)?;
            loop {
                let (stream, _) = listener.accept()?;
                thread::spawn(move || attend(stream));
            }
        }
        Row::Smc | Row::NoLook | Row::Manual | Row::Never => {
            let listener = SmcListener::bind_with("127.0.0.1:0", &row.config())?;
            announce(&listener.local_addr()?.to_string())?;
            loop {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                thread::spawn(move || attend(stream));
            }
        }
    }
}

/// The process that started this one reads it.
fn announce(address: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{address}")
}

/// Serves a connection to its end.
fn attend(mut stream: impl Stream) -> io::Result<()> {
    let mut message = [0; MESSAGE];
    let mut block = vec![0; BLOCK];
    loop {
        stream.read_exact(&mut message)?;
        match message[0] {
            CPU => message[8..16].copy_from_slice(&cpu_time().to_le_bytes()),
            BLOCKS => {
                block[0] = 0;
                while block[0] != LAST {
                    stream.read_exact(&mut block)?;
                }
            }
            _ => {}
        }
        stream.write_all(&message)?;
    }
}

// ---- the client ----

fn run(row: Row, address: &str, span: Duration) -> io::Result<()> {
    thread::spawn(move || {
        thread::sleep(Duration::from_secs(60) + 4 * span);
        let _ = writeln!(io::stderr(), "blockingperf: {} hangs", row.name());
        std::process::exit(3);
    });
    let figures = match row {
        Row::Std => measure(row, span, || {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })?,
        Row::Uds => measure(row, span, || UnixStream::connect_addr(&UnixAddr::from_abstract_name(address)?))?,
        Row::Smc | Row::NoLook | Row::Manual | Row::Never => {
            let config = row.config();
            measure(row, span, || {
                let stream = SmcStream::connect_with(address, &config)?;
                stream.set_nodelay(true)?;
                if row.upgrades() {
                    stream.upgrade();
                }
                Ok(stream)
            })?
        }
    };
    writeln!(io::stdout(), "{figures}")
}

/// Sends a message of `kind` and takes what comes back.
fn exchange(stream: &mut impl Stream, kind: u8, number: u64) -> io::Result<[u8; MESSAGE]> {
    let mut message = [kind; MESSAGE];
    message[16..24].copy_from_slice(&number.to_le_bytes());
    stream.write_all(&message)?;
    let mut answer = [0; MESSAGE];
    stream.read_exact(&mut answer)?;
    if kind == ECHO && answer != message {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message came back changed"));
    }
    Ok(answer)
}

/// CPU time of both processes so far, in nanoseconds.
fn both_cpu_times(stream: &mut impl Stream) -> io::Result<u64> {
    let answer = exchange(stream, CPU, 0)?;
    let theirs = answer[8..16].try_into().map(u64::from_le_bytes).unwrap_or_default();
    Ok(cpu_time() + theirs)
}

fn measure<S: Stream>(row: Row, span: Duration, connect: impl Fn() -> io::Result<S>) -> io::Result<Value> {
    let mut stream = connect()?;
    let warm = Instant::now() + span / 5;
    while Instant::now() < warm {
        exchange(&mut stream, ECHO, 0)?;
    }

    let mut times = histogram()?;
    let before = both_cpu_times(&mut stream)?;
    let end = Instant::now() + span;
    let mut trips = 0;
    let mut last = Instant::now();
    while last < end {
        exchange(&mut stream, ECHO, trips)?;
        trips += 1;
        let now = Instant::now();
        times.saturating_record((now - last).as_nanos() as u64);
        last = now;
    }
    let trip_cpu = (both_cpu_times(&mut stream)? - before) as f64 / trips as f64;

    let mut block = vec![0; BLOCK];
    let before = both_cpu_times(&mut stream)?;
    let began = Instant::now();
    let mut message = [0; MESSAGE];
    message[0] = BLOCKS;
    stream.write_all(&message)?;
    let mut bytes = 0;
    while block[0] != LAST {
        block[0] = if began.elapsed() >= span { LAST } else { 0 };
        stream.write_all(&block)?;
        bytes += BLOCK;
    }
    stream.read_exact(&mut message)?;
    let seconds = began.elapsed().as_secs_f64();
    let block_cpu = (both_cpu_times(&mut stream)? - before) as f64;

    let mut connects = histogram()?;
    for number in 0..CONNECTS {
        let began = Instant::now();
        let mut short = connect()?;
        exchange(&mut short, ECHO, number as u64)?;
        drop(short);
        connects.saturating_record(began.elapsed().as_nanos() as u64);
    }
    Ok(json!({
        "row": row.word(),
        "trip_us": times.value_at_quantile(0.5) as f64 / 1e3,
        "trip_p99_us": times.value_at_quantile(0.99) as f64 / 1e3,
        "trip_cpu_us": trip_cpu / 1e3,
        "gb_per_s": bytes as f64 / 1e9 / seconds,
        "cpu_s_per_gb": block_cpu / bytes as f64,
        "connect_us": connects.value_at_quantile(0.5) as f64 / 1e3,
        "ran_on": stream.runs_on(),
    }))
}

fn histogram() -> io::Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(io::Error::other)
}

// ---- the process that compares ----

fn compare(options: &Options) -> io::Result<()> {
    let rows: Vec<Row> = Row::value_variants()
        .iter()
        .copied()
        .filter(|row| options.row.is_empty() || options.row.contains(row))
        .collect();
    let mut results: Vec<Vec<Value>> = vec![Vec::new(); rows.len()];
    for round in 0..options.rounds.max(1) {
        for step in 0..rows.len() {
            // None always follows the same one.
            let at = (round + step) % rows.len();
            results[at].push(round_of(rows[at], options.seconds)?);
        }
    }
    if options.json {
        let mut out = io::stdout().lock();
        return results.iter().try_for_each(|results| writeln!(out, "{}", medians(results)));
    }
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "",
        "round trip p50",
        "p99",
        "CPU for it",
        "64 KiB writes",
        "CPU per GB",
        "open, ask, close",
        "ran on",
    ]);
    for (row, results) in rows.iter().zip(&results) {
        let of = |key: &str| median(results, key);
        table.add_row([
            row.name().to_owned(),
            micros(of("trip_us")),
            micros(of("trip_p99_us")),
            micros(of("trip_cpu_us")),
            format!("{:.2} GB/s", of("gb_per_s")),
            format!("{:.2} s", of("cpu_s_per_gb")),
            micros(of("connect_us")),
            results[0]["ran_on"].as_str().unwrap_or("?").to_owned(),
        ]);
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{table}")?;
    writeln!(
        out,
        "medians of {} interleaved rounds of {} s; two processes, one connection, {} usable CPUs",
        options.rounds.max(1),
        options.seconds,
        thread::available_parallelism()?,
    )?;
    if cfg!(debug_assertions) {
        writeln!(out, "This is a debug build: its figures say little. Use `cargo run --release`.")?;
    }
    Ok(())
}

fn micros(value: f64) -> String {
    if value < 10.0 { format!("{value:.2} µs") } else { format!("{value:.0} µs") }
}

fn median(results: &[Value], key: &str) -> f64 {
    let mut values: Vec<f64> = results.iter().filter_map(|result| result[key].as_f64()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The rounds of a row as one: what is no number is the same in all of them.
fn medians(rounds: &[Value]) -> Value {
    let mut all = rounds[0].clone();
    for (key, value) in all.as_object_mut().into_iter().flatten() {
        if value.is_number() {
            *value = json!(median(rounds, key));
        }
    }
    all
}

/// One round of one row, in two processes.
fn round_of(row: Row, seconds: f64) -> io::Result<Value> {
    let failed = |what: &str| io::Error::other(format!("{}: {what}", row.name()));
    let mut server = start(&["serve", &row.word()])?;
    let address = line_of(&mut server).filter(|line| !line.is_empty());
    let address = address.ok_or_else(|| failed("the server does not listen"))?;
    let mut client = start(&["run", &row.word(), &address, &seconds.to_string()])?;
    let line = line_of(&mut client).unwrap_or_default();
    let figures = serde_json::from_str(&line).map_err(|_| failed("the client has failed"))?;
    for mut process in [client, server] {
        drop(process.stdin.take());
        process.wait()?;
    }
    Ok(figures)
}

fn start(arguments: &[&str]) -> io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
}

fn line_of(process: &mut Child) -> Option<String> {
    let mut line = String::new();
    BufReader::new(process.stdout.as_mut()?).read_line(&mut line).ok()?;
    Some(line.trim_end().to_owned())
}
