//! HTTP servers under hyper, on listeners of ours and of tokio's, and what they know of their connections.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tokio_smc::{Config, SmcInfo, SmcListener};

use crate::body::{Payload, check, sized};

/// How many requests meet at `/meet` before any of them is answered.
pub(crate) const MEETING: usize = 500;

/// A running server on SMC.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    accepted: Arc<Mutex<Vec<SmcInfo>>>,
}

impl Server {
    /// Serves HTTP/1.1 and HTTP/2 on any port of `host`, until the runtime ends.
    pub(crate) async fn start(host: &str, config: &Config) -> Self {
        let listener = SmcListener::bind_with((host, 0), config).await.unwrap();
        let (addr, accepted) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let (connections, meeting) = (Arc::clone(&accepted), Arc::new(Barrier::new(MEETING)));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.lock().unwrap().push(stream.info());
                tokio::spawn(connection(stream, Arc::clone(&meeting)));
            }
        });
        Server { addr, accepted }
    }

    /// All connections that it has accepted so far, the oldest first.
    pub(crate) fn accepted(&self) -> Vec<SmcInfo> {
        self.accepted.lock().unwrap().clone()
    }
}

/// The same server on a listener of tokio's.
pub(crate) async fn plain_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let meeting = Arc::new(Barrier::new(MEETING));
    tokio::spawn(async move {
        loop {
            tokio::spawn(connection(listener.accept().await.unwrap().0, Arc::clone(&meeting)));
        }
    });
    addr
}

async fn connection<S>(stream: S, meeting: Arc<Barrier>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(2 * MEETING as u32);
    let service = service_fn(|request| answer(request, Arc::clone(&meeting)));
    // The client ends it as it likes; what is wrong with a request is seen in its answer.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, meeting: Arc<Barrier>) -> Result<Response<Payload>, Infallible> {
    let (parts, body) = request.into_parts();
    Ok(match (parts.method, parts.uri.path()) {
        (Method::GET, "/") => text("hello"),
        (Method::GET, "/meet") => {
            meeting.wait().await;
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

fn text(text: impl Into<bytes::Bytes>) -> Response<Payload> {
    Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed())
}

fn status(status: StatusCode) -> Response<Payload> {
    let mut response = text("");
    *response.status_mut() = status;
    response
}
