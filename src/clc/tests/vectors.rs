//! Messages byte for byte: as tshark decodes them as SMC-D v2.1, and each way to get them wrong.

use super::super::*;
use super::{GID, device, proposal, with_byte};

/// Bytes from hexadecimal with blanks; `00*n` and `20*n` repeat a byte.
fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in text.split_whitespace() {
        let (digits, count) = match word.split_once('*') {
            Some((digits, count)) => (digits, count.parse().unwrap()),
            None => (word, 1),
        };
        let unit: Vec<u8> = digits
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        (0..count).for_each(|_| bytes.extend_from_slice(&unit));
    }
    bytes
}

const PROPOSAL: &str = "
    e2d4c3d9 01 00e0 26
    00*30 0000 00*10 001c 00*28
    01 02 00 10 0000 0040
    00*16 00 00 0001 00*12
    4d594f52472d534d432d4549442d3031 20*16
    00*32 00*16
    0f1e2d3c4b5a4978 ffff
    8796a5b4c3d2e1f0 ffff
    e2d4c3d9";

/// Of an Accept or a Confirm, what lies between the header and the first contact extension.
const TERMS: &str = "
    0f1e2d3c4b5a4978 1122334455667788 00 20 0000 00010000 ffff
    4d594f52472d534d432d4549442d3031 20*16
    8796a5b4c3d2e1f0";
const FIRST_CONTACT: &str = "00 21 0000 6e6f64652d61 20*26 00 00 0001 00000000 00*8";
const DECLINE: &str = "e2d4c3d9 04 002c 20 00*8 03030007 20 000000 00*16 e2d4c3d9";

const DMB: Dmb = Dmb { token: 0x1122_3344_5566_7788, bytes: 65536 };

fn linkid() -> u32 {
    u32::from_ne_bytes([0, 1, 0, 0])
}

fn first_contact(kind: &str) -> Vec<u8> {
    bytes(&format!("e2d4c3c4 {kind} 0082 29 {TERMS} {FIRST_CONTACT} e2d4c3c4"))
}

fn reuse(kind: &str) -> Vec<u8> {
    bytes(&format!("e2d4c3c4 {kind} 004e 21 {TERMS} e2d4c3c4"))
}

#[test]
fn the_worked_handshake_is_byte_exact() {
    let (mut client, sent) = ClientHandshake::new(&device());
    assert_eq!(sent, bytes(PROPOSAL));
    let mut server = ServerHandshake::on_proposal(&device(), &sent).unwrap();
    let sent = server.accept(DMB, linkid(), true).unwrap();
    assert_eq!(sent, first_contact("02"));
    let answer = client.on_answer(&sent).unwrap();
    assert_eq!(answer, Answer::Accepted { dmb: DMB, linkid: linkid(), first_contact: true });
    let sent = client.confirm(DMB, linkid()).unwrap();
    assert_eq!(sent, first_contact("03"));
    assert_eq!(server.on_confirm(&sent).unwrap(), Confirmation::Confirmed { dmb: DMB, linkid: linkid() });
}

#[test]
fn the_worked_reuse_is_byte_exact() {
    let (mut client, sent) = ClientHandshake::new(&device());
    let mut server = ServerHandshake::on_proposal(&device(), &sent).unwrap();
    let sent = server.accept(DMB, linkid(), false).unwrap();
    assert_eq!(sent, reuse("02"));
    let answer = client.on_answer(&sent).unwrap();
    assert_eq!(answer, Answer::Accepted { dmb: DMB, linkid: linkid(), first_contact: false });
    let sent = client.confirm(DMB, linkid()).unwrap();
    assert_eq!(sent, reuse("03"));
    assert_eq!(server.on_confirm(&sent).unwrap(), Confirmation::Confirmed { dmb: DMB, linkid: linkid() });
}

#[test]
fn the_worked_messages_decode_and_encode_again() {
    let all =
        [bytes(PROPOSAL), first_contact("02"), first_contact("03"), reuse("02"), reuse("03"), bytes(DECLINE)];
    for wire in all {
        let message = Message::decode(&wire).unwrap();
        assert_eq!(message.encode(), wire, "{message:?}");
        assert_eq!(message_length(wire.first_chunk().unwrap()), Ok(wire.len()));
    }
    assert_eq!(bytes(PROPOSAL).len(), PROPOSAL_BYTES);
    assert_eq!(first_contact("02").len(), answer_bytes(true));
    assert_eq!(reuse("02").len(), answer_bytes(false));
}

