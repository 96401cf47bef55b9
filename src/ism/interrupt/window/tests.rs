use super::{Episode, MANY, PATIENCE, PREEMPTED_REST, PRICE, Window};

const US: u64 = 1000;
const CAP: u64 = 50 * US;

/// An episode of that idle time, ended by a ring where the window did not reach it. Returns for how
/// long of it was looked.
fn episode(window: &mut Window, idle: u64) -> u64 {
    let caught = window.keeps_looking(idle, false);
    let looked = if caught { idle } else { window.limit(false) };
    let woken_after = (!caught).then_some(5 * US);
    window.work(Episode { idle, woken_after, rang: false });
    looked
}

fn episodes(window: &mut Window, count: u64, idle: u64) -> u64 {
    (0..count).map(|_| episode(window, idle)).sum()
}

/// A window that is as open as it gets.
fn open() -> Window {
    let mut window = Window::new(CAP);
    episodes(&mut window, 100, 2 * US);
    window
}

#[test]
fn short_times_are_looked_through_and_long_ones_are_slept() {
    let mut window = Window::new(CAP);
    assert!(!window.keeps_looking(0, false), "nothing has been found yet");
    for idle in [US / 2, 2 * US, 5 * US, 14 * US] {
        episodes(&mut window, 100, idle);
        assert_eq!(episodes(&mut window, 100, idle), 100 * idle, "{idle}");
    }
    for idle in [45 * US, 100 * US, 200 * US, 1000 * US, u64::MAX] {
        episodes(&mut window, 200, idle);
        let looked = episodes(&mut window, 1000, idle);
        // But for the trials.
        assert!(looked <= (1000 / u64::from(MANY) + 1) * PRICE, "{idle}: {looked} ns");
    }
    episodes(&mut window, 200, 2 * US);
    assert_eq!(episode(&mut window, 2 * US), 2 * US, "and it opens again");
}

#[test]
fn one_that_is_late_is_waited_for() {
    let mut window = open();
    assert_eq!(episode(&mut window, 20 * US), 20 * US);
    assert!(episode(&mut window, 300 * US) < 2 * PRICE, "not for ever");
    assert_eq!(episode(&mut window, 2 * US), 2 * US, "which shuts nothing");
}

#[test]
fn the_cap_holds_and_0_never_looks() {
    let mut window = Window::new(5 * US);
    episodes(&mut window, 100, 2 * US);
    assert_eq!(episode(&mut window, 20 * US), 5 * US);
    let mut window = Window::new(0);
    assert_eq!(episodes(&mut window, 1000, 1), 0);
    let mut window = Window::new(u64::MAX);
    assert!(episodes(&mut window, 1000, 2 * US) > 900 * US);
}

#[test]
fn preemption_shuts_it_for_3_episodes() {
    let mut window = open();
    window.preempted();
    assert_eq!(episodes(&mut window, u64::from(PREEMPTED_REST), 2 * US), 0);
    assert_eq!(episode(&mut window, 2 * US), 2 * US);
    window.preempted();
    episodes(&mut window, 2, 2 * US);
    window.preempted();
    assert_eq!(episodes(&mut window, u64::from(PREEMPTED_REST), 2 * US), 0, "counted anew");
}

#[test]
fn a_wake_up_of_the_peer_is_no_time_of_its_own_until_it_always_takes_one() {
    let mut window = Window::new(CAP);
    let wake = 15 * US;
    let rung = |window: &mut Window| {
        let caught = window.keeps_looking(wake + 5 * US, true);
        let woken_after = (!caught).then_some(wake);
        window.work(Episode { idle: wake + 5 * US, woken_after, rang: true });
        caught
    };
    // What it takes is known from this side.
    for _ in 0..50 {
        window.work(Episode { idle: 5 * US, woken_after: Some(wake), rang: false });
    }
    assert!(rung(&mut window));
    // It costs 20 us to look for a peer that has to be rung each time, 25 us to sleep.
    for _ in 0..u64::from(PATIENCE) + 50 {
        rung(&mut window);
    }
    assert_eq!(window.patience(true), 0);
}

#[test]
fn garbage_does_no_harm() {
    let mut window = Window::new(u64::MAX);
    for (idle, woken_after) in [(u64::MAX, Some(u64::MAX)), (0, Some(0)), (u64::MAX, None)] {
        for _ in 0..100 {
            window.work(Episode { idle, woken_after, rang: true });
            window.keeps_looking(idle, true);
        }
    }
}

/// Two ends that talk in turns, with windows of their own.
mod pairs {
    use super::*;

    struct End {
        window: Window,
        thinks: u64,
        idle_since: u64,
        rang: bool,
        looked: u64,
    }

    impl End {
        fn new(cap: u64, thinks: u64) -> End {
            End { window: Window::new(cap), thinks, idle_since: 0, rang: false, looked: 0 }
        }

        /// A message is there at `at`. Returns when it is seen, and whether that took a ring.
        fn get(&mut self, at: u64, wake: u64) -> (u64, bool) {
            let idle = at - self.idle_since;
            let looks = self.window.keeps_looking(idle, self.rang);
            self.looked += idle.min(self.window.limit(self.rang));
            let woken_after = (!looks).then_some(wake);
            self.window.work(Episode { idle, woken_after, rang: self.rang });
            (at + woken_after.unwrap_or(300), !looks)
        }

        /// What was seen is answered. Returns when the answer is there.
        fn answer(&mut self, seen: u64) -> u64 {
            self.idle_since = seen + self.thinks;
            self.idle_since
        }
    }

    /// Round trips; the mean time of the last half of them, and the time that both ends looked for
    /// each.
    fn talk(cap: u64, thinks: [u64; 2], wake: u64, rounds: u64) -> (u64, u64) {
        let mut ends = thinks.map(|thinks| End::new(cap, thinks));
        let (mut now, mut half) = (0, (0, 0));
        for round in 0..2 * rounds {
            if round == rounds {
                half = (now, ends[0].looked + ends[1].looked);
            }
            let at = (round % 2) as usize;
            let (seen, rung) = ends[at].get(now, wake);
            ends[1 - at].rang = rung;
            now = ends[at].answer(seen);
        }
        let looked = ends[0].looked + ends[1].looked - half.1;
        ((now - half.0) / (rounds / 2), looked / (rounds / 2))
    }

    #[test]
    fn both_look_where_both_think_for_14_us() {
        // As a gRPC call does; two wake-ups of 10 us more without a look.
        let (time, _) = talk(CAP, [14 * US; 2], 10 * US, 2000);
        assert!(time < 29 * US, "{time} ns");
    }

    #[test]
    fn both_look_where_one_thinks_at_once_and_the_other_for_20_us() {
        let (time, _) = talk(CAP, [US / 2, 20 * US], 10 * US, 2000);
        assert!(time < 22 * US, "{time} ns");
    }

    #[test]
    fn dear_wake_ups_hide_nothing_from_who_may_look_for_so_long() {
        let (time, _) = talk(500 * US, [US; 2], 160 * US, 2000);
        assert!(time < 4 * US, "{time} ns");
    }

    #[test]
    fn who_thinks_for_long_is_slept_for() {
        let (_, looked) = talk(CAP, [100 * US; 2], 10 * US, 2000);
        assert!(looked < 3 * US, "{looked} ns");
    }
}
