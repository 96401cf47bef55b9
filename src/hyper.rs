//! hyper 1: a connector for `hyper-util`'s client (feature `hyper-util`).
//!
//! [`SmcConnector`] takes the place of `hyper_util::client::legacy::connect::HttpConnector` and has
//! its settings. Servers need nothing of this: `hyper_util::rt::TokioIo::new(stream)` serves an
//! accepted stream.
//!
//! ```
//! use hyper_util::client::legacy::Client;
//! use hyper_util::rt::TokioExecutor;
//! use tokio_smc::SmcInfo;
//! use tokio_smc::hyper::SmcConnector;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client: Client<_, String> = Client::builder(TokioExecutor::new()).build(SmcConnector::new());
//! let response = client.get("http://127.0.0.1:3000/".parse()?).await?;
//! let info = response.extensions().get::<SmcInfo>().expect("from SmcConnector").clone();
//! println!("{} over {}", response.status(), info.transport());
//! // Asked again later, it tells what the connection runs on then.
//! # Ok(()) }
//! ```
//!
//! Connections are pooled by origin, as usual; those that live for some requests move to shared
//! memory. For TLS wrap the connector, for example in
//! `hyper_rustls::HttpsConnectorBuilder::wrap_connector`, after `enforce_http(false)`.

mod dial;
pub(crate) mod keepalive;

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tower_service::Service;

use crate::config::Config;
use crate::stream::SmcStream;
use crate::sync::Arc;
use dial::Settings;

/// Connects hyper-util's client by [`SmcStream`]s, with the settings of its `HttpConnector`.
///
/// Names are resolved by `getaddrinfo` on a blocking thread, or by any `Service<Name>` given to
/// [`SmcConnector::new_with_resolver`]. Of several addresses those of the first one's family are
/// tried in turn; after the happy-eyeballs timeout (300 ms) those of the other family are tried
/// beside them, and the first connection wins (RFC 6555).
///
/// ```
/// use std::time::Duration;
///
/// use tokio_smc::hyper::SmcConnector;
/// use tower_service::Service;
///
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = tokio_smc::SmcListener::bind("127.0.0.1:0").await?;
/// # let port = listener.local_addr()?.port();
/// let mut connector = SmcConnector::new();
/// connector.set_nodelay(true);
/// connector.set_connect_timeout(Some(Duration::from_secs(3)));
/// // What the client does for each connection:
/// let stream = connector.call(format!("http://127.0.0.1:{port}/").parse()?).await?.into_inner();
/// assert!(stream.nodelay()?);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct SmcConnector<R = GaiResolver> {
    settings: Arc<Settings>,
    resolver: R,
}

impl SmcConnector {
    /// Makes a connector that resolves names by `getaddrinfo`.
    pub fn new() -> SmcConnector {
        SmcConnector::new_with_resolver(GaiResolver::new())
    }
}

impl Default for SmcConnector {
    fn default() -> Self {
        SmcConnector::new()
    }
}

impl<R> SmcConnector<R> {
    /// Makes a connector with a resolver of one's own: a `Service<Name>` whose response iterates
    /// over addresses.
    ///
    /// The port of the URI replaces theirs, unless the URI has none and they have one.
    pub fn new_with_resolver(resolver: R) -> SmcConnector<R> {
        SmcConnector { settings: Arc::default(), resolver }
    }

    fn settings(&mut self) -> &mut Settings {
        Arc::make_mut(&mut self.settings)
    }

    /// Sets the SMC settings of the connections; without it those of [`Config::from_env`] count.
    pub fn set_config(&mut self, config: Config) -> &mut Self {
        self.settings().config = Some(config);
        self
    }

    /// Sets whether URIs of other schemes than `http` are refused (the default).
    pub fn enforce_http(&mut self, is_enforced: bool) {
        self.settings().enforce_http = is_enforced;
    }

    /// Sets after how much idle time `SO_KEEPALIVE` probes a connection; `None`, the default, sends
    /// none.
    pub fn set_keepalive(&mut self, time: Option<Duration>) {
        self.settings().keepalive.time = time;
    }

    /// Sets the time between two keepalive probes.
    pub fn set_keepalive_interval(&mut self, interval: Option<Duration>) {
        self.settings().keepalive.interval = interval;
    }

    /// Sets how many keepalive probes may stay unanswered.
    pub fn set_keepalive_retries(&mut self, retries: Option<u32>) {
        self.settings().keepalive.retries = retries;
    }

    /// Sets `TCP_NODELAY`; off by default, as in `HttpConnector`.
    pub fn set_nodelay(&mut self, nodelay: bool) {
        self.settings().nodelay = nodelay;
    }

    /// Sets `SO_SNDBUF` in bytes; it acts on TCP only.
    pub fn set_send_buffer_size(&mut self, size: Option<usize>) {
        self.settings().send_buffer_size = size;
    }

