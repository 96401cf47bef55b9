//! The judge: starts a victim, keeps a connection of its own to it (the bystander's) and a plain
//! TCP client beside, lets an attacker loose, and says whether anybody was harmed.
#![allow(clippy::disallowed_types, reason = "a test, which loom does not run")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::task;
use tokio_smc::{SmcStream, UpgradePolicy};

use crate::child::Child;
use crate::group::Group;
use crate::lab::Lab;
use crate::scenes::DONE;
use crate::silence::Silence;
use crate::usage::{Usage, settled};
use crate::victim::{self, Health, bytes};
use crate::watchdog::Flavour;

/// For how long a bystander waits for an answer. It catches hangs, it measures nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an attack may leave behind, in KiB: the allocator keeps some of what was freed (two full
/// queues of 8 MiB), and rings of the bystander may have grown.
const MEMORY_LEFT: u64 = 32 << 10;
const SHARED_LEFT: u64 = 4 << 10;

/// Who attacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Attacker {
    /// The victim's own user.
    Admitted,
    /// The same, who makes the victim end as many streams at once as it can, and contends for the
    /// pages that both have: without optimisation that is much work for a turn of its runtime (in
    /// release builds 16 to 20 ms were seen).
    Contending,
    /// A user that nobody admits.
    Stranger,
}

impl Attacker {
    /// For how long an attack may silence the victim's runtime, beyond what is not the attack's
    /// doing (see [`Trial::excess`]).
    fn longest_silence(self) -> Duration {
        match self {
            Attacker::Admitted => Duration::from_millis(50),
            Attacker::Contending => Duration::from_millis(if cfg!(debug_assertions) { 200 } else { 50 }),
            Attacker::Stranger => Duration::from_millis(10),
        }
    }
}

/// How a scene is played.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// One thread is what anything that blocks would stop.
    pub(crate) flavour: Flavour,
    pub(crate) attacker: Attacker,
    /// The victim waits for nobody for long.
    pub(crate) impatient: bool,
    /// The victim may have so many bytes of memory.
    pub(crate) group: Option<u64>,
    /// So many connections are made in a play, have one round each, and are closed all at once, as
    /// any TCP client may.
    pub(crate) crowd: usize,
    /// So many links are made in a play, each with an upgrade, as any client that the victim admits
    /// may.
    pub(crate) links: usize,
    /// What it costs the machine is like nothing but the same against another server.
    pub(crate) decoy: bool,
}

impl Terms {
    pub(crate) const USUAL: Terms = Terms {
        flavour: Flavour::CurrentThread,
        attacker: Attacker::Admitted,
        impatient: false,
        group: None,
        crowd: 0,
        links: 0,
        decoy: false,
    };
    pub(crate) const TWO_WORKERS: Terms = Terms { flavour: Flavour::MultiThread, ..Terms::USUAL };
    pub(crate) const IMPATIENT: Terms = Terms { impatient: true, ..Terms::USUAL };
    pub(crate) const OF_A_STRANGER: Terms = Terms { attacker: Attacker::Stranger, ..Terms::USUAL };
    pub(crate) const OF_A_STRANGER_BESIDE_A_DECOY: Terms = Terms { decoy: true, ..Terms::OF_A_STRANGER };
    pub(crate) const OVER_PAGES: Terms = Terms { attacker: Attacker::Contending, ..Terms::USUAL };
    pub(crate) const OF_A_CROWD: Terms = Terms { crowd: 200, ..Terms::USUAL };
    pub(crate) const OF_A_LINK: Terms = Terms { links: 1, ..Terms::USUAL };
    pub(crate) const BESIDE_A_DECOY: Terms = Terms { decoy: true, ..Terms::USUAL };
    pub(crate) const IN_256_MIB: Terms = Terms { group: Some(256 << 20), ..Terms::BESIDE_A_DECOY };
}

