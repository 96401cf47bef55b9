//! Accept and Confirm of SMC-D: what the two ends agree on. Both have the same form.

use super::wire::{FLAG, Kind, MAX_MESSAGE_BYTES, Reader, SMCD, Writer};
use super::{Chid, ClcError, Diagnosis, Eid, Gid, OsType};

const V1_BYTES: usize = 48;
const V2_BYTES: usize = 78;
const RELEASE_0_BYTES: usize = 114;
const RELEASE_1_BYTES: usize = 130;

/// Header's path type of SMC-R and SMC-D.
const PATH_RDMA: u8 = 0;
const PATH_ISM: u8 = 1;

/// The server's answer to a Proposal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Accept(pub Terms);

/// The client's answer to an Accept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Confirm(pub Terms);

/// The contents of an Accept or a Confirm.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Terms {
    /// The sender's GID, or the first half of it for an emulated device.
    pub gid: [u8; 8],
    /// The token of the DMB in which the sender receives.
    pub token: u64,
    /// The element of that DMB; Linux has one element in a DMB, number 0.
    pub dmbe_index: u8,
    /// The size of that DMB in 4 bits, see [`Dmb::from_code`].
    pub size_code: u8,
    /// The sender's link group, in the sender's own byte order: only good for comparing.
    pub linkid: u32,
    /// What depends on the version.
    pub form: Form,
}

/// The part of an Accept or a Confirm that depends on its version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Form {
    /// Version 1.
    V1 {
        /// Whether the sender created its link group for this connection.
        first_contact: bool,
    },
    /// Version 2 or later.
    V2 {
        /// The version, 4 bits.
        version: u8,
        /// The device agreed on.
        chid: Chid,
        /// The EID agreed on.
        eid: Eid,
        /// The second half of an emulated device's GID, else zero.
        gid_ext: [u8; 8],
        /// The first contact extension, if the sender created its link group for this connection.
        first_contact: Option<FirstContact>,
    },
}

/// The first contact extension.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FirstContact {
    /// Flags; bit 7 is for SMC-R.
    pub flags: u8,
    /// The sender's operating system.
    pub os: OsType,
    /// The sender's host name, padded with blanks.
    pub host: [u8; 32],
    /// The release agreed on, 4 bits; release 0 carries nothing more. The message length follows
    /// from it.
    pub release: u8,
    /// What releases from 1 on add. Left out in release 0.
    pub v21: FirstContactV21,
}

/// What version 2.1 adds to the first contact extension.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FirstContactV21 {
    /// SMC-R: the most connections in a link group.
    pub max_connections: u8,
    /// SMC-R: the most links in a link group.
    pub max_links: u8,
    /// The features agreed on, unknown bits included.
    pub features: u16,
    /// The vendor's experimental options.
    pub vendor_options: [u8; 4],
    /// What releases after 1 append. Left out in releases 0 and 1.
    pub tail: Vec<u8>,
}

/// A DMB as the two ends name it to each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Dmb {
    /// Names the DMB; whoever knows it may write there.
    pub token: u64,
    /// The size in bytes. The wire knows 16 KiB, 32 KiB, ... 1 MiB: other sizes are announced
    /// rounded down, and smaller ones as 16 KiB.
    pub bytes: u32,
}

impl Dmb {
    /// The smallest size the wire can express.
    const SMALLEST: u32 = 1 << 14;
    /// The largest size code of SMC-D; dissectors call larger ones invalid.
    const LARGEST_CODE: u32 = 6;

    /// The size as a 4-bit code.
    pub fn size_code(&self) -> u8 {
        ((self.bytes.max(Self::SMALLEST) / Self::SMALLEST).ilog2()).min(Self::LARGEST_CODE) as u8
    }

    /// The DMB behind a token and a received size code (its 4 low bits), which may be that of
    /// SMC-R: up to 512 MiB.
    pub fn from_code(token: u64, code: u8) -> Self {
        Self { token, bytes: Self::SMALLEST << (code & 0x0f) }
    }
}

impl Accept {
    /// The wire form.
    pub fn encode(&self) -> Vec<u8> {
        self.0.encode(Kind::Accept)
    }

    /// Reads the wire form of exactly one Accept of SMC-D.
    pub fn decode(bytes: &[u8]) -> Result<Self, ClcError> {
        Terms::parse(&Reader::open_kind(bytes, Kind::Accept)?).map(Self)
    }
}

impl Confirm {
    /// The wire form.
    pub fn encode(&self) -> Vec<u8> {
        self.0.encode(Kind::Confirm)
    }

    /// Reads the wire form of exactly one Confirm of SMC-D.
    pub fn decode(bytes: &[u8]) -> Result<Self, ClcError> {
        Terms::parse(&Reader::open_kind(bytes, Kind::Confirm)?).map(Self)
    }
}

impl Terms {
    /// The DMB in which the sender receives.
    pub fn dmb(&self) -> Dmb {
        Dmb::from_code(self.token, self.size_code)
    }

