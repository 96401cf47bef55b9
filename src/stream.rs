//! [`SmcStream`], the drop-in for tokio's `TcpStream`: a skin over one connection.

mod attempts;
pub(crate) mod in_place;
mod options;
pub(crate) mod ready;
pub(crate) mod split;
pub(crate) mod split_owned;
mod transfer;
mod upgrade;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::panic::{RefUnwindSafe, UnwindSafe};

use tokio::net::{TcpStream, ToSocketAddrs};
use tokio::runtime::Handle;

use crate::config::Config;
use crate::conn::{Connection, Directions, Role};
use crate::link::adopted::adopt;
use crate::link::home::Place;
use crate::link::stream::{LinkedStream, Verdict};
use crate::rt::tokio::{self as rt, TokioTcp};
use crate::sync::Arc;
use crate::transport::FallbackReason;
use split::{ReadHalf, WriteHalf};
use split_owned::{OwnedReadHalf, OwnedWriteHalf};

pub use in_place::SharedBytes;
pub use upgrade::TransportWatch;

/// A TCP stream that moves onto shared memory when its peer is on this host and uses this crate
/// too.
///
/// It is used exactly like [`tokio::net::TcpStream`]; [`SmcStream::transport`] tells what it runs
/// on.
///
/// Dropping it closes the connection as TCP would: what was written still arrives, unless unread
/// data makes it a reset.
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio_smc::SmcStream;
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # let listener = tokio_smc::SmcListener::bind("127.0.0.1:0").await?;
/// # let address = listener.local_addr()?;
/// # tokio::spawn(async move {
/// #     let (mut stream, _) = listener.accept().await?;
/// #     let (mut read, mut write) = stream.split();
/// #     tokio::io::copy(&mut read, &mut write).await
/// # });
/// let mut stream = SmcStream::connect(address).await?;
/// stream.write_all(b"hello").await?;
/// let mut answer = [0; 5];
/// stream.read_exact(&mut answer).await?;
/// println!("{} runs on {}", stream.peer_addr()?, stream.transport());
/// # assert_eq!(&answer, b"hello");
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// An error is what TCP would have shown, of the same [`kind`](io::ErrorKind), and says whose fault
/// it was:
///
/// - An error of the TCP socket is the kernel's, as with tokio's stream.
/// - Where a stream on shared memory fails, the error's source
///   ([`get_ref`](io::Error::get_ref)) is an [`SmcError`](crate::SmcError): the peer broke a rule,
///   closed early or died; a limit; this crate's own failure; something that this end has done
///   itself.
/// - Where there is no upgrade though one is needed (policy `Require`,
///   [`SmcStream::peer_cred`]), the source is the [`FallbackReason`].
pub struct SmcStream {
    /// Dropped first: it ends the connection while the socket is still open.
    conn: Open,
    tcp: Arc<TcpStream>,
}

/// The connection of an open stream, which dropping this closes.
struct Open {
    conn: Arc<Connection<TokioTcp>>,
    handle: Handle,
}

impl Deref for Open {
    type Target = Arc<Connection<TokioTcp>>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.conn
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(leftover) = self.conn.close() {
            self.handle.spawn(rt::drain(leftover));
        }
    }
}

