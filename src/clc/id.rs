//! The identifiers that CLC messages carry: GID, CHID, EID and operating system.

use std::fmt;

use super::{ClcError, Diagnosis};

/// The identity of an emulated ISM device: a UUID in wire order. Equal GIDs mean the same device,
/// hence the same host.
///
/// ```
/// use tokio_smc::Gid;
/// assert_eq!(Gid([7; 16]).to_string(), "07070707-0707-0707-0707-070707070707");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// Joins the two halves that CLC messages carry apart: `gid` and `gid_ext`.
    pub fn from_halves(gid: [u8; 8], ext: [u8; 8]) -> Self {
        Self(
            ((u128::from(u64::from_be_bytes(gid)) << 64) | u128::from(u64::from_be_bytes(ext))).to_be_bytes(),
        )
    }

    /// The halves `gid` and `gid_ext` as CLC messages carry them.
    pub fn halves(&self) -> ([u8; 8], [u8; 8]) {
        let [a, b, c, d, e, f, g, h, ext @ ..] = self.0;
        ([a, b, c, d, e, f, g, h], ext)
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gid({self})")
    }
}

/// The channel id (type) of an ISM device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Chid(pub u16);

impl Chid {
    /// The loopback-ism device.
    pub const LOOPBACK: Self = Self(0xffff);

    /// Whether this is an emulated ISM device, whose 128-bit GID takes two entries of a Proposal.
    pub fn is_emulated(self) -> bool {
        self.0 >= 0xff00
    }
}

impl fmt::Display for Chid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

/// An enterprise id: both ends need one in common, even on one host.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Eid([u8; 32]);

impl Eid {
    /// The id this crate uses unless told otherwise.
    pub const LOOPBACK: Self = Self(*b"TOKIO-SMC-LOOPBACK              ");

    /// No id: what stands in place of a system EID that is switched off.
    pub const NONE: Self = Self([0; 32]);

    /// A user-defined id: 1 to 32 characters of `A-Z`, `0-9`, `.` and `-`, the first one a letter
    /// or digit.
    pub fn new(name: &str) -> Result<Self, ClcError> {
        let refuse = |expected: &str| {
            ClcError::new("EID", "name", None, expected, format!("{name:?}"), Diagnosis::CNFERR)
        };
        let alphanumeric = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
        let mut bytes = [b' '; 32];
        match name.as_bytes() {
            [first, ..] if !alphanumeric(*first) => return Err(refuse("A-Z or 0-9 as its first character")),
            all if all.is_empty() || all.len() > bytes.len() => return Err(refuse("1 to 32 characters")),
            all if !all.iter().all(|&byte| alphanumeric(byte) || matches!(byte, b'.' | b'-')) => {
                return Err(refuse("only A-Z, 0-9, '.' and '-'"));
            }
            all => bytes.iter_mut().zip(all).for_each(|(to, from)| *to = *from),
        }
        Ok(Self(bytes))
    }

    /// An id as it came over the wire, whatever it holds: ids are only ever compared.
    pub const fn from_wire(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The id as it goes over the wire, padded with blanks.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Eid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.trim_ascii_end().escape_ascii())
    }
}

impl fmt::Debug for Eid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Eid({self})")
    }
}

/// The operating system of a sender; a 4-bit field.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct OsType(pub u8);

impl OsType {
    /// Not stated.
    pub const NONE: Self = Self(0);
    /// IBM z/OS.
    pub const ZOS: Self = Self(1);
    /// Linux.
    pub const LINUX: Self = Self(2);
    /// IBM AIX.
    pub const AIX: Self = Self(3);
}
