//! Limits of what peers may take, set for a process by its environment and reached by another one:
//! what is beyond them stays on TCP with its reason, and loses no byte; others have their own.

#[allow(dead_code, reason = "not every test needs all of it")]
#[path = "support/child.rs"]
mod child;
#[path = "support/lab.rs"]
mod lab;
#[allow(dead_code, reason = "not every test needs all of it")]
#[path = "support/watchdog.rs"]
mod watchdog;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::{Diagnosis, FallbackReason, SmcListener, SmcStream, Transport, UpgradePolicy};

use child::{Child, next_word, role, tell};
use lab::Lab;
use watchdog::{Flavour, step, watched};

/// Of a peer that has reached a limit of its own.
const LIMIT: FallbackReason = FallbackReason::Declined(Diagnosis::MAX_DMB);
const MEMORY: FallbackReason = FallbackReason::Declined(Diagnosis::MEM);

/// Not a test of its own: the door through which this binary becomes another process.
#[test]
fn child_process() {
    let Some(role) = role() else { return };
    let words: Vec<&str> = role.split(' ').collect();
    let runtime = Flavour::MultiThread.runtime();
    match words[..] {
        ["server", late] => runtime.block_on(serve(late == "late")),
        ["client", address] => runtime.block_on(async {
            let mut stream = SmcStream::connect(address).await.expect("connect");
            let transport = stream.upgrade().await;
            talks(&mut stream).await;
            tell(&transport.to_string());
            drop(next_word());
        }),
        _ => panic!("no role {role}"),
    }
}

fn bytes(from: usize) -> Vec<u8> {
    (from..from + 40_000).map(|place| (place.wrapping_mul(0x9E37_79B1) >> 11) as u8).collect()
}

/// Echoes; one that is late accepts when it is told to.
async fn serve(late: bool) {
    let listener = SmcListener::bind("127.0.0.1:0").await.expect("bind");
    tell(&listener.local_addr().expect("an address").to_string());
    if late {
        next_word();
    }
    loop {
        let (mut stream, _) = listener.accept().await.expect("accept");
        tokio::spawn(async move {
            while let Ok(asked) = stream.read_u8().await {
                if asked == b'?' {
                    let reason = format!("{:?}", stream.transport().fallback_reason());
                    stream.write_u8(reason.len() as u8).await.expect("write");
                    stream.write_all(reason.as_bytes()).await.expect("write");
                    continue;
                }
                let mut got = vec![0; 40_000];
                stream.read_exact(&mut got).await.expect("read");
                stream.write_all(&got).await.expect("write");
            }
        });
    }
}

/// Every byte goes there and comes back.
async fn talks(stream: &mut SmcStream) {
    for turn in 0..3 {
        stream.write_u8(b'=').await.expect("write");
        stream.write_all(&bytes(turn)).await.expect("write");
        let mut got = vec![0; 40_000];
        stream.read_exact(&mut got).await.expect("read");
        assert!(got == bytes(turn), "a foreign byte");
    }
}

/// What the server's end says of itself.
async fn reason_there(stream: &mut SmcStream) -> String {
    stream.write_u8(b'?').await.expect("write");
    let length = stream.read_u8().await.expect("read");
    let mut reason = vec![0; length.into()];
    stream.read_exact(&mut reason).await.expect("read");
    String::from_utf8(reason).expect("words")
}

async fn upgraded(address: SocketAddr, lab: &Lab) -> (SmcStream, Transport) {
    let config = lab.config(UpgradePolicy::Manual);
    let mut stream = SmcStream::connect_with(address, &config).await.expect("connect");
    let transport = stream.upgrade().await;
    talks(&mut stream).await;
    (stream, transport)
}

fn start(lab: &Lab, role: &str, variable: &str, value: &str) -> (Child, SocketAddr) {
    step(format!("{role} with {variable}={value}"));
    let mut server = Child::start(role, lab.dir(), &[(variable, value)]);
    let address = server.hear().parse().expect("an address");
    (server, address)
}

