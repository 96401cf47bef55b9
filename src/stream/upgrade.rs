//! What a stream tells of its transport, and how an application asks for another one.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use tokio::runtime::Handle;

use super::SmcStream;
use crate::config::UpgradePolicy;
use crate::conn::Connection;
use crate::conn::watch::WatchKey;
use crate::info::SmcInfo;
use crate::link::lack::reason_of;
use crate::link::search::Unsettled;
use crate::link::stream::{LinkedStream, Verdict};
use crate::link::timer::Sleep;
use crate::rt::tokio::{self as rt, TokioTcp};
use crate::sync::Arc;
use crate::transport::{Counters, FallbackReason, Transport, UCred};

/// For how long connect waits with `UpgradePolicy::Require`.
const REQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

impl SmcStream {
    /// What the stream runs on now, and why.
    pub fn transport(&self) -> Transport {
        self.conn.transport()
    }

    /// The transport now and every change of it; see [`TransportWatch`].
    pub fn watch(&self) -> TransportWatch {
        TransportWatch::new(&self.conn, &self.conn.handle)
    }

    /// What can be asked about this stream after it was given to a library.
    pub fn info(&self) -> SmcInfo {
        SmcInfo::new(self, &self.conn, &self.conn.handle)
    }

    /// Whose process holds the other end, as the kernel told the link when it was made
    /// (`SO_PEERCRED`).
    ///
    /// # Errors
    ///
    /// `Unsupported`, with the [`FallbackReason`], while the stream runs on TCP, which does not
    /// tell.
    pub fn peer_cred(&self) -> io::Result<UCred> {
        self.conn.peer_cred().map_err(io::Error::from)
    }

    /// How many bytes the application has read and written so far, over each transport.
    pub fn counters(&self) -> Counters {
        self.conn.counters()
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
    /// The upgrade goes on in the background all the same; [`SmcStream::watch`] tells when it
    /// comes.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing: an upgrade that has begun goes on.
    pub async fn upgrade(&self) -> Transport {
        self.offer_if(self.conn.begin_upgrade());
        struct Watch<'a>(&'a Connection<TokioTcp>, WatchKey);
        impl Drop for Watch<'_> {
            fn drop(&mut self) {
                self.0.forget_watch(&mut self.1);
            }
        }
        let mut watch = Watch(&self.conn, Default::default());
        let mut patience = Patience::default();
        poll_fn(|cx| {
            patience
                .poll(cx, &self.conn, &self.conn.handle, true, |cx| watch.0.poll_upgraded(cx, &mut watch.1))
        })
        .await
    }

    /// Looks for the peer in the background.
    pub(super) fn offer_if(&self, begun: bool) {
        if !begun {
            return;
        }
        let (handle, conn) = (self.conn.handle.clone(), Arc::clone(&self.conn));
        let linked: Arc<dyn LinkedStream> = conn.clone();
        let offer = Unsettled::during(Arc::downgrade(&linked), async move {
            match rt::endpoint(&handle, &conn.config) {
                Ok(endpoint) => endpoint.offer(conn),
                Err(error) => {
                    crate::trace::warning!("no loopback-ism device: {error}");
                    let reason = reason_of(&error, FallbackReason::NoDevice);
                    conn.verdict(Verdict::StayOnTcp(reason));
                }
            }
        });
        self.conn.handle.spawn(offer);
    }

    /// Does what the policy wants of a stream that has just connected; where it waits, then not
    /// longer than `limit`.
    pub(crate) async fn after_connect(&self, limit: Option<Duration>) -> io::Result<()> {
        let wait = match self.conn.config.upgrade_policy {
            _ if self.conn.config.off => return Ok(()),
            UpgradePolicy::FirstTurn | UpgradePolicy::Manual | UpgradePolicy::Never => return Ok(()),
            UpgradePolicy::Eager => {
                self.offer_if(self.conn.begin_upgrade());
                return Ok(());
            }
            UpgradePolicy::Require => REQUIRE_TIMEOUT,
            UpgradePolicy::Handshake => self.conn.config.handshake_timeout,
        };
        let required = self.conn.config.upgrade_policy == UpgradePolicy::Require;
        match self.upgrade_within(limit.map_or(wait, |limit| limit.min(wait))).await {
            Some(Transport::LoopbackIsm(_)) => Ok(()),
            _ if !required => Ok(()),
            None | Some(Transport::Tcp(FallbackReason::NoAnswer)) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, FallbackReason::NoAnswer))
            }
            Some(Transport::Tcp(reason)) => Err(reason.into()),
        }
    }

    /// `None`: not decided in time.
    async fn upgrade_within(&self, wait: Duration) -> Option<Transport> {
        let endpoint = match rt::endpoint(&self.conn.handle, &self.conn.config) {
            Ok(endpoint) => endpoint,
            Err(error) => return Some(Transport::Tcp(reason_of(&error, FallbackReason::NoDevice))),
        };
        endpoint.timers().timeout(wait, self.upgrade()).await
    }
}

