//! The victim as a client: who answers its questions is an attacker.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::CALL;
use super::blocking::{LONG, Lingering};
use crate::child::tell;
use crate::target::Target;

/// Endpoints that an attacker has made by hand, on a port where it listens, too.
pub(crate) struct Endpoints {
    tcp: TcpListener,
    sockets: Vec<OwnedFd>,
}

impl Endpoints {
    /// In `room`, which may be no room at all.
    pub(crate) fn in_room(room: &Path, count: u8) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = room.join("port").join(tcp.local_addr().expect("an address").port().to_string());
        let names = room.join("ep");
        [&names, &room.join("net")].into_iter().for_each(|part| fs::create_dir_all(part).expect("a room"));
        fs::create_dir_all(&port).expect("a port");
        let sockets = (0..count).map(|number| {
            let name = format!(
                "{:032x}",
                0xdead_u128 << 64 | u128::from(std::process::id()) << 8 | u128::from(number)
            );
            fs::write(port.join(&name), "").expect("an entry");
            listen(names.join(format!("{name}.sock")))
        });
        let sockets = sockets.collect();
        Endpoints { tcp, sockets }
    }

    /// Has the victim connect so often, and answers whoever asks.
    pub(crate) fn answer(&self, calls: usize, time: Duration, answer: impl Fn(OwnedFd)) -> usize {
        for _ in 0..calls {
            tell(&format!("{CALL}{}", self.tcp.local_addr().expect("an address")));
        }
        let (started, mut asked) = (Instant::now(), 0);
        while started.elapsed() < time {
            for socket in &self.sockets {
                if let Ok(who) = rustix::net::accept_with(socket, SocketFlags::CLOEXEC) {
                    asked += 1;
                    answer(who);
                }
            }
            sleep(Duration::from_millis(1));
        }
        asked
    }
}

fn listen(path: PathBuf) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("socket");
    let bound = rustix::net::bind(&socket, &SocketAddrUnix::new(&path).expect("a short path"));
    assert!(matches!(bound, Ok(()) | Err(Errno::ADDRINUSE)), "{bound:?}");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).expect("chmod");
    rustix::net::listen(&socket, 100).expect("listen");
    socket
}

/// Answers to its questions come with a descriptor whose close waits. (From Linux 6.16 on none is
/// taken.)
pub(crate) fn close_in_an_answer(target: &Target) {
    let endpoints = Endpoints::in_room(&target.directory, 3);
    let asked = endpoints.answer(4, LONG + LONG / 2, |who| {
        Lingering::new().give(&who, b"junk", 1);
        std::mem::forget(who);
    });
    assert!(asked > 0, "the victim asks those who listen on that port");
}
