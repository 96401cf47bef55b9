//! Every socket option there is, set on either end of a connection before its upgrade and after it.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::{FallbackReason, SmcListener, SmcSocket, SmcStream, UpgradePolicy};

use crate::agree::agree;
use crate::bpf;
use crate::lab::Lab;
use crate::table::{Found, IP, IPV6, Row, SOCKET, TCP, Value};
use crate::watchdog::{Flavour, step, watched};
use crate::{V4, V6, address, bindable};

/// The table with its levels.
const LEVELS: [(i32, &[Row]); 4] = [
    (libc::SOL_SOCKET, &SOCKET),
    (libc::IPPROTO_TCP, &TCP),
    (libc::IPPROTO_IP, &IP),
    (libc::IPPROTO_IPV6, &IPV6),
];

/// Sets an option; `None` where it can only be read.
fn set(socket: RawFd, level: i32, (_, option, value, _): Row) -> Option<io::Result<()>> {
    Some(match value {
        Value::Nothing => return None,
        Value::Int(value) => bpf::set_option(socket, level, option, &value.to_ne_bytes()),
        Value::Ints(values) => {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
            bpf::set_option(socket, level, option, &bytes)
        }
        Value::Name(name) => bpf::set_option(socket, level, option, name),
        Value::Classic => bpf::set_filter(socket, option),
        Value::Extended => bpf::socket_filter()
            .and_then(|program| bpf::set_option(socket, level, option, &program.as_raw_fd().to_ne_bytes())),
        Value::Md5 => {
            // `struct tcp_md5sig`: an address, the length of the key, the key.
            let mut key = [0; 216];
            key[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            key[4..8].copy_from_slice(&[192, 0, 2, 1]);
            key[130..132].copy_from_slice(&1_u16.to_ne_bytes());
            key[136] = 7;
            bpf::set_option(socket, level, option, &key)
        }
    })
}

async fn pair(lab: &Lab, at: &str) -> (SmcStream, SmcStream) {
    let config = lab.config(UpgradePolicy::Manual);
    let listener = SmcListener::bind_with(at, &config).await.expect("bind");
    let to = listener.local_addr().expect("an address");
    let (client, server) = tokio::join!(SmcStream::connect_with(to, &config), listener.accept());
    (client.expect("connect"), server.expect("accept").0)
}

async fn talk(client: &mut SmcStream, server: &mut SmcStream) {
    for _ in 0..2 {
        client.write_all(b"question").await.expect("write");
        server.read_exact(&mut [0; 8]).await.expect("read");
        server.write_all(b"answer").await.expect("write");
        client.read_exact(&mut [0; 6]).await.expect("read");
    }
}

/// The kernel lacks the option, or only root may set it: said aloud, and where root tests it not
/// for the latter.
fn excused(name: &str, error: &io::Error) -> bool {
    let code = error.raw_os_error();
    let lacks = matches!(code, Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::ENOENT));
    let root = rustix::process::geteuid().is_root();
    if lacks || (code == Some(libc::EPERM) && !root) {
        let _ = writeln!(io::stderr(), "{name}: not set, {error}");
        return true;
    }
    false
}

/// All of them on one device: a link per row would be more than a process has descriptors for.
fn on_both_ends(test: impl AsyncFn(&Lab, &str, i32, Row, bool)) -> impl AsyncFn() {
    async move || {
        let lab = Lab::new();
        let v6 = bindable(address(V6));
        for (level, rows) in LEVELS {
            let at = if level == libc::IPPROTO_IPV6 { V6 } else { V4 };
            if at == V6 && !v6 {
                let _ = writeln!(io::stderr(), "no IPv6 on this host: its options are not set");
                continue;
            }
            for row in rows {
                for on_client in [true, false] {
                    step(format!("{} on the {}", row.0, if on_client { "client" } else { "server" }));
                    test(&lab, at, level, *row, on_client).await;
                }
            }
        }
    }
}

#[test]
fn every_option_before_the_upgrade() {
    watched(|| {
        Flavour::CurrentThread.runtime().block_on(on_both_ends(async |lab, at, level, row, on_client| {
            let (name, _, _, found) = row;
            let (mut client, mut server) = pair(lab, at).await;
            let socket = if on_client { client.as_raw_fd() } else { server.as_raw_fd() };
            let expected = match set(socket, level, row) {
                Some(Err(error)) if found != Found::NotForIt => {
                    assert!(excused(name, &error), "{name}: {error}");
                    Found::Moves
                }
                _ => found,
            };
            let transport = client.upgrade().await;
            match expected {
                Found::StaysOnTcp => {
                    let reason = transport.fallback_reason().map(|reason| reason.diagnosis());
                    assert_eq!(
                        reason,
                        Some(FallbackReason::SocketOption.diagnosis()),
                        "{name}: {transport:?}"
                    );
                }
                _ => assert!(transport.is_loopback_ism(), "{name}: {transport:?}"),
            }
            if !name.starts_with("TCP_REPAIR") {
                talk(&mut client, &mut server).await;
            }
        })());
    });
}

#[test]
fn every_option_after_the_upgrade() {
    watched(|| {
        Flavour::CurrentThread.runtime().block_on(on_both_ends(async |lab, at, level, row, on_client| {
            let (mut client, mut server) = pair(lab, at).await;
            let transport = client.upgrade().await;
            assert!(transport.is_loopback_ism(), "{transport:?}");
            let socket = if on_client { client.as_raw_fd() } else { server.as_raw_fd() };
            let _ = set(socket, level, row);
            talk(&mut client, &mut server).await;
            assert!(
                client.transport().is_loopback_ism() && server.transport().is_loopback_ism(),
                "{}",
                row.0
            );
            client.shutdown().await.expect("shutdown");
            assert_eq!(server.read(&mut [0]).await.expect("the end"), 0, "{}", row.0);
        })());
    });
}

