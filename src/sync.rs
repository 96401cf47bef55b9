//! The one place that names atomics and locks, so that loom can stand in for them.
//!
//! Under `--cfg loom` the same code runs on loom's model of the memory; everything else in the crate takes its
//! synchronisation primitives from here (clippy's `disallowed_types` enforces it).

#[cfg(not(loom))]
mod imp {
    #![allow(clippy::disallowed_types)]
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    pub(crate) use std::sync::{Arc, Mutex, MutexGuard};
}

#[cfg(loom)]
mod imp {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};
}

#[allow(unused_imports, reason = "one list for all users; not every build uses every item")]
pub(crate) use imp::*;

/// Locks `mutex`, also after a holder panicked: every critical section of this crate leaves its data consistent at
/// each step, and one panicking task must not take the connections of others with it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
