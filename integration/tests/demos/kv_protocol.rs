//! What `kv` answers to bytes: the same as a redis-server, and clear errors for what is no RESP2.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::thread;

use tempfile::TempDir;

use crate::demo::{Demo, Device, ask, plain, until};
use crate::program::{self, Program};

fn server(device: &Device, options: &[&str]) -> (Demo, SocketAddr) {
    device.serve("kv", &[&["serve", "127.0.0.1:0"], options].concat())
}

fn text(answer: Vec<u8>) -> String {
    String::from_utf8(answer).unwrap()
}

fn redis_server(dir: &TempDir) -> Program {
    let path = program::find("redis-server", None, "redis-server");
    Program::start("Ready to accept connections", |port| {
        let mut command = program::command(&path, None);
        let port = port.to_string();
        command.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no", "--dir"]);
        command.arg(dir.path());
        command
    })
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A command that kv knows, not always with arguments that make sense.
    fn command(&mut self) -> Vec<Vec<u8>> {
        let name = self.of(&[
            "GET", "get", "SET", "SET", "SET", "SETEX", "PSETEX", "DEL", "EXISTS", "INCR", "INCRBY", "DECR",
            "DECRBY", "MGET", "MSET", "EXPIRE", "PEXPIRE", "TTL", "PING", "ECHO", "DBSIZE", "SELECT",
            "FLUSHDB",
        ]);
        let mut words = vec![name.as_bytes().to_vec()];
        let most = match name {
            "FLUSHDB" => self.below(30) / 29,
            // A redis-server knows options here.
            "EXPIRE" | "PEXPIRE" => self.below(3),
            _ => self.below(6),
        };
        for position in 0..most {
            words.push(match self.below(10) {
                0 => vec![b'x'; self.below(3000) as usize],
                1 => (0..self.below(20)).map(|_| self.below(256) as u8).collect(),
                2 if position > 1 => self.of(&["EX", "px", "nx", "XX", "KEEPTTL"]).into(),
                3 | 4 if position > 0 => self
                    .of(&[
                        "0",
                        "-7",
                        "700000",
                        "900000",
                        "9223372036854775807",
                        "-9223372036854775808",
                        "1.5",
                        "+1",
                    ])
                    .into(),
                _ => self.of(&["a", "b", "c", "d", "e"]).into(),
            });
        }
        words
    }
}

fn encode(words: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The answers in `bytes`, in their order.
fn answers(bytes: &[u8]) -> Vec<&[u8]> {
    fn line(bytes: &[u8]) -> usize {
        bytes.windows(2).position(|pair| pair == b"\r\n").expect("a whole line") + 2
    }
    fn one(bytes: &[u8]) -> usize {
        let end = line(bytes);
        let number = || std::str::from_utf8(&bytes[1..end - 2]).unwrap().parse::<i64>().unwrap();
        match bytes[0] {
            b'+' | b'-' | b':' => end,
            b'$' => end + if number() < 0 { 0 } else { number() as usize + 2 },
            b'*' => (0..number()).fold(end, |at, _| at + one(&bytes[at..])),
            other => panic!("an answer that begins with {other}"),
        }
    }
    let mut rest = bytes;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (answer, after) = rest.split_at(one(rest));
        found.push(answer);
        rest = after;
    }
    found
}

fn seconds(answer: &[u8]) -> i64 {
    std::str::from_utf8(&answer[1..]).unwrap().trim_end().parse().unwrap()
}

