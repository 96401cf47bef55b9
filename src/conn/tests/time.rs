//! What work for peers takes of a runtime's time, by a clock that goes on as that work is done.

use std::os::fd::AsFd;
use std::time::Duration;

use super::hosts::{CLIENT, Host, Lab, Pair, SERVER, patiently};
use super::proofs::turn;
use super::stranger::{Bystander, SLOTS, Stranger};
use super::watched;
use crate::conn::upgrade::Phase;
use crate::ism::arena::Arena;
use crate::ism::budget::Account;
use crate::ism::sys;
use crate::link::aside;
use crate::link::message::{LONGEST, Message};

const START: Duration = Duration::from_secs(1000);
/// Longer than anybody rests, and too short for anything else to happen.
const WHILE: Duration = Duration::from_secs(4);
const NOTHING: Duration = Duration::ZERO;

/// A link of a stranger to somebody for whom what it says takes time: it says useless things, so
/// often, and in the end what ends the link.
fn talker(lab: &mut Lab, often: u64, step: Duration) -> Stranger {
    let stranger = Stranger::to(lab, SERVER);
    stranger.open(lab);
    stranger.greet();
    lab.run();
    lab.hosts[SERVER].set_clock(START, step);
    for id in 0..often {
        stranger.send(&Message::Cancel { id });
        lab.run();
    }
    stranger.send(&Message::Detach { token: 1 });
    lab.run();
    stranger
}

#[test]
fn who_had_its_part_of_the_time_is_not_read_until_time_has_passed() {
    watched(|| {
        let mut lab = Lab::new();
        let bystander = Bystander(lab.upgraded());
        let talker = talker(&mut lab, 1000, Duration::from_micros(250));
        assert_eq!(talker.hear(), Ok(None), "what breaks the rule is not read");
        // Another link of the same process is no help.
        let other = Stranger::to(&lab, SERVER);
        other.send(&Message::Link);
        let greeted = || sys::recv(other.socket.as_fd(), &mut [0; LONGEST], 2).is_ok();
        lab.hosts[SERVER].set_clock(START, NOTHING);
        for _ in 0..3 {
            lab.pass(WHILE);
            assert_eq!((talker.hear(), greeted()), (Ok(None), false), "time stands still");
            bystander.is_well();
        }
        lab.hosts[SERVER].set_clock(START + WHILE, NOTHING);
        lab.pass(WHILE);
        assert_eq!((talker.hear(), greeted()), (Err(()), true), "the rest is read");
        bystander.is_well();
        lab.upgraded();
    });
}

#[test]
fn nobody_pays_for_time_in_which_others_ran() {
    watched(|| {
        let mut lab = Lab::new();
        lab.hosts[SERVER].preempt();
        let talker = talker(&mut lab, 500, Duration::from_millis(20));
        assert_eq!(talker.hear(), Err(()), "all of it was read");
    });
}

#[test]
fn upgrades_take_what_they_take() {
    const SLOW: Duration = Duration::from_millis(20);
    watched(|| {
        let mut lab = Lab::new();
        for host in &lab.hosts {
            host.set_clock(START, SLOW);
        }
        for _ in 0..100 {
            // Each message of it takes a fifth of what may be taken at once.
            drop(lab.upgraded());
            lab.run();
        }
    });
}

#[test]
fn a_turn_of_upgrades_does_not_end_where_everything_is_slow() {
    const UPGRADES: usize = 12;
    watched(|| {
        let mut lab = Lab::new();
        let _link = lab.link();
        let pairs = Vec::from_iter((0..UPGRADES).map(|_| lab.pair()));
        let server = &lab.hosts[SERVER];
        server.set_clock(START, Duration::from_millis(20));
        server.take_many();
        assert!(pairs.iter().all(|pair| pair.offer(&lab)));
        lab.hosts[CLIENT].run();
        let turns = (0..).take_while(|_| lab.hosts[SERVER].step()).count();
        assert!(turns < UPGRADES / 2, "{turns}");
        lab.run();
        pairs.iter().for_each(Pair::settle);
    });
}

/// Those of `sockets` that were turned away.
fn gone(sockets: &[impl AsFd]) -> usize {
    sockets.iter().filter(|socket| sys::has_hung_up(socket.as_fd()).expect("poll")).count()
}

#[test]
fn who_comes_without_a_pause_is_turned_away_with_pauses() {
    watched(|| {
        let lab = Lab::with_limits_at(SERVER, |config| config.max_queries_per_second(0));
        let [client, mut server]: [Host; 2] = lab.hosts;
        let endpoint = server.endpoint.id();
        let sockets: Vec<_> = (0..100).map(|_| client.endpoint.connect(endpoint).expect("connect")).collect();
        server.set_clock(START, Duration::from_micros(5));
        let mut before = 0;
        for _ in 0..3 {
            server.run();
            let after = gone(&sockets);
            assert!(after > before && after - before < 30, "then others have their turn: {after}");
            before = after;
            server.pass(Duration::from_secs(1));
        }
    });
}

#[test]
fn many_arenas_are_unmapped_where_nobody_waits() {
    const MANY: usize = 20;
    watched(|| {
        let mut lab = Lab::new();
        let stranger = Stranger::to(&lab, SERVER);
        stranger.open(&mut lab);
        stranger.greet();
        let mut inodes = Vec::new();
        for _ in 0..MANY {
            let (_, file) = Arena::create(SLOTS, &Account::of_ourselves()).unwrap();
            inodes.push(rustix::fs::fstat(&file).unwrap().st_ino.to_string());
            stranger.send_with(&Message::Arena { slots: SLOTS }.encode(), &[file.as_fd()]);
        }
        lab.run();
        let mapped = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            let of_them = |line: &&str| {
                line.split_whitespace().nth(4).is_some_and(|inode| inodes.iter().any(|other| other == inode))
            };
            maps.lines().filter(of_them).count()
        };
        // Those of this side, too, go on that thread, which other tests keep busy.
        patiently("the end of our own mappings", || mapped() == MANY);
        // The thread that does it has something to do for now.
        let (go_on, waits) = std::sync::mpsc::channel::<()>();
        aside::run(move || {
            let _ = waits.recv();
        });
        drop(stranger);
        patiently("the end of the link", || {
            lab.run();
            lab.hosts[SERVER].links().is_empty()
        });
        assert_eq!(mapped(), MANY, "by whoever ends the link");
        drop(go_on);
        patiently("the end of the mappings", || mapped() == 0);
    });
}

#[test]
fn keys_are_reckoned_with_where_nobody_waits() {
    watched(|| {
        let mut lab = Lab::new();
        let _link = lab.link();
        let server = lab.hosts[SERVER].links().remove(0);
        // The thread that does it has something to do for now.
        let (go_on, waits) = std::sync::mpsc::channel::<()>();
        let begun = server.matching().run(move || {
            let _ = waits.recv();
        });
        assert!(begun.is_ok(), "a thread");
        let pair = lab.pair();
        turn(&pair);
        assert!(pair.offer(&lab));
        while lab.hosts[CLIENT].step_alone() | lab.hosts[SERVER].step_alone() {}
        assert_eq!(pair.conns[CLIENT].upgrade.phase(), Phase::Offering, "the first proof is one by key");
        drop(go_on);
        lab.run();
        pair.settle();
        assert!(pair.conns.iter().all(|conn| conn.transport().is_loopback_ism()));
    });
}
