//! What a victim that is not careful waits for: the last close of a socket, a counter that is full.

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::peer::Peer;
use crate::target::{Target, subject_of};
use crate::wire;

/// For how long what blocks does so.
pub(crate) const LONG: Duration = Duration::from_secs(1);

/// A socket whose last close waits: `SO_LINGER`, and bytes that nobody takes.
pub(crate) struct Lingering {
    socket: TcpStream,
    /// Keeps it so.
    _other: TcpStream,
}

impl Lingering {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let mut socket = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
        let other = listener.accept().expect("accept").0;
        socket.set_nonblocking(true).expect("set_nonblocking");
        while socket.write(&[0; 65536]).is_ok() {}
        socket2::SockRef::from(&socket).set_linger(Some(LONG)).expect("SO_LINGER");
        Lingering { socket, _other: other }
    }

    /// Sends copies, and keeps none: the receiver has the last descriptor, until this attacker is
    /// killed. False: the receiver takes no descriptors of this user's.
    pub(crate) fn give(self, over: impl AsFd, bytes: &[u8], copies: usize) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<BorrowedFd<'_>> = vec![self.socket.as_fd(); copies];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "too many descriptors");
        let sent = sendmsg(over, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
        if sent.is_err() {
            // Its close would wait here.
            socket2::SockRef::from(&self.socket).set_linger(None).expect("SO_LINGER");
        }
        std::mem::forget(self._other);
        match sent {
            Ok(_) => true,
            // Who sent something before that was wrong has been hung up on.
            Err(Errno::PERM | Errno::PIPE | Errno::CONNRESET) => false,
            Err(error) => panic!("send: {error}"),
        }
    }
}

/// The victim has the last descriptors of such sockets in messages that it throws away. (From
/// Linux 6.16 on it takes none of who has not been admitted.)
pub(crate) fn close_before_hello(target: &Target) {
    for _ in 0..3 {
        Lingering::new().give(target.knock(), b"junk", 1);
        let peer = Peer::silent(target, 4);
        peer.send(&wire::link()).expect("sent");
        Lingering::new().give(&peer.socket, &peer.hello().0, 2);
        std::mem::forget(peer);
    }
    sleep(LONG + LONG / 5);
}

pub(crate) fn close_in_hello(target: &Target) {
    for _ in 0..3 {
        let mut peer = Peer::silent(target, 4);
        peer.open().expect("HELLO");
        assert!(Lingering::new().give(&peer.socket, &peer.hello().0, 2), "who is admitted may send them");
        peer.must_end("a HELLO with sockets");
    }
    sleep(LONG + LONG / 5);
}

pub(crate) fn close_in_query(target: &Target) {
    let tcp = target.tcp();
    let query = wire::query(&subject_of(&tcp));
    for _ in 0..3 {
        Lingering::new().give(target.knock(), &query.0, 1);
        let asks = target.knock();
        let _ = rustix::net::send(&asks, &query.0, SendFlags::NOSIGNAL);
        Lingering::new().give(&asks, b"junk", 1);
    }
    sleep(LONG + LONG / 5);
}

/// In each message that may bring a descriptor, in one that may not, in none at all, and behind one
/// that ends the link.
pub(crate) fn close_in_messages(target: &Target) {
    let messages = [
        wire::arena(4).0,
        wire::grant(5, 1, 1 << 16).0,
        wire::about(wire::CANCEL, 1).0,
        b"\xffjunk".to_vec(),
        vec![9; wire::LONGEST + 100],
    ];
    for message in messages {
        for copies in [1, 200] {
            let mut peer = Peer::greeted(target, 4);
            assert!(Lingering::new().give(&peer.socket, &message, copies), "who is admitted may send them");
            Lingering::new().give(&peer.socket, &message, copies);
            peer.must_end("a socket in a message");
        }
    }
    sleep(LONG + LONG / 5);
}

/// A counter so full that whoever adds to it waits until it is read.
fn fill(counter: &OwnedFd) {
    let flags = fcntl_getfl(counter).expect("F_GETFL");
    fcntl_setfl(counter, flags | OFlags::NONBLOCK).expect("F_SETFL");
    // There may be nothing to read.
    let _ = rustix::io::read(counter, &mut [0; 8]);
    fcntl_setfl(counter, flags - OFlags::NONBLOCK).expect("F_SETFL");
    rustix::io::write(counter, &(u64::MAX - 1).to_ne_bytes()).expect("filled");
}

/// Who wakes this attacker writes to a counter that is full and blocks, whether it was so from the
/// beginning or has become so.
pub(crate) fn own_eventfd(target: &Target) {
    for later in [false, true] {
        let mut peer = Peer::silent(target, 64);
        peer.eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd");
        if !later {
            fill(&peer.eventfd);
        }
        peer.greet().expect("HELLO");
        let mut conn = peer.talking();
        if later {
            fill(&peer.eventfd);
        }
        for _ in 0..20 {
            conn.ours.store32(wire::DATA_ARMED, 1);
            peer.put(&mut conn, b"hello");
            sleep(Duration::from_millis(10));
        }
        peer.must_live("a doorbell that is rung no more");
    }
}

fn fill_theirs(target: &Target) -> Peer {
    let peer = Peer::greeted(target, 64);
    fill(peer.their_eventfd.as_ref().expect("the same user's process has one"));
    peer
}

/// Who wakes the victim does.
pub(crate) fn their_eventfd(target: &Target) {
    let mut peers: Vec<_> = (0..3).map(|_| fill_theirs(target)).collect();
    sleep(LONG);
    for peer in &mut peers {
        peer.must_live("a doorbell that does not ring");
    }
}

/// And nobody is there any more who could be held to account.
pub(crate) fn their_eventfd_and_exit(target: &Target) {
    drop((0..3).map(|_| fill_theirs(target)).collect::<Vec<_>>());
    sleep(LONG);
}
