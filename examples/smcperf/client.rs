//! The client process: runs the tests in interleaved rounds and shows what came out.

use std::io::{self, Write as _};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio_smc::Config;

use crate::cli::{ProcessOptions, RunOptions, Test, Transport, word};
use crate::failure::{Explain, Failure, Outcome};
use crate::limit::{self, Limit};
use crate::machine;
use crate::medium::{Medium, Smc, Tcp, Uds};
use crate::pattern::{BLOCK, Pattern};
use crate::process::Watchdog;
use crate::report::{Row, Side};
use crate::table::{self, Setup};
use crate::wire::{self, Request};
use crate::workload::{GROUP, SHORT_MESSAGE, Sample, Span, Work, measure};

/// How long a server may take for a greeting.
const GREETING: Duration = Duration::from_secs(5);

/// What opening a thousand connections and closing them may take beside the measurement, and what
/// each further one may.
const SLACK: Duration = Duration::from_secs(15);
const SLACK_OF_EACH: Duration = Duration::from_millis(5);

/// Connections that are looked at while they are silent.
const SILENT: u32 = 100;

/// How long SMC connections are waited for, at first and once it is known that they stay on TCP.
const PATIENCE: Duration = Duration::from_secs(2);
const SHORT_PATIENCE: Duration = Duration::from_millis(50);

/// What the connections of `work` may take beside the measurement.
fn slack(work: Work) -> Duration {
    SLACK + SLACK_OF_EACH * work.connections().saturating_sub(1000)
}

/// How long they may take for their upgrade when each group of them has `patience`.
fn settling(work: Work, patience: Duration) -> Duration {
    patience * work.connections().div_ceil(GROUP as u32)
}

/// What a run can take when every step of it uses all of its limit.
pub(crate) fn longest(options: &RunOptions) -> Duration {
    let of = |work: &Work| options.warm_up() + options.round() + settling(*work, PATIENCE) + 2 * slack(*work);
    let round: Duration = works(options).iter().map(of).sum();
    round * options.transports().len() as u32 * options.rounds
}

/// The lines of the result, in the order they are measured.
fn works(options: &RunOptions) -> Vec<Work> {
    let numbers = |given: &[u32], usual: &[u32], work: fn(u32) -> Work| -> Vec<Work> {
        let numbers = if given.is_empty() { usual } else { given };
        numbers.iter().copied().map(work).collect()
    };
    let works = |test: Test| match test {
        Test::Pp => numbers(&options.size, &[SHORT_MESSAGE], Work::PingPong),
        Test::Tp => numbers(&options.size, &[BLOCK as u32], Work::Blocks),
        Test::Rate => vec![Work::Messages],
        Test::Conns => numbers(&options.connections, &[1, 8, 100, 1000], Work::Connections),
        Test::Connect => vec![Work::Connect],
        Test::Paced => {
            let mut works = numbers(&options.pace, &[100, 1000, 5000, 20_000], Work::Paced);
            works.push(Work::Idle(SILENT));
            works
        }
    };
    options.tests().into_iter().flat_map(works).collect()
}

/// The test that `work` is part of.
pub(crate) fn test_of(work: Work) -> Test {
    match work {
        Work::PingPong(_) => Test::Pp,
        Work::Blocks(_) => Test::Tp,
        Work::Messages => Test::Rate,
        Work::Connections(_) => Test::Conns,
        Work::Connect => Test::Connect,
        Work::Paced(_) | Work::Idle(_) => Test::Paced,
    }
}

