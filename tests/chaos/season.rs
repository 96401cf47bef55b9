//! A season: some processes, streams between them without end, and something going wrong all the
//! time. It ends with a look at what is left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use crate::crew::{Crew, threads_of};
use crate::dice::Dice;
use crate::figures::Figures;
use crate::judge::{End, Fault, Stream};
use crate::plan::{Plan, Side};
use crate::plant::Plant;
use crate::worker::{Kind, Reading};

/// Who has not been heard of accept for so long after the client's end never was accepted. Longer
/// than any process is stopped.
const NEVER_ACCEPTED: Duration = Duration::from_secs(6);

/// How often a process may connect with itself until it is upgraded.
const TRIES: u32 = 3;

pub(crate) const ANYWHERE: &str = "127.0.0.1:0";

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) number: u64,
    pub(crate) length: Duration,
    /// The kinds of processes; those of the first `sharing` listen on one port.
    pub(crate) kinds: Vec<Kind>,
    pub(crate) sharing: usize,
    pub(crate) faults: bool,
    /// How long a stream may take that nobody stops.
    pub(crate) patience: Duration,
    /// How long what is to be given back may take to be.
    pub(crate) late: Duration,
    /// How many streams there are at a time.
    pub(crate) crowd: usize,
    pub(crate) plant: Option<Plant>,
}

/// Where a process lives, one after the other.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) kind: Kind,
    pub(crate) shared: bool,
    pub(crate) process: Option<usize>,
    pub(crate) address: Option<SocketAddr>,
}

/// What comes later.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Later {
    Continue(usize),
    NoLimit(usize),
    Start(usize),
}

#[derive(Debug)]
pub(crate) struct Season<'a> {
    pub(crate) settings: Settings,
    pub(crate) crew: Crew,
    pub(crate) dice: Dice,
    pub(crate) slots: Vec<Slot>,
    pub(crate) later: Vec<(Instant, Later)>,
    /// The device directory was removed.
    pub(crate) removed: bool,
    /// Nobody takes the place of a process that ends now.
    pub(crate) closing: bool,
    streams: BTreeMap<u64, Stream>,
    /// Those that the judge has still to look at.
    open: BTreeSet<u64>,
    pub(crate) figures: &'a mut Figures,
    pub(crate) failures: Vec<String>,
}

/// Plays a season; answers with what went wrong that should not.
pub(crate) fn play(settings: Settings, figures: &mut Figures) -> Vec<String> {
    figures.seasons += 1;
    let mut season = Season {
        crew: Crew::new(settings.seed, settings.plant),
        dice: Dice::new(settings.seed, settings.number << 32),
        slots: settings
            .kinds
            .iter()
            .enumerate()
            .map(|(number, kind)| Slot {
                kind: *kind,
                shared: number < settings.sharing,
                process: None,
                address: None,
            })
            .collect(),
        later: Vec::new(),
        closing: false,
        removed: false,
        streams: BTreeMap::new(),
        open: BTreeSet::new(),
        figures,
        failures: Vec::new(),
        settings,
    };
    season.run();
    season.failures
}

