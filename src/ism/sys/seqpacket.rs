//! The control connection of a link: unix sockets that keep message boundaries and carry file
//! descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// Descriptors one message can carry.
pub(crate) const MOST_FDS: usize = 8;

/// Connections that may wait for `accept`; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 1024;

/// A socket that is neither bound nor connected, non-blocking.
pub(crate) fn seqpacket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Makes `socket` a listener at `path`, which must not exist yet and must fit a socket address (107
/// bytes).
pub(crate) fn seqpacket_bind(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    // Strangers reach it, too: no descriptor of theirs gets into a queue of ours. Older kernels can
    // not do that.
    let _ = super::rights::refuse_rights(socket.as_fd());
    rustix::net::bind(socket, &SocketAddrUnix::new(path)?)?;
    Ok(rustix::net::listen(socket, BACKLOG)?)
}

/// A non-blocking listener at `path`.
#[cfg(test)]
pub(crate) fn seqpacket_listen(path: &Path) -> io::Result<OwnedFd> {
    let fd = seqpacket()?;
    seqpacket_bind(&fd, path)?;
    Ok(fd)
}

/// A non-blocking connection to the listener at `path`, to which nobody can send descriptors yet
/// (where the kernel can do that).
///
/// # Errors
///
/// `NotFound`, `ConnectionRefused` (nobody listens), `WouldBlock` (too many wait to be accepted).
pub(crate) fn seqpacket_connect(path: &Path) -> io::Result<OwnedFd> {
    let fd = seqpacket()?;
    let _ = super::rights::refuse_rights(fd.as_fd());
    let address = SocketAddrUnix::new(path)?;
    retry_on_intr(|| rustix::net::connect(&fd, &address))?;
    Ok(fd)
}

/// The next connection of a listener, as unwilling to take descriptors as that; `None` when none
/// waits.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    loop {
        match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Sends one message, whole or not at all, without waiting and without SIGPIPE.
///
/// # Errors
///
/// `WouldBlock` when the peer's queue is full; `InvalidInput` for an empty message (it would look
/// like the end of the connection) or more than [`MOST_FDS`] descriptors.
pub(crate) fn send(fd: BorrowedFd<'_>, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if message.is_empty() || fds.len() > MOST_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = retry_on_intr(|| rustix::net::sendmsg(fd, &[IoSlice::new(message)], &mut control, flags))?;
    // The kernel refuses a message that does not fit (EMSGSIZE) or sends all of it.
    if sent != message.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

/// One received message.
#[derive(Debug)]
pub(crate) struct Received {
    /// Bytes of the message; 0 is the end of the connection.
    pub(crate) len: usize,
    /// The descriptors that came with it.
    pub(crate) carried: Carried,
}

/// The descriptors that a message brought, close-on-exec. None of them waits when it is closed.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    pub(crate) fds: Vec<OwnedFd>,
    /// What kept others from being here: this process had no number left, or may not ask what they
    /// are. The message is still in the queue, since nobody knows how long their close would take:
    /// [`take`] it where that does no harm.
    pub(crate) left: Option<io::Error>,
}

/// Receives one message into `buf`, with at most `max_fds` descriptors.
///
/// Whoever closes a descriptor last does what its close takes, for as long as that takes
/// (`SO_LINGER`, a file system in user space). So a message is looked at while the queue still
/// holds what it brings; it leaves the queue only when it brings nothing, or memory files and
/// eventfds, whose closes never wait. One reader at a time.
///
/// # Errors
///
/// `WouldBlock` when there is none; `InvalidData` for a message that is longer than `buf` or brings
/// more or other descriptors than allowed, or brings them with nothing. Such a message stays in the
/// queue, for a close of the socket that may wait.
pub(crate) fn recv(fd: BorrowedFd<'_>, buf: &mut [u8], max_fds: usize) -> io::Result<Received> {
    let refuse =
        |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, format!("control message {what}")));
    let seen = look(fd, buf)?;
    if seen.cut {
        return refuse("is too long");
    }
    if !seen.brings {
        // An empty message looks like the end of the connection, and counts as that.
        if seen.bytes > 0 {
            take(fd)?;
        }
        return Ok(Received { len: seen.bytes, carried: Carried::default() });
    }
    if max_fds == 0 {
        return refuse("brings descriptors");
    }
    if seen.bytes == 0 {
        return refuse("is empty but brings descriptors");
    }
    let mut carried = peek_fds(fd)?;
    if carried.fds.len() > max_fds {
        return refuse("brings too many descriptors");
    }
    for brought in &carried.fds {
        match super::rights::closes_at_once(brought.as_fd()) {
            Ok(true) => {}
            Ok(false) => return refuse("brings a descriptor that no message has"),
            Err(error) => carried.left = Some(error),
        }
    }
    if carried.left.is_none() {
        take(fd)?;
    } else {
        // Of what nobody knows none is kept.
        carried.fds.retain(|brought| super::rights::closes_at_once(brought.as_fd()).is_ok());
    }
    Ok(Received { len: seen.bytes, carried })
}

