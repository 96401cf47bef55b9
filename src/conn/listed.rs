//! The connection as the roster sees it: what it is and has done, told without waiting for its
//! directions.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::{OnceLock, Weak};
use std::time::{Duration, SystemTime};

use super::receive::{self, Receiver};
use super::send::{self, Sender};
use super::upgrade::Phase;
use super::{Connection, Role, Tcp};
use crate::clc::Gid;
use crate::ism::dmb::Direction;
use crate::ism::ring::Memory;
use crate::ism::sys;
use crate::link::roster::{Listed, Listing, Patience};
use crate::stats::{StreamRole, StreamStats};
use crate::sync::{AtomicU64, Ordering};
use crate::transport::{Counters, FallbackReason, LoopbackIsm, Transport};

/// What is kept of a connection for the roster, beside what its directions know.
pub(super) struct Record {
    pub(super) listing: Listing,
    /// Monotonic.
    created: Duration,
    /// Our own and the peer's, once both were asked. They stay what they are.
    addresses: OnceLock<Box<(SocketAddr, SocketAddr)>>,
    /// Positions of the rings when the roster last got to see them.
    read: AtomicU64,
    written: AtomicU64,
}

impl Record {
    /// A connection is made.
    #[inline]
    pub(super) fn new(stream: Weak<dyn Listed>) -> Record {
        Record {
            listing: Listing::enter(stream),
            created: sys::monotonic(),
            addresses: OnceLock::new(),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    /// Both addresses, or what can be asked of them.
    fn addresses(&self, fd: Option<BorrowedFd<'_>>) -> (Option<SocketAddr>, Option<SocketAddr>) {
        if let Some((local, peer)) = self.addresses.get().map(|both| **both) {
            return (Some(local), Some(peer));
        }
        let Some(fd) = fd else { return (None, None) };
        let (local, peer) = (sys::local_addr(fd).ok(), sys::peer_addr(fd).ok());
        if let (Some(local), Some(peer)) = (local, peer) {
            let _ = self.addresses.set(Box::new((local, peer)));
        }
        (local, peer)
    }
}

/// The ring of a direction that has left TCP: whose device, which link, how large a window.
pub(super) type SendingRing = (Gid, u64, usize);

impl<T: Tcp> Receiver<T> {
    /// The window of the ring, once the sender has switched to it.
    pub(super) fn ring_window(&self) -> Option<usize> {
        let dmb = self.dmb.as_ref()?;
        let switched = self.path != receive::Path::Tcp
            || (!self.pinned && matches!(dmb.consumer.memory().header().direction(), Direction::Switched(_)));
        switched.then_some(dmb.window)
    }
}

impl<T: Tcp> Sender<T> {
    /// The ring, once this end has switched to it.
    pub(super) fn sending_ring(&self) -> Option<SendingRing> {
        let dmb = self.dmb.as_ref().filter(|_| self.path == send::Path::Ring)?;
        let link = &dmb.peer.link;
        Some((link.device, link.shared_id(), dmb.window))
    }
}

impl<T: Tcp> Connection<T> {
    /// What a stream with these rings runs on. That it has left TCP is noted when it is first seen.
    pub(super) fn transport_of(&self, receives: Option<usize>, sends: Option<SendingRing>) -> Transport {
        let (Some(receive_window), Some((device, link, send_window))) = (receives, sends) else {
            return Transport::Tcp(self.reason());
        };
        let ism = LoopbackIsm { device, link, receive_window, send_window };
        self.upgrade.is_done(ism);
        Transport::LoopbackIsm(ism)
    }

    /// Why it runs on TCP, if it does.
    fn reason(&self) -> FallbackReason {
        match self.upgrade.phase() {
            Phase::Settled(reason) | Phase::Idle(reason) => reason,
            Phase::Offering if self.upgrade.waits_for_write() => FallbackReason::NextWrite,
            Phase::Offering | Phase::Attached if self.upgrade.is_overdue() => FallbackReason::NoAnswer,
            Phase::Offering | Phase::Attached => FallbackReason::InProgress,
        }
    }

    /// A direction may have left TCP: if it was the last one, that is noted.
    pub(super) fn note_upgrade(&self) {
        if self.upgrade.phase() == Phase::Attached && self.upgrade.done().is_none() {
            let _ = self.transport();
        }
    }
}

impl<T: Tcp> Listed for Connection<T> {
    fn tell(&self, id: u64, patience: &mut Patience) -> Option<StreamStats> {
        let record = &self.record;
        let mut addresses = (None, None);
        let receives = match patience.lock(&self.rx) {
            // It is being closed.
            Some(rx) if rx.socket.is_none() => return None,
            Some(rx) => {
                addresses = record.addresses(rx.fd().ok());
                if let Some(dmb) = rx.dmb.as_ref() {
                    record.read.store(dmb.consumer.position(), Ordering::Relaxed);
                }
                Some(rx.ring_window())
            }
            None => None,
        };
        let sends = match patience.lock(&self.tx) {
            Some(tx) if tx.socket.is_none() => return None,
            Some(tx) => {
                if addresses == (None, None) {
                    addresses = record.addresses(tx.fd().ok());
                }
                if let Some(dmb) = tx.dmb.as_ref() {
                    record.written.store(dmb.producer.position(), Ordering::Relaxed);
                }
                Some(tx.sending_ring())
            }
            None => None,
        };
        if addresses == (None, None) {
            addresses = record.addresses(None);
        }
        let transport = match (receives, sends, self.upgrade.done()) {
            (Some(receives), Some(sends), _) => self.transport_of(receives, sends),
            (_, _, Some((_, ism))) => Transport::LoopbackIsm(ism),
            _ => Transport::Tcp(self.reason()),
        };
        let age = sys::monotonic().saturating_sub(record.created);
        Some(StreamStats {
            id,
            local_addr: addresses.0,
            peer_addr: addresses.1,
            role: match self.role {
                Role::Client => StreamRole::Client,
                Role::Server => StreamRole::Server,
                Role::Adopted => StreamRole::Adopted,
            },
            policy: self.config.upgrade_policy,
            device_dir: self.config.directory().map(Into::into),
            transport,
            counters: Counters {
                tcp_bytes_read: self.read_bytes.load(Ordering::Relaxed),
                tcp_bytes_written: self.written_bytes.load(Ordering::Relaxed),
                ism_bytes_read: record.read.load(Ordering::Relaxed),
                ism_bytes_written: record.written.load(Ordering::Relaxed),
            },
            created: SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH),
            age,
            upgraded_after: self.upgrade.done().map(|(at, _)| at.saturating_sub(record.created)),
        })
    }
}
