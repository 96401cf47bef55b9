//! The DMBs of a link: our own arenas with the state of each token, and the peer's arenas.
//!
//! A slot is free when its DETACH has come *and* its own stream is done with it (docs/protocol.md, "Tokens").

use std::collections::HashMap;
use std::io;

use crate::ism::arena::{Arena, ArenaMap, DmbMemory};
use crate::ism::sys;
use crate::link::message::ArenaShape;
use crate::sync::Arc;

/// Slots of the first arena of a link; each further one doubles, up to `MOST_SLOTS`.
const FIRST_SLOTS: u32 = 64;
const MOST_SLOTS: u32 = 4096;
/// Arenas a peer may send; more than this is no use to anyone.
const MOST_ARENAS: usize = 256;

/// A slot whose token the peer holds.
struct Given {
    arena: u32,
    slot: u32,
    /// The peer's producer will never touch it again.
    detached: bool,
    /// Our own stream is done with it.
    done: bool,
}

/// Our own arenas; the peer's producers write there.
pub(crate) struct OwnArenas {
    arenas: Vec<Arena>,
    given: HashMap<u64, Given>,
}

/// A fresh slot.
pub(crate) struct Allocated {
    pub(crate) arena: u32,
    pub(crate) slot: u32,
    pub(crate) token: u64,
    pub(crate) memory: DmbMemory,
    /// The peer has to be sent this arena first.
    pub(crate) announce: Option<Arc<ArenaMap>>,
}

impl OwnArenas {
    pub(crate) fn new(dmb_size: usize) -> io::Result<Self> {
        Ok(OwnArenas { arenas: vec![Arena::create(FIRST_SLOTS, dmb_size)?], given: HashMap::new() })
    }

    /// The arena that HELLO carries; its control page takes the peer's interrupts.
    pub(crate) fn first(&self) -> &Arc<ArenaMap> {
        self.arenas[0].map()
    }

    pub(crate) fn allocate(&mut self, dmb_size: usize) -> io::Result<Allocated> {
        let mut slots = FIRST_SLOTS;
        for (number, arena) in self.arenas.iter().enumerate() {
            if arena.map().dmb_size() != dmb_size {
                continue;
            }
            if let Some(slot) = arena.allocate()? {
                let map = arena.map().clone();
                return self.give(number, slot, &map, false);
            }
            slots = (arena.map().slots() * 2).min(MOST_SLOTS);
        }
        if self.arenas.len() == MOST_ARENAS {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "all arenas of this link are full"));
        }
        let arena = Arena::create(slots, dmb_size)?;
        let slot = arena.allocate()?.ok_or_else(|| io::Error::other("a new arena has no free slot"))?;
        let map = arena.map().clone();
        self.arenas.push(arena);
        self.give(self.arenas.len() - 1, slot, &map, true)
    }

    fn give(&mut self, number: usize, slot: u32, map: &Arc<ArenaMap>, fresh: bool) -> io::Result<Allocated> {
        let memory =
            map.dmb(slot).ok_or_else(|| io::Error::other("the arena handed out a slot it has not"))?;
        let mut token = sys::random_u64()?;
        while self.given.contains_key(&token) {
            token = sys::random_u64()?;
        }
        let arena = number as u32;
        self.given.insert(token, Given { arena, slot, detached: false, done: false });
        Ok(Allocated { arena, slot, token, memory, announce: fresh.then(|| map.clone()) })
    }

    /// The peer's DETACH, or what stands for it. `false`: no such token is out.
    pub(crate) fn detached(&mut self, token: u64) -> bool {
        match self.given.get_mut(&token) {
            Some(given) if !given.detached => given.detached = true,
            _ => return false,
        }
        self.release_if_free(token);
        true
    }

    pub(crate) fn stream_done(&mut self, token: u64) {
        if let Some(given) = self.given.get_mut(&token) {
            given.done = true;
            self.release_if_free(token);
        }
    }

    /// Slots that are not free.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> u32 {
        self.arenas.iter().map(Arena::in_use).sum()
    }

    fn release_if_free(&mut self, token: u64) {
        if self.given.get(&token).is_some_and(|given| given.detached && given.done) {
            if let Some(given) = self.given.remove(&token) {
                self.arenas[given.arena as usize].release(given.slot);
            }
        }
    }
}

/// The peer's arenas, in the order they came.
#[derive(Default)]
pub(crate) struct PeerArenas {
    maps: Vec<Arc<ArenaMap>>,
}

impl PeerArenas {
    pub(crate) fn add(&mut self, fd: std::os::fd::OwnedFd, shape: ArenaShape) -> io::Result<Arc<ArenaMap>> {
        if self.maps.len() == MOST_ARENAS {
            return Err(io::Error::other("the peer sent too many arenas"));
        }
        let size = usize::try_from(shape.dmb_size).map_err(io::Error::other)?;
        let map = ArenaMap::attach(fd, shape.slots, size)?;
        self.maps.push(map.clone());
        Ok(map)
    }

    /// The DMB that the peer names, if it exists.
    ///
    /// # Errors
    ///
    /// When there is none, or no memory for it: the peer may not have committed what it names.
    pub(crate) fn dmb(&self, arena: u32, slot: u32) -> io::Result<DmbMemory> {
        let map = self.maps.get(arena as usize).ok_or(io::ErrorKind::NotFound)?;
        map.dmb(slot).ok_or(io::ErrorKind::NotFound)?;
        map.claim(slot)
    }
}
