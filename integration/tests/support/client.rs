//! hyper-util's client over SMC, with no more connections than a test allows.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, Uri};
use hyper_util::client::legacy::Client as Legacy;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio_smc::hyper::{ConnectError, SmcConnector};
use tokio_smc::{SmcInfo, SmcStream};
use tower::Service;

use crate::body::{Payload, sized};
use crate::limited::Limited;

/// Which HTTP a client speaks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Version {
    One,
    Two,
}

/// A client of one server.
#[derive(Clone)]
pub(crate) struct Client<C = SmcConnector> {
    inner: Legacy<Limited<C>, Payload>,
    origin: String,
}

impl<C> Client<C>
where
    C: Service<Uri, Response = TokioIo<SmcStream>, Error = ConnectError, Future: Send + Unpin + 'static>,
    C: Clone + Send + Sync + 'static,
{
    pub(crate) fn with_connector(version: Version, connector: C, origin: String, connections: usize) -> Self {
        let limited = Limited::new(connector, connections);
        let inner = Legacy::builder(TokioExecutor::new()).http2_only(version == Version::Two).build(limited);
        Client { inner, origin }
    }

    /// Sends a request; what is answered is a success.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Payload) -> Response<Incoming> {
        let uri = format!("{}{path}", self.origin);
        let request = Request::builder().method(method).uri(uri).body(body).unwrap();
        let response = self.inner.request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        response
    }

    /// One small request; the connection that has carried it.
    pub(crate) async fn turn(&self) -> SmcInfo {
        let response = self.ask(Method::GET, "/", sized(0)).await;
        let info = info(&response);
        assert_eq!(text(response).await, "hello");
        info
    }
}

/// The connection of a response.
pub(crate) fn info(response: &Response<Incoming>) -> SmcInfo {
    response.extensions().get::<SmcInfo>().expect("the connector's info").clone()
}

/// A short body.
pub(crate) async fn text(response: Response<Incoming>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}
