//! [`SmcStream`], the drop-in for std's `TcpStream`: a skin over one connection.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::park::Parker;
use super::wait::Direction;
use crate::config::{Config, UpgradePolicy};
use crate::conn::{Connection, Directions, Operation, Role};
use crate::link::adopted::adopt;
use crate::link::home::Place;
use crate::link::reactor::Reactor;
use crate::link::stream::{LinkedStream, Verdict};
use crate::rt::mio::{self as rt, Engine, MioTcp};
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, lock};
use crate::transport::FallbackReason;

/// A TCP stream that moves onto shared memory when its peer is on this host and uses this crate
/// too.
///
/// It is used exactly like [`std::net::TcpStream`]; [`SmcStream::transport`] tells what it runs on.
///
/// A stream that its owner has cloned ([`SmcStream::try_clone`]) is closed with the last clone.
/// Closing does what it does with TCP: what was written still arrives, unless unread data makes it
/// a reset.
///
/// Waiting is not interrupted by signals, but where a stream has settled on TCP and the kernel
/// waits.
///
/// ```no_run
/// use std::io::{Read, Write};
/// use tokio_smc::blocking::SmcStream;
///
/// # fn main() -> std::io::Result<()> {
/// let mut stream = SmcStream::connect("127.0.0.1:8080")?;
/// stream.write_all(b"hello")?;
/// let mut answer = [0; 5];
/// stream.read_exact(&mut answer)?;
/// println!("{} runs on {}", stream.peer_addr()?, stream.transport());
/// # Ok(()) }
/// ```
pub struct SmcStream {
    pub(super) shared: Arc<Shared>,
}

/// What the clones of a stream have in common.
pub(super) struct Shared {
    pub(super) conn: Arc<Connection<MioTcp>>,
    pub(super) tcp: Arc<MioTcp>,
    /// Held from the moment on that the stream may be served by it.
    pub(super) engine: OnceLock<Arc<Engine>>,
    nonblocking: AtomicBool,
    pub(super) reads: Direction,
    pub(super) writes: Direction,
    pub(super) parkers: Mutex<Vec<Arc<Parker>>>,
    /// The error of a write that had written a part, until somebody is told.
    late: Mutex<Option<io::Error>>,
    has_late: AtomicBool,
}

impl Drop for Shared {
    fn drop(&mut self) {
        let leftover = self.conn.close();
        // The sets that it is in find it gone.
        self.conn.waiters.wake_all();
        let Some(leftover) = leftover else { return };
        if let Some(engine) = self.engine.get() {
            let executor = Arc::downgrade(engine.executor());
            let held = engine.clone();
            engine.executor().spawn(Box::pin(async move {
                rt::drain(leftover, executor).await;
                drop(held);
            }));
        }
    }
}

impl SmcStream {
    /// Opens a connection, with the settings of [`Config::from_env`].
    ///
    /// Returns when TCP has connected; the upgrade happens later, while the stream is used.
    ///
    /// # Errors
    ///
    /// Those of [`TcpStream::connect`]. With [`UpgradePolicy::Require`] also `Unsupported` with the
    /// [`FallbackReason`], or `TimedOut`, when there is no upgrade.
    pub fn connect<A: ToSocketAddrs>(addr: A) -> io::Result<SmcStream> {
        Self::connect_with(addr, &Config::from_env())
    }

    /// Opens a connection with settings of its own; see [`SmcStream::connect`].
    ///
    /// # Errors
    ///
    /// Those of [`SmcStream::connect`].
    pub fn connect_with<A: ToSocketAddrs>(addr: A, config: &Config) -> io::Result<SmcStream> {
        let stream = SmcStream::connected(TcpStream::connect(addr)?, config.clone());
        stream.after_connect(None)?;
        Ok(stream)
    }

    /// Opens a connection to one address within `timeout`, with the settings of
    /// [`Config::from_env`].
    ///
    /// # Errors
    ///
    /// Those of [`TcpStream::connect_timeout`] and of [`SmcStream::connect`].
    pub fn connect_timeout(addr: &SocketAddr, timeout: Duration) -> io::Result<SmcStream> {
        let began = Instant::now();
        let tcp = TcpStream::connect_timeout(addr, timeout)?;
        let stream = SmcStream::connected(tcp, Config::from_env());
        stream.after_connect(Some(timeout.saturating_sub(began.elapsed())))?;
        Ok(stream)
    }

