//! Two real processes: data, half-close, many connections, what they cost, and sudden death.

#[path = "support/agree.rs"]
mod agree;
#[path = "support/child.rs"]
mod child;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/usage.rs"]
mod usage;
#[path = "support/watchdog.rs"]
mod watchdog;

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::task::JoinSet;
use tokio_smc::{Config, SmcListener, SmcStream, UpgradePolicy};

use agree::agree;
use child::{Child, next_word, role, tell};
use lab::Lab;
use usage::{Usage, settled};
use watchdog::{Flavour, step, watched};

fn at(place: usize) -> u8 {
    (place.wrapping_mul(0x9E37_79B1) >> 11) as u8
}

fn bytes(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(at).collect()
}

// ---- the child ----

/// Not a test of its own: the door through which this binary becomes the second process.
#[test]
fn child_process() {
    let Some(role) = role() else { return };
    let runtime = Flavour::MultiThread.runtime();
    // The configuration comes from the environment, as in a program that knows nothing of tests.
    match role.split_once(' ') {
        None if role == "server" => runtime.block_on(server()),
        Some(("connect", addr)) => {
            runtime.block_on(async { behave(SmcStream::connect(addr).await.expect("connect"), true).await });
        }
        Some(("clients", addr)) => runtime.block_on(clients(addr.parse().expect("an address"))),
        _ => panic!("no role {role}"),
    }
}

fn upgrades() -> bool {
    std::env::var("SMC_LO_UPGRADE").is_ok_and(|policy| policy == "eager")
}

/// Tells its address, serves every connection, and answers `usage` until the parent is gone.
async fn server() {
    let listener = SmcListener::bind("127.0.0.1:0").await.expect("bind");
    tell(&listener.local_addr().expect("an address").to_string());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(behave(stream, false));
        }
    });
    answer_usage(|_| None).await;
}

/// Words come on a thread of their own that sits in one read: an idle child makes no system call.
async fn answer_usage(mut other: impl FnMut(&str) -> Option<usize>) {
    let (send, mut words) = tokio::sync::mpsc::unbounded_channel();
    thread::spawn(move || {
        while let Some(word) = next_word() {
            send.send(word).expect("the child runs");
        }
    });
    while let Some(word) = words.recv().await {
        match other(&word) {
            Some(answer) => tell(&answer.to_string()),
            None => tell(&Usage::here().to_line()),
        }
    }
    std::process::exit(0);
}

/// The first byte says what the other end wants: `u`pgrade first, then `e`cho, `s`ource, `h`old,
/// `d`rop or e`x`it.
async fn behave(mut stream: SmcStream, first: bool) {
    stream.set_nodelay(true).expect("set_nodelay");
    while let Ok(wish) = stream.read_u8().await {
        match wish {
            b'u' => agree(&mut stream, first).await,
            b'e' => return echo(stream).await,
            b's' => {
                let mut place = 0;
                while let Ok(n) = stream.write(&bytes(place, 8000)).await {
                    place += n;
                }
            }
            b'h' => {
                stream.write_u8(b'h').await.expect("write");
                std::future::pending().await
            }
            b'd' => return,
            b'x' => std::process::exit(0),
            other => panic!("no wish {other}"),
        }
    }
}

