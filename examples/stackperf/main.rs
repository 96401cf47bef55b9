//! Compares web and RPC stacks over TCP, unix sockets and SMC-D over loopback-ism side by side.
//!
//! `cargo run --release --example stackperf` starts a server process and a client process of
//! itself, runs every test over every transport in interleaved rounds, and prints one table with
//! the ratios to TCP and what SMC really ran on. The transport `duplex` is none: client and server
//! are in one process, so that it shows what the stack itself takes.
//!
//! | test | what | in flight |
//! |---|---|---|
//! | `http1` | hyper HTTP/1.1 keep-alive, 13-byte bodies, over 1 and 64 connections | 1 per connection |
//! | `http2` | hyper HTTP/2, 13-byte bodies, over one connection | 100 streams |
//! | `grpc` | tonic unary calls of 13 bytes over one connection | 1, and 64 |
//!
//! `kv bench` of the example `kv` compares SET and GET through the redis crate in the same way.

mod client;
mod cpu;
#[path = "../smcperf/failure.rs"]
mod failure;
mod grpc;
#[path = "../smcperf/latency.rs"]
mod latency;
mod load;
#[path = "../smcperf/machine.rs"]
mod machine;
mod report;
mod server;
mod transport;

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use crate::failure::{Explain, Failure, Outcome};
use crate::load::Test;
use crate::transport::Transport;

/// Compares web and RPC stacks over TCP, unix sockets and SMC-D over loopback-ism side by side.
#[derive(Debug, Parser)]
#[command(name = "stackperf", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Serve measurements until standard input ends; prints where.
    Serve,
    /// Measure against the servers that the first line of `stackperf serve` names.
    Run {
        /// That line.
        target: String,
        #[command(flatten)]
        options: Options,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct Options {
    /// Tests to run, separated by commas [default: all].
    #[arg(long, value_enum, value_name = "TEST", value_delimiter = ',')]
    test: Vec<Test>,
    /// Transports to compare, separated by commas [default: all].
    #[arg(long, value_enum, value_name = "NAME", value_delimiter = ',')]
    transport: Vec<Transport>,
    /// Measured time of each test over each transport, all rounds together.
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    seconds: f64,
    /// Number of interleaved rounds; the figures are medians over them.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// One JSON object per line instead of the table.
    #[arg(long)]
    json: bool,
}

impl Options {
    fn tests(&self) -> Vec<Test> {
        if self.test.is_empty() { Test::value_variants().to_vec() } else { self.test.clone() }
    }

    fn transports(&self) -> Vec<Transport> {
        if self.transport.is_empty() { Transport::value_variants().to_vec() } else { self.transport.clone() }
    }

    /// Measured time of one round.
    fn round(&self) -> Duration {
        Duration::from_secs_f64((self.seconds / f64::from(self.rounds)).clamp(0.01, 600.0))
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    machine::raise_file_limit();
    let outcome = match cli.role {
        None => compare(),
        Some(Role::Serve) => {
            end_with_standard_input();
            runtime().and_then(|runtime| runtime.block_on(server::serve()))
        }
        Some(Role::Run { target, options }) => {
            runtime().and_then(|runtime| runtime.block_on(client::run(&target, &options)))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr().lock(), "stackperf: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> Outcome<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .explain(|| "starting the runtime".to_owned())
}

/// Starts a server and a client of this program, with the client's options as they were given to
/// us.
fn compare() -> Outcome<()> {
    let program = std::env::current_exe().explain(|| "finding this program".to_owned())?;
    let mut serving = Command::new(&program);
    serving.arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = Killed(serving.spawn().explain(|| "starting the server process".to_owned())?);
    let stdout = server.0.stdout.take().ok_or_else(|| Failure::new("the server has no standard output"))?;
    let mut target = String::new();
    BufReader::new(stdout).read_line(&mut target).explain(|| "reading from the server process".to_owned())?;
    if target.is_empty() {
        return Err(Failure::new("the server process ended before it listened"));
    }
    let mut running = Command::new(&program);
    running.args(["run", target.trim()]).args(std::env::args_os().skip(1)).stdin(Stdio::null());
    let status = running.status().explain(|| "running the client process".to_owned())?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("the client process failed ({status})"))) }
}

/// A process that ends when its handle does.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends this process when the one that started it is gone.
fn end_with_standard_input() {
    std::thread::spawn(|| {
        let mut nothing = [0; 64];
        while matches!(io::stdin().lock().read(&mut nothing), Ok(1..)) {}
        std::process::exit(0);
    });
}
