//! Port entries: which endpoints have an SmcListener on a TCP port.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::{Device, EndpointId, Inner, explain, trust};
use crate::sync::{Arc, lock};

/// Endpoints looked at on one port: a full directory must not cost a connection more than TCP does.
const MOST_ENDPOINTS: usize = 1024;

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

    /// The endpoints with a listener on `port`, dead ones perhaps among them.
    pub(crate) fn endpoints_on_port(&self, port: u16) -> io::Result<Vec<EndpointId>> {
        let Some(dir) = self.inner.port_dir(port)? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for entry in Dir::new(dir)? {
            found.extend(EndpointId::from_name(entry?.file_name().to_bytes()));
            if found.len() == MOST_ENDPOINTS {
                break;
            }
        }
        Ok(found)
    }
}

impl Inner {
    fn port_dir(&self, port: u16) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.ports, port.to_string(), flags, Mode::empty()) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn publish(&self, port: u16, id: EndpointId) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..1000 {
            let dir = trust::create_inside(self.ports.as_fd(), &port.to_string(), self.shared, true)?;
            match rustix::fs::openat(&dir, id.to_string(), flags, Mode::RUSR | Mode::WUSR) {
                Ok(_) => return Ok(()),
                // Whoever closed the last listener on this port has just removed the directory.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other("its directory is being created and removed all the time"))
    }

    fn unpublish(&self, port: u16, id: EndpointId) {
        if let Ok(Some(dir)) = self.port_dir(port) {
            let _ = rustix::fs::unlinkat(&dir, id.to_string(), AtFlags::empty());
            // Fails while others are in it.
            let _ = rustix::fs::unlinkat(&self.ports, port.to_string(), AtFlags::REMOVEDIR);
        }
    }

    /// Removes a dead endpoint from all ports.
    pub(super) fn unpublish_everywhere(&self, id: EndpointId) {
        let Ok(ports) = Dir::read_from(&self.ports) else { return };
        for entry in ports.flatten() {
            let port = entry.file_name().to_str().ok().and_then(|name| name.parse().ok());
            if let Some(port) = port {
                self.unpublish(port, id);
            }
        }
    }
}
