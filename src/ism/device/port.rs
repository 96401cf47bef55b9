//! Port entries: which endpoints have an SmcListener on a TCP port, and in which network namespace.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, DirEntry, Mode, OFlags};
use rustix::io::Errno;

use super::room::{NETWORKS, PORTS, ROOT, Visited};
use super::trust::LIST;
use super::{Device, EndpointId, Inner, Room, explain, names, names_of, trust};
use crate::sync::{Arc, lock};

/// Endpoints looked at on one port, and names read to find them: a full directory must not cost a
/// connection more than TCP does.
pub(super) const MOST_ENDPOINTS: usize = 256;
pub(super) const MOST_NAMES: usize = 1024;
/// The same of one other user than us and root.
pub(super) const MOST_NAMES_OF_OTHERS: usize = 64;
/// Network namespaces, and endpoints of them, that are looked at for one connection: they are asked
/// one and all, and most of them in vain.
const MOST_NETWORKS: usize = 64;
const MOST_ELSEWHERE: usize = 64;

/// What endpoints are listed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Listed {
    /// A TCP port.
    Port(u16),
    /// The `SO_NETNS_COOKIE` of a network namespace.
    Network(u64),
}

impl Listed {
    fn name(self) -> String {
        match self {
            Listed::Port(port) => port.to_string(),
            Listed::Network(cookie) => format!("{cookie:016x}"),
        }
    }

    /// The part of a room where the lists of its kind are.
    fn part(self) -> &'static str {
        match self {
            Listed::Port(_) => PORTS,
            Listed::Network(_) => NETWORKS,
        }
    }

    /// Its list, from the room on.
    fn path(self) -> String {
        format!("{}/{}", self.part(), self.name())
    }
}

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
    network: Option<u64>,
    id: EndpointId,
    /// A forked child inherits the value, but not the listener.
    process: u32,
}

