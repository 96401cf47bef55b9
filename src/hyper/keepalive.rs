//! Keepalive as hyper's and tonic's builders set it: one part at a time.

use std::time::Duration;

use socket2::TcpKeepalive;

/// What is `None` stays as the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Keepalive {
    pub(crate) time: Option<Duration>,
    pub(crate) interval: Option<Duration>,
    pub(crate) retries: Option<u32>,
}

impl Keepalive {
    /// What to set; `None` when no part was asked for.
    pub(crate) fn wanted(self) -> Option<TcpKeepalive> {
        if self == Keepalive::default() {
            return None;
        }
        let mut wanted = TcpKeepalive::new();
        if let Some(time) = self.time {
            wanted = wanted.with_time(time);
        }
        if let Some(interval) = self.interval {
            wanted = wanted.with_interval(interval);
        }
        if let Some(retries) = self.retries {
            wanted = wanted.with_retries(retries);
        }
        Some(wanted)
    }
}
