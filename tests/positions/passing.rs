//! An application, or something of it, that takes the socket of a stream and reads or writes past
//! the stream.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_smc::{FallbackReason, SmcListener, SmcStream, Transport, UpgradePolicy};

use crate::bytes;
use crate::lab::Lab;
use crate::watchdog::{on_both_schedulers, step};

async fn pair(lab: &Lab) -> (SmcStream, SmcStream) {
    let config = lab.config(UpgradePolicy::Manual);
    let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
    let to = listener.local_addr().expect("an address");
    let (client, server) = tokio::join!(SmcStream::connect_with(to, &config), listener.accept());
    (client.expect("connect"), server.expect("accept").0)
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let connect = TcpStream::connect(listener.local_addr().expect("an address"));
    let (client, server) = tokio::join!(connect, listener.accept());
    (client.expect("connect"), server.expect("accept").0)
}

async fn send_urgent(sender: &mut (impl AsyncWrite + AsFd + Unpin)) {
    sender.write_all(b"AAAA").await.expect("write");
    assert_eq!(SockRef::from(&*sender).send_out_of_band(b"!").expect("urgent"), 1);
    sender.write_all(b"BBBB").await.expect("write");
}

/// Sends what is still missing of twelve bytes; returns what the other end reads of all.
async fn send_rest(
    sender: &mut (impl AsyncWrite + Unpin),
    receiver: &mut (impl AsyncRead + Unpin),
) -> String {
    sender.write_all(b"CCCC").await.expect("write");
    let mut got = [0; 12];
    step("reading past the urgent byte");
    // A read stops before the urgent byte, and one that is short ends tokio's readiness, on its own
    // streams, too: what lies behind the byte is not waited for but asked for.
    for part in got.chunks_mut(4) {
        receiver.read_exact(part).await.expect("read");
    }
    String::from_utf8_lossy(&got).into_owned()
}

/// `Positions`, found here or told by the peer.
#[track_caller]
fn assert_positions(transport: Transport) {
    let reason = transport.fallback_reason().expect("on TCP");
    assert_eq!(reason.diagnosis(), FallbackReason::Positions.diagnosis(), "{reason}");
}

/// Both directions, then a clean end each way.
async fn go_on(client: &mut SmcStream, server: &mut SmcStream) {
    for turn in 0..3 {
        step(format!("going on, turn {turn}"));
        for (writer, reader) in [(&mut *client, &mut *server)] {
            let sent = bytes(turn, 30_000);
            let mut got = vec![0; sent.len()];
            let (wrote, read) = tokio::join!(writer.write_all(&sent), reader.read_exact(&mut got));
            wrote.and(read.map(drop)).expect("to and");
            assert!(got == sent);
            let (wrote, read) = tokio::join!(reader.write_all(&sent), writer.read_exact(&mut got));
            wrote.and(read.map(drop)).expect("fro");
            assert!(got == sent);
        }
    }
    client.shutdown().await.expect("shutdown");
    assert_eq!(server.read(&mut [0]).await.expect("the end"), 0);
    server.shutdown().await.expect("shutdown");
    assert_eq!(client.read(&mut [0]).await.expect("the end"), 0);
}

#[test]
fn urgent_data_before_the_upgrade() {
    on_both_schedulers(async || {
        for from_client in [true, false] {
            let (mut client, mut server) = tcp_pair().await;
            let (sender, receiver) =
                if from_client { (&mut client, &mut server) } else { (&mut server, &mut client) };
            send_urgent(sender).await;
            let theirs = send_rest(sender, receiver).await;
            for _ in 0..50 {
                let lab = Lab::new();
                let (mut client, mut server) = pair(&lab).await;
                send_urgent(if from_client { &mut client } else { &mut server }).await;
                assert_positions(client.upgrade().await);
                let ours = if from_client {
                    send_rest(&mut client, &mut server).await
                } else {
                    send_rest(&mut server, &mut client).await
                };
                assert_eq!(ours, theirs);
                go_on(&mut client, &mut server).await;
            }
        }
    });
}

