//! Many client processes at one server that has a thousand descriptors.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::child::Child;
use crate::footprint::Footprint;
use crate::reading::{Reading, TIDY_HEAP};
use crate::size;
use crate::talk::{End, First};
use crate::watchdog::{Flavour, step, watched};

const DESCRIPTORS: u64 = 1024;
/// Connections of each client process: with 200 of them the sockets alone are more than half of
/// what the server has.
const EACH: usize = 3;
/// Why a connection stays on TCP here: links have a quarter of the descriptors (docs/settings.md).
const LACKS: [&str; 4] = [
    "the peer declined",
    "no file descriptor is left",
    "a limit on links or connections is reached",
    "the peer does not speak SMC on this host",
];

/// A plain client that connects again and again, until it is told to stop; how often it was served.
fn plain(to: String, stop: Arc<AtomicBool>) -> u64 {
    Flavour::CurrentThread.runtime().block_on(async {
        let mut served = 0;
        while !stop.load(Ordering::Relaxed) {
            let played = tokio::time::timeout(Duration::from_secs(60), async {
                let stream = TcpStream::connect(&to).await?;
                let mut end = End::open(stream, 1 << 40 | served, First::Client).await?;
                end.round(2000).await?;
                end.finish(First::Client).await
            });
            played.await.expect("a plain client hangs").expect("a plain client is served");
            served += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        served
    })
}

#[test]
fn many_client_processes_and_1024_descriptors() {
    watched(|| {
        let count = size("SMC_TEST_CLIENTS", 60);
        let dir = tempfile::Builder::new().prefix("smc-test-").tempdir().expect("a temp dir");
        let variables = [&TIDY_HEAP[..], &[("SMC_LO_UPGRADE", "eager")]].concat();
        let mut server = Child::start(&format!("server nofile={DESCRIPTORS}"), dir.path(), &variables);
        let to = format!("127.0.0.1:{}", server.hear());
        let idle = Footprint::of(server.id()).expect("it runs").descriptors;

        let stop = Arc::<AtomicBool>::default();
        let plain = std::thread::spawn({
            let (to, stop) = (to.clone(), stop.clone());
            move || plain(to, stop)
        });
        let mut clients: Vec<Child> = (0..count)
            .map(|number| {
                let role = format!("small {to} {}", (1 + number) * 1000);
                Child::start(&role, dir.path(), &variables)
            })
            .collect();
        for client in &mut clients {
            assert_eq!(client.hear(), "ready");
        }
        for round in 0..2 {
            for word in [&format!("open {EACH}"), "settle", "round 20000"] {
                step(format!("round {round}: {word} at {count} clients"));
                let answers = ask_all(&mut clients, word);
                let wrong = Vec::from_iter(answers.iter().filter(|answer| *answer != "ok"));
                assert!(wrong.is_empty(), "{word}: {wrong:?}; the server: {}", server.ask("trouble"));
            }
            let taken = Footprint::of(server.id()).expect("it runs").descriptors;
            let (mut upgraded, mut reasons) = (0, BTreeMap::<String, usize>::new());
            for said in ask_all(&mut clients, "transports") {
                let (number, others) = said.split_once(' ').expect("a number and reasons");
                upgraded += number.parse::<usize>().expect("a number");
                if others != "{}" {
                    *reasons.entry(others.to_owned()).or_default() += 1;
                }
            }
            println!(
                "round {round}: {upgraded} of {} upgraded, {taken} descriptors of {DESCRIPTORS} (before: {idle}), \
                 others by client {reasons:?}",
                count * EACH
            );
            assert!(upgraded > 0, "nobody is upgraded");
            let lacks = |words: &String| LACKS.iter().any(|lack| words.contains(lack));
            assert!(reasons.keys().all(lacks), "another reason than {LACKS:?}: {reasons:?}");
            step(format!("round {round}: the end"));
            let answers = ask_all(&mut clients, "close");
            assert!(answers.iter().all(|answer| answer == "ok"), "the end: {answers:?}");
            assert_eq!(server.ask("trouble"), "ok");
        }
        stop.store(true, Ordering::Relaxed);
        let plain = plain.join().expect("the plain client");
        println!("{plain} plain connections meanwhile");
        assert_eq!(server.ask("served"), (2 * (count * EACH) as u64 + plain).to_string());
        step("the clients are gone");
        drop(clients);
        let is_back = |now: &Reading| now.memory.descriptors <= idle && now.memory.mapped == 0;
        let left = Reading::until(server.id(), is_back);
        assert!(is_back(&left), "{left:?} is left; {idle} descriptors before");
        assert_eq!(server.ask("streams"), "0");
    });
}

/// Gives all of them the word at the same time; their answers.
fn ask_all(clients: &mut [Child], word: &str) -> Vec<String> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = clients.iter_mut().map(|client| scope.spawn(move || client.ask(word))).collect();
        asked.into_iter().map(|answer| answer.join().expect("it answers")).collect()
    })
}
