//! Connections: read what is there, answer every complete request of it with one write.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use clap::Args;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_smc::{SmcListener, SmcStream, TransportWatch};

use crate::command::{self, Flow};
use crate::resp::{self, Parser};
use crate::store::Store;
use crate::{Outcome, bench};

/// Room for the next read at least, and at most unless one argument needs more.
const SMALLEST_READ: usize = 8 << 10;
const LARGEST_READ: usize = 256 << 10;
/// Answers are written when there is so much of them, also when more requests have been read.
const MOST_ANSWERS: usize = 256 << 10;
/// Larger buffers are given back when they are empty.
const KEPT_BUFFER: usize = 1 << 20;
/// For how long connections may finish what they are doing at the end.
const GRACE: Duration = Duration::from_secs(3);

#[derive(Args)]
pub(crate) struct Options {
    /// Where to listen; port 0 takes a free one. There is no password: stay on a loopback address.
    #[arg(default_value = "127.0.0.1:6399")]
    addr: String,
    /// MiB of keys and values, which are spread over 16 parts of equal size.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..))]
    max_memory_mib: u32,
    /// Connections at the same time.
    #[arg(long, default_value_t = 10_000)]
    max_clients: usize,
    /// End with standard input.
    #[arg(long, hide = true)]
    tethered: bool,
}

/// What all connections share.
pub(crate) struct Server {
    pub(crate) store: Store,
    started: Instant,
    clients: Mutex<Clients>,
}

#[derive(Default)]
struct Clients {
    open: BTreeMap<u64, Client>,
    accepted: u64,
    requests: u64,
}

struct Client {
    peer: SocketAddr,
    since: Instant,
    watch: TransportWatch,
    /// Dropping it ends the connection when it is idle.
    _stop: oneshot::Sender<()>,
}

/// One connection.
pub(crate) struct Session {
    pub(crate) id: u64,
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lines as CLIENT LIST has them: of one client or of all.
    pub(crate) fn clients(&self, only: Option<u64>) -> String {
        let mut lines = String::new();
        for (id, client) in &self.lock().open {
            if only.is_none_or(|only| only == *id) {
                let (peer, age, on) =
                    (client.peer, client.since.elapsed().as_secs(), client.watch.transport());
                let _ = writeln!(lines, "id={id} addr={peer} age={age} db=0 transport={on}");
            }
        }
        lines
    }

    pub(crate) fn info(&self) -> String {
        let (keys, bytes) = {
            let all = self.store.all();
            (all.len(), all.bytes())
        };
        let clients = self.lock();
        let on_ism =
            clients.open.values().filter(|client| client.watch.transport().is_loopback_ism()).count();
        let (open, accepted) = (clients.open.len(), clients.accepted);
        let (pid, up) = (std::process::id(), self.started.elapsed().as_secs());
        format!(
            "# Server\r\nserver_name:kv\r\nprocess_id:{pid}\r\nuptime_in_seconds:{up}\r\n\r\n\
             # Clients\r\nconnected_clients:{open}\r\nclients_on_loopback_ism:{on_ism}\r\n\
             clients_on_tcp:{}\r\n\r\n\
             # Memory\r\nused_memory_dataset:{bytes}\r\n\r\n\
             # Stats\r\ntotal_connections_received:{accepted}\r\n\r\n\
             # Keyspace\r\ndb0:keys={keys}\r\n",
            open - on_ism
        )
    }
}

