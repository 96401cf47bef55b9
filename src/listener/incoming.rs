//! [`SmcListenerStream`]: the accepted streams as a `Stream`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use super::SmcListener;
use crate::stream::SmcStream;

/// The streams that a listener accepts, one after the other, without end: as `tokio_stream`'s
/// `TcpListenerStream`.
///
/// A failed accept is an item, too; the next one may succeed.
///
/// ```
/// use futures::StreamExt;
/// use tokio_smc::{SmcListener, SmcListenerStream};
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// let mut incoming = SmcListenerStream::new(SmcListener::bind("127.0.0.1:0").await?);
/// # let client = tokio_smc::SmcStream::connect(incoming.as_ref().local_addr()?).await?;
/// while let Some(stream) = incoming.next().await {
///     println!("{}", stream?.peer_addr()?);
/// #   break;
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct SmcListenerStream {
    listener: SmcListener,
}

impl SmcListenerStream {
    /// Makes a `Stream` of a listener.
    pub fn new(listener: SmcListener) -> Self {
        SmcListenerStream { listener }
    }

    /// Gives the listener back.
    pub fn into_inner(self) -> SmcListener {
        self.listener
    }
}

impl Stream for SmcListenerStream {
    type Item = io::Result<SmcStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<SmcStream>>> {
        Poll::Ready(Some(ready!(self.listener.poll_accept(cx)).map(|(stream, _)| stream)))
    }
}

impl AsRef<SmcListener> for SmcListenerStream {
    fn as_ref(&self) -> &SmcListener {
        &self.listener
    }
}

impl AsMut<SmcListener> for SmcListenerStream {
    fn as_mut(&mut self) -> &mut SmcListener {
        &mut self.listener
    }
}

impl From<SmcListener> for SmcListenerStream {
    fn from(listener: SmcListener) -> Self {
        SmcListenerStream::new(listener)
    }
}
