//! [`SmcSocket`], the drop-in for tokio's `TcpSocket`: a socket that is still to be bound,
//! connected or listened on.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use tokio::net::TcpSocket;

use crate::config::Config;
use crate::conn::Role;
use crate::ism::sys;
use crate::listener::SmcListener;
use crate::stream::SmcStream;

/// A TCP socket that has not been turned into an [`SmcStream`] or an [`SmcListener`] yet.
///
/// It is used exactly like [`tokio::net::TcpSocket`], to set options before connecting or
/// listening. The options act on the TCP socket; [`SmcSocket::set_recv_buffer_size`] also bounds
/// the shared memory that is read from after an upgrade.
///
/// ```
/// use tokio_smc::SmcSocket;
///
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let socket = SmcSocket::new_v4()?;
/// socket.set_reuseaddr(true)?;
/// socket.bind("127.0.0.1:0".parse()?)?;
/// let listener = socket.listen(1024)?;
/// assert_ne!(listener.local_addr()?.port(), 0);
/// # Ok(()) }
/// ```
pub struct SmcSocket {
    inner: TcpSocket,
}

/// Methods that act on the TCP socket alone, one line each.
macro_rules! options {
    ($($(#[$meta:meta])+ $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)+) => {
        $(
            $(#[$meta])+
            ///
            /// # Errors
            ///
            /// When the kernel refuses.
            pub fn $name(&self $(, $argument: $type)*) -> io::Result<$answer> {
                self.inner.$name($($argument),*)
            }
        )+
    };
}

impl SmcSocket {
    /// Makes a socket for IPv4.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket.
    pub fn new_v4() -> io::Result<SmcSocket> {
        TcpSocket::new_v4().map(|inner| SmcSocket { inner })
    }

    /// Makes a socket for IPv6.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket.
    pub fn new_v6() -> io::Result<SmcSocket> {
        TcpSocket::new_v6().map(|inner| SmcSocket { inner })
    }

    /// Takes a std socket that is not connected yet and is in non-blocking mode, for instance one
    /// made by `socket2`.
    pub fn from_std_stream(std_stream: std::net::TcpStream) -> SmcSocket {
        SmcSocket { inner: TcpSocket::from_std_stream(std_stream) }
    }

    options! {
        /// Sets `SO_KEEPALIVE`. The idle TCP connection under a stream on shared memory is probed,
        /// too.
        set_keepalive(keepalive: bool) -> ();
        /// Is `SO_KEEPALIVE` set?
        keepalive() -> bool;
        /// Sets `SO_REUSEADDR`.
        set_reuseaddr(reuseaddr: bool) -> ();
        /// Is `SO_REUSEADDR` set?
        reuseaddr() -> bool;
        /// Sets `SO_REUSEPORT`: several listeners, also of several processes, share one port.
        set_reuseport(reuseport: bool) -> ();
        /// Is `SO_REUSEPORT` set?
        reuseport() -> bool;
        /// Sets `SO_SNDBUF` in bytes. It acts on TCP only: on shared memory the sender writes into
        /// the receiver's DMB.
        set_send_buffer_size(size: u32) -> ();
        /// The value of `SO_SNDBUF` in bytes, which Linux doubles.
        send_buffer_size() -> u32;
        /// Sets `SO_RCVBUF` in bytes.
        ///
        /// It also bounds the DMB that the streams of this socket read from: the smaller one of
        /// this size, rounded up to a power of two of at least 4096, and [`Config::dmb_size`]
        /// counts.
        set_recv_buffer_size(size: u32) -> ();
        /// The value of `SO_RCVBUF` in bytes, which Linux doubles.
        recv_buffer_size() -> u32;
        /// Makes dropping the stream a reset, on shared memory too.
        set_zero_linger() -> ();
        /// The value of `SO_LINGER`.
        linger() -> Option<Duration>;
        /// Sets `TCP_NODELAY`. A stream on shared memory never delays.
        set_nodelay(nodelay: bool) -> ();
        /// Is `TCP_NODELAY` set?
        nodelay() -> bool;
        /// The value of `IPV6_TCLASS`.
        tclass_v6() -> u32;
        /// Sets `IPV6_TCLASS`.
        set_tclass_v6(tclass: u32) -> ();
        /// The value of `IP_TOS`.
        tos_v4() -> u32;
        /// Sets `IP_TOS`.
        set_tos_v4(tos: u32) -> ();
        /// The interface that the socket is bound to (`SO_BINDTODEVICE`).
        device() -> Option<Vec<u8>>;
        /// Binds the socket to an interface (`SO_BINDTODEVICE`); its streams stay on TCP.
        bind_device(interface: Option<&[u8]>) -> ();
        /// The address that the socket is bound to.
        local_addr() -> SocketAddr;
        /// Takes the pending error of the socket (`SO_ERROR`).
        take_error() -> Option<io::Error>;
        /// Binds the socket to an address.
        bind(addr: SocketAddr) -> ();
    }

    /// Sets `SO_LINGER`; zero makes dropping the stream a reset, on shared memory too.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    #[deprecated = "`SO_LINGER` causes the socket to block the thread on drop"]
    pub fn set_linger(&self, dur: Option<Duration>) -> io::Result<()> {
        socket2::SockRef::from(&self.inner).set_linger(dur)
    }

    /// The value of `IP_TOS`.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    #[deprecated = "`tos` related methods have been renamed `tos_v4` since they are IPv4-specific"]
    pub fn tos(&self) -> io::Result<u32> {
        self.inner.tos_v4()
    }

    /// Sets `IP_TOS`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    #[deprecated = "`tos` related methods have been renamed `tos_v4` since they are IPv4-specific"]
    pub fn set_tos(&self, tos: u32) -> io::Result<()> {
        self.inner.set_tos_v4(tos)
    }

    /// Connects, with the settings of [`Config::from_env`]; see [`SmcStream::connect`].
    ///
    /// # Errors
    ///
    /// Those of [`SmcStream::connect`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the socket.
    pub async fn connect(self, addr: SocketAddr) -> io::Result<SmcStream> {
        self.connect_with(addr, &Config::from_env()).await
    }

    /// Connects with settings of its own; see [`SmcSocket::connect`].
    ///
    /// # Errors
    ///
    /// Those of [`SmcStream::connect`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the socket.
    pub async fn connect_with(self, addr: SocketAddr, config: &Config) -> io::Result<SmcStream> {
        let stream = self.connect_tcp(addr, config).await?;
        // As with tokio: a panic leaves nothing half done, for the stream is then dropped.
        AssertUnwindSafe(stream.after_connect(None)).await?;
        Ok(stream)
    }

    /// Connects, and leaves to the caller what the policy wants done then:
    /// [`SmcStream::after_connect`].
    pub(crate) async fn connect_tcp(self, addr: SocketAddr, config: &Config) -> io::Result<SmcStream> {
        Ok(SmcStream::new(self.inner.connect(addr).await?, Role::Client, config.clone()))
    }

    /// Listens, with the settings of [`Config::from_env`]; see [`SmcListener::bind`].
    ///
    /// # Errors
    ///
    /// Those of [`tokio::net::TcpSocket::listen`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    pub fn listen(self, backlog: u32) -> io::Result<SmcListener> {
        self.listen_with(backlog, &Config::from_env())
    }

    /// Listens with settings of its own; see [`SmcSocket::listen`].
    ///
    /// # Errors
    ///
    /// Those of [`tokio::net::TcpSocket::listen`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    pub fn listen_with(self, backlog: u32, config: &Config) -> io::Result<SmcListener> {
        Ok(SmcListener::new(self.inner.listen(backlog)?, config.clone()))
    }
}

impl From<OwnedFd> for SmcSocket {
    /// Takes a TCP socket that is not connected yet and is in non-blocking mode.
    fn from(socket: OwnedFd) -> SmcSocket {
        SmcSocket::from_std_stream(socket.into())
    }
}

sys::impl_from_raw_fd!(SmcSocket);

impl IntoRawFd for SmcSocket {
    fn into_raw_fd(self) -> RawFd {
        self.inner.into_raw_fd()
    }
}

impl AsRawFd for SmcSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

impl AsFd for SmcSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl fmt::Debug for SmcSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
