//! The program that holds tokio and this crate to the same checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::checks::{Check, check};
use crate::locked::{HOME, Tokio, cargo};
use crate::offers::{Offer, What, offers};
use crate::watchdog::step;

/// More than one error hides behind another; never so many.
const ROUNDS: usize = 12;

/// What this crate does not offer as tokio does, one line each.
pub(crate) fn findings(tokio: &Tokio, directory: &Path) -> Vec<String> {
    step(format!("reading {}", tokio.root.display()));
    let offers = offers(tokio);
    assert!(offers.len() > 140, "only {} offers of tokio were found", offers.len());
    Program::new(tokio, directory, &offers).findings()
}

struct Program<'a> {
    tokio: &'a Tokio,
    directory: PathBuf,
    offers: &'a [Offer],
    checks: BTreeMap<usize, Check>,
    /// What has been found, by offer.
    found: BTreeMap<usize, Vec<String>>,
}

impl<'a> Program<'a> {
    fn new(tokio: &'a Tokio, directory: &Path, offers: &'a [Offer]) -> Self {
        let (mut checks, mut found) = (BTreeMap::new(), BTreeMap::new());
        for (place, offer) in offers.iter().enumerate() {
            match check(&module(place), offer) {
                Ok(check) => drop(checks.insert(place, check)),
                Err(reason) => drop(found.insert(place, vec![format!("can not be checked: {reason}")])),
            }
        }
        Self { tokio, directory: directory.to_owned(), offers, checks, found }
    }

    fn findings(mut self) -> Vec<String> {
        self.manifest();
        let mut executable = None;
        for round in 0..ROUNDS {
            self.sources();
            step(format!("building the checks, round {round}"));
            executable = self.build();
            if executable.is_some() {
                break;
            }
        }
        let executable = executable.expect("a program, once all that does not compile is left out");
        step("running the checks");
        let run = Command::new(executable).output().expect("the program runs");
        assert!(run.status.success(), "the program failed: {}", String::from_utf8_lossy(&run.stderr));
        self.compare(&String::from_utf8(run.stdout).expect("text"));
        let offers = self.offers;
        let version = &self.tokio.version;
        let line = |place: usize, what: String| {
            let Offer { name, text, place, .. } = &offers[place];
            format!("{name} {what}; tokio {version} has `{text}` ({place})")
        };
        let found = self.found.into_iter();
        found.flat_map(|(place, found)| found.into_iter().map(move |what| line(place, what))).collect()
    }

    fn manifest(&self) {
        // Cargo tells packages in one target directory apart by their names, not by where they are.
        let name = self.directory.file_name().expect("a name");
        let manifest = format!(
            "[package]\nname = {name:?}\nversion = \"0.0.0\"\nedition = \"2024\"\npublish = false\n\n\
             [workspace]\n\n[dependencies]\nbytes = \"1\"\n\
             tokio = {{ version = \"={}\", features = [\"full\"] }}\ntokio-smc = {{ path = {HOME:?} }}\n\n\
             [profile.dev]\ndebug = false\n",
            self.tokio.version
        );
        fs::create_dir_all(self.directory.join("src")).expect("a directory");
        write(&self.directory.join("Cargo.toml"), &manifest);
        write(&self.directory.join("src/probes.rs"), include_str!("probes.rs"));
        // The versions that this crate is tested with, so that nothing has to be fetched.
        fs::copy(Path::new(HOME).join("Cargo.lock"), self.directory.join("Cargo.lock")).expect("a copy");
    }

    fn sources(&self) {
        for (file, whose) in [("ours", "tokio_smc"), ("theirs", "tokio")] {
            let mut text = String::new();
            for place in 0..self.offers.len() {
                let code = self.checks.get(&place).map_or("", |check| &check.code);
                writeln!(text, "{}", code.replace("WHOSE", whose)).expect("memory");
            }
            write(&self.directory.join(format!("src/{file}.rs")), &text);
        }
        let mut main =
            "#![allow(warnings)]\n#[macro_use]\nmod probes;\nmod ours;\nmod theirs;\nfn main() {\n\
             probes::self_check();\n"
                .to_owned();
        for (&place, check) in &self.checks {
            let mut ask = |what| {
                let module = module(place);
                writeln!(
                    main,
                    "println!(\"{what}\\t{place}\\t{{}}\\t{{}}\", ours::{module}::{what}().join(\"|\"), \
                     theirs::{module}::{what}().join(\"|\"));"
                )
                .expect("memory");
            };
            if check.autos {
                ask("autos");
            }
            if check.panics {
                ask("panics");
            }
            if check.autos && matches!(self.offers[place].what, What::Type) {
                let module = module(place);
                writeln!(main, "println!(\"type\\t{place}\\t{{}}\\t\", ours::{module}::type_name());")
                    .expect("memory");
            }
        }
        main.push_str("}\n");
        write(&self.directory.join("src/main.rs"), &main);
    }

