//! The programs that measure: found, built and run.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::data::{Row, parse_lines};

/// Where the examples are, built.
pub(crate) struct Tools(PathBuf);

impl Tools {
    /// Builds them with the profile of this program, beside which they then are.
    pub(crate) fn build() -> Result<Self> {
        let own = std::env::current_exe().context("finding this program")?;
        let place = own.parent().context("this program lies in no directory")?;
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        let target = place.parent().context("this program lies in no target directory")?;
        cargo(&[
            "build",
            "--locked",
            "--quiet",
            "--package=tokio-smc",
            "--example=smcperf",
            "--example=blockingperf",
            "--features=blocking",
            &format!("--profile={profile}"),
            &format!("--target-dir={}", target.display()),
        ])?;
        Ok(Self(place.join("examples")))
    }

    pub(crate) fn smcperf(&self, arguments: &[String]) -> Result<Vec<Row>> {
        run(&self.0.join("smcperf"), arguments)
    }

    pub(crate) fn blockingperf(&self, arguments: &[String]) -> Result<Vec<Row>> {
        run(&self.0.join("blockingperf"), arguments)
    }
}

/// The root of the project.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Cargo in the root of the project.
pub(crate) fn cargo(arguments: &[&str]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::null())
        .status()
        .context("starting cargo: it has to be in PATH")?;
    if !status.success() {
        bail!("cargo {} failed ({status}); what it said is above", arguments.join(" "));
    }
    Ok(())
}

/// Runs a program that puts out a row a line.
pub(crate) fn run(program: &Path, arguments: &[String]) -> Result<Vec<Row>> {
    let words = || format!("{} {}", program.file_name().unwrap_or_default().display(), arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let mut text = String::new();
    let read = match child.stdout.take() {
        Some(mut out) => out.read_to_string(&mut text),
        None => Ok(0),
    };
    let status = child.wait().with_context(|| format!("waiting for {}", words()))?;
    read.with_context(|| format!("reading what {} puts out", words()))?;
    if !status.success() {
        bail!("{} failed ({status}); what it said is above. Run it by hand to see more", words());
    }
    parse_lines(&text).with_context(|| format!("running {}", words()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<Vec<Row>> {
        run(Path::new("/bin/sh"), &["-c".to_owned(), script.to_owned()])
    }

    #[test]
    fn a_program_that_fails_or_says_half_is_named() {
        assert_eq!(shell("echo '{\"a\": 1}'").unwrap().len(), 1);
        for (script, word) in [
            ("echo '{\"a\": 1}'; exit 3", "exit status: 3"),
            ("kill -9 $$", "signal: 9"),
            ("echo '{\"a\": '", "line 1"),
            ("true", "put out nothing"),
        ] {
            let error = format!("{:#}", shell(script).unwrap_err());
            assert!(error.contains(word) && error.contains("sh -c"), "{error}");
        }
        let error = format!("{:#}", run(Path::new("/no/such/program"), &[]).unwrap_err());
        assert!(error.contains("/no/such/program"), "{error}");
    }
}
