//! The front end for programs without a runtime: what a user of std's `TcpStream` sees, on std's own TCP, on SMC that
//! stays on TCP and on SMC in the ring; and the two front ends with each other.

mod interop;
#[path = "../support/lab.rs"]
mod lab;
#[allow(dead_code, reason = "not every test makes a runtime of its own")]
#[path = "../support/watchdog.rs"]
mod watchdog;
