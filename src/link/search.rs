//! The search for the endpoint that holds the other end, where several listen on the peer's port.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Weak;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::ism::budget::{self, Need};
use crate::ism::device::EndpointId;
use crate::ism::sys;
use crate::link::aside::{self, ControlSocket, Fed};
use crate::link::endpoint::Endpoint;
use crate::link::lack::{reason_of, silence_of, why_no_link};
use crate::link::message::{Destination, LONGEST, Message, Subject};
use crate::link::reactor::{Interest, Place, Watched, poll_attempt, yield_now};
use crate::link::stream::LinkedStream;
use crate::peer::PeerPolicy;
use crate::shield::{Panicked, guarded};
use crate::sync::Arc;
use crate::transport::FallbackReason;

/// Queries of an endpoint that wait for an answer; each takes a descriptor, at both ends.
const MOST_ASKED: usize = 64;
/// Candidates that one search asks at a time.
const AT_A_TIME: usize = 16;
/// How long those have, before others are asked that wait for their turn.
const TURN: Duration = Duration::from_secs(1);
/// Before a search looks again for a free place to ask from.
const PAUSE: Duration = Duration::from_millis(50);
/// For how long one that says yes may leave the offer unanswered while others could be asked.
const TAKE_WITHIN: Duration = Duration::from_secs(5);

/// Places of an endpoint to ask from.
pub(crate) fn most_asked() -> usize {
    budget::most_for_peers(MOST_ASKED)
}

/// A candidate that was asked and has not answered yet.
struct Asked {
    candidate: EndpointId,
    socket: ControlSocket,
    _place: Place,
}

/// Whether a search could ask whom it wanted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Left,
    /// All places of the endpoint are in use.
    Taken,
}

/// The candidates of a stream, but for those that were found already.
pub(crate) struct Search {
    question: Vec<u8>,
    destination: Destination,
    /// Of the stream: what others answer than those whom it admits counts for nothing.
    policy: PeerPolicy,
    /// Those whose turn is still to come.
    queue: VecDeque<EndpointId>,
    waiting: Vec<Asked>,
    /// How long it may go on asking.
    left: Duration,
    /// Why the stream stays on TCP if nobody says yes.
    reason: FallbackReason,
}

impl Search {
    pub(super) fn new(
        endpoint: &Endpoint,
        policy: PeerPolicy,
        subject: Subject,
        candidates: Vec<EndpointId>,
    ) -> Self {
        Search {
            question: Message::Query { subject }.encode(),
            destination: subject.destination,
            policy,
            queue: candidates.into(),
            waiting: Vec::new(),
            left: endpoint.patience(),
            reason: FallbackReason::NoSmcListener,
        }
    }

    /// Asks those who are next, as far as there are places; not more than some of them, of which
    /// many may be dead.
    fn ask(&mut self, endpoint: &Endpoint) -> Room {
        for _ in self.waiting.len()..AT_A_TIME {
            if self.queue.is_empty() {
                break;
            }
            if aside::is_full() {
                self.reason = FallbackReason::Limit;
                self.queue.clear();
                break;
            }
            let Some(place) = endpoint.asking().try_take() else { return Room::Taken };
            let Some(candidate) = self.queue.pop_front() else { break };
            let socket = match endpoint.connect(candidate) {
                Ok(socket) => Fed::new(socket),
                Err(FallbackReason::NoSmcListener) => continue,
                Err(reason) => {
                    self.reason = reason;
                    continue;
                }
            };
            if !sys::peer_cred(socket.as_fd()).is_ok_and(|cred| self.policy.admits(&cred, socket.as_fd())) {
                self.reason = FallbackReason::PeerPolicy;
                continue;
            }
            let watched = budget::spare_the_last(socket.as_fd().as_raw_fd(), Need::Lasting);
            let socket = match watched.and_then(|()| socket.watch(endpoint.reactor())) {
                Ok(socket) => socket,
                Err(error) => {
                    self.reason = reason_of(&error, FallbackReason::LinkDown);
                    continue;
                }
            };
            match sys::send(socket.as_fd(), &self.question, &[]) {
                Ok(()) => self.waiting.push(Asked { candidate, socket, _place: place }),
                Err(_) => self.said_no(&socket),
            }
        }
        Room::Left
    }

    /// Those who were silent have had their turn: it comes again after the others'.
    fn next_turn(&mut self) {
        if !self.queue.is_empty() {
            self.queue.extend(self.waiting.drain(..).map(|asked| asked.candidate));
        }
    }

    /// The one that was found could not be proved to be it: what is left, and why if nothing is.
    pub(super) fn after(mut self, reason: FallbackReason) -> Self {
        self.reason = reason;
        self
    }

    /// An endpoint says no. One of another user may only mean that it does not trust ours.
    fn said_no(&mut self, socket: &dyn Watched) {
        let silence = sys::peer_cred(socket.as_fd()).map(|cred| silence_of(&cred));
        if matches!(silence, Ok(FallbackReason::PeerPolicy)) {
            self.reason = FallbackReason::PeerPolicy;
        }
    }

