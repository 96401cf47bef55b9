//! What is left of a stream once the other end has gone, or once somebody has shut a descriptor
//! down: each line is a play and what Linux's TCP makes of it, step by step. The mount on tokio's
//! own TCP is the measure of this table.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};

use crate::net::{Net, Stream};
use crate::tools::{fill, pattern};
use crate::watchdog::step;

/// One word of a play is an end (a, b) and what happens there:
///
/// * `w` write, `t` try_write, `v` write_vectored, `f` flush, `s` shutdown
/// * `r` read, `k` try_read, `p` peek
/// * `e` take_error, `o` SO_ERROR of the descriptor
/// * `d` drop, `l` drop with zero linger
/// * `W` `R` `B`: shut the descriptor down to write, to read, both ways
/// * `G` write 8 MiB, as much as goes
/// * `,` wait until the end of reading shows, `.` until the descriptor has hung up, `:` until there
///   is something to read
/// * `-` wait until the other end's kernel has acknowledged a FIN, which it may put off for 40 ms
///
/// and after `=` what comes of it: bytes, `pipe`, `reset`, `block`, `none`.
async fn play<N: Net>(net: &N, script: &str) {
    let (a, b) = net.pair().await;
    let mut ends = [Some(a), Some(b)];
    let mut got = Vec::new();
    for word in script.split_whitespace() {
        step(format!("{word} of {script}"));
        let (act, _) = word.split_once('=').unwrap_or((word, ""));
        let end = &mut ends[usize::from(act.starts_with('b'))];
        let stream = end.as_mut().expect("an end that was dropped does nothing");
        let outcome = match &act[1..] {
            "w" => length(stream.write(b"write").await),
            "t" => length(stream.try_write(b"write")),
            "v" => length(stream.write_vectored(&[IoSlice::new(b"wr"), IoSlice::new(b"ite")]).await),
            "G" => {
                length(stream.try_write(&vec![0; 8 << 20])).replace(|digit: char| digit.is_ascii_digit(), "")
            }
            "f" => done(stream.flush().await),
            "s" => done(stream.shutdown().await),
            "r" => length(stream.read(&mut [0; 100]).await),
            "k" => length(stream.try_read(&mut [0; 100])),
            "p" => length(stream.peek(&mut [0; 100]).await),
            "e" => error(stream.take_error().expect("take_error")),
            "o" => error(SockRef::from(&*stream).take_error().expect("SO_ERROR")),
            "W" => done(SockRef::from(&*stream).shutdown(Shutdown::Write)),
            "R" => done(SockRef::from(&*stream).shutdown(Shutdown::Read)),
            "B" => done(SockRef::from(&*stream).shutdown(Shutdown::Both)),
            "," => {
                while !stream.ready(Interest::READABLE).await.expect("ready").is_read_closed() {
                    tokio::task::yield_now().await;
                }
                String::new()
            }
            "." => {
                while !has_hung_up(stream) {
                    tokio::task::yield_now().await;
                }
                String::new()
            }
            ":" => {
                stream.readable().await.expect("readable");
                String::new()
            }
            "-" => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                String::new()
            }
            "l" => {
                stream.set_zero_linger().expect("set_zero_linger");
                *end = None;
                String::new()
            }
            "d" => {
                *end = None;
                String::new()
            }
            other => panic!("no act {other}"),
        };
        got.push(if outcome.is_empty() { act.to_owned() } else { format!("{act}={outcome}") });
    }
    assert_eq!(got.join(" "), script.split_whitespace().collect::<Vec<_>>().join(" "));
}

fn has_hung_up(stream: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).expect("poll");
    fds[0].revents().contains(PollFlags::HUP)
}

fn kind(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::BrokenPipe => "pipe".into(),
        io::ErrorKind::ConnectionReset => "reset".into(),
        io::ErrorKind::WouldBlock => "block".into(),
        kind => format!("{kind:?}"),
    }
}

fn length(result: io::Result<usize>) -> String {
    result.map_or_else(|error| kind(&error), |length| format!("ok{length}"))
}

fn done(result: io::Result<()>) -> String {
    result.map_or_else(|error| kind(&error), |()| "ok".into())
}

fn error(taken: Option<io::Error>) -> String {
    taken.map_or_else(|| "none".into(), |error| kind(&error))
}

async fn play_all<N: Net>(net: &N, plays: &[&str]) {
    for script in plays {
        play(net, script).await;
        // As from the other side.
        let swapped: String = script
            .split_inclusive(' ')
            .map(|word| {
                let (other, rest) = (if word.starts_with('a') { 'b' } else { 'a' }, &word[1..]);
                format!("{other}{rest}")
            })
            .collect();
        play(net, &swapped).await;
    }
}

