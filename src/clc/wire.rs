//! The frame all CLC messages share: header, exact length, trailer; and bounded access to what is
//! in between.

use super::{ClcError, Diagnosis};

/// The header of every message: as much as must be read to know its length.
pub const HEADER_BYTES: usize = 8;

/// The longest message that has a meaning: a Proposal with 8 EIDs, 8 GIDs and 8 IPv6 prefixes.
pub const MAX_MESSAGE_BYTES: usize = 652;

const TRAILER_BYTES: usize = 4;

/// "SMCR" in EBCDIC: every Proposal and Decline, and the other messages of SMC-R.
pub(super) const SMCR: [u8; 4] = [0xe2, 0xd4, 0xc3, 0xd9];

/// "SMCD" in EBCDIC: Accept and Confirm of SMC-D.
pub(super) const SMCD: [u8; 4] = [0xe2, 0xd4, 0xc3, 0xc4];

/// Bit 3 of the header's last byte: first contact in Accept and Confirm, out of sync in a Decline.
pub(super) const FLAG: u8 = 0x08;

/// The kinds of messages, with the shortest and longest form of each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Proposal,
    Accept,
    Confirm,
    Decline,
}

impl Kind {
    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Proposal),
            2 => Some(Self::Accept),
            3 => Some(Self::Confirm),
            4 => Some(Self::Decline),
            _ => None,
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Proposal => 1,
            Self::Accept => 2,
            Self::Confirm => 3,
            Self::Decline => 4,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Proposal => "Proposal",
            Self::Accept => "Accept",
            Self::Confirm => "Confirm",
            Self::Decline => "Decline",
        }
    }

    fn lengths(self) -> std::ops::RangeInclusive<usize> {
        match self {
            Self::Proposal => 52..=MAX_MESSAGE_BYTES,
            Self::Accept | Self::Confirm => 48..=MAX_MESSAGE_BYTES,
            Self::Decline => 28..=44,
        }
    }
}

/// A checked header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) length: usize,
    /// The last byte: version, then what each kind makes of the other four bits.
    flags: u8,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, ClcError> {
        let [e0, e1, e2, e3, kind, l0, l1, flags] = *bytes;
        let eyecatcher = [e0, e1, e2, e3];
        let fault = |subject, field, offset, expected: String, found: String| {
            Err(ClcError::new(subject, field, Some(offset), expected, found, Diagnosis::CNFERR))
        };
        if !is_eyecatcher(eyecatcher) {
            return fault("header", "eyecatcher", 0, "SMCR or SMCD in EBCDIC".into(), hex(&eyecatcher));
        }
        let Some(kind) = Kind::from_code(kind) else {
            return fault("header", "type", 4, "1 to 4".into(), kind.to_string());
        };
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let lengths = kind.lengths();
        if !lengths.contains(&length) {
            let expected = format!("{} to {} bytes", lengths.start(), lengths.end());
            return fault(kind.name(), "length", 5, expected, length.to_string());
        }
        let header = Self { kind, length, flags };
        if header.version() == 0 {
            return fault(kind.name(), "version", 7, "1 or more".into(), "0".into());
        }
        Ok(header)
    }

    pub(super) fn version(&self) -> u8 {
        self.flags >> 4
    }

    /// The version 2 path types of a Proposal.
    pub(super) fn typev2(&self) -> u8 {
        self.flags >> 2 & 3
    }

    /// The version 1 path types of a Proposal, the chosen path type of Accept and Confirm.
    pub(super) fn typev1(&self) -> u8 {
        self.flags & 3
    }

    pub(super) fn has_flag(&self) -> bool {
        self.flags & FLAG != 0
    }
}

/// The length of the message that starts with these 8 bytes, header and trailer included.
///
/// Fails on anything that cannot be the start of a message. The result never exceeds
/// [`MAX_MESSAGE_BYTES`].
pub fn message_length(header: &[u8; HEADER_BYTES]) -> Result<usize, ClcError> {
    Header::parse(header).map(|header| header.length)
}

/// The version in which a peer that sent these bytes understands a Decline, if they begin like a
/// message.
pub(super) fn decline_version(bytes: &[u8]) -> Option<u8> {
    Header::parse(bytes.first_chunk()?).ok().map(|header| header.version().min(2))
}

