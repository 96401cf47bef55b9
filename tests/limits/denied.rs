//! System calls that a sandbox denies: every one that the library makes beyond what tokio and std
//! need themselves.
//!
//! The list was found with `strace -f` on two processes that upgrade, grow, end and sweep.

use std::collections::BTreeMap;

use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// A call, or those of its uses that one argument tells apart.
pub(crate) struct Call {
    pub(crate) name: &'static str,
    number: libc::c_long,
    arguments: &'static [(u8, Test)],
}

enum Test {
    Is(i32),
    Has(i32),
}
use Test::{Has, Is};

const fn all(name: &'static str, number: libc::c_long) -> Call {
    Call { name, number, arguments: &[] }
}

const fn only(name: &'static str, number: libc::c_long, arguments: &'static [(u8, Test)]) -> Call {
    Call { name, number, arguments }
}

/// `fcntl` commands (Linux include/uapi/linux/fcntl.h).
const F_ADD_SEALS: i32 = 1033;
const F_GET_SEALS: i32 = 1034;
/// Options of sockets (Linux include/uapi/asm-generic/socket.h).
const SO_BINDTOIFINDEX: i32 = 62;
const SO_NETNS_COOKIE: i32 = 71;
const SO_BUF_LOCK: i32 = 72;
/// Unsent bytes of a socket (Linux include/uapi/linux/sockios.h).
const SIOCOUTQNSD: i32 = 0x894B;

/// Each is denied alone.
pub(crate) const CALLS: &[Call] = &[
    // Memory.
    all("memfd_create", libc::SYS_memfd_create),
    all("ftruncate", libc::SYS_ftruncate),
    all("fallocate", libc::SYS_fallocate),
    only("fcntl-add-seals", libc::SYS_fcntl, &[(1, Is(F_ADD_SEALS))]),
    only("fcntl-get-seals", libc::SYS_fcntl, &[(1, Is(F_GET_SEALS))]),
    only("fcntl-getfl", libc::SYS_fcntl, &[(1, Is(libc::F_GETFL))]),
    only("fcntl-dupfd", libc::SYS_fcntl, &[(1, Is(libc::F_DUPFD_CLOEXEC))]),
    all("fstat", libc::SYS_fstat),
    all("fstatfs", libc::SYS_fstatfs),
    only("mmap-shared", libc::SYS_mmap, &[(3, Has(libc::MAP_SHARED))]),
    all("madvise", libc::SYS_madvise),
    all("mincore", libc::SYS_mincore),
    // Wake-ups and time.
    all("eventfd2", libc::SYS_eventfd2),
    all("timerfd_create", libc::SYS_timerfd_create),
    all("timerfd_settime", libc::SYS_timerfd_settime),
    all("getrusage", libc::SYS_getrusage),
    all("gettid", libc::SYS_gettid),
    all("sched_getaffinity", libc::SYS_sched_getaffinity),
    // Links and proof.
    all("sendmsg", libc::SYS_sendmsg),
    all("recvmsg", libc::SYS_recvmsg),
    only("socket-unix", libc::SYS_socket, &[(0, Is(libc::AF_UNIX))]),
    only("socket-netlink", libc::SYS_socket, &[(0, Is(libc::AF_NETLINK))]),
    all("getsockname", libc::SYS_getsockname),
    all("getpeername", libc::SYS_getpeername),
    only(
        "getsockopt-peercred",
        libc::SYS_getsockopt,
        &[(1, Is(libc::SOL_SOCKET)), (2, Is(libc::SO_PEERCRED))],
    ),
    only("getsockopt-cookie", libc::SYS_getsockopt, &[(1, Is(libc::SOL_SOCKET)), (2, Is(libc::SO_COOKIE))]),
    only("getsockopt-netns", libc::SYS_getsockopt, &[(1, Is(libc::SOL_SOCKET)), (2, Is(SO_NETNS_COOKIE))]),
    only("getsockopt-linger", libc::SYS_getsockopt, &[(1, Is(libc::SOL_SOCKET)), (2, Is(libc::SO_LINGER))]),
    only(
        "getsockopt-protocol",
        libc::SYS_getsockopt,
        &[(1, Is(libc::SOL_SOCKET)), (2, Is(libc::SO_PROTOCOL))],
    ),
    only("getsockopt-lowat", libc::SYS_getsockopt, &[(1, Is(libc::SOL_SOCKET)), (2, Is(libc::SO_RCVLOWAT))]),
    only("getsockopt-device", libc::SYS_getsockopt, &[(1, Is(libc::SOL_SOCKET)), (2, Is(SO_BINDTOIFINDEX))]),
    only("getsockopt-buffers", libc::SYS_getsockopt, &[(1, Is(libc::SOL_SOCKET)), (2, Is(SO_BUF_LOCK))]),
    only("getsockopt-tcp-info", libc::SYS_getsockopt, &[(1, Is(libc::SOL_TCP)), (2, Is(libc::TCP_INFO))]),
    only("getsockopt-tcp", libc::SYS_getsockopt, &[(1, Is(libc::SOL_TCP))]),
    only("ioctl-inq", libc::SYS_ioctl, &[(1, Is(libc::FIONREAD as i32))]),
    only("ioctl-outq", libc::SYS_ioctl, &[(1, Is(libc::TIOCOUTQ as i32))]),
    only("ioctl-outqnsd", libc::SYS_ioctl, &[(1, Is(SIOCOUTQNSD))]),
    all("getrandom", libc::SYS_getrandom),
    all("getpid", libc::SYS_getpid),
    all("geteuid", libc::SYS_geteuid),
    all("uname", libc::SYS_uname),
    all("prlimit64", libc::SYS_prlimit64),
    // The device directory.
    only("openat-nofollow", libc::SYS_openat, &[(2, Has(libc::O_NOFOLLOW))]),
    all("getdents64", libc::SYS_getdents64),
    all("newfstatat", NEWFSTATAT),
    all("statx", libc::SYS_statx),
    all("mkdirat", libc::SYS_mkdirat),
    all("linkat", libc::SYS_linkat),
    all("renameat2", libc::SYS_renameat2),
    all("unlinkat", libc::SYS_unlinkat),
    all("fchmod", libc::SYS_fchmod),
    all("flock", libc::SYS_flock),
    all("readlinkat", libc::SYS_readlinkat),
    #[cfg(target_arch = "x86_64")]
    all("readlink", libc::SYS_readlink),
    #[cfg(target_arch = "x86_64")]
    all("renameat", libc::SYS_renameat),
    #[cfg(target_arch = "x86_64")]
    all("poll", libc::SYS_poll),
    all("ppoll", libc::SYS_ppoll),
];

