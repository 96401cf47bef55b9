//! Messages of the real kernel: what Linux' own SMC sent over loopback, taken off the wire with
//! tcpdump.
//!
//! Two kernels, x86-64, both ends `AF_SMC` sockets on one machine, the UEID set with
//! `smcd ueid add`: 6.12.95 (Debian's, `net/smc` of the same source with CONFIG_SMC_LO), and 7.3.4
//! (Debian's source, user-mode Linux, CONFIG_DIBS_LO, where the host had no name yet when SMC was
//! loaded). `kernel.txt` has one message of each form that they sent.

use super::super::*;

const VECTORS: &str = include_str!("kernel.txt");
const KERNELS: [&str; 2] = ["6.12.95", "7.3.4"];
const EID: &str = "KERNEL-ANCHOR-EID-01";
/// What both kernels lend by default (`net.smc.rmem`), in bytes.
const DMB_BYTES: u32 = 64 << 10;

/// All of them: the kernel, what it is, its bytes.
fn vectors() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let text = VECTORS.trim_start_matches(|first| first != '\n');
    let vector = |text: &'static str| {
        let (title, digits) = text.trim_start().split_once('\n').expect("a title and digits");
        let (kernel, what) = title.split_once(": ").expect("a kernel and a name");
        let digits: Vec<u32> = digits.chars().filter_map(|digit| digit.to_digit(16)).collect();
        (kernel, what, digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
    };
    text.split("\n\n").filter(|text| !text.trim().is_empty()).map(vector).collect()
}

fn vector(kernel: &str, what: &str) -> Vec<u8> {
    let found = vectors().into_iter().find(|vector| vector.0 == kernel && vector.1 == what);
    found.unwrap_or_else(|| panic!("no {what} of {kernel}")).2
}

/// The device of that kernel, as ours would be.
fn device(kernel: &str) -> LocalDevice {
    let (gid, host) = match kernel {
        "6.12.95" => (0x3649_0bc5_c903_78ea_8fe0_4e53_f99a_188e_u128, "kernguest"),
        "7.3.4" => (0xa3f8_4066_d147_4bf0_84f2_1aca_1bf9_c811, "(none)"),
        other => panic!("no kernel {other}"),
    };
    LocalDevice { gid: Gid(gid.to_be_bytes()), eid: Eid::new(EID).unwrap(), host: host.into() }
}

/// Link group numbers stand in the wire form as the kernel's memory has them.
fn linkid(number: u8) -> u32 {
    u32::from_ne_bytes([0, number, 0, 0])
}

/// The DMB token of an Accept or Confirm.
fn token(message: &[u8]) -> u64 {
    match Message::decode(message).unwrap() {
        Message::Accept(Accept(terms)) | Message::Confirm(Confirm(terms)) => terms.dmb().token,
        other => panic!("no DMB in {other:?}"),
    }
}

#[test]
fn every_message_decodes_and_encodes_unchanged() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 16);
    for (kernel, what, bytes) in vectors {
        assert_eq!(bytes.first_chunk().map(message_length), Some(Ok(bytes.len())), "{kernel}: {what}");
        let message = Message::decode(&bytes).unwrap_or_else(|error| panic!("{kernel}: {what}: {error}"));
        assert_eq!(message.encode(), bytes, "{kernel}: {what}: {message:?}");
    }
}

