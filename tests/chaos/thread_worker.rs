//! A worker whose streams block: threads instead of tasks, with the crate's streams or with std's.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use tokio_smc::blocking::{SmcListener, SmcStream};
use tokio_smc::{Config, UpgradePolicy};

use crate::child::tell;
use crate::plan::{Pattern, Plan, Side};
use crate::report::{Entry, Report};
use crate::talk::{Blocking, Blocks, Break, Pace, halves, hear_name, in_thread, turns};
use crate::worker::{Kind, Order, Seat, tell_warm};

const PORT: Duration = Duration::from_secs(20);
/// Between two looks at the listener and at the orders.
const LOOK: Duration = Duration::from_millis(2);

/// Streams of one kind, and how they are made.
trait Family: Blocks {
    type Listener;
    fn bind(address: SocketAddr) -> io::Result<Self::Listener>;
    fn address(listener: &Self::Listener) -> SocketAddr;
    fn accept(listener: &Self::Listener) -> io::Result<Self>;
    fn connect(address: SocketAddr, policy: UpgradePolicy) -> io::Result<Self>;
    fn upgrade(&self) {}
    /// Names it for a diagnosis.
    fn introduce(&self, entry: &Entry);
    /// Notes what it ran on.
    fn note(&self, _: &Entry) {}
    fn warm_up() -> io::Result<()>;
}

impl Family for TcpStream {
    type Listener = TcpListener;

    fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    fn address(listener: &TcpListener) -> SocketAddr {
        listener.local_addr().expect("an address")
    }

    fn accept(listener: &TcpListener) -> io::Result<Self> {
        listener.accept().map(|(stream, _)| stream)
    }

    fn connect(address: SocketAddr, _: UpgradePolicy) -> io::Result<Self> {
        TcpStream::connect(address)
    }

    fn introduce(&self, entry: &Entry) {
        let _ = self.set_nodelay(true);
        if let (Ok(local), Ok(peer)) = (self.local_addr(), self.peer_addr()) {
            let _ = entry.addresses.set((local, peer));
        }
    }

    fn warm_up() -> io::Result<()> {
        Ok(())
    }
}

impl Family for SmcStream {
    type Listener = SmcListener;

