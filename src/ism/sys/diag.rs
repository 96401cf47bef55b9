//! Asking the kernel who owns the other end of a TCP connection (NETLINK_SOCK_DIAG, sock_diag(7)).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::socket::netns_cookie;
use super::tcp::TcpState;

// Linux include/uapi/linux/{netlink,sock_diag,inet_diag}.h
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_HEADER: usize = 16;
const REQUEST: usize = NLMSG_HEADER + 56;
const ANSWER: usize = NLMSG_HEADER + 72;
/// Both halves of a cookie like this mean "any socket" to the kernel.
const NO_COOKIE: u64 = u64::MAX;

/// A socket as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiagSocket {
    /// State of its connection.
    pub(crate) state: TcpState,
    /// Whose it is: the effective user when it was made (or fchown'ed), as seen from our user
    /// namespace.
    pub(crate) uid: u32,
    /// Some process holds it: it is neither waiting to be accepted nor left to the kernel to be
    /// closed.
    pub(crate) held: bool,
}

/// The address as both ends of a connection agree to write it: v4-mapped IPv6 as IPv4, no flow
/// label.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match (address.ip().to_canonical(), address) {
        (IpAddr::V6(ip), SocketAddr::V6(v6)) => {
            std::net::SocketAddrV6::new(ip, address.port(), 0, v6.scope_id()).into()
        }
        (ip, _) => SocketAddr::new(ip, address.port()),
    }
}

/// The TCP socket from `local` to `remote` (both as *that* socket sees them) whose SO_COOKIE is
/// `cookie`, in the network namespace `netns`; `None` when there is no such socket.
///
/// Exact and unprivileged: a cookie names one socket of the host for ever, so another socket with
/// the same addresses is never taken for it. It needs no more rights than `ss` and costs a few
/// system calls.
///
/// # Errors
///
/// `Unsupported` when this process has moved to another network namespace than `netns`, where it
/// cannot ask; otherwise what opening or using the netlink socket gives (seccomp filters forbid it
/// sometimes).
pub(crate) fn owner_of(
    local: SocketAddr,
    remote: SocketAddr,
    cookie: u64,
    netns: u64,
) -> io::Result<Option<DiagSocket>> {
    if cookie == NO_COOKIE { Ok(None) } else { look_up(local, remote, cookie, Some(netns)) }
}

/// Whether the TCP socket from `local` to `remote` (as *that* socket sees them), in the network
/// namespace of this thread, is still to be accepted from its listener.
///
/// # Errors
///
/// As [`owner_of`].
pub(crate) fn waits_for_accept(local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    let found = look_up(local, remote, NO_COOKIE, None)?;
    // SYN_RECV: with TCP_DEFER_ACCEPT it stays there until the client sends. One that was closed
    // without being held is in a later state.
    Ok(found.is_some_and(|socket| {
        let open = matches!(socket.state, TcpState::Established | TcpState::CloseWait | TcpState::SynRecv);
        open && !socket.held
    }))
}

/// Whether some process holds the TCP socket from `local` to `remote` (as *that* socket sees them),
/// in the network namespace `netns`: it is neither closed nor waiting to be accepted.
///
/// # Errors
///
/// As [`owner_of`].
pub(crate) fn is_held(local: SocketAddr, remote: SocketAddr, netns: u64) -> io::Result<bool> {
    Ok(look_up(local, remote, NO_COOKIE, Some(netns))?.is_some_and(|socket| socket.held))
}

fn look_up(
    local: SocketAddr,
    remote: SocketAddr,
    cookie: u64,
    netns: Option<u64>,
) -> io::Result<Option<DiagSocket>> {
    let (local, remote) = (canonical(local), canonical(remote));
    if local.is_ipv4() != remote.is_ipv4() {
        return Ok(None);
    }
    let socket = kernel()?;
    // The question is answered for the namespace of the asking socket. Addresses that mirror each
    // other in two namespaces prove nothing.
    let here = netns_cookie(socket.as_fd())?;
    if netns.is_some_and(|netns| netns != here) {
        let words = "this process is in another network namespace than the connection";
        return Err(io::Error::new(io::ErrorKind::Unsupported, words));
    }
    let request = question(local, remote, cookie);
    retry_on_intr(|| rustix::net::send(&socket, &request, SendFlags::DONTWAIT))?;
    // The kernel answers inside the send: there is nothing to wait for.
    let mut buf = [0; 4096];
    let (length, _) = retry_on_intr(|| rustix::net::recv(&socket, &mut buf[..], RecvFlags::DONTWAIT))?;
    answer(buf.get(..length).unwrap_or(&buf), local, remote, cookie)
}

/// A netlink socket that talks to the kernel only: once connected it refuses datagrams of other
/// processes.
fn kernel() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = Some(netlink::SOCK_DIAG);
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?;
    rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    Ok(socket)
}

