//! The tests: connections, and what is asked over them again and again.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::ValueEnum;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_smc::TransportWatch;
use tonic::transport::{Channel, Endpoint};

use crate::cpu;
use crate::grpc;
use crate::latency::Latencies;
use crate::server::{self, BODY, Target};
use crate::transport::Transport;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Test {
    Http1,
    Http2,
    Grpc,
}

/// One line of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// HTTP/1.1 over so many connections.
    Http1(usize),
    /// HTTP/2 with so many streams.
    Http2(usize),
    /// Unary calls, so many at once.
    Grpc(usize),
}

impl Test {
    pub(crate) fn loads(self) -> Vec<Load> {
        match self {
            Test::Http1 => vec![Load::Http1(1), Load::Http1(64)],
            Test::Http2 => vec![Load::Http2(100)],
            Test::Grpc => vec![Load::Grpc(1), Load::Grpc(64)],
        }
    }
}

impl Load {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Load::Http1(_) => "http1",
            Load::Http2(_) => "http2",
            Load::Grpc(_) => "grpc",
        }
    }

    pub(crate) fn describe(self) -> String {
        match self {
            Load::Http1(connections) => format!("HTTP/1.1 keep-alive, {connections} connection(s)"),
            Load::Http2(streams) => format!("HTTP/2, {streams} streams on 1 connection"),
            Load::Grpc(calls) => format!("gRPC unary, {calls} at once on 1 connection"),
        }
    }

    pub(crate) fn in_flight(self) -> usize {
        match self {
            Load::Http1(n) | Load::Http2(n) | Load::Grpc(n) => n,
        }
    }
}

pub(crate) type Fault = Box<dyn Error + Send + Sync>;

/// What one round gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) requests_per_s: f64,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    /// Processor time of a request, both processes together.
    pub(crate) cpu_us: Option<f64>,
    /// How many connections ran on what when the measurement was over.
    pub(crate) ran_on: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    WarmUp,
    Measure,
    Stop,
}

/// What every asking task shares.
#[derive(Clone)]
struct Round {
    phase: watch::Receiver<Phase>,
    asked: Arc<AtomicU64>,
    latencies: Latencies,
}

impl Round {
    /// Asks until the round is over, and counts while it is measured.
    async fn ask<F: Future<Output = Result<(), Fault>>>(
        self,
        mut ask: impl FnMut() -> F,
    ) -> Result<(), Fault> {
        let mut recorder = self.latencies.recorder();
        let mut asked = 0;
        loop {
            // Read before the request: one that began in the warm-up does not count.
            let phase = *self.phase.borrow();
            if phase == Phase::Stop {
                self.asked.fetch_add(asked, Ordering::Relaxed);
                return Ok(());
            }
            let began = Instant::now();
            ask().await?;
            if phase == Phase::Measure {
                recorder.record(began.elapsed());
                asked += 1;
            }
        }
    }
}