    /// The version, 4 bits.
    pub fn version(&self) -> u8 {
        match self.form {
            Form::V1 { .. } => 1,
            Form::V2 { version, .. } => version,
        }
    }

    /// The sender's whole GID; the second half of a version 1 GID is zero.
    pub fn gid(&self) -> Gid {
        match self.form {
            Form::V1 { .. } => Gid::from_halves(self.gid, [0; 8]),
            Form::V2 { gid_ext, .. } => Gid::from_halves(self.gid, gid_ext),
        }
    }

    fn encode(&self, kind: Kind) -> Vec<u8> {
        let first_contact = match &self.form {
            Form::V1 { first_contact } => *first_contact,
            Form::V2 { first_contact, .. } => first_contact.is_some(),
        };
        let flags = PATH_ISM | if first_contact { FLAG } else { 0 };
        let mut out = Writer::new(kind, SMCD, self.version(), flags);
        out.put(self.gid);
        out.put(self.token.to_be_bytes());
        out.put([self.dmbe_index, self.size_code << 4, 0, 0]);
        out.put(self.linkid.to_ne_bytes());
        match &self.form {
            Form::V1 { .. } => out.zeros(12),
            Form::V2 { chid, eid, gid_ext, first_contact, .. } => {
                out.put(chid.0.to_be_bytes());
                out.put(eid.as_bytes());
                out.put(gid_ext);
                if let Some(first_contact) = first_contact {
                    first_contact.encode(&mut out);
                }
            }
        }
        out.finish()
    }

    pub(super) fn parse(reader: &Reader<'_>) -> Result<Self, ClcError> {
        let header = &reader.header;
        match header.typev1() {
            PATH_ISM => {}
            PATH_RDMA => {
                let (field, diagnosis) = ("path type", Diagnosis::MODEUNSUPP);
                return Err(reader.error_for(diagnosis, field, 7, "SMC-D (1)", "SMC-R (0)"));
            }
            other => return Err(reader.error("path type", 7, "SMC-D (1)", other.to_string())),
        }
        let form = if header.version() == 1 {
            reader.require_length(V1_BYTES, "in version 1")?;
            Form::V1 { first_contact: header.has_flag() }
        } else {
            if !header.has_flag() {
                reader.require_length(V2_BYTES, "without first contact")?;
            }
            Form::V2 {
                version: header.version(),
                chid: Chid(reader.u16(32, "CHID")?),
                eid: Eid::from_wire(reader.array(34, "EID")?),
                gid_ext: reader.array(66, "GID extension")?,
                first_contact: header.has_flag().then(|| FirstContact::parse(reader)).transpose()?,
            }
        };
        Ok(Self {
            gid: reader.array(8, "GID")?,
            token: reader.u64(16, "DMB token")?,
            dmbe_index: reader.u8(24, "DMBE index")?,
            size_code: reader.u8(25, "DMB size")? >> 4,
            linkid: u32::from_ne_bytes(reader.array(28, "link id")?),
            form,
        })
    }
}

impl FirstContact {
    fn encode(&self, out: &mut Writer) {
        out.put([self.flags, self.os.0 << 4 | self.release & 0x0f, 0, 0]);
        out.put(self.host);
        if self.release & 0x0f == 0 {
            return;
        }
        out.put([self.v21.max_connections, self.v21.max_links]);
        out.put(self.v21.features.to_be_bytes());
        out.put(self.v21.vendor_options);
        out.zeros(8);
        if self.release & 0x0f > 1 {
            let room = MAX_MESSAGE_BYTES - RELEASE_1_BYTES;
            self.v21.tail.iter().take(room).for_each(|&byte| out.put([byte]));
        }
    }

    fn parse(reader: &Reader<'_>) -> Result<Self, ClcError> {
        let os_and_release = reader.u8(75, "release")?;
        let release = os_and_release & 0x0f;
        let length = reader.header.length;
        let v21 = match release {
            0 => {
                reader.require_length(RELEASE_0_BYTES, "at first contact in release 0")?;
                FirstContactV21::default()
            }
            1 => {
                reader.require_length(RELEASE_1_BYTES, "at first contact in release 1")?;
                FirstContactV21::parse(reader)?
            }
            _ if length < RELEASE_1_BYTES => {
                let expected = format!("{RELEASE_1_BYTES} or more at first contact in release {release}");
                return Err(reader.error("length", 5, expected, length.to_string()));
            }
            _ => FirstContactV21 { tail: reader.rest(126).to_vec(), ..FirstContactV21::parse(reader)? },
        };
        Ok(Self {
            flags: reader.u8(74, "first contact flags")?,
            os: OsType(os_and_release >> 4),
            host: reader.array(78, "host name")?,
            release,
            v21,
        })
    }
}

impl FirstContactV21 {
    fn parse(reader: &Reader<'_>) -> Result<Self, ClcError> {
        Ok(Self {
            max_connections: reader.u8(110, "max connections")?,
            max_links: reader.u8(111, "max links")?,
            features: reader.u16(112, "feature mask")?,
            vendor_options: reader.array(114, "vendor options")?,
            tail: Vec::new(),
        })
    }
}
