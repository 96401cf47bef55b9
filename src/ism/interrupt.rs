//! Interrupts between two endpoints: which connections have news, and whether their poller has to
//! be rung awake.
//!
//! The [`SignalPage`] lies in the memory of the endpoint that is interrupted. A sender sets the bit
//! of a connection and rings (writes an eventfd) only if the page says that nobody is looking. When
//! the poller looks, how long it goes on looking and when it sleeps is up to the [`Window`].

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
mod window;

pub(crate) use window::{Episode, Window};

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// Connections a page has signals for; a connection's number on the link is its index here.
#[cfg(not(loom))]
pub(crate) const CONNECTIONS: u32 = 32768;
/// Few enough for a model.
#[cfg(loom)]
pub(crate) const CONNECTIONS: u32 = 64;

const SIGNALS: u32 = 2;
const WORDS: usize = (CONNECTIONS * SIGNALS / u64::BITS) as usize;
/// So many of the words are on the line of the stamp.
#[cfg(not(loom))]
const NEAR: usize = 7;
/// Few enough for others to be in a model.
#[cfg(loom)]
const NEAR: usize = 1;
const FAR: usize = WORDS - NEAR;
const SUMMARIES: usize = FAR.div_ceil(u64::BITS as usize);

/// Stamp of a poller that sleeps; a clock that reads 0 is taken to read 1.
const ASLEEP: u64 = 0;

/// A stamp is as good as new for so many ns: each new one takes the line from all who raise. That
/// is nothing beside the age from which one is stale.
pub(crate) const AS_GOOD_AS_NEW: u64 = 2_000;

/// What a connection is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Signal {
    /// Its receive ring has data, or its sender's flags changed.
    Data,
    /// Its send ring has space, or its receiver's flags changed.
    Space,
}

impl Signal {
    const fn bit(self) -> u32 {
        match self {
            Signal::Data => 0,
            Signal::Space => 1,
        }
    }
}

/// The words of a link's first connections, which need no summary, beside the stamp: on the one
/// line that a message of theirs takes to the poller.
#[repr(C, align(64))]
struct NearLine {
    looked_at: AtomicU64,
    words: [AtomicU64; NEAR],
}

#[repr(C, align(64))]
struct CpuLine {
    /// The poller's CPU when it last found something, and one; 0: unknown.
    cpu: AtomicU32,
}

#[repr(C, align(128))]
struct SummaryLine([AtomicU64; SUMMARIES]);

#[repr(C, align(128))]
struct FarLines([AtomicU64; FAR]);

/// The signal bits of an endpoint's connections, with the time its poller last looked at them.
#[repr(C, align(128))]
pub(crate) struct SignalPage {
    near: NearLine,
    cpu: CpuLine,
    // One bit for each far word that may have bits, so that a look at an idle page costs three
    // cache lines.
    summary: SummaryLine,
    far: FarLines,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<NearLine>() == 64 && size_of::<SignalPage>() == 128 + 128 + 8192);

impl SignalPage {
    /// A page without signals whose poller sleeps: the same as zeroed memory.
    pub(crate) fn new() -> SignalPage {
        SignalPage {
            near: NearLine {
                looked_at: AtomicU64::new(ASLEEP),
                words: std::array::from_fn(|_| AtomicU64::new(0)),
            },
            cpu: CpuLine { cpu: AtomicU32::new(0) },
            summary: SummaryLine(std::array::from_fn(|_| AtomicU64::new(0))),
            far: FarLines(std::array::from_fn(|_| AtomicU64::new(0))),
        }
    }

