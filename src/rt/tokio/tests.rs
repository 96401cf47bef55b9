//! Tasks that fail: what they served ends, is told why, and does not wait.

mod sockets;

use std::future::Future;
use std::io::ErrorKind;
use std::sync::Weak;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::config::UpgradePolicy;
use crate::conn::Tcp;
use crate::ism::arena::DmbSegment;
use crate::ism::ring::Refusal;
use crate::ism::sys;
use crate::link::drive::Drive;
use crate::link::look;
use crate::link::message::{Destination, Subject};
use crate::link::proof::Possession;
use crate::link::search::Unsettled;
use crate::link::stream::{
    Answer, Ask, Death, Granted, GrowingStream, InterruptHandler, Latest, Lend, LinkedStream, Prelude,
    ReceiveDmb, SendDmb, Verdict,
};
use crate::listener::SmcListener;
use crate::peer::PeerPolicy;
use crate::stream::SmcStream;
use crate::sync::{AtomicBool, Ordering};
use crate::transport::{FallbackReason, Transport};

/// What hangs fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A panic that belongs to the test.
fn fail() {
    panic!("a panic that belongs to the test");
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

struct Lab {
    dir: tempfile::TempDir,
    client: Runtime,
    server: Runtime,
    listener: SmcListener,
}

impl Lab {
    fn new() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let (client, server) = (runtime(), runtime());
        let config = Config::new().device_dir(dir.path());
        let listener = server.block_on(SmcListener::bind_with("127.0.0.1:0", &config)).unwrap();
        Lab { dir, client, server, listener }
    }

    fn config(&self, policy: UpgradePolicy) -> Config {
        Config::new().device_dir(self.dir.path()).upgrade_policy(policy)
    }

    fn connect(&self) -> SmcStream {
        let address = self.listener.local_addr().unwrap();
        self.client.block_on(SmcStream::connect_with(address, &self.config(UpgradePolicy::Manual))).unwrap()
    }

    /// A connection on the ring.
    fn upgraded(&self) -> (SmcStream, SmcStream) {
        let client = self.connect();
        let server = self.server.block_on(self.listener.accept()).unwrap().0;
        for (runtime, stream) in [(&self.client, &client), (&self.server, &server)] {
            let transport = runtime.block_on(async {
                // The client's offer may still be on its way.
                let mut watch = stream.watch();
                if stream.upgrade().await == Transport::Tcp(FallbackReason::NotYet) {
                    watch.settled().await;
                }
                watch.settled().await
            });
            assert!(transport.is_loopback_ism(), "{transport}: {:?}", transport.fallback_reason());
        }
        (client, server)
    }

    fn endpoint(&self, side: &Runtime) -> Arc<Endpoint> {
        endpoint(side.handle(), &self.config(UpgradePolicy::Manual)).unwrap()
    }

    /// Serves an endpoint with one more task.
    fn drive(&self, side: &Runtime) -> Arc<Drive> {
        let endpoint = self.endpoint(side);
        let key = (side.handle().id(), self.config(UpgradePolicy::Manual).device_dir);
        Drive::new(endpoint, forget(key))
    }
}

