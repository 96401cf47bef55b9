//! The search for the endpoint that holds the other end, where several listen on the peer's port.

use std::future::{Future, poll_fn};
use std::os::fd::AsFd;
use std::sync::Weak;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::ism::device::EndpointId;
use crate::ism::sys;
use crate::link::endpoint::Endpoint;
use crate::link::lack::{reason_of, silence_of, why_no_link};
use crate::link::message::{LONGEST, Message, Subject};
use crate::link::reactor::{Interest, Watched, poll_attempt};
use crate::link::stream::LinkedStream;
use crate::peer::PeerPolicy;
use crate::shield::{Panicked, guarded};
use crate::sync::Arc;
use crate::transport::FallbackReason;

/// For how long one that says yes may leave the offer unanswered while others could be asked.
const TAKE_WITHIN: Duration = Duration::from_secs(5);

/// The candidates that were asked and have not answered yet.
pub(crate) struct Asked {
    waiting: Vec<(EndpointId, Arc<dyn Watched>)>,
    /// Why the stream stays on TCP if nobody says yes.
    reason: FallbackReason,
}

impl Asked {
    /// Asks those that `policy` admits: what others answer counts for nothing.
    pub(super) fn ask(
        endpoint: &Endpoint,
        policy: &PeerPolicy,
        subject: Subject,
        candidates: Vec<EndpointId>,
    ) -> Self {
        let question = Message::Query { subject }.encode();
        let mut asked = Asked { waiting: Vec::new(), reason: FallbackReason::NoSmcListener };
        for candidate in candidates {
            let socket = match endpoint.connect(candidate) {
                Ok(socket) => socket,
                Err(FallbackReason::NoSmcListener) => continue,
                Err(reason) => {
                    asked.reason = reason;
                    continue;
                }
            };
            if !sys::peer_cred(socket.as_fd()).is_ok_and(|cred| policy.admits(&cred)) {
                asked.reason = FallbackReason::PeerPolicy;
                continue;
            }
            let socket = match endpoint.reactor().watch(socket) {
                Ok(socket) => socket,
                Err(error) => {
                    asked.reason = reason_of(&error, FallbackReason::LinkDown);
                    continue;
                }
            };
            match sys::send(socket.as_fd(), &question, &[]) {
                Ok(()) => asked.waiting.push((candidate, socket)),
                Err(_) => asked.said_no(&*socket),
            }
        }
        asked
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

    /// The first one that says yes, or why there is none.
    fn poll_owner(&mut self, cx: &mut Context<'_>) -> Poll<Result<EndpointId, FallbackReason>> {
        let mut buffer = [0; LONGEST];
        let mut at = 0;
        while let Some((candidate, socket)) = self.waiting.get(at) {
            match poll_attempt(&**socket, Interest::Read, cx, || sys::recv(socket.as_fd(), &mut buffer, 0)) {
                Poll::Pending => at += 1,
                Poll::Ready(Ok(received))
                    if Message::decode(&buffer[..received.len]) == Ok(Message::Answer) =>
                {
                    let candidate = *candidate;
                    self.waiting.swap_remove(at);
                    return Poll::Ready(Ok(candidate));
                }
                Poll::Ready(answer) => {
                    let (_, socket) = self.waiting.swap_remove(at);
                    match answer.ok().and_then(|received| why_no_link(&buffer[..received.len])) {
                        Some(reason) => self.reason = reason,
                        None => self.said_no(&*socket),
                    }
                }
            }
        }
        if self.waiting.is_empty() { Poll::Ready(Err(self.reason)) } else { Poll::Pending }
    }
}

/// Looks for the one of the candidates that holds the other end of the client's connection, and
/// offers to the first that says so. Saying is not proving: what comes of the offer decides whether
/// the search goes on.
pub(super) async fn run(endpoint: Arc<Endpoint>, stream: Weak<dyn LinkedStream>, mut asked: Asked) {
    loop {
        let owner = poll_fn(|cx| asked.poll_owner(cx)).await;
        let Some(wants) = stream.upgrade() else { return };
        match owner.and_then(|owner| endpoint.link_to(owner)) {
            Ok(link) => {
                if !asked.waiting.is_empty() {
                    // Who says yes and then nothing shall not be the last one that was asked.
                    let (link, stream) = (Arc::downgrade(&link), stream.clone());
                    endpoint.run_after(TAKE_WITHIN, move || {
                        if let Some(link) = link.upgrade() {
                            link.offer_is_overdue(&stream);
                        }
                    });
                }
                let rest = (!asked.waiting.is_empty()).then_some(asked);
                return link.offer(wants, rest);
            }
            Err(reason) if asked.waiting.is_empty() => return wants.stay_on_tcp(reason),
            Err(reason) => asked.reason = reason,
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
