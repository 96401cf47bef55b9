//! Facts about this process, this thread and this host.
#![expect(
    unsafe_code,
    reason = "getrusage and gethostname, which rustix lacks or offers under another feature; clock_gettime, geteuid, \
              gettid and getrlimit, which panic there where the kernel or a sandbox denies them"
)]

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::rand::GetRandomFlags;

/// The user id the kernel shows for users that a user namespace has no name for; never "the same
/// user" as anybody.
pub(crate) fn overflow_uid() -> u32 {
    static UID: OnceLock<u32> = OnceLock::new();
    *UID.get_or_init(|| overflow_id("/proc/sys/kernel/overflowuid"))
}

/// The same of groups.
pub(crate) fn overflow_gid() -> u32 {
    static GID: OnceLock<u32> = OnceLock::new();
    *GID.get_or_init(|| overflow_id("/proc/sys/kernel/overflowgid"))
}

fn overflow_id(file: &str) -> u32 {
    // The kernel's default (Linux include/linux/highuid.h), for containers that hide /proc/sys.
    std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(65534)
}

/// Is that a certain user? Not the overflow uid, behind which may be anybody, and not -1, which the
/// kernel says where there is none.
pub(crate) fn is_known_user(uid: u32) -> bool {
    uid != u32::MAX && uid != overflow_uid()
}

/// The same of a group.
pub(crate) fn is_known_group(gid: u32) -> bool {
    gid != u32::MAX && gid != overflow_gid()
}

/// Effective user id of this process; where a sandbox denies the question, a number that is
/// nobody's.
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: the call takes no argument and touches no memory.
    unsafe { libc::geteuid() }
}

/// Is `uid` the user `me`?
pub(crate) fn is_user(uid: u32, me: u32) -> bool {
    uid == me && is_known_user(uid)
}

/// Nanoseconds on the monotonic clock; 0 where there is none to be had. Processes in different time
/// namespaces see different values.
///
/// The C library's call: rustix's panics where the kernel's vDSO lacks it, and std's where the
/// kernel refuses it.
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a local of the type the call fills in; when it fails the local
    // stays as it is.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) } != 0;
    if failed {
        return 0;
    }
    // The monotonic clock starts near 0 at boot; neither part is ever negative.
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}

/// The same as a time, to be compared with others of this process; it stands still where there is
/// no clock.
pub(crate) fn monotonic() -> Duration {
    Duration::from_nanos(monotonic_ns())
}

/// Is that the process this runs in?
pub(crate) fn is_this_process(pid: i32) -> bool {
    u32::try_from(pid) == Ok(std::process::id())
}

/// Kernel id of the calling thread; where a sandbox denies the question, the same number for all.
pub(crate) fn thread_id() -> u32 {
    // SAFETY: the call takes no argument and touches no memory.
    unsafe { libc::gettid() }.unsigned_abs()
}

/// How often the calling thread was preempted, since it began; 0 where a sandbox denies the
/// question.
pub(crate) fn involuntary_switches() -> u64 {
    switches().1
}

/// How often others have run instead of it, for which reason ever.
pub(crate) fn all_switches() -> u64 {
    let (voluntary, involuntary) = switches();
    voluntary.wrapping_add(involuntary)
}

fn switches() -> (u64, u64) {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // A call that fails leaves the zeros.
    // SAFETY: the pointer is to a local of the type the call fills in.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    // SAFETY: all fields are integers, for which all-zero bytes are valid, and the call wrote none
    // or all of them.
    let usage = unsafe { usage.assume_init() };
    (usage.ru_nvcsw.unsigned_abs(), usage.ru_nivcsw.unsigned_abs())
}

/// What the system limits of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    AddressSpace,
    Descriptors,
    FileSize,
    LockedMemory,
}

