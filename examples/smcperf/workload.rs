//! The tests, each compiled for each transport; those at a fixed rate are in [`crate::pace`].

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::cpu::Metered;
use crate::failure::{Explain, Failure, Outcome};
use crate::latency::{Latencies, Recorder};
use crate::medium::{Medium, RunsOn, Tcp};
use crate::pace;
use crate::pattern::Pattern;
use crate::wire::{self, FRAME, Report, Request};

/// Bytes of a message of the one-connection ping-pong, unless it is told another number.
pub(crate) const SHORT_MESSAGE: u32 = 14;

/// Round trips that every connection makes before it is measured, whatever it runs on.
const FEWEST_PINGS: u32 = 8;

/// Connections that are settled at the same time: of many thousands that are upgraded at once some
/// stay without an answer.
pub(crate) const GROUP: usize = 500;

/// Messages, and short writes, between two looks at the clock in a stream of them.
const MESSAGES_PER_LOOK: u64 = 64;

/// One test with its numbers, as one line of the results shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// With messages of so many bytes.
    PingPong(u32),
    /// In writes of so many bytes.
    Blocks(u32),
    Messages,
    Connections(u32),
    Connect,
    /// So many requests a second.
    Paced(u32),
    /// None, on so many connections.
    Idle(u32),
}

impl Work {
    pub(crate) fn message_bytes(self) -> usize {
        match self {
            Self::PingPong(bytes) | Self::Blocks(bytes) => bytes as usize,
            Self::Messages | Self::Connections(_) | Self::Connect | Self::Paced(_) | Self::Idle(_) => FRAME,
        }
    }

    pub(crate) fn connections(self) -> u32 {
        match self {
            Self::Connections(connections) | Self::Idle(connections) => connections,
            _ => 1,
        }
    }

    /// Requests per second where those are given.
    pub(crate) fn pace(self) -> Option<u32> {
        match self {
            Self::Paced(per_s) => Some(per_s),
            Self::Idle(_) => Some(0),
            _ => None,
        }
    }

    /// What its CPU time is given for.
    pub(crate) fn unit(self) -> Unit {
        match self {
            Self::PingPong(_) | Self::Messages | Self::Connections(_) | Self::Paced(_) => Unit::Message,
            Self::Blocks(_) => Unit::Mebibyte,
            Self::Connect => Unit::Connect,
            Self::Idle(_) => Unit::Second,
        }
    }
}

/// A piece of work of which the CPU time is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A round trip where messages are answered.
    Message,
    Mebibyte,
    /// With its round trip and the close.
    Connect,
    /// Of waiting.
    Second,
}

/// How long, and with how much patience.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
    /// How long connections that can be upgraded, as many as a [`GROUP`] has, may take for it
    /// before they are measured as they are.
    pub(crate) patience: Duration,
}

impl Span {
    /// Begins it, with both processes accounting for their CPU time.
    pub(crate) async fn meter(&self, server: &Tcp) -> io::Result<Metered> {
        Metered::start(server, self.warm_up, self.measured).await
    }
}

/// What fails when that does.
pub(crate) const METERING: &str = "the CPU time of both processes";

/// What one round of one test over one transport gave; what does not apply is absent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) rtt_p50_us: Option<f64>,
    pub(crate) rtt_p99_us: Option<f64>,
    pub(crate) msgs_per_s: Option<f64>,
    pub(crate) bytes_per_s: Option<f64>,
    pub(crate) connects_per_s: Option<f64>,
    /// CPU time of both processes for each [`Unit`] of the work.
    pub(crate) cpu_us: Option<f64>,
    /// What of it the thread took that hands over requests when they are due.
    pub(crate) pacing_us: Option<f64>,
    /// How many connections ran on what, asked at both ends when the measurement was over.
    pub(crate) ran_on: BTreeMap<RunsOn, u64>,
}

impl Sample {
    /// With the CPU time of a second turned into that of each unit of what was done in one.
    fn per(mut self, unit: Unit) -> Self {
        let units_per_s = match unit {
            Unit::Message => self.msgs_per_s,
            Unit::Mebibyte => self.bytes_per_s.map(|bytes| bytes / f64::from(1 << 20)),
            Unit::Connect => self.connects_per_s,
            Unit::Second => Some(1.0),
        };
        self.cpu_us =
            self.cpu_us.zip(units_per_s).filter(|&(_, units)| units > 0.0).map(|(cpu, units)| cpu / units);
        self
    }
}