fn question(local: SocketAddr, remote: SocketAddr, cookie: u64) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
    // nlmsghdr: length, type, flags, sequence, port
    put(0, &(REQUEST as u32).to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &NLM_F_REQUEST.to_ne_bytes());
    put(8, &1u32.to_ne_bytes());
    // inet_diag_req_v2: family, protocol, extensions, padding, states
    let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    put(16, &[family.as_raw() as u8, rustix::net::ipproto::TCP.as_raw().get() as u8]);
    put(20, &u32::MAX.to_ne_bytes());
    // inet_diag_sockid: ports, addresses, interface, cookie (low half first)
    put(24, &local.port().to_be_bytes());
    put(26, &remote.port().to_be_bytes());
    for (at, ip) in [(28, local.ip()), (44, remote.ip())] {
        match ip {
            IpAddr::V4(ip) => put(at, &ip.octets()),
            IpAddr::V6(ip) => put(at, &ip.octets()),
        }
    }
    // Only link-local addresses have a scope; sockets bound to a device are not upgraded.
    if let SocketAddr::V6(local) = local {
        put(60, &local.scope_id().to_ne_bytes());
    }
    put(64, &(cookie as u32).to_ne_bytes());
    put(68, &((cookie >> 32) as u32).to_ne_bytes());
    request
}

fn answer(
    message: &[u8],
    local: SocketAddr,
    remote: SocketAddr,
    cookie: u64,
) -> io::Result<Option<DiagSocket>> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed answer of sock_diag");
    let field = |at: usize| message.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    let kind = message.get(4..).and_then(|rest| rest.first_chunk()).map(|bytes| u16::from_ne_bytes(*bytes));
    match kind {
        Some(SOCK_DIAG_BY_FAMILY) if message.len() >= ANSWER => {}
        Some(NLMSG_ERROR) => {
            let code = field(NLMSG_HEADER).ok_or_else(malformed)? as i32;
            // No such socket, or another one has these addresses; also a kernel without inet_diag,
            // where nothing can be proved either.
            if code == -Errno::NOENT.raw_os_error() {
                return Ok(None);
            }
            return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
        }
        _ => return Err(malformed()),
    }
    let (Some(low), Some(high), Some(uid), Some(inode)) = (
        field(NLMSG_HEADER + 44),
        field(NLMSG_HEADER + 48),
        field(NLMSG_HEADER + 64),
        field(NLMSG_HEADER + 68),
    ) else {
        return Err(malformed());
    };
    // A kernel that does not compare cookies, or answers with a listener on that address: not the
    // one we asked for.
    let found = (address(message, 20, 24), address(message, 22, 40));
    let found_cookie = u64::from(high) << 32 | u64::from(low);
    if found != (Some((local.ip(), local.port())), Some((remote.ip(), remote.port())))
        || (cookie != NO_COOKIE && found_cookie != cookie)
    {
        return Ok(None);
    }
    Ok(Some(DiagSocket { state: TcpState::from(message[NLMSG_HEADER + 1]), uid, held: inode != 0 }))
}

