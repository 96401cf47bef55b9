//! The two sides of the handshake, for one loopback-ism device.
//!
//! A side that has failed or ended stays so: every further step is an error, only a Decline can
//! still be made.

use std::{error, fmt};

use super::wire::{decline_version, unexpected};
use super::{
    Accept, Chid, ClcError, Confirm, Decline, Diagnosis, Dmb, Eid, FEATURE_EMULATED_ISM, FirstContact,
    FirstContactV21, Form, Gid, Message, OsType, Proposal, RELEASE, Terms, V2Extension,
};

/// The length of the Proposal that [`ClientHandshake::new`] makes.
pub const PROPOSAL_BYTES: usize = 224;

/// The length of an Accept or Confirm between two sides that both speak release 1.
pub const fn answer_bytes(first_contact: bool) -> usize {
    if first_contact { 130 } else { 78 }
}

/// This side's loopback-ism device.
#[derive(Clone, Debug)]
pub struct LocalDevice {
    /// The device's GID. Only a peer with the same one is on the same device.
    pub gid: Gid,
    /// The EID this side belongs to.
    pub eid: Eid,
    /// The host's name, told at first contact; what exceeds 32 bytes is not sent.
    pub host: String,
}

/// The server's answer as the client sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The server agrees.
    Accepted {
        /// The DMB in which the server receives.
        dmb: Dmb,
        /// The server's link group.
        linkid: u32,
        /// The server created that link group just now, and the client must do the same. If this is
        /// false and the client has no matching group, it declines with [`Diagnosis::SYNCERR`].
        first_contact: bool,
    },
    /// The server declines; nothing is to be answered.
    Declined(Diagnosis),
}

/// The client's last message as the server sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Confirmation {
    /// The handshake is complete.
    Confirmed {
        /// The DMB in which the client receives.
        dmb: Dmb,
        /// The client's link group.
        linkid: u32,
    },
    /// The client declines after all; nothing is to be answered.
    Declined(Diagnosis),
}

/// Why a Proposal leads to nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The reason: [`Diagnosis::PEERDECL`] if the peer sent a Decline instead of a Proposal.
    pub diagnosis: Diagnosis,
    /// The Decline to send; empty if the peer declined, for a Decline is not answered.
    pub decline: Vec<u8>,
    /// What was wrong with the message, unless it was well-formed.
    pub error: Option<ClcError>,
    /// The reason in the peer's own Decline.
    pub peer: Option<Diagnosis>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.peer, &self.error) {
            (Some(peer), _) => write!(f, "{}: {peer}", self.diagnosis),
            (None, Some(error)) => write!(f, "{}: {error}", self.diagnosis),
            (None, None) => write!(f, "{}", self.diagnosis),
        }
    }
}

impl error::Error for Refusal {}

/// What the two sides have agreed on.
#[derive(Clone, Copy, Debug)]
struct Agreement {
    release: u8,
    features: u16,
    first_contact: bool,
}

#[derive(Clone, Copy, Debug)]
enum ClientState {
    Proposed,
    Accepted(Agreement),
    Ended,
}

/// The client's side: Proposal out, answer in, Confirm out.
#[derive(Clone, Debug)]
pub struct ClientHandshake {
    device: LocalDevice,
    state: ClientState,
    /// Version 2 until the server has answered, then the server's.
    decline_version: u8,
}

impl ClientHandshake {
    /// Begins a handshake; the bytes are the Proposal to send.
    pub fn new(device: &LocalDevice) -> (Self, Vec<u8>) {
        let proposal = Proposal::new(Chid::LOOPBACK, &device.gid, device.eid).encode();
        (Self { device: device.clone(), state: ClientState::Proposed, decline_version: 2 }, proposal)
    }

    /// Takes the server's answer, one whole message.
    pub fn on_answer(&mut self, bytes: &[u8]) -> Result<Answer, ClcError> {
        let ClientState::Proposed = std::mem::replace(&mut self.state, ClientState::Ended) else {
            return Err(out_of_order("answer", "only the first message after the Proposal"));
        };
        self.decline_version = decline_version(bytes).unwrap_or(2);
        let terms = match Message::decode(bytes)? {
            Message::Decline(decline) => return Ok(Answer::Declined(decline.diagnosis)),
            Message::Accept(Accept(terms)) => terms,
            other => return Err(unexpected("Accept or Decline", other.kind())),
        };
        let first_contact = check_terms("Accept", &terms, &self.device)?;
        let agreement = match first_contact {
            Some(contact) if contact.release > RELEASE => {
                let (expected, found) =
                    (format!("at most {RELEASE}, as proposed"), contact.release.to_string());
                let diagnosis = Diagnosis::RELEASEERR;
                return Err(ClcError::new("Accept", "release", Some(75), expected, found, diagnosis));
            }
            Some(contact) => Agreement {
                release: contact.release,
                features: contact.v21.features & FEATURE_EMULATED_ISM,
                first_contact: true,
            },
            // The release of an existing link group was agreed on at its own first contact.
            None => Agreement { release: RELEASE, features: FEATURE_EMULATED_ISM, first_contact: false },
        };
        self.state = ClientState::Accepted(agreement);
        Ok(Answer::Accepted {
            dmb: terms.dmb(),
            linkid: terms.linkid,
            first_contact: agreement.first_contact,
        })
    }

