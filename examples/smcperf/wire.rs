//! What client and server say to each other around a measurement.
//!
//! Every request is one frame of 100 bytes and so is its answer, which makes a `Ping` the 100-byte
//! round trip of the `connect` test. A connection may ping as often as it likes; `Echo`, `Blocks`
//! and `Messages` begin the one measurement of the connection, which the client ends by closing its
//! direction and the server with a [`Report`]. `Meter` stands for itself, on a connection beside.

use std::io;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::medium::RunsOn;

pub(crate) const FRAME: usize = 100;
/// Longest message, in bytes, that a client may ask to be echoed, or send in one write.
pub(crate) const LONGEST_MESSAGE: u32 = 16 << 20;
const MAGIC: &[u8; 8] = b"smcperf1";
const REPLY: u8 = 0x80;
/// Longest document accepted: a report or a greeting is far below it.
const DOCUMENT_LIMIT: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Who are you? Answered by a frame and a document.
    Hello,
    /// Nothing but the answer.
    Ping,
    /// From here on messages of this size come back as they are.
    Echo { message_bytes: u32 },
    /// A stream of blocks follows, which repeats itself after `lap` of them; its rate counts after
    /// the warm-up.
    Blocks { warm_up_us: u32, lap: u32 },
    /// A stream of messages of [`FRAME`] bytes follows; its rate counts after the warm-up.
    Messages { warm_up_us: u32 },
    /// How much CPU do you use in the time after the warm-up? Answered by a frame at once, and by a
    /// document when that time is over.
    Meter { warm_up_us: u32, measured_us: u32 },
}

impl Request {
    pub(crate) fn encode(self) -> [u8; FRAME] {
        let (kind, value) = match self {
            Self::Hello => (1, 0),
            Self::Ping => (2, 0),
            Self::Echo { message_bytes } => (3, message_bytes),
            Self::Blocks { warm_up_us, .. } => (4, warm_up_us),
            Self::Messages { warm_up_us } => (5, warm_up_us),
            Self::Meter { warm_up_us, .. } => (6, warm_up_us),
        };
        let mut frame = [b'.'; FRAME];
        frame[..8].copy_from_slice(MAGIC);
        frame[8] = kind;
        frame[9] = 0;
        frame[12..16].copy_from_slice(&u32::to_le_bytes(value));
        if let Self::Meter { measured_us: second, .. } | Self::Blocks { lap: second, .. } = self {
            frame[16..20].copy_from_slice(&u32::to_le_bytes(second));
        }
        frame
    }

    pub(crate) fn decode(frame: &[u8; FRAME]) -> io::Result<Self> {
        let value = u32::from_le_bytes([frame[12], frame[13], frame[14], frame[15]]);
        let second = u32::from_le_bytes([frame[16], frame[17], frame[18], frame[19]]);
        let request = match frame[8] {
            1 => Self::Hello,
            2 => Self::Ping,
            3 => Self::Echo { message_bytes: value },
            4 => Self::Blocks { warm_up_us: value, lap: second },
            5 => Self::Messages { warm_up_us: value },
            6 => Self::Meter { warm_up_us: value, measured_us: second },
            _ => return Err(invalid("not a request of smcperf")),
        };
        if *frame != request.encode() {
            return Err(invalid("not a request of smcperf, or one of another version"));
        }
        Ok(request)
    }

    /// The answer to this request, saying whether the server's stream runs on loopback-ism.
    pub(crate) fn answer(self, on_ism: bool) -> [u8; FRAME] {
        let mut frame = self.encode();
        frame[8] |= REPLY;
        frame[9] = u8::from(on_ism);
        frame
    }
}

/// Sends a request and checks the answer; tells whether the server's stream runs on loopback-ism.
pub(crate) async fn ask<S>(stream: &mut S, request: Request) -> io::Result<bool>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&request.encode()).await?;
    let mut answer = [0; FRAME];
    stream.read_exact(&mut answer).await?;
    let on_ism = answer[9] == 1;
    if answer != request.answer(on_ism) {
        return Err(invalid("not an answer of an smcperf server of this version"));
    }
    Ok(on_ism)
}

/// Reads exactly `buffer`; false when the stream ended before its first byte.
pub(crate) async fn fill<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]).await? {
            0 if filled == 0 => return Ok(false),
            0 => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the stream ended within a message",
                ));
            }
            more => filled += more,
        }
    }
    Ok(true)
}

pub(crate) async fn send_document<S: AsyncWrite + Unpin>(stream: &mut S, document: &Value) -> io::Result<()> {
    let text = document.to_string();
    let mut bytes = Vec::with_capacity(4 + text.len());
    bytes.extend_from_slice(&u32::to_le_bytes(text.len() as u32));
    bytes.extend_from_slice(text.as_bytes());
    stream.write_all(&bytes).await
}

pub(crate) async fn receive_document<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Value> {
    let length = stream.read_u32_le().await? as usize;
    if length > DOCUMENT_LIMIT {
        return Err(invalid("an impossible length where the server's document should be"));
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text).await?;
    serde_json::from_slice(&text).map_err(|error| invalid(&format!("the server's document: {error}")))
}

/// What the server saw of one measurement.
#[derive(Debug)]
pub(crate) struct Report {
    /// All bytes received and verified.
    pub(crate) bytes: u64,
    /// Those of them that arrived within `nanos`, after the warm-up.
    pub(crate) measured_bytes: u64,
    pub(crate) nanos: u64,
    pub(crate) on_ism: bool,
    pub(crate) why: Option<String>,
}

impl Report {
    /// As a document; what went wrong takes the place of the figures.
    pub(crate) fn document(outcome: Result<Self, String>) -> Value {
        match outcome {
            Ok(report) => json!({
                "bytes": report.bytes, "measured_bytes": report.measured_bytes, "nanos": report.nanos,
                "on_ism": report.on_ism, "why": report.why,
            }),
            Err(error) => json!({ "error": error }),
        }
    }

    pub(crate) fn parse(document: &Value) -> io::Result<Self> {
        if let Some(error) = document["error"].as_str() {
            return Err(invalid(&format!("the server found: {error}")));
        }
        let number =
            |key: &str| document[key].as_u64().ok_or_else(|| invalid("an incomplete report of the server"));
        Ok(Self {
            bytes: number("bytes")?,
            measured_bytes: number("measured_bytes")?,
            nanos: number("nanos")?,
            on_ism: document["on_ism"].as_bool().unwrap_or(false),
            why: document["why"].as_str().map(str::to_owned),
        })
    }

    /// What the connection ran on when both ends are asked: the weaker answer counts.
    pub(crate) fn joint(&self, own: RunsOn) -> RunsOn {
        if own.is_ism() && !self.on_ism {
            let why = self.why.as_deref().unwrap_or("no reason given");
            return RunsOn { name: RunsOn::TCP, why: Some(format!("at the server: {why}")) };
        }
        own
    }
}

pub(crate) fn invalid(words: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire_and_foreign_bytes_do_not() {
        for request in [
            Request::Hello,
            Request::Ping,
            Request::Echo { message_bytes: 14 },
            Request::Blocks { warm_up_us: 7, lap: 1021 },
            Request::Messages { warm_up_us: u32::MAX },
            Request::Meter { warm_up_us: 1, measured_us: u32::MAX },
        ] {
            assert_eq!(Request::decode(&request.encode()).unwrap(), request);
            assert!(Request::decode(&request.answer(true)).is_err());
            let mut damaged = request.encode();
            damaged[99] = 0;
            assert!(Request::decode(&damaged).is_err());
        }
    }
}
