//! A peer that closes its TCP socket and says nothing of it in the ring.
//!
//! Whoever closes a stream says so in the ring before its socket does (docs/protocol.md,
//! "Closing"), and a process that ends takes its link with it. So a switched stream whose peer's
//! socket nobody holds any more, while the link lives and no flag says why, waits for somebody who
//! has no descriptor left to wait with. It ends as a reset: what the ring holds is delivered
//! before.
//!
//! A FIN alone says nothing: a peer may shut the descriptor down, and its runtime has yet to carry
//! that over. The kernel knows whether the socket is still held.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use super::receive::{self, Receiver};
use super::send::{self, Sender};
use super::{Connection, Tcp};
use crate::ism::dmb::Flags;
use crate::ism::sys::{self, Ended};
use crate::link::message::Tuple;
use crate::link::stream::Death;
use crate::shield::shielded;
use crate::sync::{Ordering, lock};

/// After the FIN: by then a link that dies with its process has ended.
pub(crate) const FIRST_LOOK: Duration = Duration::from_secs(1);
/// The same, when descriptors run short: a peer can leave a thousand of ours in a second.
const FIRST_LOOK_WHEN_SHORT: Duration = Duration::from_millis(100);
/// The pauses between looks double up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// What a look has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// It said how the stream ends, or its link ends, or there is nothing to wait for.
    Accounted,
    /// Somebody holds its socket.
    Holds,
    /// Nobody does.
    Deserted,
    /// The kernel does not tell, and the ring has said that it writes no more.
    Unknown,
    /// The kernel does not tell, and nor does the ring.
    Silent,
}

impl<T: Tcp> Connection<T> {
    /// The peer's FIN has come, and nothing in the ring tells why.
    pub(super) fn look_for_desertion(&self, socket: BorrowedFd<'_>) {
        if !self.socket_check.deserted.swap(true, Ordering::AcqRel) {
            // The kernel hands out the lowest free number.
            let short = usize::try_from(socket.as_raw_fd()).is_ok_and(|n| n >= sys::descriptor_limit() / 2);
            let pause = if short { FIRST_LOOK_WHEN_SHORT } else { FIRST_LOOK };
            self.look_after(pause, Duration::ZERO);
        }
    }

    fn look_after(&self, pause: Duration, waited: Duration) {
        let endpoint = self.socket_check.endpoint.get().and_then(std::sync::Weak::upgrade);
        let Some(endpoint) = endpoint else { return };
        let (this, patience) = (self.this.clone(), endpoint.patience());
        endpoint.run_after(pause, move || {
            let Some(conn) = this.upgrade() else { return };
            let waited = waited + pause;
            match shielded(|| conn.look_at_peer()) {
                Ok(Peer::Accounted) => {}
                Ok(Peer::Silent) if waited >= patience => conn.desert(),
                Ok(Peer::Deserted) => conn.desert(),
                Ok(Peer::Holds | Peer::Unknown | Peer::Silent) => {
                    conn.look_after((pause * 2).min(LONGEST_PAUSE), waited);
                }
                Err(_) => {
                    conn.death.store(Death::Failed as u8, Ordering::Release);
                    conn.reset();
                }
            }
        });
    }

    fn look_at_peer(&self) -> Peer {
        let question = {
            let (rx, tx) = (lock(&self.rx), lock(&self.tx));
            if !self.is_unaccounted(&rx, &tx) {
                return Peer::Accounted;
            }
            let Ok(fd) = rx.fd() else { return Peer::Accounted };
            let addresses = sys::local_addr(fd).and_then(|local| Ok((local, sys::peer_addr(fd)?)));
            addresses.and_then(|addresses| Ok((addresses, sys::netns_cookie(fd)?)))
        };
        let held = question.and_then(|((local, remote), netns)| {
            let theirs = Tuple::new(local, remote).mirrored();
            sys::is_held(theirs.local, theirs.remote, netns)
        });
        // A closed stream has said so before its socket was closed: looked for after that.
        let (rx, tx) = (lock(&self.rx), lock(&self.tx));
        if !self.is_unaccounted(&rx, &tx) {
            return Peer::Accounted;
        }
        let ended =
            rx.dmb.as_ref().is_some_and(|dmb| dmb.consumer.writer_flags().contains(Flags::DONE_WRITING));
        match held {
            Ok(true) => Peer::Holds,
            Ok(false) => Peer::Deserted,
            Err(_) if ended => Peer::Unknown,
            Err(_) => Peer::Silent,
        }
    }

    /// Is the FIN there, of a stream that uses a ring, and nothing said or seen of its reason?
    fn is_unaccounted(&self, rx: &Receiver<T>, tx: &Sender<T>) -> bool {
        if self.death().is_some() || (rx.path == receive::Path::Tcp && tx.path == send::Path::Tcp) {
            return false;
        }
        let fin = matches!(rx.fd().and_then(sys::ended), Ok(Ended { fin: true, .. }));
        let peers = [rx.dmb.as_ref().map(|dmb| &dmb.peer), tx.dmb.as_ref().map(|dmb| &dmb.peer)];
        // The end of a link tells more, once it has been taken notice of.
        let hung_up = |link: &crate::link::Link| sys::has_hung_up(link.socket()).unwrap_or(true);
        fin && !Self::has_gone(rx, tx) && !peers.into_iter().flatten().any(|peer| hung_up(&peer.link))
    }

    fn desert(&self) {
        crate::trace::warning!("a peer has closed its socket without a word: the connection is reset");
        self.reset();
    }
}
