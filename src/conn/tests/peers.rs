//! Peers that lie, repeat themselves, or speak out of turn (hazards H7, H8, M12): at most their own
//! link ends.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use super::hosts::{CLIENT, Host, Lab, Pair, SERVER};
use super::stranger::{Bystander, DMB, Impostor, PLACE, SLOTS, Stranger, TOKEN};
use super::watched;
use crate::clc::{Dmb, ServerHandshake};
use crate::config::{Config, UpgradePolicy};
use crate::ism::arena::Arena;
use crate::ism::budget::Account;
use crate::ism::interrupt::CONNECTIONS;
use crate::ism::ring::Refusal;
use crate::ism::sys;
use crate::link::message::{Bell, DmbPlace, LONGEST, Message, Subject, Tuple};
use crate::link::proof::Reveal;
use crate::link::stream::LinkedStream;
use crate::peer::PeerPolicy;
use crate::transport::{FallbackReason, Transport};

pub(super) fn subject(lab: &Lab) -> Subject {
    let pair = lab.pair();
    let linked: &dyn LinkedStream = &*pair.conns[CLIENT];
    linked.subject().expect("a subject")
}

fn garbage_clc() -> Vec<u8> {
    vec![0xE2, 0xD4, 0xC3, 0xC4, 1, 2, 3]
}

/// What a stranger does; whether its link must end.
type Deed = (&'static str, bool, fn(&Stranger, &Lab));

/// How far a stranger has come before it does what it does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begins {
    /// It is connected.
    Unknown,
    /// It was let in, and has still to say HELLO.
    LetIn,
    Greeted,
}

fn judge(deeds: &[Deed], begins: Begins) {
    for (name, ends, deed) in deeds {
        let mut lab = Lab::new();
        let bystander = Bystander(lab.upgraded());
        let links = lab.hosts[SERVER].endpoint.links().len();
        let stranger = Stranger::to(&lab, SERVER);
        if begins != Begins::Unknown {
            *stranger.got.borrow_mut() = stranger.open(&mut lab);
        }
        if begins == Begins::Greeted {
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
                let fds = [stranger.file.as_fd(), eventfd.as_fd(), eventfd.as_fd()];
                stranger.send_with(&stranger.hello().encode(), &fds);
            }),
            ("descriptors the wrong way round", true, |stranger, _| {
                let eventfd = sys::eventfd().unwrap();
                stranger.send_with(&stranger.hello().encode(), &[eventfd.as_fd(), stranger.file.as_fd()]);
            }),
            ("a file for an eventfd", true, |stranger, _| {
                let file = std::fs::File::open("/dev/null").unwrap();
                stranger.send_with(&stranger.hello().encode(), &[stranger.file.as_fd(), file.as_fd()]);
            }),
            ("memory for an eventfd", true, |stranger, _| {
                let file = stranger.file.as_fd();
                stranger.send_with(&stranger.hello().encode(), &[file, file]);
            }),
            ("an eventfd that HELLO does not name", true, |stranger, _| {
                let eventfd = sys::eventfd().unwrap();
                let hello = stranger.hello_of(SLOTS, stranger.gid, Bell::Socket);
                stranger.send_with(&hello.encode(), &[stranger.file.as_fd(), eventfd.as_fd()]);
            }),
            ("an arena without seals", true, |stranger, _| {
                let eventfd = sys::eventfd().unwrap();
                let memfd =
                    rustix::fs::memfd_create(c"unsealed", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
                let size = rustix::fs::fstat(stranger.file.as_fd()).unwrap().st_size;
                rustix::fs::ftruncate(&memfd, size.unsigned_abs()).unwrap();
                stranger.send_with(&stranger.hello().encode(), &[memfd.as_fd(), eventfd.as_fd()]);
            }),
            ("an arena of another size", true, |stranger, _| {
                let eventfd = sys::eventfd().unwrap();
                let slots = SLOTS * 1000;
                let hello = stranger.hello_of(slots, stranger.gid, Bell::Eventfd);
                stranger.send_with(&hello.encode(), &[stranger.file.as_fd(), eventfd.as_fd()]);
            }),
            ("an arena of impossible size", true, |stranger, _| {
                let eventfd = sys::eventfd().unwrap();
                let slots = u32::MAX;
                let hello = stranger.hello_of(slots, stranger.gid, Bell::Eventfd);
                stranger.send_with(&hello.encode(), &[stranger.file.as_fd(), eventfd.as_fd()]);
            }),
            ("another device", true, |stranger, _| {
                let eventfd = sys::eventfd().unwrap();
                let hello = stranger.hello_of(SLOTS, [1; 16], Bell::Eventfd);
                stranger.send_with(&hello.encode(), &[stranger.file.as_fd(), eventfd.as_fd()]);
            }),
            ("a second LINK", true, |stranger, _| stranger.send(&Message::Link)),
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
        judge(deeds, Begins::LetIn);
    });
}

