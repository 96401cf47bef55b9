//! The word of a direction, at positions where the stream is not.

use std::io::{Read, Write};

use crate::peer::{Peer, Signal};
use crate::target::Target;
use crate::wire;

/// The connection's own TCP positions break the rule: it is reset alone, and its link lives.
fn switch(target: &Target, word: u64, echo_first: bool) {
    let mut peer = Peer::greeted(target, 64);
    let mut conn = peer.upgrade(target.tcp()).expect("an upgrade");
    conn.tcp.write_all(b"e0123456789").expect("write");
    if echo_first {
        // What the victim has switched already comes over its ring.
        while conn.theirs.load(wire::DIRECTION) == 0 && conn.ours.load(wire::PROD) < 10 {
            conn.tcp.set_nonblocking(true).expect("set_nonblocking");
            if conn.tcp.read(&mut [0; 10]).is_ok() {
                break;
            }
        }
        conn.tcp.set_nonblocking(false).expect("set_nonblocking");
    }
    conn.theirs.decide(word);
    peer.signal(&conn, Signal::Data);
    // Behind X, or long before it.
    let _ = conn.tcp.write_all(b"abc");
    peer.signal(&conn, Signal::Data);
    peer.must_live("positions mean this connection only");
}

pub(crate) fn switch_at_a_huge_position(target: &Target) {
    switch(target, 1 << 60, false);
}

/// At 0, when bytes have passed.
pub(crate) fn switch_late(target: &Target) {
    switch(target, 1, true);
}

/// At 0, when bytes are on their way.
pub(crate) fn switch_early(target: &Target) {
    switch(target, 1, false);
}
