//! What a step under a lock leaves to be done without one.

use super::{Connection, Tcp};
use crate::ism::interrupt::Signal;
use crate::ism::ring::Violation;
use crate::link::stream::{Ask, PeerInterrupt, ReceiveDmb, SendDmb, Undelivered};
use crate::transport::FallbackReason;

/// What a step under a lock asks for once the lock is free.
#[derive(Default)]
pub(crate) struct Effects {
    /// Interrupts that are not delivered yet.
    interrupts: [Option<(PeerInterrupt, Undelivered)>; 2],
    /// TCP carried other bytes than the switch allows: this connection is reset, its link lives.
    pub(crate) reset: bool,
    /// Everyone who waits looks again.
    pub(crate) wake: bool,
    /// A direction has left TCP: from now on somebody has to look at what is done to the idle
    /// socket.
    pub(crate) socket_check: bool,
    /// Kept apart, so that the common step builds and drops next to nothing.
    rare: Option<Box<Rare>>,
}

/// The effects that few steps have.
#[derive(Default)]
pub(crate) struct Rare {
    /// The peer broke a rule: its link ends.
    pub(crate) violation: Option<(PeerInterrupt, Violation)>,
    /// The ring is full: the peer is to be asked for a segment of so many bytes for the DMB of that
    /// token.
    pub(crate) ask: Option<(PeerInterrupt, u64, u64)>,
    /// This end has pinned the word of this DMB.
    pub(crate) pinned: Option<Box<ReceiveDmb>>,
    /// The sender will never use this DMB.
    pub(crate) unused: Option<Box<SendDmb>>,
    /// A write has shown what an offer has waited for, or none ever will.
    pub(crate) sampled: bool,
    /// One direction will never leave TCP.
    pub(crate) settled: Option<FallbackReason>,
}

impl Effects {
    /// Interrupts the peer. What that takes besides the bits in its memory is done later.
    #[inline]
    pub(crate) fn interrupt(&mut self, peer: &PeerInterrupt, signal: Signal) {
        if let Some(undelivered) = peer.raise(signal) {
            let free = usize::from(self.interrupts[0].is_some());
            debug_assert!(self.interrupts[free].is_none(), "no step interrupts more than two");
            self.interrupts[free] = Some((peer.clone(), undelivered));
        }
    }

    pub(crate) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    #[inline]
    fn is_empty(&self) -> bool {
        !self.reset && !self.wake && !self.socket_check && self.rare.is_none() && self.interrupts[0].is_none()
    }
}

impl<T: Tcp> Connection<T> {
    /// Does what was collected under a lock.
    #[inline]
    pub(super) fn carry_out(&self, effects: Effects) {
        if !effects.is_empty() {
            self.carry_out_some(effects);
        }
    }

    fn carry_out_some(&self, effects: Effects) {
        let Effects { interrupts, reset, wake, socket_check, rare } = effects;
        for (peer, undelivered) in interrupts.into_iter().flatten() {
            peer.deliver(undelivered);
        }
        if reset {
            self.reset();
        }
        if let Some(rare) = rare {
            self.carry_out_rare(*rare);
        }
        if socket_check || wake {
            self.note_upgrade();
        }
        if socket_check {
            self.schedule_socket_check();
        }
        if wake {
            self.waiters.wake_all();
            self.upgrade.changed();
        }
    }

    #[cold]
    fn carry_out_rare(&self, rare: Rare) {
        let Rare { violation, ask, pinned, unused, sampled, settled } = rare;
        if let Some((peer, token, bytes)) = ask {
            peer.link.send_ask(token, Ask { bytes, held: self.held_here() });
        }
        if let Some(dmb) = pinned {
            dmb.pinned();
        }
        drop(unused);
        if sampled {
            self.offer_at_last();
        }
        if let Some(reason) = settled {
            self.upgrade.settle(reason);
        }
        if let Some((peer, violation)) = violation {
            peer.link.violated(&violation);
        }
    }
}
