//! A server that is stopped (SIGSTOP) ends no connection, and nobody waits for it for ever.

#[path = "support/agree.rs"]
mod agree;
#[allow(dead_code, reason = "not every test needs all of it")]
#[path = "support/child.rs"]
mod child;
#[path = "support/lab.rs"]
mod lab;
#[allow(dead_code, reason = "not every test needs all of it")]
#[path = "support/watchdog.rs"]
mod watchdog;

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::{Config, FallbackReason, SmcListener, SmcStream, Transport, UpgradePolicy};

use agree::agree;
use child::{Child, next_word, role, tell};
use lab::Lab;
use watchdog::{Flavour, step, watched};

const NO_ANSWER: Transport = Transport::Tcp(FallbackReason::NoAnswer);

/// Not a test of its own: the door through which this binary becomes the server that is stopped.
#[test]
fn child_process() {
    let Some(role) = role() else { return };
    let runtime = Flavour::MultiThread.runtime();
    let _context = runtime.enter();
    let listener = runtime.block_on(SmcListener::bind(role)).expect("bind");
    tell(&listener.local_addr().expect("an address").to_string());
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    // Until the parent ends.
    while next_word().is_some() {}
}

/// Echoes; what is told to agree does so first.
async fn serve(mut stream: SmcStream) {
    while let Ok(byte) = stream.read_u8().await {
        if byte == b'u' {
            agree(&mut stream, false).await;
        } else if stream.write_u8(byte).await.is_err() {
            return;
        }
    }
}

async fn echo(stream: &mut SmcStream) {
    for byte in *b"echo" {
        stream.write_u8(byte).await.expect("write");
        assert_eq!(stream.read_u8().await.expect("read"), byte);
    }
}

fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).expect("a signal");
}

/// Returns when every thread of the child stands still.
async fn stop(child: &Child) {
    signal(child, Signal::STOP);
    let stands = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).expect("procfs");
        status.lines().any(|line| line.starts_with("State:\tT"))
    };
    let tasks = format!("/proc/{}/task", child.id());
    while !fs::read_dir(&tasks).expect("procfs").flatten().all(stands) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn connect(address: SocketAddr, config: &Config) -> SmcStream {
    SmcStream::connect_with(address, config).await.expect("connect")
}

/// Stops the first of `servers` while `live` connections run on the ring, and asks it for more
/// upgrades.
async fn scenario(name: &str, servers: usize, live: usize) {
    step(format!("{name}: connections that live"));
    let lab = Lab::new();
    let mut server = Child::start("127.0.0.1:0", lab.dir(), &[]);
    let address: SocketAddr = server.hear().parse().expect("an address");
    let mut others = Vec::new();
    for number in 1..servers {
        let mut other = Child::start(&format!("127.0.0.{}:{}", number + 1, address.port()), lab.dir(), &[]);
        other.hear();
        others.push(other);
    }
    let (eager, manual) = (lab.config(UpgradePolicy::Eager), lab.config(UpgradePolicy::Manual));
    let mut streams = Vec::new();
    for _ in 0..live {
        let mut stream = connect(address, &eager).await;
        stream.write_u8(b'u').await.expect("write");
        agree(&mut stream, true).await;
        streams.push(stream);
    }

    step(format!("{name}: who waits for a stopped server"));
    stop(&server).await;
    let stream = connect(address, &manual).await;
    let mut watch = stream.watch();
    let (required, handshake) = (
        lab.config(UpgradePolicy::Require),
        lab.config(UpgradePolicy::Handshake).handshake_timeout(Duration::from_secs(2)),
    );
    let settled = async {
        while watch.transport() != Transport::Tcp(FallbackReason::InProgress) {
            watch.changed().await;
        }
        watch.settled().await
    };
    let (answer, settled, refused, shaken) = tokio::join!(
        stream.upgrade(),
        settled,
        SmcStream::connect_with(address, &required),
        connect(address, &handshake),
    );
    assert_eq!((answer, settled, stream.transport()), (NO_ANSWER, NO_ANSWER, NO_ANSWER), "{name}");
    let refused = refused.expect_err("no upgrade");
    assert_eq!(refused.kind(), ErrorKind::TimedOut, "{name}: {refused}");
    let reason = refused.get_ref().and_then(|inner| inner.downcast_ref::<FallbackReason>());
    assert_eq!(reason, Some(&FallbackReason::NoAnswer), "{name}");
    assert!(!shaken.transport().is_loopback_ism(), "{name}");
    for stream in &streams {
        assert!(stream.transport().is_loopback_ism(), "{name}: a live connection is {}", stream.transport());
        assert_eq!(
            stream.try_read(&mut [0; 1]).expect_err("no byte").kind(),
            ErrorKind::WouldBlock,
            "{name}"
        );
    }

    step(format!("{name}: the server goes on"));
    signal(&server, Signal::CONT);
    for stream in &mut streams {
        echo(stream).await;
    }
    // The offer still stood.
    while !watch.transport().is_loopback_ism() {
        assert!(watch.changed().await.is_some(), "{name}");
    }
    for mut stream in [stream, shaken] {
        echo(&mut stream).await;
        assert!(stream.upgrade().await.is_loopback_ism(), "{name}");
        echo(&mut stream).await;
    }
}

#[test]
fn nobody_waits_for_ever_for_a_stopped_server() {
    watched(|| {
        Flavour::MultiThread.runtime().block_on(async {
            tokio::join!(
                scenario("no HELLO", 1, 0),
                scenario("an OFFER without MATCH", 1, 64),
                scenario("a QUERY without ANSWER", 2, 4),
            );
        });
    });
}

#[test]
fn an_accept_that_takes_long_is_told_and_then_upgraded() {
    watched(|| {
        Flavour::CurrentThread.runtime().block_on(async {
            let lab = Lab::new();
            let config = lab.config(UpgradePolicy::Manual);
            let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
            let mut client = connect(listener.local_addr().expect("an address"), &config).await;
            assert_eq!(client.upgrade().await, NO_ANSWER);
            let mut server = listener.accept().await.expect("accept").0;
            tokio::join!(agree(&mut client, true), agree(&mut server, false));
            assert!(server.upgrade().await.is_loopback_ism());
        });
    });
}
