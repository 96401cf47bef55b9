//! Random plays on tokio's TCP and on SMC, which moves to the ring somewhere in the middle:
//! whatever is not a race must come out the same.
//!
//! Sizes of single reads and the moment a buffer is full are TCP's to choose and are not compared.
//! Each step is brought to a point where TCP has only one answer (all bytes on their way have
//! arrived), and what is compared there is: the bytes, their order, who sees an end or a reset, and
//! which operations fail with which kind.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/watchdog.rs"]
mod watchdog;

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config as ProptestConfig, TestRunner};
use rustix::event::{PollFd, PollFlags};
use rustix::time::Timespec;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio_smc::{SmcListener, SmcStream, UpgradePolicy};

use lab::Lab;
use watchdog::{Flavour, step, watched};

/// What TCP on loopback surely hands to the receiver at once: no play blocks, and an abort has
/// nothing to throw away.
const UNREAD: usize = 24 * 1024;
/// Nothing that is compared depends on it: it only ends a wait for what never comes.
const NOTHING_COMES: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug)]
enum Op {
    Write(usize),
    TryWrite(usize),
    WriteNothing,
    Read(usize),
    TryRead(usize),
    Peek(usize),
    /// A read, on SMC by borrowing the bytes and consuming them.
    InPlace(usize),
    Readable,
    Writable,
    Shutdown,
    SplitAndReunite,
    ShutdownHalf,
    ZeroLinger,
    Drop,
    Upgrade,
    SetOption(u8),
    Pass(u8),
    /// Both write that much at once, while both read.
    Exchange(usize),
    /// Somebody shuts the descriptor down: to read, to write, or both ways, one after the other or
    /// at once.
    Kick(Shutdown),
}

/// Sets an option that changes nothing of what is compared; some of them keep a stream on TCP.
fn set_option(socket: SockRef<'_>, which: u8) -> io::Result<()> {
    match which % 6 {
        // Not off: what Nagle holds back an abort throws away.
        0 => socket.set_tcp_nodelay(true),
        1 => socket.set_keepalive(which < 6),
        2 => socket.set_out_of_band_inline(which < 6),
        3 => socket.set_tcp_notsent_lowat(if which < 6 { 4096 } else { u32::MAX }),
        4 => socket.set_priority(u32::from(which) % 7),
        _ => socket.set_tos_v4(u32::from(which) * 4),
    }
}

fn op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![1..10_usize, 10..5000_usize, 4090..4102_usize, 5000..30_000_usize];
    prop_oneof![
        8 => size.clone().prop_map(Op::Write),
        4 => size.clone().prop_map(Op::TryWrite),
        1 => Just(Op::WriteNothing),
        8 => size.clone().prop_map(Op::Read),
        4 => size.clone().prop_map(Op::TryRead),
        4 => size.clone().prop_map(Op::Peek),
        4 => size.prop_map(Op::InPlace),
        2 => Just(Op::Readable),
        2 => Just(Op::Writable),
        2 => Just(Op::Shutdown),
        1 => Just(Op::SplitAndReunite),
        1 => Just(Op::ShutdownHalf),
        1 => Just(Op::ZeroLinger),
        1 => Just(Op::Drop),
        4 => Just(Op::Upgrade),
        2 => (0_u8..12).prop_map(Op::SetOption),
        3 => (0_u8..20).prop_map(Op::Pass),
        1 => (1..6_000_000_usize).prop_map(Op::Exchange),
        1 => Just(Op::Kick(Shutdown::Write)),
        1 => Just(Op::Kick(Shutdown::Read)),
        2 => Just(Op::Kick(Shutdown::Both)),
    ]
}

/// What one step of a play came to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// So many bytes, and which.
    Bytes(Vec<u8>),
    Done,
    End,
    Nothing,
    Failed(ErrorKind),
    /// An end or an error after the first error: Linux reports a reset once, to whoever asks first,
    /// and shows an end from then on; which of the two comes later is no part of TCP.
    Over,
    /// The end of this side is gone already.
    Gone,
}

fn failed(error: &io::Error) -> Answer {
    Answer::Failed(error.kind())
}

