//! Rings that grow by grants and shrink again, and links that end when nobody needs them.

use std::task::Poll;

use super::hosts::{CLIENT, Lab, Pair, SERVER};
use super::ops::writing;
use super::{bytes, watched};
use crate::config::UpgradePolicy;
use crate::conn::OnPending;
use crate::ism::arena::DmbSegment;
use crate::ism::budget::Account;
use crate::ism::ring::Refusal;
use crate::link::endpoint::IDLE_LINK;
use crate::link::stream::{Answer, Ask, Granted, GrowingStream};
use crate::sync::lock;

/// What is lent to a writer that fills its ring, in steps, when its window is 64 KiB.
const GROWN: u64 = (16 + 64) << 10;

/// Bytes of the larger segments that the reader of a side lends.
fn lent(pair: &Pair, side: usize) -> u64 {
    lock(&pair.conns[side].rx).dmb.as_ref().expect("a DMB").consumer.lent_bytes()
}

/// What is to be made is made here.
fn made(conn: &impl GrowingStream, answer: Answer) -> Answer {
    match answer {
        Answer::Aside(lend) => conn.lend(&lend),
        answer => answer,
    }
}

/// Writes until the ring takes no more, whatever is granted; returns how much that was.
fn fill(lab: &mut Lab, pair: &Pair, side: usize, from: u64) -> u64 {
    let mut written = 0;
    loop {
        let more = bytes(from + written, 10_000);
        match pair.conns[side].try_write(&mut writing(&more), OnPending::Arm) {
            Poll::Ready(Ok(length)) => written += length as u64,
            Poll::Ready(Err(error)) => panic!("{error}"),
            Poll::Pending => {
                lab.run();
                if !lock(&pair.conns[side].tx).dmb.as_mut().unwrap().producer.is_writable().unwrap() {
                    return written;
                }
            }
        }
    }
}

#[test]
fn a_full_ring_grows_up_to_its_window_and_goes_back_when_it_was_idle() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.upgraded();
        for side in [CLIENT, SERVER] {
            assert_eq!(lent(&pair, 1 - side), 0);
            let written = fill(&mut lab, &pair, side, 0);
            assert_eq!(written, (4 + 16 + 64) << 10, "what a write of 10,000 bytes needs, then the window");
            assert_eq!(lent(&pair, 1 - side), GROWN);
            pair.expect(1 - side, &bytes(0, written as usize));
            // It has asked for more, which it does not need any more.
            lab.pause();
            // Two looks without a byte in between.
            assert!(!pair.conns[side].shrink());
            assert_eq!(lent(&pair, 1 - side), 64 << 10, "what was left is given back at once");
            assert!(pair.conns[side].shrink());
            lab.run();
            assert_eq!(lent(&pair, 1 - side), 0, "both ends are back in the first segment");
            let again = fill(&mut lab, &pair, side, written);
            assert_eq!(again, written, "and it grows again");
            pair.expect(1 - side, &bytes(written, again as usize));
        }
    });
}

#[test]
fn who_wrote_much_at_once_over_tcp_finds_a_ring_that_takes_it() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        pair.write(SERVER, &bytes(0, 10_000));
        pair.expect(CLIENT, &bytes(0, 10_000));
        pair.write(CLIENT, &bytes(0, 100));
        pair.expect(SERVER, &bytes(0, 100));
        pair.offer(&lab);
        lab.run();
        pair.settle();
        assert_eq!((lent(&pair, CLIENT), lent(&pair, SERVER)), (16 << 10, 0));
        pair.write(SERVER, &bytes(10_000, 10_000));
        pair.expect(CLIENT, &bytes(10_000, 10_000));
    });
}

#[test]
fn a_link_expects_of_its_next_connection_what_the_last_ones_needed() {
    watched(|| {
        let mut lab = Lab::new();
        let first = lab.upgraded();
        lab.write(&first, SERVER, &bytes(0, 10_000));
        first.expect(CLIENT, &bytes(0, 10_000));
        for pair in [lab.upgraded(), first] {
            // What is expected only is no need.
            assert_eq!((lent(&pair, CLIENT), lent(&pair, SERVER)), (16 << 10, 0));
            lab.close(pair);
        }
        let mut expecting = 0;
        loop {
            let pair = lab.upgraded();
            let lent = lent(&pair, CLIENT);
            pair.write(SERVER, &bytes(0, 100));
            pair.expect(CLIENT, &bytes(0, 100));
            lab.close(pair);
            if lent == 0 {
                break;
            }
            expecting += 1;
        }
        assert!((1..5).contains(&expecting), "{expecting} of them needed nothing, and more was expected");
    });
}

#[test]
fn a_writer_that_waits_goes_on_when_a_segment_is_granted() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.upgraded();
        pair.write(CLIENT, &bytes(0, 4096));
        let task = super::ops::Task::new();
        let waker = std::task::Waker::from(task.clone());
        let mut cx = std::task::Context::from_waker(&waker);
        let more = bytes(4096, 100);
        assert!(pair.conns[CLIENT].poll_write(&mut cx, &mut writing(&more)).is_pending());
        assert!(!task.is_woken());
        lab.run();
        assert!(task.is_woken());
        pair.write(CLIENT, &more);
        pair.expect(SERVER, &bytes(0, 4196));
    });
}

