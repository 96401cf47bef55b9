//! Rooms: where one user has its names.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::{io, iter};

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::trust::{self, WALK};
use super::{Inner, names_of, sys};

/// Names of a shared directory that are looked at to say why nobody was found.
const MOST_NEIGHBOURS: usize = 32;

const ROOT: u32 = 0;

/// The part of a device directory where one user has its names: all of it, or `u<uid>` in one that
/// others write to, too.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) endpoints: OwnedFd,
    pub(super) ports: OwnedFd,
    pub(super) networks: OwnedFd,
    /// Who makes names in it.
    pub(super) owner: u32,
}

fn name_of(user: u32) -> String {
    format!("u{user}")
}

/// The user of this process.
///
/// # Errors
///
/// When a sandbox keeps that from it: the call, which can not fail, says -1 then.
fn ourselves() -> io::Result<u32> {
    match sys::effective_uid() {
        u32::MAX => Err(Errno::PERM.into()),
        user => Ok(user),
    }
}

impl Room {
    /// A device directory that nobody else writes to.
    pub(super) fn private(dir: BorrowedFd<'_>, root_too: bool) -> io::Result<Room> {
        let part = |name| trust::create_inside(dir, name, trust::Access::Private, root_too);
        Ok(Room { endpoints: part("ep")?, ports: part("port")?, networks: part("net")?, owner: ourselves()? })
    }

    /// Our own room in a shared directory, made if it is missing.
    pub(super) fn own(dir: BorrowedFd<'_>) -> io::Result<Room> {
        let owner = ourselves()?;
        let room = trust::create_inside(dir, &name_of(owner), trust::Access::Readable, false)?;
        let part = |name| trust::create_inside(room.as_fd(), name, trust::Access::Readable, false);
        Ok(Room { endpoints: part("ep")?, ports: part("port")?, networks: part("net")?, owner })
    }

    /// The room of another user, if it is there and really that user's.
    fn of(dir: BorrowedFd<'_>, owner: u32) -> Option<Room> {
        let open = |at: BorrowedFd<'_>, name: &str| {
            let part = rustix::fs::openat(at, name, WALK, Mode::empty()).ok()?;
            trust::belongs_to(&part, Path::new(name), owner).ok()?;
            Some(part)
        };
        let room = open(dir, &name_of(owner))?;
        let part = |name| open(room.as_fd(), name);
        Some(Room { endpoints: part("ep")?, ports: part("port")?, networks: part("net")?, owner })
    }
}

/// A room of ours, or one that was opened for a visit.
pub(super) enum Visited<'a> {
    Own(&'a Room),
    Other(Room),
}

impl std::ops::Deref for Visited<'_> {
    type Target = Room;

    fn deref(&self) -> &Room {
        match self {
            Visited::Own(room) => room,
            Visited::Other(room) => room,
        }
    }
}

impl Inner {
    /// Where peers can be that a policy may admit: at ours, and at root's.
    pub(super) fn rooms(&self) -> impl Iterator<Item = Visited<'_>> {
        let other = self.shared.as_ref().filter(|_| self.own.owner != ROOT);
        // Not before our own was of no use.
        let other = other.into_iter().filter_map(|dir| Room::of(dir.as_fd(), ROOT)).map(Visited::Other);
        iter::once(Visited::Own(&self.own)).chain(other)
    }

    /// Does anybody of another user listen on `port`? Not all are looked at: this is for the
    /// reason alone.
    pub(super) fn is_others(&self, port: u16) -> bool {
        let Some(dir) = self.shared.as_ref() else { return false };
        let users = names_of(dir, MOST_NEIGHBOURS).filter_map(|entry| {
            let user = entry.file_name().to_str().ok()?.strip_prefix('u')?.parse().ok()?;
            (user != self.own.owner).then_some(user)
        });
        users
            .filter_map(|user| Room::of(dir.as_fd(), user))
            .any(|room| rustix::fs::statat(&room.ports, port.to_string(), AtFlags::SYMLINK_NOFOLLOW).is_ok())
    }
}
