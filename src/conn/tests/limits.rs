//! Each limit that a configuration sets, reached: the reason is told, TCP carries every byte, and
//! what is free again can be taken again.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::Duration;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::disguise::Disguise;
use super::hosts::{CLIENT, Host, Lab, Pair, SERVER};
use super::proofs::{Thief, subject_of};
use super::stranger::{Bystander, DMB, PLACE};
use super::{bytes, watched};
use crate::clc::{Answer, Dmb};
use crate::config::{Config, UpgradePolicy};
use crate::ism::sys;
use crate::link::lack::why_no_link;
use crate::link::message::{DmbPlace, LONGEST, Message};
use crate::link::outbox::AGAIN;
use crate::peer::PeerPolicy;
use crate::transport::{FallbackReason, Transport};

fn declined() -> FallbackReason {
    FallbackReason::Declined(FallbackReason::Limit.diagnosis())
}

/// Each end says so, and every byte arrives.
#[track_caller]
fn stays_on_tcp(pair: &Pair, client: FallbackReason, server: FallbackReason) {
    pair.settle();
    let told = [CLIENT, SERVER].map(|side| pair.conns[side].transport());
    assert_eq!(told, [client, server].map(Transport::Tcp));
    talks(pair);
}

#[track_caller]
fn talks(pair: &Pair) {
    for side in [CLIENT, SERVER] {
        pair.write(side, &bytes(side as u64, 3000));
        pair.expect(1 - side, &bytes(side as u64, 3000));
    }
}

#[track_caller]
fn is_upgraded(pair: &Pair) {
    pair.settle();
    assert!(pair.reads_ring(CLIENT) && pair.reads_ring(SERVER));
    talks(pair);
}

#[test]
fn a_link_has_so_many_streams_and_the_next_stays_on_tcp() {
    watched(|| {
        for side in [CLIENT, SERVER] {
            let mut lab = Lab::with_limits_at(side, |config| config.max_streams_per_link(2));
            let [first, second] = [(); 2].map(|()| lab.upgraded());
            let third = lab.pair();
            assert!(third.offer(&lab));
            lab.run();
            if side == CLIENT {
                // The server does not hear of it.
                stays_on_tcp(&third, FallbackReason::Limit, FallbackReason::NotYet);
            } else {
                stays_on_tcp(&third, declined(), FallbackReason::Limit);
            }
            lab.close(first);
            let fourth = lab.upgraded();
            for pair in [&second, &fourth] {
                is_upgraded(pair);
            }
        }
    });
}

/// A client by hand claims its end of that connection, and is ready for it.
fn upgrade(thief: &mut Thief, lab: &mut Lab, pair: &Pair) -> bool {
    thief.offers += 1;
    let (mut clc, answer) = thief.claim(lab, subject_of(pair, CLIENT), None);
    let (id, accept) = match answer {
        Message::Match { id, clc, .. } => (id, clc),
        Message::Refuse { .. } => return false,
        other => panic!("neither MATCH nor REFUSE: {other:?}"),
    };
    let Ok(Answer::Accepted { .. }) = clc.on_answer(&accept) else { panic!("no Accept") };
    let slot = thief.stranger.arena.allocate().unwrap().expect("a slot");
    let confirm = clc.confirm(Dmb { token: id, bytes: DMB as u32 }, 256).unwrap();
    let ready = Message::Ready { id, dmb: DmbPlace { slot, ..PLACE }, reveal: None, clc: confirm };
    thief.stranger.send(&ready);
    lab.run();
    true
}

#[test]
fn who_gives_no_slot_back_gets_no_more_than_streams_may_be() {
    watched(|| {
        let mut lab = Lab::with_limits_at(SERVER, |config| config.max_streams_per_link(3));
        let mut thief = Thief::new(&mut lab);
        for taken in 1..=3 {
            let pair = lab.pair();
            assert!(upgrade(&mut thief, &mut lab, &pair), "{taken}");
            // The server is done with it, and DETACH never comes.
            pair.close(SERVER);
            lab.run();
            assert_eq!(lab.slots_in_use(), taken);
            while let Ok(Some(_)) = thief.stranger.hear() {}
        }
        let taken = || lab.hosts[SERVER].links()[0].account().taken();
        let before = taken();
        for _ in 0..20 {
            let pair = lab.pair();
            assert!(!upgrade(&mut thief, &mut lab, &pair));
            assert_eq!(pair.conns[SERVER].transport(), Transport::Tcp(FallbackReason::Limit));
            talks(&pair);
        }
        assert_eq!((lab.slots_in_use(), lab.hosts[SERVER].links()[0].account().taken()), (3, before));
        // It has taken from nobody else.
        let others = [(); 3].map(|()| lab.upgraded());
        others.iter().for_each(is_upgraded);
    });
}

