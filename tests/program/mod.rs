//! Runs an example of this package as a user would, with a watchdog.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// The example `name` as cargo built it together with the running test.
pub(crate) fn example(name: &str) -> Command {
    let test = std::env::current_exe().expect("the test has a path");
    let profile = test.ancestors().nth(2).expect("tests live in <profile>/deps");
    let path: PathBuf = profile.join("examples").join(name);
    assert!(path.is_file(), "{} is missing: `cargo test` without --test builds the examples", path.display());
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A running program; it is killed when it is dropped.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("the example starts"))
    }

    /// The next line of standard output, which must come within `limit`.
    pub(crate) fn line(&mut self, limit: Duration) -> String {
        let mut stdout = self.0.stdout.take().expect("stdout is piped");
        let (line, reader) = mpsc::channel();
        thread::spawn(move || {
            // Byte by byte, so that nothing behind the line is taken.
            let (mut bytes, mut byte) = (Vec::new(), [0]);
            while matches!(stdout.read(&mut byte), Ok(1)) && byte[0] != b'\n' {
                bytes.push(byte[0]);
            }
            // Nobody waits any more when it came too late.
            let _ = line.send((bytes, stdout));
        });
        let (bytes, stdout) = reader.recv_timeout(limit).expect("the example prints a line in time");
        self.0.stdout = Some(stdout);
        String::from_utf8(bytes).expect("the output is text")
    }

    /// Waits for the end, at most for `limit`; returns what is left of the output.
    pub(crate) fn finish(mut self, limit: Duration) -> Output {
        fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                pipe.expect("the pipe is not taken").read_to_end(&mut bytes).expect("the output can be read");
                bytes
            })
        }
        let stdout = drain(self.0.stdout.take());
        let stderr = drain(self.0.stderr.take());
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.0.try_wait().expect("the child can be waited for") {
                break Some(status);
            }
            if Instant::now() >= deadline {
                self.0.kill().expect("the child can be killed");
                break None;
            }
            thread::sleep(Duration::from_millis(10));
        };
        let stdout = stdout.join().expect("the reader does not panic");
        let stderr = stderr.join().expect("the reader does not panic");
        let Some(status) = status else {
            panic!(
                "not done within {limit:?}; stdout: {} stderr: {}",
                String::from_utf8_lossy(&stdout),
                String::from_utf8_lossy(&stderr)
            );
        };
        Output { status, stdout, stderr }
    }
}

/// Both outputs as text, for messages and searches.
pub(crate) fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}
