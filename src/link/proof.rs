//! The proof that a peer holds the other end of this very TCP connection (docs/protocol.md,
//! "Proof").

use crate::ism::sys::{self, PeerCred};
use crate::link::lack::reason_of;
use crate::link::message::{Subject, Tuple};
use crate::link::stream::LinkedStream;
use crate::transport::FallbackReason;

/// What a peer gives us to prove that it holds the other end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Evidence {
    /// The number that the kernel has given to the peer's socket (`SO_COOKIE`), which it tells us
    /// of, too.
    Cookie(u64),
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

/// Proves that `peer` holds the other end of this stream's connection; returns our end of it.
///
/// The order makes the proof exact: our own end is known, then the kernel is asked about theirs,
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
    let before = match ours {
        Ours::Told(subject) => subject,
        Ours::Described { theirs } => {
            let subject = stream.subject()?;
            same_place(&subject, &theirs)?;
            subject
        }
    };
    match evidence {
        Evidence::Cookie(cookie) => other_end_is(&before, cookie, peer.uid)?,
    }
    let after = stream.subject()?;
    if after == before { Ok(after) } else { Err(FallbackReason::Unproved) }
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

/// Is our end of the connection that a client describes still to be accepted? A kernel that does
/// not answer, or not for that network namespace, would prove nothing later either.
pub(crate) fn waits_for_accept(theirs: &Subject) -> Result<(), FallbackReason> {
    let ours = theirs.tuple.mirrored();
    match sys::waits_for_accept(ours.local, ours.remote, theirs.network_namespace) {
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

/// May the connection that the peer describes be ours at all?
pub(crate) fn same_place(ours: &Subject, theirs: &Subject) -> Result<(), FallbackReason> {
    if ours.network_namespace != theirs.network_namespace {
        return Err(FallbackReason::NetworkNamespace);
    }
    if ours.tuple != theirs.tuple.mirrored() {
        return Err(FallbackReason::Unproved);
    }
    Ok(())
}
