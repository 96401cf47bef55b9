//! A blocking end and a tokio end of one connection, in one process.

use std::io::{Read, Write};
use std::net::Shutdown;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::{UpgradePolicy, blocking};

use crate::lab::Lab;
use crate::watchdog::{Flavour, step, watched};

const ROUNDS: u32 = 2_000;

fn talk_blocking(mut stream: blocking::SmcStream, begins: bool) {
    for round in 0..ROUNDS {
        let word = round.to_be_bytes();
        if begins {
            stream.write_all(&word).expect("write");
        }
        let mut got = [0; 4];
        stream.read_exact(&mut got).expect("read");
        assert_eq!(got, word);
        if !begins {
            stream.write_all(&word).expect("write");
        }
    }
    assert!(stream.transport().is_loopback_ism(), "{}", stream.transport());
    stream.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
}

async fn talk_tokio(mut stream: tokio_smc::SmcStream, begins: bool) {
    for round in 0..ROUNDS {
        let word = round.to_be_bytes();
        if begins {
            stream.write_all(&word).await.expect("write");
        }
        let mut got = [0; 4];
        stream.read_exact(&mut got).await.expect("read");
        assert_eq!(got, word);
        if !begins {
            stream.write_all(&word).await.expect("write");
        }
    }
    assert!(stream.transport().is_loopback_ism(), "{}", stream.transport());
    stream.shutdown().await.expect("shutdown");
    assert_eq!(stream.read(&mut [0]).await.expect("the end"), 0);
}

#[test]
fn two_blocking_ends() {
    watched("two_blocking_ends", || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let listener = blocking::SmcListener::bind_with("127.0.0.1:0", &config).expect("bind");
        let addr = listener.local_addr().expect("an address");
        let client = std::thread::spawn(move || {
            talk_blocking(blocking::SmcStream::connect_with(addr, &config).expect("connect"), true);
        });
        talk_blocking(listener.accept().expect("accept").0, false);
        client.join().expect("the client");
    });
}

#[test]
fn a_blocking_client_and_a_tokio_server() {
    watched("a_blocking_client_and_a_tokio_server", || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let runtime = Flavour::MultiThread.runtime();
        let listener = runtime
            .block_on(async { tokio_smc::SmcListener::bind_with("127.0.0.1:0", &config).await })
            .expect("bind");
        let addr = listener.local_addr().expect("an address");
        let server = runtime.spawn(async move {
            talk_tokio(listener.accept().await.expect("accept").0, false).await;
        });
        step("the client");
        talk_blocking(blocking::SmcStream::connect_with(addr, &config).expect("connect"), true);
        step("the server's end");
        runtime.block_on(server).expect("the server");
    });
}

#[test]
fn a_tokio_client_and_a_blocking_server() {
    watched("a_tokio_client_and_a_blocking_server", || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let runtime = Flavour::CurrentThread.runtime();
        let listener = blocking::SmcListener::bind_with("127.0.0.1:0", &config).expect("bind");
        let addr = listener.local_addr().expect("an address");
        let server = std::thread::spawn(move || {
            talk_blocking(listener.accept().expect("accept").0, false);
        });
        runtime.block_on(async {
            let stream = tokio_smc::SmcStream::connect_with(addr, &config).await.expect("connect");
            talk_tokio(stream, true).await;
        });
        server.join().expect("the server");
    });
}

#[test]
fn connect_waits_for_the_upgrade_where_it_is_asked_to() {
    watched("connect_waits_for_the_upgrade_where_it_is_asked_to", || {
        for policy in [UpgradePolicy::Require, UpgradePolicy::Handshake] {
            let lab = Lab::new();
            let config = lab.config(policy);
            let listener = blocking::SmcListener::bind_with("127.0.0.1:0", &config).expect("bind");
            let addr = listener.local_addr().expect("an address");
            let server = std::thread::spawn(move || {
                let mut stream = listener.accept().expect("accept").0;
                let mut word = [0; 4];
                stream.read_exact(&mut word).expect("read");
                stream.write_all(&word).expect("write");
                stream.upgrade()
            });
            let mut stream = blocking::SmcStream::connect_with(addr, &config).expect("connect");
            assert!(stream.transport().is_loopback_ism(), "{policy:?}: {}", stream.transport());
            stream.write_all(b"ping").expect("write");
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).expect("read");
            assert_eq!(&answer, b"ping");
            assert_eq!(stream.peer_cred().expect("credentials").pid(), Some(std::process::id() as i32));
            assert_eq!(stream.counters().tcp_bytes_written, 0);
            assert!(server.join().expect("the server").is_loopback_ism());
        }
    });
}
