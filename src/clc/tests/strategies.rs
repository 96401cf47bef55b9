//! Arbitrary valid messages.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::super::*;

fn eid() -> impl Strategy<Value = Eid> {
    any::<[u8; 32]>().prop_map(Eid::from_wire)
}

fn paths() -> impl Strategy<Value = Paths> {
    prop_oneof![Just(Paths::Rdma), Just(Paths::Ism), Just(Paths::Both)]
}

fn v1_offer() -> impl Strategy<Value = V1Offer> {
    let prefix = any::<([u8; 16], u8)>().prop_map(|(prefix, length)| Ipv6Prefix { prefix, length });
    (paths(), any::<[u8; 4]>(), any::<u8>(), vec(prefix, 0..=8))
        .prop_map(|(paths, subnet, prefix_length, ipv6)| V1Offer { paths, subnet, prefix_length, ipv6 })
}

fn smcd_extension() -> impl Strategy<Value = SmcdExtension> {
    let entry = any::<([u8; 8], u16)>().prop_map(|(gid, chid)| GidEntry { gid, chid: Chid(chid) });
    (eid(), vec(entry, 0..=8)).prop_map(|(seid, gids)| SmcdExtension { seid, gids })
}

fn v2_extension() -> impl Strategy<Value = V2Extension> {
    let paths = prop_oneof![
        Just(V2Paths::Rdma),
        smcd_extension().prop_map(V2Paths::Ism),
        smcd_extension().prop_map(V2Paths::Both)
    ];
    (vec(eid(), 0..=8), 0..16_u8, any::<(bool, [u8; 16], u8, u8, u16)>(), paths).prop_map(
        |(ueids, release, (seid_valid, roce_gid, max_connections, max_links, features), paths)| V2Extension {
            ueids,
            release,
            seid_valid,
            roce_gid,
            max_connections,
            max_links,
            features,
            paths,
        },
    )
}

pub(super) fn proposal() -> impl Strategy<Value = Proposal> {
    let offers = prop_oneof![
        v1_offer().prop_map(|v1| (1, Some(v1), None)),
        (2..16_u8, option::of(v1_offer()), option::of(v2_extension())),
    ];
    let senders = any::<([u8; 8], [u8; 16], [u8; 6], [u8; 8], u16, [u8; 3], [u8; 5])>();
    (offers, senders).prop_map(|((version, v1, v2), sender)| {
        let (peer_id, roce_gid, roce_mac, native_gid, native_chid, vendor_oui, vendor_options) = sender;
        Proposal {
            version,
            peer_id,
            roce_gid,
            roce_mac,
            native_gid,
            native_chid: Chid(native_chid),
            vendor_oui,
            vendor_options,
            v1,
            v2,
        }
    })
}

fn first_contact() -> impl Strategy<Value = FirstContact> {
    let v21 = (any::<(u8, u8, u16, [u8; 4])>(), vec(any::<u8>(), 0..64));
    (any::<u8>(), 0..16_u8, any::<[u8; 32]>(), 0..16_u8, v21).prop_map(
        |(flags, os, host, release, ((max_connections, max_links, features, vendor_options), tail))| {
            let tail = if release > 1 { tail } else { Vec::new() };
            let v21 = FirstContactV21 { max_connections, max_links, features, vendor_options, tail };
            let v21 = if release > 0 { v21 } else { FirstContactV21::default() };
            FirstContact { flags, os: OsType(os), host, release, v21 }
        },
    )
}

pub(super) fn terms() -> impl Strategy<Value = Terms> {
    let v2 = (2..16_u8, any::<u16>(), eid(), any::<[u8; 8]>(), option::of(first_contact())).prop_map(
        |(version, chid, eid, gid_ext, first_contact)| Form::V2 {
            version,
            chid: Chid(chid),
            eid,
            gid_ext,
            first_contact,
        },
    );
    let form = prop_oneof![any::<bool>().prop_map(|first_contact| Form::V1 { first_contact }), v2];
    (any::<([u8; 8], u64, u8, u32)>(), 0..16_u8, form).prop_map(
        |((gid, token, dmbe_index, linkid), size_code, form)| Terms {
            gid,
            token,
            dmbe_index,
            size_code,
            linkid,
            form,
        },
    )
}

fn decline() -> impl Strategy<Value = Decline> {
    (1..16_u8, any::<(bool, [u8; 8], u32, [u32; 4])>(), 0..16_u8).prop_map(
        |(version, (out_of_sync, peer_id, code, extra), os)| Decline {
            version,
            out_of_sync,
            peer_id,
            diagnosis: Diagnosis::from_code(code),
            os: OsType(if version == 1 { 0 } else { os }),
            extra: if version == 1 { [0; 4] } else { extra },
        },
    )
}

pub(super) fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        3 => proposal().prop_map(Message::Proposal),
        2 => terms().prop_map(|terms| Message::Accept(Accept(terms))),
        2 => terms().prop_map(|terms| Message::Confirm(Confirm(terms))),
        1 => decline().prop_map(Message::Decline),
    ]
}

/// What happens to a message on its way: bytes changed (by offset modulo the length), then cut or
/// extended; at times with the length field put right again, so that the damage gets past the
/// header.
#[derive(Clone, Debug)]
pub(super) struct Damage {
    bytes: Vec<(usize, u8)>,
    resize: Option<usize>,
    repair: bool,
}

pub(super) fn damage() -> impl Strategy<Value = Damage> {
    (vec((0..700_usize, any::<u8>()), 0..4), option::weighted(0.3, 0..700_usize), any::<bool>())
        .prop_map(|(bytes, resize, repair)| Damage { bytes, resize, repair })
}

impl Damage {
    pub(super) fn apply(&self, mut message: Vec<u8>) -> Vec<u8> {
        if let Some(length) = self.resize {
            let trailer = message.split_off(message.len().saturating_sub(4));
            message.resize(length.saturating_sub(4), 0);
            message.extend(trailer);
        }
        let length = message.len();
        for (offset, value) in &self.bytes {
            if let Some(byte) = message.get_mut(offset % length.max(1)) {
                *byte = *value;
            }
        }
        if self.repair && length >= 8 {
            message[5..7].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
        message
    }
}
