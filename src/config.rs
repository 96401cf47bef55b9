//! What a connection may do: policies, sizes, and the environment variables that mirror them.

mod limits;

use std::env;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use crate::peer::PeerPolicy;
use crate::sync::Arc;

pub(crate) use limits::Limits;

/// When a connection leaves TCP for shared memory.
///
/// The policy of the connecting end decides when the upgrade begins. A listener answers offers
/// under every policy but [`Never`](UpgradePolicy::Never).
///
/// Written in `SMC_LO_UPGRADE` as `first-turn`, `eager`, `manual`, `require`, `handshake` or
/// `never`.
///
/// ```
/// use tokio_smc::UpgradePolicy;
/// assert_eq!("first-turn".parse(), Ok(UpgradePolicy::default()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum UpgradePolicy {
    /// In the background, once the client writes again after it has read, or 64 KiB went one way.
    /// Short connections never pay for it.
    #[default]
    FirstTurn,
    /// In the background, from connect on.
    Eager,
    /// Only when [`SmcStream::upgrade`](crate::SmcStream::upgrade) is called.
    Manual,
    /// Connect waits for the upgrade, at most 5 seconds, and fails when there is none.
    Require,
    /// Connect waits, at most [`Config::handshake_timeout`], while the CLC handshake runs over the
    /// TCP connection itself before its first byte, as the kernel's SMC does it. Without an upgrade
    /// it stays TCP.
    Handshake,
    /// Not at all: plain TCP. A listener answers no offers.
    Never,
}

impl FromStr for UpgradePolicy {
    type Err = UnknownPolicy;

    fn from_str(word: &str) -> Result<Self, UnknownPolicy> {
        Ok(match word {
            "first-turn" => UpgradePolicy::FirstTurn,
            "eager" => UpgradePolicy::Eager,
            "manual" => UpgradePolicy::Manual,
            "require" => UpgradePolicy::Require,
            "handshake" => UpgradePolicy::Handshake,
            "never" => UpgradePolicy::Never,
            _ => return Err(UnknownPolicy(word.to_owned())),
        })
    }
}

/// A word that names no [`UpgradePolicy`].
///
/// ```
/// use tokio_smc::UpgradePolicy;
/// let error = "always".parse::<UpgradePolicy>().unwrap_err();
/// assert!(error.to_string().starts_with("unknown upgrade policy \"always\": use first-turn,"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPolicy(String);

impl std::fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "unknown upgrade policy {:?}: use first-turn, eager, manual, require, handshake or never",
            self.0
        )
    }
}

impl std::error::Error for UnknownPolicy {}

