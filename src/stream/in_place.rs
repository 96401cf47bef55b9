//! Reading without a copy: a stream's next bytes where its sender has put them.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::task::{Context, Poll, ready};

use bytes::BufMut;

use super::SmcStream;
use crate::conn::in_place::{PassOver, Shown};
use crate::conn::receive::Mark;
use crate::rt::tokio as rt;

/// The next bytes of a stream, borrowed by [`SmcStream::fill_buf`]: in shared memory where the
/// stream runs on that, else a copy.
///
/// The bytes stay in the stream until they are [consumed](SharedBytes::consume). Whoever drops this
/// has consumed nothing.
///
/// # What may change
///
/// In shared memory ([`SharedBytes::is_shared`]) these bytes are memory of this process that the
/// *sender* has mapped, too. One that keeps the rules does not touch them until they are consumed.
/// One that does not can write there at any moment: a byte that is looked at twice may differ, and
/// what was checked can be exchanged before it is used. Nobody else can, and it can change nothing
/// but its own message. So:
///
/// - Where the peer is not trusted, decide on a copy: [`copy_to`](SharedBytes::copy_to),
///   [`put_into`](SharedBytes::put_into) and [`to_vec`](SharedBytes::to_vec) read each byte once,
///   and what they give is the caller's own. To take a length, copy its bytes, check the copy, use
///   the copy.
/// - [`get`](SharedBytes::get) and [`find`](SharedBytes::find) are true of the moment.
/// - There is no `&[u8]`, because the compiler takes such bytes for ones that stay as they are.
///
/// # What it costs over TCP
///
/// Before the upgrade, and without one, the bytes are *peeked*: up to 16 KiB are copied, into
/// memory that is allocated for it, and they leave the socket's buffer when they are consumed. Who
/// consumes a little of each is better off with a `BufReader`.
///
/// ```
/// use tokio::io::AsyncWriteExt;
/// # use tokio_smc::{SmcListener, SmcStream};
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # let listener = SmcListener::bind("127.0.0.1:0").await?;
/// # let mut peer = SmcStream::connect(listener.local_addr()?).await?;
/// # let (mut stream, _) = listener.accept().await?;
/// peer.write_all(b"one\ntwo\n").await?;
/// let mut bytes = stream.fill_buf().await?;
/// while let Some(end) = bytes.find(b'\n') {
///     let mut line = vec![0; end];
///     bytes.copy_to(0, &mut line);
///     println!("{}", String::from_utf8_lossy(&line));
///     bytes.consume(end + 1)?;
/// }
/// # Ok(()) }
/// ```
pub struct SharedBytes<'a> {
    stream: &'a SmcStream,
    shown: Shown,
    mark: Mark,
}

impl SharedBytes<'_> {
    /// How many there are: 0 is the end of the stream, if nothing was consumed of these.
    pub fn len(&self) -> usize {
        self.shown.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether they lie in shared memory, where the sender can change them. Else they are a copy.
    pub fn is_shared(&self) -> bool {
        matches!(self.shown, Shown::Ring(_))
    }

    /// The byte at `at`, as it is at this moment.
    #[inline]
    pub fn get(&self, at: usize) -> Option<u8> {
        self.shown.byte(at)
    }

    /// Where `byte` is for the first time, as it is at this moment.
    pub fn find(&self, byte: u8) -> Option<usize> {
        self.shown.find(byte)
    }

    /// Fills `buf` with the bytes from `at` on. Each of them is read once.
    ///
    /// # Panics
    ///
    /// When there are not so many.
    pub fn copy_to(&self, at: usize, buf: &mut [u8]) {
        self.shown.copy_into(at, buf);
    }

    /// Appends a part of the bytes to `buf`. Each of them is read once.
    ///
    /// A `Vec` or `BytesMut` grows by little for this: reserve what it needs before.
    ///
    /// # Panics
    ///
    /// When there are not so many, and when `buf` has no room for them.
    pub fn put_into<B: BufMut>(&self, part: Range<usize>, buf: &mut B) {
        self.shown.put_into(part, buf);
    }

    /// A copy of all of them. Each is read once.
    pub fn to_vec(&self) -> Vec<u8> {
        self.shown.to_vec()
    }

    /// Takes the first `count` bytes out of the stream, as a read does: their place is the sender's
    /// again. The rest stays borrowed.
    ///
    /// Over a long time of work on many bytes it lets the sender go on to consume them in parts.
    ///
    /// # Errors
    ///
    /// `InvalidInput` when somebody else has read from the stream meanwhile, which takes the other
    /// half and [`AsRef`]: these bytes are not the next ones any more. Those of a read.
    ///
    /// Who reads the TCP socket itself reads past the stream, and is noticed only when fewer bytes
    /// than these are left there: else what has come behind them is taken out in their place.
    ///
    /// # Panics
    ///
    /// When there are not so many.
    pub fn consume(&mut self, count: usize) -> io::Result<()> {
        let mut op = PassOver::new(&mut self.shown, &mut self.mark, count);
        let answer = if count > 0 { self.stream.try_read_with(&mut op) } else { Ok(0) };
        match (answer, op.end()) {
            // Where they were is nothing now.
            (Err(error), done) if error.kind() == io::ErrorKind::WouldBlock => done,
            (answer, done) => answer.and(done),
        }
    }
}

