//! Takes something away from this process: file descriptors, system calls, the right to write.
#![allow(unsafe_code, reason = "seccomp and mount have no safe wrapper here")]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::{fs, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Leaves this process `count` descriptors besides those it has.
pub(crate) fn leave_descriptors(count: u64) {
    // The listing's own descriptor is in the list, and free again afterwards.
    let used = fs::read_dir("/proc/self/fd").expect("procfs").count() as u64 - 1;
    // The limit is on the number, so the holes below have to be filled first.
    let highest = fs::read_dir("/proc/self/fd")
        .expect("procfs")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok())
        .max()
        .unwrap_or(0);
    let mut filling = Vec::new();
    for _ in used..=highest {
        filling.push(fs::File::open("/dev/null").expect("a descriptor"));
    }
    std::mem::forget(filling);
    let next = rustix::io::dup(io::stdin()).expect("a descriptor");
    let next = std::os::fd::AsRawFd::as_raw_fd(&next) as u64;
    let limit = Rlimit { current: Some(next + count), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).expect("a lower limit");
}

/// A system call that is to be denied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    number: libc::c_long,
    /// Only with this first argument.
    first: Option<u32>,
}

/// By its name, as the tests say it.
pub(crate) fn call(name: &str) -> Call {
    let (number, first) = match name {
        "memfd_create" => (libc::SYS_memfd_create, None),
        "eventfd2" => (libc::SYS_eventfd2, None),
        "timerfd_create" => (libc::SYS_timerfd_create, None),
        "sendmsg" => (libc::SYS_sendmsg, None),
        "getrandom" => (libc::SYS_getrandom, None),
        "netlink" => (libc::SYS_socket, Some(libc::AF_NETLINK as u32)),
        "unix" => (libc::SYS_socket, Some(libc::AF_UNIX as u32)),
        other => panic!("no call {other}"),
    };
    Call { number, first }
}

/// From here on every thread of this process gets `errno` for that call.
pub(crate) fn deny(call: Call, errno: i32) {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump_unless = |value: u32, skip: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf: skip,
        k: value,
    };
    let load = |offset: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    // struct seccomp_data: the number at 0, the first argument at 16, its low half first.
    let mut program = vec![load(0)];
    match call.first {
        None => program.push(jump_unless(call.number as u32, 1)),
        Some(first) => {
            program.extend([jump_unless(call.number as u32, 3), load(16), jump_unless(first, 1)]);
        }
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32));
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: prctl with integers; `filter` points to `program`, which outlives the call.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_TSYNC,
                &raw const filter,
            ) != 0
    };
    assert!(!failed, "seccomp: {}", io::Error::last_os_error());
}

/// Makes `dir` read-only for this thread and those it starts later.
pub(crate) fn make_read_only(dir: &Path) {
    let dir = CString::new(dir.as_os_str().as_bytes()).expect("a path");
    let mount = |what: Option<&CString>, flags: libc::c_ulong| {
        let source = what.map_or(std::ptr::null(), |what| what.as_ptr());
        let target = if what.is_some() { dir.as_ptr() } else { c"/".as_ptr() };
        // SAFETY: both are strings or null, which mount allows for a source it does not need.
        let failed = unsafe { libc::mount(source, target, std::ptr::null(), flags, std::ptr::null()) } != 0;
        assert!(!failed, "mount: {}", io::Error::last_os_error());
    };
    // SAFETY: no memory is concerned.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "unshare: {}", io::Error::last_os_error());
    mount(None, libc::MS_REC | libc::MS_PRIVATE);
    mount(Some(&dir), libc::MS_BIND);
    mount(Some(&dir), libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY);
}
