//! Peers that send descriptors whose close waits, and doorbells that block (hazards M15, M16): no
//! thread of ours waits for them.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use rustix::fs::OFlags;

use super::disguise::Disguise;
use super::hosts::{CLIENT, Lab, SERVER, patiently};
use super::peers::subject;
use super::stranger::{Bystander, SLOTS, Stranger};
use super::watched;
use crate::ism::interrupt::Signal;
use crate::ism::sys;
use crate::link::Link;
use crate::link::aside::{Fed, NAME};
use crate::link::message::{Bell, Message};
use crate::link::stream::Undelivered;
use crate::sync::Arc;

/// A TCP socket whose last close waits for an hour, as long as this lives.
struct Lingering {
    socket: OwnedFd,
    unread: TcpStream,
}

impl Lingering {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let mut socket = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
        let unread = listener.accept().expect("accept").0;
        socket.set_nonblocking(true).expect("fcntl");
        while socket.write(&[0; 1 << 16]).is_ok() {}
        socket2::SockRef::from(&socket).set_linger(Some(Duration::from_secs(3600))).expect("SO_LINGER");
        Lingering { socket: socket.into(), unread }
    }

    /// Sends so many copies, and keeps none; what comes back ends the close of the last one, when
    /// it is dropped. `None`: the peer's queue takes no descriptors.
    fn send(self, over: BorrowedFd<'_>, bytes: &[u8], copies: usize) -> Option<TcpStream> {
        let Lingering { socket, unread } = self;
        let sent = send_many(over, bytes, socket.as_fd(), copies);
        if let Err(error) = sent {
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
            // Its close would wait here.
            socket2::SockRef::from(&socket).set_linger(None).expect("SO_LINGER");
            return None;
        }
        Some(unread)
    }
}

fn send_many(over: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>, copies: usize) -> std::io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = vec![fd; copies];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let bytes = [std::io::IoSlice::new(bytes)];
    rustix::net::sendmsg(over, &bytes, &mut control, SendFlags::DONTWAIT)?;
    Ok(())
}

/// What a stranger sends, and how to end what that began.
type Deed = (&'static str, fn(&Stranger, &Lab) -> Vec<Option<TcpStream>>);

fn lingers(stranger: &Stranger, message: &[u8], copies: usize) -> Vec<Option<TcpStream>> {
    vec![Lingering::new().send(stranger.socket.as_fd(), message, copies)]
}

/// What the stranger sends ends its link, and nobody waits.
fn nobody_waits(deeds: &[Deed], greets: fn(&Stranger)) {
    for (name, deed) in deeds {
        let mut lab = Lab::new();
        let bystander = Bystander(lab.upgraded());
        let links = lab.hosts[SERVER].links().len();
        let stranger = Stranger::to(&lab, SERVER);
        stranger.open(&mut lab);
        greets(&stranger);
        let unread = deed(&stranger, &lab);
        assert!(unread.iter().all(Option::is_some), "{name}: it is let in, and may send descriptors");
        lab.run();
        bystander.is_well();
        assert_eq!(lab.hosts[SERVER].links().len(), links, "{name}: its link has ended");
        assert_eq!(stranger.hear(), Err(()), "{name}");
    }
}

#[test]
fn hazard_m16_a_close_that_waits_is_nobody_elses() {
    watched(|| {
        let deeds: &[Deed] = &[
            ("with a message that has none", |stranger, _| {
                lingers(stranger, &Message::Cancel { id: 1 }.encode(), 1)
            }),
            ("for an arena", |stranger, _| lingers(stranger, &Message::Arena { slots: SLOTS }.encode(), 1)),
            ("for a segment", |stranger, _| {
                lingers(stranger, &Message::Grant { token: 5, segment: 1, bytes: 1 << 16 }.encode(), 1)
            }),
            ("beside an arena", |stranger, _| {
                let arena = Message::Arena { slots: SLOTS }.encode();
                let lingering = Lingering::new();
                sys::send(
                    stranger.socket.as_fd(),
                    &arena,
                    &[stranger.file.as_fd(), lingering.socket.as_fd()],
                )
                .expect("send");
                vec![Some(lingering.unread)]
            }),
            ("more than any message has", |stranger, _| lingers(stranger, &[9], 253)),
            ("with a message that is too long", |stranger, _| lingers(stranger, &[9; 5000], 1)),
            ("with an empty message", |stranger, _| lingers(stranger, &[], 1)),
            ("behind nonsense", |stranger, _| {
                stranger.send_with(&[200], &[]);
                lingers(stranger, &[9], 3)
            }),
            ("behind the end of the link", |stranger, _| {
                stranger.send(&Message::Bye);
                lingers(stranger, &[9], 3)
            }),
            ("and hangs up", |stranger, _| {
                let unread = lingers(stranger, &Message::Pinned { token: 1 }.encode(), 1);
                sys::shutdown_socket(stranger.socket.as_fd()).expect("shutdown");
                unread
            }),
        ];
        nobody_waits(deeds, Stranger::greet);
        let deeds: &[Deed] = &[
            ("with HELLO", |stranger, _| lingers(stranger, &stranger.hello().encode(), 2)),
            ("instead of HELLO", |stranger, _| lingers(stranger, b"junk", 1)),
        ];
        nobody_waits(deeds, |_| ());
    });
}

/// The names of this process's threads.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("procfs");
    // One may end meanwhile.
    tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok()).collect()
}

