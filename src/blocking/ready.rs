//! Readiness of streams, for programs with an event loop of their own.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Weak;
use std::task::{Poll, Wake, Waker};
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::Timespec;

use super::SmcStream;
use super::stream::Shared;
use crate::conn::OnPending;
use crate::ism::sys;
use crate::rt::mio::{SocketWaits, noting_waits, read_readiness, write_readiness};
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, lock};

/// What epoll tells of the bell; of members it tells their tokens.
const BELL: u64 = u64::MAX;

/// Socket events that are taken from the kernel at once.
const EVENTS: usize = 256;

/// What one waits for on a stream.
///
/// ```
/// use tokio_smc::blocking::{Interest, ReadySet, SmcStream};
///
/// /// A stream is waited for to be written only while there is something to write.
/// fn wait_for(set: &mut ReadySet, token: usize, unsent: &[u8]) -> std::io::Result<()> {
///     set.modify(token, if unsent.is_empty() { Interest::Read } else { Interest::Both })
/// }
/// # let mut set = ReadySet::new().unwrap();
/// # assert_eq!(wait_for(&mut set, 1, b"").unwrap_err().kind(), std::io::ErrorKind::NotFound);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interest {
    /// Bytes, the end of the stream, or an error.
    Read,
    /// Room, or an error.
    Write,
    /// Either.
    Both,
}

impl Interest {
    fn reads(self) -> bool {
        matches!(self, Interest::Read | Interest::Both)
    }

    fn writes(self) -> bool {
        matches!(self, Interest::Write | Interest::Both)
    }
}

/// A stream of a [`ReadySet`] that is ready.
///
/// ```
/// use std::io::{ErrorKind, Read};
/// use tokio_smc::blocking::{ReadySet, SmcStream};
///
/// /// Reads from non-blocking streams, which were added with their indices as tokens.
/// fn read_all(set: &mut ReadySet, streams: &[SmcStream], got: &mut Vec<u8>) -> std::io::Result<()> {
///     let mut events = Vec::new();
///     set.events(&mut events)?;
///     for event in events.iter().filter(|event| event.is_readable()) {
///         match (&streams[event.token()]).read_to_end(got) {
///             Err(error) if error.kind() == ErrorKind::WouldBlock => {}
///             ended => drop(ended?),
///         }
///     }
///     Ok(())
/// }
/// # read_all(&mut ReadySet::new().unwrap(), &[], &mut Vec::new()).unwrap();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadyEvent {
    token: usize,
    readable: bool,
    writable: bool,
}

impl ReadyEvent {
    /// What the stream was added with.
    pub fn token(&self) -> usize {
        self.token
    }

    /// A read will not wait: there are bytes, the end, or an error.
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// A write of at least one byte will not wait: there is room, or an error.
    pub fn is_writable(&self) -> bool {
        self.writable
    }
}

/// Streams that are waited for together, on whichever transport each of them runs.
///
/// The TCP socket of a stream ([`SmcStream::as_fd`]) tells nothing of what is in shared memory. A
/// program that waits in poll(2) or epoll(7) waits for the descriptor of a set instead: it is
/// readable as long as a stream of the set is ready for what was asked for. [`ReadySet::events`]
/// says which ones. Nothing changes for the program when a stream leaves TCP.
///
/// The descriptor is level-triggered. A loop that adds it edge-triggered has to call
/// [`ReadySet::events`] until that finds nothing, after it has read or written until `WouldBlock`.
///
/// ```
/// use std::io::{Read, Write};
/// use tokio_smc::blocking::{Interest, ReadySet, SmcListener, SmcStream};
///
/// # fn main() -> std::io::Result<()> {
/// # let listener = SmcListener::bind("127.0.0.1:0")?;
/// # let mut peer = SmcStream::connect(listener.local_addr()?)?;
/// # let mut stream = listener.accept()?.0;
/// stream.set_nonblocking(true)?;
/// let mut set = ReadySet::new()?;
/// set.add(&stream, 7, Interest::Read)?;
/// // Here its descriptor is added to an epoll, or waited for with poll(2).
/// # peer.write_all(b"hello")?;
/// let mut events = Vec::new();
/// set.wait(&mut events, None)?;
/// assert!(events[0].token() == 7 && events[0].is_readable());
/// let mut buffer = [0; 16];
/// assert_eq!(stream.read(&mut buffer)?, 5);
/// # Ok(()) }
/// ```
pub struct ReadySet {
    /// Holds the bell, and the sockets of those that wait for TCP.
    epoll: OwnedFd,
    bell: Arc<Bell>,
    /// By their tokens.
    members: HashMap<usize, Member>,
    /// Tokens by the address of a stream, which nothing else gets as long as a member knows it.
    tokens: HashMap<usize, usize>,
    /// Who was ready at the last look, and may be so still.
    ready: Vec<usize>,
}

