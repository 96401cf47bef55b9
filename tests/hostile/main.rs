//! A hostile peer: a process that speaks the link protocol by hand and breaks it, by scene and at
//! random, against an honest victim. Others who use the victim meanwhile (a connection on the ring
//! and plain TCP clients) must not notice, its runtime must not be silenced (see `silence`), and
//! nothing is left behind.
//!
//! A scene is one function in `scenes/` and one line in [`scenes!`] below. Random sessions are
//! reproducible: `SMC_TEST_SEED` is the seed (it is printed), `SMC_TEST_SESSIONS` how many, or
//! which (`10000`, `700..800`), `SMC_TEST_SECONDS` for how long at most.
//!
//! What a plain TCP client notices of each scene (see `measure`), one line each, of as many turns
//! as `SMC_TEST_TURNS` says:
//!
//! ```text
//! SMC_TEST_MEASURE=1 cargo test --release --test hostile -- --nocapture --test-threads=1 --skip random
//! ```

#[path = "../support/child.rs"]
mod child;
#[path = "../support/group.rs"]
mod group;
#[path = "../support/lab.rs"]
mod lab;
#[path = "../support/usage.rs"]
mod usage;
#[path = "../support/watchdog.rs"]
mod watchdog;

mod dice;
mod judge;
mod measure;
mod peer;
mod random;
mod raw;
mod scenes;
mod silence;
mod target;
mod victim;
mod wire;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::{Config, SmcStream, UpgradePolicy};

use child::{Child, role};
use judge::{Attacker, Terms, Trial};
use target::Target;
use watchdog::{Flavour, step, watched};

use scenes::{asker, blocking, callers, claims, descriptors, directory, files, memory, messages};
use scenes::{phases, quotas, rings, signals, strangers, words};

/// A scene: what its attacker does, until it is done.
type Attack = fn(&Target);

/// Each scene is a test, and a role that this binary takes as another process.
macro_rules! scenes {
    ($($name:ident: $attack:expr $(, $terms:expr)?;)*) => {
        $(
            #[test]
            fn $name() {
                play(stringify!($name), *[Terms::USUAL $(, $terms)?].last().expect("terms"));
            }
        )*

        fn attack_of(scene: &str) -> Attack {
            match scene {
                $(stringify!($name) => $attack,)*
                _ => panic!("no scene {scene}"),
            }
        }
    };
}

