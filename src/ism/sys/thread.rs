//! Threads of the library's own.
#![expect(unsafe_code, reason = "pthread_sigmask, which rustix lacks")]

use std::io;
use std::thread;

use memmap2::MmapOptions;

/// What a new thread maps beside its stack, and room for others who map something meanwhile.
const BESIDE: usize = 1 << 20;

/// Begins a thread with so many bytes of stack, which takes no signal of the application's.
///
/// # Errors
///
/// When the process may have no more threads, or no more memory. A thread that finds no room for
/// the stack of std's signal handler aborts its process: so that is looked for before.
pub(crate) fn begin_thread(name: &str, stack: usize, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    drop(MmapOptions::new().len(stack + BESIDE).no_reserve_swap().map_anon()?);
    let thread = thread::Builder::new().name(name.to_owned()).stack_size(stack);
    without_signals(|| thread.spawn(work)).map(drop)
}

/// Does `work` with all signals of this thread blocked: a thread that it starts inherits that, and
/// takes none that the program waits for elsewhere.
fn without_signals<R>(work: impl FnOnce() -> R) -> R {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigfillset` fills the set that it is given, before `pthread_sigmask` reads it; the
    // latter fills `before` when it succeeds. Both point to locals of the right type.
    let blocked = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) == 0
    };
    let done = work();
    if blocked {
        // SAFETY: `before` was filled by the call above, which succeeded; a null pointer asks for
        // nothing.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    }
    done
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::*;
    use crate::ism::sys::tests::nursery;

    const STACK: usize = 128 << 10;
    const CHILD: &str = "SMC_TEST_FULL";

    /// The other process of the test below; by itself it does nothing.
    #[test]
    fn child_process() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
        // Room for the stack, and for nothing beside it.
        let room = pages * rustix::param::page_size() as u64 + STACK as u64 + (4 << 10);
        setrlimit(Resource::As, Rlimit { current: Some(room), ..getrlimit(Resource::As) }).unwrap();
        if begin_thread("full", STACK, || ()).is_err() {
            std::process::exit(42);
        }
        // It aborts the process meanwhile.
        thread::sleep(std::time::Duration::from_secs(1));
        std::process::exit(1);
    }

    #[test]
    fn a_thread_that_finds_no_room_is_not_begun() {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "ism::sys::thread::tests::child_process", "--nocapture", "--test-threads=1"]);
        child.env(CHILD, "").stdout(Stdio::null()).stderr(Stdio::null());
        let ended = nursery::spawn(child).unwrap().wait().unwrap();
        assert_eq!(ended.code(), Some(42), "{ended}");
    }
}
