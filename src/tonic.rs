//! tonic 0.14: servers on an `SmcListener`, channels over SMC.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use ::tonic::transport::server::{Connected, TcpConnectInfo};
use futures_core::Stream;
use socket2::{SockRef, TcpKeepalive};

use crate::listener::{SmcListener, SmcListenerStream};
use crate::stream::SmcStream;

/// As tonic's for tokio's `TcpStream`: `Request::remote_addr`, `Request::local_addr` and `Request::peer_certs` answer
/// as before.
impl Connected for SmcStream {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: self.local_addr().ok(), remote_addr: self.peer_addr().ok() }
    }
}

/// The connections of a tonic server, for `serve_with_incoming` and its siblings: as tonic's `TcpIncoming`.
///
/// tonic's server ignores its own settings for TCP where it is given the connections, so they are made here. As with
/// `Server::serve`, `TCP_NODELAY` is set unless [`SmcIncoming::with_nodelay`] says otherwise; clients that stay on TCP
/// would wait for the delays otherwise.
///
/// ```
/// use std::convert::Infallible;
/// # use tonic::body::Body;
/// use tokio_smc::SmcIncoming;
/// use tonic::transport::{Endpoint, Server};
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
#[derive(Debug)]
pub struct SmcIncoming {
    inner: SmcListenerStream,
    keepalive: Keepalive,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Keepalive {
    time: Option<Duration>,
    interval: Option<Duration>,
    retries: Option<u32>,
}

impl SmcIncoming {
    /// Listens on `addr`, with the settings of [`Config::from_env`](crate::Config::from_env); for others make it of an
    /// [`SmcListener`].
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

    /// Sets `TCP_NODELAY` of the accepted streams; `None` is the kernel's default.
    #[must_use]
    pub fn with_nodelay(self, nodelay: Option<bool>) -> SmcIncoming {
        self.listener_option("TCP_NODELAY", |socket| socket.set_tcp_nodelay(nodelay.unwrap_or(false)))
    }

    /// Sets after how much idle time the accepted streams are probed; the TCP connection under a stream on shared
    /// memory is probed, too.
    #[must_use]
    pub fn with_keepalive(self, time: Option<Duration>) -> SmcIncoming {
        let keepalive = Keepalive { time, ..self.keepalive };
        self.set_keepalive(keepalive)
    }

    /// Sets the time between two probes of an accepted stream (`TCP_KEEPINTVL`).
    #[must_use]
    pub fn with_keepalive_interval(self, interval: Option<Duration>) -> SmcIncoming {
        let keepalive = Keepalive { interval, ..self.keepalive };
        self.set_keepalive(keepalive)
    }

    /// Sets how many probes of an accepted stream may stay unanswered (`TCP_KEEPCNT`).
    #[must_use]
    pub fn with_keepalive_retries(self, retries: Option<u32>) -> SmcIncoming {
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

    fn set_keepalive(mut self, keepalive: Keepalive) -> SmcIncoming {
        self.keepalive = keepalive;
        self.listener_option("SO_KEEPALIVE", |socket| {
            if keepalive == Keepalive::default() {
                return socket.set_keepalive(false);
            }
            let mut wanted = TcpKeepalive::new();
            if let Some(time) = keepalive.time {
                wanted = wanted.with_time(time);
            }
            if let Some(interval) = keepalive.interval {
                wanted = wanted.with_interval(interval);
            }
            if let Some(retries) = keepalive.retries {
                wanted = wanted.with_retries(retries);
            }
            socket.set_tcp_keepalive(&wanted)
        })
    }

    /// What is set on a listener holds for every stream that it accepts. As with tonic, a failure is only logged.
    fn listener_option(self, name: &str, set: impl FnOnce(SockRef<'_>) -> io::Result<()>) -> SmcIncoming {
        if let Err(error) = set(SockRef::from(self.inner.as_ref())) {
            crate::trace::warning!("can not set {name} of accepted streams: {error}");
        }
        self
    }
}

impl From<SmcListener> for SmcIncoming {
    fn from(listener: SmcListener) -> SmcIncoming {
        let incoming = SmcIncoming { inner: listener.into(), keepalive: Keepalive::default() };
        incoming.with_nodelay(Some(true))
    }
}

impl Stream for SmcIncoming {
    type Item = io::Result<SmcStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<SmcStream>>> {
        Pin::new(&mut self.inner).poll_next(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

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
