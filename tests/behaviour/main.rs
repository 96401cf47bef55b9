//! What a user of `TcpStream` sees, written once and mounted three times: on tokio's own TCP, on
//! SMC that runs on the ring, and on SMC that stays on TCP; each on both of tokio's schedulers.

mod afterwards;
#[path = "../support/agree.rs"]
mod agree;
mod closing;
mod flow;
mod halves;
#[path = "../support/lab.rs"]
mod lab;
mod net;
mod reading;
mod surface;
mod tools;
mod waking;
#[path = "../support/watchdog.rs"]
mod watchdog;
mod writing;

/// The list of all bodies: one that is missing here is dead code, which the lint wall refuses.
macro_rules! mount {
    ($mount:ident, $net:ty, $flavour:ident) => {
        mod $mount {
            bodies! { $net, $flavour;
                reading: reads_of_all_sizes, short_buffers_lose_nothing, zero_length_read, reads_into_vectored_buffers,
                    reads_into_spare_capacity, peek_twice_then_read, peek_waits_for_data, peek_at_the_end,
                    try_read_of_an_idle_stream, lines_through_a_buf_reader, read_to_end_of_many_writes,
                    a_dropped_read_loses_nothing, an_urgent_byte_is_no_part_of_the_stream, a_timeout_leaves_the_stream_whole, reads_give_way_to_other_tasks,
                    peeks_give_way_to_other_tasks;
                writing: writes_of_all_sizes, vectored_writes_keep_their_order, zero_length_write, try_write_of_slices,
                    write_all_buf_of_a_chain, a_large_write, a_dropped_write_all_leaves_a_prefix,
                    many_small_writes_arrive_in_order;
                closing: half_close_of_the_client, half_close_of_the_server, drop_is_the_end_of_the_stream,
                    data_before_the_end_is_delivered, drop_with_unread_data_resets, data_before_a_reset_is_delivered,
                    zero_linger_resets, zero_linger_resets_a_waiting_reader, writes_after_the_peer_went_fail,
                    write_after_shutdown_fails, shutdown_three_times, shutdown_after_reset, end_is_sticky,
                    both_ends_shut_down_and_drop, shutdown_with_an_unresponsive_peer, drop_while_the_peer_writes;
                afterwards: after_a_clean_drop, after_a_drop_with_unread_data, after_a_shutdown,
                    after_both_directions_of_a_descriptor_are_shut, after_one_direction_of_a_descriptor_is_shut,
                    a_shut_descriptor_wakes_both_readers, a_shut_descriptor_of_an_idle_stream_is_the_end_for_the_peer,
                    a_shut_descriptor_wakes_a_waiting_writer, a_kick_loses_nothing_that_was_written_before;
                halves: borrowed_halves_in_two_futures, owned_halves_in_two_tasks, reunited_halves_work_on,
                    strangers_do_not_reunite, dropped_write_half_is_the_end, dropped_write_half_during_a_pending_read,
                    dropped_read_half_closes_nothing, forgotten_write_half_is_no_end, shutdown_of_a_half_then_drop,
                    readiness_of_halves, a_half_resets_on_unread_data;
                waking: the_latest_reader_waker_wins, the_latest_writer_waker_wins, many_tasks_wait_until_readable,
                    reader_and_writer_wait_at_once, a_full_stream_takes_more_after_a_read,
                    a_full_stream_wakes_when_the_peer_goes, a_waiting_reader_wakes_at_the_end,
                    readiness_is_level_until_would_block, ready_tells_of_the_end, ready_tells_of_a_reset,
                    poll_readiness, readiness_lasts_until_would_block, a_short_read_ends_readiness,
                    a_short_write_ends_readiness, the_end_shows_before_the_last_bytes_are_read, ready_answers_when_the_budget_is_spent, ten_thousand_turns, a_reader_moves_to_another_task,
                    dropped_waiters_take_no_wakeup_along, a_full_pair_in_one_task;
                flow: both_write_before_they_read, full_duplex_with_checksums, copy_in_both_directions,
                    a_slow_reader_holds_the_writer, many_streams_at_once, bursts_after_silence, unequal_chunks,
                    io_copy_of_a_stream;
                surface: addresses_mirror, addresses_after_half_close, options_stay, no_error_to_take,
                    into_std_where_it_is_tcp, accept_many, accept_can_be_dropped, accept_by_poll,
                    two_tasks_accept, listener_options, ipv6, a_refused_connection, bytes_sent_before_accept,
                    futures_are_small_and_send, a_connection_dropped_before_accept;
            }
        }
    };
}

macro_rules! bodies {
    ($net:ty, $flavour:ident; $($group:ident: $($body:ident),+;)+) => {$(
        mod $group {
            $(#[test]
            fn $body() {
                crate::watchdog::watched(|| {
                    let runtime = crate::watchdog::Flavour::$flavour.runtime();
                    let net = <$net as crate::net::Net>::new();
                    runtime.block_on(crate::$group::$body(&net));
                });
            })+
        }
    )+};
}

mod current_thread {
    mount!(tcp, crate::net::Tcp, CurrentThread);
    mount!(smc, crate::net::Upgraded, CurrentThread);
    mount!(fallback, crate::net::Fallback, CurrentThread);
}

mod multi_thread {
    mount!(tcp, crate::net::Tcp, MultiThread);
    mount!(smc, crate::net::Upgraded, MultiThread);
    mount!(fallback, crate::net::Fallback, MultiThread);
}
