//! What peers may take of this process: the settings that say so.

use super::{Config, variable};
use crate::ism::interrupt::CONNECTIONS;
use crate::sync::Arc;

const DEFAULT_MAX_LINKS: usize = 1024;
/// A link takes half of them at most: as many as wait in the longest queue of a listener.
const DEFAULT_MAX_WAITING_OFFERS: usize = 8192;
/// Ten seconds' worth may come at once: a program with 10,000 connections never notices.
const DEFAULT_MAX_QUERIES_PER_SECOND: usize = 2000;

/// The limits of a [`Config`]. They are of use to an endpoint and its process, not to streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Limits {
    pub(crate) memory: Option<u64>,
    pub(crate) memory_per_peer: Option<u64>,
    pub(crate) links: usize,
    pub(crate) links_per_user: Option<usize>,
    pub(crate) streams_per_link: usize,
    pub(crate) waiting_offers: usize,
    pub(crate) queries_per_second: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            memory: None,
            memory_per_peer: None,
            links: DEFAULT_MAX_LINKS,
            links_per_user: None,
            streams_per_link: CONNECTIONS as usize,
            waiting_offers: DEFAULT_MAX_WAITING_OFFERS,
            queries_per_second: DEFAULT_MAX_QUERIES_PER_SECOND,
        }
    }
}

impl Limits {
    fn from_env() -> Self {
        let most = |name, default| variable(name).unwrap_or(default);
        let limits = Limits::default();
        Limits {
            memory: variable("SMC_LO_MEMORY"),
            memory_per_peer: variable("SMC_LO_MEMORY_PER_PEER"),
            links: most("SMC_LO_MAX_LINKS", limits.links),
            links_per_user: variable("SMC_LO_MAX_LINKS_PER_USER"),
            streams_per_link: usable_streams(most("SMC_LO_MAX_STREAMS_PER_LINK", limits.streams_per_link)),
            waiting_offers: most("SMC_LO_MAX_WAITING_OFFERS", limits.waiting_offers),
            queries_per_second: most("SMC_LO_MAX_QUERIES_PER_SECOND", limits.queries_per_second),
        }
    }

    /// Apart from the configuration, of which each stream has a copy; `None`: nothing is set.
    fn share(self) -> Option<Arc<Limits>> {
        (self != Limits::default()).then(|| Arc::new(self))
    }
}

/// What the variables say.
pub(super) fn from_env() -> Option<Arc<Limits>> {
    Limits::from_env().share()
}

/// No more than there are numbers for.
fn usable_streams(streams: usize) -> usize {
    streams.min(CONNECTIONS as usize)
}

impl Config {
    pub(crate) fn limits(&self) -> Limits {
        self.limits.as_deref().copied().unwrap_or_default()
    }

    fn limit(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        let mut limits = self.limits();
        change(&mut limits);
        self.limits = limits.share();
        self
    }

    /// Sets the bytes of memory that the rings of this process may take together; a quarter of what
    /// the process may have if nothing is set, and never more than that. What it may have is the
    /// least limit of its memory cgroups, or the host's memory.
    ///
    /// As much again may be borrowed from peers. No peer gets more than half of what all others
    /// leave. Where that is not enough, rings stay small, and in the end connections stay on TCP
    /// with [`FallbackReason::Memory`](crate::FallbackReason::Memory).
    ///
    /// It belongs to the process: of all that were used there the least counts, from then on.
    #[must_use]
    pub fn memory_limit(self, bytes: u64) -> Self {
        self.limit(|limits| limits.memory = Some(bytes))
    }

    /// Sets the bytes that the rings for one peer process may take of
    /// [`memory_limit`](Config::memory_limit), on all of its links together; if nothing is set
    /// there is only the half of what all others leave, which is a limit besides.
    ///
    /// Beyond it rings stay small, and connections stay on TCP with
    /// [`FallbackReason::Memory`](crate::FallbackReason::Memory). Processes of another pid
    /// namespace, which have no number here, are one peer for each user. This process is no peer of
    /// its own.
    ///
    /// It belongs to the process, as `memory_limit`.
    #[must_use]
    pub fn memory_limit_per_peer(self, bytes: u64) -> Self {
        self.limit(|limits| limits.memory_per_peer = Some(bytes))
    }

