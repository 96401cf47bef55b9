//! A small server of the Redis protocol (RESP2), and clients that compare SMC with TCP.
//!
//! ```text
//! cargo run --release --example kv -- serve 127.0.0.1:6399
//! redis-cli -p 6399                                            # plain TCP, the same port
//! cargo run --release --example kv -- demo 127.0.0.1:6399      # the `redis` crate over SMC
//! cargo run --release --example kv -- bench                    # GET and SET, TCP beside SMC, two processes
//! ```
//!
//! It knows strings only: PING ECHO SELECT HELLO CLIENT COMMAND CONFIG INFO QUIT, GET SET (EX PX NX
//! XX KEEPTTL) SETEX PSETEX DEL EXISTS INCR INCRBY DECR DECRBY MGET MSET EXPIRE PEXPIRE TTL PTTL
//! DBSIZE FLUSHDB; inline commands and pipelining, too. There is no password and nothing is stored
//! on disk.

mod bench;
mod command;
mod demo;
mod resp;
mod server;
mod store;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A small server of the Redis protocol on SMC and TCP, and clients for it.
#[derive(Parser)]
#[command(name = "kv", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until Ctrl-C or SIGTERM: SMC clients and plain TCP clients (redis-cli,
    /// redis-benchmark) on one port.
    Serve(server::Options),
    /// Show some commands through the `redis` crate over SMC, and what the connection runs on.
    Demo {
        /// Where `kv serve` listens.
        #[arg(default_value = "127.0.0.1:6399")]
        addr: String,
    },
    /// Measure GET and SET through the `redis` crate, TCP and SMC in turns.
    Bench(bench::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(options) => server::serve(&options).await,
        Command::Demo { addr } => demo::demo(&addr).await,
        Command::Bench(options) => bench::bench(&options).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kv: {error}");
            ExitCode::FAILURE
        }
    }
}