    /// The program, or `None` when checks had to be left out.
    fn build(&mut self) -> Option<PathBuf> {
        let built = cargo()
            .args(["build", "--offline", "--quiet", "--message-format=json", "--manifest-path"])
            .arg(self.directory.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("surface-target"))
            .output()
            .expect("cargo");
        let messages: Vec<Value> = String::from_utf8_lossy(&built.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        if built.status.success() {
            let executable = messages.iter().find_map(|message| message["executable"].as_str());
            return Some(executable.expect("an executable").into());
        }
        let mut failed = BTreeMap::<usize, BTreeSet<&str>>::new();
        let mut foreign = Vec::new();
        for message in messages.iter().map(|message| &message["message"]) {
            if message["level"] != "error" || message["spans"].as_array().is_none_or(Vec::is_empty) {
                continue;
            }
            let rendered = message["rendered"].as_str().unwrap_or_default();
            match blamed(message) {
                Some((place, true)) => {
                    failed
                        .entry(place)
                        .or_default()
                        .insert(message["code"]["code"].as_str().unwrap_or_default());
                }
                // A doctored tokio offers what the real one has not.
                Some((place, false)) => {
                    failed.entry(place).or_default();
                    if !self.doctored() {
                        foreign.push(rendered);
                    }
                }
                None => foreign.push(rendered),
            }
        }
        assert!(
            foreign.is_empty() && !failed.is_empty(),
            "the checks do not compile with tokio itself, or not at all:\n{}\n{}",
            foreign.join("\n"),
            String::from_utf8_lossy(&built.stderr)
        );
        for (place, codes) in failed {
            // No such function, associated item, path, type, value or import; and of a trait, no
            // impl.
            let absent = ["E0599", "E0576", "E0433", "E0412", "E0425", "E0432"];
            let no_impl = matches!(self.offers[place].what, What::Impl(_)) && codes.contains("E0277");
            let missing = no_impl || codes.iter().any(|code| absent.contains(code));
            let what = if missing { "is missing" } else { "has another signature" };
            self.checks.remove(&place);
            self.find(place, what.to_owned());
        }
        None
    }

    fn doctored(&self) -> bool {
        self.tokio.root.starts_with(env!("CARGO_TARGET_TMPDIR"))
    }

    /// Takes what the program has said.
    fn compare(&mut self, said: &str) {
        for line in said.lines() {
            let parts: Vec<&str> = line.split('\t').collect();
            let [what, place, ours, theirs] = parts[..] else { panic!("the program said {line:?}") };
            let place: usize = place.parse().expect("a number");
            let lists = ours.split('|').zip(theirs.split('|'));
            match what {
                "type" if !ours.starts_with("tokio_smc::") => {
                    self.find(place, format!("is {ours}, not a type of this crate"));
                }
                "type" => {}
                "autos" => lists.filter(|(ours, theirs)| !like(ours, theirs)).for_each(|(ours, theirs)| {
                    self.find(place, format!("has other auto traits: ours [{ours}], tokio's [{theirs}]"));
                }),
                "panics" => lists.for_each(|(ours, theirs)| {
                    assert!(theirs.contains("at its caller"), "a call that shows nothing: tokio {theirs}");
                    if ours != theirs {
                        self.find(place, format!("{ours}, tokio's {theirs}"));
                    }
                }),
                what => panic!("the program said {what:?}"),
            }
        }
    }

    fn find(&mut self, place: usize, what: String) {
        let found = self.found.entry(place).or_default();
        if !found.contains(&what) {
            found.push(what);
        }
    }
}

/// Are ours the auto traits that tokio's has? More of unwind safety than tokio's is no difference
/// that a program could notice; more or less of anything else is.
fn like(ours: &str, theirs: &str) -> bool {
    let unwind_safety = |word: &&str| word.ends_with("UnwindSafe");
    let ours: BTreeSet<&str> = ours.split(' ').collect();
    let theirs: BTreeSet<&str> = theirs.split(' ').collect();
    theirs.is_subset(&ours) && ours.difference(&theirs).all(unwind_safety)
}

/// Which check an error is about, and whether it is about ours.
fn blamed(message: &Value) -> Option<(usize, bool)> {
    let spans = message["spans"].as_array()?;
    let (primary, other): (Vec<_>, Vec<_>) = spans.iter().partition(|span| span["is_primary"] == true);
    primary.into_iter().chain(other).find_map(|span| {
        // A span in a macro of probes.rs: where that was used.
        let mut span = span;
        loop {
            let file = span["file_name"].as_str()?;
            let line = span["line_start"].as_u64()? as usize - 1;
            if file.ends_with("src/ours.rs") {
                return Some((line, true));
            }
            if file.ends_with("src/theirs.rs") {
                return Some((line, false));
            }
            span = span["expansion"].get("span")?;
        }
    })
}

fn module(place: usize) -> String {
    format!("check_{place}")
}

/// Writes what is new only: cargo builds again what has been written.
fn write(file: &Path, text: &str) {
    if fs::read_to_string(file).ok().as_deref() != Some(text) {
        fs::write(file, text).expect("a file");
    }
}