#[test]
fn a_reader_that_does_not_read_is_lent_what_tcp_would_hold() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.upgraded();
        let mut written = fill(&mut lab, &pair, CLIENT, 0);
        assert_eq!(lent(&pair, SERVER), GROWN, "more only after a pause");
        let (receive, send) = crate::ism::sys::tcp_buffers();
        let enough = (receive + send).min(16 << 20);
        while written < enough {
            let before = written;
            lab.pause();
            written += fill(&mut lab, &pair, CLIENT, written);
            assert!(written > before, "nothing more after {written} bytes");
        }
        assert!(written <= (receive + send).min(64 << 20) * 2);
        pair.expect(SERVER, &bytes(0, written as usize));
    });
}

#[test]
fn a_reader_that_reads_is_lent_no_more_than_the_window() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.upgraded();
        let mut written = fill(&mut lab, &pair, CLIENT, 0);
        let mut read = 0;
        for _ in 0..20 {
            // It has asked, and waits for the answer.
            pair.expect(SERVER, &bytes(read, 1000));
            read += 1000;
            lab.pause();
            written += fill(&mut lab, &pair, CLIENT, written);
            assert!(lent(&pair, SERVER) <= GROWN);
        }
        // And when it stops, the writer asks again.
        lab.pause();
        assert!(fill(&mut lab, &pair, CLIENT, written) > 64 << 10);
    });
}

#[test]
fn what_a_chosen_receive_buffer_allows_is_the_window() {
    watched(|| {
        let mut lab = Lab::new();
        let mut pair = lab.connect(UpgradePolicy::Manual, 64 << 10);
        socket2::SockRef::from(&pair.tcp(SERVER).tcp).set_recv_buffer_size(8 << 10).unwrap();
        pair.accept(&lab);
        pair.offer(&lab);
        lab.run();
        pair.settle();
        let written = fill(&mut lab, &pair, CLIENT, 0);
        assert_eq!(written, (4 + 8) << 10);
        pair.expect(SERVER, &bytes(0, written as usize));
    });
}

#[test]
fn a_grant_goes_where_it_was_asked_for_and_nowhere_else() {
    watched(|| {
        let lab = &mut Lab::new();
        let pair = lab.upgraded();
        let conn = &pair.conns[CLIENT];
        let (segment, _file) = DmbSegment::create(1 << 16, &Account::of_ourselves()).unwrap();
        assert_eq!(conn.granted(1, Some(segment)), Granted::NotAsked);
        assert_eq!(conn.granted(1, None), Granted::NotAsked);
        assert_eq!(conn.awaits(1, 4096), Granted::NotAsked);
        conn.denied(Refusal::Memory);
        pair.write(CLIENT, &bytes(0, 100));
        pair.expect(SERVER, &bytes(0, 100));

        // One question at a time.
        let ask = Ask { bytes: 1 << 16, held: 0 };
        let first = pair.conns[SERVER].asked(ask);
        assert!(matches!(pair.conns[SERVER].asked(ask), Answer::Fault(_)), "while it is made");
        assert!(matches!(made(&*pair.conns[SERVER], first), Answer::Grant { segment: 1, .. }));
        assert!(matches!(pair.conns[SERVER].asked(ask), Answer::Later(_)));
        assert!(matches!(pair.conns[SERVER].asked(ask), Answer::Fault(_)));
        pair.close(SERVER);
        assert!(pair.conns[SERVER].ask_again().is_none(), "it has gone");
        assert!(matches!(pair.conns[SERVER].asked(ask), Answer::Fault(_) | Answer::Deny(_)));
        pair.close(CLIENT);
        assert_eq!(conn.granted(2, None), Granted::Gone);
    });
}

#[test]
fn a_return_that_comes_behind_its_detach_harms_nobody() {
    watched(|| {
        let mut lab = Lab::new();
        let (bystander, pair) = (lab.upgraded(), lab.upgraded());
        fill(&mut lab, &pair, CLIENT, 0);
        let (link, token) = {
            let tx = lock(&pair.conns[CLIENT].tx);
            let dmb = tx.dmb.as_ref().expect("a DMB");
            (dmb.peer.link.clone(), dmb.token)
        };
        // The one who shrinks the ring was overtaken by the application's close.
        pair.close(CLIENT);
        link.send_return(token, 1);
        link.send_ask(token, Ask { bytes: 1 << 16, held: 0 });
        lab.run();
        assert_eq!(link.death(), None);
        lab.write(&bystander, SERVER, &bytes(0, 9000));
        bystander.expect(CLIENT, &bytes(0, 9000));
    });
}

