//! Which memory files this process has mapped: one that has two uses would have two writers.
//!
//! A memory file has one maker, who reads from it, and one taker, who writes to it. A peer that
//! sends one file twice, on whatever links, or one that this process has made itself, would have
//! two producers of ours write to the same place.

use std::collections::BTreeMap;
use std::io;

use super::sys::FileId;
use crate::sync::{Mutex, lock};

static MAPPED: Mutex<BTreeMap<FileId, Uses>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Uses {
    /// The account that made it here.
    maker: Option<u64>,
    taken: bool,
}

/// An entry for a file that is mapped, until it is dropped.
#[derive(Debug)]
pub(crate) struct Mapped {
    file: FileId,
    made: bool,
}

impl Mapped {
    /// A file that was made here, for the account of that number.
    pub(crate) fn made(file: FileId, account: u64) -> Mapped {
        lock(&MAPPED).entry(file).or_default().maker = Some(account);
        Mapped { file, made: true }
    }

    /// A file that came for the account of that number; from this process itself, or from another
    /// one.
    ///
    /// # Errors
    ///
    /// `InvalidData` when it has a use already.
    pub(crate) fn taken(file: FileId, account: u64, from_here: bool) -> io::Result<Mapped> {
        let mut mapped = lock(&MAPPED);
        let uses = mapped.entry(file).or_default();
        let refuse = |words| Err(io::Error::new(io::ErrorKind::InvalidData, words));
        if uses.taken {
            return refuse("memory from the peer has come before");
        }
        if uses.maker.is_some_and(|maker| maker == account || !from_here) {
            return refuse("memory from the peer is our own");
        }
        uses.taken = true;
        Ok(Mapped { file, made: false })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let mut mapped = lock(&MAPPED);
        let Some(uses) = mapped.get_mut(&self.file) else { return };
        if self.made {
            uses.maker = None;
        } else {
            uses.taken = false;
        }
        if uses.maker.is_none() && !uses.taken {
            mapped.remove(&self.file);
        }
    }
}
