//! Two processes of this program, and how neither outlives the other or hangs for good.

use std::io::{self, Read as _, Write as _};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use crate::cli::{ProcessOptions, RunOptions};
use crate::client;
use crate::failure::{Explain, Failure, Outcome};

/// How long a process may take to start listening, or to end when it is told to.
const SHORT_WHILE: Duration = Duration::from_secs(10);

/// Starts a server and a client and waits for both; the client writes the results to our standard
/// output.
pub(crate) fn compare(process: &ProcessOptions, options: &RunOptions) -> Outcome<()> {
    // This process only waits: one thread, asleep, takes nothing from the two that are measured.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .explain(|| "starting the runtime".to_owned())?;
    runtime.block_on(async {
        let mut arguments = vec!["serve".to_owned(), "127.0.0.1:0".to_owned()];
        arguments.extend(process.child_arguments());
        let (mut server, server_tether) =
            start(&arguments, Stdio::piped()).explain(|| "starting the server process".to_owned())?;
        let addr = tokio::time::timeout(SHORT_WHILE, listening_on(&mut server))
            .await
            .map_err(|_| Failure::new("the server process does not start to listen"))??;

        let mut arguments = vec!["run".to_owned(), addr];
        arguments.extend(process.child_arguments());
        arguments.extend(options.child_arguments());
        let (mut client, _client_tether) =
            start(&arguments, Stdio::inherit()).explain(|| "starting the client process".to_owned())?;
        let status = tokio::select! {
            status = client.wait() => status.explain(|| "waiting for the client process".to_owned())?,
            status = server.wait() => {
                let status = status.explain(|| "waiting for the server process".to_owned())?;
                // The client finds out as well and says what it was doing.
                let _ = tokio::time::timeout(Duration::from_secs(2), client.wait()).await;
                return Err(Failure::new(format!("the server process ended early ({status})")));
            }
            () = tokio::time::sleep(client::longest(options) + SHORT_WHILE) => {
                return Err(Failure::new("the client process hangs: killed"));
            }
        };
        succeeded("client", status)?;
        drop(server_tether);
        let status = tokio::time::timeout(SHORT_WHILE, server.wait())
            .await
            .map_err(|_| Failure::new("the server process does not end: killed"))?
            .explain(|| "waiting for the server process".to_owned())?;
        succeeded("server", status)
    })
}

fn succeeded(who: &str, status: ExitStatus) -> Outcome<()> {
    if status.success() { Ok(()) } else { Err(Failure::new(format!("the {who} process failed ({status})"))) }
}

/// A process of this program, killed when its handle is dropped, and the other end of its standard
/// input, which it lives as long as (taken out of the handle because `wait` would close it).
fn start(arguments: &[String], stdout: Stdio) -> io::Result<(Child, Option<ChildStdin>)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(stdout)
        .kill_on_drop(true)
        .spawn()?;
    let tether = child.stdin.take();
    Ok((child, tether))
}

/// Reads the address from the first line that the server prints.
async fn listening_on(server: &mut Child) -> Outcome<String> {
    let Some(stdout) = server.stdout.take() else {
        return Err(Failure::new("the server process has no standard output"));
    };
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .await
        .explain(|| "reading from the server process".to_owned())?;
    line.strip_prefix("listening on ")
        .and_then(|rest| rest.split_whitespace().next())
        .map(str::to_owned)
        .ok_or_else(|| Failure::new("the server process ended before it listened"))
}

/// Ends this process when standard input ends, which is when the process that started it is gone or
/// done.
pub(crate) fn end_with_standard_input() {
    thread::spawn(|| {
        let mut nothing = [0; 64];
        while matches!(io::stdin().lock().read(&mut nothing), Ok(1..)) {}
        std::process::exit(0);
    });
}

/// Ends the process when a step takes too long even though its own limit should have ended it: a
/// task that blocks the runtime also stops the runtime's timers.
pub(crate) struct Watchdog(Arc<Guarded>);

struct Guarded {
    step: Mutex<Step>,
    changed: Condvar,
}

struct Step {
    name: String,
    deadline: Option<Instant>,
}

impl Watchdog {
    pub(crate) fn start(limit: Duration, name: &str) -> Self {
        let step = Step { name: name.to_owned(), deadline: Some(Instant::now() + limit) };
        let guarded = Arc::new(Guarded { step: Mutex::new(step), changed: Condvar::new() });
        let watched = Arc::clone(&guarded);
        thread::spawn(move || watched.watch());
        Self(guarded)
    }

    /// The next step, and when the process ends if it is still at it.
    pub(crate) fn expect(&self, limit: Duration, name: &str) {
        let mut step = self.0.lock();
        step.name = name.to_owned();
        step.deadline = Some(Instant::now() + limit);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.lock().deadline = None;
        self.0.changed.notify_all();
    }
}

impl Guarded {
    fn lock(&self) -> MutexGuard<'_, Step> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) {
        let mut step = self.lock();
        while let Some(deadline) = step.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let _ = writeln!(io::stderr().lock(), "smcperf: {}: hangs; giving up", step.name);
                std::process::exit(3);
            }
            let woken = self.changed.wait_timeout(step, left).unwrap_or_else(PoisonError::into_inner);
            step = woken.0;
        }
    }
}