/// What is seen of the first message in the queue, without taking it.
struct Seen {
    bytes: usize,
    /// It is longer than that.
    cut: bool,
    /// Descriptors come with it.
    brings: bool,
}

fn look(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<Seen> {
    let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
    // Without room for control data the kernel only says that there is some.
    let mut nothing = RecvAncillaryBuffer::default();
    let seen = retry_on_intr(|| rustix::net::recvmsg(fd, &mut [IoSliceMut::new(buf)], &mut nothing, flags))?;
    let (cut, brings) = (seen.flags.contains(ReturnFlags::TRUNC), seen.flags.contains(ReturnFlags::CTRUNC));
    Ok(Seen { bytes: seen.bytes, cut, brings })
}

/// Copies of the descriptors of the first message in the queue: until that is taken, they are not
/// the last ones.
///
/// # Errors
///
/// `InvalidData` when there are more than [`MOST_FDS`].
fn peek_fds(fd: BorrowedFd<'_>) -> io::Result<Carried> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
    let seen =
        retry_on_intr(|| rustix::net::recvmsg(fd, &mut [IoSliceMut::new(&mut [])], &mut control, flags))?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    // With room for more it was a number that the kernel lacked.
    let cut_short = seen.flags.contains(ReturnFlags::CTRUNC);
    if cut_short && fds.len() >= MOST_FDS {
        let words = "control message brings too many descriptors";
        return Err(io::Error::new(io::ErrorKind::InvalidData, words));
    }
    Ok(Carried { fds, left: cut_short.then(|| Errno::MFILE.into()) })
}

/// Takes the first message out of the queue and closes what it brings and nobody has a copy of:
/// that may wait.
pub(crate) fn take(fd: BorrowedFd<'_>) -> io::Result<()> {
    retry_on_intr(|| rustix::net::recv(fd, &mut [0u8; 0][..], RecvFlags::DONTWAIT))?;
    Ok(())
}

/// Messages that [`can_close_at_once`] takes out of a queue before it thinks that there is no end
/// of them.
const MOST_UNREAD: usize = 4096;

/// Ends the connection `fd` and empties its queue, as far as that waits for nothing. True: the
/// close of `fd` waits for nothing either.
pub(crate) fn can_close_at_once(fd: BorrowedFd<'_>) -> bool {
    if super::rights::refuses_rights(fd) {
        return true;
    }
    // Nothing is queued after this.
    if shutdown_socket(fd).is_err() {
        return false;
    }
    for _ in 0..MOST_UNREAD {
        // One byte tells a message from the end.
        let taken = match look(fd, &mut [0]) {
            Ok(Seen { bytes: 0, brings: false, .. }) => return true,
            Ok(Seen { brings: false, .. }) => take(fd),
            Ok(_) => match peek_fds(fd) {
                Ok(Carried { fds, left: None }) if fds.iter().all(is_harmless) => take(fd),
                _ => return false,
            },
            Err(error) => Err(error),
        };
        match taken {
            Ok(()) => {}
            // The peer has closed without reading all of ours: told once.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(_) => return false,
        }
    }
    false
}

/// Empties the queue of `fd`, which was ended, however long that takes: then its close waits for
/// nothing, whoever comes to be the last to close it.
pub(crate) fn empty(fd: BorrowedFd<'_>) {
    loop {
        let taken = match look(fd, &mut [0]) {
            Ok(Seen { bytes: 0, brings: false, .. }) => return,
            Ok(_) => take(fd),
            // It listens: what waits to be accepted has queues of its own.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => match accept(fd) {
                Ok(Some(waiting)) => {
                    let _ = shutdown_socket(waiting.as_fd());
                    empty(waiting.as_fd());
                    Ok(())
                }
                _ => return,
            },
            Err(error) => Err(error),
        };
        // A reset is told once.
        if taken.is_err_and(|error| error.kind() != io::ErrorKind::ConnectionReset) {
            return;
        }
    }
}

fn is_harmless(fd: &OwnedFd) -> bool {
    super::rights::closes_at_once(fd.as_fd()).unwrap_or(false)
}

