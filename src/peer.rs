//! Whom we trust: with which processes this one shares memory. The rule is here and nowhere else.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::str::FromStr;

use crate::ism::device::Visits;
use crate::ism::sys::{self, PeerCred};
use crate::sync::Arc;

/// Whose processes a connection may be upgraded with.
///
/// Both ends ask their own policy about the other's process, as the kernel names it when the link
/// between the two is made (`SO_PEERCRED`), and both have to admit each other. A user that a user
/// namespace has no name for (the overflow uid, mostly 65534) is admitted by no policy: behind that
/// number may be anybody.
///
/// Users meet in a device directory that they share ([`Config::device_dir`]); the default one is
/// each user's own. A connection between two users is proved by its sequence number only, so its
/// upgrade waits for the client's first write.
///
/// Written in `SMC_LO_PEERS` as `same`, `root`, `any`, `uid:` with numbers and commas between them,
/// or `gid:` with one number.
///
/// ```
/// use tokio_smc::{Config, PeerPolicy};
///
/// // Only with processes of root, whoever runs this one.
/// let config = Config::from_env().peer_policy(PeerPolicy::Root);
/// // With those of two users, one of which may be our own.
/// assert_eq!("uid:1001,1002".parse(), Ok(PeerPolicy::Users([1001, 1002].into())));
/// # let _ = config;
/// ```
///
/// [`Config::device_dir`]: crate::Config::device_dir
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum PeerPolicy {
    /// Processes of the same user, and of root.
    #[default]
    SameUser,
    /// Processes of root only.
    Root,
    /// Processes of every user that has a name here.
    AnyUser,
    /// Processes of these users, and of no others: our own user and root have to be named, too.
    Users(Arc<[u32]>),
    /// Processes of this group: it is their effective or one of their supplementary groups (the
    /// latter on Linux 4.13 or newer). The overflow gid is nobody's.
    Group(u32),
}

impl PeerPolicy {
    /// May connections be upgraded with that process, which is at the other end of `socket`?
    pub(crate) fn admits(&self, peer: &PeerCred, socket: BorrowedFd<'_>) -> bool {
        self.admits_of(peer, || {
            sys::peer_groups(socket).unwrap_or_else(|error| {
                crate::trace::debug!("the kernel does not say in which groups a peer is: {error}");
                Vec::new()
            })
        })
    }

    /// The same of a process that is in these groups, too.
    fn admits_of(&self, peer: &PeerCred, groups: impl FnOnce() -> Vec<u32>) -> bool {
        sys::is_known_user(peer.uid)
            && match self {
                PeerPolicy::SameUser => peer.uid == ROOT || is_same_user(peer),
                PeerPolicy::Root => peer.uid == ROOT,
                PeerPolicy::AnyUser => true,
                PeerPolicy::Users(users) => users.contains(&peer.uid),
                PeerPolicy::Group(group) => {
                    sys::is_known_group(*group) && (peer.gid == *group || groups().contains(group))
                }
            }
    }

    /// Does an endpoint with such a stream talk to that process at all? The own user is told by
    /// each stream why it is not admitted; others that are not admitted hear nothing.
    pub(crate) fn hears(&self, peer: &PeerCred, socket: BorrowedFd<'_>) -> bool {
        is_same_user(peer) || self.admits(peer, socket)
    }

    /// In whose part of a shared device directory those are that it may admit.
    pub(crate) fn visits(&self) -> Visits {
        match self {
            PeerPolicy::SameUser | PeerPolicy::Root => Visits::default(),
            PeerPolicy::Users(users) => Visits::Those(users.to_vec()),
            // Who is in a group is not to be seen there.
            PeerPolicy::AnyUser | PeerPolicy::Group(_) => Visits::Everybody,
        }
    }
}

impl FromStr for PeerPolicy {
    type Err = UnknownPeers;

    fn from_str(words: &str) -> Result<Self, UnknownPeers> {
        let number = |word: &str| word.trim().parse().ok();
        let policy = match words.split_once(':') {
            None => match words {
                "same" => Some(PeerPolicy::SameUser),
                "root" => Some(PeerPolicy::Root),
                "any" => Some(PeerPolicy::AnyUser),
                _ => None,
            },
            Some(("uid", users)) => users
                .split(',')
                .map(number)
                .collect::<Option<Vec<_>>>()
                .map(|users| PeerPolicy::Users(users.into())),
            Some(("gid", group)) => number(group).map(PeerPolicy::Group),
            Some(_) => None,
        };
        policy.ok_or_else(|| UnknownPeers(words.to_owned()))
    }
}

/// Words that say no [`PeerPolicy`].
///
/// ```
/// use tokio_smc::PeerPolicy;
/// let error = "everybody".parse::<PeerPolicy>().unwrap_err();
/// assert!(error.to_string().starts_with("unknown peers \"everybody\": use same,"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPeers(String);

impl fmt::Display for UnknownPeers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown peers {:?}: use same, root, any, uid:NUMBER,NUMBER or gid:NUMBER", self.0)
    }
}

impl std::error::Error for UnknownPeers {}

