//! What goes over a connection: both ends send a pattern of their own, and check each byte of the
//! other's.
//!
//! The server answers each piece with as many bytes, so the client knows when something hangs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_smc::{SmcInfo, SmcStream};

use crate::report::{Entry, Report, reason};

/// What makes no progress for so long hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two rounds of a connection that is only kept alive.
const PACE: Duration = Duration::from_millis(15);
const PIECE: usize = 16 << 10;
/// A prime: no two buffers of a ring ever hold the same bytes at the same place.
const PERIOD: u64 = 65_521;

/// `len` bytes, at most a `PERIOD`, of the stream that `seed` names, from `place` on.
fn pattern(seed: u64, place: u64, len: usize) -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        (0..2 * PERIOD).map(|n| ((n % PERIOD).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u8).collect()
    });
    let start = ((place + seed.wrapping_mul(7919)) % PERIOD) as usize;
    &table[start..start + len]
}

fn of_client(id: u64) -> u64 {
    2 * id
}

fn of_server(id: u64) -> u64 {
    2 * id + 1
}

/// What the connections of a client shall do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wish {
    pub(crate) paused: bool,
    pub(crate) finish: bool,
    /// The number of the latest burst, and its bytes in either direction.
    pub(crate) burst: (u64, u64),
    /// Connections that wait to be told ask for their upgrade.
    pub(crate) upgrade: bool,
}

#[derive(Debug)]
struct Line {
    info: SmcInfo,
    entry: Entry,
    rounds: u64,
    burst: u64,
    /// It was told to ask for the upgrade, and has the answer.
    asked: bool,
}

/// All connections of this process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<BTreeMap<u64, Line>>>);

impl Ledger {
    /// Everything known so far is forgotten.
    pub(crate) fn forget(&self) {
        self.0.lock().expect("no panic").clear();
    }

    pub(crate) fn enter(&self, id: u64, info: SmcInfo) {
        let entry = Entry { sent: 0, received: 0, ended: false, error: None, reason: None };
        let line = Line { info, entry, rounds: 0, burst: 0, asked: false };
        self.0.lock().expect("no panic").insert(id, line);
    }

    fn note(&self, id: u64, change: impl FnOnce(&mut Line)) {
        change(self.0.lock().expect("no panic").get_mut(&id).expect("it was entered"));
    }

    fn end(&self, id: u64, played: Result<(), String>) {
        self.note(id, |line| match played {
            Ok(()) => line.entry.ended = true,
            Err(error) => {
                let (sent, received) = (line.entry.sent, line.entry.received);
                line.entry.error = Some(format!("{error} (after {sent} bytes out, {received} in)"));
            }
        });
    }

    pub(crate) fn report(&self) -> Report {
        let lines = self.0.lock().expect("no panic");
        let entries = lines
            .iter()
            .map(|(&id, line)| (id, Entry { reason: reason(line.info.transport()), ..line.entry.clone() }));
        Report { entries: entries.collect() }
    }

    /// Waits until all connections fit, or have failed; which of them do neither in time.
    async fn wait(&self, what: &str, fits: impl Fn(u64, &Line) -> bool) -> Result<(), String> {
        let missing = || {
            let lines = self.0.lock().expect("no panic");
            let missing = lines.iter().find(|(id, line)| line.entry.error.is_none() && !fits(**id, line));
            missing.map(|(id, line)| format!("connection {id} {what}: {:?}, {:?}", line.entry, line.info))
        };
        let waiting = async {
            while missing().is_some() {
                sleep(Duration::from_millis(2)).await;
            }
        };
        match timeout(PATIENCE, waiting).await {
            Ok(()) => Ok(()),
            Err(_) => missing().map_or(Ok(()), Err),
        }
    }

    /// Waits until every connection knows what it runs on.
    async fn decided(&self) -> Result<(), String> {
        let watches: Vec<_> =
            self.0.lock().expect("no panic").iter().map(|(&id, line)| (id, line.info.watch())).collect();
        for (id, mut watch) in watches {
            if timeout(PATIENCE, watch.settled()).await.is_err() {
                return Err(format!("connection {id} is neither upgraded nor refused: {watch:?}"));
            }
        }
        Ok(())
    }

    /// Waits until every connection knows what it runs on, and has then talked once more.
    pub(crate) async fn settle(&self) -> Result<(), String> {
        self.decided().await?;
        let before: BTreeMap<u64, u64> =
            self.0.lock().expect("no panic").iter().map(|(&id, line)| (id, line.rounds)).collect();
        self.wait("stands still", |id, line| line.rounds > before.get(&id).copied().unwrap_or(0)).await
    }

