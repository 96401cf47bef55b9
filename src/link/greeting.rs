//! How a connection to an endpoint begins: with LINK, which makes a link of it, or with a QUERY,
//! which is answered. Neither comes with descriptors: nobody can send any before we know him.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Weak;
use std::time::Duration;

use crate::ism::budget::{self, Need};
use crate::ism::sys::{self, PeerCred};
use crate::link::aside::{self, ControlSocket, Fed};
use crate::link::endpoint::Endpoint;
use crate::link::lack::{no_link, reason_of};
use crate::link::message::{LONGEST, Message, Subject};
use crate::link::reactor::{Watched, when_readable, yield_now};
use crate::link::shares::{Holder, Holders, Most};
use crate::link::turns::{Taken, Turn};
use crate::shield::{Panicked, guarded, shielded};
use crate::sync::Arc;
use crate::transport::FallbackReason;

/// Connections to an endpoint's socket that have not said what they want yet.
const MOST_GREETINGS: usize = 256;
/// Queries that wait for their stream; each takes a descriptor.
const MOST_QUERIES: usize = 1024;
/// For how long a connection may say nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// Taken in a row at most, before others have a turn.
const AT_ONCE: u32 = 16;
/// Between two attempts to accept when one failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Takes what connects to the endpoint's socket.
pub(crate) async fn accept(mut listener: Arc<dyn Watched>, endpoint: Arc<Endpoint>) {
    let (mut turn, mut taken) = (Turn::begin(endpoint.reactor()), 0);
    loop {
        if taken == AT_ONCE || taken > 1 && turn.is_over(endpoint.reactor()) {
            yield_now(endpoint.reactor()).await;
            taken = 0;
        }
        while aside::is_full() {
            listener = unwatched(listener, PAUSE, &endpoint).await;
        }
        let mut visit = turn;
        let accepted = when_readable(&*listener, || {
            visit = Turn::begin(endpoint.reactor());
            match sys::accept(listener.as_fd())? {
                Some(socket) => Ok(Fed::new(socket)),
                None => Err(io::ErrorKind::WouldBlock.into()),
            }
        });
        let Ok(socket) = accepted.await else {
            // Out of descriptors, or a connection that went away: the next one may work in a while.
            listener = unwatched(listener, PAUSE, &endpoint).await;
            continue;
        };
        if taken == 0 {
            turn = visit;
        }
        taken += 1;
        let greeted = endpoint.clone();
        // Here, not in the task: of many that come at once few are held at a time.
        let guest = match shielded(|| admit(socket, &greeted)) {
            Ok(Ok(guest)) => guest,
            Ok(Err(error)) => {
                crate::trace::debug!("a connection to this endpoint was turned away: {error}");
                // Whoever comes without a pause costs a part of our time, not all of it.
                if let Some(pause) = endpoint.turns().turned_away(visit.taken(endpoint.reactor())) {
                    listener = unwatched(listener, pause, &endpoint).await;
                    taken = 0;
                }
                continue;
            }
            Err(Panicked) => continue,
        };
        guest.taken.spent(visit.taken(endpoint.reactor()));
        endpoint.spawn(async move {
            let greeting = async { greet(guest, &greeted).await };
            // Whose greeting panics has hung up, and nothing else has happened.
            if let Ok(Err(error)) = guarded(greeting).await {
                crate::trace::debug!("a connection to this endpoint ended early: {error}");
            }
        });
    }
}

/// Waits so long, and hears of nobody who comes meanwhile. Whoever did would wake this thread each
/// time, and to where he runs himself: it would wait there for the end of his time slice, with all
/// its clients, while other CPUs are idle.
async fn unwatched(listener: Arc<dyn Watched>, pause: Duration, endpoint: &Endpoint) -> Arc<dyn Watched> {
    // Where a queue may hold the descriptors of strangers the socket can not be let go of: who does
    // so ends it first.
    let kept =
        if sys::refuses_rights(listener.as_fd()) { listener.as_fd().try_clone_to_owned().ok() } else { None };
    let Some(kept) = kept else {
        rest(pause, endpoint).await;
        return listener;
    };
    drop(listener);
    rest(pause, endpoint).await;
    loop {
        match kept.try_clone().and_then(|fd| Fed::new(fd).watch(endpoint.reactor())) {
            Ok(watched) => return Arc::new(watched),
            Err(_) => rest(PAUSE, endpoint).await,
        }
    }
}

