//! Which directories may be a device directory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::{explain, sys};

/// A directory that passed.
pub(super) struct Directory {
    pub(super) fd: OwnedFd,
    /// Others may create names in it.
    pub(super) shared: bool,
}

/// Opening a directory as such, without following a symbolic link, and without the right to list
/// it.
pub(super) const WALK: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Opening a directory to be listed.
pub(super) const LIST: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// `path` from the root on. Symbolic links stay in it, to be refused; `..` is refused here.
pub(super) fn absolute(path: &Path) -> io::Result<PathBuf> {
    let words = |what: &str| format!("device directory {}: {what}", path.display());
    let whole = std::path::absolute(path).map_err(|error| explain(error, words("no such path")))?;
    if whole.components().any(|part| part == Component::ParentDir) {
        let words = words("it contains `..`; name the directory without");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, words));
    }
    Ok(whole)
}

/// Opens a device directory, component by component, and creates the last one if it is missing
/// (mode 0700).
///
/// `path` is absolute. A directory set explicitly may belong to root as well as to us; the default
/// one, whose name is known to everybody, only to us. What lies above it may belong to either.
pub(super) fn open(path: &Path, explicit: bool) -> io::Result<Directory> {
    let names: Vec<_> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    let Some((last, parents)) = names.split_last() else {
        let words = "the root directory cannot be a device directory; name one of its own";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, words));
    };
    let mut at = PathBuf::from("/");
    let mut fd =
        rustix::fs::open(&at, WALK, Mode::empty()).map_err(|error| explain(error, "cannot open /"))?;
    check(&fd, &at, true)?;
    for name in parents {
        at.push(name);
        fd = rustix::fs::openat(&fd, *name, WALK, Mode::empty()).map_err(|error| refused(&fd, &at, error))?;
        check(&fd, &at, true)?;
    }
    at.push(last);
    match rustix::fs::mkdirat(&fd, *last, Mode::RWXU) {
        // Read-only file systems and such say so even when it exists: the open decides.
        Ok(()) | Err(Errno::EXIST | Errno::ROFS | Errno::ACCESS | Errno::PERM) => {}
        Err(error) => return Err(explain(error, format_args!("cannot create {}", at.display()))),
    }
    let fd = rustix::fs::openat(&fd, *last, LIST, Mode::empty()).map_err(|error| refused(&fd, &at, error))?;
    let stat = check(&fd, &at, explicit)?;
    Ok(Directory { fd, shared: is_shared(&stat) })
}

/// Who has to do with a directory of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// We alone.
    Private,
    /// Others look who is there, whatever our umask is.
    Readable,
}

/// Opens directory `name` inside a device directory (or inside one of its parts), and creates it if
/// it is missing. It has to belong to us, or to root where that may be.
pub(super) fn create_inside(
    parent: BorrowedFd<'_>,
    name: &str,
    access: Access,
    root_too: bool,
) -> io::Result<OwnedFd> {
    // Names below a shared directory come and go while we look: somebody creates it, somebody
    // removes it.
    for _ in 0..100 {
        match rustix::fs::openat(parent, name, LIST, Mode::empty()) {
            Ok(fd) => return check(&fd, Path::new(name), root_too).map(|_| fd),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(explain(error, format_args!("cannot open {name}"))),
        }
        let created = match access {
            Access::Private => rustix::fs::mkdirat(parent, name, Mode::RWXU),
            Access::Readable => create_readable(parent, name),
        };
        match created {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                let words =
                    format_args!("cannot create {name}; make the directory writable or choose another");
                return Err(explain(error, words));
            }
        }
    }
    Err(io::Error::other(format!("{name} is being created and removed all the time")))
}

/// Creates a directory that everybody may look into, under a name of its own until the umask's work
/// is undone.
fn create_readable(parent: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let suffix = sys::random_u64().map_err(|_| Errno::AGAIN)?;
    let draft = format!(".{name}.{suffix:016x}");
    rustix::fs::mkdirat(parent, &draft, Mode::RWXU)?;
    let finished = (|| {
        let fd = rustix::fs::openat(parent, &draft, LIST, Mode::empty())?;
        rustix::fs::fchmod(&fd, Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH)?;
        rustix::fs::renameat_with(parent, &draft, parent, name, RenameFlags::NOREPLACE)
    })();
    if finished.is_err() {
        // Left behind if even this fails: an empty directory whose name nobody looks at.
        let _ = rustix::fs::unlinkat(parent, &draft, AtFlags::REMOVEDIR);
    }
    finished
}

fn is_shared(stat: &Stat) -> bool {
    Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH)
}

/// Whether others could rename or remove names that are not theirs.
fn is_exposed(stat: &Stat) -> bool {
    is_shared(stat) && !Mode::from_raw_mode(stat.st_mode).contains(Mode::SVTX)
}

fn exposed(at: &Path) -> io::Error {
    let words = format!("{} is writable by others without the sticky bit; chmod go-w or +t", at.display());
    io::Error::new(io::ErrorKind::PermissionDenied, words)
}

/// Refuses a directory that others control.
fn check(fd: &OwnedFd, at: &Path, root_too: bool) -> io::Result<Stat> {
    let stat = rustix::fs::fstat(fd)?;
    judge(&stat, at, root_too, sys::effective_uid())?;
    Ok(stat)
}

/// Refuses a directory that is not that user's, or that others control.
pub(super) fn belongs_to(fd: &OwnedFd, at: &Path, user: u32) -> io::Result<()> {
    judge(&rustix::fs::fstat(fd)?, at, false, user)
}

