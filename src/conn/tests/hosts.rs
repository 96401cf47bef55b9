//! Two endpoints on a device of their own, and connections between them, pumped by hand.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::by_hand::ByHand;
use super::disguise::{Disguise, share};
use super::ops::{Task, peeking, reading, writing};
use super::socket::{StdTcp, drain};
use crate::config::{Config, UpgradePolicy};
use crate::conn::close::Leftover;
use crate::conn::{Connection, OnPending, Role, receive, send};
use crate::ism::device::PortEntry;
use crate::ism::sys;
use crate::link::accepted::FIRST_LOOK;
use crate::link::aside::{ControlSocket, Fed};
use crate::link::endpoint::{AcceptedEntry, Endpoint};
use crate::link::message::{Destination, Message, Subject, Tuple};
use crate::link::stream::LinkedStream;
use crate::link::{Link, greeting};
use crate::peer::PeerPolicy;
use crate::sync::{Arc, Mutex, lock};

/// A side of a connection: its number in every pair.
pub(super) const CLIENT: usize = 0;
pub(super) const SERVER: usize = 1;

/// Moments of an upgrade: the number of steps after which something else happens.
pub(super) const MOMENTS: usize = 19;

#[test]
fn an_upgrade_has_no_other_moments() {
    super::watched(|| {
        let count = |name: &str, policy, play: fn(&mut Lab, &Pair)| {
            let mut lab = Lab::new();
            let pair = lab.pair_with(policy);
            play(&mut lab, &pair);
            let steps = (0..).take_while(|_| lab.hosts[SERVER].step() || lab.hosts[CLIENT].step()).count();
            assert!((MOMENTS - 7..MOMENTS).contains(&steps), "{name}: {steps}");
            pair.settle();
            steps
        };
        let offer = |lab: &mut Lab, pair: &Pair| assert!(pair.offer(lab));
        let most = [
            count("by cookies", UpgradePolicy::Manual, offer),
            count("with a prelude", UpgradePolicy::Handshake, offer),
            count("by sequence numbers", UpgradePolicy::Manual, |lab, pair| {
                pair.write(CLIENT, b"x");
                assert!(pair.offer(lab));
            }),
            // Its offer by cookies has left when it writes.
            count("by both", UpgradePolicy::Manual, |lab, pair| {
                let link = lab.link();
                assert!(pair.offer(lab));
                pair.write(CLIENT, b"x");
                drop(link);
            }),
        ];
        assert!(most.into_iter().max() >= Some(MOMENTS - 4), "{most:?}");
    });
}

/// One process, as far as its peers can tell.
pub(super) struct Host {
    pub(super) endpoint: Arc<Endpoint>,
    by_hand: Arc<ByHand>,
    listener: OwnedFd,
    /// Killed: it does nothing any more.
    pub(super) dead: bool,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.by_hand.end();
    }
}

impl Host {
    pub(super) fn new(config: &Config) -> Self {
        let by_hand = Arc::new(ByHand::default());
        let endpoint = Arc::new(Endpoint::open(config, by_hand.clone()).expect("an endpoint"));
        endpoint.let_in(&config.peer_policy);
        let listener = endpoint.take_listener().expect("a listener");
        let watched = Fed::new(listener.try_clone().expect("dup")).watch(&*by_hand).expect("watched");
        endpoint.spawn(greeting::accept(Arc::new(watched), endpoint.clone()));
        Host { endpoint, by_hand, listener, dead: false }
    }

    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        self.endpoint.links()
    }

    pub(super) fn watched(&self, socket: OwnedFd) -> Arc<ControlSocket> {
        Arc::new(Fed::new(socket).watch(&*self.by_hand).expect("watched"))
    }

    /// Does what there is to do, and takes nothing that has come.
    pub(super) fn work(&self) {
        self.by_hand.work();
    }

    /// Is there work that a task would do?
    pub(super) fn has_work(&self) -> bool {
        self.by_hand.has_work()
    }

    /// So much time passes, and what was to be done by then is done.
    pub(super) fn pass(&self, time: Duration) {
        self.by_hand.work();
        self.by_hand.with(|| self.endpoint.timers().pass(time));
    }

    /// It is that time now, and so much later whenever somebody has looked: what is done here takes
    /// time.
    pub(super) fn set_clock(&self, now: Duration, step: Duration) {
        self.by_hand.set_clock(now, step);
    }

    /// Takes as many messages in a turn as a runtime does, not one.
    pub(super) fn take_many(&self) {
        self.by_hand.take_many();
    }

    /// From now on that is because others run in between.
    pub(super) fn preempt(&self) {
        self.by_hand.preempt();
    }

    /// The socket that peers connect to.
    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Would somebody who comes wake it?
    pub(super) fn hears_who_comes(&self) -> bool {
        self.by_hand.watches(self.listener())
    }

    /// Takes one thing that has come: a piece of work, a connection, or one message. False: nothing
    /// has.
    pub(super) fn step(&mut self) -> bool {
        self.links().iter().for_each(|link| link.matching().settle());
        self.step_alone()
    }

    /// The same, without waiting for what is done aside.
    pub(super) fn step_alone(&mut self) -> bool {
        !self.dead && self.by_hand.step()
    }

    /// Everything that has come, as the runtime's task would take it.
    pub(super) fn run(&mut self) {
        loop {
            self.settle();
            if !self.step() {
                break;
            }
        }
    }

    /// Waits for what is done aside.
    pub(super) fn settle(&self) {
        for link in self.links() {
            link.account().lane().settle();
            link.matching().settle();
        }
    }
}

