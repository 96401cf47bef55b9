//! The number with which the client of a TCP connection began to count (docs/protocol.md, "Proof"):
//! its server finds it in the SYN, its client in a packet of its own. Nobody else is told of it.
#![expect(unsafe_code, reason = "control messages and socket options that rustix lacks")]

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::socket::{option, option_int};

/// The most that one sampled write takes: what the kernel sends at once, whatever the window.
pub(crate) const LARGEST_SAMPLE: usize = 16 << 10;

/// A link header, the longest headers of IP and TCP, and some room.
const HEADERS: usize = 192;

/// Keeps the SYN of each connection that this listener's socket will accept.
pub(crate) fn save_syns(listener: BorrowedFd<'_>) -> io::Result<()> {
    switch_on(listener, libc::IPPROTO_TCP, libc::TCP_SAVE_SYN)
}

/// The client's initial sequence number, from the SYN of an accepted socket. The kernel tells it
/// once; `None` when it has kept none (SYN cookies, a listener that was not asked to) or somebody
/// has taken it.
pub(crate) fn saved_initial_sequence(fd: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let mut syn = [0; HEADERS];
    let syn = option(fd, libc::IPPROTO_TCP, libc::TCP_SAVED_SYN, &mut syn)?;
    Ok(Segment::in_packet(syn, |_, _| true).map(|segment| segment.sequence))
}

/// Does the application read, or mean to read, what comes on the error queue of this socket?
pub(crate) fn uses_error_queue(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let options = [
        (libc::SOL_SOCKET, libc::SO_TIMESTAMPING),
        (libc::SOL_SOCKET, libc::SO_ZEROCOPY),
        (libc::IPPROTO_IP, libc::IP_RECVERR),
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    ];
    for (level, name) in options {
        match option_int(fd, level, name) {
            Ok(0) => {}
            Ok(_) => return Ok(true),
            // Not of this address family.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// What an application does that reads the error queue (`IP_RECVERR`).
#[cfg(test)]
pub(crate) fn use_error_queue(fd: BorrowedFd<'_>) -> io::Result<()> {
    switch_on(fd, libc::IPPROTO_IP, libc::IP_RECVERR)
}

/// Sets an option that is an int to 1.
fn switch_on(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer is to an int, whose size is given.
    let status = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const on).cast(), size) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Writes to a TCP socket what it takes now of the first [`LARGEST_SAMPLE`] bytes, and asks the
/// kernel for the packet that brings the last of them to the wire: [`take_sample`].
///
/// # Errors
///
/// Those of a write; `InvalidInput` where the kernel gives no such packets
/// (`net.core.tstamp_allow_data` is 0).
pub(crate) fn send_sampled(fd: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    sample(fd, slices, LARGEST_SAMPLE)
}

/// As [`send_sampled`], of so few bytes that a small window takes them as well.
pub(crate) fn send_small_sample(fd: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    sample(fd, slices, 256)
}

/// Does a sampled write fail because it is one? (A sandbox may know write(2) only.)
pub(crate) fn refuses_samples(error: &io::Error) -> bool {
    let of_samples = [libc::EINVAL, libc::EOPNOTSUPP, libc::EPERM, libc::EACCES, libc::ENOSYS];
    error.raw_os_error().is_some_and(|number| of_samples.contains(&number))
}

fn sample(fd: BorrowedFd<'_>, slices: &[IoSlice<'_>], most: usize) -> io::Result<usize> {
    // As many as fit an array, and no more bytes than the limit.
    let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 16];
    let mut left = most;
    let mut used = 0;
    for (vector, slice) in vectors.iter_mut().zip(slices) {
        let length = slice.len().min(left);
        *vector = libc::iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: length };
        left -= length;
        used += 1;
        if left == 0 {
            break;
        }
    }
    // Aligned as a control message has to be; it holds one with an int.
    let mut control = [0_u64; 8];
    // SAFETY: all zeros are a valid `msghdr`, which has integers and pointers only.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = used as _;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: the call computes a number.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(size_of::<u32>() as u32) } as _;
    // SAFETY: `msg_control` is aligned and `msg_controllen`, which is at most its size, has room
    // for one control message with an int: `CMSG_FIRSTHDR` points to it and `CMSG_DATA` to the
    // int's place.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SO_TIMESTAMPING;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<u32>() as u32) as _;
        libc::CMSG_DATA(header).cast::<u32>().write_unaligned(libc::SOF_TIMESTAMPING_TX_SCHED);
    }
    loop {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the message describes the slices, of which the kernel reads no more than their
        // lengths, and the control message above; all of them outlive the call.
        let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) };
        match usize::try_from(sent) {
            Ok(length) => return Ok(length),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

/// Takes the packet that [`send_sampled`] has asked for off the error queue: the sequence number
/// behind its last byte. `None` when it has not been sent yet, or is none that can be read.
pub(crate) fn take_sample(fd: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let ports = [super::local_addr(fd)?.port(), super::peer_addr(fd)?.port()];
    let mut packet = [0; HEADERS];
    let mut vector = libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() };
    // What comes along tells nothing new, but the kernel shall not have to say that it was cut.
    let mut control = [0_u64; 32];
    // SAFETY: all zeros are a valid `msghdr`, which has integers and pointers only.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the message describes `packet` and `control`, into which the kernel writes no more
    // than their lengths; both outlive the call.
    let length = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) };
    let Ok(length) = usize::try_from(length) else {
        return match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            error => Err(error),
        };
    };
    // Address translation of this very host changes one of the ports at most.
    let ours = |from: u16, to: u16| from == ports[0] || to == ports[1];
    Ok(Segment::in_packet(packet.get(..length).unwrap_or(&packet), ours).map(|segment| segment.end))
}