/// Those that are set before there is a connection: they are handed on, or act on its beginning.
#[test]
fn options_of_the_listener_and_of_connect() {
    watched(|| {
        Flavour::MultiThread.runtime().block_on(async {
            for (name, server_has, client_has) in [
                ("TCP_DEFER_ACCEPT", Some((libc::TCP_DEFER_ACCEPT, 1)), None),
                ("TCP_SAVE_SYN", Some((libc::TCP_SAVE_SYN, 1)), None),
                ("TCP_FASTOPEN", Some((libc::TCP_FASTOPEN, 16)), None),
                (
                    "TCP_FASTOPEN_CONNECT",
                    Some((libc::TCP_FASTOPEN, 16)),
                    Some((libc::TCP_FASTOPEN_CONNECT, 1)),
                ),
                ("TCP_FASTOPEN_NO_COOKIE", None, Some((34, 1))),
            ] {
                step(name);
                let lab = Lab::new();
                let config = lab.config(UpgradePolicy::FirstTurn);
                let (client, server) =
                    (SmcSocket::new_v4().expect("a socket"), SmcSocket::new_v4().expect("a socket"));
                for (socket, option) in [(&client, client_has), (&server, server_has)] {
                    if let Some((option, value)) = option {
                        let value: i32 = value;
                        bpf::set_option(socket.as_raw_fd(), libc::IPPROTO_TCP, option, &value.to_ne_bytes())
                            .expect(name);
                    }
                }
                server.bind(address(V4)).expect("bind");
                let listener = server.listen_with(16, &config).expect("listen");
                let to = listener.local_addr().expect("an address");
                // With TCP_DEFER_ACCEPT the first byte comes before accept.
                let connect = async {
                    let mut client = client.connect_with(to, &config).await.expect("connect");
                    client.write_all(b"first").await.expect("write");
                    agree(&mut client, true).await;
                    client
                };
                let accept = async {
                    let mut server = listener.accept().await.expect("accept").0;
                    server.read_exact(&mut [0; 5]).await.expect("read");
                    agree(&mut server, false).await;
                    server
                };
                let (client, server) = tokio::join!(connect, accept);
                assert!(client.transport().is_loopback_ism() && server.transport().is_loopback_ism());
            }
        });
    });
}

/// A filter of the listener is the filter of what it accepts.
#[test]
fn a_filter_is_inherited() {
    watched(|| {
        Flavour::CurrentThread.runtime().block_on(async {
            let lab = Lab::new();
            let config = lab.config(UpgradePolicy::Manual);
            let socket = SmcSocket::new_v4().expect("a socket");
            bpf::set_filter(socket.as_raw_fd(), libc::SO_ATTACH_FILTER).expect("a filter");
            socket.bind(address(V4)).expect("bind");
            let listener = socket.listen_with(16, &config).expect("listen");
            let to = listener.local_addr().expect("an address");
            let (client, _server) = tokio::join!(SmcStream::connect_with(to, &config), listener.accept());
            let reason =
                client.expect("connect").upgrade().await.fallback_reason().map(|reason| reason.diagnosis());
            assert_eq!(reason, Some(FallbackReason::SocketOption.diagnosis()));
        });
    });
}

/// The neutral values of options that keep a stream on TCP do not.
#[test]
fn options_that_are_set_back() {
    watched(|| {
        Flavour::CurrentThread.runtime().block_on(async {
            for (level, option, value, neutral) in [
                (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 1000, -1),
                (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 1000, 0),
                (libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, 1000, -1),
                (libc::SOL_SOCKET, libc::SO_RCVLOWAT, 9, 1),
                (libc::SOL_SOCKET, libc::SO_OOBINLINE, 1, 0),
                (libc::SOL_SOCKET, libc::SO_PEEK_OFF, 3, -1),
                (libc::SOL_SOCKET, libc::SO_TIMESTAMPING, 16, 0),
            ] {
                let lab = Lab::new();
                let (client, _server) = pair(&lab, V4).await;
                for value in [value, neutral] {
                    let value: i32 = value;
                    bpf::set_option(client.as_raw_fd(), level, option, &value.to_ne_bytes()).expect("set");
                }
                assert!(client.upgrade().await.is_loopback_ism(), "{level} {option}: {}", client.transport());
            }
        });
    });
}

/// The page for people and the table of the tests are one.
#[test]
fn the_documentation_names_every_option() {
    let page = include_str!("../../docs/options.md");
    let told: Vec<(&str, &str)> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|line| {
            let mut cells = line.split('|').map(str::trim);
            let name = cells.next().expect("a name").trim_end_matches('`');
            (name, cells.next().expect("an answer"))
        })
        .collect();
    let tested: Vec<(&str, &str)> = LEVELS
        .iter()
        .flat_map(|(_, rows)| rows.iter())
        .map(|&(name, _, _, found)| {
            let answer = match found {
                Found::Moves => "moves",
                Found::StaysOnTcp => "**TCP**",
                Found::NotForIt => "–",
            };
            (name, answer)
        })
        .collect();
    assert_eq!(told, tested);
}
