//! What this process can spend on its rings: memory to lend, address space to map with, descriptors
//! for its links.
//!
//! Receive memory is the receiver's, as in TCP: whoever lends a segment pays for it, out of what
//! its own cgroup and host have left. Everything here is asked *before* the kernel is, since the
//! kernel answers a lack of memory by killing somebody, and takes the last of what the application
//! needs itself.

use std::io;
use std::time::Duration;

use super::sys::{self, Means};
use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering, lock};

/// All rings together hold at most this part of the memory of the process (of its cgroup, or of the
/// host).
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

/// Bytes lent in segments of their own at the moment.
static LENT: AtomicU64 = AtomicU64::new(0);
/// Bytes mapped at the moment, and in how many mappings.
static MAPPED: AtomicU64 = AtomicU64::new(0);
static MAPPINGS: AtomicUsize = AtomicUsize::new(0);
static LINKS: AtomicUsize = AtomicUsize::new(0);
static MEANS: Mutex<Option<Known>> = Mutex::new(None);

#[derive(Clone, Copy)]
struct Known {
    means: Means,
    since: Duration,
    /// [`LENT`] and [`MAPPED`] at that time.
    lent: u64,
    mapped: u64,
}

fn means() -> Known {
    let mut known = lock(&MEANS);
    let now = sys::monotonic();
    match *known {
        // A clock that stands still makes nothing fresh.
        Some(known) if !now.is_zero() && now.saturating_sub(known.since) < FRESH => known,
        before => {
            let (lent, mapped) = (LENT.load(Ordering::Relaxed), MAPPED.load(Ordering::Relaxed));
            let fresh = Known { means: sys::means(), since: now, lent, mapped };
            // For lack of a descriptor nothing can be read: then what was known is better than
            // nothing.
            let kept = before.filter(|_| fresh.means.memory == u64::MAX).unwrap_or(fresh);
            *known = Some(kept);
            kept
        }
    }
}

/// Memory that is lent, until it is dropped.
#[derive(Debug)]
pub(crate) struct Charge(u64);

impl Drop for Charge {
    fn drop(&mut self) {
        LENT.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Takes `bytes` of the memory that may be lent.
///
/// # Errors
///
/// `OutOfMemory` when that is too much.
pub(crate) fn charge(bytes: usize) -> io::Result<Charge> {
    let bytes = bytes as u64;
    let known = means();
    // Before the answer, so that two threads do not both find the same room.
    let charge = Charge(bytes);
    let lent = LENT.fetch_add(bytes, Ordering::Relaxed) + bytes;
    if bytes <= most(&known, lent - bytes) {
        return Ok(charge);
    }
    let words =
        format!("{bytes} more bytes of receive memory are beyond this process's share ({lent} with them)");
    Err(io::Error::new(io::ErrorKind::OutOfMemory, words))
}

/// The largest power of two up to `bytes` that [`charge`] allows at the moment; 0 when that is less
/// than `least`.
pub(crate) fn affordable(bytes: u64, least: u64) -> u64 {
    let most = most(&means(), LENT.load(Ordering::Relaxed)).min(bytes);
    let fits = if most == 0 { 0 } else { 1 << most.ilog2() };
    if fits < least { 0 } else { fits }
}

/// Bytes that one more segment may have when `lent` are lent.
fn most(known: &Known, lent: u64) -> u64 {
    let since = lent.saturating_sub(known.lent);
    let left = known.means.memory_left.saturating_sub(since);
    (known.means.memory / LENT_PART).saturating_sub(lent).min(left / SEGMENT_PART)
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

    fn known(memory: u64, memory_left: u64, lent: u64) -> Known {
        let means = Means { memory, memory_left, address_space_left: None, lockable_left: None };
        Known { means, since: Duration::ZERO, lent, mapped: 0 }
    }

    #[test]
    fn shares_get_smaller_towards_the_end() {
        assert_eq!(most(&known(1 << 30, 800, 0), 0), 100, "an eighth of what is left");
        assert_eq!(most(&known(1 << 30, 800, 0), 400), 50, "what was lent since is not left");
        assert_eq!(most(&known(1000, 1 << 30, 0), 200), 50, "a quarter of all");
        assert_eq!(most(&known(1000, 1 << 30, 200), 250), 0);
        assert_eq!(most(&known(1000, 1 << 30, 300), 250), 0, "less lent than a moment ago");
        assert_eq!(most(&known(0, 0, 0), 0), 0);
    }

    #[test]
    fn a_charge_lasts_until_it_is_dropped() {
        let held = charge(1 << 16).unwrap();
        assert!(LENT.load(Ordering::Relaxed) >= 1 << 16);
        drop(held);
        let error = charge(usize::MAX / 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        assert!(LENT.load(Ordering::Relaxed) < u64::MAX / 4, "a refused charge is not kept");
        assert_eq!(affordable(5000, 4096), 4096);
        assert_eq!(affordable(5000, 8192), 0);
    }

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