/// What wakers of the set ring.
struct Bell {
    eventfd: OwnedFd,
    rung: Mutex<Rung>,
}

#[derive(Default)]
struct Rung {
    /// Members that were woken, each once.
    woken: Vec<usize>,
    /// The eventfd is readable.
    shows: bool,
}

struct Member {
    token: usize,
    interest: Interest,
    stream: Weak<Shared>,
    call: Arc<Call>,
    waker: Waker,
    reader: Option<u64>,
    writer: Option<u64>,
    /// What of the socket is in the epoll.
    in_epoll: SocketWaits,
}

/// The waker of a member.
struct Call {
    bell: Arc<Bell>,
    member: usize,
    /// It is among the woken already.
    waits: AtomicBool,
}

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // AcqRel: pairs with the swap before each look. What led to this call is seen by that look,
        // or this one lists the member again.
        if !self.waits.swap(true, Ordering::AcqRel) {
            let mut rung = lock(&self.bell.rung);
            rung.woken.push(self.member);
            self.bell.show(&mut rung);
        }
    }
}

impl Bell {
    /// Makes the eventfd readable.
    fn show(&self, rung: &mut Rung) {
        if !rung.shows {
            rung.shows = sys::ring(self.eventfd.as_fd()).is_ok();
        }
    }

    /// Makes the eventfd say whether there is something to look at.
    fn settle(&self, ready: bool) {
        let mut rung = lock(&self.rung);
        if ready || !rung.woken.is_empty() {
            self.show(&mut rung);
        } else if rung.shows {
            let _ = rustix::io::read(&self.eventfd, &mut [0; 8]);
            rung.shows = false;
        }
    }
}

