//! `axum_server` with `hyper_client` over SMC, and with curl and plain sockets over TCP.

use std::io::{Read, Write};
use std::net::SocketAddr;

use serde_json::Value;

use crate::demo::{Demo, Device, closed, plain, tool};

fn server(device: &Device, options: &[&str]) -> (Demo, SocketAddr) {
    device.serve("axum_server", &[&["127.0.0.1:0"], options].concat())
}

fn curl(addr: SocketAddr, path: &str, options: &[&str]) -> String {
    let url = format!("http://{addr}{path}");
    let output = tool("curl", "curl", &[&["-sS", "--noproxy", "*"], options, &[url.as_str()]].concat());
    assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn hyper_uses_all_of_it_over_smc() {
    let device = Device::new();
    let (_server, addr) = server(&device, &[]);
    // So many that the connections have moved before the last answers.
    let options = ["--requests=3000", "--mib=9"];
    let (success, said) = device.run("hyper_client", &[&[addr.to_string().as_str()], &options[..]].concat());
    assert!(success, "{said}");
    let line =
        |start: &str| said.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{said}"));
    assert!(line("POST /notes").contains(r#"{"id":1,"text":"milk"}"#), "{said}");
    assert!(line("GET /notes/3").contains(r#"{"id":3,"text":"shared memory"}"#), "{said}");
    assert!(line("GET /notes  ").contains("3 notes"), "{said}");
    for (start, result) in [
        ("GET /notes, 3000 times", "requests/s"),
        ("GET /stream", "9437184 bytes"),
        ("POST /upload", "9437184 bytes"),
        ("HTTP/2, 3000 requests", "requests/s"),
    ] {
        let line = line(start);
        assert!(line.contains(result), "{line}");
        assert!(line.ends_with("here loopback-ism, server loopback-ism"), "{line}");
    }
    let line = line("WebSocket /echo");
    assert!(line.contains("3000 messages") && line.contains("here loopback-ism"), "{line}");
}

#[test]
fn curl_reaches_it_on_the_same_port_over_tcp() {
    let device = Device::new();
    let (_server, addr) = server(&device, &[]);
    assert!(curl(addr, "/", &[]).contains("/transport"));
    let answer = curl(addr, "/transport", &["-i"]);
    assert!(answer.contains("HTTP/1.1 200 OK") && answer.contains("x-transport: tcp"), "{answer}");
    let json = ["-H", "content-type: application/json", "-d"];
    let created = curl(addr, "/notes", &[&["-i"], &json[..], &[r#"{"text": "from curl"}"#]].concat());
    assert!(created.contains("201 Created") && created.contains("location: /notes/1"), "{created}");
    assert_eq!(curl(addr, "/notes/1", &[]), r#"{"id":1,"text":"from curl"}"#);
    assert_eq!(curl(addr, "/notes", &[]), r#"[{"id":1,"text":"from curl"}]"#);
    assert!(curl(addr, "/notes/2", &["-i"]).contains("404 Not Found"));
    assert!(curl(addr, "/nothing", &["-i"]).contains("404 Not Found"));
    assert!(curl(addr, "/notes", &["-i", "-d", "no json"]).contains("415 Unsupported Media Type"));
    let long = format!(r#"{{"text": "{}"}}"#, "x".repeat(5000));
    assert!(
        curl(addr, "/notes", &[&["-i"], &json[..], &[long.as_str()]].concat())
            .contains("413 Payload Too Large")
    );
    let size = ["-o", "/dev/null", "-w", "%{size_download} %{http_code}"];
    assert_eq!(curl(addr, "/stream/3000001", &size), "3000001 200");
    assert!(curl(addr, "/stream/99999999999999", &[]).contains("at most"));
    let body = tempfile::NamedTempFile::new().unwrap();
    body.as_file().set_len(20_000_001).unwrap();
    let upload = format!("@{}", body.path().display());
    assert_eq!(curl(addr, "/upload", &["--data-binary", &upload]), r#"{"bytes":20000001}"#);
    let http2: Value = serde_json::from_str(&curl(addr, "/transport", &["--http2-prior-knowledge"])).unwrap();
    assert_eq!(http2["transport"], "tcp");
    assert!(http2["reason"].as_str().unwrap().contains("no upgrade was asked for yet"), "{http2}");
}

#[test]
fn open_requests_may_finish_after_sigterm() {
    let device = Device::new();
    let (mut server, addr) = server(&device, &[]);
    assert!(device.fails("axum_server", &[&addr.to_string()]).contains("in use"));
    let length = 30_000_000;
    let mut open = plain(addr);
    write!(open, "GET /stream/{length} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = vec![0; 1000];
    open.read_exact(&mut answer).unwrap();
    server.signal(rustix::process::Signal::TERM);
    server.line("ending");
    // axum closes its listener when it has seen the signal.
    crate::demo::until("new connections are refused", || std::net::TcpStream::connect(addr).is_err());
    open.read_to_end(&mut answer).unwrap();
    // Chunks and their lengths, a head before them.
    assert!(answer.len() > length && answer.ends_with(b"\r\n0\r\n\r\n"), "{} bytes", answer.len());
    let (success, said) = server.finish();
    assert!(success && said.ends_with("ended\n"), "{said}");
}

#[test]
fn open_requests_are_cut_off_after_their_time() {
    let device = Device::new();
    let (server, addr) = server(&device, &["--grace=0"]);
    let mut open = plain(addr);
    write!(open, "GET /stream/10000000000 HTTP/1.1\r\nHost: {addr}\r\n\r\n").unwrap();
    open.read_exact(&mut [0; 1000]).unwrap();
    let said = server.terminate();
    assert!(said.contains("some requests were cut off"), "{said}");
}

#[tokio::test]
async fn a_websocket_is_told_that_the_server_ends() {
    use futures::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;

    let device = Device::new();
    let (server, addr) = server(&device, &[]);
    let conversation = async {
        let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        let (mut socket, _) =
            tokio_tungstenite::client_async(format!("ws://{addr}/echo"), stream).await.unwrap();
        for message in [Message::text("hello"), Message::binary(vec![7; 500_000])] {
            socket.send(message.clone()).await.unwrap();
            assert_eq!(socket.next().await.unwrap().unwrap(), message);
        }
        server.signal(rustix::process::Signal::TERM);
        let Message::Close(Some(frame)) = socket.next().await.unwrap().unwrap() else {
            panic!("no farewell")
        };
        assert_eq!(frame.reason.as_str(), "the server ends");
    };
    tokio::time::timeout(crate::demo::LIMIT, conversation).await.expect("the conversation hangs");
    let (success, said) = tokio::task::spawn_blocking(move || server.finish()).await.unwrap();
    assert!(success, "{said}");
}

#[test]
fn a_server_that_is_gone_is_said() {
    let device = Device::new();
    let said = device.fails("hyper_client", &[&closed()]);
    assert!(said.contains("refused") && said.contains("is `axum_server` running"), "{said}");
    let (victim, addr) = server(&device, &[]);
    let mut client = device.start("hyper_client", &[&addr.to_string(), "--requests=100000000"]);
    client.line("3 notes");
    victim.kill();
    let (success, said) = client.finish();
    assert!(!success && said.contains("hyper_client: GET "), "{said}");
    // Something else listens there.
    let (_kv, addr) = device.serve("kv", &["serve", "127.0.0.1:0"]);
    let said = device.fails("hyper_client", &[&addr.to_string()]);
    assert!(said.contains("hyper_client: POST "), "{said}");
}
