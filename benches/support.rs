//! Connected pairs whose two ends are in this process, on a runtime of their own.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio_smc::{Config, SmcListener, SmcStream, UpgradePolicy};

/// What the rings of an upgraded pair can hold at least.
const ROOM: usize = 64 << 10;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Whose types a pair has: ours, or tokio's.
pub(crate) trait Kind {
    type Listener;
    type Stream;

    fn new() -> Self;
    async fn bind(&self) -> io::Result<Self::Listener>;
    fn address(listener: &Self::Listener) -> io::Result<SocketAddr>;
    async fn connect(&self, address: SocketAddr) -> io::Result<Self::Stream>;
    async fn accept(listener: &Self::Listener) -> io::Result<Self::Stream>;
    async fn writable(stream: &Self::Stream) -> io::Result<()>;
    async fn readable(stream: &Self::Stream) -> io::Result<()>;
    fn try_write(stream: &Self::Stream, message: &[u8]) -> io::Result<usize>;
    fn try_read(stream: &Self::Stream, buffer: &mut [u8]) -> io::Result<usize>;
}

/// Streams that may be upgraded, on a device of their own.
pub(crate) struct Smc {
    config: Config,
    _device: TempDir,
}

impl Kind for Smc {
    type Listener = SmcListener;
    type Stream = SmcStream;

    fn new() -> Self {
        let device = TempDir::new().expect("a directory");
        let config = Config::new().upgrade_policy(UpgradePolicy::Manual).busy_poll(Duration::ZERO);
        Self { config: config.device_dir(device.path()), _device: device }
    }

    async fn bind(&self) -> io::Result<SmcListener> {
        SmcListener::bind_with("127.0.0.1:0", &self.config).await
    }

    fn address(listener: &SmcListener) -> io::Result<SocketAddr> {
        listener.local_addr()
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<SmcStream> {
        SmcStream::connect_with(address, &self.config).await
    }

    async fn accept(listener: &SmcListener) -> io::Result<SmcStream> {
        listener.accept().await.map(|(stream, _)| stream)
    }

    async fn writable(stream: &SmcStream) -> io::Result<()> {
        stream.writable().await
    }

    async fn readable(stream: &SmcStream) -> io::Result<()> {
        stream.readable().await
    }

    fn try_write(stream: &SmcStream, message: &[u8]) -> io::Result<usize> {
        stream.try_write(message)
    }

    fn try_read(stream: &SmcStream, buffer: &mut [u8]) -> io::Result<usize> {
        stream.try_read(buffer)
    }
}

pub(crate) struct Tokio;

impl Kind for Tokio {
    type Listener = TcpListener;
    type Stream = TcpStream;

    fn new() -> Self {
        Self
    }

    async fn bind(&self) -> io::Result<TcpListener> {
        TcpListener::bind("127.0.0.1:0").await
    }

    fn address(listener: &TcpListener) -> io::Result<SocketAddr> {
        listener.local_addr()
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(address).await
    }

    async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
        listener.accept().await.map(|(stream, _)| stream)
    }

    async fn writable(stream: &TcpStream) -> io::Result<()> {
        stream.writable().await
    }

    async fn readable(stream: &TcpStream) -> io::Result<()> {
        stream.readable().await
    }

    fn try_write(stream: &TcpStream, message: &[u8]) -> io::Result<usize> {
        stream.try_write(message)
    }

    fn try_read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        stream.try_read(buffer)
    }
}

/// Two ends, and what they live in.
pub(crate) struct Ends<K: Kind> {
    // In this order they are dropped.
    pub(crate) client: K::Stream,
    pub(crate) server: K::Stream,
    listener: K::Listener,
    address: SocketAddr,
    pub(crate) runtime: Runtime,
    kind: K,
}

/// Two ends that may be upgraded but are not.
pub(crate) type Plain = Ends<Smc>;

/// The same with tokio's own types.
pub(crate) type TokioPair = Ends<Tokio>;