impl ReadySet {
    /// Makes an empty set, which has two descriptors.
    ///
    /// # Errors
    ///
    /// When the kernel has no descriptor left.
    pub fn new() -> io::Result<ReadySet> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let bell = Bell { eventfd: sys::eventfd()?, rung: Mutex::default() };
        epoll::add(&epoll, &bell.eventfd, EventData::new_u64(BELL), EventFlags::IN)?;
        let (members, tokens) = (HashMap::new(), HashMap::new());
        Ok(ReadySet { epoll, bell: Arc::new(bell), members, tokens, ready: Vec::new() })
    }

    /// Adds a stream, under a token of the caller's choice. The set does not keep it open: a stream
    /// that is closed has left. One whose socket is to be taken out ([`SmcStream::into_std`]) has
    /// to be removed before.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` when the set has that token, or that stream; `InvalidInput` for the token
    /// `usize::MAX`.
    pub fn add(&mut self, stream: &SmcStream, token: usize, interest: Interest) -> io::Result<()> {
        if token as u64 == BELL {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let place = Arc::as_ptr(&stream.shared).addr();
        if self.lives(token) || self.tokens.get(&place).is_some_and(|token| self.lives(*token)) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        // What had the token has been closed.
        self.forget(token);
        let call = Arc::new(Call { bell: self.bell.clone(), member: token, waits: AtomicBool::new(false) });
        let member = Member {
            token,
            interest,
            stream: Arc::downgrade(&stream.shared),
            waker: Waker::from(call.clone()),
            call,
            reader: None,
            writer: None,
            in_epoll: SocketWaits::default(),
        };
        self.members.insert(token, member);
        self.tokens.insert(place, token);
        self.look_at(token);
        Ok(())
    }

    /// Waits for something else on a stream of the set.
    ///
    /// # Errors
    ///
    /// `NotFound` when the set does not have that token.
    pub fn modify(&mut self, token: usize, interest: Interest) -> io::Result<()> {
        let member = self.members.get_mut(&token).ok_or(io::ErrorKind::NotFound)?;
        member.interest = interest;
        self.look_at(token);
        Ok(())
    }

    /// Takes a stream out of the set.
    ///
    /// # Errors
    ///
    /// `NotFound` when the set does not have that token.
    pub fn remove(&mut self, token: usize) -> io::Result<()> {
        if !self.members.contains_key(&token) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.forget(token);
        self.bell.settle(!self.ready.is_empty());
        Ok(())
    }

    /// Says which streams are ready now, in `events`, which is emptied before. Returns how many
    /// there are.
    ///
    /// # Errors
    ///
    /// Those of epoll_wait(2).
    pub fn events(&mut self, events: &mut Vec<ReadyEvent>) -> io::Result<usize> {
        self.wait(events, Some(Duration::ZERO))
    }

    /// As [`ReadySet::events`], after waiting for the first one, for `timeout` at most; none within
    /// that is no error.
    ///
    /// # Errors
    ///
    /// Those of epoll_wait(2); `Interrupted` after a signal.
    pub fn wait(&mut self, events: &mut Vec<ReadyEvent>, timeout: Option<Duration>) -> io::Result<usize> {
        events.clear();
        let deadline = timeout.map(|timeout| sys::monotonic().saturating_add(timeout));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_sub(sys::monotonic()));
            let possible = self.possible(left)?;
            for number in possible {
                events.extend(self.look(number));
            }
            self.bell.settle(!self.ready.is_empty());
            // What was only possible, and was none, may have used up some of the time.
            if !events.is_empty() || left == Some(Duration::ZERO) {
                return Ok(events.len());
            }
        }
    }

    /// Is there an open stream of that token?
    fn lives(&self, token: usize) -> bool {
        self.members.get(&token).is_some_and(|member| member.stream.strong_count() > 0)
    }

    /// The members that may be ready, each once.
    fn possible(&mut self, timeout: Option<Duration>) -> io::Result<Vec<usize>> {
        let none = epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(BELL) };
        let mut told = [none; EVENTS];
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let count = epoll::wait(&self.epoll, &mut told[..], timeout.as_ref())?;
        let mut possible = std::mem::take(&mut self.ready);
        possible.append(&mut lock(&self.bell.rung).woken);
        let told = told[..count].iter().map(|event| event.data.u64()).filter(|data| *data != BELL);
        possible.extend(told.map(|token| token as usize));
        possible.sort_unstable();
        possible.dedup();
        Ok(possible)
    }

    /// Looks at a member that has just come, or that waits for something else.
    fn look_at(&mut self, token: usize) {
        self.ready.retain(|ready| *ready != token);
        let _ = self.look(token);
        self.bell.settle(!self.ready.is_empty());
    }

    /// One look at a member; what is not ready calls when it is.
    fn look(&mut self, token: usize) -> Option<ReadyEvent> {
        let member = self.members.get_mut(&token)?;
        let Some(stream) = member.stream.upgrade() else {
            self.forget(token);
            return None;
        };
        let (event, waits) = member.look(&stream);
        if event.is_some() {
            // It is looked at again anyway: what the epoll tells meanwhile changes nothing.
            self.ready.push(token);
        } else {
            member.listen(&self.epoll, &stream, waits);
        }
        event
    }

    fn forget(&mut self, token: usize) {
        let Some(mut member) = self.members.remove(&token) else { return };
        self.ready.retain(|ready| *ready != token);
        self.tokens.remove(&member.stream.as_ptr().addr());
        if let Some(stream) = member.stream.upgrade() {
            member.delist(&stream);
            member.listen(&self.epoll, &stream, SocketWaits::default());
        }
        lock(&self.bell.rung).woken.retain(|woken| *woken != token);
    }
}

