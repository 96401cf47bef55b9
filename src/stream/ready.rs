//! Readiness of both transports, for any number of waiting tasks.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

use super::SmcStream;
use crate::conn::OnPending;
use crate::ism::sys;
use crate::rt::tokio::{is_spoiled, read_readiness, tcp_ready, write_readiness};

/// Forgets a readiness that the kernel does not confirm any more.
pub(super) fn clear_stale(tcp: &TcpStream, interest: Interest) -> io::Result<()> {
    let asked = tcp.try_io(interest, || {
        if sys::is_ready(tcp.as_fd(), interest.is_readable(), interest.is_writable())? {
            Ok(())
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    });
    match asked {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

/// Reading: `None` when it has to wait.
fn read_ready(stream: &SmcStream, on_pending: OnPending) -> io::Result<Option<Ready>> {
    match stream.conn.try_read(&mut read_readiness(), on_pending) {
        Poll::Pending => Ok(None),
        Poll::Ready(Ok(0)) => Ok(Some(Ready::READABLE | Ready::READ_CLOSED)),
        Poll::Ready(Ok(_)) if stream.conn.reads_ring() => {
            // As with a FIN behind unread bytes: both at once.
            let closed = if stream.conn.sender_is_done() { Ready::READ_CLOSED } else { Ready::EMPTY };
            Ok(Some(Ready::READABLE | closed))
        }
        Poll::Ready(Ok(_)) => {
            let ready = tcp_ready(&stream.tcp, Interest::READABLE)? | Ready::READABLE;
            // The end of TCP is not that of a stream which goes on in the ring.
            let goes_on = stream.conn.is_draining() && !stream.conn.sender_is_done();
            if goes_on && ready.is_read_closed() {
                // Unless the descriptor was shut down.
                stream.conn.schedule_socket_check();
            }
            Ok(Some(if goes_on { ready - Ready::READ_CLOSED } else { ready }))
        }
        Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
            Ok(Some(Ready::READABLE | Ready::READ_CLOSED))
        }
        Poll::Ready(Err(error)) => Err(error),
    }
}

/// Writing: `None` when it has to wait.
fn write_ready(stream: &SmcStream, on_pending: OnPending) -> io::Result<Option<Ready>> {
    match stream.conn.try_write(&mut write_readiness(), on_pending) {
        Poll::Pending => Ok(None),
        Poll::Ready(Ok(_)) if stream.conn.writes_ring() => Ok(Some(Ready::WRITABLE)),
        Poll::Ready(Ok(_)) => {
            let ready = tcp_ready(&stream.tcp, Interest::WRITABLE)? | Ready::WRITABLE;
            let closed = ready.is_write_closed() && !is_spoiled(&stream.tcp);
            Ok(Some(if closed { ready } else { ready - Ready::WRITE_CLOSED }))
        }
        Poll::Ready(Err(error))
            if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) =>
        {
            Ok(Some(Ready::WRITABLE | Ready::WRITE_CLOSED))
        }
        Poll::Ready(Err(error)) => Err(error),
    }
}

pub(super) fn poll_read_ready(stream: &SmcStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    if read_ready(stream, OnPending::Return)?.is_some() {
        return Poll::Ready(Ok(()));
    }
    stream.conn.waiters.readers().register(cx.waker());
    read_ready(stream, OnPending::Arm)?.map_or(Poll::Pending, |_| Poll::Ready(Ok(())))
}

pub(super) fn poll_write_ready(stream: &SmcStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    if write_ready(stream, OnPending::Return)?.is_some() {
        return Poll::Ready(Ok(()));
    }
    stream.conn.waiters.writers().register(cx.waker());
    write_ready(stream, OnPending::Arm)?.map_or(Poll::Pending, |_| Poll::Ready(Ok(())))
}

/// The future of `ready()`: one of any number that wait.
pub(super) struct Readiness<'a> {
    stream: &'a SmcStream,
    interest: Interest,
    reader: Option<u64>,
    writer: Option<u64>,
}

impl<'a> Readiness<'a> {
    pub(super) fn new(stream: &'a SmcStream, interest: Interest) -> Self {
        Readiness { stream, interest, reader: None, writer: None }
    }

    fn look(&self, on_pending: OnPending) -> io::Result<Ready> {
        let mut ready = Ready::EMPTY;
        if self.interest.is_readable() {
            ready |= read_ready(self.stream, on_pending)?.unwrap_or(Ready::EMPTY);
        }
        if self.interest.is_writable() {
            ready |= write_ready(self.stream, on_pending)?.unwrap_or(Ready::EMPTY);
        }
        Ok(ready)
    }
}

impl Future for Readiness<'_> {
    type Output = io::Result<Ready>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        let this = &mut *self;
        let ready = this.look(OnPending::Return)?;
        if !ready.is_empty() {
            return Poll::Ready(Ok(ready));
        }
        if this.interest.is_readable() {
            this.stream.conn.waiters.readers().enlist(&mut this.reader, cx.waker());
        }
        if this.interest.is_writable() {
            this.stream.conn.waiters.writers().enlist(&mut this.writer, cx.waker());
        }
        let ready = this.look(OnPending::Arm)?;
        if ready.is_empty() { Poll::Pending } else { Poll::Ready(Ok(ready)) }
    }
}

impl Drop for Readiness<'_> {
    fn drop(&mut self) {
        self.stream.conn.waiters.delist(&mut self.reader, &mut self.writer);
    }
}
