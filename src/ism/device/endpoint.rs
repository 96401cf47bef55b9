//! Endpoints: their names, their sockets, and how one sees that they are dead.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::{fmt, io};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{Device, Inner, Room, explain, sys};
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

    /// The endpoint that a socket or a lock file is of.
    pub(super) fn of_file(name: &[u8]) -> Option<EndpointId> {
        let stem = name.strip_suffix(b".lock").or_else(|| name.strip_suffix(b".sock"))?;
        EndpointId::from_name(stem)
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

    /// The network namespace that the process is in (`SO_NETNS_COOKIE`).
    pub(crate) fn network(&self) -> io::Result<u64> {
        let listener = self.listener.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        sys::netns_cookie(listener.as_fd())
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
    /// Creates an endpoint.
    ///
    /// # Errors
    ///
    /// What the system gives, with the place.
    pub(crate) fn create_endpoint(&self) -> io::Result<EndpointEntry> {
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
    /// `NotFound` or `ConnectionRefused` when the endpoint is gone (if it died,
    /// [`Device::bury_later`] removes what it left) or not yet ready; `WouldBlock` when too many
    /// wait to be accepted by it.
    pub(crate) fn connect(&self, id: EndpointId) -> io::Result<OwnedFd> {
        let mut refusal = io::ErrorKind::NotFound.into();
        for room in self.inner.rooms() {
            match room.connect(id) {
                Err(error) if is_gone(&error) => refusal = error,
                answer => return answer,
            }
        }
        self.inner.tidying.found_dead(id);
        Err(refusal)
    }
}

/// Does nobody listen there?
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// A path to an open file, however long its own is.
fn path_of(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

impl Room {
    /// Connects to the control socket of an endpoint, if that is a socket and of this room's user:
    /// no link that stands in its place leads anywhere else.
    fn connect(&self, id: EndpointId) -> io::Result<OwnedFd> {
        let socket = self.socket(id)?;
        sys::seqpacket_connect(&path_of(&socket))
    }

    /// The control socket of an endpoint, as a name that nobody can exchange any more.
    fn socket(&self, id: EndpointId) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let socket = rustix::fs::openat(&self.endpoints, id.sock(), flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&socket)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || stat.st_uid != self.owner {
            let words = format!("{} is no socket of user {}", id.sock(), self.owner);
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, words));
        }
        Ok(socket)
    }
}

impl Inner {
    /// `None`: somebody removed it meanwhile.
    fn create_endpoint(
        inner: &Arc<Inner>,
        id: EndpointId,
        socket: OwnedFd,
    ) -> io::Result<Option<EndpointEntry>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&inner.own.endpoints, id.lock(), flags, Mode::RUSR | Mode::WUSR)?;
        // Between the two calls a sweep may take the file for a dead endpoint's.
        if !inner.acquire(id, &lock)? {
            return Ok(None);
        }
        let process = std::process::id();
        // From here on dropping it removes everything.
        let mut entry = EndpointEntry { inner: Arc::clone(inner), id, listener: None, _lock: lock, process };
        // Nobody connects before it has the rights it needs: it is not published yet. (No link is
        // followed here: what has the name already is in the way.)
        sys::seqpacket_bind(&socket, &path_of(&inner.own.endpoints).join(id.sock()))?;
        entry.listener = Some(socket);
        if inner.shared.is_some() {
            inner.open_to_others(id)?;
        }
        Ok(Some(entry))
    }

    /// Lets other users connect, which the umask may have forbidden.
    fn open_to_others(&self, id: EndpointId) -> io::Result<()> {
        let socket = self.own.socket(id)?;
        let everybody = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH;
        Ok(rustix::fs::chmod(path_of(&socket), everybody)?)
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
        if FileType::from_raw_mode(held.st_mode) != FileType::RegularFile {
            return Ok(false);
        }
        match rustix::fs::statat(&self.own.endpoints, id.lock(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) => Ok((named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes an endpoint's files: the socket first, for the lock says whose it is.
    fn remove_endpoint(&self, id: EndpointId) {
        let _ = rustix::fs::unlinkat(&self.own.endpoints, id.sock(), AtFlags::empty());
        let _ = rustix::fs::unlinkat(&self.own.endpoints, id.lock(), AtFlags::empty());
    }

    /// Removes the files of an endpoint, if it is dead: its lock is free and nobody listens.
    /// Returns whether it is.
    ///
    /// Errors leave it to the next one who comes by.
    pub(super) fn bury(&self, id: EndpointId) -> bool {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // Held until the end: nobody else buries it, and an owner between creating and locking it
        // starts anew.
        let _lock = match rustix::fs::openat(&self.own.endpoints, id.lock(), flags, Mode::empty()) {
            Ok(lock) => {
                if !matches!(self.acquire(id, &lock), Ok(true)) {
                    return false;
                }
                Some(lock)
            }
            // The living make their lock before anything else and remove it last.
            Err(Errno::NOENT) => None,
            Err(_) => return false,
        };
        let dead = self.own.connect(id).is_err_and(|error| is_gone(&error));
        if dead {
            self.remove_endpoint(id);
        }
        dead
    }
}
