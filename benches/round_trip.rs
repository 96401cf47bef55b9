//! Times of one round trip of 100 bytes, both ends in this process and on one runtime: over shared
//! memory, over the TCP of a stream that is not upgraded, over tokio's TCP, and over tokio's
//! in-process pipe. Between two processes `smcperf` measures it.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use support::{Pair, Plain, TokioPair};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::runtime::Runtime;

const BYTES: usize = 100;

/// A task answers what the client sends.
fn measure(
    criterion: &mut Criterion,
    name: &str,
    runtime: &Runtime,
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut server: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let echo = runtime.spawn(async move {
        let mut message = [0; BYTES];
        while server.read_exact(&mut message).await.is_ok() && server.write_all(&message).await.is_ok() {}
    });
    criterion.bench_function(&format!("round trip/{name}"), |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                client.write_all(&[7; BYTES]).await.expect("the server lives");
                client.read_exact(&mut [0; BYTES]).await.expect("the server answers");
            });
        });
    });
    drop(client);
    runtime.block_on(echo).expect("the server ends with the client");
}

fn round_trip(criterion: &mut Criterion) {
    let Pair { client, server, plain } = Pair::upgraded();
    measure(criterion, "SMC", &plain.runtime, client, server);
    let Plain { client, server, runtime, .. } = Plain::new();
    measure(criterion, "SMC on TCP", &runtime, client, server);
    let TokioPair { client, server, runtime, .. } = TokioPair::new();
    measure(criterion, "tokio TCP", &runtime, client, server);
    let (client, server) = tokio::io::duplex(64 << 10);
    measure(criterion, "tokio duplex", &runtime, client, server);
}

criterion_group!(benches, round_trip);
criterion_main!(benches);
