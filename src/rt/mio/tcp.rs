//! std's TcpStream as the socket under a connection.

use std::cell::Cell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{OnceLock, Weak};
use std::task::{Context, Poll};

use rustix::io::retry_on_intr;
use rustix::net::{RecvAncillaryBuffer, RecvFlags};

use super::executor::Executor;
use super::registered::Registered;
use crate::conn::Tcp;
use crate::conn::close::Leftover;
use crate::ism::sys;
use crate::link::reactor::{Interest, Reactor, when_readable};
use crate::sync::Arc;

/// The socket of a stream. Its mode is its owner's business: what is done here never waits.
///
/// Nobody waits for it but the threads that read and write, and they ask the kernel themselves. So
/// a `Pending` keeps no waker; that it was the socket which has to be waited for is told by
/// [`noting_waits`].
pub(crate) struct MioTcp {
    tcp: Arc<TcpStream>,
    /// Who is asked for events, once the stream begins to be upgraded.
    executor: OnceLock<Weak<Executor>>,
    registered: OnceLock<Option<Arc<Registered>>>,
}

/// What an attempt has found the socket not ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SocketWaits {
    pub(crate) reads: bool,
    pub(crate) writes: bool,
}

thread_local! {
    static WAITS: Cell<SocketWaits> = const { Cell::new(SocketWaits { reads: false, writes: false }) };
}

/// Makes an attempt, and says which readiness of a socket it has missed.
pub(crate) fn noting_waits<R>(attempt: impl FnOnce() -> R) -> (R, SocketWaits) {
    WAITS.set(SocketWaits::default());
    let answer = attempt();
    (answer, WAITS.get())
}

impl MioTcp {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        MioTcp { tcp: Arc::new(tcp), executor: OnceLock::new(), registered: OnceLock::new() }
    }

    pub(crate) fn std(&self) -> &TcpStream {
        &self.tcp
    }

    /// From now on that thread tells of events.
    pub(crate) fn enter(&self, executor: &Arc<Executor>) {
        let _ = self.executor.set(Arc::downgrade(executor));
    }

    /// The socket, if nobody else has it.
    pub(crate) fn into_std(self) -> Option<TcpStream> {
        let MioTcp { tcp, registered, .. } = self;
        drop(registered);
        Arc::into_inner(tcp)
    }

    pub(super) fn reading<R>(
        &self,
        read: impl FnOnce(BorrowedFd<'_>) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        match read(self.tcp.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                WAITS.set(SocketWaits { reads: true, ..WAITS.get() });
                Poll::Pending
            }
            answer => Poll::Ready(answer),
        }
    }

    pub(super) fn writing<R>(
        &self,
        write: impl FnOnce(BorrowedFd<'_>) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        match write(self.tcp.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                WAITS.set(SocketWaits { writes: true, ..WAITS.get() });
                Poll::Pending
            }
            answer => Poll::Ready(answer),
        }
    }

    fn poll_event(&self, interest: Interest, cx: &mut Context<'_>) -> Poll<()> {
        let registered = self.registered.get_or_init(|| {
            let executor = self.executor.get().and_then(Weak::upgrade);
            executor.and_then(|executor| executor.register(self.tcp.clone()).ok())
        });
        // Without a thread nothing will ever be told.
        registered.as_ref().map_or(Poll::Ready(()), |registered| registered.poll_event(interest, cx))
    }
}

/// Reads what is there.
pub(super) fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
    let (length, _) = retry_on_intr(|| rustix::net::recv(fd, &mut *buffer, flags | RecvFlags::DONTWAIT))?;
    Ok(length)
}

/// Reads what is there into several buffers.
pub(super) fn receive_vectored(fd: BorrowedFd<'_>, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    // The kernel refuses more of them, and what is read may be short.
    const MOST_BUFFERS: usize = 1024;
    let most = buffers.len().min(MOST_BUFFERS);
    let message = retry_on_intr(|| {
        let mut control = RecvAncillaryBuffer::default();
        rustix::net::recvmsg(fd, &mut buffers[..most], &mut control, RecvFlags::DONTWAIT)
    })?;
    Ok(message.bytes)
}

impl AsFd for MioTcp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}

impl Tcp for MioTcp {
    /// Who waits asks the kernel, which does not mistake one thing for the other.
    type Apart = ();

    fn poll_read(&self, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.reading(|fd| receive(fd, buffer, RecvFlags::empty()))
    }

    fn poll_peek(&self, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.reading(|fd| receive(fd, &mut [0], RecvFlags::PEEK))
    }

    fn poll_write(&self, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writing(|fd| sys::send_bytes(fd, &[IoSlice::new(bytes)]))
    }

    fn poll_direct(
        &self,
        _: &mut Context<'_>,
        write: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.writing(write)
    }

    fn poll_apart(
        &self,
        _: &mut Option<()>,
        _: &mut Context<'_>,
        write: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.writing(write)
    }

    fn poll_write_event(&self, _: &mut Option<()>, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_event(Interest::Write, cx)
    }

    fn poll_read_event(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_event(Interest::Read, cx)
    }

    fn shutdown(&self) -> io::Result<()> {
        self.tcp.shutdown(Shutdown::Write)
    }
}

/// Reads what a closed stream has still to take off its socket, then closes it.
pub(crate) async fn drain(leftover: Leftover<MioTcp>, executor: Weak<Executor>) {
    let socket = &*leftover.socket;
    let _ = Tcp::shutdown(socket);
    let Ok(fd) = socket.as_fd().try_clone_to_owned() else { return };
    let Some(Ok(watched)) = executor.upgrade().map(|executor| executor.watch(fd)) else { return };
    let mut scratch = [0; 512];
    let mut left = leftover.clc_left;
    while left > 0 {
        let wanted = left.min(scratch.len());
        let read = || receive(watched.as_fd(), &mut scratch[..wanted], RecvFlags::empty());
        match leftover.in_time(when_readable(&*watched, read)).await {
            Some(Ok(length)) if length > 0 => left -= length,
            _ => break,
        }
    }
}
