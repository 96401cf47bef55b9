//! Another process: this binary once more, in whatever namespaces the words before it put it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What an actor shall be.
const ROLE: &str = "SMC_TEST_NAMESPACE_ROLE";
/// What an actor says begins with this; libtest writes to the same pipe.
const MARK: char = '@';

/// A running actor. It is killed when this is dropped, and ends by itself when its director does.
pub(crate) struct Actor {
    role: String,
    process: Child,
    words: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Actor {
    pub(crate) fn start<S: AsRef<str>>(before: &[S], role: &str) -> Self {
        let exe = std::env::current_exe().expect("the test binary");
        let exe = exe.to_str().expect("a path in UTF-8");
        let words = before.iter().map(AsRef::as_ref);
        let words: Vec<&str> =
            words.chain([exe, "actor", "--exact", "--nocapture", "--test-threads=1"]).collect();
        Self::run(&words, role)
    }

    /// A program that is none of ours and says nothing.
    pub(crate) fn program(words: &[&str]) -> Self {
        Self::run(words, words[0])
    }

    fn run(words: &[&str], role: &str) -> Self {
        let mut command = Command::new(words[0]);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"SMC_LO") {
                command.env_remove(name);
            }
        }
        let mut process = command
            .args(&words[1..])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("an actor");
        let answers = BufReader::new(process.stdout.take().expect("piped"));
        let words = process.stdin.take().expect("piped");
        Actor { role: role.to_owned(), process, words, answers }
    }

    pub(crate) fn process(&self) -> &Child {
        &self.process
    }

    #[track_caller]
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let length = self.answers.read_line(&mut line).expect("an answer");
            assert_ne!(length, 0, "{}: ended without an answer (its panic is above)", self.role);
            if let Some((_, said)) = line.trim_end().split_once(MARK) {
                return said.to_owned();
            }
        }
    }

    #[track_caller]
    pub(crate) fn say(&mut self, word: &str) {
        writeln!(self.words, "{word}").unwrap_or_else(|error| panic!("{}: {error}", self.role));
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The role this process was started in, if it is an actor.
pub(crate) fn role() -> Option<String> {
    let role = std::env::var(ROLE).ok()?;
    let kill = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(kill).expect("the kernel watches the director");
    // The director waits for this process, and not for a task of it.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        hook(panic);
        std::process::abort();
    }));
    Some(role)
}

/// Answers the director.
pub(crate) fn tell(answer: &str) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{MARK}{answer}").expect("the director listens");
    stdout.flush().expect("the director listens");
}

/// The director's next word; `None` when it is gone.
pub(crate) fn next_word() -> Option<String> {
    let mut line = String::new();
    let n = std::io::stdin().read_line(&mut line).expect("stdin");
    (n > 0).then(|| line.trim_end().to_owned())
}
