//! Doorbells (eventfd) and timers (timerfd).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// A doorbell: each write is an edge for whoever polls it edge-triggered, also when nobody ever
/// reads it.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Rings the doorbell `fd`, which nobody else holds.
///
/// A doorbell that is never read fills up after 2^64 − 2 rings. The write then fails without an
/// edge, so the counter is drained and the write repeated.
///
/// # Errors
///
/// `WouldBlock` when other threads keep the counter full; the descriptor's own errors otherwise.
pub(crate) fn ring(fd: BorrowedFd<'_>) -> io::Result<()> {
    // Between our drain and our write others may fill the counter again; each time is an edge of
    // its own.
    for _ in 0..4 {
        match retry_on_intr(|| rustix::io::write(fd, &1u64.to_ne_bytes())) {
            Ok(_) => return Ok(()),
            Err(Errno::AGAIN) => {
                drain(fd)?;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::AGAIN.into())
}

/// Rings the doorbell `fd` that somebody else holds, too, and does not wait, unless its holder
/// makes it blocking between the look and the write. (There is no `RWF_NOWAIT` for the writes of an
/// eventfd.) So its holder has to be one that could as well stop this process.
///
/// # Errors
///
/// `WouldBlock` when it is full, or blocking: nobody was rung, and somebody else may.
pub(crate) fn ring_shared(fd: BorrowedFd<'_>) -> io::Result<()> {
    if !rustix::fs::fcntl_getfl(fd)?.contains(OFlags::NONBLOCK) {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    retry_on_intr(|| rustix::io::write(fd, &1u64.to_ne_bytes()))?;
    Ok(())
}

/// Whether `fd`, which somebody else sent, is an eventfd: writing eight bytes to anything else
/// could do harm.
///
/// # Errors
///
/// When /proc does not tell.
pub(crate) fn is_eventfd(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(std::fs::read_link(link)?.as_os_str() == "anon_inode:[eventfd]")
}

/// Whether `fd` can be read, or written, or has failed at this moment.
pub(crate) fn is_ready(fd: BorrowedFd<'_>, read: bool, write: bool) -> io::Result<bool> {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN | PollFlags::RDHUP, read);
    flags.set(PollFlags::OUT, write);
    let mut polled = [PollFd::from_borrowed_fd(fd, flags)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(retry_on_intr(|| poll(&mut polled, Some(&now)))? > 0)
}

/// Whether the peer of the socket `fd` has closed its end.
pub(crate) fn has_hung_up(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    retry_on_intr(|| poll(&mut polled, Some(&now)))?;
    Ok(polled[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR))
}

/// A timer on the monotonic clock, not armed.
pub(crate) fn timerfd() -> io::Result<OwnedFd> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    Ok(rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?)
}

/// Lets the timer `fd` expire once, `after` from now; `None` disarms it. An expiry not yet cleared
/// is forgotten.
pub(crate) fn arm_timer(fd: BorrowedFd<'_>, after: Option<Duration>) -> io::Result<()> {
    let it_value = match after {
        None => Timespec { tv_sec: 0, tv_nsec: 0 },
        // Zero means "disarm" to the kernel: the shortest time that expires is a nanosecond.
        Some(after) => {
            let after = after.max(Duration::from_nanos(1));
            Timespec {
                tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: after.subsec_nanos().into(),
            }
        }
    };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
    rustix::time::timerfd_settime(fd, TimerfdTimerFlags::empty(), &once)?;
    Ok(())
}

/// Takes the expiry of the timer `fd`: true when it had expired since it was last armed or cleared.
pub(crate) fn clear_timer(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(drain(fd)? > 0)
}

/// Reads the counter of an eventfd or timerfd back to zero.
fn drain(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut count = [0; 8];
    match retry_on_intr(|| rustix::io::read(fd, &mut count)) {
        Ok(_) => Ok(u64::from_ne_bytes(count)),
        Err(Errno::AGAIN) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::event::epoll;

    use super::*;

    /// Edges of `fd` within `wait`, as an edge-triggered reactor sees them.
    fn edges(reactor: &OwnedFd, wait: Duration) -> usize {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 4];
        let wait = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos().try_into().unwrap() };
        retry_on_intr(|| epoll::wait(reactor, &mut events[..], Some(&wait))).unwrap()
    }

    fn reactor(fd: BorrowedFd<'_>) -> OwnedFd {
        let reactor = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&reactor, fd, epoll::EventData::new_u64(1), flags).unwrap();
        reactor
    }

    #[test]
    fn every_ring_is_an_edge_though_nobody_reads() {
        let bell = eventfd().unwrap();
        let reactor = reactor(bell.as_fd());
        assert_eq!(edges(&reactor, Duration::ZERO), 0);
        for _ in 0..100 {
            ring(bell.as_fd()).unwrap();
            assert_eq!(edges(&reactor, Duration::ZERO), 1);
            assert_eq!(edges(&reactor, Duration::ZERO), 0, "edge-triggered: one report per ring");
        }
    }

    #[test]
    fn a_full_doorbell_still_rings() {
        let bell = eventfd().unwrap();
        rustix::io::write(&bell, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        assert_eq!(rustix::io::write(&bell, &1u64.to_ne_bytes()), Err(Errno::AGAIN), "full");
        let reactor = reactor(bell.as_fd());
        assert_eq!(edges(&reactor, Duration::ZERO), 1, "registering reports what is there");
        assert_eq!(edges(&reactor, Duration::ZERO), 0);
        ring(bell.as_fd()).unwrap();
        assert_eq!(edges(&reactor, Duration::ZERO), 1);
        assert_eq!(drain(bell.as_fd()).unwrap(), 1, "drained, then rung once");
    }

    #[test]
    fn a_shared_doorbell_that_is_full_or_blocking_does_not_wait() {
        let bell = eventfd().unwrap();
        let reactor = reactor(bell.as_fd());
        ring_shared(bell.as_fd()).unwrap();
        assert_eq!(edges(&reactor, Duration::ZERO), 1);
        rustix::io::write(&bell, &(u64::MAX - 2).to_ne_bytes()).unwrap();
        assert_eq!(ring_shared(bell.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let flags = rustix::fs::fcntl_getfl(&bell).unwrap();
        rustix::fs::fcntl_setfl(&bell, flags - OFlags::NONBLOCK).unwrap();
        assert_eq!(ring_shared(bell.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn ringing_something_else_is_an_error() {
        let read_only = std::fs::File::open("/dev/null").unwrap();
        assert!(ring(read_only.as_fd()).is_err());
    }

    #[test]
    fn timers_expire_once_and_disarm() {
        let timer = timerfd().unwrap();
        let reactor = reactor(timer.as_fd());
        arm_timer(timer.as_fd(), Some(Duration::ZERO)).unwrap();
        assert_eq!(
            edges(&reactor, Duration::from_millis(900)),
            1,
            "zero expires at once, it does not disarm"
        );
        assert!(clear_timer(timer.as_fd()).unwrap());
        assert!(!clear_timer(timer.as_fd()).unwrap());

        arm_timer(timer.as_fd(), Some(Duration::from_secs(u64::MAX))).unwrap();
        assert!(!clear_timer(timer.as_fd()).unwrap());
        arm_timer(timer.as_fd(), Some(Duration::from_millis(5))).unwrap();
        arm_timer(timer.as_fd(), None).unwrap();
        assert_eq!(edges(&reactor, Duration::from_millis(30)), 0, "disarmed");
        assert!(!clear_timer(timer.as_fd()).unwrap());
    }
}