/// The soft limit; `None` without one, and where a sandbox denies the question.
pub(super) fn soft_limit(resource: Resource) -> Option<u64> {
    let number = match resource {
        Resource::AddressSpace => libc::RLIMIT_AS,
        Resource::Descriptors => libc::RLIMIT_NOFILE,
        Resource::FileSize => libc::RLIMIT_FSIZE,
        Resource::LockedMemory => libc::RLIMIT_MEMLOCK,
    };
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a local of the type the call fills in.
    let known = unsafe { libc::getrlimit(number, &raw mut limit) } == 0;
    (known && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// The CPU this thread runs on now.
pub(crate) fn current_cpu() -> u32 {
    rustix::thread::sched_getcpu() as u32
}

/// CPUs this process may use: affinity mask and cgroup quota considered, at least 1.
pub(crate) fn usable_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// `N` bytes from the kernel's random number generator.
///
/// # Errors
///
/// Where `getrandom` is forbidden (an old seccomp filter): no SMC then, for tokens must not be
/// guessable.
pub(crate) fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut done = 0;
    while done < N {
        done += rustix::io::retry_on_intr(|| {
            rustix::rand::getrandom(&mut bytes[done..], GetRandomFlags::empty())
        })?;
    }
    Ok(bytes)
}

/// 64 random bits.
pub(crate) fn random_u64() -> io::Result<u64> {
    random_bytes().map(u64::from_ne_bytes)
}

/// Name of this host (of this UTS namespace); empty when it cannot be told.
pub(crate) fn hostname() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the pointer and the length describe `name`, which the call fills.
    if unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len()) } != 0 {
        return String::new();
    }
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..length]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity() {
        use std::os::unix::fs::MetadataExt;
        assert_eq!(effective_uid(), std::fs::metadata("/proc/self").unwrap().uid());
        assert_ne!(overflow_uid(), 0);
        assert_eq!(hostname(), std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim());
        assert!(usable_cpus() >= 1);
        let cpus = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap();
        let last = cpus.trim().rsplit([',', '-']).next().unwrap();
        assert!(current_cpu() <= last.parse().unwrap(), "{cpus}");
        let other = std::thread::spawn(thread_id).join().unwrap();
        assert_ne!(other, thread_id());
        assert_eq!(thread_id(), thread_id());
    }

    #[test]
    fn limits_are_those_of_the_kernel() {
        let text = std::fs::read_to_string("/proc/self/limits").unwrap();
        for (resource, name) in [
            (Resource::AddressSpace, "Max address space"),
            (Resource::Descriptors, "Max open files"),
            (Resource::FileSize, "Max file size"),
            (Resource::LockedMemory, "Max locked memory"),
        ] {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            let soft = line.split_whitespace().next().unwrap();
            assert_eq!(soft_limit(resource), soft.parse().ok(), "{name}: {soft}");
        }
    }

    #[test]
    fn time_moves_forward() {
        let before = monotonic_ns();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(monotonic_ns() >= before + 2_000_000);
    }

    #[test]
    fn preemption_is_counted() {
        let status = || {
            let path = format!("/proc/self/task/{}/status", thread_id());
            let text = std::fs::read_to_string(path).unwrap();
            let line = text.lines().find(|line| line.starts_with("nonvoluntary_ctxt_switches")).unwrap();
            line.rsplit(char::is_whitespace).next().unwrap().parse::<u64>().unwrap()
        };
        // The kernel's two accounts of one number; other threads may preempt us between the looks.
        let (before, ours, after) = (status(), involuntary_switches(), status());
        assert!((before..=after).contains(&ours), "{before} {ours} {after}");
    }

    #[test]
    fn random_is_not_constant() {
        assert_ne!(random_bytes::<16>().unwrap(), random_bytes::<16>().unwrap());
        assert_ne!(random_bytes::<1000>().unwrap()[600..], [0; 400]);
        assert_ne!(random_u64().unwrap(), random_u64().unwrap());
        assert!(random_bytes::<0>().unwrap().is_empty());
    }
}