#[test]
fn it_answers_as_a_redis_server_does() {
    let device = Device::new();
    let (_server, addr) = server(&device, &[]);
    let dir = TempDir::new().unwrap();
    let redis = redis_server(&dir);
    let mut dice = Dice(20_261_125);
    for round in 0..40 {
        let commands: Vec<_> = (0..250).map(|_| dice.command()).collect();
        let pipeline: Vec<u8> = commands.iter().flat_map(|words| encode(words)).collect();
        let (ours, theirs) = (ask(addr, &pipeline), ask(redis.addr, &pipeline));
        let (ours, theirs) = (answers(&ours), answers(&theirs));
        assert_eq!((ours.len(), theirs.len()), (commands.len(), commands.len()), "round {round}");
        for ((ours, theirs), command) in ours.into_iter().zip(theirs).zip(&commands) {
            let same = match &command[0][..] {
                // The words of an error are free.
                _ if ours[0] == b'-' => theirs[0] == b'-',
                // The servers do not look at the same moment; all lifetimes differ by more than
                // this.
                b"TTL" if theirs[0] == b':' => seconds(ours).abs_diff(seconds(theirs)) < 100,
                _ => ours == theirs,
            };
            let words: Vec<_> = command.iter().map(|word| word.escape_ascii().to_string()).collect();
            let (ours, theirs) = (ours.escape_ascii(), theirs.escape_ascii());
            assert!(same, "round {round}, {}:\n kv {ours}\n redis {theirs}", words.join(" "));
        }
    }
}

#[test]
fn what_is_no_resp_is_refused_in_words() {
    let device = Device::new();
    let (_server, addr) = server(&device, &[]);
    let cases: [(&[u8], &str); 12] = [
        (b"*1\r\n:4\r\n", "expected '$', got ':'"),
        (b"*x\r\n", "invalid multibulk length"),
        (b"*1\n$4\r\nPING\r\n", "invalid multibulk length"),
        (b"*2000000000\r\n", "invalid multibulk length"),
        (b"*1\r\n$99999999999\r\n", "invalid bulk length"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$+4\r\nPING\r\n", "invalid bulk length"),
        (b"*1\r\n$1\r\nabcdef", "does not end with CR LF"),
        (b"*1111111111111111111111111111111", "too big count string"),
        (b"GET \"quoted\"\r\n", "quotes"),
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\nFLUSHDB\r\n", "not of HTTP"),
        (&[b'x'; 20_000], "too big inline request"),
    ];
    for (bytes, complaint) in cases {
        let answer = text(ask(addr, &[b"PING\r\n", bytes].concat()));
        let expected = format!("+PONG\r\n-ERR Protocol error: {complaint}");
        let (start, words) =
            (answer.starts_with("+PONG\r\n-ERR Protocol error: "), answer.contains(complaint));
        assert!(start && words, "{}: {answer:?} is not {expected:?}", bytes.escape_ascii());
        assert_eq!(answer.matches('\n').count(), 2, "nothing after the error: {answer:?}");
    }
    // A request that is too large as a whole, of arguments that are not.
    let mut stream = plain(addr);
    stream.write_all(b"*4\r\n").unwrap();
    let writer = stream.try_clone().unwrap();
    let large = thread::spawn(move || {
        let mut writer = writer;
        for _ in 0..4 {
            // The server may close in the middle of it.
            let _ = writer.write_all(format!("${}\r\n", 30 << 20).as_bytes());
            let _ = writer.write_all(&vec![0; 30 << 20]);
            let _ = writer.write_all(b"\r\n");
        }
    });
    let mut answer = [0; 33];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"-ERR Protocol error: too big requ");
    drop(stream);
    large.join().unwrap();
    // And the server goes on.
    assert_eq!(ask(addr, b"*0\r\n\r\n*-1\r\nPING\r\nPING x\n"), b"+PONG\r\n$1\r\nx\r\n");
}

#[test]
fn every_division_into_reads_is_the_same_request() {
    let device = Device::new();
    let (_server, addr) = server(&device, &[]);
    let mut stream = plain(addr);
    let value: Vec<u8> = (0..300_u32).map(|at| at as u8).collect();
    let set = encode(&[b"SET".to_vec(), b"k\r\n\0".to_vec(), value.clone()]);
    for byte in set.chunks(1) {
        stream.write_all(byte).unwrap();
    }
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+OK\r\n");
    let get = encode(&[b"GET".to_vec(), b"k\r\n\0".to_vec()]);
    assert_eq!(ask(addr, &get), [b"$300\r\n", &value[..], b"\r\n"].concat());
}

