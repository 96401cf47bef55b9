//! What this machine could do at best, with nothing between the work and the hardware: the figures
//! that the transports can come near to, but not pass by much.

#![allow(clippy::disallowed_types, reason = "a program, which loom does not run")]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::sync::oneshot;

use crate::failure::{Explain, Outcome};
use crate::pages::exchange;
use crate::pattern::{BLOCK, Pattern};
use crate::workload::{SHORT_MESSAGE, Sample, Work};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Two pinned threads that bounce a cache line: beside `pp`.
    Spin,
    /// One pinned thread that copies blocks and compares each copy with what it must be, as the
    /// receiver of `tp` does: beside `tp`.
    VerifiedCopy,
    /// Two pinned threads: one copies blocks into memory that both have, the other one copies them
    /// out and compares: what is left when the bytes have to come from another core.
    HandedOver,
    /// One thread, without comparing.
    Copy,
    /// Two pinned threads that write, look and compare, in pages of as many connections: beside
    /// `conns`.
    Pages(u32),
}

impl Limit {
    pub(crate) fn of(work: Work) -> Vec<Self> {
        match work {
            Work::PingPong(SHORT_MESSAGE) => vec![Self::Spin],
            Work::Blocks(bytes) if bytes as usize == BLOCK => {
                vec![Self::VerifiedCopy, Self::HandedOver, Self::Copy]
            }
            Work::Connections(number) => vec![Self::Pages(number)],
            _ => Vec::new(),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Spin => "bare spin",
            Self::VerifiedCopy => "memcpy, verified",
            Self::HandedOver => "memcpy from another core, verified",
            Self::Copy => "memcpy",
            Self::Pages(_) => "bare pages",
        }
    }

    /// Measures it for about `time`; none when this process has too few CPUs for it.
    pub(crate) async fn measure(self, time: Duration, pattern: &Arc<Pattern>) -> Outcome<Option<Sample>> {
        let pattern = Arc::clone(pattern);
        let (answer, answered) = oneshot::channel();
        // A thread for it alone: one of the runtime would stay pinned.
        thread::spawn(move || {
            let cpus = usable_cpus();
            let pair = cpus.first().copied().zip(cpus.get(1).copied());
            let sample = match self {
                Self::Spin => pair.map(|(here, there)| Sample {
                    rtt_p50_us: Some(spin(here, there, time)),
                    ..Sample::default()
                }),
                Self::HandedOver => pair.map(|(here, there)| Sample {
                    bytes_per_s: Some(hand_over(&pattern, here, there, time)),
                    ..Sample::default()
                }),
                Self::Pages(connections) => pair.map(|(here, there)| Sample {
                    msgs_per_s: Some(exchange(connections, &pattern, here, there, time)),
                    ..Sample::default()
                }),
                Self::VerifiedCopy | Self::Copy => {
                    cpus.first().into_iter().for_each(|&cpu| pin(cpu));
                    let rate = copy(&pattern, self == Self::VerifiedCopy, time);
                    Some(Sample { bytes_per_s: Some(rate), ..Sample::default() })
                }
            };
            // Nobody waits any more when the run was given up.
            let _ = answer.send(sample);
        });
        answered.await.explain(|| format!("the thread that measures {}", self.name()))
    }
}

fn usable_cpus() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else { return Vec::new() };
    (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
}

/// Keeps the calling thread on one CPU; where that is forbidden, it is at least one thread.
pub(crate) fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    let _ = sched_setaffinity(None, &set);
}

/// A number on a cache line of its own, and not on the one that a prefetcher takes with another.
#[repr(align(128))]
struct Line(AtomicU64);

impl Line {
    const END: u64 = u64::MAX;

    fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Looks until there is another number than `known`.
    fn next(&self, known: u64) -> u64 {
        loop {
            // Several looks without a pause between them: a pause takes as long as the line.
            for _ in 0..64 {
                // Pairs with the store of the other thread in `say`.
                let number = self.0.load(Ordering::Acquire);
                if number != known {
                    return number;
                }
            }
            std::hint::spin_loop();
        }
    }

    fn say(&self, number: u64) {
        self.0.store(number, Ordering::Release);
    }