    pub(crate) async fn burst_is_over(&self, burst: u64) -> Result<(), String> {
        self.wait("has not sent its burst", |_, line| line.burst >= burst).await
    }

    pub(crate) async fn all_asked(&self) -> Result<(), String> {
        self.wait("has no answer to its upgrade()", |_, line| line.asked).await
    }

    pub(crate) async fn all_ended(&self) -> Result<(), String> {
        self.wait("does not end", |_, line| line.entry.ended).await
    }

    /// Waits until `count` connections run on the ring.
    pub(crate) async fn on_the_ring(&self, count: usize) -> Result<(), String> {
        let waiting = async {
            while self.report().on_the_ring() < count {
                sleep(Duration::from_millis(2)).await;
            }
        };
        let report =
            |_| format!("{} on the ring, others {:?}", self.report().on_the_ring(), self.report().reasons());
        timeout(PATIENCE, waiting).await.map_err(report)
    }
}

/// What a connection is for; its first byte tells the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Both ends send and read all the time.
    Talk = 0,
    /// The server sends until it is told to finish; the client does not read before it is told so,
    /// too.
    Pull = 1,
    /// The other way round.
    Push = 2,
}

/// The client's end of connection `id`; what it does is the `wish`.
pub(crate) async fn ask(
    mut stream: SmcStream,
    kind: Kind,
    id: u64,
    wish: watch::Receiver<Wish>,
    ledger: Ledger,
) {
    let first = async {
        stream.write_u8(kind as u8).await.map_err(|error| format!("the first write: {error}"))?;
        stream.write_u64(id).await.map_err(|error| format!("the first write: {error}"))
    };
    let played = match (first.await, kind) {
        (Ok(()), Kind::Talk) => rounds(&mut stream, id, wish, &ledger).await,
        (Ok(()), Kind::Pull) => drain(&mut stream, id, of_server(id), wish, &ledger).await,
        (Ok(()), Kind::Push) => flood(&mut stream, id, of_client(id), wish, &ledger).await,
        (error, _) => error,
    };
    ledger.end(id, played);
}

async fn rounds(
    stream: &mut SmcStream,
    id: u64,
    mut wish: watch::Receiver<Wish>,
    ledger: &Ledger,
) -> Result<(), String> {
    let (mut round, mut burst) = (0, wish.borrow().burst.0);
    loop {
        let now = *wish.borrow_and_update();
        let len = if now.burst.0 > burst {
            now.burst.1
        } else if now.finish {
            break;
        } else if now.paused {
            wish.changed().await.map_err(|_| "nobody wishes anything any more")?;
            continue;
        } else {
            1 + (id * 37 + round * 211) % 3000
        };
        both_ways(stream, id, len, ledger).await?;
        (round, burst) = (round + 1, now.burst.0);
        ledger.note(id, |line| (line.rounds, line.burst) = (round, burst));
        if now.upgrade {
            let answer = timeout(PATIENCE, stream.upgrade()).await;
            answer.map_err(|_| "upgrade() does not answer")?;
            ledger.note(id, |line| line.asked = true);
        }
        // A new wish is seen at once.
        let _ = timeout(PACE, wish.changed()).await;
    }
    stream.shutdown().await.map_err(|error| format!("shutdown: {error}"))?;
    match timeout(PATIENCE, stream.read(&mut [0])).await {
        Ok(Ok(0)) => Ok(()),
        Ok(other) => Err(format!("{other:?} instead of the end")),
        Err(_) => Err("the end does not come".to_owned()),
    }
}

/// Writes until it is told to finish, then ends and waits for the other end.
async fn flood(
    stream: &mut SmcStream,
    id: u64,
    seed: u64,
    mut wish: watch::Receiver<Wish>,
    ledger: &Ledger,
) -> Result<(), String> {
    let mut place = 0;
    while !wish.borrow_and_update().finish {
        tokio::select! {
            wrote = stream.write(pattern(seed, place, PIECE)) => {
                let n = wrote.map_err(|error| format!("write: {error}"))? as u64;
                place += n;
                ledger.note(id, |line| line.entry.sent += n);
            }
            _ = wish.changed() => {}
        }
    }
    stream.shutdown().await.map_err(|error| format!("shutdown: {error}"))?;
    match stream.read(&mut [0]).await {
        Ok(0) => Ok(()),
        other => Err(format!("{other:?} instead of the end")),
    }
}

