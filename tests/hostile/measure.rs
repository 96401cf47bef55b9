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
//! for as long as is measured: later plays are turned away by the victim's own limits, if they are.
//! The client makes a connection for each round, as those do whom attacks on a listener would hit,
//! and rests a millisecond between two.
//!
//! Where a scene makes and closes many TCP connections, as any client of any server may
//! ([`Terms::crowd`]), the like load makes and closes as many, as often: each takes a TCP server
//! its few microseconds, and two hundred that end at once end in one turn of its runtime. Where a
//! scene makes links and upgrades, as any client that is admitted may ([`Terms::links`]), the like
//! load is a client that does so, by this crate, as often.
//!
//! What makes processes all the time, keeps a server's thread busy, or works in the kernel for long
//! at once, is like nothing but itself. Such a scene ([`Terms::decoy`]) is compared with its own
//! play against another server on this machine: what is slower than beside that is what the
//! client's server does for its attacker, in the client's way.
//!
//! What else the machine does comes and goes within seconds, and is felt more than most attacks:
//! attack and like load take turns, each attack by a process of its own, which is killed before the
//! client stops. What is printed is the median of the turns.
#![allow(clippy::disallowed_types, reason = "a test, which loom does not run")]

use std::fs;
use std::net::SocketAddr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::child::Child;
use crate::judge::{Terms, Trial, plain_connection, plain_round, plain_talk};
use crate::random::say;
use crate::watchdog::step;
use crate::{attend, newcomer};

/// For how long a scene is played at least, in each of so many turns; where that takes long, in
/// fewer.
const WHILE: Duration = Duration::from_secs(1);
const TURNS: usize = 5;
const ENOUGH: Duration = Duration::from_secs(15);
/// What the victim does about an attacker's end ends meanwhile.
const AFTERMATH: Duration = Duration::from_millis(50);
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
        format!(
            "{:.0}/s, median {} µs, p99 {} µs",
            self.per_second,
            self.median.as_micros(),
            self.slow.as_micros()
        )
    }
}

/// Both halves of a turn.
struct Turn {
    attacked: Rounds,
    beside: Rounds,
    /// Of a processor, that the attacker took.
    share: f64,
    played: String,
}

impl Turn {
    fn play(trial: &mut Trial, decoy: Option<&mut Trial>, scene: &str, turn: usize) -> Self {
        step("the attack");
        let addr = trial.addr();
        let again = if turn == 0 { "" } else { " again" };
        let what = format!("{scene} {}{again}", WHILE.as_millis());
        let (attacked, attack) = Attack::see(trial, addr, &what);
        trial.listen_to_witnesses();
        let beside = match decoy {
            Some(decoy) => {
                step("an attack on another server");
                Attack::see(decoy, addr, &what).0
            }
            None => {
                step("a like load");
                let mut load = Child::start(&attack.like_load(trial), trial.dir(), &[]);
                let client = Client::begin(addr);
                load.hear();
                let beside = client.end();
                load.kill();
                beside
            }
        };
        Turn { attacked, beside, share: attack.share, played: attack.played }
    }
}

/// What was seen of an attacker.
struct Attack {
    /// Of a processor.
    share: f64,
    lasted: Duration,
    played: String,
}

impl Attack {
    /// It attacks one server, while a client of another, or of the same, does its rounds.
    fn see(trial: &mut Trial, addr: SocketAddr, what: &str) -> (Rounds, Self) {
        let mut attacker = trial.attacker(what);
        let (client, started) = (Client::begin(addr), Instant::now());
        let played = attend(trial, &mut attacker);
        let (worked, lasted) = (processor_time(attacker.id()), started.elapsed());
        attacker.kill();
        sleep(AFTERMATH);
        (client.end(), Attack { share: worked.as_secs_f64() / lasted.as_secs_f64(), lasted, played })
    }

    fn like_load(&self, trial: &Trial) -> String {
        let threads = self.share.ceil().max(1.0);
        let each = (self.share / threads * 1000.0) as u64;
        let plays =
            self.played.split(' ').next().and_then(|word| word.parse::<u32>().ok()).expect("a number");
        let plays = (f64::from(plays) * WHILE.as_secs_f64() / self.lasted.as_secs_f64()).round() as u32;
        let (millis, addr) = (WHILE.as_millis(), trial.addr());
        let Terms { crowd, links, .. } = trial.terms();
        format!("burn {threads} {each} {millis} {addr} {crowd} {links} {plays}")
    }
}