    fn said(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Round trips that are timed together: reading the clock takes a good part of one.
const TRIPS: u64 = 16;

/// The median of a round trip between two threads that do nothing but look, in microseconds.
fn spin(here: usize, there: usize, time: Duration) -> f64 {
    let (ask, answer) = (Line::new(), Line::new());
    let mut times = thread::scope(|scope| {
        scope.spawn(|| {
            pin(there);
            let mut known = 0;
            while known != Line::END {
                known = ask.next(known);
                answer.say(known);
            }
        });
        pin(here);
        let mut times = Vec::new();
        let mut asked = 0;
        let trip = |asked: u64| {
            ask.say(asked);
            answer.next(asked - 1);
        };
        // The other one has to be there first.
        asked += 1;
        trip(asked);
        let mut last = Instant::now();
        let end = last + time;
        while times.is_empty() || last < end {
            for _ in 0..TRIPS {
                asked += 1;
                trip(asked);
            }
            let now = Instant::now();
            times.push((now - last).as_nanos() as u64);
            last = now;
        }
        ask.say(Line::END);
        times
    });
    let middle = times.len() / 2;
    let (_, &mut median, _) = times.select_nth_unstable(middle);
    median as f64 / 1e3 / TRIPS as f64
}

/// What blocks are copied out of: more than a core has to itself, as bytes are that another core
/// has just written.
const AREA: u64 = 64;

/// Bytes per second of one core that copies blocks, and compares them if it shall.
fn copy(pattern: &Pattern, verify: bool, time: Duration) -> f64 {
    let area: Vec<u8> = (0..AREA).flat_map(|block| pattern.block(block).iter().copied()).collect();
    let mut copied = vec![0; BLOCK];
    let mut blocks = 0_u64;
    let begin = Instant::now();
    loop {
        for (block, source) in (0_u64..).zip(area.chunks_exact(BLOCK)) {
            copied.copy_from_slice(black_box(source));
            let copied = black_box(copied.as_slice());
            assert!(!verify || copied == pattern.block(block), "memory that keeps what was written to it");
        }
        blocks += AREA;
        let took = begin.elapsed();
        if took >= time {
            return (blocks * BLOCK as u64) as f64 / took.as_secs_f64();
        }
    }
}

/// Blocks that are on their way from one core to the other: half of what a core has to itself.
const HANDED: u64 = 8;

/// Bytes per second from one core to another one, which compares them.
fn hand_over(pattern: &Pattern, here: usize, there: usize, time: Duration) -> f64 {
    // Each block is held by one of them at a time; the lock is there for the compiler.
    let blocks: Vec<_> = (0..HANDED).map(|_| Mutex::new(vec![0; BLOCK])).collect();
    let block = |number: u64| {
        let block = &blocks[(number % HANDED) as usize];
        block.lock().expect("no thread that copies panics")
    };
    let (written, read) = (Line::new(), Line::new());
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(there);
            for number in 0.. {
                loop {
                    match read.said() {
                        Line::END => return,
                        read if number - read < HANDED => break,
                        _ => std::hint::spin_loop(),
                    }
                }
                block(number).copy_from_slice(pattern.block(number));
                written.say(number + 1);
            }
        });
        pin(here);
        let (mut copied, mut known) = (vec![0; BLOCK], 0);
        let begin = Instant::now();
        for number in 0.. {
            if known == number {
                known = written.next(number);
            }
            copied.copy_from_slice(&block(number));
            read.say(number + 1);
            let copied = black_box(copied.as_slice());
            assert!(copied == pattern.block(number), "memory that keeps what was written to it");
            let took = begin.elapsed();
            if took >= time {
                read.say(Line::END);
                return ((number + 1) * BLOCK as u64) as f64 / took.as_secs_f64();
            }
        }
        unreachable!("the numbers of blocks do not end")
    })
}

/// What is said where a limit is missing.
pub(crate) fn left_out(limit: Limit) -> String {
    format!("limit: {} is left out: it takes two CPUs, and this process may use one", limit.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_copies_and_the_spin_give_a_figure() {
        let pattern = Pattern::new();
        for verify in [true, false] {
            assert!(copy(&pattern, verify, Duration::from_millis(5)) > 0.0);
        }
        // Two threads on one CPU would take turns of a time slice each.
        if let [here, there, ..] = usable_cpus()[..] {
            let trip = thread::spawn(move || spin(here, there, Duration::from_millis(5))).join().unwrap();
            assert!(trip > 0.0);
            let rate = thread::spawn(move || hand_over(&pattern, here, there, Duration::from_millis(5)));
            assert!(rate.join().unwrap() > 0.0);
        }
    }

    #[test]
    fn only_the_tests_that_it_bounds_have_a_limit() {
        assert_eq!(Limit::of(Work::PingPong(SHORT_MESSAGE)), [Limit::Spin]);
        assert_eq!(
            Limit::of(Work::Blocks(BLOCK as u32)),
            [Limit::VerifiedCopy, Limit::HandedOver, Limit::Copy]
        );
        for work in [Work::PingPong(15), Work::Blocks(1), Work::Connect] {
            assert_eq!(Limit::of(work), []);
        }
    }
}