/// One whole message without its trailer. Fields are read by their offset in the message, as the
/// tables of the protocol give them.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) header: Header,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Checks header, length and trailer. The trailer of a Decline is not looked at, as in Linux.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, ClcError> {
        let Some(first) = bytes.first_chunk() else {
            let (expected, found) = (format!("at least {HEADER_BYTES} bytes"), bytes.len().to_string());
            return Err(ClcError::new("header", "length", None, expected, found, Diagnosis::CNFERR));
        };
        let header = Header::parse(first)?;
        let name = header.kind.name();
        let fault = |field, offset, expected: String, found: String| {
            Err(ClcError::new(name, field, Some(offset), expected, found, Diagnosis::CNFERR))
        };
        let Some((body, trailer)) = bytes.split_last_chunk::<TRAILER_BYTES>() else {
            return fault("length", 5, bytes.len().to_string(), header.length.to_string());
        };
        if header.length != bytes.len() {
            return fault(
                "length",
                5,
                format!("{}, the bytes at hand", bytes.len()),
                header.length.to_string(),
            );
        }
        if header.kind != Kind::Decline && !is_eyecatcher(*trailer) {
            return fault("trailer", body.len(), "SMCR or SMCD in EBCDIC".into(), hex(trailer));
        }
        Ok(Self { header, bytes: body })
    }

    /// As [`Reader::open`], for the one kind that may come now.
    pub(super) fn open_kind(bytes: &'a [u8], kind: Kind) -> Result<Self, ClcError> {
        let reader = Self::open(bytes)?;
        if reader.header.kind != kind {
            return Err(unexpected(kind.name(), reader.header.kind));
        }
        Ok(reader)
    }

    /// The `N` bytes at `offset`, which may come from the peer.
    pub(super) fn array<const N: usize>(
        &self,
        offset: usize,
        field: &'static str,
    ) -> Result<[u8; N], ClcError> {
        self.bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(|| {
            let expected = format!("{N} bytes of the {} before the trailer", self.bytes.len());
            self.error(field, offset, expected, "an end beyond them")
        })
    }

    pub(super) fn u8(&self, offset: usize, field: &'static str) -> Result<u8, ClcError> {
        self.array(offset, field).map(u8::from_be_bytes)
    }

    pub(super) fn u16(&self, offset: usize, field: &'static str) -> Result<u16, ClcError> {
        self.array(offset, field).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&self, offset: usize, field: &'static str) -> Result<u32, ClcError> {
        self.array(offset, field).map(u32::from_be_bytes)
    }

    pub(super) fn u64(&self, offset: usize, field: &'static str) -> Result<u64, ClcError> {
        self.array(offset, field).map(u64::from_be_bytes)
    }

    /// A count that says how many entries follow, at most `limit`.
    pub(super) fn count(&self, offset: usize, field: &'static str, limit: usize) -> Result<usize, ClcError> {
        let count = usize::from(self.u8(offset, field)?);
        if count > limit {
            return Err(self.error(field, offset, format!("at most {limit}"), count.to_string()));
        }
        Ok(count)
    }

    /// What lies between `offset` and the trailer.
    pub(super) fn rest(&self, offset: usize) -> &'a [u8] {
        self.bytes.get(offset..).unwrap_or_default()
    }

    /// Requires the length the message's own contents ask for.
    pub(super) fn require_length(&self, expected: usize, why: &str) -> Result<(), ClcError> {
        if self.header.length != expected {
            let expected = format!("{expected} {why}");
            return Err(self.error("length", 5, expected, self.header.length.to_string()));
        }
        Ok(())
    }

    pub(super) fn error(
        &self,
        field: &'static str,
        offset: usize,
        expected: impl Into<Box<str>>,
        found: impl Into<Box<str>>,
    ) -> ClcError {
        self.error_for(Diagnosis::CNFERR, field, offset, expected, found)
    }

    pub(super) fn error_for(
        &self,
        diagnosis: Diagnosis,
        field: &'static str,
        offset: usize,
        expected: impl Into<Box<str>>,
        found: impl Into<Box<str>>,
    ) -> ClcError {
        ClcError::new(self.header.kind.name(), field, Some(offset), expected, found, diagnosis)
    }
}

/// The error for a message of another kind than may come now.
pub(super) fn unexpected(expected: &'static str, found: Kind) -> ClcError {
    ClcError::new("message", "type", Some(4), expected, found.name(), Diagnosis::CNFERR)
}

/// Builds one message: fields in order, then [`Writer::finish`] adds the trailer and enters the
/// length.
pub(super) struct Writer {
    bytes: Vec<u8>,
    eyecatcher: [u8; 4],
}

impl Writer {
    /// `flags` is what follows the version in the header's last byte.
    pub(super) fn new(kind: Kind, eyecatcher: [u8; 4], version: u8, flags: u8) -> Self {
        let mut writer = Self { bytes: Vec::with_capacity(224), eyecatcher };
        writer.put(eyecatcher);
        writer.put([kind.code(), 0, 0, version << 4 | flags & 0x0f]);
        writer
    }

    pub(super) fn put(&mut self, bytes: impl AsRef<[u8]>) {
        self.bytes.extend_from_slice(bytes.as_ref());
    }

    pub(super) fn zeros(&mut self, count: usize) {
        self.bytes.resize(self.bytes.len() + count, 0);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        let eyecatcher = self.eyecatcher;
        self.put(eyecatcher);
        // All lists are cut to their limits before they get here, so no message reaches 64 KiB.
        let length = u16::try_from(self.bytes.len()).unwrap_or(u16::MAX);
        if let Some(field) = self.bytes.get_mut(5..7) {
            field.copy_from_slice(&length.to_be_bytes());
        }
        self.bytes
    }
}

fn is_eyecatcher(bytes: [u8; 4]) -> bool {
    bytes == SMCR || bytes == SMCD
}

/// Bytes in hexadecimal, for error texts.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