async fn in_time<F: Future>(what: &str, wait: F) -> F::Output {
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

/// Lets one task of an endpoint fail and looks at everybody who waits.
fn endpoint_fails(of_client: bool, how: impl FnOnce(&Arc<Drive>, &Arc<Endpoint>)) {
    let lab = Lab::new();
    let (side, other) = if of_client { (&lab.client, &lab.server) } else { (&lab.server, &lab.client) };
    let (client, server) = lab.upgraded();
    let (mut here, mut there) = if of_client { (client, server) } else { (server, client) };
    // It waits to be accepted.
    let waiting = lab.connect();
    let (drive, endpoint) = (lab.drive(side), lab.endpoint(side));
    let (reading, asking, elsewhere) = {
        let reading = side.spawn(async move {
            let read = here.read_u8().await;
            (read, here.write_all(b"x").await)
        });
        let asking = lab.client.spawn(async move { (waiting.upgrade().await, waiting) });
        (reading, asking, other.spawn(async move { there.read(&mut [0; 1]).await }))
    };
    // All of them wait.
    std::thread::sleep(Duration::from_millis(50));
    how(&drive, &endpoint);
    lab.client.block_on(async {
        let (read, written) = in_time("the reader", reading).await.unwrap();
        for error in [read.unwrap_err(), written.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            assert!(error.to_string().contains("a task that serves shared memory has failed"), "{error}");
        }
        let there = in_time("the peer's reader", elsewhere).await.unwrap();
        assert_eq!(there.unwrap_err().kind(), ErrorKind::ConnectionReset);
        let (answer, mut waiting) = in_time("upgrade()", asking).await.unwrap();
        let reason = answer.fallback_reason().expect("no upgrade");
        // The other end only sees a link that breaks.
        let expected = if of_client { FallbackReason::Failed } else { FallbackReason::LinkDown };
        assert_eq!(reason, expected);
        waiting.write_all(b"goes on").await.unwrap();
    });
    let mut accepted = lab.server.block_on(lab.listener.accept()).unwrap().0;
    let mut got = [0; 7];
    lab.server.block_on(in_time("tcp", accepted.read_exact(&mut got))).unwrap();
    assert_eq!(&got, b"goes on");
    assert!(endpoint.is_dead() && endpoint.links().is_empty());
    // Whoever comes next has a new one.
    let (mut client, mut server) = lab.upgraded();
    assert!(!Arc::ptr_eq(&lab.endpoint(side), &endpoint));
    lab.client.block_on(client.write_all(b"again")).unwrap();
    lab.server.block_on(server.read_exact(&mut got[..5])).unwrap();
    assert_eq!(&got[..5], b"again");
}

#[test]
fn a_task_that_panics_ends_its_endpoint() {
    for of_client in [true, false] {
        endpoint_fails(of_client, |drive, _| drive.serve(async { fail() }));
    }
}

#[test]
fn a_task_that_returns_ends_its_endpoint() {
    for of_client in [true, false] {
        endpoint_fails(of_client, |drive, _| drive.serve(async {}));
    }
}

/// What the peer reads behind our own reset is no clean end, whatever the application does to its
/// end then.
#[test]
fn a_shutdown_after_our_own_reset_is_no_end_to_the_peer() {
    for (of_client, shuts) in [(true, true), (true, false), (false, true), (false, false)] {
        let lab = Lab::new();
        let (side, other) = if of_client { (&lab.client, &lab.server) } else { (&lab.server, &lab.client) };
        let (client, server) = lab.upgraded();
        let (mut here, mut there) = if of_client { (client, server) } else { (server, client) };
        side.block_on(here.write_all(b"half of it")).unwrap();
        lab.drive(side).serve(async { fail() });
        let error = side.block_on(in_time("the reader", here.read_u8())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        if shuts {
            side.block_on(here.shutdown()).unwrap();
        }
        drop(here);
        let mut got = Vec::new();
        let end = other.block_on(in_time("the peer's reader", there.read_to_end(&mut got)));
        assert_eq!(end.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset), "after {got:?}");
    }
}

/// A poller like the endpoint's own, with that clock.
fn poll_with(drive: &Arc<Drive>, endpoint: &Arc<Endpoint>, clock: fn() -> u64) {
    let eventfd = endpoint.reactor().watch(endpoint.eventfd().try_clone().unwrap()).unwrap();
    drive.serve(look::run(eventfd, endpoint.clone(), clock));
}

#[test]
fn a_clock_that_panics_in_the_poller_ends_the_endpoint() {
    endpoint_fails(true, |drive, endpoint| {
        poll_with(drive, endpoint, || {
            fail();
            0
        });
    });
}

#[test]
fn a_clock_that_panics_inside_the_reactor_ends_the_endpoint_and_not_the_reactor() {
    static BROKEN: AtomicBool = AtomicBool::new(false);
    static ASKED: AtomicBool = AtomicBool::new(false);
    endpoint_fails(true, |drive, endpoint| {
        poll_with(drive, endpoint, || {
            ASKED.store(true, Ordering::SeqCst);
            if BROKEN.load(Ordering::SeqCst) {
                fail();
            }
            sys::monotonic_ns()
        });
        // The task has had its look, and sleeps.
        while !ASKED.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(50));
        BROKEN.store(true, Ordering::SeqCst);
        sys::ring(std::os::fd::AsFd::as_fd(endpoint.eventfd())).unwrap();
    });
}

