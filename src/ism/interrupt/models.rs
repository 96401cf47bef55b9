//! Loom's models of the signal page: a poller against senders.

use super::*;
use crate::sync::{Arc, AtomicBool};
use loom::sync::{Condvar, Mutex};
use loom::thread;

/// A bell with one listener.
#[derive(Clone)]
struct Bell(Arc<Mutex<bool>>, Arc<Condvar>);

impl Bell {
    fn new() -> Bell {
        Bell(Arc::new(Mutex::new(false)), Arc::new(Condvar::new()))
    }

    fn ring(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_one();
    }

    /// Sleeps until rung; loom reports a deadlock if that never happens.
    fn sleep(&self) {
        let mut rung = self.0.lock().unwrap();
        while !*rung {
            rung = self.1.wait(rung).unwrap();
        }
        *rung = false;
    }
}

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

// Looks never get stale in a model: the poller runs on.
const NEVER: u64 = u64::MAX;

fn raise(page: &SignalPage, bell: &Bell, index: u32, signal: Signal) {
    if page.raise(index, signal, || 5, NEVER, &AtomicU64::new(0)) {
        bell.ring();
    }
}

/// Fails (deadlock) without the fence in `raise` or the one in `sleep`.
#[test]
fn loom_no_signal_is_slept_through() {
    check(3, || {
        let page = Arc::new(SignalPage::new());
        let bell = Bell::new();
        page.publish_look(1);
        let sender = {
            let (page, bell) = (page.clone(), bell.clone());
            thread::spawn(move || {
                raise(&page, &bell, 3, Signal::Data);
                raise(&page, &bell, 40, Signal::Space);
            })
        };
        let mut found = Vec::new();
        while found.len() < 2 {
            if page.drain(|| CONNECTIONS, |index, signal| found.push((index, signal))) > 0 {
                continue;
            }
            if page.sleep() {
                bell.sleep();
            }
            page.publish_look(2);
        }
        found.sort_by_key(|(index, _)| *index);
        assert_eq!(found, [(3, Signal::Data), (40, Signal::Space)]);
        sender.join().unwrap();
        assert!(page.is_idle());
    });
}

/// Two senders, one ring: who loses the race for the stamp relies on the winner.
#[test]
fn loom_one_of_two_senders_rings() {
    check(2, || {
        let page = Arc::new(SignalPage::new());
        let bell = Bell::new();
        let senders: Vec<_> = [3, 4]
            .into_iter()
            .map(|index| {
                let (page, bell) = (page.clone(), bell.clone());
                thread::spawn(move || raise(&page, &bell, index, Signal::Data))
            })
            .collect();
        let mut found = 0;
        while found < 2 {
            if page.sleep() {
                bell.sleep();
            }
            page.publish_look(2);
            found += page.drain(|| CONNECTIONS, |_, _| ());
        }
        for sender in senders {
            sender.join().unwrap();
        }
    });
}

/// A socket for a bell, of which the poller has seen the edges: while it is full nobody is rung by
/// it, but who has read it looks. Fails (deadlock) if that look comes before the reading.
#[test]
fn loom_a_full_socket_loses_no_ring() {
    check(2, || {
        let page = Arc::new(SignalPage::new());
        let bell = Bell::new();
        // Room for one message, which is there.
        let full = Arc::new(Mutex::new(true));
        let sender = {
            let (page, bell, full) = (page.clone(), bell.clone(), full.clone());
            thread::spawn(move || {
                if page.raise(3, Signal::Data, || 5, NEVER, &AtomicU64::new(0)) {
                    let was_full = std::mem::replace(&mut *full.lock().unwrap(), true);
                    if !was_full {
                        bell.ring();
                    }
                }
            })
        };
        let task = {
            let (page, bell) = (page.clone(), bell.clone());
            thread::spawn(move || {
                *full.lock().unwrap() = false;
                if !page.is_idle() {
                    bell.ring();
                }
            })
        };
        let mut found = 0;
        while found == 0 {
            if page.sleep() {
                bell.sleep();
            }
            page.publish_look(2);
            found += page.drain(|| CONNECTIONS, |_, _| ());
        }
        sender.join().unwrap();
        task.join().unwrap();
    });
}

/// What was done before a signal is seen by who takes it. Fails if the bits are taken or set
/// Relaxed.
#[test]
fn loom_a_signal_carries_what_precedes_it() {
    check(3, || {
        let page = Arc::new(SignalPage::new());
        let bell = Bell::new();
        let news = Arc::new(AtomicBool::new(false));
        let sender = {
            let (page, bell, news) = (page.clone(), bell.clone(), news.clone());
            thread::spawn(move || {
                news.store(true, Ordering::Relaxed);
                raise(&page, &bell, 3, Signal::Data);
            })
        };
        for _ in 0..2 {
            if page.drain(|| CONNECTIONS, |_, _| ()) > 0 {
                assert!(news.load(Ordering::Relaxed));
            }
        }
        sender.join().unwrap();
    });
}
