//! The command line, and how one process hands it to the next.

use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio_smc::Config;

use crate::medium::RunsOn;
use crate::wire::LONGEST_MESSAGE;

/// Compares TCP, unix sockets and SMC-D over loopback-ism side by side.
///
/// Without a command it starts a server process and a client process of itself, runs every test
/// over every transport in interleaved rounds and prints one table. Every byte that travels is
/// verified.
#[derive(Debug, Parser)]
#[command(name = "smcperf", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) process: ProcessOptions,
    #[command(flatten)]
    pub(crate) run: RunOptions,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve measurements at ADDR (TCP there, SMC and a unix socket beside it) until interrupted.
    Serve {
        /// Where to listen, as 127.0.0.1:7700; port 0 takes a free one.
        addr: String,
        #[command(flatten)]
        process: ProcessOptions,
    },
    /// Measure against the server at ADDR.
    Run {
        /// Where `smcperf serve` listens.
        addr: String,
        #[command(flatten)]
        process: ProcessOptions,
        #[command(flatten)]
        run: RunOptions,
    },
}

/// What a server and a client have in common.
#[derive(Args, Clone, Debug)]
pub(crate) struct ProcessOptions {
    /// Flavour of the tokio runtime, with its default settings, in both processes.
    #[arg(long, value_enum, value_name = "FLAVOUR", default_value_t = Flavour::MultiThread)]
    pub(crate) runtime: Flavour,
    /// Longest time that SMC polls for the next message before it sleeps, in microseconds; 0 never
    /// polls [default: the library's, or SMC_LO_BUSY_POLL_US].
    #[arg(long, value_name = "US")]
    pub(crate) busy_poll: Option<u64>,
    /// End when standard input does: set by the process that starts this one.
    #[arg(long, hide = true)]
    pub(crate) tethered: bool,
}

impl ProcessOptions {
    pub(crate) fn config(&self) -> Config {
        let config = Config::from_env();
        match self.busy_poll {
            Some(micros) => config.busy_poll(Duration::from_micros(micros)),
            None => config,
        }
    }

    /// The setting of the adaptive polling in words.
    pub(crate) fn busy_poll_words(&self) -> String {
        match (self.busy_poll, std::env::var("SMC_LO_BUSY_POLL_US")) {
            (Some(micros), _) => format!("{micros} µs"),
            (None, Ok(variable)) => format!("{variable} µs (SMC_LO_BUSY_POLL_US)"),
            (None, Err(_)) => "library default".to_owned(),
        }
    }

    /// The arguments that give a child of this process the same settings, tied to the life of this
    /// process.
    pub(crate) fn child_arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--runtime={}", word(self.runtime)), "--tethered".to_owned()];
        arguments.extend(self.busy_poll.map(|micros| format!("--busy-poll={micros}")));
        arguments
    }
}

/// What to measure and how to show it.
#[derive(Args, Clone, Debug)]
pub(crate) struct RunOptions {
    /// Tests to run, separated by commas [default: all].
    #[arg(long, value_enum, value_name = "TEST", value_delimiter = ',')]
    pub(crate) test: Vec<Test>,
    /// Transports to compare, separated by commas [default: all].
    #[arg(long, value_enum, value_name = "NAME", value_delimiter = ',')]
    pub(crate) transport: Vec<Transport>,
    /// Measured time of each test over each transport, all rounds together [default: 3, with
    /// --quick 0.45].
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub(crate) seconds: Option<f64>,
    /// Number of interleaved rounds; the figures are medians over them.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(crate) rounds: u32,
    /// Message sizes of pp and tp in bytes, separated by commas; K and M stand for KiB and MiB
    /// [default: 14 for pp, 64K for tp].
    #[arg(long, value_name = "BYTES", value_delimiter = ',', value_parser = message_size)]
    pub(crate) size: Vec<u32>,
    /// Numbers of connections of conns, separated by commas [default: 1,8,100,1000].
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) connections: Vec<u32>,
    /// Requests a second of paced, separated by commas [default: 100,1000,5000,20000].
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) pace: Vec<u32>,
    /// All tests within 30 seconds.
    #[arg(long)]
    pub(crate) quick: bool,
    /// One JSON object per line instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

impl RunOptions {
    pub(crate) fn tests(&self) -> Vec<Test> {
        chosen(&self.test)
    }

    pub(crate) fn transports(&self) -> Vec<Transport> {
        chosen(&self.transport)
    }

    /// Measured time of one test over one transport in one round.
    pub(crate) fn round(&self) -> Duration {
        let seconds = self.seconds.unwrap_or(if self.quick { 0.45 } else { 3.0 });
        Duration::from_secs_f64(seconds / f64::from(self.rounds))
    }

    /// What is run before it and not counted.
    pub(crate) fn warm_up(&self) -> Duration {
        (self.round() / 5).clamp(Duration::from_millis(10), Duration::from_millis(500))
    }

