//! For how long a runtime does nothing, on a machine that has other things to do.
//!
//! A task of the runtime wants its turn each millisecond. From one turn to the next the runtime was
//! silent, but for
//!
//! - the millisecond that the task asked for, and
//! - the time for which the runtime's threads stood in the queue of a processor, which the kernel
//!   counts (`run_delay` in `/proc/<pid>/task/<tid>/schedstat`). That is the machine's doing, and
//!   however loaded it is, nothing of it counts.
//!
//! So what counts is the time in which they worked on something else, or were blocked in the
//! kernel: what an attacker can make longer. Two things that a loaded machine does would look as if
//! they were blocked. What a hypervisor says that it has taken (`steal` in `/proc/stat`, in ticks),
//! and what other threads of the process have stood in a queue for (one of them may hold a lock
//! that the runtime waits for, of the process's mappings for example), does not count, unless the
//! runtime was at work. And for what nobody says a thread beside the runtime, which does nothing
//! but sleep and wake, is measured in the same way at the same time: what *it* misses is no silence
//! of the runtime's. The time from turn to turn as the clock has it is only reported.
#![allow(clippy::disallowed_types, reason = "a test, which loom does not run")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::watchdog::Flavour;

/// How often a turn is wanted.
const TURN: Duration = Duration::from_millis(1);
/// Threads of [`Flavour::MultiThread`].
const WORKERS: usize = 2;
/// How often the machine is asked for what it has taken, in turns.
const ASKED_EACH: u32 = 10;
/// From where on that is of interest; by the time that it has certainly been counted.
const LONG: Duration = Duration::from_millis(5);
const COUNTED: Duration = Duration::from_millis(30);

/// The longest ones.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Silence {
    /// Of the runtime.
    pub(crate) own: Duration,
    /// What of it the runtime's threads have worked.
    pub(crate) worked: Duration,
    /// Of the thread beside it.
    pub(crate) machine: Duration,
    /// Of the runtime, as the clock has it.
    pub(crate) clock: Duration,
}

impl Silence {
    pub(crate) fn or_longer(self, other: Self) -> Self {
        Silence {
            own: self.own.max(other.own),
            worked: if other.own > self.own { other.worked } else { self.worked },
            machine: self.machine.max(other.machine),
            clock: self.clock.max(other.clock),
        }
    }

    pub(crate) fn to_words(self) -> String {
        let times = [self.own, self.worked, self.machine, self.clock];
        times.map(|time| time.as_micros().to_string()).join(" ")
    }

    pub(crate) fn from_words(mut word: impl FnMut() -> u64) -> Self {
        let mut time = || Duration::from_micros(word());
        Silence { own: time(), worked: time(), machine: time(), clock: time() }
    }
}

/// Threads whose turn is wanted, as the kernel counts them.
struct Runners {
    ids: Vec<String>,
    files: Vec<File>,
}

/// When something had its turn.
#[derive(Clone, Copy)]
struct Pulse {
    at: Instant,
    /// For how long the threads had worked by then, and stood in a queue.
    worked: Duration,
    queued: Duration,
}

impl Runners {
    fn open(ids: impl IntoIterator<Item = String>) -> Self {
        let open = |id| File::open(format!("/proc/self/task/{id}/schedstat")).expect("CONFIG_SCHED_INFO");
        let ids: Vec<String> = ids.into_iter().collect();
        Runners { files: ids.iter().map(open).collect(), ids }
    }

    fn of_this_thread() -> Self {
        Runners::open([rustix::thread::gettid().as_raw_nonzero().to_string()])
    }

    /// Those that run the tasks of this runtime; with one thread it is the one that asks.
    fn of_runtime(flavour: Flavour) -> Self {
        if matches!(flavour, Flavour::CurrentThread) {
            return Runners::of_this_thread();
        }
        let works = |id: &String| {
            let comm = fs::read_to_string(format!("/proc/self/task/{id}/comm"));
            comm.is_ok_and(|comm| comm.starts_with("tokio"))
        };
        // Each takes its name once it runs.
        loop {
            let tasks = fs::read_dir("/proc/self/task").expect("procfs").flatten();
            let ids = tasks.filter_map(|task| task.file_name().into_string().ok()).filter(works);
            let runners = Runners::open(ids);
            if runners.ids.len() >= WORKERS {
                return runners;
            }
            thread::sleep(TURN);
        }
    }

    /// For how long they have worked, and stood in a queue.
    fn read(&self) -> [Duration; 2] {
        let mut sums = [0; 2];
        for file in &self.files {
            let mut text = [0; 96];
            let length = file.read_at(&mut text, 0).expect("schedstat");
            let text = std::str::from_utf8(&text[..length]).expect("digits");
            for (sum, word) in sums.iter_mut().zip(text.split_whitespace()) {
                *sum += word.parse::<u64>().expect("nanoseconds");
            }
        }
        sums.map(Duration::from_nanos)
    }

