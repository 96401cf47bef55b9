//! The three transports, and a stream that is any of them.

use std::io;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, UnixStream};
use tokio_smc::{SmcStream, TransportWatch};
use tokio_util::either::Either;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    Tcp,
    Uds,
    Smc,
}

impl Transport {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Uds => "uds",
            Transport::Smc => "smc",
        }
    }
}

/// The same choice of implementations for every transport.
pub(crate) type Stream = Either<SmcStream, Either<TcpStream, UnixStream>>;

/// Where one service listens.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Addresses {
    pub(crate) tcp: String,
    pub(crate) uds: String,
    pub(crate) smc: String,
}

impl Addresses {
    pub(crate) async fn connect(&self, transport: Transport) -> io::Result<(Stream, Option<TransportWatch>)> {
        match transport {
            Transport::Tcp => {
                let stream = TcpStream::connect(&self.tcp).await?;
                stream.set_nodelay(true)?;
                Ok((Either::Right(Either::Left(stream)), None))
            }
            Transport::Uds => {
                // A leading NUL is how tokio spells an abstract name.
                let stream = UnixStream::connect(format!("\0{}", self.uds)).await?;
                Ok((Either::Right(Either::Right(stream)), None))
            }
            Transport::Smc => {
                let stream = SmcStream::connect(&self.smc).await?;
                stream.set_nodelay(true)?;
                let watch = stream.watch();
                Ok((Either::Left(stream), Some(watch)))
            }
        }
    }
}
