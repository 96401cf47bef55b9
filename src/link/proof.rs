//! The proof that a peer holds the other end of this very TCP connection (docs/protocol.md,
//! "Proof").

mod exchange;

#[cfg(any(feature = "tokio", feature = "blocking"))]
use std::os::fd::BorrowedFd;

use crate::ism::sys::{self, PeerCred};
use crate::link::lack::reason_of;
use crate::link::message::{Destination, Subject, Tuple};
use crate::link::stream::LinkedStream;
use crate::transport::FallbackReason;

pub(crate) use exchange::{Bound, Commitment, Exchange, How, Part, Reveal, Secret};

/// What a peer gives us to prove that it holds the other end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Evidence {
    /// The number that the kernel has given to the peer's socket (`SO_COOKIE`), which it tells us
    /// of, too. It tells everybody: so a peer is told from an honest mistake, and no more.
    Cookie(u64),
    /// The client's initial sequence number, to which the peer has committed itself and which it
    /// reveals later. The cookie is a second look, where the kernel lets us have one: not into
    /// another network namespace.
    Sequence { cookie: Option<u64> },
}

/// In MATCH: the two ends are in different network namespaces. (No socket has it.)
pub(crate) const NO_COOKIE: u64 = 0;

impl Evidence {
    /// Of a peer that tells its cookie, and perhaps has committed itself to the number.
    pub(crate) fn new(cookie: u64, committed: bool) -> Self {
        if committed {
            Evidence::Sequence { cookie: (cookie != NO_COOKIE).then_some(cookie) }
        } else {
            Evidence::Cookie(cookie)
        }
    }
}

/// Our end of the connection, as far as it is known when the peer is to prove that it holds the
/// other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ours {
    /// C: what OFFER has told the server.
    Told(Subject),
    /// S: the client has described its own end.
    Described { theirs: Subject },
}

/// What this end, as the client of a connection, can prove it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Possession {
    /// Nothing was written yet: there was no packet to see the number in.
    Unwritten,
    /// The connection's initial sequence number.
    Sequence(u32),
    /// The next write may show it.
    WithNextWrite,
}

/// Proofs that were wrong after which a server takes no more for that connection: nobody may guess
/// for long. Who holds the connection is never wrong; who is, with the same addresses in another
/// network, may be.
pub(crate) const MOST_FAILURES: u32 = 3;
/// READYs of a client: a server that is none sees in each whether it has guessed, and there may be
/// others to ask.
pub(crate) const MOST_ATTEMPTS: u32 = 3;

/// Proves that `peer` holds the other end of this stream's connection, as far as that can be before
/// it reveals anything; returns our end of it.
///
/// The order makes the look exact: our own end is known, then the kernel is asked about theirs,
/// then ours is looked at again. Two different sockets can not have held these two ends at the same
/// time.
///
/// # Errors
///
/// Why this stream can not be upgraded with that peer.
pub(crate) fn prove(
    stream: &dyn LinkedStream,
    ours: Ours,
    evidence: Evidence,
    peer: &PeerCred,
) -> Result<Subject, FallbackReason> {
    let (before, is_here) = match ours {
        Ours::Told(subject) => (subject, true),
        Ours::Described { theirs } => {
            let subject = stream.subject()?;
            may_be_same(&subject, &theirs)?;
            (subject, subject.network_namespace == theirs.network_namespace)
        }
    };
    match evidence {
        // Nobody has one there that we could look at.
        Evidence::Cookie(_) if !is_here => return Err(FallbackReason::NetworkNamespace),
        Evidence::Cookie(cookie) => other_end_is(&before, cookie, peer.uid)?,
        Evidence::Sequence { cookie: Some(cookie) } if is_here => {
            // A kernel that does not answer leaves it to the sequence number.
            if let Err(FallbackReason::Unproved) = other_end_is(&before, cookie, peer.uid) {
                return Err(FallbackReason::Unproved);
            }
        }
        Evidence::Sequence { .. } => {}
    }
    still_is(stream, &before)?;
    Ok(before)
}

/// Is our end of the connection what it was?
pub(crate) fn still_is(stream: &dyn LinkedStream, before: &Subject) -> Result<(), FallbackReason> {
    if stream.subject()? == *before { Ok(()) } else { Err(FallbackReason::Unproved) }
}

/// S: from now on this listener's connections keep what their clients prove themselves by.
#[cfg(any(feature = "tokio", feature = "blocking"))]
pub(crate) fn keep_proofs(listener: BorrowedFd<'_>) {
    if let Err(error) = sys::save_syns(listener) {
        crate::trace::debug!("the connections of a listener can not be proved: {error}");
    }
}

/// Asks the kernel whether the other end of the connection that is `ours` is the socket with
/// `cookie`, owned by `uid`.
fn other_end_is(ours: &Subject, cookie: u64, uid: u32) -> Result<(), FallbackReason> {
    let theirs = ours.tuple.mirrored();
    match sys::owner_of(theirs.local, theirs.remote, cookie, ours.network_namespace) {
        Ok(Some(socket)) if socket.state == sys::TcpState::Established && socket.uid == uid => Ok(()),
        Ok(_) => Err(FallbackReason::Unproved),
        Err(error) => {
            crate::trace::debug!("the kernel's socket diagnosis does not answer: {error}");
            Err(reason_of(&error, FallbackReason::Unproved))
        }
    }
}

/// Is our end of the connection that a client describes still to be accepted? Whose destination is
/// translated can not say which one that is: what is not accepted soon is somebody else's.
pub(crate) fn waits_for_accept(theirs: &Subject) -> Result<(), FallbackReason> {
    if theirs.destination == Destination::Translated {
        return Err(FallbackReason::Unproved);
    }
    let ours = theirs.tuple.mirrored();
    match sys::waits_for_accept(ours.local, ours.remote) {
        Ok(true) => Ok(()),
        Ok(false) => Err(FallbackReason::Unproved),
        Err(error) => Err(reason_of(&error, FallbackReason::Unproved)),
    }
}

/// Addresses that never match: a connection to itself, and addresses that are unique only per
/// interface.
pub(crate) fn suitable(tuple: Tuple) -> Result<(), FallbackReason> {
    let link_local = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V4(v4) => v4.is_link_local(),
        std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if tuple.local == tuple.remote || link_local(tuple.local.ip()) || link_local(tuple.remote.ip()) {
        return Err(FallbackReason::Address);
    }
    Ok(())
}

/// S: may the connection that the client describes be ours at all? In another network namespace its
/// addresses may be somebody else's: there it takes the number to know.
pub(crate) fn may_be_same(ours: &Subject, theirs: &Subject) -> Result<(), FallbackReason> {
    let mirrors = ours.tuple == theirs.tuple.mirrored();
    if ours.network_namespace == theirs.network_namespace {
        return if mirrors { Ok(()) } else { Err(FallbackReason::Unproved) };
    }
    // What a host says to itself does not leave its namespace.
    if ours.tuple.remote.ip().is_loopback() {
        return Err(FallbackReason::NetworkNamespace);
    }
    let fits = match theirs.destination {
        Destination::Own => mirrors,
        Destination::Translated => ours.tuple.remote == theirs.tuple.local,
    };
    if fits { Ok(()) } else { Err(FallbackReason::Unproved) }
}
