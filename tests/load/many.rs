//! Thousands of upgraded connections between two processes.

use std::time::Instant;

use crate::child::Child;
use crate::footprint::Footprint;
use crate::reading::{Reading, TIDY_HEAP};
use crate::size;
use crate::watchdog::{step, watched};

/// What the heap of a process may keep, KiB, and more for each connection when they were the first:
/// a server with plain TCP keeps half of that.
const HEAP: u64 = 4 << 10;
const HEAP_EACH: u64 = 4;

/// What `after - before` is for each of `count`, KiB.
fn each(after: u64, before: u64, count: usize) -> f64 {
    after.saturating_sub(before) as f64 / count as f64
}

#[test]
fn thousands_of_upgraded_connections() {
    watched(|| {
        let count = size("SMC_TEST_UPGRADED", 2000);
        let dir = tempfile::Builder::new().prefix("smc-test-").tempdir().expect("a temp dir");
        let variables = [&TIDY_HEAP[..], &[("SMC_LO_UPGRADE", "eager")]].concat();
        let mut server = Child::start("server", dir.path(), &variables);
        let port = server.hear();
        let mut client = Child::start(&format!("client 127.0.0.1:{port} 0"), dir.path(), &variables);
        assert_eq!(client.hear(), "ready");
        let ids = [server.id(), client.id()];

        // The endpoints and the runtimes' own threads are there from the first one on, and stay.
        step("the first connection");
        for word in ["open 1", "settle", "round 64", "close"] {
            assert_eq!(client.ask(word), "ok", "{word}");
        }
        let first = ids.map(Reading::of);

        let mut kept = [0; 2];
        for round in 0..2 {
            step(format!("round {round}: {count} connections"));
            let began = Instant::now();
            assert_eq!(client.ask(&format!("open {count}")), "ok");
            assert_eq!(client.ask("settle"), "ok");
            let opened = began.elapsed();
            let full = ids.map(Reading::of);
            step(format!("round {round}: bytes each way"));
            let began = Instant::now();
            assert_eq!(client.ask("round 3000"), "ok");
            assert_eq!(client.ask("transports"), format!("{count} {{}}"), "some are not upgraded");
            let talked = began.elapsed();
            println!(
                "round {round}: {count} upgraded in {opened:?}, 3000 bytes there and back on each in {talked:?}"
            );
            for ((who, now), before) in ["server", "client"].into_iter().zip(full).zip(&first) {
                let part = |of: fn(&Footprint) -> u64| each(of(&now.memory), of(&before.memory), count);
                println!(
                    "  {who}: each {:.1} KiB resident ({:.1} of it shared), {:.1} KiB of memory files, {:.1} KiB \
                     of address space, {:.3} descriptors; {} threads",
                    part(|memory| memory.resident),
                    part(|memory| memory.shared),
                    part(|memory| memory.mapped),
                    part(|memory| memory.address_space),
                    part(|memory| memory.descriptors),
                    now.threads.len(),
                );
            }

            step(format!("round {round}: all are closed"));
            assert_eq!(client.ask("close"), "ok");
            for (at, who) in ["server", "client"].into_iter().enumerate() {
                // The second time the heap has its size.
                let heap = if round == 0 { HEAP + HEAP_EACH * count as u64 } else { HEAP + kept[at] };
                let now = Reading::until(ids[at], |reading| reading.is_back(&first[at], heap));
                println!("  {who}, all closed: {now:?}");
                assert!(now.is_back(&first[at], heap), "the {who} keeps {now:?} of {:?}", first[at]);
                kept[at] = now.memory.resident.saturating_sub(first[at].memory.resident);
            }
            for end in [&mut server, &mut client] {
                assert_eq!(end.ask("streams"), "0", "streams that nobody has");
            }
            assert_eq!(server.ask("trouble"), "ok");
        }
        assert_eq!(server.ask("served"), (2 * count + 1).to_string());
    });
}
