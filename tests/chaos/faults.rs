//! What a worker does to itself: limits, and forked children.
#![allow(unsafe_code, reason = "fork has no safe wrapper")]

use std::fs;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, WaitOptions, getrlimit, setrlimit};

const LIMITED: [Resource; 3] = [Resource::Nofile, Resource::As, Resource::Fsize];

/// The limits as they were.
#[derive(Debug)]
pub(crate) struct Limits([Rlimit; 3]);

impl Limits {
    pub(crate) fn now() -> Self {
        Self(LIMITED.map(getrlimit))
    }

    /// Lowers one of them: `nofile` and `as` to what is used and `amount` more (descriptors, MiB),
    /// `fsize` to `amount` KiB.
    pub(crate) fn lower(&self, what: &str, amount: u64) {
        let (which, value) = match what {
            "nofile" => (0, highest_descriptor() + 1 + amount),
            "as" => (1, address_space() + (amount << 20)),
            "fsize" => (2, amount << 10),
            _ => panic!("no limit {what}"),
        };
        let limit = Rlimit { current: Some(value), ..self.0[which] };
        // It may have been lower from the start.
        let _ = setrlimit(LIMITED[which], limit);
    }

    pub(crate) fn restore(&self) {
        for (which, limit) in LIMITED.into_iter().zip(&self.0) {
            setrlimit(which, *limit).expect("the limit that was there");
        }
    }
}

fn highest_descriptor() -> u64 {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).max().unwrap_or(64)
}

fn address_space() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = pages.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(1 << 18);
    pages * rustix::param::page_size() as u64
}

/// Forks a child that holds all that this process has: `exit`s at once, `exec`s another program,
/// which has nothing of it, or `linger`s for `time`.
pub(crate) fn fork(what: &str, time: Duration) {
    let program = c"/bin/sleep";
    let seconds = c"1";
    let arguments = [program.as_ptr(), seconds.as_ptr(), std::ptr::null()];
    let pause = libc::timespec {
        tv_sec: time.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(time.subsec_nanos() as i32),
    };
    let (exec, linger) = (what == "exec", what == "linger");
    // SAFETY: the child makes system calls only, which touch nothing that another thread may have
    // been changing: the memory that they read was made before.
    unsafe {
        if libc::fork() == 0 {
            if exec {
                libc::execv(program.as_ptr(), arguments.as_ptr());
            }
            if linger {
                libc::nanosleep(&raw const pause, std::ptr::null_mut());
            }
            libc::_exit(0);
        }
    }
}

/// Takes leave of the children that have ended.
pub(crate) fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

/// Has what this process says on its standard error written to a file, where the judge finds it.
pub(crate) fn log_to(path: &str) {
    use std::os::fd::AsRawFd;
    let file = fs::OpenOptions::new().create(true).append(true).open(path).expect("a log");
    // SAFETY: both are descriptors, and std refers to the second by its number only.
    let done = unsafe { libc::dup2(file.as_raw_fd(), 2) };
    assert_eq!(done, 2, "{}", std::io::Error::last_os_error());
    // A process that is ended by a limit leaves no picture of its memory.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).expect("no core file");
}
