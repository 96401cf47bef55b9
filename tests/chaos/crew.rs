//! The processes of a season: how they are started, told something, heard, and looked at.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::child::Child;
use crate::judge::{Fault, Past, Span};
use crate::lab::Lab;
use crate::plant::{self, Plant};
use crate::worker::{Kind, Reading, Seat};

/// A process, and what it has said of itself.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    log: PathBuf,
    pub(crate) listening: bool,
    /// After its warm-up. From then on it has streams.
    pub(crate) base: Option<Reading>,
    pub(crate) warm: bool,
    /// How often it was too slow for that.
    pub(crate) tries: u32,
    pub(crate) reading: Option<Reading>,
    pub(crate) diagnosis: Vec<String>,
    pub(crate) diagnosed: bool,
    pub(crate) status: Option<ExitStatus>,
}

#[derive(Debug)]
pub(crate) struct Crew {
    lab: Lab,
    seed: u64,
    plant: Option<Plant>,
    sender: Sender<(usize, Option<String>)>,
    lines: Receiver<(usize, Option<String>)>,
    /// By number.
    pub(crate) workers: Vec<Worker>,
    pub(crate) pasts: Vec<Past>,
}

impl Crew {
    pub(crate) fn new(seed: u64, plant: Option<Plant>) -> Crew {
        let (sender, lines) = channel();
        Crew { lab: Lab::new(), seed, plant, sender, lines, workers: Vec::new(), pasts: Vec::new() }
    }

    /// The device directory, which may be removed.
    pub(crate) fn device(&self) -> PathBuf {
        self.lab.dir().join("device")
    }

    /// Starts a process; it lives only as long as this thread.
    pub(crate) fn start(&mut self, kind: Kind, seat: Seat, variables: &[(&str, &str)]) -> usize {
        let number = self.workers.len();
        let log = self.lab.dir().join(format!("log-{number}"));
        let role = format!("{kind:?} {} {} {} {}", seat.seed, seat.address, seat.shared, log.display());
        let plant = self.plant.map(|plant| format!("{plant:?}"));
        let mut variables = variables.to_vec();
        variables.extend(plant.as_deref().map(|plant| (plant::VARIABLE, plant)));
        let mut child = Child::start(&role, &self.device(), &variables);
        let (mut answers, sender) = (child.answers(), self.sender.clone());
        thread::spawn(move || {
            // The season may be over before its processes are.
            while let Some(line) = answers.next() {
                let _ = sender.send((number, Some(line)));
            }
            let _ = sender.send((number, None));
        });
        self.pasts.push(Past {
            number,
            pid: child.id(),
            kind,
            address: None,
            began: Instant::now(),
            ended: None,
            spans: Vec::new(),
        });
        self.workers.push(Worker {
            child,
            log,
            listening: false,
            base: None,
            warm: false,
            tries: 0,
            reading: None,
            diagnosis: Vec::new(),
            diagnosed: false,
            status: None,
        });
        number
    }

    /// The seed of all plans.
    pub(crate) fn seat(&self, address: SocketAddr, shared: bool) -> Seat {
        Seat { seed: self.seed, address, shared }
    }

    /// The next line of any process (its end is `None`), if one comes in time.
    pub(crate) fn next_line(&self, patience: Duration) -> Option<(usize, Option<String>)> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => unreachable!("we have a sender"),
        }
    }

    pub(crate) fn say(&mut self, number: usize, word: &str) {
        // It may be gone, which is told elsewhere.
        let _ = self.workers[number].child.say(word);
    }

    pub(crate) fn signal(&self, number: usize, signal: Signal) {
        let pid = i32::try_from(self.pasts[number].pid).ok().and_then(Pid::from_raw).expect("a process id");
        // It is not waited for before its end is told, so the number is its own.
        if self.is_alive(number) {
            let _ = kill_process(pid, signal);
        }
    }

    pub(crate) fn is_alive(&self, number: usize) -> bool {
        self.pasts[number].ended.is_none()
    }

    /// It lives, listens, and nothing that it has to finish first was done to it.
    pub(crate) fn is_ready(&self, number: usize) -> bool {
        let worker = &self.workers[number];
        self.is_alive(number) && worker.listening && worker.base.is_some() && !self.feels(number, Fault::Kill)
    }

    /// Whether this fault lasts right now.
    pub(crate) fn feels(&self, number: usize, fault: Fault) -> bool {
        self.pasts[number].spans.iter().any(|span| span.fault == fault && span.to.is_none())
    }

    pub(crate) fn begin(&mut self, number: usize, fault: Fault) {
        self.pasts[number].spans.push(Span { fault, from: Instant::now(), to: None });
    }

    /// It has ended by itself: perhaps of `fault`, then not before that began.
    pub(crate) fn died(&mut self, number: usize, fault: Fault) {
        let spans = &mut self.pasts[number].spans;
        let felt = spans.iter().find(|span| span.fault == fault && span.to.is_none());
        let from = felt.map_or_else(Instant::now, |span| span.from);
        spans.push(Span { fault: Fault::Kill, from, to: None });
    }

    pub(crate) fn end(&mut self, number: usize, faults: &[Fault]) {
        for span in &mut self.pasts[number].spans {
            if faults.contains(&span.fault) && span.to.is_none() {
                span.to = Some(Instant::now());
            }
        }
    }

    /// Its end was told: takes leave of it.
    pub(crate) fn bury(&mut self, number: usize) -> ExitStatus {
        let status = self.workers[number].child.wait();
        self.workers[number].status = Some(status);
        self.pasts[number].ended = Some(Instant::now());
        for span in &mut self.pasts[number].spans {
            span.to.get_or_insert_with(Instant::now);
        }
        status
    }

    /// What it has written to its standard error.
    pub(crate) fn log(&self, number: usize) -> String {
        fs::read_to_string(&self.workers[number].log).unwrap_or_default()
    }
}

/// What the kernel says of each thread of a process: its name, whether it runs or what it waits in,
/// and the processor time that it has had so far.
pub(crate) fn threads_of(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let tell = |task: fs::DirEntry| {
        let read =
            |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default().trim().to_owned();
        let (stat, waits, call) = (read("stat"), read("wchan"), read("syscall"));
        let (comm, rest) = stat.rsplit_once(") ").unwrap_or_default();
        let fields: Vec<_> = rest.split(' ').collect();
        let [state, user, system] = [0, 11, 12].map(|field| fields.get(field).copied().unwrap_or_default());
        format!("{comm}) {state} in {waits}, {user} and {system} ticks, system call {call}")
    };
    tasks.map(tell).collect()
}

/// All names under `dir` that are no directories.
pub(crate) fn files_under(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_under(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}