#[test]
fn large_values_and_long_pipelines_arrive_whole() {
    let device = Device::new();
    let (_server, addr) = server(&device, &[]);
    let value: Vec<u8> = (0..20_000_003_u32).map(|at| (at ^ (at >> 9)) as u8).collect();
    let set = encode(&[b"SET".to_vec(), b"large".to_vec(), value.clone()]);
    assert_eq!(ask(addr, &set), b"+OK\r\n");
    let get = encode(&[b"GET".to_vec(), b"large".to_vec()]);
    let answer = ask(addr, &get.repeat(3));
    let one = [b"$20000003\r\n", &value[..], b"\r\n"].concat();
    assert!(answer == one.repeat(3), "{} bytes", answer.len());
    // Answers of one pipeline that are far more than what is written at once.
    let (count, mut stream) = (20_000, plain(addr));
    let mut writer = stream.try_clone().unwrap();
    let writing = thread::spawn(move || {
        writer.write_all(&encode(&[b"ECHO".to_vec(), vec![b'e'; 1000]]).repeat(count)).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    writing.join().unwrap();
    let one = [&b"$1000\r\n"[..], &[b'e'; 1000], b"\r\n"].concat();
    assert!(answer == one.repeat(count), "{} bytes", answer.len());
}

#[test]
fn its_limits_are_said() {
    let device = Device::new();
    let (_server, addr) = server(&device, &["--max-memory-mib=16", "--max-clients=2"]);
    let set = encode(&[b"SET".to_vec(), b"key".to_vec(), vec![0; 600_000]]);
    assert_eq!(ask(addr, &set), b"+OK\r\n");
    let larger = encode(&[b"SET".to_vec(), b"key".to_vec(), vec![0; 1_100_000]]);
    let answer = text(ask(addr, &larger));
    assert!(answer.starts_with("-OOM ") && answer.contains("--max-memory-mib"), "{answer}");
    assert_eq!(ask(addr, b"DEL key\r\nDBSIZE\r\nSET key 1\r\n"), b":1\r\n:0\r\n+OK\r\n");

    let (mut first, mut second) = (plain(addr), plain(addr));
    for stream in [&mut first, &mut second] {
        stream.write_all(b"PING\r\n").unwrap();
        let mut pong = [0; 7];
        stream.read_exact(&mut pong).unwrap();
        assert_eq!(&pong, b"+PONG\r\n");
    }
    assert_eq!(ask(addr, b"PING\r\n"), b"-ERR max number of clients reached\r\n");
}

#[test]
fn keys_expire() {
    let device = Device::new();
    let (_server, addr) = server(&device, &[]);
    assert_eq!(ask(addr, b"SET short x PX 1\r\nSET long x EX 1000\r\nSET both x\r\n"), b"+OK\r\n".repeat(3));
    until("a key expires", || ask(addr, b"GET short\r\n") == b"$-1\r\n");
    assert_eq!(ask(addr, b"TTL short\r\nTTL both\r\n"), b":-2\r\n:-1\r\n");
    let lives = || (1..=1000).contains(&seconds(&ask(addr, b"TTL long\r\n")));
    assert!(lives());
    assert_eq!(ask(addr, b"EXPIRE both 0\r\nEXISTS both long\r\n"), b":1\r\n:1\r\n");
    // Also what nobody asks for goes after a while.
    assert_eq!(ask(addr, b"PSETEX unseen 1 x\r\n"), b"+OK\r\n");
    until("the sweep", || ask(addr, b"DBSIZE\r\n") == b":1\r\n");
    // A new value takes the deadline away, and KEEPTTL does not.
    assert_eq!(ask(addr, b"SET long y KEEPTTL\r\n"), b"+OK\r\n");
    assert!(lives());
    assert_eq!(ask(addr, b"SET long z\r\nTTL long\r\n"), b"+OK\r\n:-1\r\n");
}
