//! hyper-util's client over SMC, with no more connections than a test allows.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Request, Response, Uri, body::Incoming};
use hyper_util::client::legacy::Client as Legacy;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::Semaphore;
use tokio_smc::hyper::{ConnectError, SmcConnector};
use tokio_smc::{Config, SmcInfo, SmcStream};
use tower::Service;

use crate::body::{Payload, sized};

/// Which HTTP a client speaks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Version {
    One,
    Two,
}

/// Makes so many connections; further ones stay under way.
///
/// The pool asks for another connection whenever the ones it has are not idle yet, and takes what comes first.
#[derive(Clone)]
pub(crate) struct Limited {
    connector: SmcConnector,
    left: Arc<Semaphore>,
}

impl Service<Uri> for Limited {
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

/// A client of one server.
#[derive(Clone)]
pub(crate) struct Client {
    inner: Legacy<Limited, Payload>,
    server: SocketAddr,
}

impl Client {
    pub(crate) fn new(version: Version, server: SocketAddr, config: &Config, connections: usize) -> Self {
        let mut connector = SmcConnector::new();
        connector.set_config(config.clone());
        connector.set_nodelay(true);
        let limited = Limited { connector, left: Arc::new(Semaphore::new(connections)) };
        let inner = Legacy::builder(TokioExecutor::new()).http2_only(version == Version::Two).build(limited);
        Client { inner, server }
    }

    fn request(&self, method: &str, path: &str, body: Payload) -> Request<Payload> {
        let uri = format!("http://{}{path}", self.server);
        Request::builder().method(method).uri(uri).body(body).unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Response<Incoming> {
        answered(self.inner.request(self.request("GET", path, sized(0))).await.unwrap())
    }

    pub(crate) async fn post(&self, path: &str, body: Payload) -> Response<Incoming> {
        answered(self.inner.request(self.request("POST", path, body)).await.unwrap())
    }

    /// One small request; the connection that has carried it.
    pub(crate) async fn turn(&self) -> SmcInfo {
        let response = self.get("/").await;
        let info = info(&response);
        assert_eq!(text(response).await, "hello");
        info
    }
}

fn answered(response: Response<Incoming>) -> Response<Incoming> {
    assert_eq!(response.status(), 200);
    response
}

/// The connection of a response.
pub(crate) fn info(response: &Response<Incoming>) -> SmcInfo {
    response.extensions().get::<SmcInfo>().expect("the connector's info").clone()
}

/// A short body.
pub(crate) async fn text(response: Response<Incoming>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}
