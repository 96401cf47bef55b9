//! Round trips between two processes over other crates that move bytes through shared memory, and
//! over tokio-smc and a unix socket: a JSON object per line, the medians of the rounds.
//!
//! `smc-report --only=others` builds and runs it.

mod looking;
mod streams;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

const KINDS: [&str; 5] = ["uds", "smc", "shmipc", "iceoryx2", "iceoryx2-events"];
const SIZES: [usize; 2] = [100, 64 << 10];

/// How long a process may take beside what it measures.
const SLACK: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["serve", kind, place, size] => serve(kind, Path::new(place), size),
        ["run", kind, place, size, seconds, server] => run(kind, Path::new(place), size, seconds, server),
        _ => compare(&words),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "others: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compare(words: &[&str]) -> Result<()> {
    let (mut rounds, mut seconds) = (3, 0.5);
    for word in words {
        match word.split_once('=') {
            Some(("--rounds", number)) => rounds = number.parse().context("--rounds wants a number")?,
            Some(("--seconds", number)) => seconds = number.parse().context("--seconds wants a number")?,
            _ => bail!("usage: others [--rounds=N] [--seconds=S]; {word} is neither"),
        }
    }
    if !(1..100).contains(&rounds) || !(0.01..60.0).contains(&seconds) {
        bail!("1 to 99 rounds of 0.01 to 60 seconds are possible");
    }
    for size in SIZES {
        let mut rows = vec![Vec::new(); KINDS.len()];
        for round in 0..rounds {
            for step in 0..KINDS.len() {
                let at = (round + step) % KINDS.len();
                let kind = KINDS[at];
                rows[at].push(once(kind, size, seconds).with_context(|| format!("{kind}, {size} bytes"))?);
            }
        }
        for rows in &rows {
            say(&medians(rows))?;
        }
    }
    Ok(())
}

fn say(row: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{row}").and_then(|()| out.flush()).context("writing to standard output")
}

fn medians(rows: &[Value]) -> Value {
    let mut all = rows[0].clone();
    for (key, value) in all.as_object_mut().into_iter().flatten() {
        let mut values: Vec<f64> = rows.iter().filter_map(|row| row[key].as_f64()).collect();
        values.sort_by(f64::total_cmp);
        if key != "msg_bytes" && !values.is_empty() {
            *value = json!(values[values.len() / 2]);
        }
    }
    all
}

/// A process, killed when its handle is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Starts it and reads its first line.
    fn start(arguments: &[&str]) -> Result<(Self, String)> {
        let program = std::env::current_exe().context("finding this program")?;
        let child =
            Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = Self(child.context("starting a process")?);
        let out = process.0.stdout.take().context("a process without standard output")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).context("listening to a process")?;
        if line.is_empty() {
            bail!("the process {} ended without a word; what it said is above", arguments[0]);
        }
        Ok((process, line))
    }
}

fn once(kind: &str, size: usize, seconds: f64) -> Result<Value> {
    let place = tempfile::tempdir().context("a directory for sockets")?;
    let (place, size) = (place.path().to_string_lossy(), size.to_string());
    let (server, _) = Process::start(&["serve", kind, &place, &size])?;
    let (_client, line) =
        Process::start(&["run", kind, &place, &size, &seconds.to_string(), &server.0.id().to_string()])?;
    serde_json::from_str(&line).with_context(|| format!("the client said {}", line.trim_end()))
}

fn serve(kind: &str, place: &Path, size: &str) -> Result<()> {
    end_with_standard_input();
    let size = size.parse().context("the size")?;
    match kind {
        "iceoryx2" | "iceoryx2-events" => looking::serve(kind == "iceoryx2-events", place, size),
        _ => streams::serve(kind, place, size),
    }
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

fn ready() -> Result<()> {
    say(&json!({ "ready": true }))
}

fn run(kind: &str, place: &Path, size: &str, seconds: &str, server: &str) -> Result<()> {
    end_with_standard_input();
    let size: usize = size.parse().context("the size")?;
    let time = Duration::from_secs_f64(seconds.parse().context("the seconds")?);
    let name = kind.to_owned();
    std::thread::spawn(move || {
        std::thread::sleep(SLACK + 2 * time);
        let _ = writeln!(std::io::stderr().lock(), "others: {name} hangs");
        std::process::exit(3);
    });
    let meter = Meter::new(kind, size, time, server.parse().context("the server's id")?)?;
    match kind {
        "iceoryx2" | "iceoryx2-events" => looking::run(kind == "iceoryx2-events", place, meter),
        _ => streams::run(kind, place, meter),
    }
}

/// Times of round trips after a warm-up, and the CPU time that they took in both processes.
struct Meter {
    kind: String,
    size: usize,
    server: u32,
    times: Histogram<u64>,
    begin: Instant,
    end: Instant,
    last: Instant,
    cpu: Option<u64>,
}

impl Meter {
    fn new(kind: &str, size: usize, time: Duration, server: u32) -> Result<Self> {
        let now = Instant::now();
        let times = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
        Ok(Self {
            kind: kind.to_owned(),
            size,
            server,
            times,
            begin: now,
            end: now + time,
            last: now,
            cpu: None,
        })
    }

    /// Everything is ready: the warm-up begins.
    fn start(&mut self) {
        let time = self.end - self.begin;
        self.last = Instant::now();
        self.begin = self.last + time / 5;
        self.end = self.begin + time;
    }

    /// A round trip is over; whether another one is wanted.
    fn lap(&mut self) -> Result<bool> {
        let now = Instant::now();
        if now >= self.begin {
            if self.cpu.is_none() {
                self.cpu = Some(self.cpu_now()?);
            } else {
                self.times.saturating_record((now - self.last).as_nanos() as u64);
            }
        }
        self.last = Instant::now();
        Ok(now < self.end)
    }

    fn cpu_now(&self) -> Result<u64> {
        let own = clock_gettime(ClockId::ProcessCPUTime);
        let mut nanos = own.tv_sec as u64 * 1_000_000_000 + own.tv_nsec as u64;
        for task in
            std::fs::read_dir(format!("/proc/{}/task", self.server)).context("the server's threads")?
        {
            let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            nanos += text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(nanos)
    }

    fn finish(self) -> Result<()> {
        let cpu = self.cpu_now()? - self.cpu.context("it ended within the warm-up")?;
        let count = self.times.len();
        if count == 0 {
            bail!("no round trip was counted");
        }
        let at = |quantile| self.times.value_at_quantile(quantile) as f64 / 1e3;
        say(&json!({
            "transport": self.kind, "msg_bytes": self.size, "rtt_p50_us": at(0.5), "rtt_p99_us": at(0.99),
            "cpu_us_per_msg": cpu as f64 / 1e3 / count as f64,
        }))
    }
}

/// Message `number` of `message.len()` bytes.
fn stamp(message: &mut [u8], number: u64) {
    message[..8].copy_from_slice(&number.to_le_bytes());
}