pub(crate) async fn after_a_clean_drop<N: Net>(net: &N) {
    play_all(
        net,
        &[
            "bd aw=ok5 a. aw=pipe aw=pipe ae=none ar=ok0 ar=ok0 ap=ok0",
            "bd a, ar=ok0 aw=ok5 a. at=pipe at=pipe as=ok aw=pipe ar=ok0",
            "bd a, at=ok5 a. ae=pipe ae=none at=pipe ar=ok0",
            "bd a, at=ok5 a. ao=pipe ao=none aw=pipe",
            "bd a, ak=ok0 ap=ok0 av=ok5 af=ok a. af=ok av=pipe av=pipe ak=ok0 ak=ok0",
            "bd a, aG=ok a. aG=pipe aw=pipe",
            "bd ae=none aw=ok5 a. as=ok as=ok aw=pipe ar=ok0 ae=none",
            "bd as=ok aw=pipe ar=ok0 ar=ok0 ae=none",
            // Data before the end outlives a failed write.
            "bw=ok5 a: bd aw=ok5 a. aw=pipe ar=ok5 ar=ok0 ar=ok0",
            "bw=ok5 a: bd ar=ok5 aw=ok5 a. ar=ok0 aw=pipe ar=ok0",
        ],
    )
    .await;
}

pub(crate) async fn after_a_drop_with_unread_data<N: Net>(net: &N) {
    play_all(
        net,
        &[
            // The reset is told once, to whoever asks first.
            "aw=ok5 b: bd a. aw=reset aw=pipe ar=ok0 ar=ok0 ae=none",
            "aw=ok5 b: bd a. ar=reset ar=ok0 aw=pipe at=pipe ae=none",
            "aw=ok5 b: bd a. ap=reset ar=ok0 aw=pipe",
            "aw=ok5 b: bd a. a, ak=reset ak=ok0 at=pipe",
            "aw=ok5 b: bd a. ae=reset ae=none aw=pipe ar=ok0",
            "aw=ok5 b: bd a. at=reset at=pipe as=ok ar=ok0",
            "aw=ok5 b: bd a. av=reset av=pipe af=ok",
            "aw=ok5 b: bd a. aG=reset aG=pipe",
            "aw=ok5 b: bd a. as=ok aw=reset aw=pipe",
            "aw=ok5 b: bw=ok5 a: bd a. ar=ok5 ar=reset ar=ok0 aw=pipe",
            "aw=ok5 b: bw=ok5 a: bd a. aw=reset aw=pipe ar=ok5 ar=ok0",
            "bl a. aw=reset aw=pipe ar=ok0 ae=none",
            "bl a. ar=reset ar=ok0 aw=pipe",
        ],
    )
    .await;
}

pub(crate) async fn after_a_shutdown<N: Net>(net: &N) {
    play_all(
        net,
        &[
            "bs=ok a, aw=ok5 at=ok5 av=ok5 ar=ok0 aw=ok5 b: br=ok20 ae=none be=none",
            "bs=ok a, bd ar=ok0 aw=ok5 a. aw=pipe aw=pipe ar=ok0",
            "bs=ok a, ar=ok0 aw=ok5 b: br=ok5 bd aw=ok5 a. aw=pipe ar=ok0",
            // A reset behind an end is a broken pipe.
            "aw=ok5 b: bs=ok a, bd a. aw=pipe ar=ok0 ar=ok0",
            "aw=ok5 b: bs=ok a, bd a. ar=ok0 at=pipe at=pipe",
            "as=ok b, bs=ok aw=pipe bw=pipe ar=ok0 br=ok0",
            "as=ok b, bw=ok5 a: ar=ok5 ad bw=ok5 b. bw=pipe br=ok0",
        ],
    )
    .await;
}

pub(crate) async fn after_both_directions_of_a_descriptor_are_shut<N: Net>(net: &N) {
    play_all(
        net,
        &[
            "aB=ok br=ok0 aw=pipe at=pipe ar=ok0 ar=ok0 bw=ok5 b. bw=pipe bw=pipe br=ok0 be=none",
            "aB=ok br=ok0 bt=ok5 b. be=pipe bt=pipe ar=reset ar=ok0",
            "bw=ok5 aw=ok5 a: b: aB=ok br=ok5 br=ok0 ar=ok5 ar=ok0 aw=pipe bw=ok5 b. bw=pipe",
            "aw=ok5 b: aB=ok br=ok5 br=ok0 br=ok0 ad bw=ok5 b. bw=pipe",
            "aB=ok bB=ok br=ok0 ar=ok0 aw=pipe bw=pipe br=ok0 ar=ok0 as=ok bs=ok",
            "aB=ok as=ok br=ok0 bs=ok ar=ok0",
            "as=ok aB=ok br=ok0 ar=ok0 bw=ok5 b. bw=pipe",
            "bs=ok a, aB=ok ar=ok0 bw=pipe br=ok0 aw=pipe",
        ],
    )
    .await;
}