/// `fstatat` has three names.
const NEWFSTATAT: libc::c_long = libc::SYS_newfstatat;

/// From now on, `call` fails with the error of that name in all threads of this process, or `kill`s
/// it.
pub(crate) fn deny(call: &str, errno: &str) -> Result<(), String> {
    let call = CALLS.iter().find(|known| known.name == call).ok_or(format!("no call {call}"))?;
    let action = match errno {
        "EPERM" => SeccompAction::Errno(libc::EPERM as u32),
        "ENOSYS" => SeccompAction::Errno(libc::ENOSYS as u32),
        "kill" => SeccompAction::KillProcess,
        _ => return Err(format!("no error {errno}")),
    };
    let conditions = call.arguments.iter().map(|(index, test)| {
        let (operator, value) = match *test {
            Is(value) => (SeccompCmpOp::Eq, value),
            Has(bits) => (SeccompCmpOp::MaskedEq(bits as u64), bits),
        };
        SeccompCondition::new(*index, SeccompCmpArgLen::Dword, operator, value as u64)
    });
    let conditions = conditions.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    let rules = match conditions.is_empty() {
        true => Vec::new(),
        false => vec![SeccompRule::new(conditions).map_err(|error| error.to_string())?],
    };
    let arch = std::env::consts::ARCH.try_into().map_err(|_| "no filters for this machine")?;
    let filter =
        SeccompFilter::new(BTreeMap::from([(call.number, rules)]), SeccompAction::Allow, action, arch);
    let program: seccompiler::BpfProgram =
        filter.and_then(TryInto::try_into).map_err(|error| error.to_string())?;
    seccompiler::apply_filter_all_threads(&program).map_err(|error| error.to_string())
}
