//! The kernel's own byte counters of a TCP connection (docs/protocol.md, Positions).
//!
//! Others read and write the socket as well: a PROXY header before `from_std`, `SockRef`, another
//! thread. Only the kernel counts all of it. One *look* is TCP_INFO, an ioctl, TCP_INFO; it is
//! torn, and worth nothing, when the counter moved between the two.
#![expect(unsafe_code, reason = "ioctls of TCP sockets, which rustix lacks")]

use std::io;
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::ioctl::{Getter, Opcode, ioctl};
use rustix::time::Timespec;

use super::socket::option;

/// State of a TCP connection (Linux include/net/tcp_states.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TcpState {
    Established,
    SynSent,
    SynRecv,
    FinWait1,
    FinWait2,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    /// One this crate does not know.
    Other(u8),
}

impl From<u8> for TcpState {
    fn from(state: u8) -> Self {
        match state {
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynRecv,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            other => Self::Other(other),
        }
    }
}

impl TcpState {
    /// Whether our FIN is on its way, so that this end writes no more.
    pub(crate) fn has_sent_fin(self) -> bool {
        matches!(self, Self::FinWait1 | Self::FinWait2 | Self::Closing | Self::LastAck | Self::TimeWait)
    }

    /// Whether the peer's FIN has been received, which `bytes_received` counts as one byte.
    fn has_fin(self) -> bool {
        matches!(self, Self::CloseWait | Self::LastAck | Self::Closing | Self::TimeWait)
    }
}

/// The part of TCP_INFO that positions are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpLook {
    /// State of the connection.
    pub(crate) state: TcpState,
    /// Bytes per second that SO_MAX_PACING_RATE allows; all ones: no limit is set.
    pub(crate) max_pacing: u64,
    /// Sequence numbers the peer has acknowledged: bytes, our FIN, and for some sockets our SYN.
    pub(crate) bytes_acked: u64,
    /// Sequence numbers received in order: bytes and the peer's FIN.
    pub(crate) bytes_received: u64,
    /// Bytes sent, repetitions included.
    pub(crate) bytes_sent: u64,
    /// Bytes sent again.
    pub(crate) bytes_retrans: u64,
    /// Bytes written but never sent yet.
    pub(crate) notsent: u32,
}

impl TcpLook {
    /// Whether `bytes_acked` counts our SYN: the `s` of [`tx_position`](Self::tx_position), 0 or 1.
    ///
    /// `None` when the counters disagree by more than a SYN, or outside ESTABLISHED: the connection
    /// stays on TCP.
    pub(crate) fn syn(&self, outq: u32) -> Option<u64> {
        let written = self.bytes_sent.checked_sub(self.bytes_retrans)?.checked_add(self.notsent.into())?;
        let counted = self.bytes_acked.checked_add(outq.into())?;
        let syn = counted.checked_sub(written)?;
        (self.state == TcpState::Established && syn <= 1).then_some(syn)
    }

    /// Bytes given to TCP so far, from a look of [`tx_counters`]. Wrong by the FIN after our own
    /// shutdown.
    pub(crate) fn tx_position(&self, outq: u32, syn: u64) -> Option<u64> {
        self.bytes_acked.checked_add(outq.into())?.checked_sub(syn)
    }

    /// Bytes taken from TCP so far, from a look of [`rx_counters`].
    ///
    /// `None` in CLOSE, whose counters no longer tell whether a FIN was among them, and before the
    /// connection is established: the caller counts on from the last valid position.
    pub(crate) fn rx_position(&self, inq: u32) -> Option<u64> {
        match self.state {
            TcpState::Established | TcpState::FinWait1 | TcpState::FinWait2 => {
                self.bytes_received.checked_sub(inq.into())
            }
            state if state.has_fin() => self.bytes_received.checked_sub(u64::from(inq) + 1),
            _ => None,
        }
    }
}

/// Reads the counters once (TCP_INFO).
///
/// # Errors
///
/// `Unsupported` when the kernel's answer is too short (before Linux 4.19, or a system that
/// imitates Linux).
pub(crate) fn tcp_look(fd: BorrowedFd<'_>) -> io::Result<TcpLook> {
    // Offsets of `struct tcp_info` (Linux include/uapi/linux/tcp.h), which only ever grows at its
    // end. libc's struct ends before the later counters with some C libraries.
    let mut info = [0; 256];
    let info = option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    let (
        Some(state),
        Some(max_pacing),
        Some(acked),
        Some(received),
        Some(notsent),
        Some(sent),
        Some(retrans),
    ) = (
        info.first(),
        u64_at(info, 112),
        u64_at(info, 120),
        u64_at(info, 128),
        u32_at(info, 144),
        u64_at(info, 200),
        u64_at(info, 208),
    )
    else {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's TCP_INFO lacks byte counters"));
    };
    Ok(TcpLook {
        state: TcpState::from(*state),
        max_pacing,
        bytes_acked: acked,
        bytes_received: received,
        bytes_sent: sent,
        bytes_retrans: retrans,
        notsent,
    })
}

