//! From addresses to a connection: options, timeouts, happy eyeballs.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use socket2::SockRef;

use super::ConnectError;
use super::keepalive::Keepalive;
use crate::config::Config;
use crate::socket::SmcSocket;
use crate::stream::SmcStream;

/// As long as RFC 8305 recommends and `HttpConnector` waits.
const HAPPY_EYEBALLS_TIMEOUT: Duration = Duration::from_millis(300);

#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// `None`: from the environment, when it connects.
    pub(super) config: Option<Config>,
    pub(super) enforce_http: bool,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) happy_eyeballs_timeout: Option<Duration>,
    pub(super) keepalive: Keepalive,
    pub(super) nodelay: bool,
    pub(super) reuse_address: bool,
    pub(super) send_buffer_size: Option<usize>,
    pub(super) recv_buffer_size: Option<usize>,
    pub(super) local_v4: Option<Ipv4Addr>,
    pub(super) local_v6: Option<Ipv6Addr>,
    pub(super) interface: Option<String>,
    pub(super) mark: Option<u32>,
    pub(super) tcp_user_timeout: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            config: None,
            enforce_http: true,
            connect_timeout: None,
            happy_eyeballs_timeout: Some(HAPPY_EYEBALLS_TIMEOUT),
            keepalive: Keepalive::default(),
            nodelay: false,
            reuse_address: false,
            send_buffer_size: None,
            recv_buffer_size: None,
            local_v4: None,
            local_v6: None,
            interface: None,
            mark: None,
            tcp_user_timeout: None,
        }
    }
}

impl Settings {
    fn local(&self, peer: &SocketAddr) -> Option<IpAddr> {
        match peer {
            SocketAddr::V4(_) => self.local_v4.map(IpAddr::V4),
            SocketAddr::V6(_) => self.local_v6.map(IpAddr::V6),
        }
    }

    /// A local address of one family alone leaves nothing to do for the other.
    fn reaches(&self, peer: &SocketAddr) -> bool {
        (self.local_v4.is_none() && self.local_v6.is_none()) || self.local(peer).is_some()
    }
}

/// Connects to one of the addresses, and does what the upgrade policy wants of connect.
pub(super) async fn dial(addresses: Vec<SocketAddr>, settings: &Settings) -> Result<SmcStream, ConnectError> {
    let stream = first_of(addresses, settings).await?;
    // Not before the search has ended: a policy that waits must not have the other addresses tried
    // meanwhile.
    stream.after_connect(settings.connect_timeout).await.map_err(|error| {
        let error = ConnectError::new("tcp connect error", error);
        match stream.peer_addr() {
            Ok(address) => error.at(address),
            Err(_) => error,
        }
    })?;
    Ok(stream)
}

/// The first of the addresses that TCP connects to.
async fn first_of(mut addresses: Vec<SocketAddr>, settings: &Settings) -> Result<SmcStream, ConnectError> {
    addresses.retain(|address| settings.reaches(address));
    let Some(first) = addresses.first() else {
        return Err(ConnectError {
            what: "the name has no address that the local address can reach".into(),
            address: None,
            cause: None,
        });
    };
    let v4_first = first.is_ipv4();
    // Of each family its share of the time, so that all addresses get their chance.
    let share = |count: usize| settings.connect_timeout.map(|limit| limit / count.max(1) as u32);
    let Some(delay) = settings.happy_eyeballs_timeout else {
        return in_turn(&addresses, share(addresses.len()), settings).await;
    };
    let (preferred, others): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv4() == v4_first);
    let preferred_share = share(preferred.len());
    if others.is_empty() {
        return in_turn(&preferred, preferred_share, settings).await;
    }
    let others_share = share(others.len());
    let mut one = pin!(in_turn(&preferred, preferred_share, settings));
    // RFC 6555, section 4: the other family begins when the preferred one has failed, or has not
    // answered in time.
    let early = tokio::time::timeout(delay, one.as_mut()).await;
    let other = pin!(in_turn(&others, others_share, settings));
    match early {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(_)) => other.await,
        Err(_elapsed) => either([Some(one), Some(other)]).await,
    }
}

/// The first of two that succeeds, or the last failure.
async fn either<F>(mut attempts: [Option<Pin<&mut F>>; 2]) -> Result<SmcStream, ConnectError>
where
    F: Future<Output = Result<SmcStream, ConnectError>>,
{
    poll_fn(|cx| {
        let mut last = None;
        for slot in &mut attempts {
            match slot.as_mut().map(|attempt| attempt.as_mut().poll(cx)) {
                Some(Poll::Ready(Ok(stream))) => return Poll::Ready(Ok(stream)),
                Some(Poll::Ready(Err(error))) => {
                    *slot = None;
                    last = Some(error);
                }
                Some(Poll::Pending) | None => {}
            }
        }
        match last {
            Some(error) if attempts.iter().all(Option::is_none) => Poll::Ready(Err(error)),
            _ => Poll::Pending,
        }
    })
    .await
}

/// Tries the addresses one after the other; the last failure is told.
async fn in_turn(
    addresses: &[SocketAddr],
    limit: Option<Duration>,
    settings: &Settings,
) -> Result<SmcStream, ConnectError> {
    let mut failure = ConnectError { what: "the name has no address".into(), address: None, cause: None };
    for &address in addresses {
        match one(address, limit, settings).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error.at(address),
        }
    }
    Err(failure)
}

async fn one(
    address: SocketAddr,
    limit: Option<Duration>,
    settings: &Settings,
) -> Result<SmcStream, ConnectError> {
    let socket = prepare(&address, settings).map_err(|error| ConnectError::new("tcp socket error", error))?;
    let config = settings.config.clone().unwrap_or_else(Config::from_env);
    let connecting = socket.connect_tcp(address, &config);
    let connected = match limit {
        None => connecting.await,
        Some(limit) => tokio::time::timeout(limit, connecting)
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))),
    };
    connected.map_err(|error| ConnectError::new("tcp connect error", error))
}

/// A socket with all options set; what can not be set is an error, for it was asked for.
fn prepare(peer: &SocketAddr, settings: &Settings) -> io::Result<SmcSocket> {
    let socket = if peer.is_ipv4() { SmcSocket::new_v4()? } else { SmcSocket::new_v6()? };
    let options = SockRef::from(&socket);
    if let Some(keepalive) = settings.keepalive.wanted() {
        options.set_tcp_keepalive(&keepalive)?;
    }
    if settings.nodelay {
        socket.set_nodelay(true)?;
    }
    if settings.reuse_address {
        socket.set_reuseaddr(true)?;
    }
    if let Some(size) = settings.send_buffer_size {
        options.set_send_buffer_size(size)?;
    }
    if let Some(size) = settings.recv_buffer_size {
        options.set_recv_buffer_size(size)?;
    }
    if let Some(interface) = &settings.interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    if let Some(mark) = settings.mark {
        options.set_mark(mark)?;
    }
    if let Some(time) = settings.tcp_user_timeout {
        options.set_tcp_user_timeout(Some(time))?;
    }
    if let Some(local) = settings.local(peer) {
        socket.bind(SocketAddr::new(local, 0))?;
    }
    Ok(socket)
}