#[test]
fn so_many_offers_wait_for_accept_and_half_of_them_on_one_link() {
    watched(|| {
        let mut lab = Lab::with_limits_at(SERVER, |config| config.max_waiting_offers(4));
        let bystander = Bystander(lab.upgraded());
        let mut others = [(); 2].map(|()| Host::new(&Config::new().device_dir(lab.dir.path())));
        let mut pairs = Vec::new();
        // On the first link two wait, on the second link, too; then there is no place left.
        for offers in [3, 3, 1] {
            for _ in 0..offers {
                let pair = lab.connect(UpgradePolicy::Manual, 64 << 10);
                assert!(pair.conns[CLIENT].begin_upgrade());
                let host = match pairs.len() {
                    0..3 => &lab.hosts[CLIENT],
                    3..6 => &others[0],
                    _ => &others[1],
                };
                host.endpoint.offer(pair.conns[CLIENT].clone());
                pairs.push(pair);
                for _ in 0..3 {
                    lab.run();
                    others.iter_mut().for_each(Host::run);
                }
            }
        }
        let told: Vec<_> = pairs.iter().map(|pair| pair.conns[CLIENT].transport()).collect();
        let (waits, full) = (Transport::Tcp(FallbackReason::InProgress), Transport::Tcp(declined()));
        assert_eq!(told, [waits, waits, full, waits, waits, full, full]);
        for pair in &mut pairs {
            pair.accept(&lab);
        }
        for _ in 0..10 {
            lab.run();
            others.iter_mut().for_each(Host::run);
        }
        for (pair, told) in pairs.iter().zip(told) {
            if told == waits {
                is_upgraded(pair);
            } else {
                stays_on_tcp(pair, declined(), FallbackReason::NotYet);
            }
        }
        bystander.is_well();
        // Nobody waits any more.
        lab.upgraded();
    });
}

#[test]
fn who_asks_too_often_is_turned_away() {
    watched(|| {
        let mut lab = Lab::with_limits_at(SERVER, |config| config.max_queries_per_second(1));
        let bystander = Bystander(lab.upgraded());
        let mut asked = Vec::new();
        // However slow this is: one more each second.
        loop {
            asked.push(lab.question(1 + asked.len() as u16));
            lab.run();
            let (mut answer, last) = ([0; LONGEST], asked[asked.len() - 1].as_fd());
            if !sys::has_hung_up(last).expect("poll") {
                continue;
            }
            // That nobody has read the question is told first.
            let told = sys::recv(last, &mut answer, 0).or_else(|_| sys::recv(last, &mut answer, 0));
            let length = told.expect("an answer").len;
            assert_eq!(why_no_link(&answer[..length]), Some(declined()));
            break;
        }
        assert!(asked.len() >= 10, "ten seconds' worth may come at once: {}", asked.len());
        bystander.is_well();
    });
}

#[test]
fn while_nobody_is_let_in_nobody_who_comes_is_heard() {
    watched(|| {
        let mut lab = Lab::with_limits_at(SERVER, |config| config.max_queries_per_second(0));
        // To turn somebody away takes longer than that may take at once.
        lab.hosts[SERVER].set_clock(Duration::from_secs(1_000_000), Duration::from_millis(1));
        lab.run();
        assert!(lab.hosts[SERVER].hears_who_comes());
        let first = lab.question(1);
        lab.run();
        assert!(sys::has_hung_up(first.as_fd()).expect("poll"), "it was turned away");

        let second = lab.question(2);
        lab.run();
        assert!(!sys::has_hung_up(second.as_fd()).expect("poll"), "it has to wait");
        assert!(!lab.hosts[SERVER].hears_who_comes(), "who waits would wake the thread");

        lab.hosts[SERVER].pass(Duration::from_secs(1));
        lab.run();
        assert!(sys::has_hung_up(second.as_fd()).expect("poll"), "it was turned away, too");
        lab.hosts[SERVER].pass(Duration::from_secs(1));
        assert!(lab.hosts[SERVER].hears_who_comes());
    });
}

