//! What the kernel knows and lets us set about a TCP socket, besides its byte counters.
#![expect(unsafe_code, reason = "socket options that rustix and socket2 lack")]

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, ipproto};

/// Reads a socket option into `buf`; returns the part the kernel filled.
pub(super) fn option<'buf>(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    buf: &'buf mut [u8],
) -> io::Result<&'buf [u8]> {
    let mut length = libc::socklen_t::try_from(buf.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the pointers are to `buf` and to its length; the kernel writes no more bytes than the
    // length says.
    let status =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, buf.as_mut_ptr().cast(), &raw mut length) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(buf.get(..length as usize).unwrap_or(buf))
}

/// Reads a socket option that is a C int.
pub(super) fn option_int(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value = [0; 4];
    match option(fd, level, name, &mut value)?.len() {
        4 => Ok(i32::from_ne_bytes(value)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Implements `FromRawFd` for a type that is `From<OwnedFd>`: the one line of it that the compiler
/// cannot check.
macro_rules! impl_from_raw_fd {
    ($socket:ty) => {
        impl std::os::fd::FromRawFd for $socket {
            /// Takes a TCP socket that is not connected yet and is in non-blocking mode.
            #[allow(unsafe_code, reason = "the trait's method is unsafe")]
            unsafe fn from_raw_fd(fd: std::os::fd::RawFd) -> Self {
                // SAFETY: the caller promises what `OwnedFd` asks for: an open descriptor that is
                // nobody else's.
                Self::from(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
            }
        }
    };
}
pub(crate) use impl_from_raw_fd;

/// The socket's cookie: unique on this host as long as it runs, never reused.
pub(crate) fn cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::net::sockopt::socket_cookie(fd)?)
}

/// Cookie of the network namespace the *socket* lives in, which need not be the process's.
///
/// # Errors
///
/// `ENOPROTOOPT` before Linux 5.14: nothing can be proved about the peer then.
pub(crate) fn netns_cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut value = [0; 8];
    match option(fd, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, &mut value)?.len() {
        8 => Ok(u64::from_ne_bytes(value)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Bytes of the receive buffer, if the application has set them (`SO_RCVBUF`), on this socket or on
/// its listener. Linux keeps twice of what is asked for.
///
/// # Errors
///
/// `ENOPROTOOPT` before Linux 5.14.
pub(crate) fn chosen_receive_buffer(fd: BorrowedFd<'_>) -> io::Result<Option<usize>> {
    // `SOCK_RCVBUF_LOCK` of Linux's include/uapi/linux/socket.h.
    const RECEIVE: i32 = 2;
    let chosen = option_int(fd, libc::SOL_SOCKET, libc::SO_BUF_LOCK)? & RECEIVE != 0;
    Ok(if chosen { Some(rustix::net::sockopt::socket_recv_buffer_size(fd)? / 2) } else { None })
}

/// Bytes of the send buffer, if the application has set them (`SO_SNDBUF`); as
/// [`chosen_receive_buffer`].
pub(crate) fn chosen_send_buffer(fd: BorrowedFd<'_>) -> io::Result<Option<usize>> {
    // `SOCK_SNDBUF_LOCK`.
    const SEND: i32 = 1;
    let chosen = option_int(fd, libc::SOL_SOCKET, libc::SO_BUF_LOCK)? & SEND != 0;
    Ok(if chosen { Some(rustix::net::sockopt::socket_send_buffer_size(fd)? / 2) } else { None })
}

/// Whether closing the socket resets the connection: SO_LINGER is {1, 0}.
pub(crate) fn linger_is_zero(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(rustix::net::sockopt::socket_linger(fd)? == Some(Duration::ZERO))
}

/// Makes closing the socket reset the connection.
pub(crate) fn set_zero_linger(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_linger(fd, Some(Duration::ZERO))?)
}

/// Resets the connection now and leaves the descriptor open: `connect(AF_UNSPEC)`.
pub(crate) fn reset_connection(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(retry_on_intr(|| rustix::net::connect_unspec(fd))?)
}

/// Writes to a stream socket what it takes now, as far as its queue of slices goes.
pub(crate) fn send_bytes(fd: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    // The kernel refuses more slices than that, and what is written may be short.
    const MOST_SLICES: usize = 1024;
    let slices = &slices[..slices.len().min(MOST_SLICES)];
    let send = || rustix::net::sendmsg(fd, slices, &mut SendAncillaryBuffer::default(), flags);
    Ok(retry_on_intr(send)?)
}

/// Takes at most as many bytes as `buf` has off a TCP socket; what `buf` holds then is of no use.
pub(crate) fn take_bytes(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    // Of TCP the second one says that nothing is copied.
    let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    let (_, length) = retry_on_intr(|| rustix::net::recv(fd, &mut *buf, flags))?;
    Ok(length)
}

/// TCP_NODELAY.
pub(crate) fn nodelay(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(rustix::net::sockopt::tcp_nodelay(fd)?)
}

/// Sets TCP_NODELAY.
pub(crate) fn set_nodelay(fd: BorrowedFd<'_>, nodelay: bool) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_tcp_nodelay(fd, nodelay)?)
}

/// Pushes out what Nagle's algorithm or TCP_CORK hold back, and leaves both options as they were.
///
/// Setting TCP_NODELAY pushes, also through a cork and also when it is set already.
pub(crate) fn push_unsent(fd: BorrowedFd<'_>) -> io::Result<()> {
    let before = nodelay(fd)?;
    set_nodelay(fd, true)?;
    if !before {
        set_nodelay(fd, false)?;
    }
    Ok(())
}

/// The socket's own address, live from the kernel.
pub(crate) fn local_addr(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    Ok(SocketAddr::try_from(rustix::net::getsockname(fd)?)?)
}

/// The peer's address, live from the kernel.
///
/// # Errors
///
/// `NotConnected` when the connection is over, though its address may still be cached elsewhere.
pub(crate) fn peer_addr(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let address = rustix::net::getpeername(fd)?.ok_or(io::ErrorKind::NotConnected)?;
    Ok(SocketAddr::try_from(address)?)
}

/// Why this socket must stay on TCP whatever the peer says; `None` when nothing is against an
/// upgrade.
///
/// Each of these makes the kernel do something with the bytes, or with their timing, that a ring
/// would not, or says that the application means to use the socket itself. `docs/options.md` has
/// the decision about every option there is.
pub(crate) fn ineligible(fd: BorrowedFd<'_>) -> io::Result<Option<&'static str>> {
    use rustix::net::sockopt;

    if sockopt::socket_protocol(fd)? != Some(ipproto::TCP) {
        return Ok(Some("not plain TCP (multipath TCP, or another protocol)"));
    }
    if upper_layer(fd)? {
        return Ok(Some("an upper layer protocol (TCP_ULP, kernel TLS) is attached"));
    }
    if has_filter(fd)? {
        return Ok(Some("a filter is attached (SO_ATTACH_FILTER, SO_ATTACH_BPF)"));
    }
    for (level, name, neutral, words) in OPTIONS {
        match option_int(fd, level, name) {
            Ok(value) if neutral.contains(&value) => {}
            Ok(_) => return Ok(Some(words)),
            // A kernel that does not know it: nobody has set it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// `TCP_TX_DELAY` of Linux include/uapi/linux/tcp.h.
const TCP_TX_DELAY: i32 = 37;

/// Options that keep a stream on TCP, unless their value is one of these.
const OPTIONS: [(i32, i32, &[i32], &str); 13] = [
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT, &[1], "SO_RCVLOWAT is set"),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &[0], "TCP_USER_TIMEOUT is set"),
    // Covers SO_BINDTODEVICE as well, and connections accepted inside a VRF.
    (libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, &[0], "bound to a device or VRF"),
    // 0 is the kernel's own default (sysctl), which is nobody's wish for this stream; -1 is no
    // mark.
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, &[0, -1], "TCP_NOTSENT_LOWAT is set"),
    (libc::IPPROTO_TCP, TCP_TX_DELAY, &[0], "TCP_TX_DELAY is set"),
    (libc::IPPROTO_TCP, libc::TCP_REPAIR, &[0], "TCP_REPAIR is on"),
    // An urgent byte that is sent later would have its place in the stream.
    (libc::SOL_SOCKET, libc::SO_OOBINLINE, &[0], "SO_OOBINLINE is set"),
    (libc::SOL_SOCKET, libc::SO_PEEK_OFF, &[-1], "SO_PEEK_OFF is set"),
    // What these ask for comes with sendmsg(2) and recvmsg(2) on the socket.
    (libc::SOL_SOCKET, libc::SO_ZEROCOPY, &[0], "SO_ZEROCOPY is set"),
    (libc::IPPROTO_TCP, libc::TCP_INQ, &[0], "TCP_INQ is set"),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPING, &[0], "SO_TIMESTAMPING is set"),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMP, &[0], "SO_TIMESTAMP is set"),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &[0], "SO_TIMESTAMPNS is set"),
];

/// Whether a classic or an extended BPF program looks at what is received.
fn has_filter(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut length: libc::socklen_t = 0;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_GET_FILTER);
    // SAFETY: with a length of 0 the kernel writes nothing but the number of instructions to
    // `length`.
    let status =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, std::ptr::null_mut(), &raw mut length) };
    if status == 0 {
        return Ok(length > 0);
    }
    match io::Error::last_os_error() {
        // An extended program can not be read back.
        error if error.raw_os_error() == Some(libc::EACCES) => Ok(true),
        error => Err(error),
    }
}