impl PortEntry {
    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Says besides which network namespace the listener is in, for clients in others whose
    /// destination is translated on the way.
    ///
    /// # Errors
    ///
    /// What the system gives, with the place.
    pub(crate) fn list_network(&mut self, cookie: u64) -> io::Result<()> {
        self.inner.list(Listed::Network(cookie), self.id)?;
        self.network = Some(cookie);
        Ok(())
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
        for listed in [Some(Listed::Port(self.port)), self.network.map(Listed::Network)].into_iter().flatten()
        {
            let Some(count) = published.get_mut(&(listed, self.id)) else { continue };
            *count -= 1;
            if *count == 0 {
                published.remove(&(listed, self.id));
                // Under the lock: a listener that publishes the same pair meanwhile comes after it.
                self.inner.unpublish(listed, self.id);
            }
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
        self.inner.list(Listed::Port(port), id)?;
        let (inner, process) = (Arc::clone(&self.inner), std::process::id());
        Ok(PortEntry { inner, port, network: None, id, process })
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
                Visited::Other(other) if other.owner != ROOT => {
                    of_others.push(other.some(Listed::Port(port)))
                }
                _ => {
                    let Some(dir) = room.list(Listed::Port(port))? else { continue };
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

    /// May there be listeners in other network namespaces than `network`? Two system calls, and a
    /// hint.
    pub(crate) fn may_reach_elsewhere(&self, network: u64) -> bool {
        let room = &self.inner.own.dir;
        let own = || rustix::fs::statat(room, Listed::Network(network).path(), AtFlags::SYMLINK_NOFOLLOW);
        self.inner.is_shared()
            || match directories_in(room, NETWORKS) {
                Some(0) => false,
                Some(1) => own().is_err(),
                _ => true,
            }
    }

    /// Endpoints with a listener in another network namespace than `network`.
    pub(crate) fn endpoints_elsewhere(&self, network: u64) -> Vec<EndpointId> {
        let ours = Listed::Network(network).name();
        let mut found = Vec::new();
        for room in self.inner.rooms("net") {
            for entry in room.names(NETWORKS, MOST_NETWORKS) {
                let cookie = entry.file_name().to_str().ok().filter(|name| *name != ours);
                let Some(cookie) = cookie.and_then(|name| u64::from_str_radix(name, 16).ok()) else {
                    continue;
                };
                found.extend(room.some(Listed::Network(cookie)));
                if found.len() >= MOST_ELSEWHERE {
                    found.truncate(MOST_ELSEWHERE);
                    return found;
                }
            }
        }
        found
    }
}

/// The directories in a part of a room, by its number of links; `None` on file systems that do not
/// count them.
fn directories_in(room: &OwnedFd, part: &str) -> Option<usize> {
    // Its name, and its own "."; each directory in it has a "..".
    const EMPTY: usize = 2;
    let stat = rustix::fs::statat(room, part, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    usize::try_from(stat.st_nlink).ok()?.checked_sub(EMPTY)
}

impl Room {
    /// Endpoints of another user there. What can not be read is his matter.
    fn some(&self, listed: Listed) -> Vec<EndpointId> {
        let Ok(Some(dir)) = self.list(listed) else { return Vec::new() };
        let ids = names_of(dir, MOST_NAMES_OF_OTHERS)
            .filter_map(|entry| EndpointId::from_name(entry.file_name().to_bytes()));
        ids.filter(|id| self.is_home_of(*id)).collect()
    }
}

impl Inner {
    /// Counts one more listener of the endpoint there; the first one is written down.
    fn list(&self, listed: Listed, id: EndpointId) -> io::Result<()> {
        let mut published = lock(&self.published);
        let count = published.entry((listed, id)).or_insert(0);
        if *count == 0 {
            if let Err(error) = self.publish(listed, id) {
                published.remove(&(listed, id));
                let words = match listed {
                    Listed::Port(port) => {
                        format!("cannot publish port {port} in {}/port", self.path.display())
                    }
                    Listed::Network(_) => {
                        format!("cannot publish a network namespace in {}/net", self.path.display())
                    }
                };
                return Err(explain(error, words));
            }
        }
        *count += 1;
        Ok(())
    }

    fn publish(&self, listed: Listed, id: EndpointId) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        for _ in 0..1000 {
            let part = trust::create_inside(self.own.dir.as_fd(), listed.part(), self.access(), true)?;
            let dir = trust::create_inside(part.as_fd(), &listed.name(), self.access(), true)?;
            match rustix::fs::openat(&dir, id.to_string(), flags, Mode::RUSR | Mode::WUSR) {
                Ok(_) => return Ok(()),
                // Whoever closed the last listener on this port has just removed the directory.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other("its directory is being created and removed all the time"))
    }

    pub(super) fn unpublish(&self, listed: Listed, id: EndpointId) {
        if let Ok(Some(dir)) = self.own.list(listed) {
            let _ = rustix::fs::unlinkat(&dir, id.to_string(), AtFlags::empty());
            // Fails while others are in it.
            let _ = rustix::fs::unlinkat(&self.own.dir, listed.path(), AtFlags::REMOVEDIR);
        }
    }

    fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Who has to do with what we make.
    fn access(&self) -> trust::Access {
        if self.is_shared() { trust::Access::Readable } else { trust::Access::Private }
    }
}

impl Room {
    /// What lists the endpoints by that; `None` when there are none.
    pub(super) fn list(&self, listed: Listed) -> Result<Option<OwnedFd>, Errno> {
        match self.open(&self.dir, &listed.path(), LIST) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The names in a part of the room, as far as they can be read.
    fn names(&self, part: &str, most: usize) -> impl Iterator<Item = DirEntry> {
        self.open(&self.dir, part, LIST).into_iter().flat_map(move |part| names_of(part, most))
    }

    /// All lists of the room.
    pub(super) fn lists(&self, most: usize) -> impl Iterator<Item = Listed> {
        let ports = self.names(PORTS, most);
        let ports =
            ports.filter_map(|entry| Some(Listed::Port(entry.file_name().to_str().ok()?.parse().ok()?)));
        let networks = self.names(NETWORKS, most).filter_map(|entry| {
            let cookie = u64::from_str_radix(entry.file_name().to_str().ok()?, 16).ok()?;
            Some(Listed::Network(cookie))
        });
        ports.chain(networks)
    }
}