    /// Makes the Confirm with the DMB in which the client receives. The handshake is then complete.
    pub fn confirm(&mut self, dmb: Dmb, linkid: u32) -> Result<Vec<u8>, ClcError> {
        match std::mem::replace(&mut self.state, ClientState::Ended) {
            ClientState::Accepted(agreement) => {
                Ok(Confirm(terms(&self.device, dmb, linkid, agreement)).encode())
            }
            _ => Err(out_of_order("Confirm", "one Confirm, after an Accept")),
        }
    }

    /// Makes a Decline and ends the handshake, at any step.
    pub fn decline(&mut self, diagnosis: Diagnosis) -> Vec<u8> {
        self.state = ClientState::Ended;
        Decline::new(self.decline_version, diagnosis).encode()
    }
}

#[derive(Clone, Copy, Debug)]
enum ServerState {
    Proposed { release: u8, features: u16 },
    Accepted(Agreement),
    Ended,
}

/// The server's side: Proposal in, Accept out, Confirm in.
#[derive(Clone, Debug)]
pub struct ServerHandshake {
    device: LocalDevice,
    state: ServerState,
    decline_version: u8,
}

impl ServerHandshake {
    /// Takes a client's Proposal, one whole message.
    pub fn on_proposal(device: &LocalDevice, bytes: &[u8]) -> Result<Self, Refusal> {
        let decline_version = decline_version(bytes).unwrap_or(2);
        let refuse = |diagnosis, error| Refusal {
            diagnosis,
            decline: Decline::new(decline_version, diagnosis).encode(),
            error,
            peer: None,
        };
        let proposal = match Message::decode(bytes) {
            Ok(Message::Proposal(proposal)) => proposal,
            Ok(Message::Decline(decline)) => {
                let (diagnosis, decline, peer) = (Diagnosis::PEERDECL, Vec::new(), Some(decline.diagnosis));
                return Err(Refusal { diagnosis, decline, error: None, peer });
            }
            Ok(other) => {
                let error = unexpected("Proposal or Decline", other.kind());
                return Err(refuse(error.diagnosis(), Some(error)));
            }
            Err(error) => return Err(refuse(error.diagnosis(), Some(error))),
        };
        let offer = find_offer(device, &proposal).map_err(|diagnosis| refuse(diagnosis, None))?;
        let state = ServerState::Proposed {
            release: offer.release.min(RELEASE),
            features: offer.features & FEATURE_EMULATED_ISM,
        };
        Ok(Self { device: device.clone(), state, decline_version })
    }

    /// Makes the Accept with the DMB in which the server receives. `first_contact` says that
    /// `linkid` was created for this connection.
    pub fn accept(&mut self, dmb: Dmb, linkid: u32, first_contact: bool) -> Result<Vec<u8>, ClcError> {
        match std::mem::replace(&mut self.state, ServerState::Ended) {
            ServerState::Proposed { release, features } => {
                let agreement = Agreement { release, features, first_contact };
                self.state = ServerState::Accepted(agreement);
                Ok(Accept(terms(&self.device, dmb, linkid, agreement)).encode())
            }
            _ => Err(out_of_order("Accept", "one Accept, after a Proposal")),
        }
    }

    /// Takes the client's answer to the Accept, one whole message.
    pub fn on_confirm(&mut self, bytes: &[u8]) -> Result<Confirmation, ClcError> {
        let ServerState::Accepted(agreement) = std::mem::replace(&mut self.state, ServerState::Ended) else {
            return Err(out_of_order("Confirm", "one Confirm, after the Accept"));
        };
        let terms = match Message::decode(bytes)? {
            Message::Decline(decline) => return Ok(Confirmation::Declined(decline.diagnosis)),
            Message::Confirm(Confirm(terms)) => terms,
            other => return Err(unexpected("Confirm or Decline", other.kind())),
        };
        let first_contact = check_terms("Confirm", &terms, &self.device)?;
        let expected = agreement.first_contact.then_some(agreement.release);
        let found = first_contact.map(|contact| contact.release);
        if expected != found {
            let words = |release: Option<u8>| match release {
                Some(release) => format!("release {release} at first contact"),
                None => "no first contact".into(),
            };
            // Linux compares at first contact only; it takes no notice of a first contact it did
            // not ask for.
            let (diagnosis, offset) =
                if expected.is_some() { (Diagnosis::RELEASEERR, 75) } else { (Diagnosis::CNFERR, 7) };
            let (expected, found) = (words(expected), words(found));
            return Err(ClcError::new("Confirm", "release", Some(offset), expected, found, diagnosis));
        }
        Ok(Confirmation::Confirmed { dmb: terms.dmb(), linkid: terms.linkid })
    }

