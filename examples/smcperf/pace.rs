//! Requests at a fixed rate, whatever becomes of the answers (an open loop), and at no rate at all.
//!
//! A thread outside the runtime sleeps to the moment at which each request is due and hands it to
//! the runtime, so that the runtime has nothing to do between two. The time of a request counts
//! from when it was due: what is handed over late, or waits behind others, is not hidden. The next
//! request does not wait for the answer to the last one.

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{clock_nanosleep_absolute, set_current_timer_slack};
use rustix::time::{ClockId, Timespec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

use crate::cpu::nanos;
use crate::failure::{Explain, Outcome};
use crate::latency::{Latencies, Recorder};
use crate::medium::{Medium, Tcp};
use crate::pattern::Pattern;
use crate::wire::{self, FRAME, Request};
use crate::workload::{METERING, Sample, Span, finish, gather, settle};

/// When each request is due, in nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    /// The first request of the warm-up.
    first: u64,
    period: u64,
    /// Requests of the warm-up.
    uncounted: u64,
    /// All requests.
    requests: u64,
}

impl Schedule {
    /// `per_s` requests a second: as many before `begin` as fit into the warm-up, and those that
    /// are due in the measured time from then on.
    fn new(begin: u64, per_s: u32, warm_up: Duration, measured: Duration) -> Self {
        let period = 1_000_000_000 / u64::from(per_s);
        let uncounted = warm_up.as_nanos() as u64 / period;
        let counted = (measured.as_nanos() as u64).div_ceil(period);
        Self { first: begin - uncounted * period, period, uncounted, requests: uncounted + counted }
    }

    fn due(&self, request: u64) -> u64 {
        self.first + request * self.period
    }

    fn counted(&self) -> u64 {
        self.requests - self.uncounted
    }

    /// Records an answer that came at `now`, from when its request was due, unless that belongs to
    /// the warm-up.
    fn record(&self, request: u64, now: u64, recorder: &mut Recorder) {
        if request >= self.uncounted {
            recorder.record(Duration::from_nanos(now.saturating_sub(self.due(request))));
        }
    }

    /// Counted answers per second when the last one came at `last`: the rate of the schedule,
    /// unless the answers fell behind it.
    fn answers_per_s(&self, last: u64) -> f64 {
        let begin = self.due(self.uncounted);
        let end = self.due(self.requests).max(last);
        self.counted() as f64 / ((end - begin) as f64 / 1e9)
    }
}

fn sleep_until(due: u64) {
    let (tv_sec, tv_nsec) = ((due / 1_000_000_000) as i64, (due % 1_000_000_000) as i64);
    // A signal would be no reason to be early.
    while clock_nanosleep_absolute(ClockId::Monotonic, &Timespec { tv_sec, tv_nsec }).is_err() {}
}

/// Hands over each request when it is due; returns the CPU time that this took of the thread for
/// the counted ones, in nanoseconds.
fn pace(schedule: Schedule, due: &mpsc::UnboundedSender<u64>) -> u64 {
    // Without it a sleep may last 50 µs longer than asked for: a whole period at the highest rate.
    let _ = set_current_timer_slack(NonZeroU64::new(1));
    let mut before = 0;
    for request in 0..schedule.requests {
        sleep_until(schedule.due(request));
        if request == schedule.uncounted {
            before = nanos(ClockId::ThreadCPUTime);
        }
        if due.send(request).is_err() {
            break;
        }
    }
    nanos(ClockId::ThreadCPUTime) - before
}

/// `per_s` requests of [`FRAME`] bytes a second over one connection, each answered.
pub(crate) async fn paced<M: Medium>(
    medium: M,
    per_s: u32,
    span: Span,
    pattern: Arc<Pattern>,
    server: &Tcp,
) -> Outcome<Sample> {
    let mut stream = medium.connect().await.explain(|| "connecting".to_owned())?;
    settle::<M>(&mut stream, Instant::now() + span.patience).await.explain(|| "warming up".to_owned())?;
    wire::ask(&mut stream, Request::Echo { message_bytes: FRAME as u32 })
        .await
        .explain(|| "warming up".to_owned())?;

    let metered = span.meter(server).await.explain(|| METERING.to_owned())?;
    let begin =
        nanos(ClockId::Monotonic) + metered.begin.saturating_duration_since(Instant::now()).as_nanos() as u64;
    let schedule = Schedule::new(begin, per_s, span.warm_up, span.measured);
    let (hand, due) = mpsc::unbounded_channel();
    let (took, taken) = oneshot::channel();
    thread::spawn(move || {
        // Nobody waits any more when the connection failed.
        let _ = took.send(pace(schedule, &hand));
    });
    let latencies = Latencies::new();
    let (mut stream, last) = exchange::<M>(stream, schedule, due, latencies.recorder(), &pattern)
        .await
        .explain(|| "paced requests".to_owned())?;
    let pacing = taken.await.explain(|| "the pacing thread".to_owned())?;
    let cpu_us = metered.us_per_s().await.explain(|| METERING.to_owned())?;
    let (ran_on, _) = finish::<M>(&mut stream, schedule.requests * FRAME as u64)
        .await
        .explain(|| "ending the connection".to_owned())?;

    let (_, p50, p99) = latencies.summary();
    let mut sample = Sample {
        rtt_p50_us: p50,
        rtt_p99_us: p99,
        msgs_per_s: Some(schedule.answers_per_s(last)),
        cpu_us: Some(cpu_us),
        pacing_us: Some(pacing as f64 / 1e3 / schedule.counted() as f64),
        ..Sample::default()
    };
    sample.ran_on.insert(ran_on, 1);
    Ok(sample)
}

