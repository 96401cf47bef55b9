//! The handshake step by step: what each side takes, refuses and remembers.

use super::super::*;
use super::*;

const DMB: Dmb = Dmb { token: 42, bytes: 1 << 20 };

fn accepted(first_contact: bool) -> (ClientHandshake, ServerHandshake, Vec<u8>) {
    let (client, proposal) = ClientHandshake::new(&device());
    let mut server = ServerHandshake::on_proposal(&device(), &proposal).unwrap();
    let accept = server.accept(DMB, 7, first_contact).unwrap();
    (client, server, accept)
}

/// Changes an answer's contents.
fn changed(bytes: &[u8], change: impl FnOnce(&mut Terms)) -> Vec<u8> {
    let mut message = Message::decode(bytes).unwrap();
    match &mut message {
        Message::Accept(Accept(terms)) | Message::Confirm(Confirm(terms)) => change(terms),
        other => panic!("{other:?} is no answer"),
    }
    message.encode()
}

fn change_contact(terms: &mut Terms, change: impl FnOnce(&mut Option<FirstContact>)) {
    match &mut terms.form {
        Form::V2 { first_contact, .. } => change(first_contact),
        Form::V1 { .. } => panic!("version 1 has no first contact extension"),
    }
}

fn with_release(bytes: &[u8], release: u8) -> Vec<u8> {
    changed(bytes, |terms| change_contact(terms, |contact| contact.as_mut().unwrap().release = release))
}

fn propose(change: impl FnOnce(&mut Proposal)) -> Result<ServerHandshake, Refusal> {
    let mut proposal = Proposal::new(Chid::LOOPBACK, &device().gid, device().eid);
    change(&mut proposal);
    ServerHandshake::on_proposal(&device(), &proposal.encode())
}

fn v2(proposal: &mut Proposal) -> &mut V2Extension {
    proposal.v2.as_mut().unwrap()
}

fn smcd(proposal: &mut Proposal) -> &mut SmcdExtension {
    match &mut v2(proposal).paths {
        V2Paths::Ism(smcd) | V2Paths::Both(smcd) => smcd,
        V2Paths::Rdma => panic!("no SMC-D offered"),
    }
}

fn v1_offer(paths: Paths) -> V1Offer {
    V1Offer { paths, subnet: [127, 0, 0, 0], prefix_length: 8, ipv6: Vec::new() }
}

#[test]
fn a_server_refuses_with_linux_reasons() {
    type Change = fn(&mut Proposal);
    let cases: [(&str, Change, Diagnosis); 9] = [
        ("no EID", |p| v2(p).ueids.clear(), Diagnosis::NOUEID),
        ("another EID", |p| v2(p).ueids[0] = Eid::LOOPBACK, Diagnosis::NOSMCDDEV),
        ("another GID", |p| smcd(p).gids[1].gid[7] ^= 1, Diagnosis::NOSMCD2DEV),
        ("another CHID", |p| smcd(p).gids.iter_mut().for_each(|g| g.chid.0 = 0xff00), Diagnosis::NOSMCD2DEV),
        ("half a pair", |p| smcd(p).gids.truncate(1), Diagnosis::NOSMCD2DEV),
        ("no device", |p| smcd(p).gids.clear(), Diagnosis::NOSMCD2DEV),
        ("SMC-R v2 only", |p| v2(p).paths = V2Paths::Rdma, Diagnosis::NOSMCDEV),
        (
            "version 1 SMC-D only",
            |p| {
                p.v1 = Some(v1_offer(Paths::Ism));
                p.v2 = None;
            },
            Diagnosis::NOSMCDDEV,
        ),
        (
            "version 1 header",
            |p| {
                p.version = 1;
                p.v1 = Some(v1_offer(Paths::Both));
            },
            Diagnosis::NOSMCDEV,
        ),
    ];
    for (what, change, diagnosis) in cases {
        let refusal = propose(change).expect_err(what);
        assert_eq!((refusal.diagnosis, refusal.error, refusal.peer), (diagnosis, None, None), "{what}");
        let decline = Decline::decode(&refusal.decline).unwrap();
        assert_eq!(decline.diagnosis, diagnosis, "{what}");
        assert_eq!(decline.version, if what == "version 1 header" { 1 } else { 2 });
    }
}

#[test]
fn a_server_takes_what_it_need_not_know() {
    type Change = fn(&mut Proposal);
    let cases: [(&str, Change); 7] = [
        ("more EIDs", |p| {
            v2(p).ueids.splice(0..0, [Eid::LOOPBACK, Eid::from_wire([0xff; 32])]).for_each(drop)
        }),
        ("more devices", |p| {
            let other = SmcdExtension::emulated(Chid(0xff00), &Gid([1; 16]));
            smcd(p).gids.splice(0..0, other).for_each(drop);
        }),
        ("version 1 too", |p| p.v1 = Some(v1_offer(Paths::Both))),
        ("SMC-R too", |p| v2(p).paths = V2Paths::Both(smcd(p).clone())),
        ("unknown features", |p| v2(p).features = 0xfffe),
        ("a system EID", |p| {
            smcd(p).seid = Eid::from_wire(*b"IBM-SYSZ-ISMSEID0000000012345678");
            v2(p).seid_valid = true;
        }),
        ("a later version", |p| p.version = 3),
    ];
    for (what, change) in cases {
        let mut server = propose(change).expect(what);
        let accept = server.accept(DMB, 1, true).unwrap();
        assert!(ClientHandshake::new(&device()).0.on_answer(&accept).is_ok(), "{what}");
    }
}