/// Two hosts on one device; the second one listens.
pub(super) struct Lab {
    pub(super) hosts: [Host; 2],
    pub(super) listener: TcpListener,
    _port: PortEntry,
    pub(super) dir: tempfile::TempDir,
}

impl Lab {
    pub(super) fn new() -> Self {
        Lab::with_dmb_size(64 << 10)
    }

    pub(super) fn with_dmb_size(dmb_size: usize) -> Self {
        Lab::with(dmb_size, &PeerPolicy::SameUser)
    }

    /// The server has to do with those only whom its policy admits.
    pub(super) fn whose_server_admits(policy: &PeerPolicy) -> Self {
        Lab::with(64 << 10, policy)
    }

    /// Both hosts wait so long for a silent peer.
    pub(super) fn with_patience(patience: Duration) -> Self {
        Lab::of(Config::new().dmb_size(64 << 10).peer_timeout(patience), &PeerPolicy::SameUser)
    }

    fn with(dmb_size: usize, policy: &PeerPolicy) -> Self {
        Lab::of(Config::new().dmb_size(dmb_size), policy)
    }

    fn of(config: Config, policy: &PeerPolicy) -> Self {
        Lab::of_configs([config.clone(), config], policy)
    }

    /// What one side may have of the other is set there by `limit`.
    pub(super) fn with_limits_at(side: usize, limit: impl FnOnce(Config) -> Config) -> Self {
        let mut configs = [(); 2].map(|()| Config::new().dmb_size(64 << 10));
        configs[side] = limit(configs[side].clone());
        Lab::of_configs(configs, &PeerPolicy::SameUser)
    }

    fn of_configs(configs: [Config; 2], policy: &PeerPolicy) -> Self {
        let dir = tempfile::Builder::new().prefix("smc-conn-").tempdir().expect("a temp dir");
        let [client, server] = configs.map(|config| config.device_dir(dir.path()));
        let hosts = [Host::new(&client), Host::new(&server.peer_policy(policy.clone()))];
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        sys::save_syns(listener.as_fd()).expect("TCP_SAVE_SYN");
        let port = listener.local_addr().expect("an address").port();
        let entry = hosts[SERVER].endpoint.publish(port, policy).expect("publish");
        Lab { hosts, listener, _port: entry, dir }
    }

