//! Connected pairs whose two ends are in this process, on a runtime of their own.

use std::future::poll_fn;
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

fn config(device: &TempDir) -> Config {
    Config::new().upgrade_policy(UpgradePolicy::Manual).busy_poll(Duration::ZERO).device_dir(device.path())
}

/// Two ends that may be upgraded but are not, and what they live in.
pub(crate) struct Plain {
    // In this order they are dropped.
    pub(crate) client: SmcStream,
    pub(crate) server: SmcStream,
    listener: SmcListener,
    address: SocketAddr,
    config: Config,
    pub(crate) runtime: Runtime,
    _device: TempDir,
}

impl Plain {
    pub(crate) fn new() -> Self {
        let (runtime, device) = (runtime(), TempDir::new().expect("a directory"));
        let config = config(&device);
        let (listener, client, server) = runtime.block_on(async {
            let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("a listener");
            let address = listener.local_addr().expect("an address");
            let (client, server) = connect(&listener, address, &config).await;
            (listener, client, server)
        });
        let address = listener.local_addr().expect("an address");
        let pair = Self { client, server, listener, address, config, runtime, _device: device };
        // What happens once is behind both ends.
        pair.send(1, &[0]);
        assert_eq!(pair.server.try_read(&mut [0]).expect("a byte"), 1);
        pair.connect_accept(2);
        pair
    }

    /// Sends messages, and waits until the server can read.
    pub(crate) fn send(&self, times: usize, message: &[u8]) {
        self.runtime.block_on(async {
            self.client.writable().await.expect("the client writes");
            for _ in 0..times {
                assert_eq!(self.client.try_write(message).expect("room"), message.len());
            }
            self.server.readable().await.expect("the server reads");
        });
    }

    /// Connects, accepts, and drops both ends.
    pub(crate) fn connect_accept(&self, times: usize) {
        self.runtime.block_on(async {
            for _ in 0..times {
                drop(connect(&self.listener, self.address, &self.config).await);
            }
        });
    }
}

async fn connect(listener: &SmcListener, address: SocketAddr, config: &Config) -> (SmcStream, SmcStream) {
    let client = SmcStream::connect_with(address, config).await.expect("a client");
    let (server, _) = listener.accept().await.expect("a server");
    (client, server)
}

/// The same with tokio's own types.
pub(crate) struct TokioPair {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
    listener: TcpListener,
    address: SocketAddr,
    pub(crate) runtime: Runtime,
}

impl TokioPair {
    pub(crate) fn new() -> Self {
        let runtime = runtime();
        let (listener, client, server) = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
            let client =
                TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a client");
            let (server, _) = listener.accept().await.expect("a server");
            (listener, client, server)
        });
        let address = listener.local_addr().expect("an address");
        let pair = Self { client, server, listener, address, runtime };
        pair.send(1, &[0]);
        assert_eq!(pair.server.try_read(&mut [0]).expect("a byte"), 1);
        pair.connect_accept(2);
        pair
    }

    pub(crate) fn send(&self, times: usize, message: &[u8]) {
        self.runtime.block_on(async {
            self.client.writable().await.expect("the client writes");
            for _ in 0..times {
                assert_eq!(self.client.try_write(message).expect("room"), message.len());
            }
            self.server.readable().await.expect("the server reads");
        });
    }

    pub(crate) fn connect_accept(&self, times: usize) {
        self.runtime.block_on(async {
            for _ in 0..times {
                let client = TcpStream::connect(self.address).await.expect("a client");
                let (server, _) = self.listener.accept().await.expect("a server");
                drop((client, server));
            }
        });
    }
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
    let (client, server) = connect(&plain.listener, plain.address, &plain.config).await;
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