/// Runs one round: connects, warms up until SMC has settled, measures.
pub(crate) async fn measure(
    target: &Target,
    transport: Transport,
    load: Load,
    warm_up: Duration,
    measured: Duration,
) -> Result<Sample, Fault> {
    let (phase, phases) = watch::channel(Phase::WarmUp);
    let round = Round { phase: phases, asked: Arc::default(), latencies: Latencies::new() };
    let mut tasks = JoinSet::new();
    let mut watches = Vec::new();
    match load {
        Load::Http1(connections) => {
            for _ in 0..connections {
                watches.extend(http1(target, transport, &round, &mut tasks).await?);
            }
        }
        Load::Http2(streams) => watches.extend(http2(target, transport, streams, &round, &mut tasks).await?),
        Load::Grpc(calls) => watches.extend(grpc(target, transport, calls, &round, &mut tasks).await?),
    }
    tokio::time::sleep(warm_up).await;
    for watch in &mut watches {
        let _ = tokio::time::timeout(Duration::from_secs(2), watch.settled()).await;
    }
    let processes = [std::process::id(), target.process];
    let (began, cpu_before) = (Instant::now(), cpu::of(&processes));
    phase.send_replace(Phase::Measure);
    tokio::time::sleep(measured).await;
    let (took, cpu_after) = (began.elapsed(), cpu::of(&processes));
    let mut ran_on = BTreeMap::new();
    for watch in &watches {
        let transport = watch.transport();
        let words = match transport.fallback_reason() {
            Some(reason) => format!("{transport}: {reason}"),
            None => transport.to_string(),
        };
        *ran_on.entry(words).or_default() += 1;
    }
    phase.send_replace(Phase::Stop);
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    let asked = round.asked.load(Ordering::Relaxed);
    let (_, p50_us, p99_us) = round.latencies.summary();
    let cpu_us = cpu_before
        .zip(cpu_after)
        .map(|(before, after)| after.saturating_sub(before).as_secs_f64() * 1e6 / asked as f64);
    Ok(Sample { requests_per_s: asked as f64 / took.as_secs_f64(), p50_us, p99_us, cpu_us, ran_on })
}

type Tasks = JoinSet<Result<(), Fault>>;

fn serve_http(stream: DuplexStream) {
    tokio::spawn(server::serve_http(stream));
}

fn serve_grpc(stream: DuplexStream) {
    tokio::spawn(server::serve_grpc(futures::stream::iter([Ok(stream)])));
}

fn request(host: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://{host}/hello"))
        .header("host", host)
        .body(Empty::new())
        .expect("a valid request")
}

async fn check(response: hyper::Response<hyper::body::Incoming>) -> Result<(), Fault> {
    let body = response.into_body().collect().await?.to_bytes();
    if body == BODY.as_bytes() { Ok(()) } else { Err(format!("a wrong body: {body:?}").into()) }
}

async fn http1(
    target: &Target,
    transport: Transport,
    round: &Round,
    tasks: &mut Tasks,
) -> Result<Option<TransportWatch>, Fault> {
    let (stream, watch) = target.http.connect(transport, serve_http).await?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (round, sender) = (round.clone(), tokio::sync::Mutex::new(sender));
    tasks.spawn(async move {
        round
            .ask(|| async {
                let mut sender = sender.lock().await;
                sender.ready().await?;
                check(sender.send_request(request("localhost")).await?).await
            })
            .await
    });
    Ok(watch)
}

async fn http2(
    target: &Target,
    transport: Transport,
    streams: usize,
    round: &Round,
    tasks: &mut Tasks,
) -> Result<Option<TransportWatch>, Fault> {
    let (stream, watch) = target.http.connect(transport, serve_http).await?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    for _ in 0..streams {
        let (round, sender) = (round.clone(), sender.clone());
        tasks.spawn(async move {
            round
                .ask(|| {
                    let mut sender = sender.clone();
                    async move {
                        sender.ready().await?;
                        check(sender.send_request(request("localhost")).await?).await
                    }
                })
                .await
        });
    }
    Ok(watch)
}

async fn grpc(
    target: &Target,
    transport: Transport,
    calls: usize,
    round: &Round,
    tasks: &mut Tasks,
) -> Result<Option<TransportWatch>, Fault> {
    let (stream, watch) = target.grpc.connect(transport, serve_grpc).await?;
    let mut stream = Some(TokioIo::new(stream));
    let channel: Channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let stream = stream.take().ok_or("the connection was lost");
            async move { stream }
        }))
        .await?;
    for _ in 0..calls {
        let (round, channel) = (round.clone(), channel.clone());
        tasks.spawn(async move {
            round
                .ask(|| async {
                    let echo = grpc::call(&channel, BODY).await?;
                    if echo.text == BODY { Ok(()) } else { Err(format!("a wrong echo: {echo:?}").into()) }
                })
                .await
        });
    }
    Ok(watch)
}