#[test]
fn our_own_messages_are_the_kernels() {
    for kernel in KERNELS {
        for (contact, client_group, first) in [("first contact", 2, true), ("reuse", 1, false)] {
            let [accept, confirm] =
                ["Accept", "Confirm"].map(|kind| vector(kernel, &format!("{kind}, {contact}")));
            let (mut client, proposal) = ClientHandshake::new(&device(kernel));
            assert_eq!(proposal, vector(kernel, "Proposal, 1 UEID"), "{kernel}");
            let mut server = ServerHandshake::on_proposal(&device(kernel), &proposal).unwrap();
            let dmb = Dmb { token: token(&accept), bytes: DMB_BYTES };
            assert_eq!(server.accept(dmb, linkid(1), first).unwrap(), accept, "{kernel}, {contact}");
            let answer = client.on_answer(&accept).unwrap();
            assert_eq!(answer, Answer::Accepted { dmb, linkid: linkid(1), first_contact: first });
            let dmb = Dmb { token: token(&confirm), bytes: DMB_BYTES };
            let sent = client.confirm(dmb, linkid(client_group)).unwrap();
            assert_eq!(sent, confirm, "{kernel}, {contact}");
            let answer = server.on_confirm(&confirm).unwrap();
            assert_eq!(answer, Confirmation::Confirmed { dmb, linkid: linkid(client_group) });
        }
    }
}

#[test]
fn a_proposal_without_eid_gets_the_kernels_own_decline() {
    for kernel in KERNELS {
        let proposal = vector(kernel, "Proposal, no UEID");
        let refusal = ServerHandshake::on_proposal(&device(kernel), &proposal).unwrap_err();
        assert_eq!((refusal.diagnosis.code(), &refusal.error), (0x0303_0008, &None), "{kernel}");
        let decline = vector(kernel, "Decline NOUEID");
        assert_eq!((refusal.decline, decline.len()), (decline, 44), "{kernel}");
    }
}

#[test]
fn the_kernels_decline_is_understood() {
    for kernel in KERNELS {
        let (mut client, _) = ClientHandshake::new(&device(kernel));
        let answer = client.on_answer(&vector(kernel, "Decline NOUEID"));
        assert_eq!(answer, Ok(Answer::Declined(Diagnosis::NOUEID)), "{kernel}");
    }
}

#[test]
fn of_two_eids_the_common_one_is_taken() {
    for kernel in KERNELS {
        let proposal = vector(kernel, "Proposal, 2 UEIDs");
        for eid in [EID, "SECOND.EID"] {
            let device = LocalDevice { eid: Eid::new(eid).unwrap(), ..device(kernel) };
            let mut server = ServerHandshake::on_proposal(&device, &proposal).unwrap();
            let accept = server.accept(Dmb { token: 1, bytes: DMB_BYTES }, linkid(1), true).unwrap();
            assert_eq!(accept[0x22..0x42], proposal_eid(eid), "{kernel}");
        }
    }
}

/// As an EID stands in a message: filled up with blanks.
fn proposal_eid(eid: &str) -> [u8; 32] {
    std::array::from_fn(|at| eid.as_bytes().get(at).copied().unwrap_or(b' '))
}

#[test]
fn another_device_and_another_eid_are_declined() {
    for kernel in KERNELS {
        let ours = device(kernel);
        let elsewhere = LocalDevice { gid: Gid([7; 16]), ..ours.clone() };
        let stranger = LocalDevice { eid: Eid::new("ANOTHER-EID").unwrap(), ..ours };
        for what in ["Proposal, 1 UEID", "Proposal, 2 UEIDs"] {
            let proposal = vector(kernel, what);
            for (device, code) in [(&elsewhere, 0x0303_0007), (&stranger, 0x0303_0001)] {
                let refusal = ServerHandshake::on_proposal(device, &proposal).unwrap_err();
                assert_eq!((refusal.diagnosis.code(), &refusal.error), (code, &None), "{kernel}: {what}");
                // But for the code it is the kernel's own.
                let mut decline = vector(kernel, "Decline NOUEID");
                decline[16..20].copy_from_slice(&u32::to_be_bytes(code));
                assert_eq!(refusal.decline, decline, "{kernel}: {what}");
            }
        }
        // And what a client hears from a server of another device, or with another EID.
        for (device, what) in [(&elsewhere, "Accept, first contact"), (&stranger, "Accept, reuse")] {
            let (mut client, _) = ClientHandshake::new(device);
            assert!(client.on_answer(&vector(kernel, what)).is_err(), "{kernel}: {what}");
        }
    }
}