/// Writes each request as it is handed over and reads each answer as it comes; returns when the
/// last one came.
async fn exchange<M: Medium>(
    stream: M::Stream,
    schedule: Schedule,
    mut due: mpsc::UnboundedReceiver<u64>,
    mut recorder: Recorder,
    pattern: &Pattern,
) -> io::Result<(M::Stream, u64)> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        let mut message = [0; FRAME];
        while let Some(request) = due.recv().await {
            pattern.stamp(request, &mut message);
            writer.write_all(&message).await?;
        }
        Ok(())
    };
    let read = async {
        let mut answer = [0; FRAME];
        let mut now = 0;
        for request in 0..schedule.requests {
            reader.read_exact(&mut answer).await?;
            now = nanos(ClockId::Monotonic);
            if !pattern.is_message(request, &answer) {
                return Err(wire::invalid(&format!("message {request} came back changed or out of order")));
            }
            schedule.record(request, now, &mut recorder);
        }
        Ok(now)
    };
    // One task does both, as that of a library which shares a connection does.
    let ((), last) = tokio::try_join!(write, read)?;
    Ok((reader.unsplit(writer), last))
}

/// Connections that are ready, and silent while the CPU of both processes is looked at.
pub(crate) async fn idle<M: Medium>(
    medium: M,
    connections: u32,
    span: Span,
    pattern: &Pattern,
    server: &Tcp,
) -> Outcome<Sample> {
    let streams = gather(&medium, connections, FRAME, span).await?;
    let metered = span.meter(server).await.explain(|| METERING.to_owned())?;
    let cpu_us = metered.us_per_s().await.explain(|| METERING.to_owned())?;
    let mut sample = Sample { cpu_us: Some(cpu_us), ..Sample::default() };
    for (number, mut stream) in (0_u64..).zip(streams) {
        // That they were silent says nothing if they were dead.
        let ran_on = async {
            let (mut message, mut echo) = ([0; FRAME], [0; FRAME]);
            pattern.stamp(number, &mut message);
            stream.write_all(&message).await?;
            stream.read_exact(&mut echo).await?;
            if echo != message {
                return Err(wire::invalid("a message came back changed"));
            }
            Ok(finish::<M>(&mut stream, FRAME as u64).await?.0)
        };
        let ran_on = ran_on.await.explain(|| format!("connection {number} after its silence"))?;
        *sample.ran_on.entry(ran_on).or_default() += 1;
    }
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn schedule(per_s: u32) -> Schedule {
        Schedule::new(1_000 * MS, per_s, Duration::from_millis(10), Duration::from_millis(100))
    }

    #[test]
    fn what_is_due_when() {
        let schedule = schedule(1000);
        assert_eq!((schedule.uncounted, schedule.counted()), (10, 100));
        assert_eq!(
            (schedule.due(0), schedule.due(10), schedule.due(109)),
            (990 * MS, 1_000 * MS, 1_099 * MS)
        );
        // A warm-up that is shorter than a period has no request; a measurement has one at least.
        let rare = Schedule::new(0, 1, Duration::from_millis(10), Duration::from_millis(100));
        assert_eq!((rare.uncounted, rare.requests, rare.due(0)), (0, 1, 0));
        for per_s in [100, 1000, 5000, 20_000] {
            let second = Schedule::new(0, per_s, Duration::ZERO, Duration::from_secs(1));
            assert_eq!(second.counted(), u64::from(per_s));
        }
    }

    /// Percentiles when every answer comes `delay` after the request was due, but none before
    /// `stalled_until`.
    fn percentiles(schedule: Schedule, delay: u64, stalled_until: u64) -> (u64, f64, f64) {
        let latencies = Latencies::new();
        let mut recorder = latencies.recorder();
        for request in 0..schedule.requests {
            let now = (schedule.due(request) + delay).max(stalled_until);
            schedule.record(request, now, &mut recorder);
        }
        drop(recorder);
        let (count, p50, p99) = latencies.summary();
        (count, p50.unwrap(), p99.unwrap())
    }

    #[test]
    fn times_count_from_when_a_request_was_due() {
        let near = |time: f64, expected: f64| assert!((time / expected - 1.0).abs() < 0.01, "{time}");
        let (count, p50, p99) = percentiles(schedule(1000), 30_000, 0);
        assert_eq!(count, 100);
        near(p50, 30.0);
        near(p99, 30.0);
        // A stall of 60 of the 100 ms delays 60 requests, by 60, 59, … ms, not one by 60 ms.
        let (count, p50, p99) = percentiles(schedule(1000), 30_000, 1_060 * MS);
        assert_eq!(count, 100);
        near(p50, 10_000.0);
        near(p99, 59_000.0);
        // One that ends within the warm-up delays none that counts.
        let (_, _, p99) = percentiles(schedule(1000), 30_000, 999 * MS);
        near(p99, 30.0);
    }

    #[test]
    fn answers_that_fall_behind_lower_the_rate() {
        let schedule = schedule(1000);
        assert!((schedule.answers_per_s(1_099 * MS + 50_000) - 1000.0).abs() < 1e-6);
        assert!((schedule.answers_per_s(1_200 * MS) - 500.0).abs() < 1e-6);
    }

    #[test]
    fn the_pacing_thread_hands_over_all_and_none_early() {
        let begin = nanos(ClockId::Monotonic) + 5 * MS;
        let schedule = Schedule::new(begin, 20_000, Duration::from_millis(2), Duration::from_millis(10));
        let (hand, mut due) = mpsc::unbounded_channel();
        let pacing = thread::spawn(move || pace(schedule, &hand));
        for request in 0..schedule.requests {
            assert_eq!(due.blocking_recv(), Some(request));
            assert!(nanos(ClockId::Monotonic) >= schedule.due(request));
        }
        assert_eq!(due.blocking_recv(), None);
        pacing.join().unwrap();
    }
}
