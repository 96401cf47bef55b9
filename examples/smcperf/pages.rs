//! The least that messages over many connections take of the memory: each has a page of its own
//! for each way, as a ring has, and two threads do nothing but write there, look and compare.

#![allow(clippy::disallowed_types, reason = "a program, which loom does not run")]

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::limit::pin;
use crate::pattern::Pattern;

/// Of a message of 100 bytes.
const WORDS: usize = 13;

#[repr(align(64))]
struct Bytes([AtomicU64; WORDS]);

/// One way of a connection.
#[repr(align(4096))]
struct Page {
    /// Messages so far: on a line of its own, as a ring's cursor is.
    number: AtomicU64,
    bytes: Bytes,
}

impl Page {
    fn new() -> Self {
        Self { number: AtomicU64::new(0), bytes: Bytes(array::from_fn(|_| AtomicU64::new(0))) }
    }

    fn write(&self, number: u64, words: &[u64; WORDS]) {
        for (to, word) in self.bytes.0.iter().zip(words) {
            to.store(*word, Ordering::Relaxed);
        }
        // Pairs with the load in `read`.
        self.number.store(number, Ordering::Release);
    }

    /// Waits for that message; `false`: it is over.
    fn read(&self, number: u64, words: &[u64; WORDS]) -> bool {
        loop {
            // Pairs with the store in `write`.
            match self.number.load(Ordering::Acquire) {
                OVER => return false,
                other if other == number => break,
                _ => std::hint::spin_loop(),
            }
        }
        let same = self.bytes.0.iter().zip(words).all(|(from, word)| from.load(Ordering::Relaxed) == *word);
        assert!(same, "memory that keeps what was written to it");
        true
    }
}

const OVER: u64 = u64::MAX;

/// Round trips in a second over so many connections, all of which are under way at a time.
pub(crate) fn exchange(
    connections: u32,
    pattern: &Pattern,
    here: usize,
    there: usize,
    time: Duration,
) -> f64 {
    let count = connections.max(1) as usize;
    let pages = || Vec::from_iter((0..count).map(|_| Page::new()));
    let (asked, answered) = (pages(), pages());
    let mut bytes =
        pattern.block(0).chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes));
    let words: [u64; WORDS] = array::from_fn(|_| bytes.next().unwrap_or(0));
    // One after the other would be what a prefetcher guesses.
    let order = Vec::from_iter((0..count).map(|at| (at * STRIDE) % count));
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(there);
            for number in 1.. {
                for &at in &order {
                    if !asked[at].read(number, &words) {
                        return;
                    }
                    answered[at].write(number, &words);
                }
            }
        });
        pin(here);
        asked.iter().for_each(|page| page.write(1, &words));
        let begin = Instant::now();
        for number in 1.. {
            let took = begin.elapsed();
            let is_last = took >= time && number > 1;
            for &at in &order {
                answered[at].read(number, &words);
                // Nobody is asked before the answer is there.
                asked[at].write(if is_last { OVER } else { number + 1 }, &words);
            }
            if is_last {
                return (number - 1) as f64 * count as f64 / took.as_secs_f64();
            }
        }
        unreachable!("the numbers of messages do not end")
    })
}

/// From one connection to the next: a prime that is larger than any number of them, so that all
/// have their turn, and for 100, 1000 and 10,000 a third or two thirds of the way round.
const STRIDE: usize = 1_006_337;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_comes_there_and_back() {
        for connections in [1, 2, 100] {
            assert!(exchange(connections, &Pattern::new(), 0, 0, Duration::from_millis(20)) > 0.0);
        }
    }
}
