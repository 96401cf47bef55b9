//! Endpoints: their names, their sockets, and what the dead ones leave behind.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::{fmt, io};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{Device, Inner, explain, sys};
use crate::sync::Arc;

/// Name of an endpoint: random, never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct EndpointId(pub [u8; 16]);

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointId({self})")
    }
}

impl EndpointId {
    /// The endpoint a file is named after; `None` for other names.
    pub(super) fn from_name(name: &[u8]) -> Option<EndpointId> {
        let canonical = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if name.len() != 32 || !name.iter().all(canonical) {
            return None;
        }
        let digits = std::str::from_utf8(name).ok()?;
        Some(EndpointId(u128::from_str_radix(digits, 16).ok()?.to_be_bytes()))
    }

    fn sock(self) -> String {
        format!("{self}.sock")
    }

    fn lock(self) -> String {
        format!("{self}.lock")
    }
}

/// Our endpoint's place on the device; dropping it takes it away.
#[derive(Debug)]
pub(crate) struct EndpointEntry {
    inner: Arc<Inner>,
    id: EndpointId,
    listener: Option<OwnedFd>,
    /// Held for the lock on it.
    _lock: OwnedFd,
    /// A forked child inherits the value, but not the endpoint.
    process: u32,
}

impl EndpointEntry {
    /// The endpoint's name.
    pub(crate) fn id(&self) -> EndpointId {
        self.id
    }

    /// The listening control socket; `None` once it was taken.
    #[cfg(test)]
    pub(crate) fn listener(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.listener.as_ref().map(std::os::fd::AsFd::as_fd)
    }

    /// Hands out the listening control socket, once.
    pub(crate) fn take_listener(&mut self) -> Option<OwnedFd> {
        self.listener.take()
    }
}

impl Drop for EndpointEntry {
    fn drop(&mut self) {
        if self.process == std::process::id() {
            self.inner.remove_endpoint(self.id);
        }
    }
}

impl Device {
    /// Creates an endpoint and removes those that died without tidying up.
    ///
    /// # Errors
    ///
    /// What the system gives, with the place.
    pub(crate) fn create_endpoint(&self) -> io::Result<EndpointEntry> {
        // Tidying up is for others' sake: that it fails is no reason to go without SMC.
        let _ = self.inner.sweep();
        let here = || format!("cannot create an endpoint in {}/ep", self.path().display());
        for _ in 0..100 {
            // What the system alone may deny, apart from what the directory may.
            let (id, socket) = (EndpointId(sys::random_bytes()?), sys::seqpacket()?);
            let created = Inner::create_endpoint(&self.inner, id, socket);
            if let Some(entry) = created.map_err(|error| explain(error, here()))? {
                return Ok(entry);
            }
        }
        Err(explain(io::Error::other("other processes keep removing it"), here()))
    }

    /// Connects to the control socket of an endpoint, without waiting.
    ///
    /// # Errors
    ///
    /// `NotFound` or `ConnectionRefused` when the endpoint is gone (if it died, what it left is
    /// removed) or not yet ready; `WouldBlock` when too many wait to be accepted by it.
    pub(crate) fn connect(&self, id: EndpointId) -> io::Result<OwnedFd> {
        sys::seqpacket_connect(&self.inner.socket_path(id)).inspect_err(|error| {
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
                self.inner.bury(id);
            }
        })
    }
}

impl Inner {
    /// A path to an endpoint's socket that fits a socket address however long the device
    /// directory's is.
    fn socket_path(&self, id: EndpointId) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{}", self.endpoints.as_raw_fd(), id.sock()))
    }

    /// `None`: somebody removed it meanwhile.
    fn create_endpoint(
        inner: &Arc<Inner>,
        id: EndpointId,
        socket: OwnedFd,
    ) -> io::Result<Option<EndpointEntry>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&inner.endpoints, id.lock(), flags, Mode::RUSR | Mode::WUSR)?;
        // Between the two calls a sweep may take the file for a dead endpoint's.
        if !inner.acquire(id, &lock)? {
            return Ok(None);
        }
        let process = std::process::id();
        // From here on dropping it removes everything.
        let mut entry = EndpointEntry { inner: Arc::clone(inner), id, listener: None, _lock: lock, process };
        // Nobody connects before it has the rights it needs: it is not published yet.
        sys::seqpacket_bind(&socket, &inner.socket_path(id))?;
        entry.listener = Some(socket);
        if inner.shared {
            inner.open_to_others(id)?;
        }
        Ok(Some(entry))
    }

    /// Lets other users connect, which the umask may have forbidden.
    fn open_to_others(&self, id: EndpointId) -> io::Result<()> {
        // Through a descriptor, for a name could be replaced by a link to something else of ours.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let socket = rustix::fs::openat(&self.endpoints, id.sock(), flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&socket)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || stat.st_uid != sys::effective_uid() {
            return Err(io::Error::other("the socket was replaced"));
        }
        let everybody = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH;
        Ok(rustix::fs::chmod(format!("/proc/self/fd/{}", socket.as_raw_fd()), everybody)?)
    }

    /// Takes the lock of endpoint `id` on its open lock file; false when somebody else has it, or
    /// when the file has lost its name since it was opened, and a lock on it means nothing.
    pub(super) fn acquire(&self, id: EndpointId, file: &OwnedFd) -> io::Result<bool> {
        match rustix::io::retry_on_intr(|| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive))
        {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let held = rustix::fs::fstat(file)?;
        match rustix::fs::statat(&self.endpoints, id.lock(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) => Ok((named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes an endpoint's files: the socket first, for the lock says whose it is.
    fn remove_endpoint(&self, id: EndpointId) {
        let _ = rustix::fs::unlinkat(&self.endpoints, id.sock(), AtFlags::empty());
        let _ = rustix::fs::unlinkat(&self.endpoints, id.lock(), AtFlags::empty());
    }

    /// Removes what dead endpoints left on the device.
    fn sweep(&self) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in Dir::read_from(&self.endpoints)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let stem = name.strip_suffix(b".lock").or_else(|| name.strip_suffix(b".sock"));
            found.extend(stem.and_then(EndpointId::from_name));
        }
        found.sort_unstable();
        found.dedup();
        for id in found {
            self.bury(id);
        }
        Ok(())
    }

    /// Removes all of one endpoint, if it is dead: its lock is free and nobody listens.
    ///
    /// Errors leave it to the next one who comes by (its owner, if the directory is shared).
    fn bury(&self, id: EndpointId) {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // Held until the end: nobody else buries it, and an owner between creating and locking it
        // starts anew.
        let _lock = match rustix::fs::openat(&self.endpoints, id.lock(), flags, Mode::empty()) {
            Ok(lock) => {
                if !matches!(self.acquire(id, &lock), Ok(true)) {
                    return;
                }
                Some(lock)
            }
            // The living make their lock before anything else and remove it last.
            Err(Errno::NOENT) => None,
            Err(_) => return,
        };
        let probe = sys::seqpacket_connect(&self.socket_path(id)).map_err(|error| error.kind());
        if matches!(probe, Err(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)) {
            self.unpublish_everywhere(id);
            self.remove_endpoint(id);
        }
    }
}
