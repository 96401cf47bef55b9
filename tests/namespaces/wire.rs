//! What really went over a network: all packets of a namespace, put together to the streams that
//! TCP carried, and compared with what the applications had sent until their switch.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use socket2::{Domain, Protocol, Socket, Type};

use crate::actor::{Actor, next_word, tell};
use crate::inside::isolated;
use crate::sequence::{HEAD, Sequence, Side};
use crate::talk::Report;

/// "SMCD" and "SMCR" in EBCDIC, with which every CLC message begins and ends, and SMC's TCP option.
const EYE_CATCHERS: [[u8; 4]; 2] = [[0xe2, 0xd4, 0xc3, 0xc4], [0xe2, 0xd4, 0xc3, 0xd9]];

/// So long nothing comes before it is taken for the end.
const SILENCE: Duration = Duration::from_millis(50);
/// All packets of one test.
const BUFFER: usize = 64 << 20;

const NO_CATCHERS: &str = "eye catchers: 0";

const ETHERNET: usize = 14;
const SYN: u8 = 0x02;

/// One direction of a connection.
#[derive(Default)]
struct Flow {
    /// The sequence number of the first byte.
    first: Option<u32>,
    bytes: Vec<u8>,
    /// What has come before what is in front of it.
    early: BTreeMap<usize, Vec<u8>>,
    fault: Option<String>,
}

impl Flow {
    fn take(&mut self, seq: u32, payload: &[u8]) {
        let Some(first) = self.first else {
            return self.blame("data of a connection whose SYN was not seen");
        };
        let at = seq.wrapping_sub(first) as usize;
        if at > u32::MAX as usize / 2 {
            return self.blame("data before the first byte");
        }
        self.early.insert(at, payload.to_vec());
        while let Some(next) = self.early.first_entry() {
            let at = *next.key();
            if at > self.bytes.len() {
                return;
            }
            let payload = next.remove();
            let (again, new) = payload.split_at(payload.len().min(self.bytes.len() - at));
            if self.bytes[at..at + again.len()] != *again {
                return self.blame("sent again, and other bytes");
            }
            self.bytes.extend_from_slice(new);
        }
    }

    fn blame(&mut self, words: &str) {
        self.fault.get_or_insert_with(|| words.to_owned());
    }

    /// "exact", or what is wrong with it.
    fn verdict(&self) -> String {
        if let Some(fault) = &self.fault {
            return fault.clone();
        }
        if !self.early.is_empty() {
            return format!("a gap at {}", self.bytes.len());
        }
        if self.bytes.is_empty() {
            return "exact".to_owned();
        }
        let Some(sequence) = self.bytes.get(..HEAD).and_then(Sequence::begun_by) else {
            return format!("begins with {}", self.bytes[..self.bytes.len().min(HEAD)].escape_ascii());
        };
        match sequence.first_wrong(0, &self.bytes) {
            None => "exact".to_owned(),
            Some(at) => format!("a foreign byte at {at}"),
        }
    }
}

#[derive(Default)]
struct Wire {
    flows: BTreeMap<(SocketAddr, SocketAddr), Flow>,
    catchers: usize,
}

impl Wire {
    fn take(&mut self, frame: &[u8]) -> Option<()> {
        let kind = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
        let ip = frame.get(ETHERNET..)?;
        let (protocol, source, destination, segment) = match kind {
            0x0800 => {
                let length = usize::from(u16::from_be_bytes(ip.get(2..4)?.try_into().ok()?));
                let header = usize::from(ip.first()? & 0xf) * 4;
                let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
                // Without what fills up a short frame.
                (
                    ip[9],
                    address(12)?,
                    address(16)?,
                    ip.get(header..if length == 0 { ip.len() } else { length })?,
                )
            }
            0x86dd => {
                let length = usize::from(u16::from_be_bytes(ip.get(4..6)?.try_into().ok()?));
                let address =
                    |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
                let end = if length == 0 { ip.len() } else { 40 + length };
                (ip[6], address(8)?, address(24)?, ip.get(40..end)?)
            }
            _ => {
                self.look(ip);
                return None;
            }
        };
        if i32::from(protocol) != libc::IPPROTO_TCP {
            self.look(ip);
            return None;
        }
        let port = |at: usize| Some(u16::from_be_bytes(segment.get(at..at + 2)?.try_into().ok()?));
        let seq = u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?);
        let header = usize::from(segment.get(12)? >> 4) * 4;
        let (options, payload) = (segment.get(20..header)?, &segment[header..]);
        self.look(options);
        self.look(payload);
        let ends = (SocketAddr::new(source, port(0)?), SocketAddr::new(destination, port(2)?));
        let flow = self.flows.entry(ends).or_default();
        if segment[13] & SYN != 0 {
            flow.first = Some(seq.wrapping_add(1));
        }
        if !payload.is_empty() {
            flow.take(seq, payload);
        }
        Some(())
    }

    fn look(&mut self, bytes: &[u8]) {
        if bytes.is_ascii() {
            return;
        }
        self.catchers +=
            bytes.windows(4).filter(|bytes| EYE_CATCHERS.iter().any(|eyes| eyes == bytes)).count();
    }
}