/// Reads nothing until it is told to finish, then all there is.
async fn drain(
    stream: &mut SmcStream,
    id: u64,
    seed: u64,
    mut wish: watch::Receiver<Wish>,
    ledger: &Ledger,
) -> Result<(), String> {
    wish.wait_for(|wish| wish.finish).await.map_err(|_| "nobody wishes anything any more")?;
    let (mut buf, mut place) = (vec![0; PIECE], 0);
    loop {
        let read = timeout(PATIENCE, stream.read(&mut buf)).await.map_err(|_| "a read hangs")?;
        let n = read.map_err(|error| format!("read: {error}"))?;
        if n == 0 {
            return stream.shutdown().await.map_err(|error| format!("shutdown: {error}"));
        }
        exact(seed, place, &buf[..n])?;
        place += n as u64;
        ledger.note(id, |line| line.entry.received += n as u64);
    }
}

async fn both_ways(stream: &mut SmcStream, id: u64, len: u64, ledger: &Ledger) -> Result<(), String> {
    let (mut reader, mut writer) = stream.split();
    let (sent, received) = {
        let lines = ledger.0.lock().expect("no panic");
        (lines[&id].entry.sent, lines[&id].entry.received)
    };
    let writing =
        send(&mut writer, of_client(id), sent, len, |n| ledger.note(id, |line| line.entry.sent += n));
    let reading = receive(&mut reader, of_server(id), received, len, |n| {
        ledger.note(id, |line| line.entry.received += n);
    });
    let (wrote, read) = tokio::join!(writing, reading);
    wrote.and(read)
}

async fn send(
    to: &mut (impl AsyncWrite + Unpin),
    seed: u64,
    mut place: u64,
    len: u64,
    progress: impl Fn(u64),
) -> Result<(), String> {
    let end = place + len;
    while place < end {
        let piece = pattern(seed, place, (end - place).min(PIECE as u64) as usize);
        let n = match timeout(PATIENCE, to.write(piece)).await {
            Ok(Ok(n)) => n as u64,
            Ok(Err(error)) => return Err(format!("write: {error}")),
            Err(_) => return Err("a write hangs".to_owned()),
        };
        place += n;
        progress(n);
    }
    Ok(())
}

async fn receive(
    from: &mut (impl AsyncRead + Unpin),
    seed: u64,
    mut place: u64,
    len: u64,
    progress: impl Fn(u64),
) -> Result<(), String> {
    let end = place + len;
    let mut buf = vec![0; PIECE];
    while place < end {
        let room = (end - place).min(PIECE as u64) as usize;
        let n = match timeout(PATIENCE, from.read(&mut buf[..room])).await {
            Ok(Ok(0)) => return Err("an end before the end".to_owned()),
            Ok(Ok(n)) => n,
            Ok(Err(error)) => return Err(format!("read: {error}")),
            Err(_) => return Err("a read hangs".to_owned()),
        };
        exact(seed, place, &buf[..n])?;
        place += n as u64;
        progress(n as u64);
    }
    Ok(())
}

fn exact(seed: u64, place: u64, got: &[u8]) -> Result<(), String> {
    let wanted = pattern(seed, place, got.len());
    if got == wanted {
        return Ok(());
    }
    let at = got.iter().zip(wanted).take_while(|(got, wanted)| got == wanted).count();
    Err(format!("another byte at {}", place + at as u64))
}

/// The server's end of whatever connection comes.
pub(crate) async fn answer(mut stream: SmcStream, wish: watch::Receiver<Wish>, ledger: Ledger) {
    let info = stream.info();
    // A client that is gone before its first bytes was no connection.
    let (Ok(kind), Ok(id)) = (stream.read_u8().await, stream.read_u64().await) else { return };
    ledger.enter(id, info);
    let played = if kind == Kind::Talk as u8 {
        answers(&mut stream, id, &ledger).await
    } else if kind == Kind::Pull as u8 {
        flood(&mut stream, id, of_server(id), wish, &ledger).await
    } else {
        drain(&mut stream, id, of_client(id), wish, &ledger).await
    };
    ledger.end(id, played);
}

/// Sends as many bytes as come, until the client ends.
async fn answers(stream: &mut SmcStream, id: u64, ledger: &Ledger) -> Result<(), String> {
    let mut buf = vec![0; PIECE];
    let mut place = 0;
    loop {
        // How long the client pauses is its own business; it sees when this end hangs.
        let n = stream.read(&mut buf).await.map_err(|error| format!("read: {error}"))?;
        if n == 0 {
            return stream.shutdown().await.map_err(|error| format!("shutdown: {error}"));
        }
        exact(of_client(id), place, &buf[..n])?;
        ledger.note(id, |line| line.entry.received += n as u64);
        send(stream, of_server(id), place, n as u64, |n| ledger.note(id, |line| line.entry.sent += n))
            .await?;
        place += n as u64;
    }
}
