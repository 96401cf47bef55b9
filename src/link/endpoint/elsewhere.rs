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
/// For how long it is believed of a destination that it leads to somebody.
const TRUSTED_FOR: Duration = Duration::from_secs(300);
const MOST_REMEMBERED: usize = 1024;

/// What is known of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// It leads to nobody in another namespace: believed until then.
    Nowhere(Duration),
    /// It has led to somebody there: until then nobody's silence means more than that he is late.
    Somebody(Duration),
}

/// Destinations that were asked about elsewhere.
#[derive(Default)]
pub(super) struct Destinations(Mutex<HashMap<SocketAddr, Known>>);

impl Destinations {
    fn lead_nowhere(&self, destination: SocketAddr, now: Duration) {
        let leads = |known: &Known| matches!(known, Known::Somebody(until) if *until > now);
        let mut known = lock(&self.0);
        if !known.get(&destination).is_some_and(leads) {
            Self::learn(&mut known, destination, Known::Nowhere(now + REMEMBERED_FOR), now);
        }
    }

    fn lead_to_somebody(&self, destination: SocketAddr, now: Duration) {
        Self::learn(&mut lock(&self.0), destination, Known::Somebody(now + TRUSTED_FOR), now);
    }

    fn learn(known: &mut HashMap<SocketAddr, Known>, destination: SocketAddr, what: Known, now: Duration) {
        if known.len() >= MOST_REMEMBERED {
            known.retain(|_, known| {
                let (Known::Nowhere(until) | Known::Somebody(until)) = known;
                *until > now
            });
            if known.len() >= MOST_REMEMBERED {
                known.clear();
            }
        }
        known.insert(destination, what);
    }

    fn is_nowhere(&self, destination: SocketAddr, now: Duration) -> bool {
        matches!(lock(&self.0).get(&destination), Some(Known::Nowhere(until)) if *until > now)
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
                    self.destinations.lead_nowhere(subject.tuple.remote, sys::monotonic());
                }
                FallbackReason::Elsewhere
            }
            Destination::Translated => reason,
        };
        stream.stay_on_tcp(reason);
    }

    /// C: a destination has led to somebody in another namespace, who has proved it.
    pub(crate) fn was_found(&self, destination: SocketAddr) {
        self.destinations.lead_to_somebody(destination, sys::monotonic());
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
        if self.destinations.is_nowhere(remote, sys::monotonic()) {
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
        let known = Destinations::default();
        let to = |port: usize| SocketAddr::from(([10, 0, (port >> 8) as u8, port as u8], 80));
        let start = Duration::from_secs(1000);
        known.lead_nowhere(to(1), start);
        assert!(known.is_nowhere(to(1), start) && !known.is_nowhere(to(2), start));
        assert!(!known.is_nowhere(to(1), start + REMEMBERED_FOR));
        for port in 0..MOST_REMEMBERED * 3 {
            known.lead_nowhere(to(port), start);
            assert!(known.is_nowhere(to(port), start) && lock(&known.0).len() <= MOST_REMEMBERED);
        }
    }

    #[test]
    fn what_has_led_to_somebody_is_asked_about_again() {
        let known = Destinations::default();
        let destination = SocketAddr::from(([10, 0, 0, 1], 80));
        let start = Duration::from_secs(1000);
        known.lead_nowhere(destination, start);
        known.lead_to_somebody(destination, start);
        known.lead_nowhere(destination, start);
        assert!(!known.is_nowhere(destination, start));
        // Another host may have the address by now.
        known.lead_nowhere(destination, start + TRUSTED_FOR);
        assert!(known.is_nowhere(destination, start + TRUSTED_FOR));
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