/// The role of one who sees all packets of its network namespace, and is asked for them once.
pub(crate) fn capture() {
    let all = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
    let mut socket = Socket::new(Domain::PACKET, Type::RAW, Some(all)).expect("a packet socket");
    set_socket_recv_buffer_size_force(&socket, BUFFER).expect("a large buffer");
    socket.set_read_timeout(Some(SILENCE)).expect("a timeout");
    tell("capturing");
    let (asked, asks) = channel();
    std::thread::spawn(move || {
        next_word();
        let _ = asked.send(());
    });
    let mut wire = Wire::default();
    let mut frame = vec![0; 1 << 17];
    let mut wanted = false;
    loop {
        wanted |= asks.try_recv().is_ok();
        match socket.read(&mut frame) {
            Ok(length) => {
                wire.take(&frame[..length]);
            }
            Err(_) if wanted => break,
            Err(_) => {}
        }
    }
    for ((source, destination), flow) in &wire.flows {
        tell(&format!("{source}|{destination}|{}|{}", flow.bytes.len(), flow.verdict()));
    }
    tell(&format!("eye catchers: {}", wire.catchers));
}

/// What a capture has seen: bytes of each direction, source first.
pub(crate) struct Seen(BTreeMap<(SocketAddr, SocketAddr), u64>);

impl Seen {
    /// Ends the capture. Whatever it has seen was exactly what an application had sent, and no eye
    /// catcher.
    #[track_caller]
    pub(crate) fn by(capture: Actor) -> Self {
        Self::judged(capture).unwrap_or_else(|wrong| panic!("{wrong}"))
    }

    fn judged(mut capture: Actor) -> Result<Self, String> {
        capture.say("enough");
        let mut flows = BTreeMap::new();
        let mut wrong = Vec::new();
        loop {
            let said = capture.hear();
            let words: Vec<&str> = said.split('|').collect();
            let [source, destination, length, verdict] = words[..] else {
                if said != NO_CATCHERS {
                    wrong.push(said);
                }
                return if wrong.is_empty() { Ok(Self(flows)) } else { Err(wrong.join(", ")) };
            };
            if verdict != "exact" {
                wrong.push(format!("from {source} to {destination}: {verdict}"));
            }
            let address = |word: &str| word.parse().expect("an address");
            flows.insert((address(source), address(destination)), length.parse().expect("a number"));
        }
    }

    /// TCP carried what this end has given to and taken from it, and not a byte more.
    #[track_caller]
    pub(crate) fn agrees_with(&self, end: &Report) {
        assert_eq!(self.length(end.local, end.peer), end.tcp_written, "sent over TCP by {end:?}");
        assert_eq!(self.length(end.peer, end.local), end.tcp_read, "received over TCP by {end:?}");
    }

    /// How much went this way. This namespace may itself have translated one of the addresses.
    #[track_caller]
    fn length(&self, source: SocketAddr, destination: SocketAddr) -> u64 {
        let only = |fits: &dyn Fn(&(SocketAddr, SocketAddr)) -> bool| {
            let mut all = self.0.iter().filter(|(ends, _)| fits(ends));
            all.next().filter(|_| all.next().is_none()).map(|(_, length)| *length)
        };
        only(&|ends| *ends == (source, destination))
            .or_else(|| only(&|ends| ends.0 == source))
            .or_else(|| only(&|ends| ends.1 == destination))
            .unwrap_or_else(|| panic!("nothing from {source} to {destination} on the wire: {:?}", self.0))
    }
}

/// Whoever looks at the wire sees what is foreign there, wherever it is.
#[test]
fn a_foreign_byte_is_seen() {
    isolated("wire::a_foreign_byte_is_seen", || {
        let sequence = Sequence { side: Side::Client, network: 0, seed: 7 };
        let sent = sequence.bytes(0, 50_000);
        let with = |at: usize, bytes: &[u8]| [&sent[..at], bytes, &sent[at..]].concat();
        let foreign = [
            (sent.clone(), None),
            (with(50_000, &[0x7f]), Some("a foreign byte at 50000")),
            (with(20_000, &[1]), Some("a foreign byte at 20000")),
            (with(0, b"x"), Some("begins with")),
            (with(30_000, &EYE_CATCHERS[0]), Some("eye catchers: ")),
            (with(50_000, &EYE_CATCHERS[1]), Some("eye catchers: ")),
        ];
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        for (bytes, wrong) in foreign {
            let mut capture = Actor::start(&["env"], "capture");
            capture.hear();
            let mut stream = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
            stream.write_all(&bytes).expect("write");
            drop(stream);
            let mut got = Vec::new();
            listener.accept().expect("accept").0.read_to_end(&mut got).expect("read");
            match (Seen::judged(capture), wrong) {
                (Ok(seen), None) => assert!(seen.0.values().any(|length| *length == sent.len() as u64)),
                (Err(said), Some(words)) => assert!(said.contains(words), "{said}, not {words}"),
                (seen, wrong) => panic!("{:?}, not {wrong:?}", seen.map(|seen| seen.0)),
            }
        }
    });
}