    /// Sets how many links to endpoints of other processes this one may have; 1024 if nothing is
    /// set. A quarter of the process's descriptors is a limit besides (`RLIMIT_NOFILE`; a link
    /// holds three).
    ///
    /// When all are in use, the process that has the most gives its latest one up to one that has
    /// fewer. Streams that get none stay on TCP, with
    /// [`FallbackReason::Limit`](crate::FallbackReason::Limit) or
    /// [`Descriptors`](crate::FallbackReason::Descriptors).
    ///
    /// It belongs to the runtime: the first configuration used there with a device directory
    /// decides.
    #[must_use]
    pub fn max_links(self, links: usize) -> Self {
        self.limit(|limits| limits.links = links)
    }

    /// Sets how many of the links the processes of one user may have who is not ours; half of them
    /// if nothing is set.
    ///
    /// When these are in use, it is that user's process with the most links that gives one up.
    /// Streams that get none stay on TCP, with
    /// [`FallbackReason::Limit`](crate::FallbackReason::Limit). It belongs to the runtime, as
    /// [`max_links`](Config::max_links).
    #[must_use]
    pub fn max_links_per_user(self, links: usize) -> Self {
        self.limit(|limits| limits.links_per_user = Some(links))
    }

    /// Sets how many streams may be on one link, upgraded or about to be; 32768 if nothing is set,
    /// and at most. A stream that one of the two ends still holds counts.
    ///
    /// More stay on TCP, with [`FallbackReason::Limit`](crate::FallbackReason::Limit). It belongs
    /// to the runtime, as [`max_links`](Config::max_links).
    #[must_use]
    pub fn max_streams_per_link(self, streams: usize) -> Self {
        self.limit(|limits| limits.streams_per_link = usable_streams(streams))
    }

    /// Sets how many offers and questions of peers may wait for a stream that is not accepted yet;
    /// 8192 if nothing is set. Half of them may be offers of one link.
    ///
    /// When all wait, the process that has the most gives its latest one up to one that has fewer.
    /// Streams whose offer may not wait stay on TCP, with
    /// [`FallbackReason::Limit`](crate::FallbackReason::Limit). It belongs to the runtime, as
    /// [`max_links`](Config::max_links).
    #[must_use]
    pub fn max_waiting_offers(self, offers: usize) -> Self {
        self.limit(|limits| limits.waiting_offers = offers)
    }

    /// Sets how many questions in a second one peer process may ask for long, as a client does
    /// where several processes listen on a port; 2000 if nothing is set. The beginning of a link
    /// counts as one. Ten times as many may come at once.
    ///
    /// More are answered by hanging up, after the reason: the streams that they are for stay on
    /// TCP, with [`FallbackReason::Limit`](crate::FallbackReason::Limit). Processes of another pid
    /// namespace, which have no number here, are one peer, and so are all of a user who is not
    /// ours. It belongs to the runtime, as [`max_links`](Config::max_links).
    #[must_use]
    pub fn max_queries_per_second(self, queries: usize) -> Self {
        self.limit(|limits| limits.queries_per_second = queries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_to_its_default_is_not_set() {
        let config = Config::new();
        let same = config.clone().max_links(7).max_links(DEFAULT_MAX_LINKS);
        assert_eq!(same, config);
        assert!(same.limits.is_none());
        assert_ne!(config.clone().max_links(7), config);
    }

    #[test]
    fn each_limit_is_its_own() {
        let set = Config::new()
            .memory_limit(1)
            .memory_limit_per_peer(2)
            .max_links(3)
            .max_links_per_user(4)
            .max_streams_per_link(5)
            .max_waiting_offers(6)
            .max_queries_per_second(7);
        let limits = Limits {
            memory: Some(1),
            memory_per_peer: Some(2),
            links: 3,
            links_per_user: Some(4),
            streams_per_link: 5,
            waiting_offers: 6,
            queries_per_second: 7,
        };
        assert_eq!(set.limits(), limits);
        let most = Config::new().max_streams_per_link(usize::MAX);
        assert_eq!(most, Config::new(), "there are no more numbers");
    }
}
