//! futures-io: the traits of the `futures` crate, through tokio-util's adapter.

use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use crate::stream::SmcStream;

#[cfg_attr(docsrs, doc(cfg(feature = "futures-io")))]
impl SmcStream {
    /// Makes it a stream of futures-io: `futures::io::{AsyncRead, AsyncWrite}`.
    ///
    /// [`Compat::get_ref`] reaches the stream, [`Compat::into_inner`] takes it back.
    ///
    /// ```
    /// use futures::io::{AsyncReadExt, AsyncWriteExt};
    /// use tokio_smc::SmcStream;
    ///
    /// async fn ask(stream: SmcStream) -> std::io::Result<SmcStream> {
    ///     let mut stream = stream.compat();
    ///     stream.write_all(b"ping").await?;
    ///     stream.read_exact(&mut [0; 4]).await?;
    ///     Ok(stream.into_inner())
    /// }
    /// ```
    pub fn compat(self) -> Compat<SmcStream> {
        TokioAsyncReadCompatExt::compat(self)
    }
}
