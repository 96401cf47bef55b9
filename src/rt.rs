//! What drives the engine: one folder for each runtime, which registers descriptors and spawns, and
//! nothing else.

#[cfg(feature = "blocking")]
pub(crate) mod mio;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;