/// On a stream that has moved the byte goes over TCP, out of line: `recv` with `MSG_OOB` gets it,
/// no read does.
#[test]
fn urgent_data_after_the_upgrade() {
    on_both_schedulers(async || {
        for from_client in [true, false] {
            for taken in [true, false] {
                let lab = Lab::new();
                let (mut client, mut server) = pair(&lab).await;
                assert!(client.upgrade().await.is_loopback_ism());
                let (sender, receiver) =
                    if from_client { (&mut client, &mut server) } else { (&mut server, &mut client) };
                send_urgent(sender).await;
                assert_eq!(send_rest(sender, receiver).await, "AAAABBBBCCCC");
                if taken {
                    step("waiting for the urgent byte");
                    let mut byte = [std::mem::MaybeUninit::uninit()];
                    while SockRef::from(&*receiver).recv_out_of_band(&mut byte).is_err() {
                        tokio::task::yield_now().await;
                    }
                }
                go_on(&mut client, &mut server).await;
                assert!(client.transport().is_loopback_ism() && server.transport().is_loopback_ism());
            }
        }
    });
}

/// Moves all of `length` bytes with splice(2).
fn splice(from: impl AsFd, to: impl AsFd, length: usize) {
    let mut left = length;
    while left > 0 {
        let flags = rustix::pipe::SpliceFlags::empty();
        match rustix::pipe::splice(&from, None, &to, None, left, flags) {
            Ok(moved) => left -= moved,
            Err(rustix::io::Errno::AGAIN) => std::thread::yield_now(),
            Err(error) => panic!("splice: {error}"),
        }
    }
}

#[test]
fn bytes_spliced_into_or_out_of_the_socket() {
    on_both_schedulers(async || {
        for into in [true, false] {
            for client_does in [true, false] {
                let lab = Lab::new();
                let (mut client, mut server) = pair(&lab).await;
                let (one, other) =
                    if client_does { (&mut client, &mut server) } else { (&mut server, &mut client) };
                let (pipe_out, pipe_in) = rustix::pipe::pipe().expect("a pipe");
                if into {
                    assert_eq!(rustix::io::write(&pipe_in, b"spliced").expect("into the pipe"), 7);
                    splice(&pipe_out, &*one, 7);
                } else {
                    other.write_all(b"spliced").await.expect("write");
                    splice(&*one, &pipe_in, 7);
                    let mut got = [0; 7];
                    assert_eq!(rustix::io::read(&pipe_out, &mut got).expect("out of the pipe"), 7);
                    assert_eq!(&got, b"spliced");
                }
                assert_positions(client.upgrade().await);
                if into {
                    let reader = if client_does { &mut server } else { &mut client };
                    let mut got = [0; 7];
                    reader.read_exact(&mut got).await.expect("read");
                    assert_eq!(&got, b"spliced");
                }
                go_on(&mut client, &mut server).await;
            }
        }
    });
}

/// The byte may come before the switch, which then does not happen, or after it.
#[test]
fn urgent_data_while_it_is_upgraded() {
    on_both_schedulers(async || {
        for moment in 0..60 {
            step(format!("moment {moment}"));
            let lab = Lab::new();
            let (mut client, mut server) = pair(&lab).await;
            let (upgraded, ()) = tokio::join!(client.upgrade(), async {
                for _ in 0..moment % 20 {
                    tokio::task::yield_now().await;
                }
                assert_eq!(SockRef::from(&client).send_out_of_band(b"!").expect("urgent"), 1);
            });
            if !upgraded.is_loopback_ism() {
                assert_positions(upgraded);
            }
            go_on(&mut client, &mut server).await;
        }
    });
}

/// Only root may put a socket under repair.
#[test]
fn a_socket_under_repair() {
    on_both_schedulers(async || {
        for client_is in [true, false] {
            let lab = Lab::new();
            let (mut client, mut server) = pair(&lab).await;
            let socket = if client_is { client.as_raw_fd() } else { server.as_raw_fd() };
            if let Err(error) = crate::bpf::repair(socket, true) {
                let words = format!("a_socket_under_repair: not run, {error}; only root may");
                let root = rustix::process::geteuid().is_root();
                assert!(!root && std::env::var_os("CI").is_none(), "{words}");
                let _ = writeln!(io::stderr(), "{words}");
                return;
            }
            let reason = client.upgrade().await.fallback_reason().expect("on TCP");
            assert_eq!(reason.diagnosis(), FallbackReason::SocketOption.diagnosis(), "{reason}");
            crate::bpf::repair(socket, false).expect("back");
            go_on(&mut client, &mut server).await;
        }
    });
}
