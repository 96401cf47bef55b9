//! What can be seen of a process: its streams, and what has happened in it.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::config::UpgradePolicy;
use crate::transport::{Counters, FallbackReason, Transport};

/// The counters of this process since it began: see [`stats`](crate::stats()).
///
/// Each end of a connection counts for itself, so a connection of a process with itself counts
/// twice. Its `Display` has a line for each number: the name, a blank, the number.
///
/// ```
/// use tokio_smc::FallbackReason;
///
/// let stats = tokio_smc::stats();
/// println!("{} of {} upgrades", stats.upgrades_done, stats.upgrades_tried);
/// println!("{} streams had no peer here", stats.reason(FallbackReason::NoSmcListener));
/// print!("{stats}");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Streams that were made: connected, accepted, or taken from std.
    pub streams_created: u64,
    /// Those of them that are open.
    pub streams_open: u64,
    /// Streams whose upgrade has begun: this end began to look for its peer to make an offer, or
    /// has taken the offer of a client that was proved to hold the other end.
    pub upgrades_tried: u64,
    /// Streams that have left TCP in both directions, as far as this end has noticed.
    pub upgrades_done: u64,
    /// Wake-ups of a peer in another process for which its bell was rung: one or two system calls
    /// here, and one or more there.
    pub wakeups_sent: u64,
    /// Wake-ups of a waiting peer without a system call, since its poller was looking anyway, or
    /// was rung already, or since the peer lives in this process. (For a peer that does not wait
    /// there is no wake-up, and nothing is counted.)
    pub wakeups_saved: u64,
    /// Looks of a poller that did not sleep, within
    /// [`Config::busy_poll`](crate::Config::busy_poll), and found work.
    pub polls_paid: u64,
    /// Looks of a poller that did not sleep and found nothing; those of a poller that still goes on
    /// are not in it yet.
    pub polls_in_vain: u64,
    pub(crate) reasons: Vec<(FallbackReason, u64)>,
}

impl Stats {
    /// The streams that stayed on TCP, by reason; reasons without a stream are left out.
    ///
    /// A stream is counted once: when it is known to stay on TCP, or else when it is closed, with
    /// the reason that it gave then ([`NotYet`](FallbackReason::NotYet) if nothing had asked for an
    /// upgrade). One that was upgraded is not. Of the diagnoses of peers that declined 63 different
    /// ones are kept apart; more count as [`PEERDECL`](crate::Diagnosis::PEERDECL).
    pub fn reasons(&self) -> impl Iterator<Item = (FallbackReason, u64)> + '_ {
        self.reasons.iter().copied()
    }

    /// Streams that stayed on TCP for this reason.
    pub fn reason(&self, reason: FallbackReason) -> u64 {
        self.reasons().find(|(other, _)| *other == reason).map_or(0, |(_, count)| count)
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "streams_created {}", self.streams_created)?;
        writeln!(f, "streams_open {}", self.streams_open)?;
        writeln!(f, "upgrades_tried {}", self.upgrades_tried)?;
        writeln!(f, "upgrades_done {}", self.upgrades_done)?;
        writeln!(f, "wakeups_sent {}", self.wakeups_sent)?;
        writeln!(f, "wakeups_saved {}", self.wakeups_saved)?;
        writeln!(f, "polls_paid {}", self.polls_paid)?;
        writeln!(f, "polls_in_vain {}", self.polls_in_vain)?;
        for (reason, streams) in self.reasons() {
            writeln!(f, "{reason:?} {streams}")?;
        }
        Ok(())
    }
}

/// The part that this end of a stream plays in its upgrade.
///
/// ```
/// use tokio_smc::StreamRole;
/// let accepted = tokio_smc::streams().iter().filter(|seen| seen.role == StreamRole::Server).count();
/// println!("{accepted} {}", StreamRole::Server); // "0 server"
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StreamRole {
    /// From connect: it offers.
    Client,
    /// From a listener: it answers.
    Server,
    /// From a socket of unknown history (`from_std`): it offers when it is told to.
    Adopted,
}

impl fmt::Display for StreamRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StreamRole::Client => "client",
            StreamRole::Server => "server",
            StreamRole::Adopted => "adopted",
        })
    }
}

/// A stream as [`streams`](crate::streams) has seen it. Its `Display` is one line.
///
/// ```
/// for seen in tokio_smc::streams() {
///     println!("{:?} -> {:?} runs on {}", seen.local_addr, seen.peer_addr, seen.transport);
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamStats {
    /// A number that no other stream of this process has, nor will have.
    pub id: u64,
    /// The address of this end; `None` when it could not be asked in this moment.
    pub local_addr: Option<SocketAddr>,
    /// The address of the other end; `None` also when the connection had ended before it could be
    /// asked.
    pub peer_addr: Option<SocketAddr>,
    /// How the stream was made.
    pub role: StreamRole,
    /// When it leaves TCP.
    pub policy: UpgradePolicy,
    /// The device directory of its settings; `None` is the default one.
    pub device_dir: Option<PathBuf>,
    /// What it runs on, and why.
    pub transport: Transport,
    /// Bytes that the application has read and written, over each transport.
    pub counters: Counters,
    /// When it was made, by the clock of now.
    pub created: SystemTime,
    /// For how long it has been there.
    pub age: Duration,
    /// How old it was when this end noticed that both directions had left TCP; `None` on TCP.
    pub upgraded_after: Option<Duration>,
}

impl fmt::Display for StreamStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = |f: &mut fmt::Formatter<'_>, address: Option<SocketAddr>| match address {
            Some(address) => write!(f, "{address}"),
            None => f.write_str("?"),
        };
        address(f, self.local_addr)?;
        f.write_str(" ")?;
        address(f, self.peer_addr)?;
        write!(f, " {} {}", self.role, self.transport)?;
        let Counters { tcp_bytes_read, tcp_bytes_written, ism_bytes_read, ism_bytes_written } = self.counters;
        write!(f, ", tcp {tcp_bytes_read} in {tcp_bytes_written} out")?;
        write!(f, ", ism {ism_bytes_read} in {ism_bytes_written} out, {:?} old", self.age)?;
        match self.transport {
            Transport::LoopbackIsm(ism) => write!(f, ": {ism}"),
            Transport::Tcp(reason) => write!(f, ": {reason}"),
        }
    }
}