#[test]
fn hazard_m12_whoever_begins_wrong_is_not_let_in() {
    watched(|| {
        let deeds: &[Deed] = &[
            ("nonsense", true, |stranger, _| stranger.send_with(b"GET / HTTP/1.1\r\n\r\n", &[])),
            ("a HELLO without descriptors", true, |stranger, _| stranger.send(&stranger.hello())),
            ("LINK of another version", true, |stranger, _| {
                let mut link = Message::Link.encode();
                link[5] ^= 1;
                stranger.send_with(&link, &[]);
            }),
            ("a descriptor, where the kernel lets it pass", true, |stranger, _| {
                let link = Message::Link.encode();
                if sys::send(stranger.socket.as_fd(), &link, &[stranger.file.as_fd()]).is_err() {
                    stranger.send_with(b"no", &[]);
                }
            }),
            ("a wake-up", true, |stranger, _| stranger.send(&Message::Wake)),
        ];
        judge(deeds, Begins::Unknown);
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
            ("the arena of its HELLO once more", true, |stranger, _| {
                stranger.send_with(&Message::Arena { slots: SLOTS }.encode(), &[stranger.file.as_fd()]);
            }),
            ("one ARENA twice", true, |stranger, _| {
                let (_arena, file) = Arena::create(SLOTS, &Account::of_ourselves()).unwrap();
                for _ in 0..2 {
                    stranger.send_with(&Message::Arena { slots: SLOTS }.encode(), &[file.as_fd()]);
                }
            }),
            ("the host's own arena", true, |stranger, lab| {
                let (got, link) = (stranger.got.borrow(), &lab.hosts[SERVER].endpoint.links()[1]);
                let slots = link.own_signals().slots();
                stranger.send_with(&Message::Arena { slots }.encode(), &[got[0].as_fd()]);
            }),
            ("more slots than connections", true, |stranger, _| {
                for _ in 0..3 {
                    stranger.send(&Message::Arena { slots: CONNECTIONS });
                }
            }),
            ("an ARENA of many TiB", true, |stranger, _| {
                stranger.send_with(&Message::Arena { slots: u32::MAX }.encode(), &[stranger.file.as_fd()]);
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
                stranger
                    .send(&Message::Proved { id: 1, reveal: Reveal::Number { sequence: 1, nonce: [0; 32] } });
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
            ("WAKE, which may come at any time", false, |stranger, _| stranger.send(&Message::Wake)),
            ("LINK once more", true, |stranger, _| stranger.send(&Message::Link)),
            ("PINNED of nothing, which may have crossed a DETACH", false, |stranger, _| {
                stranger.send(&Message::Pinned { token: 4 });
            }),
        ];
        judge(deeds, Begins::Greeted);
    });
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
    let clc = server.accept(Dmb { token: TOKEN, bytes: DMB as u32 }, 256, true).unwrap();
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

/// A client may use one port of its own for connections to several addresses of the server.
#[test]
fn a_stream_of_the_same_client_to_another_address_is_not_taken_for_the_one() {
    watched(|| {
        for (asked, ended) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut lab = Lab::new();
            let listener = TcpListener::bind("0.0.0.0:0").unwrap();
            sys::save_syns(listener.as_fd()).unwrap();
            let port = listener.local_addr().unwrap().port();
            let _entry = lab.hosts[SERVER].endpoint.publish(port, &PeerPolicy::SameUser).unwrap();
            // Several candidates are asked first, one is not.
            let mut decoy = asked.then(|| Host::new(&Config::new().device_dir(lab.dir.path())));
            let _decoy =
                decoy.as_ref().map(|host| host.endpoint.publish(port, &PeerPolicy::SameUser).unwrap());
            let connect = |from: &SocketAddr, to: [u8; 4]| {
                let client = connect_from(from, &(to, port).into());
                (
                    client.local_addr().unwrap(),
                    Pair::new(client, listener.accept().unwrap().0, UpgradePolicy::Manual, DMB),
                )
            };
            let (from, mut first) = connect(&"127.61.7.9:0".parse().unwrap(), [127, 61, 7, 1]);
            first.accept(&lab);
            if ended {
                // The server's end is closed last.
                first.close(CLIENT);
            }
            let (_, mut second) = connect(&from, [127, 61, 7, 2]);
            let mut run = |lab: &mut Lab| {
                for _ in 0..3 {
                    lab.run();
                    decoy.iter_mut().for_each(Host::run);
                }
            };
            assert!(second.offer(&lab));
            run(&mut lab);
            assert!(!second.writes_ring(CLIENT) && !second.writes_ring(SERVER), "nobody has accepted it");
            second.accept(&lab);
            run(&mut lab);
            second.settle();
            assert!(second.conns[CLIENT].transport().is_loopback_ism(), "asked: {asked}, ended: {ended}");
            second.write(CLIENT, b"mine");
            second.expect(SERVER, b"mine");
            assert!(!first.writes_ring(SERVER));
            // One that was accepted before another one of that client is still found.
            let (from, mut third) = connect(&"127.61.7.9:0".parse().unwrap(), [127, 61, 7, 3]);
            let (_, mut fourth) = connect(&from, [127, 61, 7, 4]);
            for pair in [&mut third, &mut fourth] {
                pair.accept(&lab);
            }
            for pair in [&third, &fourth] {
                assert!(pair.offer(&lab));
                run(&mut lab);
                pair.settle();
                assert!(pair.conns[CLIENT].transport().is_loopback_ism(), "asked: {asked}, ended: {ended}");
            }
        }
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
