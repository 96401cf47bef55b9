//! Whose fault it was: each error that a stream makes itself says so by its source.

use std::io::{self, ErrorKind};
use std::task::Poll;

use super::bytes;
use super::hosts::{CLIENT, Lab, Pair, SERVER, patiently};
use super::ops::writing;
use super::watched;
use crate::conn::{Directions, OnPending, receive};
use crate::error::SmcError;
use crate::ism::ring::Memory;
use crate::ism::sys;
use crate::link::message::{LONGEST, Message};
use crate::link::stream::Death;
use crate::sync::{Ordering, lock};

/// The kind of an error and its typed source.
#[track_caller]
fn told(error: &io::Error) -> (ErrorKind, SmcError) {
    let source = error.get_ref().and_then(|source| source.downcast_ref::<SmcError>());
    (error.kind(), source.unwrap_or_else(|| panic!("no SmcError in {error:?}")).clone())
}

/// What a reader is told.
#[track_caller]
fn read(pair: &Pair, side: usize) -> (ErrorKind, SmcError) {
    told(&pair.end(side).expect_err("no end"))
}

/// What a writer is told.
#[track_caller]
fn write(pair: &Pair, side: usize) -> (ErrorKind, SmcError) {
    let mut error = None;
    patiently("an error of a write", || {
        match pair.conns[side].try_write(&mut writing(b"x"), OnPending::Return) {
            Poll::Ready(Err(refused)) => error = Some(refused),
            Poll::Ready(Ok(_)) | Poll::Pending => {}
        }
        error.is_some()
    });
    told(&error.expect("an error"))
}

/// A rule that the peer, which is this process in these tests, has broken.
#[track_caller]
fn assert_misbehaved((kind, source): (ErrorKind, SmcError), rule: &str) {
    assert_eq!(kind, ErrorKind::ConnectionReset);
    let SmcError::PeerMisbehaved(how) = source else { panic!("{source:?}") };
    assert!(how.rule().contains(rule), "{how}");
    assert_eq!(how.peer().pid().map(|pid| pid as u32), Some(std::process::id()));
    assert_eq!(how.peer().uid(), sys::effective_uid());
    assert!(how.to_string().contains(&std::process::id().to_string()), "{how}");
}

#[test]
fn a_cursor_that_lies_is_the_peers_fault() {
    watched(|| {
        let mut lab = Lab::new();
        let (pair, other) = (lab.upgraded(), lab.upgraded());
        let memory = lock(&pair.conns[SERVER].rx).dmb.as_ref().map(|dmb| dmb.consumer.memory().clone());
        let memory = memory.expect("a DMB");
        memory.header().producer.prod.store(u64::MAX, Ordering::Release);
        let rule = "producer cursor is";
        assert_misbehaved(read(&pair, SERVER), rule);
        // Later calls, and the other streams of the link.
        assert_misbehaved(write(&pair, SERVER), rule);
        assert_misbehaved(read(&other, SERVER), rule);
        assert_misbehaved(write(&other, SERVER), rule);
    });
}

#[test]
fn a_reader_that_lies_is_the_peers_fault() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.upgraded();
        let memory = lock(&pair.conns[CLIENT].tx).dmb.as_ref().map(|dmb| dmb.producer.memory().clone());
        let memory = memory.expect("a DMB");
        memory.header().consumer.cons.store(1 << 40, Ordering::Release);
        assert_misbehaved(write(&pair, CLIENT), "consumer cursor is");
    });
}

#[test]
fn nonsense_on_the_link_is_the_peers_fault() {
    watched(|| {
        // What no message begins with, and one that is not the peer's to send now.
        let (endpoint, bell) = ([9; 16], crate::link::message::Bell::Socket);
        let again = Message::Hello { link_id: 1, endpoint, gid: [9; 16], slots: 1, bell };
        let detach = Message::Detach { token: 77 };
        for (nonsense, rule) in [
            (vec![0xff; 9], "unknown type"),
            (again.encode(), "another number of descriptors"),
            (detach.encode(), "DETACH of a token that is not out"),
        ] {
            let mut lab = Lab::new();
            let pair = lab.upgraded();
            let link = lab.hosts[CLIENT].links().remove(0);
            sys::send(link.socket(), &nonsense, &[]).expect("send");
            let link = lab.hosts[SERVER].links().remove(0);
            let death = link.receive(&mut [0; LONGEST], 128, || false).expect_err("an end");
            link.bury(death);
            assert_misbehaved(read(&pair, SERVER), rule);
            assert_misbehaved(write(&pair, SERVER), rule);
        }
    });
}

