//! The one place that names atomics and locks, so that loom can stand in for them.
//!
//! Under `--cfg loom` the same code runs on loom's model of the memory; everything else in the
//! crate takes its synchronisation primitives from here (clippy's `disallowed_types` enforces it).

pub(crate) mod rank;

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::TryLockError;

pub(crate) use rank::assert_unlocked;
use rank::{Leaf, Rank};

#[cfg(not(loom))]
mod imp {
    #![allow(
        clippy::disallowed_types,
        dead_code,
        unreachable_pub,
        unused_imports,
        reason = "one list for all users; not every build uses every item"
    )]
    use std::sync::atomic;
    pub(crate) use std::sync::atomic::{Ordering, fence};
    pub(crate) use std::sync::{Arc, Mutex as PlainMutex, MutexGuard as PlainGuard};

    // Types of our own and no re-exports: clippy sees through those, and would refuse the type at
    // each of its uses.
    macro_rules! atomic {
        ($($name:ident $value:ty: $($method:ident)*;)*) => {$(
            #[doc = concat!("The standard library's `", stringify!($name), "`, with the methods that loom has, too.")]
            #[derive(Debug, Default)]
            #[repr(transparent)]
            pub struct $name(atomic::$name);

            impl $name {
                #[inline]
                pub(crate) const fn new(value: $value) -> Self {
                    Self(atomic::$name::new(value))
                }

                #[inline]
                pub(crate) fn load(&self, order: Ordering) -> $value {
                    self.0.load(order)
                }

                #[inline]
                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    self.0.store(value, order);
                }

                #[inline]
                pub(crate) fn compare_exchange(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    self.0.compare_exchange(current, new, success, failure)
                }

                $(
                    #[inline]
                    pub(crate) fn $method(&self, value: $value, order: Ordering) -> $value {
                        self.0.$method(value, order)
                    }
                )*
            }
        )*};
    }

    atomic! {
        AtomicBool bool: swap fetch_or fetch_and;
        AtomicU8 u8: swap fetch_or fetch_and fetch_add fetch_sub fetch_max;
        AtomicU32 u32: swap fetch_or fetch_and fetch_add fetch_sub fetch_max;
        AtomicU64 u64: swap fetch_or fetch_and fetch_add fetch_sub fetch_max fetch_min;
        AtomicUsize usize: swap fetch_or fetch_and fetch_add fetch_sub fetch_max;
    }
}

#[cfg(loom)]
mod imp {
    #![allow(unused_imports, reason = "one list for all users; not every build uses every item")]
    pub(crate) use loom::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    pub(crate) use loom::sync::{Arc, Mutex as PlainMutex, MutexGuard as PlainGuard};
}

#[allow(unused_imports, reason = "one list for all users; not every build uses every item")]
pub(crate) use imp::*;

/// A mutex with its place in the order of locks as part of its type.
pub(crate) struct Mutex<T, R = Leaf> {
    mutex: PlainMutex<T>,
    rank: PhantomData<fn() -> R>,
}

impl<T, R> Mutex<T, R> {
    #[cfg(not(loom))]
    pub(crate) const fn new(value: T) -> Self {
        Mutex { mutex: PlainMutex::new(value), rank: PhantomData }
    }

    #[cfg(loom)]
    pub(crate) fn new(value: T) -> Self {
        Mutex { mutex: PlainMutex::new(value), rank: PhantomData }
    }
}

impl<T: Default, R> Default for Mutex<T, R> {
    fn default() -> Self {
        Mutex::new(T::default())
    }
}

impl<T, R> fmt::Debug for Mutex<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex").finish_non_exhaustive()
    }
}

/// What a mutex protects, until it is dropped.
pub(crate) struct MutexGuard<'a, T> {
    // Dropped first: others may lock before we say that we do not hold it any more.
    guard: PlainGuard<'a, T>,
    #[cfg(debug_assertions)]
    _held: rank::Held,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// Locks `mutex`, also after a holder panicked: every critical section of this crate leaves its
/// data consistent at each step, and one panicking task must not take the connections of others
/// with it.
#[inline]
pub(crate) fn lock<T, R: Rank>(mutex: &Mutex<T, R>) -> MutexGuard<'_, T> {
    #[cfg(debug_assertions)]
    let held = rank::Held::in_order::<R>();
    MutexGuard {
        guard: mutex.mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner()),
        #[cfg(debug_assertions)]
        _held: held,
    }
}

/// Locks `mutex` if that needs no waiting; as [`lock`], also after a holder panicked.
#[inline]
pub(crate) fn try_lock<T, R: Rank>(mutex: &Mutex<T, R>) -> Option<MutexGuard<'_, T>> {
    let guard = match mutex.mutex.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return None,
    };
    Some(MutexGuard {
        guard,
        #[cfg(debug_assertions)]
        _held: rank::Held::any::<R>(),
    })
}

#[cfg(all(test, not(loom), debug_assertions))]
mod tests {
    use super::rank::{EndpointLinks, LinkState, assert_unlocked};
    use super::*;
    use crate::shield::{Panicked, shielded};

    #[test]
    fn locks_are_taken_in_their_order() {
        let (links, state) = (Mutex::<_, EndpointLinks>::new(()), Mutex::<_, LinkState>::new(()));
        let leaf = Mutex::<_, Leaf>::new(());
        {
            let _links = lock(&links);
            let _state = lock(&state);
            let _leaf = lock(&leaf);
            assert_eq!(shielded(|| assert_unlocked("a waker")), Err(Panicked));
        }
        assert_unlocked("a waker");
        {
            let _state = lock(&state);
            assert_eq!(shielded(|| drop(lock(&links))), Err(Panicked), "the other way round");
            assert!(try_lock(&links).is_some(), "who does not wait may");
        }
        {
            let _leaf = lock(&leaf);
            let other = Mutex::<_, Leaf>::new(());
            assert_eq!(shielded(|| drop(lock(&other))), Err(Panicked), "nothing under a leaf");
        }
        assert_unlocked("a waker");
    }
}
