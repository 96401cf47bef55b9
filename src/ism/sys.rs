//! The system calls the crate makes beyond std's, behind safe signatures.
//!
//! Everything here is Linux. Nothing blocks: descriptors are created close-on-exec and
//! non-blocking, messages are sent and received with `MSG_DONTWAIT`. What rustix or socket2 offer
//! is used from there; the few calls they lack (or get wrong for us, see [`peer_cred`]) go through
//! libc in the submodules that say so.

mod credentials;
mod diag;
mod event;
mod means;
mod memory;
mod namespace;
mod process;
#[cfg(feature = "tokio")]
mod queue;
mod rights;
mod seqpacket;
mod sequence;
mod socket;
mod tcp;
#[cfg(test)]
pub(crate) mod tests;
mod thread;

pub(crate) use credentials::{PeerCred, peer_cred, peer_groups};
pub(crate) use diag::{canonical, is_held, owner_of, waits_for_accept};
pub(crate) use event::{
    arm_timer, clear_timer, eventfd, has_hung_up, is_eventfd, is_ready, ring, ring_shared, timerfd,
};
pub(crate) use means::{Means, descriptor_limit, largest_file, means, most_mappings, tcp_buffers};
pub(crate) use memory::{FileId, fallocate, is_resident, memfd_sealed, memory_of, prefetch, verify_memfd};
#[cfg(test)]
pub(crate) use memory::{is_filtered, punch};
pub(crate) use namespace::shares_pid_namespace;
pub(crate) use process::{
    all_switches, current_cpu, effective_uid, hostname, involuntary_switches, is_known_group, is_known_user,
    is_this_process, is_user, monotonic, monotonic_ns, random_bytes, random_u64, thread_id, usable_cpus,
};
#[cfg(test)]
pub(crate) use process::{overflow_gid, overflow_uid};
#[cfg(feature = "tokio")]
pub(crate) use queue::{event_queue, take_events, tell_no_more_of, tell_of};
#[cfg(test)]
pub(crate) use rights::SO_PASSRIGHTS;
pub(crate) use rights::{allow_rights, refuses_rights};
#[cfg(test)]
pub(crate) use seqpacket::seqpacket_listen;
pub(crate) use seqpacket::{
    Carried, accept, can_close_at_once, empty, recv, send, seqpacket, seqpacket_bind, seqpacket_connect,
    shutdown_socket, take,
};
#[cfg(test)]
pub(crate) use sequence::use_error_queue;
pub(crate) use sequence::{
    drop_samples, refuses_samples, save_syns, saved_initial_sequence, send_sampled, send_small_sample,
    take_sample, uses_error_queue,
};
pub(crate) use socket::{
    chosen_receive_buffer, chosen_send_buffer, cookie, impl_from_raw_fd, ineligible, linger_is_zero,
    local_addr, netns_cookie, peer_addr, push_unsent, reset_connection, send_bytes, set_zero_linger,
    take_bytes,
};
pub(crate) use tcp::{
    Ended, TcpState, ended, has_unread, has_urgent, is_at_mark, queued_in, queued_out, rx_counters, tcp_look,
    tx_counters, unsent_out,
};
#[cfg(test)]
pub(crate) use tests::FileLock;
pub(crate) use thread::begin_thread;