    fn connected(tcp: TcpStream, config: Config) -> SmcStream {
        Self::with_mode(tcp, Role::Client, config, Mode::default())
    }

    pub(super) fn accepted(tcp: TcpStream, config: Config) -> SmcStream {
        // The kernel hands a listener's timeouts on to what it accepts.
        let mode = Mode { nonblocking: false, ..Mode::of(&tcp) };
        Self::with_mode(tcp, Role::Server, config, mode)
    }

    fn with_mode(tcp: TcpStream, role: Role, config: Config, mode: Mode) -> SmcStream {
        let stays = config.off || config.upgrade_policy == UpgradePolicy::Never;
        let busy_poll = if stays { Duration::ZERO } else { rt::busy_poll(&config) };
        let tcp = Arc::new(MioTcp::new(tcp));
        let conn = Connection::new(tcp.clone(), role, config);
        let shared = Shared {
            conn,
            tcp,
            engine: OnceLock::new(),
            nonblocking: AtomicBool::new(mode.nonblocking),
            reads: Direction::new(busy_poll, stays, mode.read_timeout),
            writes: Direction::new(busy_poll, stays, mode.write_timeout),
            parkers: Mutex::default(),
            late: Mutex::default(),
            has_late: AtomicBool::new(false),
        };
        SmcStream { shared: Arc::new(shared) }
    }

    /// Enters an accepted stream into the table of its endpoint.
    pub(super) fn register(&self, client: SocketAddr, place: &Place<Arc<Engine>>) {
        self.shared.enter(place.keeper.clone());
        let linked: Arc<dyn LinkedStream> = self.shared.conn.clone();
        self.shared.conn.keep_registration(place.accept(client, &linked));
    }

    /// Its listener has no place where a client could find this stream.
    pub(super) fn stay_on_tcp(&self, reason: FallbackReason) {
        self.shared.conn.verdict(Verdict::StayOnTcp(reason));
    }

    /// Makes a stream of a connected std socket, in whichever mode it is.
    ///
    /// Nothing is known about what has passed through it, so it is upgraded only by
    /// [`SmcStream::upgrade`], and only offers; the other end has to come from an `SmcListener`.
    pub fn from_std(stream: TcpStream) -> SmcStream {
        let mode = Mode::of(&stream);
        let stream = SmcStream::with_mode(stream, Role::Adopted, Config::from_env(), mode);
        let linked: Arc<dyn LinkedStream> = stream.shared.conn.clone();
        if let Some(other) =
            linked.subject().ok().and_then(|ours| adopt(ours.cookie, Arc::downgrade(&linked)))
        {
            linked.verdict(Verdict::SocketShared);
            other.verdict(Verdict::SocketShared);
        }
        stream
    }

    /// Takes the TCP socket out, which then stays one for every clone of this stream.
    ///
    /// # Errors
    ///
    /// When the stream has moved to shared memory: `Unsupported`, and the stream as it was.
    pub fn into_std(self) -> Result<TcpStream, (SmcStream, io::Error)> {
        if let Err(error) = self.shared.conn.pin("into_std", Directions::Both) {
            return Err((self, error));
        }
        match Arc::try_unwrap(self.shared) {
            Ok(shared) => {
                drop(shared.conn.take_socket());
                let tcp = shared.tcp.clone();
                drop(shared);
                match Arc::into_inner(tcp).and_then(MioTcp::into_std) {
                    Some(tcp) => Ok(tcp),
                    None => unreachable!("the connection has let go, and nobody else ever has the socket"),
                }
            }
            Err(shared) => {
                let tcp = shared.tcp.std().try_clone();
                tcp.map_err(|error| (SmcStream { shared }, error))
            }
        }
    }

