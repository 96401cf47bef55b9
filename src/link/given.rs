//! Slots of ours whose tokens the peer holds: when each may be used again.
//!
//! A slot is free when its DETACH has come *and* its own stream is done with it (docs/protocol.md,
//! "Tokens"). A token is drawn anew for each use, so what comes late names nothing.

use std::collections::HashMap;

struct Out<P, S> {
    place: P,
    stream: S,
    /// That stream has got it. Before that the peer has no say in what becomes of the stream.
    in_use: bool,
    /// The peer's producer will never touch it again.
    detached: bool,
    /// Our own stream is done with it.
    done: bool,
}

/// The places that are out, by token, with the streams that they are for.
pub(crate) struct Given<P, S>(HashMap<u64, Out<P, S>>);

/// No such token is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unknown;

impl<P: Copy, S: Clone> Given<P, S> {
    pub(crate) fn new() -> Self {
        Given(HashMap::new())
    }

    /// Whether that token is out.
    pub(crate) fn has(&self, token: u64) -> bool {
        self.0.contains_key(&token)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many are out.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The peer is about to get a token, which is not out, for that place.
    pub(crate) fn give(&mut self, token: u64, place: P, stream: S) {
        self.0.insert(token, Out { place, stream, in_use: false, detached: false, done: false });
    }

    /// The stream is about to get the DMB of that token.
    pub(crate) fn use_it(&mut self, token: u64) {
        if let Some(out) = self.0.get_mut(&token) {
            out.in_use = true;
        }
    }

    /// The stream that reads from the DMB of that token; `None`: no such token is out, or the
    /// stream has not got it yet.
    pub(crate) fn stream(&self, token: u64) -> Option<S> {
        self.0.get(&token).filter(|out| out.in_use && !out.detached).map(|out| out.stream.clone())
    }

    /// The peer's DETACH, or what stands for it. Returns the place if it is free now.
    pub(crate) fn detached(&mut self, token: u64) -> Result<Option<P>, Unknown> {
        let out = self.0.get_mut(&token).filter(|out| !out.detached).ok_or(Unknown)?;
        out.detached = true;
        Ok(self.take_if_free(token))
    }

    /// Our stream is done with it. Returns the place if it is free now.
    pub(crate) fn done(&mut self, token: u64) -> Option<P> {
        self.0.get_mut(&token)?.done = true;
        self.take_if_free(token)
    }

    fn take_if_free(&mut self, token: u64) -> Option<P> {
        self.0.get(&token).filter(|out| out.detached && out.done)?;
        self.0.remove(&token).map(|out| out.place)
    }

    /// Every place that is out.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn places(&self) -> impl Iterator<Item = P> {
        self.0.values().map(|out| out.place)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_once_both_ends_are_done() {
        for detach_first in [true, false] {
            let mut given = Given::new();
            given.give(5, 'p', ());
            assert_eq!(given.stream(5), None, "the stream has not got it");
            given.use_it(5);
            assert_eq!(given.stream(5), Some(()));
            if detach_first {
                assert_eq!(given.detached(5), Ok(None));
                assert_eq!((given.stream(5), given.detached(5)), (None, Err(Unknown)), "once");
                assert_eq!(given.done(5), Some('p'));
            } else {
                assert_eq!((given.done(5), given.done(5)), (None, None));
                assert_eq!(given.detached(5), Ok(Some('p')));
            }
            assert!(given.is_empty());
            // What comes late is for nobody, also when the place is out again.
            given.give(6, 'p', ());
            assert_eq!((given.detached(5), given.done(5)), (Err(Unknown), None));
            assert!(given.has(6) && !given.has(5));
        }
    }
}
