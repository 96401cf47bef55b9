//! Tasks that serve the endpoint's socket, its links and its searches.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::pin;
use std::sync::Weak;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;

use super::{Timers, watch};
use crate::ism::budget::{self, Need};
use crate::ism::device::EndpointId;
use crate::ism::sys::{self, Carried};
use crate::link::Link;
use crate::link::endpoint::{Endpoint, Watched, silence_of};
use crate::link::lack::{no_link, reason_of};
use crate::link::message::{LONGEST, Message, Subject};
use crate::link::stream::{Death, LinkedStream};
use crate::shield::guarded;
use crate::sync::Arc;
use crate::transport::FallbackReason;

/// Connections to an endpoint's socket that have not said what they want yet.
const MOST_GREETINGS: usize = 256;
/// For how long a connection may say nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts to accept when one failed.
const PAUSE: Duration = Duration::from_millis(100);
/// Descriptors the first message may carry.
const MOST_FDS: usize = 2;

/// Takes what connects to the endpoint's socket.
pub(super) async fn accept(listener: UnixStream, endpoint: Arc<Endpoint>, timers: Arc<Timers>) {
    let greetings = Arc::new(tokio::sync::Semaphore::new(MOST_GREETINGS));
    loop {
        let Ok(permit) = greetings.clone().acquire_owned().await else { return };
        let Ok(socket) = when_readable(&listener, |listener| match sys::accept(listener.as_fd())? {
            Some(socket) => Ok(socket),
            None => Err(io::ErrorKind::WouldBlock.into()),
        })
        .await
        else {
            // Out of descriptors, or a connection that went away: the next one may work in a while.
            timers.sleep(PAUSE).await;
            continue;
        };
        let (endpoint, timers) = (endpoint.clone(), timers.clone());
        tokio::spawn(async move {
            if let Err(error) = greet(socket, &endpoint, &timers, permit).await {
                crate::trace::debug!("a connection to this endpoint ended early: {error}");
            }
        });
    }
}

/// Waits until `attempt` gives something else than WouldBlock.
async fn when_readable<R>(
    io: &UnixStream,
    mut attempt: impl FnMut(&UnixStream) -> io::Result<R>,
) -> io::Result<R> {
    loop {
        io.readable().await?;
        match io.try_io(Interest::READABLE, || attempt(io)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            answer => return answer,
        }
    }
}

async fn first_message(io: &UnixStream) -> io::Result<(Message, Carried)> {
    let mut buffer = [0; LONGEST];
    let received = when_readable(io, |io| sys::recv(io.as_fd(), &mut buffer, MOST_FDS)).await?;
    if received.len == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let message = Message::decode(&buffer[..received.len])
        .map_err(|malformed| io::Error::new(io::ErrorKind::InvalidData, malformed.to_string()))?;
    Ok((message, received.carried))
}

/// Reads how a connection begins, and serves it.
async fn greet(
    socket: OwnedFd,
    endpoint: &Arc<Endpoint>,
    timers: &Arc<Timers>,
    permit: OwnedSemaphorePermit,
) -> io::Result<()> {
    endpoint.check_user(socket.as_fd())?;
    // Many that come at once must not keep the application from accepting.
    budget::spare_the_last(socket.as_raw_fd(), Need::Lasting).inspect_err(|_| {
        let _ = sys::send(socket.as_fd(), &no_link(FallbackReason::Descriptors).encode(), &[]);
    })?;
    let io = watch(socket)?;
    let first = {
        let mut patience = pin!(timers.sleep(PATIENCE));
        let mut first = pin!(first_message(&io));
        poll_fn(|cx| match first.as_mut().poll(cx) {
            Poll::Pending => patience.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
            answer => answer,
        })
        .await
    };
    let first = first.inspect_err(|error| {
        let lack = reason_of(error, FallbackReason::LinkDown);
        if lack != FallbackReason::LinkDown {
            // No descriptor for one that came, for example: not the peer's fault, who is told.
            let _ = sys::send(io.as_fd(), &no_link(lack).encode(), &[]);
        }
    })?;
    // What waits from here on is bounded elsewhere.
    drop(permit);
    match first {
        (Message::Query { subject }, _) => {
            answer_query(io, endpoint, subject).await;
            Ok(())
        }
        (hello, carried) => {
            let watched = watched(&Handle::current(), Arc::new(io));
            let undriven = Buried(Some(endpoint.accept_link(watched)?), Death::Failed);
            let Some(link) = &undriven.0 else { return Ok(()) };
            match link.deliver(hello, carried) {
                Ok(()) => link.serve(),
                Err(death) => link.bury(death),
            }
            undriven.disarm();
            Ok(())
        }
    }
}

/// The end of a query, also when nobody has come to answer it.
struct HangUp(Arc<UnixStream>);

impl Drop for HangUp {
    fn drop(&mut self) {
        let _ = sys::shutdown_socket(self.0.as_fd());
    }
}

/// Answers when the stream is there, now or later; until then the peer may hang up.
async fn answer_query(io: UnixStream, endpoint: &Arc<Endpoint>, subject: Subject) {
    let io = Arc::new(io);
    let answering = HangUp(io.clone());
    let waits = endpoint.on_query(subject, move |here| {
        if here {
            let _ = sys::send(answering.0.as_fd(), &Message::Answer.encode(), &[]);
        }
        drop(answering);
    });
    if let Some(entry) = waits {
        let mut buffer = [0; LONGEST];
        // Nothing more is expected than the end, from either side.
        let _ = when_readable(&io, |io| sys::recv(io.as_fd(), &mut buffer, 0)).await;
        endpoint.forget_query(entry);
    }
}