    /// Sets `SO_RCVBUF` in bytes, which also bounds the DMB; see [`SmcSocket`](crate::SmcSocket).
    pub fn set_recv_buffer_size(&mut self, size: Option<usize>) {
        self.settings().recv_buffer_size = size;
    }

    /// Sets the local address that connections of its family are bound to; those of the other
    /// family are not tried.
    pub fn set_local_address(&mut self, addr: Option<IpAddr>) {
        let settings = self.settings();
        (settings.local_v4, settings.local_v6) = match addr {
            Some(IpAddr::V4(addr)) => (Some(addr), None),
            Some(IpAddr::V6(addr)) => (None, Some(addr)),
            None => (None, None),
        };
    }

    /// Sets the local addresses that connections are bound to, one for each family.
    pub fn set_local_addresses(&mut self, addr_ipv4: Ipv4Addr, addr_ipv6: Ipv6Addr) {
        let settings = self.settings();
        (settings.local_v4, settings.local_v6) = (Some(addr_ipv4), Some(addr_ipv6));
    }

    /// Sets how long connecting may take; `None`, the default, waits for the kernel's own limit.
    ///
    /// The addresses of each family share it evenly (all of them, without happy eyeballs), so that
    /// none starves the others; a name that has both families may take as long once more. The
    /// look-up of the name is not in it. Where connect waits for the upgrade, with
    /// [`UpgradePolicy::Require`](crate::UpgradePolicy::Require) and `Handshake`, it limits that
    /// wait, too, which begins when TCP is connected and after which no other address is tried.
    pub fn set_connect_timeout(&mut self, dur: Option<Duration>) {
        self.settings().connect_timeout = dur;
    }

    /// Sets after how much time the addresses of the other family are tried, too; `None` tries them
    /// one after the other.
    pub fn set_happy_eyeballs_timeout(&mut self, dur: Option<Duration>) {
        self.settings().happy_eyeballs_timeout = dur;
    }

    /// Sets `SO_REUSEADDR`.
    pub fn set_reuse_address(&mut self, reuse_address: bool) -> &mut Self {
        self.settings().reuse_address = reuse_address;
        self
    }

    /// Binds connections to a network interface (`SO_BINDTODEVICE`); they stay on TCP.
    pub fn set_interface(&mut self, interface: impl Into<String>) -> &mut Self {
        self.settings().interface = Some(interface.into());
        self
    }

    /// Sets `SO_MARK`, which needs the capability to administer the network.
    pub fn set_mark(&mut self, mark: Option<u32>) {
        self.settings().mark = mark;
    }

    /// Sets `TCP_USER_TIMEOUT`; such connections stay on TCP, which alone can honour it.
    pub fn set_tcp_user_timeout(&mut self, time: Option<Duration>) {
        self.settings().tcp_user_timeout = time;
    }
}

type BoxError = Box<dyn Error + Send + Sync>;

impl<R> Service<Uri> for SmcConnector<R>
where
    R: Service<Name> + Clone + Send + Sync + 'static,
    R::Response: Iterator<Item = SocketAddr>,
    R::Error: Into<BoxError>,
    R::Future: Send,
{
    type Response = TokioIo<SmcStream>;
    type Error = ConnectError;
    type Future = SmcConnecting;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        ready!(self.resolver.poll_ready(cx)).map_err(|error| ConnectError::new("dns error", error))?;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let settings = self.settings.clone();
        let target = target(&uri, settings.enforce_http);
        // Called at once: this is the resolver that `poll_ready` has found ready.
        let looking_up = target.map(|target| match target.host.parse::<IpAddr>() {
            Ok(ip) => (target, LookUp::Known(SocketAddr::new(ip, 0))),
            Err(_) => match Name::from_str(target.host) {
                Ok(name) => (target, LookUp::Asked(self.resolver.call(name))),
                Err(error) => (target, LookUp::Failed(error.into())),
            },
        });
        let looking_up = looking_up.map(|(target, looking_up)| (target.port, target.explicit, looking_up));
        SmcConnecting(Box::pin(async move {
            let (port, explicit, looking_up) = looking_up?;
            let found: Vec<SocketAddr> = match looking_up {
                LookUp::Known(address) => vec![address],
                LookUp::Asked(answer) => {
                    answer.await.map_err(|error| ConnectError::new("dns error", error))?.collect()
                }
                LookUp::Failed(error) => return Err(ConnectError::new("dns error", error)),
            };
            let addresses = found.into_iter().map(|mut address| {
                if explicit || address.port() == 0 {
                    address.set_port(port);
                }
                address
            });
            dial::dial(addresses.collect(), &settings).await.map(TokioIo::new)
        }))
    }
}

