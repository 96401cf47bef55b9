//! The engine thread by itself.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use super::Engine;
use super::executor::Executor;
use super::registered::Registered;
use crate::config::Config;
use crate::ism::sys;
use crate::link::reactor::{Interest, Reactor, Watched, yield_now};
use crate::link::stream::Death;
use crate::sync::{Arc, AtomicBool, AtomicUsize, Ordering};

/// An engine thread that ends with the test.
struct Thread(Arc<Executor>);

impl Thread {
    fn start() -> Self {
        Thread(Executor::start().unwrap())
    }

    fn eventfd(&self) -> (OwnedFd, Arc<Registered>) {
        let eventfd = sys::eventfd().unwrap();
        let registered = self.0.register(eventfd.try_clone().unwrap()).unwrap();
        (eventfd, registered)
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Woken {
    fn new() -> (Arc<Woken>, Waker) {
        let woken = Arc::new(Woken::default());
        (woken.clone(), Waker::from(woken))
    }

    fn times(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Sets a flag when it is dropped.
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn gone() -> (Arc<AtomicBool>, Gone) {
    let flag = Arc::new(AtomicBool::new(false));
    (flag.clone(), Gone(flag))
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::yield_now();
    }
}

fn is_set(flag: &AtomicBool) -> bool {
    flag.load(Ordering::SeqCst)
}

fn readable(registered: &Registered, cx: &mut Context<'_>) -> bool {
    registered.poll_ready(Interest::Read, cx).is_ready()
}

fn would_block() -> io::Result<()> {
    Err(io::ErrorKind::WouldBlock.into())
}

#[test]
fn a_task_is_polled_when_another_thread_wakes_it() {
    let thread = Thread::start();
    let (done, held) = gone();
    let (polls, wakers) = (Arc::new(AtomicUsize::new(0)), std::sync::mpsc::channel());
    let counted = polls.clone();
    thread.0.spawn(Box::pin(async move {
        let _held = held;
        poll_fn(|cx| {
            wakers.0.send(cx.waker().clone()).unwrap();
            if counted.fetch_add(1, Ordering::SeqCst) < 3 { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }));
    for _ in 0..3 {
        let waker = wakers.1.recv().unwrap();
        // Asleep, or on its way there.
        waker.wake_by_ref();
        waker.wake();
    }
    eventually("the task ends", || is_set(&done));
    assert!(polls.load(Ordering::SeqCst) >= 4);
}

#[test]
fn a_task_that_panics_ends_alone() {
    let thread = Thread::start();
    let (dropped, held) = gone();
    thread.0.spawn(Box::pin(async move {
        let _held = held;
        panic!("a panic that belongs to the test");
    }));
    eventually("what it held is dropped", || is_set(&dropped));
    let (done, held) = gone();
    thread.0.spawn(Box::pin(async move { drop(held) }));
    eventually("another one runs", || is_set(&done));
}

#[test]
fn tasks_are_dropped_with_the_thread_and_later_ones_at_once() {
    let thread = Thread::start();
    let (begun, held) = gone();
    thread.0.spawn(Box::pin(async move {
        let _held = held;
        std::future::pending::<()>().await;
    }));
    let (eventfd, registered) = thread.eventfd();
    let (woken, waker) = Woken::new();
    let mut cx = Context::from_waker(&waker);
    assert!(!readable(&registered, &mut cx));
    thread.0.end();
    eventually("the task is dropped", || is_set(&begun));
    eventually("who waits looks again", || woken.times() == 1);
    let answer = registered.poll_ready(Interest::Read, &mut cx);
    assert!(matches!(answer, Poll::Ready(Err(_))), "{answer:?}");
    let (late, held) = gone();
    thread.0.spawn(Box::pin(async move {
        let _held = held;
        std::future::pending::<()>().await;
    }));
    assert!(is_set(&late));
    assert!(thread.0.watch(eventfd).is_err());
}

#[test]
fn a_task_that_always_runs_keeps_no_descriptor_from_being_told() {
    let thread = Thread::start();
    let (stop, stopped) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (until, done) = (stop.clone(), stopped.clone());
    let reactor = thread.0.clone();
    thread.0.spawn(Box::pin(async move {
        while !is_set(&until) {
            yield_now(&*reactor).await;
        }
        done.store(true, Ordering::SeqCst);
    }));
    let (eventfd, registered) = thread.eventfd();
    let (woken, waker) = Woken::new();
    let mut cx = Context::from_waker(&waker);
    for round in 1..=50 {
        assert!(!readable(&registered, &mut cx));
        sys::ring(eventfd.as_fd()).unwrap();
        eventually("the edge is told", || woken.times() == round);
        assert!(readable(&registered, &mut cx));
        let _ = registered.attempt(Interest::Read, &mut would_block);
    }
    stop.store(true, Ordering::SeqCst);
    eventually("the task ends", || is_set(&stopped));
}

#[test]
fn an_event_during_an_attempt_is_not_forgotten() {
    let thread = Thread::start();
    let (eventfd, registered) = thread.eventfd();
    let (woken, waker) = Woken::new();
    let mut cx = Context::from_waker(&waker);
    // The attempt finds nothing, and then, before it has answered, there is an edge that the thread
    // tells of.
    let _ = registered.attempt(Interest::Read, &mut || {
        assert!(!readable(&registered, &mut Context::from_waker(&waker)));
        sys::ring(eventfd.as_fd())?;
        eventually("the edge is told", || woken.times() == 1);
        would_block()
    });
    assert!(readable(&registered, &mut cx));
    // One that was known before is forgotten.
    let _ = registered.attempt(Interest::Read, &mut would_block);
    assert!(!readable(&registered, &mut cx));
}

#[test]
fn every_event_is_told_once_to_who_waits_for_any() {
    let thread = Thread::start();
    let (eventfd, registered) = thread.eventfd();
    let (woken, waker) = Woken::new();
    let mut cx = Context::from_waker(&waker);
    // What there is at first: it can be written to.
    eventually("the first event", || {
        registered.poll_ready(Interest::Write, &mut Context::from_waker(Waker::noop())).is_ready()
    });
    for round in 1..20 {
        assert!(registered.poll_event(Interest::Read, &mut cx).is_pending());
        sys::ring(eventfd.as_fd()).unwrap();
        eventually("the edge is told", || woken.times() == round);
    }
}

#[test]
fn a_descriptor_that_is_dropped_leaves_the_epoll() {
    let thread = Thread::start();
    let (eventfd, registered) = thread.eventfd();
    drop(registered);
    // It can be registered again, and is told under the new number.
    let registered = thread.0.register(eventfd.try_clone().unwrap()).unwrap();
    let (woken, waker) = Woken::new();
    assert!(!readable(&registered, &mut Context::from_waker(&waker)));
    sys::ring(eventfd.as_fd()).unwrap();
    eventually("the edge is told", || woken.times() == 1);
}

#[test]
fn an_endpoint_that_failed_has_a_successor_on_the_same_thread() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::new().device_dir(dir.path());
    let engine = Engine::hold(&config).unwrap();
    assert!(Arc::ptr_eq(&engine, &Engine::hold(&config).unwrap()));
    let first = engine.endpoint(&config).unwrap();
    assert!(Arc::ptr_eq(&first, &engine.endpoint(&config).unwrap()));
    first.shut_down(Death::Failed);
    let second = engine.endpoint(&config).unwrap();
    assert!(!second.is_dead() && !Arc::ptr_eq(&first, &second));
    drop(engine);
    eventually("it ends with its holder", || second.is_dead());
    // The next one who needs it begins anew.
    assert!(!Engine::hold(&config).unwrap().endpoint(&config).unwrap().is_dead());
}

#[test]
fn a_message_on_the_error_queue_is_no_end() {
    let thread = Thread::start();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    let registered = thread.0.register(tcp.try_clone().unwrap()).unwrap();
    let (woken, waker) = Woken::new();
    let mut cx = Context::from_waker(&waker);
    assert!(registered.poll_event(Interest::Write, &mut cx).is_pending());
    let told = woken.times();
    // It lies there until the thread has told of it.
    sys::send_sampled(tcp.as_fd(), &[io::IoSlice::new(b"x")]).unwrap();
    eventually("an event", || {
        let _ = registered.poll_event(Interest::Write, &mut cx);
        woken.times() > told
    });
    assert!(sys::take_sample(tcp.as_fd()).unwrap().is_some());
    assert!(registered.poll_event(Interest::Write, &mut cx).is_pending(), "nothing has ended");
    sys::set_zero_linger(peer.as_fd()).unwrap();
    drop(peer);
    eventually("the end", || registered.poll_event(Interest::Write, &mut cx).is_ready());
}
