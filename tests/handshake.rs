//! Policy Handshake: the CLC messages run over the TCP connection before its first byte, and no
//! application ever sees one of their bytes (docs/protocol.md, "Policy Handshake").

#[path = "support/lab.rs"]
mod lab;
#[path = "support/watchdog.rs"]
mod watchdog;

use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::{SmcListener, SmcStream, Transport, UpgradePolicy};

use lab::Lab;
use watchdog::{Flavour, on_both_schedulers, step, watched};

/// Bytes of the TCP connection as the kernel counted them at this end: (sent, received).
fn tcp_bytes(local: SocketAddr, peer: SocketAddr) -> (u64, u64) {
    let answer = Command::new("ss").args(["-tinHO"]).output().expect("ss of iproute2 runs");
    let table = String::from_utf8(answer.stdout).expect("text");
    let line = table
        .lines()
        .find(|line| {
            let mut words = line.split_whitespace();
            words.any(|word| word == local.to_string()) && words.next() == Some(&peer.to_string())
        })
        .expect("the connection is listed");
    let field = |name: &str| {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(name));
        value.map_or(0, |value| value.parse().expect("a number"))
    };
    (field("bytes_sent:") - field("bytes_retrans:"), field("bytes_received:"))
}

async fn connected(lab: &Lab) -> (SmcStream, SmcStream) {
    let config = lab.config(UpgradePolicy::Handshake).handshake_timeout(Duration::from_secs(60));
    let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
    let address = listener.local_addr().expect("an address");
    let (client, server) = tokio::join!(SmcStream::connect_with(address, &config), listener.accept());
    (client.expect("connect"), server.expect("accept").0)
}

#[test]
fn the_three_messages_and_nothing_else_travel_over_tcp() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (mut client, mut server) = connected(&lab).await;
        assert!(client.transport().is_loopback_ism(), "from the first byte on");
        for turn in 0..50u8 {
            client.write_all(&[turn; 1000]).await.expect("write");
            let mut got = [0; 1000];
            server.read_exact(&mut got).await.expect("read");
            assert_eq!(got, [turn; 1000]);
            server.write_all(&got).await.expect("write");
            client.read_exact(&mut got).await.expect("read");
            assert_eq!(got, [turn; 1000]);
        }
        let addresses = (client.local_addr().expect("an address"), client.peer_addr().expect("an address"));
        let (sent, received) = tcp_bytes(addresses.0, addresses.1);
        // Proposal and Confirm one way, Accept the other.
        assert_eq!((sent, received), (224 + 130, 130));
    });
}

#[test]
fn a_server_that_speaks_first_loses_nothing() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::Handshake).handshake_timeout(Duration::from_secs(60));
        let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let server = tokio::spawn(async move {
            for round in 0..300u32 {
                let (mut stream, _) = listener.accept().await.expect("accept");
                // At once, or a moment later: in the middle of the handshake.
                for _ in 0..round % 7 {
                    tokio::task::yield_now().await;
                }
                stream.write_all(&round.to_be_bytes()).await.expect("write");
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await.expect("read to the end");
                assert_eq!(answer, [&b"answer"[..], &round.to_be_bytes()].concat());
            }
        });
        for round in 0..300u32 {
            step(format!("round {round}"));
            let mut client = SmcStream::connect_with(address, &config).await.expect("connect");
            let mut greeting = [0; 4];
            client.read_exact(&mut greeting).await.expect("read");
            assert_eq!(greeting, round.to_be_bytes(), "a foreign or missing byte");
            client.write_all(b"answer").await.expect("write");
            client.write_all(&greeting).await.expect("write");
            client.shutdown().await.expect("shutdown");
            assert_eq!(client.read(&mut greeting).await.expect("the end"), 0);
        }
        server.await.expect("the server");
    });
}

#[test]
fn a_client_that_leaves_at_once_is_an_end_and_no_reset() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        // Too short to be answered in: the client goes on while the handshake is under way.
        for micros in [0, 20, 50, 100, 200, 400, 1000] {
            let config =
                lab.config(UpgradePolicy::Handshake).handshake_timeout(Duration::from_micros(micros));
            let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
            let address = listener.local_addr().expect("an address");
            for round in 0..20u8 {
                step(format!("{micros} µs, round {round}"));
                let client = async {
                    let mut client = SmcStream::connect_with(address, &config).await.expect("connect");
                    client.write_all(&[round; 5000]).await.expect("write");
                };
                let server = async {
                    let (mut server, _) = listener.accept().await.expect("accept");
                    let mut got = Vec::new();
                    server.read_to_end(&mut got).await.expect("all, then the end");
                    assert_eq!(got, [round; 5000], "a foreign or missing byte");
                };
                tokio::join!(client, server);
            }
        }
    });
}

#[test]
fn a_plain_server_gets_no_byte_and_costs_no_wait() {
    watched(|| {
        let runtime = Flavour::MultiThread.runtime();
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::Handshake).handshake_timeout(Duration::from_secs(3600));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("an address");
        // An hour would be noticed by the watchdog.
        let client = runtime.block_on(SmcStream::connect_with(address, &config)).expect("connect");
        let (mut server, _) = listener.accept().expect("accept");
        server.set_read_timeout(Some(Duration::from_millis(200))).expect("a time-out");
        let silence = server.read(&mut [0; 100]).expect_err("nothing was sent");
        assert!(matches!(silence.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence}");
        assert!(matches!(client.transport(), Transport::Tcp(_)));
    });
}

#[test]
fn require_fails_with_the_reason_where_there_is_no_upgrade() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::Require);
        let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = plain.local_addr().expect("an address");
        let error = SmcStream::connect_with(address, &config).await.expect_err("a plain server");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("0x03010000"), "{error}");

        let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let (client, server) = tokio::join!(SmcStream::connect_with(address, &config), listener.accept());
        assert!(client.expect("connect").transport().is_loopback_ism());
        drop(server);
    });
}
