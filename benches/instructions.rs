//! How many instructions the hot paths take: callgrind counts them, ci/instructions.sh compares them with
//! `baseline.toml`.
//!
//! Every function here that is counted does its work [`TIMES`] times, after a set-up that has made all that happens once:
//! the link, the rings' growth, what is initialised lazily. Both ends are in this process, on one `current_thread`
//! runtime, and nothing polls for the next message, so that what is counted does not depend on the time it takes. What the
//! kernel does is not counted; the calls of it are.

mod support;

use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use gungraun::{Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use support::{Pair, Plain, TokioPair};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How often each operation is counted; the baseline has the sum.
const TIMES: usize = 100;

const MESSAGE: [u8; 100] = [7; 100];
const LARGE: usize = 64 << 10;

fn upgraded() -> Pair {
    Pair::upgraded()
}

/// A pair whose server has `TIMES` messages to read.
fn with_messages() -> Pair {
    let pair = Pair::upgraded();
    for _ in 0..TIMES {
        assert_eq!(pair.client.try_write(&MESSAGE).expect("room for a message"), MESSAGE.len());
    }
    pair
}

fn plain() -> Plain {
    Plain::new()
}

fn plain_with_messages() -> Plain {
    let pair = Plain::new();
    pair.send(TIMES, &MESSAGE);
    pair
}

fn of_tokio() -> TokioPair {
    TokioPair::new()
}

fn of_tokio_with_messages() -> TokioPair {
    let pair = TokioPair::new();
    pair.send(TIMES, &MESSAGE);
    pair
}

// ---- on the ring ----

#[library_benchmark(setup = upgraded)]
#[bench::of_100_bytes()]
fn try_write(pair: Pair) -> Pair {
    for _ in 0..TIMES {
        let written = pair.client.try_write(black_box(&MESSAGE));
        assert!(written.is_ok_and(|length| length == MESSAGE.len()));
    }
    pair
}

#[library_benchmark(setup = with_messages)]
#[bench::of_100_bytes()]
fn try_read(pair: Pair) -> Pair {
    let mut buffer = [0; MESSAGE.len()];
    for _ in 0..TIMES {
        let read = pair.server.try_read(black_box(&mut buffer));
        assert!(read.is_ok_and(|length| length == MESSAGE.len()));
    }
    pair
}

#[library_benchmark(setup = upgraded)]
#[bench::of_nothing()]
fn try_read_nothing(pair: Pair) -> Pair {
    let mut buffer = [0; MESSAGE.len()];
    for _ in 0..TIMES {
        assert!(pair.server.try_read(black_box(&mut buffer)).is_err());
    }
    pair
}

#[library_benchmark(setup = upgraded)]
#[bench::of_100_bytes()]
fn poll_write(mut pair: Pair) -> Pair {
    let cx = &mut Context::from_waker(Waker::noop());
    for _ in 0..TIMES {
        let written = Pin::new(&mut pair.client).poll_write(cx, black_box(&MESSAGE));
        assert!(matches!(written, Poll::Ready(Ok(length)) if length == MESSAGE.len()));
    }
    pair
}

#[library_benchmark(setup = with_messages)]
#[bench::of_100_bytes()]
fn poll_read(mut pair: Pair) -> Pair {
    let cx = &mut Context::from_waker(Waker::noop());
    let mut buffer = [0; MESSAGE.len()];
    for _ in 0..TIMES {
        let mut buffer = ReadBuf::new(black_box(&mut buffer));
        assert!(Pin::new(&mut pair.server).poll_read(cx, &mut buffer).is_ready());
        assert!(buffer.remaining() == 0);
    }
    pair
}

// The waker stays the same, as it does in a task that is polled again and again.
#[library_benchmark(setup = upgraded)]
#[bench::of_nothing()]
fn poll_read_nothing(mut pair: Pair) -> Pair {
    let cx = &mut Context::from_waker(Waker::noop());
    let mut buffer = [0; MESSAGE.len()];
    for _ in 0..TIMES {
        let mut buffer = ReadBuf::new(black_box(&mut buffer));
        assert!(Pin::new(&mut pair.server).poll_read(cx, &mut buffer).is_pending());
    }
    pair
}

#[library_benchmark(setup = with_messages)]
#[bench::is_ready()]
fn poll_read_ready(pair: Pair) -> Pair {
    let cx = &mut Context::from_waker(Waker::noop());
    for _ in 0..TIMES {
        assert!(black_box(&pair.server).poll_read_ready(cx).is_ready());
    }
    pair
}

#[library_benchmark(setup = upgraded)]
#[bench::is_ready()]
fn poll_write_ready(pair: Pair) -> Pair {
    let cx = &mut Context::from_waker(Waker::noop());
    for _ in 0..TIMES {
        assert!(black_box(&pair.client).poll_write_ready(cx).is_ready());
    }
    pair
}

#[library_benchmark(setup = upgraded)]
#[bench::of_64_kib()]
fn write_and_read(pair: Pair) -> Pair {
    let mut buffer = vec![7; LARGE];
    for _ in 0..TIMES {
        assert!(pair.client.try_write(black_box(&buffer)).is_ok_and(|length| length == LARGE));
        let mut missing = LARGE;
        while missing > 0 {
            missing -= pair.server.try_read(black_box(&mut buffer)).expect("the rest");
        }
    }
    pair
}

// The reader waits, the writer writes and rings, the reactor finds the eventfd, the poller looks, the reader reads.
#[library_benchmark(setup = upgraded)]
#[bench::of_100_bytes()]
fn wake_up(mut pair: Pair) -> Pair {
    pair.wake_ups(TIMES, &MESSAGE);
    pair
}

// ---- on TCP, before an upgrade, and what tokio's own streams take for the same ----

#[library_benchmark(setup = plain)]
#[bench::smc()]
fn tcp_try_write(pair: Plain) -> Plain {
    for _ in 0..TIMES {
        assert!(pair.client.try_write(black_box(&MESSAGE)).is_ok());
    }
    pair
}

#[library_benchmark(setup = of_tokio)]
#[bench::tokio()]
fn tokio_try_write(pair: TokioPair) -> TokioPair {
    for _ in 0..TIMES {
        assert!(pair.client.try_write(black_box(&MESSAGE)).is_ok());
    }
    pair
}

#[library_benchmark(setup = plain_with_messages)]
#[bench::smc()]
fn tcp_try_read(pair: Plain) -> Plain {
    let mut buffer = [0; MESSAGE.len()];
    for _ in 0..TIMES {
        let read = pair.server.try_read(black_box(&mut buffer));
        assert!(read.is_ok_and(|length| length == MESSAGE.len()));
    }
    pair
}

#[library_benchmark(setup = of_tokio_with_messages)]
#[bench::tokio()]
fn tokio_try_read(pair: TokioPair) -> TokioPair {
    let mut buffer = [0; MESSAGE.len()];
    for _ in 0..TIMES {
        let read = pair.server.try_read(black_box(&mut buffer));
        assert!(read.is_ok_and(|length| length == MESSAGE.len()));
    }
    pair
}

#[library_benchmark(setup = plain)]
#[bench::smc()]
fn tcp_connect_accept(pair: Plain) -> Plain {
    pair.connect_accept(TIMES);
    pair
}

#[library_benchmark(setup = of_tokio)]
#[bench::tokio()]
fn tokio_connect_accept(pair: TokioPair) -> TokioPair {
    pair.connect_accept(TIMES);
    pair
}

// From connect to close, with the link that is there already.
#[library_benchmark(setup = upgraded)]
#[bench::smc()]
fn upgrade_cycle(pair: Pair) -> Pair {
    pair.upgrades(TIMES);
    pair
}

library_benchmark_group!(
    name = ring,
    benchmarks = [
        try_write,
        try_read,
        try_read_nothing,
        poll_write,
        poll_read,
        poll_read_nothing,
        poll_read_ready,
        poll_write_ready,
        write_and_read,
        wake_up,
        upgrade_cycle,
    ]
);

library_benchmark_group!(
    name = tcp,
    benchmarks = [
        tcp_try_write,
        tokio_try_write,
        tcp_try_read,
        tokio_try_read,
        tcp_connect_accept,
        tokio_connect_accept,
    ]
);

main!(
    config = LibraryBenchmarkConfig::default()
        // Of the ways that glibc has to copy memory, each processor would choose another.
        .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX512F,-AVX2,-AVX,-ERMS,-FSRM")
        // Only instructions are asked for: no caches are simulated.
        .tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = [ring, tcp]
);
