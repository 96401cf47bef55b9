//! What a test body may use of a stream: the part of tokio's surface that `TcpStream` and
//! `SmcStream` share, by name.

use std::fmt::Debug;
use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::panic::UnwindSafe;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio_smc::{SmcListener, SmcStream, Transport, UpgradePolicy};

use crate::agree::agree;
use crate::lab::Lab;

pub(crate) trait Auto: Debug + Send + Sync + Unpin + UnwindSafe + 'static {}
impl<T: Debug + Send + Sync + Unpin + UnwindSafe + 'static> Auto for T {}

type Done<T> = io::Result<T>;

/// A stream as tokio's `TcpStream` shows itself to its user.
pub(crate) trait Stream: AsyncRead + AsyncWrite + AsFd + Auto {
    type Read: OwnedRead<Whole = Self>;
    type Write: OwnedWrite<Whole = Self>;
    fn split(&mut self) -> (impl AsyncRead + Unpin + Send, impl AsyncWrite + Unpin + Send);
    fn into_split(self) -> (Self::Read, Self::Write);
    fn into_std(self) -> Done<std::net::TcpStream>;
    fn peek(&self, buf: &mut [u8]) -> impl Future<Output = Done<usize>> + Send;
    fn poll_peek(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Done<usize>>;
    fn readable(&self) -> impl Future<Output = Done<()>> + Send;
    fn writable(&self) -> impl Future<Output = Done<()>> + Send;
    fn ready(&self, interest: Interest) -> impl Future<Output = Done<Ready>> + Send;
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<Done<()>>;
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<Done<()>>;
    fn try_read(&self, buf: &mut [u8]) -> Done<usize>;
    fn try_read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> Done<usize>;
    fn try_read_buf(&self, buf: &mut Vec<u8>) -> Done<usize>;
    fn try_write(&self, buf: &[u8]) -> Done<usize>;
    fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> Done<usize>;
    fn local_addr(&self) -> Done<SocketAddr>;
    fn peer_addr(&self) -> Done<SocketAddr>;
    fn take_error(&self) -> Done<Option<io::Error>>;
    fn nodelay(&self) -> Done<bool>;
    fn set_nodelay(&self, on: bool) -> Done<()>;
    fn ttl(&self) -> Done<u32>;
    fn set_ttl(&self, ttl: u32) -> Done<()>;
    fn linger(&self) -> Done<Option<std::time::Duration>>;
    fn set_zero_linger(&self) -> Done<()>;
}

/// The owned read half.
pub(crate) trait OwnedRead: AsyncRead + Auto {
    type Whole: Stream;
    fn reunite(self, write: <Self::Whole as Stream>::Write) -> Result<Self::Whole, Halves<Self::Whole>>;
    fn peek(&mut self, buf: &mut [u8]) -> impl Future<Output = Done<usize>> + Send;
    fn readable(&self) -> impl Future<Output = Done<()>> + Send;
    fn try_read(&self, buf: &mut [u8]) -> Done<usize>;
    fn local_addr(&self) -> Done<SocketAddr>;
}

/// Both halves, as a failed reunion hands them back.
pub(crate) type Halves<S> = (<S as Stream>::Read, <S as Stream>::Write);

/// The owned write half.
pub(crate) trait OwnedWrite: AsyncWrite + Auto {
    type Whole: Stream;
    fn reunite(self, read: <Self::Whole as Stream>::Read) -> Result<Self::Whole, Halves<Self::Whole>>;
    fn forget(self);
    fn writable(&self) -> impl Future<Output = Done<()>> + Send;
    fn try_write(&self, buf: &[u8]) -> Done<usize>;
    fn peer_addr(&self) -> Done<SocketAddr>;
}

/// A listener as tokio's `TcpListener` shows itself to its user.
pub(crate) trait Listener: Debug + Send + Sync + Unpin + 'static {
    type Stream: Stream;
    fn accept(&self) -> impl Future<Output = Done<(Self::Stream, SocketAddr)>> + Send;
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Done<(Self::Stream, SocketAddr)>>;
    fn local_addr(&self) -> Done<SocketAddr>;
    fn ttl(&self) -> Done<u32>;
    fn set_ttl(&self, ttl: u32) -> Done<()>;
}

