//! One end of a stream: sends its sequence, hears the other's, byte by byte. The same code runs in
//! a task of tokio's and, with streams that block, in a thread ([`Blocking`]).

use std::future::Future;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::dice::Dice;
use crate::plan::{Ending, NAME, Pattern, Plan, Side};
use crate::plant::Plant;
use crate::report::Entry;
use crate::sequence::Sequence;

/// The text of a panic that the plan wants.
pub(crate) const PLANNED: &str = "planned panic";

/// Why an end has left its stream before the end.
#[derive(Debug)]
pub(crate) enum Break {
    /// A byte that nobody sent, at this place.
    Wrong(u64),
    /// More bytes than there are.
    TooMuch,
    /// The end of the stream before the last byte.
    Early,
    /// An error, while this end did that.
    Failed(&'static str, io::Error),
    /// The plan wants it.
    Dropped,
    /// Its runtime ended.
    Cancelled,
}

/// How to pause.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    Task,
    Thread,
}

impl Pace {
    pub(crate) async fn pause(self, time: Duration) {
        match self {
            Pace::Task => tokio::time::sleep(time).await,
            Pace::Thread => std::thread::sleep(time),
        }
    }
}

/// What the two halves of an end have in common.
struct Common<'a> {
    plan: &'a Plan,
    side: Side,
    entry: &'a Entry,
    pace: Pace,
    dice: Dice,
}

impl Common<'_> {
    /// Goes on at once, mostly.
    async fn breathe(&mut self) {
        if self.dice.one_in(self.plan.haste) {
            let time = Duration::from_micros(self.dice.below(4000));
            self.pace.pause(time).await;
        }
    }

    fn piece(&mut self) -> usize {
        1 + self.dice.below(self.plan.piece) as usize
    }
}

/// The half that sends.
pub(crate) struct Mouth<'a> {
    common: Common<'a>,
    sequence: Sequence,
    sent: u64,
    ended: bool,
}

/// The half that hears.
pub(crate) struct Ear<'a> {
    common: Common<'a>,
    sequence: Sequence,
    heard: u64,
    buffer: Vec<u8>,
}

/// Both halves of this end.
pub(crate) fn halves<'a>(plan: &'a Plan, side: Side, entry: &'a Entry, pace: Pace) -> (Ear<'a>, Mouth<'a>) {
    let mut dice = plan.chance(side);
    let mut common = || Common { plan, side, entry, pace, dice: Dice::new(dice.next(), 0) };
    let mouth = Mouth { common: common(), sequence: Sequence::new(plan.key(side)), sent: 0, ended: false };
    let ear = Ear {
        common: common(),
        sequence: Sequence::new(plan.key(side.other())),
        heard: 0,
        buffer: vec![0; plan.piece as usize],
    };
    (ear, mouth)
}

impl Mouth<'_> {
    /// Sends until it has sent `until` bytes in all.
    pub(crate) async fn say(&mut self, mut writer: impl AsyncWrite + Unpin, until: u64) -> Result<(), Break> {
        let Common { plan, side, entry, .. } = self.common;
        while self.sent < until {
            if entry.given_up.load(Ordering::Relaxed) {
                return Err(Break::Dropped);
            }
            let length = self.common.piece().min((until - self.sent) as usize);
            let mut piece = vec![0; length];
            self.sequence.fill(&mut piece);
            Plant::FlippedByte.sow(|| piece[length / 2] ^= 1);
            entry.does("writing");
            let n = writer.write(&piece).await.map_err(|error| Break::Failed("writing", error))?;
            if n == 0 {
                return Err(Break::Failed("writing", io::ErrorKind::WriteZero.into()));
            }
            self.sequence.advance(n);
            self.sent += n as u64;
            entry.sent.store(self.sent, Ordering::Relaxed);
            self.common.breathe().await;
        }
        if until == plan.length(side) && !self.ended {
            self.ended = true;
            if Plant::MissingEnd.grows() {
                std::future::pending::<()>().await;
            }
            if self.common.dice.one_in(2) {
                // Long enough for an upgrade, which a direction that was shut down has no more.
                entry.does("resting");
                let time = Duration::from_micros(self.common.dice.below(100_000));
                self.common.pace.pause(time).await;
            }
            entry.does("shutting down");
            writer.shutdown().await.map_err(|error| Break::Failed("shutting down", error))?;
            entry.does("done with writing");
        }
        Ok(())
    }
}