impl<K: Kind> Ends<K> {
    pub(crate) fn new() -> Self {
        let (runtime, kind) = (runtime(), K::new());
        let (listener, address, client, server) = runtime.block_on(async {
            let listener = kind.bind().await.expect("a listener");
            let address = K::address(&listener).expect("an address");
            let (client, server) = connect(&kind, &listener, address).await;
            (listener, address, client, server)
        });
        let pair = Self { client, server, listener, address, runtime, kind };
        // What happens once is behind both ends.
        pair.send(1, &[0]);
        assert_eq!(K::try_read(&pair.server, &mut [0]).expect("a byte"), 1);
        pair.connect_accept(2);
        pair
    }

    /// Sends messages, and waits until the server can read.
    pub(crate) fn send(&self, times: usize, message: &[u8]) {
        self.runtime.block_on(async {
            K::writable(&self.client).await.expect("the client writes");
            for _ in 0..times {
                assert_eq!(K::try_write(&self.client, message).expect("room"), message.len());
            }
            K::readable(&self.server).await.expect("the server reads");
        });
    }

    /// Connects, accepts, and drops both ends.
    pub(crate) fn connect_accept(&self, times: usize) {
        self.runtime.block_on(async {
            for _ in 0..times {
                drop(connect(&self.kind, &self.listener, self.address).await);
            }
        });
    }
}

async fn connect<K: Kind>(kind: &K, listener: &K::Listener, address: SocketAddr) -> (K::Stream, K::Stream) {
    let client = kind.connect(address).await.expect("a client");
    let server = K::accept(listener).await.expect("a server");
    (client, server)
}

/// Two ends whose rings hold [`ROOM`] bytes, and are empty.
pub(crate) struct Pair {
    pub(crate) client: SmcStream,
    pub(crate) server: SmcStream,
    pub(crate) plain: Plain,
}

impl Pair {
    pub(crate) fn upgraded() -> Self {
        let plain = Plain::new();
        let (client, server) = plain.runtime.block_on(async {
            let (client, server) = upgrade(&plain).await;
            grow(&client, &server).await;
            grow(&server, &client).await;
            (client, server)
        });
        let mut pair = Self { client, server, plain };
        pair.wake_ups(3, &[0; 100]);
        pair.upgrades(2);
        pair
    }

    /// For each message: the server waits, the client writes, the server is woken and reads.
    pub(crate) fn wake_ups(&mut self, times: usize, message: &[u8]) {
        let Self { client, server, plain } = self;
        let mut bytes = vec![0; message.len()];
        plain.runtime.block_on(async {
            for _ in 0..times {
                let mut buffer = ReadBuf::new(&mut bytes);
                let mut waits = true;
                poll_fn(|cx| {
                    let read = Pin::new(&mut *server).poll_read(cx, &mut buffer);
                    if std::mem::take(&mut waits) {
                        assert!(read.is_pending(), "nothing was written yet");
                        assert_eq!(client.try_write(message).expect("room"), message.len());
                        return Poll::Pending;
                    }
                    read
                })
                .await
                .expect("the server reads");
                assert_eq!(buffer.remaining(), 0);
            }
        });
    }

    /// Connects, accepts, upgrades both ends and drops them.
    pub(crate) fn upgrades(&self, times: usize) {
        self.plain.runtime.block_on(async {
            for _ in 0..times {
                drop(upgrade(&self.plain).await);
            }
        });
    }
}

async fn upgrade(plain: &Plain) -> (SmcStream, SmcStream) {
    let (client, server) = connect(&plain.kind, &plain.listener, plain.address).await;
    for transport in [client.upgrade().await, server.upgrade().await] {
        assert!(transport.is_loopback_ism(), "{transport:?}");
    }
    (client, server)
}

/// Writes until the ring from `writer` to `reader` holds as much as is wanted, and reads that.
async fn grow(writer: &SmcStream, reader: &SmcStream) {
    let mut buffer = vec![0; ROOM];
    loop {
        let written = writer.try_write(&buffer).unwrap_or(0);
        let mut read = 0;
        while read < written {
            reader.readable().await.expect("the reader lives");
            read += reader.try_read(&mut buffer).unwrap_or(0);
        }
        if written == ROOM {
            return;
        }
        // The answer to what the writer has asked for comes over the link.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
