//! A worker: a process with one listener and as many streams as it is told to make. Its first
//! thread hears the words of the orchestrator, so that it answers also when all else stands still.

use std::fs;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::child::{next_word, tell};
use crate::faults::{self, Limits};
use crate::plant::Plant;
use crate::report;
use crate::usage::Usage;
use crate::{async_worker, thread_worker};

/// What a worker's streams are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// tokio's scheduler of one thread.
    CurrentThread,
    MultiThread,
    /// The crate's streams that block.
    Blocking,
    /// std's TCP, in a process that knows nothing of the crate.
    Plain,
}

pub(crate) const KINDS: [Kind; 4] = [Kind::CurrentThread, Kind::MultiThread, Kind::Blocking, Kind::Plain];

impl Kind {
    pub(crate) fn has_runtime(self) -> bool {
        matches!(self, Kind::CurrentThread | Kind::MultiThread)
    }
}

/// What the thread that owns the streams is told.
#[derive(Debug)]
pub(crate) enum Order {
    Connect(u64, SocketAddr),
    /// A connection with itself, which leaves what a first connection leaves.
    WarmUp,
    /// Another listener on the same port.
    Restart,
    /// Another runtime in the place of this one, whose streams go with it.
    Drop,
    /// The same, and nobody waits for what it runs.
    DropInBackground,
    Quit,
}

/// Where a worker listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    pub(crate) seed: u64,
    pub(crate) address: SocketAddr,
    /// Another process has the same port.
    pub(crate) shared: bool,
}

/// A reading of a process that is at rest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub(crate) usage: Usage,
    pub(crate) threads: u64,
    /// TCP sockets, its listener's among them.
    pub(crate) tcp: u64,
    /// Streams that the crate has not seen closed.
    pub(crate) streams: u64,
}

impl Reading {
    fn here() -> Self {
        let threads = fs::read_dir("/proc/self/task").map_or(0, |tasks| tasks.count() as u64);
        let streams = tokio_smc::stats().streams_open;
        Self { usage: Usage::here(), threads, tcp: tcp_sockets(), streams }
    }

    fn to_line(self) -> String {
        format!("{} {} {} {}", self.threads, self.tcp, self.streams, self.usage.to_line())
    }

    pub(crate) fn from_line(line: &str) -> Self {
        let mut words = line.splitn(4, ' ');
        let mut number = || words.next().and_then(|word| word.parse().ok()).expect("a number");
        let (threads, tcp, streams) = (number(), number(), number());
        Self { usage: Usage::from_line(words.next().expect("usage")), threads, tcp, streams }
    }
}

/// Descriptors of this process that the kernel lists among its TCP sockets.
fn tcp_sockets() -> u64 {
    let table = fs::read_to_string("/proc/self/net/tcp").expect("procfs");
    let inodes: Vec<_> = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(9)).collect();
    let names: std::collections::HashSet<_> =
        inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let held = fs::read_dir("/proc/self/fd").expect("procfs").flatten();
    let tcp = held.filter(|entry| {
        fs::read_link(entry.path()).is_ok_and(|to| names.contains(to.to_string_lossy().as_ref()))
    });
    tcp.count() as u64
}

/// How the connection with itself went.
pub(crate) fn tell_warm(result: std::io::Result<()>) {
    match result {
        Ok(()) => tell("warm"),
        Err(error) => tell(&format!("warm {error}")),
    }
}

/// The runtime of this worker, if it has one right now.
pub(crate) type Current = Arc<Mutex<Option<Handle>>>;

/// Lives until it is told to go, or its parent is gone.
pub(crate) fn work(kind: Kind, seat: Seat, log: &str) {
    faults::log_to(log);
    report::tell_panics();
    let limits = Limits::now();
    let current = Current::default();
    let (orders, inbox) = order_channel(kind);
    let owner = {
        let current = Arc::clone(&current);
        thread::Builder::new().name("owner".to_owned()).spawn(move || match inbox {
            Inbox::Tasks(inbox, flavour) => async_worker::run(flavour, seat, inbox, &current),
            Inbox::Threads(inbox) => thread_worker::run(kind, seat, &inbox),
        })
    };
    let owner = owner.expect("a thread");
    while let Some(word) = next_word() {
        faults::reap();
        let words: Vec<_> = word.split(' ').collect();
        let number = |word: &str| word.parse::<u64>().expect("a number");
        match words[..] {
            ["connect", id, address] => {
                orders.give(Order::Connect(number(id), address.parse().expect("an address")));
            }
            ["warm-up"] => orders.give(Order::WarmUp),
            ["restart"] => orders.give(Order::Restart),
            ["drop"] => orders.give(Order::Drop),
            ["drop-in-background"] => orders.give(Order::DropInBackground),
            ["quit"] => {
                orders.give(Order::Quit);
                break;
            }
            ["limit", what, amount] => limits.lower(what, number(amount)),
            ["no-limit"] => limits.restore(),
            ["fork", what, milliseconds] => faults::fork(what, Duration::from_millis(number(milliseconds))),
            ["usage"] => {
                let handle = current.lock().expect("no panic here").clone();
                let _entered = handle.as_ref().map(Handle::enter);
                tell(&format!("usage {}", Reading::here().to_line()));
            }
            ["diagnose"] => report::diagnose(),
            _ => panic!("no word {word}"),
        }
        leave_behind();
    }
    // The parent is gone if it did not say so.
    owner.join().expect("the owner of the streams");
}

/// The plants that are about what is left behind.
fn leave_behind() {
    Plant::Descriptor.sow(|| std::mem::forget(fs::File::open("/dev/null")));
    Plant::Thread.sow(|| drop(thread::spawn(|| thread::sleep(Duration::MAX))));
    Plant::SharedMemory.sow(|| {
        let file = rustix::fs::memfd_create("left", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
        rustix::io::write(&file, &vec![1; 4 << 20]).expect("memory");
        std::mem::forget(file);
    });
    Plant::DirectoryEntry.sow(|| {
        let dir = std::env::var("SMC_LO_DIR").expect("a device");
        let _ = fs::write(format!("{dir}/left"), "");
    });
}

enum Orders {
    Tasks(tokio::sync::mpsc::UnboundedSender<Order>),
    Threads(Sender<Order>),
}

enum Inbox {
    Tasks(tokio::sync::mpsc::UnboundedReceiver<Order>, crate::watchdog::Flavour),
    Threads(Receiver<Order>),
}

fn order_channel(kind: Kind) -> (Orders, Inbox) {
    use crate::watchdog::Flavour;
    let flavour = match kind {
        Kind::CurrentThread => Flavour::CurrentThread,
        Kind::MultiThread => Flavour::MultiThread,
        Kind::Blocking | Kind::Plain => {
            let (orders, inbox) = channel();
            return (Orders::Threads(orders), Inbox::Threads(inbox));
        }
    };
    let (orders, inbox) = tokio::sync::mpsc::unbounded_channel();
    (Orders::Tasks(orders), Inbox::Tasks(inbox, flavour))
}

impl Orders {
    fn give(&self, order: Order) {
        let taken = match self {
            Orders::Tasks(orders) => orders.send(order).is_ok(),
            Orders::Threads(orders) => orders.send(order).is_ok(),
        };
        assert!(taken, "the owner of the streams is there");
    }
}