pub(crate) struct Trial {
    lab: Lab,
    terms: Terms,
    /// Those that the victim is in, if it is in one; they go when it is gone.
    victim: Child,
    groups: Vec<Group>,
    addr: SocketAddr,
    runtime: Runtime,
    witnesses: Option<Witnesses>,
    /// Before the attack.
    before: Health,
    /// Of an attack, so far.
    silence: Silence,
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
    pub(crate) fn begin(terms: Terms) -> Self {
        let lab = Lab::new();
        if terms.attacker == Attacker::Stranger {
            // One that all users share.
            fs::set_permissions(lab.dir(), fs::Permissions::from_mode(0o1777)).expect("chmod");
        }
        let groups = terms.group.map_or(Vec::new(), |bytes| Group::each("hostile", bytes));
        let door = groups.first().map(Group::door).unwrap_or_default();
        let mut variables = vec![("SMC_LO_UPGRADE", "eager")];
        if terms.impatient {
            variables.extend([("SMC_LO_PEER_TIMEOUT_MS", "2000"), (victim::IDLE, "4000")]);
        }
        if !groups.is_empty() {
            variables.push((victim::GROUP, &door));
        }
        let role = format!("victim {:?}", terms.flavour);
        let mut victim = Child::start(&role, lab.dir(), &variables);
        let addr = victim.hear().parse().expect("an address");
        let runtime = Flavour::MultiThread.runtime();
        let mut trial = Trial {
            before: ask(&mut victim, "health"),
            lab,
            terms,
            victim,
            groups,
            addr,
            runtime,
            witnesses: None,
            silence: Silence::default(),
        };
        // So that what a first connection costs is no cost of an attack.
        trial.call_witnesses();
        trial.listen_to_witnesses();
        trial.fresh_upgrade();
        trial.dismiss_witnesses();
        trial.call_witnesses();
        trial.listen_to_witnesses();
        let unattacked = trial.before.silence;
        trial.before = ask(&mut trial.victim, "health");
        trial.before.silence = trial.before.silence.or_longer(unattacked);
        trial
    }

    /// An attacker, in a process of its own.
    pub(crate) fn attacker(&self, what: &str) -> Child {
        let role = match self.terms.attacker {
            Attacker::Admitted | Attacker::Contending => "attack",
            Attacker::Stranger => "attack-as-stranger",
        };
        Child::start(&format!("{role} {} {what}", self.addr), self.lab.dir(), &[])
    }

    /// The victim becomes a client of whoever is there.
    pub(crate) fn make_call(&mut self, addr: &str) {
        let health = ask(&mut self.victim, &format!("call {addr}"));
        self.silence = self.silence.or_longer(health.silence);
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn terms(&self) -> Terms {
        self.terms
    }

    pub(crate) fn dir(&self) -> &Path {
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
    pub(crate) fn dismiss_witnesses(&mut self) {
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
        let health = ask(&mut self.victim, "health");
        self.silence = self.silence.or_longer(health.silence);
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

    /// For how long the attack has silenced the victim's runtime: longer than it was without one,
    /// under what this machine was doing then and now.
    fn excess(&self) -> Duration {
        let usual = self.before.silence.own.max(self.silence.machine);
        self.silence.own.saturating_sub(usual)
    }

    /// The attacker is gone: everything has to be as before. Answers with what was measured.
    #[track_caller]
    pub(crate) fn end(mut self, attack: &str) -> String {
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
        assert!(self.groups.iter().all(|group| group.killed() == 0), "{attack} takes more than there is");
        let (during, before, excess) = (self.silence, self.before.silence, self.excess());
        let measured = format!(
            "the runtime is silent for {:.1} ms ({:.1} at work), unattacked for {:.1}, the machine for {:.1}; by \
             the clock {:.1}",
            millis(during.own),
            millis(during.worked),
            millis(before.own),
            millis(during.machine),
            millis(during.clock),
        );
        assert!(excess < self.terms.attacker.longest_silence(), "{attack}: {measured}");
        measured
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn ask(victim: &mut Child, word: &str) -> Health {
    Health::from_line(&victim.ask(word))
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
        let round = async { tokio::try_join!(writer.write_all(sent), reader.read_exact(&mut got)) };
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
pub(crate) fn plain_round(addr: SocketAddr) {
    plain_talk(&mut plain_connection(addr));
}

pub(crate) fn plain_connection(addr: SocketAddr) -> TcpStream {
    let tcp = TcpStream::connect(addr).expect("the plain client's connect");
    tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    tcp
}

pub(crate) fn plain_talk(tcp: &mut TcpStream) {
    tcp.write_all(b"eplain").expect("the plain client's write");
    let mut got = [0; 5];
    tcp.read_exact(&mut got).expect("the plain client's read");
    assert_eq!(&got, b"plain");
}