#[test]
fn a_close_with_unread_bytes_is_the_peers_choice() {
    watched(|| {
        let mut lab = Lab::new();
        for first_reads in [true, false] {
            let pair = lab.upgraded();
            pair.write(CLIENT, &bytes(0, 100));
            pair.close(SERVER);
            let reset = (ErrorKind::ConnectionReset, SmcError::PeerClosed);
            // Linux tells of a reset once.
            let first = if first_reads { read(&pair, CLIENT) } else { write(&pair, CLIENT) };
            assert_eq!(first, reset);
            for _ in 0..2 {
                assert_eq!(write(&pair, CLIENT), (ErrorKind::BrokenPipe, SmcError::PeerClosed));
            }
        }
    });
}

#[test]
fn a_process_that_dies_is_gone() {
    watched(|| {
        for first_reads in [true, false] {
            let mut lab = Lab::new();
            let pair = lab.upgraded();
            pair.write(CLIENT, &bytes(0, 100));
            lab.kill(SERVER, &pair);
            lab.run();
            let gone = (ErrorKind::ConnectionReset, SmcError::PeerGone);
            assert_eq!(if first_reads { read(&pair, CLIENT) } else { write(&pair, CLIENT) }, gone);
            assert_eq!(write(&pair, CLIENT), (ErrorKind::BrokenPipe, SmcError::PeerGone));
        }
    });
}

#[test]
fn bytes_that_do_not_add_up_are_nobodys_fault() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.upgraded();
        // As if TCP had brought more than the sender gave it before its switch.
        lock(&pair.conns[SERVER].rx).path = receive::Path::Draining { at: 5, until: 3 };
        assert_eq!(read(&pair, SERVER), (ErrorKind::ConnectionReset, SmcError::OutOfStep));
        assert_eq!(write(&pair, SERVER), (ErrorKind::ConnectionReset, SmcError::OutOfStep));
    });
}

/// The link of `side` gets nonsense from its peer, and ends.
fn blame(lab: &mut Lab, side: usize) {
    let link = lab.hosts[1 - side].links().remove(0);
    sys::send(link.socket(), &[0xff; 9], &[]).expect("send");
    let link = lab.hosts[side].links().remove(0);
    let death = link.receive(&mut [0; LONGEST], 128, || false).expect_err("an end");
    link.bury(death);
}

#[test]
fn a_link_that_is_blamed_later_changes_nothing_for_a_stream_that_was_reset() {
    watched(|| {
        let reset = (ErrorKind::ConnectionReset, SmcError::PeerClosed);
        let broken = (ErrorKind::BrokenPipe, SmcError::PeerClosed);
        // Who was told before the link ended: nobody, the reader, the writer.
        for told in [None, Some(true), Some(false)] {
            for first_reads in [true, false] {
                let mut lab = Lab::new();
                let (pair, other) = (lab.upgraded(), lab.upgraded());
                pair.write(CLIENT, &bytes(0, 100));
                pair.close(SERVER);
                match told {
                    Some(true) => assert_eq!(read(&pair, CLIENT), reset),
                    Some(false) => assert_eq!(write(&pair, CLIENT), reset),
                    None => {}
                }
                blame(&mut lab, CLIENT);
                match (told, first_reads) {
                    (None, true) => assert_eq!(read(&pair, CLIENT), reset),
                    (None, false) => assert_eq!(write(&pair, CLIENT), reset),
                    (Some(_), true) => pair.end(CLIENT).expect("told once"),
                    (Some(_), false) => assert_eq!(write(&pair, CLIENT), broken),
                }
                pair.end(CLIENT).expect("told once");
                assert_eq!(write(&pair, CLIENT), broken);
                // A stream that was not reset before is by this.
                assert_misbehaved(read(&other, CLIENT), "unknown type");
                assert_misbehaved(write(&other, CLIENT), "unknown type");
            }
        }
    });
}

