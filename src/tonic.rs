//! tonic 0.14: servers on an `SmcListener`, channels over SMC.

use std::fmt;
use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use ::tonic::transport::Endpoint;
use ::tonic::transport::server::{Connected, TcpConnectInfo};
use futures_core::Stream;
use pin_project_lite::pin_project;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::hyper::SmcConnector;
use crate::hyper::keepalive::Keepalive;
use crate::info::SmcInfo;
use crate::listener::{SmcListener, SmcListenerStream};
use crate::stream::SmcStream;

/// As tonic's for tokio's `TcpStream`: `Request::remote_addr`, `Request::local_addr` and
/// `Request::peer_certs` answer as before. (They look for exactly this type; for [`SmcInfo`] in its
/// place see [`SmcIncoming::with_info`].)
#[cfg_attr(docsrs, doc(cfg(feature = "tonic014")))]
impl Connected for SmcStream {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: self.local_addr().ok(), remote_addr: self.peer_addr().ok() }
    }
}

/// A connector with the endpoint's settings for TCP, which tonic itself ignores with a connector
/// that is not its own: `tcp_nodelay` (on by default), `tcp_keepalive` with interval and retries,
/// `connect_timeout`.
///
/// Of `local_address` tonic does not tell: [`SmcConnector::set_local_address`] sets it. An endpoint
/// with TLS encrypts over SMC too.
///
/// ```
/// use tokio_smc::hyper::SmcConnector;
/// use tonic::transport::Endpoint;
///
/// # async fn example() -> Result<(), tonic::transport::Error> {
/// let endpoint = Endpoint::from_static("http://127.0.0.1:50051");
/// let channel = endpoint.connect_with_connector(SmcConnector::from(&endpoint)).await?;
/// // With generated code: GreeterClient::new(channel)
/// # let _ = channel;
/// # Ok(()) }
/// ```
#[cfg_attr(docsrs, doc(cfg(feature = "tonic014")))]
impl From<&Endpoint> for SmcConnector {
    fn from(endpoint: &Endpoint) -> SmcConnector {
        let mut connector = SmcConnector::new();
        // For TLS, which tonic adds on top.
        connector.enforce_http(false);
        connector.set_nodelay(endpoint.get_tcp_nodelay());
        connector.set_keepalive(endpoint.get_tcp_keepalive());
        connector.set_keepalive_interval(endpoint.get_tcp_keepalive_interval());
        connector.set_keepalive_retries(endpoint.get_tcp_keepalive_retries());
        connector.set_connect_timeout(endpoint.get_connect_timeout());
        connector
    }
}

pin_project! {
    /// The connections of a tonic server, for `serve_with_incoming` and its siblings: as tonic's
    /// `TcpIncoming`.
    ///
    /// tonic's server ignores its own settings for TCP where it is given the connections, so they
    /// are made here. As with `Server::serve`, `TCP_NODELAY` is set unless
    /// [`SmcIncoming::with_nodelay`] says otherwise; clients that stay on TCP would wait for the
    /// delays otherwise.
    ///
    /// ```
    /// use std::convert::Infallible;
    /// # use tonic::body::Body;
    /// use tokio_smc::SmcIncoming;
    /// use tonic::transport::Server;
    ///
    /// # async fn example<S>(greeter: S) -> Result<(), Box<dyn std::error::Error>>
    /// # where
    /// #     S: tower_service::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    /// #     S: Clone + Send + 'static, S::Future: Send,
    /// # {
    /// let incoming = SmcIncoming::bind("127.0.0.1:50051".parse()?)?;
    /// // With generated code: Server::builder().add_service(greeter).serve_with_incoming(incoming)
    /// Server::builder().serve_with_incoming(greeter, incoming).await?;
    /// # Ok(()) }
    /// ```
    pub struct SmcIncoming<S = SmcStream> {
        #[pin]
        inner: SmcListenerStream,
        keepalive: Keepalive,
        yields: PhantomData<fn() -> S>,
    }
}