    fn bind(address: SocketAddr) -> io::Result<SmcListener> {
        let listener = SmcListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    fn address(listener: &SmcListener) -> SocketAddr {
        listener.local_addr().expect("an address")
    }

    fn accept(listener: &SmcListener) -> io::Result<Self> {
        listener.accept().map(|(stream, _)| stream)
    }

    fn connect(address: SocketAddr, policy: UpgradePolicy) -> io::Result<Self> {
        SmcStream::connect_with(address, &Config::from_env().upgrade_policy(policy))
    }

    fn upgrade(&self) {
        SmcStream::upgrade(self);
    }

    fn introduce(&self, entry: &Entry) {
        let _ = self.set_nodelay(true);
        if let (Ok(local), Ok(peer)) = (self.local_addr(), self.peer_addr()) {
            let _ = entry.addresses.set((local, peer));
        }
    }

    fn note(&self, entry: &Entry) {
        let _ = entry.last.set((self.transport(), self.counters()));
    }

    fn warm_up() -> io::Result<()> {
        let listener = SmcListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let client = thread::spawn(move || <SmcStream as Family>::connect(address, UpgradePolicy::Require));
        let server = listener.accept()?.0;
        let client = client.join().expect("no panic")?;
        client.send(&[7; 100])?;
        let mut heard = 0;
        while heard < 100 {
            heard += server.receive(&mut [0; 100])?;
        }
        Ok(())
    }
}

pub(crate) fn run(kind: Kind, seat: Seat, inbox: &Receiver<Order>) {
    match kind {
        Kind::Blocking => serve::<SmcStream>(seat, inbox),
        _ => serve::<TcpStream>(seat, inbox),
    }
}

/// A stream has a thread of its own; without one it is no stream.
fn begin(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("stream".to_owned()).spawn(work).map(drop)
}

fn serve<S: Family>(mut seat: Seat, inbox: &Receiver<Order>) {
    loop {
        let listener = listen::<S>(seat.address);
        seat.address = S::address(&listener);
        tell(&format!("listening {}", seat.address));
        loop {
            match inbox.try_recv() {
                Ok(Order::Connect(id, address)) => {
                    let report = Report::begin(id, Side::Client);
                    if let Err(error) = begin(move || connect::<S>(report, address, seat.seed)) {
                        // The report has gone with the thread, and says that it was cancelled.
                        tell(&format!("no-thread {error}"));
                    }
                    continue;
                }
                Ok(Order::WarmUp) => tell_warm(S::warm_up()),
                Ok(Order::Restart | Order::Drop | Order::DropInBackground) => break,
                Ok(Order::Quit) | Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {}
            }
            match S::accept(&listener) {
                Ok(stream) => {
                    if let Err(error) = begin(move || answer(stream, seat.seed)) {
                        tell(&format!("no-thread {error}"));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(LOOK),
                Err(error) => {
                    tell(&format!("accept {:?} ({error})", error.kind()));
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }
}

fn listen<S: Family>(address: SocketAddr) -> S::Listener {
    let began = Instant::now();
    loop {
        match S::bind(address) {
            Ok(listener) => return listener,
            Err(error) => assert!(began.elapsed() < PORT, "{address}: {error}"),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn connect<S: Family>(report: Report, address: SocketAddr, seed: u64) {
    let plan = Plan::new(seed, report.entry.id());
    report.entry.does("connecting");
    match S::connect(address, plan.policy) {
        Ok(stream) => talk(stream, &plan, Side::Client, report),
        Err(error) => report.no_begin(&error),
    }
}

fn answer<S: Family>(stream: S, seed: u64) {
    match in_thread(hear_name(Blocking(&stream))) {
        Ok(name) => match Plan::named(seed, &name) {
            Some(plan) => {
                let report = Report::begin(plan.id, Side::Server);
                talk(stream, &plan, Side::Server, report);
            }
            None => tell(&format!("foreign {name:?}")),
        },
        Err(error) => tell(&format!("nameless {error}")),
    }
}

fn talk<S: Family>(stream: S, plan: &Plan, side: Side, report: Report) {
    let entry = Arc::clone(&report.entry);
    stream.introduce(&entry);
    if side == Side::Client {
        entry.does("saying its name");
        if let Err(error) = say_name(&stream, plan) {
            return report.end(Err(Break::Failed("saying its name", error)));
        }
        if plan.policy == UpgradePolicy::Manual {
            entry.does("upgrading");
            stream.upgrade();
        }
    }
    let result = match plan.pattern {
        Pattern::Turns(_) => in_thread(turns(&mut Blocking(&stream), plan, side, &entry, Pace::Thread)),
        Pattern::Duplex | Pattern::Halves => two_threads(&stream, plan, side, &entry),
    };
    stream.note(&entry);
    drop(stream);
    report.end(result);
}

fn say_name(stream: &impl Blocks, plan: &Plan) -> io::Result<()> {
    let name = plan.name();
    let mut sent = 0;
    while sent < name.len() {
        sent += stream.send(&name[sent..])?;
    }
    Ok(())
}

fn two_threads<S: Blocks>(stream: &S, plan: &Plan, side: Side, entry: &Entry) -> Result<(), Break> {
    let (mut ear, mut mouth) = halves(plan, side, entry, Pace::Thread);
    thread::scope(|scope| {
        let writer = thread::Builder::new()
            .spawn_scoped(scope, || in_thread(mouth.say(Blocking(stream), plan.length(side))))
            .map_err(|error| Break::Failed("beginning a thread", error))?;
        // Whatever ends the reader, a panic too, ends the writer.
        let leaving = Leaving(entry);
        let heard = in_thread(ear.hear(Blocking(stream), plan.length(side.other())));
        if heard.is_ok() {
            std::mem::forget(leaving);
        } else {
            drop(leaving);
        }
        let said = writer.join().expect("the writer does not panic");
        heard.and(said)
    })
}

struct Leaving<'a>(&'a Entry);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.given_up.store(true, Ordering::Relaxed);
    }
}
