//! The honest process that is attacked: a server with tokio's runtime, and a thread beside it that
//! notices when the runtime is silent and answers the judge.
#![allow(clippy::disallowed_types, reason = "a test, which loom does not run")]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Handle, Runtime};
use tokio_smc::{SmcListener, SmcStream};

use crate::child::{next_word, tell};
use crate::usage::Usage;
use crate::watchdog::Flavour;

/// How often the watch looks whether the runtime still moves.
const LOOK: Duration = Duration::from_millis(5);

/// What the judge wants to know of its victim.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Health {
    /// For how long its runtime did nothing, at most, since the last question.
    pub(crate) silence: Duration,
    pub(crate) threads: u64,
    pub(crate) usage: Usage,
}

impl Health {
    fn to_line(self) -> String {
        format!("{} {} {}", self.silence.as_micros(), self.threads, self.usage.to_line())
    }

    pub(crate) fn from_line(line: &str) -> Self {
        let mut words = line.splitn(3, ' ');
        let mut number = || words.next().and_then(|word| word.parse().ok()).expect("a number");
        let (silence, threads) = (Duration::from_micros(number()), number());
        Health { silence, threads, usage: Usage::from_line(words.next().expect("usage")) }
    }
}

/// Serves until its parent is gone.
pub(crate) fn serve(flavour: Flavour) {
    let runtime = flavour.runtime();
    let silence = silence_of(&runtime);
    let handle = runtime.handle().clone();
    thread::spawn(move || answer(&handle, &silence));
    runtime.block_on(async {
        let listener = SmcListener::bind("127.0.0.1:0").await.expect("bind");
        tell(&listener.local_addr().expect("an address").to_string());
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            tokio::spawn(behave(stream));
        }
    });
}

/// From now on the longest silence of that runtime, in microseconds.
pub(crate) fn silence_of(runtime: &Runtime) -> Arc<AtomicU64> {
    let beats = Arc::new(AtomicU64::new(0));
    let heart = Arc::clone(&beats);
    runtime.spawn(async move {
        loop {
            heart.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let silence = Arc::new(AtomicU64::new(0));
    let longest = Arc::clone(&silence);
    thread::spawn(move || watch(&beats, &longest));
    silence
}

/// On a thread of its own: it answers also when the runtime does not.
fn answer(runtime: &Handle, silence: &AtomicU64) {
    let _runtime = runtime.enter();
    while next_word().is_some() {
        let threads = fs::read_dir("/proc/self/task").map_or(0, |tasks| tasks.count() as u64);
        let silence = Duration::from_micros(silence.swap(0, Ordering::Relaxed));
        tell(&Health { silence, threads, usage: Usage::here() }.to_line());
    }
    std::process::exit(0);
}

/// Notes the longest time without a beat of the runtime's heart. The time for which threads of this
/// process wanted to run and the machine had no processor for them is no silence.
fn watch(beats: &AtomicU64, longest: &AtomicU64) {
    let own = rustix::thread::gettid().as_raw_nonzero().to_string();
    let (mut last, mut since, mut waited) = (0, Instant::now(), 0);
    loop {
        thread::sleep(LOOK);
        // First, for this thread may have to wait, too, between two lines.
        let passed = since.elapsed();
        let now = beats.load(Ordering::Relaxed);
        if now != last {
            (last, since, waited) = (now, Instant::now(), waited_for_processor(&own));
            continue;
        }
        let excused = Duration::from_nanos(waited_for_processor(&own).saturating_sub(waited));
        let silent = passed.saturating_sub(excused);
        longest.fetch_max(silent.as_micros() as u64, Ordering::Relaxed);
    }
}

/// Nanoseconds for which the other threads of this process stood in the queue of a processor.
fn waited_for_processor(own: &str) -> u64 {
    let tasks = fs::read_dir("/proc/self/task").expect("procfs").flatten();
    let others = tasks.filter(|task| task.file_name() != own);
    // A thread may have ended meanwhile; a kernel without these numbers excuses nothing.
    let waited = others.map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split(' ').nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0)
    });
    waited.sum()
}

/// The first byte says what the other end wants: `e`cho, `s`ource, `h`old it for a while unread, or
/// `d`rop.
async fn behave(mut stream: SmcStream) {
    let _ = stream.set_nodelay(true);
    let Ok(wish) = stream.read_u8().await else { return };
    match wish {
        b's' => {
            let mut place = 0;
            while let Ok(n) = stream.write(&bytes(place, 8000)).await {
                place += n as u64;
            }
        }
        b'h' => tokio::time::sleep(Duration::from_millis(20)).await,
        b'd' => {}
        _ => echo(stream).await,
    }
}

async fn echo(mut stream: SmcStream) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => {
                if stream.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
    // The peer may be gone by now.
    let _ = stream.shutdown().await;
}

/// A byte that tells its place in the stream.
fn at(place: u64) -> u8 {
    (place.wrapping_mul(0x9E37_79B1) >> 11) as u8
}

pub(crate) fn bytes(from: u64, length: usize) -> Vec<u8> {
    (from..from + length as u64).map(at).collect()
}
