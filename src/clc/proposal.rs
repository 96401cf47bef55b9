//! The Proposal: what a client offers.

use super::wire::{Kind, Reader, SMCR, Writer};
use super::{Chid, ClcError, Diagnosis, Eid, Gid};

/// The most EIDs, GID entries and IPv6 prefixes a Proposal may carry, of each.
const MAX_ENTRIES: usize = 8;

/// The fixed part: header, SMC-R addresses and the SMC-D block, after which the IP area or the
/// extensions begin.
const FIXED_BYTES: usize = 80;
/// `iparea_offset` counts from here, and here begins the SMC-D block.
const IP_AREA_BASE: usize = 40;
/// `v2_ext_offset` counts from here.
const V2_BASE: usize = 52;
const IP_AREA_BYTES: usize = 8;
const PREFIX_BYTES: usize = 17;
const V2_EXTENSION_BYTES: usize = 40;
const EID_BYTES: usize = 32;
const SMCD_EXTENSION_BYTES: usize = 48;
const GID_ENTRY_BYTES: usize = 10;
const TRAILER_BYTES: usize = 4;

/// The largest offsets that lead anywhere, each counted from behind its own field (8 prefixes, 8
/// EIDs).
const MAX_IPAREA_OFFSET: u16 = 40;
const MAX_V2_OFFSET: u16 = 172;
const MAX_SMCD_OFFSET: u16 = 288;

/// The first message: the client's devices and ids.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// The version, 4 bits; Linux sends 2 even when it offers version 1 only.
    pub version: u8,
    /// SMC-R: the sender's peer id.
    pub peer_id: [u8; 8],
    /// SMC-R: the sender's RoCE GID.
    pub roce_gid: [u8; 16],
    /// SMC-R: the sender's RoCE MAC address.
    pub roce_mac: [u8; 6],
    /// The GID of the native ISM device. While no version 1 path is offered its last byte must not
    /// exceed 8: Linux takes that byte for the number of IPv6 prefixes and would refuse the
    /// message.
    pub native_gid: [u8; 8],
    /// The CHID of the native ISM device; 0 if there is none.
    pub native_chid: Chid,
    /// The vendor of `vendor_options`.
    pub vendor_oui: [u8; 3],
    /// The vendor's experimental options.
    pub vendor_options: [u8; 5],
    /// What is offered in version 1, if anything.
    pub v1: Option<V1Offer>,
    /// What is offered in version 2, if anything. A version 1 message has no room for it.
    pub v2: Option<V2Extension>,
}

/// The paths an offer is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Paths {
    /// SMC-R.
    Rdma,
    /// SMC-D.
    Ism,
    /// Both.
    Both,
}

impl Paths {
    /// Of two header bits, 2 stands for "none".
    fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Rdma),
            1 => Some(Self::Ism),
            3 => Some(Self::Both),
            _ => None,
        }
    }

    fn bits(paths: Option<Self>) -> u8 {
        match paths {
            Some(Self::Rdma) => 0,
            Some(Self::Ism) => 1,
            None => 2,
            Some(Self::Both) => 3,
        }
    }

    /// Whether SMC-R is among them.
    pub fn has_rdma(self) -> bool {
        self != Self::Ism
    }
}

/// A version 1 offer: both ends must be in one IP subnet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct V1Offer {
    /// The paths offered.
    pub paths: Paths,
    /// The client's IPv4 subnet.
    pub subnet: [u8; 4],
    /// The length of the subnet's prefix.
    pub prefix_length: u8,
    /// The client's IPv6 prefixes; more than 8 are not sent.
    pub ipv6: Vec<Ipv6Prefix>,
}

/// An IPv6 prefix of a version 1 offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv6Prefix {
    /// The prefix.
    pub prefix: [u8; 16],
    /// Its length in bits.
    pub length: u8,
}

/// The version 2 extension.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct V2Extension {
    /// The user-defined EIDs; more than 8 are not sent.
    pub ueids: Vec<Eid>,
    /// The newest release the client speaks, 4 bits.
    pub release: u8,
    /// Whether the system EID of the SMC-D extension counts.
    pub seid_valid: bool,
    /// SMC-R: the sender's RoCE v2 GID.
    pub roce_gid: [u8; 16],
    /// SMC-R: the most connections in a link group.
    pub max_connections: u8,
    /// SMC-R: the most links in a link group.
    pub max_links: u8,
    /// The features the client knows, unknown bits included.
    pub features: u16,
    /// The paths offered.
    pub paths: V2Paths,
}

