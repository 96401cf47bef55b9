//! What the environment and the kernel's socket options decide, each in a process of its own:
//! variables belong to a process, and so does `from_std`, which takes its configuration from them.

#[path = "support/child.rs"]
mod child;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/watchdog.rs"]
mod watchdog;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::{Config, FallbackReason, SmcListener, SmcStream, Transport, UpgradePolicy};

use child::{Child, next_word, role, tell};
use lab::Lab;
use watchdog::{Flavour, step, watched};

fn bytes(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|place| (place.wrapping_mul(0x9E37_79B1) >> 11) as u8).collect()
}

/// Runs `role` in a child on a fresh device with these variables, and returns what it answered.
fn answer(role: &str, variables: &[(&str, &str)]) -> String {
    step(format!("{role} with {variables:?}"));
    let lab = Lab::new();
    // The lab's own configuration is what the variables of the child say in other words.
    let _same: Config = lab.config(UpgradePolicy::Manual);
    let mut child = Child::start(role, lab.dir(), variables);
    assert_eq!(child.hear(), "started", "process {}", child.id());
    let answer = child.ask("go");
    child.kill();
    answer
}

/// Not a test of its own: the door through which this binary becomes the second process.
#[test]
fn child_process() {
    let Some(role) = role() else { return };
    tell("started");
    let Some(_go) = next_word() else { return };
    let answer = Flavour::MultiThread.runtime().block_on(async {
        match role.as_str() {
            "turns" => turns().await,
            "after a header" => after_a_header().await,
            "two of one" => two_of_one().await,
            "user timeout" => user_timeout().await,
            "many listeners" => many_listeners().await,
            role => panic!("no role {role}"),
        }
    });
    tell(&answer);
    next_word();
}

