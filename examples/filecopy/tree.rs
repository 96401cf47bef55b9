//! The byte stream of a transfer: a tree written as one, and read back into a directory.
//!
//! Greeting, then entries (kind, mode, path; for a file also size, content and the content's hash),
//! an end mark, and the hash of all of it except the contents, which are in it by their hashes.
//! Numbers are little-endian.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::chunks::{CHUNK, ChunkReader, ChunkWriter};
use crate::{GREETING, because, refused};

const LONGEST_PATH: usize = 4096;

const END: u8 = 0;
const DIRECTORY: u8 = 1;
const FILE: u8 = 2;

/// What was transferred.
#[derive(Debug)]
pub(crate) struct Summary {
    files: u64,
    directories: u64,
    bytes: u64,
    hash: [u8; 32],
}

impl Summary {
    /// As the receiver confirms it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.hash.to_vec();
        for number in [self.files, self.directories, self.bytes] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn words(&self, what: &str, time: Duration, runs_on: &str) -> String {
        let rate = self.bytes as f64 / time.as_secs_f64().max(1e-9) / 1e6;
        let hex: String = self.hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!(
            "{what} {} files, {} directories, {} bytes in {:.3} s: {rate:.1} MB/s over {runs_on}\nblake3 {hex} verified",
            self.files,
            self.directories,
            self.bytes,
            time.as_secs_f64(),
        )
    }
}

/// Writes the tree at `path` as a byte stream.
pub(crate) fn pack(path: &Path, mut out: ChunkWriter) -> io::Result<Summary> {
    let about = |error| because(path.display(), error);
    // Resolves `.`, `..` and a link, so that the name under which the tree arrives is that of the
    // tree itself.
    let root = fs::canonicalize(path).map_err(about)?;
    let name = root.file_name().ok_or_else(|| refused("the root directory has no name to arrive under"))?;
    let mut packer = Packer::new(&mut out);
    packer.write(GREETING)?;
    packer.entry(&root, Path::new(name))?;
    packer.write(&[END])?;
    let (summary, left_out) = packer.finish()?;
    for path in left_out {
        let _ =
            writeln!(io::stderr().lock(), "filecopy: left out, not a file or directory: {}", path.display());
    }
    out.end()?;
    Ok(summary)
}

struct Packer<'a> {
    out: &'a mut ChunkWriter,
    all: blake3::Hasher,
    summary: Summary,
    left_out: Vec<PathBuf>,
    buffer: Vec<u8>,
}

impl<'a> Packer<'a> {
    fn new(out: &'a mut ChunkWriter) -> Self {
        let summary = Summary { files: 0, directories: 0, bytes: 0, hash: [0; 32] };
        Self { out, all: blake3::Hasher::new(), summary, left_out: Vec::new(), buffer: vec![0; CHUNK] }
    }

    /// Writes what belongs to the hash of the whole.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.all.update(bytes);
        self.out.write_all(bytes)
    }

    fn entry(&mut self, path: &Path, name: &Path) -> io::Result<()> {
        let about = |error| because(path.display(), error);
        let kind = fs::symlink_metadata(path).map_err(about)?;
        if kind.is_dir() {
            self.header(DIRECTORY, kind.permissions().mode(), name)?;
            self.summary.directories += 1;
            let mut inside =
                fs::read_dir(path).map_err(about)?.collect::<io::Result<Vec<_>>>().map_err(about)?;
            inside.sort_by_key(fs::DirEntry::file_name);
            for entry in inside {
                self.entry(&entry.path(), &name.join(entry.file_name()))?;
            }
            Ok(())
        } else if kind.is_file() {
            self.file(path, name).map_err(about)
        } else {
            self.left_out.push(path.to_owned());
            Ok(())
        }
    }

    fn header(&mut self, kind: u8, mode: u32, name: &Path) -> io::Result<()> {
        let name = name.as_os_str().as_bytes();
        if name.len() > LONGEST_PATH {
            return Err(refused("the path is too long"));
        }
        self.write(&[kind])?;
        self.write(&(mode & 0o777).to_le_bytes())?;
        self.write(&(name.len() as u32).to_le_bytes())?;
        self.write(name)
    }

    fn file(&mut self, path: &Path, name: &Path) -> io::Result<()> {
        // Not through a link that has just taken the file's place, nor waiting for the other end of
        // a pipe.
        let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
        let mut file = OpenOptions::new().read(true).custom_flags(flags as i32).open(path)?;
        let metadata = file.metadata()?;
        let size = metadata.len();
        self.header(FILE, metadata.permissions().mode(), name)?;
        self.write(&size.to_le_bytes())?;
        let mut hasher = blake3::Hasher::new();
        let mut left = size;
        // One more read at the end sees whether the file has grown.
        loop {
            let read = file.read(&mut self.buffer)?;
            if read as u64 > left || (read == 0 && left > 0) {
                return Err(refused("the file changes while it is read"));
            }
            if read == 0 {
                break;
            }
            hasher.update(&self.buffer[..read]);
            self.out.write_all(&self.buffer[..read])?;
            left -= read as u64;
        }
        self.write(hasher.finalize().as_bytes())?;
        self.summary.files += 1;
        self.summary.bytes += size;
        Ok(())
    }

    fn finish(mut self) -> io::Result<(Summary, Vec<PathBuf>)> {
        let hash = *self.all.finalize().as_bytes();
        self.out.write_all(&hash)?;
        self.summary.hash = hash;
        Ok((self.summary, self.left_out))
    }
}

