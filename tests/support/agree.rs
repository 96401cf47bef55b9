//! How two ends find out together that they both run on the ring.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::SmcStream;

/// An upgrade takes microseconds; who is not there by now stays on TCP, and the reason is what the
/// test must show.
const PATIENCE: Duration = Duration::from_secs(60);

/// Exchanges single bytes with a peer that does the same (one end calls it with `first`) until both
/// ends report loopback-ism. Both leave after the same exchange, so nothing of it is left in the
/// stream.
pub(crate) async fn agree(stream: &mut SmcStream, first: bool) {
    let started = Instant::now();
    loop {
        let transport = stream.transport();
        let mine = u8::from(transport.is_loopback_ism());
        let theirs = if first {
            stream.write_u8(mine).await.expect("write while upgrading");
            stream.read_u8().await.expect("read while upgrading")
        } else {
            let theirs = stream.read_u8().await.expect("read while upgrading");
            stream.write_u8(mine).await.expect("write while upgrading");
            theirs
        };
        if mine + theirs == 2 {
            return;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "no upgrade: this end runs on {transport}{}, the other end {} on the ring",
            transport.fallback_reason().map(|reason| format!(" ({reason})")).unwrap_or_default(),
            if theirs == 1 { "is" } else { "is not" },
        );
        if first {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
