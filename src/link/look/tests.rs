use super::*;

const US: u64 = 1000;
const START: u64 = 1_000_000 * US;

fn watch() -> Watch {
    let mut watch = Watch::new(Window::new(100 * US), Looks::new([0; 16]));
    watch.count_gap(START, None);
    watch
}

/// Work every `idle` ns, found by looks that follow each other, until the window is open.
fn open(watch: &mut Watch, idle: u64) -> u64 {
    let mut now = START;
    for _ in 0..100 {
        let until = now + idle;
        while now < until {
            now += 500;
            watch.count_gap(now, None);
        }
        watch.work(now, 0);
    }
    assert!(watch.window.is_open());
    now
}

#[test]
fn what_this_side_thinks_is_no_idle_time() {
    let mut watch = watch();
    let mut now = open(&mut watch, 2 * US);
    // Its tasks take 30 us, a third of that between two looks.
    for _ in 0..3 {
        now += 10 * US;
        watch.count_gap(now, None);
        assert!(watch.keeps_looking(now, 0, &[]), "it has something to do");
        assert_eq!(watch.idle, 0);
    }
    for _ in 0..20 {
        now += US;
        watch.count_gap(now, None);
        assert!(watch.keeps_looking(now, 0, &[]));
    }
    assert_eq!(watch.idle, 20 * US);
    for _ in 0..10 {
        now += US;
        watch.count_gap(now, None);
    }
    assert!(!watch.keeps_looking(now, 0, &[]), "now it has been idle for long");
}

#[test]
fn who_is_idle_looks_on_and_then_gives_way_to_other_threads() {
    let mut watch = watch();
    let mut now = open(&mut watch, 20 * US);
    now += 10 * US;
    watch.count_gap(now, None);
    assert_eq!(watch.next(now, true), Next::Look, "its tasks have something to do");
    let mut next = Vec::new();
    for _ in 0..14 {
        now += US;
        watch.count_gap(now, None);
        next.push(watch.next(now, true));
    }
    assert!(next[..9].iter().all(|next| *next == Next::IdleLook), "{next:?}");
    assert!(next[9..].iter().all(|next| *next == Next::PatientLook), "{next:?}");
    // However long others ran, that is no work of this side, which would keep it looking.
    now += 15 * US;
    watch.count_gap(now, None);
    assert_eq!(watch.next(now, true), Next::PatientLook);
    now += 15 * US;
    watch.count_gap(now, None);
    assert!(!watch.keeps_looking(now, 0, &[]), "it was idle for {} us", watch.idle / US);
    watch.work(now, 0);
    assert_eq!(watch.next(now, true), Next::Look);
    assert_eq!(watch.next(now, false), Next::Sleep);
    assert_eq!(watch.asleep_since, Some(now));
}

#[test]
fn a_runtime_that_always_has_something_to_do_sleeps_in_the_end() {
    let mut watch = watch();
    let begin = open(&mut watch, 2 * US);
    let mut now = begin;
    loop {
        now += 30 * US;
        watch.count_gap(now, None);
        if !watch.keeps_looking(now, 0, &[]) {
            break;
        }
    }
    assert!((LONGEST_BUSY..LONGEST_BUSY + 30 * US).contains(&(now - begin)));
}

#[test]
fn looks_that_take_long_are_idle_time_too() {
    // Nothing is faster here: 8 us from look to look.
    let mut watch = watch();
    let mut now = START;
    for _ in 0..1000 {
        now += 8 * US;
        watch.count_gap(now, None);
        watch.work(now, 0);
    }
    let begin = now;
    while watch.keeps_looking(now, 0, &[]) {
        now += 8 * US;
        watch.count_gap(now, None);
    }
    assert!(now - begin < 100 * US, "{} us", (now - begin) / US);
}

#[test]
fn the_ring_ends_the_idle_time_and_begins_the_wake_up() {
    let mut watch = watch();
    watch.asleep_since = Some(START);
    watch.count_gap(START + 50 * US, Some(START + 40 * US));
    assert_eq!((watch.idle, watch.woken_after), (40 * US, Some(10 * US)));
    watch.work(START + 50 * US, 0);
    // Who was not rung has found something by itself.
    watch.asleep_since = Some(START + 50 * US);
    watch.count_gap(START + 60 * US, None);
    assert_eq!((watch.idle, watch.woken_after), (10 * US, None));
    // A peer may write there what it likes.
    for stamp in [1, START, u64::MAX] {
        watch.asleep_since = Some(START + 60 * US);
        watch.count_gap(START + 70 * US, Some(stamp));
        assert!(watch.woken_after.is_some_and(|woken| woken <= 10 * US), "{stamp}");
        watch.work(START + 70 * US, 0);
    }
}

#[test]
fn a_peer_on_the_same_cpu_is_given_way_but_for_ever_fewer_episodes() {
    let mut watch = watch();
    let looked_after = |watch: &mut Watch| {
        let mut episodes = 1;
        while watch.is_to_give_way(true) {
            episodes += 1;
        }
        episodes
    };
    let looks: Vec<u32> = (0..9).map(|_| looked_after(&mut watch)).collect();
    assert_eq!(looks, [8, 16, 32, 64, 128, 256, 512, 1024, 1024]);
    assert!(!watch.is_to_give_way(false), "somebody was moved");
    assert_eq!(looked_after(&mut watch), 8);
}
