//! The properties and options of the TCP socket under a stream.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::SmcStream;

impl SmcStream {
    /// The address of this end.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The address of the other end.
    ///
    /// # Errors
    ///
    /// `NotConnected` when the connection has ended.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.peer_addr()
    }

    /// Takes the pending error of the TCP socket (`SO_ERROR`).
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        Ok(self.tcp.take_error()?.filter(|error| self.conn.is_news(error)))
    }

    /// Is `TCP_NODELAY` set? A stream on shared memory never delays.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn nodelay(&self) -> io::Result<bool> {
        self.tcp.nodelay()
    }

    /// Sets `TCP_NODELAY`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.tcp.set_nodelay(nodelay)
    }

    /// The value of `SO_LINGER`.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn linger(&self) -> io::Result<Option<Duration>> {
        self.tcp.linger()
    }

    /// Sets `SO_LINGER`; zero makes dropping the stream a reset, on shared memory too.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    #[deprecated = "`SO_LINGER` causes the socket to block the thread on drop"]
    pub fn set_linger(&self, dur: Option<Duration>) -> io::Result<()> {
        socket2::SockRef::from(&*self.tcp).set_linger(dur)
    }

    /// Makes dropping the stream a reset.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_zero_linger(&self) -> io::Result<()> {
        self.tcp.set_zero_linger()
    }

    /// The time-to-live of the TCP packets.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn ttl(&self) -> io::Result<u32> {
        self.tcp.ttl()
    }

    /// Sets the time-to-live of the TCP packets.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.tcp.set_ttl(ttl)
    }

    /// The value of `TCP_QUICKACK`.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn quickack(&self) -> io::Result<bool> {
        self.tcp.quickack()
    }

    /// Sets `TCP_QUICKACK`; a stream on shared memory has nothing to acknowledge.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_quickack(&self, quickack: bool) -> io::Result<()> {
        self.tcp.set_quickack(quickack)
    }
}