/// The paths of a version 2 offer. SMC-D brings its own extension.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum V2Paths {
    /// SMC-R.
    Rdma,
    /// SMC-D.
    Ism(SmcdExtension),
    /// Both.
    Both(SmcdExtension),
}

/// The SMC-D version 2 extension.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SmcdExtension {
    /// The system EID, [`Eid::NONE`] where that is switched off.
    pub seid: Eid,
    /// The entries for the ISM devices; more than 8 are not sent.
    pub gids: Vec<GidEntry>,
}

/// One entry for an ISM device. An emulated device takes two in a row, with the same CHID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GidEntry {
    /// The GID of a native device, or one half of an emulated device's.
    pub gid: [u8; 8],
    /// The device's CHID.
    pub chid: Chid,
}

impl SmcdExtension {
    /// The two entries for one emulated device.
    pub fn emulated(chid: Chid, gid: &Gid) -> [GidEntry; 2] {
        let (gid, ext) = gid.halves();
        [GidEntry { gid, chid }, GidEntry { gid: ext, chid }]
    }

    /// The devices that the entries describe; the second half of a native device's GID is zero. An
    /// emulated entry that is not followed by one with its CHID is skipped, as in Linux.
    pub fn devices(&self) -> impl Iterator<Item = (Chid, Gid)> + '_ {
        let mut entries = self.gids.iter().peekable();
        std::iter::from_fn(move || {
            loop {
                let first = entries.next()?;
                if !first.chid.is_emulated() {
                    return Some((first.chid, Gid::from_halves(first.gid, [0; 8])));
                }
                if let Some(second) = entries.next_if(|second| second.chid == first.chid) {
                    return Some((first.chid, Gid::from_halves(first.gid, second.gid)));
                }
            }
        })
    }
}

impl V2Extension {
    /// The SMC-D extension, if SMC-D is offered.
    pub fn smcd(&self) -> Option<&SmcdExtension> {
        match &self.paths {
            V2Paths::Rdma => None,
            V2Paths::Ism(smcd) | V2Paths::Both(smcd) => Some(smcd),
        }
    }

    /// The paths offered.
    pub fn paths(&self) -> Paths {
        match &self.paths {
            V2Paths::Rdma => Paths::Rdma,
            V2Paths::Ism(_) => Paths::Ism,
            V2Paths::Both(_) => Paths::Both,
        }
    }
}

impl Proposal {
    /// The SMC-D version 2.1 Proposal of a client that has one emulated device and one EID.
    pub fn new(chid: Chid, gid: &Gid, eid: Eid) -> Self {
        Self {
            version: 2,
            peer_id: [0; 8],
            roce_gid: [0; 16],
            roce_mac: [0; 6],
            native_gid: [0; 8],
            native_chid: Chid(0),
            vendor_oui: [0; 3],
            vendor_options: [0; 5],
            v1: None,
            v2: Some(V2Extension {
                ueids: vec![eid],
                release: super::RELEASE,
                seid_valid: false,
                roce_gid: [0; 16],
                max_connections: 0,
                max_links: 0,
                features: super::FEATURE_EMULATED_ISM,
                paths: V2Paths::Ism(SmcdExtension {
                    seid: Eid::NONE,
                    gids: SmcdExtension::emulated(chid, gid).to_vec(),
                }),
            }),
        }
    }

    /// The wire form.
    pub fn encode(&self) -> Vec<u8> {
        let v2 = self.v2.as_ref().filter(|_| self.version != 1);
        let paths = Paths::bits(self.v1.as_ref().map(|v1| v1.paths));
        let v2_paths = if self.version == 1 { 0 } else { Paths::bits(v2.map(V2Extension::paths)) };
        let mut out = Writer::new(Kind::Proposal, SMCR, self.version, v2_paths << 2 | paths);
        out.put(self.peer_id);
        out.put(self.roce_gid);
        out.put(self.roce_mac);
        let ip_area = self.v1.as_ref().map_or(0, V1Offer::encoded_len);
        out.put(if ip_area == 0 { [0; 2] } else { MAX_IPAREA_OFFSET.to_be_bytes() });
        out.put(self.native_gid);
        out.put(self.native_chid.0.to_be_bytes());
        let v2_offset = if v2.is_some() { FIXED_BYTES - V2_BASE + ip_area } else { 0 };
        out.put(be16(v2_offset));
        out.put(self.vendor_oui);
        out.put(self.vendor_options);
        out.zeros(20);
        if let Some(v1) = &self.v1 {
            v1.encode(&mut out);
        }
        if let Some(v2) = v2 {
            v2.encode(&mut out);
        }
        out.finish()
    }

