//! Times of the CLC codec: each message as loopback-ism sends it.

mod messages;

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use tokio_smc::engine::clc::Message;

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    for (name, message) in messages::all() {
        group.bench_function(format!("encode/{name}"), |bencher| {
            bencher.iter(|| black_box(&message).encode());
        });
        let bytes = message.encode();
        group.bench_function(format!("decode/{name}"), |bencher| {
            bencher.iter(|| Message::decode(black_box(&bytes)).expect("our own message"));
        });
    }
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
