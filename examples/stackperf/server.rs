//! The server process: every service on every transport.

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::os::linux::net::SocketAddrExt as _;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_smc::{SmcListener, SmcListenerStream};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::server::Connected;

use crate::failure::{Explain, Outcome};
use crate::grpc::EchoServer;
use crate::transport::Addresses;

/// What a response says.
pub(crate) const BODY: &str = "Hello, world!";

/// Where everything listens; the server's first line.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Target {
    /// The server's process.
    pub(crate) process: u32,
    pub(crate) http: Addresses,
    pub(crate) grpc: Addresses,
}

/// The listeners of one service.
struct Doors {
    tcp: TcpListenerStream,
    uds: UnixListenerStream,
    smc: SmcListenerStream,
    addresses: Addresses,
}

impl Doors {
    async fn open(service: &str) -> io::Result<Doors> {
        let tcp = TcpListener::bind("127.0.0.1:0").await?;
        let smc = SmcListener::bind("127.0.0.1:0").await?;
        // Abstract: nothing is left in the file system, whatever ends the server.
        let name = format!("stackperf-{}-{service}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name)?;
        let uds = std::os::unix::net::UnixListener::bind_addr(&address)?;
        uds.set_nonblocking(true)?;
        let addresses =
            Addresses { tcp: tcp.local_addr()?.to_string(), uds: name, smc: smc.local_addr()?.to_string() };
        Ok(Doors {
            tcp: TcpListenerStream::new(tcp),
            uds: UnixListenerStream::new(UnixListener::from_std(uds)?),
            smc: SmcListenerStream::new(smc),
            addresses,
        })
    }
}

pub(crate) async fn serve() -> Outcome<()> {
    let opening = || "opening the listeners".to_owned();
    let http = Doors::open("http").await.explain(opening)?;
    let grpc = Doors::open("grpc").await.explain(opening)?;
    let target =
        Target { process: std::process::id(), http: http.addresses.clone(), grpc: grpc.addresses.clone() };
    tokio::spawn(each(without_delay(http.tcp), serve_http));
    tokio::spawn(each(http.uds, serve_http));
    tokio::spawn(each(http.smc, serve_http));
    tokio::spawn(serve_grpc(without_delay(grpc.tcp)));
    tokio::spawn(serve_grpc(grpc.uds));
    tokio::spawn(serve_grpc(grpc.smc));

    let line = serde_json::to_string(&target).explain(|| "describing the listeners".to_owned())?;
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).explain(|| "writing to standard output".to_owned())?;
    drop(out);
    std::future::pending().await
}

/// What TCP needs to answer small messages at once; SMC and unix sockets never delay.
fn without_delay(
    incoming: TcpListenerStream,
) -> impl Stream<Item = io::Result<tokio::net::TcpStream>> + Unpin {
    incoming.map(|stream| {
        let stream = stream?;
        stream.set_nodelay(true)?;
        Ok(stream)
    })
}

async fn each<S, F: Future<Output = ()> + Send + 'static>(
    mut incoming: impl Stream<Item = io::Result<S>> + Unpin,
    serve: impl Fn(S) -> F,
) {
    while let Some(stream) = incoming.next().await {
        match stream {
            Ok(stream) => drop(tokio::spawn(serve(stream))),
            Err(error) => {
                let _ = writeln!(io::stderr().lock(), "stackperf: accepting: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn hello(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(BODY.as_bytes()))))
}

pub(crate) async fn serve_http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) {
    // A client that goes away in the middle of a request is none of our business.
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service_fn(hello))
        .await;
}

pub(crate) async fn serve_grpc<S>(incoming: impl Stream<Item = io::Result<S>> + Send + 'static)
where
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let served =
        tonic::transport::Server::builder().add_service(EchoServer).serve_with_incoming(incoming).await;
    if let Err(error) = served {
        let _ = writeln!(io::stderr().lock(), "stackperf: serving gRPC: {error}");
    }
}
