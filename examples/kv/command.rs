//! What each command does.

use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::resp::{self, Request};
use crate::server::{Server, Session};
use crate::store::{Expiry, Full};

/// Does the connection go on?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Next,
    Quit,
}

/// Why a command was not done; the connection goes on.
enum Refused {
    Arguments,
    Unknown,
    Because(&'static str),
    Full,
}

const SYNTAX: Refused = Refused::Because("ERR syntax error");
const NO_INTEGER: Refused = Refused::Because("ERR value is not an integer or out of range");
const INVALID_EXPIRE: Refused = Refused::Because("ERR invalid expire time: it is a number of at least 1");
/// In the place of the milliseconds of a unit: the option KEEPTTL.
const KEEP: i64 = -1;
/// What clients ask for before they work; there is nothing to configure.
const SETTINGS: [(&str, &str); 4] =
    [("save", ""), ("appendonly", "no"), ("databases", "1"), ("maxmemory-policy", "noeviction")];

impl From<Full> for Refused {
    fn from(_: Full) -> Self {
        Refused::Full
    }
}

/// A command's name in upper case; longer names than this are unknown.
struct Name([u8; 12], usize);

impl Name {
    fn new(word: &[u8]) -> Self {
        let mut name = Name([0; 12], word.len().min(12));
        name.0[..name.1].copy_from_slice(&word[..name.1]);
        name.0.make_ascii_uppercase();
        name
    }

