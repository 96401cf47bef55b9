//! Bodies of any length that are never held whole: made as they are sent, checked as they come.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::OnceLock;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body, Frame, SizeHint};

/// What clients send and servers answer.
pub(crate) type Payload = BoxBody<Bytes, hyper::Error>;

/// A prime, so that no buffer of a usual size hides a shift.
const PERIOD: usize = 65_521;
/// Large enough that a debug build spends its time in memcpy and memcmp.
const CHUNK: usize = 256 << 10;

/// The byte at each position, for a chunk from any position on.
fn pattern() -> &'static Bytes {
    static PATTERN: OnceLock<Bytes> = OnceLock::new();
    PATTERN.get_or_init(|| {
        let mut state = 1_u32;
        let one: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(PERIOD)
        .collect();
        one.iter().copied().cycle().take(PERIOD + CHUNK).collect()
    })
}

fn slice(at: u64, length: usize) -> Bytes {
    let start = (at % PERIOD as u64) as usize;
    pattern().slice(start..start + length)
}

/// A body of the pattern.
#[derive(Debug)]
struct Pattern {
    at: u64,
    end: u64,
    /// Its length is told in advance.
    sized: bool,
}

impl Body for Pattern {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let length = (self.end - self.at).min(CHUNK as u64) as usize;
        if length == 0 {
            return Poll::Ready(None);
        }
        let chunk = slice(self.at, length);
        self.at += length as u64;
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.sized && self.at == self.end
    }

    fn size_hint(&self) -> SizeHint {
        if self.sized { SizeHint::with_exact(self.end - self.at) } else { SizeHint::default() }
    }
}

/// `length` bytes, whose number is told in advance.
pub(crate) fn sized(length: u64) -> Payload {
    body(length, true)
}

/// `length` bytes; only the end tells their number if they are not `sized`, in chunks over
/// HTTP/1.1.
pub(crate) fn body(length: u64, sized: bool) -> Payload {
    Pattern { at: 0, end: length, sized }.map_err(|never| match never {}).boxed()
}

/// Reads a body to its end and checks every byte; its length.
pub(crate) async fn check<B>(body: B) -> u64
where
    B: Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let mut body = pin!(body);
    let mut at = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.unwrap().into_data() else { continue };
        for piece in data.chunks(CHUNK) {
            assert!(
                piece == slice(at, piece.len()),
                "the body differs between {at} and {}",
                at + piece.len() as u64
            );
            at += piece.len() as u64;
        }
    }
    at
}