#[test]
fn the_worked_proposal_says_what_it_says() {
    let proposal = Proposal::decode(&bytes(PROPOSAL)).unwrap();
    let v2 = proposal.v2.as_ref().unwrap();
    assert_eq!((proposal.version, &proposal.v1, v2.release, v2.seid_valid), (2, &None, 1, false));
    assert_eq!(v2.ueids, [Eid::new("MYORG-SMC-EID-01").unwrap()]);
    assert_eq!(v2.features, FEATURE_EMULATED_ISM);
    let smcd = v2.smcd().unwrap();
    assert_eq!(smcd.devices().collect::<Vec<_>>(), [(Chid::LOOPBACK, GID)]);
    assert_eq!(GID.to_string(), "0f1e2d3c-4b5a-4978-8796-a5b4c3d2e1f0");
}

#[test]
fn declines_have_their_exact_forms() {
    assert_eq!(Decline::new(2, Diagnosis::NOSMCD2DEV).encode(), bytes(DECLINE));
    let v1 = Decline::new(1, Diagnosis::MEM).encode();
    assert_eq!(v1, bytes("e2d4c3d9 04 001c 10 00*8 01010000 00*4 e2d4c3d9"));
    let out_of_sync = Decline::new(2, Diagnosis::SYNCERR).encode();
    assert_eq!(out_of_sync, bytes("e2d4c3d9 04 002c 28 00*8 04000000 20 000000 00*16 e2d4c3d9"));
    assert!(Decline::decode(&out_of_sync).unwrap().out_of_sync);
    // Linux does not look at a Decline's trailer.
    let mut without = bytes(DECLINE);
    without[40..].fill(0);
    assert_eq!(Decline::decode(&without).unwrap().diagnosis, Diagnosis::NOSMCD2DEV);
    // Each version has its own length.
    assert!(with_byte(v1, 7, 0x20).is_err());
    assert!(with_byte(bytes(DECLINE), 7, 0x10).is_err());
}

#[test]
fn version_1_forms() {
    // SMC-R only, as old kernels send it: no SMC-D block.
    let short = bytes("e2d4c3d9 01 0034 10 0102030405060708 00*22 0000 0a000000 18 0000 00 e2d4c3d9");
    let proposal = Proposal::decode(&short).unwrap();
    let v1 = proposal.v1.as_ref().unwrap();
    assert_eq!((v1.paths, v1.subnet, v1.prefix_length), (Paths::Rdma, [10, 0, 0, 0], 24));
    assert_eq!(proposal.peer_id, [1, 2, 3, 4, 5, 6, 7, 8]);
    // Both paths, with the SMC-D block and one IPv6 prefix.
    let long = bytes(
        "e2d4c3d9 01 006d 13 00*30 0028 1112131415161718 0700 0000 00*28
         00000000 00 0000 01 20010db8 00*12 40 e2d4c3d9",
    );
    let proposal = Proposal::decode(&long).unwrap();
    assert_eq!(proposal.native_chid, Chid(0x0700));
    assert_eq!(proposal.v1.as_ref().unwrap().ipv6[0].length, 64);
    assert_eq!(proposal.encode(), long);
    // Accept of version 1 at first contact.
    let accept =
        bytes("e2d4c3c4 02 0030 19 1112131415161718 2122232425262728 00 60 0000 00010000 00*12 e2d4c3c4");
    let decoded = Accept::decode(&accept).unwrap();
    assert_eq!(decoded.0.form, Form::V1 { first_contact: true });
    assert_eq!(decoded.0.dmb().bytes, 1 << 20);
    assert_eq!(decoded.encode(), accept);
}

#[test]
fn version_2_proposal_with_version_1_parts() {
    // Both versions, both paths, 2 EIDs, a native device and the loopback device: offsets 40, 36 +
    // 17 and 96.
    let wire = bytes(
        "e2d4c3d9 01 0123 2f 00*30 0028 1112131415161718 0700 0035 00*28
         0a000000 18 0000 01 20010db8 00*12 40
         02 03 00 11 0000 0060 00*16 10 02 8001 00*12
         41 20*31 42 20*31
         49 20*31 00*16
         1112131415161718 0700 0f1e2d3c4b5a4978 ffff 8796a5b4c3d2e1f0 ffff
         e2d4c3d9",
    );
    let proposal = Proposal::decode(&wire).unwrap();
    let v2 = proposal.v2.as_ref().unwrap();
    assert_eq!(v2.features, 0x8001, "unknown bits are kept");
    assert_eq!((v2.max_connections, v2.max_links, v2.seid_valid), (16, 2, true));
    let native = Gid::from_halves([0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18], [0; 8]);
    let devices: Vec<_> = v2.smcd().unwrap().devices().collect();
    assert_eq!(devices, [(Chid(0x0700), native), (Chid::LOOPBACK, GID)]);
    assert_eq!(proposal.encode(), wire);
    let mut device = device();
    device.eid = Eid::new("B").unwrap();
    assert!(ServerHandshake::on_proposal(&device, &wire).is_ok(), "the second EID is ours");
}