    /// Tells connection `index` of a signal. True if the caller has to ring the page's poller
    /// awake.
    ///
    /// That is when the poller sleeps (the first to notice rings), or when its last look is more
    /// than `stale_after` away from `now()`, in either direction since time namespaces shift the
    /// clock: then its task may be stuck behind another one. `last_rung` belongs to the calling end
    /// of the link and holds the last stamp it rang for, so that a poller that is late is rung once
    /// and not with every message.
    pub(crate) fn raise(
        &self,
        index: u32,
        signal: Signal,
        now: impl FnOnce() -> u64,
        stale_after: u64,
        last_rung: &AtomicU64,
    ) -> bool {
        let bit = u64::from(index) * u64::from(SIGNALS) + u64::from(signal.bit());
        let word = (bit / 64) as usize;
        if let Some(bits) = self.near.words.get(word) {
            // What precedes the signal (SYNC POINT: `take`).
            bits.fetch_or(1 << (bit % 64), Ordering::Release);
        } else {
            // The index came from the peer; one that does not exist wakes nobody.
            let far = word - NEAR;
            let Some(bits) = self.far.0.get(far) else { return false };
            bits.fetch_or(1 << (bit % 64), Ordering::Release);
            // After the bit, so that whoever takes the summary finds it (SYNC POINT: `drain`).
            self.summary.0[far / 64].fetch_or(1 << (far % 64), Ordering::Release);
        }

        // Between setting the bits and reading the stamp; pairs with the fence in `sleep`. Either
        // the poller sees the bits before it sleeps or we see that it sleeps. The caller's own
        // fence, between its cursor and the armed flag, does not order these two.
        fence(Ordering::SeqCst);
        let stamp = self.near.looked_at.load(Ordering::Relaxed);
        if stamp == ASLEEP {
            let now = now().max(1);
            return self
                .near
                .looked_at
                .compare_exchange(ASLEEP, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        }
        now().abs_diff(stamp) > stale_after && last_rung.swap(stamp, Ordering::Relaxed) != stamp
    }

    /// Takes all signals, in one pass, and names those to `found` whose number is below what
    /// `known` says: others are raised by who breaks the rules, and cost next to nothing. `known`
    /// is asked after a number was seen that it has not covered, so it has heard of each that a
    /// peer knows. Returns how many were named.
    pub(crate) fn drain(&self, mut known: impl FnMut() -> u32, mut found: impl FnMut(u32, Signal)) -> usize {
        let (mut count, mut limit) = (0, 0);
        let mut take = |word: usize, bits: &AtomicU64| {
            // Acquire: what precedes each signal (SYNC POINT: `raise`).
            let mut bits = bits.swap(0, Ordering::Acquire);
            let first = word as u32 * 64;
            if bits != 0 && (first + 63) / SIGNALS >= limit {
                limit = known();
            }
            while bits != 0 {
                let bit = first + bits.trailing_zeros();
                if bit / SIGNALS >= limit {
                    break;
                }
                bits &= bits - 1;
                found(bit / SIGNALS, if bit % SIGNALS == 0 { Signal::Data } else { Signal::Space });
                count += 1;
            }
        };
        for (word, bits) in self.near.words.iter().enumerate() {
            if bits.load(Ordering::Relaxed) != 0 {
                take(word, bits);
            }
        }
        for (group, summary) in self.summary.0.iter().enumerate() {
            if summary.load(Ordering::Relaxed) == 0 {
                continue;
            }
            // The summary first: a bit set after its word was taken brings the summary back.
            // Acquire, so that the bits announced are there (SYNC POINT: `raise`).
            let mut words = summary.swap(0, Ordering::Acquire);
            while words != 0 {
                let far = group * 64 + words.trailing_zeros() as usize;
                words &= words - 1;
                let Some(bits) = self.far.0.get(far) else { break };
                take(NEAR + far, bits);
            }
        }
        count
    }

    /// Whether there is nothing to drain.
    pub(crate) fn is_idle(&self) -> bool {
        // All of a line, for that is cheaper than to decide at each.
        let any =
            |words: &[AtomicU64]| words.iter().fold(0, |bits, word| bits | word.load(Ordering::Relaxed));
        any(&self.near.words) == 0 && any(&self.summary.0) == 0
    }

    /// Says that the poller is awake and looked at `now_ns`; after waking up and with every look.
    pub(crate) fn publish_look(&self, now_ns: u64) {
        let stamp = self.near.looked_at.load(Ordering::Relaxed);
        if stamp == ASLEEP || now_ns.abs_diff(stamp) >= AS_GOOD_AS_NEW {
            self.near.looked_at.store(now_ns.max(1), Ordering::Relaxed);
        }
    }

    /// The same of a poller that was rung: whoever did that for the stamp there is rings again for
    /// what comes after this look, though it comes soon. Of a peer in another time namespace, whose
    /// clock takes every stamp for stale, [`SignalPage::publish_look`] could leave the one that it
    /// has rung for.
    pub(crate) fn publish_answer(&self, now_ns: u64) {
        self.near.looked_at.store(now_ns.max(1), Ordering::Relaxed);
    }

    /// Says on which CPU the poller is.
    pub(crate) fn publish_cpu(&self, cpu: u32) {
        self.cpu.cpu.store(cpu.wrapping_add(1), Ordering::Relaxed);
    }

    /// Where it was when it last said so. A hint: nothing but the time of a sleep follows from it.
    pub(crate) fn cpu(&self) -> Option<u32> {
        self.cpu.cpu.load(Ordering::Relaxed).checked_sub(1)
    }

    /// When a poller that sleeps was rung awake, by the clock of who rang; `None`: it was not.
    pub(crate) fn rung_at(&self) -> Option<u64> {
        let stamp = self.near.looked_at.load(Ordering::Relaxed);
        (stamp != ASLEEP).then_some(stamp)
    }

    /// Announces that the poller goes to sleep. True if it may: senders ring from now on. False if
    /// there are signals: drain and publish a look before trying again.
    pub(crate) fn sleep(&self) -> bool {
        self.near.looked_at.store(ASLEEP, Ordering::Relaxed);
        // Between the stamp and the bits; pairs with the fence in `raise`.
        fence(Ordering::SeqCst);
        self.is_idle()
    }
}

impl Default for SignalPage {
    fn default() -> SignalPage {
        SignalPage::new()
    }
}
