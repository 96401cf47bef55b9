//! An honest client in a process of its own, which asks servers for upgrades when it is told to:
//! whatever lies in the directory, its bytes are right and its runtime is never silent.
#![allow(clippy::disallowed_types, reason = "a test, which loom does not run")]

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::unbounded_channel;
use tokio_smc::{Config, SmcListener, SmcStream, UpgradePolicy};

use crate::child::{Child, next_word, tell};
use crate::silence::{Silence, Watch};
use crate::target::{PATIENCE, Target};
use crate::victim::bytes;
use crate::watchdog::Flavour;

/// For how long a stream talks that is not upgraded.
const UNTIL: Duration = Duration::from_secs(40);
/// For how long its runtime may do nothing, beyond what the machine does to any thread.
const LONGEST_SILENCE: Duration = Duration::from_millis(50);

/// What a client has seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) upgraded: usize,
    /// The most descriptors that it had.
    pub(crate) descriptors: usize,
    pub(crate) silence: Silence,
}

/// The client, as who commands it sees it.
pub(crate) struct Asker {
    child: Child,
    /// Of a listener of its own.
    pub(crate) addr: SocketAddr,
}

impl Asker {
    pub(crate) fn start(target: &Target) -> Self {
        Asker::start_with(target, &[])
    }

    /// With those variables.
    pub(crate) fn start_with(target: &Target, variables: &[(&str, &str)]) -> Self {
        let mut child = Child::start("asker", &target.directory, variables);
        let addr = child.hear().parse().expect("an address");
        Asker { child, addr }
    }

    /// So many streams to that server, which talk until they are upgraded.
    pub(crate) fn ask(&mut self, server: SocketAddr, streams: usize) -> Seen {
        self.ask_for(server, streams, UNTIL)
    }

    /// The same, or for so long.
    pub(crate) fn ask_for(&mut self, server: SocketAddr, streams: usize, until: Duration) -> Seen {
        let answer = self.child.ask(&format!("{server} {streams} {}", until.as_millis()));
        let mut numbers = answer.split(' ').map(|word| word.parse::<u64>().expect("a number"));
        let mut next = || numbers.next().expect("six numbers");
        let (upgraded, descriptors) = (next() as usize, next() as usize);
        let silence = Silence::from_words(next);
        let seen = Seen { upgraded, descriptors, silence };
        crate::random::say(&format!("an honest client has seen {seen:?}"));
        let silent = seen.silence.own.saturating_sub(seen.silence.machine);
        assert!(silent < LONGEST_SILENCE, "the client's runtime is silent: {seen:?}");
        seen
    }
}

/// Does what it is told until its parent is gone.
pub(crate) fn serve() {
    let runtime = Flavour::CurrentThread.runtime();
    let watch = Watch::begin(Flavour::CurrentThread, runtime.handle());
    let (words, mut word) = unbounded_channel();
    thread::spawn(move || {
        while let Some(word) = next_word() {
            let _ = words.send(word);
        }
    });
    runtime.block_on(async {
        // One beat before anything else.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let listener = SmcListener::bind("127.0.0.1:0").await.expect("bind");
        tell(&listener.local_addr().expect("an address").to_string());
        while let Some(word) = word.recv().await {
            let words: Vec<&str> = word.split(' ').collect();
            let [addr, streams, until] = words[..] else { panic!("no such word: {word}") };
            let number = |word: &str| word.parse::<u64>().expect("a number");
            let addr = addr.parse().expect("an address");
            tell(&ask(addr, number(streams), Duration::from_millis(number(until)), &watch).await);
        }
    });
    std::process::exit(0);
}

async fn ask(addr: SocketAddr, streams: u64, until: Duration, watch: &Arc<Watch>) -> String {
    let mut talks = tokio::task::JoinSet::new();
    for _ in 0..streams {
        talks.spawn(talk(addr, until));
    }
    let (mut upgraded, mut most) = (0, 0);
    while !talks.is_empty() {
        most = most.max(fs::read_dir("/proc/self/fd").map_or(0, Iterator::count));
        if let Ok(Some(talked)) = tokio::time::timeout(Duration::from_millis(20), talks.join_next()).await {
            upgraded += u64::from(talked.expect("a stream that is right"));
        }
    }
    format!("{upgraded} {most} {}", watch.take().to_words())
}

/// Whether it was upgraded.
async fn talk(addr: SocketAddr, until: Duration) -> bool {
    let config = Config::from_env().upgrade_policy(UpgradePolicy::FirstTurn);
    let mut stream = SmcStream::connect_with(addr, &config).await.expect("connect");
    stream.write_all(b"e").await.expect("write");
    let (began, mut place, mut on_the_ring) = (Instant::now(), 0, 0);
    while began.elapsed() < until && on_the_ring < 20 {
        let sent = bytes(place, 700);
        let mut got = [0; 700];
        let round = async {
            stream.write_all(sent).await.expect("write");
            stream.read_exact(&mut got).await.expect("read");
        };
        tokio::time::timeout(PATIENCE, round).await.expect("the stream hangs");
        assert!(got == sent, "other bytes at {place}");
        place += 700;
        on_the_ring += u32::from(stream.transport().is_loopback_ism());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stream.shutdown().await.expect("shutdown");
    let end = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await.expect("no end");
    assert_eq!(end.expect("a clean end"), 0);
    on_the_ring > 0
}
