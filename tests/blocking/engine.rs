//! The engine thread: there when it is needed, gone when it is not. Counted in a process of its
//! own, since threads and descriptors are its.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tokio_smc::blocking::{SmcListener, SmcStream};
use tokio_smc::{Config, FallbackReason, Transport, UpgradePolicy};

use crate::child::{Child, next_word, tell};
use crate::deny::leave_descriptors;
use crate::lab::Lab;
use crate::net::smc_pair;
use crate::watchdog::watched;

fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc");
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    tasks.flatten().map(|task| name(task).trim_end().to_owned()).collect()
}

fn engine_threads() -> usize {
    threads().iter().filter(|name| *name == "smc-lo").count()
}

fn descriptors() -> usize {
    // One of them is of this look.
    fs::read_dir("/proc/self/fd").expect("/proc").count() - 1
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}: {:?}, {}", threads(), descriptors());
        thread::sleep(Duration::from_millis(1));
    }
}

/// What the child does; its words and answers.
pub(crate) fn count() {
    let config = Config::from_env();
    let dir = PathBuf::from(std::env::var_os("SMC_LO_DIR").expect("the parent has set it"));
    let (threads_before, before) = (threads().len(), descriptors());

    // Plain TCP has sockets, and nothing else.
    let plain = config.clone().upgrade_policy(UpgradePolicy::Never);
    let (mut client, mut server) = smc_pair(&plain);
    client.write_all(b"x").expect("write");
    server.read_exact(&mut [0]).expect("read");
    assert_eq!((engine_threads(), descriptors()), (0, before + 2));
    drop((client, server));

    // A client that has nobody to talk to in shared memory has no thread either, also if it asks.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = listener.local_addr().expect("an address");
    let client = SmcStream::connect_with(addr, &config).expect("connect");
    let _accepted = listener.accept().expect("accept");
    assert_eq!(engine_threads(), 0);
    assert_eq!(client.upgrade(), Transport::Tcp(FallbackReason::NoSmcListener));
    assert_eq!(engine_threads(), 0);
    drop((client, _accepted, listener));

    // Listeners and streams share one.
    let eager = config.clone().upgrade_policy(UpgradePolicy::Require);
    let listener = SmcListener::bind_with("127.0.0.1:0", &eager).expect("bind");
    let pairs = (0..5).map(|_| smc_pair(&eager)).collect::<Vec<_>>();
    assert!(pairs.iter().all(|(client, _)| client.transport().is_loopback_ism()));
    assert_eq!(engine_threads(), 1);
    drop(listener);
    assert!(!is_empty(&dir), "it is there as long as a stream is");
    drop(pairs);
    // At once: the program might end here.
    assert_eq!(fs::read_dir(dir.join("ep")).expect("endpoints").count(), 0);
    eventually("thread and descriptors go", || {
        let gone = engine_threads() == 0 && threads().len() == threads_before;
        gone && descriptors() == before && is_empty(&dir)
    });

    // And again.
    for _ in 0..20 {
        let (mut client, mut server) = smc_pair(&eager);
        client.write_all(b"again").expect("write");
        server.read_exact(&mut [0; 5]).expect("read");
    }
    eventually("all of them go", || engine_threads() == 0 && descriptors() == before);
    tell("counted");
    assert_eq!(next_word(), None);
}

#[test]
fn no_thread_and_no_descriptor_is_left() {
    watched(|| {
        let lab = Lab::new();
        let mut child = Child::start("count", lab.dir(), &[]);
        assert_eq!(child.hear(), "counted");
        assert!(is_empty(lab.dir()), "nothing is left in the device directory");
    });
}

/// No endpoint and no port is left.
fn is_empty(dir: &Path) -> bool {
    let entries = |dir: &Path| fs::read_dir(dir).expect("a directory").flatten().collect::<Vec<_>>();
    entries(dir)
        .into_iter()
        .filter(|entry| entry.path().is_dir())
        .all(|entry| entries(&entry.path()).is_empty())
}

/// Threads of that name that sleep in the kernel.
fn asleep(name: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc");
    let stats = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    stats.filter(|stat| stat.contains(&format!("({name}) S "))).count()
}

