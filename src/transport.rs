//! What a stream runs on, and why.

use std::fmt;

use crate::clc::Diagnosis;

/// What the bytes of a stream travel through at this moment.
///
/// Its `Display` is one word that tools can rely on: `loopback-ism` or `tcp`.
///
/// ```
/// use tokio_smc::{FallbackReason, Transport};
/// assert_eq!(Transport::LoopbackIsm.to_string(), "loopback-ism");
/// assert_eq!(Transport::Tcp(FallbackReason::NoSmcListener).to_string(), "tcp");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// Both directions move through shared-memory rings of the loopback-ism device.
    LoopbackIsm,
    /// At least one direction still moves through TCP, for this reason.
    Tcp(FallbackReason),
}

impl Transport {
    /// The reason for TCP, or `None` on loopback-ism.
    pub fn fallback_reason(&self) -> Option<FallbackReason> {
        match self {
            Transport::LoopbackIsm => None,
            Transport::Tcp(reason) => Some(*reason),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::LoopbackIsm => "loopback-ism",
            Transport::Tcp(_) => "tcp",
        })
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $diagnosis:ident, $words:literal;)+) => {
        /// Why a stream runs on TCP.
        ///
        /// Each reason maps to one of SMC's diagnosis codes (Linux `net/smc/smc_clc.h`, `SMC_CLC_DECL_*`), which
        /// its `Display` shows in hexadecimal after the words.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum FallbackReason {
            $($(#[doc = $doc])+ $name,)+
            /// The peer declined the upgrade with this diagnosis.
            Declined(Diagnosis),
        }

        impl FallbackReason {
            /// SMC's diagnosis code for this reason.
            pub fn diagnosis(&self) -> Diagnosis {
                match self {
                    $(FallbackReason::$name => Diagnosis::$diagnosis,)+
                    FallbackReason::Declined(diagnosis) => *diagnosis,
                }
            }

            fn words(&self) -> &'static str {
                match self {
                    $(FallbackReason::$name => $words,)+
                    FallbackReason::Declined(_) => "the peer declined",
                }
            }
        }
    };
}

reasons! {
    /// Nothing has asked for an upgrade yet: the connection is young, or its policy is `Manual`.
    NotYet = PEERNOSMC, "no upgrade was asked for yet";
    /// The upgrade is being agreed on, or one direction has still to reach its switch.
    InProgress = PEERNOSMC, "the upgrade is under way";
    /// `SMC_LO=off` is set.
    SwitchedOff = CNFERR, "switched off by SMC_LO=off";
    /// The upgrade policy is `Never`.
    Policy = CNFERR, "the upgrade policy is never";
    /// No SmcListener of this device listens on the peer's port.
    NoSmcListener = PEERNOSMC, "the peer does not speak SMC on this host";
    /// The peer's address belongs to no local listener, is link-local, or is the stream's own.
    Address = CNFERR, "the address can not be upgraded";
    /// The connection crosses network namespaces.
    NetworkNamespace = NOSMCD2DEV, "the peer is in another network namespace";
    /// The device directory can not be used.
    NoDevice = NOSMCDDEV, "the device directory can not be used";
    /// The peer belongs to a user that the peer policy does not admit.
    PeerPolicy = CNFERR, "the peer policy does not admit the peer's user";
    /// The kernel did not confirm that the peer holds the other end of this connection.
    Unproved = NOSMCD2DEV, "the peer could not be proved to hold the other end";
    /// The socket has a property or an option that shared memory can not honour.
    SocketOption = OPTUNSUPP, "the socket has an option that shared memory can not honour";
    /// The kernel's byte counters disagree with each other.
    Positions = SYNCERR, "the kernel's byte counters do not add up";
    /// One direction was shut down before the upgrade.
    HalfClosed = CNFERR, "a direction was shut down before the upgrade";
    /// The application took hold of the TCP socket itself (`into_std`, `try_io`, `async_io`).
    Pinned = OPTUNSUPP, "the application uses the tcp socket itself";
    /// There is no memory for a DMB.
    Memory = MEM, "no memory for a DMB";
    /// A limit on links, connections or offers is reached.
    Limit = MAX_DMB, "a limit on links or connections is reached";
    /// The link to the peer's endpoint broke before the upgrade was done.
    LinkDown = NOACTLINK, "the link to the peer's endpoint broke";
    /// The peer broke the protocol of the link.
    Protocol = SYNCERR, "the peer broke the protocol";
    /// The runtime of the stream has no I/O driver or is being shut down.
    NoRuntime = INTERR, "the runtime of the stream is gone";
}

impl fmt::Display for FallbackReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FallbackReason::Declined(diagnosis) => write!(f, "{}: {diagnosis}", self.words()),
            _ => write!(f, "{} (0x{:08x})", self.words(), self.diagnosis().code()),
        }
    }
}

impl std::error::Error for FallbackReason {}

impl From<FallbackReason> for std::io::Error {
    fn from(reason: FallbackReason) -> Self {
        std::io::Error::new(std::io::ErrorKind::Unsupported, reason)
    }
}
