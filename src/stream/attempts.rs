//! Reading, writing and readiness without tokio's traits: what a `&SmcStream` can do.

use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use tokio::io::{Interest, ReadBuf, Ready};
use tokio::task::coop::poll_proceed;

use super::SmcStream;
use super::ready::{self, Readiness};
use crate::conn::Directions;
use crate::ism::ring::fill_room;
use crate::rt::tokio as rt;

impl SmcStream {
    /// Reads what is next without taking it; the bytes are returned again by the next read.
    ///
    /// # Errors
    ///
    /// As a read.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            self.readable().await?;
            let coop = poll_fn(poll_proceed).await;
            match self.try_read_with(&mut rt::peeking(&mut ReadBuf::new(buf))) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                answer => {
                    coop.made_progress();
                    return answer;
                }
            }
        }
    }

    /// Polls for [`SmcStream::peek`]; of several tasks that do so the latest one is woken.
    ///
    /// # Errors
    ///
    /// As a read.
    pub fn poll_peek(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(0));
        }
        self.poll_read_with(cx, &mut rt::peeking(buf))
    }

    /// Waits until one of the asked-for operations can be tried; see
    /// [`tokio::net::TcpStream::ready`].
    ///
    /// # Errors
    ///
    /// When the runtime is shut down.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        Readiness::new(self, interest).await
    }

    /// Waits until the stream can be read, or has ended.
    ///
    /// # Errors
    ///
    /// As [`SmcStream::ready`].
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn readable(&self) -> io::Result<()> {
        self.ready(Interest::READABLE).await.map(drop)
    }

    /// Waits until the stream can be written, or has failed.
    ///
    /// # Errors
    ///
    /// As [`SmcStream::ready`].
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn writable(&self) -> io::Result<()> {
        self.ready(Interest::WRITABLE).await.map(drop)
    }

    /// Polls for [`SmcStream::readable`]; of several tasks that do so the latest one is woken.
    ///
    /// # Errors
    ///
    /// As [`SmcStream::ready`].
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let coop = ready!(poll_proceed(cx));
        let answer = ready::poll_read_ready(self, cx);
        if answer.is_ready() {
            coop.made_progress();
        }
        answer
    }

    /// Polls for [`SmcStream::writable`]; of several tasks that do so the latest one is woken.
    ///
    /// # Errors
    ///
    /// As [`SmcStream::ready`].
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let coop = ready!(poll_proceed(cx));
        let answer = ready::poll_write_ready(self, cx);
        if answer.is_ready() {
            coop.made_progress();
        }
        answer
    }

    /// Reads what is there; 0 is the end of the stream.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is nothing.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.try_read_with(&mut rt::try_reading(&mut ReadBuf::new(buf)))
    }

    /// Reads what is there into several buffers; 0 is the end of the stream.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is nothing.
    pub fn try_read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Ok(0);
        }
        self.try_read_with(&mut rt::try_reading_vectored(bufs))
    }

    /// Reads what is there and advances `buf`; 0 is the end of the stream.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is nothing.
    pub fn try_read_buf<B: BufMut>(&self, buf: &mut B) -> io::Result<usize> {
        fill_room(buf, |room| {
            if room.is_full() {
                return Ok(0);
            }
            self.try_read_with(&mut rt::try_reading_buf(room))
        })
    }

    /// Writes what fits.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when nothing fits.
    pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        self.try_write_with(&mut rt::try_writing(buf))
    }

    /// Writes what fits of several buffers.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when nothing fits.
    pub fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_write_with(&mut rt::try_writing_vectored(bufs))
    }

    /// Tries I/O of one's own on the TCP socket; the directions of `interest` stay on TCP from then
    /// on.
    ///
    /// # Errors
    ///
    /// `Unsupported` when one of them has moved to shared memory; else those of `f`.
    pub fn try_io<R>(&self, interest: Interest, f: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        self.pin("try_io", interest)?;
        if rt::tcp_ready(&self.tcp, interest)?.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Without a lock: `f` is the application's, and may use this stream.
        let answer = f();
        if matches!(&answer, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            ready::clear_stale(&self.tcp, interest)?;
        }
        answer
    }

    /// Does I/O of one's own on the TCP socket; the directions of `interest` stay on TCP from then
    /// on.
    ///
    /// # Errors
    ///
    /// `Unsupported` when one of them has moved to shared memory; else those of `f`.
    ///
    /// # Cancel safety
    ///
    /// The future waits before `f` is called, and after `f` has answered `WouldBlock`: dropped
    /// then, it loses nothing, as long as `f` does nothing before it answers so. That the
    /// directions stay on TCP is not taken back.
    pub async fn async_io<R>(
        &self,
        interest: Interest,
        mut f: impl FnMut() -> io::Result<R>,
    ) -> io::Result<R> {
        self.pin("async_io", interest)?;
        loop {
            self.ready(interest).await?;
            let coop = poll_fn(poll_proceed).await;
            match self.try_io(interest, &mut f) {
                // Also this costs budget: the socket may be ready for something else than `f`
                // wants.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => coop.made_progress(),
                answer => {
                    coop.made_progress();
                    return answer;
                }
            }
        }
    }

    fn pin(&self, what: &str, interest: Interest) -> io::Result<()> {
        let directions = match (interest.is_readable(), interest.is_writable()) {
            (true, true) => Directions::Both,
            (true, false) => Directions::Read,
            (false, true) => Directions::Write,
            (false, false) => return Ok(()),
        };
        self.conn.pin(what, directions)
    }
}