impl Member {
    fn delist(&mut self, stream: &Shared) {
        stream.conn.waiters.delist(&mut self.reader, &mut self.writer);
    }

    fn look(&mut self, stream: &Shared) -> (Option<ReadyEvent>, SocketWaits) {
        self.call.waits.swap(false, Ordering::AcqRel);
        // Whoever was woken is not listed any more, whatever his key says.
        self.delist(stream);
        let Member { token, interest, .. } = *self;
        let (answer, waits) = noting_waits(|| {
            let mut readable = interest.reads() && Self::is_readable(stream, OnPending::Return);
            if interest.reads() && !readable {
                stream.conn.waiters.readers().enlist(&mut self.reader, &self.waker);
                readable = Self::is_readable(stream, OnPending::Arm);
            }
            let mut writable = interest.writes() && Self::is_writable(stream, OnPending::Return);
            if interest.writes() && !writable {
                stream.conn.waiters.writers().enlist(&mut self.writer, &self.waker);
                writable = Self::is_writable(stream, OnPending::Arm);
            }
            ReadyEvent { token, readable, writable }
        });
        // What is ready is looked at again anyway.
        let waits =
            SocketWaits { reads: waits.reads && !answer.readable, writes: waits.writes && !answer.writable };
        (Some(answer).filter(|answer| answer.readable || answer.writable), waits)
    }

    fn is_readable(stream: &Shared, on_pending: OnPending) -> bool {
        // An error is told by the read.
        matches!(stream.conn.try_read(&mut read_readiness(), on_pending), Poll::Ready(_))
    }

    fn is_writable(stream: &Shared, on_pending: OnPending) -> bool {
        matches!(stream.conn.try_write(&mut write_readiness(), on_pending), Poll::Ready(_))
    }

    /// Lets the epoll tell of the socket what is waited for there, and no more: its end, which
    /// nobody can ask it not to tell, is not the stream's. Edges are enough, for each event leads
    /// to a look, and a socket that outlives its stream in another process tells of few.
    fn listen(&mut self, epoll: &OwnedFd, stream: &Shared, waits: SocketWaits) {
        if waits == self.in_epoll {
            return;
        }
        let mut flags = EventFlags::ET;
        flags.set(EventFlags::IN | EventFlags::RDHUP, waits.reads);
        flags.set(EventFlags::OUT, waits.writes);
        let (socket, data) = (stream.tcp.as_fd(), EventData::new_u64(self.token as u64));
        let none = SocketWaits::default();
        let changed = if waits == none {
            epoll::delete(epoll, socket)
        } else if self.in_epoll == none {
            epoll::add(epoll, socket, data, flags)
        } else {
            epoll::modify(epoll, socket, data, flags)
        };
        match changed {
            Ok(()) => self.in_epoll = waits,
            // Without the kernel's help: it is looked at again and again.
            Err(error) => {
                crate::trace::warning!("a readiness set can not wait for a socket: {error}");
                self.waker.wake_by_ref();
            }
        }
    }
}

impl Drop for ReadySet {
    fn drop(&mut self) {
        for (_, mut member) in self.members.drain() {
            if let Some(stream) = member.stream.upgrade() {
                member.delist(&stream);
            }
        }
    }
}

/// To be waited for; reading from it is not for programs.
impl AsFd for ReadySet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl AsRawFd for ReadySet {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl fmt::Debug for ReadySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadySet").field("streams", &self.members.len()).finish_non_exhaustive()
    }
}
