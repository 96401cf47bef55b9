//! A client and a server that check every byte, and say what the stream ran on.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::{Config, FallbackReason, SmcListener, SmcSocket, SmcStream, Transport, UpgradePolicy};

use crate::actor::{next_word, tell};
use crate::sequence::{HEAD, Sequence, Side};

/// An upgrade takes microseconds; a refusal, too. It only bounds how long a client goes on whose
/// upgrade never comes to an end.
const PATIENCE: Duration = Duration::from_secs(20);

const CHUNK: usize = 3000;
/// Rounds before anything is decided, and after.
const ROUNDS: usize = 20;
/// Written while it is read, in the round in which the switch may be under way, and at the end.
const BURST: usize = 100_000;

/// What an end saw of its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) transport: String,
    pub(crate) reason: String,
    pub(crate) tcp_written: u64,
    pub(crate) tcp_read: u64,
    pub(crate) ism_written: u64,
    pub(crate) ism_read: u64,
}

impl Report {
    fn of(stream: &SmcStream) -> Self {
        let counters = stream.counters();
        let (transport, reason) = words(stream.transport());
        Self {
            local: canonical(stream.local_addr().expect("an address")),
            peer: canonical(stream.peer_addr().expect("an address")),
            transport,
            reason,
            tcp_written: counters.tcp_bytes_written,
            tcp_read: counters.tcp_bytes_read,
            ism_written: counters.ism_bytes_written,
            ism_read: counters.ism_bytes_read,
        }
    }

    fn told(&self) -> String {
        format!(
            "{}|{}|{}|{}|{}|{}|{}|{}",
            self.local,
            self.peer,
            self.transport,
            self.reason,
            self.tcp_written,
            self.tcp_read,
            self.ism_written,
            self.ism_read
        )
    }

    #[track_caller]
    pub(crate) fn heard(said: &str) -> Self {
        let words: Vec<&str> = said.split('|').collect();
        let [local, peer, transport, reason, tcp_written, tcp_read, ism_written, ism_read] = words[..] else {
            panic!("no report: {said}")
        };
        let number = |word: &str| word.parse().expect("a number");
        let address = |word: &str| word.parse().expect("an address");
        Self {
            local: address(local),
            peer: address(peer),
            transport: transport.to_owned(),
            reason: reason.to_owned(),
            tcp_written: number(tcp_written),
            tcp_read: number(tcp_read),
            ism_written: number(ism_written),
            ism_read: number(ism_read),
        }
    }

    pub(crate) fn on_the_ring(&self) -> bool {
        self.transport == "loopback-ism"
    }

    #[track_caller]
    pub(crate) fn upgraded(&self) {
        assert!(self.on_the_ring(), "stayed on TCP: {self:?}");
        assert!(self.ism_written > 0 && self.ism_read > 0, "nothing went over the ring: {self:?}");
    }

    #[track_caller]
    pub(crate) fn stayed_on_tcp(&self, words: &[&str]) {
        assert_eq!(self.transport, "tcp", "upgraded: {self:?}");
        assert!(
            words.iter().any(|words| self.reason.contains(words)),
            "the reason was {:?}, not one of {words:?}",
            self.reason
        );
        assert!(self.ism_written == 0 && self.ism_read == 0, "bytes on a ring: {self:?}");
    }
}

/// A mapped address as that which is on the wire.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn words(transport: Transport) -> (String, String) {
    let reason = transport.fallback_reason().map(|reason| reason.to_string());
    (transport.to_string(), reason.unwrap_or_default())
}

/// Whether it has been decided what the stream runs on.
fn decided(transport: Transport) -> bool {
    use FallbackReason::{InProgress, NextWrite, NoAnswer, NotYet};
    !matches!(transport, Transport::Tcp(NotYet | InProgress | NextWrite | NoAnswer))
}

/// Answers every byte of a client with one of its own.
pub(crate) struct Answering {
    network: u8,
    client: Option<Sequence>,
    at: u64,
    head: Vec<u8>,
}

impl Answering {
    pub(crate) fn new(network: u8) -> Self {
        Self { network, client: None, at: 0, head: Vec::new() }
    }

    /// The answer to these bytes, which come next.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub(crate) fn answer(&mut self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let mut bytes = bytes;
        let mut answer = Vec::new();
        if self.client.is_none() {
            let (head, rest) = bytes.split_at(bytes.len().min(HEAD - self.head.len()));
            self.head.extend(head);
            bytes = rest;
            if self.head.len() < HEAD {
                return Ok(answer);
            }
            let client = Sequence::begun_by(&self.head);
            let client =
                client.ok_or_else(|| format!("begins with {:?}", self.head.escape_ascii().to_string()))?;
            if client.side != Side::Client || client.network != self.network {
                return Err(format!("network {} is met by {client:?}", self.network));
            }
            self.client = Some(client);
            self.at = HEAD as u64;
            answer = client.answer().bytes(0, HEAD);
        }
        let client = self.client.expect("it has said who it is");
        if let Some(wrong) = client.first_wrong(self.at, bytes) {
            return Err(format!("{client:?} has a foreign byte at {wrong}"));
        }
        answer.extend(client.answer().bytes(self.at, bytes.len()));
        self.at += bytes.len() as u64;
        Ok(answer)
    }
}

