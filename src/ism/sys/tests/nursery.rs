//! Where tests begin child processes: between fork and exec a child has a copy of every descriptor,
//! and what another test closes meanwhile is still open.

#![expect(unsafe_code, reason = "close_range, which rustix lacks")]

use std::io;
use std::process::{Child, Command};
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, channel};

type Order = (Command, Sender<io::Result<Child>>);

/// Begins a child that has a copy of nothing.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    // A thread with a table of descriptors of its own, in which there are none.
    static NURSERY: LazyLock<Sender<Order>> = LazyLock::new(|| {
        let (orders, ordered) = channel::<Order>();
        std::thread::spawn(move || {
            leave_all_descriptors().expect("close_range, as of Linux 5.9");
            for (mut command, answer) in ordered {
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, answered) = channel();
    NURSERY.send((command, answer)).expect("the thread does not end");
    answered.recv().expect("an answer")
}

/// The thread has no descriptor beyond the standard ones from now on; the others of the process
/// keep theirs.
fn leave_all_descriptors() -> io::Result<()> {
    // SAFETY: the call takes numbers only. With CLOSE_RANGE_UNSHARE it changes a table that only
    // this thread has (close_range(2)), and nothing on this thread owns a descriptor.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_UNSHARE) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn a_child_holds_nothing_open() {
    use std::io::Read;

    let going = std::sync::Arc::new(());
    let spawner = std::thread::spawn({
        let going = std::sync::Arc::downgrade(&going);
        move || {
            while going.strong_count() > 0 {
                assert!(spawn(Command::new("true")).unwrap().wait().unwrap().success());
            }
        }
    });
    for _ in 0..2000 {
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        drop(theirs);
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    }
    drop(going);
    spawner.join().unwrap();
}