/// One round over `medium`; `server` is where the CPU time of the server process is asked for.
pub(crate) async fn measure<M: Medium>(
    medium: M,
    work: Work,
    span: Span,
    pattern: Arc<Pattern>,
    server: Tcp,
) -> Outcome<Sample> {
    let server = &server;
    let sample = match work {
        Work::PingPong(_) | Work::Connections(_) => ping_pong(medium, work, span, pattern, server).await,
        Work::Blocks(bytes) => stream_blocks(medium, bytes, span, &pattern, server)
            .await
            .explain(|| "streaming blocks".to_owned()),
        Work::Messages => {
            stream_messages(medium, span, &pattern, server).await.explain(|| "streaming messages".to_owned())
        }
        Work::Connect => connect(medium, span, server).await,
        Work::Paced(per_s) => pace::paced(medium, per_s, span, pattern, server).await,
        Work::Idle(connections) => pace::idle(medium, connections, span, &pattern, server).await,
    };
    Ok(sample?.per(work.unit()))
}

/// Exchanges pings until both ends run on loopback-ism, or patience ends.
pub(crate) async fn settle<M: Medium>(stream: &mut M::Stream, until: Instant) -> io::Result<()> {
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
pub(crate) async fn finish<M: Medium>(stream: &mut M::Stream, sent: u64) -> io::Result<(RunsOn, Report)> {
    let own = M::runs_on(stream);
    stream.shutdown().await?;
    let report = Report::parse(&wire::receive_document(stream).await?)?;
    if report.bytes != sent {
        return Err(wire::invalid(&format!("{sent} bytes were sent, the server received {}", report.bytes)));
    }
    Ok((report.joint(own), report))
}

/// Connections that are settled, and on which messages of `message_bytes` come back.
pub(crate) async fn gather<M: Medium>(
    medium: &M,
    connections: u32,
    message_bytes: usize,
    span: Span,
) -> Outcome<Vec<M::Stream>> {
    let mut streams = Vec::new();
    for number in 1..=connections {
        let name = || format!("connection {number} of {connections}");
        let mut stream = medium.connect().await.explain(name)?;
        wire::ask(&mut stream, Request::Ping).await.explain(name)?;
        streams.push(stream);
    }
    let mut settled = Vec::new();
    let mut streams = streams.into_iter().peekable();
    while streams.peek().is_some() {
        let patient_until = Instant::now() + span.patience;
        let mut settling = JoinSet::new();
        for mut stream in streams.by_ref().take(GROUP) {
            settling.spawn(async move {
                settle::<M>(&mut stream, patient_until).await?;
                wire::ask(&mut stream, Request::Echo { message_bytes: message_bytes as u32 }).await?;
                Ok(stream)
            });
        }
        settled.extend(all(settling).await.explain(|| "warming up".to_owned())?);
    }
    Ok(settled)
}

/// Messages that come back, one at a time on each of the connections, one task each.
async fn ping_pong<M: Medium>(
    medium: M,
    work: Work,
    span: Span,
    pattern: Arc<Pattern>,
    server: &Tcp,
) -> Outcome<Sample> {
    let message_bytes = work.message_bytes();
    let streams = gather(&medium, work.connections(), message_bytes, span).await?;
    let latencies = Latencies::new();
    let metered = span.meter(server).await.explain(|| METERING.to_owned())?;
    let (begin, end) = (metered.begin, metered.end);
    let mut playing = JoinSet::new();
    for (number, mut stream) in (0_u64..).zip(streams) {
        let mut recorder = latencies.recorder();
        let pattern = Arc::clone(&pattern);
        // Before the begin: a long message takes its time.
        let message = pattern.message(message_bytes);
        playing.spawn(async move {
            // Messages of different connections differ, so that a mix-up shows.
            let first = number << 40;
            let messages =
                rally::<M>(&mut stream, message, first, &pattern, Window { begin, end }, &mut recorder)
                    .await?;
            let (ran_on, _) = finish::<M>(&mut stream, messages * message_bytes as u64).await?;
            Ok(ran_on)
        });
    }
    let mut sample = Sample::default();
    for ran_on in all(playing).await.explain(|| "ping-pong".to_owned())? {
        *sample.ran_on.entry(ran_on).or_default() += 1;
    }
    sample.cpu_us = Some(metered.us_per_s().await.explain(|| METERING.to_owned())?);
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
async fn rally<M: Medium>(
    stream: &mut M::Stream,
    mut message: Vec<u8>,
    first: u64,
    pattern: &Pattern,
    window: Window,
    recorder: &mut Recorder,
) -> io::Result<u64> {
    let mut echo = vec![0; message.len()];
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

/// One connection, settled and told what is to come; and the span until when it is sent.
async fn begin_stream<M: Medium>(
    medium: &M,
    span: Span,
    request: Request,
    server: &Tcp,
) -> io::Result<(M::Stream, Metered)> {
    let mut stream = medium.connect().await?;
    settle::<M>(&mut stream, Instant::now() + span.patience).await?;
    wire::ask(&mut stream, request).await?;
    let metered = span.meter(server).await?;
    Ok((stream, metered))
}

async fn stream_blocks<M: Medium>(
    medium: M,
    bytes: u32,
    span: Span,
    pattern: &Pattern,
    server: &Tcp,
) -> io::Result<Sample> {
    let writes = pattern.writes(bytes as usize);
    let request = Request::Blocks { warm_up_us: span.warm_up.as_micros() as u32, lap: writes.lap() as u32 };
    let (mut stream, metered) = begin_stream(&medium, span, request, server).await?;
    let writes_per_look = if bytes as usize <= FRAME { MESSAGES_PER_LOOK } else { 1 };
    let mut written = 0;
    let mut lost = None;
    while written % writes_per_look != 0 || Instant::now() < metered.end {
        if let Err(error) = stream.write_all(writes.at(written)).await {
            lost = Some(error);
            break;
        }
        written += 1;
    }
    let sample = end_stream::<M>(stream, written * u64::from(bytes), lost, metered).await?;
    Ok(Sample { msgs_per_s: None, ..sample })
}

async fn stream_messages<M: Medium>(
    medium: M,
    span: Span,
    pattern: &Pattern,
    server: &Tcp,
) -> io::Result<Sample> {
    let warm_up_us = span.warm_up.as_micros() as u32;
    let (mut stream, metered) = begin_stream(&medium, span, Request::Messages { warm_up_us }, server).await?;
    let mut message = [0; FRAME];
    let mut messages = 0;
    let mut lost = None;
    while messages % MESSAGES_PER_LOOK != 0 || Instant::now() < metered.end {
        pattern.stamp(messages, &mut message);
        if let Err(error) = stream.write_all(&message).await {
            lost = Some(error);
            break;
        }
        messages += 1;
    }
    end_stream::<M>(stream, messages * FRAME as u64, lost, metered).await
}

/// The figures of a stream as its receiver measured them. After a failed write the server may still
/// have said why.
async fn end_stream<M: Medium>(
    mut stream: M::Stream,
    sent: u64,
    lost: Option<io::Error>,
    metered: Metered,
) -> io::Result<Sample> {
    if let Some(error) = lost {
        let word = tokio::time::timeout(Duration::from_secs(1), wire::receive_document(&mut stream)).await;
        return match word {
            Ok(Ok(document)) => Err(Report::parse(&document).err().unwrap_or(error)),
            _ => Err(error),
        };
    }
    let (ran_on, report) = finish::<M>(&mut stream, sent).await?;
    let cpu_us = metered.us_per_s().await?;
    let bytes_per_s = report.measured_bytes as f64 / (report.nanos.max(1) as f64 / 1e9);
    Ok(Sample {
        bytes_per_s: Some(bytes_per_s),
        msgs_per_s: Some(bytes_per_s / FRAME as f64),
        cpu_us: Some(cpu_us),
        ran_on: BTreeMap::from([(ran_on, 1)]),
        ..Sample::default()
    })
}

/// Connections one after the other, each for one round trip.
async fn connect<M: Medium>(medium: M, span: Span, server: &Tcp) -> Outcome<Sample> {
    let latencies = Latencies::new();
    let mut recorder = latencies.recorder();
    let mut sample = Sample::default();
    let metered = span.meter(server).await.explain(|| METERING.to_owned())?;
    let (begin, end) = (metered.begin, metered.end);
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
    sample.cpu_us = Some(metered.us_per_s().await.explain(|| METERING.to_owned())?);
    let (count, p50, p99) = latencies.summary();
    sample.rtt_p50_us = p50;
    sample.rtt_p99_us = p99;
    sample.connects_per_s = Some(count as f64 / span.measured.as_secs_f64());
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_given_for_what_was_done() {
        let second = || Sample { cpu_us: Some(1e6), ..Sample::default() };
        let cpu = |sample: Sample, work: Work| sample.per(work.unit()).cpu_us;
        let messages = || Sample { msgs_per_s: Some(5000.0), ..second() };
        for work in [Work::PingPong(14), Work::Messages, Work::Connections(8), Work::Paced(5000)] {
            assert_eq!(cpu(messages(), work), Some(200.0));
        }
        let bytes = Sample { bytes_per_s: Some(f64::from(1 << 30)), ..second() };
        assert_eq!(cpu(bytes, Work::Blocks(1)), Some(1e6 / 1024.0));
        let connects = Sample { connects_per_s: Some(1e4), ..second() };
        assert_eq!(cpu(connects, Work::Connect), Some(100.0));
        assert_eq!(cpu(second(), Work::Idle(100)), Some(1e6));
        // Nothing done, nothing to share it among.
        assert_eq!(cpu(Sample { msgs_per_s: Some(0.0), ..second() }, Work::PingPong(14)), None);
    }
}