#[test]
fn the_lower_release_wins() {
    for (offered, agreed, length) in [(0, 0, 114), (1, 1, 130), (2, 1, 130), (15, 1, 130)] {
        let mut server = propose(|p| v2(p).release = offered).unwrap();
        let accept = server.accept(DMB, 1, true).unwrap();
        assert_eq!(accept.len(), length);
        let mut client = ClientHandshake::new(&device()).0;
        client.on_answer(&accept).unwrap();
        let confirm = client.confirm(DMB, 1).unwrap();
        assert_eq!(confirm.len(), length, "the client repeats release {agreed}");
        assert!(server.on_confirm(&confirm).is_ok());
    }
}

#[test]
fn features_are_what_both_know() {
    for (offered, agreed) in [(0xffff, 1), (0xfffe, 0)] {
        let mut server = propose(|p| v2(p).features = offered).unwrap();
        let accept = server.accept(DMB, 1, true).unwrap();
        let features = |bytes: &[u8]| u16::from_be_bytes([bytes[112], bytes[113]]);
        assert_eq!(features(&accept), agreed);
        let mut client = ClientHandshake::new(&device()).0;
        client.on_answer(&accept).unwrap();
        assert_eq!(features(&client.confirm(DMB, 1).unwrap()), agreed);
    }
}

#[test]
fn a_client_refuses_what_it_did_not_propose() {
    type Change = fn(&mut Terms);
    let cases: [(&str, Change, Diagnosis); 8] = [
        ("gid", |t| t.gid[0] ^= 1, Diagnosis::NOSMCD2DEV),
        ("gid_ext", |t| edit(t, |_, _, ext| ext[7] ^= 1), Diagnosis::NOSMCD2DEV),
        ("chid", |t| edit(t, |chid, _, _| chid.0 = 0xff00), Diagnosis::NOSMCD2DEV),
        ("eid", |t| edit(t, |_, eid, _| *eid = Eid::LOOPBACK), Diagnosis::NOSMCDDEV),
        ("index", |t| t.dmbe_index = 1, Diagnosis::CNFERR),
        (
            "release",
            |t| change_contact(t, |c| c.as_mut().expect("first contact").release = 2),
            Diagnosis::RELEASEERR,
        ),
        ("version 1", |t| t.form = Form::V1 { first_contact: true }, Diagnosis::MODEUNSUPP),
        (
            "version 3",
            |t| match &mut t.form {
                Form::V2 { version, .. } => *version = 3,
                Form::V1 { .. } => panic!(),
            },
            Diagnosis::VERSMISMAT,
        ),
    ];
    for (what, change, diagnosis) in cases {
        let (mut client, _, accept) = accepted(true);
        let error = client.on_answer(&changed(&accept, change)).expect_err(what);
        assert_eq!(error.diagnosis(), diagnosis, "{error}");
        assert_eq!(client.on_answer(&accept).unwrap_err().diagnosis(), Diagnosis::INTERR, "no second chance");
        assert!(client.confirm(DMB, 1).is_err());
        let decline = Decline::decode(&client.decline(error.diagnosis())).unwrap();
        assert_eq!((decline.diagnosis, decline.out_of_sync), (diagnosis, false));
        assert_eq!(decline.version, if what == "version 1" { 1 } else { 2 });

        // What the client must not take from a server, a server must not take from a client either.
        let (mut client, mut server, accept) = accepted(true);
        client.on_answer(&accept).unwrap();
        let confirm = changed(&client.confirm(DMB, 1).unwrap(), change);
        assert_eq!(server.on_confirm(&confirm).expect_err(what).diagnosis(), diagnosis);
    }
}

fn edit(terms: &mut Terms, change: impl FnOnce(&mut Chid, &mut Eid, &mut [u8; 8])) {
    match &mut terms.form {
        Form::V2 { chid, eid, gid_ext, .. } => change(chid, eid, gid_ext),
        Form::V1 { .. } => panic!("version 1 has neither"),
    }
}

#[test]
fn a_confirm_repeats_the_release_and_the_first_contact() {
    let confirm = |first_contact| {
        let (mut client, server, accept) = accepted(first_contact);
        client.on_answer(&accept).unwrap();
        (server, client.confirm(DMB, 9).unwrap())
    };
    for release in [0, 2] {
        let (mut server, bytes) = confirm(true);
        let error = server.on_confirm(&with_release(&bytes, release)).unwrap_err();
        assert_eq!(error.diagnosis(), Diagnosis::RELEASEERR, "{error}");
    }
    let (mut server, _) = confirm(true);
    let (_, reuse) = confirm(false);
    assert_eq!(server.on_confirm(&reuse).unwrap_err().diagnosis(), Diagnosis::RELEASEERR);
    let (mut server, _) = confirm(false);
    let (_, first) = confirm(true);
    assert_eq!(server.on_confirm(&first).unwrap_err().diagnosis(), Diagnosis::CNFERR);
}

