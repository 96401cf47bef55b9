//! The five tests, each compiled for each transport.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::failure::{Explain, Failure, Outcome};
use crate::latency::{Latencies, Recorder};
use crate::medium::{Medium, RunsOn};
use crate::pattern::{BLOCK, Pattern};
use crate::wire::{self, FRAME, Report, Request};

/// Bytes of a message of the one-connection ping-pong.
pub(crate) const SHORT_MESSAGE: usize = 14;

/// Round trips that every connection makes before it is measured, whatever it runs on.
const FEWEST_PINGS: u32 = 8;

/// Messages between two looks at the clock in the message stream.
const MESSAGES_PER_LOOK: u64 = 64;

/// One test with its numbers, as one line of the results shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    PingPong,
    Blocks,
    Messages,
    Connections(u32),
    Connect,
}

impl Work {
    pub(crate) fn message_bytes(self) -> usize {
        match self {
            Self::PingPong => SHORT_MESSAGE,
            Self::Blocks => BLOCK,
            Self::Messages | Self::Connections(_) | Self::Connect => FRAME,
        }
    }

    pub(crate) fn connections(self) -> u32 {
        match self {
            Self::Connections(connections) => connections,
            _ => 1,
        }
    }
}

/// How long, and with how much patience.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
    /// How long connections that can be upgraded may take for it before they are measured as they
    /// are.
    pub(crate) patience: Duration,
}

/// What one round of one test over one transport gave; what does not apply is absent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) rtt_p50_us: Option<f64>,
    pub(crate) rtt_p99_us: Option<f64>,
    pub(crate) msgs_per_s: Option<f64>,
    pub(crate) bytes_per_s: Option<f64>,
    pub(crate) connects_per_s: Option<f64>,
    /// How many connections ran on what, asked at both ends when the measurement was over.
    pub(crate) ran_on: BTreeMap<RunsOn, u64>,
}

pub(crate) async fn measure<M: Medium>(
    medium: M,
    work: Work,
    span: Span,
    pattern: Arc<Pattern>,
) -> Outcome<Sample> {
    match work {
        Work::PingPong => ping_pong::<M, SHORT_MESSAGE>(medium, 1, span, pattern).await,
        Work::Connections(connections) => ping_pong::<M, FRAME>(medium, connections, span, pattern).await,
        Work::Blocks => stream_blocks(medium, span, &pattern).await.explain(|| "streaming blocks".to_owned()),
        Work::Messages => {
            stream_messages(medium, span, &pattern).await.explain(|| "streaming messages".to_owned())
        }
        Work::Connect => connect(medium, span).await,
    }
}

