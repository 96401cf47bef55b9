//! What a stream runs on, and why.

use std::fmt;

use crate::clc::{Diagnosis, Gid};

/// What the bytes of a stream travel through at this moment.
///
/// Its `Display` is one word that tools can rely on: `loopback-ism` or `tcp`.
///
/// ```
/// use tokio_smc::{FallbackReason, Transport};
/// assert_eq!(Transport::Tcp(FallbackReason::NoSmcListener).to_string(), "tcp");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// Both directions move through shared-memory rings of the loopback-ism device.
    LoopbackIsm(LoopbackIsm),
    /// At least one direction still moves through TCP, for this reason.
    Tcp(FallbackReason),
}

/// Where the bytes of an upgraded stream move. It stays the same for the rest of the stream's life.
///
#[cfg_attr(feature = "tokio", doc = "```")]
#[cfg_attr(not(feature = "tokio"), doc = "```text")]
/// use tokio_smc::{Config, SmcListener, SmcStream, Transport, UpgradePolicy};
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # let listener = SmcListener::bind("127.0.0.1:0").await?;
/// let config = Config::new().upgrade_policy(UpgradePolicy::Manual);
/// let stream = SmcStream::connect_with(listener.local_addr()?, &config).await?;
/// # let (_server, _) = listener.accept().await?;
/// if let Transport::LoopbackIsm(ism) = stream.upgrade().await {
///     println!("the peer may be {} bytes ahead; {ism}", ism.receive_window);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct LoopbackIsm {
    /// The loopback-ism device: equal for all processes that share a device directory.
    pub device: Gid,
    /// The link (link group) that carries the stream: a number that both ends know it by.
    pub link: u64,
    /// Bytes of the largest segment of the DMB that this end reads from: how far the peer may be
    /// ahead.
    pub receive_window: usize,
    /// Bytes of the largest segment of the peer's DMB, which this end writes to.
    pub send_window: usize,
}

impl fmt::Display for LoopbackIsm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LoopbackIsm { device, link, receive_window, send_window } = self;
        write!(f, "device {device}, link {link:016x}, window {receive_window} in, {send_window} out")
    }
}

/// Bytes that the application has read from and written to a stream, over each transport.
///
#[cfg_attr(feature = "tokio", doc = "```")]
#[cfg_attr(not(feature = "tokio"), doc = "```text")]
/// use tokio::io::AsyncWriteExt;
/// # use tokio_smc::{SmcListener, SmcStream};
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # let listener = SmcListener::bind("127.0.0.1:0").await?;
/// # let mut stream = SmcStream::connect(listener.local_addr()?).await?;
/// stream.write_all(b"ping").await?;
/// let counters = stream.counters();
/// assert_eq!(counters.tcp_bytes_written + counters.ism_bytes_written, 4);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Counters {
    /// Read from TCP.
    pub tcp_bytes_read: u64,
    /// Written to TCP.
    pub tcp_bytes_written: u64,
    /// Read from this end's DMB.
    pub ism_bytes_read: u64,
    /// Written to the peer's DMB.
    pub ism_bytes_written: u64,
}

/// Whose process holds the other end of an upgraded stream; as tokio's `net::unix::UCred`.
///
#[cfg_attr(feature = "tokio", doc = "```")]
#[cfg_attr(not(feature = "tokio"), doc = "```text")]
/// use tokio_smc::{Config, SmcListener, SmcStream, UpgradePolicy};
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # let listener = SmcListener::bind("127.0.0.1:0").await?;
/// let config = Config::new().upgrade_policy(UpgradePolicy::Manual);
/// let stream = SmcStream::connect_with(listener.local_addr()?, &config).await?;
/// # let (_server, _) = listener.accept().await?;
/// if stream.upgrade().await.is_loopback_ism() {
///     let peer = stream.peer_cred()?;
///     // Both ends of this example are in one process.
///     assert_eq!(peer.pid(), i32::try_from(std::process::id()).ok());
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UCred {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) pid: Option<i32>,
}

impl UCred {
    /// The effective user id, as this process's user namespace maps it.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The effective group id, as this process's user namespace maps it.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// The process id, unless the process lives in a pid namespace that this one can not look into.
    pub fn pid(&self) -> Option<i32> {
        self.pid
    }
}

impl Transport {
    /// Do both directions move through shared memory?
    pub fn is_loopback_ism(&self) -> bool {
        matches!(self, Transport::LoopbackIsm(_))
    }

