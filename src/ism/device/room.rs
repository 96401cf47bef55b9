//! Rooms: where one user has its names.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::{io, iter};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::trust::{self, WALK};
use super::{EndpointId, Inner, names_of, sys};
use crate::sync::lock;

/// Names of a shared directory that are looked at to say why nobody was found.
const MOST_NEIGHBOURS: usize = 32;
/// Names of a shared directory that are read to find the rooms of users who are not named.
pub(super) const MOST_NAMES: usize = 1024;
/// Rooms of others that are visited.
pub(super) const MOST_ROOMS: usize = 64;

pub(super) const ROOT: u32 = 0;

/// The parts of a room that list endpoints: by port, and by network namespace.
pub(super) const PORTS: &str = "port";
pub(super) const NETWORKS: &str = "net";

/// In whose rooms of a shared directory peers are looked for, besides our own and root's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Visits {
    /// In those of these users.
    Those(Vec<u32>),
    /// In all that are found.
    Everybody,
}

impl Default for Visits {
    fn default() -> Self {
        Visits::Those(Vec::new())
    }
}

impl Visits {
    pub(super) fn extend(&mut self, more: Visits) {
        match (&mut *self, more) {
            (Visits::Those(users), Visits::Those(more)) => {
                for user in more {
                    if !users.contains(&user) {
                        users.push(user);
                    }
                }
            }
            _ => *self = Visits::Everybody,
        }
    }
}

/// The part of a device directory where one user has its names: all of it, or `u<uid>` in one that
/// others write to, too.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) endpoints: OwnedFd,
    /// The room itself. What is used less often is found by its name: every process would hold a
    /// descriptor for it.
    pub(super) dir: OwnedFd,
    /// Who makes names in it.
    pub(super) owner: u32,
    /// The inode of `endpoints`, which all names of endpoints in it end with.
    number: u64,
}

fn name_of(user: u32) -> String {
    format!("u{user}")
}

/// The user whose room has that name.
fn user_of(name: &[u8]) -> Option<u32> {
    let user = std::str::from_utf8(name).ok()?.strip_prefix('u')?.parse().ok()?;
    (name_of(user).as_bytes() == name).then_some(user)
}

/// Opens a name inside the room of `owner`, without following a link. Another user could mount
/// something there that answers when it likes: his rooms end at the file system's borders (openat2,
/// Linux 5.6; without it, nobody but root has rooms that are visited).
fn open_inside(at: BorrowedFd<'_>, name: &str, flags: OFlags, owner: u32) -> Result<OwnedFd, Errno> {
    if owner == ROOT || owner == sys::effective_uid() {
        return rustix::fs::openat(at, name, flags, Mode::empty());
    }
    let here = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(at, name, flags, Mode::empty(), here)
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
    /// In that directory, of the parts that `open` opens in it.
    fn new(
        dir: OwnedFd,
        open: impl Fn(BorrowedFd<'_>, &'static str) -> io::Result<OwnedFd>,
        owner: u32,
    ) -> io::Result<Room> {
        let [endpoints, ..] =
            [open(dir.as_fd(), "ep")?, open(dir.as_fd(), PORTS)?, open(dir.as_fd(), NETWORKS)?];
        let number = rustix::fs::fstat(&endpoints)?.st_ino;
        Ok(Room { endpoints, dir, owner, number })
    }

    /// A device directory that nobody else writes to.
    pub(super) fn private(dir: OwnedFd, root_too: bool) -> io::Result<Room> {
        let part =
            |dir: BorrowedFd<'_>, name| trust::create_inside(dir, name, trust::Access::Private, root_too);
        Room::new(dir, part, ourselves()?)
    }

    /// Our own room in a shared directory, made if it is missing.
    pub(super) fn own(dir: BorrowedFd<'_>) -> io::Result<Room> {
        let owner = ourselves()?;
        let room = trust::create_inside(dir, &name_of(owner), trust::Access::Readable, false)?;
        let part =
            |room: BorrowedFd<'_>, name| trust::create_inside(room, name, trust::Access::Readable, false);
        Room::new(room, part, owner)
    }

    /// The room of another user, if it is there and really that user's.
    fn of(dir: BorrowedFd<'_>, owner: u32) -> Option<Room> {
        let open = |at: BorrowedFd<'_>, name: &str| {
            let part = open_inside(at, name, WALK, owner).ok()?;
            trust::belongs_to(&part, Path::new(name), owner).ok()?;
            Some(part)
        };
        let room = open(dir, &name_of(owner))?;
        Room::new(room, |room, name| open(room, name).ok_or_else(|| Errno::NOENT.into()), owner).ok()
    }

    /// A name that nobody else can have in a room of his, as long as this one is there.
    pub(super) fn new_name(&self) -> io::Result<EndpointId> {
        let mut name: [u8; 16] = sys::random_bytes()?;
        name[8..].copy_from_slice(&self.number.to_be_bytes());
        Ok(EndpointId(name))
    }

    /// Was that name made in this room?
    pub(super) fn is_home_of(&self, id: EndpointId) -> bool {
        id.0[8..] == self.number.to_be_bytes()
    }

    /// Opens a name in this room, or in a part of it.
    pub(super) fn open(&self, part: &OwnedFd, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        open_inside(part.as_fd(), name, flags, self.owner)
    }
}

/// Is there a file of that name in a user's room, as it looks? One call, where most rooms have
/// nothing to do with what is looked for.
fn seems_to_have(dir: &OwnedFd, user: u32, file: &str) -> bool {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open_inside(dir.as_fd(), &format!("{}/{file}", name_of(user)), flags, user).is_ok()
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
    /// Where peers can be that a policy may admit: at ours, at root's, and at those of the users
    /// that are to be visited, if they have such a file.
    pub(super) fn rooms(&self, file: &str) -> impl Iterator<Item = Visited<'_>> {
        // Not before our own was of no use.
        let others = iter::once_with(|| self.shared.as_ref()).flatten().flat_map(move |dir| {
            let users = self.others(dir).into_iter().filter(move |user| seems_to_have(dir, *user, file));
            users.filter_map(|user| Room::of(dir.as_fd(), user))
        });
        iter::once(Visited::Own(&self.own)).chain(others.map(Visited::Other))
    }

    /// The other users whose rooms are to be visited, root first.
    fn others(&self, dir: &OwnedFd) -> Vec<u32> {
        let visits = lock(&self.visits).clone();
        let users = match visits {
            Visits::Those(users) => users,
            Visits::Everybody => {
                names_of(dir, MOST_NAMES).filter_map(|entry| user_of(entry.file_name().to_bytes())).collect()
            }
        };
        let others = users.into_iter().filter(|user| *user != ROOT);
        let others = iter::once(ROOT).chain(others).filter(|user| *user != self.own.owner);
        others.take(MOST_ROOMS).collect()
    }

    /// Does anybody of another user listen on `port`? Not all are looked at: this is for the
    /// reason alone.
    pub(super) fn is_others(&self, port: u16) -> bool {
        let Some(dir) = self.shared.as_ref() else { return false };
        let users = names_of(dir, MOST_NEIGHBOURS).filter_map(|entry| user_of(entry.file_name().to_bytes()));
        users
            .filter(|user| *user != self.own.owner && seems_to_have(dir, *user, &format!("port/{port}")))
            .any(|user| Room::of(dir.as_fd(), user).is_some())
    }
}