#[test]
fn half_an_emulated_entry_is_no_device() {
    let entry = |byte: u8, chid| GidEntry { gid: [byte; 8], chid: Chid(chid) };
    let halves = |a: u8, b: u8| Gid::from_halves([a; 8], [b; 8]);
    let devices = |gids: &[GidEntry]| {
        SmcdExtension { seid: Eid::NONE, gids: gids.to_vec() }.devices().collect::<Vec<_>>()
    };
    assert_eq!(devices(&[entry(1, 0xffff)]), []);
    assert_eq!(devices(&[entry(1, 0xff00), entry(2, 0xffff)]), []);
    let odd = devices(&[entry(1, 0xff00), entry(2, 0xffff), entry(3, 0xffff), entry(4, 0xffff)]);
    assert_eq!(odd, [(Chid::LOOPBACK, halves(2, 3))]);
    let mixed = devices(&[entry(1, 0xffff), entry(2, 7), entry(3, 0xff00), entry(4, 0xff00)]);
    assert_eq!(mixed, [(Chid(7), halves(2, 0)), (Chid(0xff00), halves(3, 4))]);
}

#[test]
fn offsets_are_bounded() {
    let cases = [
        // iparea_offset beyond 40, even though no version 1 part exists
        (38, [0x00, 0x29], "iparea_offset", Diagnosis::CNFERR),
        (38, [0xff, 0xff], "iparea_offset", Diagnosis::CNFERR),
        (50, [0x00, 0x00], "v2_ext_offset", Diagnosis::NOV2EXT),
        (50, [0x00, 0xad], "v2_ext_offset", Diagnosis::NOV2EXT),
        (50, [0xff, 0xff], "v2_ext_offset", Diagnosis::NOV2EXT),
        // within Linux' bound, but the extension ends beyond this message
        (50, [0x00, 0xac], "UEID count", Diagnosis::CNFERR),
        (86, [0x00, 0x00], "smcd_v2_ext_offset", Diagnosis::NOV2DEXT),
        (86, [0x01, 0x21], "smcd_v2_ext_offset", Diagnosis::NOV2DEXT),
        (86, [0xff, 0xff], "smcd_v2_ext_offset", Diagnosis::NOV2DEXT),
        (86, [0x01, 0x20], "system EID", Diagnosis::CNFERR),
        (86, [0x00, 0x41], "GID entry", Diagnosis::CNFERR),
        // too many entries
        (80, [0x09, 0x02], "UEID count", Diagnosis::CNFERR),
        (80, [0x01, 0x09], "GID count", Diagnosis::CNFERR),
        // counts that contradict the length
        (80, [0x00, 0x02], "length", Diagnosis::CNFERR),
        (80, [0x01, 0x01], "length", Diagnosis::CNFERR),
        (80, [0x01, 0x03], "GID entry", Diagnosis::CNFERR),
    ];
    for (offset, value, field, diagnosis) in cases {
        let mut wire = proposal();
        wire[offset..offset + 2].copy_from_slice(&value);
        let error = Proposal::decode(&wire).unwrap_err();
        assert_eq!((error.field(), error.diagnosis()), (field, diagnosis), "{error}");
    }
}

#[test]
fn every_other_length_is_refused() {
    for whole in [proposal(), first_contact("02"), reuse("03"), bytes(DECLINE)] {
        let message = Message::decode(&whole).unwrap();
        for length in 0..2 * whole.len() {
            let mut wire = whole.clone();
            wire.resize(length, 0);
            // As the bytes end, and with a header and a trailer that claim this very length.
            let cut = Message::decode(&wire);
            assert_eq!(cut.is_ok(), length == whole.len(), "{length} bytes");
            if length >= 12 {
                wire[5..7].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
                wire[length - 4..].copy_from_slice(&whole[..4]);
                let claimed = Message::decode(&wire);
                assert_eq!(claimed.is_ok(), length == whole.len(), "{length} bytes claimed: {claimed:?}");
            }
        }
        assert_eq!(Message::decode(&whole).unwrap(), message);
    }
}

#[test]
fn headers_are_checked() {
    let cases: [(usize, u8, &str); 5] =
        [(0, 0, "eyecatcher"), (4, 0, "type"), (4, 5, "type"), (7, 0x06, "version"), (5, 0xff, "length")];
    for (offset, value, field) in cases {
        let mut header: [u8; 8] = *proposal().first_chunk().unwrap();
        header[offset] = value;
        assert_eq!(message_length(&header).unwrap_err().field(), field);
        assert_eq!(with_byte(proposal(), offset, value).unwrap_err().field(), field);
    }
    assert_eq!(with_byte(proposal(), 223, 0).unwrap_err().field(), "trailer");
    // Either eyecatcher will do at either end, as in Linux.
    assert!(with_byte(with_byte(proposal(), 3, 0xc4).unwrap().encode(), 223, 0xc4).is_ok());
    // Accept and Confirm must be SMC-D's.
    let rdma = with_byte(reuse("02"), 7, 0x20).unwrap_err();
    assert_eq!(rdma.diagnosis(), Diagnosis::MODEUNSUPP);
    assert_eq!(with_byte(reuse("02"), 7, 0x22).unwrap_err().diagnosis(), Diagnosis::CNFERR);
}