/// As on a kernel that can not refuse descriptors.
#[test]
fn hazard_m16_the_queue_of_a_control_socket_is_closed_on_a_thread_that_ends() {
    watched(|| {
        let lab = Lab::new();
        let server = &lab.hosts[SERVER].endpoint;
        let mut unread = Vec::new();
        for _ in 0..3 {
            let socket = lab.hosts[CLIENT].endpoint.connect(server.id()).expect("connect");
            let accepted = sys::accept(lab.hosts[SERVER].listener()).expect("accept").expect("a connection");
            sys::allow_rights(accepted.as_fd());
            unread.push(Lingering::new().send(socket.as_fd(), &[1], 200).expect("it may"));
            drop(Fed::new(accepted));
        }
        let closes = || threads().iter().any(|name| name.trim() == NAME);
        patiently("the thread", closes);
        drop(unread);
        patiently("the end of the thread", || !closes());
    });
}

#[test]
fn hazard_m16_strangers_get_no_descriptor_into_a_queue() {
    if sys::effective_uid() != 0 {
        // CI is root.
        let _ = writeln!(std::io::stderr(), "not root: what other users send is not tested");
        return;
    }
    watched(|| {
        let mut lab = Lab::new();
        let bystander = Bystander(lab.upgraded());
        let link = Message::Link.encode();
        let query = Message::Query { subject: subject(&lab) }.encode();
        // Whoever may reach the socket.
        let endpoints = lab.dir.path().join("ep");
        let path = endpoints.join(format!("{}.sock", lab.hosts[SERVER].endpoint.id()));
        for open in [lab.dir.path(), &endpoints, &path] {
            std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o777)).expect("chmod");
        }
        let (socket, unread) = {
            let _stranger = Disguise::on();
            let socket = sys::seqpacket_connect(&path).expect("connect");
            let send = |bytes: &[u8]| Lingering::new().send(socket.as_fd(), bytes, 1);
            let unread = [send(b"junk"), send(&link), send(&query)];
            (socket, unread)
        };
        // Linux 6.16 and newer: they do not even get there.
        let first = unread.iter().filter(|unread| unread.is_some()).count();
        assert!(first == 0 || first == 3, "{first}");
        lab.run();
        bystander.is_well();
        let mut end = [0];
        assert!(matches!(sys::recv(socket.as_fd(), &mut end, 0), Ok(received) if received.len == 0));
        // Our own user, before it is let in, and with a question that needs none.
        let socket = lab.hosts[CLIENT].endpoint.connect(lab.hosts[SERVER].endpoint.id()).expect("connect");
        sys::send(socket.as_fd(), &query, &[]).expect("send");
        lab.run();
        let behind = Lingering::new().send(socket.as_fd(), b"junk", 1);
        assert_eq!(behind.is_some(), first > 0);
        lab.run();
        bystander.is_well();
    });
}

/// Which eventfd it is, whoever holds it.
fn eventfd_id(fd: BorrowedFd<'_>) -> String {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).expect("procfs");
    info.lines().find(|line| line.starts_with("eventfd-id")).expect("an eventfd").to_owned()
}

/// Its writers wait from now on.
fn block(eventfd: &OwnedFd) {
    let flags = rustix::fs::fcntl_getfl(eventfd).expect("fcntl");
    let _ = rustix::io::write(eventfd, &(u64::MAX - 1).to_ne_bytes());
    rustix::fs::fcntl_setfl(eventfd, flags - OFlags::NONBLOCK).expect("fcntl");
}

