//! The three transports behind one trait, so that each workload is compiled for each of them.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_smc::{Config, SmcListener, SmcStream, Transport};

/// What a connection really runs on, and why when that is not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RunsOn {
    pub(crate) name: &'static str,
    pub(crate) why: Option<String>,
}

impl RunsOn {
    pub(crate) const ISM: &'static str = "loopback-ism";
    pub(crate) const TCP: &'static str = "tcp";
    pub(crate) const UDS: &'static str = "uds";

    fn plain(name: &'static str) -> Self {
        Self { name, why: None }
    }

    pub(crate) fn is_ism(&self) -> bool {
        self.name == Self::ISM
    }
}

/// The client's way to one server over one transport.
pub(crate) trait Medium: Clone + Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Whether a connection may change what it runs on while it runs.
    const UPGRADES: bool;

    fn connect(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// What a stream runs on, to be kept while time is measured.
    type Kind: Copy + PartialEq + Send;

    fn kind(stream: &Self::Stream) -> Self::Kind;

    /// The same in words.
    fn describe(kind: Self::Kind) -> RunsOn;

    fn runs_on(stream: &Self::Stream) -> RunsOn {
        Self::describe(Self::kind(stream))
    }

    /// Whether that is loopback-ism, for which nothing is put into words: it is asked on
    /// connections that do little else.
    fn is_on_ism(stream: &Self::Stream) -> bool;
}

/// The server's side of a [`Medium`].
pub(crate) trait Door: Send + Sync + 'static {
    type Medium: Medium;

    fn accept(&self) -> impl Future<Output = io::Result<<Self::Medium as Medium>::Stream>> + Send;
}

/// tokio's own TCP.
#[derive(Clone)]
pub(crate) struct Tcp(pub(crate) SocketAddr);

impl Medium for Tcp {
    type Stream = TcpStream;
    const UPGRADES: bool = false;

    async fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.0).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    type Kind = ();

    fn kind(_: &TcpStream) {}

    fn describe((): ()) -> RunsOn {
        RunsOn::plain(RunsOn::TCP)
    }

    fn is_on_ism(_: &TcpStream) -> bool {
        false
    }
}

impl Door for TcpListener {
    type Medium = Tcp;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// A unix socket with an abstract name: nothing is left in the file system, whatever ends the
/// server.
#[derive(Clone)]
pub(crate) struct Uds(pub(crate) String);

impl Uds {
    pub(crate) fn bind(&self) -> io::Result<UnixListener> {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&self.0)?;
        let listener = std::os::unix::net::UnixListener::bind_addr(&address)?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    }
}

impl Medium for Uds {
    type Stream = UnixStream;
    const UPGRADES: bool = false;

    async fn connect(&self) -> io::Result<UnixStream> {
        // A leading NUL is how tokio spells an abstract name.
        UnixStream::connect(format!("\0{}", self.0)).await
    }

    type Kind = ();

    fn kind(_: &UnixStream) {}

    fn describe((): ()) -> RunsOn {
        RunsOn::plain(RunsOn::UDS)
    }

    fn is_on_ism(_: &UnixStream) -> bool {
        false
    }
}

impl Door for UnixListener {
    type Medium = Uds;

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(UnixListener::accept(self).await?.0)
    }
}

/// This crate's streams.
#[derive(Clone)]
pub(crate) struct Smc {
    pub(crate) addr: SocketAddr,
    pub(crate) config: Config,
}

impl Medium for Smc {
    type Stream = SmcStream;
    const UPGRADES: bool = true;

    async fn connect(&self) -> io::Result<SmcStream> {
        let stream = SmcStream::connect_with(self.addr, &self.config).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    type Kind = Transport;

    fn kind(stream: &SmcStream) -> Transport {
        stream.transport()
    }

    fn describe(transport: Transport) -> RunsOn {
        if let Transport::Tcp(reason) = transport {
            RunsOn { name: RunsOn::TCP, why: Some(reason.to_string()) }
        } else {
            RunsOn::plain(RunsOn::ISM)
        }
    }

    fn is_on_ism(stream: &SmcStream) -> bool {
        matches!(stream.transport(), Transport::LoopbackIsm(_))
    }
}

impl Door for SmcListener {
    type Medium = Smc;

    async fn accept(&self) -> io::Result<SmcStream> {
        let (stream, _) = SmcListener::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}
