//! The client process: runs the tests in interleaved rounds and shows what came out.

use std::io::{self, Write as _};
use std::time::Duration;

use crate::failure::{Explain, Failure, Outcome};
use crate::load::{self, Load};
use crate::report::{self, Row};
use crate::server::Target;
use crate::transport::Transport;
use crate::{Options, machine};

/// What connecting and waiting for SMC may take beside the measurement.
const SLACK: Duration = Duration::from_secs(30);

pub(crate) async fn run(target: &str, options: &Options) -> Outcome<()> {
    let target: Target = serde_json::from_str(target)
        .explain(|| "reading where the servers are from the command line".to_owned())?;
    let transports = options.transports();
    let warm_up = (options.round() / 4).max(Duration::from_millis(100));
    let mut rows = Vec::new();
    for load in options.tests().into_iter().flat_map(|test| test.loads()) {
        let mut samples = vec![Vec::new(); transports.len()];
        for round in 0..options.rounds as usize {
            for step in 0..transports.len() {
                // Each round begins with another transport, so that none always follows the same
                // one.
                let column = (round + step) % transports.len();
                let sample = one(&target, transports[column], load, warm_up, options.round()).await?;
                samples[column].push(sample);
            }
        }
        for (&transport, samples) in transports.iter().zip(&samples) {
            let row = Row::new(load, transport, samples);
            if options.json {
                say(&row.json())?;
            }
            rows.push(row);
        }
    }
    if options.json {
        return Ok(());
    }
    say(&report::table(&rows))?;
    say(&format!("machine: {}; two processes, runtime {}", machine::description(), machine::runtime()))?;
    let variables = machine::variables();
    if let Some(variables) = variables {
        say(&format!("environment: {variables}"))?;
    }
    say(&format!(
        "medians of {} interleaved rounds of {:.2} s each",
        options.rounds,
        options.round().as_secs_f64()
    ))?;
    if cfg!(debug_assertions) {
        say("This is a debug build: its figures say little. Use `cargo run --release`.")?;
    }
    Ok(())
}

async fn one(
    target: &Target,
    transport: Transport,
    load: Load,
    warm_up: Duration,
    measured: Duration,
) -> Outcome<load::Sample> {
    let name = || format!("{} over {}", load.describe(), transport.name());
    let limit = warm_up + measured + SLACK;
    match tokio::time::timeout(limit, load::measure(target, transport, load, warm_up, measured)).await {
        Ok(sample) => sample.explain(name),
        Err(_) => Err(Failure::new(format!("{}: not done within {:.0} s", name(), limit.as_secs_f64()))),
    }
}

fn say(line: &str) -> Outcome<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).explain(|| "writing to standard output".to_owned())
}
