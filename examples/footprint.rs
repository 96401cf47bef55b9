//! What connections take of a machine: address space, memory, page tables and descriptors, of the
//! server and of a client, on TCP and on loopback-ism.
//!
//!     cargo run --release --example footprint

#[path = "../tests/support/footprint.rs"]
mod footprint;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, ContentArrangement, Table};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::{SmcListener, SmcStream};

use footprint::Footprint;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Client processes beyond the first one.
const PEERS: u64 = 8;
const IDLE: u64 = 1000;
const GROWN: u64 = 16;
/// What a connection whose ring shall grow is sent: more than any ring or socket takes.
const FLOOD: usize = 64 << 20;
/// How long nothing happens, so that what is given back after a while is given back.
const REST: Duration = Duration::from_secs(25);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] => {
            for (title, switch) in [("TCP (SMC_LO=off)", "off"), ("loopback-ism", "on")] {
                let mut stdout = std::io::stdout();
                writeln!(stdout, "{title}\n{}\n", measure(switch)?)?;
            }
            Ok(())
        }
        ["serve"] => runtime()?.block_on(serve()),
        ["hold", to] => runtime()?.block_on(hold(to)),
        _ => Err("usage: footprint (without arguments)".into()),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

// ---- the measuring process ----

/// Another process, which does what it is told by a line and answers with one.
struct Actor {
    process: Child,
    words: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Actor {
    fn start(role: &[&str], switch: &str, device: &std::path::Path) -> Result<Actor> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(role)
            .env("SMC_LO", switch)
            .env("SMC_LO_DIR", device)
            .env("SMC_LO_UPGRADE", "eager")
            // One heap: another allocator's reserves are no matter of this library.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let words = process.stdin.take().ok_or("no pipe")?;
        let answers = BufReader::new(process.stdout.take().ok_or("no pipe")?);
        Ok(Actor { process, words, answers })
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.answers.read_line(&mut line)? {
            0 => Err("a process ended without an answer".into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    fn tell(&mut self, words: &str) -> Result<()> {
        writeln!(self.words, "{words}")?;
        let answer = self.hear()?;
        if answer == "ok" { Ok(()) } else { Err(answer.into()) }
    }

    fn footprint(&self) -> Result<Footprint> {
        Ok(Footprint::of(self.process.id())?)
    }

    /// Its footprint when it does not change any more.
    fn settled(&self) -> Result<Footprint> {
        let began = Instant::now();
        let mut before = self.footprint()?;
        loop {
            sleep(Duration::from_millis(300));
            let now = self.footprint()?;
            if now == before || began.elapsed() > Duration::from_secs(20) {
                return Ok(now);
            }
            before = now;
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Rows(Table);

impl Rows {
    fn new() -> Rows {
        let mut table = Table::new();
        let titles = [
            "",
            "process",
            "address space",
            "resident",
            "of it shared",
            "memory files",
            "page tables",
            "descriptors",
        ];
        table
            .load_preset(comfy_table::presets::ASCII_MARKDOWN)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(titles);
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        Rows(table)
    }

    /// What each of `count` things took between two readings.
    fn add(&mut self, what: &str, process: &str, before: Footprint, after: Footprint, count: u64) {
        let each = |before: u64, after: u64| (after as f64 - before as f64) / count as f64;
        let size = |before, after| match each(before, after) {
            kib if kib.abs() >= 10_240.0 => format!("{:.1} MiB", kib / 1024.0),
            kib => format!("{kib:.1} KiB"),
        };
        self.0.add_row([
            what.to_owned(),
            process.to_owned(),
            size(before.address_space, after.address_space),
            size(before.resident, after.resident),
            size(before.shared, after.shared),
            size(before.mapped, after.mapped),
            size(before.page_tables, after.page_tables),
            format!("{:.2}", each(before.descriptors, after.descriptors)),
        ]);
    }
}

fn measure(switch: &str) -> Result<Table> {
    let device = tempfile::tempdir()?;
    let mut rows = Rows::new();
    let mut server = Actor::start(&["serve"], switch, device.path())?;
    let to = server.hear()?;
    let client = || -> Result<Actor> {
        let mut client = Actor::start(&["hold", &to], switch, device.path())?;
        match client.hear()?.as_str() {
            "ready" => Ok(client),
            other => Err(other.to_owned().into()),
        }
    };
    let empty = Footprint::default();
    let bare = server.settled()?;
    rows.add("listening, no connection", "server", empty, bare, 1);

    let mut first = client()?;
    let bare_client = first.settled()?;
    rows.add("no connection", "client", empty, bare_client, 1);
    first.tell("open 1")?;
    let (one, one_client) = (server.settled()?, first.settled()?);
    rows.add("the first connection", "server", bare, one, 1);
    rows.add("the first connection", "client", bare_client, one_client, 1);

    let mut others = Vec::new();
    for _ in 0..PEERS {
        let mut other = client()?;
        other.tell("open 1")?;
        others.push(other);
    }
    let crowd = server.settled()?;
    rows.add("a peer process, one connection", "server", one, crowd, PEERS);

    first.tell(&format!("open {IDLE}"))?;
    let (idle, idle_client) = (server.settled()?, first.settled()?);
    rows.add("an idle connection", "server", crowd, idle, IDLE);
    rows.add("an idle connection", "client", one_client, idle_client, IDLE);

    first.tell(&format!("flood {GROWN}"))?;
    let (grown, grown_client) = (server.settled()?, first.settled()?);
    rows.add("a connection with a full ring", "server", idle, grown, GROWN);
    rows.add("a connection with a full ring", "client", idle_client, grown_client, GROWN);

    first.tell(&format!("drain {GROWN}"))?;
    // Rings shrink some ten seconds after their last use, and unused links close.
    sleep(REST);
    let (again, again_client) = (server.settled()?, first.settled()?);
    rows.add("the same, idle again", "server", idle, again, GROWN);
    rows.add("the same, idle again", "client", idle_client, again_client, GROWN);

    drop(others);
    first.tell("close")?;
    drop(first);
    sleep(REST);
    rows.add("all connections gone", "server", bare, server.settled()?, 1);
    Ok(rows.0)
}

// ---- the measured ones ----

fn say(answer: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{answer}")?;
    Ok(stdout.flush()?)
}

async fn serve() -> Result<()> {
    let listener = SmcListener::bind("127.0.0.1:0").await?;
    say(&listener.local_addr()?.to_string())?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(answer(stream));
    }
}

/// `p` is answered, `f` floods.
async fn answer(mut stream: SmcStream) -> Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    loop {
        match stream.read_u8().await? {
            b'p' => stream.write_u8(b'p').await?,
            _ => {
                for _ in 0..FLOOD / ZEROS.len() {
                    stream.write_all(&ZEROS).await?;
                }
            }
        }
    }
}

async fn hold(to: &str) -> Result<()> {
    let mut streams = Vec::new();
    // Words come on a thread of their own, which sits in one read.
    let (send, mut words) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(std::result::Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    say("ready")?;
    while let Some(line) = words.recv().await {
        let (word, count) = line.split_once(' ').unwrap_or((&line, "0"));
        let done = obey(&mut streams, to, word, count.parse()?).await;
        say(&done.map_or_else(|error| error.to_string(), |()| "ok".to_owned()))?;
    }
    Ok(())
}

async fn obey(streams: &mut Vec<SmcStream>, to: &str, word: &str, count: usize) -> Result<()> {
    match word {
        "open" => {
            for _ in 0..count {
                let mut stream = SmcStream::connect(to).await?;
                stream.set_nodelay(true)?;
                let transport = stream.upgrade().await;
                if std::env::var("SMC_LO")? == "on" && !transport.is_loopback_ism() {
                    return Err(format!("no upgrade: {:?}", transport.fallback_reason()).into());
                }
                ping(&mut stream).await?;
                streams.push(stream);
            }
        }
        "flood" => {
            for stream in &mut streams[..count] {
                stream.write_u8(b'f').await?;
            }
        }
        "drain" => {
            let mut buf = vec![0; 64 << 10];
            for stream in &mut streams[..count] {
                let mut rest = FLOOD;
                while rest > 0 {
                    let room = rest.min(buf.len());
                    rest -= match stream.read(&mut buf[..room]).await? {
                        0 => return Err("an end before the end".into()),
                        n => n,
                    };
                }
                ping(stream).await?;
            }
        }
        "close" => streams.clear(),
        _ => return Err("no such word".into()),
    }
    Ok(())
}

async fn ping(stream: &mut SmcStream) -> Result<()> {
    for _ in 0..3 {
        stream.write_u8(b'p').await?;
        stream.read_u8().await?;
    }
    Ok(())
}
