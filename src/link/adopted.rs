//! Sockets that came from outside, by their `SO_COOKIE`: two streams of one connection must not
//! both be upgraded.

use std::collections::HashMap;
use std::sync::Weak;

use crate::link::stream::LinkedStream;
use crate::sync::{Arc, Mutex, lock};

static ADOPTED: Mutex<Option<HashMap<u64, Weak<dyn LinkedStream>>>> = Mutex::new(None);

/// Enters a stream; returns another living stream of the same socket, if there is one.
pub(crate) fn adopt(cookie: u64, stream: Weak<dyn LinkedStream>) -> Option<Arc<dyn LinkedStream>> {
    let mut adopted = lock(&ADOPTED);
    let table = adopted.get_or_insert_default();
    if table.len() == table.capacity() {
        // Before it grows: what has gone makes room.
        table.retain(|_, stream| stream.strong_count() > 0);
    }
    table.insert(cookie, stream).and_then(|other| other.upgrade())
}
