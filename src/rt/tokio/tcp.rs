//! tokio's TcpStream as the socket under a connection.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::pin;
use std::task::{Context, Poll, Waker, ready};

use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::SockRef;
use tokio::io::{Interest, ReadBuf, Ready};
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;

use super::apart::Apart;
use crate::conn::Tcp;
use crate::conn::close::Leftover;
use crate::ism::sys;

/// The socket of a stream. The stream itself holds it, too: its options and its descriptor need no
/// lock.
pub(crate) type TokioTcp = TcpStream;

/// Polls readiness as tokio's `ready()` does: it costs none of the task's budget and answers when
/// that is spent.
///
/// Everything here is called under the lock of a direction, where tokio must not find the budget
/// spent: it would wake whoever waits at once. The callers whose counterpart in tokio is budgeted
/// pay before they take the lock.
pub(super) fn without_budget<R>(
    cx: &mut Context<'_>,
    poll: impl FnMut(&mut Context<'_>) -> Poll<R>,
) -> Poll<R> {
    pin!(unconstrained(poll_fn(poll))).poll(cx)
}

/// Does `io` under a readiness of the socket. One that was `short` has shown that the readiness is
/// over, which spares the system call that would find it out: as tokio's own `poll_read` and
/// `poll_write` do it.
fn poll_short(
    tcp: &TcpStream,
    interest: Interest,
    mut io: impl FnMut() -> io::Result<usize>,
    short: impl Fn(usize) -> bool,
) -> io::Result<usize> {
    let mut done = None;
    let answer = tcp.try_io(interest, || {
        let length = io()?;
        if short(length) {
            done = Some(length);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(length)
    });
    // The WouldBlock was for tokio alone: it clears what was known before the call, not what has
    // happened since.
    done.map_or(answer, Ok)
}

/// Reads what there is. The calls of tokio that would do it look at the readiness once more; they
/// are left for memory that is not initialised, which only they can fill.
fn read_some(tcp: &TcpStream, buffer: &mut ReadBuf<'_>) -> io::Result<usize> {
    if buffer.initialized().len() < buffer.capacity() {
        return tcp.try_read_buf(buffer);
    }
    let (_, length) = recv(tcp, buffer.initialize_unfilled(), RecvFlags::empty())?;
    buffer.advance(length);
    Ok(length)
}

pub(super) fn poll_read(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<usize>> {
    let room = buffer.remaining();
    loop {
        ready!(without_budget(cx, |cx| tcp.poll_read_ready(cx)))?;
        let read = || read_some(tcp, buffer);
        match poll_short(tcp, Interest::READABLE, read, |length| 0 < length && length < room) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            answer => return Poll::Ready(answer),
        }
    }
}

pub(super) fn poll_write(tcp: &TcpStream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(without_budget(cx, |cx| tcp.poll_write_ready(cx)))?;
        let write = || Ok(send(tcp, bytes, SendFlags::NOSIGNAL)?);
        match poll_short(tcp, Interest::WRITABLE, write, |length| 0 < length && length < bytes.len()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            answer => return Poll::Ready(answer),
        }
    }
}

/// What the socket is ready for at this moment, as tokio knows it.
pub(crate) fn tcp_ready(tcp: &TcpStream, interest: Interest) -> io::Result<Ready> {
    match pin!(tcp.ready(interest)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(ready) => ready,
        Poll::Pending => Ok(Ready::EMPTY),
    }
}

/// Has tokio forget a readiness; the next event makes another.
fn forget(tcp: &TcpStream, interest: Interest) {
    let _ = tcp.try_io(interest, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
}

/// Waits in a waker slot for whatever the reactor tells of a socket. Ready: nothing will come that
/// is not there already.
fn poll_event(tcp: &TcpStream, slot: Interest, cx: &mut Context<'_>) -> Poll<()> {
    loop {
        // An idle socket is writable, so every event says that it is: forgotten now, it comes again
        // with the next one. (One that comes in this very moment is not forgotten, and there is
        // another round.)
        forget(tcp, slot);
        let writes = slot.is_writable();
        let ready =
            without_budget(cx, |cx| if writes { tcp.poll_write_ready(cx) } else { tcp.poll_read_ready(cx) });
        if ready!(ready).is_err() {
            return Poll::Ready(());
        }
        let ready = tcp_ready(tcp, slot).unwrap_or(Ready::ALL);
        if if writes { ready.is_write_closed() } else { ready.is_read_closed() } {
            return Poll::Ready(());
        }
    }
}

/// Does tokio take something that was on the error queue for the end of writing? It never forgets
/// that.
pub(crate) fn is_spoiled(tcp: &TcpStream) -> bool {
    tcp_ready(tcp, Interest::WRITABLE).is_ok_and(|ready| ready.is_write_closed())
        && sys::ended(tcp.as_fd()).is_ok_and(|ended| !ended.writes)
}

/// The place where a spoiled socket is told of, taken now if it has none.
fn told_apart<'a>(tcp: &TcpStream, apart: &'a mut Option<Apart>) -> Option<&'a Apart> {
    if apart.as_ref().is_none_or(Apart::is_over) {
        *apart = Apart::new(tcp);
    }
    apart.as_ref()
}