async fn talk(client: &mut SmcStream, server: &mut SmcStream, turns: usize) {
    for turn in 0..turns {
        client.write_all(&bytes(turn, 100)).await.expect("write");
        let mut got = [0; 100];
        server.read_exact(&mut got).await.expect("read");
        assert!(got[..] == bytes(turn, 100), "a foreign byte");
        server.write_all(&got).await.expect("write");
        client.read_exact(&mut got).await.expect("read");
        assert!(got[..] == bytes(turn, 100), "a foreign byte");
        if turn % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Goes on while an upgrade is under way, which takes long on a busy machine.
async fn settle(client: &mut SmcStream, server: &mut SmcStream) {
    let under_way = |end: &SmcStream| end.transport().fallback_reason() == Some(FallbackReason::InProgress);
    while under_way(client) || under_way(server) {
        talk(client, server, 10).await;
    }
}

/// What both ends of an ordinary program's connection run on after some turns.
fn on(client: &SmcStream, server: &SmcStream) -> String {
    format!("{} {}", client.transport(), server.transport())
}

async fn turns() -> String {
    let listener = SmcListener::bind("127.0.0.1:0").await.expect("bind");
    let connect = SmcStream::connect(listener.local_addr().expect("an address"));
    let (client, server) = tokio::join!(connect, listener.accept());
    let (mut client, mut server) = (client.expect("connect"), server.expect("accept").0);
    talk(&mut client, &mut server, 300).await;
    settle(&mut client, &mut server).await;
    on(&client, &server)
}

/// A std stream that has spoken before it becomes ours, and the accepted end.
async fn std_pair(header: &[u8]) -> (std::net::TcpStream, SmcStream) {
    let listener = SmcListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("an address");
    let mut std = std::net::TcpStream::connect(addr).expect("connect");
    let (mut server, _) = listener.accept().await.expect("accept");
    if !header.is_empty() {
        std.write_all(header).expect("write");
        let mut got = vec![0; header.len()];
        server.read_exact(&mut got).await.expect("read");
        assert_eq!(got, header);
        server.write_all(b"ok").await.expect("write");
        std.read_exact(&mut [0; 2]).expect("read");
    }
    std.set_nonblocking(true).expect("set_nonblocking");
    (std, server)
}

async fn after_a_header() -> String {
    let (std, mut server) = std_pair(b"PROXY TCP4 1.2.3.4 5.6.7.8\n").await;
    let mut client = SmcStream::from_std(std).expect("from_std");
    talk(&mut client, &mut server, 3).await;
    client.upgrade().await;
    talk(&mut client, &mut server, 100).await;
    settle(&mut client, &mut server).await;
    on(&client, &server)
}

async fn two_of_one() -> String {
    let (std, mut server) = std_pair(b"").await;
    let twin = std.try_clone().expect("try_clone");
    let mut one = SmcStream::from_std(std).expect("from_std");
    let mut two = SmcStream::from_std(twin).expect("from_std");
    let _ = tokio::join!(one.upgrade(), two.upgrade());
    for turn in 0..50 {
        // Whichever of the two writes, the bytes are one stream; whichever reads, it reads the
        // answer.
        let (writes, reads) = if turn % 2 == 0 { (&mut one, &mut two) } else { (&mut two, &mut one) };
        writes.write_all(&bytes(turn, 10)).await.expect("write");
        let mut got = [0; 10];
        server.read_exact(&mut got).await.expect("read");
        assert!(got[..] == bytes(turn, 10), "a foreign byte");
        server.write_all(&got).await.expect("write");
        reads.read_exact(&mut got).await.expect("read");
        assert!(got[..] == bytes(turn, 10), "a foreign byte");
    }
    on(&one, &two)
}

async fn user_timeout() -> String {
    let (std, mut server) = std_pair(b"").await;
    SockRef::from(&std).set_tcp_user_timeout(Some(Duration::from_secs(30))).expect("TCP_USER_TIMEOUT");
    let mut client = SmcStream::from_std(std).expect("from_std");
    let transport = client.upgrade().await;
    talk(&mut client, &mut server, 20).await;
    match transport {
        Transport::Tcp(reason) => format!("tcp: {reason}"),
        other => other.to_string(),
    }
}

/// Four runtimes listen on one port; a client's connection belongs to exactly one of them.
async fn many_listeners() -> String {
    let mut addr = SocketAddr::from(([127, 0, 0, 1], 0));
    // A connection that comes before its listener is ours has kept nothing to prove itself by.
    let ready = Arc::new(Barrier::new(5));
    for _ in 0..4 {
        let ready = ready.clone();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_port(true).expect("SO_REUSEPORT");
        socket.set_nonblocking(true).expect("set_nonblocking");
        socket.bind(&addr.into()).expect("bind");
        socket.listen(128).expect("listen");
        addr = socket.local_addr().expect("an address").as_socket().expect("an IP address");
        std::thread::spawn(move || {
            Flavour::CurrentThread.runtime().block_on(async move {
                let listener = SmcListener::from_std(socket.into()).expect("from_std");
                ready.wait();
                while let Ok((mut stream, _)) = listener.accept().await {
                    tokio::spawn(async move {
                        while let Ok(value) = stream.read_u32().await {
                            stream.write_u32(value).await.expect("write");
                        }
                    });
                }
            });
        });
    }
    ready.wait();
    let mut upgraded = 0;
    for connection in 0..40_u32 {
        let mut stream = SmcStream::connect(addr).await.expect("connect");
        for turn in 0..100 {
            stream.write_u32(connection * 1000 + turn).await.expect("write");
            assert_eq!(stream.read_u32().await.expect("read"), connection * 1000 + turn, "a foreign byte");
            if turn == 2 {
                stream.upgrade().await;
            }
        }
        upgraded += usize::from(stream.transport().is_loopback_ism());
    }
    format!("{upgraded} of 40")
}

#[test]
fn an_ordinary_program_upgrades_at_its_first_turns() {
    watched(|| {
        assert_eq!(answer("turns", &[]), "loopback-ism loopback-ism");
    });
}

#[test]
fn smc_lo_off_keeps_everything_on_tcp() {
    watched(|| {
        assert_eq!(answer("turns", &[("SMC_LO", "off")]), "tcp tcp");
        assert_eq!(answer("turns", &[("SMC_LO", "off"), ("SMC_LO_UPGRADE", "eager")]), "tcp tcp");
    });
}

#[test]
fn smc_lo_upgrade_names_the_policy() {
    watched(|| {
        for (policy, runs_on) in [
            ("first-turn", "loopback-ism loopback-ism"),
            ("eager", "loopback-ism loopback-ism"),
            ("require", "loopback-ism loopback-ism"),
            ("handshake", "loopback-ism loopback-ism"),
            ("manual", "tcp tcp"),
            ("never", "tcp tcp"),
        ] {
            assert_eq!(answer("turns", &[("SMC_LO_UPGRADE", policy)]), runs_on, "{policy}");
        }
    });
}

#[test]
fn smc_lo_dmb_size_and_busy_poll_are_taken() {
    watched(|| {
        for (size, busy_poll) in [
            ("65536", "0"),
            ("4096", "50"),
            ("1048576", "1000"),
            // As much as there is, and more.
            ("18446744073709551615", "18446744073709551615"),
            ("0", "9223372036854775807"),
            ("18446744073709551616", "-1"),
        ] {
            let variables = [("SMC_LO_DMB_SIZE", size), ("SMC_LO_BUSY_POLL_US", busy_poll)];
            assert_eq!(answer("turns", &variables), "loopback-ism loopback-ism", "{variables:?}");
        }
    });
}

#[test]
fn smc_lo_memory_limits_what_rings_take() {
    watched(|| {
        for (bytes, runs_on) in [
            ("18446744073709551615", "loopback-ism loopback-ism"),
            ("200000", "loopback-ism loopback-ism"),
            ("much", "loopback-ism loopback-ism"),
            ("20000", "tcp tcp"),
            ("0", "tcp tcp"),
        ] {
            assert_eq!(answer("turns", &[("SMC_LO_MEMORY", bytes)]), runs_on, "{bytes}");
        }
    });
}

#[test]
fn the_limits_for_peers_are_taken() {
    watched(|| {
        assert_eq!(answer("turns", &[("SMC_LO_MAX_LINKS", "0")]), "tcp tcp");
        for [links, timeout] in
            [["1000000", "18446744073709551615"], ["-1", ""], ["many", "soon"], ["", "-1"]]
        {
            let variables = [("SMC_LO_MAX_LINKS", links), ("SMC_LO_PEER_TIMEOUT_MS", timeout)];
            assert_eq!(answer("turns", &variables), "loopback-ism loopback-ism", "{variables:?}");
        }
    });
}

/// A device directory that cannot be trusted is no error of the program: it stays on TCP.
#[test]
fn an_unusable_device_directory_leaves_tcp() {
    watched(|| {
        assert_eq!(answer("turns", &[("SMC_LO_DIR", "/proc/no/such/place")]), "tcp tcp");
    });
}

#[test]
fn hazard_c3_bytes_read_before_from_std_are_counted() {
    watched(|| {
        assert_eq!(answer("after a header", &[]), "loopback-ism loopback-ism");
    });
}

#[test]
fn hazard_c3_two_streams_of_one_connection_stay_exact() {
    watched(|| {
        assert_eq!(answer("two of one", &[]), "tcp tcp");
    });
}

#[test]
fn hazard_m14_a_user_timeout_keeps_tcp() {
    watched(|| {
        let said = answer("user timeout", &[]);
        assert!(said.starts_with("tcp: "), "{said}");
    });
}

#[test]
fn hazard_m6_the_owner_among_many_listeners_is_found() {
    watched(|| {
        assert_eq!(answer("many listeners", &[]), "40 of 40");
    });
}
