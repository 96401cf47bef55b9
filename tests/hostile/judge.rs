//! The judge: starts a victim, keeps a connection of its own to it (the bystander's) and a plain
//! TCP client beside, lets an attacker loose, and says whether anybody was harmed.
#![allow(clippy::disallowed_types, reason = "a test, which loom does not run")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::task;
use tokio_smc::{SmcStream, UpgradePolicy};

use crate::child::Child;
use crate::lab::Lab;
use crate::scenes::DONE;
use crate::usage::{Usage, settled};
use crate::victim::{Health, bytes};
use crate::watchdog::Flavour;

/// For how long a bystander waits for an answer. It catches hangs, it measures nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// For how long the victim's runtime may do nothing at most: what blocks it takes longer. (The
/// figures are printed; this build and this machine are not the ones that a promise is about.)
const LONGEST_SILENCE: Duration = Duration::from_millis(500);
/// What an attack may leave behind, in KiB: the allocator keeps some of what was freed (two full
/// queues of 8 MiB), and rings of the bystander may have grown.
const MEMORY_LEFT: u64 = 32 << 10;
const SHARED_LEFT: u64 = 4 << 10;

pub(crate) struct Trial {
    lab: Lab,
    victim: Child,
    addr: SocketAddr,
    runtime: Runtime,
    witnesses: Option<Witnesses>,
    /// Before the attack.
    before: Health,
    silence: Duration,
}

/// Those who must not notice anything.
struct Witnesses {
    stop: Arc<AtomicBool>,
    /// Round trips of the bystander, and of the plain client.
    rounds: Arc<[AtomicU64; 2]>,
    bystander: task::JoinHandle<()>,
    plain: JoinHandle<()>,
}

impl Trial {
    /// An unharmed victim that others already use.
    pub(crate) fn begin(flavour: Flavour) -> Self {
        let lab = Lab::new();
        let role = format!("victim {flavour:?}");
        let mut victim = Child::start(&role, lab.dir(), &[("SMC_LO_UPGRADE", "eager")]);
        let addr = victim.hear().parse().expect("an address");
        let runtime = Flavour::MultiThread.runtime();
        let mut trial = Trial {
            before: ask(&mut victim),
            lab,
            victim,
            addr,
            runtime,
            witnesses: None,
            silence: Duration::ZERO,
        };
        // So that what a first connection costs is no cost of an attack.
        trial.call_witnesses();
        trial.listen_to_witnesses();
        trial.fresh_upgrade();
        trial.dismiss_witnesses();
        trial.call_witnesses();
        trial.listen_to_witnesses();
        trial.before = ask(&mut trial.victim);
        trial
    }