/// Writes with `write` until that would block, and the reactor, asked by `ready` once `clear` has
/// made it forget what it knows, will tell when to try again.
fn poll_unready(
    cx: &mut Context<'_>,
    mut write: impl FnMut() -> io::Result<usize>,
    clear: impl Fn(),
    mut ready: impl FnMut(&mut Context<'_>) -> Poll<io::Result<()>>,
    is_spoiled: impl Fn() -> bool,
) -> Poll<io::Result<Option<usize>>> {
    let mut waits = false;
    loop {
        match write() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if waits {
                    return Poll::Pending;
                }
                // Room that came since the write is forgotten here, too: once this waits, it tries
                // again.
                clear();
                match without_budget(cx, &mut ready) {
                    Poll::Ready(Ok(())) if is_spoiled() => return Poll::Ready(Ok(None)),
                    Poll::Ready(ready) => ready?,
                    Poll::Pending => waits = true,
                }
            }
            answer => return Poll::Ready(answer.map(Some)),
        }
    }
}

impl Tcp for TokioTcp {
    type Apart = Apart;

    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        poll_read(self, cx, &mut ReadBuf::new(buffer))
    }

    fn poll_peek(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut byte = [0];
        without_budget(cx, |cx| self.poll_peek(cx, &mut ReadBuf::new(&mut byte)))
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        poll_write(self, cx, bytes)
    }

    fn poll_direct(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let clear = || forget(self, Interest::WRITABLE);
        let written =
            poll_unready(cx, || write(self.as_fd()), clear, |cx| self.poll_write_ready(cx), || false);
        // It never was spoiled.
        written.map_ok(Option::unwrap_or_default)
    }

    fn poll_apart(
        &self,
        apart: &mut Option<Apart>,
        cx: &mut Context<'_>,
        mut write: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if apart.is_none() {
            let clear = || forget(self, Interest::WRITABLE);
            let ready = |cx: &mut Context<'_>| self.poll_write_ready(cx);
            let written = poll_unready(cx, || write(self.as_fd()), clear, ready, || is_spoiled(self));
            if let Some(written) = ready!(written)? {
                return Poll::Ready(Ok(written));
            }
        }
        let Some(again) = told_apart(self, apart) else {
            // Nobody would tell: who waits has to come again by himself, and others in between.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        };
        let ready = |cx: &mut Context<'_>| again.poll(cx).map(Ok);
        let written = poll_unready(cx, || write(self.as_fd()), || again.forget(), ready, || false);
        written.map_ok(Option::unwrap_or_default)
    }

    fn is_spoiled(&self) -> bool {
        is_spoiled(self)
    }

    fn poll_write_event(&self, apart: &mut Option<Apart>, cx: &mut Context<'_>) -> Poll<()> {
        // The other waker slot is not told of a shutdown of the writing direction.
        if apart.is_none() {
            ready!(poll_event(self, Interest::WRITABLE, cx));
            if !is_spoiled(self) {
                return Poll::Ready(());
            }
        }
        let Some(again) = told_apart(self, apart) else { return Poll::Ready(()) };
        loop {
            ready!(again.poll(cx));
            // Closed. One direction may end long before the other.
            if sys::ended(self.as_fd()).map_or(true, |ended| ended.acked.is_some()) {
                return Poll::Ready(());
            }
        }
    }

    fn poll_read_event(&self, cx: &mut Context<'_>) -> Poll<()> {
        poll_event(self, Interest::READABLE, cx)
    }

    fn shutdown(&self) -> io::Result<()> {
        match SockRef::from(self).shutdown(std::net::Shutdown::Write) {
            // As tokio: it is over already.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            answer => answer,
        }
    }
}

/// Reads what a closed stream has still to take off its socket, then closes it.
pub(crate) async fn drain(leftover: Leftover<TokioTcp>) {
    let socket = &*leftover.socket;
    let _ = Tcp::shutdown(socket);
    let mut scratch = [0; 512];
    let mut left = leftover.clc_left;
    while left > 0 {
        let wanted = left.min(scratch.len());
        let read = poll_fn(|cx| Tcp::poll_read(socket, cx, &mut scratch[..wanted]));
        match leftover.in_time(read).await {
            Some(Ok(length)) if length > 0 => left -= length,
            _ => break,
        }
    }
}
