//! The front end for programs without a runtime: what a user of std's `TcpStream` sees, written
//! once and mounted on std's own TCP, on SMC that stays on TCP, on SMC that may leave it, and on
//! SMC in the ring; and the two front ends with each other.

#![allow(clippy::disallowed_types, reason = "a test, which loom does not run")]

#[allow(dead_code, reason = "not every test asks its child")]
#[path = "../support/child.rs"]
mod child;
mod closing;
#[allow(dead_code, reason = "not every test is denied everything")]
#[path = "../support/deny.rs"]
mod deny;
mod engine;
mod interop;
#[path = "../support/lab.rs"]
mod lab;
mod net;
mod processes;
mod readiness;
mod reading;
mod waiting;
#[allow(dead_code, reason = "not every test makes a runtime of its own")]
#[path = "../support/watchdog.rs"]
mod watchdog;
mod writing;

macro_rules! bodies {
    ($net:ident; $($module:ident: $($body:ident),* $(,)?;)*) => {$($(
        #[test]
        fn $body() {
            crate::watchdog::watched(|| {
                crate::$module::$body(&<crate::net::$net as crate::net::Net>::new());
            });
        }
    )*)*};
}

/// The list of all bodies: one that is missing here is dead code, which the lint wall refuses.
macro_rules! mount {
    ($($mount:ident: $net:ident;)*) => {$(
        mod $mount {
            bodies! { $net;
                reading: reads_of_all_sizes, zero_length_read, reads_into_several_buffers, peek_twice_then_read,
                    peek_waits_for_data, peek_at_the_end, everything_to_the_end, a_late_writer_is_waited_for;
                writing: a_write_waits_until_all_is_written, several_buffers_keep_their_order, zero_length_write,
                    many_small_writes_arrive_in_order, a_large_exchange_both_ways, threads_share_a_stream,
                    a_reset_that_cuts_a_write_is_told_later;
                closing: half_close_of_the_client, half_close_of_the_server, drop_is_the_end_of_the_stream,
                    data_before_the_end_is_delivered, drop_with_unread_data_resets, zero_linger_resets,
                    zero_linger_resets_a_waiting_reader, writes_after_the_peer_went_fail,
                    write_after_shutdown_fails, shutdown_twice, shut_for_reading, shutdown_wakes_a_waiting_reader, shutdown_wakes_a_waiting_writer,
                    shutdown_of_a_descriptor_wakes_a_waiting_reader, end_is_sticky,
                    a_clone_keeps_the_connection_open;
                waiting: a_read_times_out, a_write_times_out, a_timeout_is_for_all_of_a_write, timeouts_are_told, no_timeout_is_zero,
                    nonblocking_reads_and_writes, nonblocking_is_for_all_clones, readers_of_one_stream_share_its_bytes,
                    properties;
            }
        }
    )*};
}

mount! {
    on_std: Std;
    on_tcp_for_good: Never;
    on_tcp: Tcp;
    on_ring: Ring;
}

/// The other process.
#[test]
fn child_process() {
    match child::role().as_deref() {
        None => {}
        Some("count") => engine::count(),
        Some("adopt") => engine::adopt(),
        Some("wait_at_many") => engine::wait_at_many(),
        Some("wait_without_descriptors") => engine::wait_without_descriptors(),
        Some("blocking_echo") => processes::blocking_echo(),
        Some("tokio_echo") => processes::tokio_echo(),
        Some(role) => panic!("no role {role}"),
    }
}
