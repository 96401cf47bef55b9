//! [`SmcListener`], the drop-in for tokio's `TcpListener`.

mod incoming;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::task::{Context, Poll, ready};

use tokio::net::{TcpListener, ToSocketAddrs};
use tokio::runtime::Handle;

use crate::config::{Config, UpgradePolicy};
use crate::conn::Role;
use crate::ism::device::PortEntry;
use crate::link::endpoint::Endpoint;
use crate::link::lack::reason_of;
use crate::link::proof::keep_proofs;
use crate::rt::tokio as rt;
use crate::stream::SmcStream;
use crate::sync::{Arc, Mutex, lock, rank};
use crate::transport::FallbackReason;

pub use incoming::SmcListenerStream;

/// A TCP listener whose streams can be upgraded by clients of this crate; plain TCP clients see
/// plain TCP.
///
/// It is used exactly like [`tokio::net::TcpListener`].
///
/// ```
/// use tokio_smc::SmcListener;
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// let listener = SmcListener::bind("127.0.0.1:0").await?;
/// # let client = tokio_smc::SmcStream::connect(listener.local_addr()?).await?;
/// loop {
///     let (mut stream, peer) = listener.accept().await?;
///     println!("{peer} is here");
///     tokio::spawn(async move {
///         let (mut read, mut write) = stream.split();
///         tokio::io::copy(&mut read, &mut write).await
///     });
/// #   break;
/// }
/// # Ok(()) }
/// ```
pub struct SmcListener {
    listener: TcpListener,
    config: Config,
    /// Or why its streams stay on TCP, if that is not as the configuration wants it.
    home: Mutex<Result<Arc<Home>, Option<FallbackReason>>, rank::ListenerHome>,
    handle: Handle,
}

/// Where the listener's streams can be found by their clients.
pub(crate) struct Home {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) port: Arc<PortEntry>,
}

impl SmcListener {
    /// Listens on `addr`, with the settings of [`Config::from_env`].
    ///
    /// A device directory that can not be used is no error: the listener serves plain TCP then.
    ///
    /// # Errors
    ///
    /// Those of [`tokio::net::TcpListener::bind`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind when the future is dropped.
    pub async fn bind<A: ToSocketAddrs>(addr: A) -> io::Result<SmcListener> {
        Self::bind_with(addr, &Config::from_env()).await
    }

    /// Listens with settings of its own; see [`SmcListener::bind`].
    ///
    /// # Errors
    ///
    /// Those of [`tokio::net::TcpListener::bind`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind when the future is dropped.
    pub async fn bind_with<A: ToSocketAddrs>(addr: A, config: &Config) -> io::Result<SmcListener> {
        Ok(Self::new(TcpListener::bind(addr).await?, config.clone()))
    }

    /// Makes a listener of a std one, which has to be in non-blocking mode.
    ///
    /// # Errors
    ///
    /// When the socket can not be registered with the runtime.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled; as tokio's in debug builds, when the socket is
    /// blocking.
    #[track_caller]
    pub fn from_std(listener: std::net::TcpListener) -> io::Result<SmcListener> {
        Ok(Self::new(TcpListener::from_std(listener)?, Config::from_env()))
    }

    pub(crate) fn new(listener: TcpListener, config: Config) -> SmcListener {
        let wanted = !config.off && config.upgrade_policy != UpgradePolicy::Never;
        let handle = Handle::current();
        let home = if wanted {
            Self::move_in(&listener, &config, &handle).map_err(|error| Self::homeless(&error))
        } else {
            Err(None)
        };
        SmcListener { listener, config, home: Mutex::new(home), handle }
    }

    fn move_in(listener: &TcpListener, config: &Config, handle: &Handle) -> io::Result<Arc<Home>> {
        let port = listener.local_addr()?.port();
        keep_proofs(listener.as_fd());
        let endpoint = rt::endpoint(handle, config)?;
        let port = endpoint.publish(port, &config.peer_policy)?;
        Ok(Arc::new(Home { endpoint, port }))
    }

    /// Why the streams of a listener without a home stay on TCP.
    fn homeless(error: &io::Error) -> Option<FallbackReason> {
        crate::trace::warning!("this listener serves plain tcp only: {error}");
        Some(reason_of(error, FallbackReason::NoDevice))
    }

    /// Where its streams are found now: an endpoint that failed has a successor.
    fn home(&self) -> Result<Arc<Home>, Option<FallbackReason>> {
        let moved = {
            let mut home = lock(&self.home);
            if !home.as_ref().is_ok_and(|home| home.endpoint.is_dead()) {
                return home.clone();
            }
            let moved = Self::move_in(&self.listener, &self.config, &self.handle);
            *home = match &moved {
                Ok(moved) => Ok(moved.clone()),
                Err(error) => Err(Some(reason_of(error, FallbackReason::NoDevice))),
            };
            moved
        };
        // Without the lock, for it is logged.
        moved.map_err(|error| Self::homeless(&error))
    }

    /// Takes the std listener out; it stays in non-blocking mode.
    ///
    /// # Errors
    ///
    /// When the socket can not be taken off the runtime.
    pub fn into_std(self) -> io::Result<std::net::TcpListener> {
        self.listener.into_std()
    }

    /// Waits for a connection.
    ///
    /// # Errors
    ///
    /// Those of [`tokio::net::TcpListener::accept`].
    ///
    /// # Cancel safety
    ///
    /// No connection is lost when the future is dropped.
    pub async fn accept(&self) -> io::Result<(SmcStream, SocketAddr)> {
        let (stream, peer) = self.listener.accept().await?;
        Ok(self.adopt(stream, peer))
    }

    /// Polls for a connection; of several tasks that do so the latest one is woken.
    ///
    /// # Errors
    ///
    /// Those of [`tokio::net::TcpListener::accept`].
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(SmcStream, SocketAddr)>> {
        let (stream, peer) = ready!(self.listener.poll_accept(cx))?;
        Poll::Ready(Ok(self.adopt(stream, peer)))
    }

    fn adopt(&self, stream: tokio::net::TcpStream, peer: SocketAddr) -> (SmcStream, SocketAddr) {
        let stream = SmcStream::new(stream, Role::Server, self.config.clone());
        match self.home() {
            Ok(home) => stream.register(home.port.port(), peer, &home),
            Err(Some(reason)) => stream.can_not_be_upgraded(reason),
            Err(None) => {}
        }
        (stream, peer)
    }

    /// The address the listener is bound to.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The time-to-live of the packets of accepted streams.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn ttl(&self) -> io::Result<u32> {
        self.listener.ttl()
    }

    /// Sets the time-to-live of the packets of accepted streams.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.listener.set_ttl(ttl)
    }
}

// As tokio's TcpListener; see SmcStream.
impl UnwindSafe for SmcListener {}
impl RefUnwindSafe for SmcListener {}

impl TryFrom<std::net::TcpListener> for SmcListener {
    type Error = io::Error;

    /// As [`SmcListener::from_std`].
    fn try_from(listener: std::net::TcpListener) -> io::Result<SmcListener> {
        SmcListener::from_std(listener)
    }
}

impl AsFd for SmcListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl AsRawFd for SmcListener {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl fmt::Debug for SmcListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmcListener")
            .field("listener", &self.listener)
            .field("upgrades", &lock(&self.home).is_ok())
            .finish()
    }
}
