//! The task of one link: it takes what comes, sends what waits, and ends the link when that is
//! over.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use crate::ism::sys;
use crate::link::Link;
use crate::link::life::Heard;
use crate::link::message::LONGEST;
use crate::link::outbox::{AGAIN, Flushed};
use crate::link::reactor::{Interest, Reactor, Watched};
use crate::link::stream::Death;
use crate::link::timer::Sleep;
use crate::link::turns::Turn;
use crate::shield::guarded;
use crate::sync::Arc;

/// Serves a link until it dies.
pub(super) async fn run(link: Arc<Link>, reactor: Arc<dyn Reactor>) {
    // If this task is dropped, then with its runtime.
    let _end = Buried(link.clone(), Death::Runtime);
    let mut buffer = [0; LONGEST];
    // One that has ended has ended the link.
    let Some(endpoint) = link.endpoint().upgrade() else { return };
    let timers = endpoint.timers().clone();
    let mut patience = Some(timers.sleep(endpoint.patience()));
    drop(endpoint);
    let mut rest = None::<Sleep>;
    let mut again = None::<Sleep>;
    let death = guarded(poll_fn(|cx| {
        let socket = link.watched();
        link.watch_death(cx.waker());
        if link.peer_endpoint().is_some() {
            patience = None;
        }
        let over = |patience: &mut Sleep| Pin::new(&mut *patience).poll(cx).is_ready();
        if let Some(patience) = patience.take_if(over) {
            if !patience.was_cut_short() {
                return Poll::Ready(link.was_not_greeted());
            }
        }
        loop {
            if let Some(death) = link.death() {
                return Poll::Ready(death);
            }
            match link.flush(cx.waker()) {
                Ok(Flushed::All) => again = None,
                Ok(Flushed::NoMemory) => {
                    let waiting = again.get_or_insert_with(|| timers.sleep(AGAIN));
                    if Pin::new(&mut *waiting).poll(cx).is_ready() {
                        let has_ended = waiting.was_cut_short();
                        again = None;
                        if !has_ended {
                            continue;
                        }
                    }
                }
                Ok(Flushed::SocketFull) => {
                    if let Poll::Ready(Ok(())) = poll_writable(socket, cx) {
                        continue;
                    }
                }
                Err(death) => return Poll::Ready(death),
            }
            if link.offer_those_that_wait() {
                reactor.poll_again(cx);
            }
            // The peer has had its part of the time: what it says stays where it is for a while.
            if let Some(resting) = &mut rest {
                ready!(Pin::new(resting).poll(cx));
                rest = None;
            }
            if let Some(pause) = link.taken.pause(&*reactor) {
                let resting = rest.insert(timers.sleep(pause));
                if !resting.was_cut_short() {
                    continue;
                }
            }
            let Ok(()) = ready!(socket.poll_ready(Interest::Read, cx)) else {
                return Poll::Ready(Death::Runtime);
            };
            let mut death = None;
            let mut heard = Heard::Empty;
            let (turn, mut messages) = (Turn::begin(&*reactor), 0);
            // What is of use is bounded by its number alone: where everything is slow, others would
            // have to have their turn after each message of many upgrades.
            let mut is_last = || {
                messages += 1;
                link.were_in_vain(messages) > 1 && turn.is_over(&*reactor)
            };
            let most = reactor.messages_per_turn();
            let _ =
                socket.attempt(Interest::Read, &mut || match link.receive(&mut buffer, most, &mut is_last) {
                    Ok(Heard::Empty) => Err(io::ErrorKind::WouldBlock.into()),
                    Ok(other) => {
                        heard = other;
                        Ok(())
                    }
                    Err(cause) => {
                        death = Some(cause);
                        Ok(())
                    }
                });
            // The one that ends the link is no use.
            messages += u32::from(death.is_some());
            let in_vain = link.were_in_vain(messages);
            link.forget_useful(messages - in_vain);
            if in_vain > 0 {
                let (time, now) = turn.taken(&*reactor);
                link.taken.spent((time * in_vain / messages, now));
            }
            if let Some(death) = death {
                return Poll::Ready(death);
            }
            link.look_after_messages();
            match heard {
                Heard::Empty => {}
                Heard::More => {
                    reactor.poll_again(cx);
                    return Poll::Pending;
                }
                // Readable still, which is kept.
                Heard::TakesAside => return Poll::Pending,
            }
        }
    }))
    .await;
    // What ends with the link is work for its peer, too.
    let turn = Turn::begin(&*reactor);
    link.bury(death.unwrap_or(Death::Failed));
    link.taken.spent(turn.taken(&*reactor));
}

/// `Ready` when the queue is worth another try: the readiness was stale or new.
fn poll_writable(socket: &dyn Watched, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    ready!(socket.poll_ready(Interest::Write, cx))?;
    // The socket was full a moment ago. If it still is, the readiness was older than that: clear
    // it.
    let _ = socket.attempt(Interest::Write, &mut || {
        if sys::is_ready(socket.as_fd(), false, true)? {
            Ok(())
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    });
    socket.poll_ready(Interest::Write, cx)
}

/// A link that nobody serves any more dies, and of that.
struct Buried(Arc<Link>, Death);

impl Drop for Buried {
    fn drop(&mut self) {
        self.0.bury(self.1);
    }
}
