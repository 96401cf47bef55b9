//! The front end for programs without a runtime: [`SmcStream`] and [`SmcListener`] are used like
//! those of [`std::net`].
//!
//! A connection begins as plain TCP, and moves to shared memory as the ones of the `tokio` front
//! end do, whichever of the two the peer uses. What has to be done in the background does a thread
//! of this crate, one per process and device directory. It begins with the first listener or the
//! first upgrade, and ends with the last stream and listener that had a use for it; a program that
//! stays on plain TCP has no such thread, and no descriptor but its sockets. (To begin it costs
//! half a millisecond: a client that upgrades one connection after the other does well to keep one
//! of them open.)
//!
//! ```
//! use std::io::{Read, Write};
//! use tokio_smc::blocking::{SmcListener, SmcStream};
//!
//! # fn main() -> std::io::Result<()> {
//! let listener = SmcListener::bind("127.0.0.1:0")?;
//! let addr = listener.local_addr()?;
//! let server = std::thread::spawn(move || -> std::io::Result<()> {
//!     let (mut stream, _) = listener.accept()?;
//!     let mut question = [0; 4];
//!     stream.read_exact(&mut question)?;
//!     stream.write_all(&question)
//! });
//! let mut client = SmcStream::connect(addr)?;
//! client.write_all(b"ping")?;
//! let mut answer = [0; 4];
//! client.read_exact(&mut answer)?;
//! println!("{}", client.transport());
//! # assert_eq!(&answer, b"ping");
//! # server.join().unwrap()
//! # }
//! ```

mod bell;
mod listener;
mod looks;
mod options;
mod park;
mod ready;
mod stream;
mod upgrade;
mod wait;

pub use listener::{Incoming, SmcListener};
pub use ready::{Interest, ReadyEvent, ReadySet};
pub use stream::SmcStream;
