//! Processor time of both processes, user and system, exactly while a measurement counts.
//!
//! In each process a thread sleeps to the begin of the measured span and to its end, and reads the
//! CPU clock of its process at both. The server does so when a connection beside those that are
//! measured asks for it ([`Request::Meter`]). What the reading threads take themselves is not
//! counted, so that a process that does nothing comes out as doing nothing.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::medium::{Medium, Tcp};
use crate::wire::{self, Request};

/// How long the server keeps its figure to itself: its span begins and ends a little before the
/// client's, and telling is work that must not fall into that.
const DISCRETION: Duration = Duration::from_millis(10);

/// Nanoseconds that a clock shows.
pub(crate) fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The clocks at one moment, in nanoseconds.
#[derive(Clone, Copy)]
struct Reading {
    wall: u64,
    /// Of the process.
    cpu: u64,
    /// Of the reading thread.
    own: u64,
}

impl Reading {
    /// At the begin of a span the thread's own clock is read first and at the end it is read last:
    /// reading takes time as well, and is not to be found in the account.
    fn begin() -> Self {
        let (own, cpu) = (nanos(ClockId::ThreadCPUTime), nanos(ClockId::ProcessCPUTime));
        Self { wall: nanos(ClockId::Monotonic), cpu, own }
    }

    fn end() -> Self {
        let (wall, cpu) = (nanos(ClockId::Monotonic), nanos(ClockId::ProcessCPUTime));
        Self { wall, cpu, own: nanos(ClockId::ThreadCPUTime) }
    }
}

/// What a process took of its CPUs within a span of time, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    cpu: u64,
    wall: u64,
}

impl Usage {
    fn between(begin: Reading, end: Reading) -> Self {
        // Where there is nothing else to count, the thread's part is a little more than all.
        let cpu = (end.cpu - begin.cpu).saturating_sub(end.own - begin.own);
        Self { cpu, wall: end.wall - begin.wall }
    }

    /// Waits for both moments.
    fn within(begin: Instant, end: Instant) -> Self {
        thread::sleep(begin.saturating_duration_since(Instant::now()));
        let first = Reading::begin();
        thread::sleep(end.saturating_duration_since(Instant::now()));
        Self::between(first, Reading::end())
    }

    pub(crate) fn document(self) -> Value {
        json!({ "cpu_ns": self.cpu, "wall_ns": self.wall })
    }

    fn parse(document: &Value) -> io::Result<Self> {
        let number = |key: &str| {
            document[key].as_u64().ok_or_else(|| wire::invalid("an incomplete account of the server's CPU"))
        };
        let usage = Self { cpu: number("cpu_ns")?, wall: number("wall_ns")? };
        if usage.wall == 0 {
            return Err(wire::invalid("an account of the server's CPU over no time at all"));
        }
        Ok(usage)
    }

    /// Microseconds of CPU in each second.
    fn us_per_s(self) -> f64 {
        self.cpu as f64 / 1e3 / (self.wall as f64 / 1e9)
    }
}

/// Accounts for this process from a thread of its own; the answer comes when the span is over.
fn account(begin: Instant, end: Instant, discretion: Duration) -> oneshot::Receiver<Usage> {
    let (answer, answered) = oneshot::channel();
    thread::spawn(move || {
        let usage = Usage::within(begin, end);
        thread::sleep(discretion);
        // Nobody waits any more when the measurement failed.
        let _ = answer.send(usage);
    });
    answered
}

/// The server's part: the span begins now with the warm-up.
pub(crate) fn serve(warm_up: Duration, measured: Duration) -> oneshot::Receiver<Usage> {
    let begin = Instant::now() + warm_up;
    account(begin, begin + measured, DISCRETION)
}

/// A measured span, and the account of both processes over it.
pub(crate) struct Metered {
    pub(crate) begin: Instant,
    pub(crate) end: Instant,
    client: oneshot::Receiver<Usage>,
    server: TcpStream,
}

impl Metered {
    /// Begins the warm-up: what is to be measured follows at once.
    pub(crate) async fn start(server: &Tcp, warm_up: Duration, measured: Duration) -> io::Result<Self> {
        let mut server = server.connect().await?;
        let request = Request::Meter {
            warm_up_us: warm_up.as_micros() as u32,
            measured_us: measured.as_micros() as u32,
        };
        wire::ask(&mut server, request).await?;
        let begin = Instant::now() + warm_up;
        let end = begin + measured;
        Ok(Self { begin, end, client: account(begin, end, Duration::ZERO), server })
    }

    /// Microseconds of CPU in each second of the span, both processes together; waits for its end.
    pub(crate) async fn us_per_s(mut self) -> io::Result<f64> {
        let client = self.client.await.map_err(io::Error::other)?;
        let server = Usage::parse(&wire::receive_document(&mut self.server).await?)?;
        Ok(client.us_per_s() + server.us_per_s())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(wall: u64, cpu: u64, own: u64) -> Reading {
        Reading { wall, cpu, own }
    }

    #[test]
    fn what_the_reading_thread_takes_is_not_counted() {
        let usage = Usage::between(reading(10, 500, 100), reading(1_000_000_010, 3_000_500, 1_000_100));
        assert_eq!(usage, Usage { cpu: 2_000_000, wall: 1_000_000_000 });
        assert!((usage.us_per_s() - 2000.0).abs() < 1e-9);
        // Nothing but the thread itself, whose clock was read last.
        assert_eq!(Usage::between(reading(0, 7, 7), reading(9, 20, 21)).cpu, 0);
    }

    #[test]
    fn the_span_makes_no_difference_to_what_a_second_takes() {
        let short = Usage { cpu: 1_000_000, wall: 50_000_000 };
        let long = Usage { cpu: 20_000_000, wall: 1_000_000_000 };
        assert!((short.us_per_s() - long.us_per_s()).abs() < 1e-9);
    }

    #[test]
    fn an_account_survives_the_wire_and_a_broken_one_does_not() {
        let usage = Usage { cpu: 0, wall: u64::MAX };
        assert_eq!(Usage::parse(&usage.document()).unwrap(), usage);
        for broken in [
            json!({}),
            json!({ "cpu_ns": 5 }),
            json!({ "cpu_ns": -5, "wall_ns": 7 }),
            json!({ "cpu_ns": 0.5, "wall_ns": 7 }),
            json!({ "cpu_ns": 5, "wall_ns": 0 }),
        ] {
            assert!(Usage::parse(&broken).is_err(), "{broken}");
        }
    }
}
