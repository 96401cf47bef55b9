//! The command line, and what is measured with which numbers.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::actor::Way;

/// Measures tokio-smc beside TCP and unix sockets on this machine, and writes a report with charts.
///
/// DIR/performance.md is the report, DIR/performance/*.svg are its charts and
/// DIR/performance/data.json what was measured. A further run with --only measures some sections
/// again and keeps the others. It takes less than ten minutes; leave the machine alone meanwhile.
#[derive(Debug, Parser)]
#[command(name = "smc-report", args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) role: Option<Role>,
    #[command(flatten)]
    pub(crate) options: Options,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Sections to measure, separated by commas [default: all but others].
    #[arg(long, value_enum, value_name = "SECTION", value_delimiter = ',')]
    pub(crate) only: Vec<Section>,
    /// Few numbers and short times, about a minute: shows that it works, not how fast anything is.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Measure nothing: write report and charts again from data.json.
    #[arg(long, conflicts_with = "only")]
    pub(crate) redraw: bool,
    /// Directory that the report is written to.
    #[arg(long, value_name = "DIR", default_value = "docs")]
    pub(crate) out: PathBuf,
}

impl Options {
    /// The sections to measure, in their order.
    pub(crate) fn sections(&self) -> Vec<Section> {
        let wanted = |section: &Section| {
            if self.only.is_empty() { *section != Section::Others } else { self.only.contains(section) }
        };
        if self.redraw {
            return Vec::new();
        }
        Section::value_variants().iter().copied().filter(wanted).collect()
    }
}

/// What other processes of this program are.
#[derive(Debug, Subcommand)]
pub(crate) enum Role {
    /// Answers whoever connects.
    #[command(hide = true)]
    Serve { way: Way },
    /// Holds connections to a server, and does with them what it is told.
    #[command(hide = true)]
    Hold { way: Way, addr: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Section {
    /// Requests at fixed rates over one connection: latency and CPU time.
    Load,
    /// Messages of 1 B to 16 MiB: round trips and streams.
    Sizes,
    /// 1 to 10,000 connections of one process, which share a link.
    Connections,
    /// 1 to 64 client processes, each with an endpoint and a link of its own.
    Peers,
    /// Connects with and without an upgrade; what the first upgrade costs and what further ones do.
    Connects,
    /// Memory of 10 to 10,000 idle connections.
    Memory,
    /// Both flavours of tokio's runtime.
    Runtimes,
    /// The blocking front end beside std.
    Blocking,
    /// Both ends in one process, beside tokio::io::duplex.
    Inside,
    /// Other crates that move bytes through shared memory: report/others, which needs libclang.
    Others,
}

impl Section {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// The numbers that a run is made with.
pub(crate) struct Scale {
    pub(crate) rounds: u32,
    /// Measured time of one case over one transport in one round, in seconds.
    pub(crate) seconds: f64,
    /// Requests a second.
    pub(crate) paces: &'static [u32],
    /// Bytes of a message.
    pub(crate) sizes: &'static [u32],
    pub(crate) connections: &'static [u32],
    pub(crate) processes: &'static [u32],
    /// Idle connections whose memory is looked at.
    pub(crate) idle: &'static [u32],
    /// Connections that are upgraded at the same time.
    pub(crate) storm: &'static [u32],
    /// Connects of one round, over one transport.
    pub(crate) connects: u32,
}

impl Scale {
    pub(crate) fn new(quick: bool) -> Self {
        if quick {
            return Self {
                rounds: 1,
                seconds: 0.15,
                paces: &[1000, 5000],
                sizes: &[1, 14, 64 << 10, 1 << 20],
                connections: &[1, 10, 100],
                processes: &[1, 2],
                idle: &[10, 100],
                storm: &[20],
                connects: 50,
            };
        }
        Self {
            rounds: 3,
            seconds: 0.5,
            paces: &[100, 300, 1000, 3000, 10_000, 20_000, 40_000],
            sizes: &[1, 14, 256, 4 << 10, 64 << 10, 1 << 20, 16 << 20],
            connections: &[1, 10, 100, 1000, 10_000],
            processes: &[1, 2, 4, 8, 16, 32, 64],
            idle: &[10, 100, 1000, 10_000],
            storm: &[10, 100, 1000, 10_000],
            connects: 500,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(["smc-report"].iter().chain(arguments))
    }

    #[test]
    fn sections_are_taken_in_their_order_and_once() {
        let sections = |arguments: &[&str]| parse(arguments).unwrap().options.sections();
        assert_eq!(sections(&["--only=peers,load,peers"]), [Section::Load, Section::Peers]);
        assert_eq!(sections(&["--redraw"]), []);
        let all = sections(&[]);
        assert!(all.len() == 9 && !all.contains(&Section::Others));
        assert_eq!(sections(&["--only=others"]), [Section::Others]);
    }

    #[test]
    fn what_is_no_section_is_refused_with_those_that_are() {
        let error = parse(&["--only=lode"]).unwrap_err().to_string();
        assert!(error.contains("lode") && error.contains("load") && error.contains("memory"), "{error}");
        assert!(parse(&["--only="]).is_err() && parse(&["--redraw", "--only=load"]).is_err());
    }
}
