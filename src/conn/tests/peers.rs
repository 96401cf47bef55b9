//! Peers that lie, repeat themselves, or speak out of turn (hazards H7, H8, M12): at most their own
//! link ends.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::by_hand::ByHand;
use super::bytes;
use super::hosts::{CLIENT, Host, Lab, Pair, SERVER};
use super::watched;
use crate::clc::{Dmb, Eid, Gid, LocalDevice, ServerHandshake};
use crate::config::{Config, UpgradePolicy};
use crate::ism::arena::Arena;
use crate::ism::interrupt::CONNECTIONS;
use crate::ism::ring::Refusal;
use crate::ism::sys;
use crate::link::endpoint::Endpoint;
use crate::link::message::{DmbPlace, LONGEST, Message, Reveal, Subject, Tuple};
use crate::link::stream::LinkedStream;
use crate::peer::PeerPolicy;
use crate::transport::{FallbackReason, Transport};

const SLOTS: u32 = 4;
pub(super) const DMB: usize = 4096;
pub(super) const PLACE: DmbPlace = DmbPlace { arena: 0, slot: 0, window: DMB as u64 };

/// A process that speaks the protocol by hand.
pub(super) struct Stranger {
    pub(super) socket: OwnedFd,
    pub(super) arena: Arena,
    file: OwnedFd,
    gid: [u8; 16],
    /// The name in its HELLO.
    pub(super) name: [u8; 16],
}

impl Stranger {
    /// Connects to a host of the lab.
    pub(super) fn to(lab: &Lab, side: usize) -> Self {
        let host = &lab.hosts[side].endpoint;
        let socket = lab.hosts[1 - side].endpoint.connect(host.id()).expect("connect");
        Stranger::on(socket, host.gid().0)
    }

    fn on(socket: OwnedFd, gid: [u8; 16]) -> Self {
        let (arena, file) = Arena::create(SLOTS).expect("an arena");
        Stranger { socket, arena, file, gid, name: [9; 16] }
    }

    fn hello(&self) -> Message {
        Message::Hello { link_id: 1, endpoint: self.name, gid: self.gid, slots: SLOTS }
    }

    pub(super) fn greet(&self) {
        let eventfd = sys::eventfd().expect("eventfd");
        self.send_with(&self.hello().encode(), &[eventfd.as_fd(), self.file.as_fd()]);
    }

    pub(super) fn send(&self, message: &Message) {
        self.send_with(&message.encode(), &[]);
    }

    fn send_with(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        sys::send(self.socket.as_fd(), bytes, fds).expect("send");
    }

