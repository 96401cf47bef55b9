//! A peer that knows the protocol and says and does everything in any order, against a real server:
//! at most its own link ends, nobody else notices, and nothing is left. The bytes are its turns
//! (`src/conn/tests/turns.rs`).
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| tokio_smc::engine::upgrade::play(bytes));