/// Waits until the socket shows one of these events: what the other end does to TCP has arrived.
async fn arrived(stream: &impl AsFd, events: PollFlags) {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        let mut fds = [PollFd::new(stream, events)];
        rustix::event::poll(&mut fds, Some(&now)).expect("poll");
        if fds[0].revents().intersects(events) {
            return;
        }
        tokio::task::yield_now().await;
    }
}

fn once(answer: Answer, broken: &mut bool) -> Answer {
    match answer {
        Answer::End | Answer::Failed(_) if *broken => Answer::Over,
        Answer::Failed(_) => {
            *broken = true;
            answer
        }
        answer => answer,
    }
}

fn byte(side: usize, place: usize) -> u8 {
    (place.wrapping_mul(0x9E37_79B1) >> 9) as u8 ^ (side as u8 * 0x55)
}

/// Waits until a stream, or its half, is told that it has nothing more to come than what is there.
macro_rules! read_closes {
    ($end:expr) => {
        while !$end.ready(Interest::READABLE).await.expect("ready").is_read_closed() {
            tokio::task::yield_now().await;
        }
    };
}

// Both types have the same methods under the same names, which is what the test is about, but no
// trait for them.
macro_rules! player {
    ($name:ident, $stream:ty, $upgrade:ident, $in_place:ident) => {
        /// Plays all of `ops`, and says what each step came to and how the two sides ended.
        async fn $name(ends: [$stream; 2], ops: &[(bool, Op)]) -> Vec<Answer> {
            for end in &ends {
                // What Nagle holds back an abort throws away: on TCP, too, a matter of timing.
                end.set_nodelay(true).expect("set_nodelay");
            }
            let mut ends = ends.map(Some);
            // Bytes written and read by each side; each side's closings.
            let (mut sent, mut got) = ([0_usize; 2], [0_usize; 2]);
            let mut closed = [false; 2];
            // Ends whose descriptor was shut both ways, and those where it was shut to read.
            let (mut kicked, mut deaf) = ([false; 2], [false; 2]);
            let mut broken = [false; 2];
            let mut answers = Vec::new();
            for (number, &(second, op)) in ops.iter().enumerate() {
                let (me, other) = (usize::from(second), usize::from(!second));
                let on_its_way = sent[other] - got[me];
                let over = closed[other] || ends[other].is_none() || deaf[me];
                let room = UNREAD - (sent[me] - got[other]).min(UNREAD);
                let there = ends[other].is_some();
                let alive = there && !kicked[other];
                let quiet = sent == got && ![broken, closed, deaf].concat().contains(&true);
                let [first, second] = &mut ends;
                let (mine, theirs) = if me == 0 { (first, second) } else { (second, first) };
                let Some(stream) = mine.as_mut() else {
                    answers.push(Answer::Gone);
                    continue;
                };
                step(format!("{} {number}: side {me} {op:?}, of {ops:?}", stringify!($name)));
                let answer = match op {
                    Op::Write(size) | Op::TryWrite(size) => {
                        let size = size.min(room);
                        if size == 0 && (alive || closed[me]) {
                            answers.push(Answer::Nothing);
                            continue;
                        }
                        let bytes: Vec<_> =
                            (sent[me]..sent[me] + size).map(|place| byte(me, place)).collect();
                        if !alive && !closed[me] {
                            // The first write after the peer went succeeds, if nothing of ours was
                            // unread: the answer comes later.
                            match stream.write(b"into the void").await {
                                Ok(length) => {
                                    arrived(stream, PollFlags::HUP).await;
                                    Answer::Bytes(vec![0; length])
                                }
                                Err(error) => failed(&error),
                            }
                        } else {
                            let mut done = 0;
                            loop {
                                if done == size && size > 0 {
                                    sent[me] += size;
                                    break Answer::Done;
                                }
                                let result = if matches!(op, Op::Write(_)) {
                                    stream.write(&bytes[done..]).await
                                } else {
                                    stream.try_write(&bytes[done..])
                                };
                                match result {
                                    Ok(n) if size > 0 => done += n,
                                    Ok(_) => break Answer::Done,
                                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                                        stream.writable().await.expect("writable");
                                    }
                                    Err(error) => break failed(&error),
                                }
                            }
                        }
                    }
                    Op::WriteNothing => match stream.write(&[]).await {
                        Ok(n) => {
                            assert_eq!(n, 0);
                            Answer::Done
                        }
                        Err(error) => failed(&error),
                    },
                    Op::Read(size) | Op::TryRead(size) | Op::Peek(size) | Op::InPlace(size) => {
                        // All that was sent is taken before the end is looked at.
                        let wanted = if on_its_way > 0 { size.min(on_its_way) } else { size };
                        let mut bytes = vec![0; wanted];
                        let mut have = 0;
                        loop {
                            let result = match op {
                                Op::Read(_) if on_its_way > 0 || over => {
                                    stream.read(&mut bytes[have..]).await
                                }
                                Op::InPlace(_) if on_its_way > 0 || over => {
                                    $in_place(stream, &mut bytes[have..]).await
                                }
                                Op::Peek(_) if on_its_way > 0 || over => {
                                    let seen = stream.peek(&mut bytes).await;
                                    if seen.as_ref().is_ok_and(|&n| partial(n, wanted, on_its_way)) {
                                        tokio::task::yield_now().await;
                                        continue;
                                    }
                                    seen
                                }
                                Op::Read(_) | Op::Peek(_) => {
                                    // Nothing is there and nothing may come: the read must not
                                    // answer.
                                    let mut one = [0];
                                    let patience = tokio::time::timeout(NOTHING_COMES, stream.read(&mut one));
                                    match patience.await {
                                        Ok(result) => result,
                                        Err(_) => Err(ErrorKind::WouldBlock.into()),
                                    }
                                }
                                Op::InPlace(_) => {
                                    let mut one = [0];
                                    let next = $in_place(stream, &mut one);
                                    let patience = tokio::time::timeout(NOTHING_COMES, next);
                                    patience.await.unwrap_or_else(|_| Err(ErrorKind::WouldBlock.into()))
                                }
                                _ => stream.try_read(&mut bytes[have..]),
                            };
                            match result {
                                Ok(0) => break Answer::End,
                                Ok(n) => have += n,
                                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                                    if on_its_way == 0 && !over {
                                        break Answer::Nothing;
                                    }
                                    stream.readable().await.expect("readable");
                                }
                                Err(error) => break failed(&error),
                            }
                            if have == wanted || matches!(op, Op::Peek(_)) {
                                if !matches!(op, Op::Peek(_)) {
                                    got[me] += have;
                                }
                                break Answer::Bytes(bytes[..have].to_vec());
                            }
                        }
                    }
                    Op::Readable => match tokio::time::timeout(NOTHING_COMES, stream.readable()).await {
                        // Readiness may be announced for nothing, but never withheld.
                        Err(_) if on_its_way > 0 || over => {
                            stream.readable().await.expect("readable");
                            Answer::Done
                        }
                        _ => Answer::Done,
                    },
                    Op::Writable if closed[me] || !alive => Answer::Nothing,
                    Op::Writable => {
                        stream.writable().await.expect("writable");
                        Answer::Done
                    }
                    // Nobody could see that it was noticed.
                    Op::Kick(Shutdown::Write | Shutdown::Both) if deaf[other] => Answer::Nothing,
                    Op::Shutdown => {
                        let result = stream.shutdown().await;
                        (closed[me], kicked[me]) = (true, deaf[me]);
                        if deaf[me] {
                            read_closes!(stream);
                        }
                        result.map_or_else(|error| failed(&error), |()| Answer::Done)
                    }
                    Op::SplitAndReunite => {
                        let (reader, writer) = mine.take().expect("just seen").into_split();
                        *mine = Some(reader.reunite(writer).expect("of one stream"));
                        Answer::Done
                    }
                    Op::ShutdownHalf => {
                        let (reader, mut writer) = mine.take().expect("just seen").into_split();
                        let result = writer.shutdown().await;
                        (closed[me], kicked[me]) = (true, deaf[me]);
                        if deaf[me] {
                            read_closes!(reader);
                        }
                        *mine = Some(writer.reunite(reader).expect("of one stream"));
                        result.map_or_else(|error| failed(&error), |()| Answer::Done)
                    }
                    Op::ZeroLinger => {
                        stream.set_zero_linger().expect("set_zero_linger");
                        *mine = None;
                        if let Some(theirs) = theirs {
                            arrived(theirs, PollFlags::RDHUP | PollFlags::HUP).await;
                        }
                        Answer::Done
                    }
                    Op::Exchange(size) if alive && quiet => {
                        let bytes = [me, other].map(|side| {
                            let places = sent[side]..sent[side] + size;
                            places.map(|place| byte(side, place)).collect::<Vec<_>>()
                        });
                        let mut read = [vec![0; size], vec![0; size]];
                        {
                            let [from_me, from_them] = &mut read;
                            let (mut reader, mut writer) = stream.split();
                            let (mut their_reader, mut their_writer) =
                                theirs.as_mut().expect("alive").split();
                            let done = tokio::join!(
                                writer.write_all(&bytes[0]),
                                their_writer.write_all(&bytes[1]),
                                reader.read_exact(from_them),
                                their_reader.read_exact(from_me),
                            );
                            (done.0.expect("write"), done.1.expect("write"));
                            (done.2.expect("read"), done.3.expect("read"));
                        }
                        assert!(read == bytes, "other bytes than were sent");
                        for side in [me, other] {
                            (sent[side], got[side]) = (sent[side] + size, got[side] + size);
                        }
                        Answer::Done
                    }
                    Op::Kick(how)
                        if alive && closed != [true; 2] && !kicked[me] && !broken.contains(&true) =>
                    {
                        SockRef::from(&*stream).shutdown(how).expect("shutdown");
                        let (reads, writes) = (how != Shutdown::Write, how != Shutdown::Read);
                        let again = closed[me] || deaf[me];
                        closed[me] |= writes;
                        deaf[me] |= reads;
                        kicked[me] = closed[me] && deaf[me];
                        if writes && !again {
                            // Noticed by this end, which refuses what is written.
                            while stream.write(&[]).await.is_ok() {
                                tokio::task::yield_now().await;
                            }
                        }
                        // And by the other one; what that one can not see, this one does.
                        for end in [
                            writes.then(|| &*theirs.as_ref().expect("alive")),
                            (again || kicked[me]).then_some(&*stream),
                        ]
                        .into_iter()
                        .flatten()
                        {
                            if kicked[me] || writes && !again {
                                read_closes!(end);
                            }
                        }
                        Answer::Done
                    }
                    Op::Exchange(_) | Op::Kick(_) => Answer::Nothing,
                    Op::Drop => {
                        // Bytes on their way decide between an end and a reset: they have all
                        // arrived first.
                        let mut all = vec![0; on_its_way];
                        while on_its_way > 0
                            && stream.peek(&mut all).await.is_ok_and(|n| n > 0 && n < on_its_way)
                        {
                            tokio::task::yield_now().await;
                        }
                        *mine = None;
                        if let Some(theirs) = theirs {
                            arrived(theirs, PollFlags::RDHUP | PollFlags::HUP).await;
                        }
                        Answer::Done
                    }
                    Op::Upgrade => {
                        $upgrade(stream).await;
                        Answer::Done
                    }
                    Op::SetOption(which) => {
                        set_option(SockRef::from(&*stream), which).expect("an option");
                        Answer::Done
                    }
                    Op::Pass(turns) => {
                        for _ in 0..turns {
                            tokio::task::yield_now().await;
                        }
                        Answer::Done
                    }
                };
                answers.push(once(answer, &mut broken[me]));
            }
            // The end state: what each side can still read, after the other side goes.
            for me in [0, 1] {
                let Some(mut stream) = ends[me].take() else { continue };
                if ends[1 - me].is_some() {
                    // Unread bytes would make this a race between a reset and what is read below.
                    if let Some(mut other) = ends[1 - me].take() {
                        step("the other side finishes");
                        let shut = other.shutdown().await;
                        answers.push(shut.map_or_else(|error| failed(&error), |()| Answer::Done));
                        ends[1 - me] = Some(other);
                    }
                }
                step(format!("{}: side {me} reads the rest", stringify!($name)));
                let mut rest = Vec::new();
                let ended = stream.read_to_end(&mut rest).await;
                answers.push(Answer::Bytes(rest));
                let ended = ended.map_or_else(|error| failed(&error), |_| Answer::End);
                answers.push(once(ended, &mut broken[me]));
                step("and closes");
                answers.push(stream.shutdown().await.map_or_else(|error| failed(&error), |()| Answer::Done));
            }
            answers
        }
    };
}