#[test]
fn a_grant_that_crosses_the_readers_close_harms_nobody() {
    watched(|| {
        let mut lab = Lab::new();
        let (bystander, pair) = (lab.upgraded(), lab.upgraded());
        pair.write(CLIENT, &bytes(0, 4096));
        let answer = pair.conns[CLIENT].try_write(&mut writing(b"more"), OnPending::Arm);
        assert!(answer.is_pending(), "full, and it has asked");
        lab.hosts[SERVER].run();
        assert_eq!(lent(&pair, SERVER), 32 << 10, "which the client does not know yet");
        let link = lock(&pair.conns[CLIENT].tx).dmb.as_ref().expect("a DMB").peer.link.clone();
        pair.expect(SERVER, &bytes(0, 4096));
        // It takes its memory back at once.
        pair.close(SERVER);
        lab.run();
        assert_eq!(link.death(), None);
        pair.end(CLIENT).expect("an end as after any close");
        pair.close(CLIENT);
        lab.write(&bystander, SERVER, &bytes(0, 9000));
        bystander.expect(CLIENT, &bytes(0, 9000));
    });
}

#[test]
fn a_grant_is_no_larger_than_any_answer() {
    watched(|| {
        let lab = &mut Lab::new();
        let pair = lab.upgraded();
        pair.write(CLIENT, &bytes(0, 4096));
        let answer = pair.conns[CLIENT].try_write(&mut writing(b"more"), OnPending::Arm);
        assert!(answer.is_pending(), "full, and it has asked");
        let conn = &pair.conns[CLIENT];
        assert_eq!(conn.awaits(1, 8 << 20), Granted::NotAsked);
        assert_eq!(conn.awaits(0, 4096), Granted::NotAsked);
        assert_eq!(conn.awaits(1, 4 << 20), Granted::Taken, "a step beyond the window");
        assert_eq!(conn.awaits(1, 4096), Granted::NotAsked, "one answer has come");
    });
}

#[test]
fn what_was_lacking_for_a_stalled_reader_is_looked_for_again() {
    watched(|| {
        let lab = &mut Lab::new();
        let pair = lab.upgraded();
        let conn = &pair.conns[SERVER];
        let ask = Ask { bytes: 32 << 10, held: 0 };
        let Answer::Grant { segment, .. } = made(&**conn, conn.asked(ask)) else { panic!("a grant") };
        // The link's socket takes no descriptor now: the question stays.
        let Answer::Later(first) = conn.not_sent(segment) else { panic!("later") };
        let again = || conn.ask_again().map(|answer| made(&**conn, answer));
        let Some(Answer::Grant { segment, .. }) = again() else { panic!("a grant") };
        let Answer::Later(second) = conn.not_sent(segment) else { panic!("later still") };
        assert!(second > first);
        // Not for ever.
        let mut tries = 2;
        while let Some(Answer::Grant { segment, .. }) = again() {
            tries += 1;
            if let Answer::Deny(why) = conn.not_sent(segment) {
                assert_eq!(why, Refusal::Memory);
                break;
            }
        }
        assert!((5..20).contains(&tries), "{tries}");
        assert_eq!(lent(&pair, SERVER), 0, "nothing is left of what was not sent");
    });
}

#[test]
fn a_link_without_connections_is_closed_and_made_again() {
    watched(|| {
        let mut lab = Lab::new();
        let links = |lab: &Lab| lab.hosts.iter().map(|host| host.endpoint.links().len()).sum::<usize>();
        let (first, second) = (lab.upgraded(), lab.upgraded());
        assert_eq!(links(&lab), 2, "one link, with two ends");
        lab.close(first);
        lab.pass(IDLE_LINK);
        lab.pass(IDLE_LINK);
        assert_eq!(links(&lab), 2, "one connection needs it");
        lab.close(second);
        lab.pass(IDLE_LINK);
        assert_eq!(links(&lab), 2, "it was used a moment ago");
        let third = lab.upgraded();
        lab.pass(IDLE_LINK);
        lab.close(third);
        lab.pass(IDLE_LINK);
        assert_eq!(links(&lab), 2);
        lab.pass(IDLE_LINK);
        assert_eq!(links(&lab), 0);
        let fourth = lab.upgraded();
        assert_eq!(links(&lab), 2);
        lab.write(&fourth, CLIENT, &bytes(0, 9000));
        fourth.expect(SERVER, &bytes(0, 9000));
    });
}

#[test]
fn an_offer_that_crosses_the_end_of_an_idle_link_is_not_lost() {
    watched(|| {
        let mut lab = Lab::new();
        let first = lab.upgraded();
        lab.close(first);
        lab.hosts[SERVER].pass(IDLE_LINK);
        // The server says BYE, and before that comes the client offers.
        let pair = lab.pair();
        lab.hosts[SERVER].pass(IDLE_LINK);
        pair.offer(&lab);
        lab.run();
        pair.settle();
        for side in [CLIENT, SERVER] {
            assert!(pair.conns[side].transport().is_loopback_ism());
        }
        lab.close(pair);
        let again = lab.upgraded();
        lab.write(&again, SERVER, &bytes(0, 9000));
        again.expect(CLIENT, &bytes(0, 9000));
    });
}
