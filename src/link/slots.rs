//! The DMBs of a link: our own arenas, with the slots that are given out, and the peer's arenas.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Weak;

use crate::ism::arena::{Arena, ArenaMap, DmbMemory, SLOT_BYTES};
use crate::ism::budget::{Account, Charge};
use crate::ism::interrupt::CONNECTIONS;
use crate::ism::sys;
use crate::link::Fault;
use crate::link::aside;
use crate::link::given::Given;
use crate::link::lack::reason_of;
use crate::link::stream::LinkedStream;
use crate::sync::Arc;
use crate::transport::FallbackReason;

/// Slots of the first arena of a link; each further one doubles, up to `MOST_SLOTS`.
const FIRST_SLOTS: u32 = 64;
const MOST_SLOTS: u32 = 4096;
/// Arenas a peer may send, and the slots of all of them together; more than this is no use to
/// anyone.
const MOST_ARENAS: usize = 256;
const MOST_SLOTS_IN_ALL: u32 = 2 * CONNECTIONS;

/// An arena by its number, and a slot of it.
type Place = (u32, u32);

/// Our own arenas; the peer's producers write there.
pub(crate) struct OwnArenas {
    account: Arc<Account>,
    /// Slots that may be out. A peer that gives none of them back gets no more.
    most: usize,
    arenas: Vec<Arena>,
    given: Given<Place, Weak<dyn LinkedStream>>,
}

/// A fresh slot.
pub(crate) struct Allocated {
    pub(crate) arena: u32,
    pub(crate) slot: u32,
    pub(crate) token: u64,
    pub(crate) memory: DmbMemory,
}

impl OwnArenas {
    /// With the first arena, which HELLO carries: its control page takes the peer's interrupts.
    pub(crate) fn new(account: Arc<Account>, most: usize) -> io::Result<(Self, Arc<ArenaMap>, OwnedFd)> {
        let (first, fd) = Arena::create(FIRST_SLOTS, &account)?;
        let map = first.map().clone();
        Ok((OwnArenas { account, most, arenas: vec![first], given: Given::new() }, map, fd))
    }

    /// A slot for `stream`; `announce` sends the peer a further arena when one is needed.
    ///
    /// # Errors
    ///
    /// What is lacking, here or in `announce`; nothing has changed then.
    pub(crate) fn allocate(
        &mut self,
        stream: Weak<dyn LinkedStream>,
        announce: impl FnOnce(u32, OwnedFd) -> io::Result<()>,
    ) -> io::Result<Allocated> {
        if self.given.len() >= self.most {
            let words = "as many slots are out as streams may be on this link";
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, words));
        }
        for number in 0..self.arenas.len() {
            if let Some(slot) = self.arenas[number].allocate()? {
                return self.give(number, slot, stream);
            }
        }
        if self.arenas.len() == MOST_ARENAS {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "all arenas of this link are full"));
        }
        let last = self.arenas.last().map_or(FIRST_SLOTS / 2, |arena| arena.map().slots());
        let (arena, fd) = Arena::create((last * 2).min(MOST_SLOTS), &self.account)?;
        let slot = arena.allocate()?.ok_or_else(|| io::Error::other("a new arena has no free slot"))?;
        // The peer numbers arenas as they come: one that was not sent has no number.
        announce(arena.map().slots(), fd)?;
        self.arenas.push(arena);
        self.give(self.arenas.len() - 1, slot, stream)
    }

    fn give(&mut self, number: usize, slot: u32, stream: Weak<dyn LinkedStream>) -> io::Result<Allocated> {
        let arena = &self.arenas[number];
        let drawn = arena.map().dmb(slot).map(|memory| (memory, self.fresh_token()));
        let (memory, token) = match drawn {
            Some((memory, Ok(token))) => (memory, token),
            Some((_, Err(error))) => {
                arena.release(slot);
                return Err(error);
            }
            None => return Err(io::Error::other("the arena handed out a slot it has not")),
        };
        let arena = number as u32;
        self.given.give(token, (arena, slot), stream);
        Ok(Allocated { arena, slot, token, memory })
    }

    fn fresh_token(&self) -> io::Result<u64> {
        loop {
            let token = sys::random_u64()?;
            if !self.given.has(token) {
                return Ok(token);
            }
        }
    }

    /// The stream is about to get the DMB of that token.
    pub(crate) fn use_it(&mut self, token: u64) {
        self.given.use_it(token);
    }

    /// The stream that reads from the DMB of that token; `None`: no such token is out, or the
    /// stream has not got it yet.
    pub(crate) fn stream(&self, token: u64) -> Option<Weak<dyn LinkedStream>> {
        self.given.stream(token)
    }

    /// Whether no token is out.
    pub(crate) fn is_idle(&self) -> bool {
        self.given.is_empty()
    }

    /// The peer's DETACH, or what stands for it. `false`: no such token is out.
    pub(crate) fn detached(&mut self, token: u64) -> bool {
        let Ok(free) = self.given.detached(token) else { return false };
        self.release(free);
        true
    }

    pub(crate) fn stream_done(&mut self, token: u64) {
        let free = self.given.done(token);
        self.release(free);
    }

    /// Shows every DMB whose token is out.
    #[cfg(test)]
    pub(crate) fn every_dmb(&self, show: &mut dyn FnMut(&DmbMemory)) {
        for (arena, slot) in self.given.places() {
            show(&self.arenas[arena as usize].map().dmb(slot).expect("a slot"));
        }
    }

    /// Slots that are not free.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn in_use(&self) -> u32 {
        self.arenas.iter().map(Arena::in_use).sum()
    }

    fn release(&self, free: Option<Place>) {
        if let Some((arena, slot)) = free {
            self.arenas[arena as usize].release(slot);
        }
    }
}

