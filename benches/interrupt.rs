//! Times of the signal page: telling one connection, and taking the signals of one, of 64 and of
//! all.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use tokio_smc::engine::interrupt::{CONNECTIONS, Signal, SignalPage};

const NOW: u64 = 1_000_000;
const STALE_AFTER: u64 = 50_000;

fn interrupt(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("signal page");
    let page = SignalPage::new();
    page.publish_look(NOW);
    group.bench_function("raise", |bencher| {
        bencher.iter(|| page.raise(black_box(5), Signal::Data, || black_box(NOW), STALE_AFTER));
    });
    group.bench_function("look at nothing", |bencher| {
        page.drain(|_, _| ());
        bencher.iter(|| {
            page.publish_look(black_box(NOW));
            page.is_idle()
        });
    });
    for (name, count) in [("1", 1), ("64", 64), ("all", CONNECTIONS)] {
        group.bench_function(format!("drain/{name}"), |bencher| {
            bencher.iter_batched(
                || {
                    // Spread over the page, as connections of many programs are.
                    for index in (0..CONNECTIONS).step_by((CONNECTIONS / count) as usize) {
                        page.raise(index, Signal::Data, || NOW, STALE_AFTER);
                    }
                },
                |()| {
                    page.drain(|index, signal| {
                        black_box((index, signal));
                    })
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, interrupt);
criterion_main!(benches);
