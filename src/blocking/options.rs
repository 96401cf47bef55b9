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
        self.shared.tcp.std().local_addr()
    }

    /// The address of the other end.
    ///
    /// # Errors
    ///
    /// `NotConnected` when the connection has ended.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.shared.tcp.std().peer_addr()
    }

    /// Takes the pending error of the TCP socket (`SO_ERROR`).
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        Ok(self.shared.tcp.std().take_error()?.filter(|error| self.shared.conn.is_news(error)))
    }

    /// Moves every clone of the stream into non-blocking mode, or out of it: an operation that has
    /// to wait answers `WouldBlock` there.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.shared.set_nonblocking(nonblocking)
    }

    /// For how long a read may wait, on either transport; `None`: for ever. One that waits longer
    /// answers `WouldBlock`. A read that waits already is not concerned.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a duration of zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.shared.tcp.std().set_read_timeout(timeout)?;
        self.shared.reads.set_timeout(timeout);
        Ok(())
    }

    /// For how long a write may wait, on either transport; see [`SmcStream::set_read_timeout`].
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a duration of zero.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.shared.tcp.std().set_write_timeout(timeout)?;
        self.shared.writes.set_timeout(timeout);
        Ok(())
    }

    /// For how long a read may wait.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn read_timeout(&self) -> io::Result<Option<Duration>> {
        self.shared.tcp.std().read_timeout()
    }

    /// For how long a write may wait.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn write_timeout(&self) -> io::Result<Option<Duration>> {
        self.shared.tcp.std().write_timeout()
    }

    /// Is `TCP_NODELAY` set? A stream on shared memory never delays.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn nodelay(&self) -> io::Result<bool> {
        self.shared.tcp.std().nodelay()
    }

    /// Sets `TCP_NODELAY`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.shared.tcp.std().set_nodelay(nodelay)
    }

    /// The time-to-live of the TCP packets.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn ttl(&self) -> io::Result<u32> {
        self.shared.tcp.std().ttl()
    }

    /// Sets the time-to-live of the TCP packets.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.shared.tcp.std().set_ttl(ttl)
    }
}
