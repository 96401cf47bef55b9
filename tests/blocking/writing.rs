//! Writing.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::thread;
use std::time::Duration;

use crate::net::{Net, Stream};
use crate::reading::bytes;

/// More than the kernel or a ring takes while nobody reads.
const MUCH: usize = 24 << 20;

/// Also the kernel's `send` waits until all is in its queue.
pub(crate) fn a_write_waits_until_all_is_written<N: Net>(net: &N) {
    let (client, mut server) = net.pair();
    let reader = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        let mut got = Vec::new();
        server.read_to_end(&mut got).expect("read");
        got
    });
    let sent = bytes(MUCH);
    assert_eq!(client.send(&sent).expect("write"), MUCH);
    let halves = sent.split_at(MUCH / 3);
    let slices = [IoSlice::new(halves.0), IoSlice::new(&[]), IoSlice::new(halves.1)];
    assert_eq!(client.send_vectored(&slices).expect("write"), MUCH);
    drop(client);
    let got = reader.join().expect("the reader");
    assert!(got[..MUCH] == sent && got[MUCH..] == sent);
}

pub(crate) fn several_buffers_keep_their_order<N: Net>(net: &N) {
    let (client, mut server) = net.pair();
    let slices = [IoSlice::new(b"one "), IoSlice::new(b""), IoSlice::new(b"two "), IoSlice::new(b"three")];
    assert_eq!(client.send_vectored(&slices).expect("write"), 13);
    let mut got = [0; 13];
    server.read_exact(&mut got).expect("read");
    assert_eq!(&got, b"one two three");
}

pub(crate) fn zero_length_write<N: Net>(net: &N) {
    let (client, server) = net.pair();
    assert_eq!(client.send(b"").expect("write"), 0);
    assert_eq!(client.send_vectored(&[IoSlice::new(b"")]).expect("write"), 0);
    client.send(b"x").expect("write");
    assert_eq!(server.recv(&mut [0; 4]).expect("read"), 1);
}

pub(crate) fn many_small_writes_arrive_in_order<N: Net>(net: &N) {
    let (mut client, mut server) = net.pair();
    let writer = thread::spawn(move || {
        for number in 0..20_000u32 {
            client.write_all(&number.to_be_bytes()).expect("write");
        }
        client.flush().expect("flush");
    });
    for number in 0..20_000u32 {
        let mut got = [0; 4];
        server.read_exact(&mut got).expect("read");
        assert_eq!(u32::from_be_bytes(got), number);
    }
    writer.join().expect("the writer");
}

pub(crate) fn a_large_exchange_both_ways<N: Net>(net: &N) {
    let (client, server) = net.pair();
    let sent = bytes(MUCH / 2);
    let through = |stream: &N::Stream| {
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for chunk in sent.chunks(50_000) {
                    assert_eq!(stream.send(chunk).expect("write"), chunk.len());
                }
            });
            let (mut got, mut buffer) = (0, vec![0; 64 << 10]);
            while got < sent.len() {
                let length = stream.recv(&mut buffer).expect("read");
                assert!(length > 0 && buffer[..length] == sent[got..got + length]);
                got += length;
            }
            writer.join().expect("the writer");
        });
    };
    thread::scope(|scope| {
        scope.spawn(|| through(&client));
        through(&server);
    });
}

pub(crate) fn threads_share_a_stream<N: Net>(net: &N) {
    let (client, server) = net.pair();
    let words = 4 * 1000;
    thread::scope(|scope| {
        for thread in 0..4u8 {
            let client = client.try_clone().expect("a clone");
            scope.spawn(move || {
                for _ in 0..1000 {
                    assert_eq!(client.send(&[thread; 16]).expect("write"), 16);
                }
            });
        }
        let mut got = vec![0; words * 16];
        Reader(&server).read_exact(&mut got).expect("read");
        // A small write is never torn.
        assert!(got.chunks(16).all(|word| word.iter().all(|byte| *byte == word[0])));
    });
}

/// A shared stream as a reader.
pub(crate) struct Reader<'a, S>(pub(crate) &'a S);

impl<S: Stream> Read for Reader<'_, S> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.recv(buf)
    }
}

/// The write that has written a part says how much, and what cut it comes next: nobody takes what
/// is left of the stream for all of it.
pub(crate) fn a_reset_that_cuts_a_write_is_told_later<N: Net>(net: &N) {
    let (client, mut server) = net.pair();
    let writer = thread::spawn(move || {
        let answer = client.send(&bytes(MUCH));
        (answer, client)
    });
    server.read_exact(&mut vec![0; 1 << 20]).expect("read");
    // With unread data, and more to come.
    assert_eq!(server.peek(&mut [0]).expect("peek"), 1);
    drop(server);
    let (answer, client) = writer.join().expect("the writer");
    match answer {
        Ok(length) => {
            assert!(length < MUCH, "all of it: {length}");
            let error = client.recv(&mut [0]).expect_err("an end after a part");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    assert_eq!(client.send(b"x").expect_err("nobody reads").kind(), ErrorKind::BrokenPipe);
}
