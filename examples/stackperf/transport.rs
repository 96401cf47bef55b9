//! The transports, and a stream that is any of them.

use std::io;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tokio::io::DuplexStream;
use tokio::net::{TcpStream, UnixStream};
use tokio_smc::{SmcStream, TransportWatch};
use tokio_util::either::Either;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    Tcp,
    Uds,
    Smc,
    /// No transport at all: server and client in one process, over `tokio::io::duplex`. What it
    /// takes is what the stack itself takes.
    Duplex,
}

impl Transport {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Uds => "uds",
            Transport::Smc => "smc",
            Transport::Duplex => "duplex",
        }
    }
}

/// The same choice of implementations for every transport.
pub(crate) type Stream = Either<SmcStream, Either<TcpStream, Either<UnixStream, DuplexStream>>>;

/// Bytes that a duplex stream holds each way: enough for all that is under way at one time.
const DUPLEX_BYTES: usize = 256 << 10;

/// Where one service listens.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Addresses {
    pub(crate) tcp: String,
    pub(crate) uds: String,
    pub(crate) smc: String,
}

impl Addresses {
    /// A connection; `serve` serves the other end of one within this process.
    pub(crate) async fn connect(
        &self,
        transport: Transport,
        serve: impl FnOnce(DuplexStream),
    ) -> io::Result<(Stream, Option<TransportWatch>)> {
        match transport {
            Transport::Tcp => {
                let stream = TcpStream::connect(&self.tcp).await?;
                stream.set_nodelay(true)?;
                Ok((Either::Right(Either::Left(stream)), None))
            }
            Transport::Uds => {
                // A leading NUL is how tokio spells an abstract name.
                let stream = UnixStream::connect(format!("\0{}", self.uds)).await?;
                Ok((Either::Right(Either::Right(Either::Left(stream))), None))
            }
            Transport::Smc => {
                let stream = SmcStream::connect(&self.smc).await?;
                stream.set_nodelay(true)?;
                let watch = stream.watch();
                Ok((Either::Left(stream), Some(watch)))
            }
            Transport::Duplex => {
                let (here, there) = tokio::io::duplex(DUPLEX_BYTES);
                serve(there);
                Ok((Either::Right(Either::Right(Either::Right(here))), None))
            }
        }
    }
}
