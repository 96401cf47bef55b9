//! Random: two networks with the same addresses and one volume, and thousands of connections
//! through them, directly, by a Service's address and by a proxy, of which always two have the same
//! tuple at the same time. Policies, sizes, turns and ends are diced; every stream carries a
//! sequence of its own.
//!
//! `SMC_TEST_SEED` is the seed (it is printed), `SMC_TEST_CONNECTIONS` how many in each network.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_smc::{Config, SmcListener, SmcStream};

use crate::actor::{Actor, next_word, tell};
use crate::inside::{isolated_for, say};
use crate::networks::{self, Network};
use crate::sequence::mixed;
use crate::talk::{Answering, Asking, connect, policy};

const CONNECTIONS: u64 = 512;
/// So many are connected in each network before any of them talks.
const BATCH: u64 = 128;
/// The client's ports, one for each connection.
const FIRST_PORT: u64 = 20_000;
const MOST: u64 = 40_000;
const DEADLINE: Duration = Duration::from_secs(1800);

const POLICIES: [&str; 8] =
    ["first-turn", "eager", "first-turn", "manual", "first-turn", "handshake", "require", "never"];

#[test]
fn random_connections_of_two_networks() {
    isolated_for("crowd::random_connections_of_two_networks", DEADLINE, || {
        let seed = variable("SMC_TEST_SEED").unwrap_or_else(|| mixed(u64::from(std::process::id())));
        let count = variable("SMC_TEST_CONNECTIONS").unwrap_or(CONNECTIONS).min(MOST);
        say(&format!("random connections: SMC_TEST_SEED={seed} SMC_TEST_CONNECTIONS={count}"));
        let network = networks::overlapping_clusters();
        play(&network, seed, count);
    });
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}: a number")))
}

fn play(network: &Network, seed: u64, count: u64) {
    let mut servers = Vec::new();
    let mut clients = Vec::new();
    for (number, pair) in network.pairs.iter().enumerate() {
        let mut server = Actor::start(&pair.server.words(), &format!("crowd-server {} {number}", pair.at));
        server.hear();
        servers.push(server);
        let role = format!("crowd {number} {seed} {count} {}", pair.to);
        clients.push(Actor::start(&pair.client.words(), &role));
    }
    for batch in 0..count.div_ceil(BATCH) {
        for client in &mut clients {
            assert_eq!(client.hear(), format!("connected {batch}"));
        }
        clients.iter_mut().for_each(|client| client.say("go"));
    }
    for (client, server) in clients.iter_mut().zip(&mut servers) {
        let mut outcomes = BTreeMap::new();
        let made = loop {
            let said = client.hear();
            let words: Vec<&str> = said.split('|').collect();
            match words[..] {
                ["made", made] => break made.parse::<u64>().expect("a number"),
                [times, outcome] => {
                    outcomes.insert(outcome.to_owned(), times.parse::<u64>().expect("a number"))
                }
                _ => panic!("{said}"),
            };
        };
        server.say("sum");
        let sum = server.hear();
        say(&format!("{made} connections: {outcomes:#?}, the server: {sum}"));
        assert!(sum.ends_with("wrong: []"), "{sum}");
        for kind in ["direct", "service"] {
            let upgraded = outcomes
                .keys()
                .any(|outcome: &String| outcome.starts_with(kind) && outcome.contains("loopback-ism"));
            assert!(upgraded, "{kind}");
        }
    }
}

#[derive(Debug, Default)]
struct Sum {
    connections: u64,
    upgraded: u64,
    wrong: Vec<String>,
}

/// Serves until it is asked for the sum of all.
pub(crate) async fn server(at: SocketAddr, network: u8) {
    let listener = SmcListener::bind(at).await.expect("bind");
    tell("listening");
    let sum = Arc::new(Mutex::new(Sum::default()));
    let mut serving = JoinSet::new();
    let mut asked = tokio::task::spawn_blocking(next_word);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.expect("accept");
                serving.spawn(serve(stream, network, Arc::clone(&sum)));
            }
            _ = &mut asked => break,
        }
    }
    while let Some(served) = serving.join_next().await {
        served.expect("no panic");
    }
    let sum = sum.lock().expect("no panic");
    tell(&format!("{} connections, {} upgraded, wrong: {:?}", sum.connections, sum.upgraded, sum.wrong));
}