/// What a child does: many threads wait for streams that may still leave TCP.
pub(crate) fn wait_at_many() {
    const WAITERS: usize = 64;
    let lab = Lab::new();
    let config = lab.config(UpgradePolicy::Manual);
    let pairs = Vec::from_iter((0..WAITERS).map(|_| smc_pair(&config)));
    let more = Vec::from_iter((0..8).map(|_| smc_pair(&config)));
    let homeless = Config::new().device_dir("/proc/nowhere").upgrade_policy(UpgradePolicy::Manual);
    let settled = Vec::from_iter((0..4).map(|_| smc_pair(&homeless)));
    // The thread that the homeless asked for in vain takes its leave.
    eventually("one engine is left", || engine_threads() == 1);
    eventually("its descriptors are gone", {
        let mut last = descriptors();
        move || {
            thread::sleep(Duration::from_millis(20));
            std::mem::replace(&mut last, descriptors()) == last
        }
    });
    let before = descriptors();
    thread::scope(|scope| {
        let read = |name: &str, (client, server): &'_ (SmcStream, SmcStream)| {
            let mut server = server.try_clone().expect("a clone");
            let _ = client;
            let reads = move || server.read(&mut [0; 8]).expect("read");
            thread::Builder::new().name(name.into()).spawn_scoped(scope, reads).expect("a thread")
        };
        let without = Vec::from_iter(settled.iter().map(|pair| read("settled", pair)));
        eventually("the settled ones wait", || asleep("settled") == settled.len());
        assert_eq!(descriptors(), before, "a stream that stays on TCP needs nothing but its socket");
        let waiters = Vec::from_iter(pairs.iter().map(|pair| read("waits", pair)));
        eventually("all wait", || asleep("waits") == WAITERS);
        let used = descriptors() - before;
        assert!((1..=WAITERS / 8).contains(&used), "{used} descriptors");

        // Also who comes too late for a descriptor of his own is called.
        leave_descriptors(0);
        let late = Vec::from_iter(more.iter().map(|pair| read("late", pair)));
        // To see whether they sleep takes a descriptor.
        thread::sleep(Duration::from_millis(50));
        for (at, (client, server)) in more.iter().enumerate() {
            match at % 2 {
                0 => drop((&*client).write(b"hello").expect("write")),
                _ => server.shutdown(Shutdown::Read).expect("shutdown"),
            }
        }
        let read = Vec::from_iter(late.into_iter().map(|late| late.join().expect("no panic")));
        assert_eq!(read, [5, 0, 5, 0, 5, 0, 5, 0]);
        for (client, _) in pairs.iter().chain(&settled) {
            (&*client).write_all(b"x").expect("write");
        }
        assert!(waiters.into_iter().chain(without).all(|waiter| waiter.join().expect("no panic") == 1));
    });
    tell("all were called");
    assert_eq!(next_word(), None);
}

#[test]
fn threads_that_wait_share_few_descriptors() {
    watched(|| {
        let lab = Lab::new();
        let mut child = Child::start("wait_at_many", lab.dir(), &[]);
        assert_eq!(child.hear(), "all were called");
    });
}

/// What a child does: it waits without a descriptor to be called by.
pub(crate) fn wait_without_descriptors() {
    let lab = Lab::new();
    let config = lab.config(UpgradePolicy::Manual);
    let (mut client, mut server) = smc_pair(&config);
    leave_descriptors(0);
    thread::scope(|scope| {
        let waits = || (&server).read(&mut [0; 8]).expect("read");
        let reader =
            thread::Builder::new().name("waits".into()).spawn_scoped(scope, waits).expect("a thread");
        // To see whether it sleeps takes a descriptor.
        thread::sleep(Duration::from_millis(50));
        client.write_all(b"hello").expect("write");
        assert_eq!(reader.join().expect("no panic"), 5);
        let reader =
            thread::Builder::new().name("waits".into()).spawn_scoped(scope, waits).expect("a thread");
        thread::sleep(Duration::from_millis(50));
        server.shutdown(Shutdown::Read).expect("shutdown");
        assert_eq!(reader.join().expect("no panic"), 0);
    });
    // And the other direction works.
    server.write_all(b"bye").expect("write");
    assert_eq!(client.read(&mut [0; 8]).expect("read"), 3);
    tell("both were called");
    assert_eq!(next_word(), None);
}

#[test]
fn who_waits_without_a_descriptor_is_called() {
    watched(|| {
        let lab = Lab::new();
        let mut child = Child::start("wait_without_descriptors", lab.dir(), &[]);
        assert_eq!(child.hear(), "both were called");
    });
}

#[test]
fn a_device_that_can_not_be_used_leaves_plain_tcp() {
    watched(|| {
        let config = Config::new().device_dir("/proc/nowhere").upgrade_policy(UpgradePolicy::Eager);
        let (mut client, mut server) = smc_pair(&config);
        client.write_all(b"plain").expect("write");
        let mut got = [0; 5];
        server.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"plain");
        for stream in [client, server] {
            assert_eq!(stream.transport(), Transport::Tcp(FallbackReason::NoDevice));
        }
    });
}

#[test]
fn into_std_gives_the_socket_while_it_is_tcp() {
    watched(|| {
        let lab = Lab::new();
        let (client, mut server) = smc_pair(&lab.config(UpgradePolicy::Manual));
        let clone = client.try_clone().expect("a clone");
        let mut shared = client.into_std().expect("it is on TCP");
        shared.write_all(b"a").expect("write");
        let mut alone = clone.into_std().expect("it is on TCP");
        drop(shared);
        alone.write_all(b"b").expect("write");
        let mut got = [0; 2];
        server.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"ab");
        assert!(!server.upgrade().is_loopback_ism());

        let (client, mut server) = smc_pair(&lab.config(UpgradePolicy::Require));
        let (mut client, error) = client.into_std().expect_err("it is in the ring");
        assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
        client.write_all(b"c").expect("write");
        server.read_exact(&mut got[..1]).expect("read");
    });
}

#[test]
fn a_socket_from_outside_is_upgraded_when_it_is_asked_to() {
    watched(|| {
        let lab = Lab::new();
        let mut child = Child::start("adopt", lab.dir(), &[]);
        assert_eq!(child.hear(), "adopted");
    });
}

/// The child's part: its environment names the device.
pub(crate) fn adopt() {
    let listener = SmcListener::bind("127.0.0.1:0").expect("bind");
    let tcp = std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
    tcp.set_nonblocking(true).expect("non-blocking");
    let client = SmcStream::from(tcp);
    let mut server = listener.accept().expect("accept").0;
    let error = (&client).read(&mut [0]).expect_err("it is still non-blocking");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    assert!(client.upgrade().is_loopback_ism(), "{}", client.transport());
    (&client).write_all(b"x").expect("write");
    server.read_exact(&mut [0]).expect("read");
    tell("adopted");
    assert_eq!(next_word(), None);
}
