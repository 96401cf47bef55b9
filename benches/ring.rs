//! Times of the ring alone: one write, and one read of the same.

mod memory;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn ring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    for (name, size) in [("16 B", 16), ("100 B", 100), ("4 KiB", 4 << 10), ("64 KiB", 64 << 10)] {
        let (mut producer, mut consumer) = memory::ring_of(size.max(4 << 10));
        let data = vec![7; size];
        let mut read = Vec::with_capacity(size);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("write and read/{name}"), |bencher| {
            bencher.iter(|| {
                assert!(producer.write(black_box(&data)).is_ok_and(|length| length == size));
                black_box(producer.wake_reader());
                read.clear();
                while read.len() < size {
                    consumer.read(&mut read).expect("a ring nobody scribbles on");
                    black_box(consumer.wake_writer());
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, ring);
criterion_main!(benches);