/// Bytes of the largest segment of a DMB when nothing else is said: what TCP loopback absorbs
/// without a reader.
pub const DEFAULT_DMB_SIZE: usize = 4 << 20;
const SMALLEST_DMB_SIZE: usize = 4 << 10;
const LARGEST_DMB_SIZE: usize = 64 << 20;
const DEFAULT_BUSY_POLL: Duration = Duration::from_micros(200);
const DEFAULT_HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(200);
const DEFAULT_PEER_TIMEOUT: Duration = Duration::from_secs(30);
const LONGEST_PEER_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Settings of streams and listeners.
///
/// [`Config::from_env`] starts from the environment and is what
/// [`SmcStream::connect`](crate::SmcStream::connect) and
/// [`SmcListener::bind`](crate::SmcListener::bind) use; what is set here in code wins over a
/// variable, except `SMC_LO=off`, which always wins.
///
/// | variable | meaning | default |
/// |---|---|---|
/// | `SMC_LO` | `off` turns every upgrade off | on |
/// | `SMC_LO_DIR` | the device directory ([`device_dir`](Config::device_dir)) | `/dev/shm/smc-lo-<uid>` |
/// | `SMC_LO_UPGRADE` | the [`UpgradePolicy`] | `first-turn` |
/// | `SMC_LO_PEERS` | whose processes are admitted: the [`PeerPolicy`] | `same` |
/// | `SMC_LO_DMB_SIZE` | bytes of a DMB's largest segment ([`dmb_size`](Config::dmb_size)) | 4194304 |
/// | `SMC_LO_MEMORY` | bytes that all rings may take ([`memory_limit`](Config::memory_limit)) | a quarter |
/// | `SMC_LO_MEMORY_PER_PEER` | of these for one process ([`memory_limit_per_peer`](Config::memory_limit_per_peer)) | |
/// | `SMC_LO_BUSY_POLL_US` | longest polling window, in µs ([`busy_poll`](Config::busy_poll)) | 200 |
/// | `SMC_LO_MAX_LINKS` | links of a process ([`max_links`](Config::max_links)) | 1024 |
/// | `SMC_LO_MAX_LINKS_PER_USER` | of these for another user ([`max_links_per_user`](Config::max_links_per_user)) | half |
/// | `SMC_LO_MAX_STREAMS_PER_LINK` | streams of a link ([`max_streams_per_link`](Config::max_streams_per_link)) | 32768 |
/// | `SMC_LO_MAX_WAITING_OFFERS` | offers before accept ([`max_waiting_offers`](Config::max_waiting_offers)) | 8192 |
/// | `SMC_LO_MAX_QUERIES_PER_SECOND` | of one peer process ([`max_queries_per_second`](Config::max_queries_per_second)) | 2000 |
/// | `SMC_LO_PEER_TIMEOUT_MS` | patience with a silent peer, in ms ([`peer_timeout`](Config::peer_timeout)) | 30000 |
///
/// How long connect waits for the handshake ([`handshake_timeout`](Config::handshake_timeout)) is
/// set in code only.
///
/// The variables are read once, when the first of these settings is needed. One that can not be
/// understood counts as unset; with the feature `tracing` a warning says so.
///
/// ```
/// use std::time::Duration;
/// use tokio_smc::{Config, UpgradePolicy};
/// let config = Config::new().upgrade_policy(UpgradePolicy::Eager).busy_poll(Duration::ZERO);
/// assert_ne!(config, Config::default());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    pub(crate) off: bool,
    pub(crate) upgrade_policy: UpgradePolicy,
    pub(crate) peer_policy: PeerPolicy,
    pub(crate) dmb_size: usize,
    pub(crate) busy_poll: Duration,
    /// Shared: every connection has a copy of its settings.
    pub(crate) device_dir: Option<Arc<Path>>,
    pub(crate) handshake_timeout: Duration,
    limits: Option<Arc<Limits>>,
    pub(crate) peer_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config::new()
    }
}

impl Config {
    /// The built-in settings; of the environment only `SMC_LO=off` is obeyed.
    pub fn new() -> Self {
        static OFF: LazyLock<bool> =
            LazyLock::new(|| env::var_os("SMC_LO").is_some_and(|value| value == "off"));
        Config {
            off: *OFF,
            upgrade_policy: UpgradePolicy::default(),
            peer_policy: PeerPolicy::default(),
            dmb_size: DEFAULT_DMB_SIZE,
            busy_poll: DEFAULT_BUSY_POLL,
            device_dir: None,
            handshake_timeout: DEFAULT_HANDSHAKE_TIMEOUT,
            limits: None,
            peer_timeout: DEFAULT_PEER_TIMEOUT,
        }
    }

    /// The settings that the `SMC_LO_*` variables ask for, built-in ones for the rest. The
    /// environment is read once, when this is first called.
    pub fn from_env() -> Self {
        // Every connect without settings of its own asks: to look through the environment each time
        // would take longer than all the rest that this crate does for it.
        static FROM_ENV: LazyLock<Config> = LazyLock::new(Config::read_env);
        FROM_ENV.clone()
    }

    fn read_env() -> Self {
        let mut config = Config::new();
        if let Some(policy) = variable("SMC_LO_UPGRADE") {
            config.upgrade_policy = policy;
        }
        if let Some(policy) = variable("SMC_LO_PEERS") {
            config.peer_policy = policy;
        }
        if let Some(bytes) = variable("SMC_LO_DMB_SIZE") {
            config = config.dmb_size(bytes);
        }
        if let Some(micros) = variable("SMC_LO_BUSY_POLL_US") {
            config.busy_poll = Duration::from_micros(micros);
        }
        config.limits = limits::from_env();
        if let Some(millis) = variable("SMC_LO_PEER_TIMEOUT_MS") {
            config = config.peer_timeout(Duration::from_millis(millis));
        }
        config.device_dir =
            env::var_os("SMC_LO_DIR").filter(|dir| !dir.is_empty()).map(|dir| PathBuf::from(dir).into());
        config
    }

    /// Sets when connections are upgraded; [`UpgradePolicy::FirstTurn`] if nothing is set.
    #[must_use]
    pub fn upgrade_policy(mut self, policy: UpgradePolicy) -> Self {
        self.upgrade_policy = policy;
        self
    }

