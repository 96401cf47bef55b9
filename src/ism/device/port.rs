//! Port entries: which endpoints have an SmcListener on a TCP port.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::room::{ROOT, Visited};
use super::{Device, EndpointId, Inner, Room, explain, names, names_of, trust};
use crate::sync::{Arc, lock};

/// Endpoints looked at on one port, and names read to find them: a full directory must not cost a
/// connection more than TCP does.
pub(super) const MOST_ENDPOINTS: usize = 256;
pub(super) const MOST_NAMES: usize = 1024;
/// The same of one other user than us and root.
pub(super) const MOST_NAMES_OF_OTHERS: usize = 64;

/// What a look for the endpoints on a port has found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct OnPort {
    /// Of users that may be admitted, ours first, then root's, then some of each other; dead ones
    /// perhaps among them.
    pub(crate) endpoints: Vec<EndpointId>,
    /// There are none, but somebody else's.
    pub(crate) others: bool,
}

/// An endpoint's entry on a port; dropping the last one for both takes it away.
#[derive(Debug)]
pub(crate) struct PortEntry {
    inner: Arc<Inner>,
    port: u16,
    id: EndpointId,
    /// A forked child inherits the value, but not the listener.
    process: u32,
}

impl PortEntry {
    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The endpoint.
    #[cfg(test)]
    pub(crate) fn id(&self) -> EndpointId {
        self.id
    }
}

impl Drop for PortEntry {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        let mut published = lock(&self.inner.published);
        let Some(count) = published.get_mut(&(self.port, self.id)) else { return };
        *count -= 1;
        if *count == 0 {
            published.remove(&(self.port, self.id));
            // Under the lock: a listener that publishes the same pair meanwhile comes after it.
            self.inner.unpublish(self.port, self.id);
        }
    }
}

impl Device {
    /// Says that endpoint `id`, of this process, has a listener on `port`; until the entry is
    /// dropped. Several listeners of an endpoint may share a port (another address, SO_REUSEPORT).
    ///
    /// # Errors
    ///
    /// What the system gives, with the place.
    pub(crate) fn publish_port(&self, port: u16, id: EndpointId) -> io::Result<PortEntry> {
        let mut published = lock(&self.inner.published);
        let count = published.entry((port, id)).or_insert(0);
        if *count == 0 {
            if let Err(error) = self.inner.publish(port, id) {
                published.remove(&(port, id));
                let words = format_args!("cannot publish port {port} in {}/port", self.path().display());
                return Err(explain(error, words));
            }
        }
        *count += 1;
        Ok(PortEntry { inner: Arc::clone(&self.inner), port, id, process: std::process::id() })
    }

    /// The endpoints with a listener on `port`.
    ///
    /// # Errors
    ///
    /// What the system gives.
    pub(crate) fn endpoints_on_port(&self, port: u16) -> io::Result<OnPort> {
        let mut found = OnPort::default();
        let mut of_others = Vec::new();
        for room in self.inner.rooms(&format!("port/{port}")) {
            match &room {
                Visited::Other(other) if other.owner != ROOT => of_others.push(other.some_on_port(port)),
                _ => {
                    let Some(dir) = room.port(port)? else { continue };
                    for entry in names(Dir::new(dir)?, MOST_NAMES) {
                        found.endpoints.extend(EndpointId::from_name(entry?.file_name().to_bytes()));
                        if found.endpoints.len() == MOST_ENDPOINTS {
                            return Ok(found);
                        }
                    }
                }
            }
        }
        // One of each, another one of each, and so on: who has many is in nobody's way.
        let most = of_others.iter().map(Vec::len).max().unwrap_or(0);
        let some = (0..most).flat_map(|turn| of_others.iter().filter_map(move |ids| ids.get(turn)));
        found.endpoints.extend(some.take(MOST_ENDPOINTS - found.endpoints.len()));
        found.others = found.endpoints.is_empty() && self.inner.is_others(port);
        Ok(found)
    }
}

impl Room {
    /// Endpoints of another user on that port. What can not be read is his matter.
    fn some_on_port(&self, port: u16) -> Vec<EndpointId> {
        let Ok(Some(dir)) = self.port(port) else { return Vec::new() };
        let ids = names_of(dir, MOST_NAMES_OF_OTHERS)
            .filter_map(|entry| EndpointId::from_name(entry.file_name().to_bytes()));
        ids.filter(|id| self.is_home_of(*id)).collect()
    }
}

impl Inner {
    fn publish(&self, port: u16, id: EndpointId) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        for _ in 0..1000 {
            let dir = trust::create_inside(self.own.ports.as_fd(), &port.to_string(), self.access(), true)?;
            match rustix::fs::openat(&dir, id.to_string(), flags, Mode::RUSR | Mode::WUSR) {
                Ok(_) => return Ok(()),
                // Whoever closed the last listener on this port has just removed the directory.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other("its directory is being created and removed all the time"))
    }

    pub(super) fn unpublish(&self, port: u16, id: EndpointId) {
        if let Ok(Some(dir)) = self.own.port(port) {
            let _ = rustix::fs::unlinkat(&dir, id.to_string(), AtFlags::empty());
            // Fails while others are in it.
            let _ = rustix::fs::unlinkat(&self.own.ports, port.to_string(), AtFlags::REMOVEDIR);
        }
    }

    /// Who has to do with what we make.
    fn access(&self) -> trust::Access {
        if self.shared.is_some() { trust::Access::Readable } else { trust::Access::Private }
    }
}
