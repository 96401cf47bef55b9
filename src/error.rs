//! Whose fault it was that a stream failed: what an `io::Error` of this crate carries as its
//! source.

use std::{error, fmt, io};

use crate::transport::UCred;

/// Why a stream failed, and whose fault it was.
///
/// The methods of a stream answer as TCP would: an [`io::Error`] of the same
/// [`kind`](io::Error::kind). Where the error is about the peer, the link to it or this crate
/// itself, and not the kernel's, this is what [`io::Error::get_ref`] returns. A connection that was
/// never upgraded has the kernel's errors only, besides [`SmcError::Closed`]; why there is no
/// upgrade says [`FallbackReason`](crate::FallbackReason).
///
/// ```
/// use tokio_smc::SmcError;
///
/// /// Is it worth while to connect again?
/// fn may_try_again(error: &std::io::Error) -> bool {
///     match error.get_ref().and_then(|source| source.downcast_ref::<SmcError>()) {
///         Some(SmcError::PeerMisbehaved(how)) => {
///             eprintln!("{how}");
///             false
///         }
///         Some(SmcError::PeerClosed | SmcError::PeerGone | SmcError::OwnFailure(_)) => true,
///         _ => false,
///     }
/// }
/// # let error = std::io::Error::new(std::io::ErrorKind::ConnectionReset, SmcError::PeerGone);
/// # assert!(may_try_again(&error));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SmcError {
    /// The peer's fault: it broke a rule of shared memory or of the link. Every stream of that link
    /// that had left TCP is reset; nothing else is touched.
    PeerMisbehaved(PeerMisbehaved),
    /// The other end has closed or reset the connection: its application with bytes unread or while
    /// more were on their way, which TCP tells by a reset, too; or its side of the link, after a
    /// fault that it saw and this end did not.
    PeerClosed,
    /// The process at the other end, or its runtime, ended before it had read everything.
    PeerGone,
    /// Nobody's fault that is known: TCP carried other bytes than both ends agreed on when they
    /// left it, so that nobody can put them in order with those in shared memory. Somebody reads or
    /// writes past the stream: `SockRef`, splice(2), a BPF program, another process with the same
    /// socket.
    OutOfStep,
    /// A limit that guards this process was hit on the link to the peer.
    Limit(Box<str>),
    /// This crate's own fault, in this process: a task that serves the link has panicked, or a
    /// system call failed that has to succeed.
    OwnFailure(Box<str>),
    /// The runtime that drives the stream has been shut down.
    RuntimeGone,
    /// This operation (its name) needs the TCP socket, and the stream has moved to shared memory.
    Upgraded(Box<str>),
    /// This end has shut its sending direction down.
    ShutDown,
    /// This end has closed the stream.
    Closed,
}

/// Which rule a peer has broken, and who it is.
///
/// ```
/// use tokio_smc::SmcError;
///
/// fn report(error: &std::io::Error) -> Option<String> {
///     let source = error.get_ref()?.downcast_ref::<SmcError>()?;
///     let SmcError::PeerMisbehaved(how) = source else { return None };
///     Some(format!("process {:?} of user {}: {}", how.peer().pid(), how.peer().uid(), how.rule()))
/// }
/// # assert_eq!(report(&std::io::ErrorKind::ConnectionReset.into()), None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerMisbehaved {
    peer: UCred,
    rule: Box<str>,
}

impl PeerMisbehaved {
    /// Whose process it is.
    pub fn peer(&self) -> UCred {
        self.peer
    }

    /// What it did, in words.
    pub fn rule(&self) -> &str {
        &self.rule
    }
}

impl SmcError {
    /// The peer has broken `rule`.
    pub(crate) fn misbehaved(peer: UCred, rule: impl fmt::Display) -> SmcError {
        SmcError::PeerMisbehaved(PeerMisbehaved { peer, rule: rule.to_string().into() })
    }

    /// The error of the socket surface that this is the source of.
    #[cold]
    #[inline(never)]
    pub(crate) fn of(self, kind: io::ErrorKind) -> io::Error {
        io::Error::new(kind, self)
    }
}

impl fmt::Display for PeerMisbehaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PeerMisbehaved { peer, rule } = self;
        match peer.pid {
            Some(pid) => write!(f, "process {pid} of user {}", peer.uid)?,
            None => write!(f, "a process of user {}", peer.uid)?,
        }
        write!(
            f,
            " broke the rules of shared memory: {rule}; its link has ended (is it another version of this crate, or does \
             something else write to its memory?)"
        )
    }
}

impl fmt::Display for SmcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SmcError::PeerMisbehaved(how) => how.fmt(f),
            SmcError::PeerClosed => f.write_str("the other end has closed or reset the connection before it read everything"),
            SmcError::PeerGone => f.write_str("the peer's process ended before it read everything"),
            SmcError::OutOfStep => f.write_str(
                "TCP carried other bytes than both ends agreed on when they moved to shared memory; let nothing read or \
                 write past the stream, or keep it on TCP (UpgradePolicy::Never)",
            ),
            SmcError::Limit(what) => write!(f, "the link to the peer hit a limit: {what}"),
            SmcError::OwnFailure(what) => write!(f, "shared memory failed in this process: {what}; connect again"),
            SmcError::RuntimeGone => f.write_str("the runtime that drives this stream has been shut down"),
            SmcError::Upgraded(what) => write!(
                f,
                "{what} needs the TCP socket, but this stream has moved to shared memory; connect or bind it with \
                 UpgradePolicy::Manual or Never (SMC_LO_UPGRADE=manual) to keep it on TCP"
            ),
            SmcError::ShutDown => f.write_str("this end has shut its sending direction down"),
            SmcError::Closed => f.write_str("this stream has been closed"),
        }
    }
}

impl error::Error for PeerMisbehaved {}

impl error::Error for SmcError {}
