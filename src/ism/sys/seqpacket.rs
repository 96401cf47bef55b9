//! The control connection of a link: unix sockets that keep message boundaries and carry file
//! descriptors.
#![expect(unsafe_code, reason = "SO_PEERCRED as plain integers")]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
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

/// A non-blocking connection to the listener at `path`.
///
/// # Errors
///
/// `NotFound`, `ConnectionRefused` (nobody listens), `WouldBlock` (too many wait to be accepted).
pub(crate) fn seqpacket_connect(path: &Path) -> io::Result<OwnedFd> {
    let fd = seqpacket()?;
    let address = SocketAddrUnix::new(path)?;
    retry_on_intr(|| rustix::net::connect(&fd, &address))?;
    Ok(fd)
}

/// The next connection of a listener; `None` when none waits.
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

/// The descriptors that a message brought, close-on-exec.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    pub(crate) fds: Vec<OwnedFd>,
    /// This process had no number left for one, which is gone with all behind it.
    pub(crate) cut_short: bool,
}

/// Receives one message into `buf`, with at most `max_fds` descriptors.
///
/// # Errors
///
/// `WouldBlock` when there is none; `InvalidData` for a message that is longer than `buf` or brings
/// more descriptors than allowed, or brings them with nothing: whatever came with it has been
/// closed.
pub(crate) fn recv(fd: BorrowedFd<'_>, buf: &mut [u8], max_fds: usize) -> io::Result<Received> {
    let refuse =
        |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, format!("control message {what}")));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = retry_on_intr(|| rustix::net::recvmsg(fd, &mut [IoSliceMut::new(buf)], &mut control, flags))?;
    // All descriptors are owned from here on: an early return closes them.
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return refuse("is too long");
    }
    // There was room for more: the kernel found no number for one, and has closed it and those
    // behind it.
    let cut_short = got.flags.contains(ReturnFlags::CTRUNC) && fds.len() < MOST_FDS;
    if (got.flags.contains(ReturnFlags::CTRUNC) && !cut_short) || fds.len() > max_fds {
        return refuse("brings too many descriptors");
    }
    if got.bytes == 0 && !fds.is_empty() {
        return refuse("is empty but brings descriptors");
    }
    Ok(Received { len: got.bytes, carried: Carried { fds, cut_short } })
}

/// Ends a connection in both directions; the peer and our own waiters see its end.
pub(crate) fn shutdown_socket(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::shutdown(fd, rustix::net::Shutdown::Both)?)
}

/// Who was at the other end of a unix connection when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerCred {
    /// Process id as this process sees it; 0 when the peer lives in a pid namespace we cannot look
    /// into.
    pub(crate) pid: i32,
    /// Effective user id then.
    pub(crate) uid: u32,
    /// Effective group id then.
    pub(crate) gid: u32,
}

/// The credentials of the peer of a connected unix socket (SO_PEERCRED).
pub(crate) fn peer_cred(fd: BorrowedFd<'_>) -> io::Result<PeerCred> {
    // Not rustix's `socket_peercred`: its pid type cannot hold the 0 that peers in other pid
    // namespaces have.
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let size = size_of::<libc::ucred>() as libc::socklen_t;
    let mut length = size;
    // SAFETY: the pointers are to a `ucred` and to its size; the call writes no more than that many
    // bytes.
    let status = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut length,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    if length != size {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(PeerCred { pid: cred.pid, uid: cred.uid, gid: cred.gid })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

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
        let (one, one_closed) = traced();
        let (two, two_closed) = traced();
        send(a.as_fd(), b"two", &[one.as_fd(), two.as_fd()]).unwrap();
        drop((one, two));
        let got = recv(b.as_fd(), &mut [0; 8], 2).unwrap();
        assert_eq!((got.len, got.carried.fds.len()), (3, 2));
        for fd in &got.carried.fds {
            assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
        drop(got);
        assert!(one_closed() && two_closed());
    }

    #[test]
    fn surplus_descriptors_are_refused_and_closed() {
        // 2 for 1: fits the kernel's padding, so that it reports no truncation.
        for (sent, allowed) in [(1, 0), (2, 1), (MOST_FDS, 3)] {
            let (a, b) = pair();
            let (fds, closed): (Vec<_>, Vec<_>) = (0..sent).map(|_| traced()).unzip();
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            send(a.as_fd(), b"x", &borrowed).unwrap();
            drop(fds);
            let error = recv(b.as_fd(), &mut [0; 8], allowed).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{sent} for {allowed}");
            assert!(closed.into_iter().all(|closed| closed()), "{sent} for {allowed}");
        }
    }

    #[test]
    fn more_descriptors_than_any_message_has_are_refused_and_closed() {
        let (a, b) = pair();
        let (fds, closed): (Vec<_>, Vec<_>) = (0..MOST_FDS + 5).map(|_| traced()).unzip();
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        assert_eq!(send(a.as_fd(), b"x", &borrowed).unwrap_err().kind(), io::ErrorKind::InvalidInput);

        // Another implementation sends them anyway.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS + 5))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
        rustix::net::sendmsg(&a, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        drop(fds);
        let error = recv(b.as_fd(), &mut [0; 8], MOST_FDS).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(closed.into_iter().all(|closed| closed()), "received ones and truncated ones");
    }

    #[test]
    fn a_message_too_long_is_refused_and_its_descriptors_closed() {
        let (a, b) = pair();
        let (fd, closed) = traced();
        send(a.as_fd(), b"123456789", &[fd.as_fd()]).unwrap();
        drop(fd);
        let error = recv(b.as_fd(), &mut [0; 8], 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(closed());
        send(a.as_fd(), b"12345678", &[]).unwrap();
        assert_eq!(recv(b.as_fd(), &mut [0; 8], 1).unwrap().len, 8, "exactly full is not too long");
    }

    #[test]
    fn an_empty_message_with_descriptors_is_refused() {
        let (a, b) = pair();
        let (fd, closed) = traced();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        rustix::net::sendmsg(&a, &[IoSlice::new(b"")], &mut control, SendFlags::empty()).unwrap();
        drop(fd);
        let error = recv(b.as_fd(), &mut [0; 8], 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(closed());
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