/// Whether a peek that saw `n` bytes has yet to see all that are wanted and on their way.
fn partial(n: usize, wanted: usize, on_its_way: usize) -> bool {
    n > 0 && n < wanted.min(on_its_way)
}

/// TCP has nowhere to go.
async fn stay(_: &TcpStream) {}

/// Concluded or not, the play goes on: an upgrade never delays the application.
async fn upgrade(stream: &SmcStream) {
    drop(tokio::time::timeout(NOTHING_COMES, stream.upgrade()).await);
}

/// TCP has no bytes to lend.
async fn read(stream: &mut TcpStream, buf: &mut [u8]) -> io::Result<usize> {
    stream.read(buf).await
}

/// A read, without one.
async fn read_in_place(stream: &mut SmcStream, buf: &mut [u8]) -> io::Result<usize> {
    let mut bytes = stream.fill_buf().await?;
    let length = buf.len().min(bytes.len());
    bytes.copy_to(0, &mut buf[..length]);
    // In two steps, as nobody has to take all at once.
    bytes.consume(length / 3)?;
    bytes.consume(length - length / 3)?;
    Ok(length)
}

player!(play_tcp, TcpStream, stay, read);
player!(play_smc, SmcStream, upgrade, read_in_place);

async fn tcp_pair() -> [TcpStream; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let connect = TcpStream::connect(listener.local_addr().expect("an address"));
    let (client, server) = tokio::join!(connect, listener.accept());
    [client.expect("connect"), server.expect("accept").0]
}

