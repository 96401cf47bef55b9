//! Who waits for the upgrade, or for a change of the transport.

use std::task::{Context, Poll};
use std::time::Duration;

use super::send;
use super::upgrade::Phase;
use super::{Connection, Tcp};
use crate::clc::Diagnosis;
use crate::ism::dmb::Direction;
use crate::ism::ring::Memory;
use crate::ism::sys;
use crate::sync::lock;
use crate::transport::{FallbackReason, Transport};

/// Where somebody who waits is listed.
#[derive(Debug, Default)]
pub(crate) struct WatchKey {
    changed: Option<u64>,
    readers: Option<u64>,
}

impl<T: Tcp> Connection<T> {
    /// When who waits for the upgrade, or for a change, has to look again, though nothing happened.
    pub(crate) fn answer_due(&self) -> Option<Duration> {
        lock(&self.upgrade.state).due().filter(|due| *due > sys::monotonic())
    }

    /// Waits until the stream is upgraded, or is known to stay on TCP, or the peer has left its
    /// turn unanswered for too long (see [`Connection::answer_due`]).
    pub(crate) fn poll_upgraded(&self, cx: &mut Context<'_>, key: &mut WatchKey) -> Poll<Transport> {
        self.upgrade.watchers.enlist(&mut key.changed, cx.waker());
        // The peer's switch of our receiving direction comes as an interrupt for data.
        self.waiters.readers().enlist(&mut key.readers, cx.waker());
        self.drive_prelude();
        let transport = self.transport();
        let runs = matches!(self.upgrade.phase(), Phase::Offering | Phase::Attached)
            && !transport.is_loopback_ism()
            && self.death().is_none();
        if runs {
            let mut why = None;
            let decided = {
                let rx = lock(&self.rx);
                let word = rx.dmb.as_ref().map(|dmb| {
                    dmb.consumer.arm();
                    dmb.consumer.memory().header().direction()
                });
                if rx.declined || (!rx.pinned && word == Some(Direction::Pinned)) {
                    why = Some(FallbackReason::Declined(Diagnosis::PEERDECL));
                }
                rx.pinned || word.is_some_and(|word| word != Direction::Open)
            };
            let sends = {
                let tx = lock(&self.tx);
                why = tx.why.or(why);
                tx.path == send::Path::Ring || tx.pinned || tx.shut
            };
            let over = decided && sends && self.upgrade.phase() == Phase::Attached;
            if !over && !self.upgrade.is_overdue() && !self.upgrade.waits_for_write() {
                return Poll::Pending;
            }
            if over && !self.transport().is_loopback_ism() {
                // One of the two directions will never leave TCP. Whoever has seen why may not have
                // come to settle for it.
                self.upgrade.settle(why.unwrap_or(FallbackReason::Pinned));
            }
        }
        self.forget_watch(key);
        Poll::Ready(self.transport())
    }

    /// Waits until the transport is not `seen` any more; `None` when the stream is closed.
    pub(crate) fn poll_changed(
        &self,
        cx: &mut Context<'_>,
        key: &mut WatchKey,
        seen: Transport,
    ) -> Poll<Option<Transport>> {
        self.upgrade.watchers.enlist(&mut key.changed, cx.waker());
        if matches!(self.upgrade.phase(), Phase::Offering | Phase::Attached) && !seen.is_loopback_ism() {
            // The peer's switch of our receiving direction comes as an interrupt for data.
            self.waiters.readers().enlist(&mut key.readers, cx.waker());
            if let Some(dmb) = lock(&self.rx).dmb.as_ref() {
                dmb.consumer.arm();
            }
        }
        if self.is_closed() {
            self.forget_watch(key);
            return Poll::Ready(None);
        }
        let now = self.transport();
        if now == seen {
            return Poll::Pending;
        }
        self.forget_watch(key);
        Poll::Ready(Some(now))
    }

    pub(crate) fn forget_watch(&self, key: &mut WatchKey) {
        self.upgrade.watchers.delist(&mut key.changed);
        self.waiters.readers().delist(&mut key.readers);
    }
}