    /// Sets whose processes connections may be upgraded with; [`PeerPolicy::SameUser`] if nothing
    /// is set. Users meet in a directory that they share ([`device_dir`](Config::device_dir)), and
    /// have to admit each other.
    #[must_use]
    pub fn peer_policy(mut self, policy: PeerPolicy) -> Self {
        self.peer_policy = policy;
        self
    }

    /// Sets the bytes of the largest segment of a DMB, rounded up to a power of two between 4 KiB
    /// and 64 MiB; [`DEFAULT_DMB_SIZE`] (4 MiB) if nothing is set.
    ///
    /// A ring begins with 4 KiB and grows when it is full. One whose reader does not read may hold
    /// several such segments, up to what this host's TCP would hold.
    ///
    /// A smaller `SO_RCVBUF` that the application has set on the socket or its listener wins.
    #[must_use]
    pub fn dmb_size(mut self, bytes: usize) -> Self {
        self.dmb_size = usable_dmb_size(bytes);
        self
    }

    /// Sets for how long at most a runtime that has nothing else to do looks for more work before
    /// it sleeps; zero never polls, and without a setting it is 200 µs.
    ///
    /// This is what low latency costs: CPU while there is traffic. A runtime looks for as long as
    /// its peers took for their answers lately, mostly 25 µs at most; longer only on a machine on
    /// which a wake-up takes longer. It sleeps at once when looking does not pay, when others need
    /// the CPU, and when the process may use one CPU only. The window belongs to the runtime: the
    /// first configuration used there with a device directory decides.
    #[must_use]
    pub fn busy_poll(mut self, window: Duration) -> Self {
        self.busy_poll = window;
        self
    }

    /// Sets the device directory: processes that share it can be upgraded with each other.
    ///
    /// Without a setting it is `/dev/shm/smc-lo-<uid>`, made when it is missing. It must belong to
    /// this user or to root and must not be writable by others, unless it has the sticky bit; else
    /// streams stay on TCP with [`FallbackReason::NoDevice`](crate::FallbackReason::NoDevice).
    #[must_use]
    pub fn device_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.device_dir = Some(dir.into().into());
        self
    }

    /// Sets for how long connect waits with [`UpgradePolicy::Handshake`]; 200 ms if nothing is set.
    #[must_use]
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// Sets for how long a peer may say nothing and keep something of this process: a descriptor of
    /// a link that is not greeted, of a question that is not answered, of a closed stream whose
    /// last bytes are not sent. 30 seconds if nothing is set, a day at most.
    ///
    /// Streams that waited for it stay on TCP, with
    /// [`FallbackReason::NoAnswer`](crate::FallbackReason::NoAnswer). None that is upgraded ends by
    /// it. It belongs to the runtime, as [`max_links`](Config::max_links).
    #[must_use]
    pub fn peer_timeout(mut self, timeout: Duration) -> Self {
        self.peer_timeout = timeout.min(LONGEST_PEER_TIMEOUT);
        self
    }

    pub(crate) fn directory(&self) -> Option<&Path> {
        self.device_dir.as_deref()
    }
}

/// The bytes of a DMB's largest segment that come nearest to what was asked for.
pub(crate) fn usable_dmb_size(bytes: usize) -> usize {
    bytes.clamp(SMALLEST_DMB_SIZE, LARGEST_DMB_SIZE).next_power_of_two()
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    let value = env::var(name).ok()?;
    let parsed = value.trim().parse().ok();
    if parsed.is_none() && !value.is_empty() {
        crate::trace::warning!("{name}={value:?} is not understood and counts as unset");
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_has_its_word() {
        for (word, policy) in [
            ("first-turn", UpgradePolicy::FirstTurn),
            ("eager", UpgradePolicy::Eager),
            ("manual", UpgradePolicy::Manual),
            ("require", UpgradePolicy::Require),
            ("handshake", UpgradePolicy::Handshake),
            ("never", UpgradePolicy::Never),
        ] {
            assert_eq!(word.parse(), Ok(policy));
        }
        let error = "always".parse::<UpgradePolicy>().unwrap_err();
        assert!(error.to_string().contains("\"always\""), "{error}");
    }

    #[test]
    fn dmb_sizes_become_usable_ones() {
        assert_eq!(Config::new().dmb_size(0).dmb_size, 4096);
        assert_eq!(Config::new().dmb_size(5000).dmb_size, 8192);
        assert_eq!(Config::new().dmb_size(usize::MAX).dmb_size, LARGEST_DMB_SIZE);
    }
}