    /// Makes a Decline and ends the handshake, at any step.
    pub fn decline(&mut self, diagnosis: Diagnosis) -> Vec<u8> {
        self.state = ServerState::Ended;
        Decline::new(self.decline_version, diagnosis).encode()
    }
}

/// The version 2 offer that includes our device and our EID, or the diagnosis Linux gives for its
/// lack (`smc_listen_find_device` in `net/smc/af_smc.c`).
fn find_offer<'a>(device: &LocalDevice, proposal: &'a Proposal) -> Result<&'a V2Extension, Diagnosis> {
    let offers_rdma = proposal.v1.as_ref().is_some_and(|v1| v1.paths.has_rdma())
        || proposal.v2.as_ref().is_some_and(|v2| v2.paths().has_rdma());
    let no_device = if offers_rdma { Diagnosis::NOSMCDEV } else { Diagnosis::NOSMCDDEV };
    let offer = proposal.v2.as_ref().ok_or(no_device)?;
    let smcd = offer.smcd().ok_or(no_device)?;
    if offer.ueids.is_empty() && !offer.seid_valid {
        return Err(Diagnosis::NOUEID);
    }
    if !smcd.devices().any(|found| found == (Chid::LOOPBACK, device.gid)) {
        return Err(Diagnosis::NOSMCD2DEV);
    }
    // We have no system EID, so the peer's cannot match.
    if !offer.ueids.contains(&device.eid) {
        return Err(no_device);
    }
    Ok(offer)
}

/// Checks what both answers must repeat: version, device and EID, and the one element of a DMB that
/// exists here.
fn check_terms<'a>(
    subject: &'static str,
    terms: &'a Terms,
    device: &LocalDevice,
) -> Result<Option<&'a FirstContact>, ClcError> {
    let fault = |diagnosis, field, offset, expected: String, found: String| {
        Err(ClcError::new(subject, field, Some(offset), expected, found, diagnosis))
    };
    let (version, chid, eid, first_contact) = match &terms.form {
        Form::V1 { .. } => {
            return fault(Diagnosis::MODEUNSUPP, "version", 7, "2, as proposed".into(), "1".into());
        }
        Form::V2 { version, chid, eid, first_contact, .. } => (*version, *chid, *eid, first_contact.as_ref()),
    };
    if version != 2 {
        return fault(Diagnosis::VERSMISMAT, "version", 7, "2, as proposed".into(), version.to_string());
    }
    if chid != Chid::LOOPBACK {
        let expected = Chid::LOOPBACK.to_string();
        return fault(Diagnosis::NOSMCD2DEV, "CHID", 32, expected, chid.to_string());
    }
    if terms.gid() != device.gid {
        return fault(Diagnosis::NOSMCD2DEV, "GID", 8, device.gid.to_string(), terms.gid().to_string());
    }
    if eid != device.eid {
        return fault(Diagnosis::NOSMCDDEV, "EID", 34, device.eid.to_string(), eid.to_string());
    }
    if terms.dmbe_index != 0 {
        let found = terms.dmbe_index.to_string();
        return fault(Diagnosis::CNFERR, "DMBE index", 24, "0".into(), found);
    }
    Ok(first_contact)
}

fn terms(device: &LocalDevice, dmb: Dmb, linkid: u32, agreement: Agreement) -> Terms {
    let (gid, gid_ext) = device.gid.halves();
    let first_contact = agreement.first_contact.then(|| FirstContact {
        flags: 0,
        os: OsType::LINUX,
        host: padded(&device.host),
        release: agreement.release,
        v21: FirstContactV21 { features: agreement.features, ..FirstContactV21::default() },
    });
    Terms {
        gid,
        token: dmb.token,
        dmbe_index: 0,
        size_code: dmb.size_code(),
        linkid,
        form: Form::V2 { version: 2, chid: Chid::LOOPBACK, eid: device.eid, gid_ext, first_contact },
    }
}

/// A host name in its field, padded with blanks.
fn padded(host: &str) -> [u8; 32] {
    let mut field = [b' '; 32];
    field.iter_mut().zip(host.bytes()).for_each(|(to, from)| *to = from);
    field
}

fn out_of_order(field: &'static str, expected: &'static str) -> ClcError {
    ClcError::new("handshake", field, None, expected, "a call out of order", Diagnosis::INTERR)
}
