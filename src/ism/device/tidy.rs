//! Tidying up: what endpoints leave behind that died without a chance to.
//!
//! That takes long where many names are, so a thread of its own does it, which is started when
//! there is something to look at and ends when it has looked. It reads so many names and no more:
//! what is left then is for the next one.

use std::collections::BTreeSet;

use super::{Device, EndpointId, Inner, names_of, sys};
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, lock};

/// Names of endpoints, and entries of ports, that are read at one time.
pub(super) const MOST_NAMES: usize = 4096;
/// Names among which one that is not ours is looked for, to know whether there is anything to do.
const FIRST_NAMES: usize = 64;
/// Bytes of the thread's stack, which the C library keeps for the next one.
const STACK: usize = 128 << 10;
/// Endpoints that were found dead and are still to be looked after.
const MOST_FOUND: usize = 1024;

/// What is to be tidied up in a device directory, and whether somebody does.
#[derive(Debug, Default)]
pub(super) struct Tidying {
    /// A thread is at it, or about to begin.
    busy: AtomicBool,
    found: Mutex<BTreeSet<EndpointId>>,
}

impl Tidying {
    /// Nobody listens for that endpoint.
    pub(super) fn found_dead(&self, id: EndpointId) {
        let mut found = lock(&self.found);
        if found.len() < MOST_FOUND {
            found.insert(id);
        }
    }
}

/// The thread's turn ends with it, also by a panic.
struct Turn(Arc<Inner>);

impl Drop for Turn {
    fn drop(&mut self) {
        // Release: pairs with the Acquire of whoever starts the next one.
        self.0.tidying.busy.store(false, Ordering::Release);
    }
}

impl Device {
    /// Has a thread remove what endpoints have left that were found dead.
    pub(crate) fn bury_later(&self) {
        if !lock(&self.inner.tidying.found).is_empty() {
            self.in_the_background(Inner::bury_found);
        }
    }

    /// Has a thread remove what dead endpoints have left, if there are others than `ours`.
    pub(crate) fn tidy_later(&self, ours: EndpointId) {
        let names = names_of(&self.inner.own.endpoints, FIRST_NAMES);
        let mut endpoints = names.filter_map(|entry| EndpointId::of_file(entry.file_name().to_bytes()));
        if endpoints.any(|id| id != ours) {
            self.in_the_background(Inner::tidy);
        }
    }

    fn in_the_background(&self, work: fn(&Inner)) {
        if self.inner.tidying.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let turn = Turn(self.inner.clone());
        let work = move || {
            work(&turn.0);
            let inner = turn.0.clone();
            drop(turn);
            // What was found since the look, by those who then saw that somebody is at it. (Either
            // the look at what was found comes after theirs, or theirs at `busy` after ours.)
            Device { inner }.bury_later();
        };
        // That it fails is no reason to go without SMC: tidying up is for others' sake.
        let _ = sys::begin_thread("smc-lo-tidy", STACK, work);
    }

    /// Removes what dead endpoints have left.
    #[cfg(test)]
    pub(crate) fn tidy(&self) {
        self.inner.tidy();
    }
}

impl Inner {
    fn bury_found(&self) {
        let found = std::mem::take(&mut *lock(&self.tidying.found));
        self.bury_all(found);
    }

    fn tidy(&self) {
        let mut found = std::mem::take(&mut *lock(&self.tidying.found));
        let names = names_of(&self.own.endpoints, MOST_NAMES);
        found.extend(names.filter_map(|entry| EndpointId::of_file(entry.file_name().to_bytes())));
        self.bury_all(found);
    }

    fn bury_all(&self, mut found: BTreeSet<EndpointId>) {
        found.retain(|id| self.bury(*id));
        if !found.is_empty() {
            self.unpublish_all(&found);
        }
    }

    /// Removes dead endpoints from all lists. (Whoever still finds one there finds it dead.)
    fn unpublish_all(&self, dead: &BTreeSet<EndpointId>) {
        let mut left = MOST_NAMES;
        for listed in self.own.lists(MOST_NAMES) {
            let Ok(Some(dir)) = self.own.list(listed) else { continue };
            for entry in names_of(&dir, left) {
                left -= 1;
                let id = EndpointId::from_name(entry.file_name().to_bytes());
                if let Some(id) = id.filter(|id| dead.contains(id)) {
                    self.unpublish(listed, id);
                }
            }
            if left == 0 {
                return;
            }
        }
    }
}
