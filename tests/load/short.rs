//! Short connections, one after the other: connect, a request, an answer, close.

use std::path::Path;
use std::time::Instant;

use crate::child::Child;
use crate::reading::{Reading, TIDY_HEAP};
use crate::size;
use crate::watchdog::{step, watched};

/// What a process may have more at the end than after the first of them, KiB.
const GROWTH: u64 = 2 << 10;

/// Names in a directory, and in those below it.
fn names(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.map(|path| 1 + if path.is_dir() { names(&path) } else { 0 }).sum()
}

#[test]
fn short_connections_leave_nothing() {
    watched(|| {
        let count = size("SMC_TEST_CONNECTIONS", 10_000);
        let dir = tempfile::Builder::new().prefix("smc-test-").tempdir().expect("a temp dir");
        let mut server = Child::start("server", dir.path(), &TIDY_HEAP);
        let port = server.hear();
        let mut client = Child::start(&format!("short 127.0.0.1:{port}"), dir.path(), &TIDY_HEAP);
        assert_eq!(client.hear(), "ready");
        let ids = [server.id(), client.id()];

        // A tenth first, so that what is kept for the next ones is there.
        let parts = [count / 10, count - count / 10];
        let mut before = None;
        for part in parts {
            step(format!("{part} connections"));
            let began = Instant::now();
            assert_eq!(client.ask(&format!("some {part}")), "ok");
            let took = began.elapsed();
            println!("{part} short connections in {took:?}, {:.0}/s", part as f64 / took.as_secs_f64());
            // Asked before they are looked at: whoever waits for a word does so on a thread of its
            // own, which is there from then on, also when it was not for long.
            for end in [&mut server, &mut client] {
                assert_eq!(end.ask("streams"), "0", "streams that nobody has");
            }
            // Both still have their link.
            let fits = |now: &Reading, then: &Reading| {
                now.is_back(then, GROWTH) && now.memory.address_space <= then.memory.address_space + GROWTH
            };
            let now = [0, 1].map(|at| {
                Reading::until(ids[at], |now| {
                    before.as_ref().is_none_or(|(then, _): &([Reading; 2], usize)| fits(now, &then[at]))
                })
            });
            let entries = names(dir.path());
            println!("  server {:?}\n  client {:?}\n  {entries} names in the directory", now[0], now[1]);
            if let Some((then, named)) = &before {
                for at in [0, 1] {
                    assert!(fits(&now[at], &then[at]), "{:?} has become {:?}", then[at], now[at]);
                }
                assert!(entries <= *named, "{entries} names in the directory, {named} before");
            }
            before = Some((now, entries));
            assert_eq!(server.ask("trouble"), "ok");
        }
        assert_eq!(server.ask("served"), count.to_string());
    });
}
