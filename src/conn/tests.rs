//! Tests of one connection without a runtime: both ends, their links and their sockets are driven
//! by hand, in one thread, so that every interleaving is the test's own choice and comes out the
//! same again.

mod aborts;
mod aid;
mod by_hand;
mod descriptor;
mod descriptors;
mod disguise;
mod faults;
mod greedy;
mod growth;
mod handshake;
mod hosts;
mod impostors;
mod interleavings;
mod limits;
mod listed;
mod memory;
mod model;
mod ops;
mod peers;
mod pins;
mod positions;
mod proofs;
mod samples;
mod silence;
mod slots;
mod socket;
mod stranger;
mod time;
mod turns;
mod unaccepted;
mod urgent;
mod users;
mod wakes;

use aid::{bytes, note, watched};
