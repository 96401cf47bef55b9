//! The loopback-ism device: all processes that share one *device directory*.
//!
//! ```text
//! gid                 the device's GID, a UUIDv4
//! ep/<id>.sock        an endpoint's control socket
//! ep/<id>.lock        locked while the endpoint lives
//! port/<port>/<id>    the endpoint has an SmcListener on that TCP port
//! net/<cookie>/<id>   the endpoint has an SmcListener in that network namespace (SO_NETNS_COOKIE)
//! ```
//!
//! In a directory that others write to as well, `ep`, `port` and `net` are in a *room* of each
//! user, `u<uid>`, where only that user makes names: what anybody else plants is in nobody's way.
//!
//! There is no daemon. Whoever finds an endpoint dead (its lock free and nobody listening) has what
//! it left removed, by a thread of its own. The directory says where to ask, never whom to trust: a
//! peer proves itself over the connection, by the credentials the kernel vouches for.
//!
//! Names are looked up relative to open directories and no symbolic link is followed, so what was
//! checked when the device was opened is what is used afterwards. However many names there are,
//! a look and a tidying-up read so many of them and no more.

mod endpoint;
mod port;
mod room;
#[cfg(test)]
mod tests;
mod tidy;
mod trust;

pub(crate) use endpoint::{EndpointEntry, EndpointId};
use port::Listed;
pub(crate) use port::{OnPort, PortEntry};
use room::Room;
pub(crate) use room::Visits;
use tidy::Tidying;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{fmt, io};

use rustix::fs::{AtFlags, Dir, DirEntry, Mode, OFlags};
use rustix::io::Errno;

use super::sys;
use crate::sync::{Arc, Mutex, lock};

/// A loopback-ism device; clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    gid: [u8; 16],
    /// The rooms are in it, if others write to it, too (it is sticky): peers of other users must
    /// reach our sockets then.
    shared: Option<OwnedFd>,
    own: Room,
    /// Who else's rooms are looked into.
    visits: Mutex<Visits>,
    tidying: Tidying,
    /// How many of our listeners stand behind each port entry.
    published: Mutex<HashMap<(Listed, EndpointId), u32>>,
}

/// An error of a file or directory, with the words what failed, on what, and what to do about it.
#[derive(Debug)]
pub(crate) struct AtPlace {
    words: String,
    error: io::Error,
}

impl AtPlace {
    /// The same kind of error, with words; its cause stays inside.
    pub(crate) fn explain(error: impl Into<io::Error>, words: impl fmt::Display) -> io::Error {
        let (error, words) = (error.into(), words.to_string());
        io::Error::new(error.kind(), AtPlace { words, error })
    }
}

impl fmt::Display for AtPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.words, self.error)
    }
}

impl std::error::Error for AtPlace {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// The names in a directory, and `most` of them at most: others may have put any number there. An
/// error is the last one.
fn names(dir: Dir, most: usize) -> impl Iterator<Item = Result<DirEntry, Errno>> {
    let names = dir.take(most);
    #[cfg(test)]
    let names = names.inspect(|_| tests::NAMES_READ.set(tests::NAMES_READ.get() + 1));
    names
}

/// The same, as far as they can be read.
fn names_of(dir: impl AsFd, most: usize) -> impl Iterator<Item = DirEntry> {
    Dir::read_from(dir).into_iter().flat_map(move |dir| names(dir, most)).map_while(Result::ok)
}

fn explain(error: impl Into<io::Error>, words: impl fmt::Display) -> io::Error {
    AtPlace::explain(error, words)
}

impl Device {
    /// Opens the device of directory `dir`, or of this user's default directory:
    /// `/dev/shm/smc-lo-<uid>`, and where there is no `/dev/shm`, the same in the directory for
    /// temporary files. Creates what is missing.
    ///
    /// # Errors
    ///
    /// `PermissionDenied` when somebody else could replace or rename a component of the path;
    /// otherwise what the system gives. The text names the component and says what to do.
    pub(crate) fn open(dir: Option<&Path>) -> io::Result<Device> {
        match dir {
            Some(dir) => Device::open_at(&trust::absolute(dir)?, true),
            None => {
                let (parent, name) = default_place();
                Device::open_at(&trust::absolute(&parent)?.join(name), false)
            }
        }
    }

    fn open_at(path: &Path, explicit: bool) -> io::Result<Device> {
        let trust::Directory { fd, shared } = trust::open(path, explicit)?;
        let gid = gid(&fd, path)?;
        let (own, shared) =
            if shared { (Room::own(fd.as_fd()), Some(fd)) } else { (Room::private(fd, explicit), None) };
        let own = own.map_err(|error| explain(error, format_args!("device directory {}", path.display())))?;
        let published = Mutex::new(HashMap::new());
        let (path, tidying) = (path.to_owned(), Tidying::default());
        let inner = Inner { path, gid, shared, own, visits: Mutex::default(), tidying, published };
        Ok(Device { inner: Arc::new(inner) })
    }