/// Ends a connection in both directions; the peer and our own waiters see its end.
pub(crate) fn shutdown_socket(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::shutdown(fd, rustix::net::Shutdown::Both)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::super::credentials::{PeerCred, peer_cred};
    use super::super::memory::memfd_sealed;
    use super::super::rights::allow_rights;
    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = seqpacket_listen(&path).unwrap();
        assert!(accept(listener.as_fd()).unwrap().is_none());
        let client = seqpacket_connect(&path).unwrap();
        let server = accept(listener.as_fd()).unwrap().unwrap();
        for fd in [&listener, &client, &server] {
            assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
            assert!(rustix::fs::fcntl_getfl(fd).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
        }
        for fd in [&client, &server] {
            allow_rights(fd.as_fd());
        }
        (client, server)
    }

    /// Whether `done` comes true; a child that another test forks has copies of our descriptors
    /// until it execs.
    fn soon(done: impl Fn() -> bool) -> bool {
        for _ in 0..1000 {
            if done() {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        false
    }

    /// One end of a pair of sockets, and a check that every copy of it has been closed.
    fn traced() -> (OwnedFd, impl Fn() -> bool) {
        let (reader, writer) = UnixStream::pair().unwrap();
        reader.set_nonblocking(true).unwrap();
        let closed = move || rustix::io::read(&reader, &mut [0u8; 1]) == Ok(0);
        (writer.into(), move || soon(&closed))
    }

    #[test]
    fn messages_keep_their_boundaries() {
        let (a, b) = pair();
        let mut buf = [0; 16];
        assert_eq!(recv(b.as_fd(), &mut buf, 0).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        send(a.as_fd(), b"one", &[]).unwrap();
        send(a.as_fd(), b"three", &[]).unwrap();
        assert_eq!(recv(b.as_fd(), &mut buf, 0).unwrap().len, 3);
        assert_eq!(recv(b.as_fd(), &mut buf, 0).unwrap().len, 5);
        assert_eq!(&buf[..5], b"three");
        assert_eq!(send(a.as_fd(), b"", &[]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        drop(a);
        assert_eq!(recv(b.as_fd(), &mut buf, 0).unwrap().len, 0);
        assert_eq!(send(b.as_fd(), b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_full_queue_would_block() {
        let (a, b) = pair();
        let mut sent = 0;
        let error = loop {
            match send(a.as_fd(), &[7; 4096], &[]) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let mut buf = [0; 4096];
        for _ in 0..sent {
            assert_eq!(recv(b.as_fd(), &mut buf, 0).unwrap().len, 4096);
        }
        send(a.as_fd(), b"again", &[]).unwrap();
    }

    #[test]
    fn descriptors_travel_and_are_close_on_exec() {
        let (a, b) = pair();
        let (memory, bell) = (memfd_sealed(4096).unwrap(), super::super::eventfd().unwrap());
        send(a.as_fd(), b"two", &[memory.as_fd(), bell.as_fd()]).unwrap();
        send(a.as_fd(), b"next", &[]).unwrap();
        let mut buf = [0; 8];
        let got = recv(b.as_fd(), &mut buf, 2).unwrap();
        assert_eq!((&buf[..got.len], got.carried.fds.len()), (&b"two"[..], 2));
        for (fd, sent) in got.carried.fds.iter().zip([memory, bell]) {
            assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
            let (came, sent) = (rustix::fs::fstat(fd).unwrap(), rustix::fs::fstat(sent).unwrap());
            assert_eq!((came.st_dev, came.st_ino), (sent.st_dev, sent.st_ino), "in their order");
        }
        assert_eq!(recv(b.as_fd(), &mut buf, 2).unwrap().len, 4, "it has left the queue");
    }

    /// What is refused stays in the queue, with its descriptors, until the socket is closed.
    #[track_caller]
    fn refused(b: OwnedFd, allowed: usize, closed: impl Fn() -> bool, still_open: impl Fn() -> bool) {
        for _ in 0..2 {
            let error = recv(b.as_fd(), &mut [0; 8], allowed).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "for {allowed}");
            assert!(still_open(), "for {allowed}");
        }
        assert!(!can_close_at_once(b.as_fd()), "for {allowed}");
        drop(b);
        assert!(closed(), "for {allowed}");
    }

    #[test]
    fn surplus_descriptors_are_refused_and_left_in_the_queue() {
        // 2 for 1: fits the kernel's padding, so that it reports no truncation.
        for (sent, allowed) in [(1, 0), (1, 1), (2, 1), (MOST_FDS, 3), (MOST_FDS + 5, MOST_FDS)] {
            let (a, b) = pair();
            let (reader, writer) = UnixStream::pair().unwrap();
            reader.set_nonblocking(true).unwrap();
            let fds = vec![writer.as_fd(); sent];
            // Another implementation sends more than ours would.
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS + 5))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            rustix::net::sendmsg(&a, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
            drop(writer);
            let open = || rustix::io::read(&reader, &mut [0u8; 1]) == Err(Errno::AGAIN);
            refused(b, allowed, || soon(|| !open()), open);
        }
        let (a, _b) = pair();
        let null = std::fs::File::open("/dev/null").unwrap();
        let many = [null.as_fd(); MOST_FDS + 1];
        assert_eq!(send(a.as_fd(), b"x", &many).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_message_too_long_or_empty_is_refused_and_left_in_the_queue() {
        for message in [&b"123456789"[..], b""] {
            let (a, b) = pair();
            let (fd, closed) = traced();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds = [fd.as_fd()];
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            rustix::net::sendmsg(&a, &[IoSlice::new(message)], &mut control, SendFlags::empty()).unwrap();
            drop(fd);
            refused(b, 1, closed, || true);
        }
        let (a, b) = pair();
        send(a.as_fd(), b"12345678", &[]).unwrap();
        assert_eq!(recv(b.as_fd(), &mut [0; 8], 1).unwrap().len, 8, "exactly full is not too long");
    }

    #[test]
    fn what_waits_to_be_accepted_is_emptied_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = seqpacket_listen(&path).unwrap();
        // As before Linux 6.16.
        allow_rights(listener.as_fd());
        let clients: Vec<_> = (0..3).map(|_| seqpacket_connect(&path).unwrap()).collect();
        let closed: Vec<_> = clients
            .iter()
            .map(|client| {
                let (fd, closed) = traced();
                send(client.as_fd(), b"x", &[fd.as_fd()]).unwrap();
                closed
            })
            .collect();
        assert!(!can_close_at_once(listener.as_fd()));
        empty(listener.as_fd());
        assert!(closed.into_iter().all(|closed| closed()));
        drop(clients);
    }

    #[test]
    fn a_queue_of_what_closes_at_once_is_emptied() {
        let (a, b) = pair();
        let memory = memfd_sealed(4096).unwrap();
        for length in [1, 100, 5000] {
            send(a.as_fd(), &vec![1; length], &[]).unwrap();
            send(a.as_fd(), &vec![1; length], &[memory.as_fd()]).unwrap();
        }
        assert!(can_close_at_once(b.as_fd()));
        assert_eq!(send(a.as_fd(), b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(recv(b.as_fd(), &mut [0; 8], 1).unwrap().len, 0, "nothing is left");
    }

    #[test]
    fn only_memory_of_a_final_size_and_eventfds_are_taken() {
        let unsealed = rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        let huge = memfd_sealed(1 << 40).unwrap();
        let file = tempfile::tempfile().unwrap();
        let timer = super::super::timerfd().unwrap();
        let path =
            rustix::fs::open("/dev/null", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        for fd in [unsealed, huge, file.into(), timer, path] {
            let (a, b) = pair();
            send(a.as_fd(), b"x", &[fd.as_fd()]).unwrap();
            assert_eq!(
                recv(b.as_fd(), &mut [0; 8], 1).unwrap_err().kind(),
                io::ErrorKind::InvalidData,
                "{fd:?}"
            );
        }
    }

    #[test]
    fn nobody_puts_descriptors_into_a_queue_that_refuses_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = seqpacket_listen(&path).unwrap();
        let client = seqpacket_connect(&path).unwrap();
        let (fd, _) = traced();
        let to_server = || send(client.as_fd(), b"x", &[fd.as_fd()]);
        // Before Linux 6.16 it only arrives.
        let before_accept = to_server();
        let server = accept(listener.as_fd()).unwrap().unwrap();
        if !super::super::rights::refuses_rights(listener.as_fd()) {
            before_accept.unwrap();
            return;
        }
        let refused = |sent: io::Result<()>| sent.unwrap_err().raw_os_error() == Some(libc::EPERM);
        assert!(refused(before_accept) && refused(to_server()));
        assert!(refused(send(server.as_fd(), b"x", &[fd.as_fd()])), "the client's queue refuses them, too");
        allow_rights(server.as_fd());
        to_server().unwrap();
        assert!(refused(send(server.as_fd(), b"x", &[fd.as_fd()])), "each for itself");
    }

    #[test]
    fn credentials_are_the_peers() {
        let (a, b) = pair();
        let me = PeerCred {
            pid: std::process::id().try_into().unwrap(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        };
        assert_eq!(peer_cred(a.as_fd()).unwrap(), me);
        assert_eq!(peer_cred(b.as_fd()).unwrap(), me);
        assert!(peer_cred(std::fs::File::open("/dev/null").unwrap().as_fd()).is_err());
    }

    #[test]
    fn nobody_listening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert_eq!(seqpacket_connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(seqpacket_listen(&path).unwrap());
        let refused =
            || seqpacket_connect(&path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        assert!(soon(refused));
        assert!(seqpacket_listen(&dir.path().join("x".repeat(120))).is_err());
    }
}
