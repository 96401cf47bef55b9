//! RESP2: requests are found in the input where they lie, answers are appended to the output.

use std::fmt;
use std::ops::Range;

use bytes::BytesMut;

/// Bytes of one argument, and of a whole request.
pub(crate) const LARGEST_ARGUMENT: usize = 32 << 20;
pub(crate) const LARGEST_REQUEST: usize = 64 << 20;
const MOST_ARGUMENTS: i64 = 1 << 20;
const LONGEST_INLINE: usize = 16 << 10;
/// `*` or `$`, the digits of an i64, CR.
const LONGEST_HEADER: usize = 22;

/// What a client sent is no RESP2; the connection ends with these words.
#[derive(Debug)]
pub(crate) enum Malformed {
    Count,
    Length,
    NotBulk(u8),
    BulkEnd,
    HeaderTooLong,
    InlineTooLong,
    Quotes,
    TooLarge,
    Http,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Protocol error: ")?;
        match self {
            Self::Count => write!(f, "invalid multibulk length (0 to {MOST_ARGUMENTS} arguments)"),
            Self::Length => write!(f, "invalid bulk length (0 to {LARGEST_ARGUMENT} bytes)"),
            Self::NotBulk(byte) => write!(f, "expected '$', got '{}'", byte.escape_ascii()),
            Self::BulkEnd => f.write_str("a bulk string does not end with CR LF"),
            Self::HeaderTooLong => f.write_str("too big count string"),
            Self::InlineTooLong => write!(f, "too big inline request (at most {LONGEST_INLINE} bytes)"),
            Self::Quotes => f.write_str("quotes are not understood in an inline request"),
            Self::TooLarge => write!(f, "too big request (at most {LARGEST_REQUEST} bytes)"),
            Self::Http => f.write_str("this is a server of the Redis protocol, not of HTTP"),
        }
    }
}

/// Finds one request after the other; what it knows of an incomplete one is kept, so that no byte
/// is looked at for every read.
#[derive(Default)]
pub(crate) struct Parser {
    arguments: Vec<Range<usize>>,
    /// Where the next header or argument begins.
    at: usize,
    /// Arguments that are still to come, once the count is known.
    missing: usize,
    counted: bool,
    /// The length of the argument at `at`, once it is known.
    length: Option<usize>,
}

/// A complete request: where its arguments lie in the input.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    input: &'a [u8],
    arguments: &'a [Range<usize>],
}

impl<'a> Request<'a> {
    pub(crate) fn len(&self) -> usize {
        self.arguments.len()
    }

    pub(crate) fn get(&self, index: usize) -> &'a [u8] {
        &self.input[self.arguments[index].clone()]
    }

    pub(crate) fn from(&self, first: usize) -> impl ExactSizeIterator<Item = &'a [u8]> {
        let input = self.input;
        self.arguments[first..].iter().map(move |range| &input[range.clone()])
    }
}

impl Parser {
    /// The request at the start of `input`, if it is complete. `input` has to begin with what it
    /// began with at the last call, until [`Parser::take`] is called.
    pub(crate) fn parse<'a>(&'a mut self, input: &'a [u8]) -> Result<Option<Request<'a>>, Malformed> {
        Ok(self.find(input)?.then_some(Request { input, arguments: &self.arguments }))
    }

    /// Forgets the complete request, and returns how many bytes it has.
    pub(crate) fn take(&mut self) -> usize {
        let length = self.at;
        self.arguments.clear();
        *self = Parser { arguments: std::mem::take(&mut self.arguments), ..Parser::default() };
        length
    }

    /// How many bytes more are known to be needed behind `input`.
    pub(crate) fn wanted(&self, input: &[u8]) -> usize {
        self.length.map_or(0, |length| (self.at + length + 2).saturating_sub(input.len()))
    }