    /// An attacker, in a process of its own.
    pub(crate) fn attacker(&self, what: &str) -> Child {
        let role = format!("attack {} {what}", self.addr);
        Child::start(&role, self.lab.dir(), &[])
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn dir(&self) -> &std::path::Path {
        self.lab.dir()
    }

    fn call_witnesses(&mut self) {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds: Arc<[AtomicU64; 2]> = Arc::default();
        let config = self.lab.config(UpgradePolicy::Require);
        let addr = self.addr;
        let bystander = {
            let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
            self.runtime.spawn(async move {
                let stream = SmcStream::connect_with(addr, &config).await.expect("the bystander's upgrade");
                talk(stream, &stop, &rounds[0]).await;
            })
        };
        let plain = {
            let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    plain_round(addr);
                    rounds[1].fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(5));
                }
            })
        };
        self.witnesses = Some(Witnesses { stop, rounds, bystander, plain });
    }

    /// Waits until each of them has been answered again, some times.
    #[track_caller]
    pub(crate) fn listen_to_witnesses(&self) {
        let witnesses = self.witnesses.as_ref().expect("witnesses");
        let goals = witnesses.rounds.each_ref().map(|rounds| rounds.load(Ordering::Relaxed) + 5);
        while witnesses.rounds.iter().zip(goals).any(|(rounds, goal)| rounds.load(Ordering::Relaxed) < goal) {
            // They only end with a panic, which is above.
            let ended = witnesses.bystander.is_finished() || witnesses.plain.is_finished();
            assert!(!ended, "the victim fails those who did nothing to it");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[track_caller]
    fn dismiss_witnesses(&mut self) {
        let witnesses = self.witnesses.take().expect("witnesses");
        witnesses.stop.store(true, Ordering::Relaxed);
        self.runtime.block_on(witnesses.bystander).expect("the bystander has noticed nothing");
        witnesses.plain.join().expect("the plain TCP client has noticed nothing");
    }

    /// Another process comes to the victim, as the attacker did, and means well.
    pub(crate) fn meet_a_newcomer(&self) {
        let role = format!("newcomer {}", self.addr);
        assert_eq!(Child::start(&role, self.lab.dir(), &[]).hear(), DONE);
    }

    fn fresh_upgrade(&self) {
        let config = self.lab.config(UpgradePolicy::Require);
        self.runtime.block_on(async {
            let mut stream = SmcStream::connect_with(self.addr, &config).await.expect("a fresh upgrade");
            stream.write_all(b"efresh").await.expect("write");
            let mut got = [0; 5];
            stream.read_exact(&mut got).await.expect("read");
            assert_eq!(&got, b"fresh");
        });
    }

    /// How the victim is right now; its longest silence so far counts.
    pub(crate) fn health(&mut self) -> Health {
        let health = ask(&mut self.victim);
        self.silence = self.silence.max(health.silence);
        health
    }

    /// What lies behind does not count any more: an attack's first round fills the caches.
    pub(crate) fn take_as_usual(&mut self) {
        let usage = self.settled();
        self.before.usage = usage;
    }

    fn settled(&mut self) -> Usage {
        let before = self.before;
        settled(|| self.health().usage, |now| harm(&before.usage, now).is_none())
    }

    /// The attacker is gone: everything has to be as before. Answers with the longest silence.
    #[track_caller]
    pub(crate) fn end(mut self, attack: &str) -> Duration {
        self.listen_to_witnesses();
        self.fresh_upgrade();
        let usage = self.settled();
        if let Some(harm) = harm(&self.before.usage, &usage) {
            panic!("{attack} leaves {harm}: before {:?}, after {usage:?}", self.before.usage);
        }
        // Threads that work on what peers have, too, wait a moment for more.
        let most = self.before.threads;
        let threads = settled(|| self.health().threads, |now| *now <= most);
        assert!(threads <= most, "{attack} leaves {threads} threads");
        self.dismiss_witnesses();
        let silence = self.silence;
        assert!(silence < LONGEST_SILENCE, "{attack}: the victim's runtime is silent for {silence:?}");
        silence
    }
}

fn ask(victim: &mut Child) -> Health {
    Health::from_line(&victim.ask("health"))
}

/// What is more than before, if anything. The plain client comes and goes: it has one descriptor
/// and one task at a time.
fn harm(before: &Usage, now: &Usage) -> Option<&'static str> {
    if now.fds > before.fds + 1 {
        Some("descriptors")
    } else if now.tasks > before.tasks + 1 {
        Some("tasks")
    } else if now.shared > before.shared + SHARED_LEFT {
        Some("shared memory")
    } else if now.anonymous > before.anonymous + MEMORY_LEFT {
        Some("memory")
    } else {
        None
    }
}

/// An upgraded connection that has to come out right, byte by byte, and stay upgraded.
async fn talk(mut stream: SmcStream, stop: &AtomicBool, rounds: &AtomicU64) {
    stream.write_u8(b'e').await.expect("write");
    let mut place: u64 = 0;
    while !stop.load(Ordering::Relaxed) {
        let length = 1 + (place.wrapping_mul(0x9E37_79B9) >> 7) as usize % 9000;
        let mut got = vec![0; length];
        let (mut reader, mut writer) = stream.split();
        let sent = bytes(place, length);
        let round = async { tokio::try_join!(writer.write_all(&sent), reader.read_exact(&mut got)) };
        let answer = tokio::time::timeout(PATIENCE, round).await;
        answer.expect("the bystander's connection hangs").expect("the bystander's connection breaks");
        assert!(got == sent, "the bystander reads other bytes than it wrote, at {place}");
        assert!(stream.transport().is_loopback_ism(), "the bystander is on {}", stream.transport());
        place += length as u64;
        rounds.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    stream.shutdown().await.expect("shutdown");
    assert_eq!(stream.read(&mut [0]).await.expect("a clean end"), 0);
}

/// A fresh connection of a client that knows nothing of the crate.
fn plain_round(addr: SocketAddr) {
    let mut tcp = TcpStream::connect(addr).expect("the plain client's connect");
    tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    tcp.write_all(b"eplain").expect("the plain client's write");
    let mut got = [0; 5];
    tcp.read_exact(&mut got).expect("the plain client's read");
    assert_eq!(&got, b"plain");
}