/// A link's socket, which is served by a task once the link is there.
pub(super) fn watched(handle: &Handle, socket: Arc<UnixStream>) -> Watched {
    let (handle, served) = (handle.clone(), socket.clone());
    let serve = move |link| {
        handle.spawn(drive(link, served));
    };
    Watched { socket, serve: Box::new(serve) }
}

/// Serves a link until it dies.
async fn drive(link: Arc<Link>, socket: Arc<UnixStream>) {
    // If this task is dropped, then with its runtime.
    let _end = Buried(Some(link.clone()), Death::Runtime);
    let mut buffer = [0; LONGEST];
    let death = guarded(poll_fn(|cx| {
        link.watch_death(cx.waker());
        loop {
            if let Some(death) = link.death() {
                return Poll::Ready(death);
            }
            match link.flush(cx.waker()) {
                Ok(true) => {}
                Ok(false) => {
                    if let Poll::Ready(Ok(())) = writable(&socket, cx) {
                        continue;
                    }
                }
                Err(death) => return Poll::Ready(death),
            }
            let Ok(()) = ready!(socket.poll_read_ready(cx)) else { return Poll::Ready(Death::Runtime) };
            let mut death = None;
            let mut more = false;
            let _ = socket.try_io(Interest::READABLE, || match link.receive(&mut buffer) {
                Ok(true) => Err(io::Error::from(io::ErrorKind::WouldBlock)),
                Ok(false) => {
                    more = true;
                    Ok(())
                }
                Err(cause) => {
                    death = Some(cause);
                    Ok(())
                }
            });
            if let Some(death) = death {
                return Poll::Ready(death);
            }
            if more {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }))
    .await;
    link.bury(death.unwrap_or(Death::Failed));
}

/// `Ready` when the queue is worth another try: the readiness was stale or new.
fn writable(socket: &UnixStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    ready!(socket.poll_write_ready(cx))?;
    // The socket was full a moment ago. If it still is, the readiness was older than that: clear it.
    let _ = socket.try_io(Interest::WRITABLE, || {
        if sys::is_ready(socket.as_fd(), false, true)? {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::WouldBlock))
        }
    });
    socket.poll_write_ready(cx)
}

/// A link that nobody serves any more dies, and of that.
struct Buried(Option<Arc<Link>>, Death);

impl Buried {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Buried {
    fn drop(&mut self) {
        if let Some(link) = self.0.take() {
            link.bury(self.1);
        }
    }
}

/// What the no of an endpoint makes of the reason so far: of another user it may only mean that ours is not trusted.
fn no_of(io: &UnixStream, reason: FallbackReason) -> FallbackReason {
    match sys::peer_cred(io.as_fd()).map(|cred| silence_of(cred.uid)) {
        Ok(FallbackReason::PeerPolicy) => FallbackReason::PeerPolicy,
        _ => reason,
    }
}

/// Asks the candidates which one holds the other end of the client's connection, and offers to the first that does.
pub(super) async fn query(
    endpoint: Arc<Endpoint>,
    stream: Weak<dyn LinkedStream>,
    subject: Subject,
    candidates: Vec<EndpointId>,
) {
    let question = Message::Query { subject }.encode();
    let mut asked: Vec<(EndpointId, UnixStream)> = Vec::new();
    // Why it stays on TCP if nobody says yes.
    let mut reason = FallbackReason::NoSmcListener;
    for candidate in candidates {
        let socket = match endpoint.connect(candidate) {
            Ok(socket) => socket,
            Err(FallbackReason::NoSmcListener) => continue,
            Err(why) => {
                reason = why;
                continue;
            }
        };
        let io = match watch(socket) {
            Ok(io) => io,
            Err(error) => {
                reason = reason_of(&error, FallbackReason::LinkDown);
                continue;
            }
        };
        match sys::send(io.as_fd(), &question, &[]) {
            Ok(()) => asked.push((candidate, io)),
            Err(_) => reason = no_of(&io, reason),
        }
    }
    let mut buffer = [0; LONGEST];
    let owner = std::future::poll_fn(|cx| {
        let mut at = 0;
        while at < asked.len() {
            let (candidate, io) = &asked[at];
            let answer = loop {
                match io.poll_read_ready(cx) {
                    Poll::Pending => break None,
                    Poll::Ready(Err(error)) => break Some(Err(error)),
                    Poll::Ready(Ok(())) => {}
                }
                match io.try_io(Interest::READABLE, || sys::recv(io.as_fd(), &mut buffer, 0)) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    answer => break Some(answer),
                }
            };
            match answer {
                None => at += 1,
                Some(Ok(received)) if Message::decode(&buffer[..received.len]) == Ok(Message::Answer) => {
                    return Poll::Ready(Some(*candidate));
                }
                Some(_) => {
                    let (_, io) = asked.swap_remove(at);
                    reason = no_of(&io, reason);
                }
            }
        }
        if asked.is_empty() { Poll::Ready(None) } else { Poll::Pending }
    })
    .await;
    let Some(stream) = stream.upgrade() else { return };
    match owner.ok_or(reason).and_then(|owner| endpoint.link_to(owner)) {
        Ok(link) => link.offer(stream),
        Err(reason) => stream.stay_on_tcp(reason),
    }
}