/// Waits so long. With the timer ends the endpoint, and this task: until then it does nothing more.
async fn rest(pause: Duration, endpoint: &Endpoint) {
    endpoint.timers().sleep(pause).await;
    if endpoint.timers().have_ended() {
        std::future::pending::<()>().await;
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

/// A connection of a user that is heard, while it has not said what it wants.
struct Guest {
    socket: Arc<ControlSocket>,
    peer: PeerCred,
    taken: Arc<Taken>,
    place: Holder<Weak<ControlSocket>>,
}

/// Lets a connection say what it wants, if there is a place for it.
fn admit(socket: Fed<OwnedFd>, endpoint: &Arc<Endpoint>) -> io::Result<Guest> {
    let peer = endpoint.check_user(socket.as_fd())?;
    if !endpoint.pace().admits(&peer, sys::monotonic()) {
        let _ = sys::send(socket.as_fd(), &no_link(FallbackReason::Limit).encode(), &[]);
        return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "its process comes too often"));
    }
    // Many that come at once must not keep the application from accepting.
    budget::spare_the_last(socket.as_fd().as_raw_fd(), Need::Lasting).inspect_err(|_| {
        let _ = sys::send(socket.as_fd(), &no_link(FallbackReason::Descriptors).encode(), &[]);
    })?;
    let socket = Arc::new(socket.watch(endpoint.reactor())?);
    let place = place_among(endpoint.greetings(), MOST_GREETINGS, peer, &socket)?;
    let taken = endpoint.turns().of(&peer, endpoint.reactor().clock());
    Ok(Guest { socket, peer, taken, place })
}

/// Reads how a connection begins, and serves it.
async fn greet(guest: Guest, endpoint: &Arc<Endpoint>) -> io::Result<()> {
    let Guest { socket, peer, taken, place } = guest;
    let first = endpoint.timers().timeout(PATIENCE, first_message(&*socket)).await;
    let first = first.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()));
    let first = first.inspect_err(|error| {
        let lack = reason_of(error, FallbackReason::LinkDown);
        if lack != FallbackReason::LinkDown {
            // No descriptor for one that came, for example: not the peer's fault, who is told.
            let _ = sys::send(socket.as_fd(), &no_link(lack).encode(), &[]);
        }
    })?;
    // Whose process has had its part of the time is served later; with the timer ends the endpoint.
    while let Some(pause) = taken.pause(endpoint.reactor()) {
        if endpoint.timers().have_ended() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        endpoint.timers().sleep(pause).await;
    }
    let turn = Turn::begin(endpoint.reactor());
    let done = || taken.spent(turn.taken(endpoint.reactor()));
    // What waits from here on is bounded elsewhere.
    drop(place);
    match first {
        Message::Query { subject } => answer_query(socket, endpoint, subject, peer, done).await,
        Message::Link => {
            let made = endpoint.accept_link(socket);
            done();
            made?.serve();
            Ok(())
        }
        // One that makes no link of it, for example. Neither do we.
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it begins with neither LINK nor QUERY")),
    }
}

/// The end of a query, also when nobody has come to answer it.
struct HangUp(Arc<ControlSocket>);

impl Drop for HangUp {
    fn drop(&mut self) {
        let _ = sys::shutdown_socket(self.0.as_fd());
    }
}

/// Gives a connection a place among those of its kind. Where all are taken, the latest one of the
/// process that has the most of them ends instead, or this one.
fn place_among(
    holders: &Arc<Holders<Weak<ControlSocket>>>,
    most: usize,
    peer: PeerCred,
    socket: &Arc<ControlSocket>,
) -> io::Result<Holder<Weak<ControlSocket>>> {
    let end = |socket: &ControlSocket| {
        let _ = sys::send(socket.as_fd(), &no_link(FallbackReason::Limit).encode(), &[]);
        let _ = sys::shutdown_socket(socket.as_fd());
    };
    let taken = holders.take(Most::of(most), peer, |_| true).ok();
    if let Some(loser) = taken.as_ref().and_then(|(_, loser)| loser.as_ref()?.upgrade()) {
        end(&loser);
    }
    let place = taken.map(|(place, _)| place).filter(|place| place.is(Arc::downgrade(socket)));
    place.ok_or_else(|| {
        end(socket);
        io::Error::new(io::ErrorKind::QuotaExceeded, "others have to have its place")
    })
}

/// Answers when the stream is there, now or later; until then the peer may hang up. Is `done` once
/// that is all that there is to do at the moment.
async fn answer_query(
    socket: Arc<ControlSocket>,
    endpoint: &Arc<Endpoint>,
    subject: Subject,
    peer: PeerCred,
    done: impl FnOnce(),
) -> io::Result<()> {
    let _place = place_among(endpoint.queries(), budget::most_for_peers(MOST_QUERIES), peer, &socket)?;
    let answering = HangUp(socket.clone());
    let waits = endpoint.on_query(subject, peer, move |here| {
        if here {
            let _ = sys::send(answering.0.as_fd(), &Message::Answer.encode(), &[]);
        }
        drop(answering);
    });
    done();
    if let Some(entry) = waits {
        let mut buffer = [0; LONGEST];
        // Nothing more is expected than the end, from either side. Whoever asks is gone by then.
        let end = when_readable(&*socket, || sys::recv(socket.as_fd(), &mut buffer, 0));
        let _ = endpoint.timers().timeout(endpoint.patience().saturating_mul(2), end).await;
        endpoint.forget_query(entry);
    }
    Ok(())
}
