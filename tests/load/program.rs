//! The programs: a server, a client that keeps its connections, and one that makes short ones.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_smc::{Config, SmcSocket, SmcStream, Transport, UpgradePolicy};

use crate::child::{next_word, role, tell};
use crate::talk::{End, First, serve};
use crate::watchdog::Flavour;

/// What takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(100);
/// Connections under way at one time.
const AT_ONCE: usize = 64;

/// Becomes the program this process was started for, if it was.
pub(crate) fn run() {
    let Some(role) = role() else { return };
    let words: Vec<&str> = role.split(' ').collect();
    if let Some(limit) = words.last().and_then(|word| word.strip_prefix("nofile=")) {
        limit_descriptors(limit.parse().expect("a number"));
    }
    let address = || words[1].parse().expect("an address");
    let flavour = if words[0] == "small" { Flavour::CurrentThread } else { Flavour::MultiThread };
    let runtime = flavour.runtime();
    match words[0] {
        "server" => runtime.block_on(server()),
        "client" | "small" => runtime.block_on(client(address(), words[2].parse().expect("a number"))),
        "short" => runtime.block_on(short(address())),
        _ => panic!("no role {role}"),
    }
}

fn limit_descriptors(limit: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum }).expect("setrlimit");
}

/// The parent's words; the runtime goes on meanwhile.
async fn word() -> Option<String> {
    tokio::task::spawn_blocking(next_word).await.expect("no panic")
}

/// What went wrong: how often, and what it was first.
#[derive(Default)]
struct Trouble(Mutex<(u64, Option<String>)>);

impl Trouble {
    fn note(&self, what: String) {
        let mut trouble = self.0.lock().expect("no panic");
        trouble.0 += 1;
        trouble.1.get_or_insert(what);
    }

    fn say(&self) -> String {
        match &*self.0.lock().expect("no panic") {
            (_, None) => "ok".to_owned(),
            (count, Some(first)) => format!("{count} failed, the first: {first}"),
        }
    }
}