    /// The next message that is no HELLO; `Err` when the link has ended, `None` when nothing has
    /// come.
    pub(super) fn hear(&self) -> Result<Option<Message>, ()> {
        let mut buffer = [0; LONGEST];
        loop {
            match sys::recv(self.socket.as_fd(), &mut buffer, 2) {
                Ok(received) if received.len == 0 => return Err(()),
                Ok(received) => match Message::decode(&buffer[..received.len]).expect("our own message") {
                    Message::Hello { .. } | Message::Arena { .. } => {}
                    message => return Ok(Some(message)),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(_) => return Err(()),
            }
        }
    }

    pub(super) fn device(&self) -> LocalDevice {
        LocalDevice { gid: Gid(self.gid), eid: Eid::LOOPBACK, host: String::new() }
    }
}

/// An upgraded connection that a stranger must not disturb.
struct Bystander(Pair);

impl Bystander {
    #[track_caller]
    fn is_well(&self) {
        for side in [CLIENT, SERVER] {
            self.0.write(side, &bytes(0, 700));
            self.0.expect(1 - side, &bytes(0, 700));
            assert!(self.0.conns[side].transport().is_loopback_ism());
        }
    }
}

fn subject(lab: &Lab) -> Subject {
    let pair = lab.pair();
    let linked: &dyn LinkedStream = &*pair.conns[CLIENT];
    linked.subject().expect("a subject")
}

fn garbage_clc() -> Vec<u8> {
    vec![0xE2, 0xD4, 0xC3, 0xC4, 1, 2, 3]
}

/// What a stranger does; whether its link must end.
type Deed = (&'static str, bool, fn(&Stranger, &Lab));

fn judge(deeds: &[Deed], greet: bool) {
    for (name, ends, deed) in deeds {
        let mut lab = Lab::new();
        let bystander = Bystander(lab.upgraded());
        let links = lab.hosts[SERVER].endpoint.links().len();
        let stranger = Stranger::to(&lab, SERVER);
        if greet {
            stranger.greet();
            lab.run();
            assert_eq!(stranger.hear(), Ok(None), "{name}: a good HELLO");
        }
        deed(&stranger, &lab);
        lab.run();
        let mut heard = stranger.hear();
        while let Ok(Some(_)) = heard {
            heard = stranger.hear();
        }
        assert_eq!(heard.is_err(), *ends, "{name}");
        if *ends {
            assert_eq!(lab.hosts[SERVER].endpoint.links().len(), links, "{name}: a link is left");
        }
        bystander.is_well();
        assert_eq!(lab.slots_in_use(), 2, "{name}: a slot is left");
    }
}

#[test]
fn hazard_m12_a_link_that_begins_wrong_ends() {
    watched(|| {
        let deeds: &[Deed] = &[
            ("nonsense", true, |stranger, _| stranger.send_with(b"GET / HTTP/1.1\r\n\r\n", &[])),
            ("one byte", true, |stranger, _| stranger.send_with(&[1], &[])),
            ("a HELLO without descriptors", true, |stranger, _| stranger.send(&stranger.hello())),
            ("a HELLO with one", true, |stranger, _| {
                stranger.send_with(&stranger.hello().encode(), &[stranger.file.as_fd()]);
            }),
            ("a HELLO with three", true, |stranger, _| {
                let eventfd = sys::eventfd().unwrap();
                let fds = [eventfd.as_fd(), stranger.file.as_fd(), eventfd.as_fd()];
                stranger.send_with(&stranger.hello().encode(), &fds);
            }),
            ("descriptors the wrong way round", true, |stranger, _| {
                let eventfd = sys::eventfd().unwrap();
                stranger.send_with(&stranger.hello().encode(), &[stranger.file.as_fd(), eventfd.as_fd()]);
            }),
            ("a file for an eventfd", true, |stranger, _| {
                let file = std::fs::File::open("/dev/null").unwrap();
                stranger.send_with(&stranger.hello().encode(), &[file.as_fd(), stranger.file.as_fd()]);
            }),
            ("an arena without seals", true, |stranger, _| {
                let eventfd = sys::eventfd().unwrap();
                let memfd =
                    rustix::fs::memfd_create(c"unsealed", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
                let size = rustix::fs::fstat(stranger.file.as_fd()).unwrap().st_size;
                rustix::fs::ftruncate(&memfd, size.unsigned_abs()).unwrap();
                stranger.send_with(&stranger.hello().encode(), &[eventfd.as_fd(), memfd.as_fd()]);
            }),
            ("an arena of another size", true, |stranger, _| {
                let eventfd = sys::eventfd().unwrap();
                let slots = SLOTS * 1000;
                let hello = Message::Hello { link_id: 1, endpoint: [9; 16], gid: stranger.gid, slots };
                stranger.send_with(&hello.encode(), &[eventfd.as_fd(), stranger.file.as_fd()]);
            }),
            ("an arena of impossible size", true, |stranger, _| {
                let eventfd = sys::eventfd().unwrap();
                let slots = u32::MAX;
                let hello = Message::Hello { link_id: 1, endpoint: [9; 16], gid: stranger.gid, slots };
                stranger.send_with(&hello.encode(), &[eventfd.as_fd(), stranger.file.as_fd()]);
            }),
            ("another device", true, |stranger, _| {
                let eventfd = sys::eventfd().unwrap();
                let hello = Message::Hello { link_id: 1, endpoint: [9; 16], gid: [1; 16], slots: SLOTS };
                stranger.send_with(&hello.encode(), &[eventfd.as_fd(), stranger.file.as_fd()]);
            }),
            ("something else than HELLO", true, |stranger, _| stranger.send(&Message::Cancel { id: 1 })),
            ("an OFFER before HELLO", true, |stranger, lab| {
                let subject = subject(lab);
                stranger.send(&Message::Offer {
                    id: 1,
                    signal: 0,
                    handshake: false,
                    subject,
                    commitment: None,
                    clc: vec![],
                });
            }),
        ];
        judge(deeds, false);
    });
}

#[test]
fn messages_that_are_unknown_repeated_or_out_of_turn_end_only_their_link() {
    watched(|| {
        let deeds: &[Deed] = &[
            ("an unknown type", true, |stranger, _| stranger.send_with(&[200, 1, 2, 3], &[])),
            ("a cut message", true, |stranger, _| {
                stranger.send_with(&Message::Detach { token: 1 }.encode()[..5], &[]);
            }),
            ("a message with a tail", true, |stranger, _| {
                let mut bytes = Message::Cancel { id: 1 }.encode();
                bytes.push(0);
                stranger.send_with(&bytes, &[]);
            }),
            ("the longest message and more", true, |stranger, _| stranger.send_with(&[9; LONGEST + 1], &[])),
            ("a second HELLO", true, |stranger, _| stranger.greet()),
            ("a surplus descriptor", true, |stranger, _| {
                stranger.send_with(&Message::Cancel { id: 1 }.encode(), &[stranger.file.as_fd()]);
            }),
            ("an ARENA whose descriptor it could not send", false, |stranger, _| {
                stranger.send(&Message::Arena { slots: SLOTS });
            }),
            ("an ARENA with two", true, |stranger, _| {
                let fds = [stranger.file.as_fd(), stranger.file.as_fd()];
                stranger.send_with(&Message::Arena { slots: SLOTS }.encode(), &fds);
            }),
            ("an ARENA that is a socket", true, |stranger, _| {
                let message = Message::Arena { slots: SLOTS }.encode();
                stranger.send_with(&message, &[stranger.socket.as_fd()]);
            }),
            ("a query on a link", true, |stranger, lab| {
                stranger.send(&Message::Query { subject: subject(lab) });
            }),
            ("an answer to no query", true, |stranger, _| stranger.send(&Message::Answer)),
            ("MATCH of no offer", true, |stranger, _| {
                let clc = garbage_clc();
                stranger.send(&Message::Match {
                    id: 77,
                    signal: 0,
                    dmb: PLACE,
                    cookie: 1,
                    commitment: None,
                    clc,
                });
            }),
            ("REFUSE of no offer", true, |stranger, _| {
                stranger.send(&Message::Refuse { id: 77, clc: garbage_clc() });
            }),
            ("READY without MATCH", true, |stranger, _| {
                stranger.send(&Message::Ready { id: 1, dmb: PLACE, reveal: None, clc: garbage_clc() });
            }),
            ("PROVED without READY", true, |stranger, _| {
                stranger.send(&Message::Proved { id: 1, reveal: Reveal { sequence: 1, nonce: [0; 32] } });
            }),
            ("ATTACHED without PROVED", true, |stranger, _| stranger.send(&Message::Attached { id: 1 })),
            ("DETACH of an unknown token", true, |stranger, _| stranger.send(&Message::Detach { token: 5 })),
            ("ASK for an unknown token, which may have crossed a DETACH", false, |stranger, _| {
                stranger.send(&Message::Ask { token: 5, bytes: 1 << 16, held: 0 });
            }),
            ("RETURN of an unknown token, which may have crossed a DETACH", false, |stranger, _| {
                stranger.send(&Message::Return { token: 5, segment: 1 });
            }),
            ("a GRANT whose descriptor it could not send", false, |stranger, _| {
                stranger.send(&Message::Grant { token: 5, segment: 1, bytes: 1 << 16 });
            }),
            ("a GRANT for an unknown token, which may have crossed a DETACH", false, |stranger, _| {
                let grant = Message::Grant { token: 5, segment: 1, bytes: 1 << 16 };
                stranger.send_with(&grant.encode(), &[stranger.file.as_fd()]);
            }),
            ("a DENY for an unknown token, which may have crossed a DETACH", false, |stranger, _| {
                stranger.send(&Message::Deny { token: 5, why: Refusal::Memory });
            }),
            ("BYE, for it has no use for the link", true, |stranger, _| stranger.send(&Message::Bye)),
            ("OFFER with an impossible signal", true, |stranger, lab| {
                let (subject, clc) = (subject(lab), garbage_clc());
                let offer = Message::Offer {
                    id: 1,
                    signal: CONNECTIONS,
                    handshake: false,
                    subject,
                    commitment: None,
                    clc,
                };
                stranger.send(&offer);
            }),
            ("OFFER without Proposal", true, |stranger, lab| {
                let (subject, clc) = (subject(lab), garbage_clc());
                stranger.send(&Message::Offer {
                    id: 1,
                    signal: 0,
                    handshake: false,
                    subject,
                    commitment: None,
                    clc,
                });
            }),
            ("OFFER twice with one number", true, |stranger, lab| {
                let (_, clc) = crate::clc::ClientHandshake::new(&stranger.device());
                // Of a connection that nobody accepts.
                let subject = Subject { cookie: 1, ..subject(lab) };
                let tuple = Tuple { remote: subject.tuple.local, ..subject.tuple };
                let subject = Subject { tuple, ..subject };
                let offer =
                    Message::Offer { id: 1, signal: 0, handshake: false, subject, commitment: None, clc };
                stranger.send(&offer);
                stranger.send(&offer);
            }),
            ("CANCEL of nothing, which may have crossed a REFUSE", false, |stranger, _| {
                stranger.send(&Message::Cancel { id: 4 });
            }),
            ("PINNED of nothing, which may have crossed a DETACH", false, |stranger, _| {
                stranger.send(&Message::Pinned { token: 4 });
            }),
        ];
        judge(deeds, true);
    });
}

/// A stranger that has published the port of an innocent server.
pub(super) struct Impostor {
    pub(super) host: Host,
    listener: OwnedFd,
    name: [u8; 16],
    _port: std::sync::Arc<crate::ism::device::PortEntry>,
    pub(super) client: Pair,
    pub(super) innocent: TcpStream,
}

impl Impostor {
    pub(super) fn new(lab: &Lab) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = Host::new(&Config::new().device_dir(lab.dir.path()).dmb_size(DMB));
        let nobody = std::sync::Arc::new(ByHand::default());
        let endpoint = Endpoint::open(&Config::new().device_dir(lab.dir.path()), nobody).unwrap();
        let listener = endpoint.take_listener().unwrap();
        let port = endpoint.publish(tcp.local_addr().unwrap().port(), &PeerPolicy::SameUser).unwrap();
        let name = endpoint.id().0;
        // The endpoint itself must go on living in the directory.
        std::mem::forget(endpoint);
        let client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let innocent = tcp.accept().unwrap().0;
        let client = Pair::new(client, innocent.try_clone().unwrap(), UpgradePolicy::Manual, DMB);
        Impostor { host, listener, name, _port: port, client, innocent }
    }

    /// Lets the client offer; returns the link and the offer.
    fn offered(&mut self) -> (Stranger, u64, Vec<u8>) {
        let (stranger, message) = self.hears_an_offer();
        match message {
            Message::Offer { id, clc, .. } => (stranger, id, clc),
            other => panic!("no offer: {other:?}"),
        }
    }

    /// Takes the link that the client makes.
    pub(super) fn takes_a_link(&mut self) -> Stranger {
        let socket = sys::accept(self.listener.as_fd()).unwrap().expect("a link");
        Stranger::on(socket, self.host.endpoint.gid().0)
    }

    /// Lets the client offer; returns the link and the message.
    pub(super) fn hears_an_offer(&mut self) -> (Stranger, Message) {
        assert!(self.client.conns[CLIENT].begin_upgrade());
        self.host.endpoint.offer(self.client.conns[CLIENT].clone());
        let mut stranger = self.takes_a_link();
        stranger.name = self.name;
        stranger.greet();
        self.host.run();
        let message = stranger.hear().expect("a link").expect("an offer");
        (stranger, message)
    }

    /// The client is what it was: TCP, and not one foreign byte.
    pub(super) fn is_unharmed(&mut self, reason: FallbackReason) {
        let conn = &self.client.conns[CLIENT];
        assert_eq!(conn.transport(), Transport::Tcp(reason));
        let mut key = crate::conn::watch::WatchKey::default();
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(conn.poll_upgraded(&mut cx, &mut key).is_ready(), "upgrade() ends");
        self.client.write(CLIENT, b"hello");
        self.innocent.set_nonblocking(false).unwrap();
        let mut got = [0; 5];
        self.innocent.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        self.innocent.write_all(b"there").unwrap();
        self.client.expect(CLIENT, b"there");
    }
}

pub(super) fn matching(
    impostor: &Impostor,
    stranger: &Stranger,
    id: u64,
    proposal: &[u8],
    cookie: u64,
) -> Message {
    let mut server = ServerHandshake::on_proposal(&stranger.device(), proposal).expect("a Proposal");
    let slot = stranger.arena.allocate().unwrap().expect("a slot");
    let clc = server.accept(Dmb { token: 4711, bytes: DMB as u32 }, 256, true).unwrap();
    let _ = impostor;
    Message::Match { id, signal: 3, dmb: DmbPlace { slot, ..PLACE }, cookie, commitment: None, clc }
}

#[test]
fn hazard_h8_a_match_is_an_assertion_and_no_proof() {
    watched(|| {
        let lab = Lab::new();
        let unrelated = TcpListener::bind("127.0.0.1:0").unwrap();
        // Made up; of another socket; of the client's own socket. (That of the innocent server is a
        // secret.)
        let forgeries: [fn(&Impostor, &TcpListener) -> u64; 3] = [
            |_, _| 4711,
            |_, other| sys::cookie(other.as_fd()).unwrap(),
            |us, _| sys::cookie(us.client.tcp(CLIENT).tcp.as_fd()).unwrap(),
        ];
        for forge in forgeries {
            let mut impostor = Impostor::new(&lab);
            let (stranger, id, proposal) = impostor.offered();
            let cookie = forge(&impostor, &unrelated);
            let forged = matching(&impostor, &stranger, id, &proposal, cookie);
            stranger.send(&forged);
            impostor.host.run();
            assert_eq!(stranger.hear(), Ok(Some(Message::Cancel { id })));
            impostor.is_unharmed(FallbackReason::Unproved);
            // Once more, now that it is settled: it counts as having crossed the CANCEL.
            stranger.send(&forged);
            impostor.host.run();
            assert_eq!(stranger.hear(), Ok(None));
            impostor.is_unharmed(FallbackReason::Unproved);
        }
    });
}

#[test]
fn a_faulty_answer_ends_the_link_and_the_waiting() {
    watched(|| {
        let lab = Lab::new();
        type Answer = fn(&Impostor, &Stranger, u64, &[u8]) -> Message;
        let answers: [(&str, Answer); 6] = [
            ("an impossible slot", |us, stranger, id, proposal| {
                match matching(us, stranger, id, proposal, 1) {
                    Message::Match { signal, cookie, clc, .. } => Message::Match {
                        id,
                        signal,
                        dmb: DmbPlace { slot: SLOTS, ..PLACE },
                        cookie,
                        commitment: None,
                        clc,
                    },
                    other => other,
                }
            }),
            ("an impossible arena", |us, stranger, id, proposal| {
                match matching(us, stranger, id, proposal, 1) {
                    Message::Match { signal, dmb, cookie, clc, .. } => Message::Match {
                        id,
                        signal,
                        dmb: DmbPlace { arena: 1, ..dmb },
                        cookie,
                        commitment: None,
                        clc,
                    },
                    other => other,
                }
            }),
            ("an impossible signal", |us, stranger, id, proposal| {
                match matching(us, stranger, id, proposal, 1) {
                    Message::Match { dmb, cookie, clc, .. } => {
                        Message::Match { id, signal: CONNECTIONS, dmb, cookie, commitment: None, clc }
                    }
                    other => other,
                }
            }),
            ("an impossible window", |us, stranger, id, proposal| {
                match matching(us, stranger, id, proposal, 1) {
                    Message::Match { signal, dmb, cookie, clc, .. } => Message::Match {
                        id,
                        signal,
                        dmb: DmbPlace { window: 5000, ..dmb },
                        cookie,
                        commitment: None,
                        clc,
                    },
                    other => other,
                }
            }),
            ("a MATCH without Accept", |_, _, id, _| Message::Match {
                id,
                signal: 0,
                dmb: PLACE,
                cookie: 1,
                commitment: None,
                clc: garbage_clc(),
            }),
            ("a REFUSE without Decline", |_, _, id, _| Message::Refuse { id, clc: garbage_clc() }),
        ];
        for (name, answer) in answers {
            let mut impostor = Impostor::new(&lab);
            let (stranger, id, proposal) = impostor.offered();
            stranger.send(&answer(&impostor, &stranger, id, &proposal));
            impostor.host.run();
            assert_eq!(stranger.hear(), Err(()), "{name}");
            impostor.is_unharmed(FallbackReason::Protocol);
        }
    });
}

/// Connects from an address that nobody else uses, so that its port can be used again.
fn connect_from(from: &SocketAddr, to: &SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&(*from).into()).unwrap();
    socket.connect(&(*to).into()).unwrap();
    socket.into()
}

#[test]
fn hazard_h7_a_stale_stream_never_answers_for_a_new_connection() {
    watched(|| {
        let mut lab = Lab::new();
        // Connection 1: accepted here, reset by its client, and still held with unread data.
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap();
        let _entry = lab.hosts[SERVER].endpoint.publish(port.port(), &PeerPolicy::SameUser).unwrap();
        let first = connect_from(&"127.61.7.9:0".parse().unwrap(), &port);
        let from = first.local_addr().unwrap();
        let mut stale = Pair::new(first, tcp.accept().unwrap().0, UpgradePolicy::Manual, DMB);
        stale.accept(&lab);
        stale.write(CLIENT, b"unread");
        sys::set_zero_linger(stale.tcp(CLIENT).tcp.as_fd()).unwrap();
        stale.close(CLIENT);
        // Connection 2: from the same port, and accepted by somebody who does not know this crate.
        let second = connect_from(&from, &port);
        let mut foreign = tcp.accept().unwrap().0;
        let new = Pair::new(second, foreign.try_clone().unwrap(), UpgradePolicy::Manual, DMB);
        assert!(new.offer(&lab));
        lab.run();
        assert!(!new.writes_ring(CLIENT) && !stale.writes_ring(SERVER));
        assert!(matches!(new.conns[CLIENT].transport(), Transport::Tcp(_)));
        new.write(CLIENT, b"untouched");
        foreign.set_nonblocking(false).unwrap();
        let mut got = [0; 9];
        foreign.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"untouched");
        assert_eq!(lab.slots_in_use(), 0);
    });
}

