//! What a worker tells the judge about its ends of streams, one line each, and what it can say of
//! those that live.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use tokio_smc::{Counters, SmcInfo, Transport, streams};

use crate::child::tell;
use crate::plan::Side;
use crate::talk::{Break, PLANNED};

type Key = (u64, Side);

static LIVING: Mutex<BTreeMap<Key, Arc<Entry>>> = Mutex::new(BTreeMap::new());

/// How far an end is.
#[derive(Debug)]
pub(crate) struct Entry {
    key: Key,
    began: Instant,
    pub(crate) sent: AtomicU64,
    pub(crate) heard: AtomicU64,
    /// One half has left, so the other one does at its next step.
    pub(crate) given_up: AtomicBool,
    doing: [Mutex<&'static str>; 2],
    pub(crate) addresses: OnceLock<(SocketAddr, SocketAddr)>,
    pub(crate) info: OnceLock<SmcInfo>,
    /// Of a stream that blocks, which is gone when it is told.
    pub(crate) last: OnceLock<(Transport, Counters)>,
}

impl Entry {
    pub(crate) fn id(&self) -> u64 {
        self.key.0
    }

    pub(crate) fn does(&self, what: &'static str) {
        *self.doing[0].lock().expect("no panic here") = what;
    }

    pub(crate) fn hears(&self, what: &'static str) {
        *self.doing[1].lock().expect("no panic here") = what;
    }

    fn transport(&self) -> (String, u64) {
        let seen = self.info.get().map(|info| (info.transport(), info.counters()));
        match seen.or_else(|| self.last.get().copied()) {
            Some((Transport::Tcp(reason), counters)) => {
                (format!("{reason:?}").replace(' ', ""), counters.ism_bytes_read)
            }
            Some((_, counters)) => ("ism".to_owned(), counters.ism_bytes_read),
            None => ("plain".to_owned(), 0),
        }
    }
}

/// Reports an end, whatever becomes of it.
pub(crate) struct Report {
    pub(crate) entry: Arc<Entry>,
    outcome: Option<String>,
}

impl Report {
    /// An end begins here.
    pub(crate) fn begin(id: u64, side: Side) -> Report {
        let key = (id, side);
        let entry = Arc::new(Entry {
            key,
            began: Instant::now(),
            sent: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            given_up: AtomicBool::new(false),
            doing: [Mutex::new("not yet writing"), Mutex::new("not yet reading")],
            addresses: OnceLock::new(),
            info: OnceLock::new(),
            last: OnceLock::new(),
        });
        LIVING.lock().expect("no panic here").insert(key, Arc::clone(&entry));
        if side == Side::Server {
            tell(&format!("accepted {id}"));
        }
        Report { entry, outcome: None }
    }

    /// It never became a stream.
    pub(crate) fn no_begin(mut self, error: &std::io::Error) {
        let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<tokio_smc::FallbackReason>());
        let reason = reason.map_or("-".to_owned(), |reason| format!("{reason:?}").replace(' ', ""));
        self.outcome = Some(format!("no-begin {reason} {:?} ({error})", error.kind()));
    }

    pub(crate) fn end(mut self, result: Result<(), Break>) {
        self.outcome = Some(match result {
            Ok(()) => "whole".to_owned(),
            Err(Break::Wrong(place)) => format!("wrong at {place}"),
            Err(Break::TooMuch) => "too-much".to_owned(),
            Err(Break::Early) => "early".to_owned(),
            Err(Break::Failed(doing, error)) => format!("failed {doing}: {:?} ({error})", error.kind()),
            Err(Break::Dropped) => "dropped".to_owned(),
            Err(Break::Cancelled) => "cancelled".to_owned(),
        });
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let otherwise = if std::thread::panicking() { "panicked" } else { "cancelled" };
        let outcome = self.outcome.as_deref().unwrap_or(otherwise);
        let entry = &self.entry;
        let (transport, on_ring) = entry.transport();
        let (sent, heard) = (entry.sent.load(Ordering::Relaxed), entry.heard.load(Ordering::Relaxed));
        let (id, side) = entry.key;
        tell(&format!("end {id} {side} {sent} {heard} {on_ring} {transport} {outcome}"));
        // Whoever panics here does so in a panic.
        if let Ok(mut living) = LIVING.lock() {
            living.remove(&entry.key);
        }
    }
}

/// Tells all that is known of the ends that live, and of the streams that the crate knows.
pub(crate) fn diagnose() {
    let mut known = streams();
    for entry in LIVING.lock().expect("no panic here").values() {
        let (id, side) = entry.key;
        let doing = entry.doing.each_ref().map(|doing| *doing.lock().expect("no panic here"));
        let ours = entry.addresses.get().and_then(|(local, peer)| {
            let fits = |seen: &tokio_smc::StreamStats| {
                seen.local_addr == Some(*local) && seen.peer_addr == Some(*peer)
            };
            known.iter().position(fits).map(|place| known.swap_remove(place).to_string())
        });
        tell(&format!(
            "diagnosis {id} {side}: {} and {}, sent {}, heard {}, {:?} old; {}",
            doing[0],
            doing[1],
            entry.sent.load(Ordering::Relaxed),
            entry.heard.load(Ordering::Relaxed),
            entry.began.elapsed(),
            ours.unwrap_or_else(|| format!("no stream of the crate at {:?}", entry.addresses.get())),
        ));
    }
    for stream in known {
        tell(&format!("diagnosis of a stream that no end has: {stream}"));
    }
    tell("diagnosed");
}

/// Panics that nobody has planned are told.
pub(crate) fn tell_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<&str>().copied();
        let text = text.or_else(|| info.payload().downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("no text");
        if text != PLANNED {
            tell(&format!("panic {text} at {:?}", info.location().map(ToString::to_string)));
            usual(info);
        }
    }));
}
