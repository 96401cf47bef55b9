//! A deadline for every test: what hangs is named, with the step it stood at, and the process ends.

use std::cell::RefCell;
use std::io::Write;
use std::panic::{Location, resume_unwind};
use std::process::abort;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// Long enough for the slowest machine: it catches hangs, it measures nothing.
const DEADLINE: Duration = Duration::from_secs(300);

type Label = Arc<Mutex<String>>;

thread_local! {
    static LABEL: RefCell<Option<Label>> = const { RefCell::new(None) };
}

/// Which of tokio's schedulers a body runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Flavour {
    CurrentThread,
    MultiThread,
}

impl Flavour {
    /// A runtime whose workers report their steps to the test that made it.
    pub(crate) fn runtime(self) -> Runtime {
        let mut builder = match self {
            Self::CurrentThread => Builder::new_current_thread(),
            Self::MultiThread => {
                let mut builder = Builder::new_multi_thread();
                builder.worker_threads(2);
                builder
            }
        };
        let label = LABEL.with_borrow(Clone::clone);
        builder.enable_all().on_thread_start(move || LABEL.set(label.clone()));
        builder.build().expect("a runtime")
    }
}

/// Notes what the running test does now; the watchdog prints the latest note.
pub(crate) fn step(label: impl Into<String>) {
    LABEL.with_borrow(|current| {
        if let Some(current) = current {
            *current.lock().expect("no test panics while it names its step") = label.into();
        }
    });
}

/// The name of the running test, as the harness has given it to the thread; where tests run one by
/// one on the main thread, the place that asks.
#[track_caller]
pub(crate) fn own_name() -> String {
    let caller = Location::caller().to_string();
    thread::current().name().filter(|name| *name != "main").map_or(caller, str::to_owned)
}

/// Runs `body` on both of tokio's schedulers, one after the other, each under the watchdog.
#[allow(dead_code, reason = "not every test is about both")]
#[track_caller]
pub(crate) fn on_both_schedulers(body: impl AsyncFn() + Copy + Send + 'static) {
    for flavour in [Flavour::CurrentThread, Flavour::MultiThread] {
        watched(move || {
            step(format!("{flavour:?}"));
            flavour.runtime().block_on(body());
        });
    }
}

/// Runs `body` on a thread of its own and aborts the process, naming test and step, when it
/// outlives the deadline.
#[track_caller]
pub(crate) fn watched<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let name = own_name();
    let deadline = std::env::var("SMC_TEST_DEADLINE_S")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .map_or(DEADLINE, Duration::from_secs);
    let label: Label = Arc::new(Mutex::new("start".to_owned()));
    let shown = Arc::clone(&label);
    let (ended, end) = channel::<()>();
    let runner = thread::Builder::new()
        .name(name.clone())
        .spawn(move || {
            LABEL.set(Some(label));
            // Dropped on return and on unwinding alike: either way the receiver wakes.
            let _ended = ended;
            body()
        })
        .expect("a thread");
    if end.recv_timeout(deadline) == Err(RecvTimeoutError::Timeout) {
        let step = shown.lock().map(|step| step.clone()).unwrap_or_default();
        let mut stderr = std::io::stderr();
        let _ = writeln!(stderr, "\ntest {name} hangs: no end after {deadline:?}, last step: {step}");
        abort();
    }
    runner.join().unwrap_or_else(|panic| resume_unwind(panic))
}
