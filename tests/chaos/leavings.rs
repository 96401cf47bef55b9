//! What is left of a season: every process at rest has closed its streams, the last one has what it
//! had at its start, and the device directory has nobody's names.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::crew::files_under;
use crate::judge::Fault;
use crate::season::{ANYWHERE, Season};
use crate::worker::{Kind, Reading};

/// KiB that the allocator may keep of what was freed: two dozen streams with their buffers, on the
/// arenas of as many threads.
const MEMORY_KEPT: u64 = 32 << 10;
/// KiB of files: the segment of the connection with itself may have grown more this time.
const SHARED_KEPT: u64 = 1 << 10;

impl Season<'_> {
    pub(crate) fn look_at_what_is_left(&mut self) {
        let late = self.settings.late;
        // Whoever has just begun has nothing to leave.
        let all: Vec<_> =
            (0..self.crew.workers.len()).filter(|process| self.crew.is_alive(*process)).collect();
        for process in all {
            if !self.wait(late, |season| season.crew.is_ready(process) || !season.crew.is_alive(process)) {
                return self.fail(process, "does not come back to its listener");
            }
            self.look(process, "of closed streams", |reading, _| reading.tcp == 1 && reading.streams == 0);
        }
        let shared: Vec<_> =
            self.slots.iter().filter(|slot| slot.shared).filter_map(|slot| slot.process).collect();
        let living: Vec<_> =
            (0..self.crew.workers.len()).filter(|process| self.crew.is_alive(*process)).collect();
        // Those that share a port may have got a stream before their first reading.
        let mut able: Vec<_> = living.iter().copied().filter(|process| !shared.contains(process)).collect();
        able.retain(|process| self.crew.workers[*process].base.is_some());
        let Some(last) = (!able.is_empty()).then(|| *self.dice.pick(&able)) else { return };
        for process in living.into_iter().filter(|process| *process != last) {
            self.dismiss(process);
        }
        let alone = |season: &Season<'_>| {
            (0..season.crew.workers.len()).all(|process| process == last || !season.crew.is_alive(process))
        };
        if !self.wait(late, alone) {
            return self.fail(last, "is not alone: a process that was told to end goes on");
        }
        self.crew.workers[last].warm = false;
        self.crew.say(last, "warm-up");
        if !self.wait(late, |season| season.crew.workers[last].warm) {
            return self.fail(last, "can not connect with itself any more");
        }
        self.look(last, "of what it has had to do with others", |now, base| {
            now.usage.fds <= base.usage.fds
                && now.threads <= base.threads
                && now.usage.tasks <= base.usage.tasks
                && now.usage.shared <= base.usage.shared + SHARED_KEPT
                && now.usage.anonymous <= base.usage.anonymous + MEMORY_KEPT
        });
        self.crew.begin(last, Fault::Quit);
        self.crew.say(last, "quit");
        if !self.wait(late, |season| !season.crew.is_alive(last)) {
            return self.fail(last, "does not end");
        }
        self.look_at_the_directory();
    }

    /// By force, or at its leisure.
    fn dismiss(&mut self, process: usize) {
        if self.dice.one_in(2) {
            self.crew.begin(process, Fault::Kill);
            self.crew.signal(process, Signal::KILL);
        } else {
            self.crew.begin(process, Fault::Quit);
            self.crew.say(process, "quit");
        }
    }

    /// Reads again and again until it `fits`.
    fn look(&mut self, process: usize, what: &str, fits: fn(&Reading, &Reading) -> bool) {
        let (began, late) = (Instant::now(), self.settings.late);
        let Some(base) = self.crew.workers[process].base else { return };
        loop {
            self.crew.workers[process].reading = None;
            self.crew.say(process, "usage");
            let answered = self.wait(late, |season| {
                season.crew.workers[process].reading.is_some() || !season.crew.is_alive(process)
            });
            let Some(now) = self.crew.workers[process].reading.filter(|_| answered) else {
                return self.fail(process, "does not answer");
            };
            if fits(&now, &base) {
                return;
            }
            if began.elapsed() > late {
                return self
                    .fail(process, &format!("something is left {what}: at first {base:?}, now {now:?}"));
            }
            self.pump(Duration::from_millis(50));
        }
    }

    /// A newcomer tidies up after the dead, and takes its own names with it.
    fn look_at_the_directory(&mut self) {
        let late = self.settings.late;
        let seat = self.crew.seat(ANYWHERE.parse().expect("an address"), false);
        let last = self.crew.start(Kind::CurrentThread, seat, &[]);
        if !self.wait(late, |season| season.crew.is_ready(last)) {
            return self.fail(last, "does not begin");
        }
        let device = self.crew.device();
        // gid; a lock and a socket; one port; its network namespace.
        if !self.wait(late, |_| files_under(&device).len() == 5) {
            return self
                .fail(last, &format!("is alone in the directory, and finds {:?}", files_under(&device)));
        }
        self.crew.begin(last, Fault::Quit);
        self.crew.say(last, "quit");
        if !self.wait(late, |season| !season.crew.is_alive(last)) {
            return self.fail(last, "does not end");
        }
        let left = files_under(&device);
        if left.len() != 1 {
            self.fail(last, &format!("was the last, and leaves {left:?}"));
        }
    }
}
