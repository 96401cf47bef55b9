//! Processes that take all there is of a server: the others are served all the same.

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
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::{FallbackReason, SmcListener, SmcStream, Transport, UpgradePolicy};

use agree::agree;
use child::{Child, next_word, role, tell};
use lab::Lab;
use watchdog::{Flavour, step, watched};

/// Not a test of its own: the door through which this binary becomes another process.
#[test]
fn child_process() {
    let Some(role) = role() else { return };
    let words: Vec<&str> = role.split(' ').collect();
    match words[..] {
        ["server", descriptors] => serve_with(descriptors.parse().expect("a number")),
        ["greedy", address, runtimes] => {
            let address = address.parse().expect("an address");
            take_links(address, runtimes.parse().expect("a number"));
        }
        _ => panic!("no role {role}"),
    }
}

fn limit_descriptors(descriptors: u64) {
    let limit = Rlimit { current: Some(descriptors), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).expect("fewer descriptors");
}

/// Echoes; says how many descriptors it holds when it is asked, and has as many as it is told.
fn serve_with(descriptors: u64) {
    limit_descriptors(descriptors);
    let runtime = Flavour::MultiThread.runtime();
    let _context = runtime.enter();
    let listener = runtime.block_on(SmcListener::bind("127.0.0.1:0")).expect("bind");
    tell(&listener.local_addr().expect("an address").to_string());
    runtime.spawn(async move {
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        }
    });
    while let Some(word) = next_word() {
        match word.parse() {
            Ok(descriptors) => {
                limit_descriptors(descriptors);
                tell("set");
            }
            Err(_) => tell(&fs::read_dir("/proc/self/fd").expect("procfs").count().to_string()),
        }
    }
}

async fn serve(mut stream: SmcStream) {
    while let Ok(byte) = stream.read_u8().await {
        if byte == b'u' {
            agree(&mut stream, false).await;
        } else if stream.write_u8(byte).await.is_err() {
            return;
        }
    }
}

async fn echoes(stream: &mut SmcStream) -> bool {
    stream.write_u8(1).await.is_ok() && matches!(stream.read_u8().await, Ok(1))
}

/// One link with each of so many runtimes, one after the other; says how many got one, and later
/// how many still have it.
fn take_links(address: SocketAddr, runtimes: usize) {
    let mut held = Vec::new();
    for _ in 0..runtimes {
        let runtime = Flavour::CurrentThread.runtime();
        let stream = runtime.block_on(async {
            let mut stream = SmcStream::connect(address).await.expect("connect");
            let transport = stream.upgrade().await;
            assert!(echoes(&mut stream).await, "as long as nobody else comes, all are served");
            transport.is_loopback_ism().then_some(stream)
        });
        held.extend(stream.map(|stream| (runtime, stream)));
    }
    tell(&held.len().to_string());
    while next_word().is_some() {
        let alive = |(runtime, stream): &mut (_, SmcStream)| {
            let runtime: &tokio::runtime::Runtime = runtime;
            runtime.block_on(echoes(stream))
        };
        tell(&format!("{:?}", held.iter_mut().map(alive).collect::<Vec<bool>>()));
    }
}

async fn upgraded(address: SocketAddr, lab: &Lab) -> (SmcStream, Transport) {
    let config = lab.config(UpgradePolicy::Manual);
    let mut stream = SmcStream::connect_with(address, &config).await.expect("connect");
    let transport = stream.upgrade().await;
    assert!(echoes(&mut stream).await);
    (stream, transport)
}

/// The shares of processes that take what they get of so many links, while one is left.
fn shares_of(most: usize) -> Vec<usize> {
    let mut left = most;
    let share = || {
        let share = left.div_ceil(2);
        left -= share;
        (left > 0).then_some(share)
    };
    std::iter::from_fn(share).collect()
}

/// Processes take what links a server has; then come others.
fn contest([descriptors, lowered]: [u64; 2], max_links: &str, most: usize, full: FallbackReason) {
    step(format!("{descriptors} descriptors, {max_links} links"));
    let lab = Lab::new();
    let server = [("SMC_LO_MAX_LINKS", max_links)];
    let mut server = Child::start(&format!("server {descriptors}"), lab.dir(), &server);
    let address: SocketAddr = server.hear().parse().expect("an address");
    let mut greedy = Vec::new();
    for share in shares_of(most) {
        let role = format!("greedy {address} {}", share + 2);
        let mut process = Child::start(&role, lab.dir(), &[("SMC_LO_UPGRADE", "manual")]);
        assert_eq!(process.hear(), share.to_string(), "half of what others leave");
        greedy.push((process, share));
    }
    let [runtime, another] = [(); 2].map(|()| Flavour::MultiThread.runtime());
    // Whoever comes for the first time is served, as long as there is one.
    let (mut served, transport) = runtime.block_on(upgraded(address, &lab));
    assert!(transport.is_loopback_ism(), "{transport}");
    // And then the server itself is short of descriptors.
    for left in [descriptors, lowered] {
        assert_eq!(server.ask(&left.to_string()), "set");
        let (stream, transport) = another.block_on(upgraded(address, &lab));
        let declined = FallbackReason::Declined(full.diagnosis());
        assert_eq!(transport, Transport::Tcp(declined), "there is none left");
        drop(stream);
        runtime.block_on(async {
            let mut plain = tokio::net::TcpStream::connect(address).await.expect("connect");
            plain.write_u8(7).await.expect("write");
            assert_eq!(plain.read_u8().await.expect("read"), 7);
        });
        // Nobody has lost anything.
        for (process, share) in &mut greedy {
            assert_eq!(process.ask("alive"), format!("{:?}", vec![true; *share]));
        }
        assert!(runtime.block_on(echoes(&mut served)));
        let held: u64 = server.ask("descriptors").parse().expect("a number");
        assert!(held < descriptors * 7 / 8, "{held} descriptors");
    }
    greedy.iter_mut().for_each(|(process, _)| process.kill());
}

#[test]
fn who_takes_all_links_leaves_some_and_who_has_one_keeps_it() {
    watched(|| {
        contest([1024, 1024], "6", 6, FallbackReason::Limit);
        // A quarter of the descriptors, three for each link.
        contest([240, 200], "1024", 20, FallbackReason::Descriptors);
    });
}

#[test]
fn a_peer_that_stops_before_hello_keeps_no_link() {
    watched(|| {
        let lab = Lab::new();
        let mut server = Child::start("server 1024", lab.dir(), &[]);
        let address: SocketAddr = server.hear().parse().expect("an address");
        let pid = i32::try_from(server.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("a signal");
        let runtime = Flavour::MultiThread.runtime();
        runtime.block_on(async {
            let config = lab.config(UpgradePolicy::Manual).peer_timeout(Duration::from_millis(300));
            let stream = SmcStream::connect_with(address, &config).await.expect("connect");
            // The kernel has connected; nobody greets.
            let transport = stream.upgrade().await;
            assert_eq!(transport, Transport::Tcp(FallbackReason::NoAnswer));
            assert_eq!(stream.watch().settled().await, transport);
            rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("a signal");
            let (_, transport) = upgraded(address, &lab).await;
            assert!(transport.is_loopback_ism(), "the next one asks anew: {transport}");
        });
    });
}