    /// The server belongs to another user, and what it does has to be done as that one: the two
    /// hosts share a directory, and admit whom they are told to.
    pub(super) fn of_two_users([ours, theirs]: [&PeerPolicy; 2]) -> Self {
        let dir = tempfile::Builder::new().prefix("smc-conn-").tempdir().expect("a temp dir");
        share(dir.path());
        let config = Config::new().dmb_size(64 << 10).device_dir(dir.path());
        let client = Host::new(&config.clone().peer_policy(ours.clone()));
        let _stranger = Disguise::on();
        let server = Host::new(&config.peer_policy(theirs.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        sys::save_syns(listener.as_fd()).expect("TCP_SAVE_SYN");
        let port = listener.local_addr().expect("an address").port();
        let entry = server.endpoint.publish(port, theirs).expect("publish");
        Lab { hosts: [client, server], listener, _port: entry, dir }
    }

    /// A connection between the two users, whose ends admit whom they are told to.
    pub(super) fn pair_of_two_users(&self, policies: [&PeerPolicy; 2]) -> Pair {
        let client = TcpStream::connect(self.listener.local_addr().expect("an address")).expect("connect");
        let _stranger = Disguise::on();
        let server = self.listener.accept().expect("accept").0;
        let config = Config::new().upgrade_policy(UpgradePolicy::Manual).dmb_size(64 << 10);
        let configs = policies.map(|policy| config.clone().peer_policy(policy.clone()));
        let mut pair = Pair::of_configs(client, server, [Role::Client, Role::Server], configs);
        pair.accept(self);
        pair
    }

    /// Delivers every message there is, to each of the two users as that one.
    pub(super) fn run_as_two(&mut self) {
        loop {
            let client = self.hosts[CLIENT].step();
            let _stranger = Disguise::on();
            if !(self.hosts[SERVER].step() | client) {
                break;
            }
        }
    }

    /// A question of the client about a connection that is never accepted.
    pub(super) fn question(&self, port: u16) -> OwnedFd {
        let socket = self.hosts[CLIENT].endpoint.connect(self.hosts[SERVER].endpoint.id()).expect("connect");
        let (local, remote) = (([127, 0, 0, 1], port).into(), ([127, 0, 0, 1], self.port()).into());
        let subject = Subject {
            tuple: Tuple { local, remote },
            cookie: 1,
            network_namespace: 1,
            destination: Destination::Own,
        };
        sys::send(socket.as_fd(), &Message::Query { subject }.encode(), &[]).expect("send");
        socket
    }

    /// The port that the server listens on.
    pub(super) fn port(&self) -> u16 {
        self.listener.local_addr().expect("an address").port()
    }

    /// A connection that the server's application has not accepted yet.
    pub(super) fn connect(&self, policy: UpgradePolicy, dmb_size: usize) -> Pair {
        let client = TcpStream::connect(self.listener.local_addr().expect("an address")).expect("connect");
        let server = self.listener.accept().expect("accept").0;
        Pair::new(client, server, policy, dmb_size)
    }

    /// A connection whose server has that policy, and is known to its endpoint.
    pub(super) fn pair_that_admits(&self, policy: &PeerPolicy) -> Pair {
        let client = TcpStream::connect(self.listener.local_addr().expect("an address")).expect("connect");
        let server = self.listener.accept().expect("accept").0;
        let config = Config::new().upgrade_policy(UpgradePolicy::Manual).dmb_size(64 << 10);
        let configs = [config.clone(), config.peer_policy(policy.clone())];
        let mut pair = Pair::of_configs(client, server, [Role::Client, Role::Server], configs);
        pair.accept(self);
        pair
    }

    /// A connection of which both ends are known to their endpoints.
    pub(super) fn pair(&self) -> Pair {
        self.pair_with(UpgradePolicy::Manual)
    }

    pub(super) fn pair_with(&self, policy: UpgradePolicy) -> Pair {
        let mut pair = self.connect(policy, 64 << 10);
        pair.accept(self);
        pair
    }

    /// A link between the two hosts, so that an offer leaves at once.
    pub(super) fn link(&mut self) -> Arc<Link> {
        let server = self.hosts[SERVER].endpoint.id();
        let link = self.hosts[CLIENT].endpoint.link_to(server).expect("a link").clone();
        self.run();
        link
    }

    /// A connection that runs on the ring both ways.
    pub(super) fn upgraded(&mut self) -> Pair {
        let pair = self.pair();
        pair.offer(self);
        self.run();
        pair.settle();
        for side in [CLIENT, SERVER] {
            assert!(pair.conns[side].transport().is_loopback_ism());
        }
        pair
    }

    /// Writes all of it; what the ring needs to grow is delivered in between.
    #[track_caller]
    pub(super) fn write(&mut self, pair: &Pair, side: usize, bytes: &[u8]) {
        let mut rest = bytes;
        patiently("room", || {
            match pair.conns[side].try_write(&mut writing(rest), OnPending::Return) {
                Poll::Ready(Ok(length)) => rest = &rest[length..],
                Poll::Pending => self.run(),
                Poll::Ready(Err(error)) => panic!("write: {error}"),
            }
            rest.is_empty()
        });
    }

    /// So much time passes, and what comes of it is delivered.
    pub(super) fn pass(&mut self, time: Duration) {
        for host in &self.hosts {
            host.pass(time);
        }
        self.run();
    }

    /// As long as a reader is given to read, and no longer than that.
    pub(super) fn pause(&mut self) {
        self.pass(FIRST_LOOK / 2);
    }

    /// Delivers every message there is.
    pub(super) fn run(&mut self) {
        loop {
            // What comes of that is there then.
            self.hosts.iter().for_each(Host::settle);
            if !(self.hosts[CLIENT].step() | self.hosts[SERVER].step()) {
                break;
            }
        }
    }

    /// An upgraded connection is left, and both ends are done with it.
    pub(super) fn close(&mut self, pair: Pair) {
        drop(pair);
        self.run();
    }

    /// Slots that either host has lent.
    pub(super) fn slots_in_use(&self) -> u32 {
        self.hosts.iter().flat_map(Host::links).map(|link| link.slots_in_use()).sum()
    }

    /// Kills a host: the kernel closes what it had.
    pub(super) fn kill(&mut self, side: usize, pair: &Pair) {
        self.hosts[side].dead = true;
        for link in self.hosts[side].links() {
            let _ = sys::shutdown_socket(link.socket());
        }
        let conn = &pair.conns[side];
        drop(conn.take_socket());
    }
}

/// Both ends of one TCP connection. The test itself keeps no descriptor of it.
pub(super) struct Pair {
    pub(super) conns: [Arc<Connection<StdTcp>>; 2],
    sockets: [std::sync::Weak<StdTcp>; 2],
    tuple: (u16, std::net::SocketAddr),
    pub(super) accepted: Option<(Arc<Endpoint>, AcceptedEntry)>,
    /// Closed ends with CLC still to come.
    leftovers: Mutex<Vec<Leftover<StdTcp>>>,
}

impl Drop for Pair {
    fn drop(&mut self) {
        if let Some((endpoint, entry)) = self.accepted.take() {
            endpoint.forget_accepted(entry);
        }
        self.close(CLIENT);
        self.close(SERVER);
    }
}

impl Pair {
    pub(super) fn new(client: TcpStream, server: TcpStream, policy: UpgradePolicy, dmb_size: usize) -> Self {
        Self::of(
            client,
            server,
            [Role::Client, Role::Server],
            Config::new().upgrade_policy(policy).dmb_size(dmb_size),
        )
    }

    /// Two streams of these roles.
    pub(super) fn of_roles(client: TcpStream, server: TcpStream, roles: [Role; 2]) -> Self {
        let config = Config::new().upgrade_policy(UpgradePolicy::Manual).dmb_size(64 << 10);
        Self::of(client, server, roles, config)
    }

    fn of(client: TcpStream, server: TcpStream, roles: [Role; 2], config: Config) -> Self {
        Self::of_configs(client, server, roles, [config.clone(), config])
    }

    fn of_configs(client: TcpStream, server: TcpStream, roles: [Role; 2], configs: [Config; 2]) -> Self {
        let tuple = (server.local_addr().expect("local").port(), server.peer_addr().expect("peer"));
        let sockets = [StdTcp::new(client), StdTcp::new(server)];
        let conns = [CLIENT, SERVER]
            .map(|side| Connection::new(sockets[side].clone(), roles[side], configs[side].clone()));
        if roles[CLIENT] == Role::Client {
            // Its configuration names no directory, in which it could see whether that is of use.
            conns[CLIENT].upgrade.sample.want_next();
        }
        Pair {
            conns,
            sockets: sockets.each_ref().map(Arc::downgrade),
            tuple,
            accepted: None,
            leftovers: Mutex::default(),
        }
    }

    /// The server's application accepts.
    pub(super) fn accept(&mut self, lab: &Lab) {
        if self.accepted.is_none() {
            let linked: Arc<dyn LinkedStream> = self.conns[SERVER].clone();
            let endpoint = lab.hosts[SERVER].endpoint.clone();
            let entry = endpoint.accept(self.tuple.0, self.tuple.1, &linked);
            self.accepted = Some((endpoint, entry));
        }
    }

    /// The client begins the upgrade, if it may.
    pub(super) fn offer(&self, lab: &Lab) -> bool {
        let begins = self.conns[CLIENT].begin_upgrade();
        if begins {
            lab.hosts[CLIENT].endpoint.offer(self.conns[CLIENT].clone());
        }
        begins
    }

    /// The application drops its stream.
    pub(super) fn close(&self, side: usize) {
        if let Some(leftover) = self.conns[side].close() {
            let _ = leftover.socket.tcp.shutdown(std::net::Shutdown::Write);
            lock(&self.leftovers).push(leftover);
        }
    }

    /// The socket of a side, while it is open.
    pub(super) fn socket(&self, side: usize) -> Option<Arc<StdTcp>> {
        self.sockets[side].upgrade()
    }

    pub(super) fn tcp(&self, side: usize) -> Arc<StdTcp> {
        self.socket(side).expect("an open socket")
    }

    /// Sockets of closed ends that wait for the peer's CLC.
    pub(super) fn leaving(&self) -> usize {
        lock(&self.leftovers).len()
    }

    /// One turn of both reactors.
    pub(super) fn turn(&self) {
        for side in [CLIENT, SERVER] {
            if let Some(socket) = self.socket(side) {
                socket.turn();
            }
        }
        // What is done with gives its place back, which takes a lock.
        let mut leftovers = std::mem::take(&mut *lock(&self.leftovers));
        leftovers.retain_mut(drain);
        lock(&self.leftovers).extend(leftovers);
    }

    /// Lets both readers see that the peer has switched.
    pub(super) fn settle(&self) {
        for conn in &self.conns {
            let _ = conn.try_read(&mut peeking(&mut &mut [0][..]), OnPending::Return);
        }
    }

    pub(super) fn reads_ring(&self, side: usize) -> bool {
        lock(&self.conns[side].rx).path == receive::Path::Ring
    }

    pub(super) fn writes_ring(&self, side: usize) -> bool {
        lock(&self.conns[side].tx).path == send::Path::Ring
    }

    /// Writes all of it at once.
    pub(super) fn write(&self, side: usize, bytes: &[u8]) {
        match self.conns[side].try_write(&mut writing(bytes), OnPending::Return) {
            Poll::Ready(Ok(length)) => assert_eq!(length, bytes.len(), "all at once"),
            answer => panic!("write: {answer:?}"),
        }
    }

    /// One read of at most `length` bytes; `None` when there is nothing.
    pub(super) fn try_read(&self, side: usize, length: usize) -> Option<io::Result<Vec<u8>>> {
        let mut buffer = vec![0; length];
        let answer = self.conns[side].try_read(&mut reading(&mut &mut buffer[..]), OnPending::Return);
        match answer {
            Poll::Pending => None,
            Poll::Ready(Ok(length)) => {
                buffer.truncate(length);
                Some(Ok(buffer))
            }
            Poll::Ready(Err(error)) => Some(Err(error)),
        }
    }

    /// Reads exactly that; TCP may take its time.
    #[track_caller]
    pub(super) fn expect(&self, side: usize, expected: &[u8]) {
        if expected.is_empty() {
            return;
        }
        let mut got = Vec::new();
        patiently("the bytes", || {
            match self.try_read(side, expected.len() - got.len()) {
                None => {}
                Some(Ok(read)) if read.is_empty() => panic!("the end after {} bytes", got.len()),
                Some(Ok(read)) => got.extend(read),
                Some(Err(error)) => panic!("{error} after {} bytes", got.len()),
            }
            got.len() == expected.len()
        });
        assert!(got == expected, "other bytes");
    }

    /// How the stream of a side ends; nothing may come before.
    #[track_caller]
    pub(super) fn end(&self, side: usize) -> io::Result<()> {
        let mut end = None;
        patiently("the end", || {
            end = self.try_read(side, 64);
            end.is_some()
        });
        end.expect("an end").map(|read| assert_eq!(read, [0; 0], "bytes before the end"))
    }

    /// Waits to read in a task of its own; it must have to wait.
    #[track_caller]
    pub(super) fn park_reader(&self, side: usize) -> Arc<Task> {
        let task = Task::new();
        let waker = Waker::from(task.clone());
        let answer =
            self.conns[side].poll_read(&mut Context::from_waker(&waker), &mut peeking(&mut &mut [0][..]));
        assert!(answer.is_pending(), "{answer:?}");
        task
    }
}

/// Tries until it is true; what it waits for is the kernel's work, which takes microseconds.
#[track_caller]
pub(super) fn patiently(what: &str, mut done: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !done() {
        assert!(started.elapsed().as_secs() < 60, "{what} does not come");
        std::thread::sleep(std::time::Duration::from_micros(50));
    }
}
