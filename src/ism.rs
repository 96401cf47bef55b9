//! The software loopback-ism device: shared memory and its wake-ups.

#[cfg(not(loom))]
pub(crate) mod arena;
#[cfg(not(loom))]
pub(crate) mod aside;
#[cfg(not(loom))]
pub(crate) mod budget;
#[cfg(not(loom))]
pub(crate) mod device;
pub(crate) mod dmb;
#[cfg(not(loom))]
pub(crate) mod files;
pub(crate) mod interrupt;
pub(crate) mod ring;
#[cfg(not(loom))]
pub(crate) mod sys;
