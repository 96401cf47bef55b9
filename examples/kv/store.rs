//! The keys and their values: shards of a hash map, each behind a mutex that is held for one lookup
//! and one copy.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const SHARDS: usize = 16;
/// What an entry costs beside the bytes of its key and its value.
const OVERHEAD: usize = 96;

pub(crate) struct Store {
    shards: Box<[Mutex<Shard>]>,
}

/// One part of the keys.
pub(crate) struct Shard {
    entries: HashMap<Box<[u8]>, Entry>,
    bytes: usize,
    limit: usize,
    /// How many entries have a deadline.
    expiring: usize,
}

struct Entry {
    value: Vec<u8>,
    deadline: Option<Instant>,
}

/// The memory that the store may use is full.
pub(crate) struct Full;

/// What SET does with the time to live.
#[derive(Clone, Copy)]
pub(crate) enum Expiry {
    Never,
    Keep,
    At(Instant),
}

impl Store {
    /// A store for `bytes` of keys and values, which each shard has an equal part of.
    pub(crate) fn new(bytes: usize) -> Self {
        let limit = bytes / SHARDS;
        let shard = || Shard { entries: HashMap::new(), bytes: 0, limit, expiring: 0 };
        Store { shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect() }
    }

    fn index(key: &[u8]) -> usize {
        // FNV-1a: it only spreads the locks; the maps themselves hash with a secret.
        let hash = key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        (hash >> 32) as usize % SHARDS
    }

    /// The shard of `key`.
    pub(crate) fn shard(&self, key: &[u8]) -> MutexGuard<'_, Shard> {
        lock(&self.shards[Self::index(key)])
    }

    /// All shards at once, for commands with several keys, which happen as a whole.
    pub(crate) fn all(&self) -> All<'_> {
        All(self.shards.iter().map(lock).collect())
    }

    /// Drops what has expired; called once in a while, since keys are only looked at when they are
    /// used.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        for shard in &self.shards {
            lock(shard).sweep(now);
        }
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // Every change of a shard is whole, also when a panic follows it.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The locks of all shards.
pub(crate) struct All<'a>(Vec<MutexGuard<'a, Shard>>);

impl All<'_> {
    pub(crate) fn shard(&mut self, key: &[u8]) -> &mut Shard {
        &mut self.0[Store::index(key)]
    }

    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|shard| shard.entries.len()).sum()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().map(|shard| shard.bytes).sum()
    }

    pub(crate) fn clear(&mut self) {
        for shard in &mut self.0 {
            let limit = shard.limit;
            **shard = Shard { entries: HashMap::new(), bytes: 0, limit, expiring: 0 };
        }
    }
}

impl Shard {
    fn live(&mut self, key: &[u8]) -> Option<&mut Entry> {
        if self.expiring > 0 {
            let entry = self.entries.get(key)?;
            if entry.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                self.remove(key);
                return None;
            }
        }
        self.entries.get_mut(key)
    }

    pub(crate) fn get(&mut self, key: &[u8]) -> Option<&[u8]> {
        self.live(key).map(|entry| entry.value.as_slice())
    }

    pub(crate) fn contains(&mut self, key: &[u8]) -> bool {
        self.live(key).is_some()
    }

    pub(crate) fn set(&mut self, key: &[u8], value: &[u8], expiry: Expiry) -> Result<(), Full> {
        let (bytes, limit) = (self.bytes, self.limit);
        let Some(entry) = self.live(key) else {
            let added = key.len() + value.len() + OVERHEAD;
            if self.bytes + added > limit {
                return Err(Full);
            }
            let deadline = if let Expiry::At(deadline) = expiry { Some(deadline) } else { None };
            self.bytes += added;
            self.expiring += usize::from(deadline.is_some());
            self.entries.insert(key.into(), Entry { value: value.to_vec(), deadline });
            return Ok(());
        };
        let bytes = bytes - entry.value.len() + value.len();
        if bytes > limit && value.len() > entry.value.len() {
            return Err(Full);
        }
        // The memory of the old value takes the new one.
        entry.value.clear();
        entry.value.extend_from_slice(value);
        if entry.value.capacity() > 2 * value.len() + 64 {
            entry.value.shrink_to_fit();
        }
        let before = entry.deadline;
        entry.deadline = match expiry {
            Expiry::Never => None,
            Expiry::Keep => before,
            Expiry::At(deadline) => Some(deadline),
        };
        self.expiring += usize::from(entry.deadline.is_some());
        self.expiring -= usize::from(before.is_some());
        self.bytes = bytes;
        Ok(())
    }

    pub(crate) fn remove(&mut self, key: &[u8]) -> bool {
        let Some(entry) = self.entries.remove(key) else { return false };
        self.bytes -= key.len() + entry.value.len() + OVERHEAD;
        self.expiring -= usize::from(entry.deadline.is_some());
        entry.deadline.is_none_or(|deadline| deadline > Instant::now())
    }

    /// Gives `key` a deadline, or takes it away; false when there is no such key.
    pub(crate) fn expire(&mut self, key: &[u8], deadline: Option<Instant>) -> bool {
        let Some(entry) = self.live(key) else { return false };
        let before = std::mem::replace(&mut entry.deadline, deadline);
        self.expiring += usize::from(deadline.is_some());
        self.expiring -= usize::from(before.is_some());
        true
    }

    /// How long `key` has to live: no key, no deadline, or the time.
    pub(crate) fn time_to_live(&mut self, key: &[u8]) -> Option<Option<Duration>> {
        let entry = self.live(key)?;
        Some(entry.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())))
    }

    fn sweep(&mut self, now: Instant) {
        if self.expiring == 0 {
            return;
        }
        let (mut bytes, mut expired) = (0, 0);
        self.entries.retain(|key, entry| {
            let keep = entry.deadline.is_none_or(|deadline| deadline > now);
            if !keep {
                (bytes, expired) = (bytes + key.len() + entry.value.len() + OVERHEAD, expired + 1);
            }
            keep
        });
        (self.bytes, self.expiring) = (self.bytes - bytes, self.expiring - expired);
    }
}