impl fmt::Debug for SharedBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBytes").field("len", &self.len()).field("is_shared", &self.is_shared()).finish()
    }
}

impl SmcStream {
    /// Waits for bytes and borrows those that are next, where they lie; none at the end of the
    /// stream. The in-place counterpart of
    /// [`AsyncBufReadExt::fill_buf`](tokio::io::AsyncBufReadExt::fill_buf).
    ///
    /// They are what lies in one piece, and not necessarily all that has come: what wraps round in
    /// the ring, or was written behind a change of its memory, is shown when these are consumed. So
    /// who needs more of a message than there is takes out what there is.
    ///
    /// # Errors
    ///
    /// As a read.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped, nor with what it returns.
    pub async fn fill_buf(&mut self) -> io::Result<SharedBytes<'_>> {
        fill_buf(self).await
    }

    /// Polls for [`SmcStream::fill_buf`]; of several tasks that read the latest one is woken.
    ///
    /// # Errors
    ///
    /// As a read.
    pub fn poll_fill_buf(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<SharedBytes<'_>>> {
        poll_fill_buf(self, cx)
    }

    /// Borrows the bytes that are next, where they lie; see [`SmcStream::fill_buf`].
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there are none.
    pub fn try_fill_buf(&mut self) -> io::Result<SharedBytes<'_>> {
        try_fill_buf(self)
    }

    /// Writes bytes that were borrowed from another stream (or another direction), straight from
    /// there. Returns how many: as a write, it may be fewer than there are.
    ///
    /// From ring to ring that is one copy, with nothing in between. To a stream on TCP 64 KiB at
    /// most are written, from a copy.
    ///
    /// ```
    /// use tokio_smc::SmcStream;
    ///
    /// /// Hands on everything until the sender ends.
    /// async fn forward(from: &mut SmcStream, to: &mut SmcStream) -> std::io::Result<()> {
    ///     loop {
    ///         let mut bytes = from.fill_buf().await?;
    ///         if bytes.is_empty() {
    ///             return Ok(());
    ///         }
    ///         let written = to.write_shared(&bytes).await?;
    ///         bytes.consume(written)?;
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As a write.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, nothing was written.
    pub async fn write_shared(&mut self, bytes: &SharedBytes<'_>) -> io::Result<usize> {
        write_shared(self, bytes).await
    }

    /// Polls for [`SmcStream::write_shared`]; of several tasks that write the latest one is woken.
    ///
    /// # Errors
    ///
    /// As a write.
    pub fn poll_write_shared(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &SharedBytes<'_>,
    ) -> Poll<io::Result<usize>> {
        poll_write_shared(self, cx, bytes)
    }

    /// Writes what fits of borrowed bytes; see [`SmcStream::write_shared`].
    ///
    /// # Errors
    ///
    /// `WouldBlock` when nothing fits.
    pub fn try_write_shared(&self, bytes: &SharedBytes<'_>) -> io::Result<usize> {
        match &bytes.shown {
            Shown::Ring(run) => self.try_write_with(&mut rt::writing_run(run, true)),
            copied => self.try_write(copied.copied()),
        }
    }
}

// For who holds the only reader: `&mut` of a stream or of its half.

pub(super) async fn fill_buf(stream: &SmcStream) -> io::Result<SharedBytes<'_>> {
    poll_fn(|cx| poll_fill_buf(stream, cx)).await
}

pub(super) fn poll_fill_buf<'a>(
    stream: &'a SmcStream,
    cx: &mut Context<'_>,
) -> Poll<io::Result<SharedBytes<'a>>> {
    let mut op = rt::showing();
    ready!(stream.poll_read_with(cx, &mut op))?;
    Poll::Ready(Ok(SharedBytes { stream, shown: op.shown, mark: op.mark }))
}

pub(super) fn try_fill_buf(stream: &SmcStream) -> io::Result<SharedBytes<'_>> {
    let mut op = rt::showing();
    stream.try_read_with(&mut op)?;
    Ok(SharedBytes { stream, shown: op.shown, mark: op.mark })
}

pub(super) async fn write_shared(stream: &SmcStream, bytes: &SharedBytes<'_>) -> io::Result<usize> {
    poll_fn(|cx| poll_write_shared(stream, cx, bytes)).await
}

pub(super) fn poll_write_shared(
    stream: &SmcStream,
    cx: &mut Context<'_>,
    bytes: &SharedBytes<'_>,
) -> Poll<io::Result<usize>> {
    match &bytes.shown {
        Shown::Ring(run) => stream.poll_write_with(cx, &mut rt::writing_run(run, false)),
        copied => stream.poll_write_priv(cx, copied.copied()),
    }
}
