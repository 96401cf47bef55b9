//! Namespaces of a test's own: nothing of it is seen outside, and nothing outlives it.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Names the test whose body shall run here.
const BODY: &str = "SMC_TEST_NAMESPACE_BODY";
/// Long enough for the busiest machine: it catches hangs, it measures nothing.
const DEADLINE: Duration = Duration::from_secs(300);

/// What a laboratory is built of, and how each is asked whether it is there.
const PROGRAMS: [(&str, &str); 5] =
    [("unshare", "--version"), ("ip", "-V"), ("setpriv", "--version"), ("nft", "--version"), ("socat", "-V")];

/// Runs `body`, which is that of the test `name` (its whole path), in a network and a mount
/// namespace of its own.
pub(crate) fn isolated(name: &str, body: impl FnOnce()) {
    isolated_for(name, DEADLINE, body);
}

/// The same, for a test that takes longer.
pub(crate) fn isolated_for(name: &str, deadline: Duration, body: impl FnOnce()) {
    if std::env::var(BODY).is_ok_and(|running| running == name) {
        sh("mount -t tmpfs -o mode=755 none /run && ip link set lo up");
        return body();
    }
    if let Some(lacks) = lacking() {
        let words = format!(
            "{name}: not run, {lacks}. Run it as root with util-linux, iproute2, nftables and socat installed:\n    \
             sudo -E cargo test --test namespaces"
        );
        assert!(std::env::var_os("CI").is_none(), "{words}");
        return say(&words);
    }
    let exe = std::env::current_exe().expect("the test binary");
    let mut inside = Command::new("unshare")
        .args(["--net", "--mount", "--fork", "--kill-child", "--"])
        .arg(exe)
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(BODY, name)
        .spawn()
        .expect("unshare");
    let started = Instant::now();
    loop {
        if let Some(status) = inside.try_wait().expect("wait") {
            assert!(status.success(), "{name} failed inside its namespaces: {status} (its panic is above)");
            return;
        }
        if started.elapsed() > deadline {
            let _ = inside.kill();
            let _ = inside.wait();
            panic!("{name} hangs: no end after {deadline:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What is missing to run these tests.
fn lacking() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root may make namespaces".to_owned());
    }
    for (program, flag) in PROGRAMS {
        let found = Command::new(program).arg(flag).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            return Some(format!("the program {program} is missing"));
        }
    }
    (!works("unshare --net --mount true")).then(|| "this root may not make namespaces".to_owned())
}

#[track_caller]
pub(crate) fn sh(script: &str) {
    let status = Command::new("sh").args(["-e", "-c", script]).status().expect("sh");
    assert!(status.success(), "{script}: {status}");
}

/// Whether the machine can do that.
pub(crate) fn works(script: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-e", "-c", script]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// For whoever reads a test's output, also where it passes.
pub(crate) fn say(words: &str) {
    let _ = writeln!(std::io::stderr(), "{words}");
}
