//! What only root can arrange: mounts, control groups, other users.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::watchdog::{own_name, watched};

/// Names the test whose body shall run here.
const BODY: &str = "SMC_TEST_MOUNTS_BODY";

/// A user that is nobody's.
pub(crate) const USER: u32 = 65_533;

/// The words that turn a program into one of that user.
pub(crate) const AS_USER: &[&str] = &["setpriv", "--reuid=65533", "--regid=65533", "--clear-groups"];

/// Runs `body` where it may do what only root may; elsewhere says that it was not run, and fails in
/// CI.
#[track_caller]
pub(crate) fn privileged(body: fn()) {
    let lacks = lacking();
    if let Some(lacks) = lacks {
        not_run(&own_name(), &lacks);
        return;
    }
    watched(body);
}

pub(crate) fn not_run(name: &str, lacks: &str) {
    let words = format!("{name}: not run, {lacks}. Run it as root: sudo -E cargo test --test limits");
    assert!(std::env::var_os("CI").is_none(), "{words}");
    let _ = writeln!(std::io::stderr(), "{words}");
}

/// Runs `body` where its mounts are seen by nobody else and go with it. `name` is the path of the
/// test.
pub(crate) fn with_own_mounts(name: &str, body: fn()) {
    if std::env::var(BODY).is_ok_and(|running| running == name) {
        return watched(body);
    }
    if let Some(lacks) = lacking() {
        return not_run(name, &lacks);
    }
    let exe = std::env::current_exe().expect("the test binary");
    let status = Command::new("unshare")
        .args(["--mount", "--fork", "--kill-child", "--"])
        .arg(exe)
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(BODY, name)
        .status()
        .expect("unshare");
    assert!(status.success(), "{name} failed among its own mounts: {status} (its panic is above)");
}

fn lacking() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root may do that".to_owned());
    }
    for (program, flag) in [("unshare", "--version"), ("setpriv", "--version")] {
        let found = Command::new(program).arg(flag).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            return Some(format!("the program {program} is missing"));
        }
    }
    let allowed = Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status();
    (!allowed.is_ok_and(|status| status.success())).then(|| "this root may not mount".to_owned())
}

#[track_caller]
pub(crate) fn sh(script: &str) {
    let status = Command::new("sh").args(["-e", "-c", script]).status().expect("sh");
    assert!(status.success(), "{script}: {status}");
}

/// Gives the directory to that user.
pub(crate) fn hand_over(dir: &Path) {
    std::os::unix::fs::chown(dir, Some(USER), Some(USER)).expect("chown");
}

/// A memory control group of version 1 or 2. It goes when this is dropped, after the processes in
/// it.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    version: u8,
}

impl Group {
    /// One group in each version whose memory controller this machine offers.
    pub(crate) fn each(name: &str, bytes: u64) -> Vec<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("procfs");
        let name = format!("smc-test-{name}-{}", std::process::id());
        let mut groups = Vec::new();
        for mount in mounts.lines() {
            let words: Vec<&str> = mount.split(' ').collect();
            let [_, at, kind, options, ..] = words[..] else { continue };
            let at = Path::new(at);
            let version = match kind {
                "cgroup" if options.split(',').any(|option| option == "memory") => 1,
                "cgroup2" if offers_memory(at) => 2,
                _ => continue,
            };
            let path = at.join(&name);
            if std::fs::create_dir(&path).is_err() {
                continue;
            }
            let group = Self { path, version };
            let file = if version == 1 { "memory.limit_in_bytes" } else { "memory.max" };
            std::fs::write(group.path.join(file), bytes.to_string()).expect("a limit");
            groups.push(group);
        }
        groups
    }

    pub(crate) fn version(&self) -> u8 {
        self.version
    }

    /// Whoever writes its process id there is in.
    pub(crate) fn door(&self) -> String {
        self.path.join("cgroup.procs").display().to_string()
    }

    /// How many processes the OOM killer has taken.
    pub(crate) fn killed(&self) -> u64 {
        let file = if self.version == 1 { "memory.oom_control" } else { "memory.events" };
        let text = std::fs::read_to_string(self.path.join(file)).expect("the group's file");
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|number| number.trim().parse().ok()).expect("a number of kills")
    }
}

/// Whether groups of version 2 below `at` may have limits on memory.
fn offers_memory(at: &Path) -> bool {
    let lists = |file: &str| {
        let text = std::fs::read_to_string(at.join(file)).unwrap_or_default();
        text.split_whitespace().any(|controller| controller == "memory")
    };
    // It may be offered and not be passed on yet.
    lists("cgroup.controllers")
        && (lists("cgroup.subtree_control")
            || std::fs::write(at.join("cgroup.subtree_control"), "+memory").is_ok())
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that has just died may still be counted.
        for _ in 0..200 {
            if std::fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