    /// The first one that says yes; `None` once others can be asked, or nobody is left.
    fn poll_owner(&mut self, cx: &mut Context<'_>) -> Poll<Option<EndpointId>> {
        let mut buffer = [0; LONGEST];
        let (mut at, before) = (0, self.waiting.len());
        while let Some(Asked { candidate, socket, .. }) = self.waiting.get(at) {
            let mut hear = || match sys::recv(socket.as_fd(), &mut buffer, 0) {
                // Told once, when it has hung up without reading the question; why is still there.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    sys::recv(socket.as_fd(), &mut buffer, 0)
                }
                heard => heard,
            };
            match poll_attempt(socket, Interest::Read, cx, &mut hear) {
                Poll::Pending => at += 1,
                Poll::Ready(Ok(received))
                    if Message::decode(&buffer[..received.len]) == Ok(Message::Answer) =>
                {
                    let candidate = *candidate;
                    self.waiting.swap_remove(at);
                    return Poll::Ready(Some(candidate));
                }
                Poll::Ready(answer) => {
                    let Asked { socket, .. } = self.waiting.swap_remove(at);
                    match answer.ok().and_then(|received| why_no_link(&buffer[..received.len])) {
                        Some(reason) => self.reason = reason,
                        None => self.said_no(&socket),
                    }
                }
            }
        }
        let go_on = self.waiting.is_empty() || (self.waiting.len() < before && !self.queue.is_empty());
        if go_on { Poll::Ready(None) } else { Poll::Pending }
    }

    /// What is left while an offer stands, with none of the endpoint's places: who was asked is
    /// asked again.
    fn paused(mut self) -> Option<Self> {
        for asked in self.waiting.drain(..).rev() {
            self.queue.push_front(asked.candidate);
        }
        (!self.queue.is_empty()).then_some(self)
    }

    /// Who of the candidates says that it holds the other end, or why that is not known.
    async fn find(&mut self, endpoint: &Endpoint) -> Result<EndpointId, FallbackReason> {
        loop {
            let room = self.ask(endpoint);
            if self.waiting.is_empty() && self.queue.is_empty() {
                return Err(self.reason);
            }
            if self.left.is_zero() {
                return Err(FallbackReason::NoAnswer);
            }
            let asks_on = room == Room::Left && !self.queue.is_empty() && self.waiting.len() < AT_A_TIME;
            if !self.waiting.is_empty() && !asks_on {
                let wait = if self.queue.is_empty() { self.left } else { TURN.min(self.left) };
                match endpoint.timers().timeout(wait, poll_fn(|cx| self.poll_owner(cx))).await {
                    Some(Some(owner)) => return Ok(owner),
                    Some(None) => {}
                    None => {
                        self.left -= wait;
                        self.next_turn();
                    }
                }
            } else if room == Room::Taken {
                // By other searches, which end.
                let wait = PAUSE.min(self.left);
                endpoint.timers().sleep(wait).await;
                self.left -= wait;
            }
            // Others have a turn, too, however many candidates there are.
            yield_now(endpoint.reactor()).await;
        }
    }
}

/// Looks for the one of the candidates that holds the other end of the client's connection, and
/// offers to the first that says so. Saying is not proving: what comes of the offer decides whether
/// the search goes on.
///
/// Some at a time are asked, from places that the endpoint has a number of: who is silent holds
/// none of them for long while others are to be asked, and none for ever.
pub(super) async fn run(endpoint: Arc<Endpoint>, stream: Weak<dyn LinkedStream>, mut search: Search) {
    loop {
        let owner = search.find(&endpoint).await;
        let Some(wants) = stream.upgrade() else { return };
        let owner = match owner {
            Ok(owner) => owner,
            Err(reason) => return endpoint.not_found(&wants, search.destination, reason),
        };
        match endpoint.link_to(owner) {
            Ok(link) => {
                let destination = search.destination;
                let rest = search.paused();
                if rest.is_some() {
                    // Who says yes and then nothing shall not be the last one that was asked.
                    let (link, stream) = (Arc::downgrade(&link), stream.clone());
                    endpoint.run_after(TAKE_WITHIN, move || {
                        if let Some(link) = link.upgrade() {
                            link.offer_is_overdue(&stream);
                        }
                    });
                }
                return link.offer(wants, destination, rest);
            }
            Err(reason) => search.reason = reason,
        }
    }
}

/// A stream that waits for a task of ours to find its peer. If nobody finds it, it stays on TCP.
pub(crate) struct Unsettled {
    stream: Option<Weak<dyn LinkedStream>>,
    reason: FallbackReason,
}

impl Unsettled {
    /// Does `task`, which ends with an offer or a reason for that stream.
    pub(crate) fn during<F>(stream: Weak<dyn LinkedStream>, task: F) -> impl Future<Output = ()> + Send
    where
        F: Future<Output = ()> + Send,
    {
        // Not done: its runtime drops it.
        let unsettled = Unsettled { stream: Some(stream), reason: FallbackReason::NoRuntime };
        async move {
            let mut unsettled = unsettled;
            match guarded(task).await {
                Ok(()) => unsettled.stream = None,
                Err(Panicked) => unsettled.reason = FallbackReason::Failed,
            }
        }
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take().and_then(|stream| stream.upgrade()) {
            stream.stay_on_tcp(self.reason);
        }
    }
}