/// One end's address in an answer, canonical.
fn address(message: &[u8], port_at: usize, ip_at: usize) -> Option<(IpAddr, u16)> {
    let port = u16::from_be_bytes(*message.get(port_at..)?.first_chunk()?);
    let ip = if u16::from(*message.get(NLMSG_HEADER)?) == AddressFamily::INET.as_raw() {
        IpAddr::V4(Ipv4Addr::from(*message.get(ip_at..)?.first_chunk::<4>()?))
    } else {
        IpAddr::V6(Ipv6Addr::from(*message.get(ip_at..)?.first_chunk::<16>()?)).to_canonical()
    };
    Some((ip, port))
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
    use std::time::{Duration, Instant};

    use super::super::{cookie, effective_uid};
    use super::*;

    fn pair(address: impl ToSocketAddrs) -> io::Result<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind(address)?;
        let port = listener.local_addr()?.port();
        let ip = match listener.local_addr()?.ip() {
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            ip => ip,
        };
        let client = TcpStream::connect((ip, port))?;
        Ok((client, listener.accept()?.0))
    }

    fn find(of: &TcpStream, cookie: u64) -> Option<DiagSocket> {
        let netns = netns_cookie(of.as_fd()).unwrap();
        owner_of(of.local_addr().unwrap(), of.peer_addr().unwrap(), cookie, netns).unwrap()
    }

    fn finds(of: &TcpStream) -> Option<DiagSocket> {
        find(of, cookie(of.as_fd()).unwrap())
    }

    #[test]
    fn both_ends_are_found_by_cookie() {
        let (a, b) = pair("127.0.0.1:0").unwrap();
        let ours = DiagSocket { state: TcpState::Established, uid: effective_uid(), held: true };
        assert_eq!(finds(&a), Some(ours));
        assert_eq!(finds(&b), Some(ours));
    }

    #[test]
    fn ipv6_and_mapped_addresses() {
        // A host may have no IPv6.
        let Ok((a, b)) = pair("[::1]:0") else { return };
        assert_eq!(finds(&a).unwrap().state, TcpState::Established);
        assert_eq!(finds(&b).unwrap().state, TcpState::Established);
        let (a, b) = pair("[::]:0").unwrap();
        assert!(
            a.local_addr().unwrap().is_ipv4() && b.local_addr().unwrap().is_ipv6(),
            "a dual-stack listener"
        );
        assert_eq!(canonical(b.local_addr().unwrap()), a.peer_addr().unwrap());
        assert_eq!(finds(&a).unwrap().state, TcpState::Established);
        assert_eq!(finds(&b).unwrap().state, TcpState::Established);
        // Asked for in the other side's words.
        let netns = netns_cookie(a.as_fd()).unwrap();
        let (local, remote) = (a.peer_addr().unwrap(), a.local_addr().unwrap());
        assert!(owner_of(local, remote, cookie(b.as_fd()).unwrap(), netns).unwrap().is_some());
    }

    #[test]
    fn another_cookie_is_another_socket() {
        let (a, b) = pair("127.0.0.1:0").unwrap();
        let right = cookie(a.as_fd()).unwrap();
        for wrong in [right + 1, right ^ (1 << 32), 0, cookie(b.as_fd()).unwrap(), u64::MAX] {
            assert_eq!(find(&a, wrong), None);
        }
    }

    #[test]
    fn other_addresses_are_another_socket() {
        let (a, b) = pair("127.0.0.1:0").unwrap();
        let (cookie, netns) = (cookie(a.as_fd()).unwrap(), netns_cookie(a.as_fd()).unwrap());
        let (local, remote) = (a.local_addr().unwrap(), a.peer_addr().unwrap());
        assert!(owner_of(local, remote, cookie, netns).unwrap().is_some());
        assert_eq!(owner_of(remote, local, cookie, netns).unwrap(), None, "the other direction");
        let (mut other_port, mut other_ip) = (local, remote);
        other_port.set_port(1);
        other_ip.set_ip([127, 0, 0, 2].into());
        assert_eq!(owner_of(other_port, remote, cookie, netns).unwrap(), None);
        assert_eq!(owner_of(local, other_ip, cookie, netns).unwrap(), None);
        assert_eq!(owner_of(local, "[::1]:1".parse().unwrap(), cookie, netns).unwrap(), None);
        drop(b);
    }

    #[test]
    fn a_listener_on_the_address_is_not_the_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (cookie, netns) = (cookie(listener.as_fd()).unwrap(), netns_cookie(listener.as_fd()).unwrap());
        let local = listener.local_addr().unwrap();
        assert_eq!(owner_of(local, "127.0.0.1:9".parse().unwrap(), cookie, netns).unwrap(), None);
    }

    #[test]
    fn states_are_told() {
        let (a, b) = pair("127.0.0.1:0").unwrap();
        let tuple = (b.local_addr().unwrap(), b.peer_addr().unwrap());
        let (cookie, netns) = (cookie(b.as_fd()).unwrap(), netns_cookie(b.as_fd()).unwrap());
        let look = || owner_of(tuple.0, tuple.1, cookie, netns).unwrap();
        a.shutdown(Shutdown::Write).unwrap();
        let start = Instant::now();
        while look().map(|found| found.state) != Some(TcpState::CloseWait) {
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}", look());
        }
        drop((a, b));
        assert_eq!(look().filter(|found| found.state == TcpState::Established), None);
    }

    #[test]
    fn what_waits_to_be_accepted() {
        let listener = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        // As the client sees them, exchanged.
        let (local, remote) = (client.peer_addr().unwrap(), client.local_addr().unwrap());
        let waits = || waits_for_accept(local, remote).unwrap();
        assert!(waits());
        assert!(!waits_for_accept(remote, local).unwrap(), "the client's own end");
        let other = SocketAddr::new(remote.ip(), 1);
        assert!(!waits_for_accept(local, other).unwrap(), "the listener itself");
        client.shutdown(Shutdown::Write).unwrap();
        assert!(waits(), "also when the client has said all");
        let server = listener.accept().unwrap().0;
        assert!(!waits(), "accepted");
        drop(server);
        assert!(!waits(), "closed");
    }

    #[test]
    fn another_namespace_cannot_be_asked() {
        let (a, _b) = pair("127.0.0.1:0").unwrap();
        let netns = netns_cookie(a.as_fd()).unwrap();
        let tuple = (a.local_addr().unwrap(), a.peer_addr().unwrap());
        let error = owner_of(tuple.0, tuple.1, cookie(a.as_fd()).unwrap(), netns + 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn answers_are_read_with_suspicion() {
        let (a, b): (SocketAddr, SocketAddr) =
            ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        for length in [0, 3, 6, 15, 16, 19, ANSWER - 1] {
            let mut message = vec![0; length];
            if length > 5 {
                message[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
            }
            assert_eq!(answer(&message, a, b, 1).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        let mut refused = [0; 36];
        refused[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        refused[16..20].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        assert_eq!(answer(&refused, a, b, 1).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
