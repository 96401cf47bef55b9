//! What this process can spend on its rings: memory to lend, address space to map with, descriptors
//! for its links.
//!
//! Receive memory is the receiver's, as in TCP: whoever lends a segment pays for it, out of what
//! its own cgroup and host have left. Everything here is asked *before* the kernel is, since the
//! kernel answers a lack of memory by killing somebody, and takes the last of what the application
//! needs itself. Who takes how much of the memory is in [`account`].

mod account;

use std::io;
use std::time::Duration;

use super::sys::{self, Means};
use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering, lock};

pub(crate) use account::{Account, Charge, limit_memory};

/// Without a limit of their own all rings together hold at most this part of the memory of the
/// process (of its cgroup, or of the host).
const LENT_PART: u64 = 4;
/// One segment takes at most this part of the memory that is left: the nearer the end, the smaller
/// the steps.
const SEGMENT_PART: u64 = 8;
/// One mapping takes at most this part of the address space, or of the locked memory, that is left.
const MAPPING_PART: u64 = 4;
/// All mappings together are at most this part of what the kernel allows a process.
const MAPPINGS_PART: usize = 2;
/// Links hold at most this part of the descriptors of the process,
const DESCRIPTORS_PART: usize = 4;
/// and half as many again while some of them are about to end.
const ENDING_PART: usize = 2;
/// Each other thing that is done for peers holds at most this part.
const PEERS_PART: usize = 16;
/// The last ones of them are left to the application: this part, but neither fewer nor more than so
/// many.
const RESERVED_PART: usize = 8;
const LEAST_RESERVED: usize = 4;
const MOST_RESERVED: usize = 64;
/// Descriptors a link may hold.
const DESCRIPTORS_PER_LINK: usize = 3;
/// For how long an answer of the kernel is used again.
const FRESH: Duration = Duration::from_millis(100);

/// Bytes mapped at the moment, and in how many mappings.
static MAPPED: AtomicU64 = AtomicU64::new(0);
static MAPPINGS: AtomicUsize = AtomicUsize::new(0);
static LINKS: AtomicUsize = AtomicUsize::new(0);
static MEANS: Mutex<Option<Known>> = Mutex::new(None);

#[derive(Clone, Copy)]
struct Known {
    means: Means,
    since: Duration,
    /// What was lent, and [`MAPPED`], at that time.
    lent: u64,
    mapped: u64,
}

fn means() -> Known {
    let lent = account::all_lent();
    let mut known = lock(&MEANS);
    let now = sys::monotonic();
    match *known {
        // A clock that stands still makes nothing fresh.
        Some(known) if !now.is_zero() && now.saturating_sub(known.since) < FRESH => known,
        before => {
            let mapped = MAPPED.load(Ordering::Relaxed);
            let fresh = Known { means: sys::means(), since: now, lent, mapped };
            // For lack of a descriptor nothing can be read: then what was known is better than
            // nothing.
            let kept = before.filter(|_| fresh.means.memory == u64::MAX).unwrap_or(fresh);
            *known = Some(kept);
            kept
        }
    }
}

/// A mapping that was admitted, until it is dropped.
#[derive(Debug)]
pub(crate) struct MappingPlace(u64);

impl Drop for MappingPlace {
    fn drop(&mut self) {
        MAPPED.fetch_sub(self.0, Ordering::Relaxed);
        MAPPINGS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Refuses a mapping that would take too much of a limited address space, of what may be locked
/// where all is, or of the mappings that a process may have.
///
/// # Errors
///
/// `OutOfMemory`.
pub(crate) fn admit_mapping(bytes: usize) -> io::Result<MappingPlace> {
    let bytes = bytes as u64;
    let known = means();
    let place = MappingPlace(bytes);
    let mappings = MAPPINGS.fetch_add(1, Ordering::Relaxed) + 1;
    let mapped = MAPPED.fetch_add(bytes, Ordering::Relaxed);
    let refuse = |words: String| Err(io::Error::new(io::ErrorKind::OutOfMemory, words));
    if mappings > sys::most_mappings() / MAPPINGS_PART {
        return refuse(format!("{mappings} mappings are too much of vm.max_map_count"));
    }
    let since = mapped.saturating_sub(known.mapped);
    let Means { address_space_left, lockable_left, .. } = known.means;
    for (left, limit) in [(address_space_left, "RLIMIT_AS"), (lockable_left, "RLIMIT_MEMLOCK")] {
        if left.is_some_and(|left| bytes > left.saturating_sub(since) / MAPPING_PART) {
            return refuse(format!("a mapping of {bytes} bytes takes too much of what {limit} leaves"));
        }
    }
    Ok(place)
}

/// Links whose descriptors this process can afford.
pub(crate) fn most_links() -> usize {
    sys::descriptor_limit() / DESCRIPTORS_PART / DESCRIPTORS_PER_LINK
}

/// What this process can afford of something that takes one descriptor each and is of use to peers:
/// a sixteenth of them.
pub(crate) fn most_for_peers(most: usize) -> usize {
    (sys::descriptor_limit() / PEERS_PART).clamp(LEAST_RESERVED, most)
}

/// Keeps the descriptors of a link counted.
#[derive(Debug)]
pub(crate) struct LinkPlace(());

impl Drop for LinkPlace {
    fn drop(&mut self) {
        LINKS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes the descriptors of one more link out of their budget.
///
/// # Errors
///
/// `EMFILE` when links have their share already.
pub(crate) fn place_for_link() -> io::Result<LinkPlace> {
    let place = LinkPlace(());
    let links = LINKS.fetch_add(1, Ordering::Relaxed) + 1;
    let most = most_links();
    if links <= most + most / ENDING_PART {
        return Ok(place);
    }
    Err(rustix::io::Errno::MFILE.into())
}

/// For how long a descriptor is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// As long as a link lives.
    Lasting,
    /// Until it has been sent.
    Moment,
}

/// Refuses to use a descriptor of which only the last are left: the kernel hands out the lowest
/// free number, so all below `number` are in use.
///
/// # Errors
///
/// `EMFILE`.
pub(crate) fn spare_the_last(number: i32, need: Need) -> io::Result<()> {
    let limit = sys::descriptor_limit();
    let reserved = match need {
        Need::Lasting => (limit / RESERVED_PART).clamp(LEAST_RESERVED, MOST_RESERVED),
        Need::Moment => LEAST_RESERVED,
    };
    if usize::try_from(number).is_ok_and(|number| number < limit.saturating_sub(reserved)) {
        return Ok(());
    }
    Err(rustix::io::Errno::MFILE.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_descriptors_are_left_alone() {
        let limit = i32::try_from(sys::descriptor_limit()).unwrap_or(i32::MAX);
        for need in [Need::Lasting, Need::Moment] {
            spare_the_last(3, need).unwrap();
            assert_eq!(spare_the_last(limit - 1, need).unwrap_err().raw_os_error(), Some(libc::EMFILE));
            assert!(spare_the_last(-1, need).is_err());
        }
    }
}
