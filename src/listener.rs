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

use crate::config::Config;
use crate::conn::Role;
use crate::link::home::{Home, Place};
use crate::rt::tokio as rt;
use crate::stream::SmcStream;

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
    home: Home<()>,
    handle: Handle,
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
        let handle = Handle::current();
        let home = Home::new(&config, || move_in(&listener, &config, &handle));
        SmcListener { listener, config, home, handle }
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
        match self.home.place(|| move_in(&self.listener, &self.config, &self.handle)) {
            Ok(place) => stream.register(peer, &place),
            Err(Some(reason)) => stream.stay_on_tcp(reason),
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

fn move_in(listener: &TcpListener, config: &Config, handle: &Handle) -> io::Result<Place<()>> {
    Place::publish(listener.as_fd(), config, rt::endpoint(handle, config)?, ())
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
            .field("upgrades", &self.home.upgrades())
            .finish()
    }
}
