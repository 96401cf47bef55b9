//! What the kernel tells everybody of a connection (`sock_diag`, from netlink).

use std::net::{IpAddr, SocketAddr};

use rustix::net::netlink::SOCK_DIAG;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use crate::wire::Packet;

/// The cookie of the socket with these addresses, by IPv4; `None` when there is none.
pub(crate) fn cookie_of(local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let flags = SocketFlags::CLOEXEC;
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(SOCK_DIAG)).expect("netlink");
    let port = |address: SocketAddr| address.port().to_be_bytes();
    let ip = |address: SocketAddr| match address.ip() {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => panic!("by IPv4 only"),
    };
    let (by_family, request, tcp, inet) = (20, 1, 6, 2);
    let mut question = Packet::default().u32(72).u16(by_family).u16(request).u32(1).u32(0);
    question = question.bytes(&[inet, tcp, 0, 0]).u32(u32::MAX);
    question = question.bytes(&port(local)).bytes(&port(remote));
    question = question.bytes(&ip(local)).bytes(&[0; 12]).bytes(&ip(remote)).bytes(&[0; 12]).u32(0);
    // Whatever its cookie is.
    question = question.u64(u64::MAX);
    send(&socket, &question.0, SendFlags::empty()).expect("sock_diag");
    let mut answer = [0; 4096];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty()).expect("sock_diag");
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    (kind == by_family && length >= 68)
        .then(|| u64::from_ne_bytes(answer[60..68].try_into().expect("8 bytes")))
}