fn judge(stat: &Stat, at: &Path, root_too: bool, me: u32) -> io::Result<()> {
    let deny = |words: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, words));
    let owner = stat.st_uid;
    let at_text = at.display();
    let mine = sys::is_user(owner, me);
    let trusted = mine || (root_too && owner == 0);
    if !trusted {
        return deny(format!(
            "{at_text} belongs to user {owner}, not to user {me}{}; choose a directory of your own (SMC_LO_DIR)",
            if root_too { " or root" } else { "" }
        ));
    }
    if is_exposed(stat) { Err(exposed(at)) } else { Ok(()) }
}

/// Why `at` could not be opened as a directory inside `parent`.
fn refused(parent: impl AsFd, at: &Path, error: Errno) -> io::Error {
    let at_text = at.display();
    if matches!(error, Errno::LOOP | Errno::NOTDIR) {
        let name = at.file_name().unwrap_or_default();
        let is_link = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
        if is_link {
            let words =
                format!("{at_text} is a symbolic link, which is not followed; name the directory itself");
            return io::Error::new(io::ErrorKind::PermissionDenied, words);
        }
        return explain(error, format_args!("{at_text} is not a directory; name another (SMC_LO_DIR)"));
    }
    explain(error, format_args!("cannot open {at_text}; create it, or name another directory (SMC_LO_DIR)"))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn stat(owner: u32, mode: u32) -> Stat {
        let mut stat = rustix::fs::stat("/").unwrap();
        stat.st_uid = owner;
        stat.st_mode = 0o040_000 | mode;
        stat
    }

    #[test]
    fn owners_and_modes() {
        const ME: u32 = 1000;
        let verdict =
            |owner, mode, root_too| judge(&stat(owner, mode), Path::new("/x"), root_too, ME).is_ok();
        for mode in 0..0o2000 {
            let good = mode & 0o022 == 0 || mode & 0o1000 != 0;
            assert_eq!(verdict(ME, mode, false), good, "{mode:o}");
            assert_eq!(verdict(0, mode, true), good, "{mode:o}");
            assert!(!verdict(0, mode, false) && !verdict(1001, mode, true), "{mode:o}");
        }
        let nobody = sys::overflow_uid();
        assert!(judge(&stat(nobody, 0o700), Path::new("/x"), true, nobody).is_err(), "may be anybody");
    }

    fn words(path: &Path, explicit: bool) -> String {
        match open(path, explicit) {
            Ok(_) => panic!("{} was accepted", path.display()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn every_component_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let deep = root.join("a/b/c");
        fs::create_dir_all(root.join("a/b")).unwrap();
        let set =
            |name: &str, mode| fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();

        set("a", 0o777);
        let text = words(&deep, true);
        assert!(text.contains("/a is writable by others") && text.contains("chmod"), "{text}");
        set("a", 0o775);
        assert!(words(&deep, true).contains("/a is writable by others"), "a group is others, too");
        assert!(!deep.exists(), "nothing is created below it");
        set("a", 0o1777);
        assert!(!open(&deep, true).unwrap().shared);
        assert_eq!(fs::metadata(&deep).unwrap().permissions().mode() & 0o7777, 0o700);

        set("a/b/c", 0o770);
        assert!(words(&deep, true).contains("/c is writable by others"));
        set("a/b/c", 0o1777);
        assert!(open(&deep, true).unwrap().shared);
    }

    #[test]
    fn links_are_not_followed_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("real/dir")).unwrap();
        std::os::unix::fs::symlink(root.join("real"), root.join("link")).unwrap();
        std::os::unix::fs::symlink(root.join("real/dir"), root.join("last")).unwrap();
        std::os::unix::fs::symlink(root.join("nowhere"), root.join("dangling")).unwrap();
        for path in ["link/dir", "last", "dangling"] {
            let text = words(&root.join(path), true);
            assert!(text.contains("symbolic link"), "{text}");
        }
        assert!(!root.join("nowhere").exists());
        fs::write(root.join("file"), "").unwrap();
        assert!(words(&root.join("file"), true).contains("/file is not a directory"));
        assert!(words(&root.join("file/x"), true).contains("/file is not a directory"));
        assert!(words(&root.join("missing/x"), true).contains("/missing; create it"));
    }

    #[test]
    fn odd_paths() {
        assert!(absolute(Path::new("a/../b")).is_err());
        assert!(absolute(Path::new("")).is_err());
        assert_eq!(absolute(Path::new("/a/./b/")).unwrap(), Path::new("/a/b/"));
        assert!(absolute(Path::new("a")).unwrap().is_absolute());
        assert!(words(Path::new("/"), true).contains("root directory"));
    }

    #[test]
    fn a_default_directory_of_somebody_else_is_refused() {
        // Giving a directory away needs root; the decision itself is tested by `owners_and_modes`.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("theirs");
        fs::create_dir(&path).unwrap();
        if sys::effective_uid() == 0 && std::os::unix::fs::chown(&path, Some(4242), None).is_ok() {
            let text = words(&path, true);
            assert!(text.contains("belongs to user 4242") && text.contains("SMC_LO_DIR"), "{text}");
            assert!(words(&path, false).contains("belongs to user 4242"));
        }
    }

    #[test]
    fn parts_are_as_open_as_they_have_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(dir.path(), LIST, Mode::empty()).unwrap();
        create_inside(root.as_fd(), "open", Access::Readable, true).unwrap();
        create_inside(root.as_fd(), "own", Access::Private, true).unwrap();
        let mode = |name| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("open"), mode("own")), (0o755, 0o700));
        fs::set_permissions(dir.path().join("open"), Permissions::from_mode(0o777)).unwrap();
        assert!(create_inside(root.as_fd(), "open", Access::Readable, true).is_err());
        assert!(create_inside(root.as_fd(), "open", Access::Private, true).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no drafts are left");
    }
}
