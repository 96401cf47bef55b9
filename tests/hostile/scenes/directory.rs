//! Names in the directory behind which nobody is, or who answers to them.
#![allow(clippy::disallowed_types, reason = "a test, which loom does not run")]

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags,
    SocketType, recvmsg, socket_with,
};

use super::asker::{Asker, Seen};
use super::diag::cookie_of;
use super::needs_root;
use crate::child::{Child, next_word, tell};
use crate::peer::{Dmb, fresh_token, memory_file, send_on};
use crate::raw::Memory;
use crate::scenes::DONE;
use crate::target::Target;
use crate::watchdog::watched;
use crate::wire::{self, Packet, Place};

const SLOTS: u32 = 256;
/// A user that is nobody's.
const STRANGER: u32 = 64003;
/// Descriptors that a client may have whatever it finds: those of its streams, its links, and its
/// places to ask from.
const MOST_DESCRIPTORS: usize = 150;

/// How somebody behaves who answers under a name in the directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Manner {
    /// Never accepts a connection.
    Silent,
    /// Says yes to each question, and then nothing.
    SaysYes,
    /// Says yes, and hangs up on the link.
    HangsUp,
    /// Says MATCH with the right server's cookie, and commits itself to nothing.
    NoCommitment,
    /// Commits itself to something, and says nothing once it has READY.
    SilentAfterReady,
    /// The same, and reveals something else than the number.
    ProvesNothing,
}

/// What was said to it.
#[derive(Default, Debug)]
struct Heard {
    connections: AtomicU64,
    offers: AtomicU64,
    readies: AtomicU64,
}

/// An endpoint by hand: names in a directory, and a socket behind them.
struct Fake {
    name: [u8; 16],
    paths: Vec<PathBuf>,
    listener: OwnedFd,
    gid: [u8; 16],
    file: OwnedFd,
    memory: Arc<Memory>,
    _lock: File,
}

impl Drop for Fake {
    fn drop(&mut self) {
        for path in &self.paths {
            let _ = fs::remove_file(path);
        }
    }
}

fn listen(path: &Path) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("socket");
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).expect("a short path")).expect("bind");
    fs::set_permissions(path, PermissionsExt::from_mode(0o666)).expect("chmod");
    rustix::net::listen(&socket, 128).expect("listen");
    socket
}

/// A name that no endpoint has.
fn fresh_name() -> [u8; 16] {
    (u128::from(fresh_token()) << 64 | u128::from(std::process::id())).to_be_bytes()
}

/// One as they are made in that directory: what other users make there is looked at for that.
fn name_in(ep: &Path) -> [u8; 16] {
    let inode = fs::metadata(ep).expect("a directory").ino();
    (u128::from(fresh_token()) << 64 | u128::from(inode)).to_be_bytes()
}

fn text(name: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(name))
}

impl Fake {
    /// Plants an endpoint that listens on `port` below that directory, or room.
    fn plant(room: &Path, gid: [u8; 16], port: u16) -> Fake {
        let (ep, port) = (room.join("ep"), room.join(format!("port/{port}")));
        // A room without one of its parts is none.
        let parts = [&ep, &port, &room.join("net")];
        parts.into_iter().for_each(|directory| fs::create_dir_all(directory).expect("a directory"));
        let name = name_in(&ep);
        let at = |suffix: &str| ep.join(format!("{}{suffix}", text(name)));
        let lock = File::create(at(".lock")).expect("a lock");
        flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("flock");
        let listener = listen(&at(".sock"));
        let entry = port.join(text(name));
        File::create(&entry).expect("an entry");
        let file = memory_file(wire::arena_bytes(SLOTS));
        let memory = Arc::new(Memory::map(&file).expect("mmap"));
        let paths = vec![entry, at(".sock"), at(".lock")];
        Fake { name, paths, listener, gid, file, memory, _lock: lock }
    }

    /// Answers until it is told to stop.
    fn serve(&self, manner: Manner, stop: &AtomicBool, heard: &Heard) {
        let mut guests: Vec<Guest> = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            while let (true, Ok(socket)) = (manner != Manner::Silent, rustix::net::accept(&self.listener)) {
                heard.connections.fetch_add(1, Ordering::Relaxed);
                guests.push(Guest { socket, arena: None });
            }
            guests.retain_mut(|guest| guest.attend(self, manner, heard));
            thread::sleep(Duration::from_millis(1));
        }
        for slot in 0..SLOTS {
            let dmb = Dmb::new(&self.memory, SLOTS, slot);
            assert_eq!(dmb.load(wire::PROD), 0, "{manner:?} gets bytes, by slot {slot}");
        }
    }
}

/// A connection to a fake endpoint.
struct Guest {
    socket: OwnedFd,
    arena: Option<(Arc<Memory>, u32)>,
}

