//! Hosts whose BPF programs take the bytes of local connections past TCP, as Cilium and other
//! meshes have them. Only root may load such programs.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_smc::{SmcListener, SmcStream, UpgradePolicy};

use crate::bpf::{Kind, SockHash, pass};
use crate::lab::Lab;
use crate::watchdog::{Flavour, own_name, step, watched};
use crate::{at, bytes};

/// Connections of each kind.
const CONNECTIONS: usize = 500;
/// Bytes each way.
const TOTAL: usize = 40_000;

/// What such a host does with its sockets.
#[derive(Clone, Copy, Debug)]
enum Host {
    /// What is sent goes to the receiver's queue, past TCP.
    Redirects,
    /// What is received passes through a program. (Without a parser of records: with one, tokio's
    /// own streams now and then wait for ever, on Linux 6.18.)
    Verdicts,
}

/// The map, with its programs attached.
fn sockmap(host: Host) -> io::Result<(SockHash, Vec<OwnedFd>)> {
    let map = SockHash::new(4096)?;
    let programs = match host {
        Host::Redirects => vec![(Kind::Message, map.redirect()?)],
        Host::Verdicts => vec![(Kind::Verdict, pass()?)],
    };
    for (kind, program) in &programs {
        map.attach(*kind, program)?;
    }
    Ok((map, programs.into_iter().map(|(_, program)| program).collect()))
}

fn insert(map: &SockHash, client: &impl AsRawFd, server: &impl AsRawFd, ports: (u16, u16)) {
    let (client_port, server_port) = (u32::from(ports.0), u32::from(ports.1));
    map.insert([client_port, server_port], client.as_raw_fd()).expect("into the map");
    map.insert([server_port, client_port], server.as_raw_fd()).expect("into the map");
}

/// Writes in pieces and reads what the other end writes, then ends.
async fn exchange(stream: impl AsyncRead + AsyncWrite + Send, from: usize, size: usize) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        let mut place = 0;
        while place < TOTAL {
            let length = size.min(TOTAL - place);
            writer.write_all(&bytes(from + place, length)).await.expect("write");
            place += length;
            tokio::task::yield_now().await;
        }
    };
    let read = async {
        let (mut got, theirs) = (vec![0; TOTAL], from ^ 1);
        reader.read_exact(&mut got).await.expect("read");
        assert!(got.iter().enumerate().all(|(place, &byte)| byte == at(theirs + place)), "other bytes");
    };
    tokio::join!(write, read);
    writer.shutdown().await.expect("shutdown");
    assert_eq!(reader.read(&mut [0]).await.expect("a clean end"), 0);
}

/// The measure: what tokio's own streams do on such a host.
async fn on_tcp(map: &SockHash) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let to = listener.local_addr().expect("an address");
    for number in 0..CONNECTIONS / 10 {
        step(format!("TCP, connection {number}"));
        let (client, server) = tokio::join!(TcpStream::connect(to), listener.accept());
        let (client, server) = (client.expect("connect"), server.expect("accept").0);
        insert(map, &client, &server, (client.local_addr().expect("an address").port(), to.port()));
        tokio::join!(exchange(client, 0, 1 + number * 7), exchange(server, 1, 1 + number * 13));
    }
}

async fn on_smc(map: &SockHash, policy: UpgradePolicy) -> BTreeMap<String, usize> {
    let lab = Lab::new();
    let config = lab.config(policy);
    let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
    let to = listener.local_addr().expect("an address");
    let mut found = BTreeMap::new();
    for number in 0..CONNECTIONS {
        step(format!("{policy:?}, connection {number}"));
        let (client, server) = tokio::join!(SmcStream::connect_with(to, &config), listener.accept());
        let (client, server) = (client.expect("connect"), server.expect("accept").0);
        insert(map, &client, &server, (client.local_addr().expect("an address").port(), to.port()));
        let mut watch = client.watch();
        let sizes = (1 + number * 7 % 3000, 1 + number * 13 % 3000);
        let ends = [tokio::spawn(exchange(client, 0, sizes.0)), tokio::spawn(exchange(server, 1, sizes.1))];
        for end in ends {
            end.await.expect("no panic");
        }
        while watch.changed().await.is_some() {}
        let transport = watch.transport();
        let name =
            transport.fallback_reason().map_or_else(|| transport.to_string(), |reason| reason.to_string());
        *found.entry(name).or_default() += 1;
    }
    found
}

#[track_caller]
fn on_a_host(host: Host) {
    let (map, _programs) = match sockmap(host) {
        Ok(made) => made,
        Err(error) => {
            let words = format!(
                "{}: not run, {error} ({host:?}). It takes root and CONFIG_BPF_STREAM_PARSER",
                own_name()
            );
            let root = rustix::process::geteuid().is_root();
            assert!(!root && std::env::var_os("CI").is_none(), "{words}");
            let _ = writeln!(io::stderr(), "{words}");
            return;
        }
    };
    watched(move || {
        Flavour::MultiThread.runtime().block_on(async {
            on_tcp(&map).await;
            for policy in [UpgradePolicy::Eager, UpgradePolicy::FirstTurn] {
                let found = on_smc(&map, policy).await;
                let moved = found.get("loopback-ism").copied().unwrap_or(0);
                match host {
                    // With this policy some bytes were redirected before the upgrade began.
                    Host::Redirects if policy == UpgradePolicy::FirstTurn => {
                        assert_eq!(moved, 0, "{found:?}")
                    }
                    // As far as no byte was written before the switch.
                    Host::Redirects => {}
                    Host::Verdicts => assert!(moved > 0, "{found:?}"),
                }
            }
        });
    });
}

#[test]
fn a_host_that_redirects_what_is_sent() {
    on_a_host(Host::Redirects);
}

#[test]
fn a_host_that_looks_at_what_is_received() {
    on_a_host(Host::Verdicts);
}