pub(crate) async fn after_one_direction_of_a_descriptor_is_shut<N: Net>(net: &N) {
    play_all(
        net,
        &[
            "aW=ok br=ok0 aw=pipe bw=ok5 a: ar=ok5 bw=ok5 a: ak=ok5 bd ar=ok0",
            "aw=ok5 aW=ok b: br=ok5 br=ok0 at=pipe bw=ok5 bs=ok ar=ok5 ar=ok0",
            "aW=ok br=ok0 bW=ok ar=ok0 aw=pipe bw=pipe",
            "aW=ok br=ok0 aB=ok ar=ok0 bw=ok5 b. bw=pipe",
            "aW=ok br=ok0 a- aB=ok ar=ok0 bw=ok5 b. bw=pipe",
            "aW=ok br=ok0 a- aR=ok ar=ok0 bw=ok5 a: ar=reset ar=ok0",
            "aW=ok ad br=ok0 bw=ok5 b. bw=pipe",
            // Linux goes on to deliver what comes.
            "aR=ok a, ar=ok0 aw=ok5 b: br=ok5 bw=ok5 bw=ok5 aw=ok5 br=ok5 ar=ok10 ar=ok0 bw=ok5 bd ar=ok5 ar=ok0",
            "bw=ok5 a: aR=ok a, ar=ok5 ar=ok0 aw=ok5 b: br=ok5",
            "aR=ok a, ar=ok0 ad br=ok0 bw=ok5 b. bw=pipe",
        ],
    )
    .await;
}

/// Those who wait hear of it.
pub(crate) async fn a_shut_descriptor_wakes_both_readers<N: Net>(net: &N) {
    for client_first in [true, false] {
        let (a, b) = net.pair().await;
        let (kicked, other) = if client_first { (a, b) } else { (b, a) };
        let descriptor = kicked.as_fd().try_clone_to_owned().expect("dup");
        let readers = [kicked, other].map(|mut stream| {
            tokio::spawn(async move {
                let read = stream.read(&mut [0; 8]).await.expect("the end");
                (read, stream)
            })
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        step("both wait");
        SockRef::from(&descriptor).shutdown(Shutdown::Both).expect("shutdown");
        for reader in readers {
            assert_eq!(reader.await.expect("no panic").0, 0);
        }
    }
}

/// Nobody looks at the stream itself.
pub(crate) async fn a_shut_descriptor_of_an_idle_stream_is_the_end_for_the_peer<N: Net>(net: &N) {
    for how in [Shutdown::Both, Shutdown::Write] {
        let (a, mut b) = net.pair().await;
        let reader = tokio::spawn(async move { b.read(&mut [0; 8]).await.map(|read| (read, b)) });
        tokio::task::yield_now().await;
        let watchdog = a.as_fd().try_clone_to_owned().expect("dup");
        std::thread::spawn(move || SockRef::from(&watchdog).shutdown(how))
            .join()
            .expect("no panic")
            .expect("shutdown");
        let (read, _b) = reader.await.expect("no panic").expect("the end");
        assert_eq!(read, 0);
        drop(a);
    }
}

pub(crate) async fn a_shut_descriptor_wakes_a_waiting_writer<N: Net>(net: &N) {
    for how in [Shutdown::Both, Shutdown::Write] {
        let (mut a, mut b) = net.pair().await;
        let sent = fill(&a, 0).await;
        let watchdog = a.as_fd().try_clone_to_owned().expect("dup");
        let writer = tokio::spawn(async move {
            let mut at = sent;
            loop {
                match a.write(&pattern(at, 4096)).await {
                    Ok(more) => at += more,
                    Err(error) => break (error, at, a),
                }
            }
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        SockRef::from(&watchdog).shutdown(how).expect("shutdown");
        let (error, written, _a) = writer.await.expect("no panic");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        // All of it was written before.
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.expect("the end");
        assert!(got == pattern(0, written), "{} of {written} bytes", got.len());
    }
}

/// What a writer was told it wrote before a kick, the other end gets, however the two race.
pub(crate) async fn a_kick_loses_nothing_that_was_written_before<N: Net>(net: &N) {
    for turn in 0..30_usize {
        let (mut a, mut b) = net.pair().await;
        let watchdog = a.as_fd().try_clone_to_owned().expect("dup");
        let writer = tokio::spawn(async move {
            let mut at = 0;
            loop {
                match a.write(&pattern(at, 1 + at % 3000)).await {
                    Ok(more) => at += more,
                    Err(error) => break (error, at, a),
                }
            }
        });
        let kick = tokio::spawn(async move {
            for _ in 0..turn {
                tokio::task::yield_now().await;
            }
            SockRef::from(&watchdog).shutdown(Shutdown::Both).expect("shutdown");
        });
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.expect("the end");
        kick.await.expect("no panic");
        let (error, written, _a) = writer.await.expect("no panic");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert!(got == pattern(0, written), "{} of {written} bytes", got.len());
    }
}