    /// The reason for TCP, or `None` on loopback-ism.
    pub fn fallback_reason(&self) -> Option<FallbackReason> {
        match self {
            Transport::LoopbackIsm(_) => None,
            Transport::Tcp(reason) => Some(*reason),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::LoopbackIsm(_) => "loopback-ism",
            Transport::Tcp(_) => "tcp",
        })
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $diagnosis:ident, $words:literal;)+) => {
        /// Why a stream runs on TCP.
        ///
        /// Each reason maps to one of SMC's diagnosis codes (Linux `net/smc/smc_clc.h`,
        /// `SMC_CLC_DECL_*`), which its `Display` shows in hexadecimal after the words. As the
        /// source of an `io::Error` it says why there is no upgrade where one is needed.
        ///
        /// ```
        /// use tokio_smc::{Diagnosis, FallbackReason};
        /// let reason = FallbackReason::NoSmcListener;
        /// assert_eq!(reason.diagnosis(), Diagnosis::PEERNOSMC);
        /// assert_eq!(reason.to_string(), "the peer does not speak SMC on this host (0x03010000)");
        /// let error = std::io::Error::from(reason);
        /// assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
        /// ```
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

            /// Every reason but [`FallbackReason::Declined`].
            pub(crate) const OWN: &'static [FallbackReason] = &[$(FallbackReason::$name),+];

            /// Its place in [`FallbackReason::OWN`].
            pub(crate) fn number(&self) -> Option<usize> {
                enum Number {
                    $($name),+
                }
                match self {
                    $(FallbackReason::$name => Some(Number::$name as usize),)+
                    FallbackReason::Declined(_) => None,
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
    /// The peer is in another network namespace, and there is nothing to prove by that it holds the
    /// other end of this very connection.
    NetworkNamespace = DIFFPREFIX, "the peer is in another network namespace";
    /// Nobody in the network namespaces of this device has accepted a connection from this stream's
    /// address: it leads to another host, or through a proxy or source NAT.
    Elsewhere = DIFFPREFIX, "the peer is on another host, or behind a proxy or source nat";
    /// The device directory can not be used.
    NoDevice = NOSMCDDEV, "the device directory can not be used";
    /// The peer belongs to a user that the peer policy does not admit.
    PeerPolicy = CNFERR, "the peer policy does not admit the peer's user";
    /// The kernel did not confirm that the peer holds the other end of this connection.
    Unproved = NOSMCD2DEV, "the peer could not be proved to hold the other end";
    /// The kernel does not show this end the connection's sequence number, by which the two ends
    /// prove that they hold it: `net.core.tstamp_allow_data` is 0, SYN cookies, or an application
    /// that reads the socket's error queue.
    NoSequence = NOSMCD2DEV, "the kernel does not show the connection's sequence number";
    /// This end has written already, and its next write is to show the connection's sequence
    /// number, by which the two ends prove that they hold it. The upgrade goes on then.
    NextWrite = PEERNOSMC, "the next write goes on with the upgrade";
    /// The socket has a property or an option that shared memory can not honour.
    SocketOption = OPTUNSUPP, "the socket has an option that shared memory can not honour";
    /// The kernel counts other bytes than passed through the stream: urgent data, `SockRef`,
    /// splice(2) or a BPF program took some past it; or its counters disagree with each other.
    Positions = SYNCERR, "bytes went past the stream, or the kernel's byte counters do not add up";
    /// One direction was shut down before the upgrade.
    HalfClosed = CNFERR, "a direction was shut down before the upgrade";
    /// The application took hold of the TCP socket itself (`into_std`, `try_io`, `async_io`).
    Pinned = OPTUNSUPP, "the application uses the tcp socket itself";
    /// There is no memory for a DMB.
    Memory = MEM, "no memory for a DMB";
    /// This process, or the host, has no file descriptor left.
    Descriptors = MEM, "no file descriptor is left";
    /// The system denies a call that shared memory needs, or has no such call: a seccomp filter, a
    /// sandbox, an old kernel.
    Denied = NOSMCDEV, "the system denies a call that shared memory needs";
    /// A limit on links, connections or offers is reached.
    Limit = MAX_DMB, "a limit on links or connections is reached";
    /// The peer has not answered for 5 seconds: its process is stopped or busy, or its application
    /// has not accepted the connection yet. The upgrade goes on in the background and may still
    /// come.
    NoAnswer = TIMEOUT_CL, "the peer has not answered yet";
    /// The link to the peer's endpoint broke before the upgrade was done.
    LinkDown = NOACTLINK, "the link to the peer's endpoint broke";
    /// The peer broke the protocol of the link.
    Protocol = SYNCERR, "the peer broke the protocol";
    /// A task of this crate, which serves the stream's endpoint or link, has panicked. The next
    /// connection has new ones.
    Failed = INTERR, "a task that serves shared memory has failed";
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