/// Reads the byte stream and makes the tree in `dir`. After an error no half-written file is left;
/// files that were complete and verified stay.
pub(crate) fn unpack(dir: &Path, input: &mut ChunkReader) -> io::Result<Summary> {
    let mut all = blake3::Hasher::new();
    let mut summary = Summary { files: 0, directories: 0, bytes: 0, hash: [0; 32] };
    let mut directories: Vec<(PathBuf, u32)> = Vec::new();
    let mut made = HashSet::from([PathBuf::new()]);
    if take::<8>(input, &mut all)? != *GREETING {
        return Err(refused("this is not a filecopy sender of this version"));
    }
    loop {
        let [kind] = take::<1>(input, &mut all)?;
        if kind == END {
            break;
        }
        let mode = u32::from_le_bytes(take(input, &mut all)?) & 0o777;
        let length = u32::from_le_bytes(take(input, &mut all)?) as usize;
        if length > LONGEST_PATH {
            return Err(refused("a path is too long"));
        }
        let mut name = vec![0; length];
        input.read_exact(&mut name)?;
        all.update(&name);
        let name = PathBuf::from(std::ffi::OsString::from_vec(name));
        let about = |error| because(name.display(), error);
        inside(&name, &made).map_err(about)?;
        let path = dir.join(&name);
        match kind {
            DIRECTORY => {
                // Ours alone until it is complete: nobody else can put a link into it meanwhile.
                fs::DirBuilder::new().mode(0o700).create(&path).map_err(about)?;
                made.insert(name.clone());
                directories.push((name, mode));
                summary.directories += 1;
            }
            FILE => {
                let size = u64::from_le_bytes(take(input, &mut all)?);
                let mut file =
                    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(about)?;
                let hash = file_content(input, &mut file, size).and_then(|hash| {
                    if take::<32>(input, &mut all)? != hash {
                        return Err(refused("the hash differs"));
                    }
                    file.set_permissions(Permissions::from_mode(mode))
                });
                hash.map_err(|error| {
                    // Only the file that was created above is removed.
                    let _ = fs::remove_file(&path);
                    about(error)
                })?;
                summary.files += 1;
                summary.bytes += size;
            }
            _ => return Err(refused("an unknown kind of entry")),
        }
    }
    summary.hash = *all.finalize().as_bytes();
    let mut claimed = [0; 32];
    input.read_exact(&mut claimed)?;
    if claimed != summary.hash {
        return Err(refused("the hash of the whole differs"));
    }
    if input.read(&mut [0])? != 0 {
        return Err(refused("there is more after the end"));
    }
    // The innermost first, and only now: a directory may be one that nobody may write to.
    for (name, mode) in directories.iter().rev() {
        fs::set_permissions(dir.join(name), Permissions::from_mode(*mode))
            .map_err(|error| because(name.display(), error))?;
    }
    Ok(summary)
}

/// Refuses every path that is not a plain name in a directory of this very transfer: no way out,
/// and no way through a link that was there before.
fn inside(name: &Path, made: &HashSet<PathBuf>) -> io::Result<()> {
    let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    let same = name.components().collect::<PathBuf>().as_os_str() == name.as_os_str();
    if !plain || !same || name.as_os_str().is_empty() || name.as_os_str().as_bytes().contains(&0) {
        return Err(refused("refused: the path leaves the directory or is malformed"));
    }
    match name.parent() {
        Some(parent) if made.contains(parent) => Ok(()),
        _ => Err(refused("refused: its directory is not part of the transfer")),
    }
}

fn take<const N: usize>(input: &mut ChunkReader, all: &mut blake3::Hasher) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "the transfer ended early"),
        _ => error,
    })?;
    all.update(&bytes);
    Ok(bytes)
}

fn file_content(input: &mut ChunkReader, file: &mut File, size: u64) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut left = size;
    while left > 0 {
        let chunk = input.chunk()?;
        let piece = &chunk[..chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
        if piece.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the transfer ended within the file"));
        }
        hasher.update(piece);
        file.write_all(piece)?;
        let used = piece.len();
        input.consume(used);
        left -= used as u64;
    }
    Ok(*hasher.finalize().as_bytes())
}
