//! Any message, and the Decline.

use super::wire::{FLAG, Kind, Reader, SMCR, Writer};
use super::{Accept, ClcError, Confirm, Diagnosis, OsType, Proposal, Terms};

const V1_DECLINE_BYTES: usize = 28;
const V2_DECLINE_BYTES: usize = 44;

/// A CLC message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// What a client offers.
    Proposal(Proposal),
    /// The server's answer.
    Accept(Accept),
    /// The client's answer to that.
    Confirm(Confirm),
    /// The end of the handshake: the connection stays on TCP.
    Decline(Decline),
}

impl Message {
    /// The wire form.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Proposal(message) => message.encode(),
            Self::Accept(message) => message.encode(),
            Self::Confirm(message) => message.encode(),
            Self::Decline(message) => message.encode(),
        }
    }

    /// Reads the wire form of exactly one message.
    pub fn decode(bytes: &[u8]) -> Result<Self, ClcError> {
        let reader = Reader::open(bytes)?;
        match reader.header.kind {
            Kind::Proposal => Proposal::parse(&reader).map(Self::Proposal),
            Kind::Accept => Terms::parse(&reader).map(|terms| Self::Accept(Accept(terms))),
            Kind::Confirm => Terms::parse(&reader).map(|terms| Self::Confirm(Confirm(terms))),
            Kind::Decline => Decline::parse(&reader).map(Self::Decline),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Proposal(_) => Kind::Proposal,
            Self::Accept(_) => Kind::Accept,
            Self::Confirm(_) => Kind::Confirm,
            Self::Decline(_) => Kind::Decline,
        }
    }
}

/// The message of whoever gives up. It is never answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decline {
    /// The version, 4 bits. Version 1 has neither `os` nor `extra`.
    pub version: u8,
    /// The sender found the link groups out of step: the receiver must end its own.
    pub out_of_sync: bool,
    /// SMC-R: the sender's peer id.
    pub peer_id: [u8; 8],
    /// Why.
    pub diagnosis: Diagnosis,
    /// The sender's operating system, from version 2 on.
    pub os: OsType,
    /// Further diagnosis words, from version 2 on; Linux sends zeros.
    pub extra: [u32; 4],
}

impl Decline {
    /// The Decline Linux would send for `diagnosis`.
    pub fn new(version: u8, diagnosis: Diagnosis) -> Self {
        Self {
            version,
            out_of_sync: diagnosis == Diagnosis::SYNCERR,
            peer_id: [0; 8],
            diagnosis,
            os: if version == 1 { OsType::NONE } else { OsType::LINUX },
            extra: [0; 4],
        }
    }

    /// The wire form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(Kind::Decline, SMCR, self.version, if self.out_of_sync { FLAG } else { 0 });
        out.put(self.peer_id);
        out.put(self.diagnosis.code().to_be_bytes());
        if self.version == 1 {
            out.zeros(4);
        } else {
            out.put([self.os.0 << 4, 0, 0, 0]);
            self.extra.iter().for_each(|word| out.put(word.to_be_bytes()));
        }
        out.finish()
    }

    /// Reads the wire form of exactly one Decline.
    pub fn decode(bytes: &[u8]) -> Result<Self, ClcError> {
        Self::parse(&Reader::open_kind(bytes, Kind::Decline)?)
    }

    fn parse(reader: &Reader<'_>) -> Result<Self, ClcError> {
        let version = reader.header.version();
        let mut decline = Self {
            version,
            out_of_sync: reader.header.has_flag(),
            peer_id: reader.array(8, "peer id")?,
            diagnosis: Diagnosis::from_code(reader.u32(16, "diagnosis")?),
            os: OsType::NONE,
            extra: [0; 4],
        };
        if version == 1 {
            reader.require_length(V1_DECLINE_BYTES, "in version 1")?;
        } else {
            reader.require_length(V2_DECLINE_BYTES, "from version 2 on")?;
            decline.os = OsType(reader.u8(20, "OS type")? >> 4);
            for (index, word) in decline.extra.iter_mut().enumerate() {
                *word = reader.u32(24 + 4 * index, "extra diagnosis")?;
            }
        }
        Ok(decline)
    }
}
