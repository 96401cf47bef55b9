//! Peers that leave a step of the upgrade unanswered: who waits is told, and nothing else ends.

use std::task::{Context, Poll, Waker};

use super::hosts::{CLIENT, Lab, Pair, SERVER};
use super::watched;
use crate::config::UpgradePolicy;
use crate::conn::Directions;
use crate::conn::watch::WatchKey;
use crate::link::Link;
use crate::link::message::Destination;
use crate::link::stream::LinkedStream;
use crate::sync::Arc;
use crate::transport::{FallbackReason, Transport};

/// What `upgrade()` answers at this moment; `None` while it waits.
fn upgrade(pair: &Pair, side: usize) -> Option<Transport> {
    let (mut key, mut cx) = (WatchKey::default(), Context::from_waker(Waker::noop()));
    let answer = pair.conns[side].poll_upgraded(&mut cx, &mut key);
    pair.conns[side].forget_watch(&mut key);
    match answer {
        Poll::Ready(transport) => Some(transport),
        Poll::Pending => None,
    }
}

/// The side waits, until the peer's turn has lasted too long; then it is told, and the stream says
/// the same.
fn waits_but_not_for_ever(pair: &Pair, side: usize) {
    let conn = &pair.conns[side];
    assert_eq!(upgrade(pair, side), None);
    assert_eq!(conn.transport(), Transport::Tcp(FallbackReason::InProgress));
    assert!(conn.answer_due().is_some(), "somebody wakes it");
    conn.upgrade.make_overdue();
    assert_eq!(upgrade(pair, side), Some(Transport::Tcp(FallbackReason::NoAnswer)));
    assert_eq!(conn.transport(), Transport::Tcp(FallbackReason::NoAnswer));
    assert_eq!(conn.answer_due(), None);
}

#[test]
fn no_step_is_waited_for_for_ever_and_each_may_still_come() {
    watched(|| {
        let mut lab = Lab::new();
        let pair = lab.pair();
        assert!(pair.offer(&lab));
        // No HELLO.
        waits_but_not_for_ever(&pair, CLIENT);
        lab.hosts[SERVER].run();
        lab.hosts[CLIENT].run();
        // An OFFER without MATCH. The server has not seen it, and has nothing to wait for.
        assert_eq!(upgrade(&pair, CLIENT), Some(Transport::Tcp(FallbackReason::NoAnswer)));
        assert_eq!(upgrade(&pair, SERVER), Some(Transport::Tcp(FallbackReason::NotYet)));
        lab.hosts[SERVER].run();
        // A MATCH without READY.
        waits_but_not_for_ever(&pair, SERVER);
        lab.hosts[CLIENT].run();
        // A peer that matches and does not switch.
        assert!(pair.writes_ring(CLIENT));
        waits_but_not_for_ever(&pair, CLIENT);
        // All of it was only slow.
        lab.run();
        pair.settle();
        for side in [CLIENT, SERVER] {
            assert!(upgrade(&pair, side).is_some_and(|transport| transport.is_loopback_ism()));
            pair.write(side, b"hello");
            pair.expect(1 - side, b"hello");
        }
        assert_eq!(lab.slots_in_use(), 2, "one each way");
    });
}

#[test]
fn an_answer_that_comes_after_the_stream_has_gone_leaves_nothing() {
    watched(|| {
        let mut lab = Lab::new();
        let live = lab.upgraded();
        let pair = lab.pair();
        assert!(pair.offer(&lab));
        waits_but_not_for_ever(&pair, CLIENT);
        pair.close(CLIENT);
        lab.run();
        pair.close(SERVER);
        lab.run();
        assert_eq!(lab.slots_in_use(), 2, "those of the connection that lives");
        live.write(CLIENT, b"hello");
        live.expect(SERVER, b"hello");
    });
}