/// Takes everything off the error queue.
///
/// # Errors
///
/// Those of recvmsg(2), but for the one that says that nothing is left.
pub(crate) fn drop_samples(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all zeros are a valid `msghdr`, which has integers and pointers only.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    loop {
        // SAFETY: the message, which outlives the call, gives the kernel no room to write to.
        if unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) } < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(()) } else { Err(error) };
        }
        // Each call says what it has cut off, and is no place to say so for the next one.
        (message.msg_flags, message.msg_controllen) = (0, 0);
    }
}

/// What a packet of TCP says of its place in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    sequence: u32,
    /// Behind its last byte.
    end: u32,
}

impl Segment {
    /// Reads the beginning of a packet, whether or not there is a link header before that of IP;
    /// `None` when it is not TCP between ports that are `ours`.
    fn in_packet(packet: &[u8], ours: impl Fn(u16, u16) -> bool) -> Option<Segment> {
        // None (saved SYNs, tunnels), Ethernet's (also that of lo and veth), and with a VLAN tag.
        [0, 14, 18].into_iter().find_map(|at| Self::at(packet.get(at..)?, &ours))
    }

    fn at(ip: &[u8], ours: &impl Fn(u16, u16) -> bool) -> Option<Segment> {
        const TCP: u8 = libc::IPPROTO_TCP as u8;
        let u16_in = |bytes: &[u8], at: usize| {
            bytes.get(at..)?.first_chunk().map(|bytes| usize::from(u16::from_be_bytes(*bytes)))
        };
        // How long it is tells the header alone: of a packet that does not fit, recvmsg(2) gives
        // the beginning, and on the error queue says nothing of the rest. (The number of bytes that
        // is 0 is one that does not fit a header; no write that is sampled needs such a packet.)
        let (ip_header, length) = match ip.first()? >> 4 {
            4 if ip.get(9) == Some(&TCP) => (usize::from(ip[0] & 15) * 4, u16_in(ip, 2)?),
            6 if ip.get(6) == Some(&TCP) => (40, 40 + u16_in(ip, 4)?),
            _ => return None,
        };
        let tcp = ip.get(ip_header..)?;
        let sequence = tcp.get(4..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))?;
        let tcp_header = usize::from(tcp.get(12)? >> 4) * 4;
        let ports = (u16_in(tcp, 0)? as u16, u16_in(tcp, 2)? as u16);
        if tcp_header < 20 || !ours(ports.0, ports.1) {
            return None;
        }
        let payload = u32::try_from(length.checked_sub(ip_header + tcp_header)?).ok()?;
        Some(Segment { sequence, end: sequence.wrapping_add(payload) })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::super::tcp::tcp_look;
    use super::*;

    fn pair(address: &str) -> Option<(TcpStream, TcpStream)> {
        // A host may have no IPv6.
        let listener = TcpListener::bind(address).ok()?;
        save_syns(listener.as_fd()).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        Some((client, listener.accept().unwrap().0))
    }

    fn sample(fd: BorrowedFd<'_>, bytes: &[u8]) -> Option<u32> {
        assert_eq!(send_sampled(fd, &[IoSlice::new(bytes)]).unwrap(), bytes.len());
        take_sample(fd).unwrap()
    }