pub(crate) fn run(addr: &str, process: &ProcessOptions, options: &RunOptions) -> Outcome<()> {
    let runtime = process.runtime.build().explain(|| "starting the runtime".to_owned())?;
    let outcome = runtime.block_on(session(addr, process, options));
    // A task that never returns from a poll must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

async fn session(addr: &str, process: &ProcessOptions, options: &RunOptions) -> Outcome<()> {
    let watchdog = Watchdog::start(GREETING * 2, "greeting the server");
    let target = tokio::time::timeout(GREETING, Target::greet(addr, process.config()))
        .await
        .map_err(|_| Failure::new(format!("the server at {addr} does not answer")))??;

    let works = works(options);
    let transports = options.transports();
    let steps = works.len() * transports.len() * options.rounds as usize;
    let bar = progress_bar(steps as u64);
    let pattern = Arc::new(Pattern::new());
    let mut span = Span { warm_up: options.warm_up(), measured: options.round(), patience: PATIENCE };
    let mut rows = Vec::new();
    let mut notes = Vec::new();
    for work in works {
        let mut samples = vec![Vec::new(); transports.len()];
        let limits = Limit::of(work);
        let mut reached = vec![Vec::new(); limits.len()];
        for round in 0..options.rounds as usize {
            for (limit, samples) in limits.iter().zip(&mut reached) {
                watchdog.expect(span.warm_up + SLACK, limit.name());
                samples.extend(limit.measure(span.warm_up, &pattern).await?);
            }
            for step in 0..transports.len() {
                // Each round begins with another transport, so that none always follows the same
                // one.
                let column = (round + step) % transports.len();
                let transport = transports[column];
                let name = format!(
                    "{} over {}, {} connection(s), round {} of {}",
                    word(test_of(work)),
                    word(transport),
                    work.connections(),
                    round + 1,
                    options.rounds
                );
                bar.set_message(name.clone());
                let limit = span.warm_up + span.measured + settling(work, span.patience) + slack(work);
                watchdog.expect(limit + GREETING, &name);
                let sample = target.step(transport, work, span, limit, &pattern).await.explain(|| name)?;
                if transport == Transport::Smc
                    && work != Work::Connect
                    && sample.ran_on.keys().all(|on| !on.is_ism())
                {
                    span.patience = SHORT_PATIENCE;
                }
                samples[column].push(sample);
                bar.inc(1);
            }
        }
        for (&transport, samples) in transports.iter().zip(&samples) {
            rows.push(Row::new(work, Side::Over(transport), samples));
        }
        for (&limit, samples) in limits.iter().zip(&reached) {
            if samples.is_empty() {
                notes.push(limit::left_out(limit));
            } else {
                rows.push(Row::new(work, Side::Limit(limit), samples));
            }
        }
        if options.json {
            rows.drain(..).try_for_each(|row| bar.suspend(|| say(&row.json())))?;
        }
    }
    bar.finish_and_clear();
    if options.json {
        for note in notes {
            let _ = writeln!(io::stderr().lock(), "smcperf: {note}");
        }
    } else {
        let setup = Setup {
            machine: machine::description(),
            own: (machine::runtime(), process.busy_poll_words()),
            server: target.server,
            variables: machine::variables(),
            rounds: options.rounds,
            seconds: options.round().as_secs_f64(),
            notes,
        };
        say(&table::table(&rows, &setup))?;
    }
    Ok(())
}

fn say(line: &str) -> Outcome<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).explain(|| "writing to standard output".to_owned())
}

/// Drawn on a terminal only, and only between measurements: nothing ticks while one runs.
fn progress_bar(steps: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos:>3}/{len} {elapsed_precise} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// A server, and the three ways to it.
struct Target {
    tcp: Tcp,
    uds: Uds,
    smc: Smc,
    /// Its runtime and busy-poll setting.
    server: (String, String),
}

impl Target {
    async fn greet(addr: &str, config: Config) -> Outcome<Self> {
        // Names are resolved before anything is measured, and while nothing else runs.
        let addr: SocketAddr = addr
            .to_socket_addrs()
            .explain(|| format!("the address {addr}"))?
            .next()
            .ok_or_else(|| Failure::new(format!("the name {addr} has no address")))?;
        let tcp = Tcp(addr);
        let trying = || format!("greeting the server at {addr}");
        let mut stream = tcp.connect().await.explain(trying)?;
        wire::ask(&mut stream, Request::Hello).await.explain(trying)?;
        let hello = wire::receive_document(&mut stream).await.explain(trying)?;
        let text = |key: &str| hello[key].as_str().unwrap_or("?").to_owned();
        let smc_port = hello["smc_port"].as_u64().and_then(|port| u16::try_from(port).ok());
        let Some(smc_port) = smc_port else {
            return Err(Failure::new(format!("{}: it names no port for SMC", trying())));
        };
        Ok(Self {
            tcp,
            uds: Uds(text("uds_name")),
            smc: Smc { addr: SocketAddr::new(addr.ip(), smc_port), config },
            server: (text("runtime"), text("busy_poll")),
        })
    }

    async fn step(
        &self,
        transport: Transport,
        work: Work,
        span: Span,
        limit: Duration,
        pattern: &Arc<Pattern>,
    ) -> Outcome<Sample> {
        match transport {
            Transport::Tcp => within(limit, self.tcp.clone(), work, span, pattern, &self.tcp).await,
            Transport::Uds => within(limit, self.uds.clone(), work, span, pattern, &self.tcp).await,
            Transport::Smc => within(limit, self.smc.clone(), work, span, pattern, &self.tcp).await,
        }
    }
}

/// Measures on a worker of the runtime, as an ordinary task would run, and not longer than `limit`.
async fn within<M: Medium>(
    limit: Duration,
    medium: M,
    work: Work,
    span: Span,
    pattern: &Arc<Pattern>,
    server: &Tcp,
) -> Outcome<Sample> {
    let mut task = tokio::spawn(measure(medium, work, span, Arc::clone(pattern), server.clone()));
    match tokio::time::timeout(limit, &mut task).await {
        Ok(joined) => joined.explain(|| "the measuring task".to_owned())?,
        Err(_) => {
            task.abort();
            Err(Failure::new(format!(
                "not done within {:.1} s: the server or a connection hangs",
                limit.as_secs_f64()
            )))
        }
    }
}