impl Ear<'_> {
    /// Hears until it has heard `until` bytes in all; the last of them is followed by the end.
    pub(crate) async fn hear(&mut self, mut reader: impl AsyncRead + Unpin, until: u64) -> Result<(), Break> {
        let Common { plan, side, entry, .. } = self.common;
        let total = plan.length(side.other());
        loop {
            match plan.ending(side) {
                Ending::DropsAfter(bytes) if self.heard >= bytes => return Err(Break::Dropped),
                Ending::PanicsAfter(bytes) if self.heard >= bytes => panic!("{PLANNED}"),
                _ => {}
            }
            if self.heard >= until && until < total {
                return Ok(());
            }
            let mut most = self.common.piece();
            if until < total {
                most = most.min((until - self.heard) as usize);
            }
            entry.hears("reading");
            let buffer = &mut self.buffer[..most];
            let n = reader.read(buffer).await.map_err(|error| Break::Failed("reading", error))?;
            if n == 0 {
                entry.hears("done with reading");
                return if self.heard == total { Ok(()) } else { Err(Break::Early) };
            }
            if self.heard + n as u64 > total {
                return Err(Break::TooMuch);
            }
            self.sequence.take(&buffer[..n]).map_err(Break::Wrong)?;
            self.heard += n as u64;
            entry.heard.store(self.heard, Ordering::Relaxed);
            if Plant::EarlyEnd.grows() {
                return Err(Break::Dropped);
            }
            self.common.breathe().await;
        }
    }
}

/// One after the other, in turns.
pub(crate) async fn turns<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    plan: &Plan,
    side: Side,
    entry: &Entry,
    pace: Pace,
) -> Result<(), Break> {
    let Pattern::Turns(turns) = plan.pattern else { unreachable!("it is in turns") };
    let (mut ear, mut mouth) = halves(plan, side, entry, pace);
    for turn in 1..=turns {
        let part = |side: Side| plan.length(side) * turn / turns;
        // Who is the last to send hears the end before its own.
        match side {
            Side::Client => {
                mouth.say(&mut *stream, part(side)).await?;
                ear.hear(&mut *stream, part(side.other())).await?;
            }
            Side::Server => {
                ear.hear(&mut *stream, part(side.other())).await?;
                mouth.say(&mut *stream, part(side)).await?;
            }
        }
    }
    Ok(())
}

/// The first bytes of an accepted stream; what it is instead if there are none.
pub(crate) async fn hear_name(mut stream: impl AsyncRead + Unpin) -> io::Result<[u8; NAME]> {
    let mut name = [0; NAME];
    stream.read_exact(&mut name).await?;
    Ok(name)
}

/// A stream that blocks, for code that waits in tasks: it is always ready, and takes its time.
#[derive(Debug)]
pub(crate) struct Blocking<S>(pub(crate) S);

/// What std's stream and the crate's blocking one have in common.
pub(crate) trait Blocks: Sized + Send + Sync + 'static {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;
    fn end_writing(&self) -> io::Result<()>;
}

macro_rules! blocks {
    ($($stream:ty),*) => {
        $(impl Blocks for $stream {
            fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
                (&*self).read(buffer)
            }

            fn send(&self, bytes: &[u8]) -> io::Result<usize> {
                (&*self).write(bytes)
            }

            fn end_writing(&self) -> io::Result<()> {
                self.shutdown(std::net::Shutdown::Write)
            }
        })*
    };
}

blocks!(std::net::TcpStream, tokio_smc::blocking::SmcStream);

impl<S: Blocks> AsyncRead for Blocking<&S> {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n = self.0.receive(into.initialize_unfilled())?;
        into.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<S: Blocks> AsyncWrite for Blocking<&S> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.send(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.end_writing())
    }
}

/// Runs what waits for nothing but a [`Blocking`] stream.
pub(crate) fn in_thread<T>(work: impl Future<Output = T>) -> T {
    futures::executor::block_on(work)
}
