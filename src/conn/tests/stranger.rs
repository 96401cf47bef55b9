//! Peers by hand: a process that speaks the protocol, one that offers in another one's place, and a
//! connection that must not be touched by any of it.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::by_hand::ByHand;
use super::bytes;
use super::hosts::{CLIENT, Host, Lab, Pair, SERVER};
use crate::clc::{Confirmation, Dmb, Eid, Gid, LocalDevice, ServerHandshake};
use crate::config::{Config, UpgradePolicy};
use crate::ism::arena::Arena;
use crate::ism::budget::Account;
use crate::ism::sys;
use crate::link::endpoint::Endpoint;
use crate::link::message::{Bell, DmbPlace, LONGEST, Message};
use crate::peer::PeerPolicy;
use crate::transport::{FallbackReason, Transport};

pub(super) const SLOTS: u32 = 4;
pub(super) const DMB: usize = 4096;
/// Of the DMB that an impostor gives away.
pub(super) const TOKEN: u64 = 4711;
pub(super) const PLACE: DmbPlace = DmbPlace { arena: 0, slot: 0, window: DMB as u64 };

/// A process that speaks the protocol by hand.
pub(super) struct Stranger {
    pub(super) socket: OwnedFd,
    pub(super) arena: Arena,
    pub(super) file: OwnedFd,
    pub(super) gid: [u8; 16],
    /// The name in its HELLO.
    pub(super) name: [u8; 16],
    /// Descriptors that came with what it has heard.
    pub(super) got: RefCell<Vec<OwnedFd>>,
}

impl Stranger {
    /// Connects to a host of the lab.
    pub(super) fn to(lab: &Lab, side: usize) -> Self {
        let host = &lab.hosts[side].endpoint;
        let socket = lab.hosts[1 - side].endpoint.connect(host.id()).expect("connect");
        Stranger::on(socket, host.gid().0)
    }

    pub(super) fn on(socket: OwnedFd, gid: [u8; 16]) -> Self {
        sys::allow_rights(socket.as_fd());
        let (arena, file) = Arena::create(SLOTS, &Account::of_ourselves()).expect("an arena");
        Stranger { socket, arena, file, gid, name: [9; 16], got: RefCell::default() }
    }

    pub(super) fn hello(&self) -> Message {
        self.hello_of(SLOTS, self.gid, Bell::Eventfd)
    }

    pub(super) fn hello_of(&self, slots: u32, gid: [u8; 16], bell: Bell) -> Message {
        Message::Hello { link_id: 1, endpoint: self.name, gid, slots, bell }
    }

    pub(super) fn greet(&self) {
        let eventfd = sys::eventfd().expect("eventfd");
        self.send_with(&self.hello().encode(), &[self.file.as_fd(), eventfd.as_fd()]);
    }

    /// Says LINK, and hears HELLO, whose descriptors come back.
    pub(super) fn open(&self, lab: &mut Lab) -> Vec<OwnedFd> {
        self.send(&Message::Link);
        lab.run();
        let mut buffer = [0; LONGEST];
        let received = sys::recv(self.socket.as_fd(), &mut buffer, 2).expect("an answer");
        assert!(matches!(Message::decode(&buffer[..received.len]), Ok(Message::Hello { .. })));
        received.carried.fds
    }

    pub(super) fn send(&self, message: &Message) {
        self.send_with(&message.encode(), &[]);
    }

    pub(super) fn send_with(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        sys::send(self.socket.as_fd(), bytes, fds).expect("send");
    }

    /// The next message that is no HELLO; `Err` when the link has ended, `None` when nothing has
    /// come.
    pub(super) fn hear(&self) -> Result<Option<Message>, ()> {
        let mut buffer = [0; LONGEST];
        loop {
            match sys::recv(self.socket.as_fd(), &mut buffer, 2) {
                Ok(received) if received.len == 0 => return Err(()),
                Ok(received) => {
                    self.got.borrow_mut().extend(received.carried.fds);
                    match Message::decode(&buffer[..received.len]).expect("our own message") {
                        Message::Hello { .. } | Message::Arena { .. } => {}
                        message => return Ok(Some(message)),
                    }
                }
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
pub(super) struct Bystander(pub(super) Pair);

impl Bystander {
    #[track_caller]
    pub(super) fn is_well(&self) {
        for side in [CLIENT, SERVER] {
            self.0.write(side, &bytes(0, 700));
            self.0.expect(1 - side, &bytes(0, 700));
            assert!(self.0.conns[side].transport().is_loopback_ism());
        }
    }
}

/// A stranger that has published the port of an innocent server.
pub(super) struct Impostor {
    pub(super) host: Host,
    tcp: TcpListener,
    listener: OwnedFd,
    name: [u8; 16],
    _port: crate::ism::device::PortEntry,
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
        let client = Pair::new(client, innocent.try_clone().unwrap(), UpgradePolicy::Manual, 64 << 10);
        Impostor { host, tcp, listener, name, _port: port, client, innocent }
    }

    /// Lets the client offer; returns the link and the offer.
    pub(super) fn offered(&mut self) -> (Stranger, u64, Vec<u8>) {
        match self.hears_an_offer() {
            (stranger, Message::Offer { id, clc, .. }) => (stranger, id, clc),
            (_, other) => panic!("no offer: {other:?}"),
        }
    }

    /// Takes the link that the client makes.
    pub(super) fn takes_a_link(&mut self) -> Stranger {
        let socket = sys::accept(self.listener.as_fd()).unwrap().expect("a link");
        let stranger = Stranger::on(socket, self.host.endpoint.gid().0);
        assert_eq!(stranger.hear(), Ok(Some(Message::Link)));
        stranger
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

    /// Another connection to that server, which the client offers on the link to the stranger.
    pub(super) fn offers_another(&mut self, stranger: &Stranger) -> (Pair, u64, Vec<u8>) {
        let client = TcpStream::connect(self.tcp.local_addr().unwrap()).unwrap();
        let pair = Pair::new(client, self.tcp.accept().unwrap().0, UpgradePolicy::Manual, DMB);
        assert!(pair.conns[CLIENT].begin_upgrade());
        self.host.endpoint.offer(pair.conns[CLIENT].clone());
        while self.host.step() {}
        loop {
            match stranger.hear() {
                Ok(Some(Message::Offer { id, clc, .. })) => return (pair, id, clc),
                Ok(Some(_)) => {}
                other => panic!("no offer: {other:?}"),
            }
        }
    }

    /// Upgrades the client's connection with the stranger, who has found out the server's cookie;
    /// returns the token of the client's DMB.
    pub(super) fn upgraded(&mut self) -> (Stranger, u64) {
        let (stranger, id, proposal) = self.offered();
        let cookie = sys::cookie(self.innocent.as_fd()).unwrap();
        let mut server = ServerHandshake::on_proposal(&stranger.device(), &proposal).expect("a Proposal");
        let slot = stranger.arena.allocate().unwrap().expect("a slot");
        let clc = server.accept(Dmb { token: TOKEN, bytes: DMB as u32 }, 256, true).unwrap();
        let dmb = DmbPlace { arena: 0, slot, window: 1 << 20 };
        stranger.send(&Message::Match { id, signal: 3, dmb, cookie, commitment: None, clc });
        self.host.run();
        let Ok(Some(Message::Ready { clc, .. })) = stranger.hear() else { panic!("no READY") };
        match server.on_confirm(&clc) {
            Ok(Confirmation::Confirmed { dmb, .. }) => (stranger, dmb.token),
            other => panic!("no Confirm: {other:?}"),
        }
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