async fn serve(mut stream: SmcStream, network: u8, sum: Arc<Mutex<Sum>>) {
    let mut answering = Answering::new(network);
    let mut buffer = vec![0; 3000];
    let mut wrong = None;
    // An error is a client that has gone in the middle.
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        match answering.answer(&buffer[..length]) {
            Ok(answer) => {
                if stream.write_all(&answer).await.is_err() {
                    break;
                }
            }
            Err(words) => {
                wrong = Some(words);
                break;
            }
        }
    }
    let _ = stream.shutdown().await;
    let mut sum = sum.lock().expect("no panic");
    sum.connections += 1;
    sum.upgraded += u64::from(stream.transport().is_loopback_ism());
    sum.wrong.extend(wrong);
}

/// Who is dialled, and what that is to run on: "direct" and "service" are this crate's, "proxy" and
/// "plain" never are.
type Goal = (String, SocketAddr);

/// Makes all connections of one network, batch after batch, in step with those of the other.
pub(crate) async fn clients(network: u8, seed: u64, count: u64, goals: Vec<Goal>) {
    let mut outcomes = BTreeMap::new();
    for batch in 0..count.div_ceil(BATCH) {
        let mut connecting = JoinSet::new();
        for number in batch * BATCH..count.min((batch + 1) * BATCH) {
            // Not of the network: in both the same is done at the same time.
            let dice = mixed(seed ^ number << 20);
            let (kind, to) = goals[(dice % goals.len() as u64) as usize].clone();
            let how = POLICIES[(dice >> 8) as usize % POLICIES.len()];
            connecting.spawn(async move {
                let config = Config::from_env().upgrade_policy(policy(how));
                let stream = connect((FIRST_PORT + number) as u16, to, &config).await;
                (Plan { kind, how, dice, number }, stream)
            });
        }
        let connected = connecting.join_all().await;
        tell(&format!("connected {batch}"));
        tokio::task::spawn_blocking(next_word).await.expect("the director's word");
        let mut talking = JoinSet::new();
        for (plan, stream) in connected {
            talking.spawn(async move {
                match stream {
                    Ok(stream) => plan.talk(network, stream).await,
                    Err(error) if plan.how == "require" => format!("{} require: {error}", plan.kind),
                    Err(error) => panic!("{plan:?}: {error}"),
                }
            });
        }
        for outcome in talking.join_all().await {
            *outcomes.entry(outcome).or_insert(0_u64) += 1;
        }
    }
    for (outcome, times) in &outcomes {
        tell(&format!("{times}|{outcome}"));
    }
    tell(&format!("made|{count}"));
}

#[derive(Clone, Debug)]
struct Plan {
    kind: String,
    how: &'static str,
    dice: u64,
    number: u64,
}

impl Plan {
    /// The whole conversation; what it ran on at the end.
    async fn talk(self, network: u8, mut stream: SmcStream) -> String {
        let mut asking = Asking::new(network, mixed(self.dice ^ self.number));
        let rounds = 1 + (self.dice >> 16) % 12;
        for round in 0..rounds {
            if self.how == "manual" && round == rounds / 2 {
                stream.upgrade().await;
            }
            let dice = mixed(self.dice ^ round << 40);
            let length = match dice % 16 {
                0 => 200_000 + dice % 100_000,
                1..=8 => 1 + (dice >> 8) % 200,
                _ => 1 + (dice >> 8) % 20_000,
            };
            let done = asking.round(&mut stream, length as usize).await;
            done.unwrap_or_else(|error| panic!("network {network}, {self:?}, round {round}: {error}"));
        }
        let transport = stream.transport();
        let upgradable = self.kind == "direct" || self.kind == "service";
        assert!(upgradable || !transport.is_loopback_ism(), "network {network}, {self:?}: {transport:?}");
        // Some go without a word.
        if self.dice >> 32 & 7 != 0 {
            stream.shutdown().await.expect("shutdown");
            assert_eq!(stream.read(&mut [0; 10]).await.expect("read"), 0, "a clean end");
        }
        let reason = transport.fallback_reason().map(|reason| format!(", {reason}"));
        format!("{} {}: {transport}{}", self.kind, self.how, reason.unwrap_or_default())
    }
}