    #[test]
    fn both_ends_learn_the_same_number() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Some((client, mut server)) = pair(address) else { continue };
            let before = 1000_u32;
            (&client).write_all(&vec![1; before as usize]).unwrap();
            server.read_exact(&mut vec![0; before as usize]).unwrap();
            let end = sample(client.as_fd(), &[2; 77]).expect("a packet");
            let ours = end.wrapping_sub(before + 77 + 1);
            assert_eq!(saved_initial_sequence(server.as_fd()).unwrap(), Some(ours));
            assert_eq!(saved_initial_sequence(server.as_fd()).unwrap(), None, "it is told once");
            server.read_exact(&mut [0; 77]).unwrap();
        }
    }

    #[test]
    fn several_slices_are_one_write_and_a_large_one_is_cut() {
        let (client, mut server) = pair("127.0.0.1:0").unwrap();
        let isn = saved_initial_sequence(server.as_fd()).unwrap().unwrap();
        let slices = [IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cde")];
        assert_eq!(send_sampled(client.as_fd(), &slices).unwrap(), 5);
        assert_eq!(take_sample(client.as_fd()).unwrap(), Some(isn.wrapping_add(6)));
        let large = vec![7; LARGEST_SAMPLE * 4];
        assert_eq!(send_sampled(client.as_fd(), &[IoSlice::new(&large)]).unwrap(), LARGEST_SAMPLE);
        let end = isn.wrapping_add(6 + LARGEST_SAMPLE as u32);
        assert_eq!(take_sample(client.as_fd()).unwrap(), Some(end));
        let mut got = vec![0; 5 + LARGEST_SAMPLE];
        server.read_exact(&mut got).unwrap();
        assert!(got.starts_with(b"abcde\x07") && got[5..].iter().all(|byte| *byte == 7));
    }

    #[test]
    fn what_is_not_sent_yet_comes_later() {
        let (client, _server) = pair("127.0.0.1:0").unwrap();
        rustix::net::sockopt::set_tcp_cork(&client, true).unwrap();
        assert_eq!(sample(client.as_fd(), b"held back"), None);
        rustix::net::sockopt::set_tcp_cork(&client, false).unwrap();
        assert!(take_sample(client.as_fd()).unwrap().is_some());
    }

    #[test]
    fn nothing_is_left_behind() {
        let (client, _server) = pair("127.0.0.1:0").unwrap();
        assert_eq!(take_sample(client.as_fd()).unwrap(), None, "nobody asked");
        sample(client.as_fd(), b"x").expect("a packet");
        let mut polled = [PollFd::from_borrowed_fd(client.as_fd(), PollFlags::empty())];
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
        assert_eq!(polled[0].revents(), PollFlags::empty());
        assert_eq!(option_int(client.as_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPING).unwrap(), 0);
        (&client).write_all(b"y").unwrap();
        assert_eq!(take_sample(client.as_fd()).unwrap(), None, "only what was asked for");
        assert_eq!(tcp_look(client.as_fd()).unwrap().bytes_sent, 2);
    }

    #[test]
    fn a_listener_that_was_not_asked_has_no_syn() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        assert_eq!(saved_initial_sequence(server.as_fd()).unwrap(), None);
    }

    #[test]
    fn who_uses_the_error_queue_is_seen() {
        let (client, _server) = pair("127.0.0.1:0").unwrap();
        assert!(!uses_error_queue(client.as_fd()).unwrap());
        use_error_queue(client.as_fd()).unwrap();
        assert!(uses_error_queue(client.as_fd()).unwrap());
    }

    #[test]
    fn other_packets_are_none_of_ours() {
        let mut packet = vec![0; 54];
        packet[0] = 0x45;
        packet[3] = 54;
        packet[9] = 6;
        packet[20..24].copy_from_slice(&[0, 80, 0, 81]);
        packet[24..28].copy_from_slice(&7_u32.to_be_bytes());
        packet[32] = 0x50;
        let read = |packet: &[u8]| Segment::in_packet(packet, |from, to| (from, to) == (80, 81));
        assert_eq!(read(&packet), Some(Segment { sequence: 7, end: 21 }));
        assert_eq!(Segment::in_packet(&packet, |from, _| from == 81), None);
        let framed: Vec<u8> = [vec![0; 14], packet.clone()].concat();
        assert_eq!(read(&framed), Some(Segment { sequence: 7, end: 21 }));
        for cut in 0..33 {
            assert_eq!(read(&packet[..cut]), None, "{cut} bytes");
        }
        for length in 0..40 {
            let short = [&packet[..3], &[length], &packet[4..]].concat();
            assert_eq!(read(&short), None, "shorter than its headers: {length}");
        }
        packet[9] = 17;
        assert_eq!(read(&packet), None, "UDP");
    }
}
