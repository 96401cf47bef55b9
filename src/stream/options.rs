//! The properties and options of the TCP socket under a stream.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;

use super::SmcStream;

impl SmcStream {
    pub(super) fn with_tcp<R>(&self, ask: impl FnOnce(&TcpStream) -> io::Result<R>) -> io::Result<R> {
        self.conn.with_read_half(|half| ask(half.as_ref()))
    }

    /// The address of this end.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.with_tcp(TcpStream::local_addr)
    }

    /// The address of the other end.
    ///
    /// # Errors
    ///
    /// `NotConnected` when the connection has ended.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.with_tcp(TcpStream::peer_addr)
    }

    /// Takes the pending error of the TCP socket (`SO_ERROR`).
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.with_tcp(TcpStream::take_error)
    }

    /// Is `TCP_NODELAY` set? A stream on shared memory never delays.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn nodelay(&self) -> io::Result<bool> {
        self.with_tcp(TcpStream::nodelay)
    }

    /// Sets `TCP_NODELAY`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.with_tcp(|tcp| tcp.set_nodelay(nodelay))
    }

    /// The value of `SO_LINGER`.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn linger(&self) -> io::Result<Option<Duration>> {
        self.with_tcp(TcpStream::linger)
    }

    /// Sets `SO_LINGER`; zero makes dropping the stream a reset, on shared memory too.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    #[deprecated = "`SO_LINGER` causes the socket to block the thread on drop"]
    pub fn set_linger(&self, dur: Option<Duration>) -> io::Result<()> {
        self.with_tcp(|tcp| socket2::SockRef::from(tcp).set_linger(dur))
    }

    /// Makes dropping the stream a reset.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_zero_linger(&self) -> io::Result<()> {
        self.with_tcp(TcpStream::set_zero_linger)
    }

    /// The time-to-live of the TCP packets.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn ttl(&self) -> io::Result<u32> {
        self.with_tcp(TcpStream::ttl)
    }

    /// Sets the time-to-live of the TCP packets.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.with_tcp(|tcp| tcp.set_ttl(ttl))
    }

    /// The value of `TCP_QUICKACK`.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn quickack(&self) -> io::Result<bool> {
        self.with_tcp(TcpStream::quickack)
    }

    /// Sets `TCP_QUICKACK`; a stream on shared memory has nothing to acknowledge.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_quickack(&self, quickack: bool) -> io::Result<()> {
        self.with_tcp(|tcp| tcp.set_quickack(quickack))
    }
}
