//! What the HTTP servers of these tests answer, under hyper.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Barrier;

use crate::body::{Payload, check, sized};

/// How many requests meet at `/meet` before any of them is answered.
pub(crate) const MEETING: usize = 500;

/// One for all connections of a server.
#[derive(Clone)]
pub(crate) struct Service {
    meeting: Arc<Barrier>,
}

impl Service {
    pub(crate) fn new() -> Self {
        Service { meeting: Arc::new(Barrier::new(MEETING)) }
    }

    /// Serves HTTP/1.1 and HTTP/2 on a connection until the client ends it.
    pub(crate) async fn serve<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http2().max_concurrent_streams(2 * MEETING as u32);
        let service = service_fn(|request| self.clone().answer(request));
        // The client ends it as it likes; what is wrong with a request is seen in its answer.
        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Payload>, Infallible> {
        let (parts, body) = request.into_parts();
        Ok(match (parts.method, parts.uri.path()) {
            (Method::GET, "/") => text("hello"),
            (Method::GET, "/meet") => {
                self.meeting.wait().await;
                text("met")
            }
            (Method::GET, path) => match path.trim_start_matches('/').parse() {
                Ok(length) => Response::new(sized(length)),
                Err(_) => status(StatusCode::NOT_FOUND),
            },
            (Method::POST, "/echo") => Response::new(body.boxed()),
            (Method::POST, "/take") => text(check(body).await.to_string()),
            _ => status(StatusCode::NOT_FOUND),
        })
    }
}

fn text(text: impl Into<bytes::Bytes>) -> Response<Payload> {
    Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed())
}

fn status(status: StatusCode) -> Response<Payload> {
    let mut response = text("");
    *response.status_mut() = status;
    response
}
