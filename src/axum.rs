//! axum 0.8: `axum::serve` on an [`SmcListener`], and its connect info.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ::axum::extract::connect_info::Connected;
use ::axum::serve::{IncomingStream, Listener, TapIo};

use crate::info::SmcInfo;
use crate::listener::SmcListener;
use crate::stream::SmcStream;

/// How long to wait when there are no descriptors left, as axum does.
const PAUSE: Duration = Duration::from_secs(1);

/// `axum::serve(listener, router)` serves HTTP over SMC, and plain TCP clients on the same port.
///
/// ```no_run
/// use axum::{Router, routing::get};
/// use tokio_smc::SmcListener;
///
/// # async fn example() -> std::io::Result<()> {
/// let router = Router::new().route("/", get(|| async { "hello" }));
/// axum::serve(SmcListener::bind("127.0.0.1:3000").await?, router).await
/// # }
/// ```
///
/// A handler learns of its connection in one of two ways. With [`SmcInfo`] it has all there is to
/// know:
///
/// ```no_run
/// use axum::extract::ConnectInfo;
/// use axum::{Router, routing::get};
/// use tokio_smc::{SmcInfo, SmcListener};
///
/// async fn hello(ConnectInfo(info): ConnectInfo<SmcInfo>) -> String {
///     format!("{:?} on {}", info.peer_addr(), info.transport())
/// }
///
/// # async fn example() -> std::io::Result<()> {
/// let router = Router::new().route("/", get(hello));
/// let service = router.into_make_service_with_connect_info::<SmcInfo>();
/// axum::serve(SmcListener::bind("127.0.0.1:3000").await?, service).await
/// # }
/// ```
///
/// Handlers that say `ConnectInfo<SocketAddr>` stay as they are when the listener goes through
/// `tap_io`. (axum implements it for its own listeners and for every tapped one; another crate can
/// not.) `ConnectInfo<SmcInfo>` is to be had of a tapped listener, too.
///
/// ```no_run
/// use std::net::SocketAddr;
///
/// use axum::extract::ConnectInfo;
/// use axum::serve::ListenerExt;
/// use axum::{Router, routing::get};
/// use tokio_smc::SmcListener;
///
/// async fn hello(ConnectInfo(peer): ConnectInfo<SocketAddr>) -> String {
///     peer.to_string()
/// }
///
/// # async fn example() -> std::io::Result<()> {
/// let listener = SmcListener::bind("127.0.0.1:3000").await?.tap_io(|stream| {
///     let _ = stream.set_nodelay(true);
/// });
/// let router = Router::new().route("/", get(hello));
/// axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await
/// # }
/// ```
#[cfg_attr(docsrs, doc(cfg(feature = "axum08")))]
impl Listener for SmcListener {
    type Io = SmcStream;
    type Addr = SocketAddr;

    /// Waits for a connection; a failure is logged and tried again, as axum does it for tokio's
    /// listeners.
    async fn accept(&mut self) -> (SmcStream, SocketAddr) {
        loop {
            match SmcListener::accept(self).await {
                Ok(accepted) => return accepted,
                Err(error) if of_one_connection(&error) => {}
                Err(error) => {
                    crate::trace::warning!("accept failed, trying again in {PAUSE:?}: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        SmcListener::local_addr(self)
    }
}

/// The connection has gone before it was accepted; the next one is none the worse for it.
fn of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

#[cfg_attr(docsrs, doc(cfg(feature = "axum08")))]
impl Connected<IncomingStream<'_, SmcListener>> for SmcInfo {
    fn connect_info(stream: IncomingStream<'_, SmcListener>) -> SmcInfo {
        stream.io().info()
    }
}

/// Also where the streams have gone through `tap_io`, for example to set `TCP_NODELAY`.
#[cfg_attr(docsrs, doc(cfg(feature = "axum08")))]
impl<F> Connected<IncomingStream<'_, TapIo<SmcListener, F>>> for SmcInfo
where
    F: FnMut(&mut SmcStream) + Send + 'static,
{
    fn connect_info(stream: IncomingStream<'_, TapIo<SmcListener, F>>) -> SmcInfo {
        stream.io().info()
    }
}
