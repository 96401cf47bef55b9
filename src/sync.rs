//! The one place that names atomics and locks, so that loom can stand in for them.
//!
//! Under `--cfg loom` the same code runs on loom's model of the memory; everything else in the crate takes its
//! synchronisation primitives from here (clippy's `disallowed_types` enforces it).

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
    pub(crate) use std::sync::{Arc, Mutex, MutexGuard};

    // Types of our own and no re-exports: clippy sees through those, and would refuse the type at each of its uses.
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
        AtomicU64 u64: swap fetch_or fetch_and fetch_add fetch_sub fetch_max;
        AtomicUsize usize: swap fetch_or fetch_and fetch_add fetch_sub fetch_max;
    }
}

#[cfg(loom)]
mod imp {
    #![allow(unused_imports, reason = "one list for all users; not every build uses every item")]
    pub(crate) use loom::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};
}

#[allow(unused_imports, reason = "one list for all users; not every build uses every item")]
pub(crate) use imp::*;

/// Locks `mutex`, also after a holder panicked: every critical section of this crate leaves its data consistent at
/// each step, and one panicking task must not take the connections of others with it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Locks `mutex` if that needs no waiting (and no holder has panicked).
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    mutex.try_lock().ok()
}