/// A small future: what a connection costs must be ours, not the test's.
async fn echo(mut stream: SmcStream) {
    let mut buf = [0; 256];
    loop {
        match stream.read(&mut buf).await {
            Ok(0) => break,
            Ok(n) => {
                if stream.write_all(&buf[..n]).await.is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
    // The peer may be gone by now.
    let _ = stream.shutdown().await;
}

/// Holds as many connections as it is told by `hold N`, and makes and closes as many as `churn N`
/// says.
async fn clients(addr: SocketAddr) {
    tell("ready");
    let mut held = Vec::new();
    let runtime = tokio::runtime::Handle::current();
    answer_usage(move |word| {
        let (what, count) = word.split_once(' ')?;
        let count: usize = count.parse().expect("a count");
        tokio::task::block_in_place(|| {
            runtime.block_on(async {
                match what {
                    "hold" => {
                        for _ in 0..count {
                            held.push(one_client(addr).await);
                        }
                        held.len()
                    }
                    "churn" => {
                        let mut workers = JoinSet::new();
                        for _ in 0..8 {
                            workers.spawn(async move {
                                for _ in 0..count / 8 {
                                    drop(one_client(addr).await);
                                }
                            });
                        }
                        while let Some(worker) = workers.join_next().await {
                            worker.expect("no panic");
                        }
                        count
                    }
                    _ => panic!("no word {what}"),
                }
            })
        })
        .into()
    })
    .await;
}

async fn one_client(addr: SocketAddr) -> SmcStream {
    let mut stream = SmcStream::connect(addr).await.expect("connect");
    // Two small writes in a row are the rule here; Nagle would hold the second for 40 ms.
    stream.set_nodelay(true).expect("set_nodelay");
    if upgrades() {
        stream.write_u8(b'u').await.expect("write");
        agree(&mut stream, true).await;
    }
    stream.write_u8(b'e').await.expect("write");
    for turn in 0..3 {
        stream.write_all(&bytes(turn, 100)).await.expect("write");
        let mut got = [0; 100];
        stream.read_exact(&mut got).await.expect("read");
        assert!(got[..] == bytes(turn, 100));
    }
    stream
}

// ---- the parent ----

const UPGRADED: (UpgradePolicy, &str) = (UpgradePolicy::Eager, "eager");
/// What is expected of the ring is what the same test sees on TCP.
const BOTH: [(UpgradePolicy, &str); 2] = [(UpgradePolicy::Never, "never"), UPGRADED];

fn start_server(lab: &Lab, policy: &str) -> (Child, SocketAddr) {
    let mut child = Child::start("server", lab.dir(), &[("SMC_LO_UPGRADE", policy)]);
    let addr = child.hear().parse().expect("an address");
    (child, addr)
}

/// A connection to a fresh child that listens, or from one that connects; upgraded if the policy
/// is.
async fn peer(lab: &Lab, (policy, name): (UpgradePolicy, &str), child_listens: bool) -> (Child, SmcStream) {
    let config = lab.config(policy);
    let (child, mut stream) = if child_listens {
        let (child, addr) = start_server(lab, name);
        (child, SmcStream::connect_with(addr, &config).await.expect("connect"))
    } else {
        let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
        let role = format!("connect {}", listener.local_addr().expect("an address"));
        let child = Child::start(&role, lab.dir(), &[("SMC_LO_UPGRADE", name)]);
        (child, listener.accept().await.expect("accept").0)
    };
    if name == "eager" {
        stream.write_u8(b'u').await.expect("write");
        agree(&mut stream, child_listens).await;
    }
    (child, stream)
}

/// Runs `test` on TCP and on the ring, with the child on either side.
#[track_caller]
fn either_side(test: impl AsyncFn(Child, SmcStream) + Send + Copy + 'static) {
    watched(move || {
        for policy in BOTH {
            for (flavour, child_listens) in [(Flavour::MultiThread, true), (Flavour::CurrentThread, false)] {
                flavour.runtime().block_on(async {
                    step(format!("{}, child listens: {child_listens}", policy.1));
                    let lab = Lab::new();
                    let (child, stream) = peer(&lab, policy, child_listens).await;
                    test(child, stream).await;
                });
            }
        }
    });
}

#[test]
fn data_and_half_close() {
    either_side(async |_child, mut stream| {
        const TOTAL: usize = 4 << 20;
        stream.write_u8(b'e').await.expect("write");
        let (mut reader, mut writer) = stream.into_split();
        let writing = tokio::spawn(async move {
            writer.write_all(&bytes(0, TOTAL)).await.expect("write");
            writer.shutdown().await.expect("shutdown");
        });
        let mut got = Vec::new();
        reader.read_to_end(&mut got).await.expect("read");
        assert!(got == bytes(0, TOTAL), "{} bytes", got.len());
        writing.await.expect("no panic");
    });
}

/// Everything the dead process wrote, then a clean end: nothing of ours was left unread.
#[test]
fn hazard_h12_process_death_is_eof() {
    either_side(async |mut child, mut stream| {
        stream.write_u8(b's').await.expect("write");
        let mut got = vec![0; 1 << 20];
        stream.read_exact(&mut got).await.expect("read");
        let killing = tokio::task::spawn_blocking(move || child.kill());
        stream.read_to_end(&mut got).await.expect("a clean end");
        assert!(got == bytes(0, got.len()), "{} bytes are no prefix of what was written", got.len());
        killing.await.expect("killed");
    });
}

#[test]
fn hazard_h12_process_death_with_unread_data_is_a_reset() {
    either_side(async |mut child, mut stream| {
        stream.write_u8(b'h').await.expect("write");
        assert_eq!(stream.read_u8().await.expect("read"), b'h');
        stream.write_all(&bytes(0, 1000)).await.expect("write");
        child.kill();
        let error = stream.read(&mut [0; 8]).await.expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn hazard_h12_process_death_wakes_a_waiting_reader() {
    either_side(async |mut child, mut stream| {
        stream.write_u8(b'h').await.expect("write");
        assert_eq!(stream.read_u8().await.expect("read"), b'h');
        let reading = tokio::spawn(async move { stream.read(&mut [0; 8]).await });
        tokio::task::yield_now().await;
        child.kill();
        assert_eq!(reading.await.expect("no panic").expect("a clean end"), 0);
    });
}

/// Waits until TCP has said all about the end.
async fn hung_up(stream: &SmcStream) {
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        let mut fds = [rustix::event::PollFd::new(stream, rustix::event::PollFlags::empty())];
        if rustix::event::poll(&mut fds, Some(&now)).expect("poll") > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The first write to a peer that is gone succeeds, as its answer comes later, and the next one
/// fails.
#[test]
fn writes_after_the_end_of_a_stream_or_its_process() {
    either_side(async |child, stream| write_after(b'd', child, stream).await);
    either_side(async |child, stream| write_after(b'x', child, stream).await);
    either_side(async |child, stream| write_after(b'h', child, stream).await);
}

async fn write_after(wish: u8, mut child: Child, mut stream: SmcStream) {
    stream.write_u8(wish).await.expect("write");
    if wish == b'h' {
        assert_eq!(stream.read_u8().await.expect("read"), b'h');
        child.kill();
    }
    assert_eq!(stream.read(&mut [0; 8]).await.expect("a clean end"), 0);
    assert_eq!(stream.write(b"nobody").await.expect("the answer comes later"), 6);
    hung_up(&stream).await;
    for _ in 0..2 {
        let error = stream.write(b"nobody").await.expect_err("the answer has come");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }
    assert_eq!(stream.read(&mut [0; 8]).await.expect("still a clean end"), 0);
}

#[test]
fn a_process_that_dies_with_unread_data_resets_once() {
    either_side(async |mut child, mut stream| {
        stream.write_u8(b'h').await.expect("write");
        assert_eq!(stream.read_u8().await.expect("read"), b'h');
        stream.write_all(&bytes(0, 1000)).await.expect("write");
        child.kill();
        while !stream.ready(Interest::READABLE).await.expect("ready").is_read_closed() {
            tokio::task::yield_now().await;
        }
        let error = stream.write(b"nobody").await.expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let error = stream.write(b"nobody").await.expect_err("and it stays");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        assert_eq!(stream.read(&mut [0; 8]).await.expect("the reset was told"), 0);
    });
}

/// A watchdog of either process shuts the descriptor down, and both hear of it.
#[test]
fn a_shut_descriptor_ends_the_stream_of_the_other_process() {
    either_side(async |_child, mut stream| {
        stream.write_u8(b'e').await.expect("write");
        stream.write_all(b"echo").await.expect("write");
        let mut got = [0; 4];
        stream.read_exact(&mut got).await.expect("read");
        let socket = std::os::fd::AsFd::as_fd(&stream).try_clone_to_owned().expect("dup");
        let reading = tokio::spawn(async move { (stream.read(&mut [0; 8]).await, stream) });
        tokio::task::yield_now().await;
        socket2::SockRef::from(&socket).shutdown(std::net::Shutdown::Write).expect("shutdown");
        // The echo ends with its input.
        let (end, mut stream) = reading.await.expect("no panic");
        assert_eq!(end.expect("the end"), 0);
        assert_eq!(stream.write(b"x").await.expect_err("shut").kind(), ErrorKind::BrokenPipe);
    });
}

#[test]
fn process_death_wakes_a_blocked_writer() {
    either_side(async |mut child, mut stream| {
        stream.write_u8(b'h').await.expect("write");
        assert_eq!(stream.read_u8().await.expect("read"), b'h');
        let (mut reader, mut writer) = stream.into_split();
        let block = vec![7; 64 << 20];
        let writing = tokio::spawn(async move { writer.write_all(&block).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        child.kill();
        let error = writing.await.expect("no panic").expect_err("nobody will read it");
        assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error:?}");
        // The writer may have met the error first; the reader then sees what is left of the
        // connection.
        let ended = reader.read(&mut [0; 8]).await;
        assert!(matches!(ended, Ok(0)) || ended.is_err(), "{ended:?}");
    });
}

/// Also while this process sleeps: nothing of the link waits for its next piece of work.
#[test]
fn process_death_gives_back_all_that_its_link_held() {
    watched(|| {
        for flavour in [Flavour::MultiThread, Flavour::CurrentThread] {
            flavour.runtime().block_on(async {
                let lab = Lab::new();
                // A listener keeps the endpoint, as in any server.
                let _listener = SmcListener::bind_with("127.0.0.1:0", &lab.config(UPGRADED.0)).await;
                let before = Usage::here();
                for round in 0..3 {
                    step(format!("{flavour:?}, process {round}"));
                    let (child, mut stream) = peer(&lab, UPGRADED, true).await;
                    stream.write_u8(b'e').await.expect("write");
                    // So many that this end looks for each, and then sleeps.
                    for turn in 0..2000 {
                        stream.write_all(&bytes(turn, 10)).await.expect("write");
                        stream.read_exact(&mut [0; 10]).await.expect("read");
                    }
                    drop(child);
                    while stream.read_u8().await.is_ok() {}
                    drop(stream);
                    let fits = move |now: &Usage| now.fds <= before.fds && now.shared <= before.shared;
                    // On a thread of its own: the runtime has to go on.
                    let reading = tokio::task::spawn_blocking(move || settled(Usage::here, fits));
                    let now = reading.await.expect("no panic");
                    assert!(fits(&now), "before {before:?}, after process {round} {now:?}");
                }
            });
        }
    });
}

/// Death while connections are on their way to the ring; those to another process do not notice.
#[test]
fn hazard_h15_a_link_dies_in_the_middle_of_upgrades() {
    watched(|| {
        Flavour::MultiThread.runtime().block_on(async {
            let lab = Lab::new();
            let (_other, mut stays) = peer(&lab, UPGRADED, true).await;
            stays.write_u8(b'e').await.expect("write");
            for round in 0..12_u64 {
                step(format!("round {round}"));
                let (mut child, addr) = start_server(&lab, "eager");
                let mut talks = JoinSet::new();
                for _ in 0..20 {
                    talks.spawn(doomed(addr, lab.config(UpgradePolicy::Eager)));
                }
                tokio::time::sleep(Duration::from_micros(700 * round)).await;
                tokio::task::spawn_blocking(move || child.kill()).await.expect("killed");
                while let Some(talk) = talks.join_next().await {
                    talk.expect("every byte before the end was right");
                }
                stays.write_u64(round).await.expect("write");
                assert_eq!(stays.read_u64().await.expect("the other process lives"), round);
            }
        });
    });
}

/// Talks until the peer dies; what it hears is exact until then.
async fn doomed(addr: SocketAddr, config: Config) {
    let Ok(mut stream) = SmcStream::connect_with(addr, &config).await else { return };
    let mut place = 0;
    if stream.write_u8(b'e').await.is_err() {
        return;
    }
    loop {
        let sent = bytes(place, 1 + place % 3000);
        if stream.write_all(&sent).await.is_err() {
            return;
        }
        let mut heard = 0;
        while heard < sent.len() {
            let mut buf = vec![0; sent.len() - heard];
            match stream.read(&mut buf).await {
                Ok(0) | Err(_) => return,
                Ok(n) => {
                    assert!(buf[..n] == sent[heard..heard + n], "a byte nobody sent at {}", place + heard);
                    heard += n;
                }
            }
        }
        place += sent.len();
    }
}

/// A server child and a client child that hold `count` connections; what both use before and with
/// them.
fn hold(lab: &Lab, policy: &str, count: usize) -> (Child, Child, [Usage; 2], [Usage; 2]) {
    let (mut server, addr) = start_server(lab, policy);
    let mut clients = Child::start(&format!("clients {addr}"), lab.dir(), &[("SMC_LO_UPGRADE", policy)]);
    assert_eq!(clients.hear(), "ready");
    // One of each first: what a process pays once is no cost of a connection.
    assert_eq!(clients.ask("hold 1"), "1");
    let before = [&mut server, &mut clients].map(|child| Usage::from_line(&child.ask("usage")));
    step(format!("{policy}: {count} connections"));
    assert_eq!(clients.ask(&format!("hold {count}")), (count + 1).to_string());
    let with = [&mut server, &mut clients].map(|child| Usage::from_line(&child.ask("usage")));
    (server, clients, before, with)
}

/// Private memory of both processes and every memfd of theirs, KiB.
fn memory([server, clients]: &[Usage; 2]) -> u64 {
    server.anonymous + clients.anonymous + server.shared.max(clients.shared)
}

#[test]
fn a_thousand_connections_cost_16_kib_and_one_fd_each() {
    watched(|| {
        const COUNT: usize = 1000;
        let lab = Lab::new();
        let [tcp, smc] = ["never", "eager"].map(|policy| {
            let (_server, _clients, before, with) = hold(&lab, policy, COUNT);
            for (side, before, with) in [("server", before[0], with[0]), ("client", before[1], with[1])] {
                let fds = with.fds - before.fds;
                assert!(
                    fds < COUNT as u64 + 32,
                    "{policy}, {side}: {fds} descriptors for {COUNT} connections"
                );
            }
            memory(&with) - memory(&before)
        });
        // The test's own tasks cost the same on TCP; the rest is SMC's, in two processes.
        let each = smc.saturating_sub(tcp) / (2 * COUNT as u64);
        assert!(each <= 16, "{each} KiB for a connection in each process ({smc} KiB in all, TCP {tcp} KiB)");
    });
}

#[test]
fn ten_thousand_connections_leave_nothing_behind() {
    watched(|| {
        let lab = Lab::new();
        let (mut server, addr) = start_server(&lab, "eager");
        let mut clients = Child::start(&format!("clients {addr}"), lab.dir(), &[("SMC_LO_UPGRADE", "eager")]);
        assert_eq!(clients.hear(), "ready");
        step("the first 1000 warm up");
        assert_eq!(clients.ask("churn 1000"), "1000");
        let mut children = [server, clients];
        thread::sleep(Duration::from_millis(500));
        let before = children.each_mut().map(|child| Usage::from_line(&child.ask("usage")));
        for thousand in 1..10 {
            step(format!("after {thousand} thousand"));
            assert_eq!(children[1].ask("churn 1000"), "1000");
        }
        for (child, before) in children.iter_mut().zip(before) {
            step("waiting for what is given back late");
            let fits = |now: &Usage| {
                now.fds <= before.fds + 8
                    && now.tasks <= before.tasks + 8
                    && now.shared <= before.shared + 1024
                    && now.anonymous <= before.anonymous + 4096
            };
            let now = settled(|| Usage::from_line(&child.ask("usage")), fits);
            assert!(fits(&now), "grew over 9000 connections: before {before:?}, now {now:?}");
        }
        server = children.into_iter().next().expect("two children");
        drop(server);
    });
}

#[test]
fn a_thousand_idle_connections_make_no_system_call() {
    watched(|| {
        let strace = Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if strace.is_err() {
            let how = "strace is missing: install it (apt-get install strace) so that idleness can be seen";
            assert!(std::env::var_os("CI").is_none(), "{how}");
            writeln!(std::io::stderr(), "skipped: {how}").expect("stderr");
            return;
        }
        let lab = Lab::new();
        let (server, clients, _, _) = hold(&lab, "eager", 1000);
        step("waiting for the shrink timer, which may run once after the last use");
        thread::sleep(Duration::from_secs(12));
        step("tracing");
        let trace = lab.dir().join("trace");
        let mut tracer = Command::new("strace")
            .args(["-f", "-q", "-ttt", "-o"])
            .arg(&trace)
            .args(["-p", &server.id().to_string(), "-p", &clients.id().to_string()])
            .spawn()
            .expect("strace");
        thread::sleep(Duration::from_secs(4));
        let tracer_id = rustix::process::Pid::from_child(&tracer);
        assert!(
            tracer.try_wait().expect("wait").is_none(),
            "strace could not attach (ptrace not permitted?)"
        );
        rustix::process::kill_process(tracer_id, rustix::process::Signal::INT).expect("stop strace");
        tracer.wait().expect("wait");
        let trace = std::fs::read_to_string(trace).expect("what strace wrote");
        assert!(!trace.is_empty(), "strace attached, so it shows the calls the threads sleep in");
        // Attaching interrupts what the threads sleep in, and they go back to sleep: the first
        // second is strace's own. Calls that do not return have no result; ` = ` stands before one.
        let stamp = |line: &str| line.split_whitespace().nth(1).and_then(|stamp| stamp.parse::<f64>().ok());
        let attached = trace.lines().find_map(stamp).expect("strace -ttt stamps its lines");
        let late = |line: &&str| stamp(line).is_none_or(|stamp| stamp > attached + 1.0);
        let calls: Vec<_> = trace.lines().filter(late).filter(|line| line.contains(" = ")).collect();
        assert!(calls.is_empty(), "an idle process is silent, but: {calls:#?}");
    });
}
