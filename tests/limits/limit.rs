//! Limits that a process sets on itself, each by the words that name it.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::denied;
use crate::footprint::Footprint;

/// Descriptors that only fill the table.
pub(crate) type Filler = Arc<Mutex<Vec<OwnedFd>>>;

/// Puts the limit that `words` name on this process.
///
/// | words | |
/// |---|---|
/// | `rlimit NAME VALUE` | a resource limit |
/// | `headroom NAME BYTES` | as much more address space, or data, as that |
/// | `lock` | `mlockall` of what there is and what will be |
/// | `lock-future BYTES` | of what will be, of which at most so much may be locked |
/// | `free N` | so many descriptors are left |
/// | `lift` | the descriptors that only filled the table are closed |
/// | `cgroup FILE` | into the control group whose `cgroup.procs` this is |
/// | `deny CALL EPERM\|ENOSYS\|kill` | a system call answers that, or ends the process |
pub(crate) fn impose(words: &str, filler: &Filler) -> Result<(), String> {
    let words: Vec<&str> = words.split(' ').collect();
    let number = |word: &str| word.parse::<u64>().expect("a number");
    let soft = |name, value| limit(resource(name), value);
    match words[..] {
        ["rlimit", name, value] => soft(name, number(value)),
        ["headroom", name, bytes] => {
            let here = Footprint::of(std::process::id()).map_err(|error| error.to_string())?;
            let taken = if name == "as" { here.address_space } else { here.data };
            soft(name, taken * 1024 + number(bytes))
        }
        ["lock"] => locked(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE),
        ["lock-future", bytes] => {
            soft("memlock", number(bytes))?;
            locked(MlockAllFlags::FUTURE)
        }
        ["free", count] => {
            *filler.lock().expect("no panic") = fill(number(count))?;
            Ok(())
        }
        ["lift"] => {
            filler.lock().expect("no panic").clear();
            limit(Resource::Nofile, 1024)
        }
        ["cgroup", file] => {
            fs::write(file, std::process::id().to_string()).map_err(|error| format!("{file}: {error}"))
        }
        ["deny", call, errno] => denied::deny(call, errno),
        _ => Err(format!("no limit {words:?}")),
    }
}

fn resource(name: &str) -> Resource {
    match name {
        "as" => Resource::As,
        "core" => Resource::Core,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "memlock" => Resource::Memlock,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        _ => panic!("no resource {name}"),
    }
}

fn limit(resource: Resource, value: u64) -> Result<(), String> {
    let maximum = getrlimit(resource).maximum;
    let allowed = maximum.is_none_or(|maximum| value <= maximum);
    let new = Rlimit { current: Some(value), maximum: if allowed { maximum } else { Some(value) } };
    setrlimit(resource, new).map_err(|error| format!("setrlimit {resource:?} {value}: {error}"))
}

fn locked(flags: MlockAllFlags) -> Result<(), String> {
    mlockall(flags).map_err(|error| format!("mlockall: {error}"))
}

/// Takes every descriptor below the limit but `free`.
fn fill(free: u64) -> Result<Vec<OwnedFd>, String> {
    let used = fs::read_dir("/proc/self/fd").map_err(|error| error.to_string())?;
    let highest = used.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok()).max();
    // A little above what is there, so that something is left to be filled.
    limit(Resource::Nofile, highest.unwrap_or(0) + 1 + free + 8)?;
    let null = File::open("/dev/null").map_err(|error| error.to_string())?;
    let mut filler = vec![OwnedFd::from(null)];
    while let Ok(another) = filler[0].try_clone() {
        filler.push(another);
    }
    for _ in 0..free {
        filler.pop().ok_or("nothing to free")?;
    }
    Ok(filler)
}
