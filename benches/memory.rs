//! A ring that has grown, for benches of the ring alone.

use tokio_smc::engine::ring::{Consumer, Producer, grant, ring};

/// Both ends of an empty ring that holds `bytes` at least, in pages that are there.
pub(crate) fn ring_of(bytes: usize) -> (Producer, Consumer) {
    let (mut producer, mut consumer) = ring(2 * bytes.next_power_of_two()).expect("memory for a ring");
    let data = vec![0; bytes];
    let mut read = Vec::with_capacity(bytes);
    // Twice, so that no segment which is left is in use any more.
    let mut whole = 0;
    while whole < 2 {
        let written = producer.write(&data).expect("a ring nobody scribbles on");
        read.clear();
        while read.len() < written {
            consumer.read(&mut read).expect("a ring nobody scribbles on");
        }
        whole += usize::from(written == bytes);
        if written < bytes {
            producer.wait().expect("a ring nobody scribbles on");
            grant(&mut producer, &mut consumer).expect("memory for a segment");
        }
    }
    (producer, consumer)
}
