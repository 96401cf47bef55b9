//! The faults: which one, to whom, for how long, and how it is taken back.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::judge::Fault;
use crate::season::{Later, Season};

const FAULTS: [Fault; 22] = [
    Fault::Kill,
    Fault::Kill,
    Fault::Stop,
    Fault::Stop,
    Fault::Stop,
    Fault::Descriptors,
    Fault::Descriptors,
    Fault::AddressSpace,
    Fault::FileSize,
    Fault::ForkExit,
    Fault::ForkExec,
    Fault::ForkLinger,
    Fault::ForkLinger,
    Fault::Restart,
    Fault::Restart,
    Fault::Restart,
    Fault::DropRuntime,
    Fault::DropRuntime,
    Fault::DropInBackground,
    Fault::DropInBackground,
    Fault::Quit,
    Fault::RemoveDirectory,
];
const LIMITS: [Fault; 3] = [Fault::Descriptors, Fault::AddressSpace, Fault::FileSize];
const STARTS_ANEW: [Fault; 3] = [Fault::Restart, Fault::DropRuntime, Fault::DropInBackground];

impl Season<'_> {
    /// One fault, if there is somebody to whom it can be done.
    pub(crate) fn harm(&mut self) {
        let fault = *self.dice.pick(&FAULTS);
        let slot = self.dice.below(self.slots.len() as u64) as usize;
        let Some(process) = self.ready(slot) else { return };
        let kind = self.slots[slot].kind;
        let feels = |faults: &[Fault]| faults.iter().any(|fault| self.crew.feels(process, *fault));
        // A process that lacks what a listener or a runtime needs would die of that, and one that
        // is on its way to another listener is not disturbed twice.
        let busy = feels(&[Fault::Stop, Fault::Quit]) || feels(&LIMITS) || feels(&STARTS_ANEW);
        if busy && fault != Fault::Kill {
            return;
        }
        if matches!(fault, Fault::DropRuntime | Fault::DropInBackground) && !kind.has_runtime() {
            return;
        }
        // What has lost its directory is not upgraded any more: not too often.
        if fault == Fault::RemoveDirectory && !self.dice.one_in(8) {
            return;
        }
        self.figures.fault(fault);
        match fault {
            Fault::Kill => {
                self.crew.begin(process, fault);
                self.crew.signal(process, Signal::KILL);
            }
            Fault::Stop => {
                let most = if self.dice.one_in(8) { 3000 } else { 300 };
                self.crew.begin(process, fault);
                self.crew.signal(process, Signal::STOP);
                self.after(10, most, Later::Continue(process));
            }
            Fault::Descriptors => self.limit(process, fault, "nofile", 30),
            Fault::AddressSpace => self.limit(process, fault, "as", 200),
            Fault::FileSize => self.limit(process, fault, "fsize", 2000),
            Fault::ForkExit => self.fork(process, fault, "exit", 0),
            Fault::ForkExec => self.fork(process, fault, "exec", 0),
            Fault::ForkLinger => {
                let time = self.dice.below(1000);
                self.fork(process, fault, "linger", time);
            }
            Fault::Restart => self.start_anew(process, fault, "restart"),
            Fault::DropRuntime => self.start_anew(process, fault, "drop"),
            Fault::DropInBackground => self.start_anew(process, fault, "drop-in-background"),
            Fault::Quit => {
                self.crew.begin(process, fault);
                self.crew.say(process, "quit");
            }
            Fault::RemoveDirectory => {
                self.removed = true;
                // Names may appear in it meanwhile, as with rm -r.
                let _ = fs::remove_dir_all(self.crew.device());
            }
        }
    }

    fn after(&mut self, least: u64, most: u64, later: Later) {
        let time = Duration::from_millis(least + self.dice.below(most));
        self.later.push((Instant::now() + time, later));
    }

    fn limit(&mut self, process: usize, fault: Fault, what: &str, most: u64) {
        self.crew.begin(process, fault);
        let amount = self.dice.below(most + 1);
        self.crew.say(process, &format!("limit {what} {amount}"));
        self.after(50, 1000, Later::NoLimit(process));
    }

    fn fork(&mut self, process: usize, fault: Fault, what: &str, milliseconds: u64) {
        self.crew.begin(process, fault);
        self.crew.say(process, &format!("fork {what} {milliseconds}"));
        // For as long as it may last at most.
        let over = Instant::now() + Duration::from_millis(milliseconds + 1000);
        if let Some(span) = self.crew.pasts[process].spans.last_mut() {
            span.to = Some(over);
        }
    }

    fn start_anew(&mut self, process: usize, fault: Fault, word: &str) {
        self.crew.begin(process, fault);
        self.crew.workers[process].listening = false;
        self.crew.say(process, word);
    }

    pub(crate) fn carry_out(&mut self, later: Later) {
        match later {
            Later::Continue(process) => {
                self.crew.signal(process, Signal::CONT);
                self.crew.end(process, &[Fault::Stop]);
            }
            Later::NoLimit(process) => {
                self.crew.say(process, "no-limit");
                self.crew.end(process, &LIMITS);
            }
            Later::Start(slot) => self.start(slot),
        }
    }

    /// The end of all faults: nobody stands still or lacks anything any more, and nobody comes.
    pub(crate) fn let_all_go_on(&mut self) {
        self.closing = true;
        for (_, later) in std::mem::take(&mut self.later) {
            if !matches!(later, Later::Start(_)) {
                self.carry_out(later);
            }
        }
    }
}
