//! A demo in a process of its own, on a device of the test. Whatever can hang is under a watchdog.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::program;

pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// Where the demos of one test meet.
pub(crate) struct Device(TempDir);

/// A running demo. Dropping it kills it; it also ends with the thread that started it, however that
/// ends.
pub(crate) struct Demo {
    name: String,
    process: Child,
    lines: Receiver<String>,
    /// All that it has said so far, on either output.
    said: String,
}

impl Device {
    pub(crate) fn new() -> Self {
        Device(tempfile::tempdir().unwrap())
    }

    pub(crate) fn start(&self, name: &str, arguments: &[&str]) -> Demo {
        let test = std::env::current_exe().expect("the test has a path");
        let profile = test.ancestors().nth(2).expect("tests live in <profile>/deps");
        let path: PathBuf = profile.join("examples").join(name);
        assert!(
            path.is_file(),
            "{} is missing: `cargo test` without --test builds the examples",
            path.display()
        );
        let mut command = Command::new("setpriv");
        for (variable, _) in std::env::vars_os() {
            if variable.as_encoded_bytes().starts_with(b"SMC_LO") {
                command.env_remove(variable);
            }
        }
        command.arg("--pdeathsig=KILL").arg(path).args(arguments).env("SMC_LO_DIR", self.0.path());
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = pipes.spawn().expect("the demo starts");
        let (line, lines) = mpsc::channel();
        read(process.stdout.take().expect("piped"), line.clone());
        read(process.stderr.take().expect("piped"), line);
        Demo { name: format!("{name} {}", arguments.join(" ")), process, lines, said: String::new() }
    }

    /// Starts a demo that listens on a free port, and returns its address, too.
    pub(crate) fn serve(&self, name: &str, arguments: &[&str]) -> (Demo, SocketAddr) {
        let mut demo = self.start(name, arguments);
        let line = demo.line(" (Ctrl-C ");
        let addr = line.split(' ').find_map(|word| word.trim_start_matches("http://").parse().ok());
        (demo, addr.unwrap_or_else(|| panic!("no address in {line:?}")))
    }

    /// Runs a demo to its end: did it succeed, and what did it say?
    pub(crate) fn run(&self, name: &str, arguments: &[&str]) -> (bool, String) {
        self.start(name, arguments).finish()
    }

    /// Runs a demo that has to fail, and returns what it said.
    pub(crate) fn fails(&self, name: &str, arguments: &[&str]) -> String {
        let (success, said) = self.run(name, arguments);
        assert!(!success, "{name} {arguments:?} succeeded, and said:\n{said}");
        said
    }
}

fn read(output: impl Read + Send + 'static, line: mpsc::Sender<String>) {
    thread::spawn(move || {
        for text in BufReader::new(output).lines().map_while(Result::ok) {
            // The test may have seen enough.
            let _ = line.send(text);
        }
    });
}

impl Demo {
    /// The next line with these words in it; `None` when the demo says nothing more.
    fn next(&mut self, words: &str) -> Option<String> {
        let end = Instant::now() + LIMIT;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.said += &format!("{line}\n");
                    if line.contains(words) {
                        return Some(line);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{}: no {words:?} within {LIMIT:?}; it said:\n{}", self.name, self.said)
                }
            }
        }
    }

    /// Waits for a line with these words in it.
    pub(crate) fn line(&mut self, words: &str) -> String {
        let line = self.next(words);
        line.unwrap_or_else(|| panic!("{} ended without {words:?}; it said:\n{}", self.name, self.said))
    }

    /// Types a line.
    pub(crate) fn say(&mut self, line: &str) {
        let input = self.process.stdin.as_mut().expect("piped");
        writeln!(input, "{line}").unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process.id() as i32).expect("a process");
        kill_process(pid, signal).unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// `kill -9`; it is gone when this returns.
    pub(crate) fn kill(mut self) {
        self.process.kill().expect("kill");
        self.process.wait().expect("wait");
    }

    /// Waits for its end: did it succeed, and what has it said?
    pub(crate) fn finish(mut self) -> (bool, String) {
        drop(self.process.stdin.take());
        // No line has this in it.
        while self.next("\n").is_some() {}
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.process.try_wait().expect("wait") {
                return (status.success(), std::mem::take(&mut self.said));
            }
            assert!(Instant::now() < end, "{} closed its outputs and goes on", self.name);
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM is obeyed, and is no failure; what has been said.
    pub(crate) fn terminate(self) -> String {
        self.signal(Signal::TERM);
        let name = self.name.clone();
        let (success, said) = self.finish();
        assert!(success, "{name} fails at SIGTERM, and said:\n{said}");
        said
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a program of the system to its end; the watchdog is `timeout`.
pub(crate) fn tool(name: &str, package: &str, arguments: &[&str]) -> Output {
    let path = program::find(name, None, package);
    let output = Command::new("timeout")
        .args(["--kill-after=1", &LIMIT.as_secs().to_string()])
        .arg(path)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("timeout");
    assert_ne!(output.status.code(), Some(124), "{name} {arguments:?} hangs");
    output
}

/// A plain TCP client.
pub(crate) fn plain(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// What a server does with these bytes and the end of the stream after them.
pub(crate) fn ask(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = plain(addr);
    stream.write_all(bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

/// An address where nobody listens, as long as nobody takes it.
pub(crate) fn closed() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Waits until something is so, for things that no line tells of.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