/// Lets a future that waits for the peer look again when the answer is overdue.
#[derive(Default)]
struct Patience(Option<Sleep>);

impl Patience {
    fn poll<R>(
        &mut self,
        cx: &mut Context<'_>,
        conn: &Connection<TokioTcp>,
        handle: &Handle,
        waits: bool,
        mut look: impl FnMut(&mut Context<'_>) -> Poll<R>,
    ) -> Poll<R> {
        loop {
            // Before the look: what becomes overdue meanwhile is seen by it or by the sleep.
            let due = conn.answer_due().filter(|_| waits);
            if let Poll::Ready(answer) = look(cx) {
                self.0 = None;
                return Poll::Ready(answer);
            }
            if due != self.0.as_ref().map(|sleep| sleep.deadline) {
                self.0 = due.and_then(|due| {
                    // Without one nothing is on its way to the peer: who looks for it will say so.
                    let endpoint = rt::endpoint(handle, &conn.config).ok()?;
                    Some(endpoint.timers().sleep_until(due))
                });
            }
            let Some(sleep) = self.0.as_mut() else { return Poll::Pending };
            ready!(Pin::new(sleep).poll(cx));
            self.0 = None;
            if conn.answer_due().is_some() {
                // Its timer has ended before it. With another one, and not in this poll.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }
}

/// The transport of a stream and its changes, also after the stream itself was given away.
///
/// As a `Stream` it yields the transport of now, then every change, and ends when the stream is
/// closed. Changes that follow each other closely may come as one. It keeps neither the stream nor
/// its socket open.
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio_smc::{SmcListener, SmcStream};
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # let listener = SmcListener::bind("127.0.0.1:0").await?;
/// let stream = SmcStream::connect(listener.local_addr()?).await?;
/// let mut watch = stream.watch();
/// drop(stream); // or given to a library
/// assert!(!watch.transport().is_loopback_ism());
/// assert_eq!(watch.changed().await, None, "it is closed");
/// # Ok(()) }
/// ```
pub struct TransportWatch {
    conn: Arc<Connection<TokioTcp>>,
    handle: Handle,
    patience: Patience,
    seen: Transport,
    /// The transport that the watch began with is still to be yielded.
    first: bool,
    key: WatchKey,
}

impl TransportWatch {
    pub(crate) fn new(conn: &Arc<Connection<TokioTcp>>, handle: &Handle) -> Self {
        TransportWatch {
            conn: conn.clone(),
            handle: handle.clone(),
            patience: Patience::default(),
            seen: conn.transport(),
            first: true,
            key: WatchKey::default(),
        }
    }

    /// The transport now; of a closed stream the last one.
    pub fn transport(&self) -> Transport {
        self.conn.transport()
    }

    /// Waits until the transport is another one than was seen last; `None` when the stream has been
    /// closed.
    ///
    /// # Cancel safety
    ///
    /// No change is lost when the future is dropped: the next call answers at once.
    pub async fn changed(&mut self) -> Option<Transport> {
        self.first = false;
        poll_fn(|cx| self.poll_changed(cx)).await
    }

    /// Waits until the stream runs on loopback-ism, or is known to stay on TCP, or is closed: the
    /// transport then. A peer that does not answer is waited for as long as [`SmcStream::upgrade`]
    /// does.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn settled(&mut self) -> Transport {
        loop {
            let now = self.transport();
            match now {
                Transport::Tcp(FallbackReason::NotYet | FallbackReason::InProgress) => {}
                _ => return now,
            }
            // What was just looked at is the transport to be changed from.
            self.seen = now;
            if self.changed().await.is_none() {
                return self.transport();
            }
        }
    }

    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<Option<Transport>> {
        let TransportWatch { conn, handle, patience, seen, key, .. } = self;
        let waits = *seen == Transport::Tcp(FallbackReason::InProgress);
        let changed = ready!(patience.poll(cx, conn, handle, waits, |cx| conn.poll_changed(cx, key, *seen)));
        self.seen = changed.unwrap_or(self.seen);
        Poll::Ready(changed)
    }
}

impl Stream for TransportWatch {
    type Item = Transport;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Transport>> {
        if std::mem::take(&mut self.first) {
            self.seen = self.transport();
            return Poll::Ready(Some(self.seen));
        }
        self.poll_changed(cx)
    }
}

impl Drop for TransportWatch {
    fn drop(&mut self) {
        self.conn.forget_watch(&mut self.key);
    }
}

impl fmt::Debug for TransportWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportWatch").field("transport", &self.transport()).finish_non_exhaustive()
    }
}