/// What a peer keeps busy has one turn after the other: descriptors and timers have theirs between.
#[test]
fn a_task_that_is_always_busy_keeps_no_descriptor_waiting() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let reactor = Arc::new(Tokio(runtime.handle().clone()));
    runtime.block_on(async {
        let (mut here, mut there) = tokio::net::UnixStream::pair().unwrap();
        let turns = Arc::new(crate::sync::AtomicUsize::new(0));
        let (counted, busy) = (turns.clone(), reactor.clone());
        reactor.spawn(Box::pin(async move {
            loop {
                counted.fetch_add(1, Ordering::SeqCst);
                crate::link::reactor::yield_now(&*busy).await;
            }
        }));
        for _ in 0..20 {
            let before = turns.load(Ordering::SeqCst);
            there.write_u8(1).await.unwrap();
            here.read_u8().await.unwrap();
            let after = turns.load(Ordering::SeqCst);
            assert!(after - before <= 4, "{} turns before a descriptor is told", after - before);
        }
    });
}

/// A stream of which nothing works that its link's task calls.
struct Faulty(Arc<dyn LinkedStream>);

impl GrowingStream for Faulty {
    fn shrink(&self) -> bool {
        fail();
        true
    }

    fn asked(&self, _: Ask) -> Answer {
        fail();
        Answer::Deny(Refusal::Memory)
    }

    fn lend(&self, _: &Lend) -> Answer {
        fail();
        Answer::Deny(Refusal::Memory)
    }

    fn not_made(&self, _: &Lend) -> Answer {
        fail();
        Answer::Deny(Refusal::Memory)
    }

    fn ask_again(&self) -> Option<Answer> {
        fail();
        None
    }

    fn not_sent(&self, _: u64) -> Answer {
        fail();
        Answer::Deny(Refusal::Memory)
    }

    fn awaits(&self, _: u64, _: u64) -> Granted {
        fail();
        Granted::Gone
    }

    fn returned(&self, _: u64) {
        fail();
    }

    fn granted(&self, _: u64, _: Option<DmbSegment>) -> Granted {
        fail();
        Granted::Gone
    }

    fn denied(&self, _: Refusal) {
        fail();
    }
}

impl LinkedStream for Faulty {
    fn may_meet(&self, _: &Subject) -> bool {
        true
    }

    fn subject(&self) -> Result<Subject, FallbackReason> {
        self.0.subject()
    }

    fn possession(&self) -> Result<Possession, FallbackReason> {
        Ok(Possession::Unwritten)
    }

    fn offer_with_next_write(&self, _: Weak<Endpoint>) {}

    fn initial_sequence(&self) -> Result<u32, FallbackReason> {
        Err(FallbackReason::NoSequence)
    }

    fn attempt_is_used_up(&self) {}

    fn has_received(&self) -> bool {
        false
    }

    fn has_ended(&self) -> bool {
        false
    }

    fn dmb_size(&self) -> usize {
        self.0.dmb_size()
    }

    fn peer_policy(&self) -> &PeerPolicy {
        self.0.peer_policy()
    }

    fn interrupt_handler(&self) -> Arc<dyn InterruptHandler> {
        self.0.interrupt_handler()
    }

    fn wants_prelude(&self) -> bool {
        false
    }

    fn offered(&self, offer: Latest) {
        // It stands as long as the test runs.
        std::mem::forget(offer);
    }

    fn attach_receive(&self, _: ReceiveDmb, _: Option<&[u8]>) -> Result<(), FallbackReason> {
        fail();
        Ok(())
    }

    fn attach_send(&self, _: SendDmb) {
        fail();
    }

    fn start_prelude(&self, _: &crate::ism::arena::DmbMemory, _: Prelude) {
        fail();
    }

    fn prelude_decided(&self) {
        fail();
    }

    fn verdict(&self, _: Verdict) {
        fail();
    }
}

