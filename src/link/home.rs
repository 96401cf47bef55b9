//! Where the streams of a listener are found by their clients.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use crate::config::{Config, UpgradePolicy};
use crate::ism::device::PortEntry;
use crate::link::endpoint::{Endpoint, ListedAsAccepted};
use crate::link::lack::reason_of;
use crate::link::proof::keep_proofs;
use crate::link::stream::LinkedStream;
use crate::sync::{Arc, Mutex, lock, rank};
use crate::transport::FallbackReason;

/// The place of a listener now. `Keeper` keeps the endpoint served, where the runtime does not do
/// so by itself.
pub(crate) struct Home<Keeper> {
    /// Or why its streams stay on TCP, if that is not as the configuration wants it.
    place: Mutex<Found<Keeper>, rank::ListenerHome>,
}

type Found<Keeper> = Result<Arc<Place<Keeper>>, Option<FallbackReason>>;

/// An endpoint that has said in the device directory that the listener's port is there.
pub(crate) struct Place<Keeper> {
    endpoint: Arc<Endpoint>,
    port: Arc<PortEntry>,
    #[cfg_attr(not(feature = "blocking"), expect(dead_code, reason = "held for its life"))]
    pub(crate) keeper: Keeper,
}

impl<Keeper> Place<Keeper> {
    /// Makes the port of a listener known, whose connections can be proved from then on.
    pub(crate) fn publish(
        listener: BorrowedFd<'_>,
        config: &Config,
        endpoint: Arc<Endpoint>,
        keeper: Keeper,
    ) -> io::Result<Self> {
        keep_proofs(listener);
        let port = Arc::new(endpoint.publish_listener(listener, &config.peer_policy)?);
        Ok(Place { endpoint, port, keeper })
    }

    /// Enters a stream that was accepted from `client` into the table of the endpoint, for the life
    /// of what is returned.
    pub(crate) fn accept(&self, client: SocketAddr, stream: &Arc<dyn LinkedStream>) -> ListedAsAccepted {
        let entry = self.endpoint.accept(self.port.port(), client, stream);
        ListedAsAccepted { endpoint: self.endpoint.clone(), entry, _port: self.port.clone() }
    }
}

impl<Keeper> Home<Keeper> {
    /// `move_in` finds a place; it is not asked where nothing is to be upgraded.
    pub(crate) fn new(config: &Config, move_in: impl FnOnce() -> io::Result<Place<Keeper>>) -> Self {
        let wanted = !config.off && config.upgrade_policy != UpgradePolicy::Never;
        let place = if wanted { told(move_in().map(Arc::new)) } else { Err(None) };
        Home { place: Mutex::new(place) }
    }

    /// Where the streams are found now: an endpoint that failed has a successor, which `move_in`
    /// finds.
    pub(crate) fn place(&self, move_in: impl FnOnce() -> io::Result<Place<Keeper>>) -> Found<Keeper> {
        let moved = {
            let mut place = lock(&self.place);
            if !place.as_ref().is_ok_and(|place| place.endpoint.is_dead()) {
                return place.clone();
            }
            let moved = move_in().map(Arc::new);
            *place = match &moved {
                Ok(moved) => Ok(moved.clone()),
                Err(error) => Err(Some(reason_of(error, FallbackReason::NoDevice))),
            };
            moved
        };
        // Without the lock, for it is logged.
        told(moved)
    }

    /// Can its streams be upgraded, as far as it knows?
    pub(crate) fn upgrades(&self) -> bool {
        lock(&self.place).is_ok()
    }
}

/// Why the streams of a listener without a place stay on TCP.
fn told<Keeper>(moved: io::Result<Arc<Place<Keeper>>>) -> Found<Keeper> {
    moved.map_err(|error| {
        crate::trace::warning!("this listener serves plain tcp only: {error}");
        Some(reason_of(&error, FallbackReason::NoDevice))
    })
}
