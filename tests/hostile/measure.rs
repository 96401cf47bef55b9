//! What a plain TCP client notices of an attack: how many rounds it gets done, and how long the
//! slowest of a hundred takes. Only measured where it is wanted, and never a test's verdict: a
//! time is the machine's as much as the victim's.
//!
//! An attacker takes a processor like any process, and on a machine of two a client and a server
//! that talk in turn feel that, whoever the victim is. So a round under attack is not compared with
//! one on a machine that has nothing else to do, but with one beside a *like load*: a process that
//! takes as much processor time as the attacker did (with what the kernel did for it), as evenly,
//! and touches nobody. What is slower than beside that is what the victim itself did for the
//! attacker. (Where the victim has one thread and the attacker makes it work, a part of that is the
//! share that any client of a server may have.) A scene that ends at once is played again and again
//! for as long as is measured. The client makes a connection for each round, as those do whom
//! attacks on a listener would hit, and rests a millisecond between two.
#![allow(clippy::disallowed_types, reason = "a test, which loom does not run")]

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::attend;
use crate::child::Child;
use crate::judge::{Terms, Trial, plain_round};
use crate::random::say;
use crate::watchdog::step;

/// For how long a scene is played at least.
const WHILE: Duration = Duration::from_secs(3);
/// Between two rounds.
const REST: Duration = Duration::from_millis(1);
/// A load works and rests so often.
const PIECE: Duration = Duration::from_millis(1);

pub(crate) fn is_wanted() -> bool {
    std::env::var_os("SMC_TEST_MEASURE").is_some()
}

/// Rounds of a client, until it is asked for them.
struct Client {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Vec<Duration>>,
    started: Instant,
}

struct Rounds {
    per_second: f64,
    median: Duration,
    slow: Duration,
}

impl Client {
    fn begin(addr: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut rounds = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                plain_round(addr);
                rounds.push(began.elapsed());
                sleep(REST);
            }
            rounds
        });
        Client { stop, thread, started: Instant::now() }
    }

    fn end(self) -> Rounds {
        self.stop.store(true, Ordering::Relaxed);
        let mut rounds = self.thread.join().expect("the client is served");
        let per_second = rounds.len() as f64 / self.started.elapsed().as_secs_f64();
        rounds.sort_unstable();
        let part = |of: usize| rounds[(rounds.len() * of / 100).min(rounds.len() - 1)];
        Rounds { per_second, median: part(50), slow: part(99) }
    }
}

impl Rounds {
    fn to_words(&self) -> String {
        format!("{:.0}/s, median {:.0?}, p99 {:.0?}", self.per_second, self.median, self.slow)
    }
}

/// Plays a scene and prints one line.
pub(crate) fn play(scene: &str, terms: Terms) {
    let mut trial = Trial::begin(terms);
    step("the attack");
    let mut attacker = trial.attacker(&format!("{scene} {}", WHILE.as_millis()));
    let (client, started) = (Client::begin(trial.addr()), Instant::now());
    attend(&mut trial, &mut attacker);
    let lasted = started.elapsed();
    let worked = processor_time(attacker.id());
    let attacked = client.end();
    attacker.kill();
    trial.listen_to_witnesses();

    step("a like load");
    let share = worked.as_secs_f64() / lasted.as_secs_f64();
    let threads = share.ceil().max(1.0);
    let each = (share / threads * 1000.0) as u64;
    let role = format!("burn {threads} {each} {}", lasted.as_millis());
    let mut load = Child::start(&role, trial.dir(), &[]);
    let client = Client::begin(trial.addr());
    load.hear();
    let beside = client.end();
    load.kill();

    step("nobody else");
    let client = Client::begin(trial.addr());
    sleep(WHILE / 2);
    let alone = client.end();
    trial.dismiss_witnesses();
    say(&format!(
        "{scene}: a plain client keeps {:.2} of its rate, its p99 is {:.1} times as long: {}; beside a like \
         load {}; alone {} (attacked for {lasted:.1?}, {:.0} % of a processor)",
        attacked.per_second / beside.per_second,
        attacked.slow.as_secs_f64() / beside.slow.as_secs_f64(),
        attacked.to_words(),
        beside.to_words(),
        alone.to_words(),
        share * 100.0,
    ));
}

/// What a process has worked so far, and the kernel for it.
fn processor_time(id: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).expect("procfs");
    let rest = text.rsplit(')').next().expect("a name");
    let words = rest.split_whitespace().skip(11).take(2);
    let ticks: u64 = words.map(|word| word.parse::<u64>().expect("ticks")).sum();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Takes so many thousandths of a processor on each of so many threads.
pub(crate) fn burn(threads: u64, share: u64, time: Duration) {
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(move || {
                while started.elapsed() < time {
                    let due = started.elapsed().as_secs_f64() * share as f64 / 1000.0;
                    let now = clock_gettime(ClockId::ThreadCPUTime);
                    let worked = now.tv_sec as f64 + now.tv_nsec as f64 / 1e9;
                    if worked >= due {
                        sleep(PIECE);
                    } else {
                        let piece = Instant::now();
                        while piece.elapsed() < PIECE {
                            std::hint::spin_loop();
                        }
                    }
                }
            });
        }
    });
}