/// Exchanges pings until both ends run on loopback-ism, or patience ends.
async fn settle<M: Medium>(stream: &mut M::Stream, until: Instant) -> io::Result<()> {
    let mut pings = 0;
    loop {
        let theirs = wire::ask(stream, Request::Ping).await?;
        let settled = !M::UPGRADES || (theirs && M::is_on_ism(stream));
        pings += 1;
        if pings >= FEWEST_PINGS {
            if settled || Instant::now() >= until {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Ends a measurement: what the connection ran on, and what the server saw of it.
async fn finish<M: Medium>(stream: &mut M::Stream, sent: u64) -> io::Result<(RunsOn, Report)> {
    let own = M::runs_on(stream);
    stream.shutdown().await?;
    let report = Report::parse(&wire::receive_document(stream).await?)?;
    if report.bytes != sent {
        return Err(wire::invalid(&format!("{sent} bytes were sent, the server received {}", report.bytes)));
    }
    Ok((report.joint(own), report))
}

/// Messages of `N` bytes that come back, one at a time on each of the connections, one task each.
async fn ping_pong<M: Medium, const N: usize>(
    medium: M,
    connections: u32,
    span: Span,
    pattern: Arc<Pattern>,
) -> Outcome<Sample> {
    let mut streams = Vec::new();
    for number in 1..=connections {
        let name = || format!("connection {number} of {connections}");
        let mut stream = medium.connect().await.explain(name)?;
        wire::ask(&mut stream, Request::Ping).await.explain(name)?;
        streams.push(stream);
    }
    let patient_until = Instant::now() + span.patience;
    let mut settling = JoinSet::new();
    for mut stream in streams {
        settling.spawn(async move {
            settle::<M>(&mut stream, patient_until).await?;
            wire::ask(&mut stream, Request::Echo { message_bytes: N as u32 }).await?;
            Ok(stream)
        });
    }
    let streams = all(settling).await.explain(|| "warming up".to_owned())?;

    let latencies = Latencies::new();
    let begin = Instant::now() + span.warm_up;
    let end = begin + span.measured;
    let mut playing = JoinSet::new();
    for (number, mut stream) in (0_u64..).zip(streams) {
        let mut recorder = latencies.recorder();
        let pattern = Arc::clone(&pattern);
        playing.spawn(async move {
            // Messages of different connections differ, so that a mix-up shows.
            let first = number << 40;
            let messages =
                rally::<M, N>(&mut stream, first, &pattern, Window { begin, end }, &mut recorder).await?;
            let (ran_on, _) = finish::<M>(&mut stream, messages * N as u64).await?;
            Ok(ran_on)
        });
    }
    let mut sample = Sample::default();
    for ran_on in all(playing).await.explain(|| "ping-pong".to_owned())? {
        *sample.ran_on.entry(ran_on).or_default() += 1;
    }
    let (count, p50, p99) = latencies.summary();
    sample.rtt_p50_us = p50;
    sample.rtt_p99_us = p99;
    sample.msgs_per_s = Some(count as f64 / span.measured.as_secs_f64());
    Ok(sample)
}

#[derive(Clone, Copy)]
struct Window {
    begin: Instant,
    end: Instant,
}

/// Plays until the window ends and records the round trips that end within it; returns how many
/// there were in all.
async fn rally<M: Medium, const N: usize>(
    stream: &mut M::Stream,
    first: u64,
    pattern: &Pattern,
    window: Window,
    recorder: &mut Recorder,
) -> io::Result<u64> {
    let mut message = [0; N];
    let mut echo = [0; N];
    let mut played = 0;
    let mut last = Instant::now();
    loop {
        pattern.stamp(first + played, &mut message);
        stream.write_all(&message).await?;
        stream.read_exact(&mut echo).await?;
        if echo != message {
            return Err(wire::invalid(&format!("message {played} came back changed or out of order")));
        }
        played += 1;
        let now = Instant::now();
        if now >= window.end {
            return Ok(played);
        }
        if now >= window.begin {
            recorder.record(now - last);
        }
        last = now;
    }
}

/// Waits for all tasks; the first error, or panic, ends the others.
async fn all<T: Send + 'static>(mut tasks: JoinSet<io::Result<T>>) -> io::Result<Vec<T>> {
    let mut results = Vec::with_capacity(tasks.len());
    while let Some(joined) = tasks.join_next().await {
        results.push(joined.map_err(io::Error::other)??);
    }
    Ok(results)
}

/// One connection, settled and told what is to come; and when to stop sending.
async fn begin_stream<M: Medium>(
    medium: &M,
    span: Span,
    request: Request,
) -> io::Result<(M::Stream, Instant)> {
    let mut stream = medium.connect().await?;
    settle::<M>(&mut stream, Instant::now() + span.patience).await?;
    wire::ask(&mut stream, request).await?;
    Ok((stream, Instant::now() + span.warm_up + span.measured))
}

async fn stream_blocks<M: Medium>(medium: M, span: Span, pattern: &Pattern) -> io::Result<Sample> {
    let warm_up_us = span.warm_up.as_micros() as u32;
    let (mut stream, end) = begin_stream(&medium, span, Request::Blocks { warm_up_us }).await?;
    let mut blocks = 0;
    let mut lost = None;
    while Instant::now() < end {
        if let Err(error) = stream.write_all(pattern.block(blocks)).await {
            lost = Some(error);
            break;
        }
        blocks += 1;
    }
    let sample = end_stream::<M>(stream, blocks * BLOCK as u64, lost).await?;
    Ok(Sample { msgs_per_s: None, ..sample })
}

async fn stream_messages<M: Medium>(medium: M, span: Span, pattern: &Pattern) -> io::Result<Sample> {
    let warm_up_us = span.warm_up.as_micros() as u32;
    let (mut stream, end) = begin_stream(&medium, span, Request::Messages { warm_up_us }).await?;
    let mut message = [0; FRAME];
    let mut messages = 0;
    let mut lost = None;
    while messages % MESSAGES_PER_LOOK != 0 || Instant::now() < end {
        pattern.stamp(messages, &mut message);
        if let Err(error) = stream.write_all(&message).await {
            lost = Some(error);
            break;
        }
        messages += 1;
    }
    end_stream::<M>(stream, messages * FRAME as u64, lost).await
}

/// The figures of a stream as its receiver measured them. After a failed write the server may still
/// have said why.
async fn end_stream<M: Medium>(
    mut stream: M::Stream,
    sent: u64,
    lost: Option<io::Error>,
) -> io::Result<Sample> {
    if let Some(error) = lost {
        let word = tokio::time::timeout(Duration::from_secs(1), wire::receive_document(&mut stream)).await;
        return match word {
            Ok(Ok(document)) => Err(Report::parse(&document).err().unwrap_or(error)),
            _ => Err(error),
        };
    }
    let (ran_on, report) = finish::<M>(&mut stream, sent).await?;
    let bytes_per_s = report.measured_bytes as f64 / (report.nanos.max(1) as f64 / 1e9);
    Ok(Sample {
        bytes_per_s: Some(bytes_per_s),
        msgs_per_s: Some(bytes_per_s / FRAME as f64),
        ran_on: BTreeMap::from([(ran_on, 1)]),
        ..Sample::default()
    })
}

/// Connections one after the other, each for one round trip.
async fn connect<M: Medium>(medium: M, span: Span) -> Outcome<Sample> {
    let latencies = Latencies::new();
    let mut recorder = latencies.recorder();
    let mut sample = Sample::default();
    let begin = Instant::now() + span.warm_up;
    let end = begin + span.measured;
    let mut last = Instant::now();
    let mut kinds: Vec<(M::Kind, u64)> = Vec::new();
    while last < end {
        let mut stream = medium.connect().await.map_err(|error| match error.kind() {
            io::ErrorKind::AddrNotAvailable => Failure::new(
                "out of local ports: those of closed connections stay taken for a while; try fewer --seconds",
            ),
            _ => Failure::new(format!("connecting: {error}")),
        })?;
        wire::ask(&mut stream, Request::Ping).await.explain(|| "a round trip".to_owned())?;
        let kind = M::kind(&stream);
        drop(stream);
        let now = Instant::now();
        if now >= begin && now < end {
            recorder.record(now - last);
            match kinds.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, count)) => *count += 1,
                None => kinds.push((kind, 1)),
            }
        }
        last = now;
    }
    for (kind, count) in kinds {
        *sample.ran_on.entry(M::describe(kind)).or_default() += count;
    }
    drop(recorder);
    let (count, p50, p99) = latencies.summary();
    sample.rtt_p50_us = p50;
    sample.rtt_p99_us = p99;
    sample.connects_per_s = Some(count as f64 / span.measured.as_secs_f64());
    Ok(sample)
}