fn u64_at(info: &[u8], offset: usize) -> Option<u64> {
    info.get(offset..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
}

fn u32_at(info: &[u8], offset: usize) -> Option<u32> {
    info.get(offset..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// What has ended of a connection, by `shutdown` of a descriptor at this end or from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// This end reads no more. (Not to be told apart once the peer's FIN is there, which ends it as
    /// well.)
    pub(crate) reads: bool,
    /// This end writes no more.
    pub(crate) writes: bool,
    /// The connection was reset, and nobody has been told yet.
    pub(crate) reset: bool,
    /// The peer's FIN has come.
    pub(crate) fin: bool,
    /// `bytes_acked` of a closed socket. (Whether its end was a reset that somebody was told of it
    /// does not say.)
    pub(crate) acked: Option<u64>,
}

/// Asks what has ended of a connection.
pub(crate) fn ended(fd: BorrowedFd<'_>) -> io::Result<Ended> {
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::RDHUP)];
    retry_on_intr(|| poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })))?;
    let events = polled[0].revents();
    let hung_up = events.contains(PollFlags::RDHUP);
    if hung_up {
        // A FIN that comes sets first what poll shows and then the state, which TCP_INFO loads
        // before it takes the socket's lock: the second one's is not older than what poll has seen.
        tcp_look(fd)?;
    }
    let TcpLook { state, bytes_acked, .. } = tcp_look(fd)?;
    let over = state == TcpState::Close;
    Ok(Ended {
        // In CLOSE the peer's FIN, or a reset, is behind it just as well.
        reads: hung_up && !over && !state.has_fin(),
        writes: over || state.has_sent_fin(),
        reset: over && events.contains(PollFlags::ERR),
        fin: state.has_fin(),
        acked: over.then_some(bytes_acked),
    })
}

