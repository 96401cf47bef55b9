//! What drives the engine: one folder for each runtime, which registers descriptors and spawns, and nothing else.

pub(crate) mod tokio;