    pub(crate) fn child_arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--rounds={}", self.rounds)];
        arguments.extend(self.test.iter().map(|&test| format!("--test={}", word(test))));
        arguments.extend(self.transport.iter().map(|&transport| format!("--transport={}", word(transport))));
        arguments.extend(self.seconds.map(|seconds| format!("--seconds={seconds}")));
        arguments.extend(self.size.iter().map(|bytes| format!("--size={bytes}")));
        arguments.extend(self.connections.iter().map(|number| format!("--connections={number}")));
        arguments.extend(self.pace.iter().map(|per_s| format!("--pace={per_s}")));
        arguments.extend(self.quick.then(|| "--quick".to_owned()));
        arguments.extend(self.json.then(|| "--json".to_owned()));
        arguments
    }
}

/// All of them when none was named; else those named, in the usual order and once each.
fn chosen<T: ValueEnum + PartialEq>(named: &[T]) -> Vec<T> {
    T::value_variants().iter().filter(|value| named.is_empty() || named.contains(value)).cloned().collect()
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number from 0.01 to 3600 is wanted".to_owned()),
    }
}

/// Bytes of a message, as `100`, `64K` or `16M`.
fn message_size(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    digits
        .parse::<u32>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .filter(|bytes| (1..=LONGEST_MESSAGE).contains(bytes))
        .ok_or_else(|| "a size from 1 to 16M is wanted, as 100, 64K or 16M".to_owned())
}

/// The word that stands for `value` on the command line and in the output.
pub(crate) fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().expect("no value of these enums is hidden").get_name().to_owned()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flavour {
    #[value(name = "multi_thread", alias = "multi-thread")]
    MultiThread,
    #[value(name = "current_thread", alias = "current-thread")]
    CurrentThread,
}

impl Flavour {
    pub(crate) fn build(self) -> std::io::Result<tokio::runtime::Runtime> {
        match self {
            Self::MultiThread => tokio::runtime::Builder::new_multi_thread().enable_all().build(),
            Self::CurrentThread => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Test {
    /// Ping-pong over one connection, of 14 bytes without --size.
    Pp,
    /// A stream of writes over one connection, of 64 KiB without --size; every byte is verified.
    Tp,
    /// A stream of 100-byte messages, one write each, over one connection.
    Rate,
    /// 100-byte ping-pong over many connections at once: 1, 8, 100 and 1000 without --connections.
    Conns,
    /// Connect, one 100-byte round trip, close, one after the other.
    Connect,
    /// Requests of 100 bytes at a fixed rate over one connection, 100, 1000, 5000 and 20000 a
    /// second without --pace; and none at all over 100 connections.
    Paced,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Transport {
    /// tokio's TcpStream.
    Tcp,
    /// tokio's UnixStream.
    Uds,
    /// tokio-smc's SmcStream.
    Smc,
}

impl Transport {
    /// What its connections are meant to run on.
    pub(crate) fn runs_on(self) -> &'static str {
        match self {
            Self::Tcp => RunsOn::TCP,
            Self::Uds => RunsOn::UDS,
            Self::Smc => RunsOn::ISM,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_gets_the_options_of_its_parent() {
        let given = [
            "smcperf",
            "--test=rate,pp",
            "--transport=smc",
            "--seconds=0.5",
            "--json",
            "--busy-poll=0",
            "--size=1,64K,16M",
            "--connections=10000",
            "--pace=7,8",
        ];
        let parent = Cli::try_parse_from(given).unwrap();
        let mut arguments = vec!["smcperf".to_owned(), "run".to_owned(), "host:1".to_owned()];
        arguments.extend(parent.process.child_arguments());
        arguments.extend(parent.run.child_arguments());
        let child = Cli::try_parse_from(arguments).unwrap();
        let Some(Command::Run { process, run, .. }) = child.command else { panic!("not a run") };
        assert!(process.tethered && process.busy_poll == Some(0) && process.runtime == Flavour::MultiThread);
        assert_eq!(run.tests(), [Test::Pp, Test::Rate]);
        assert_eq!(run.transports(), [Transport::Smc]);
        assert!(run.json && !run.quick && run.seconds == Some(0.5));
        assert_eq!(run.size, [1, 64 << 10, 16 << 20]);
        assert_eq!((run.connections, run.pace), (vec![10_000], vec![7, 8]));
    }

    #[test]
    fn a_number_out_of_range_is_refused() {
        for option in [
            "--size=0",
            "--size=",
            "--size=K",
            "--size=17M",
            "--size=4194304K",
            "--size=1,,2",
            "--size=-1",
            "--size=1G",
            "--connections=0",
            "--connections=10001",
            "--pace=0",
        ] {
            assert!(Cli::try_parse_from(["smcperf", option]).is_err(), "{option}");
        }
    }
}