#[test]
fn declines_end_every_step() {
    let decline = Decline::new(2, Diagnosis::MEM).encode();
    // Instead of the Proposal: it is not answered.
    let refusal = ServerHandshake::on_proposal(&device(), &decline).unwrap_err();
    assert_eq!((refusal.diagnosis, refusal.peer), (Diagnosis::PEERDECL, Some(Diagnosis::MEM)));
    assert!(refusal.decline.is_empty());
    assert_eq!(
        refusal.to_string(),
        "peer declined (0x05000000): out of memory, buffers or descriptors (0x01010000)"
    );
    // Instead of the Accept.
    let (mut client, mut server, accept) = accepted(true);
    assert_eq!(client.on_answer(&decline), Ok(Answer::Declined(Diagnosis::MEM)));
    assert!(client.on_answer(&accept).is_err());
    assert!(client.confirm(DMB, 1).is_err());
    // Instead of the Confirm.
    assert_eq!(server.on_confirm(&decline), Ok(Confirmation::Declined(Diagnosis::MEM)));
    assert!(server.on_confirm(&decline).is_err());
    // Our own, with a reason nobody knows.
    let (mut client, mut server, accept) = accepted(true);
    client.on_answer(&accept).unwrap();
    let unknown = Diagnosis::from_code(0xdead_beef);
    assert_eq!(server.on_confirm(&client.decline(unknown)), Ok(Confirmation::Declined(unknown)));
    assert!(client.confirm(DMB, 1).is_err(), "after its Decline a client confirms nothing");
    // A client without the link group that the server wants to reuse.
    let (mut client, mut server, accept) = accepted(false);
    client.on_answer(&accept).unwrap();
    let sync = client.decline(Diagnosis::SYNCERR);
    assert!(Decline::decode(&sync).unwrap().out_of_sync);
    assert_eq!(server.on_confirm(&sync), Ok(Confirmation::Declined(Diagnosis::SYNCERR)));
    // The server, before and after its Accept.
    let mut server = propose(|_| ()).unwrap();
    let sent = server.decline(Diagnosis::MAX_DMB);
    assert!(server.accept(DMB, 1, true).is_err());
    let mut client = ClientHandshake::new(&device()).0;
    assert_eq!(client.on_answer(&sent), Ok(Answer::Declined(Diagnosis::MAX_DMB)));
    let (_, mut server, _) = accepted(true);
    server.decline(Diagnosis::TIMEOUT_CL);
    assert!(server.on_confirm(&decline).is_err());
}

#[test]
fn steps_out_of_order_are_errors() {
    let (mut client, proposal) = ClientHandshake::new(&device());
    let early = client.confirm(DMB, 1).unwrap_err();
    assert_eq!(early.diagnosis(), Diagnosis::INTERR);
    assert!(early.to_string().contains("Confirm"), "{early}");

    let mut server = ServerHandshake::on_proposal(&device(), &proposal).unwrap();
    assert!(server.on_confirm(&proposal).is_err());
    assert!(server.accept(DMB, 1, true).is_err(), "an error ends the handshake");

    let (mut client, mut server, accept) = accepted(true);
    assert!(server.accept(DMB, 1, true).is_err());
    client.on_answer(&accept).unwrap();
    client.confirm(DMB, 1).unwrap();
    assert!(client.confirm(DMB, 1).is_err());

    // Well-formed messages that belong elsewhere.
    let (mut client, mut server, accept) = accepted(true);
    assert_eq!(server.on_confirm(&accept).unwrap_err().diagnosis(), Diagnosis::CNFERR);
    let wrong = client.on_answer(&proposal).unwrap_err();
    assert_eq!(wrong.to_string(), "CLC message: type at byte 4: expected Accept or Decline, found Proposal");
    let refusal = ServerHandshake::on_proposal(&device(), &accept).unwrap_err();
    assert!(refusal.error.is_some() && Decline::decode(&refusal.decline).is_ok());
    let refusal = ServerHandshake::on_proposal(&device(), b"GET / HTTP/1.1\r\n\r\n").unwrap_err();
    assert_eq!(refusal.diagnosis, Diagnosis::CNFERR);
}

#[test]
fn host_names_are_cut_to_their_field() {
    let mut device = device();
    device.host = "h".repeat(40);
    let (_, proposal) = ClientHandshake::new(&device);
    let accept = ServerHandshake::on_proposal(&device, &proposal).unwrap().accept(DMB, 1, true).unwrap();
    assert_eq!(accept[78..110], [b'h'; 32]);
    assert_eq!(accept.len(), answer_bytes(true));
}