impl Guest {
    /// Takes one message, if there is one. False: the connection has ended.
    fn attend(&mut self, fake: &Fake, manner: Manner, heard: &Heard) -> bool {
        let mut buffer = [0; wire::LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let length = match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags) {
            Ok(received) if received.bytes > 0 => received.bytes,
            Err(Errno::AGAIN) => return true,
            _ => return false,
        };
        let descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        let first = descriptors.flatten().next();
        let message = &buffer[..length];
        let number = |at: usize| u64::from_le_bytes(message[at..at + 8].try_into().expect("8 bytes"));
        match message[0] {
            wire::QUERY => self.say(&wire::answer()),
            wire::LINK if manner == Manner::HangsUp => return false,
            wire::LINK if manner != Manner::SaysYes => {
                let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd");
                let hello = wire::hello(1, fake.name, fake.gid, SLOTS);
                let _ = send_on(&self.socket, &hello.0, &[fake.file.as_fd(), bell.as_fd()]);
            }
            wire::HELLO => {
                let slots = u32::from_le_bytes(message[47..51].try_into().expect("4 bytes"));
                let map = |file: OwnedFd| Some((Arc::new(Memory::map(&file).ok()?), slots));
                self.arena = first.and_then(map);
            }
            wire::OFFER => {
                let slot = heard.offers.fetch_add(1, Ordering::Relaxed) as u32 % SLOTS;
                self.claim(fake, manner, number(1), slot, message);
            }
            wire::READY => {
                heard.readies.fetch_add(1, Ordering::Relaxed);
                self.ready(manner, number(1), message);
            }
            _ => {}
        }
        true
    }

    fn say(&self, packet: &Packet) {
        // Who has hung up hears nothing.
        let _ = send_on(&self.socket, &packet.0, &[]);
    }

    /// Says MATCH, in the place of the true server.
    fn claim(&self, fake: &Fake, manner: Manner, id: u64, slot: u32, offer: &[u8]) {
        // The subject's addresses: the client's, and the server's.
        let address = |at: usize| {
            let port = u16::from_le_bytes(offer[at + 16..at + 18].try_into().expect("2 bytes"));
            let ip: [u8; 4] = offer[at + 12..at + 16].try_into().expect("4 bytes");
            SocketAddr::from((ip, port))
        };
        let cookie = cookie_of(address(36), address(14)).expect("the kernel tells everybody");
        let commitment = (manner != Manner::NoCommitment).then_some(&wire::SHARE);
        let place = Place { arena: 0, slot, window: 4096 };
        let accept = wire::accept(fake.gid, fresh_token());
        self.say(&wire::match_claimed(id, place, cookie, commitment, &accept));
    }

    /// As if it had been proved: the client's word is switched, and bytes are there.
    fn ready(&self, manner: Manner, id: u64, ready: &[u8]) {
        let (arena, slot) = (&ready[9..13], u32::from_le_bytes(ready[13..17].try_into().expect("4 bytes")));
        if let (Some((memory, slots)), [0, 0, 0, 0]) = (&self.arena, arena) {
            let theirs = Dmb::new(memory, *slots, slot);
            theirs.decide(701);
            theirs.put(0, b"injected");
            theirs.store(wire::PROD, 8);
        }
        if manner == Manner::ProvesNothing {
            // Its own tag, said back.
            self.say(&wire::proved_with_tag(id, ready[26..58].try_into().expect("32 bytes")));
        }
    }
}

/// An echo that knows nothing of the crate.
pub(crate) fn plain_server() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    tell(&listener.local_addr().expect("an address").to_string());
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            let mut first = [0];
            let _ = std::io::Read::read_exact(&mut &stream, &mut first);
            let _ = std::io::copy(&mut &stream, &mut &stream);
            let _ = stream.shutdown(std::net::Shutdown::Write);
        });
    }
}

/// A client asks that server, on whose port somebody else is planted, too.
fn fool(target: &Target, server: SocketAddr, manner: Manner) -> (Seen, Heard) {
    let fake = Fake::plant(&target.directory, target.gid(), server.port());
    let mut asker = Asker::start(target);
    let (stop, heard) = (AtomicBool::new(false), Heard::default());
    let seen = thread::scope(|scope| {
        let serving = scope.spawn(|| fake.serve(manner, &stop, &heard));
        // Who only has an impostor talks to the end.
        let until = Duration::from_secs(if server == target.addr { 40 } else { 8 });
        let seen = asker.ask_for(server, 2, until);
        stop.store(true, Ordering::Relaxed);
        serving.join().expect("it got nothing");
        seen
    });
    assert!(seen.descriptors < MOST_DESCRIPTORS, "{seen:?}");
    (seen, heard)
}

