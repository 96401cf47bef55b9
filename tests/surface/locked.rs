//! The tokio that Cargo.lock names, as it lies in the local registry.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

/// The manifest directory of this crate.
pub(crate) const HOME: &str = env!("CARGO_MANIFEST_DIR");

/// The sources of one tokio.
#[derive(Clone, Debug)]
pub(crate) struct Tokio {
    pub(crate) root: PathBuf,
    pub(crate) version: String,
    /// What its feature `full` switches on.
    pub(crate) features: BTreeSet<String>,
}

/// The cargo that runs this test.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    // `cargo clippy` sets it for its own build.
    cargo.env_remove("RUSTC_WORKSPACE_WRAPPER");
    cargo
}

impl Tokio {
    pub(crate) fn locked() -> Self {
        let manifest = Path::new(HOME).join("Cargo.toml");
        let asked = cargo()
            .args([
                "metadata",
                "--locked",
                "--offline",
                "--format-version",
                "1",
                "--filter-platform",
                &host(),
            ])
            .arg("--manifest-path")
            .arg(manifest)
            .output()
            .expect("cargo");
        assert!(asked.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&asked.stderr));
        let answer: Value = serde_json::from_slice(&asked.stdout).expect("JSON");
        let packages = answer["packages"].as_array().expect("packages");
        let mut tokios = packages.iter().filter(|package| package["name"] == "tokio");
        let tokio = tokios.next().expect("tokio among the packages");
        assert!(tokios.next().is_none(), "more than one tokio");
        let manifest = Path::new(tokio["manifest_path"].as_str().expect("a path"));
        let mut features = BTreeSet::new();
        let mut open = vec!["full".to_owned()];
        while let Some(feature) = open.pop() {
            if let Some(more) = tokio["features"][&feature].as_array() {
                open.extend(more.iter().filter_map(Value::as_str).map(str::to_owned));
                features.insert(feature);
            }
        }
        Self {
            root: manifest.parent().expect("a directory").to_owned(),
            version: tokio["version"].as_str().expect("a version").to_owned(),
            features,
        }
    }

    /// A copy of what the test reads in `directory`, to be doctored.
    pub(crate) fn copied_to(&self, directory: &Path) -> Self {
        for folder in ["src/net", "src/net/tcp", "src/macros"] {
            fs::create_dir_all(directory.join(folder)).expect("a directory");
            for entry in fs::read_dir(self.root.join(folder)).expect("a directory") {
                let from = entry.expect("an entry").path();
                if from.extension().is_some_and(|extension| extension == "rs") {
                    let to = directory.join(from.strip_prefix(&self.root).expect("a file of tokio"));
                    fs::write(to, fs::read(&from).expect("a source")).expect("a copy");
                }
            }
        }
        Self { root: directory.to_owned(), ..self.clone() }
    }

    /// Exchanges the one place in `file` where `from` stands.
    pub(crate) fn doctor(&self, file: &str, from: &str, to: &str) {
        let path = self.root.join(file);
        let text = fs::read_to_string(&path).expect("a source");
        assert_eq!(text.matches(from).count(), 1, "{from:?} in {file}");
        fs::write(path, text.replacen(from, to, 1)).expect("a doctored source");
    }
}

fn host() -> String {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let answer = Command::new(rustc).arg("-vV").output().expect("rustc");
    let answer = String::from_utf8(answer.stdout).expect("text");
    answer.lines().find_map(|line| line.strip_prefix("host: ")).expect("the host").to_owned()
}