    fn pulse(&self) -> Pulse {
        let [mut worked, mut queued] = self.read();
        loop {
            let pulse = Pulse { at: Instant::now(), worked, queued };
            // Else this thread had to wait between the two readings.
            [worked, queued] = self.read();
            if queued == pulse.queued {
                return pulse;
            }
        }
    }
}

impl Pulse {
    /// The silence between two turns.
    fn since(self, before: Pulse) -> Silence {
        let clock = self.at - before.at;
        let own = clock.saturating_sub(TURN + (self.queued - before.queued));
        Silence { own, worked: self.worked - before.worked, machine: Duration::ZERO, clock }
    }
}

/// What the hypervisor has taken from all processors so far.
fn stolen(stat: &File) -> Duration {
    let mut text = [0; 160];
    let length = stat.read_at(&mut text, 0).expect("/proc/stat");
    let text = String::from_utf8_lossy(&text[..length]);
    let ticks = text.split_whitespace().nth(8).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second()).expect("few")
}

/// What threads of this process have stood in a queue for that are there now, but for some.
fn queued_others(but: &[String]) -> Duration {
    let tasks = fs::read_dir("/proc/self/task").expect("procfs").flatten();
    let others = tasks.filter_map(|task| task.file_name().into_string().ok()).filter(|id| !but.contains(id));
    // One may end meanwhile.
    let files = others.filter_map(|id| File::open(format!("/proc/self/task/{id}/schedstat")).ok());
    let read = |file: File| {
        let mut text = [0; 96];
        let length = file.read_at(&mut text, 0).ok()?;
        std::str::from_utf8(&text[..length]).ok()?.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Duration::from_nanos(files.filter_map(read).sum())
}

/// The longest silences since the last question.
#[derive(Default)]
pub(crate) struct Watch {
    longest: Mutex<Silence>,
    /// By the machine, so far.
    taken: Mutex<Duration>,
}

impl Watch {
    fn note(&self, silence: Silence) {
        let mut longest = self.longest.lock().expect("nobody panics here");
        *longest = longest.or_longer(silence);
    }

    pub(crate) fn take(&self) -> Silence {
        std::mem::take(&mut *self.longest.lock().expect("nobody panics here"))
    }

    fn taken(&self) -> Duration {
        *self.taken.lock().expect("nobody panics here")
    }

    /// Notes a silence before which so much had been taken, once it is known how much was taken in
    /// it.
    async fn note_later(self: Arc<Self>, silence: Silence, before: Duration) {
        tokio::time::sleep(COUNTED).await;
        let blocked = silence.own.saturating_sub(silence.worked);
        let own = silence.own - blocked.min(self.taken().saturating_sub(before));
        self.note(Silence { own, ..silence });
    }

    /// Watches a runtime from now on. To be called on the thread that runs it, if it has one only.
    pub(crate) fn begin(flavour: Flavour, runtime: &Handle) -> Arc<Self> {
        let watch = Arc::new(Watch::default());
        let runners = Runners::of_runtime(flavour);
        let mut known = runners.ids.clone();
        let own = Arc::clone(&watch);
        runtime.spawn(async move {
            let mut last = None::<(Pulse, Duration)>;
            loop {
                let now = runners.pulse();
                if let Some((last, taken)) = last {
                    let silence = now.since(last);
                    if silence.own > LONG {
                        tokio::spawn(Arc::clone(&own).note_later(silence, taken));
                    } else {
                        own.note(silence);
                    }
                }
                last = Some((now, own.taken()));
                tokio::time::sleep(TURN).await;
            }
        });
        let beside = Arc::clone(&watch);
        thread::spawn(move || {
            let (runners, stat) = (Runners::of_this_thread(), File::open("/proc/stat").expect("procfs"));
            known.extend_from_slice(&runners.ids);
            let (mut last, mut queued) = (runners.pulse(), Duration::ZERO);
            let mut queued_before = queued_others(&known);
            for turn in 0_u32.. {
                if turn % ASKED_EACH == 0 {
                    let now = queued_others(&known);
                    // Less, when one has ended.
                    queued += now.saturating_sub(queued_before);
                    queued_before = now;
                    *beside.taken.lock().expect("nobody panics here") = stolen(&stat) + queued;
                }
                thread::sleep(TURN);
                let now = runners.pulse();
                beside.note(Silence { machine: now.since(last).own, ..Silence::default() });
                last = now;
            }
        });
        watch
    }
}
