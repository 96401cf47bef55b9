//! What passes by a stream: urgent data, splice(2), a socket under repair, BPF programs. The kernel
//! then counts other bytes than went through the stream, which stays on TCP, and nothing of it is
//! lost.

#[path = "../support/bpf.rs"]
mod bpf;
#[path = "../support/lab.rs"]
mod lab;
mod passing;
mod sockmap;
#[path = "../support/watchdog.rs"]
mod watchdog;

/// A byte that tells its place in the stream.
fn at(place: usize) -> u8 {
    (place.wrapping_mul(0x9E37_79B1) >> 11) as u8
}

fn bytes(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(at).collect()
}
