//! What a test body may use of a stream: std's names, which both have.

use std::fmt::Debug;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::Duration;

use tokio_smc::blocking::{SmcListener, SmcStream};
use tokio_smc::{Config, UpgradePolicy};

use crate::lab::Lab;

/// A stream as std's `TcpStream` shows itself to its user.
pub(crate) trait Stream:
    io::Read + io::Write + AsFd + Debug + Send + Sync + UnwindSafe + RefUnwindSafe + Sized + 'static
{
    fn recv(&self, buf: &mut [u8]) -> io::Result<usize>;
    fn recv_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize>;
    fn send(&self, buf: &[u8]) -> io::Result<usize>;
    fn send_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize>;
    fn peek(&self, buf: &mut [u8]) -> io::Result<usize>;
    fn shutdown(&self, how: Shutdown) -> io::Result<()>;
    fn try_clone(&self) -> io::Result<Self>;
    fn set_nonblocking(&self, on: bool) -> io::Result<()>;
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;
    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;
    fn read_timeout(&self) -> io::Result<Option<Duration>>;
    fn write_timeout(&self) -> io::Result<Option<Duration>>;
    fn local_addr(&self) -> io::Result<SocketAddr>;
    fn peer_addr(&self) -> io::Result<SocketAddr>;
    fn take_error(&self) -> io::Result<Option<io::Error>>;
    fn nodelay(&self) -> io::Result<bool>;
    fn set_nodelay(&self, on: bool) -> io::Result<()>;
    fn ttl(&self) -> io::Result<u32>;
    fn set_ttl(&self, ttl: u32) -> io::Result<()>;
}

/// All by the same names, so that a method that one of them lacks is an error here.
macro_rules! stream {
    ($stream:ty) => {
        impl Stream for $stream {
            fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
                (&mut &*self).read(buf)
            }
            fn recv_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
                (&mut &*self).read_vectored(bufs)
            }
            fn send(&self, buf: &[u8]) -> io::Result<usize> {
                (&mut &*self).write(buf)
            }
            fn send_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
                (&mut &*self).write_vectored(bufs)
            }
            stream! { $stream: peek(buf: &mut [u8]) -> usize; shutdown(how: Shutdown) -> (); try_clone() -> Self;
                set_nonblocking(on: bool) -> (); set_read_timeout(timeout: Option<Duration>) -> ();
                set_write_timeout(timeout: Option<Duration>) -> (); read_timeout() -> Option<Duration>;
                write_timeout() -> Option<Duration>; local_addr() -> SocketAddr; peer_addr() -> SocketAddr;
                take_error() -> Option<io::Error>; nodelay() -> bool; set_nodelay(on: bool) -> (); ttl() -> u32;
                set_ttl(ttl: u32) -> (); }
        }
    };
    ($stream:ty: $($method:ident($($argument:ident: $type:ty)?) -> $answer:ty;)*) => {$(
        fn $method(&self, $($argument: $type)?) -> io::Result<$answer> {
            <$stream>::$method(self, $($argument)?)
        }
    )*};
}

stream!(std::net::TcpStream);
stream!(SmcStream);

/// One way to get connections.
pub(crate) trait Net: Send + Sync + 'static {
    type Stream: Stream;
    fn new() -> Self;
    /// Two ends that run on what this mount is about: (connected, accepted).
    fn pair(&self) -> (Self::Stream, Self::Stream);
}

/// std's own TCP: what the suite expects is what this mount does.
pub(crate) struct Std;

impl Net for Std {
    type Stream = std::net::TcpStream;

    fn new() -> Self {
        Std
    }

    fn pair(&self) -> (Self::Stream, Self::Stream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let client =
            std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
        (client, listener.accept().expect("accept").0)
    }
}

/// A pair of the blocking front end, as its policy wants it.
pub(crate) fn smc_pair(config: &Config) -> (SmcStream, SmcStream) {
    let listener = SmcListener::bind_with("127.0.0.1:0", config).expect("bind");
    let addr = listener.local_addr().expect("an address");
    std::thread::scope(|scope| {
        let client = scope.spawn(|| SmcStream::connect_with(addr, config).expect("connect"));
        let server = listener.accept().expect("accept").0;
        server.upgrade();
        (client.join().expect("the client"), server)
    })
}

/// On TCP for good: the kernel does it all.
pub(crate) struct Never(Lab);

impl Net for Never {
    type Stream = SmcStream;

    fn new() -> Self {
        Never(Lab::new())
    }

    fn pair(&self) -> (SmcStream, SmcStream) {
        smc_pair(&self.0.config(UpgradePolicy::Never))
    }
}

/// On TCP, from which it may switch at any time.
pub(crate) struct Tcp(Lab);

impl Net for Tcp {
    type Stream = SmcStream;

    fn new() -> Self {
        Tcp(Lab::new())
    }

    fn pair(&self) -> (SmcStream, SmcStream) {
        let (client, server) = smc_pair(&self.0.config(UpgradePolicy::Manual));
        assert!(!client.transport().is_loopback_ism() && !server.transport().is_loopback_ism());
        (client, server)
    }
}

/// In the ring, both ways.
pub(crate) struct Ring(Lab);

impl Net for Ring {
    type Stream = SmcStream;

    fn new() -> Self {
        Ring(Lab::new())
    }

    fn pair(&self) -> (SmcStream, SmcStream) {
        let (client, server) = smc_pair(&self.0.config(UpgradePolicy::Require));
        assert!(client.transport().is_loopback_ism(), "{}", client.transport());
        // Its client's switch may still be on the way.
        assert!(server.upgrade().is_loopback_ism(), "{}", server.transport());
        (client, server)
    }
}
