//! A real TCP socket under a connection, and the little of a reactor that it needs.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll, Waker};

use rustix::event::{PollFd, PollFlags};

use crate::conn::Tcp;
use crate::conn::close::Leftover;
use crate::ism::sys;
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, lock};

/// A socket with the wakers of those who wait for it, one each way, as a reactor keeps them.
pub(super) struct StdTcp {
    pub(super) tcp: TcpStream,
    /// With what there was before the read that found nothing. As an edge-triggered reactor does,
    /// it takes something new to wake: poll(2) may go on calling readable what no read gets to.
    read: Mutex<Option<(Waker, Look)>>,
    write: Mutex<Option<Waker>>,
    /// Who waits for any event in the slot of writing and of reading, and what there was when it
    /// began to wait.
    events: [Mutex<Option<(Waker, Look)>>; 2],
    /// The reactor is broken: who asks it for an event panics.
    pub(super) broken: AtomicBool,
}

/// What an edge-triggered reactor would tell a change of: the end of reading, a failure, the state,
/// received and unread bytes.
type Look = (bool, bool, Option<(sys::TcpState, u64)>, Option<u32>);

impl StdTcp {
    pub(super) fn new(tcp: TcpStream) -> Arc<Self> {
        tcp.set_nonblocking(true).expect("non-blocking");
        Arc::new(StdTcp {
            tcp,
            read: Mutex::new(None),
            write: Mutex::new(None),
            events: Default::default(),
            broken: AtomicBool::new(false),
        })
    }

    fn ready(&self, flags: PollFlags) -> bool {
        let mut fds = [PollFd::new(&self.tcp, flags)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    fn look(&self) -> Look {
        let info = sys::tcp_look(self.tcp.as_fd()).ok().map(|look| (look.state, look.bytes_received));
        let unread = sys::queued_in(self.tcp.as_fd()).ok();
        (self.ready(PollFlags::RDHUP), self.ready(PollFlags::empty()), info, unread)
    }

    fn wait_for_event(&self, slot: usize, cx: &mut Context<'_>) -> Poll<()> {
        assert!(!self.broken.load(Ordering::Relaxed), "a panic that belongs to the test");
        let look = self.look();
        *lock(&self.events[slot]) = Some((cx.waker().clone(), look));
        Poll::Pending
    }

    pub(super) fn is_readable(&self) -> bool {
        self.ready(PollFlags::IN | PollFlags::RDHUP)
    }

    /// One turn of the reactor: wakes who waits for what has come true.
    pub(super) fn turn(&self) {
        let readable = lock(&self.read).take_if(|(_, before)| self.is_readable() && *before != self.look());
        if let Some((waker, _)) = readable {
            waker.wake();
        }
        let writable = lock(&self.write).take_if(|_| self.ready(PollFlags::OUT));
        if let Some(waker) = writable {
            waker.wake();
        }
        for waiting in &self.events {
            let event = lock(waiting).take_if(|(_, before)| *before != self.look());
            if let Some((waker, _)) = event {
                waker.wake();
            }
        }
    }

    pub(super) fn reading<R>(
        &self,
        cx: &Context<'_>,
        read: impl FnOnce(&TcpStream) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        let before = self.look();
        Self::pending(read(&self.tcp), &self.read, || (cx.waker().clone(), before))
    }

    pub(super) fn writing<R>(
        &self,
        cx: &Context<'_>,
        write: impl FnOnce(&TcpStream) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        Self::pending(write(&self.tcp), &self.write, || cx.waker().clone())
    }

    fn pending<R, W>(
        answer: io::Result<R>,
        waiting: &Mutex<Option<W>>,
        waits: impl FnOnce() -> W,
    ) -> Poll<io::Result<R>> {
        match answer {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                *lock(waiting) = Some(waits());
                Poll::Pending
            }
            answer => Poll::Ready(answer),
        }
    }
}

/// Does what the runtime does for a closed stream: reads exactly the CLC that is left, then closes.
/// True while some of it has not come.
pub(super) fn drain(leftover: &mut Leftover<StdTcp>) -> bool {
    while leftover.clc_left > 0 {
        let mut scratch = [0; 512];
        let wanted = leftover.clc_left.min(scratch.len());
        match (&leftover.socket.tcp).read(&mut scratch[..wanted]) {
            Ok(length) if length > 0 => leftover.clc_left -= length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut waits = std::pin::pin!(leftover.in_time(std::future::pending::<()>()));
                return waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending();
            }
            _ => return false,
        }
    }
    false
}

impl AsFd for StdTcp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}

impl Tcp for StdTcp {
    type Apart = ();

    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.reading(cx, |mut tcp| tcp.read(buffer))
    }

    fn poll_peek(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.reading(cx, |tcp| tcp.peek(&mut [0]))
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writing(cx, |mut tcp| tcp.write(bytes))
    }

    fn poll_direct(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.writing(cx, |tcp| write(tcp.as_fd()))
    }

    fn poll_apart(
        &self,
        _: &mut Option<()>,
        cx: &mut Context<'_>,
        write: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.poll_direct(cx, write)
    }

    fn poll_write_event(&self, _: &mut Option<()>, cx: &mut Context<'_>) -> Poll<()> {
        self.wait_for_event(0, cx)
    }

    fn poll_read_event(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.wait_for_event(1, cx)
    }

    fn shutdown(&self) -> io::Result<()> {
        match self.tcp.shutdown(Shutdown::Write) {
            // As tokio: it is over already.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            answer => answer,
        }
    }
}
