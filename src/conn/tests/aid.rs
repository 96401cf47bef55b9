//! What all of these tests use.

use std::collections::BTreeMap;
use std::sync::Once;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::sync::{Mutex, lock};

/// What each test does at the moment, and how many notes it has made, by its name.
static NOTES: Mutex<BTreeMap<String, (u64, String)>> = Mutex::new(BTreeMap::new());

/// Notes what the running test does now; the watchdog prints the latest note, and sees that the
/// test goes on.
pub(super) fn note(text: String) {
    if let Some(name) = std::thread::current().name() {
        let mut notes = lock(&NOTES);
        let note = notes.entry(name.to_owned()).or_default();
        *note = (note.0 + 1, text);
    }
}

/// Runs `test` on a thread of its own; a test that hangs ends the process with its name. One of
/// many cases has that time for each, as long as it notes them.
#[track_caller]
pub(super) fn watched(test: impl FnOnce() + Send + 'static) {
    static MANY_DESCRIPTORS: Once = Once::new();
    // All tests together have more sockets than the usual limit.
    MANY_DESCRIPTORS.call_once(|| {
        let limits = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits }).expect("a soft limit");
    });
    const DEADLINE: Duration = Duration::from_secs(300);
    let caller = std::panic::Location::caller().to_string();
    // The harness names the thread of each test, unless it runs them one by one.
    let name = std::thread::current().name().filter(|name| *name != "main").map_or(caller, str::to_owned);
    let (ended, end) = channel::<()>();
    let runner = std::thread::Builder::new().name(name.clone()).spawn(move || {
        // Dropped on return and on unwinding alike.
        let _ended = ended;
        test();
    });
    let mut seen = 0;
    while end.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
        use std::io::Write;
        let (notes, at) = lock(&NOTES).get(&name).cloned().unwrap_or_default();
        if std::mem::replace(&mut seen, notes) == notes {
            let _ = writeln!(std::io::stderr(), "\ntest {name} hangs: no end after {DEADLINE:?}; {at}");
            std::process::abort();
        }
    }
    if let Err(panic) = runner.expect("a thread").join() {
        std::panic::resume_unwind(panic);
    }
}

/// A byte that tells its place in the stream.
fn at(place: u64) -> u8 {
    (place.wrapping_mul(0x9E37_79B1) >> 11) as u8
}

pub(super) fn bytes(from: u64, length: usize) -> Vec<u8> {
    (from..from + length as u64).map(at).collect()
}
