//! Ends of all kinds.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use crate::net::{Net, Stream};
use crate::reading::bytes;

fn half_close<S: Stream>(mut ends: S, mut goes_on: S) {
    ends.write_all(b"question").expect("write");
    ends.shutdown(Shutdown::Write).expect("shutdown");
    let mut got = Vec::new();
    goes_on.read_to_end(&mut got).expect("read");
    assert_eq!(got, b"question");
    goes_on.write_all(&bytes(100_000)).expect("write");
    drop(goes_on);
    let mut got = Vec::new();
    ends.read_to_end(&mut got).expect("read");
    assert!(got == bytes(100_000));
}

pub(crate) fn half_close_of_the_client<N: Net>(net: &N) {
    let (client, server) = net.pair();
    half_close(client, server);
}

pub(crate) fn half_close_of_the_server<N: Net>(net: &N) {
    let (client, server) = net.pair();
    half_close(server, client);
}

pub(crate) fn drop_is_the_end_of_the_stream<N: Net>(net: &N) {
    let (client, server) = net.pair();
    let closer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        drop(client);
    });
    assert_eq!(server.recv(&mut [0; 4]).expect("read"), 0);
    closer.join().expect("the closer");
}

pub(crate) fn data_before_the_end_is_delivered<N: Net>(net: &N) {
    let (mut client, mut server) = net.pair();
    client.write_all(&bytes(60_000)).expect("write");
    drop(client);
    thread::sleep(Duration::from_millis(20));
    let mut got = Vec::new();
    server.read_to_end(&mut got).expect("read");
    assert!(got == bytes(60_000));
}

pub(crate) fn drop_with_unread_data_resets<N: Net>(net: &N) {
    let (mut client, server) = net.pair();
    client.write_all(b"nobody reads this").expect("write");
    server.peek(&mut [0]).expect("it is there");
    drop(server);
    let error = client.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(client.read(&mut [0]).expect("then the end"), 0);
}

fn set_zero_linger(stream: &impl Stream) {
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).expect("SO_LINGER");
}

pub(crate) fn zero_linger_resets<N: Net>(net: &N) {
    let (mut client, server) = net.pair();
    set_zero_linger(&server);
    drop(server);
    let error = client.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

pub(crate) fn zero_linger_resets_a_waiting_reader<N: Net>(net: &N) {
    let (mut client, server) = net.pair();
    let reader = thread::spawn(move || client.read(&mut [0]).expect_err("a reset").kind());
    thread::sleep(Duration::from_millis(30));
    set_zero_linger(&server);
    drop(server);
    assert_eq!(reader.join().expect("the reader"), ErrorKind::ConnectionReset);
}

pub(crate) fn writes_after_the_peer_went_fail<N: Net>(net: &N) {
    let (client, server) = net.pair();
    drop(server);
    let error = loop {
        match client.send(b"anyone?") {
            Ok(_) => thread::sleep(Duration::from_millis(1)),
            Err(error) => break error,
        }
    };
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    assert_eq!(client.send(b"anyone?").expect_err("for good").kind(), ErrorKind::BrokenPipe);
}

pub(crate) fn write_after_shutdown_fails<N: Net>(net: &N) {
    let (client, server) = net.pair();
    client.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(client.send(b"x").expect_err("its end was said").kind(), ErrorKind::BrokenPipe);
    drop(server);
}

pub(crate) fn shutdown_twice<N: Net>(net: &N) {
    let (client, server) = net.pair();
    client.shutdown(Shutdown::Write).expect("shutdown");
    client.shutdown(Shutdown::Write).expect("again");
    client.shutdown(Shutdown::Read).expect("and the other");
    client.shutdown(Shutdown::Both).expect("and both");
    assert_eq!(server.recv(&mut [0]).expect("the end"), 0);
}

pub(crate) fn shut_for_reading<N: Net>(net: &N) {
    let (client, mut server) = net.pair();
    client.shutdown(Shutdown::Read).expect("shutdown");
    assert_eq!(client.recv(&mut [0]).expect("the end"), 0);
    // The other direction goes on.
    client.send(b"still here").expect("write");
    let mut got = [0; 10];
    server.read_exact(&mut got).expect("read");
    assert_eq!(&got, b"still here");
}

pub(crate) fn shutdown_wakes_a_waiting_reader<N: Net>(net: &N) {
    for how in [Shutdown::Read, Shutdown::Both] {
        let (client, server) = net.pair();
        let waiting = client.try_clone().expect("a clone");
        let reader = thread::spawn(move || waiting.recv(&mut [0]));
        thread::sleep(Duration::from_millis(30));
        client.shutdown(how).expect("shutdown");
        assert_eq!(reader.join().expect("the reader").expect("the end"), 0);
        drop(server);
    }
}

pub(crate) fn shutdown_wakes_a_waiting_writer<N: Net>(net: &N) {
    for how in [Shutdown::Write, Shutdown::Both] {
        let (client, server) = net.pair();
        let waiting = client.try_clone().expect("a clone");
        let much = bytes(48 << 20);
        let length = much.len();
        let writer = thread::spawn(move || waiting.send(&much));
        thread::sleep(Duration::from_millis(100));
        client.shutdown(how).expect("shutdown");
        match writer.join().expect("the writer") {
            Ok(written) => assert!(written < length),
            Err(error) => assert_eq!(error.kind(), ErrorKind::BrokenPipe),
        }
        assert_eq!(client.send(b"x").expect_err("its end was said").kind(), ErrorKind::BrokenPipe);
        drop(server);
    }
}

pub(crate) fn shutdown_of_a_descriptor_wakes_a_waiting_reader<N: Net>(net: &N) {
    let (client, server) = net.pair();
    let waiting = client.try_clone().expect("a clone");
    let reader = thread::spawn(move || waiting.recv(&mut [0]));
    thread::sleep(Duration::from_millis(30));
    rustix::net::shutdown(&client, rustix::net::Shutdown::Both).expect("shutdown");
    assert_eq!(reader.join().expect("the reader").expect("the end"), 0);
    assert_eq!(server.recv(&mut [0]).expect("the end"), 0);
}

pub(crate) fn end_is_sticky<N: Net>(net: &N) {
    let (client, server) = net.pair();
    drop(client);
    for _ in 0..3 {
        assert_eq!(server.recv(&mut [0; 4]).expect("the end"), 0);
    }
}

pub(crate) fn a_clone_keeps_the_connection_open<N: Net>(net: &N) {
    let (client, server) = net.pair();
    let clone = client.try_clone().expect("a clone");
    drop(client);
    clone.send(b"here").expect("write");
    let mut got = [0; 8];
    assert_eq!(server.recv(&mut got).expect("read"), 4);
    server.send(b"there").expect("write");
    assert_eq!(clone.recv(&mut got).expect("read"), 5);
    drop(clone);
    assert_eq!(server.recv(&mut got).expect("the end"), 0);
}