#[test]
fn a_link_whose_task_panics_ends_alone() {
    let lab = Lab::new();
    let (mut client, mut server) = lab.upgraded();
    let endpoint = lab.endpoint(&lab.client);
    let link = endpoint.links()[0].clone();
    let stream = lab.connect();
    let accepted = lab.server.block_on(lab.listener.accept()).unwrap().0;
    let faulty: Arc<dyn LinkedStream> = Arc::new(Faulty(stream.conn_for_tests()));
    lab.client.block_on(async {
        let reading = tokio::spawn(async move { client.read_u8().await });
        // Its MATCH comes to the link's task.
        link.offer(faulty.clone(), Destination::Own, None);
        let error = in_time("the reader", reading).await.unwrap().unwrap_err();
        assert!(error.to_string().contains("has failed"), "{error}");
    });
    assert_eq!(link.death(), Some(Death::Failed));
    let there = lab.server.block_on(in_time("the peer's reader", server.read_u8()));
    assert_eq!(there.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(!endpoint.is_dead(), "the endpoint lives");
    drop((stream, accepted, faulty));
    lab.upgraded();
}

#[test]
fn a_search_that_fails_or_is_dropped_settles_its_stream() {
    let lab = Lab::new();
    let offering = || {
        let stream = lab.connect();
        let linked: Arc<dyn LinkedStream> = stream.conn_for_tests();
        assert!(stream.conn_for_tests().begin_upgrade());
        (stream, Arc::downgrade(&linked))
    };
    let (stream, linked) = offering();
    lab.client.block_on(Unsettled::during(linked, async { fail() }));
    assert_eq!(stream.transport(), Transport::Tcp(FallbackReason::Failed));
    let (stream, linked) = offering();
    let search = Unsettled::during(linked, std::future::pending());
    assert_eq!(stream.transport(), Transport::Tcp(FallbackReason::InProgress));
    drop(search);
    assert_eq!(stream.transport(), Transport::Tcp(FallbackReason::NoRuntime));
}

#[test]
fn sleepers_of_a_timer_that_ends_wake_up() {
    let lab = Lab::new();
    let timers = lab.endpoint(&lab.client).timers().clone();
    let sleeping = lab.client.spawn(timers.sleep(PATIENCE * 60));
    std::thread::sleep(Duration::from_millis(20));
    lab.drive(&lab.client).serve(async { fail() });
    lab.client.block_on(in_time("the sleeper", sleeping)).unwrap();
    lab.client.block_on(in_time("a late sleeper", timers.sleep(PATIENCE * 60)));
}

#[test]
fn who_waits_for_an_answer_lets_others_run_when_the_timer_ends() {
    let lab = Lab::new();
    // It waits to be accepted.
    let stream = lab.connect();
    let (woken, waker) = Woken::new();
    let mut cx = Context::from_waker(&waker);
    let mut upgrade = std::pin::pin!(stream.upgrade());
    while stream.conn_for_tests().answer_due().is_none() {
        assert!(upgrade.as_mut().poll(&mut cx).is_pending());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(upgrade.as_mut().poll(&mut cx).is_pending());
    lab.endpoint(&lab.client).timers().end();
    woken.0.store(false, Ordering::SeqCst);
    // Not overdue, and not for want of looking all the time until it is.
    assert!(upgrade.as_mut().poll(&mut cx).is_pending());
    assert!(woken.0.load(Ordering::SeqCst), "it looks again");
    let accepted = lab.server.block_on(lab.listener.accept()).unwrap().0;
    let transport = lab.client.block_on(in_time("upgrade()", upgrade));
    assert!(transport.is_loopback_ism(), "{transport}: {:?}", transport.fallback_reason());
    drop(accepted);
}

/// Whether a waker was called.
#[derive(Default)]
struct Woken(AtomicBool);

impl Woken {
    fn new() -> (Arc<Woken>, Waker) {
        let woken = Arc::new(Woken::default());
        (woken.clone(), Waker::from(woken))
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Every stream that is made allocates its connection. What glibc keeps for each thread is cheap to
/// have again; more bytes than these go through the whole of its allocator, cold, at each connect
/// and each accept.
#[cfg(target_pointer_width = "64")]
#[test]
fn a_connection_fits_where_malloc_is_fast() {
    const LARGEST: usize = 1032;
    const COUNTS_OF_ARC: usize = 16;
    let bytes = size_of::<crate::conn::Connection<TokioTcp>>() + COUNTS_OF_ARC;
    assert!(bytes <= LARGEST, "{bytes} bytes");
}
