//! The server process: answers, echoes, and verifies and times what it is sent.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_smc::SmcListener;

use crate::cli::ProcessOptions;
use crate::cpu;
use crate::failure::{Explain, Outcome};
use crate::machine;
use crate::medium::{Door, Medium, Uds};
use crate::pattern::{BLOCK, Pattern};
use crate::wire::{self, FRAME, LONGEST_MESSAGE, Report, Request};

/// How long a server that found an error waits for the client to take notice of it.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// What every connection is served with.
struct Shared {
    pattern: Pattern,
    hello: Value,
}

pub(crate) fn serve(addr: &str, options: &ProcessOptions) -> Outcome<()> {
    let runtime = options.runtime.build().explain(|| "starting the runtime".to_owned())?;
    runtime.block_on(async {
        let tcp = TcpListener::bind(addr).await.explain(|| format!("listening on {addr}"))?;
        let local = tcp.local_addr().explain(|| "the address of the listener".to_owned())?;
        let smc = SmcListener::bind_with((local.ip(), 0), &options.config())
            .await
            .explain(|| format!("listening for SMC on {}", local.ip()))?;
        let smc_addr = smc.local_addr().explain(|| "the address of the SMC listener".to_owned())?;
        let uds = Uds(format!("smcperf-{}-{}", std::process::id(), local.port()));
        let unix = uds.bind().explain(|| format!("listening on the unix socket @{}", uds.0))?;

        let hello = json!({
            "smc_port": smc_addr.port(), "uds_name": uds.0,
            "runtime": machine::runtime(), "busy_poll": options.busy_poll_words(),
        });
        let shared = Arc::new(Shared { pattern: Pattern::new(), hello });
        tokio::spawn(welcome(tcp, Arc::clone(&shared)));
        tokio::spawn(welcome(smc, Arc::clone(&shared)));
        tokio::spawn(welcome(unix, shared));

        // The parent process reads this line, too.
        writeln!(io::stdout().lock(), "listening on {local} (SMC on {smc_addr}, unix socket @{})", uds.0)
            .explain(|| "writing to standard output".to_owned())?;
        tokio::signal::ctrl_c().await.explain(|| "waiting for an interrupt".to_owned())
    })
}