    /// Reads the wire form of exactly one Proposal.
    pub fn decode(bytes: &[u8]) -> Result<Self, ClcError> {
        Self::parse(&Reader::open_kind(bytes, Kind::Proposal)?)
    }

    pub(super) fn parse(reader: &Reader<'_>) -> Result<Self, ClcError> {
        let version = reader.header.version();
        let iparea_offset = reader.u16(38, "iparea_offset")?;
        if iparea_offset > MAX_IPAREA_OFFSET {
            let expected = format!("at most {MAX_IPAREA_OFFSET}");
            return Err(reader.error("iparea_offset", 38, expected, iparea_offset.to_string()));
        }
        let v1_paths = Paths::from_bits(reader.header.typev1());
        if version == 1 && v1_paths.is_none() {
            return Err(reader.error("typev1", 7, "SMC-R, SMC-D or both in version 1", "none"));
        }
        if version > 1
            && v1_paths.is_some_and(|paths| paths != Paths::Rdma)
            && iparea_offset != MAX_IPAREA_OFFSET
        {
            let expected = format!("{MAX_IPAREA_OFFSET}, behind the SMC-D block");
            return Err(reader.error("iparea_offset", 38, expected, iparea_offset.to_string()));
        }
        let ip_area = IP_AREA_BASE + usize::from(iparea_offset);
        let v1 = v1_paths.map(|paths| V1Offer::parse(reader, ip_area, paths)).transpose()?;
        let v2_paths = if version == 1 { None } else { Paths::from_bits(reader.header.typev2()) };
        let v2 = v2_paths.map(|paths| V2Extension::parse(reader, paths)).transpose()?;

        let v1_bytes = v1.as_ref().map_or(0, V1Offer::encoded_len);
        let before = if version == 1 { ip_area } else { FIXED_BYTES };
        let v2_bytes = v2.as_ref().map_or(0, V2Extension::encoded_len);
        reader.require_length(before + v1_bytes + v2_bytes + TRAILER_BYTES, "by its counts")?;

        let mut proposal = Self {
            version,
            peer_id: reader.array(8, "peer id")?,
            roce_gid: reader.array(16, "RoCE GID")?,
            roce_mac: reader.array(32, "RoCE MAC")?,
            native_gid: [0; 8],
            native_chid: Chid(0),
            vendor_oui: [0; 3],
            vendor_options: [0; 5],
            v1,
            v2,
        };
        // Version 1 without SMC-D may leave the SMC-D block out.
        if before >= FIXED_BYTES {
            proposal.native_gid = reader.array(40, "native GID")?;
            proposal.native_chid = Chid(reader.u16(48, "native CHID")?);
            proposal.vendor_oui = reader.array(52, "vendor OUI")?;
            proposal.vendor_options = reader.array(55, "vendor options")?;
        }
        Ok(proposal)
    }
}

impl V1Offer {
    fn encoded_len(&self) -> usize {
        IP_AREA_BYTES + PREFIX_BYTES * self.ipv6.len().min(MAX_ENTRIES)
    }

    fn encode(&self, out: &mut Writer) {
        out.put(self.subnet);
        out.put([self.prefix_length, 0, 0, count(&self.ipv6)]);
        for prefix in self.ipv6.iter().take(MAX_ENTRIES) {
            out.put(prefix.prefix);
            out.put([prefix.length]);
        }
    }

    fn parse(reader: &Reader<'_>, at: usize, paths: Paths) -> Result<Self, ClcError> {
        let subnet = reader.array(at, "subnet")?;
        let prefix_length = reader.u8(at + 4, "prefix length")?;
        let count = reader.count(at + 7, "IPv6 prefix count", MAX_ENTRIES)?;
        let ipv6 = entries(at + IP_AREA_BYTES, PREFIX_BYTES, count, |at| {
            Ok(Ipv6Prefix {
                prefix: reader.array(at, "IPv6 prefix")?,
                length: reader.u8(at + 16, "IPv6 prefix")?,
            })
        })?;
        Ok(Self { paths, subnet, prefix_length, ipv6 })
    }
}

impl V2Extension {
    fn encoded_len(&self) -> usize {
        let smcd =
            self.smcd().map(|smcd| SMCD_EXTENSION_BYTES + GID_ENTRY_BYTES * smcd.gids.len().min(MAX_ENTRIES));
        V2_EXTENSION_BYTES + EID_BYTES * self.ueids.len().min(MAX_ENTRIES) + smcd.unwrap_or(0)
    }

