//! A connector that makes no more connections than a test allows.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;
use tokio_smc::SmcStream;
use tokio_smc::hyper::ConnectError;
use tower::Service;

/// Makes so many connections; further ones stay under way.
///
/// The pool asks for another connection whenever the ones it has are not idle yet, and takes what
/// comes first.
#[derive(Clone)]
pub(crate) struct Limited<C> {
    connector: C,
    left: Arc<Semaphore>,
}

impl<C> Limited<C> {
    pub(crate) fn new(connector: C, connections: usize) -> Self {
        Limited { connector, left: Arc::new(Semaphore::new(connections)) }
    }
}

impl<C> Service<Uri> for Limited<C>
where
    C: Service<Uri, Response = TokioIo<SmcStream>, Error = ConnectError, Future: Send + 'static>,
{
    type Response = TokioIo<SmcStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<SmcStream>, ConnectError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.connector.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, left) = (self.connector.call(uri), Arc::clone(&self.left));
        Box::pin(async move {
            left.acquire().await.expect("it is never closed").forget();
            connecting.await
        })
    }
}