#[test]
fn releases_have_their_lengths() {
    let form = |release: u8, v21: FirstContactV21| {
        let first_contact = FirstContact { flags: 0x80, os: OsType(9), host: [b'h'; 32], release, v21 };
        let (chid, eid, gid_ext) = (Chid::LOOPBACK, Eid::LOOPBACK, [3; 8]);
        let form = Form::V2 { version: 2, chid, eid, gid_ext, first_contact: Some(first_contact) };
        Accept(Terms { gid: [1; 8], token: 5, dmbe_index: 2, size_code: 15, linkid: 7, form })
    };
    let v21 = FirstContactV21 { features: 0xff00, vendor_options: *b"abcd", ..Default::default() };
    let newer = FirstContactV21 { tail: vec![1, 2, 3], ..v21.clone() };
    for (accept, length) in
        [(form(0, FirstContactV21::default()), 114), (form(1, v21.clone()), 130), (form(2, newer), 133)]
    {
        let wire = accept.encode();
        assert_eq!(wire.len(), length);
        assert_eq!(Accept::decode(&wire).unwrap(), accept);
        assert_eq!(accept.0.dmb().bytes, 512 << 20, "SMC-R's largest size is tolerated");
    }
    // Release 0 in the long form, release 1 in the short one, a newer release in less than release
    // 1 has.
    assert!(with_byte(form(1, v21).encode(), 75, 0x20).is_err());
    assert!(with_byte(form(0, FirstContactV21::default()).encode(), 75, 0x21).is_err());
    assert!(with_byte(form(0, FirstContactV21::default()).encode(), 75, 0x25).is_err());
}

#[test]
fn sizes_round_down() {
    let code = |bytes| Dmb { token: 0, bytes }.size_code();
    let cases =
        [(0, 0), (4096, 0), (16384, 0), (32767, 0), (32768, 1), (65536, 2), (131_071, 2), (1 << 20, 6)];
    for (bytes, expected) in cases {
        assert_eq!(code(bytes), expected, "{bytes}");
    }
    assert_eq!(code(4 << 20), 6, "SMC-D's largest");
    assert_eq!(code(u32::MAX), 6);
    for size in 0..=6 {
        assert_eq!(Dmb::from_code(0, size).size_code(), size);
    }
}

#[test]
fn eids_keep_to_their_characters() {
    assert_eq!(&Eid::new("A.B-9").unwrap().as_bytes()[..6], b"A.B-9 ");
    assert_eq!(Eid::new("A.B-9").unwrap().to_string(), "A.B-9");
    assert_eq!(Eid::new("TOKIO-SMC-LOOPBACK").unwrap(), Eid::LOOPBACK);
    assert!(Eid::new(&"Z".repeat(32)).is_ok());
    for bad in ["", ".A", "-", "a", "A b", "A_B", "Ä", &"Z".repeat(33)] {
        let error = Eid::new(bad).unwrap_err();
        assert!(error.to_string().contains(&format!("found {bad:?}")), "{error}");
    }
    assert_eq!(Eid::from_wire([0xff; 32]).to_string(), "\\xff".repeat(32));
}

#[test]
fn errors_and_diagnoses_speak() {
    let mut wire = proposal();
    wire[50..52].copy_from_slice(&9000_u16.to_be_bytes());
    let error = Proposal::decode(&wire).unwrap_err();
    assert_eq!(error.to_string(), "CLC Proposal: v2_ext_offset at byte 50: expected 1 to 172, found 9000");
    assert_eq!((error.subject(), error.offset()), ("Proposal", Some(50)));
    assert_eq!(Diagnosis::PEERNOSMC.to_string(), "peer did not signal SMC (0x03010000)");
    assert_eq!(Diagnosis::from_code(0x1234).to_string(), "unknown diagnosis (0x00001234)");
    assert_eq!((Diagnosis::from_code(0x1234).name(), Diagnosis::NOUEID.name()), (None, Some("NOUEID")));
    let mut codes: Vec<u32> = Diagnosis::ALL.iter().map(|diagnosis| diagnosis.code()).collect();
    assert_eq!(codes.len(), 36);
    codes.dedup();
    assert_eq!(codes.len(), 36, "no code stands for two reasons");
    assert!(
        Diagnosis::ALL.iter().all(|&one| Diagnosis::from_code(one.code()) == one && one.name().is_some())
    );
}