#[test]
fn on_older_kernels_too_who_comes_after_a_pause_is_heard() {
    watched(|| {
        on_a_kernel_before_6_16(|| {
            let mut lab = Lab::with_limits_at(SERVER, |config| config.max_queries_per_second(0));
            lab.hosts[SERVER].set_clock(Duration::from_secs(1_000_000), Duration::from_millis(1));
            for number in 1..4 {
                let asks = lab.question(number);
                lab.run();
                assert!(sys::has_hung_up(asks.as_fd()).expect("poll"), "{number} was turned away");
                lab.hosts[SERVER].pass(Duration::from_secs(1));
            }
        });
    });
}

#[test]
fn an_endpoint_that_nobody_may_ask_has_no_links() {
    watched(|| {
        let mut lab = Lab::with_limits_at(SERVER, |config| config.max_queries_per_second(0));
        let pair = lab.pair();
        assert!(pair.offer(&lab));
        lab.run();
        stays_on_tcp(&pair, declined(), FallbackReason::NotYet);
        assert!(lab.hosts.iter().all(|host| host.links().is_empty()));
    });
}

#[test]
fn who_is_not_even_asked_says_why() {
    watched(|| {
        let none = |config: Config| config.max_queries_per_second(0);
        let mut lab = Lab::with_limits_at(SERVER, none);
        let mut other = Host::new(&none(Config::new().device_dir(lab.dir.path())));
        let _entry = other.endpoint.publish(lab.port(), &PeerPolicy::SameUser).expect("publish");
        let pair = lab.pair();
        assert!(pair.offer(&lab));
        for _ in 0..3 {
            lab.run();
            other.run();
        }
        stays_on_tcp(&pair, declined(), FallbackReason::NotYet);
    });
}

#[test]
fn another_user_has_so_many_links_and_the_next_stream_stays_on_tcp() {
    if sys::effective_uid() != 0 {
        // CI is root.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"not root: no other users here\n");
        return;
    }
    watched(|| {
        for most in [0, 1000] {
            let mut lab = Lab::with_limits_at(SERVER, |config| config.max_links_per_user(most));
            let pair = lab.pair();
            // Between two users only what was written proves anything.
            pair.write(CLIENT, b"x");
            pair.expect(SERVER, b"x");
            // As root, who is admitted by the server, and no user of its own.
            assert!(pair.offer(&lab));
            let _server = Disguise::on();
            lab.run();
            if most == 0 {
                stays_on_tcp(&pair, declined(), FallbackReason::NotYet);
            } else {
                is_upgraded(&pair);
            }
        }
    });
}

/// Runs `run` on a thread whose messages the kernel has no memory for.
fn without_memory_for_messages(run: impl FnOnce() + Send) {
    let calls = [libc::SYS_sendmsg, libc::SYS_sendto, libc::SYS_sendmmsg].map(|call| (call, vec![]));
    denied(calls.into(), libc::ENOBUFS, run);
}

/// Runs `run` on a thread whose kernel does not know how to refuse descriptors.
fn on_a_kernel_before_6_16(run: impl FnOnce() + Send) {
    let option =
        SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, sys::SO_PASSRIGHTS as u64);
    let rule = SeccompRule::new(vec![option.expect("a condition")]).expect("a rule");
    let calls = [libc::SYS_getsockopt, libc::SYS_setsockopt].map(|call| (call, vec![rule.clone()]));
    denied(calls.into(), libc::ENOPROTOOPT, run);
}

/// Runs `run` on a thread in which those calls fail.
fn denied(calls: BTreeMap<i64, Vec<SeccompRule>>, errno: i32, run: impl FnOnce() + Send) {
    let filter = SeccompFilter::new(
        calls,
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        std::env::consts::ARCH.try_into().expect("an architecture"),
    );
    let filter: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            seccompiler::apply_filter(&filter).expect("seccomp");
            run();
        });
    });
}

#[test]
fn a_message_that_the_kernel_had_no_memory_for_goes_a_moment_later() {
    watched(|| {
        let mut lab = Lab::new();
        // They know each other.
        let _bystander = Bystander(lab.upgraded());
        let pair = lab.pair();
        without_memory_for_messages(|| {
            assert!(pair.offer(&lab));
            lab.hosts[CLIENT].run();
        });
        lab.run();
        assert_eq!(pair.conns[CLIENT].transport(), Transport::Tcp(FallbackReason::InProgress));
        // There is no other message, and none comes.
        lab.hosts[CLIENT].pass(AGAIN * 2);
        lab.run();
        is_upgraded(&pair);
    });
}