scenes! {
    // ---- the ring's words, as the producer and as the consumer ----
    ring_cursor_far_beyond: rings::cursor_far_beyond;
    ring_cursor_at_the_end: rings::cursor_at_the_end;
    ring_cursor_backwards: rings::cursor_backwards;
    ring_cursor_beyond_the_visit: rings::cursor_beyond_the_visit;
    ring_hop_to_a_segment_not_lent: rings::hop_to_a_segment_not_lent;
    ring_hop_to_the_last_segment: rings::hop_to_the_last_segment;
    ring_hop_in_the_past: rings::hop_in_the_past;
    ring_hops_without_number: rings::hops_without_number;
    ring_empty_hops: rings::empty_hops;
    ring_reader_ahead: rings::reader_ahead;
    ring_reader_backwards: rings::reader_backwards;
    ring_flags_at_random: rings::flags_at_random, Terms::BESIDE_A_DECOY;
    ring_flags_faster_than_looks: rings::flags_faster_than_looks;
    ring_without_flags_as_fast: rings::without_flags_as_fast;
    ring_words_at_random: rings::words_at_random, Terms::BESIDE_A_DECOY;
    ring_words_at_random_again_and_again: rings::words_at_random_again_and_again;
    // ---- the word of a direction ----
    switch_at_a_huge_position: words::switch_at_a_huge_position;
    switch_late: words::switch_late;
    switch_early: words::switch_early;
    // ---- signals ----
    signal_storm: signals::storm, Terms::BESIDE_A_DECOY;
    signal_trickle: signals::trickle;
    bell_without_end: signals::bell_without_end, Terms::BESIDE_A_DECOY;
    // ---- messages ----
    junk: messages::junk;
    junk_of_three_at_once: messages::junk_of_three_at_once;
    match_of_no_offer: messages::match_of_no_offer;
    detach_twice: messages::detach_twice;
    offers_in_vain: messages::offers_in_vain;
    answers_never_read: messages::answers_never_read;
    matched_and_never_ready: messages::matched_and_never_ready, Terms::OF_A_CROWD;
    proofs_of_nothing: messages::proofs_of_nothing;
    proofs_out_of_turn: messages::proofs_out_of_turn;
    // ---- whose connection it is, and who says so ----
    steal_by_a_third_process: claims::steal;
    proofs_of_another_connection: claims::replays, Terms::BESIDE_A_DECOY;
    proofs_twice: claims::twice;
    greeted_under_another_name: claims::under_another_name, Terms::BESIDE_A_DECOY;
    // ---- names in the directory, and who answers to them ----
    impostor_on_a_plain_server: directory::impostor;
    impostor_that_only_says_yes: directory::says_yes;
    impostor_that_hangs_up: directory::hangs_up;
    impostor_that_matches_without_a_commitment: directory::matches_without_a_commitment;
    impostor_that_is_silent_after_ready: directory::silent_after_ready;
    impostor_that_proves_nothing: directory::proves_nothing;
    candidates_that_are_silent: directory::silent;
    candidates_that_are_dead: directory::dead;
    names_that_are_junk: directory::junk_names;
    names_that_lead_elsewhere: directory::links_that_lead_elsewhere;
    // ---- descriptors and memory ----
    wrong_descriptors: descriptors::wrong;
    punched_arena: descriptors::punched_arena;
    one_memory_for_two: descriptors::one_memory_for_two;
    one_slot_twice_is_a_violation: memory::one_slot_twice;
    the_victims_own_arena_is_a_violation: memory::own_arena_back;
    arenas_of_many_tebibytes: memory::tebibytes;
    greedy_for_memory: memory::greedy, Terms::BESIDE_A_DECOY;
    greedy_in_a_group_of_256_mib: memory::greedy, Terms::IN_256_MIB;
    slots_that_never_come_back: memory::never_detached;
    // ---- what blocks ----
    close_that_blocks_before_hello: blocking::close_before_hello;
    close_that_blocks_in_hello: blocking::close_in_hello;
    close_that_blocks_in_query: blocking::close_in_query;
    close_that_blocks_in_messages: blocking::close_in_messages;
    close_that_blocks_in_an_answer: callers::close_in_an_answer;
    eventfd_of_the_attacker: blocking::own_eventfd;
    eventfd_of_the_attacker_and_two_workers: blocking::own_eventfd, Terms::TWO_WORKERS;
    eventfd_of_the_victim: blocking::their_eventfd;
    eventfd_of_the_victim_after_its_filler: blocking::their_eventfd_and_exit;
    file_that_is_busy: files::busy, Terms::OVER_PAGES;
    file_that_is_locked_for_ever: files::locked_for_ever, Terms::BESIDE_A_DECOY;
    // ---- what one process takes of another ----
    links_without_number: quotas::links;
    links_with_all_arenas: quotas::links_with_all_arenas, Terms::BESIDE_A_DECOY;
    greetings_without_a_word: quotas::greetings;
    queries_without_an_end: quotas::queries, Terms::IMPATIENT;
    sockets_closed_without_a_flag: quotas::closed_without_a_flag, Terms::IMPATIENT;
    silent_after_go: quotas::silent_after_go, Terms::IMPATIENT;
    // ---- who is admitted nowhere ----
    close_that_blocks_of_a_stranger: strangers::close, Terms::OF_A_STRANGER;
    junk_of_a_stranger: strangers::junk, Terms::OF_A_STRANGER;
    connections_of_a_stranger: strangers::connections, Terms::OF_A_STRANGER_BESIDE_A_DECOY;
    endpoints_of_a_stranger: strangers::endpoints, Terms::OF_A_STRANGER;
    // ---- stopped at each step, and continued ----
    stopped_before_hello: phases::before_hello, Terms::OF_A_LINK;
    stopped_after_hello: phases::after_hello, Terms::OF_A_LINK;
    stopped_after_offer: phases::after_offer, Terms::OF_A_LINK;
    stopped_after_match: phases::after_match, Terms::OF_A_LINK;
    stopped_after_ready: phases::after_ready, Terms::OF_A_LINK;
    stopped_after_switch: phases::after_switch, Terms::OF_A_LINK;
    stopped_after_data: phases::after_data, Terms::OF_A_LINK;
}

