//! What a stream tells of its transport, and how an application asks for another one.

use std::io;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::stream::{Shared, SmcStream};
use crate::config::UpgradePolicy;
use crate::conn::Connection;
use crate::conn::watch::WatchKey;
use crate::ism::sys;
use crate::link::endpoint::Endpoint;
use crate::link::lack::reason_of;
use crate::link::message::Tuple;
use crate::link::search::Unsettled;
use crate::link::stream::{LinkedStream, Verdict};
use crate::rt::mio::{Engine, MioTcp, noting_waits};
use crate::sync::Arc;
use crate::transport::{Counters, FallbackReason, Transport, UCred};

/// For how long connect waits with `UpgradePolicy::Require`.
const REQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

impl SmcStream {
    /// What the stream runs on now, and why.
    pub fn transport(&self) -> Transport {
        self.shared.conn.transport()
    }

    /// How many bytes the application has read and written so far, over each transport.
    pub fn counters(&self) -> Counters {
        self.shared.conn.counters()
    }

    /// Whose process holds the other end, as the kernel told the link when it was made
    /// (`SO_PEERCRED`).
    ///
    /// # Errors
    ///
    /// `Unsupported`, with the [`FallbackReason`], while the stream runs on TCP, which does not
    /// tell.
    pub fn peer_cred(&self) -> io::Result<UCred> {
        self.shared.conn.peer_cred().map_err(io::Error::from)
    }

    /// Asks for the upgrade, where this end may ask, and waits until it is done or known not to
    /// happen.
    ///
    /// On an accepted stream, whose client does the asking, it only waits for an upgrade that is
    /// under way.
    ///
    /// It waits 5 seconds for each of the peer's two steps (to take the offer, to switch its own
    /// direction), so 10 in total at most, and answers [`FallbackReason::NoAnswer`] then: the
    /// peer's process is stopped or busy, or its application has not accepted the connection yet.
    /// The upgrade goes on in the background all the same.
    pub fn upgrade(&self) -> Transport {
        self.shared.upgrade_until(None).unwrap_or_else(|| self.transport())
    }

    /// Does what the policy wants of a stream that has just connected; where it waits, then not
    /// longer than `limit`.
    pub(super) fn after_connect(&self, limit: Option<Duration>) -> io::Result<()> {
        let config = &self.shared.conn.config;
        let wait = match config.upgrade_policy {
            _ if config.off => return Ok(()),
            UpgradePolicy::FirstTurn | UpgradePolicy::Manual | UpgradePolicy::Never => return Ok(()),
            UpgradePolicy::Eager => {
                if self.shared.conn.begin_upgrade() {
                    self.shared.offer();
                }
                return Ok(());
            }
            UpgradePolicy::Require => REQUIRE_TIMEOUT,
            UpgradePolicy::Handshake => config.handshake_timeout,
        };
        let required = config.upgrade_policy == UpgradePolicy::Require;
        let deadline = Instant::now().checked_add(limit.map_or(wait, |limit| limit.min(wait)));
        match self.shared.upgrade_until(deadline) {
            Some(Transport::LoopbackIsm(_)) => Ok(()),
            _ if !required => Ok(()),
            None | Some(Transport::Tcp(FallbackReason::NoAnswer)) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, FallbackReason::NoAnswer))
            }
            Some(Transport::Tcp(reason)) => Err(reason.into()),
        }
    }
}

/// Leaves the lists of those who wait for an upgrade.
struct Watch<'a>(&'a Connection<MioTcp>, WatchKey);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.forget_watch(&mut self.1);
    }
}

impl Shared {
    /// Looks for the peer, in the background.
    #[cold]
    pub(super) fn offer(&self) {
        let config = &self.conn.config;
        if !Engine::is_running(config) {
            // A client of plain servers shall not start a thread to find that out.
            let addresses =
                self.tcp.std().local_addr().and_then(|local| Ok((local, self.tcp.std().peer_addr()?)));
            let found = match addresses {
                Ok((local, remote)) => Endpoint::check_for_listeners(config, Tuple::new(local, remote)),
                Err(_) => Err(FallbackReason::HalfClosed),
            };
            if let Err(reason) = found {
                self.conn.verdict(Verdict::StayOnTcp(reason));
                return;
            }
        }
        let began = Engine::hold(&self.conn.config).and_then(|engine| {
            let endpoint = engine.endpoint(&self.conn.config)?;
            self.enter(engine);
            Ok(endpoint)
        });
        match began {
            Ok(endpoint) => self.offer_on(&endpoint),
            Err(error) => {
                crate::trace::warning!("no loopback-ism device: {error}");
                let reason = reason_of(&error, FallbackReason::NoDevice);
                self.conn.verdict(Verdict::StayOnTcp(reason));
            }
        }
    }

    fn offer_on(&self, endpoint: &Arc<Endpoint>) {
        let (offering, conn) = (endpoint.clone(), self.conn.clone());
        let linked: Arc<dyn LinkedStream> = conn.clone();
        endpoint.spawn(Unsettled::during(Arc::downgrade(&linked), async move { offering.offer(conn) }));
    }

    /// Begins the upgrade if this end may, and waits for it. `None`: not decided in time.
    fn upgrade_until(&self, deadline: Option<Instant>) -> Option<Transport> {
        if self.conn.begin_upgrade() {
            self.offer();
        }
        let parker = self.parker();
        let waker = Waker::from(parker.clone());
        let mut watch = Watch(&self.conn, WatchKey::default());
        loop {
            parker.begin();
            // Who was woken is not listed any more, whatever the key says.
            self.conn.forget_watch(&mut watch.1);
            // Before the look: what becomes overdue meanwhile is seen by it or by the deadline.
            let due = self.conn.answer_due();
            let mut cx = Context::from_waker(&waker);
            let (looked, waits) = noting_waits(|| self.conn.poll_upgraded(&mut cx, &mut watch.1));
            if let Poll::Ready(transport) = looked {
                drop(watch);
                self.keep(parker);
                return Some(transport);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return None;
            }
            let due = due.map(|due| Instant::now() + due.saturating_sub(sys::monotonic()));
            let until = deadline.into_iter().chain(due).min();
            if self.sleep(&parker, waits, until).is_err() {
                return Some(self.conn.transport());
            }
        }
    }
}