/// The server's end of the latest link.
fn latest(lab: &Lab) -> Arc<Link> {
    lab.hosts[SERVER].links().pop().expect("a link")
}

#[test]
fn hazard_m15_a_doorbell_of_the_peer_that_blocks_is_not_rung() {
    watched(|| {
        let full = |eventfd: &OwnedFd| {
            rustix::io::write(eventfd, &(u64::MAX - 1).to_ne_bytes()).expect("room");
        };
        for (name, by_message) in [("full", true), ("blocking", true), ("as it should be", false)] {
            let mut lab = Lab::new();
            let bystander = Bystander(lab.upgraded());
            let stranger = Stranger::to(&lab, SERVER);
            stranger.open(&mut lab);
            let eventfd = sys::eventfd().expect("eventfd");
            stranger.send_with(&stranger.hello().encode(), &[stranger.file.as_fd(), eventfd.as_fd()]);
            lab.run();
            match name {
                "full" => full(&eventfd),
                "blocking" => block(&eventfd),
                _ => (),
            }
            let link = latest(&lab);
            // Its poller sleeps: its page is zero.
            let undelivered = link.raise(0, Signal::Data).expect("a ring");
            assert!(matches!(undelivered, Undelivered::Ring), "{name}");
            link.deliver_interrupt(0, undelivered);
            let told = if by_message { Some(Message::Wake) } else { None };
            assert_eq!(stranger.hear(), Ok(told), "{name}");
            assert!(sys::is_ready(eventfd.as_fd(), true, false).expect("poll"), "{name}");
            lab.run();
            bystander.is_well();
        }
    });
}

#[test]
fn hazard_m15_no_two_peers_have_one_eventfd_of_ours() {
    watched(|| {
        let mut lab = Lab::new();
        let bystander = Bystander(lab.upgraded());
        let strangers = [0, 1].map(|_| {
            let stranger = Stranger::to(&lab, SERVER);
            let eventfd = stranger.open(&mut lab).pop().expect("an eventfd");
            stranger.greet();
            lab.run();
            (stranger, eventfd)
        });
        let [ours, theirs] = [0, 1].map(|at| eventfd_id(strangers[at].1.as_fd()));
        assert_ne!(ours, theirs);
        let own = lab.hosts[SERVER].endpoint.eventfd().as_fd();
        assert!(![ours, theirs].contains(&eventfd_id(own)));
        // We write none of those that they have.
        strangers.iter().for_each(|(_, eventfd)| block(eventfd));
        lab.hosts[SERVER].endpoint.ring();
        bystander.is_well();
        drop(strangers);
        lab.run();
        lab.hosts[SERVER].endpoint.ring();
        bystander.is_well();
    });
}

#[test]
fn hazard_m15_a_peer_that_could_not_kill_us_has_no_eventfd_and_wakes_us_through_a_full_socket() {
    if sys::effective_uid() != 0 {
        // CI is root.
        let _ = writeln!(std::io::stderr(), "not root: a peer of another user is not tested");
        return;
    }
    watched(|| {
        let mut lab = Lab::new();
        let stranger = Stranger::to(&lab, SERVER);
        {
            // A process of root, to which this one belongs no more.
            let _other = Disguise::on();
            assert_eq!(stranger.open(&mut lab).len(), 1, "the arena alone");
        }
        stranger.send_with(
            &stranger.hello_of(SLOTS, stranger.gid, Bell::Socket).encode(),
            &[stranger.file.as_fd()],
        );
        lab.run();
        let link = latest(&lab);
        let undelivered = link.raise(0, Signal::Data).expect("a ring");
        link.deliver_interrupt(0, undelivered);
        assert_eq!(stranger.hear(), Ok(Some(Message::Wake)));

        // Its own ring, while our task has not read what is there.
        let send = |message: &Message| sys::send(stranger.socket.as_fd(), &message.encode(), &[]);
        while send(&Message::Pinned { token: 1 }).is_ok() {}
        let last_rung = crate::sync::AtomicU64::new(0);
        link.signals().publish_look(1);
        assert!(link.signals().sleep());
        assert!(link.signals().raise(7, Signal::Data, || 2, u64::MAX, &last_rung), "the poller sleeps");
        assert_eq!(send(&Message::Wake).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        let eventfd = lab.hosts[SERVER].endpoint.eventfd().try_clone().expect("dup");
        let _ = rustix::io::read(&eventfd, &mut [0; 8]);
        lab.run();
        assert!(sys::is_ready(eventfd.as_fd(), true, false).expect("poll"), "the poller is told to look");
    });
}