/// Not a test of its own: the door through which this binary becomes the victim or an attacker.
#[test]
fn child_process() {
    let Some(role) = role() else { return };
    match role.split(' ').collect::<Vec<_>>()[..] {
        ["newcomer", addr] => {
            newcomer(addr.parse().expect("an address"));
            child::tell(scenes::DONE);
        }
        ["victim", "CurrentThread"] => victim::serve(Flavour::CurrentThread),
        ["victim", "MultiThread"] => victim::serve(Flavour::MultiThread),
        ["prey", addr] => claims::prey(addr.parse().expect("an address")),
        ["asker"] => asker::serve(),
        ["plain"] => directory::plain_server(),
        ["attack", addr, "claim", prey] => {
            claims::claim(&target(addr), prey.parse().expect("an address"));
            child::tell(scenes::DONE);
        }
        ["attack", addr, "admitted-user"] => directory::admitted_user(&target(addr)),
        ["attack", addr, "another-user"] => directory::another_user(&target(addr)),
        ["burn", threads, share, millis, addr, crowd, links, plays] => {
            let number = |word: &str| word.parse().expect("a number");
            let time = Duration::from_millis(number(millis));
            let like = measure::Like {
                addr: addr.parse().expect("an address"),
                crowd: number(crowd) as usize,
                links: number(links) as usize,
                plays: number(plays) as u32,
            };
            measure::burn(number(threads), number(share), time, &like);
            child::tell(scenes::DONE);
        }
        ["attack", addr, "random", seed, from, to] => {
            let number = |word: &str| word.parse().expect("a number");
            random::attack(&target(addr), number(seed), number(from)..number(to));
        }
        ["attack-as-stranger", addr, scene, ref rest @ ..] => {
            strangers::become_one();
            attack(addr, scene, rest);
        }
        ["attack", addr, scene, ref rest @ ..] => attack(addr, scene, rest),
        _ => panic!("no role {role}"),
    }
}

/// Plays a scene; again and again if there is a number of milliseconds. One that was played before
/// may be turned away then: it has met the limits on who comes too often, or fails too often.
fn attack(addr: &str, scene: &str, often: &[&str]) {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).expect("all descriptors");
    let target = target(addr);
    match often {
        [] => attack_of(scene)(&target),
        [millis, again @ ..] => {
            let time = Duration::from_millis(millis.parse().expect("a number"));
            let played = measure::again_and_again(time, !again.is_empty(), || attack_of(scene)(&target));
            child::tell(&format!("{}{played}", scenes::PLAYED));
        }
    }
    child::tell(scenes::DONE);
}

/// A process that the victim has not met before gets an upgrade, too.
fn newcomer(addr: SocketAddr) {
    let config = Config::from_env().upgrade_policy(UpgradePolicy::Require);
    Flavour::CurrentThread.runtime().block_on(async {
        let mut stream = SmcStream::connect_with(addr, &config).await.expect("a newcomer's upgrade");
        stream.write_all(b"ehello").await.expect("write");
        let mut got = [0; 5];
        stream.read_exact(&mut got).await.expect("read");
        assert_eq!(&got, b"hello");
    });
}

fn target(addr: &str) -> Target {
    let directory = std::env::var_os("SMC_LO_DIR").expect("a device").into();
    Target { directory, addr: addr.parse().expect("an address") }
}

/// Lets the scene's attacker loose.
#[track_caller]
fn play(scene: &'static str, terms: Terms) {
    let lacks_root = terms.attacker == Attacker::Stranger || terms.group.is_some();
    if lacks_root && !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "{scene}: only root can be another user or make a group");
        random::say(&format!("{scene}: not played, only root can be another user or make a group"));
        return;
    }
    if measure::is_wanted() {
        return watched(move || measure::play(scene, terms));
    }
    watched(move || {
        let mut started = Instant::now();
        let mut stage = |name: &str| {
            step(name);
            std::mem::replace(&mut started, Instant::now()).elapsed()
        };
        stage("an unharmed victim");
        let mut trial = Trial::begin(terms);
        let began = stage("the attack");
        let mut attacker = trial.attacker(scene);
        attend(&mut trial, &mut attacker);
        let attacked = stage("the witnesses");
        trial.listen_to_witnesses();
        step("a newcomer, while the attacker holds what it has");
        trial.meet_a_newcomer();
        step("what is left");
        attacker.kill();
        let measured = trial.end(scene);
        let ended = stage("the end");
        random::say(&format!("{scene}: {measured} (in {began:.1?}, {attacked:.1?}, {ended:.1?})"));
    });
}

/// Until the attacker is done; does what it wants done. Answers with what it tells of its plays.
fn attend(trial: &mut Trial, attacker: &mut Child) -> String {
    let mut played = String::new();
    loop {
        let said = attacker.hear();
        if said == scenes::DONE {
            return played;
        } else if let Some(plays) = said.strip_prefix(scenes::PLAYED) {
            plays.clone_into(&mut played);
        } else if let Some(addr) = said.strip_prefix(scenes::CALL) {
            trial.make_call(addr);
        } else {
            assert_eq!(said, scenes::STOPPED);
            step("the attacker is stopped");
            scenes::wait_until_stopped(attacker.id());
            trial.listen_to_witnesses();
            scenes::continue_process(attacker.id());
        }
    }
}

#[test]
fn random_sessions() {
    watched(random::play);
}
