//! The words of the reasons for TCP, as users see them.

pub(crate) const DECLINED: &str = "the peer declined";
pub(crate) const DENIED: &str = "the system denies a call that shared memory needs";
pub(crate) const DESCRIPTORS: &str = "no file descriptor is left";
pub(crate) const DIRECTORY: &str = "the device directory can not be used";
pub(crate) const IN_PROGRESS: &str = "the upgrade is under way";
pub(crate) const LIMIT: &str = "a limit on links or connections is reached";
pub(crate) const LINK_DOWN: &str = "the link to the peer's endpoint broke";
pub(crate) const MEMORY: &str = "no memory for a DMB";
pub(crate) const NO_ANSWER: &str = "the peer has not answered yet";
pub(crate) const NOT_YET: &str = "no upgrade was asked for yet";
pub(crate) const NO_LISTENER: &str = "the peer does not speak SMC on this host";
pub(crate) const NO_SEQUENCE: &str = "the kernel does not show the connection's sequence number";
pub(crate) const UNPROVED: &str = "the peer could not be proved to hold the other end";

/// What the end that lacks nothing may say: it was told no, or it never came so far.
pub(crate) const OTHERS: &[&str] = &[DECLINED, NOT_YET, NO_LISTENER];