impl Season<'_> {
    fn run(&mut self) {
        self.populate();
        let end = Instant::now() + self.settings.length;
        let mut next_fault = Instant::now();
        while Instant::now() < end && self.failures.is_empty() {
            self.pump(Duration::from_millis(3));
            while self.open.len() < self.settings.crowd && self.begin_stream() {}
            if self.settings.faults && Instant::now() >= next_fault {
                self.harm();
                next_fault = Instant::now() + Duration::from_millis(self.dice.below(400));
            }
        }
        self.let_all_go_on();
        self.wait(Duration::MAX, |season| season.open.is_empty());
        if self.failures.is_empty() {
            self.look_at_what_is_left();
        }
        self.figures.processes += self.crew.workers.len() as u64;
        self.figures.whole += self
            .streams
            .values()
            .filter(|stream| stream.ends.iter().all(|end| end.as_ref().is_some_and(End::is_whole)))
            .count() as u64;
    }

    /// The first processes, one after the other, so that those which share a port find it.
    fn populate(&mut self) {
        for slot in 0..self.slots.len() {
            self.start(slot);
            let process = self.slots[slot].process.expect("just started");
            if self.slots[slot].shared {
                self.wait(self.settings.patience, |season| season.crew.workers[process].listening);
            }
        }
        let patience = self.settings.patience;
        self.wait(patience, |season| (0..season.slots.len()).all(|slot| season.ready(slot).is_some()));
    }

    /// A process for an empty slot, on the port of the one before, or on another.
    pub(crate) fn start(&mut self, slot: usize) {
        let anywhere: SocketAddr = ANYWHERE.parse().expect("an address");
        let Slot { kind, shared, address, .. } = self.slots[slot];
        let partner = self.slots.iter().find(|other| other.shared && other.address.is_some());
        let address = match partner.and_then(|partner| partner.address) {
            Some(partner) if shared => partner,
            _ if self.dice.one_in(2) => address.unwrap_or(anywhere),
            _ => anywhere,
        };
        let seat = self.crew.seat(address, shared);
        let memory = match self.dice.below(6) {
            0 => Some("200000"),
            1 => Some("2000000"),
            2 => Some("16000000"),
            _ => None,
        };
        let mut variables: Vec<_> = memory.map(|memory| ("SMC_LO_MEMORY", memory)).into_iter().collect();
        if self.dice.one_in(3) {
            variables.push(("SMC_LO_PEER_TIMEOUT_MS", "2000"));
        }
        if self.dice.one_in(4) {
            variables.push(("SMC_LO_BUSY_POLL_US", "0"));
        }
        self.slots[slot].process = Some(self.crew.start(kind, seat, &variables));
    }

    /// The process of that slot, if it can be used.
    pub(crate) fn ready(&self, slot: usize) -> Option<usize> {
        self.slots[slot].process.filter(|process| self.crew.is_ready(*process))
    }

    /// Whether a stream could be begun.
    fn begin_stream(&mut self) -> bool {
        let slots = self.slots.len() as u64;
        let (client, server) = (self.dice.below(slots) as usize, self.dice.below(slots) as usize);
        let (Some(client), Some(server)) = (self.ready(client), self.ready(server)) else { return false };
        let Some(target) = self.crew.pasts[server].address else { return false };
        if self.crew.feels(client, Fault::Stop) {
            return false;
        }
        let id = self.settings.number << 32 | self.streams.len() as u64;
        self.crew.say(client, &format!("connect {id} {target}"));
        self.figures.streams += 1;
        self.open.insert(id);
        self.streams.insert(
            id,
            Stream {
                plan: Plan::new(self.settings.seed, id),
                began: Instant::now(),
                target,
                processes: [Some(client), None],
                ends: [None, None],
                judged: [false; 2],
                progress: None,
            },
        );
        true
    }

    /// Hears what comes within that time, does what is due, and judges.
    pub(crate) fn pump(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while let Some((number, line)) = self.crew.next_line(until.saturating_duration_since(Instant::now()))
        {
            match line {
                Some(line) => self.hear(number, &line),
                None => self.take_leave(number),
            }
            if Instant::now() > until {
                break;
            }
        }
        let now = Instant::now();
        while let Some(place) = self.later.iter().position(|(due, _)| *due <= now) {
            let (_, later) = self.later.swap_remove(place);
            self.carry_out(later);
        }
        self.judge();
    }

    /// Pumps until `done`, as long as nothing fails. Answers whether it was done in time.
    pub(crate) fn wait(&mut self, patience: Duration, done: impl Fn(&Season<'_>) -> bool) -> bool {
        let began = Instant::now();
        while !done(self) {
            if began.elapsed() > patience || !self.failures.is_empty() {
                return false;
            }
            self.pump(Duration::from_millis(5));
        }
        true
    }

    fn hear(&mut self, number: usize, line: &str) {
        let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
        match what {
            "listening" => {
                let address = rest.parse().expect("an address");
                let first = self.crew.pasts[number].address.is_none();
                self.crew.pasts[number].address = Some(address);
                self.crew.workers[number].listening = true;
                self.crew.end(number, &[Fault::Restart, Fault::DropRuntime, Fault::DropInBackground]);
                if let Some(slot) = self.slots.iter_mut().find(|slot| slot.process == Some(number)) {
                    slot.address = Some(address);
                }
                if first {
                    self.crew.say(number, "warm-up");
                }
            }
            // On a crowded machine its own answer may take longer than it waits.
            "warm" if rest.contains("has not answered") && self.crew.workers[number].tries < TRIES => {
                self.crew.workers[number].tries += 1;
                self.crew.say(number, "warm-up");
            }
            "warm" => {
                self.crew.workers[number].warm = true;
                self.crew.say(number, "usage");
                // Who lives on in a directory that is gone is not upgraded any more.
                if !rest.is_empty() && !self.removed {
                    self.fail(number, &format!("can not be upgraded with itself: {rest}"));
                }
            }
            "usage" => {
                let reading = Reading::from_line(rest);
                let worker = &mut self.crew.workers[number];
                worker.base.get_or_insert(reading);
                worker.reading = Some(reading);
            }
            "accepted" => {
                let id = rest.parse().expect("a number");
                let known = self.streams.get_mut(&id).map(|stream| {
                    self.open.insert(id);
                    stream.processes[Side::Server as usize].replace(number).is_none()
                });
                if known != Some(true) {
                    self.fail(number, &format!("stream {id} is accepted that nobody has begun, or twice"));
                }
            }
            "end" => self.take_end(number, rest),
            "nameless" => self.figures.nameless += 1,
            "accept" => {
                self.figures.accepts_failed += 1;
                let recently =
                    Instant::now().checked_sub(Duration::from_secs(1)).expect("not the first second");
                let past = &self.crew.pasts[number];
                if !past.lacked_since(recently) {
                    self.fail(number, &format!("accept fails, and nothing is lacking: {rest}"));
                }
            }
            "no-thread" => {}
            "diagnosed" => self.crew.workers[number].diagnosed = true,
            "diagnosis" => self.crew.workers[number].diagnosis.push(rest.to_owned()),
            // std's own, in a thread of the worker's that finds no room: the process ends of it.
            "panic"
                if rest.starts_with("failed to allocate an alternative stack")
                    && self.crew.feels(number, Fault::AddressSpace) => {}
            // A foreign name, or a panic that nobody planned.
            _ => self.fail(number, line),
        }
    }

    fn take_end(&mut self, number: usize, rest: &str) {
        let words: Vec<_> = rest.splitn(7, ' ').collect();
        let [id, side, sent, heard, on_ring, transport, outcome] = words[..] else {
            panic!("no end: {rest}")
        };
        let count = |word: &str| word.parse::<u64>().expect("a number");
        let side = if side == "client" { Side::Client } else { Side::Server };
        let end = End {
            process: number,
            at: Instant::now(),
            sent: count(sent),
            heard: count(heard),
            on_ring: count(on_ring),
            transport: transport.to_owned(),
            outcome: outcome.to_owned(),
        };
        self.figures.count(&end);
        let stream = self.streams.get_mut(&count(id)).expect("a stream that was begun");
        stream.ends[side as usize] = Some(end);
    }

    fn take_leave(&mut self, number: usize) {
        let expected = [Fault::Kill, Fault::Quit].into_iter().any(|fault| self.crew.feels(number, fault));
        let wants = self.crew.feels(number, Fault::AddressSpace);
        let quits = self.crew.feels(number, Fault::Quit);
        if !expected {
            // Streams of it have their excuse, whatever is said of its end. Its peers may have told
            // of theirs before: if it died of a limit, that was at any time since it had one.
            self.crew.died(number, Fault::AddressSpace);
        }
        let status = self.crew.bury(number);
        let log = self.crew.log(number);
        let starved =
            ["memory allocation of", "spawn", "failed to allocate"].iter().any(|word| log.contains(word));
        if !expected && wants && starved {
            self.figures.ended_by_limit += 1;
        } else if !expected || (quits && !status.success() && status.signal() != Some(9)) {
            self.fail(number, &format!("ended by itself ({status}), and has said:\n{log}"));
        }
        if let Some(slot) = self.slots.iter().position(|slot| slot.process == Some(number)) {
            self.slots[slot].process = None;
            if self.closing {
                return;
            }
            let time = Duration::from_millis(self.dice.below(300));
            self.later.push((Instant::now() + time, Later::Start(slot)));
        }
    }

    pub(crate) fn fail(&mut self, number: usize, what: &str) {
        self.failures.push(format!("{}: {what}", self.crew.pasts[number]));
    }

    /// Judges every stream that is over; finds those that hang.
    fn judge(&mut self) {
        let ids: Vec<_> = self.open.iter().copied().collect();
        for id in ids {
            if self.is_over(id) {
                self.open.remove(&id);
                self.pass_judgement(id);
            } else if self.is_overdue(id) {
                self.look_at_late(id);
                return;
            }
        }
    }

    fn is_over(&self, id: u64) -> bool {
        let stream = &self.streams[&id];
        let over = |side: Side| match (stream.processes[side as usize], &stream.ends[side as usize]) {
            (_, Some(_)) => true,
            (Some(process), None) => !self.crew.is_alive(process),
            (None, None) => {
                // It may be accepted yet, by a process that is stopped.
                let client = &stream.ends[Side::Client as usize];
                let gone =
                    stream.processes[Side::Client as usize].and_then(|client| self.crew.pasts[client].ended);
                let since = client.as_ref().map(|end| end.at).or(gone);
                let served = stream.shows_a_server(&self.crew.pasts);
                !served && since.is_some_and(|since| since.elapsed() > NEVER_ACCEPTED)
            }
        };
        over(Side::Client) && over(Side::Server)
    }

    fn is_overdue(&self, id: u64) -> bool {
        let stream = &self.streams[&id];
        let involved = self.crew.pasts.iter().filter(|past| {
            stream.processes.contains(&Some(past.number)) || past.address == Some(stream.target)
        });
        let stood: Duration = involved.map(|past| past.stood_still(stream.began)).sum();
        let since = stream.progress.as_ref().map_or(stream.began, |(seen, _)| *seen);
        // Who stands still also keeps others from what they wait for in turns.
        since.elapsed() > self.settings.patience + NEVER_ACCEPTED + 4 * stood
    }

    fn pass_judgement(&mut self, id: u64) {
        let stream = self.streams.get_mut(&id).expect("an open stream");
        for side in [Side::Client, Side::Server] {
            if stream.judged[side as usize] || stream.ends[side as usize].is_none() {
                continue;
            }
            stream.judged[side as usize] = true;
            match stream.judge(side, &self.crew.pasts) {
                Ok(None) => {}
                Ok(Some(excuse)) => *self.figures.excuses.entry(excuse).or_default() += 1,
                Err(why) => {
                    let all = stream.describe(&self.crew.pasts);
                    self.failures.push(format!("the {side}'s end: {why}\n{all}"));
                }
            }
        }
    }

    /// What takes long on a crowded machine goes on; what does not hangs.
    fn look_at_late(&mut self, id: u64) {
        // Both ends may be of one process.
        let processes: BTreeSet<_> = self.streams[&id].processes.into_iter().flatten().collect();
        let living: Vec<_> = processes.into_iter().filter(|process| self.crew.is_alive(*process)).collect();
        for process in &living {
            self.diagnose(*process);
        }
        let own = format!("{id} ");
        let lines = |process: &usize| self.crew.workers[*process].diagnosis.iter();
        let ends = living.iter().flat_map(lines).filter(|line| line.starts_with(&own));
        // Behind it comes the age.
        let counts = ends
            .filter_map(|line| Some(line.split_once("sent ")?.1.splitn(3, ',').take(2).collect::<String>()));
        let progress = counts.collect::<Vec<_>>().join("; ");
        let stream = self.streams.get_mut(&id).expect("an open stream");
        let before = stream.progress.replace((Instant::now(), progress.clone()));
        if before.is_none_or(|(_, before)| before != progress) {
            return;
        }
        let mut text = format!("hangs: {}", self.streams[&id].describe(&self.crew.pasts));
        for process in living {
            text += &format!("\n{} says:", self.crew.pasts[process]);
            let diagnosis = &self.crew.workers[process].diagnosis;
            let named = diagnosis.iter().filter(|line| line.starts_with(&own));
            let others = diagnosis.iter().filter(|line| !line.starts_with(&own));
            for line in named.chain(others.take(10)) {
                text += &format!("\n  {line}");
            }
            // Twice: what turns in circles has more processor time the second time.
            for _ in 0..2 {
                for thread in threads_of(self.crew.pasts[process].pid) {
                    text += &format!("\n  thread {thread}");
                }
                std::thread::sleep(Duration::from_millis(300));
            }
            if !self.crew.workers[process].diagnosed {
                text += "\n  nothing: it hangs as a whole";
            }
        }
        self.open.remove(&id);
        self.failures.push(text);
    }

    /// Has a process tell what it knows of its streams.
    fn diagnose(&mut self, process: usize) {
        self.crew.workers[process].diagnosed = false;
        self.crew.workers[process].diagnosis.clear();
        self.crew.say(process, "diagnose");
        let began = Instant::now();
        while !self.crew.workers[process].diagnosed && began.elapsed() < Duration::from_secs(10) {
            match self.crew.next_line(Duration::from_millis(50)) {
                Some((number, Some(line))) => self.hear(number, &line),
                Some((number, None)) => self.take_leave(number),
                None => {}
            }
        }
    }
}
