//! The search for the endpoint that holds the other end, where several listen on the peer's port.

use std::future::{Future, poll_fn};
use std::os::fd::AsFd;
use std::sync::Weak;
use std::task::{Context, Poll};

use crate::ism::device::EndpointId;
use crate::ism::sys;
use crate::link::aside::{self, ControlSocket, Fed};
use crate::link::endpoint::Endpoint;
use crate::link::lack::{reason_of, silence_of, why_no_link};
use crate::link::message::{LONGEST, Message, Subject};
use crate::link::reactor::{Interest, Watched, poll_attempt};
use crate::link::stream::LinkedStream;
use crate::shield::{Panicked, guarded};
use crate::sync::Arc;
use crate::transport::FallbackReason;

/// The candidates that were asked and have not answered yet.
struct Asked {
    waiting: Vec<(EndpointId, ControlSocket)>,
    /// Why the stream stays on TCP if nobody says yes.
    reason: FallbackReason,
}

impl Asked {
    fn ask(endpoint: &Endpoint, subject: Subject, candidates: Vec<EndpointId>) -> Self {
        let question = Message::Query { subject }.encode();
        let mut asked = Asked { waiting: Vec::new(), reason: FallbackReason::NoSmcListener };
        for candidate in candidates {
            if aside::is_full() {
                asked.reason = FallbackReason::Limit;
                break;
            }
            // Nobody sends us descriptors there: an answer has none.
            let socket = match endpoint.connect(candidate) {
                Ok(socket) => Fed::new(socket),
                Err(FallbackReason::NoSmcListener) => continue,
                Err(reason) => {
                    asked.reason = reason;
                    continue;
                }
            };
            let socket = match socket.watch(endpoint.reactor()) {
                Ok(socket) => socket,
                Err(error) => {
                    asked.reason = reason_of(&error, FallbackReason::LinkDown);
                    continue;
                }
            };
            match sys::send(socket.as_fd(), &question, &[]) {
                Ok(()) => asked.waiting.push((candidate, socket)),
                Err(_) => asked.said_no(&socket),
            }
        }
        asked
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
            match poll_attempt(socket, Interest::Read, cx, || sys::recv(socket.as_fd(), &mut buffer, 0)) {
                Poll::Pending => at += 1,
                Poll::Ready(Ok(received))
                    if Message::decode(&buffer[..received.len]) == Ok(Message::Answer) =>
                {
                    return Poll::Ready(Ok(*candidate));
                }
                Poll::Ready(answer) => {
                    let (_, socket) = self.waiting.swap_remove(at);
                    match answer.ok().and_then(|received| why_no_link(&buffer[..received.len])) {
                        Some(reason) => self.reason = reason,
                        None => self.said_no(&socket),
                    }
                }
            }
        }
        if self.waiting.is_empty() { Poll::Ready(Err(self.reason)) } else { Poll::Pending }
    }
}

/// Asks the candidates which one holds the other end of the client's connection, and offers to the
/// first that does.
pub(super) async fn run(
    endpoint: Arc<Endpoint>,
    stream: Weak<dyn LinkedStream>,
    subject: Subject,
    candidates: Vec<EndpointId>,
) {
    let mut asked = Asked::ask(&endpoint, subject, candidates);
    let owner = poll_fn(|cx| asked.poll_owner(cx)).await;
    let Some(stream) = stream.upgrade() else { return };
    match owner.and_then(|owner| endpoint.link_to(owner)) {
        Ok(link) => link.offer(stream),
        Err(reason) => stream.stay_on_tcp(reason),
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
