//! The engine thread: there when it is needed, gone when it is not. Counted in a process of its
//! own, since threads and descriptors are its.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tokio_smc::blocking::{SmcListener, SmcStream};
use tokio_smc::{Config, FallbackReason, Transport, UpgradePolicy};

use crate::child::{Child, next_word, tell};
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