    fn find(&mut self, input: &[u8]) -> Result<bool, Malformed> {
        if !self.counted {
            match input.first() {
                None => return Ok(false),
                Some(b'*') => {}
                Some(_) => return self.find_inline(input),
            }
            let Some(count) = self.header(input)? else { return Ok(false) };
            if count > MOST_ARGUMENTS {
                return Err(Malformed::Count);
            }
            // As Redis does: a negative count is an empty request.
            self.missing = usize::try_from(count).unwrap_or(0);
            self.counted = true;
        }
        while self.missing > 0 {
            let length = match self.length {
                Some(length) => length,
                None => {
                    match input.get(self.at) {
                        None => return Ok(false),
                        Some(b'$') => {}
                        Some(other) => return Err(Malformed::NotBulk(*other)),
                    }
                    let Some(length) = self.header(input)? else { return Ok(false) };
                    let length = usize::try_from(length).map_err(|_| Malformed::Length)?;
                    if length > LARGEST_ARGUMENT {
                        return Err(Malformed::Length);
                    }
                    if self.at + length > LARGEST_REQUEST {
                        return Err(Malformed::TooLarge);
                    }
                    *self.length.insert(length)
                }
            };
            let end = self.at + length;
            let Some(tail) = input.get(end..end + 2) else { return Ok(false) };
            if tail != b"\r\n" {
                return Err(Malformed::BulkEnd);
            }
            self.arguments.push(self.at..end);
            (self.at, self.length, self.missing) = (end + 2, None, self.missing - 1);
        }
        Ok(true)
    }

    /// The number in the header line at `at`, which it then leaves behind.
    fn header(&mut self, input: &[u8]) -> Result<Option<i64>, Malformed> {
        let line = &input[self.at..];
        let line = &line[..line.len().min(LONGEST_HEADER + 1)];
        let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
            let endless = line.len() > LONGEST_HEADER;
            return if endless { Err(Malformed::HeaderTooLong) } else { Ok(None) };
        };
        let wrong = || if line[0] == b'*' { Malformed::Count } else { Malformed::Length };
        let digits = line[1..end].strip_suffix(b"\r").ok_or_else(wrong)?;
        let number = integer(digits).ok_or_else(wrong)?;
        self.at += end + 1;
        Ok(Some(number))
    }

    fn find_inline(&mut self, input: &[u8]) -> Result<bool, Malformed> {
        let line = &input[..input.len().min(LONGEST_INLINE + 1)];
        let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
            let endless = line.len() > LONGEST_INLINE;
            return if endless { Err(Malformed::InlineTooLong) } else { Ok(false) };
        };
        let line = &line[..end];
        // A web page must not be able to make a browser send commands.
        if line.starts_with(b"POST ") || line.starts_with(b"Host:") {
            return Err(Malformed::Http);
        }
        if line.iter().any(|byte| matches!(byte, b'"' | b'\'')) {
            return Err(Malformed::Quotes);
        }
        let mut start = None;
        for (index, byte) in line.iter().chain(b" ").enumerate() {
            match (byte.is_ascii_whitespace(), start) {
                (false, None) => start = Some(index),
                (true, Some(first)) => {
                    self.arguments.push(first..index);
                    start = None;
                }
                _ => {}
            }
        }
        self.at = end + 1;
        Ok(true)
    }
}

/// A decimal number as Redis takes it: no sign but a minus, no blanks, no leading zeros needed.
pub(crate) fn integer(digits: &[u8]) -> Option<i64> {
    if digits.first() == Some(&b'+') {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

// ---- answers ----

pub(crate) fn simple(out: &mut BytesMut, words: &str) {
    out.extend_from_slice(b"+");
    out.extend_from_slice(words.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// `words` begin with the kind of the error, as `ERR`; line ends in them would end the answer.
pub(crate) fn error(out: &mut BytesMut, words: &str) {
    out.extend_from_slice(b"-");
    out.extend(words.bytes().map(|byte| if byte.is_ascii_control() { b' ' } else { byte }));
    out.extend_from_slice(b"\r\n");
}

pub(crate) fn number(out: &mut BytesMut, value: i64) {
    prefixed(out, b':', value);
}

pub(crate) fn bulk(out: &mut BytesMut, bytes: &[u8]) {
    out.reserve(bytes.len() + LONGEST_HEADER + 4);
    prefixed(out, b'$', bytes.len() as i64);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

pub(crate) fn nothing(out: &mut BytesMut) {
    out.extend_from_slice(b"$-1\r\n");
}

pub(crate) fn array(out: &mut BytesMut, length: usize) {
    prefixed(out, b'*', length as i64);
}

fn prefixed(out: &mut BytesMut, kind: u8, value: i64) {
    let mut line = [0; 23];
    let mut start = line.len() - 2;
    line[start..].copy_from_slice(b"\r\n");
    let mut rest = value.unsigned_abs();
    loop {
        start -= 1;
        line[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        start -= 1;
        line[start] = b'-';
    }
    start -= 1;
    line[start] = kind;
    out.extend_from_slice(&line[start..]);
}
