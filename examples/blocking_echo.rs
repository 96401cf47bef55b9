//! Echo without a runtime: `blocking_echo serve 127.0.0.1:7007`, then `blocking_echo say
//! 127.0.0.1:7007 hello`.
//!
//! Both ends print what their connection runs on. Either of them may also be another program: one
//! of tokio's with `tokio_smc::SmcStream`, or a plain one such as nc(1), with which it stays TCP.

use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

use clap::{Parser, Subcommand};
use tokio_smc::blocking::{SmcListener, SmcStream};

#[derive(Parser)]
#[command(about = "Echoes lines, over shared memory where both ends are on this host")]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Sends every line back, one thread for each connection.
    Serve { addr: SocketAddr },
    /// Sends a line again and again, and prints what came back last.
    Say {
        addr: SocketAddr,
        line: String,
        /// How often.
        #[arg(long, default_value_t = 1000)]
        times: u32,
    },
}

fn main() -> io::Result<()> {
    match Arguments::parse().role {
        Role::Serve { addr } => serve(addr),
        Role::Say { addr, line, times } => say(addr, &line, times),
    }
}

fn serve(addr: SocketAddr) -> io::Result<()> {
    let listener = SmcListener::bind(addr)?;
    writeln!(io::stdout(), "listening on {} (Ctrl-C ends it)", listener.local_addr()?)?;
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || -> io::Result<()> {
            let mut out = io::stdout();
            if let Err(error) = echo(&stream) {
                writeln!(out, "a connection failed: {error}")?;
            }
            writeln!(out, "served a connection on {}", stream.transport())
        });
    }
    Ok(())
}

fn echo(stream: &SmcStream) -> io::Result<()> {
    // Reading and writing need no second handle: both work on a shared stream.
    let mut lines = BufReader::new(stream);
    let mut writer = stream;
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        writer.write_all(&line)?;
        line.clear();
    }
    Ok(())
}

fn say(addr: SocketAddr, line: &str, times: u32) -> io::Result<()> {
    let stream = SmcStream::connect(addr)?;
    let mut answers = BufReader::new(&stream);
    let mut answer = String::new();
    let sent = format!("{line}\n");
    let began = Instant::now();
    for _ in 0..times {
        (&stream).write_all(sent.as_bytes())?;
        answer.clear();
        if answers.read_line(&mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let each = began.elapsed() / times.max(1);
    let (answer, transport) = (answer.trim_end(), stream.transport());
    writeln!(io::stdout(), "{answer} ({times} times, {each:?} each, on {transport})")
}
