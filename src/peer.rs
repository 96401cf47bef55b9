//! Whom we trust: with which processes this one shares memory. The rule is here and nowhere else.

use crate::ism::sys::{self, PeerCred};

/// Whose processes a connection may be upgraded with.
///
/// Both ends ask their own policy about the other's process, as the kernel names it when the link
/// between the two is made (`SO_PEERCRED`). A user that a user namespace has no name for (the
/// overflow uid) is never the same user.
///
/// ```
/// use tokio_smc::{Config, PeerPolicy};
///
/// // Only with processes of root, whoever runs this one.
/// let config = Config::from_env().peer_policy(PeerPolicy::Root);
/// # let _ = config;
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum PeerPolicy {
    /// Processes of the same user, and of root.
    #[default]
    SameUser,
    /// Processes of root only.
    Root,
}

impl PeerPolicy {
    /// May connections be upgraded with that process?
    pub(crate) fn admits(&self, peer: &PeerCred) -> bool {
        match self {
            PeerPolicy::SameUser => peer.uid == ROOT || is_same_user(peer),
            PeerPolicy::Root => peer.uid == ROOT,
        }
    }

    /// Does an endpoint with such a stream talk to that process at all? The own user is told by
    /// each stream why it is not admitted; others that are not admitted hear nothing.
    pub(crate) fn hears(&self, peer: &PeerCred) -> bool {
        self.admits(peer) || is_same_user(peer)
    }
}

const ROOT: u32 = 0;

/// Is it a process of the user that this one belongs to?
pub(crate) fn is_same_user(peer: &PeerCred) -> bool {
    sys::is_user(peer.uid, sys::effective_uid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_admits_whom_it_says() {
        let peer = |uid| PeerCred { pid: 1, uid, gid: 0 };
        let (us, nobody) = (sys::effective_uid(), sys::overflow_uid());
        // A user that is neither of the three.
        let stranger = (1..).find(|uid| ![us, nobody].contains(uid)).unwrap();
        for (policy, admitted) in [(PeerPolicy::SameUser, [true, true]), (PeerPolicy::Root, [true, us == 0])]
        {
            assert_eq!([ROOT, us].map(|uid| policy.admits(&peer(uid))), admitted, "{policy:?}");
            assert!(!policy.admits(&peer(stranger)) && !policy.hears(&peer(stranger)), "{policy:?}");
            assert!(policy.hears(&peer(us)), "{policy:?}");
            assert!(!policy.admits(&peer(nobody)), "{policy:?}: behind that number may be anybody");
        }
    }
}