/// Whether TCP_ULP names an upper layer protocol.
fn upper_layer(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // TCP_ULP_NAME_MAX (Linux include/net/tcp.h) is 16. Without one the kernel returns no bytes.
    let mut name = [0; 16];
    match option(fd, libc::IPPROTO_TCP, libc::TCP_ULP, &mut name) {
        Ok(name) => Ok(name.first().is_some_and(|byte| *byte != 0)),
        // A kernel that knows no upper layers (before 4.13).
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use socket2::{Domain, SockRef, Socket, Type};

    use super::super::tcp::unsent_out;
    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        for stream in [&client, &server] {
            // A watchdog: no test may hang.
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        (client, server)
    }

    #[test]
    fn cookies() {
        let (a, b) = pair();
        assert_eq!(cookie(a.as_fd()).unwrap(), cookie(a.as_fd()).unwrap());
        assert_eq!(cookie(a.as_fd()).unwrap(), cookie(a.try_clone().unwrap().as_fd()).unwrap());
        assert_ne!(cookie(a.as_fd()).unwrap(), cookie(b.as_fd()).unwrap());
        assert_eq!(netns_cookie(a.as_fd()).unwrap(), netns_cookie(b.as_fd()).unwrap());
        assert!(netns_cookie(std::fs::File::open("/dev/null").unwrap().as_fd()).is_err());
    }

    #[test]
    fn linger() {
        let (a, mut b) = pair();
        assert!(!linger_is_zero(a.as_fd()).unwrap());
        SockRef::from(&a).set_linger(Some(Duration::from_secs(1))).unwrap();
        assert!(!linger_is_zero(a.as_fd()).unwrap());
        set_zero_linger(a.as_fd()).unwrap();
        assert!(linger_is_zero(a.as_fd()).unwrap());
        drop(a);
        assert_eq!(b.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn reset_in_place() {
        let (a, mut b) = pair();
        reset_connection(a.as_fd()).unwrap();
        assert_eq!(b.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(peer_addr(a.as_fd()).unwrap_err().kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    fn addresses_are_live() {
        let (a, b) = pair();
        assert_eq!(local_addr(a.as_fd()).unwrap(), peer_addr(b.as_fd()).unwrap());
        assert_eq!(local_addr(b.as_fd()).unwrap(), peer_addr(a.as_fd()).unwrap());
        assert_eq!(local_addr(a.as_fd()).unwrap(), a.local_addr().unwrap());
    }

    #[test]
    fn a_cork_is_pushed_and_stays() {
        for nodelay_before in [false, true] {
            let (mut a, mut b) = pair();
            set_nodelay(a.as_fd(), nodelay_before).unwrap();
            rustix::net::sockopt::set_tcp_cork(&a, true).unwrap();
            a.write_all(&[1; 100]).unwrap();
            assert_eq!(unsent_out(a.as_fd()).unwrap(), 100, "corked");
            push_unsent(a.as_fd()).unwrap();
            assert_eq!(unsent_out(a.as_fd()).unwrap(), 0);
            b.read_exact(&mut [0; 100]).unwrap();
            assert_eq!(nodelay(a.as_fd()).unwrap(), nodelay_before);
            assert!(rustix::net::sockopt::tcp_cork(&a).unwrap());
        }
    }

    fn reason(stream: &impl AsFd) -> &'static str {
        ineligible(stream.as_fd()).unwrap().unwrap()
    }

    #[test]
    fn plain_connections_are_eligible() {
        let (a, b) = pair();
        assert_eq!(ineligible(a.as_fd()).unwrap(), None);
        assert_eq!(ineligible(b.as_fd()).unwrap(), None);
        a.set_nodelay(true).unwrap();
        SockRef::from(&a).set_recv_buffer_size(1 << 16).unwrap();
        assert_eq!(ineligible(a.as_fd()).unwrap(), None);
        if let Ok(listener) = TcpListener::bind("[::1]:0") {
            let v6 = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert_eq!(ineligible(v6.as_fd()).unwrap(), None);
        }
    }

    #[test]
    fn a_receive_low_water_mark_is_not() {
        let (a, _b) = pair();
        let value = 2i32;
        // SAFETY: the pointer is to an int, whose size is given.
        let status = unsafe {
            let size = size_of::<i32>() as libc::socklen_t;
            let value = (&raw const value).cast();
            libc::setsockopt(a.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, value, size)
        };
        assert_eq!(status, 0);
        assert!(reason(&a).contains("SO_RCVLOWAT"));
    }

    #[test]
    fn a_user_timeout_is_not() {
        let (a, _b) = pair();
        SockRef::from(&a).set_tcp_user_timeout(Some(Duration::from_secs(5))).unwrap();
        assert!(reason(&a).contains("TCP_USER_TIMEOUT"));
        SockRef::from(&a).set_tcp_user_timeout(None).unwrap();
        assert_eq!(ineligible(a.as_fd()).unwrap(), None);
    }

    #[test]
    fn bound_devices_are_not() {
        let (a, _b) = pair();
        SockRef::from(&a).bind_device(Some(b"lo")).unwrap();
        assert!(reason(&a).contains("device"));
        let (a, _b) = pair();
        SockRef::from(&a).bind_device_by_index_v4(std::num::NonZeroU32::new(1)).unwrap();
        assert!(reason(&a).contains("device"));
    }

    #[test]
    fn other_protocols_are_not() {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(reason(&udp).contains("plain TCP"));
        // Multipath TCP can be compiled out or switched off.
        if let Ok(mptcp) = Socket::new(Domain::IPV4, Type::STREAM, Some(socket2::Protocol::MPTCP)) {
            assert!(reason(&mptcp).contains("multipath"));
        }
    }

    #[test]
    fn upper_layers_are_not() {
        let (a, _b) = pair();
        assert!(!upper_layer(a.as_fd()).unwrap());
        let name = b"tls";
        // SAFETY: the pointer and length describe `name`.
        let status = unsafe {
            let (value, size) = (name.as_ptr().cast(), name.len() as libc::socklen_t);
            libc::setsockopt(a.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_ULP, value, size)
        };
        // The kernel's tls module may be missing; with it the socket must be refused.
        assert_eq!(ineligible(a.as_fd()).unwrap().is_some_and(|words| words.contains("TLS")), status == 0);
    }

    #[test]
    fn errors_come_through() {
        let other = std::fs::File::open("/dev/null").unwrap();
        assert!(ineligible(other.as_fd()).is_err());
        assert!(local_addr(other.as_fd()).is_err());
    }
}