    /// From now on peers are looked for in those users' rooms, too.
    pub(crate) fn visit(&self, more: Visits) {
        lock(&self.inner.visits).extend(more);
    }

    /// The device's GID: equal for all processes that share its directory.
    pub(crate) fn gid(&self) -> [u8; 16] {
        self.inner.gid
    }

    /// The device directory.
    pub(crate) fn path(&self) -> &Path {
        &self.inner.path
    }
}

/// Where the default directory is, and its name.
fn default_place() -> (PathBuf, String) {
    let shm = Path::new("/dev/shm");
    let parent = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    (parent, format!("smc-lo-{}", sys::effective_uid()))
}

/// Has anybody listened on `port`, by the look of the device directory? One system call, and a
/// hint: who acts on it looks into the directory by all rules.
pub(crate) fn may_list(dir: Option<&Path>, port: u16) -> bool {
    static DEFAULT: OnceLock<PathBuf> = OnceLock::new();
    let dir = dir.unwrap_or_else(|| {
        DEFAULT.get_or_init(|| {
            let (parent, name) = default_place();
            parent.join(name)
        })
    });
    rustix::fs::access(dir.join(format!("port/{port}")), rustix::fs::Access::EXISTS).is_ok()
}

/// Reads the GID of a device directory, or gives it one. Of several processes that do so at once,
/// one wins.
fn gid(dir: &OwnedFd, path: &Path) -> io::Result<[u8; 16]> {
    let here = || format!("{}/gid", path.display());
    for _ in 0..100 {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(dir, "gid", flags, Mode::empty()) {
            Ok(file) => {
                let mut text = [0; 64];
                let length = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut text))
                    .map_err(|error| explain(error, format_args!("cannot read {}", here())))?;
                return parse_gid(&text[..length]).ok_or_else(|| {
                    let words = "does not hold a GID (a UUID in text form); remove the device directory";
                    io::Error::new(io::ErrorKind::InvalidData, format!("{} {words}", here()))
                });
            }
            Err(Errno::NOENT) => {
                // That the system has no random numbers for us is not the directory's matter.
                let random = (sys::random_bytes()?, sys::random_u64()?);
                create_gid(dir, random).map_err(|error| {
                    explain(error, format_args!("cannot create {}; make the directory writable", here()))
                })?;
            }
            Err(error) => return Err(explain(error, format_args!("cannot open {}", here()))),
        }
    }
    Err(io::Error::other(format!("{} is being created and removed all the time", here())))
}

/// Puts a new GID under a name of its own and links it to the final name: whoever sees that, sees
/// all of it.
fn create_gid(dir: &OwnedFd, (mut gid, draft): ([u8; 16], u64)) -> io::Result<()> {
    // RFC 9562: version 4, variant 10
    gid[6] = gid[6] & 0x0f | 0x40;
    gid[8] = gid[8] & 0x3f | 0x80;
    let text = format_gid(gid);
    // The kernel would say so by ending the process.
    if sys::largest_file().is_some_and(|largest| text.len() as u64 > largest) {
        return Err(Errno::FBIG.into());
    }
    let name = format!(".gid.{draft:016x}");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    let file = rustix::fs::openat(dir, &name, flags, mode)?;
    let linked = (|| {
        // Other users of a shared directory read it, whatever our umask is.
        rustix::fs::fchmod(&file, mode)?;
        if rustix::io::write(&file, text.as_bytes())? != text.len() {
            return Err(Errno::NOSPC);
        }
        match rustix::fs::linkat(dir, &name, dir, "gid", AtFlags::empty()) {
            // Somebody else was faster: theirs it is.
            Err(Errno::EXIST) => Ok(()),
            other => other,
        }
    })();
    rustix::fs::unlinkat(dir, &name, AtFlags::empty())?;
    Ok(linked?)
}

/// Text of a GID: 8-4-4-4-12 hexadecimal digits and a line feed.
fn format_gid(gid: [u8; 16]) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(gid));
    let (a, b, c) = (&digits[..8], &digits[8..12], &digits[12..16]);
    format!("{a}-{b}-{c}-{}-{}\n", &digits[16..20], &digits[20..])
}

fn parse_gid(text: &[u8]) -> Option<[u8; 16]> {
    let digits: String = std::str::from_utf8(text).ok()?.trim().split('-').collect();
    let gid = u128::from_str_radix(&digits, 16).ok()?.to_be_bytes();
    (format_gid(gid).as_bytes() == text).then_some(gid)
}
