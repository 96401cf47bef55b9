//! Peers that would have us pay for their memory, write to one place twice, or wait for the lock of
//! a file that they hold.

use std::os::fd::{AsFd, OwnedFd};
use std::task::Poll;

use super::hosts::{CLIENT, Lab};
use super::ops::writing;
use super::stranger::{Impostor, Stranger, TOKEN};
use super::{bytes, watched};
use crate::clc::{Dmb, ServerHandshake};
use crate::conn::OnPending;
use crate::ism::arena::{Arena, ArenaMap, DmbSegment};
use crate::ism::budget::Account;
use crate::ism::sys::{self, FileLock};
use crate::link::message::{DmbPlace, Message};

const SEGMENT: u64 = 32 << 10;

/// Fills the client's ring, so that it asks for a segment.
fn asks(impostor: &mut Impostor, stranger: &Stranger) {
    let conn = &impostor.client.conns[CLIENT];
    let more = bytes(0, 4096);
    while let Poll::Ready(written) = conn.try_write(&mut writing(&more), OnPending::Arm) {
        written.expect("a write");
    }
    impostor.host.run();
    match stranger.hear() {
        Ok(Some(Message::Ask { token: TOKEN, .. })) => {}
        other => panic!("no ASK: {other:?}"),
    }
}

fn grant(stranger: &Stranger, segment: u64, file: &OwnedFd) {
    let grant = Message::Grant { token: TOKEN, segment, bytes: SEGMENT };
    stranger.send_with(&grant.encode(), &[file.as_fd()]);
}

#[test]
fn one_slot_has_one_token() {
    watched(|| {
        let lab = Lab::new();
        for (other_slot, other_token) in [(false, true), (true, false)] {
            let mut impostor = Impostor::new(&lab);
            let (stranger, _) = impostor.upgraded();
            let (second, id, proposal) = impostor.offers_another(&stranger);
            let mut server = ServerHandshake::on_proposal(&stranger.device(), &proposal).expect("a Proposal");
            let slot = if other_slot { stranger.arena.allocate().unwrap().expect("a slot") } else { 0 };
            let token = if other_token { TOKEN + 1 } else { TOKEN };
            let clc = server.accept(Dmb { token, bytes: 4096 }, 256, false).unwrap();
            let cookie = sys::cookie(second.tcp(1).tcp.as_fd()).unwrap();
            let dmb = DmbPlace { arena: 0, slot, window: 4096 };
            stranger.send(&Message::Match { id, signal: 4, dmb, cookie, commitment: None, clc });
            impostor.host.run();
            assert_eq!(stranger.hear(), Err(()), "its link ends");
            assert!(!second.writes_ring(CLIENT));
        }
    });
}

#[test]
fn one_segment_is_granted_once() {
    watched(|| {
        let lab = Lab::new();
        let mut impostor = Impostor::new(&lab);
        let (stranger, _) = impostor.upgraded();
        asks(&mut impostor, &stranger);
        let (_segment, file) = DmbSegment::create(SEGMENT as usize, &Account::of_ourselves()).unwrap();
        grant(&stranger, 1, &file);
        impostor.host.run();
        assert_eq!(stranger.hear(), Ok(None));
        asks(&mut impostor, &stranger);
        grant(&stranger, 2, &file);
        impostor.host.run();
        assert_eq!(stranger.hear(), Err(()));
    });
}

#[test]
fn one_question_has_one_answer() {
    watched(|| {
        let lab = Lab::new();
        let mut impostor = Impostor::new(&lab);
        let (stranger, _) = impostor.upgraded();
        asks(&mut impostor, &stranger);
        let lent = [1, 2].map(|number| {
            let lent = DmbSegment::create(SEGMENT as usize, &Account::of_ourselves()).unwrap();
            grant(&stranger, number, &lent.1);
            lent
        });
        impostor.host.run();
        assert_eq!(stranger.hear(), Err(()));
        drop(lent);
    });
}

#[test]
fn a_segment_that_its_owner_has_not_paid_for_is_returned() {
    watched(|| {
        let lab = Lab::new();
        let mut impostor = Impostor::new(&lab);
        let (stranger, _) = impostor.upgraded();
        asks(&mut impostor, &stranger);
        let sparse = sys::memfd_sealed(SEGMENT).unwrap();
        grant(&stranger, 1, &sparse);
        impostor.host.run();
        assert_eq!(stranger.hear(), Ok(Some(Message::Return { token: TOKEN, segment: 1 })));
        assert_eq!(sys::memory_of(sparse.as_fd()).unwrap(), 0);
        assert_eq!(stranger.hear(), Ok(None), "the connection goes on with what it has");
    });
}

#[test]
fn the_lock_of_a_shared_file_held_for_ever_stops_nobody() {
    watched(|| {
        let lab = Lab::new();
        let mut impostor = Impostor::new(&lab);
        let (stranger, token) = impostor.upgraded();
        stranger.send(&Message::Ask { token, bytes: SEGMENT, held: 0 });
        impostor.host.run();
        let Ok(Some(Message::Grant { .. })) = stranger.hear() else { panic!("no GRANT") };
        let lent = stranger.got.borrow_mut().pop().expect("a segment");
        let Some(lock) = FileLock::hold(lent.as_fd()) else { return };
        // The owner is done with the segment, and would take its memory back.
        impostor.client.close(CLIENT);
        while impostor.host.step() {}
        // Its endpoint serves others, and this peer, too.
        let (_pair, ..) = impostor.offers_another(&stranger);
        let mut other = Impostor::new(&lab);
        let (elsewhere, token) = other.upgraded();
        asks(&mut other, &elsewhere);
        elsewhere.send(&Message::Ask { token, bytes: SEGMENT, held: 0 });
        other.host.run();
        let Ok(Some(Message::Grant { .. })) = elsewhere.hear() else { panic!("no GRANT") };
        let links = impostor.host.endpoint.links();
        assert!(!links[0].account().lane().is_idle(), "somebody waits for the lock, and nobody for him");
        assert!(links[0].account().taken()[0] > SEGMENT, "what is not given back is counted");
        drop(lock);
        links[0].account().lane().settle();
        assert_eq!(sys::memory_of(lent.as_fd()).unwrap(), 0);
        assert!(links[0].account().taken()[0] < SEGMENT);
    });
}

#[test]
fn what_a_peer_sends_is_mapped_while_it_holds_the_lock_of_its_file() {
    watched(|| {
        let [lender, borrower] = [(); 2].map(|()| Account::of_ourselves());
        let (arena, arena_file) = Arena::create(4, &lender).unwrap();
        let (_segment, segment_file) = DmbSegment::create(SEGMENT as usize, &lender).unwrap();
        let Some(_lock) = FileLock::hold(arena_file.as_fd()) else { return };
        let Some(_other) = FileLock::hold(segment_file.as_fd()) else { return };
        let theirs = ArenaMap::attach(&arena_file, 4, &borrower).unwrap();
        // Also the owner of an arena goes on with its slots.
        for _ in 0..3 {
            let slot = arena.allocate().unwrap().expect("a slot");
            drop(theirs.claim(slot).unwrap());
            arena.release(slot);
        }
        drop(DmbSegment::attach(&segment_file, SEGMENT, &borrower).unwrap());
        drop(theirs);
        borrower.lane().settle();
        assert_eq!(borrower.taken(), [0, 0]);
    });
}
