//! Another user than the one that the tests belong to, who has to be root for that.

/// A user that is nobody's.
pub(super) const STRANGER: u32 = 64001;

/// As long as it lives this thread, and no other, belongs to another user than its peer.
pub(super) struct Disguise;

impl Disguise {
    pub(super) fn on() -> Self {
        Disguise::wear(STRANGER);
        Disguise
    }

    fn wear(user: u32) {
        let [keep, wear] = [0, user].map(rustix::process::Uid::from_raw);
        rustix::thread::set_thread_res_uid(keep, wear, keep).expect("another user id");
    }
}

impl Drop for Disguise {
    fn drop(&mut self) {
        Disguise::wear(0);
    }
}

/// Opens a directory to other users, as a shared one is.
pub(super) fn share(dir: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o1777)).expect("chmod");
    for entry in std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            share(&entry);
        }
    }
}