async fn server() {
    // Room for all clients at once, or the kernel sends SYN cookies, and a reset to who is late.
    let socket = SmcSocket::new_v4().expect("a socket");
    socket.bind((Ipv4Addr::UNSPECIFIED, 0).into()).expect("bind");
    let listener = socket.listen(4096).expect("listen");
    tell(&listener.local_addr().expect("an address").port().to_string());
    let trouble = Arc::<Trouble>::default();
    let served = Arc::<AtomicU64>::default();
    tokio::spawn({
        let (trouble, served) = (trouble.clone(), served.clone());
        async move {
            loop {
                match listener.accept().await {
                    Ok((stream, from)) => {
                        let (trouble, served) = (trouble.clone(), served.clone());
                        tokio::spawn(async move {
                            match serve(stream).await {
                                Ok(()) => drop(served.fetch_add(1, Ordering::Relaxed)),
                                Err(error) => trouble.note(format!("{from}: {error}")),
                            }
                        });
                    }
                    Err(error) => {
                        trouble.note(format!("accept: {error}"));
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            }
        }
    });
    while let Some(line) = word().await {
        match line.as_str() {
            "trouble" => tell(&trouble.say()),
            "served" => tell(&served.load(Ordering::Relaxed).to_string()),
            // What is known of streams is looked at, too: nobody is to be left there.
            "streams" => tell(&tokio_smc::streams().len().to_string()),
            _ => panic!("no word {line}"),
        }
    }
}

/// Does that with each of `0..count`, some at a time; what has come of all of them.
async fn each<T: Send + 'static, F: Future<Output = io::Result<T>> + Send + 'static>(
    what: &str,
    count: usize,
    begin: impl Fn(usize) -> F,
) -> Result<Vec<T>, String> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = Vec::new();
    for number in 0..count {
        let place = places.clone().acquire_owned().await.expect("it is open");
        let work = begin(number);
        tasks.push(tokio::spawn(async move {
            let done = timeout(PATIENCE, work).await;
            drop(place);
            done
        }));
    }
    let mut results = Vec::with_capacity(count);
    for (number, task) in tasks.into_iter().enumerate() {
        match task.await.expect("no panic") {
            Ok(Ok(result)) => results.push(result),
            Ok(Err(error)) => return Err(format!("{what} of connection {number}: {error}")),
            Err(_) => return Err(format!("{what} of connection {number} hangs")),
        }
    }
    Ok(results)
}

/// What connections run on: how many on the ring, and the others' reasons.
fn transports(ends: &[End<SmcStream>]) -> String {
    let mut reasons = BTreeMap::<String, usize>::new();
    let mut upgraded = 0;
    for end in ends {
        match end.stream.transport() {
            Transport::Tcp(reason) => *reasons.entry(reason.to_string()).or_default() += 1,
            _ => upgraded += 1,
        }
    }
    format!("{upgraded} {reasons:?}")
}

async fn client(to: SocketAddr, first_id: u64) {
    tell("ready");
    let mut ends = Vec::new();
    while let Some(line) = word().await {
        let (verb, number) = line.split_once(' ').unwrap_or((&line, "0"));
        let number = number.parse().expect("a number");
        let done = match verb {
            "open" => each("the opening", number, |id| open(to, first_id + id as u64))
                .await
                .map(|more| ends.extend(more)),
            "round" => {
                let mut given = std::mem::take(&mut ends).into_iter().map(Some).collect::<Vec<_>>();
                let given = Mutex::new(&mut given);
                each("a round", number_of(&given), |at| {
                    let mut end = given.lock().expect("no panic")[at].take().expect("each once");
                    async move { end.round(number).await.map(|()| end) }
                })
                .await
                .map(|back| ends = back)
            }
            "settle" => each("the upgrade", ends.len(), |at| {
                let mut watch = ends[at].stream.watch();
                async move {
                    watch.settled().await;
                    Ok(())
                }
            })
            .await
            .map(drop),
            "transports" => {
                tell(&transports(&ends));
                continue;
            }
            "close" => {
                let given = Mutex::new(ends.drain(..).map(Some).collect::<Vec<_>>());
                let count = given.lock().expect("no panic").len();
                each("the end", count, |at| {
                    let end = given.lock().expect("no panic")[at].take().expect("each once");
                    end.finish(First::Client)
                })
                .await
                .map(drop)
            }
            "streams" => {
                tell(&tokio_smc::streams().len().to_string());
                continue;
            }
            _ => panic!("no word {line}"),
        };
        tell(&done.err().unwrap_or_else(|| "ok".to_owned()));
    }
}

fn number_of<T>(given: &Mutex<&mut Vec<T>>) -> usize {
    given.lock().expect("no panic").len()
}

async fn open(to: SocketAddr, id: u64) -> io::Result<End<SmcStream>> {
    let stream = SmcStream::connect(to).await?;
    let mut end = End::open(stream, id, First::Client).await?;
    end.round(64).await?;
    Ok(end)
}

/// Connections with one request and one answer, of every policy and either end.
async fn short(to: SocketAddr) {
    tell("ready");
    let mut next = 0;
    while let Some(line) = word().await {
        match line.split_once(' ') {
            Some(("some", count)) => {
                let count = count.parse::<u64>().expect("a number");
                tell(&some(to, next, count).await.err().unwrap_or_else(|| "ok".to_owned()));
                next += count;
            }
            None if line == "streams" => tell(&tokio_smc::streams().len().to_string()),
            _ => panic!("no word {line}"),
        }
    }
}

async fn some(to: SocketAddr, from: u64, count: u64) -> Result<(), String> {
    let next = Arc::new(AtomicU64::new(from));
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let next = next.clone();
            tokio::spawn(async move {
                loop {
                    let id = next.fetch_add(1, Ordering::Relaxed);
                    if id >= from + count {
                        return Ok::<(), String>(());
                    }
                    let played = timeout(PATIENCE, one(to, id)).await;
                    played
                        .map_err(|_| format!("connection {id} hangs"))?
                        .map_err(|error| format!("connection {id}: {error}"))?;
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.expect("no panic")?;
    }
    Ok(())
}

async fn one(to: SocketAddr, id: u64) -> io::Result<()> {
    // Half stay on TCP; of the others most end while their upgrade is under way.
    let policy = match id % 10 {
        0..5 => UpgradePolicy::FirstTurn,
        5..9 => UpgradePolicy::Eager,
        _ => UpgradePolicy::Require,
    };
    // Who closes first keeps the addresses for a minute: not all of them here, nor from one.
    let first = if id % 4 == 0 { First::Client } else { First::Server };
    let to = SocketAddr::from((Ipv4Addr::new(127, 1, (id / 200) as u8, 1 + (id % 200) as u8), to.port()));
    let stream = SmcStream::connect_with(to, &Config::from_env().upgrade_policy(policy)).await?;
    if policy == UpgradePolicy::Require && !stream.transport().is_loopback_ism() {
        return Err(io::Error::other(format!("it runs on {}", stream.transport())));
    }
    let mut end = End::open(stream, id, first).await?;
    end.round(100).await?;
    end.finish(first).await
}