/// The true server is there, too: all are upgraded with it, and the impostor was heard.
fn beside_the_true_one(target: &Target, manner: Manner) -> Heard {
    let (seen, heard) = fool(target, target.addr, manner);
    assert_eq!(seen.upgraded, 2, "{manner:?}: {heard:?}");
    assert!(heard.connections.load(Ordering::Relaxed) > 0, "{manner:?} was asked");
    heard
}

/// Bytes for a server that knows nothing of the crate reach it, and nobody else.
pub(crate) fn impostor(target: &Target) {
    let mut plain = Child::start("plain", &target.directory, &[]);
    let server = plain.hear().parse().expect("an address");
    for manner in [Manner::SaysYes, Manner::HangsUp, Manner::NoCommitment] {
        assert_eq!(fool(target, server, manner).0.upgraded, 0, "{manner:?}");
    }
    for manner in [Manner::SilentAfterReady, Manner::ProvesNothing] {
        let (seen, heard) = fool(target, server, manner);
        assert_eq!(seen.upgraded, 0, "{manner:?}");
        assert!(heard.readies.load(Ordering::Relaxed) > 0, "{manner:?}: {heard:?}");
    }
}

pub(crate) fn says_yes(target: &Target) {
    beside_the_true_one(target, Manner::SaysYes);
}

pub(crate) fn hangs_up(target: &Target) {
    beside_the_true_one(target, Manner::HangsUp);
}

pub(crate) fn matches_without_a_commitment(target: &Target) {
    beside_the_true_one(target, Manner::NoCommitment);
}

pub(crate) fn silent_after_ready(target: &Target) {
    beside_the_true_one(target, Manner::SilentAfterReady);
}

pub(crate) fn proves_nothing(target: &Target) {
    beside_the_true_one(target, Manner::ProvesNothing);
}

/// Several hundred, each of which would be asked.
pub(crate) fn silent(target: &Target) {
    let _fakes: Vec<_> =
        (0..400).map(|_| Fake::plant(&target.directory, target.gid(), target.addr.port())).collect();
    let seen = Asker::start(target).ask_for(target.addr, 4, Duration::from_secs(5));
    assert!(seen.descriptors < MOST_DESCRIPTORS, "{seen:?}");
}

/// Entries of the dead, on this port and on thousands of others.
pub(crate) fn dead(target: &Target) {
    let ports = target.directory.join("port");
    let planted = 20_000..23_000;
    for port in planted.clone() {
        let port = ports.join(port.to_string());
        fs::create_dir_all(&port).expect("a port");
        File::create(port.join(text(fresh_name()))).expect("an entry");
    }
    let port = ports.join(target.addr.port().to_string());
    let names: Vec<_> = (0..1024).map(|_| port.join(text(fresh_name()))).collect();
    names.iter().for_each(|name| drop(File::create(name).expect("an entry")));
    let seen = Asker::start(target).ask_for(target.addr, 4, Duration::from_secs(3));
    assert!(seen.descriptors < MOST_DESCRIPTORS, "{seen:?}");
    // Whoever comes next may have tidied up.
    names.iter().for_each(|name| drop(fs::remove_file(name)));
    planted.for_each(|port| drop(fs::remove_dir_all(ports.join(port.to_string()))));
}

pub(crate) fn junk_names(target: &Target) {
    let places = [target.directory.join(format!("port/{}", target.addr.port())), target.directory.join("ep")];
    let names: Vec<_> =
        places.iter().flat_map(|place| (0..20_000).map(|number| place.join(format!("x{number}")))).collect();
    names.iter().for_each(|name| drop(File::create(name).expect("a name")));
    let seen = Asker::start(target).ask_for(target.addr, 4, Duration::from_secs(3));
    assert!(seen.descriptors < MOST_DESCRIPTORS, "{seen:?}");
    names.iter().for_each(|name| fs::remove_file(name).expect("still there"));
}

/// Symbolic links in the place of sockets, locks and entries: nobody follows them.
pub(crate) fn links_that_lead_elsewhere(target: &Target) {
    let elsewhere = tempfile::tempdir().expect("a directory");
    let outside = listen(&elsewhere.path().join("sock"));
    let kept = elsewhere.path().join("kept");
    fs::write(&kept, "kept").expect("a file");
    let mut planted = Vec::new();
    for _ in 0..20 {
        let name = text(fresh_name());
        let ep = target.directory.join("ep");
        let entry = target.directory.join(format!("port/{}/{name}", target.addr.port()));
        File::create(&entry).expect("an entry");
        symlink(elsewhere.path().join("sock"), ep.join(format!("{name}.sock"))).expect("a link");
        symlink(&kept, ep.join(format!("{name}.lock"))).expect("a link");
        planted.extend([entry, ep.join(format!("{name}.sock")), ep.join(format!("{name}.lock"))]);
    }
    let seen = Asker::start(target).ask(target.addr, 2);
    assert_eq!(seen.upgraded, 2, "{seen:?}");
    assert_eq!(rustix::net::accept(&outside).expect_err("nobody"), Errno::AGAIN);
    assert_eq!(fs::read_to_string(&kept).expect("still there"), "kept");
    planted.iter().for_each(|name| drop(fs::remove_file(name)));
}

