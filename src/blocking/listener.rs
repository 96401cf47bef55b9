//! [`SmcListener`], the drop-in for std's `TcpListener`.

use std::fmt;
use std::io;
use std::iter::FusedIterator;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{RefUnwindSafe, UnwindSafe};

use super::SmcStream;
use crate::config::Config;
use crate::link::home::{Home, Place};
use crate::rt::mio::Engine;
use crate::sync::Arc;

/// A TCP listener whose streams can be upgraded by clients of this crate; plain TCP clients see
/// plain TCP.
///
/// It is used exactly like [`std::net::TcpListener`].
///
/// ```no_run
/// use tokio_smc::blocking::SmcListener;
///
/// # fn main() -> std::io::Result<()> {
/// let listener = SmcListener::bind("127.0.0.1:8080")?;
/// for stream in listener.incoming() {
///     let mut stream = stream?;
///     std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream).map(drop));
/// }
/// # Ok(()) }
/// ```
pub struct SmcListener {
    listener: TcpListener,
    /// Of all clones.
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    home: Home<Arc<Engine>>,
}

impl SmcListener {
    /// Listens on `addr`, with the settings of [`Config::from_env`].
    ///
    /// A device directory that can not be used is no error: the listener serves plain TCP then.
    ///
    /// # Errors
    ///
    /// Those of [`TcpListener::bind`].
    pub fn bind<A: ToSocketAddrs>(addr: A) -> io::Result<SmcListener> {
        Self::bind_with(addr, &Config::from_env())
    }

    /// Listens with settings of its own; see [`SmcListener::bind`].
    ///
    /// # Errors
    ///
    /// Those of [`TcpListener::bind`].
    pub fn bind_with<A: ToSocketAddrs>(addr: A, config: &Config) -> io::Result<SmcListener> {
        Ok(Self::new(TcpListener::bind(addr)?, config.clone()))
    }

    /// Makes a listener of a std one.
    pub fn from_std(listener: TcpListener) -> SmcListener {
        Self::new(listener, Config::from_env())
    }

    fn new(listener: TcpListener, config: Config) -> SmcListener {
        let home = Home::new(&config, || move_in(&listener, &config));
        SmcListener { listener, shared: Arc::new(Shared { config, home }) }
    }

    /// Takes the std listener out. Streams that it has accepted go on as they were.
    pub fn into_std(self) -> TcpListener {
        self.listener
    }

    /// Makes another handle of this listener, which takes from the same queue of connections.
    ///
    /// # Errors
    ///
    /// Those of [`TcpListener::try_clone`].
    pub fn try_clone(&self) -> io::Result<SmcListener> {
        Ok(SmcListener { listener: self.listener.try_clone()?, shared: self.shared.clone() })
    }

    /// Waits for a connection.
    ///
    /// # Errors
    ///
    /// Those of [`TcpListener::accept`].
    pub fn accept(&self) -> io::Result<(SmcStream, SocketAddr)> {
        let (stream, peer) = self.listener.accept()?;
        Ok((self.adopt(stream, peer), peer))
    }

    fn adopt(&self, stream: TcpStream, peer: SocketAddr) -> SmcStream {
        let stream = SmcStream::accepted(stream, self.shared.config.clone());
        match self.shared.home.place(|| move_in(&self.listener, &self.shared.config)) {
            Ok(place) => stream.register(peer, &place),
            Err(Some(reason)) => stream.stay_on_tcp(reason),
            Err(None) => {}
        }
        stream
    }

    /// The connections that come, without their addresses; it never ends.
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming { listener: self }
    }

    /// Moves the listener into non-blocking mode, or out of it: `accept` answers `WouldBlock` there
    /// when nobody has connected. Streams that it accepts are blocking ones all the same.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.listener.set_nonblocking(nonblocking)
    }

    /// The address the listener is bound to.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Takes the pending error of the socket (`SO_ERROR`).
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.listener.take_error()
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

fn move_in(listener: &TcpListener, config: &Config) -> io::Result<Place<Arc<Engine>>> {
    let engine = Engine::hold(config)?;
    Place::publish(listener.as_fd(), config, engine.endpoint(config)?, engine)
}

/// The connections of a listener; see [`SmcListener::incoming`].
///
/// ```
/// use tokio_smc::blocking::{SmcListener, SmcStream};
///
/// # fn main() -> std::io::Result<()> {
/// let listener = SmcListener::bind("127.0.0.1:0")?;
/// let clients = [(); 3].map(|()| SmcStream::connect(listener.local_addr().unwrap()));
/// for (client, server) in clients.into_iter().zip(listener.incoming()) {
///     assert_eq!(client?.local_addr()?, server?.peer_addr()?);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Incoming<'a> {
    listener: &'a SmcListener,
}

impl Iterator for Incoming<'_> {
    type Item = io::Result<SmcStream>;

    fn next(&mut self) -> Option<io::Result<SmcStream>> {
        Some(self.listener.accept().map(|(stream, _)| stream))
    }
}

impl FusedIterator for Incoming<'_> {}

// As std's TcpListener; see SmcStream.
impl UnwindSafe for SmcListener {}
impl RefUnwindSafe for SmcListener {}

impl From<TcpListener> for SmcListener {
    /// As [`SmcListener::from_std`].
    fn from(listener: TcpListener) -> SmcListener {
        SmcListener::from_std(listener)
    }
}

impl From<OwnedFd> for SmcListener {
    /// As [`SmcListener::from_std`].
    fn from(fd: OwnedFd) -> SmcListener {
        SmcListener::from_std(TcpListener::from(fd))
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
            .field("upgrades", &self.shared.home.upgrades())
            .finish()
    }
}
