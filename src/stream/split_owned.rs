//! Owned halves of a stream.

use std::error::Error;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};

use super::in_place::SharedBytes;
use super::split::half_methods;
use super::{SmcStream, in_place};
use crate::sync::Arc;

/// The half of an [`SmcStream`] to read from, made by [`SmcStream::into_split`].
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # use tokio_smc::{SmcListener, SmcStream};
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # let listener = SmcListener::bind("127.0.0.1:0").await?;
/// # let stream = SmcStream::connect(listener.local_addr()?).await?;
/// # let (mut peer, _) = listener.accept().await?;
/// let (mut read, write) = stream.into_split();
/// let reader = tokio::spawn(async move { read.read_u8().await });
/// peer.write_u8(7).await?;
/// assert_eq!(reader.await.expect("no panic")?, 7);
/// # drop(write);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct OwnedReadHalf {
    stream: Arc<SmcStream>,
}

/// The half of an [`SmcStream`] to write to, made by [`SmcStream::into_split`].
///
/// Dropping it shuts down the sending direction, unless it is reunited or
/// [forgotten](OwnedWriteHalf::forget).
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # use tokio_smc::{SmcListener, SmcStream};
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # let listener = SmcListener::bind("127.0.0.1:0").await?;
/// # let stream = SmcStream::connect(listener.local_addr()?).await?;
/// # let (mut peer, _) = listener.accept().await?;
/// let (_read, mut write) = stream.into_split();
/// tokio::spawn(async move { write.write_all(b"all there is").await }); // and dropped
/// let mut got = String::new();
/// peer.read_to_string(&mut got).await?;
/// assert_eq!(got, "all there is");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct OwnedWriteHalf {
    stream: Arc<SmcStream>,
    shutdown_on_drop: bool,
}

pub(super) fn split_owned(stream: SmcStream) -> (OwnedReadHalf, OwnedWriteHalf) {
    let stream = Arc::new(stream);
    (OwnedReadHalf { stream: stream.clone() }, OwnedWriteHalf { stream, shutdown_on_drop: true })
}

/// Two halves of different streams can not be reunited; both are given back.
///
/// ```
/// # use tokio_smc::{SmcListener, SmcStream};
/// use tokio_smc::net::tcp::ReuniteError;
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # let listener = SmcListener::bind("127.0.0.1:0").await?;
/// # let one = SmcStream::connect(listener.local_addr()?).await?;
/// # let other = SmcStream::connect(listener.local_addr()?).await?;
/// let (read, write) = one.into_split();
/// let (other_read, other_write) = other.into_split();
/// let ReuniteError(read, other_write) = read.reunite(other_write).unwrap_err();
/// let _one = read.reunite(write).expect("halves of one stream");
/// let _other = other_read.reunite(other_write).expect("halves of the other");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ReuniteError(pub OwnedReadHalf, pub OwnedWriteHalf);

impl fmt::Display for ReuniteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tried to reunite halves that are not from the same socket")
    }
}

impl Error for ReuniteError {}

fn reunite(read: OwnedReadHalf, write: OwnedWriteHalf) -> Result<SmcStream, ReuniteError> {
    if !Arc::ptr_eq(&read.stream, &write.stream) {
        return Err(ReuniteError(read, write));
    }
    write.forget();
    // The write half is gone, so this is the last reference.
    Arc::try_unwrap(read.stream).map_err(|_| unreachable!("a half of the stream lives besides these two"))
}

impl OwnedReadHalf {
    /// Puts the two halves together again.
    ///
    /// # Errors
    ///
    /// When they are from different streams.
    pub fn reunite(self, other: OwnedWriteHalf) -> Result<SmcStream, ReuniteError> {
        reunite(self, other)
    }

    half_methods!(read);
}

impl OwnedWriteHalf {
    /// Puts the two halves together again.
    ///
    /// # Errors
    ///
    /// When they are from different streams.
    pub fn reunite(self, other: OwnedReadHalf) -> Result<SmcStream, ReuniteError> {
        reunite(other, self)
    }

    /// Drops the half without shutting down the sending direction.
    pub fn forget(mut self) {
        self.shutdown_on_drop = false;
    }

    half_methods!(write);
}

impl AsRef<SmcStream> for OwnedReadHalf {
    fn as_ref(&self) -> &SmcStream {
        &self.stream
    }
}

impl AsRef<SmcStream> for OwnedWriteHalf {
    fn as_ref(&self) -> &SmcStream {
        &self.stream
    }
}

impl Drop for OwnedWriteHalf {
    fn drop(&mut self) {
        if self.shutdown_on_drop {
            // Nobody is left to hear of an error; the reader has its own.
            let _ = self.stream.shutdown_write();
        }
    }
}

impl AsyncRead for OwnedReadHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_read_priv(cx, buf)
    }
}

impl AsyncWrite for OwnedWriteHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.poll_write_priv(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.poll_write_vectored_priv(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let answer = self.stream.shutdown_write();
        if answer.is_ok() {
            self.shutdown_on_drop = false;
        }
        Poll::Ready(answer)
    }
}