impl SmcStream {
    /// Opens a connection, with the settings of [`Config::from_env`].
    ///
    /// Returns when TCP has connected; the upgrade happens later, while the stream is used.
    ///
    /// # Errors
    ///
    /// Those of [`tokio::net::TcpStream::connect`]. With
    /// [`UpgradePolicy::Require`](crate::UpgradePolicy::Require) also `Unsupported` with the
    /// [`FallbackReason`], or `TimedOut`, when there is no upgrade.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    pub async fn connect<A: ToSocketAddrs>(addr: A) -> io::Result<SmcStream> {
        Self::connect_with(addr, &Config::from_env()).await
    }

    /// Opens a connection with settings of its own; see [`SmcStream::connect`].
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
    /// Dropping the future closes the connection.
    pub async fn connect_with<A: ToSocketAddrs>(addr: A, config: &Config) -> io::Result<SmcStream> {
        let stream = SmcStream::new(TcpStream::connect(addr).await?, Role::Client, config.clone());
        stream.after_connect(None).await?;
        Ok(stream)
    }

    pub(crate) fn new(stream: TcpStream, role: Role, config: Config) -> SmcStream {
        let tcp = Arc::new(stream);
        let conn = Connection::new(tcp.clone(), role, config);
        SmcStream { conn: Open { conn, handle: Handle::current() }, tcp }
    }

    /// Enters an accepted stream into the table of its endpoint.
    pub(crate) fn register(&self, client: SocketAddr, place: &Place<()>) {
        let linked: Arc<dyn LinkedStream> = self.conn.conn.clone();
        self.conn.keep_registration(place.accept(client, &linked));
    }

    #[cfg(test)]
    pub(crate) fn conn_for_tests(&self) -> Arc<Connection<TokioTcp>> {
        self.conn.conn.clone()
    }

    /// Its listener has no place where a client could find this stream.
    pub(crate) fn stay_on_tcp(&self, reason: FallbackReason) {
        self.conn.verdict(Verdict::StayOnTcp(reason));
    }

    /// Makes a stream of a connected std socket, which has to be in non-blocking mode.
    ///
    /// Nothing is known about what has passed through it, so it is upgraded only by
    /// [`SmcStream::upgrade`], and only offers; the other end has to come from an
    /// [`SmcListener`](crate::SmcListener).
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
    pub fn from_std(stream: std::net::TcpStream) -> io::Result<SmcStream> {
        let stream = TcpStream::from_std(stream)?;
        let stream = SmcStream::new(stream, Role::Adopted, Config::from_env());
        let linked: Arc<dyn LinkedStream> = stream.conn.conn.clone();
        if let Some(other) =
            linked.subject().ok().and_then(|ours| adopt(ours.cookie, Arc::downgrade(&linked)))
        {
            linked.verdict(Verdict::SocketShared);
            other.verdict(Verdict::SocketShared);
        }
        Ok(stream)
    }

    /// Takes the TCP socket out; it stays in non-blocking mode.
    ///
    /// # Errors
    ///
    /// `Unsupported` when the stream has moved to shared memory. Nothing is lost then: the error's
    /// source is an [`IntoStdError`], which gives the stream back.
    ///
    /// ```
    /// use tokio_smc::{IntoStdError, SmcStream};
    ///
    /// /// The socket, or the stream as it was.
    /// fn socket_of(stream: SmcStream) -> Result<std::net::TcpStream, SmcStream> {
    ///     stream.into_std().map_err(|error| {
    ///         let upgraded = error.into_inner().and_then(|source| source.downcast::<IntoStdError>().ok());
    ///         upgraded.expect("the only way to fail").into_stream()
    ///     })
    /// }
    /// ```
    pub fn into_std(self) -> io::Result<std::net::TcpStream> {
        if let Err(error) = self.conn.pin("into_std", Directions::Both) {
            return Err(io::Error::new(error.kind(), IntoStdError { error, stream: self }));
        }
        let SmcStream { conn, tcp } = self;
        // The connection lets go of it, so that this is the last one.
        drop(conn.take_socket());
        drop(conn);
        match Arc::try_unwrap(tcp) {
            Ok(tcp) => tcp.into_std(),
            Err(_) => unreachable!("the connection has let go, and nobody else ever has the socket"),
        }
    }

    /// Borrows the stream as a half to read from and a half to write to.
    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        split::split(self)
    }

    /// Splits the stream into halves that can be moved to different tasks; dropping the write half
    /// shuts down that direction.
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        split_owned::split_owned(self)
    }
}

// As tokio's TcpStream: a panic in one task leaves the stream as it was, every step under its locks
// is whole.
impl UnwindSafe for SmcStream {}
impl RefUnwindSafe for SmcStream {}

/// The TCP socket, for options. It is idle once the stream has moved to shared memory: reading from
/// it or writing to it goes past the stream then. Shutting it down is noticed by both ends, soon.
/// An urgent byte (`MSG_OOB`) that is sent on it can be received out of line only, and has no place
/// among the other bytes.
///
/// Bytes that are read or written on it *before* the upgrade, or urgent data, keep the stream on
/// TCP ([`FallbackReason::Positions`]), and so do some options (`docs/options.md`).
impl AsFd for SmcStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}

impl AsRef<SmcStream> for SmcStream {
    fn as_ref(&self) -> &SmcStream {
        self
    }
}

impl AsRawFd for SmcStream {
    fn as_raw_fd(&self) -> RawFd {
        self.tcp.as_raw_fd()
    }
}

/// The stream whose socket [`SmcStream::into_std`] could not give out; the source of that error.
///
/// ```
/// use tokio_smc::{Config, IntoStdError, SmcListener, SmcStream, UpgradePolicy};
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # let listener = SmcListener::bind("127.0.0.1:0").await?;
/// # let config = Config::new().upgrade_policy(UpgradePolicy::Manual);
/// let stream = SmcStream::connect_with(listener.local_addr()?, &config).await?;
/// # let (_server, _) = listener.accept().await?;
/// let upgraded = stream.upgrade().await.is_loopback_ism();
/// match stream.into_std() {
///     Ok(_socket) => assert!(!upgraded),
///     Err(error) => {
///         let source = error.into_inner().expect("a source");
///         let stream = source.downcast::<IntoStdError>().expect("the only one").into_stream();
///         assert!(upgraded && stream.transport().is_loopback_ism());
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct IntoStdError {
    error: io::Error,
    stream: SmcStream,
}

impl IntoStdError {
    /// The stream as it was; a direction that was still on TCP stays there.
    pub fn into_stream(self) -> SmcStream {
        self.stream
    }
}

impl fmt::Display for IntoStdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for IntoStdError {
    /// [`SmcError::Upgraded`](crate::SmcError::Upgraded).
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.get_ref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

impl TryFrom<std::net::TcpStream> for SmcStream {
    type Error = io::Error;

    /// As [`SmcStream::from_std`].
    fn try_from(stream: std::net::TcpStream) -> io::Result<SmcStream> {
        SmcStream::from_std(stream)
    }
}

impl fmt::Debug for SmcStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmcStream")
            .field("local_addr", &self.local_addr().ok())
            .field("peer_addr", &self.peer_addr().ok())
            .field("transport", &self.transport())
            .finish()
    }
}
