//! Small helpers of the bodies.

use std::io;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use tokio::sync::Notify;

use crate::net::Stream;

/// Bytes that tell where in a stream they belong: a lost, doubled or moved byte shows.
pub(crate) fn pattern(from: usize, len: usize) -> Vec<u8> {
    let word =
        |at: usize| ((at / 8) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29).to_le_bytes();
    let mut bytes = Vec::with_capacity(len + 16);
    for at in (from - from % 8..from + len).step_by(8) {
        bytes.extend_from_slice(&word(at));
    }
    bytes.drain(..from % 8);
    bytes.truncate(len);
    bytes
}

/// A waker whose call can be awaited.
#[derive(Debug, Default)]
pub(crate) struct Bell(Notify);

impl Bell {
    pub(crate) fn new() -> (Arc<Self>, Waker) {
        let bell = Arc::new(Self::default());
        (Arc::clone(&bell), Waker::from(bell))
    }

    pub(crate) async fn rung(&self) {
        self.0.notified().await;
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

/// A context that wakes nobody, for polls whose future is dropped at once.
pub(crate) fn nobody() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

pub(crate) fn would_block<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Writes `pattern(from, ..)` until the stream takes no more for a while, and says how much it
/// took.
pub(crate) async fn fill(stream: &impl Stream, from: usize) -> usize {
    let mut taken = 0;
    let quiet = Duration::from_millis(50);
    while let Ok(ready) = tokio::time::timeout(quiet, stream.writable()).await {
        ready.expect("writable");
        match stream.try_write(&pattern(from + taken, 32 * 1024)) {
            Ok(n) => taken += n,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
    taken
}

/// What a peer that went away without reading everything may answer.
pub(crate) fn broken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}