/// Serves one connection after the other, and tells of each what it ran on.
pub(crate) async fn server(at: SocketAddr, network: u8) {
    let listener = SmcListener::bind(at).await.expect("bind");
    tell(&listener.local_addr().expect("an address").to_string());
    loop {
        let (mut stream, _) = listener.accept().await.expect("accept");
        tokio::spawn(async move {
            let mut answering = Answering::new(network);
            let mut buffer = vec![0; 3000];
            loop {
                let length = stream.read(&mut buffer).await.expect("read");
                if length == 0 {
                    break;
                }
                match answering.answer(&buffer[..length]) {
                    Ok(answer) => stream.write_all(&answer).await.expect("write"),
                    Err(wrong) => return tell(&wrong),
                }
            }
            // A socket that is shut down has no addresses any more.
            let report = Report::of(&stream).told();
            stream.shutdown().await.expect("shutdown");
            tell(&report);
        });
    }
}

/// The client's end of a conversation.
pub(crate) struct Asking {
    sequence: Sequence,
    at: u64,
}

impl Asking {
    pub(crate) fn new(network: u8, seed: u64) -> Self {
        Self { sequence: Sequence { side: Side::Client, network, seed }, at: 0 }
    }

    /// Sends `length` bytes, in one or while the answer is read, and has as many answered.
    ///
    /// # Errors
    ///
    /// What the stream says, and `InvalidData` for a foreign byte.
    pub(crate) async fn round(&mut self, stream: &mut SmcStream, length: usize) -> std::io::Result<()> {
        // The first words are a whole head at least, or there is no answer.
        let length = if self.at == 0 { length.max(HEAD) } else { length };
        let sent = self.sequence.bytes(self.at, length);
        let mut got = vec![0; length];
        if length < BURST {
            stream.write_all(&sent).await?;
            stream.read_exact(&mut got).await?;
        } else {
            let (mut read, mut write) = stream.split();
            tokio::try_join!(write.write_all(&sent), read.read_exact(&mut got))?;
        }
        if let Some(wrong) = self.sequence.answer().first_wrong(self.at, &got) {
            let words = format!("the answer to {:?} has a foreign byte at {wrong}", self.sequence);
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, words));
        }
        self.at += length as u64;
        Ok(())
    }
}

pub(crate) fn policy(name: &str) -> UpgradePolicy {
    match name {
        "first-turn" => UpgradePolicy::FirstTurn,
        "eager" => UpgradePolicy::Eager,
        "manual" => UpgradePolicy::Manual,
        "require" => UpgradePolicy::Require,
        "handshake" => UpgradePolicy::Handshake,
        "never" => UpgradePolicy::Never,
        _ => panic!("no policy {name}"),
    }
}

/// Connects, from port `from` if that is not 0.
///
/// # Errors
///
/// What the socket says.
pub(crate) async fn connect(from: u16, to: SocketAddr, config: &Config) -> std::io::Result<SmcStream> {
    let socket = if to.is_ipv4() { SmcSocket::new_v4()? } else { SmcSocket::new_v6()? };
    if from != 0 {
        let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
        socket.bind(SocketAddr::new(any.parse().expect("an address"), from))?;
    }
    socket.connect_with(to, config).await
}

/// Talks before, during and after the attempt to upgrade, then tells what it ran on.
pub(crate) async fn client(from: u16, to: SocketAddr, network: u8, how: &str) {
    let config = Config::from_env().upgrade_policy(policy(how));
    let mut stream = connect(from, to, &config).await.expect("connect");
    tell("connected");
    tokio::task::spawn_blocking(next_word).await.expect("the director's word");
    let seed = u64::from(rustix::process::getpid().as_raw_nonzero().get() as u32) << 16 | u64::from(from);
    let mut asking = Asking::new(network, seed);
    let started = Instant::now();
    let mut round = 0;
    while round < ROUNDS || !decided(stream.transport()) {
        if how == "manual" && round == ROUNDS / 2 {
            let done = tokio::time::timeout(PATIENCE, stream.upgrade()).await;
            assert!(done.is_ok(), "neither upgraded nor refused: {:?}", stream.transport());
        }
        asking.round(&mut stream, if round == 2 { BURST } else { CHUNK }).await.expect("a round");
        round += 1;
        if round > ROUNDS {
            assert!(started.elapsed() < PATIENCE, "never decided: {:?}", stream.transport());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    for round in 0..ROUNDS {
        asking.round(&mut stream, if round == 0 { BURST } else { CHUNK }).await.expect("a round");
    }
    let report = Report::of(&stream);
    assert_eq!(report.tcp_written + report.ism_written, asking.at, "counters: {report:?}");
    assert_eq!(report.tcp_read + report.ism_read, asking.at, "counters: {report:?}");
    stream.shutdown().await.expect("shutdown");
    assert_eq!(stream.read(&mut [0; 10]).await.expect("read"), 0, "a clean end");
    tell(&report.told());
}