    /// Makes another handle of this stream: both read and write the same bytes, and have the same
    /// options.
    ///
    /// # Errors
    ///
    /// None so far; [`TcpStream::try_clone`] has some.
    pub fn try_clone(&self) -> io::Result<SmcStream> {
        Ok(SmcStream { shared: self.shared.clone() })
    }

    /// Reads what is next without taking it; the bytes are returned again by the next read.
    ///
    /// # Errors
    ///
    /// As a read.
    pub fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.shared.peek(buf)
    }

    /// Ends one direction or both, for every clone; who waits for it goes on.
    ///
    /// # Errors
    ///
    /// Those of [`TcpStream::shutdown`].
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.shared.shutdown(how)
    }
}

/// The modes that a socket brings along.
#[derive(Default)]
struct Mode {
    nonblocking: bool,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

impl Mode {
    fn of(tcp: &TcpStream) -> Self {
        let flags = rustix::fs::fcntl_getfl(tcp);
        Mode {
            nonblocking: flags.is_ok_and(|flags| flags.contains(rustix::fs::OFlags::NONBLOCK)),
            read_timeout: tcp.read_timeout().unwrap_or(None),
            write_timeout: tcp.write_timeout().unwrap_or(None),
        }
    }
}

impl Shared {
    /// From now on the stream may be served by that thread.
    pub(super) fn enter(&self, engine: Arc<Engine>) {
        self.tcp.enter(engine.executor());
        let _ = self.engine.set(engine);
    }

    pub(super) fn is_nonblocking(&self) -> bool {
        self.nonblocking.load(Ordering::Relaxed)
    }

    pub(super) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        // What stays on TCP is left to the kernel, which has to know it, too.
        self.tcp.std().set_nonblocking(nonblocking)?;
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
        Ok(())
    }

    /// After a read or a write that came to something.
    #[inline]
    fn done(&self, operation: Operation, answer: &io::Result<usize>) {
        if answer.is_ok() && self.conn.triggered(operation) {
            self.offer();
        }
    }

    /// The kernel does it, and waits where there is something to wait for.
    fn past(
        &self,
        operation: Operation,
        io: impl FnOnce(&TcpStream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let length = io(self.tcp.std())?;
        self.conn.count_past(operation, length);
        Ok(length)
    }

    /// A write that has written a part tells of its error later, as the kernel does: to the next
    /// write, or to a read that would else see the end.
    fn keep_error(&self, error: io::Error) {
        // Others come again by themselves: that there was no room, and that nobody reads any more.
        if error.kind() == io::ErrorKind::ConnectionReset {
            *lock(&self.late) = Some(error);
            self.has_late.store(true, Ordering::Release);
        }
    }

    fn late_error(&self) -> Option<io::Error> {
        // Acquire: pairs with the Release in `keep_error`.
        if !self.has_late.load(Ordering::Acquire) {
            return None;
        }
        self.has_late.store(false, Ordering::Relaxed);
        lock(&self.late).take()
    }

    /// What a read has found, unless that is an end with an error before it.
    fn or_late_error(&self, answer: io::Result<usize>) -> io::Result<usize> {
        match answer {
            Ok(0) => self.late_error().map_or(Ok(0), Err),
            answer => answer,
        }
    }

    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let answer = match self.read_with(rt::reading(&mut &mut *buf)) {
            Some(answer) => {
                self.done(Operation::Read, &answer);
                answer
            }
            None => self.past(Operation::Read, |mut tcp| tcp.read(buf)),
        };
        self.or_late_error(answer)
    }