impl SmcIncoming {
    /// Listens on `addr`, with the settings of [`Config::from_env`](crate::Config::from_env); for
    /// others make it of an [`SmcListener`].
    ///
    /// # Errors
    ///
    /// Those of [`std::net::TcpListener::bind`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    pub fn bind(addr: SocketAddr) -> io::Result<SmcIncoming> {
        let listener = std::net::TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        Ok(SmcListener::from_std(listener)?.into())
    }

    /// Yields streams whose requests have an [`SmcInfo`] in their extensions: what they come over,
    /// whenever one asks, and from whom.
    ///
    /// It takes the place of tonic's `TcpConnectInfo`, so that `Request::remote_addr`,
    /// `Request::local_addr` and `Request::peer_certs` answer `None`. An interceptor makes the
    /// first two answer again:
    ///
    /// ```
    /// use tokio_smc::SmcInfo;
    /// use tonic::transport::server::TcpConnectInfo;
    /// use tonic::{Request, Status};
    ///
    /// fn addresses(mut request: Request<()>) -> Result<Request<()>, Status> {
    ///     let info = request.extensions().get::<SmcInfo>();
    ///     let info = info.ok_or_else(|| Status::internal("not from SmcIncoming::with_info"))?;
    ///     println!("a call over {}", info.transport());
    ///     let addresses = TcpConnectInfo { local_addr: info.local_addr(), remote_addr: info.peer_addr() };
    ///     request.extensions_mut().insert(addresses);
    ///     Ok(request)
    /// }
    /// # let _ = addresses;
    /// ```
    #[must_use]
    pub fn with_info(self) -> SmcIncoming<SmcStreamWithInfo> {
        SmcIncoming { inner: self.inner, keepalive: self.keepalive, yields: PhantomData }
    }
}

impl<S> SmcIncoming<S> {
    /// Sets `TCP_NODELAY` of the accepted streams; `None` is the kernel's default.
    #[must_use]
    pub fn with_nodelay(self, nodelay: Option<bool>) -> SmcIncoming<S> {
        self.listener_option("TCP_NODELAY", |socket| socket.set_tcp_nodelay(nodelay.unwrap_or(false)))
    }

    /// Sets after how much idle time the accepted streams are probed; the TCP connection under a
    /// stream on shared memory is probed, too.
    #[must_use]
    pub fn with_keepalive(self, time: Option<Duration>) -> SmcIncoming<S> {
        let keepalive = Keepalive { time, ..self.keepalive };
        self.set_keepalive(keepalive)
    }

    /// Sets the time between two probes of an accepted stream (`TCP_KEEPINTVL`).
    #[must_use]
    pub fn with_keepalive_interval(self, interval: Option<Duration>) -> SmcIncoming<S> {
        let keepalive = Keepalive { interval, ..self.keepalive };
        self.set_keepalive(keepalive)
    }

    /// Sets how many probes of an accepted stream may stay unanswered (`TCP_KEEPCNT`).
    #[must_use]
    pub fn with_keepalive_retries(self, retries: Option<u32>) -> SmcIncoming<S> {
        let keepalive = Keepalive { retries, ..self.keepalive };
        self.set_keepalive(keepalive)
    }

    /// The address the listener is bound to.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.as_ref().local_addr()
    }

    fn set_keepalive(mut self, keepalive: Keepalive) -> SmcIncoming<S> {
        self.keepalive = keepalive;
        self.listener_option("SO_KEEPALIVE", |socket| match keepalive.wanted() {
            Some(wanted) => socket.set_tcp_keepalive(&wanted),
            None => socket.set_keepalive(false),
        })
    }

    /// What is set on a listener holds for every stream that it accepts. As with tonic, a failure
    /// is only logged.
    fn listener_option(self, name: &str, set: impl FnOnce(SockRef<'_>) -> io::Result<()>) -> SmcIncoming<S> {
        if let Err(error) = set(SockRef::from(self.inner.as_ref())) {
            crate::trace::warning!("can not set {name} of accepted streams: {error}");
        }
        self
    }
}

impl From<SmcListener> for SmcIncoming {
    fn from(listener: SmcListener) -> SmcIncoming {
        let incoming =
            SmcIncoming { inner: listener.into(), keepalive: Keepalive::default(), yields: PhantomData };
        incoming.with_nodelay(Some(true))
    }
}

impl<S: From<SmcStream>> Stream for SmcIncoming<S> {
    type Item = io::Result<S>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<S>>> {
        self.project().inner.poll_next(cx).map(|accepted| accepted.map(|stream| stream.map(S::from)))
    }
}

impl<S> fmt::Debug for SmcIncoming<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmcIncoming").field("inner", &self.inner).field("keepalive", &self.keepalive).finish()
    }
}

