//! Where an end lives: its network, what of the file system it sees, and as whom.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::inside::sh;

/// The network namespace of the test itself; others have a name.
pub(crate) const HOST: &str = "";

/// Where each container has its volume: a name of its own, for a volume is not known by its path.
const MOUNTS: [&str; 2] = ["/run/near", "/run/far"];

/// The user of containers that run as nobody's root.
pub(crate) const USER: u32 = 64_001;
/// What such a container has for a root.
const ROOT: &str = "/run/root";

/// A process's surroundings.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) network: String,
    /// Done in its own mount namespace, before it starts.
    prepare: String,
    then: Vec<String>,
    deny: Option<(String, String)>,
}

impl Place {
    /// A container with nothing but its own `/dev/shm`.
    pub(crate) fn bare(network: &str) -> Self {
        Self {
            network: network.to_owned(),
            prepare: "mount -t tmpfs -o mode=1777 none /dev/shm".to_owned(),
            then: Vec::new(),
            deny: None,
        }
    }

    /// A container that has `volume` for its device directory.
    pub(crate) fn with(network: &str, volume: &Volume) -> Self {
        let mut place = Self::bare(network);
        let at = MOUNTS[usize::from(network != "client")];
        let path = volume.path().display();
        place.prepare += &format!(" && mkdir -p {at} && mount --bind {path} {at} && export SMC_LO_DIR={at}");
        place
    }

    /// The same with something done to its volume, which is `DIR` there.
    pub(crate) fn after(mut self, script: &str) -> Self {
        let at = MOUNTS[usize::from(self.network != "client")];
        self.prepare += &format!(" && {}", script.replace("DIR", at));
        self
    }

    /// The same under a filter that denies a system call.
    pub(crate) fn without(mut self, call: &str, errno: &str) -> Self {
        self.deny = Some((call.to_owned(), errno.to_owned()));
        self
    }

    /// A container of [`USER`]'s, who is its root; its files belong to that root.
    pub(crate) fn rootless(network: &str) -> Self {
        let mut place = Self::bare(network);
        place.prepare = "export SMC_LO_DIR=/volume".to_owned();
        let id = format!("--reuid={USER} --regid={USER} --clear-groups");
        let words = format!("setpriv {id} unshare --user --map-root-user chroot {ROOT}");
        place.then = words.split(' ').map(str::to_owned).collect();
        place
    }

    /// The same files, and that user by its own name.
    pub(crate) fn of_user(network: &str) -> Self {
        let mut place = Self::rootless(network);
        let words = format!("chroot --userspec={USER}:{USER} --groups= {ROOT}");
        place.then = words.split(' ').map(str::to_owned).collect();
        place
    }

    /// The words that start a program there.
    pub(crate) fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = match self.network.as_str() {
            HOST => vec!["unshare".into(), "--mount".into()],
            network => ["ip", "netns", "exec", network].map(str::to_owned).into(),
        };
        let mut prepare = format!("{} && exec \"$@\"", self.prepare);
        if let Some((call, errno)) = &self.deny {
            prepare = format!("export {DENY}={call}:{errno} && {prepare}");
        }
        words.extend(["sh".to_owned(), "-ec".to_owned(), prepare, "sh".to_owned()]);
        words.extend(self.then.iter().cloned());
        words
    }

    /// The words that start a program in that network, and nowhere else.
    pub(crate) fn network_words(&self) -> Vec<String> {
        match self.network.as_str() {
            HOST => vec!["env".to_owned()],
            network => ["ip", "netns", "exec", network].map(str::to_owned).into(),
        }
    }
}

/// Names the system call that an actor gives up when it starts.
pub(crate) const DENY: &str = "SMC_TEST_DENY";

/// A directory that containers mount.
#[derive(Debug)]
pub(crate) struct Volume(TempDir);

impl Volume {
    pub(crate) fn new() -> Self {
        Self(tempfile::Builder::new().prefix("smc-test-").tempdir().expect("a temp dir"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Files for [`Place::rootless`]: this machine's programs, in a root that belongs to that user,
/// with the device directory at `/volume`.
pub(crate) fn rootless_files() {
    let exe = std::env::current_exe().expect("the test binary");
    let exe: PathBuf = exe.parent().expect("a directory").into();
    let exe = exe.display();
    sh(&format!(
        "mkdir {ROOT} && mount -t tmpfs -o mode=755,uid={USER},gid={USER} none {ROOT} && cd {ROOT}
        for dir in bin lib lib64 usr proc dev; do
            if [ -L /$dir ]; then cp -P /$dir $dir
            elif [ -d /$dir ]; then mkdir $dir && mount --rbind /$dir $dir
            fi
        done
        mkdir -p .{exe} && mount --bind {exe} .{exe}
        mkdir -m 700 volume && chown {USER}:{USER} volume"
    ));
}