#[test]
fn hazard_h7_a_stale_offer_never_meets_a_new_stream() {
    watched(|| {
        let mut lab = Lab::new();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap();
        let _entry = lab.hosts[SERVER].endpoint.publish(port.port(), &PeerPolicy::SameUser).unwrap();
        // Connection 1 is offered, but not accepted; its CANCEL is kept back.
        let first = connect_from(&"127.61.7.9:0".parse().unwrap(), &port);
        let from = first.local_addr().unwrap();
        let old = Pair::new(first, tcp.accept().unwrap().0, UpgradePolicy::Manual, DMB);
        assert!(old.offer(&lab));
        lab.run();
        sys::set_zero_linger(old.tcp(CLIENT).tcp.as_fd()).unwrap();
        old.close(CLIENT);
        drop(old.socket(SERVER));
        // Connection 2 has the same addresses; it is accepted while the offer of 1 waits.
        let second = connect_from(&from, &port);
        let mut new = Pair::new(second, tcp.accept().unwrap().0, UpgradePolicy::Manual, DMB);
        new.accept(&lab);
        lab.run();
        assert!(!new.writes_ring(SERVER) && !new.writes_ring(CLIENT));
        // And 2 itself can be upgraded.
        assert!(new.offer(&lab));
        lab.run();
        new.settle();
        assert!(new.conns[CLIENT].transport().is_loopback_ism());
        new.write(CLIENT, b"mine");
        new.expect(SERVER, b"mine");
        assert_eq!(lab.slots_in_use(), 2);
    });
}
