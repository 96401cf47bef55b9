//! Compares TCP, unix sockets and SMC-D over loopback-ism side by side.
//!
//! `cargo run --release --example smcperf` starts a server process and a client process of itself,
//! runs every test over every transport in interleaved rounds, and prints one table with the ratios
//! to TCP, what each SMC connection really ran on, and the setup. Every byte that travels is
//! verified by its receiver, and throughput is measured there.
//!
//! By hand in two terminals: `smcperf serve 127.0.0.1:7700` and `smcperf run 127.0.0.1:7700`;
//! `--help` has the options.
//!
//! | test | what | figure |
//! |---|---|---|
//! | `pp` | 14-byte ping-pong, one connection (`--size`) | round-trip time |
//! | `tp` | stream of 64 KiB writes (`--size`) | bytes per second |
//! | `rate` | stream of 100-byte messages, one write each | messages per second |
//! | `conns` | 100-byte ping-pong over 1, 8, 100, 1000 connections (`--connections`) | round trips per second, all together |
//! | `connect` | connect, one 100-byte round trip, close | such cycles per second, and the time of one |
//! | `paced` | 100, 1000, 5000, 20000 requests of 100 bytes a second (`--pace`), each answered, one connection | time from when each was due |
//! | `idle`, with `paced` | 100 silent connections | CPU time |
//!
//! Each has the CPU time of both processes, too. Beside `pp` and `tp` stands what this machine
//! could do at best, measured in the same minutes.
//!
//! Each connection makes some round trips before it is measured, so that SMC has moved it to shared
//! memory; `connect` measures what a short connection costs and has no such warm-up.

mod cli;
mod client;
mod cpu;
mod failure;
mod latency;
mod limit;
mod machine;
mod medium;
mod pace;
mod pages;
mod pattern;
mod process;
mod report;
mod server;
mod table;
mod wire;
mod workload;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    machine::raise_file_limit();
    let outcome = match &cli.command {
        None => process::compare(&cli.process, &cli.run),
        Some(Command::Serve { addr, process }) => {
            tether(process.tethered);
            server::serve(addr, process)
        }
        Some(Command::Run { addr, process, run }) => {
            tether(process.tethered);
            client::run(addr, process, run)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(std::io::stderr().lock(), "smcperf: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn tether(tethered: bool) {
    if tethered {
        process::end_with_standard_input();
    }
}