/// Another process is served.
fn others_are_served(lab: &Lab, address: SocketAddr) {
    let mut client = Child::start(&format!("client {address}"), lab.dir(), &[("SMC_LO_UPGRADE", "manual")]);
    assert_eq!(client.hear(), "loopback-ism");
}

/// Streams of one runtime, until one stays on TCP; how many did not, and the reasons of both ends.
fn until_one_stays(address: SocketAddr, lab: &Lab) -> (usize, Option<FallbackReason>, String) {
    let mut held = Vec::new();
    Flavour::MultiThread.runtime().block_on(async {
        loop {
            let (mut stream, transport) = upgraded(address, lab).await;
            if !transport.is_loopback_ism() {
                let there = reason_there(&mut stream).await;
                for stream in &mut held {
                    talks(stream).await;
                }
                others_are_served(lab, address);
                return (held.len(), transport.fallback_reason(), there);
            }
            held.push(stream);
            assert!(held.len() < 200, "there is no limit");
        }
    })
}

#[test]
fn streams_per_link() {
    watched(|| {
        let lab = Lab::new();
        let (_server, address) = start(&lab, "server early", "SMC_LO_MAX_STREAMS_PER_LINK", "3");
        assert_eq!(until_one_stays(address, &lab), (3, Some(LIMIT), "Some(Limit)".to_owned()));
    });
}

#[test]
fn memory_of_one_peer() {
    watched(|| {
        let lab = Lab::new();
        // A link takes 32 KiB, and a stream 5 KiB before it grows.
        let (_server, address) = start(&lab, "server early", "SMC_LO_MEMORY_PER_PEER", "100000");
        let (streams, here, there) = until_one_stays(address, &lab);
        assert!((1..=14).contains(&streams), "{streams}");
        assert_eq!((here, &*there), (Some(MEMORY), "Some(Memory)"));
    });
}

#[test]
fn memory_of_the_process() {
    watched(|| {
        let lab = Lab::new();
        let (_server, address) = start(&lab, "server early", "SMC_LO_MEMORY", "20000");
        Flavour::MultiThread.runtime().block_on(async {
            let (_, transport) = upgraded(address, &lab).await;
            assert_eq!(transport, Transport::Tcp(MEMORY), "not even a link");
        });
    });
}

#[test]
fn offers_that_wait_for_accept() {
    watched(|| {
        let lab = Lab::new();
        // Of a link half of them.
        let (mut server, address) = start(&lab, "server late", "SMC_LO_MAX_WAITING_OFFERS", "4");
        Flavour::MultiThread.runtime().block_on(async {
            let config = lab.config(UpgradePolicy::Eager);
            let mut streams = Vec::new();
            for _ in 0..5 {
                streams.push(SmcStream::connect_with(address, &config).await.expect("connect"));
            }
            // Those that may not wait are told at once.
            let settled = |stream: &SmcStream| stream.transport() == Transport::Tcp(LIMIT);
            while streams.iter().filter(|stream| settled(stream)).count() < 3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            server.say("accept").expect("it listens");
            let mut upgraded = 0;
            for stream in &mut streams {
                upgraded += usize::from(stream.upgrade().await.is_loopback_ism());
                talks(stream).await;
            }
            assert_eq!(upgraded, 2);
        });
    });
}

#[test]
fn queries_per_second() {
    watched(|| {
        let lab = Lab::new();
        let (_server, address) = start(&lab, "server early", "SMC_LO_MAX_QUERIES_PER_SECOND", "1");
        // Each runtime begins a link. Ten seconds' worth may come at once, and each second brings
        // one more.
        let mut held = Vec::new();
        let refused = loop {
            let runtime = Flavour::CurrentThread.runtime();
            let (mut stream, transport) = runtime.block_on(upgraded(address, &lab));
            if !transport.is_loopback_ism() {
                break (transport, runtime.block_on(reason_there(&mut stream)));
            }
            held.push((runtime, stream));
        };
        assert_eq!(refused, (Transport::Tcp(LIMIT), "Some(NotYet)".to_owned()));
        assert!(held.len() >= 10, "{}", held.len());
        others_are_served(&lab, address);
        for (runtime, stream) in &mut held {
            runtime.block_on(talks(stream));
        }
    });
}
