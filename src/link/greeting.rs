//! How a connection to an endpoint begins: with LINK, which makes a link of it, or with a QUERY,
//! which is answered. Neither comes with descriptors: nobody can send any before we know him.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use crate::ism::budget::{self, Need};
use crate::ism::sys;
use crate::link::aside::{self, Fed};
use crate::link::endpoint::Endpoint;
use crate::link::lack::{no_link, reason_of};
use crate::link::message::{LONGEST, Message, Subject};
use crate::link::reactor::{Place, Places, Watched, when_readable};
use crate::shield::guarded;
use crate::sync::Arc;
use crate::transport::FallbackReason;

/// Connections to an endpoint's socket that have not said what they want yet.
const MOST_GREETINGS: usize = 256;
/// For how long a connection may say nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts to accept when one failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Takes what connects to the endpoint's socket.
pub(crate) async fn accept(listener: Arc<dyn Watched>, endpoint: Arc<Endpoint>) {
    let places = Places::new(MOST_GREETINGS);
    loop {
        let place = poll_fn(|cx| places.poll_take(cx)).await;
        while aside::is_full() {
            endpoint.timers().sleep(PAUSE).await;
        }
        let accepted = when_readable(&*listener, || match sys::accept(listener.as_fd())? {
            Some(socket) => Ok(Fed::new(socket)),
            None => Err(io::ErrorKind::WouldBlock.into()),
        });
        let Ok(socket) = accepted.await else {
            // Out of descriptors, or a connection that went away: the next one may work in a while.
            endpoint.timers().sleep(PAUSE).await;
            continue;
        };
        let greeted = endpoint.clone();
        endpoint.spawn(async move {
            // Whose greeting panics has hung up, and nothing else has happened.
            if let Ok(Err(error)) = guarded(greet(socket, &greeted, place)).await {
                crate::trace::debug!("a connection to this endpoint ended early: {error}");
            }
        });
    }
}

async fn first_message(socket: &dyn Watched) -> io::Result<Message> {
    let mut buffer = [0; LONGEST];
    let received = when_readable(socket, || sys::recv(socket.as_fd(), &mut buffer, 0)).await?;
    if received.len == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Message::decode(&buffer[..received.len])
        .map_err(|malformed| io::Error::new(io::ErrorKind::InvalidData, malformed.to_string()))
}

/// Reads how a connection begins, and serves it.
async fn greet(socket: Fed<OwnedFd>, endpoint: &Arc<Endpoint>, place: Place) -> io::Result<()> {
    endpoint.check_user(socket.as_fd())?;
    // Many that come at once must not keep the application from accepting.
    budget::spare_the_last(socket.as_fd().as_raw_fd(), Need::Lasting).inspect_err(|_| {
        let _ = sys::send(socket.as_fd(), &no_link(FallbackReason::Descriptors).encode(), &[]);
    })?;
    let socket = Arc::new(socket.watch(endpoint.reactor())?);
    let first = endpoint.timers().timeout(PATIENCE, first_message(&*socket)).await;
    let first = first.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()));
    let first = first.inspect_err(|error| {
        let lack = reason_of(error, FallbackReason::LinkDown);
        if lack != FallbackReason::LinkDown {
            // No descriptor for one that came, for example: not the peer's fault, who is told.
            let _ = sys::send(socket.as_fd(), &no_link(lack).encode(), &[]);
        }
    })?;
    // What waits from here on is bounded elsewhere.
    drop(place);
    match first {
        Message::Query { subject } => {
            answer_query(socket, endpoint, subject).await;
            Ok(())
        }
        Message::Link => {
            endpoint.accept_link(socket)?.serve();
            Ok(())
        }
        // One that makes no link of it, for example. Neither do we.
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it begins with neither LINK nor QUERY")),
    }
}

/// The end of a query, also when nobody has come to answer it.
struct HangUp(Arc<dyn Watched>);

impl Drop for HangUp {
    fn drop(&mut self) {
        let _ = sys::shutdown_socket(self.0.as_fd());
    }
}

/// Answers when the stream is there, now or later; until then the peer may hang up.
async fn answer_query(socket: Arc<dyn Watched>, endpoint: &Arc<Endpoint>, subject: Subject) {
    let answering = HangUp(socket.clone());
    let waits = endpoint.on_query(subject, move |here| {
        if here {
            let _ = sys::send(answering.0.as_fd(), &Message::Answer.encode(), &[]);
        }
        drop(answering);
    });
    if let Some(entry) = waits {
        let mut buffer = [0; LONGEST];
        // Nothing more is expected than the end, from either side.
        let _ = when_readable(&*socket, || sys::recv(socket.as_fd(), &mut buffer, 0)).await;
        endpoint.forget_query(entry);
    }
}
