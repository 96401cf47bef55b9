//! [`SmcInfo`]: what can be asked about a stream that a library has taken.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use tokio::runtime::Handle;

use crate::conn::Connection;
use crate::rt::tokio::TokioTcp;
use crate::stream::{SmcStream, TransportWatch};
use crate::sync::Arc;
use crate::transport::{Counters, Transport, UCred};

/// The addresses of a stream, and what it runs on whenever one asks, also after a library has taken
/// the stream.
///
/// hyper-util's client has it in the extensions of its responses (feature `hyper-util`), axum as
/// connect info (feature `axum08`). It keeps neither the stream nor its socket open.
///
/// ```
/// use tokio_smc::{SmcListener, SmcStream};
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # let listener = SmcListener::bind("127.0.0.1:0").await?;
/// let stream = SmcStream::connect(listener.local_addr()?).await?;
/// let info = stream.info();
/// drop(stream); // or given to a library
/// println!("{:?} ran on {}", info.peer_addr(), info.transport());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SmcInfo {
    conn: Arc<Connection<TokioTcp>>,
    handle: Handle,
    local_addr: Option<SocketAddr>,
    peer_addr: Option<SocketAddr>,
}

impl SmcInfo {
    pub(crate) fn new(stream: &SmcStream, conn: &Arc<Connection<TokioTcp>>, handle: &Handle) -> Self {
        SmcInfo {
            conn: Arc::clone(conn),
            handle: handle.clone(),
            local_addr: stream.local_addr().ok(),
            peer_addr: stream.peer_addr().ok(),
        }
    }

    /// The address of this end; `None` when the connection had ended before it could be asked.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// The address of the other end; `None` when the connection had ended before it could be asked.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.peer_addr
    }

    /// What the stream runs on now; of a closed stream what it ran on last.
    pub fn transport(&self) -> Transport {
        self.conn.transport()
    }

    /// The transport now and every change of it.
    pub fn watch(&self) -> TransportWatch {
        TransportWatch::new(&self.conn, &self.handle)
    }

    /// How many bytes the stream has read and written, over each transport; of a closed stream,
    /// until it was closed.
    pub fn counters(&self) -> Counters {
        self.conn.counters()
    }

    /// Whose process holds the other end; see [`SmcStream::peer_cred`].
    ///
    /// # Errors
    ///
    /// `Unsupported` while the stream runs on TCP, and after it was closed.
    pub fn peer_cred(&self) -> io::Result<UCred> {
        self.conn.peer_cred().map_err(io::Error::from)
    }
}

impl fmt::Debug for SmcInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmcInfo")
            .field("local_addr", &self.local_addr)
            .field("peer_addr", &self.peer_addr)
            .field("transport", &self.transport())
            .finish()
    }
}
