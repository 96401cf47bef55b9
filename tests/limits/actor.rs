//! The other processes of the laboratory: this test binary once more, each driven by words and
//! answering each.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::report::Report;

const ROLE: &str = "SMC_TEST_ROLE";
const LIMIT: &str = "SMC_TEST_LIMIT";
/// What an actor says begins with this; libtest writes to the same pipe.
const MARK: char = '@';
/// What takes longer hangs. Nothing here takes a second on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How an actor is started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Start {
    before: Vec<String>,
    variables: Vec<(&'static str, String)>,
}

impl Start {
    /// On the device in `dir`, with the upgrades of `policy`.
    pub(crate) fn on(dir: &Path, policy: &str) -> Self {
        let variables =
            vec![("SMC_LO_DIR", dir.display().to_string()), ("SMC_LO_UPGRADE", policy.to_owned())];
        Self { before: Vec::new(), variables }
    }

    /// Through another program, such as `setpriv`.
    pub(crate) fn through(mut self, words: &[&str]) -> Self {
        self.before = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.variables.push((name, value.to_string()));
        self
    }

    /// Under a limit from before the first use of the library on.
    pub(crate) fn limited(self, limit: &str) -> Self {
        self.with(LIMIT, limit)
    }

    /// The heap is taken at once and kept, so that a limit on memory meets the library and not the
    /// test's own tasks.
    pub(crate) fn with_a_heap_of_its_own(self) -> Self {
        let bytes = 48 << 20;
        self.with("MALLOC_ARENA_MAX", 1)
            .with("MALLOC_TOP_PAD_", bytes)
            .with("MALLOC_TRIM_THRESHOLD_", 4 * bytes)
            .with("MALLOC_MMAP_THRESHOLD_", 16 << 20)
    }

    pub(crate) fn role(&self, role: &str) -> Actor {
        let exe = std::env::current_exe().expect("the test binary").display().to_string();
        let mut words = self.before.clone();
        words.extend(
            [exe.as_str(), "child_process", "--exact", "--nocapture", "--test-threads=1"].map(Into::into),
        );
        let mut command = Command::new(&words[0]);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"SMC_LO") {
                command.env_remove(name);
            }
        }
        let mut process = command
            .args(&words[1..])
            .env(ROLE, role)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("another process");
        let stdout = BufReader::new(process.stdout.take().expect("piped"));
        let (send, answers) = channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let said = line.split_once(MARK).map(|(_, said)| said.to_owned());
                // Nobody listens any more when the test is over.
                let _ = said.map(|said| send.send(said));
            }
        });
        let words = process.stdin.take();
        Actor { role: role.to_owned(), process, words, answers, kept: Vec::new() }
    }
}

/// A running process of the laboratory. It is killed when this is dropped, and does not outlive its
/// parent.
#[derive(Debug)]
pub(crate) struct Actor {
    role: String,
    process: Child,
    words: Option<ChildStdin>,
    answers: Receiver<String>,
    /// Answers to other words than the one that was waited for.
    kept: Vec<String>,
}

impl Actor {
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn say(&mut self, words: &str) -> Result<(), String> {
        let stdin = self.words.as_mut().expect("it has not been told to end");
        writeln!(stdin, "{words}").map_err(|error| format!("{} does not hear {words:?}: {error}", self.role))
    }

    /// The answer to a word that was said, whatever else is answered meanwhile.
    pub(crate) fn answer(&mut self, word: &str) -> Result<String, String> {
        let started = Instant::now();
        loop {
            let fits = |said: &String| said.split(' ').next() == Some(word);
            if let Some(index) = self.kept.iter().position(fits) {
                let said = self.kept.remove(index);
                return Ok(said[word.len()..].trim_start().to_owned());
            }
            match self.answers.recv_timeout(PATIENCE.saturating_sub(started.elapsed())) {
                Ok(said) => self.kept.push(said),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("{} hangs: no answer to {word:?} after {PATIENCE:?}", self.role));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.process.wait().expect("wait");
                    return Err(format!("{} died before it answered {word:?}: {status}", self.role));
                }
            }
        }
    }

    pub(crate) fn ask(&mut self, words: &str) -> Result<String, String> {
        self.say(words)?;
        self.answer(words.split(' ').next().expect("a word"))
    }

    /// Like `ask`, for words whose only good answer is `ok`.
    pub(crate) fn tell(&mut self, words: &str) -> Result<(), String> {
        self.say(words)?;
        self.done(words.split(' ').next().expect("a word"))
    }

    /// The answer to a word that was said, which must be `ok`.
    pub(crate) fn done(&mut self, word: &str) -> Result<(), String> {
        match self.answer(word)?.as_str() {
            "ok" => Ok(()),
            other => Err(format!("{}: {word}: {other}", self.role)),
        }
    }

    pub(crate) fn report(&mut self) -> Result<Report, String> {
        Ok(Report::from_line(&self.ask("report")?))
    }

    /// Whether it runs on; a process that was killed by a signal does not.
    pub(crate) fn end(mut self) -> Result<(), String> {
        self.words = None;
        let started = Instant::now();
        loop {
            match self.process.try_wait().expect("wait") {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("{} ended badly: {status}", self.role)),
                None if started.elapsed() > PATIENCE => return Err(format!("{} does not end", self.role)),
                None => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Waits for a death that is part of the play.
    pub(crate) fn wait_for_death(mut self) {
        let started = Instant::now();
        while self.process.try_wait().expect("wait").is_none() {
            assert!(started.elapsed() < PATIENCE, "{} does not die", self.role);
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

// ---- in the actor ----

/// The role this process was started in, and the limit it is under from the start.
pub(crate) fn role() -> Option<(String, Option<String>)> {
    let role = std::env::var(ROLE).ok()?;
    let kill = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(kill).expect("the kernel watches the parent");
    Some((role, std::env::var(LIMIT).ok()))
}

/// Says something to the parent: the word that is answered, then the answer.
pub(crate) fn tell(word: &str, answer: &str) {
    let line = format!("{MARK}{word} {answer}\n");
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(line.as_bytes()).expect("the parent listens");
    stdout.flush().expect("the parent listens");
}