fn median(turns: &[Turn], of: impl Fn(&Turn) -> f64) -> f64 {
    let mut all = Vec::from_iter(turns.iter().map(of));
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// The client in the median of the turns.
fn usual(turns: &[Turn], side: impl Fn(&Turn) -> &Rounds) -> Rounds {
    let time =
        |of: fn(&Rounds) -> Duration| Duration::from_secs_f64(median(turns, |t| of(side(t)).as_secs_f64()));
    Rounds {
        per_second: median(turns, |turn| side(turn).per_second),
        median: time(|rounds| rounds.median),
        slow: time(|rounds| rounds.slow),
    }
}

/// Plays a scene and prints one line.
pub(crate) fn play(scene: &str, terms: Terms) {
    let most = std::env::var("SMC_TEST_TURNS").map_or(TURNS, |word| word.parse().expect("a number"));
    let mut trial = Trial::begin(terms);
    let mut decoy = terms.decoy.then(|| Trial::begin(terms));
    let (mut turns, started) = (Vec::new(), Instant::now());
    while turns.is_empty() || turns.len() < most && started.elapsed() < ENOUGH {
        turns.push(Turn::play(&mut trial, decoy.as_mut(), scene, turns.len()));
    }
    step("nobody else");
    let client = Client::begin(trial.addr());
    sleep(WHILE);
    let alone = client.end();
    trial.dismiss_witnesses();
    if let Some(decoy) = &mut decoy {
        decoy.dismiss_witnesses();
    }
    let load = if terms.decoy { "the same against another server" } else { "a like load" };
    say(&format!(
        "{scene}: a plain client keeps {:.2} of its rate, its p99 is {:.1} times as long: {}; beside \
         {load} {}; alone {} ({:.0} % of a processor, played {})",
        median(&turns, |turn| turn.attacked.per_second / turn.beside.per_second),
        median(&turns, |turn| turn.attacked.slow.as_secs_f64() / turn.beside.slow.as_secs_f64()),
        usual(&turns, |turn| &turn.attacked).to_words(),
        usual(&turns, |turn| &turn.beside).to_words(),
        alone.to_words(),
        median(&turns, |turn| turn.share) * 100.0,
        turns[turns.len() - 1].played,
    ));
}

/// Plays a scene until so much time has passed, and tells how often. The first time it has to go as
/// the scene says; where it was played before, `again`, the victim's own limits may turn it away.
pub(crate) fn again_and_again(time: Duration, again: bool, play: impl Fn()) -> String {
    let started = Instant::now();
    let (mut plays, mut turned_away) = (0, 0);
    if !again {
        play();
        plays = 1;
    }
    // They would say so thousands of times.
    let last = Arc::new(Mutex::new(String::new()));
    let words = Arc::clone(&last);
    panic::set_hook(Box::new(move |panic| {
        *words.lock().expect("nobody panics here") = panic.to_string().replace('\n', " ");
    }));
    while plays == 0 || started.elapsed() < time {
        plays += 1;
        turned_away += u32::from(panic::catch_unwind(AssertUnwindSafe(&play)).is_err());
    }
    let _ = panic::take_hook();
    match turned_away {
        0 => format!("{plays} times"),
        _ => {
            format!("{plays} times, turned away {turned_away} times ({})", last.lock().expect("whole"))
        }
    }
}

/// What a process has worked so far, with its children that have ended, and the kernel for them.
fn processor_time(id: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).expect("procfs");
    let rest = text.rsplit(')').next().expect("a name");
    let words = rest.split_whitespace().skip(11).take(4);
    let ticks: u64 = words.map(|word| word.parse::<u64>().expect("ticks")).sum();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// What a like load does with the victim.
pub(crate) struct Like {
    pub(crate) addr: SocketAddr,
    /// So many connections are closed at once, and so many upgrades made, each on a link of its
    /// own,
    pub(crate) crowd: usize,
    pub(crate) links: usize,
    /// so often.
    pub(crate) plays: u32,
}

impl Like {
    fn come_and_go(&self) {
        let mut all = Vec::from_iter((0..self.crowd).map(|_| plain_connection(self.addr)));
        all.iter_mut().for_each(plain_talk);
        (0..self.links).for_each(|_| newcomer(self.addr));
    }
}

/// Takes so many thousandths of a processor on each of so many threads, crowds and links on the
/// first of them with what those take.
pub(crate) fn burn(threads: u64, share: u64, time: Duration, like: &Like) {
    let started = Instant::now();
    thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut plays = 0;
                while started.elapsed() < time {
                    let crowds = thread == 0 && like.crowd + like.links > 0 && plays < like.plays;
                    if crowds && started.elapsed() >= time * plays / like.plays {
                        plays += 1;
                        like.come_and_go();
                    }
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
