//! The two programs that meet in the laboratory: a server, and a client that makes the connections.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_smc::{Config, SmcListener, SmcStream, UpgradePolicy};

use crate::actor::{PATIENCE, role, tell};
use crate::limit::{Filler, impose};
use crate::talk::{Kind, Ledger, Wish, answer, ask};
use crate::watchdog::Flavour;

/// What both programs have.
#[derive(Clone)]
struct Program {
    ledger: Ledger,
    wish: watch::Sender<Wish>,
    /// Descriptors that only fill the table.
    filler: Filler,
    /// Memory that only fills the address space.
    load: Arc<Mutex<Vec<Vec<u8>>>>,
    /// The numbers of connections that were opened so far.
    opened: Arc<Mutex<u64>>,
    /// Where the server listens.
    at: Arc<Mutex<String>>,
}

/// Becomes the program this process was started for, if it was.
pub(crate) fn run() {
    let Some((role, limit)) = role() else { return };
    let cheap = role.contains("cheap");
    let flavour = if cheap { Flavour::CurrentThread } else { Flavour::MultiThread };
    let runtime = flavour.runtime();
    let program = Program {
        ledger: Ledger::default(),
        wish: watch::channel(Wish::default()).0,
        filler: Filler::default(),
        load: Arc::default(),
        opened: Arc::default(),
        at: Arc::default(),
    };
    let words: Vec<&str> = role.split(' ').collect();
    match words[..] {
        ["server"] => runtime.block_on(server(program, limit)),
        [_, to, first] => {
            *program.opened.lock().expect("no panic") = first.parse().expect("a number");
            runtime.block_on(client(program, to.parse().expect("an address"), limit));
        }
        _ => panic!("no role {role}"),
    }
}

async fn server(program: Program, limit: Option<String>) {
    // The port is taken first, so that a limit meets what the library does with it.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.set_nonblocking(true).expect("set_nonblocking");
    let addr = listener.local_addr().expect("an address");
    let words = begin(&program, limit);
    let listener = SmcListener::from_std(listener).expect("a listener");
    let (wish, ledger) = (program.wish.clone(), program.ledger.clone());
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(answer(stream, wish.subscribe(), ledger.clone()));
                }
                // No descriptor: as every server does, it tries again.
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        }
    });
    *program.at.lock().expect("no panic") = addr.to_string();
    tell("ready", &addr.to_string());
    obey(program, None, words).await;
}

async fn client(program: Program, to: SocketAddr, limit: Option<String>) {
    let words = begin(&program, limit);
    tell("ready", "ok");
    obey(program, Some(to), words).await;
}

/// What is no matter of the library comes first, then the limit. The parent's words.
fn begin(program: &Program, limit: Option<String>) -> mpsc::UnboundedReceiver<String> {
    let (send, words) = mpsc::unbounded_channel();
    // It sits in one read: an idle program makes no system call.
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            send.send(line).expect("the program runs");
        }
    });
    if let Some(limit) = limit {
        impose(&limit, &program.filler).expect("the limit");
    }
    words
}

/// Answers the parent's words until it is gone. Each is a task of its own: a limit may come while
/// something runs.
async fn obey(program: Program, to: Option<SocketAddr>, mut words: mpsc::UnboundedReceiver<String>) {
    while let Some(line) = words.recv().await {
        let program = program.clone();
        tokio::spawn(async move {
            let answer = heed(&program, to, &line).await;
            tell(line.split(' ').next().expect("a word"), &answer.unwrap_or_else(|error| error));
        });
    }
    std::process::exit(0);
}

async fn heed(program: &Program, to: Option<SocketAddr>, line: &str) -> Result<String, String> {
    let words: Vec<&str> = line.split(' ').collect();
    let number = |word: &str| word.parse::<u64>().expect("a number");
    match words[..] {
        ["limit", ..] => impose(line.split_once(' ').expect("words").1, &program.filler)?,
        ["open", count] => open(program, to, number(count), Kind::Talk, &Config::from_env()).await?,
        ["pull", count] => open(program, to, number(count), Kind::Pull, &Config::from_env()).await?,
        ["push", count] => open(program, to, number(count), Kind::Push, &Config::from_env()).await?,
        // Connections that are not upgraded before they are told to be.
        ["hold", count] => {
            let config = Config::from_env().upgrade_policy(UpgradePolicy::Manual);
            open(program, to, number(count), Kind::Talk, &config).await?;
        }
        ["settle"] => program.ledger.settle().await?,
        ["ring", count] => program.ledger.on_the_ring(number(count) as usize).await?,
        ["burst", bytes] => {
            let mut number_of_it = 0;
            program.wish.send_modify(|wish| {
                wish.burst = (wish.burst.0 + 1, number(bytes));
                number_of_it = wish.burst.0;
            });
            program.ledger.burst_is_over(number_of_it).await?;
        }
        ["upgrade"] => {
            program.wish.send_modify(|wish| wish.upgrade = true);
            program.ledger.all_asked().await?;
        }
        ["finish"] => program.wish.send_modify(|wish| wish.finish = true),
        ["ended"] => program.ledger.all_ended().await?,
        ["again"] => {
            program.ledger.forget();
            program.wish.send_replace(Wish::default());
        }
        ["load", bytes] => {
            let mut load: Vec<u8> = Vec::new();
            load.try_reserve_exact(number(bytes) as usize).map_err(|error| error.to_string())?;
            program.load.lock().expect("no panic").push(load);
        }
        ["where"] => return Ok(program.at.lock().expect("no panic").clone()),
        ["report"] => return Ok(program.ledger.report().to_line()),
        ["abort", dir] => {
            std::env::set_current_dir(dir).map_err(|error| error.to_string())?;
            std::process::abort();
        }
        _ => return Err("no such word".to_owned()),
    }
    Ok("ok".to_owned())
}

/// Makes connections one after the other; each talks at once.
async fn open(
    program: &Program,
    to: Option<SocketAddr>,
    count: u64,
    kind: Kind,
    config: &Config,
) -> Result<(), String> {
    let to = to.ok_or("a server connects to nobody")?;
    for _ in 0..count {
        let connecting = timeout(PATIENCE, SmcStream::connect_with(to, config)).await;
        let stream = connecting.map_err(|_| "connect hangs")?.map_err(|error| format!("connect: {error}"))?;
        stream.set_nodelay(true).map_err(|error| format!("set_nodelay: {error}"))?;
        let id = {
            let mut opened = program.opened.lock().expect("no panic");
            *opened += 1;
            *opened - 1
        };
        program.ledger.enter(id, stream.info());
        tokio::spawn(ask(stream, kind, id, program.wish.subscribe(), program.ledger.clone()));
    }
    Ok(())
}