#[test]
fn a_link_that_ends_later_changes_nothing_for_a_stream_that_is_out_of_step() {
    watched(|| {
        for death in [Death::Fault, Death::Peer, Death::Failed] {
            let mut lab = Lab::new();
            let pair = lab.upgraded();
            pair.write(SERVER, &bytes(0, 100));
            lock(&pair.conns[SERVER].rx).path = receive::Path::Draining { at: 5, until: 3 };
            let out_of_step = (ErrorKind::ConnectionReset, SmcError::OutOfStep);
            assert_eq!(read(&pair, SERVER), out_of_step);
            if death == Death::Fault {
                blame(&mut lab, SERVER);
            } else {
                lab.hosts[SERVER].links()[0].bury(death);
            }
            for _ in 0..2 {
                assert_eq!(read(&pair, SERVER), out_of_step, "{death:?}");
                assert_eq!(write(&pair, SERVER), out_of_step, "{death:?}");
            }
        }
    });
}

#[test]
fn a_rule_that_was_broken_stays_the_one_that_is_told() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.upgraded();
        let memory = lock(&pair.conns[SERVER].rx).dmb.as_ref().map(|dmb| dmb.consumer.memory().clone());
        let memory = memory.expect("a DMB");
        memory.header().producer.prod.store(u64::MAX, Ordering::Release);
        let first = read(&pair, SERVER);
        assert_misbehaved(first.clone(), "producer cursor is");
        // It says now that it has closed, and that another number is right.
        memory.header().producer.prod.store(u64::MAX - 1, Ordering::Release);
        memory.header().producer.flags.store(u32::MAX, Ordering::Release);
        for _ in 0..2 {
            assert_eq!(read(&pair, SERVER), first);
            assert_eq!(write(&pair, SERVER), first);
        }
    });
}

#[test]
fn a_peer_that_reads_no_messages_hits_a_limit() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.upgraded();
        let link = lab.hosts[CLIENT].links().remove(0);
        // What these say is of no interest to the peer, which does not read them.
        for _ in 0..1_000_000 {
            link.send_pinned(77);
        }
        lab.hosts[CLIENT].run();
        let (kind, source) = read(&pair, CLIENT);
        assert_eq!(kind, ErrorKind::ConnectionReset);
        let SmcError::Limit(what) = &source else { panic!("{source:?}") };
        assert!(what.contains("does not read its control messages"), "{source}");
    });
}

#[test]
fn a_task_of_ours_that_fails_is_our_fault() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.upgraded();
        lab.hosts[CLIENT].links()[0].bury(Death::Failed);
        for (kind, source) in [read(&pair, CLIENT), write(&pair, CLIENT)] {
            assert_eq!(kind, ErrorKind::ConnectionReset);
            assert!(matches!(source, SmcError::OwnFailure(_)), "{source:?}");
        }
    });
}

#[test]
fn a_runtime_that_is_gone_is_named() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.upgraded();
        lab.hosts[CLIENT].links()[0].bury(Death::Runtime);
        assert_eq!(write(&pair, CLIENT), (ErrorKind::Other, SmcError::RuntimeGone));
    });
}

#[test]
fn what_this_end_has_done_itself_is_told_as_such() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.upgraded();
        let error = pair.conns[CLIENT].pin("into_std", Directions::Both).expect_err("it has switched");
        assert_eq!(told(&error), (ErrorKind::Unsupported, SmcError::Upgraded("into_std".into())));
        pair.conns[CLIENT].shutdown_write().expect("shutdown");
        assert_eq!(write(&pair, CLIENT), (ErrorKind::BrokenPipe, SmcError::ShutDown));
        pair.close(CLIENT);
        assert_eq!(read(&pair, CLIENT), (ErrorKind::NotConnected, SmcError::Closed));
    });
}
