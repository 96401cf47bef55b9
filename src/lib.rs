//! TCP streams for tokio that move onto shared memory when both ends are on one host.
//!
//! [`SmcStream`], [`SmcListener`], [`SmcSocket`] are drop-ins for tokio's `TcpStream`,
//! `TcpListener`, `TcpSocket`; under the names of `tokio::net`, with all else that is there, they
//! are in [`net`]. A connection starts as plain TCP. When its other end turns out to be on the same
//! host and to use this crate too, SMC-D's CLC handshake runs between the two, and the bytes move
//! to shared-memory rings (DMBs) that eventfds wake. Otherwise it stays TCP, and
//! [`SmcStream::transport`] says why.
//!
#![cfg_attr(feature = "tokio", doc = "```")]
#![cfg_attr(not(feature = "tokio"), doc = "```text")]
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use tokio_smc::net::{TcpListener, TcpStream};
//!
//! # #[tokio::main] async fn main() -> std::io::Result<()> {
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let mut client = TcpStream::connect(listener.local_addr()?).await?;
//! let (mut server, _) = listener.accept().await?;
//! client.write_all(b"ping").await?;
//! server.read_exact(&mut [0; 4]).await?;
//! println!("{}", client.transport());
//! # Ok(()) }
//! ```
//!
//! What a process has done with all its streams tell [`streams`] and [`stats()`].
//!
//! # Features
//!
//! On by default: `tokio`, the front end that is described here. Off by default: `hyper-util` (a
//! connector for hyper-util's client), `axum08` (`axum::serve` and connect info), `tonic014`
//! (servers and channels of tonic), `futures-io` (`SmcStream::compat`), `tracing` (events), `full`
//! (all of them). `blocking` is another front end, for programs without a runtime, in place of
//! `std::net`; with `default-features = false` it needs no tokio.
#![cfg_attr(docsrs, feature(doc_cfg))]
// The engine is complete, whoever uses it: the front end for tokio has a use for (nearly) all of
// it.
#![cfg_attr(
    not(feature = "tokio"),
    allow(
        dead_code,
        unused_imports,
        unused_macros,
        reason = "without that front end some of the engine is not called"
    )
)]

pub(crate) mod sync;

// Complete as a codec, so that fuzz targets can try all of it; a connection uses less than that.
#[cfg_attr(
    not(feature = "unstable-engine"),
    allow(dead_code, unreachable_pub, unused_imports, reason = "used and reached through `engine`")
)]
mod clc;
pub(crate) mod ism;

#[cfg(all(not(loom), feature = "axum08"))]
mod axum;
#[cfg(all(not(loom), feature = "blocking"))]
#[cfg_attr(docsrs, doc(cfg(feature = "blocking")))]
pub mod blocking;
#[cfg(not(loom))]
mod config;
#[cfg(not(loom))]
mod conn;
/// Of what needs a system, what loom can play: here and in `link`.
#[cfg(loom)]
mod conn {
    pub(crate) mod waiters;
}
#[cfg(all(not(loom), feature = "unstable-engine"))]
#[doc(hidden)]
pub mod engine;
#[cfg(not(loom))]
mod error;
#[cfg(all(not(loom), feature = "futures-io"))]
mod futures;
#[cfg(all(not(loom), feature = "hyper-util"))]
#[cfg_attr(docsrs, doc(cfg(feature = "hyper-util")))]
pub mod hyper;
#[cfg(all(not(loom), feature = "tokio"))]
mod info;
#[cfg(not(loom))]
mod link;
#[cfg(loom)]
mod link {
    mod given;
    #[cfg(test)]
    mod models;
    mod numbers;
}
#[cfg(all(not(loom), feature = "tokio"))]
mod listener;
#[cfg(all(not(loom), feature = "tokio"))]
pub mod net;
#[cfg(not(loom))]
mod peer;
#[cfg(not(loom))]
mod rt;
mod shield;
#[cfg(all(not(loom), feature = "tokio"))]
mod socket;
#[cfg(not(loom))]
mod stats;
#[cfg(all(not(loom), feature = "tokio"))]
mod stream;
#[cfg(all(not(loom), feature = "tonic014"))]
mod tonic;
mod trace;
#[cfg(not(loom))]
mod transport;

pub use clc::{Diagnosis, Gid};
#[cfg(not(loom))]
pub use config::{Config, DEFAULT_DMB_SIZE, UnknownPolicy, UpgradePolicy};
#[cfg(not(loom))]
pub use error::{PeerMisbehaved, SmcError};
#[cfg(all(not(loom), feature = "tokio"))]
pub use info::SmcInfo;
#[cfg(not(loom))]
pub use link::roster::{stats, streams};
#[cfg(all(not(loom), feature = "tokio"))]
pub use listener::{SmcListener, SmcListenerStream};
#[cfg(not(loom))]
pub use peer::{PeerPolicy, UnknownPeers};
#[cfg(all(not(loom), feature = "tokio"))]
pub use socket::SmcSocket;
#[cfg(not(loom))]
pub use stats::{Stats, StreamRole, StreamStats};
#[cfg(all(not(loom), feature = "tokio"))]
pub use stream::{IntoStdError, SharedBytes, SmcStream, TransportWatch};
#[cfg(all(not(loom), feature = "tonic014"))]
#[cfg_attr(docsrs, doc(cfg(feature = "tonic014")))]
pub use tonic::{SmcIncoming, SmcStreamWithInfo};
#[cfg(not(loom))]
pub use transport::{Counters, FallbackReason, LoopbackIsm, Transport, UCred};

/// The examples of the README.
#[cfg(all(doctest, not(loom), feature = "tokio"))]
#[doc = include_str!("../README.md")]
struct Readme;
