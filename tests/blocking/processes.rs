//! Two processes: a blocking end and a tokio end of one connection, and what one sees when the
//! other is killed.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::blocking::{SmcListener, SmcStream};
use tokio_smc::{Config, UpgradePolicy};

use crate::child::{Child, next_word, tell};
use crate::lab::Lab;
use crate::net::Stream as _;
use crate::reading::bytes;
use crate::watchdog::{Flavour, step, watched};

pub(crate) fn blocking_echo() {
    let listener = SmcListener::bind("127.0.0.1:0").expect("bind");
    tell(&listener.local_addr().expect("an address").to_string());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.expect("accept");
            thread::spawn(move || std::io::copy(&mut &stream, &mut &stream).map(drop));
        }
    });
    while next_word().is_some() {}
}

pub(crate) fn tokio_echo() {
    let runtime = Flavour::MultiThread.runtime();
    let listener =
        runtime.block_on(async { tokio_smc::SmcListener::bind("127.0.0.1:0").await }).expect("bind");
    tell(&listener.local_addr().expect("an address").to_string());
    runtime.spawn(async move {
        loop {
            let mut stream = listener.accept().await.expect("accept").0;
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    while next_word().is_some() {}
}

fn start(role: &str, lab: &Lab) -> (Child, SocketAddr) {
    let mut child = Child::start(role, lab.dir(), &[]);
    let addr = child.hear().parse().expect("an address");
    (child, addr)
}

/// Small words, then much at once; it crosses the switch.
fn talk(addr: SocketAddr, config: &Config) {
    let mut stream = SmcStream::connect_with(addr, config).expect("connect");
    for round in 0..1000u32 {
        stream.write_all(&round.to_be_bytes()).expect("write");
        let mut got = [0; 4];
        stream.read_exact(&mut got).expect("read");
        assert_eq!(got, round.to_be_bytes());
    }
    assert!(stream.transport().is_loopback_ism(), "{}", stream.transport());
    let much = bytes(8 << 20);
    thread::scope(|scope| {
        scope.spawn(|| {
            stream.send(&much).expect("write");
            stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
        });
        let mut got = Vec::new();
        (&stream).read_to_end(&mut got).expect("read");
        assert!(got == much);
    });
}

#[test]
fn a_blocking_client_of_another_process() {
    watched(|| {
        for role in ["blocking_echo", "tokio_echo"] {
            step(role);
            let lab = Lab::new();
            let config = lab.config(UpgradePolicy::FirstTurn);
            let (_child, addr) = start(role, &lab);
            thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| talk(addr, &config));
                }
            });
        }
    });
}

#[test]
fn a_tokio_client_of_a_blocking_process() {
    watched(|| {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let (_child, addr) = start("blocking_echo", &lab);
        Flavour::CurrentThread.runtime().block_on(async {
            let mut stream = tokio_smc::SmcStream::connect_with(addr, &config).await.expect("connect");
            for round in 0..1000u32 {
                stream.write_all(&round.to_be_bytes()).await.expect("write");
                let mut got = [0; 4];
                stream.read_exact(&mut got).await.expect("read");
                assert_eq!(got, round.to_be_bytes());
            }
            assert!(stream.transport().is_loopback_ism(), "{}", stream.transport());
        });
    });
}

#[test]
fn a_reader_sees_the_end_of_a_process_that_is_killed() {
    watched(|| {
        for role in ["blocking_echo", "tokio_echo"] {
            let lab = Lab::new();
            let (mut child, addr) = start(role, &lab);
            let config = lab.config(UpgradePolicy::Require);
            let mut stream = SmcStream::connect_with(addr, &config).expect("connect");
            stream.write_all(b"x").expect("write");
            stream.read_exact(&mut [0]).expect("read");
            let waiting = stream.try_clone().expect("a clone");
            let reader = thread::spawn(move || waiting.recv(&mut [0]));
            thread::sleep(Duration::from_millis(30));
            child.kill();
            // All that was written was read: TCP would show a FIN.
            assert_eq!(reader.join().expect("the reader").expect("the end"), 0);
            let error = loop {
                match stream.send(b"anyone?") {
                    Ok(_) => thread::sleep(Duration::from_millis(1)),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
        }
    });
}

#[test]
fn a_writer_sees_the_end_of_a_process_that_is_killed() {
    watched(|| {
        let lab = Lab::new();
        let (mut child, addr) = start("blocking_echo", &lab);
        let config = lab.config(UpgradePolicy::Require);
        let stream = SmcStream::connect_with(addr, &config).expect("connect");
        let writing = stream.try_clone().expect("a clone");
        // Nobody reads what comes back: the echo stops reading, and this waits.
        let writer = thread::spawn(move || {
            loop {
                if let Err(error) = writing.send(&[0; 100_000]) {
                    return error.kind();
                }
            }
        });
        thread::sleep(Duration::from_millis(200));
        child.kill();
        let kind = writer.join().expect("the writer");
        assert!(matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{kind}");
    });
}
