//! `blocking_echo`: no runtime on either side, and plain sockets as guests.

use std::io::{BufRead, BufReader, Write};

use crate::demo::{Device, closed, plain};

#[test]
fn lines_come_back_on_shared_memory_and_on_tcp() {
    let device = Device::new();
    let (mut server, addr) = device.serve("blocking_echo", &["serve", "127.0.0.1:0"]);
    let (success, said) = device.run("blocking_echo", &["say", &addr.to_string(), "hello"]);
    assert!(success && said.starts_with("hello (1000 times, "), "{said}");
    assert!(said.contains("on loopback-ism"), "{said}");
    server.line("served a connection on loopback-ism");

    let mut guest = plain(addr);
    guest.write_all(b"a plain line\n").unwrap();
    let mut answer = String::new();
    BufReader::new(&guest).read_line(&mut answer).unwrap();
    assert_eq!(answer, "a plain line\n");
    drop(guest);
    server.line("served a connection on tcp");
}

#[test]
fn who_is_not_there_is_said() {
    let said = Device::new().fails("blocking_echo", &["say", &closed(), "hello"]);
    assert!(said.contains("refused"), "{said}");
}
