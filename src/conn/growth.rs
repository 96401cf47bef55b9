//! Growth of a ring: what its reader lends, and what its writer asks for (docs/protocol.md,
//! "Growth").
//!
//! Receive memory is the receiver's. A writer that finds the ring full asks for a larger segment
//! and goes on in the present one; the reader's end decides, without its application, by its own
//! means. Up to the window each segment is larger than the one before. Beyond it only a reader that
//! does not read is lent more, until the ring holds what TCP would.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::receive::Receiver;
use super::{Connection, Effects, Tcp};
use crate::ism::arena::DmbSegment;
use crate::ism::dmb::SMALLEST_SEGMENT;
use crate::ism::ring::{Refusal, Shrunk};
use crate::ism::sys;
use crate::link::stream::{Answer, Ask, Granted, GrowingStream, Lend};
use crate::sync::{Ordering, assert_unlocked, lock};

/// A stalled reader is lent what is missing to TCP's buffers in about so many steps, of at most so
/// many bytes.
const STALL_STEPS: u64 = 8;
const LARGEST_STEP: u64 = 4 << 20;
/// Whatever TCP would hold: no ring holds more.
const MOST_HELD: u64 = 64 << 20;

/// A reader that has not read for so long is one that does not read.
const STALLED_AFTER: Duration = Duration::from_millis(25);
/// How often, with ever longer pauses in between, what is lacking is looked for again while the
/// reader does not read: some 12 seconds in all. A reader that reads needs no more.
const MOST_TRIES: u32 = 9;

/// An ASK that is not answered yet: it is for more than the window, and it has to be seen whether
/// the reader reads, or something was lacking.
#[derive(Clone, Copy)]
pub(crate) struct Stall {
    ask: Ask,
    /// Where the reader was.
    position: u64,
    /// How often something was lacking.
    tries: u32,
}

impl<T: Tcp> GrowingStream for Connection<T> {
    fn shrink(&self) -> bool {
        assert_unlocked("a stream");
        let given_back = {
            let mut tx = lock(&self.tx);
            if tx.path != super::send::Path::Ring || self.death().is_some() {
                return true;
            }
            let Some(dmb) = tx.dmb.as_mut() else { return true };
            let position = dmb.producer.position();
            if self.idle_since.swap(position, Ordering::Relaxed) != position {
                return false;
            }
            match dmb.producer.shrink() {
                Ok(Shrunk::GaveBack(number)) => Some((dmb.peer.link.clone(), dmb.token, number)),
                // A violation is the business of the next write, which sees it too.
                Ok(Shrunk::Small) | Err(_) => None,
                // What is unread is read some time.
                Ok(Shrunk::NotYet) => return false,
            }
        };
        if let Some((link, token, number)) = given_back {
            link.send_return(token, number);
        }
        true
    }

    fn asked(&self, ask: Ask) -> Answer {
        assert_unlocked("a stream");
        let mut rx = lock(&self.rx);
        if rx.stall.is_some() || rx.makes {
            return Answer::Fault("ASK comes before the answer to the last one");
        }
        Self::step(&mut rx, ask, 0)
    }

    fn lend(&self, lend: &Lend) -> Answer {
        assert_unlocked("a stream");
        // Without a lock: the kernel takes its time for large ones.
        let Some((bytes, segment, fd)) = make(lend) else { return self.not_made(lend) };
        let mut rx = lock(&self.rx);
        rx.makes = false;
        rx.granted = Some((lend.ask, lend.tries));
        let Some(dmb) = rx.dmb.as_mut() else { return Answer::Deny(Refusal::Limit) };
        // Before the peer hears of it: then it may enter it.
        Answer::Grant { segment: dmb.consumer.lend(segment), bytes, fd }
    }

    fn not_made(&self, lend: &Lend) -> Answer {
        let mut rx = lock(&self.rx);
        rx.makes = false;
        Self::try_later(&mut rx, lend.ask, lend.tries)
    }

    fn ask_again(&self) -> Option<Answer> {
        assert_unlocked("a stream");
        let mut rx = lock(&self.rx);
        let Stall { ask, position, tries } = rx.stall.take()?;
        let dmb = rx.dmb.as_ref()?;
        if dmb.consumer.position() != position {
            let why = if tries == 0 { Refusal::NotNeeded } else { Refusal::Memory };
            return Some(Answer::Deny(why));
        }
        rx.stalled_at = Some(position);
        Some(Self::step(&mut rx, ask, tries))
    }

    fn not_sent(&self, segment: u64) -> Answer {
        assert_unlocked("a stream");
        let mut rx = lock(&self.rx);
        if let Some(dmb) = rx.dmb.as_mut() {
            dmb.consumer.revoke(segment);
        }
        let granted = rx.granted.take();
        granted.map_or(Answer::Deny(Refusal::Memory), |(ask, tries)| Self::try_later(&mut rx, ask, tries))
    }

