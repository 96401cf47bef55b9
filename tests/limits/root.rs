//! What only root can arrange: mounts, control groups, other users.

use std::io::Write;
use std::path::Path;
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