async fn smc_pair(lab: &Lab, policy: UpgradePolicy) -> [SmcStream; 2] {
    let listener = SmcListener::bind_with("127.0.0.1:0", &lab.config(policy)).await.expect("bind");
    let addr = listener.local_addr().expect("an address");
    let config = lab.config(policy);
    let (client, server) = tokio::join!(SmcStream::connect_with(addr, &config), listener.accept());
    [client.expect("connect"), server.expect("accept").0]
}

#[track_caller]
fn differ(flavour: Flavour, policy: UpgradePolicy) {
    watched(move || {
        let runtime = flavour.runtime();
        let lab = Lab::new();
        let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200);
        let mut runner = TestRunner::new(ProptestConfig {
            cases,
            failure_persistence: None,
            max_shrink_iters: 2000,
            ..Default::default()
        });
        let plays = proptest::collection::vec((any::<bool>(), op()), 1..30);
        let outcome = runner.run(&plays, |ops| {
            let (tcp, smc) = runtime.block_on(async {
                let tcp = play_tcp(tcp_pair().await, &ops).await;
                (tcp, play_smc(smc_pair(&lab, policy).await, &ops).await)
            });
            prop_assert_eq!(short(&tcp), short(&smc));
            prop_assert!(tcp == smc, "the same answers, but not the same bytes");
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("{error}");
        }
    });
}

/// Answers for people: kinds and lengths.
fn short(answers: &[Answer]) -> Vec<String> {
    answers
        .iter()
        .map(|answer| match answer {
            Answer::Bytes(bytes) => format!("{} bytes", bytes.len()),
            other => format!("{other:?}"),
        })
        .collect()
}

#[test]
fn tcp_and_smc_upgraded_by_hand_current_thread() {
    differ(Flavour::CurrentThread, UpgradePolicy::Manual);
}

#[test]
fn tcp_and_smc_upgraded_by_hand_multi_thread() {
    differ(Flavour::MultiThread, UpgradePolicy::Manual);
}

#[test]
fn tcp_and_smc_upgraded_in_the_background() {
    differ(Flavour::MultiThread, UpgradePolicy::Eager);
}

#[test]
fn tcp_and_smc_upgraded_at_the_first_turn() {
    differ(Flavour::MultiThread, UpgradePolicy::FirstTurn);
}

#[test]
fn tcp_and_smc_that_stays_on_tcp() {
    differ(Flavour::CurrentThread, UpgradePolicy::Never);
}
