//! The signal page by one thread and by many; every sentence about the window.

use super::*;
use std::collections::BTreeSet;

const STALE: u64 = 100;

fn raise(page: &SignalPage, index: u32, signal: Signal, now: u64, last_rung: &AtomicU64) -> bool {
    page.raise(index, signal, || now, STALE, last_rung)
}

#[test]
fn zeroed_memory_is_a_fresh_page() {
    let page = SignalPage::new();
    assert!(page.is_idle());
    assert_eq!(page.near.looked_at.load(Ordering::Relaxed), 0);
    assert!(size_of::<SignalPage>() <= 16384, "it has to fit the control pages of an arena");
}

#[test]
fn every_index_is_found_as_it_was_raised() {
    let page = SignalPage::new();
    let last_rung = AtomicU64::new(0);
    page.publish_look(1);
    let mut raised = BTreeSet::new();
    for index in (0..CONNECTIONS).step_by(331).chain([1, 31, 32, CONNECTIONS - 1]) {
        raise(&page, index, Signal::Data, 1, &last_rung);
        raised.insert((index, 0));
        if index % 2 == 1 {
            raise(&page, index, Signal::Space, 1, &last_rung);
            raise(&page, index, Signal::Space, 1, &last_rung);
            raised.insert((index, 1));
        }
    }
    assert!(!page.is_idle());
    let mut found = Vec::new();
    assert_eq!(page.drain(|| CONNECTIONS, |index, signal| found.push((index, signal.bit()))), raised.len());
    assert_eq!(found, raised.into_iter().collect::<Vec<_>>());
    assert!(page.is_idle());
    assert_eq!(page.drain(|| CONNECTIONS, |_, _| panic!("nothing is left")), 0);
}

#[test]
fn indexes_that_do_not_exist_are_ignored() {
    let page = SignalPage::new();
    let last_rung = AtomicU64::new(0);
    for index in [CONNECTIONS, CONNECTIONS + 64, u32::MAX] {
        assert!(!raise(&page, index, Signal::Space, 1, &last_rung));
    }
    assert!(page.is_idle());
}

#[test]
fn garbage_in_the_page_names_no_connection_out_of_range() {
    let page = SignalPage::new();
    for word in page.near.words.iter().chain(&page.summary.0).chain(&page.far.0) {
        word.store(u64::MAX, Ordering::Relaxed);
    }
    let count = page.drain(|| CONNECTIONS, |index, _| assert!(index < CONNECTIONS));
    assert_eq!(count, 2 * CONNECTIONS as usize);
}

#[test]
fn numbers_that_nobody_has_are_taken_and_not_named() {
    let page = SignalPage::new();
    for word in page.near.words.iter().chain(&page.summary.0).chain(&page.far.0) {
        word.store(u64::MAX, Ordering::Relaxed);
    }
    let (mut asked, mut named) = (0, Vec::new());
    let known = || {
        asked += 1;
        // One more comes while the page is looked through.
        if asked == 1 { 3 } else { 4 }
    };
    assert_eq!(page.drain(known, |index, _| named.push(index)), 6);
    assert_eq!(named, [0, 0, 1, 1, 2, 2]);
    assert_eq!(asked, WORDS);
    assert!(page.is_idle());
    assert_eq!(page.drain(|| CONNECTIONS, |_, _| panic!("nothing is left")), 0);
}

/// The latest number may be raised as soon as it is there.
#[test]
fn a_number_that_has_just_come_is_named() {
    let page = SignalPage::new();
    let last_rung = AtomicU64::new(0);
    let last = CONNECTIONS - 1;
    raise(&page, 1, Signal::Data, 1, &last_rung);
    raise(&page, last, Signal::Space, 1, &last_rung);
    let (mut asked, mut named) = (0, Vec::new());
    let known = || {
        asked += 1;
        if asked == 1 { 2 } else { CONNECTIONS }
    };
    assert_eq!(page.drain(known, |index, _| named.push(index)), 2);
    assert_eq!(named, [1, last]);
}

#[test]
fn a_sleeping_poller_is_rung_by_the_first() {
    let page = SignalPage::new();
    let last_rung = AtomicU64::new(0);
    page.publish_look(1000);
    assert!(page.sleep());
    assert!(raise(&page, 1, Signal::Data, 2000, &last_rung));
    assert!(!raise(&page, 2, Signal::Data, 2001, &last_rung), "it is awake by now, or about to be");
    assert!(!page.sleep(), "there are signals");
    page.publish_look(2002);
    assert_eq!(page.drain(|| CONNECTIONS, |_, _| ()), 2);
    assert!(!raise(&page, 1, Signal::Data, 2003, &last_rung), "it looks anyway");
}