    fn read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Ok(0);
        }
        let answer = match self.read_with(rt::reading_vectored(bufs)) {
            Some(answer) => {
                self.done(Operation::Read, &answer);
                answer
            }
            None => self.past(Operation::Read, |mut tcp| tcp.read_vectored(bufs)),
        };
        self.or_late_error(answer)
    }

    fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let answer = self.read_with(rt::peeking(&mut &mut *buf)).unwrap_or_else(|| self.tcp.std().peek(buf));
        self.or_late_error(answer)
    }

    /// As the kernel does, it waits until all is written: less is for who does not wait, or not any
    /// longer.
    fn write(&self, buf: &[u8]) -> io::Result<usize> {
        self.write_until(self.writes.deadline(), buf)
    }

    fn write_until(&self, deadline: Option<Instant>, buf: &[u8]) -> io::Result<usize> {
        if let Some(error) = self.late_error() {
            return Err(error);
        }
        let mut written = 0;
        loop {
            let left = &buf[written..];
            let (answer, by_kernel) = match self.write_with(deadline, rt::writing(left)) {
                Some(answer) => {
                    self.done(Operation::Write, &answer);
                    (answer, false)
                }
                None => (self.past(Operation::Write, |mut tcp| tcp.write(left)), true),
            };
            match answer {
                Ok(length) => written += length,
                Err(error) if written > 0 => {
                    self.keep_error(error);
                    return Ok(written);
                }
                Err(error) => return Err(error),
            }
            // Less than all from the kernel is all that it had time for.
            if written == buf.len() || by_kernel || self.is_nonblocking() {
                return Ok(written);
            }
        }
    }

    fn write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        if let Some(error) = self.late_error() {
            return Err(error);
        }
        let deadline = self.writes.deadline();
        let length = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        let answer = match self.write_with(deadline, rt::writing_vectored(bufs)) {
            Some(answer) => {
                self.done(Operation::Write, &answer);
                answer
            }
            None => return self.past(Operation::Write, |mut tcp| tcp.write_vectored(bufs)),
        };
        let mut written = answer?;
        if written == length || self.is_nonblocking() {
            return Ok(written);
        }
        // The rest, buffer by buffer.
        let mut before = 0;
        for buf in bufs {
            let from = written.saturating_sub(before).min(buf.len());
            before += buf.len();
            let left = &buf[from..];
            if left.is_empty() {
                continue;
            }
            match self.write_until(deadline, left) {
                Ok(more) => written += more,
                Err(error) => {
                    self.keep_error(error);
                    break;
                }
            }
            if written < before {
                break;
            }
        }
        Ok(written)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Read {
            self.conn.shutdown_write()?;
            // Another thread may wait for room that it must not use any more.
            self.conn.waiters.writers().wake_all();
        }
        if how != Shutdown::Write {
            self.tcp.std().shutdown(Shutdown::Read)?;
            // The ring has to know of it, and who waits there.
            self.conn.check_socket();
        }
        Ok(())
    }
}

impl Read for SmcStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.shared.read(buf)
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.shared.read_vectored(bufs)
    }
}

impl Read for &SmcStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.shared.read(buf)
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.shared.read_vectored(bufs)
    }
}

impl Write for SmcStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.shared.write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.shared.write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for &SmcStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.shared.write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.shared.write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// As std's TcpStream: a panic in one thread leaves the stream as it was, every step under its locks
// is whole.
impl UnwindSafe for SmcStream {}
impl RefUnwindSafe for SmcStream {}

/// The TCP socket, for options. It is idle once the stream has moved to shared memory: reading from
/// it or writing to it goes past the stream then, and waiting for it in poll(2) or epoll tells
/// nothing of what is in the ring: that is what a readiness set is for. Shutting it down is noticed
/// by both ends, soon.
///
/// Bytes that are read or written on it *before* the upgrade, or urgent data, keep the stream on
/// TCP ([`FallbackReason::Positions`]), and so do some options (`docs/options.md`).
impl AsFd for SmcStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.tcp.as_fd()
    }
}

impl AsRawFd for SmcStream {
    fn as_raw_fd(&self) -> RawFd {
        self.shared.tcp.std().as_raw_fd()
    }
}

impl From<TcpStream> for SmcStream {
    /// As [`SmcStream::from_std`].
    fn from(stream: TcpStream) -> SmcStream {
        SmcStream::from_std(stream)
    }
}

impl From<OwnedFd> for SmcStream {
    /// As [`SmcStream::from_std`].
    fn from(fd: OwnedFd) -> SmcStream {
        SmcStream::from_std(TcpStream::from(fd))
    }
}

impl fmt::Debug for SmcStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmcStream")
            .field("local_addr", &self.local_addr().ok())
            .field("peer_addr", &self.peer_addr().ok())
            .field("transport", &self.transport())
            .finish()
    }
}