#[test]
fn offers_to_a_peer_that_reads_nothing_end_no_live_connection() {
    watched(|| {
        let mut lab = Lab::new();
        let live = lab.upgraded();
        let link = lab.hosts[CLIENT].links()[0].clone();
        let pair = lab.connect(UpgradePolicy::Manual, 64 << 10);
        let stream: Arc<dyn LinkedStream> = pair.conns[CLIENT].clone();
        // It takes no offer that it has not begun: each is cancelled at once.
        let begun = (0..40_000).find(|_| {
            link.offer(stream.clone(), Destination::Own, None);
            link.offers_that_wait() > 0
        });
        assert!(begun.is_some());
        let waiting: Vec<Pair> = (0..100).map(|_| lab.pair()).collect();
        assert!(waiting.iter().all(|pair| pair.offer(&lab)));
        assert_eq!(link.offers_that_wait(), 101, "for room");
        assert_eq!(link.death(), None);
        live.write(CLIENT, b"hello");
        live.expect(SERVER, b"hello");
        lab.run();
        assert_eq!(link.death(), None);
        // It reads again: nobody has waited in vain.
        assert_eq!(link.offers_that_wait(), 0);
        for pair in &waiting {
            pair.settle();
            assert!(pair.conns[CLIENT].transport().is_loopback_ism(), "{:?}", pair.conns[CLIENT].transport());
        }
        // And it takes offers again.
        let late = lab.pair();
        assert!(late.offer(&lab));
        lab.run();
        late.settle();
        assert!(late.conns[CLIENT].transport().is_loopback_ism());
    });
}

/// Offers until the link's queue is so full that offers wait.
fn clog(lab: &Lab, link: &Arc<Link>) -> Pair {
    let pair = lab.connect(UpgradePolicy::Manual, 64 << 10);
    let stream: Arc<dyn LinkedStream> = pair.conns[CLIENT].clone();
    while link.offers_that_wait() == 0 {
        // It takes no offer that it has not begun: each is cancelled at once.
        link.offer(stream.clone(), Destination::Own, None);
    }
    pair
}

#[test]
fn streams_that_go_while_they_wait_take_no_place_from_others() {
    watched(|| {
        let mut lab = Lab::with_limits_at(CLIENT, |config| config.max_streams_per_link(8));
        let _live = lab.upgraded();
        let link = lab.hosts[CLIENT].links()[0].clone();
        let _clogs = clog(&lab, &link);
        for _ in 0..20 {
            let pair = lab.pair();
            assert!(pair.offer(&lab));
            let transport = pair.conns[CLIENT].transport();
            assert_eq!(transport, Transport::Tcp(FallbackReason::InProgress), "not refused");
            pair.close(CLIENT);
            pair.close(SERVER);
        }
        lab.run();
        assert_eq!(link.offers_that_wait(), 0);
        assert_eq!(link.death(), None);
    });
}

#[test]
fn who_waits_to_offer_may_go_or_be_pinned_and_hears_of_the_end() {
    watched(|| {
        for dies in [false, true] {
            let mut lab = Lab::new();
            let live = lab.upgraded();
            let link = lab.hosts[CLIENT].links()[0].clone();
            let _clogs = clog(&lab, &link);
            let pairs: Vec<Pair> = (0..60).map(|_| lab.pair()).collect();
            for (number, pair) in pairs.iter().enumerate() {
                assert!(pair.offer(&lab));
                match number % 3 {
                    0 => pair.close(CLIENT),
                    1 => pair.conns[CLIENT].pin("a test", Directions::Both).expect("on TCP"),
                    _ => {}
                }
            }
            assert_eq!(link.offers_that_wait(), 61);
            if dies {
                lab.kill(SERVER, &live);
            }
            lab.run();
            assert_eq!((link.offers_that_wait(), link.death().is_some()), (0, dies));
            for (number, pair) in pairs.iter().enumerate().filter(|(number, _)| number % 3 > 0) {
                let is_pinned = number % 3 == 1;
                let transport = pair.conns[CLIENT].transport();
                match (is_pinned, dies) {
                    (true, _) => assert_eq!(transport, Transport::Tcp(FallbackReason::Pinned)),
                    (false, true) => assert_ne!(transport, Transport::Tcp(FallbackReason::InProgress)),
                    (false, false) => {
                        pair.settle();
                        assert!(pair.conns[CLIENT].transport().is_loopback_ism());
                    }
                }
                if !dies {
                    pair.write(CLIENT, b"hello");
                    pair.expect(SERVER, b"hello");
                }
            }
            if !dies {
                assert_eq!(lab.slots_in_use(), 2 * 21, "of those that live");
            }
        }
    });
}