/// A new stamp takes the line from all who raise.
#[test]
fn a_stamp_that_is_as_good_as_new_stays() {
    let page = SignalPage::new();
    let stamp = || page.near.looked_at.load(Ordering::Relaxed);
    page.publish_look(10_000);
    page.publish_look(10_000 + AS_GOOD_AS_NEW - 1);
    assert_eq!(stamp(), 10_000);
    page.publish_look(10_000 + AS_GOOD_AS_NEW);
    assert_eq!(stamp(), 10_000 + AS_GOOD_AS_NEW);
    page.sleep();
    page.publish_look(1);
    assert_eq!(stamp(), 1, "who has slept is awake");
    // What a peer has written there, or who rang by a clock of its own.
    page.near.looked_at.store(u64::MAX, Ordering::Relaxed);
    page.publish_look(20_000);
    assert_eq!(stamp(), 20_000);
}

/// Of a peer in another time namespace every stamp is far away.
#[test]
fn a_peer_with_another_clock_rings_again_when_it_was_answered() {
    let page = SignalPage::new();
    let last_rung = AtomicU64::new(0);
    let theirs = 1_000_000_000;
    page.publish_look(10_000);
    for look in 1..10 {
        assert!(raise(&page, 1, Signal::Data, theirs, &last_rung), "before look {look}");
        assert!(!raise(&page, 2, Signal::Data, theirs, &last_rung), "it was rung");
        page.publish_answer(10_000 + look * (AS_GOOD_AS_NEW / 20));
        assert_eq!(page.drain(|| CONNECTIONS, |_, _| ()), 2);
    }
}

#[test]
fn a_clock_at_zero_is_not_sleep() {
    let page = SignalPage::new();
    let last_rung = AtomicU64::new(0);
    assert!(raise(&page, 1, Signal::Data, 0, &last_rung));
    assert!(!raise(&page, 1, Signal::Data, 0, &last_rung));
    page.publish_look(0);
    assert!(!raise(&page, 1, Signal::Data, 0, &last_rung));
}

#[test]
fn a_late_poller_is_rung_once_for_each_look() {
    let page = SignalPage::new();
    let (mine, theirs) = (AtomicU64::new(0), AtomicU64::new(0));
    page.publish_look(1000);
    assert!(!raise(&page, 1, Signal::Data, 1000 + STALE, &mine), "not late yet");
    assert!(raise(&page, 1, Signal::Data, 1001 + STALE, &mine));
    assert!(!raise(&page, 1, Signal::Data, 9000, &mine));
    assert!(raise(&page, 1, Signal::Data, 9000, &theirs), "each sender for itself");
    page.publish_look(9500);
    assert!(!raise(&page, 1, Signal::Data, 9500, &mine));
    assert!(raise(&page, 1, Signal::Data, 9900, &mine));
    assert!(raise(&page, 1, Signal::Data, 9000, &theirs), "a clock that is behind is as far away");
}

#[test]
fn no_signal_of_many_threads_is_lost() {
    // Miri takes a thousand times as long.
    const ROUNDS: u64 = if cfg!(miri) { 200 } else { 20_000 };
    const SENDERS: u32 = 3;
    let page = SignalPage::new();
    let bell = std::sync::Mutex::new(false);
    let rung = std::sync::Condvar::new();
    let sent: Vec<_> = (0..SENDERS).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let (page, bell, rung, sent) = (&page, &bell, &rung, &sent);
            scope.spawn(move || {
                let last_rung = AtomicU64::new(0);
                for round in 1..=ROUNDS {
                    sent[sender as usize].store(round, Ordering::Relaxed);
                    if page.raise(sender * 5000, Signal::Data, || 1, u64::MAX, &last_rung) {
                        *bell.lock().unwrap() = true;
                        rung.notify_one();
                    }
                }
            });
        }
        // Each sender's last round arrives, or a signal was lost.
        let mut seen = [0; SENDERS as usize];
        while seen != [ROUNDS; SENDERS as usize] {
            page.drain(
                || CONNECTIONS,
                |index, _| {
                    let sender = (index / 5000) as usize;
                    seen[sender] = sent[sender].load(Ordering::Relaxed);
                },
            );
            if page.sleep() && seen != [ROUNDS; SENDERS as usize] {
                let guard = bell.lock().unwrap();
                let limit = std::time::Duration::from_secs(20);
                let (mut guard, waited) = rung.wait_timeout_while(guard, limit, |rung| !*rung).unwrap();
                assert!(!waited.timed_out(), "slept through a signal: {seen:?}");
                *guard = false;
            }
            page.publish_look(1);
        }
    });
}
