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
    assert_eq!(page.stamp.0.load(Ordering::Relaxed), 0);
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
    for word in page.summary.0.iter().chain(&page.words.0) {
        word.store(u64::MAX, Ordering::Relaxed);
    }
    let count = page.drain(|| CONNECTIONS, |index, _| assert!(index < CONNECTIONS));
    assert_eq!(count, 2 * CONNECTIONS as usize);
}

#[test]
fn numbers_that_nobody_has_are_taken_and_not_named() {
    let page = SignalPage::new();
    for word in page.summary.0.iter().chain(&page.words.0) {
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
    assert_eq!(asked, page.words.0.len());
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
    const ROUNDS: u64 = 20_000;
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

mod window {
    use super::Window;

    const US: u64 = 1000;
    const CAP: u64 = 50 * US;

    /// A poller's clock and window; it looks every microsecond.
    struct Poller {
        window: Window,
        now: u64,
    }

    impl Poller {
        fn new(cap: u64) -> Poller {
            let mut poller = Poller { window: Window::new(cap), now: 1_000_000 };
            poller.window.work(poller.now);
            poller
        }

        /// An episode of this length. Returns how long of it the poller kept looking.
        fn episode(&mut self, length: u64) -> u64 {
            let begin = self.now;
            while self.now < begin + length && self.window.keep_polling(self.now) {
                self.now += US;
            }
            let polled = self.now - begin;
            self.now = begin + length;
            self.window.work(self.now);
            polled
        }

        fn episodes(&mut self, count: u32, length: u64) {
            for _ in 0..count {
                self.episode(length);
            }
        }
    }

    #[test]
    fn it_doubles_from_12_us_up_to_the_cap() {
        let mut poller = Poller::new(CAP);
        let polled: Vec<u64> = (0..6).map(|_| poller.episode(200 * US) / US).collect();
        assert_eq!(polled, [0, 12, 24, 48, 50, 50]);
    }

    #[test]
    fn a_cap_beyond_all_times_is_reached_and_held() {
        let mut poller = Poller::new(u64::MAX);
        for _ in 0..100 {
            poller.window.work(poller.now);
            assert!(poller.window.keep_polling(poller.now));
        }
        assert!(poller.window.keep_polling(u64::MAX - 1), "the window is as wide as it was asked for");
    }

    #[test]
    fn it_doubles_when_both_sides_think_for_30_us() {
        let mut poller = Poller::new(CAP);
        let polled: Vec<u64> = (0..6).map(|_| poller.episode(30 * US) / US).collect();
        assert_eq!(polled, [0, 12, 24, 30, 30, 30], "slept episodes count like polled ones");
    }

    #[test]
    fn an_episode_of_250_us_closes_it() {
        let mut poller = Poller::new(CAP);
        poller.episodes(6, 10 * US);
        assert_eq!(poller.episode(249 * US), 50 * US);
        assert_eq!(poller.episode(250 * US), 50 * US);
        assert_eq!(poller.episode(10 * US), 0);
        assert_eq!(poller.episode(20 * US), 12 * US, "and a short one opens it again");
    }

    #[test]
    fn a_cap_below_12_us_holds_and_0_never_polls() {
        let mut poller = Poller::new(5 * US);
        poller.episode(10 * US);
        assert_eq!(poller.episode(10 * US), 5 * US);
        assert_eq!(poller.episode(10 * US), 5 * US);
        let mut poller = Poller::new(0);
        for _ in 0..100 {
            assert_eq!(poller.episode(US), 0);
        }
    }

    #[test]
    fn nothing_is_polled_before_the_first_work() {
        let mut window = Window::new(CAP);
        assert!(!window.keep_polling(0));
        assert!(!window.keep_polling(1));
        window.work(5);
        assert!(!window.keep_polling(5), "one piece of work is no episode");
    }

    #[test]
    fn sixteen_failures_shut_it_for_4_8_and_16_episodes() {
        let mut poller = Poller::new(CAP);
        // 100 us of thinking: worth a window by their length, never met by one of 50 us.
        let polled: Vec<u64> = (0..156).map(|_| poller.episode(100 * US) / US).collect();
        let mut expected = vec![0];
        for rest in [4, 8, 16, 16, 16] {
            expected.extend([12, 24, 48]);
            expected.extend([50; 16]);
            expected.extend(std::iter::repeat_n(0, rest));
        }
        assert_eq!(polled, expected);
    }

    #[test]
    fn a_success_forgives_failures() {
        let mut poller = Poller::new(CAP);
        for _ in 0..10 {
            poller.episodes(15, 100 * US);
            assert_eq!(poller.episode(20 * US), 20 * US);
        }
        // Also a rest is short again afterwards.
        let mut poller = Poller::new(CAP);
        poller.episodes(4 + 16 + 4 + 3 + 16 + 8 + 3, 100 * US);
        assert_eq!(poller.episode(20 * US), 20 * US);
        poller.episodes(16, 100 * US);
        let rest: Vec<u64> = (0..5).map(|_| poller.episode(100 * US) / US).collect();
        assert_eq!(rest, [0, 0, 0, 0, 12]);
    }

    #[test]
    fn preemption_shuts_it_for_3_episodes() {
        let mut poller = Poller::new(CAP);
        poller.episodes(6, 10 * US);
        poller.window.preempted();
        for episode in 0..3 {
            assert_eq!(poller.episode(10 * US), 0, "episode {episode}");
        }
        assert_eq!(poller.episode(20 * US), 12 * US);
    }

    #[test]
    fn preemption_during_a_rest_counts_anew() {
        let mut poller = Poller::new(CAP);
        poller.window.preempted();
        poller.episodes(2, 10 * US);
        poller.window.preempted();
        for _ in 0..3 {
            assert_eq!(poller.episode(10 * US), 0);
        }
        assert_eq!(poller.episode(20 * US), 12 * US);
    }

    #[test]
    fn a_clock_that_goes_back_does_no_harm() {
        let mut window = Window::new(CAP);
        window.work(1000 * US);
        window.work(10 * US);
        assert!(window.keep_polling(5 * US));
        assert!(window.keep_polling(21 * US));
        assert!(!window.keep_polling(22 * US));
    }
}
