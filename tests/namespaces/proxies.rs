//! Servers and proxies that do not know this crate.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use crate::actor::tell;
use crate::talk::Answering;

/// Answers without this crate; a foreign byte ends the connection, which fails the client.
pub(crate) fn plain_server(at: SocketAddr, network: u8) {
    let listener = TcpListener::bind(at).expect("bind");
    tell("listening");
    loop {
        let (mut stream, _) = listener.accept().expect("accept");
        thread::spawn(move || {
            let mut answering = Answering::new(network);
            let mut buffer = vec![0; 3000];
            loop {
                let length = stream.read(&mut buffer).expect("read");
                if length == 0 {
                    return;
                }
                let answer = answering.answer(&buffer[..length]).expect("the client's own bytes");
                stream.write_all(&answer).expect("write");
            }
        });
    }
}

/// A published port as a container engine's userspace proxy serves it: a connection of its own to
/// the container.
pub(crate) fn forward(at: SocketAddr, to: SocketAddr) {
    let listener = TcpListener::bind(at).expect("bind");
    tell("listening");
    loop {
        let (client, _) = listener.accept().expect("accept");
        let server = TcpStream::connect(to).expect("the container");
        copy(client.try_clone().expect("clone"), server.try_clone().expect("clone"));
        copy(server, client);
    }
}

fn copy(from: TcpStream, to: TcpStream) {
    thread::spawn(move || {
        let _ = std::io::copy(&mut &from, &mut &to);
        let _ = to.shutdown(Shutdown::Write);
    });
}

/// The side of a proxy that clients connect to.
pub(crate) fn front(at: SocketAddr, relay: &Path) {
    let listener = TcpListener::bind(at).expect("bind");
    tell("listening");
    loop {
        let (tcp, client) = listener.accept().expect("accept");
        let mut unix = UnixStream::connect(relay).expect("the back");
        unix.write_all(&client.port().to_be_bytes()).expect("the client's port");
        splice(tcp, unix);
    }
}

/// The side of a proxy that connects on, from the client's very address and port.
pub(crate) fn back(from: &str, to: SocketAddr, relay: &Path) {
    let listener = UnixListener::bind(relay).expect("bind");
    tell("listening");
    loop {
        let (mut unix, _) = listener.accept().expect("accept");
        let mut port = [0; 2];
        unix.read_exact(&mut port).expect("the client's port");
        let from = SocketAddr::new(from.parse().expect("an address"), u16::from_be_bytes(port));
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.bind(&from.into()).expect("the client's address");
        socket.connect(&to.into()).expect("the server");
        splice(socket.into(), unix);
    }
}

fn splice(tcp: TcpStream, unix: UnixStream) {
    let (tcp2, unix2) = (tcp.try_clone().expect("clone"), unix.try_clone().expect("clone"));
    thread::spawn(move || {
        let _ = std::io::copy(&mut &tcp, &mut &unix);
        let _ = unix.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        let _ = std::io::copy(&mut &unix2, &mut &tcp2);
        let _ = tcp2.shutdown(Shutdown::Write);
    });
}
