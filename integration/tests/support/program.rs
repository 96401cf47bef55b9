//! A server program of the system, run for one test on a free port, gone when the test is.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

/// Somebody else may take the free port in the meantime.
const ATTEMPTS: usize = 5;

/// A running server. Dropping it stops it; it also ends when the thread that started it does,
/// however that ends.
#[derive(Debug)]
pub(crate) struct Program {
    process: Child,
    pub(crate) addr: SocketAddr,
}

impl Program {
    /// Starts what `command` makes for a port, and waits for the line of its output that has
    /// `ready` in it.
    pub(crate) fn start(ready: &str, mut command: impl FnMut(u16) -> Command) -> Self {
        let mut told = String::new();
        for _ in 0..ATTEMPTS {
            let addr = free_addr();
            let mut command = command(addr.port());
            let process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut process = process.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
            let (out, err) = (process.stdout.take().expect("piped"), process.stderr.take().expect("piped"));
            let program = Program { process, addr };
            // One of the two is where it logs; neither may fill up.
            let (lines, line) = std::sync::mpsc::channel();
            read(out, lines.clone());
            read(err, lines);
            for line in line {
                if line.contains(ready) {
                    return program;
                }
                told = told + &line + "\n";
            }
        }
        panic!("the server did not start, and said:\n{told}");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Not killed at once: it may have children and shared memory to clean up.
        let stop = format!("kill -s INT {}", self.process.id());
        if !Command::new("sh").args(["-c", &stop]).status().is_ok_and(|status| status.success()) {
            // It may have ended by itself.
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}

/// A command that ends when the thread that starts it does, run as `user` where one is named.
pub(crate) fn command(program: &Path, user: Option<&str>) -> Command {
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig=INT");
    if let Some(user) = user {
        command.args(["--reuid", user, "--regid", user, "--init-groups"]);
    }
    command.arg(program);
    command
}

/// Reads lines until the program ends, whether or not anybody wants them still.
fn read(output: impl Read + Send + 'static, lines: std::sync::mpsc::Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
    });
}

fn free_addr() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
}

/// The path of a program, found as the shell does or in one more directory; without it the test
/// fails, and says what to install.
pub(crate) fn find(name: &str, also_in: Option<&Path>, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(also_in.map(Path::to_path_buf))
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
        .unwrap_or_else(|| {
            panic!("{name} is missing: install Debian's package `{package}` (ci/setup.sh does), this test needs it")
        })
}
