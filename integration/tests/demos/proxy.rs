//! `proxy` in both directions, with `kv` behind it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::demo::{Demo, Device, closed, plain, until};

fn kv(device: &Device) -> (Demo, SocketAddr) {
    device.serve("kv", &["serve", "127.0.0.1:0"])
}

/// A proxy to `target`, and where it listens.
fn proxy(device: &Device, target: &str, options: &[&str]) -> (Demo, SocketAddr) {
    let mut proxy = device.start("proxy", &[&["127.0.0.1:0", target], options].concat());
    let line = proxy.line(" -> ");
    let addr = line.split(' ').nth(2).and_then(|addr| addr.parse().ok());
    (proxy, addr.unwrap_or_else(|| panic!("no address in {line}")))
}

/// One inline command and its answer of one bulk string.
fn turn(stream: &mut TcpStream, command: &str) -> String {
    stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let length: usize =
        std::str::from_utf8(&head).unwrap().trim_start_matches('$').trim_end().parse().unwrap();
    let mut bulk = vec![0; length + 2];
    stream.read_exact(&mut bulk).unwrap();
    String::from_utf8(bulk).unwrap()
}

/// The numbers of bytes that a line of the proxy tells of, out and back.
fn bytes(line: &str) -> (u64, u64) {
    let after = |words: &str| {
        let rest = line.split(words).nth(1).unwrap_or_else(|| panic!("no {words:?} in {line}"));
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    (after(", out "), after(", back "))
}

#[test]
fn plain_tcp_comes_in_and_smc_goes_out() {
    let device = Device::new();
    let (_kv, target) = kv(&device);
    let (mut proxy, addr) = proxy(&device, &target.to_string(), &[]);
    let mut client = plain(addr);
    let (mut sent, mut received) = (0, 0);
    until("the proxy is on loopback-ism", || {
        let answer = turn(&mut client, "CLIENT INFO");
        sent += "CLIENT INFO\r\n".len() as u64;
        // `$…` and its line end come before the answer and its own.
        received += (answer.len() + format!("${}\r\n", answer.len() - 2).len()) as u64;
        answer.contains("transport=loopback-ism")
    });
    drop(client);
    let line = proxy.line("#1 ");
    assert!(line.contains("smc side on loopback-ism, ") && line.contains(" over loopback-ism)"), "{line}");
    assert_eq!(bytes(&line), (sent, received), "{line}");
}

#[test]
fn smc_comes_in_and_plain_tcp_goes_out() {
    let device = Device::new();
    let (_kv, target) = kv(&device);
    let (mut proxy, addr) = proxy(&device, &target.to_string(), &["--reverse"]);
    let (success, said) = device.run("kv", &["demo", &addr.to_string()]);
    assert!(success && said.contains("the connection runs on loopback-ism"), "{said}");
    assert!(said.contains("transport=tcp"), "the server behind it sees plain TCP: {said}");
    let line = proxy.line("#1 ");
    assert!(line.contains("smc side on loopback-ism"), "{line}");
    assert!(bytes(&line).0 > 10_000, "{line}");
}

#[test]
fn both_ends_of_the_stream_and_large_data_go_through() {
    let device = Device::new();
    let (_kv, target) = kv(&device);
    for options in [&[][..], &["--reverse"]] {
        let (mut proxy, addr) = proxy(&device, &target.to_string(), options);
        let value = vec![b'v'; 10_000_000];
        let mut client = plain(addr);
        client.write_all(b"*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n$10000000\r\n").unwrap();
        client.write_all(&value).unwrap();
        client.write_all(b"\r\nGET large\r\n").unwrap();
        // The server's last answer comes after the end of what it is told.
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        let expected = [b"+OK\r\n$10000000\r\n", &value[..], b"\r\n"].concat();
        assert!(answer == expected, "{options:?}: {} bytes", answer.len());
        let (out, back) = bytes(&proxy.line("#1 "));
        assert!(out > 10_000_000 && back == expected.len() as u64, "{out} {back}");
        let said = proxy.terminate();
        assert!(said.contains("ended: 1 connections"), "{said}");
    }
}

#[test]
fn a_dead_server_is_said_to_the_client_and_to_the_user() {
    let device = Device::new();
    let (server, target) = kv(&device);
    let (mut proxy, addr) = proxy(&device, &target.to_string(), &["--grace=0"]);
    let mut client = plain(addr);
    until("the proxy is on loopback-ism", || turn(&mut client, "CLIENT INFO").contains("loopback-ism"));
    server.kill();
    // The end of the stream or a reset: the client is told at once.
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest);
    assert!(rest.is_empty());
    drop(client);
    proxy.line("#1 ");
    // And the next one is not let wait.
    let mut refused = plain(addr);
    let _ = refused.read_to_end(&mut rest);
    assert!(proxy.line("#2 ").contains(&format!("connecting to {target}: Connection refused")));

    let said = device.fails("proxy", &[&addr.to_string(), &closed()]);
    assert!(said.contains("in use"), "{said}");
    assert!(device.fails("proxy", &["127.0.0.1:0"]).contains("<TARGET>"));
    assert!(proxy.terminate().contains("ended: 2 connections"));
}

#[test]
fn what_is_open_at_the_end_is_cut_off_and_said() {
    let device = Device::new();
    let (_kv, target) = kv(&device);
    let (proxy, addr) = proxy(&device, &target.to_string(), &["--grace=0"]);
    let mut client = plain(addr);
    turn(&mut client, "ECHO open");
    let said = proxy.terminate();
    assert!(said.contains("#1 ") && said.contains("broken: cut off"), "{said}");
}
