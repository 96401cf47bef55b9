//! The search in other network namespaces, for a stream that leads to nobody who listens on its
//! port: its destination may be translated on the way (a Service address, a published port), and
//! the server sees another one. All that both ends see is the client's own address.
//!
//! It begins only where the device directory shows listeners of another namespace. Most connections
//! that lead to nobody here lead to another host: what was asked in vain is remembered.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::Endpoint;
use crate::ism::sys;
use crate::link::message::{Destination, Subject};
use crate::link::proof::Possession;
use crate::link::search::Search;
use crate::link::stream::LinkedStream;
use crate::sync::{Arc, Mutex, lock};
use crate::transport::FallbackReason;

/// For how long nobody is asked again about a destination that nobody knew.
const REMEMBERED_FOR: Duration = Duration::from_secs(30);
const MOST_REMEMBERED: usize = 1024;

/// Destinations that lead to nobody in another namespace, and until when that is believed.
#[derive(Default)]
pub(super) struct Nowhere(Mutex<HashMap<SocketAddr, Duration>>);

impl Nowhere {
    fn remember(&self, destination: SocketAddr, now: Duration) {
        let mut known = lock(&self.0);
        if known.len() >= MOST_REMEMBERED {
            known.retain(|_, until| *until > now);
            if known.len() >= MOST_REMEMBERED {
                known.clear();
            }
        }
        known.insert(destination, now + REMEMBERED_FOR);
    }

    fn knows(&self, destination: SocketAddr, now: Duration) -> bool {
        lock(&self.0).get(&destination).is_some_and(|until| *until > now)
    }
}

/// Does that mean that whoever was asked is not the peer?
fn means_another(reason: FallbackReason) -> bool {
    match reason {
        FallbackReason::NoSmcListener | FallbackReason::Unproved | FallbackReason::NetworkNamespace => true,
        FallbackReason::Declined(diagnosis) => {
            let said = [FallbackReason::Unproved, FallbackReason::NetworkNamespace];
            said.iter().any(|reason| reason.diagnosis() == diagnosis)
        }
        _ => false,
    }
}

impl Endpoint {
    /// C: nobody was found who holds the other end of `stream`, for `reason`: those elsewhere are
    /// asked, unless they were, or it stays on TCP.
    pub(crate) fn not_found(
        self: &Arc<Self>,
        stream: &Arc<dyn LinkedStream>,
        destination: Destination,
        reason: FallbackReason,
    ) {
        let another = means_another(reason);
        let reason = match destination {
            Destination::Own if another => match self.ask_elsewhere(stream) {
                Ok(true) => return,
                Ok(false) => reason,
                Err(reason) => reason,
            },
            Destination::Own => reason,
            // Whoever was too busy to answer, or had no room, may yet be the one.
            Destination::Translated if another => {
                if let Ok(subject) = stream.subject() {
                    self.nowhere.remember(subject.tuple.remote, sys::monotonic());
                }
                FallbackReason::Elsewhere
            }
            Destination::Translated => reason,
        };
        stream.stay_on_tcp(reason);
    }

    /// Asks the endpoints of other network namespaces; `false`: there is nobody to ask.
    fn ask_elsewhere(self: &Arc<Self>, stream: &Arc<dyn LinkedStream>) -> Result<bool, FallbackReason> {
        if self.is_dead() || !self.device.may_reach_elsewhere(self.network) {
            return Ok(false);
        }
        let subject = stream.subject()?;
        let remote = subject.tuple.remote;
        // What a host says to itself does not leave its namespace.
        if remote.ip().is_loopback() {
            return Ok(false);
        }
        let mut candidates = self.device.endpoints_elsewhere(subject.network_namespace);
        candidates.retain(|id| *id != self.id);
        if candidates.is_empty() {
            return Ok(false);
        }
        if self.nowhere.knows(remote, sys::monotonic()) {
            return Err(FallbackReason::Elsewhere);
        }
        if !matches!(stream.possession()?, Possession::Sequence(_)) {
            stream.offer_with_next_write(Arc::downgrade(self));
            return Ok(true);
        }
        let subject = Subject { destination: Destination::Translated, ..subject };
        let policy = stream.peer_policy().clone();
        self.search(stream, Search::new(self, policy, subject, candidates));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_nowhere_is_believed_for_a_while_and_not_of_too_many() {
        let nowhere = Nowhere::default();
        let to = |port: usize| SocketAddr::from(([10, 0, (port >> 8) as u8, port as u8], 80));
        let start = Duration::from_secs(1000);
        nowhere.remember(to(1), start);
        assert!(nowhere.knows(to(1), start) && !nowhere.knows(to(2), start));
        assert!(!nowhere.knows(to(1), start + REMEMBERED_FOR));
        for port in 0..MOST_REMEMBERED * 3 {
            nowhere.remember(to(port), start);
            assert!(nowhere.knows(to(port), start) && lock(&nowhere.0).len() <= MOST_REMEMBERED);
        }
    }

    #[test]
    fn only_who_is_another_one_is_a_reason_to_ask_on() {
        let declined = |reason: FallbackReason| FallbackReason::Declined(reason.diagnosis());
        for reason in [FallbackReason::NoSmcListener, declined(FallbackReason::Unproved)] {
            assert!(means_another(reason), "{reason}");
        }
        for reason in [FallbackReason::Limit, FallbackReason::PeerPolicy, declined(FallbackReason::Limit)] {
            assert!(!means_another(reason), "{reason}");
        }
    }
}