/// An arena of a peer, or what this process lacked to map it.
pub(crate) type PeerArena = Result<Arc<ArenaMap>, FallbackReason>;

/// Maps an arena of the peer; no descriptor came with it if this process had none left.
///
/// The inner error is this process's own lack, and is told again when a DMB of the arena is named.
///
/// # Errors
///
/// What is wrong with the arena.
pub(crate) fn map_peers(
    fd: Result<&OwnedFd, FallbackReason>,
    slots: u32,
    account: &Arc<Account>,
) -> io::Result<PeerArena> {
    Ok(match fd.map(|fd| ArenaMap::attach(fd, slots, account)) {
        Err(lack) => Err(lack),
        Ok(Ok(map)) => Ok(map),
        Ok(Err(error)) if is_the_peers(&error) => return Err(error),
        Ok(Err(error)) => Err(reason_of(&error, FallbackReason::Memory)),
    })
}

/// The peer's arenas, in the order they came, and which of their slots are in use.
pub(crate) struct PeerArenas {
    account: Arc<Account>,
    /// One that this process lacked the means to map keeps its number.
    maps: Vec<PeerArena>,
    slots: u32,
    /// What was ever claimed, by arena and slot: it counts as borrowed as long as the link lives.
    claimed: HashMap<Place, Charge>,
    /// By the token that names the use.
    in_use: HashMap<u64, Place>,
    taken: HashSet<Place>,
}

/// Why a DMB that the peer names can not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoDmb {
    /// The peer has broken a rule.
    Fault(Fault),
    /// This process lacks the means.
    Lacking(FallbackReason),
}

/// Of more arenas than this the mappings are taken away on another thread: each takes some
/// microseconds, and a peer may have sent hundreds.
const FEW_ARENAS: usize = 4;

impl Drop for PeerArenas {
    fn drop(&mut self) {
        let maps = std::mem::take(&mut self.maps);
        if maps.len() > FEW_ARENAS {
            aside::run(move || drop(maps));
        }
    }
}

impl PeerArenas {
    pub(crate) fn new(account: Arc<Account>) -> PeerArenas {
        PeerArenas {
            account,
            maps: Vec::new(),
            slots: 0,
            claimed: HashMap::new(),
            in_use: HashMap::new(),
            taken: HashSet::new(),
        }
    }

    /// Whether one more arena, of so many slots, may come.
    pub(crate) fn admit(&mut self, slots: u32) -> io::Result<()> {
        self.slots = self.slots.saturating_add(slots);
        if self.maps.len() == MOST_ARENAS || self.slots > MOST_SLOTS_IN_ALL {
            return Err(io::Error::other("the peer sent too many arenas"));
        }
        Ok(())
    }

    pub(crate) fn add(&mut self, map: PeerArena) {
        self.maps.push(map);
    }

    /// The DMB that the peer names, for the use that `token` stands for, until
    /// [`PeerArenas::release`].
    pub(crate) fn claim(&mut self, arena: u32, slot: u32, token: u64) -> Result<DmbMemory, NoDmb> {
        let map = self.maps.get(arena as usize).ok_or(NoDmb::Fault(Fault("a DMB that does not exist")))?;
        let map = map.as_ref().map_err(|reason| NoDmb::Lacking(*reason))?;
        map.dmb(slot).ok_or(NoDmb::Fault(Fault("a DMB that does not exist")))?;
        let place = (arena, slot);
        // Else two producers of ours would write to one ring.
        if self.taken.contains(&place) || self.in_use.contains_key(&token) {
            return Err(NoDmb::Fault(Fault("a DMB, or a token, that is in use")));
        }
        let lacking = |error| NoDmb::Lacking(reason_of(&error, FallbackReason::Memory));
        let dmb = map.claim(slot).map_err(lacking)?;
        if !self.claimed.contains_key(&place) {
            self.claimed.insert(place, self.account.borrow(SLOT_BYTES).map_err(lacking)?);
        }
        self.taken.insert(place);
        self.in_use.insert(token, place);
        Ok(dmb)
    }

    /// The DMB of that token is not used any more.
    pub(crate) fn release(&mut self, token: u64) {
        if let Some(place) = self.in_use.remove(&token) {
            self.taken.remove(&place);
        }
    }
}

/// Whether an error of attaching a memory file says that the peer broke a rule, not that this
/// process lacks something.
pub(crate) fn is_the_peers(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
}
