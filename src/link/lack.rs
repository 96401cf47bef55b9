//! What it means for a stream that a system call of ours failed: our own lack is told as ours.

use std::error::Error;
use std::io::{self, ErrorKind};

use rustix::io::Errno;

use crate::clc::Decline;
use crate::ism::device::AtPlace;
use crate::ism::sys::PeerCred;
use crate::link::message::Message;
use crate::peer::is_same_user;
use crate::transport::FallbackReason;

/// Why a stream stays on TCP after `error` of a system call that this end made for itself;
/// `otherwise` when the error tells nothing but that the call failed.
pub(crate) fn reason_of(error: &io::Error, otherwise: FallbackReason) -> FallbackReason {
    // Of a file in the device directory: that it is full, or not ours to write, is the directory's
    // matter.
    let mut at_place = false;
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        at_place |= error.is::<AtPlace>();
        cause = match error.downcast_ref::<io::Error>() {
            None => error.source(),
            Some(error) => match Errno::from_io_error(error) {
                Some(errno) => return of_errno(errno, at_place).unwrap_or(otherwise),
                // Its `source` would pass over what it is made of.
                None => error.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            },
        };
    }
    match error.kind() {
        ErrorKind::OutOfMemory => FallbackReason::Memory,
        ErrorKind::QuotaExceeded => FallbackReason::Limit,
        _ => otherwise,
    }
}

/// The number of an offer that was never made: its REFUSE speaks of the whole link.
pub(crate) const NO_LINK: u64 = 0;

/// Says to the peer why there is no link, before it ends.
pub(crate) fn no_link(reason: FallbackReason) -> Message {
    Message::Refuse { id: NO_LINK, clc: Decline::new(2, reason.diagnosis()).encode() }
}

/// The reason in a message of [`no_link`]; `None`: it is another one, or none.
pub(crate) fn why_no_link(message: &[u8]) -> Option<FallbackReason> {
    match Message::decode(message) {
        Ok(Message::Refuse { id: NO_LINK, clc }) => {
            Decline::decode(&clc).ok().map(|decline| FallbackReason::Declined(decline.diagnosis))
        }
        _ => None,
    }
}

/// What it means when that process hangs up without a word: whoever does not trust our user does
/// so.
pub(crate) fn silence_of(peer: &PeerCred) -> FallbackReason {
    if is_same_user(peer) { FallbackReason::LinkDown } else { FallbackReason::PeerPolicy }
}

fn of_errno(errno: Errno, at_place: bool) -> Option<FallbackReason> {
    match errno {
        Errno::MFILE | Errno::NFILE | Errno::TOOMANYREFS => Some(FallbackReason::Descriptors),
        Errno::NOMEM | Errno::NOBUFS => Some(FallbackReason::Memory),
        // A filter of the process answers with whatever it was told to; these are the usual ones. A
        // kernel without the call, or without that kind of socket, answers likewise.
        Errno::NOSYS | Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT => Some(FallbackReason::Denied),
        _ if at_place => None,
        // Of a memory file, where there is no other space: the host's, or what a limit leaves (of
        // the size of files, and of locked memory, for which mmap says AGAIN).
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG | Errno::AGAIN => Some(FallbackReason::Memory),
        Errno::PERM | Errno::ACCESS => Some(FallbackReason::Denied),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FallbackReason::{Denied, Descriptors, Limit, Memory, NoDevice, Unproved};

    #[test]
    fn our_own_lack_is_named() {
        let table = [
            (Errno::MFILE, Descriptors, Descriptors),
            (Errno::NFILE, Descriptors, Descriptors),
            (Errno::TOOMANYREFS, Descriptors, Descriptors),
            (Errno::NOMEM, Memory, Memory),
            (Errno::NOBUFS, Memory, Memory),
            (Errno::NOSPC, Memory, NoDevice),
            (Errno::DQUOT, Memory, NoDevice),
            (Errno::FBIG, Memory, NoDevice),
            (Errno::AGAIN, Memory, NoDevice),
            (Errno::PERM, Denied, NoDevice),
            (Errno::ACCESS, Denied, NoDevice),
            (Errno::NOSYS, Denied, Denied),
            (Errno::AFNOSUPPORT, Denied, Denied),
            (Errno::ROFS, NoDevice, NoDevice),
            (Errno::NOENT, NoDevice, NoDevice),
        ];
        for (errno, plain, at_place) in table {
            assert_eq!(reason_of(&errno.into(), NoDevice), plain, "{errno:?}");
            let error = AtPlace::explain(errno, "somewhere");
            assert_eq!(reason_of(&error, NoDevice), at_place, "{error}");
            // Also when it was explained twice.
            assert_eq!(reason_of(&AtPlace::explain(error, "there"), NoDevice), at_place, "{errno:?}");
        }
    }

    #[test]
    fn errors_without_a_number_tell_by_their_kind() {
        for (kind, reason) in [
            (ErrorKind::OutOfMemory, Memory),
            (ErrorKind::QuotaExceeded, Limit),
            (ErrorKind::Unsupported, Unproved),
            (ErrorKind::PermissionDenied, Unproved),
        ] {
            assert_eq!(reason_of(&io::Error::new(kind, "words"), Unproved), reason, "{kind:?}");
        }
    }
}
