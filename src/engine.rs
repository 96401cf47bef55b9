//! Parts of the engine for this project's own fuzz targets and benches, behind the feature
//! `unstable-engine`.
//!
//! Not an API: what is here changes with any release, and no version number tells of it. The engine
//! itself is crate-private; here it is wrapped as thinly as can be, so that what is measured is
//! what runs.

/// The CLC messages and the handshake.
pub mod clc {
    pub use crate::clc::*;
}

pub mod interrupt;
pub mod message;
pub mod ring;

/// The upgrade, at a server whose peer does what it likes.
#[cfg(all(fuzzing, not(test)))]
pub mod upgrade {
    /// Plays what the bytes say; panics at what must not be.
    pub fn play(bytes: &[u8]) {
        crate::conn::play_turns(bytes);
    }
}