    fn encode(&self, out: &mut Writer) {
        let ueids = self.ueids.len().min(MAX_ENTRIES);
        let smcd = self.smcd();
        out.put([count(&self.ueids), smcd.map_or(0, |smcd| count(&smcd.gids)), 0]);
        out.put([self.release << 4 | u8::from(self.seid_valid), 0, 0]);
        out.put(be16(if smcd.is_some() { V2_EXTENSION_BYTES - 8 + EID_BYTES * ueids } else { 0 }));
        out.put(self.roce_gid);
        out.put([self.max_connections, self.max_links]);
        out.put(self.features.to_be_bytes());
        out.zeros(12);
        for ueid in self.ueids.iter().take(MAX_ENTRIES) {
            out.put(ueid.as_bytes());
        }
        if let Some(smcd) = smcd {
            out.put(smcd.seid.as_bytes());
            out.zeros(16);
            for entry in smcd.gids.iter().take(MAX_ENTRIES) {
                out.put(entry.gid);
                out.put(entry.chid.0.to_be_bytes());
            }
        }
    }

    fn parse(reader: &Reader<'_>, paths: Paths) -> Result<Self, ClcError> {
        let at = V2_BASE + offset(reader, 50, "v2_ext_offset", MAX_V2_OFFSET, Diagnosis::NOV2EXT)?;
        let ueid_count = reader.count(at, "UEID count", MAX_ENTRIES)?;
        let flags = reader.u8(at + 3, "release")?;
        let smcd = || SmcdExtension::parse(reader, at);
        Ok(Self {
            ueids: entries(at + V2_EXTENSION_BYTES, EID_BYTES, ueid_count, |at| {
                reader.array(at, "UEID").map(Eid::from_wire)
            })?,
            release: flags >> 4,
            seid_valid: flags & 1 != 0,
            roce_gid: reader.array(at + 8, "RoCE v2 GID")?,
            max_connections: reader.u8(at + 24, "max connections")?,
            max_links: reader.u8(at + 25, "max links")?,
            features: reader.u16(at + 26, "feature mask")?,
            paths: match paths {
                Paths::Rdma => V2Paths::Rdma,
                Paths::Ism => V2Paths::Ism(smcd()?),
                Paths::Both => V2Paths::Both(smcd()?),
            },
        })
    }
}

impl SmcdExtension {
    /// `v2_at` is where the version 2 extension begins.
    fn parse(reader: &Reader<'_>, v2_at: usize) -> Result<Self, ClcError> {
        let count = reader.count(v2_at + 1, "GID count", MAX_ENTRIES)?;
        let at = v2_at
            + 8
            + offset(reader, v2_at + 6, "smcd_v2_ext_offset", MAX_SMCD_OFFSET, Diagnosis::NOV2DEXT)?;
        let seid = Eid::from_wire(reader.array(at, "system EID")?);
        let gids = entries(at + SMCD_EXTENSION_BYTES, GID_ENTRY_BYTES, count, |at| {
            Ok(GidEntry { gid: reader.array(at, "GID entry")?, chid: Chid(reader.u16(at + 8, "GID entry")?) })
        })?;
        Ok(Self { seid, gids })
    }
}

/// Reads an offset that must lead somewhere: not 0 and at most `limit`.
fn offset(
    reader: &Reader<'_>,
    at: usize,
    field: &'static str,
    limit: u16,
    diagnosis: Diagnosis,
) -> Result<usize, ClcError> {
    let offset = reader.u16(at, field)?;
    if offset == 0 || offset > limit {
        return Err(reader.error_for(diagnosis, field, at, format!("1 to {limit}"), offset.to_string()));
    }
    Ok(usize::from(offset))
}

/// Reads `count` entries of `bytes` each, one after the other from `at` on.
fn entries<T>(
    at: usize,
    bytes: usize,
    count: usize,
    entry: impl Fn(usize) -> Result<T, ClcError>,
) -> Result<Vec<T>, ClcError> {
    (0..count).map(|index| entry(at + index * bytes)).collect()
}

/// The number of entries that are sent: at most [`MAX_ENTRIES`].
fn count<T>(list: &[T]) -> u8 {
    list.len().min(MAX_ENTRIES) as u8
}

/// An offset on the wire; all are far below 64 KiB.
fn be16(offset: usize) -> [u8; 2] {
    (offset as u16).to_be_bytes()
}
