//! The drop-in names: change `use tokio::net::…` to `use tokio_smc::net::…`.
//!
//! What is not TCP (`UdpSocket`, `UnixStream`, `lookup_host`, …) is tokio's own, so that the whole
//! line can be changed.

pub use tokio::net::*;

pub use crate::listener::SmcListener as TcpListener;
pub use crate::socket::SmcSocket as TcpSocket;
pub use crate::stream::SmcStream as TcpStream;

/// The halves of a stream, under the names of `tokio::net::tcp`.
pub mod tcp {
    pub use crate::stream::split::{ReadHalf, WriteHalf};
    pub use crate::stream::split_owned::{OwnedReadHalf, OwnedWriteHalf, ReuniteError};
}
