//! The honest process that is attacked: a server with tokio's runtime, a watch on its silence, and
//! a thread beside it that answers the judge.

use std::fs;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio_smc::{Config, SmcListener, SmcStream, UpgradePolicy};

use crate::child::{next_word, tell};
use crate::silence::{Silence, Watch};
use crate::usage::Usage;
use crate::watchdog::Flavour;

/// Descriptors that it may have, as many servers do.
pub(crate) const DESCRIPTORS: u64 = 1024;
/// The door of a memory control group that it is to be in.
pub(crate) const GROUP: &str = "SMC_TEST_GROUP";
/// For how long it lets a connection stand that has not said anything.
pub(crate) const IDLE: &str = "SMC_TEST_IDLE_MS";

/// What the judge wants to know of its victim.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Health {
    /// Since the last question.
    pub(crate) silence: Silence,
    pub(crate) threads: u64,
    pub(crate) usage: Usage,
}

impl Health {
    fn to_line(self) -> String {
        format!("{} {} {}", self.silence.to_words(), self.threads, self.usage.to_line())
    }

    pub(crate) fn from_line(line: &str) -> Self {
        let mut words = line.splitn(6, ' ');
        let mut number = || words.next().and_then(|word| word.parse().ok()).expect("a number");
        let (silence, threads) = (Silence::from_words(&mut number), number());
        Health { silence, threads, usage: Usage::from_line(words.next().expect("usage")) }
    }
}

/// Serves until its parent is gone.
pub(crate) fn serve(flavour: Flavour) {
    if let Ok(door) = std::env::var(GROUP) {
        fs::write(door, std::process::id().to_string()).expect("the group lets it in");
    }
    let limit = Rlimit { current: Some(DESCRIPTORS), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).expect("fewer descriptors");
    let idle = std::env::var(IDLE).ok().map(|word| Duration::from_millis(word.parse().expect("a number")));
    let runtime = flavour.runtime();
    let watch = Watch::begin(flavour, runtime.handle());
    let handle = runtime.handle().clone();
    thread::spawn(move || answer(&handle, &watch));
    runtime.block_on(async {
        let listener = SmcListener::bind("127.0.0.1:0").await.expect("bind");
        tell(&listener.local_addr().expect("an address").to_string());
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            tokio::spawn(behave(stream, idle.unwrap_or(Duration::MAX)));
        }
    });
}

/// On a thread of its own: it answers also when the runtime does not.
fn answer(runtime: &Handle, watch: &Watch) {
    let _runtime = runtime.enter();
    while let Some(word) = next_word() {
        if let Some(addr) = word.strip_prefix("call ") {
            runtime.spawn(call(addr.parse().expect("an address")));
        }
        let threads = fs::read_dir("/proc/self/task").map_or(0, |tasks| tasks.count() as u64);
        tell(&Health { silence: watch.take(), threads, usage: Usage::here() }.to_line());
    }
    std::process::exit(0);
}

/// As a client of somebody, for as long as an upgrade is not settled.
async fn call(addr: SocketAddr) {
    let config = Config::from_env().upgrade_policy(UpgradePolicy::Manual);
    let Ok(stream) = SmcStream::connect_with(addr, &config).await else { return };
    stream.upgrade().await;
}

/// The first byte says what the other end wants: `e`cho, `s`ource, `h`old it for a while unread, or
/// `d`rop.
async fn behave(mut stream: SmcStream, idle: Duration) {
    let _ = stream.set_nodelay(true);
    // Who says nothing for so long is let go of.
    let Ok(Ok(wish)) = tokio::time::timeout(idle, stream.read_u8()).await else { return };
    match wish {
        b's' => {
            let mut place = 0;
            while let Ok(n) = stream.write(bytes(place, 8000)).await {
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

/// A byte that tells its place in the stream, up to [`PERIOD`].
fn at(place: u64) -> u8 {
    (place.wrapping_mul(0x9E37_79B1) >> 11) as u8
}

/// From here on the bytes are the same again: [`at`] looks at 19 bits of a product.
const PERIOD: u64 = 1 << 19;
/// At most at once.
const MOST: usize = 9000;

/// Computed once: in a debug build the bytes of some writes take as long as an attack may.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| (0..PERIOD + MOST as u64).map(at).collect());

pub(crate) fn bytes(from: u64, length: usize) -> &'static [u8] {
    assert!(length <= MOST);
    &BYTES[(from % PERIOD) as usize..][..length]
}