const ROOT: u32 = 0;

/// Is it a process of the user that this one belongs to?
pub(crate) fn is_same_user(peer: &PeerCred) -> bool {
    sys::is_user(peer.uid, sys::effective_uid())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    const GROUP: u32 = 4711;

    fn peer(uid: u32) -> PeerCred {
        PeerCred { pid: 1, uid, gid: 0 }
    }

    /// A user that is neither us, nor root, nor nobody.
    fn stranger() -> u32 {
        let (us, nobody) = (sys::effective_uid(), sys::overflow_uid());
        (1..).find(|uid| ![us, nobody].contains(uid)).unwrap()
    }

    #[test]
    fn each_policy_admits_whom_it_says() {
        let (us, nobody) = (sys::effective_uid(), sys::overflow_uid());
        let users = [ROOT, us, stranger(), stranger() + 1_000_000];
        let is_root = us == ROOT;
        for (policy, admitted) in [
            (PeerPolicy::SameUser, [true, true, false, false]),
            (PeerPolicy::Root, [true, is_root, false, false]),
            (PeerPolicy::AnyUser, [true, true, true, true]),
            (PeerPolicy::Users([stranger()].into()), [false, false, true, false]),
            (PeerPolicy::Users([us, stranger()].into()), [is_root, true, true, false]),
            (PeerPolicy::Users([].into()), [false, false, false, false]),
            (PeerPolicy::Group(GROUP), [false, false, false, false]),
        ] {
            let admits = |uid| policy.admits_of(&peer(uid), Vec::new);
            assert_eq!(users.map(admits), admitted, "{policy:?}");
            assert!(!admits(nobody), "{policy:?}: behind that number may be anybody");
            assert!(!admits(u32::MAX), "{policy:?}: that is no user");
        }
        let named = PeerPolicy::Users([nobody, u32::MAX].into());
        assert!(![nobody, u32::MAX].iter().any(|uid| named.admits_of(&peer(*uid), Vec::new)));
    }

    #[test]
    fn a_group_is_the_peers_first_one_or_another_one() {
        let policy = PeerPolicy::Group(GROUP);
        let of = |gid| PeerCred { gid, ..peer(stranger()) };
        assert!(policy.admits_of(&of(GROUP), || panic!("it is known already")));
        assert!(policy.admits_of(&of(1), || vec![2, GROUP, 3]));
        assert!(!policy.admits_of(&of(1), || vec![2, 3]));
        assert!(!policy.admits_of(&PeerCred { uid: sys::overflow_uid(), ..of(GROUP) }, || vec![GROUP]));
        // Groups without a name here are not one group.
        let nobodys = PeerPolicy::Group(sys::overflow_gid());
        assert!(!nobodys.admits_of(&of(sys::overflow_gid()), || vec![sys::overflow_gid()]));
    }

    #[test]
    fn the_own_user_is_heard_by_every_policy_and_others_by_those_that_admit_them() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let ours = ours.as_fd();
        let others = PeerPolicy::Users([stranger()].into());
        for policy in [PeerPolicy::SameUser, PeerPolicy::Root, PeerPolicy::Group(GROUP), others.clone()] {
            assert!(policy.hears(&peer(sys::effective_uid()), ours), "{policy:?}");
            assert_eq!(policy.hears(&peer(stranger()), ours), policy == others, "{policy:?}");
        }
        // The groups of this process, as the kernel names them.
        let us = sys::peer_cred(ours).unwrap();
        for group in sys::peer_groups(ours).unwrap().into_iter().filter(|group| sys::is_known_group(*group)) {
            assert!(PeerPolicy::Group(group).admits(&PeerCred { gid: GROUP, ..us }, ours), "{group}");
        }
    }

    #[test]
    fn every_policy_has_its_words() {
        for (words, policy) in [
            ("same", PeerPolicy::SameUser),
            ("root", PeerPolicy::Root),
            ("any", PeerPolicy::AnyUser),
            ("uid:7", PeerPolicy::Users([7].into())),
            ("uid:1, 2,0", PeerPolicy::Users([1, 2, 0].into())),
            ("gid:100", PeerPolicy::Group(100)),
        ] {
            assert_eq!(words.parse(), Ok(policy), "{words}");
        }
        for words in [
            "",
            "all",
            "Same",
            "uid",
            "uid:",
            "uid:1,",
            "uid:one",
            "uid:-1",
            "uid:4294967296",
            "gid:",
            "gid:1,2",
            "pid:1",
            "any:1",
        ] {
            let error = words.parse::<PeerPolicy>().unwrap_err();
            assert!(error.to_string().contains(&format!("{words:?}")), "{error}");
        }
    }

    #[test]
    fn those_are_visited_who_may_be_admitted() {
        assert_eq!(PeerPolicy::SameUser.visits(), Visits::Those(vec![]));
        assert_eq!(PeerPolicy::Users([3, 4].into()).visits(), Visits::Those(vec![3, 4]));
        assert_eq!(PeerPolicy::Group(5).visits(), Visits::Everybody);
    }
}