pub(crate) async fn serve(options: &Options) -> Outcome<()> {
    let listener =
        SmcListener::bind(&options.addr).await.map_err(|error| format!("{}: {error}", options.addr))?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    if options.tethered {
        bench::end_with_standard_input();
    }
    println!("serving at {} (Ctrl-C ends it)", listener.local_addr()?);
    let server = Arc::new(Server {
        store: Store::new((options.max_memory_mib as usize) << 20),
        started: Instant::now(),
        clients: Mutex::default(),
    });
    let mut sessions = JoinSet::new();
    let mut sweep = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => begin(&server, options.max_clients, stream, peer, &mut sessions),
                Err(error) => {
                    eprintln!("kv: accept: {error}");
                    // Most likely there is no file descriptor left: wait until one is given back.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = sessions.join_next() => {}
            _ = sweep.tick() => server.store.sweep(),
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    drop(listener);
    // Whoever is idle ends now, whoever is writing an answer after it.
    let (accepted, open) = {
        let mut clients = server.lock();
        (clients.accepted, std::mem::take(&mut clients.open).len())
    };
    let _ = tokio::time::timeout(GRACE, async { while sessions.join_next().await.is_some() {} }).await;
    let (cut, requests) = (sessions.len(), server.lock().requests);
    println!("ended: {requests} requests over {accepted} connections, {open} were still open, {cut} cut off");
    Ok(())
}

fn begin(
    server: &Arc<Server>,
    most: usize,
    mut stream: SmcStream,
    peer: SocketAddr,
    sessions: &mut JoinSet<()>,
) {
    let (stop, stopped) = oneshot::channel();
    let session = {
        let mut clients = server.lock();
        clients.accepted += 1;
        let id = clients.accepted;
        if clients.open.len() >= most {
            sessions.spawn(async move {
                let _ = stream.write_all(b"-ERR max number of clients reached\r\n").await;
                let _ = part(&mut stream).await;
            });
            return;
        }
        clients.open.insert(id, Client { peer, since: Instant::now(), watch: stream.watch(), _stop: stop });
        Session { id }
    };
    // One small answer after the other: there is nothing to wait for.
    let _ = stream.set_nodelay(true);
    let server = server.clone();
    sessions.spawn(async move {
        let mut requests = 0;
        // A connection that breaks is its client's matter.
        let _ = converse(&server, &session, &mut stream, stopped, &mut requests).await;
        // Before the client can see the end: then it may count on the place of this connection.
        let mut clients = server.lock();
        clients.open.remove(&session.id);
        clients.requests += requests;
        drop(clients);
        drop(stream);
    });
}

async fn converse(
    server: &Server,
    session: &Session,
    stream: &mut SmcStream,
    mut stopped: oneshot::Receiver<()>,
    requests: &mut u64,
) -> io::Result<()> {
    let mut parser = Parser::default();
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut room = SMALLEST_READ;
    loop {
        // Large arguments get their room bit by bit: a length alone must not take memory.
        let wanted = parser.wanted(&input).min(input.len().max(LARGEST_READ));
        input.reserve(room.max(wanted));
        let read = tokio::select! {
            biased;
            _ = &mut stopped => return Ok(()),
            read = stream.read_buf(&mut input) => read?,
        };
        if read == 0 {
            return Ok(());
        }
        room = if input.len() == input.capacity() { (2 * read).clamp(room, LARGEST_READ) } else { room };

        let mut flow = Flow::Next;
        while flow == Flow::Next {
            match parser.parse(&input) {
                Ok(Some(request)) => flow = command::execute(server, session, request, &mut output),
                Ok(None) => break,
                Err(malformed) => {
                    resp::error(&mut output, &format!("ERR {malformed}"));
                    stream.write_all(&output).await?;
                    return part(stream).await;
                }
            }
            *requests += 1;
            input.advance(parser.take());
            if output.len() >= MOST_ANSWERS {
                stream.write_all(&output).await?;
                output.clear();
            }
        }
        if !output.is_empty() {
            stream.write_all(&output).await?;
            output.clear();
        }
        if flow == Flow::Quit {
            return part(stream).await;
        }
        for buffer in [&mut input, &mut output] {
            if buffer.is_empty() && buffer.capacity() > KEPT_BUFFER {
                *buffer = BytesMut::new();
            }
        }
    }
}

/// Closes so that the last answer arrives: unread input would turn the close into a reset.
async fn part(stream: &mut SmcStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut nowhere = tokio::io::sink();
    let rest = tokio::io::copy(stream, &mut nowhere);
    let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
    Ok(())
}