/// The future of [`SmcConnector`]: a connection on its way.
///
/// Dropping it closes what it has begun.
///
/// ```
/// use tokio_smc::hyper::{SmcConnecting, SmcConnector};
/// use tower_service::Service;
///
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = tokio_smc::SmcListener::bind("127.0.0.1:0").await?;
/// # let uri = format!("http://{}/", listener.local_addr()?);
/// let connecting: SmcConnecting = SmcConnector::new().call(uri.parse()?);
/// println!("{}", connecting.await?.inner().transport());
/// # Ok(()) }
/// ```
#[must_use = "a future does nothing unless it is polled"]
// Boxed, as hyper's own: its type is that of an `async` block, which has no name.
pub struct SmcConnecting(Pin<Box<dyn Future<Output = Result<TokioIo<SmcStream>, ConnectError>> + Send>>);

impl Future for SmcConnecting {
    type Output = Result<TokioIo<SmcStream>, ConnectError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for SmcConnecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmcConnecting").finish_non_exhaustive()
    }
}

enum LookUp<F> {
    Known(SocketAddr),
    Asked(F),
    Failed(BoxError),
}

/// Where a URI points.
struct Target<'a> {
    host: &'a str,
    port: u16,
    /// The URI names the port.
    explicit: bool,
}

fn target(uri: &Uri, enforce_http: bool) -> Result<Target<'_>, ConnectError> {
    let refused = |why: &'static str| ConnectError {
        what: format!("invalid URL, {why}: {uri}; it should be as http://host:port/path").into(),
        address: None,
        cause: None,
    };
    match uri.scheme() {
        None => return Err(refused("scheme is missing")),
        Some(scheme) if enforce_http && *scheme != Scheme::HTTP => {
            return Err(refused("scheme is not http"));
        }
        Some(_) => {}
    }
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| refused("host is missing"))?;
    // An IPv6 address stands in brackets.
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let default = if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    Ok(Target { host, port: uri.port_u16().unwrap_or(default), explicit: uri.port().is_some() })
}

/// Why [`SmcConnector`] made no connection.
///
/// It says what failed, with the address; why it did, often an [`io::Error`](std::io::Error), is
/// its [`source`](Error::source). hyper-util's client hands it out as the source of its own error.
///
/// ```
/// use tokio_smc::hyper::SmcConnector;
/// use tower_service::Service;
///
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let error = SmcConnector::new().call("https://127.0.0.1/".parse()?).await.unwrap_err();
/// assert_eq!(error.address(), None, "it did not come that far");
/// assert!(error.to_string().starts_with("invalid URL, scheme is not http"));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ConnectError {
    what: Cow<'static, str>,
    address: Option<SocketAddr>,
    cause: Option<BoxError>,
}

impl ConnectError {
    fn new(what: &'static str, cause: impl Into<BoxError>) -> Self {
        ConnectError { what: what.into(), address: None, cause: Some(cause.into()) }
    }

    fn at(self, address: SocketAddr) -> Self {
        ConnectError { address: Some(address), ..self }
    }

    /// The address that was tried last, if the attempt came that far.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match self.address {
            Some(address) => write!(f, ": {address}"),
            None => Ok(()),
        }
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(|cause| &**cause as &(dyn Error + 'static))
    }
}

/// The client puts an [`SmcInfo`](crate::SmcInfo) into the extensions of every response.
impl Connection for SmcStream {
    fn connected(&self) -> Connected {
        Connected::new().extra(self.info())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io;

    use super::*;

    async fn failure<R>(mut connector: SmcConnector<R>, uri: &str) -> ConnectError
    where
        SmcConnector<R>: Service<Uri, Response = TokioIo<SmcStream>, Error = ConnectError>,
    {
        poll_fn(|cx| connector.poll_ready(cx)).await.unwrap();
        connector.call(uri.parse().unwrap()).await.expect_err("nobody listens there")
    }

    /// What failed is said once, why it did by the source alone: so reports with all sources do not
    /// repeat themselves.
    #[tokio::test]
    async fn errors_say_what_and_their_sources_why() {
        let taken = tokio::net::TcpSocket::new_v4().unwrap();
        taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = taken.local_addr().unwrap();
        let error = failure(SmcConnector::new(), &format!("http://{addr}/")).await;
        assert_eq!(error.to_string(), format!("tcp connect error: {addr}"));
        assert_eq!(error.address(), Some(addr));
        let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>()).unwrap();
        assert_eq!(cause.kind(), io::ErrorKind::ConnectionRefused);

        let error = failure(SmcConnector::new(), "http://name.invalid/").await;
        assert_eq!(error.to_string(), "dns error");
        assert!(error.source().is_some());

        let error = failure(SmcConnector::new(), "https://name.invalid/").await;
        assert_eq!(
            error.to_string(),
            "invalid URL, scheme is not http: https://name.invalid/; it should be as http://host:port/path"
        );
        assert!(error.source().is_none());
    }
}