/// Another user's names, thousands of them, and who says yes to everything.
pub(crate) fn another_user(target: &Target) {
    let room = target.directory.join(format!("u{STRANGER}"));
    let fakes: Vec<_> = (0..200).map(|_| Fake::plant(&room, target.gid(), target.addr.port())).collect();
    for number in 0..4000 {
        File::create(target.directory.join(format!("x{number}"))).expect("a name");
        File::create(room.join(format!("ep/{}.sock", text(fresh_name())))).expect("a name");
        fs::create_dir_all(room.join(format!("port/{}", 1024 + number))).expect("a port");
        File::create(room.join(format!("port/{}/{}", target.addr.port(), text(fresh_name()))))
            .expect("a name");
    }
    tell(DONE);
    while next_word().is_some() {
        let asked = fakes.iter().filter(|fake| rustix::net::accept(&fake.listener).is_ok()).count();
        tell(&asked.to_string());
    }
}

/// Another user, whom all admit, answers for a port that is not its own, in every manner, and
/// announces thousands of others.
pub(crate) fn admitted_user(target: &Target) {
    let room = target.directory.join(format!("u{STRANGER}"));
    let manners = [
        Manner::SaysYes,
        Manner::HangsUp,
        Manner::NoCommitment,
        Manner::SilentAfterReady,
        Manner::ProvesNothing,
    ];
    let fakes = manners.map(|manner| (manner, Fake::plant(&room, target.gid(), target.addr.port())));
    let _silent: Vec<_> = (0..20).map(|_| Fake::plant(&room, target.gid(), target.addr.port())).collect();
    for port in 20_000..23_000 {
        fs::create_dir_all(room.join(format!("port/{port}"))).expect("a port");
    }
    let (stop, heard) = (AtomicBool::new(false), Heard::default());
    thread::scope(|scope| {
        for (manner, fake) in &fakes {
            scope.spawn(|| fake.serve(*manner, &stop, &heard));
        }
        tell(DONE);
        while next_word().is_some() {
            let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
            tell(&format!("{} {}", count(&heard.connections), count(&heard.readies)));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_user_who_is_admitted_answers_for_what_is_not_its_own_and_gets_nothing() {
    if !needs_root("a_user_who_is_admitted_answers_for_what_is_not_its_own_and_gets_nothing") {
        return;
    }
    watched(|| {
        let any = [("SMC_LO_PEERS", "any")];
        let shared = tempfile::tempdir().expect("a directory");
        fs::set_permissions(shared.path(), PermissionsExt::from_mode(0o1777)).expect("chmod");
        let mut victim = Child::start("victim CurrentThread", shared.path(), &any);
        let addr: SocketAddr = victim.hear().parse().expect("an address");
        let role = format!("attack {addr} admitted-user");
        let user = STRANGER.to_string();
        let before =
            ["setpriv", &format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups", "--"];
        let mut stranger = Child::start_behind(&before, &role, shared.path(), &any);
        assert_eq!(stranger.hear(), DONE);
        let target = Target { directory: shared.path().to_owned(), addr };
        let seen = Asker::start_with(&target, &any).ask(addr, 4);
        assert_eq!(seen.upgraded, 4, "{seen:?}");
        assert!(seen.descriptors < MOST_DESCRIPTORS, "{seen:?}");
        let heard = stranger.ask("heard?");
        assert!(!heard.starts_with("0 "), "it was not even asked: {heard}");
    });
}

#[test]
fn names_of_another_user_are_in_nobodys_way() {
    if !needs_root("names_of_another_user_are_in_nobodys_way") {
        return;
    }
    watched(|| {
        let shared = tempfile::tempdir().expect("a directory");
        fs::set_permissions(shared.path(), PermissionsExt::from_mode(0o1777)).expect("chmod");
        let mut victim = Child::start("victim CurrentThread", shared.path(), &[]);
        let addr: SocketAddr = victim.hear().parse().expect("an address");
        let role = format!("attack {addr} another-user");
        let user = STRANGER.to_string();
        let before =
            ["setpriv", &format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups", "--"];
        let mut stranger = Child::start_behind(&before, &role, shared.path(), &[]);
        assert_eq!(stranger.hear(), DONE);
        let target = Target { directory: shared.path().to_owned(), addr };
        let seen = Asker::start(&target).ask(addr, 4);
        assert_eq!(seen.upgraded, 4, "{seen:?}");
        assert!(seen.descriptors < MOST_DESCRIPTORS, "{seen:?}");
        assert_eq!(stranger.ask("asked?"), "0", "connections to a stranger who says yes");
    });
}