    fn returned(&self, segment: u64) {
        assert_unlocked("a stream");
        let mut effects = Effects::default();
        if let Some(dmb) = lock(&self.rx).dmb.as_mut() {
            if let Err(violation) = dmb.consumer.take_back(segment) {
                effects.rare().violation = Some((dmb.peer.clone(), violation));
            }
        }
        self.carry_out(effects);
    }

    fn awaits(&self, number: u64, bytes: u64) -> Granted {
        let mut tx = lock(&self.tx);
        let Some(dmb) = tx.dmb.as_mut() else { return Granted::Gone };
        let most = LARGEST_STEP.max(dmb.window as u64);
        if bytes <= most && dmb.producer.expects(number) { Granted::Taken } else { Granted::NotAsked }
    }

    fn granted(&self, number: u64, segment: Option<DmbSegment>) -> Granted {
        assert_unlocked("a stream");
        let (granted, first) = {
            let mut tx = lock(&self.tx);
            let Some(dmb) = tx.dmb.as_mut() else { return Granted::Gone };
            let was_grown = dmb.producer.is_grown();
            let (outcome, expected) = match segment {
                Some(segment) => (Granted::Taken, dmb.producer.granted(number, segment)),
                None => (Granted::Declined, dmb.producer.declined(number)),
            };
            if !expected {
                return Granted::NotAsked;
            }
            dmb.peer.link.has_needed(dmb.producer.needed());
            (outcome, outcome == Granted::Taken && !was_grown)
        };
        if granted == Granted::Taken {
            // Whoever waits for space has it.
            self.waiters.writers().wake_all();
        }
        if first {
            self.shrink_when_idle();
        }
        granted
    }

    fn denied(&self, why: Refusal) {
        assert_unlocked("a stream");
        if let Some(dmb) = lock(&self.tx).dmb.as_mut() {
            dmb.producer.refused(why);
        }
        if why == Refusal::NotNeeded {
            // Who waits on may find the ring full again, and has to ask again.
            self.waiters.writers().wake_all();
        }
    }
}

impl<T: Tcp> Connection<T> {
    /// Something was lacking: it is looked for again while the reader stays where it is.
    fn try_later(rx: &mut Receiver<T>, ask: Ask, tries: u32) -> Answer {
        let Some(position) = rx.dmb.as_ref().map(|dmb| dmb.consumer.position()) else {
            return Answer::Deny(Refusal::Limit);
        };
        if tries == MOST_TRIES {
            return Answer::Deny(Refusal::Memory);
        }
        rx.stall = Some(Stall { ask, position, tries: tries + 1 });
        Answer::Later(STALLED_AFTER * (1 << tries))
    }

    fn step(rx: &mut Receiver<T>, ask: Ask, tries: u32) -> Answer {
        let chosen = rx.fd().and_then(sys::chosen_receive_buffer).ok().flatten();
        let Some(dmb) = rx.dmb.as_ref() else { return Answer::Deny(Refusal::Limit) };
        let account = dmb.peer.link.account().clone();
        let (largest, lent) = (dmb.consumer.largest_lent(), dmb.consumer.lent_bytes());
        let wanted = ask.bytes.min(dmb.window as u64);
        if wanted > largest {
            rx.makes = true;
            return Answer::Aside(Lend { ask, wanted, least: largest + 1, tries, account });
        }
        let position = dmb.consumer.position();
        if rx.stalled_at != Some(position) {
            rx.stall = Some(Stall { ask, position, tries: 0 });
            return Answer::Later(STALLED_AFTER);
        }
        let (receive, send) = sys::tcp_buffers();
        let held = chosen.map_or(receive, |bytes| bytes as u64).saturating_add(ask.held.min(send));
        let missing = held.min(MOST_HELD).saturating_sub(lent);
        let least = 2 * SMALLEST_SEGMENT as u64;
        if missing < least {
            return Answer::Deny(Refusal::Limit);
        }
        let step = (held / STALL_STEPS).next_power_of_two().min(LARGEST_STEP).max(largest);
        rx.makes = true;
        // Rather a little more than TCP than one step less.
        Answer::Aside(Lend { ask, wanted: step.min(missing.next_power_of_two()), least, tries, account })
    }

    /// Bytes that TCP would hold at this end for a reader that does not read.
    pub(super) fn held_here(&self) -> u64 {
        let chosen = lock(&self.tx).fd().and_then(sys::chosen_send_buffer).ok().flatten();
        chosen.map_or_else(|| sys::tcp_buffers().1, |bytes| bytes as u64)
    }
}

/// Makes a segment, as large as this process can afford.
fn make(lend: &Lend) -> Option<(u64, DmbSegment, OwnedFd)> {
    let bytes = lend.account.affordable(lend.wanted, lend.least);
    if bytes == 0 {
        return None;
    }
    match DmbSegment::create(bytes as usize, &lend.account) {
        Ok((segment, fd)) => Some((bytes, segment, fd)),
        Err(error) => {
            crate::trace::debug!("no segment of {bytes} bytes: {error}");
            None
        }
    }
}
