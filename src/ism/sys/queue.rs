//! A second place to hear of sockets (epoll).
#![expect(unsafe_code, reason = "EPOLL_CTL_DEL of a descriptor that may be closed")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::OFlags;
use rustix::io::retry_on_intr;
use rustix::time::Timespec;

/// A queue of events of sockets, which can be read when there are some, and does not block.
pub(crate) fn event_queue() -> io::Result<OwnedFd> {
    let queue = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&queue, OFlags::NONBLOCK)?;
    Ok(queue)
}

/// From now on `queue` tells under that number, once each time, when there is room in the socket
/// `fd`, or when one of its directions has ended.
pub(crate) fn tell_of(queue: BorrowedFd<'_>, fd: BorrowedFd<'_>, number: u64) -> io::Result<()> {
    let flags = EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
    Ok(epoll::add(queue, fd, EventData::new_u64(number), flags)?)
}

/// Ends that for the descriptor of that number, open or not.
pub(crate) fn tell_no_more_of(queue: BorrowedFd<'_>, fd: RawFd) {
    // SAFETY: EPOLL_CTL_DEL reads no event. The kernel checks both numbers; what has another file
    // by now is not in the queue, or is, and then only its events are lost, which the caller rules
    // out.
    unsafe { libc::epoll_ctl(queue.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()) };
}

/// Takes events off `queue`: the number of each.
pub(crate) fn take_events(queue: BorrowedFd<'_>) -> io::Result<Vec<u64>> {
    let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 64];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let length = retry_on_intr(|| epoll::wait(queue, &mut events[..], Some(&now)))?;
    Ok(events[..length].iter().map(|event| event.data.u64()).collect())
}
