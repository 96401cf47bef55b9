//! How many instructions the hot paths take: callgrind counts them, ci/instructions.sh compares
//! them with `baseline.toml`.
//!
//! Every function here that is counted does its work [`TIMES`] times, after a set-up that has made
//! all that happens once: the link, the rings' growth, what is initialised lazily. Both ends are in
//! this process, on one `current_thread` runtime, and nothing polls for the next message, so that
//! what is counted does not depend on the time it takes. What the kernel does is not counted; the
//! calls of it are.

mod memory;
mod messages;
mod support;

use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use gungraun::{Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use support::{Pair, Plain, TokioPair};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_smc::Config;
use tokio_smc::engine::clc::Message;
use tokio_smc::engine::interrupt::{CONNECTIONS, Signal, SignalPage};
use tokio_smc::engine::ring::{Consumer, Producer};

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

// The reader waits, the writer writes and rings, the reactor finds the eventfd, the poller looks,
// the reader reads.
#[library_benchmark(setup = upgraded)]
#[bench::of_100_bytes()]
fn wake_up(mut pair: Pair) -> Pair {
    pair.wake_ups(TIMES, &MESSAGE);
    pair
}

// ---- on TCP, before an upgrade, and what tokio's own streams take for the same ----

#[library_benchmark(setup = plain)]
#[bench::smc()]
fn smc_try_write(pair: Plain) -> Plain {
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
fn smc_try_read(pair: Plain) -> Plain {
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
fn smc_connect_accept(pair: Plain) -> Plain {
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

// ---- the parts alone ----

fn ring() -> (Producer, Consumer) {
    memory::ring_of(64 << 10)
}

fn full_ring() -> (Producer, Consumer) {
    let (mut producer, consumer) = ring();
    for _ in 0..TIMES {
        assert!(producer.write(&MESSAGE).is_ok_and(|length| length == MESSAGE.len()));
    }
    (producer, consumer)
}

#[library_benchmark(setup = ring)]
#[bench::of_100_bytes()]
fn ring_write((mut producer, consumer): (Producer, Consumer)) -> (Producer, Consumer) {
    for _ in 0..TIMES {
        assert!(producer.write(black_box(&MESSAGE)).is_ok_and(|length| length == MESSAGE.len()));
        black_box(producer.wake_reader());
    }
    (producer, consumer)
}

#[library_benchmark(setup = full_ring)]
#[bench::of_100_bytes()]
fn ring_read((producer, mut consumer): (Producer, Consumer)) -> (Producer, Consumer) {
    let mut buffer = [0; MESSAGE.len()];
    for _ in 0..TIMES {
        let mut free = black_box(&mut buffer[..]);
        assert!(consumer.read(&mut free).is_ok_and(|length| length == MESSAGE.len()));
        black_box(consumer.wake_writer());
    }
    (producer, consumer)
}

const NOW: u64 = 1_000_000;
const STALE_AFTER: u64 = 50_000;

/// The poller looks, so that nobody has to ring.
fn awake() -> SignalPage {
    let page = SignalPage::new();
    page.publish_look(NOW);
    page
}

fn raised(count: u32) -> SignalPage {
    let page = awake();
    for index in (0..CONNECTIONS).step_by((CONNECTIONS / count) as usize) {
        page.raise(index, Signal::Data, || NOW, STALE_AFTER);
    }
    page
}

fn raised_100() -> SignalPage {
    raised(100)
}

#[library_benchmark(setup = awake)]
#[bench::of_an_awake_poller()]
fn raise(page: SignalPage) -> SignalPage {
    for index in 0..TIMES as u32 {
        assert!(!page.raise(black_box(index), Signal::Data, || black_box(NOW), STALE_AFTER));
    }
    page
}

// Each time the poller goes to sleep before, which has to be rung then.
#[library_benchmark(setup = SignalPage::new)]
#[bench::of_a_sleeping_poller()]
fn raise_and_ring(page: SignalPage) -> SignalPage {
    for index in 0..TIMES as u32 {
        black_box(page.sleep());
        assert!(page.raise(black_box(index), Signal::Data, || black_box(NOW), STALE_AFTER));
    }
    page
}

// One look that finds 100 connections, each in a word of its own.
#[library_benchmark(setup = raised_100)]
#[bench::of_100()]
fn drain(page: SignalPage) -> SignalPage {
    let found = page.drain(|index, signal| {
        black_box((index, signal));
    });
    assert!(found >= TIMES);
    page
}

// What each look costs while nothing happens.
#[library_benchmark(setup = awake)]
#[bench::at_nothing()]
fn look(page: SignalPage) -> SignalPage {
    for _ in 0..TIMES {
        page.publish_look(black_box(NOW));
        assert!(black_box(page.is_idle()));
    }
    page
}

fn messages() -> Vec<(Message, Vec<u8>)> {
    messages::all().map(|(_, message)| (message.clone(), message.encode())).into()
}

// Proposal, Accept and Confirm.
#[library_benchmark(setup = messages)]
#[bench::of_a_handshake()]
fn encode(messages: Vec<(Message, Vec<u8>)>) -> Vec<(Message, Vec<u8>)> {
    for _ in 0..TIMES {
        for (message, _) in &messages {
            black_box(black_box(message).encode());
        }
    }
    messages
}

#[library_benchmark(setup = messages)]
#[bench::of_a_handshake()]
fn decode(messages: Vec<(Message, Vec<u8>)>) -> Vec<(Message, Vec<u8>)> {
    for _ in 0..TIMES {
        for (_, bytes) in &messages {
            assert!(black_box(Message::decode(black_box(bytes))).is_ok());
        }
    }
    messages
}

// What each connect and each bind without settings of its own asks for.
#[library_benchmark]
#[bench::of_a_connect()]
fn config_from_env() {
    for _ in 0..TIMES {
        black_box(Config::from_env());
    }
}

library_benchmark_group!(
    name = parts,
    benchmarks = [ring_write, ring_read, raise, raise_and_ring, drain, look, encode, decode, config_from_env]
);

library_benchmark_group!(
    name = ism,
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
        smc_try_write,
        tokio_try_write,
        smc_try_read,
        tokio_try_read,
        smc_connect_accept,
        tokio_connect_accept,
    ]
);

main!(
    config = LibraryBenchmarkConfig::default()
        // Of the ways that glibc has to copy memory, each processor would choose another: here all
        // take SSE2's.
        .env(
            "GLIBC_TUNABLES",
            "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-AVX_Fast_Unaligned_Load,-SSSE3,-ERMS,-FSRM",
        )
        // Only instructions are asked for: no caches are simulated.
        .tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = [ism, tcp, parts]
);