pin_project! {
    /// An [`SmcStream`] whose requests tonic gives an [`SmcInfo`]; see [`SmcIncoming::with_info`].
    ///
    /// ```
    /// use futures::StreamExt;
    /// use tokio_smc::{SmcIncoming, SmcStream};
    /// use tonic::transport::server::Connected;
    ///
    /// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut incoming = SmcIncoming::bind("127.0.0.1:0".parse()?)?.with_info();
    /// let client = SmcStream::connect(incoming.local_addr()?).await?;
    /// let accepted = incoming.next().await.expect("a connection")?;
    /// // What tonic puts into the extensions of each request:
    /// assert_eq!(accepted.connect_info().peer_addr(), Some(client.local_addr()?));
    /// # Ok(()) }
    /// ```
    #[derive(Debug)]
    pub struct SmcStreamWithInfo {
        #[pin]
        stream: SmcStream,
    }
}

impl SmcStreamWithInfo {
    /// Gives the stream back.
    pub fn into_inner(self) -> SmcStream {
        self.stream
    }
}

impl From<SmcStream> for SmcStreamWithInfo {
    fn from(stream: SmcStream) -> Self {
        SmcStreamWithInfo { stream }
    }
}

impl AsRef<SmcStream> for SmcStreamWithInfo {
    fn as_ref(&self) -> &SmcStream {
        &self.stream
    }
}

impl Connected for SmcStreamWithInfo {
    type ConnectInfo = SmcInfo;

    fn connect_info(&self) -> SmcInfo {
        self.stream.info()
    }
}

impl AsyncRead for SmcStreamWithInfo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_read(cx, buf)
    }
}

impl AsyncWrite for SmcStreamWithInfo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.project().stream.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().stream.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[test]
    fn an_endpoint_makes_its_connector() {
        let endpoint = Endpoint::from_static("https://server.test")
            .tcp_keepalive(Some(Duration::from_secs(71)))
            .tcp_keepalive_interval(Some(Duration::from_secs(72)))
            .tcp_keepalive_retries(Some(3))
            .connect_timeout(Duration::from_secs(73));
        let mut wanted = SmcConnector::new();
        wanted.enforce_http(false);
        wanted.set_nodelay(true);
        wanted.set_keepalive(Some(Duration::from_secs(71)));
        wanted.set_keepalive_interval(Some(Duration::from_secs(72)));
        wanted.set_keepalive_retries(Some(3));
        wanted.set_connect_timeout(Some(Duration::from_secs(73)));
        assert_eq!(format!("{:?}", SmcConnector::from(&endpoint)), format!("{wanted:?}"));
        let delaying = SmcConnector::from(&Endpoint::from_static("http://server.test").tcp_nodelay(false));
        assert!(format!("{delaying:?}").contains("nodelay: false"), "{delaying:?}");
    }

    /// A std socket, as it is accepted from `incoming`.
    async fn accepted(mut incoming: SmcIncoming) -> std::net::TcpStream {
        let _client = std::net::TcpStream::connect(incoming.local_addr().unwrap()).unwrap();
        let stream = poll_fn(|cx| Pin::new(&mut incoming).poll_next(cx)).await.unwrap().unwrap();
        stream.into_std().unwrap()
    }

    fn incoming() -> SmcIncoming {
        SmcIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn accepted_streams_do_not_delay_and_are_not_probed() {
        let stream = accepted(incoming()).await;
        assert!(stream.nodelay().unwrap());
        assert!(!SockRef::from(&stream).keepalive().unwrap());
    }

    #[tokio::test]
    async fn accepted_streams_have_the_options_of_the_listener() {
        let incoming = incoming()
            .with_nodelay(None)
            .with_keepalive(Some(Duration::from_secs(71)))
            .with_keepalive_interval(Some(Duration::from_secs(72)))
            .with_keepalive_retries(Some(3));
        let stream = accepted(incoming).await;
        assert!(!stream.nodelay().unwrap());
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(71));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(72));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
    }

    #[tokio::test]
    async fn keepalive_can_be_taken_back() {
        let stream =
            accepted(incoming().with_keepalive(Some(Duration::from_secs(71))).with_keepalive(None)).await;
        assert!(!SockRef::from(&stream).keepalive().unwrap());
    }
}
