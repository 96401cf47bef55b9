//! Loom's models of a link's end, and of a slot and a number that are used again.
//!
//! Each was seen to fail with the part of the rules it is about taken out; the comment at each says
//! which.

use std::task::{Wake, Waker};

use loom::sync::{Condvar, Mutex};
use loom::thread;

use super::given::{Given, Unknown};
use super::numbers::Numbers;
use crate::conn::waiters::WakerSet;
use crate::ism::dmb::Direction;
use crate::ism::interrupt::{CONNECTIONS, Signal, SignalPage};
use crate::ism::ring::heap::HeapMemory;
use crate::ism::ring::{Consumer, Memory, Producer, Segment};
use crate::sync::{Arc, AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

type Heap = HeapMemory<2>;

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// A task that can be woken, and how often it was.
struct Task(Mutex<(bool, usize)>, Condvar);

impl Task {
    fn new() -> std::sync::Arc<Task> {
        std::sync::Arc::new(Task(Mutex::new((false, 0)), Condvar::new()))
    }

    /// Sleeps until woken; loom reports a deadlock if that never happens.
    fn sleep(&self) {
        let mut woken = self.0.lock().unwrap();
        while !woken.0 {
            woken = self.1.wait(woken).unwrap();
        }
        woken.0 = false;
    }
}

impl Wake for Task {
    fn wake(self: std::sync::Arc<Self>) {
        {
            let mut woken = self.0.lock().unwrap();
            *woken = (true, woken.1 + 1);
        }
        self.1.notify_one();
    }
}

/// A stream, as far as its link and who waits for it are concerned.
struct Stream {
    readers: WakerSet,
    /// Its link has died.
    dead: AtomicBool,
    /// Times that this was news.
    told: AtomicUsize,
}

impl Stream {
    fn new() -> Arc<Stream> {
        let (dead, told) = (AtomicBool::new(false), AtomicUsize::new(0));
        Arc::new(Stream { readers: WakerSet::default(), dead, told })
    }

    /// What the link calls: first the mode changes, then the whole set wakes.
    fn link_died(&self) {
        if !self.dead.swap(true, Ordering::AcqRel) {
            self.told.fetch_add(1, Ordering::Relaxed);
        }
        self.readers.wake_all();
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }
}

/// Takes what the peer has raised and wakes the streams concerned.
fn drain(page: &SignalPage, streams: &Numbers<Arc<Stream>>) {
    page.drain(
        || CONNECTIONS,
        |number, _| {
            let stream = streams.look(|table| table.get(number).cloned());
            if let Some(stream) = stream {
                stream.readers.wake_all();
            }
        },
    );
}

fn raise(page: &SignalPage, number: u32) {
    // The poller here never sleeps.
    page.raise(number, Signal::Data, || 5, u64::MAX, &AtomicU64::new(0));
}

/// A stream is attached, and waits, while its link dies and the peer rings. Fails (deadlock) if who
/// has taken a number does not ask for the death, if `die` looks at the table before it sets the
/// mark, if the stream wakes its readers before it knows, and if who waits does not look again.
#[test]
fn loom_who_waits_hears_of_the_death() {
    check(3, || {
        let streams = Arc::new(Numbers::new(2));
        let page = Arc::new(SignalPage::new());
        page.publish_look(1);
        let stream = Stream::new();
        let link = {
            let streams = streams.clone();
            thread::spawn(move || {
                let told = streams.die(1, |stream: &Arc<Stream>| Some(stream.clone()));
                told.expect("the first death").iter().for_each(|stream| stream.link_died());
                assert!(streams.die(2, |_| Some(())).is_none(), "once");
            })
        };
        let peer = {
            let (streams, page) = (streams.clone(), page.clone());
            thread::spawn(move || {
                raise(&page, 0);
                drain(&page, &streams);
            })
        };
        let number = streams.take(stream.clone()).unwrap();
        if streams.death() != 0 {
            stream.link_died();
        }
        let task = Task::new();
        let mut waits = 0;
        while !stream.is_dead() {
            waits += 1;
            stream.readers.register(&Waker::from(task.clone()));
            if stream.is_dead() {
                break;
            }
            task.sleep();
        }
        drop(streams.give_back(number));
        link.join().unwrap();
        peer.join().unwrap();
        assert_eq!(stream.told.load(Ordering::Relaxed), 1);
        assert_eq!(streams.death(), 1);
        // Each registration is good for one wake-up.
        assert!(task.0.lock().unwrap().1 <= waits);
        assert!(streams.is_empty());
    });
}

/// Two streams of a link that dies, one of which ends meanwhile: whoever has its number then is not
/// told in its place, and the other one is.
#[test]
fn loom_the_death_finds_every_stream_that_is_there() {
    check(3, || {
        let streams = Arc::new(Numbers::new(2));
        let [stays, goes] = [Stream::new(), Stream::new()];
        streams.take(stays.clone()).unwrap();
        let number = streams.take(goes.clone()).unwrap();
        let link = {
            let streams = streams.clone();
            thread::spawn(move || {
                let told = streams.die(1, |stream: &Arc<Stream>| Some(stream.clone()));
                told.expect("the first death").iter().for_each(|stream| stream.link_died());
            })
        };
        drop(streams.give_back(number));
        let late = Stream::new();
        assert_eq!(streams.take(late.clone()), Some(number), "the same number");
        if streams.death() != 0 {
            late.link_died();
        }
        link.join().unwrap();
        let told = [&stays, &late].map(|stream| stream.told.load(Ordering::Relaxed));
        assert_eq!(told, [1, 1]);
        assert!(goes.told.load(Ordering::Relaxed) <= 1);
    });
}

/// Our end of a link, as far as slots and numbers go.
struct Host {
    given: Mutex<Given<u32, u64>>,
    streams: Numbers<Arc<Stream>>,
    page: SignalPage,
    /// The one slot.
    memory: Heap,
    /// What the peer has said: DETACH, by token.
    inbox: Mutex<Vec<u64>>,
    used_again: AtomicUsize,
}

const SLOT: u32 = 0;
const OLD: u64 = 11;
const NEW: u64 = 12;

impl Host {
    /// The link's task takes what has come.
    fn serve(&self) {
        loop {
            let Some(token) = self.inbox.lock().unwrap().pop() else { return };
            let free = self.given.lock().unwrap().detached(token).expect("it is out");
            self.reuse(free);
        }
    }

    /// The application has done with the old connection.
    fn done(&self) {
        drop(self.streams.give_back(0));
        let free = self.given.lock().unwrap().done(OLD);
        self.reuse(free);
    }

    /// The slot is given to another connection, which has a byte to read.
    fn reuse(&self, free: Option<u32>) {
        let Some(SLOT) = free else { return };
        self.used_again.fetch_add(1, Ordering::Relaxed);
        self.memory.first().copy_in(0, &[0; 2]);
        self.memory.header().initialise();
        let stream = Stream::new();
        assert_eq!(self.streams.take(stream.clone()), Some(0), "the same number");
        self.given.lock().unwrap().give(NEW, SLOT, 0);
        let mut producer = Producer::new(self.memory.clone(), 1 << 20);
        let mut consumer = Consumer::new(self.memory.clone());
        let task = Task::new();
        stream.readers.register(&Waker::from(task.clone()));
        // A late ring wakes the new stream, which finds nothing.
        drain(&self.page, &self.streams);
        assert!(!consumer.is_readable().unwrap(), "a byte of the past");
        assert_eq!(producer.write(&[1]).unwrap(), 1);
        let mut byte = [0];
        assert_eq!(consumer.read(&mut &mut byte[..]).unwrap(), 1);
        assert_eq!((byte, self.memory.header().direction()), ([1], Direction::Open));
    }
}

/// A slot whose sender still writes, rings and says DETACH while its reader goes: it is used again
/// once, after the sender's last access, and nothing of the past reaches the new use. Fails (a race
/// on a byte) if a slot is free as soon as either end is done, and if its token stays out then.
#[test]
fn loom_a_slot_that_is_named_again_has_no_past() {
    check(3, || {
        let host = Arc::new(Host {
            given: Mutex::new(Given::new()),
            streams: Numbers::new(2),
            page: SignalPage::new(),
            memory: Heap::new(),
            inbox: Mutex::new(Vec::new()),
            used_again: AtomicUsize::new(0),
        });
        host.page.publish_look(1);
        assert_eq!(host.streams.take(Stream::new()), Some(0));
        host.given.lock().unwrap().give(OLD, SLOT, 0);
        host.given.lock().unwrap().use_it(OLD);
        let mut producer = Producer::new(host.memory.clone(), 1 << 20);
        let peer = {
            let host = host.clone();
            thread::spawn(move || {
                producer.write(&[7]).unwrap();
                drop(producer);
                fence(Ordering::SeqCst);
                host.inbox.lock().unwrap().push(OLD);
                // What another thread of it does late.
                raise(&host.page, 0);
            })
        };
        let application = {
            let host = host.clone();
            thread::spawn(move || host.done())
        };
        host.serve();
        peer.join().unwrap();
        application.join().unwrap();
        host.serve();
        assert_eq!(host.used_again.load(Ordering::Relaxed), 1);
        let mut given = host.given.lock().unwrap();
        assert_eq!(given.detached(OLD), Err(Unknown), "a second DETACH");
        assert!(!given.has(OLD) && given.has(NEW) && given.stream(NEW).is_none());
    });
}