    fn bytes(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

/// Does what the request asks for and appends the answer.
pub(crate) fn execute(server: &Server, session: &Session, request: Request<'_>, out: &mut BytesMut) -> Flow {
    if request.len() == 0 {
        return Flow::Next;
    }
    match answer(server, session, request, out) {
        Ok(flow) => return flow,
        Err(refused) => {
            let name = request.get(0);
            let name = String::from_utf8_lossy(&name[..name.len().min(64)]).to_lowercase();
            match refused {
                Refused::Arguments => {
                    resp::error(out, &format!("ERR wrong number of arguments for '{name}' command"));
                }
                Refused::Unknown => resp::error(out, &format!("ERR unknown command '{name}'")),
                Refused::Because(words) => resp::error(out, words),
                Refused::Full => resp::error(
                    out,
                    "OOM command not allowed when used memory > 'maxmemory' (see kv serve --max-memory-mib)",
                ),
            }
        }
    }
    Flow::Next
}

fn arguments(right: bool) -> Result<(), Refused> {
    if right { Ok(()) } else { Err(Refused::Arguments) }
}

fn answer(
    server: &Server,
    session: &Session,
    request: Request<'_>,
    out: &mut BytesMut,
) -> Result<Flow, Refused> {
    let (store, count) = (&server.store, request.len());
    let name = Name::new(request.get(0));
    match name.bytes() {
        b"GET" => {
            arguments(count == 2)?;
            let key = request.get(1);
            match store.shard(key).get(key) {
                Some(value) => resp::bulk(out, value),
                None => resp::nothing(out),
            }
        }
        b"SET" => set(server, request, out)?,
        b"SETEX" => set_for(server, request, 1000, out)?,
        b"PSETEX" => set_for(server, request, 1, out)?,
        b"DEL" => {
            arguments(count >= 2)?;
            let mut all = store.all();
            let removed = request.from(1).filter(|key| all.shard(key).remove(key)).count();
            resp::number(out, removed as i64);
        }
        b"EXISTS" => {
            arguments(count >= 2)?;
            let mut all = store.all();
            let found = request.from(1).filter(|key| all.shard(key).contains(key)).count();
            resp::number(out, found as i64);
        }
        b"INCR" => {
            arguments(count == 2)?;
            add(server, request, 1, out)?;
        }
        b"DECR" => {
            arguments(count == 2)?;
            add(server, request, -1, out)?;
        }
        b"INCRBY" => {
            arguments(count == 3)?;
            add(server, request, resp::integer(request.get(2)).ok_or(NO_INTEGER)?, out)?;
        }
        b"DECRBY" => {
            arguments(count == 3)?;
            let less = resp::integer(request.get(2)).and_then(i64::checked_neg).ok_or(NO_INTEGER)?;
            add(server, request, less, out)?;
        }
        b"MGET" => {
            arguments(count >= 2)?;
            let mut all = store.all();
            resp::array(out, count - 1);
            for key in request.from(1) {
                match all.shard(key).get(key) {
                    Some(value) => resp::bulk(out, value),
                    None => resp::nothing(out),
                }
            }
        }
        b"MSET" => {
            arguments(count >= 3 && count % 2 == 1)?;
            let mut all = store.all();
            let mut words = request.from(1);
            while let (Some(key), Some(value)) = (words.next(), words.next()) {
                all.shard(key).set(key, value, Expiry::Never)?;
            }
            resp::simple(out, "OK");
        }
        b"EXPIRE" => expire(server, request, 1000, out)?,
        b"PEXPIRE" => expire(server, request, 1, out)?,
        b"TTL" => time_to_live(server, request, 1000, out)?,
        b"PTTL" => time_to_live(server, request, 1, out)?,
        b"DBSIZE" => {
            arguments(count == 1)?;
            resp::number(out, store.all().len() as i64);
        }
        b"FLUSHDB" | b"FLUSHALL" => {
            let how = request.from(1).next().map(Name::new);
            if count > 2 || how.is_some_and(|how| !matches!(how.bytes(), b"ASYNC" | b"SYNC")) {
                return Err(SYNTAX);
            }
            store.all().clear();
            resp::simple(out, "OK");
        }
        b"PING" => {
            arguments(count <= 2)?;
            if count == 2 { resp::bulk(out, request.get(1)) } else { resp::simple(out, "PONG") }
        }
        b"ECHO" => {
            arguments(count == 2)?;
            resp::bulk(out, request.get(1));
        }
        b"SELECT" => {
            arguments(count == 2)?;
            match resp::integer(request.get(1)) {
                Some(0) => resp::simple(out, "OK"),
                Some(_) => return Err(Refused::Because("ERR DB index is out of range")),
                None => return Err(NO_INTEGER),
            }
        }
        b"INFO" => resp::bulk(out, server.info().as_bytes()),
        b"HELLO" => hello(session, request, out)?,
        b"CLIENT" => client(server, session, request, out)?,
        b"COMMAND" => match request.from(1).next().map(Name::new) {
            Some(name) if name.bytes() == b"COUNT" => resp::number(out, 0),
            _ => resp::array(out, 0),
        },
        b"CONFIG" => config(request, out)?,
        b"QUIT" => {
            resp::simple(out, "OK");
            return Ok(Flow::Quit);
        }
        _ => return Err(Refused::Unknown),
    }
    Ok(Flow::Next)
}

/// A point in time so many milliseconds from now.
fn later(milliseconds: i64) -> Result<Instant, Refused> {
    // Half of the range is more than anybody lives, and leaves room for the time of now.
    let milliseconds = u64::try_from(milliseconds).ok().filter(|amount| *amount < u64::MAX / 4);
    let point = milliseconds.and_then(|amount| Instant::now().checked_add(Duration::from_millis(amount)));
    point.ok_or(INVALID_EXPIRE)
}

/// SETEX and PSETEX, which older clients send.
fn set_for(server: &Server, request: Request<'_>, unit: i64, out: &mut BytesMut) -> Result<(), Refused> {
    arguments(request.len() == 4)?;
    let (key, value) = (request.get(1), request.get(3));
    let deadline = lifetime(request.get(2), unit)?;
    server.store.shard(key).set(key, value, Expiry::At(deadline))?;
    resp::simple(out, "OK");
    Ok(())
}

/// When a key ends that is set for so many units of so many milliseconds.
fn lifetime(amount: &[u8], unit: i64) -> Result<Instant, Refused> {
    let amount = resp::integer(amount).ok_or(NO_INTEGER)?;
    if amount <= 0 {
        return Err(INVALID_EXPIRE);
    }
    later(amount.checked_mul(unit).ok_or(INVALID_EXPIRE)?)
}

fn set(server: &Server, request: Request<'_>, out: &mut BytesMut) -> Result<(), Refused> {
    arguments(request.len() >= 3)?;
    let (key, value) = (request.get(1), request.get(2));
    let (mut expiry, mut only_if, mut unit) = (Expiry::Never, None, 0);
    let mut options = request.from(3);
    while let Some(option) = options.next() {
        match (Name::new(option).bytes(), only_if, unit) {
            (b"NX", None | Some(false), _) => only_if = Some(false),
            (b"XX", None | Some(true), _) => only_if = Some(true),
            (b"KEEPTTL", _, 0 | KEEP) => (expiry, unit) = (Expiry::Keep, KEEP),
            (b"EX", _, 0 | 1000) => unit = 1000,
            (b"PX", _, 0 | 1) => unit = 1,
            _ => return Err(SYNTAX),
        }
        if matches!(option, [b'E' | b'e' | b'P' | b'p', _]) {
            expiry = Expiry::At(lifetime(options.next().ok_or(SYNTAX)?, unit)?);
        }
    }
    let mut shard = server.store.shard(key);
    if only_if.is_some_and(|there| shard.contains(key) != there) {
        resp::nothing(out);
        return Ok(());
    }
    shard.set(key, value, expiry)?;
    resp::simple(out, "OK");
    Ok(())
}

fn add(server: &Server, request: Request<'_>, more: i64, out: &mut BytesMut) -> Result<(), Refused> {
    let key = request.get(1);
    let mut shard = server.store.shard(key);
    let before = match shard.get(key) {
        Some(value) => resp::integer(value).ok_or(NO_INTEGER)?,
        None => 0,
    };
    let overflow = Refused::Because("ERR increment or decrement would overflow");
    let sum = before.checked_add(more).ok_or(overflow)?;
    shard.set(key, sum.to_string().as_bytes(), Expiry::Keep)?;
    resp::number(out, sum);
    Ok(())
}

fn expire(server: &Server, request: Request<'_>, unit: i64, out: &mut BytesMut) -> Result<(), Refused> {
    arguments(request.len() == 3)?;
    let (key, amount) = (request.get(1), resp::integer(request.get(2)).ok_or(NO_INTEGER)?);
    let milliseconds = amount.checked_mul(unit).ok_or(INVALID_EXPIRE)?;
    let mut shard = server.store.shard(key);
    let done =
        if milliseconds <= 0 { shard.remove(key) } else { shard.expire(key, Some(later(milliseconds)?)) };
    resp::number(out, done.into());
    Ok(())
}

fn time_to_live(server: &Server, request: Request<'_>, unit: i64, out: &mut BytesMut) -> Result<(), Refused> {
    arguments(request.len() == 2)?;
    let key = request.get(1);
    let time = match server.store.shard(key).time_to_live(key) {
        None => -2,
        Some(None) => -1,
        Some(Some(left)) => (i64::try_from(left.as_millis()).unwrap_or(i64::MAX) + unit / 2) / unit,
    };
    resp::number(out, time);
    Ok(())
}

fn hello(session: &Session, request: Request<'_>, out: &mut BytesMut) -> Result<(), Refused> {
    if request.len() > 1 && request.get(1) != b"2" {
        return Err(Refused::Because("NOPROTO unsupported protocol version: this server speaks RESP2"));
    }
    let words = |out: &mut BytesMut, name: &str, value: &str| {
        resp::bulk(out, name.as_bytes());
        resp::bulk(out, value.as_bytes());
    };
    resp::array(out, 14);
    words(out, "server", "kv");
    words(out, "version", env!("CARGO_PKG_VERSION"));
    resp::bulk(out, b"proto");
    resp::number(out, 2);
    resp::bulk(out, b"id");
    resp::number(out, session.id as i64);
    words(out, "mode", "standalone");
    words(out, "role", "master");
    resp::bulk(out, b"modules");
    resp::array(out, 0);
    Ok(())
}

fn client(
    server: &Server,
    session: &Session,
    request: Request<'_>,
    out: &mut BytesMut,
) -> Result<(), Refused> {
    arguments(request.len() >= 2)?;
    match Name::new(request.get(1)).bytes() {
        b"LIST" => resp::bulk(out, server.clients(None).as_bytes()),
        b"INFO" => resp::bulk(out, server.clients(Some(session.id)).as_bytes()),
        b"ID" => resp::number(out, session.id as i64),
        b"GETNAME" => resp::nothing(out),
        // Names and versions of clients are of no interest here.
        b"SETNAME" | b"SETINFO" | b"NO-EVICT" | b"NO-TOUCH" => resp::simple(out, "OK"),
        _ => {
            return Err(Refused::Because(
                "ERR unknown subcommand (LIST, INFO, ID, GETNAME, SETNAME, SETINFO)",
            ));
        }
    }
    Ok(())
}

fn config(request: Request<'_>, out: &mut BytesMut) -> Result<(), Refused> {
    arguments(request.len() >= 3)?;
    if Name::new(request.get(1)).bytes() != b"GET" {
        return Err(Refused::Because("ERR only CONFIG GET is known"));
    }
    let asked =
        |name: &str| request.from(2).any(|word| word == b"*" || word.eq_ignore_ascii_case(name.as_bytes()));
    let found: Vec<_> = SETTINGS.iter().filter(|(name, _)| asked(name)).collect();
    resp::array(out, 2 * found.len());
    for (name, value) in found {
        resp::bulk(out, name.as_bytes());
        resp::bulk(out, value.as_bytes());
    }
    Ok(())
}
