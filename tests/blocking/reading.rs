//! Reading and peeking.

use std::io::IoSliceMut;
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use crate::net::{Net, Stream as _};

/// The byte at a position.
pub(crate) fn byte_at(position: usize) -> u8 {
    (position ^ (position >> 8) ^ (position >> 16)) as u8
}

pub(crate) fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(byte_at).collect()
}

pub(crate) fn reads_of_all_sizes<N: Net>(net: &N) {
    use std::io::Write;
    let (mut client, server) = net.pair();
    let length = 300_000;
    let writer = thread::spawn(move || client.write_all(&bytes(length)).expect("write"));
    let mut position = 0;
    let mut buffer = vec![0; 70_000];
    for size in [1, 2, 3, 7, 100, 4096, 4097, 65_536, 70_000].into_iter().cycle() {
        let got = server.recv(&mut buffer[..size]).expect("read");
        if got == 0 {
            break;
        }
        for byte in &buffer[..got] {
            assert_eq!(*byte, byte_at(position));
            position += 1;
        }
    }
    assert_eq!(position, length);
    writer.join().expect("the writer");
}

pub(crate) fn zero_length_read<N: Net>(net: &N) {
    let (client, server) = net.pair();
    client.send(b"x").expect("write");
    assert_eq!(server.recv(&mut []).expect("read"), 0);
    let mut byte = [0];
    assert_eq!(server.recv(&mut byte).expect("read"), 1);
    assert_eq!(&byte, b"x");
}

pub(crate) fn reads_into_several_buffers<N: Net>(net: &N) {
    let (client, server) = net.pair();
    client.send(b"abcdefgh").expect("write");
    let mut all = [0; 8];
    assert_eq!(peek_until(&server, &mut all), 8);
    let (mut first, mut second, mut third) = ([0; 3], [0; 0], [0; 4]);
    let mut buffers =
        [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second), IoSliceMut::new(&mut third)];
    assert_eq!(server.recv_vectored(&mut buffers).expect("read"), 7);
    assert_eq!((&first, &third), (b"abc", b"defg"));
    assert_eq!(server.recv(&mut all).expect("read"), 1);
}

/// Peeks until the buffer is full.
fn peek_until(stream: &impl crate::net::Stream, buffer: &mut [u8]) -> usize {
    loop {
        let length = stream.peek(buffer).expect("peek");
        if length == buffer.len() {
            return length;
        }
        thread::yield_now();
    }
}

pub(crate) fn peek_twice_then_read<N: Net>(net: &N) {
    let (client, server) = net.pair();
    client.send(b"hello").expect("write");
    let mut buffer = [0; 5];
    for _ in 0..2 {
        assert_eq!(peek_until(&server, &mut buffer), 5);
        assert_eq!(&buffer, b"hello");
        buffer = [0; 5];
    }
    assert_eq!(server.recv(&mut buffer).expect("read"), 5);
    assert_eq!(&buffer, b"hello");
}

pub(crate) fn peek_waits_for_data<N: Net>(net: &N) {
    let (client, server) = net.pair();
    let writer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(30));
        client.send(b"x").expect("write");
        client
    });
    assert_eq!(server.peek(&mut [0; 4]).expect("peek"), 1);
    assert_eq!(server.recv(&mut [0; 4]).expect("read"), 1);
    drop(writer.join().expect("the writer"));
}

pub(crate) fn peek_at_the_end<N: Net>(net: &N) {
    let (client, server) = net.pair();
    client.send(b"x").expect("write");
    client.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(server.recv(&mut [0; 4]).expect("read"), 1);
    assert_eq!(server.peek(&mut [0; 4]).expect("peek"), 0);
    assert_eq!(server.recv(&mut [0; 4]).expect("read"), 0);
}

pub(crate) fn everything_to_the_end<N: Net>(net: &N) {
    use std::io::{Read, Write};
    let (mut client, mut server) = net.pair();
    let writer = thread::spawn(move || {
        for chunk in bytes(200_000).chunks(777) {
            client.write_all(chunk).expect("write");
        }
    });
    let mut got = Vec::new();
    server.read_to_end(&mut got).expect("read");
    assert!(got == bytes(200_000));
    writer.join().expect("the writer");
}

pub(crate) fn a_late_writer_is_waited_for<N: Net>(net: &N) {
    let (client, server) = net.pair();
    for pause in [0, 1, 5, 50] {
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(pause));
                client.send(b"late").expect("write");
            });
            let mut buffer = [0; 8];
            assert_eq!(server.recv(&mut buffer).expect("read"), 4);
        });
    }
}