async fn welcome<D: Door>(door: D, shared: Arc<Shared>) {
    loop {
        match door.accept().await {
            Ok(stream) => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    if let Err(error) = attend::<D::Medium>(stream, &shared).await {
                        // A client that goes away says itself why, if there is something to say.
                        if !matches!(
                            error.kind(),
                            io::ErrorKind::ConnectionReset
                                | io::ErrorKind::BrokenPipe
                                | io::ErrorKind::UnexpectedEof
                        ) {
                            complain(&error);
                        }
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: it passes when clients leave.
                complain(&error);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Nobody is left to tell when standard error is gone, too.
fn complain(error: &io::Error) {
    let _ = writeln!(io::stderr().lock(), "smcperf serve: {error}");
}

/// Serves one connection to its end.
async fn attend<M: Medium>(mut stream: M::Stream, shared: &Shared) -> io::Result<()> {
    let mut frame = [0; FRAME];
    while wire::fill(&mut stream, &mut frame).await? {
        let request = Request::decode(&frame)?;
        stream.write_all(&request.answer(M::is_on_ism(&stream))).await?;
        let outcome = match request {
            Request::Ping => continue,
            Request::Hello => {
                wire::send_document(&mut stream, &shared.hello).await?;
                continue;
            }
            Request::Meter { warm_up_us, measured_us } => {
                let span = [warm_up_us, measured_us].map(|micros| Duration::from_micros(micros.into()));
                let usage = cpu::serve(span[0], span[1]).await.map_err(io::Error::other)?;
                wire::send_document(&mut stream, &usage.document()).await?;
                continue;
            }
            Request::Echo { message_bytes } => echo::<M>(&mut stream, message_bytes).await,
            Request::Blocks { warm_up_us, lap } => {
                let check = Blocks { pattern: &shared.pattern, lap: lap.into(), position: 0 };
                receive::<M, _>(&mut stream, check, warm_up_us).await
            }
            Request::Messages { warm_up_us } => {
                let check = Messages { pattern: &shared.pattern, next: 0 };
                receive::<M, _>(&mut stream, check, warm_up_us).await
            }
        };
        let wrong = outcome.is_err();
        if let Err(error) = &outcome {
            complain(error);
        }
        let report = Report::document(outcome.map_err(|error| error.to_string()));
        wire::send_document(&mut stream, &report).await?;
        stream.shutdown().await?;
        if wrong {
            // Unread bytes at a close would reset the connection and the report with it.
            let _ =
                tokio::time::timeout(LAST_WORDS, tokio::io::copy(&mut stream, &mut tokio::io::sink())).await;
        }
        return Ok(());
    }
    Ok(())
}

async fn echo<M: Medium>(stream: &mut M::Stream, message_bytes: u32) -> io::Result<Report> {
    if message_bytes == 0 || message_bytes > LONGEST_MESSAGE {
        return Err(wire::invalid("a message size that is not served"));
    }
    let mut message = vec![0; message_bytes as usize];
    let mut bytes = 0;
    while wire::fill(stream, &mut message).await? {
        stream.write_all(&message).await?;
        bytes += u64::from(message_bytes);
    }
    Ok(report::<M>(stream, bytes, 0, Duration::ZERO))
}

fn report<M: Medium>(stream: &M::Stream, bytes: u64, measured_bytes: u64, time: Duration) -> Report {
    let runs_on = M::runs_on(stream);
    let on_ism = runs_on.is_ism();
    Report { bytes, measured_bytes, nanos: time.as_nanos() as u64, on_ism, why: runs_on.why }
}

/// Verifies a stream piece by piece.
trait Check {
    /// Verifies what it can of `received` and returns how many bytes that was; the rest is offered
    /// again with more.
    fn check(&mut self, received: &[u8]) -> io::Result<usize>;
}

struct Blocks<'a> {
    pattern: &'a Pattern,
    lap: u64,
    position: u64,
}

impl Check for Blocks<'_> {
    fn check(&mut self, received: &[u8]) -> io::Result<usize> {
        self.pattern.check_blocks(self.lap, self.position, received).map_err(|at| {
            wire::invalid(&format!("byte {at} of the stream is lost, changed or out of order"))
        })?;
        self.position += received.len() as u64;
        Ok(received.len())
    }
}

struct Messages<'a> {
    pattern: &'a Pattern,
    next: u64,
}

impl Check for Messages<'_> {
    fn check(&mut self, received: &[u8]) -> io::Result<usize> {
        let mut rest = received;
        while let Some((message, behind)) = rest.split_first_chunk::<FRAME>() {
            if !self.pattern.is_message(self.next, message) {
                let next = self.next;
                return Err(wire::invalid(&format!("message {next} is lost, changed or out of order")));
            }
            self.next += 1;
            rest = behind;
        }
        Ok(received.len() - rest.len())
    }
}

/// Receives to the end of the stream; the clock runs from the end of the warm-up to the last byte.
async fn receive<M: Medium, C: Check>(
    stream: &mut M::Stream,
    mut check: C,
    warm_up_us: u32,
) -> io::Result<Report> {
    let warm_up = Duration::from_micros(warm_up_us.into());
    let mut buffer = vec![0; BLOCK];
    let (mut filled, mut bytes) = (0, 0);
    let mut first = None;
    let mut begin = None;
    loop {
        let received = stream.read(&mut buffer[filled..]).await?;
        if received == 0 {
            break;
        }
        filled += received;
        let used = check.check(&buffer[..filled])?;
        bytes += used as u64;
        buffer.copy_within(used..filled, 0);
        filled -= used;
        if begin.is_none() {
            let now = Instant::now();
            let (start, _) = *first.get_or_insert((now, bytes));
            begin = (now - start >= warm_up).then_some((now, bytes));
        }
    }
    let end = Instant::now();
    if filled > 0 {
        return Err(wire::invalid("the stream ended within a message"));
    }
    let Some((start, before)) = begin.or(first) else {
        return Err(wire::invalid("the stream was empty"));
    };
    Ok(report::<M>(stream, bytes, bytes - before, end - start))
}