/// One way to get connections; the suite is mounted on three of them.
pub(crate) trait Net: Send + Sync + 'static {
    type Stream: Stream;
    type Listener: Listener<Stream = Self::Stream>;
    /// Whether bytes of a `pair` move through a ring.
    const RING: bool;
    fn new() -> Self;
    fn bind(&self, addr: &str) -> impl Future<Output = Done<Self::Listener>> + Send;
    fn connect(&self, addr: SocketAddr) -> impl Future<Output = Done<Self::Stream>> + Send;
    /// Two ends that run on what this mount is about: (connected, accepted).
    fn pair(&self) -> impl Future<Output = (Self::Stream, Self::Stream)> + Send;
}

/// The two ends of a fresh connection of `net`, on whatever they run.
pub(crate) async fn fresh<N: Net>(net: &N) -> (N::Stream, N::Stream) {
    let listener = net.bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("an address");
    let (client, server) = tokio::join!(net.connect(addr), listener.accept());
    (client.expect("connect"), server.expect("accept").0)
}

/// tokio's own TCP: what the suite expects is what this mount does.
#[derive(Debug)]
pub(crate) struct Tcp;

impl Net for Tcp {
    type Stream = tokio::net::TcpStream;
    type Listener = tokio::net::TcpListener;
    const RING: bool = false;
    fn new() -> Self {
        Self
    }
    async fn bind(&self, addr: &str) -> Done<Self::Listener> {
        tokio::net::TcpListener::bind(addr).await
    }
    async fn connect(&self, addr: SocketAddr) -> Done<Self::Stream> {
        tokio::net::TcpStream::connect(addr).await
    }
    async fn pair(&self) -> (Self::Stream, Self::Stream) {
        fresh(self).await
    }
}

/// SMC on the ring.
#[derive(Debug)]
pub(crate) struct Upgraded(Lab);

impl Net for Upgraded {
    type Stream = SmcStream;
    type Listener = SmcListener;
    const RING: bool = true;
    fn new() -> Self {
        Self(Lab::new())
    }
    async fn bind(&self, addr: &str) -> Done<Self::Listener> {
        SmcListener::bind_with(addr, &self.0.config(UpgradePolicy::Eager)).await
    }
    async fn connect(&self, addr: SocketAddr) -> Done<Self::Stream> {
        SmcStream::connect_with(addr, &self.0.config(UpgradePolicy::Eager)).await
    }
    async fn pair(&self) -> (Self::Stream, Self::Stream) {
        let (mut client, mut server) = fresh(self).await;
        tokio::join!(agree(&mut client, true), agree(&mut server, false));
        (client, server)
    }
}

/// SMC that stays on TCP.
#[derive(Debug)]
pub(crate) struct Fallback(Lab);

impl Net for Fallback {
    type Stream = SmcStream;
    type Listener = SmcListener;
    const RING: bool = false;
    fn new() -> Self {
        Self(Lab::new())
    }
    async fn bind(&self, addr: &str) -> Done<Self::Listener> {
        SmcListener::bind_with(addr, &self.0.config(UpgradePolicy::Never)).await
    }
    async fn connect(&self, addr: SocketAddr) -> Done<Self::Stream> {
        SmcStream::connect_with(addr, &self.0.config(UpgradePolicy::Never)).await
    }
    async fn pair(&self) -> (Self::Stream, Self::Stream) {
        let (client, server) = fresh(self).await;
        for end in [&client, &server] {
            let transport = end.transport();
            let Transport::Tcp(reason) = &transport else { panic!("policy Never, yet {transport}") };
            assert!(reason.to_string().contains("0x"), "a reason in words with its code in hex: {reason}");
            assert_eq!(transport.to_string(), "tcp");
        }
        (client, server)
    }
}

