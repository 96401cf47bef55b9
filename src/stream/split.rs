//! Borrowed halves of a stream.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};

use super::in_place::SharedBytes;
use super::{SmcStream, in_place};

/// The half of an [`SmcStream`] to read from, borrowed by [`SmcStream::split`].
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # use tokio_smc::{SmcListener, SmcStream};
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # let listener = SmcListener::bind("127.0.0.1:0").await?;
/// # let mut stream = SmcStream::connect(listener.local_addr()?).await?;
/// # let (mut peer, _) = listener.accept().await?;
/// peer.write_all(b"ping").await?;
/// let (mut read, _write) = stream.split();
/// let mut got = [0; 4];
/// read.read_exact(&mut got).await?;
/// assert_eq!(&got, b"ping");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ReadHalf<'a>(&'a SmcStream);

/// The half of an [`SmcStream`] to write to, borrowed by [`SmcStream::split`].
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # use tokio_smc::{SmcListener, SmcStream};
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # let listener = SmcListener::bind("127.0.0.1:0").await?;
/// # let mut stream = SmcStream::connect(listener.local_addr()?).await?;
/// # let (mut peer, _) = listener.accept().await?;
/// let (_read, mut write) = stream.split();
/// write.write_all(b"ping").await?;
/// write.shutdown().await?; // dropping it would not
/// assert_eq!(peer.read_to_end(&mut Vec::new()).await?, 4);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct WriteHalf<'a>(&'a SmcStream);

pub(super) fn split(stream: &mut SmcStream) -> (ReadHalf<'_>, WriteHalf<'_>) {
    (ReadHalf(stream), WriteHalf(stream))
}

impl AsRef<SmcStream> for ReadHalf<'_> {
    fn as_ref(&self) -> &SmcStream {
        self.0
    }
}

impl AsRef<SmcStream> for WriteHalf<'_> {
    fn as_ref(&self) -> &SmcStream {
        self.0
    }
}

/// What every half has in common, written once.
macro_rules! half_methods {
    (read) => {
        /// Polls for [`Self::peek`]; see [`SmcStream::poll_peek`].
        ///
        /// # Errors
        ///
        /// As a read.
        pub fn poll_peek(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
            self.as_ref().poll_peek(cx, buf)
        }

        /// Reads what is next without taking it; see [`SmcStream::peek`].
        ///
        /// # Errors
        ///
        /// As a read.
        ///
        /// # Cancel safety
        ///
        /// Nothing is lost when the future is dropped.
        pub async fn peek(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.as_ref().peek(buf).await
        }

        /// Borrows the bytes that are next, where they lie; see [`SmcStream::fill_buf`].
        ///
        /// # Errors
        ///
        /// As a read.
        ///
        /// # Cancel safety
        ///
        /// Nothing is lost when the future is dropped, nor with what it returns.
        pub async fn fill_buf(&mut self) -> io::Result<SharedBytes<'_>> {
            in_place::fill_buf((*self).as_ref()).await
        }

        /// Polls for [`Self::fill_buf`]; see [`SmcStream::poll_fill_buf`].
        ///
        /// # Errors
        ///
        /// As a read.
        pub fn poll_fill_buf(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<SharedBytes<'_>>> {
            in_place::poll_fill_buf((*self).as_ref(), cx)
        }

        /// Borrows the bytes that are next, where they lie; see [`SmcStream::try_fill_buf`].
        ///
        /// # Errors
        ///
        /// `WouldBlock` when there are none.
        pub fn try_fill_buf(&mut self) -> io::Result<SharedBytes<'_>> {
            in_place::try_fill_buf((*self).as_ref())
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
            self.as_ref().readable().await
        }

        /// Reads what is there; see [`SmcStream::try_read`].
        ///
        /// # Errors
        ///
        /// `WouldBlock` when there is nothing.
        pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
            self.as_ref().try_read(buf)
        }

        /// Reads what is there into several buffers; see [`SmcStream::try_read_vectored`].
        ///
        /// # Errors
        ///
        /// `WouldBlock` when there is nothing.
        pub fn try_read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
            self.as_ref().try_read_vectored(bufs)
        }

        /// Reads what is there and advances `buf`; see [`SmcStream::try_read_buf`].
        ///
        /// # Errors
        ///
        /// `WouldBlock` when there is nothing.
        pub fn try_read_buf<B: BufMut>(&self, buf: &mut B) -> io::Result<usize> {
            self.as_ref().try_read_buf(buf)
        }

        half_methods!(both);
    };
    (write) => {
        /// Writes borrowed bytes straight from where they lie; see [`SmcStream::write_shared`].
        ///
        /// # Errors
        ///
        /// As a write.
        ///
        /// # Cancel safety
        ///
        /// When the future is dropped, nothing was written.
        pub async fn write_shared(&mut self, bytes: &SharedBytes<'_>) -> io::Result<usize> {
            in_place::write_shared(self.as_ref(), bytes).await
        }

        /// Polls for [`Self::write_shared`]; see [`SmcStream::poll_write_shared`].
        ///
        /// # Errors
        ///
        /// As a write.
        pub fn poll_write_shared(
            &mut self,
            cx: &mut Context<'_>,
            bytes: &SharedBytes<'_>,
        ) -> Poll<io::Result<usize>> {
            in_place::poll_write_shared(self.as_ref(), cx, bytes)
        }

        /// Writes what fits of borrowed bytes; see [`SmcStream::try_write_shared`].
        ///
        /// # Errors
        ///
        /// `WouldBlock` when nothing fits.
        pub fn try_write_shared(&self, bytes: &SharedBytes<'_>) -> io::Result<usize> {
            self.as_ref().try_write_shared(bytes)
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
            self.as_ref().writable().await
        }

        /// Writes what fits; see [`SmcStream::try_write`].
        ///
        /// # Errors
        ///
        /// `WouldBlock` when nothing fits.
        pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
            self.as_ref().try_write(buf)
        }

        /// Writes what fits of several buffers; see [`SmcStream::try_write_vectored`].
        ///
        /// # Errors
        ///
        /// `WouldBlock` when nothing fits.
        pub fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
            self.as_ref().try_write_vectored(bufs)
        }

        half_methods!(both);
    };
    (both) => {
        /// Waits until one of the asked-for operations can be tried; see [`SmcStream::ready`].
        ///
        /// # Errors
        ///
        /// As [`SmcStream::ready`].
        ///
        /// # Cancel safety
        ///
        /// Nothing is lost when the future is dropped.
        pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
            self.as_ref().ready(interest).await
        }

        /// The address of the other end.
        ///
        /// # Errors
        ///
        /// As [`SmcStream::peer_addr`].
        pub fn peer_addr(&self) -> io::Result<SocketAddr> {
            self.as_ref().peer_addr()
        }

        /// The address of this end.
        ///
        /// # Errors
        ///
        /// As [`SmcStream::local_addr`].
        pub fn local_addr(&self) -> io::Result<SocketAddr> {
            self.as_ref().local_addr()
        }
    };
}
pub(super) use half_methods;

impl ReadHalf<'_> {
    half_methods!(read);
}

impl WriteHalf<'_> {
    half_methods!(write);
}

impl AsyncRead for ReadHalf<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read_priv(cx, buf)
    }
}

impl AsyncWrite for WriteHalf<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write_priv(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write_vectored_priv(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.shutdown_write())
    }
}
