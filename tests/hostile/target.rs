//! What is attacked: where its endpoint is, and how one gets to it.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use crate::raw::network_namespace;
use crate::wire::Subject;

/// For how long an answer is waited for that has to come. It catches hangs, it measures nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) directory: PathBuf,
    pub(crate) addr: SocketAddr,
}

impl Target {
    /// Where the victim has its names: the directory, or its user's room in one for several users.
    fn room(&self) -> PathBuf {
        let rooms = fs::read_dir(&self.directory).expect("a directory").flatten().map(|entry| entry.path());
        let listens = |room: &PathBuf| room.join("port").join(self.addr.port().to_string()).is_dir();
        [self.directory.clone()].into_iter().chain(rooms).find(listens).expect("a listener's port")
    }

    /// The victim's endpoint, as the directory has it.
    fn endpoint(&self) -> String {
        let names = self.room().join("port").join(self.addr.port().to_string());
        let entry = fs::read_dir(names).expect("a listener's port").next().expect("an endpoint");
        entry.expect("readable").file_name().into_string().expect("an endpoint's name")
    }

    /// The victim's control socket.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.room().join("ep").join(format!("{}.sock", self.endpoint()))
    }

    /// Its name in messages.
    pub(crate) fn endpoint_name(&self) -> [u8; 16] {
        u128::from_str_radix(&self.endpoint(), 16).expect("hexadecimal").to_be_bytes()
    }

    pub(crate) fn gid(&self) -> [u8; 16] {
        let text = fs::read_to_string(self.directory.join("gid")).expect("the device's GID");
        let digits: String = text.trim().split('-').collect();
        u128::from_str_radix(&digits, 16).expect("a UUID").to_be_bytes()
    }

    /// A connection to the victim's control socket, with nothing said yet.
    pub(crate) fn knock(&self) -> OwnedFd {
        let address = SocketAddrUnix::new(self.control_socket()).expect("a short path");
        let started = Instant::now();
        loop {
            match connect(&address) {
                Ok(socket) => return socket,
                // Its queue is full.
                Err(Errno::AGAIN) if started.elapsed() < PATIENCE => sleep(Duration::from_millis(1)),
                Err(error) => panic!("connect to the endpoint: {error}"),
            }
        }
    }

    /// A TCP connection to the victim, which does as its first byte says: see `victim`.
    pub(crate) fn tcp(&self) -> TcpStream {
        let tcp = TcpStream::connect(self.addr).expect("connect");
        tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        tcp.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        tcp.set_nodelay(true).expect("set_nodelay");
        tcp
    }
}

fn connect(address: &SocketAddrUnix) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&socket, address)?;
    Ok(socket)
}

pub(crate) fn subject_of(tcp: &TcpStream) -> Subject {
    Subject {
        local: tcp.local_addr().expect("an address"),
        remote: tcp.peer_addr().expect("an address"),
        cookie: rustix::net::sockopt::socket_cookie(tcp).expect("SO_COOKIE"),
        network_namespace: network_namespace(tcp).expect("SO_NETNS_COOKIE"),
    }
}