// The inherent methods win over the trait's in `<$stream>::peek`, so each line calls the type's
// own.
macro_rules! implement {
    ($stream:ty, $listener:ty, $read:ty, $write:ty) => {
        impl Stream for $stream {
            type Read = $read;
            type Write = $write;
            fn split(&mut self) -> (impl AsyncRead + Unpin + Send, impl AsyncWrite + Unpin + Send) {
                <$stream>::split(self)
            }
            fn into_split(self) -> ($read, $write) {
                <$stream>::into_split(self)
            }
            fn into_std(self) -> Done<std::net::TcpStream> {
                <$stream>::into_std(self)
            }
            fn peek(&self, buf: &mut [u8]) -> impl Future<Output = Done<usize>> + Send {
                <$stream>::peek(self, buf)
            }
            fn poll_peek(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Done<usize>> {
                <$stream>::poll_peek(self, cx, buf)
            }
            fn readable(&self) -> impl Future<Output = Done<()>> + Send {
                <$stream>::readable(self)
            }
            fn writable(&self) -> impl Future<Output = Done<()>> + Send {
                <$stream>::writable(self)
            }
            fn ready(&self, interest: Interest) -> impl Future<Output = Done<Ready>> + Send {
                <$stream>::ready(self, interest)
            }
            fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<Done<()>> {
                <$stream>::poll_read_ready(self, cx)
            }
            fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<Done<()>> {
                <$stream>::poll_write_ready(self, cx)
            }
            fn try_read(&self, buf: &mut [u8]) -> Done<usize> {
                <$stream>::try_read(self, buf)
            }
            fn try_read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> Done<usize> {
                <$stream>::try_read_vectored(self, bufs)
            }
            fn try_read_buf(&self, buf: &mut Vec<u8>) -> Done<usize> {
                <$stream>::try_read_buf(self, buf)
            }
            fn try_write(&self, buf: &[u8]) -> Done<usize> {
                <$stream>::try_write(self, buf)
            }
            fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> Done<usize> {
                <$stream>::try_write_vectored(self, bufs)
            }
            fn local_addr(&self) -> Done<SocketAddr> {
                <$stream>::local_addr(self)
            }
            fn peer_addr(&self) -> Done<SocketAddr> {
                <$stream>::peer_addr(self)
            }
            fn take_error(&self) -> Done<Option<io::Error>> {
                <$stream>::take_error(self)
            }
            fn nodelay(&self) -> Done<bool> {
                <$stream>::nodelay(self)
            }
            fn set_nodelay(&self, on: bool) -> Done<()> {
                <$stream>::set_nodelay(self, on)
            }
            fn ttl(&self) -> Done<u32> {
                <$stream>::ttl(self)
            }
            fn set_ttl(&self, ttl: u32) -> Done<()> {
                <$stream>::set_ttl(self, ttl)
            }
            fn linger(&self) -> Done<Option<std::time::Duration>> {
                <$stream>::linger(self)
            }
            fn set_zero_linger(&self) -> Done<()> {
                <$stream>::set_zero_linger(self)
            }
        }

        impl OwnedRead for $read {
            type Whole = $stream;
            fn reunite(self, write: $write) -> Result<$stream, ($read, $write)> {
                <$read>::reunite(self, write).map_err(|error| (error.0, error.1))
            }
            fn peek(&mut self, buf: &mut [u8]) -> impl Future<Output = Done<usize>> + Send {
                <$read>::peek(self, buf)
            }
            fn readable(&self) -> impl Future<Output = Done<()>> + Send {
                <$read>::readable(self)
            }
            fn try_read(&self, buf: &mut [u8]) -> Done<usize> {
                <$read>::try_read(self, buf)
            }
            fn local_addr(&self) -> Done<SocketAddr> {
                <$read>::local_addr(self)
            }
        }

        impl OwnedWrite for $write {
            type Whole = $stream;
            fn reunite(self, read: $read) -> Result<$stream, ($read, $write)> {
                <$write>::reunite(self, read).map_err(|error| (error.0, error.1))
            }
            fn forget(self) {
                <$write>::forget(self);
            }
            fn writable(&self) -> impl Future<Output = Done<()>> + Send {
                <$write>::writable(self)
            }
            fn try_write(&self, buf: &[u8]) -> Done<usize> {
                <$write>::try_write(self, buf)
            }
            fn peer_addr(&self) -> Done<SocketAddr> {
                <$write>::peer_addr(self)
            }
        }

        impl Listener for $listener {
            type Stream = $stream;
            fn accept(&self) -> impl Future<Output = Done<($stream, SocketAddr)>> + Send {
                <$listener>::accept(self)
            }
            fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Done<($stream, SocketAddr)>> {
                <$listener>::poll_accept(self, cx)
            }
            fn local_addr(&self) -> Done<SocketAddr> {
                <$listener>::local_addr(self)
            }
            fn ttl(&self) -> Done<u32> {
                <$listener>::ttl(self)
            }
            fn set_ttl(&self, ttl: u32) -> Done<()> {
                <$listener>::set_ttl(self, ttl)
            }
        }
    };
}

implement!(
    tokio::net::TcpStream,
    tokio::net::TcpListener,
    tokio::net::tcp::OwnedReadHalf,
    tokio::net::tcp::OwnedWriteHalf
);
implement!(
    tokio_smc::net::TcpStream,
    tokio_smc::net::TcpListener,
    tokio_smc::net::tcp::OwnedReadHalf,
    tokio_smc::net::tcp::OwnedWriteHalf
);