/// Bytes received and not yet read (SIOCINQ); the FIN is not among them, nor is what lies behind an
/// urgent byte.
pub(crate) fn queued_in(fd: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: FIONREAD, which SIOCINQ is another name of, writes one int.
    let bytes = unsafe { ioctl(fd, Getter::<{ libc::FIONREAD as Opcode }, libc::c_int>::new()) }?;
    u32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Is the next byte an urgent one (SIOCATMARK)?
pub(crate) fn is_at_mark(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // `SIOCATMARK` of Linux include/uapi/asm-generic/sockios.h, the same on all of Rust's
    // architectures but two.
    const SIOCATMARK: Opcode =
        if cfg!(any(target_arch = "mips", target_arch = "mips64")) { 0x4004_7307 } else { 0x8905 };
    // SAFETY: SIOCATMARK writes one int.
    Ok(unsafe { ioctl(fd, Getter::<SIOCATMARK, libc::c_int>::new()) }? != 0)
}

/// Would closing the socket throw away something that was received?
pub(crate) fn has_unread(fd: BorrowedFd<'_>) -> bool {
    queued_in(fd).is_ok_and(|unread| unread > 0) || is_at_mark(fd).unwrap_or(false)
}

/// Does an urgent byte lie ahead, or is one announced? One that was read out of line already does
/// not show.
pub(crate) fn has_urgent(fd: BorrowedFd<'_>) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::net::RecvFlags;

    // It has come, in line or not.
    let mut waits = [PollFd::from_borrowed_fd(fd, PollFlags::PRI)];
    poll(&mut waits, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    if waits[0].revents().contains(PollFlags::PRI) {
        return Ok(true);
    }
    // It is announced: EAGAIN.
    let flags = RecvFlags::OOB | RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(fd, &mut [0_u8; 1][..], flags) {
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(true),
        Err(rustix::io::Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Bytes written and not yet acknowledged (SIOCOUTQ), our FIN included.
pub(crate) fn queued_out(fd: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: TIOCOUTQ, which SIOCOUTQ is another name of, writes one int.
    let bytes = unsafe { ioctl(fd, Getter::<{ libc::TIOCOUTQ as Opcode }, libc::c_int>::new()) }?;
    u32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Bytes written and not yet sent (SIOCOUTQNSD).
pub(crate) fn unsent_out(fd: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: SIOCOUTQNSD writes one int.
    let bytes = unsafe { ioctl(fd, Getter::<{ libc::SIOCOUTQNSD as Opcode }, libc::c_int>::new()) }?;
    u32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// One look at the sending side: the counters and SIOCOUTQ; `None` when it was torn and must be
/// repeated.
///
/// The caller holds the lock of the sending direction, so that nobody writes meanwhile.
pub(crate) fn tx_counters(fd: BorrowedFd<'_>) -> io::Result<Option<(TcpLook, u32)>> {
    let before = tcp_look(fd)?;
    let outq = queued_out(fd)?;
    let after = tcp_look(fd)?;
    Ok((before.bytes_acked == after.bytes_acked).then_some((after, outq)))
}

/// One look at the receiving side: the counters and SIOCINQ; `None` when it was torn and must be
/// repeated.
///
/// The caller holds the lock of the receiving direction, so that nobody reads meanwhile. The state
/// is that of the second TCP_INFO: the kernel loads it before it takes the socket's lock for the
/// counters, so the first one's may be older than its counters; with equal counters the second
/// one's is not.
pub(crate) fn rx_counters(fd: BorrowedFd<'_>) -> io::Result<Option<(TcpLook, u32)>> {
    let before = tcp_look(fd)?;
    let inq = queued_in(fd)?;
    let after = tcp_look(fd)?;
    Ok((before.bytes_received == after.bytes_received).then_some((after, inq)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        }
        (client, server)
    }

    /// Does it again when the end of a child has interrupted it, which happens to calls with a time
    /// limit.
    fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> T {
        loop {
            match call() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done.unwrap(),
            }
        }
    }

    /// Repeats torn looks, as a caller does.
    fn settled(look: impl Fn() -> io::Result<Option<(TcpLook, u32)>>) -> (TcpLook, u32) {
        for _ in 0..10_000 {
            if let Some(found) = look().unwrap() {
                return found;
            }
        }
        panic!("torn 10,000 times in a row");
    }

    fn tx(stream: &TcpStream) -> u64 {
        let (look, outq) = settled(|| tx_counters(stream.as_fd()));
        look.tx_position(outq, look.syn(outq).unwrap()).unwrap()
    }

    fn rx(stream: &TcpStream) -> Option<u64> {
        let (look, inq) = settled(|| rx_counters(stream.as_fd()));
        look.rx_position(inq)
    }

    fn until(what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(10), "{what}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn state(stream: &TcpStream) -> TcpState {
        tcp_look(stream.as_fd()).unwrap().state
    }

    #[test]
    fn fresh_connections_are_at_zero_on_both_sides() {
        let (client, server) = pair();
        for stream in [&client, &server] {
            assert_eq!(state(stream), TcpState::Established);
            assert_eq!((tx(stream), rx(stream)), (0, Some(0)));
            assert_eq!(queued_in(stream.as_fd()).unwrap(), 0);
            assert_eq!(unsent_out(stream.as_fd()).unwrap(), 0);
        }
    }

    #[test]
    fn positions_follow_reads_and_writes() {
        let (mut client, mut server) = pair();
        let (mut sent, mut read) = (0, 0);
        let mut buf = vec![0; 70_000];
        for size in [1, 27, 1000, 65_536, 3] {
            client.write_all(&buf[..size]).unwrap();
            sent += size as u64;
            assert_eq!(tx(&client), sent, "whatever has been acknowledged by now");
            assert_eq!(rx(&server), Some(read), "nothing taken yet");
            until("arrival", || queued_in(server.as_fd()).unwrap() == size as u32);
            // A part, without taking it, and the rest.
            server.peek(&mut buf[..size]).unwrap();
            assert_eq!(rx(&server), Some(read));
            server.read_exact(&mut buf[..1]).unwrap();
            assert_eq!(rx(&server), Some(read + 1));
            server.read_exact(&mut buf[..size - 1]).unwrap();
            read += size as u64;
            assert_eq!(rx(&server), Some(read));
        }
        server.write_all(b"back").unwrap();
        assert_eq!((tx(&server), tx(&client)), (4, sent));
        client.read_exact(&mut buf[..4]).unwrap();
        assert_eq!(rx(&client), Some(4));
    }

    #[test]
    fn positions_hold_with_unsent_bytes() {
        let (mut client, server) = pair();
        rustix::net::sockopt::set_tcp_cork(&client, true).unwrap();
        client.write_all(&[1; 100]).unwrap();
        assert_eq!(tx(&client), 100, "corked bytes were given to TCP");
        assert_eq!(unsent_out(client.as_fd()).unwrap(), 100);
        assert_eq!(rx(&server), Some(0));
        // As much as the socket takes while nobody reads.
        client.set_nonblocking(true).unwrap();
        let mut sent = 100;
        while let Ok(more) = client.write(&[2; 100_000]) {
            sent += more as u64;
        }
        assert_eq!(tx(&client), sent);
    }

    #[test]
    fn the_fin_counts_and_is_taken_off() {
        let (mut client, mut server) = pair();
        client.write_all(&[5; 1000]).unwrap();
        server.read_exact(&mut [0; 300]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        until("the FIN", || state(&server) == TcpState::CloseWait);
        let (look, inq) = settled(|| rx_counters(server.as_fd()));
        assert_eq!(
            (look.bytes_received, inq),
            (1001, 700),
            "the kernel counts the FIN here, but not in SIOCINQ"
        );
        assert_eq!(rx(&server), Some(300));
        server.read_exact(&mut [0; 700]).unwrap();
        assert_eq!(rx(&server), Some(1000), "all read, EOF not yet seen");
        assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
        assert_eq!(rx(&server), Some(1000), "EOF seen");
    }

    #[test]
    fn positions_in_the_closing_states() {
        let (mut client, mut server) = pair();
        client.write_all(&[5; 10]).unwrap();
        server.write_all(&[5; 20]).unwrap();
        server.read_exact(&mut [0; 4]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        until("FIN_WAIT2", || state(&client) == TcpState::FinWait2);
        assert_eq!(rx(&client), Some(0), "our own FIN does not count");
        client.read_exact(&mut [0; 20]).unwrap();
        assert_eq!(rx(&client), Some(20));
        // With the FIN of both sides the server waits for the last acknowledgement or is done at
        // once.
        server.shutdown(Shutdown::Write).unwrap();
        until("the end", || matches!(state(&client), TcpState::Close | TcpState::TimeWait));
        if state(&client) == TcpState::Close {
            assert_eq!(rx(&client), None, "nothing certain in CLOSE");
        }
    }

    #[test]
    fn a_reset_connection_has_no_position() {
        let (mut client, mut server) = pair();
        client.write_all(&[5; 10]).unwrap();
        server.read_exact(&mut [0; 4]).unwrap();
        super::super::reset_connection(client.as_fd()).unwrap();
        until("the reset", || state(&server) == TcpState::Close);
        assert_eq!(rx(&server), None);
        let (look, outq) = settled(|| tx_counters(server.as_fd()));
        assert_eq!(look.syn(outq), None, "only ESTABLISHED fixes s");
    }

    #[test]
    fn a_moving_stream_is_never_misjudged() {
        let (mut client, mut server) = pair();
        const TOTAL: u64 = 64 << 20;
        let reader = std::thread::spawn(move || {
            let mut buf = vec![0; 50_000];
            let (mut read, mut torn) = (0, 0u32);
            while read < TOTAL {
                read += uninterrupted(|| server.read(&mut buf)) as u64;
                loop {
                    match rx_counters(server.as_fd()).unwrap() {
                        Some((look, inq)) => break assert_eq!(look.rx_position(inq), Some(read)),
                        None => torn += 1,
                    }
                }
            }
            torn
        });
        let buf = vec![0; 33_333];
        let (mut written, mut torn) = (0, 0u32);
        let (look, outq) = settled(|| tx_counters(client.as_fd()));
        let syn = look.syn(outq).unwrap();
        while written < TOTAL {
            let size = buf.len().min((TOTAL - written) as usize);
            written += uninterrupted(|| client.write(&buf[..size])) as u64;
            // Acknowledgements arrive all the time.
            for _ in 0..20 {
                match tx_counters(client.as_fd()).unwrap() {
                    Some((look, outq)) => assert_eq!(look.tx_position(outq, syn), Some(written)),
                    None => torn += 1,
                }
            }
        }
        // How many looks were torn depends on luck; that none of the others was wrong does not.
        let _ = (torn, reader.join().unwrap());
    }

    #[test]
    fn other_sockets_are_errors() {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(tcp_look(udp.as_fd()).is_err());
        let other = std::fs::File::open("/dev/null").unwrap();
        assert!(rx_counters(other.as_fd()).is_err());
        assert!(unsent_out(other.as_fd()).is_err());
    }

    #[test]
    fn impossible_counters_have_no_position() {
        let look = TcpLook {
            state: TcpState::Established,
            max_pacing: u64::MAX,
            bytes_acked: 10,
            bytes_received: 5,
            bytes_sent: 20,
            bytes_retrans: 0,
            notsent: 0,
        };
        assert_eq!(look.syn(10), Some(0));
        assert_eq!(look.syn(11), Some(1));
        assert_eq!(look.syn(12), None);
        assert_eq!(look.syn(9), None);
        assert_eq!(TcpLook { bytes_retrans: 21, ..look }.syn(10), None);
        assert_eq!(look.rx_position(6), None);
        let fin = TcpLook { state: TcpState::LastAck, ..look };
        assert_eq!((fin.rx_position(4), fin.rx_position(5)), (Some(0), None));
        assert_eq!(TcpState::from(12), TcpState::Other(12));
    }
}
