//! A second process: this test binary once more, running only its `child_process` test in the role
//! it is given.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child as Process, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

const ROLE: &str = "SMC_TEST_ROLE";
/// What the child says begins with this; libtest writes to the same pipe.
const MARK: char = '@';

/// A running child. It is killed when this is dropped, and ends by itself when its parent dies.
#[derive(Debug)]
pub(crate) struct Child {
    process: Process,
    words: ChildStdin,
    answers: Option<Answers>,
}

/// What a child says.
#[derive(Debug)]
pub(crate) struct Answers(BufReader<ChildStdout>);

impl Answers {
    /// The next answer; `None` when the child has ended.
    pub(crate) fn next(&mut self) -> Option<String> {
        // Of a child that was killed the last line may be half a one.
        let mut line = Vec::new();
        loop {
            line.clear();
            let n = self.0.read_until(b'\n', &mut line).expect("the child's answer");
            if n == 0 {
                return None;
            }
            let line = String::from_utf8_lossy(&line);
            if let (true, Some((_, said))) = (line.ends_with('\n'), line.trim_end().split_once(MARK)) {
                return Some(said.to_owned());
            }
        }
    }
}

impl Child {
    /// Starts a child in `role` on the device in `dir`, with more variables of the environment.
    pub(crate) fn start(role: &str, dir: &Path, variables: &[(&str, &str)]) -> Self {
        Self::start_behind(&[], role, dir, variables)
    }

    /// The same, by a command that runs what comes behind it.
    pub(crate) fn start_behind(before: &[&str], role: &str, dir: &Path, variables: &[(&str, &str)]) -> Self {
        let exe = std::env::current_exe().expect("the test binary");
        let mut words = before.iter().map(OsStr::new).chain([exe.as_os_str()]);
        let mut command = Command::new(words.next().expect("at least the test binary"));
        command.args(words);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"SMC_LO") {
                command.env_remove(name);
            }
        }
        let mut process = command
            .args(["child_process", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env("SMC_LO_DIR", AsRef::<OsStr>::as_ref(dir))
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a second process");
        let words = process.stdin.take().expect("piped");
        let answers = Some(Answers(BufReader::new(process.stdout.take().expect("piped"))));
        Self { process, words, answers }
    }

    /// The next answer of the child.
    pub(crate) fn hear(&mut self) -> String {
        let answers = self.answers.as_mut().expect("nobody else hears the child");
        answers.next().expect("the child ended without an answer (its panic is above)")
    }

    /// What the child says from now on, for a thread that does nothing but listen.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn answers(&mut self) -> Answers {
        self.answers.take().expect("nobody else hears the child")
    }

    /// Gives the child a word and waits for nothing.
    ///
    /// # Errors
    ///
    /// When it has ended.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn say(&mut self, word: &str) -> io::Result<()> {
        writeln!(self.words, "{word}")
    }

    /// Waits until the child ends by itself.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.process.wait().expect("wait")
    }

    /// Gives the child a word and waits for its answer.
    pub(crate) fn ask(&mut self, word: &str) -> String {
        writeln!(self.words, "{word}").expect("the child listens");
        self.hear()
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// `kill -9`, and the child is gone when this returns.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("kill");
        self.process.wait().expect("wait");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The role this process was started in, if it is a child. A child that has a role does not outlive
/// its parent.
pub(crate) fn role() -> Option<String> {
    let role = std::env::var(ROLE).ok()?;
    let kill = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(kill).expect("the kernel watches the parent");
    Some(role)
}

/// Answers the parent.
pub(crate) fn tell(answer: &str) {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{MARK}{answer}").expect("the parent listens");
    stdout.flush().expect("the parent listens");
}

/// The parent's next word; `None` when it is gone.
pub(crate) fn next_word() -> Option<String> {
    let mut line = String::new();
    let n = std::io::stdin().read_line(&mut line).expect("stdin");
    (n > 0).then(|| line.trim_end().to_owned())
}
