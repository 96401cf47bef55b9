//! A scene: 64 connections talk all the time, a limit comes to one end, and 66 more connections are
//! made.

use std::path::Path;

use tempfile::TempDir;

use crate::actor::{Actor, Start};
use crate::report::Report;
use crate::root::{AS_USER, hand_over};
use crate::watchdog::step;
use crate::words::{IN_PROGRESS, NO_ANSWER};

/// What an arena holds: the connection after these needs something new.
pub(crate) const LIVE: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Server,
    Client,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Before the library is used.
    Before,
    /// 64 connections are upgraded, and none is under way.
    Standing,
    /// While more are upgraded.
    During,
}

pub(crate) const SIDES: [Side; 2] = [Side::Server, Side::Client];
pub(crate) const MOMENTS: [Moment; 3] = [Moment::Before, Moment::Standing, Moment::During];

/// A server and a client on a device of their own.
pub(crate) struct Pair {
    pub(crate) server: Actor,
    pub(crate) client: Actor,
    pub(crate) dir: Option<TempDir>,
}

/// A device directory that goes with the test.
pub(crate) fn device() -> TempDir {
    tempfile::Builder::new().prefix("smc-test-").tempdir().expect("a temp dir")
}

impl Pair {
    /// Starts both; `start` says how, for each.
    pub(crate) fn start(start: impl Fn(Start, Side) -> Start) -> Result<Self, String> {
        let dir = device();
        let pair = Self::start_on(dir.path(), start)?;
        Ok(Self { dir: Some(dir), ..pair })
    }

    /// As `start`, on a device whose directory others look after.
    pub(crate) fn start_on(dir: &Path, start: impl Fn(Start, Side) -> Start) -> Result<Self, String> {
        let on = |side| start(Start::on(dir, "eager"), side);
        let (server, client) = meet(&on(Side::Server), &on(Side::Client))?;
        Ok(Self { server, client, dir: None })
    }

    pub(crate) fn side(&mut self, side: Side) -> &mut Actor {
        match side {
            Side::Server => &mut self.server,
            Side::Client => &mut self.client,
        }
    }

    /// More connections, all of which have decided what they run on when this returns.
    pub(crate) fn open(&mut self, count: usize) -> Result<(), String> {
        self.client.tell(&format!("open {count}"))?;
        self.client.tell("settle")
    }

    /// Ends all connections and both programs; what each of them says, if nothing is wrong with any
    /// byte.
    pub(crate) fn finish(mut self) -> Result<Outcome, String> {
        let outcome = conclude(&mut self.server, &mut [&mut self.client])?;
        self.client.end()?;
        self.server.end()?;
        Ok(outcome)
    }
}

/// Ends all connections of a server and its clients; what they say, if nothing is wrong with any
/// byte.
pub(crate) fn conclude(server: &mut Actor, clients: &mut [&mut Actor]) -> Result<Outcome, String> {
    fn hear(server: &mut Actor, clients: &mut [&mut Actor]) -> Result<Outcome, String> {
        let mut client = Report::default();
        for actor in clients {
            client.entries.append(&mut actor.report()?.entries);
        }
        Ok(Outcome { server: server.report()?, client })
    }
    // A stream that was shut down may have another reason for TCP.
    let before = hear(server, clients)?;
    let all = |server: &mut Actor, clients: &mut [&mut Actor], word: &str| {
        let mut results = vec![server.tell(word)];
        results.extend(clients.iter_mut().map(|client| client.tell(word)));
        results.into_iter().collect::<Result<(), String>>()
    };
    all(server, clients, "finish")?;
    let ended = all(server, clients, "ended");
    let mut outcome = hear(server, clients)?;
    outcome.is_exact()?;
    ended?;
    let reports = [(&mut outcome.server, before.server), (&mut outcome.client, before.client)];
    for (report, before) in reports {
        for (id, entry) in &mut report.entries {
            entry.reason = before.entries.get(id).and_then(|entry| entry.reason.clone());
        }
    }
    outcome.agrees()?;
    Ok(outcome)
}

/// A server, and a client that knows its address.
pub(crate) fn meet(server: &Start, client: &Start) -> Result<(Actor, Actor), String> {
    let mut server = server.role("server");
    let to = server.answer("ready")?;
    let mut client = client.role(&format!("client {to} 0"));
    client.done("ready")?;
    Ok((server, client))
}

/// What both ends say of the same connections.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) server: Report,
    pub(crate) client: Report,
}

impl Outcome {
    /// Every connection has ended at both ends, and what one sent the other has received.
    pub(crate) fn is_exact(&self) -> Result<(), String> {
        for (who, report) in [("client", &self.client), ("server", &self.server)] {
            let mut wrong = report.entries.iter().filter_map(|(id, entry)| Some((id, entry.error.as_ref()?)));
            if let Some((id, error)) = wrong.next() {
                return Err(format!("{}+1 connections failed; {id} at the {who}: {error}", wrong.count()));
            }
        }
        if !self.client.entries.keys().eq(self.server.entries.keys()) {
            return Err("the two ends know different connections".to_owned());
        }
        for (id, client) in &self.client.entries {
            let server = &self.server.entries[id];
            if (client.sent, client.received) != (server.received, server.sent) {
                return Err(format!("connection {id} lost bytes: {client:?}, {server:?}"));
            }
        }
        Ok(())
    }

    /// Both ends run on the same, but for upgrades that are still under way.
    fn agrees(&self) -> Result<(), String> {
        for (id, client) in &self.client.entries {
            let server = &self.server.entries[id];
            let undecided = |reason: &str| reason.contains(NO_ANSWER) || reason.contains(IN_PROGRESS);
            let decided =
                [client, server].iter().all(|entry| !entry.reason.as_deref().is_some_and(undecided));
            if decided && client.is_on_the_ring() != server.is_on_the_ring() {
                return Err(format!("the ends of {id} disagree: {client:?}, {server:?}"));
            }
        }
        Ok(())
    }

    fn at(&self, side: Side) -> &Report {
        match side {
            Side::Server => &self.server,
            Side::Client => &self.client,
        }
    }

    /// The first `count` connections run on the ring.
    pub(crate) fn stayed_on_the_ring(&self, count: usize) -> Result<(), String> {
        match self.client.entries.iter().take(count).find(|(_, entry)| !entry.is_on_the_ring()) {
            Some((id, entry)) => Err(format!("{id} was upgraded, and now is not: {entry:?}")),
            None => Ok(()),
        }
    }

    /// Whoever is on TCP says one of these, at the end that lacks something and at the other one.
    pub(crate) fn reasons_are(&self, limited: Side, own: &[&str], others: &[&str]) -> Result<(), String> {
        for side in SIDES {
            let allowed = if side == limited { own } else { others };
            for reason in self.at(side).reasons().keys() {
                if !allowed.iter().any(|words| reason.contains(words)) {
                    return Err(format!("at the {side:?} the reason is {reason:?}, none of {allowed:?}"));
                }
            }
        }
        Ok(())
    }
}

/// How a scene is played.
pub(crate) struct Scene<'a> {
    pub(crate) limit: &'a str,
    pub(crate) side: Side,
    pub(crate) moment: Moment,
    /// The connections that are made under the limit.
    pub(crate) more: usize,
    /// How the programs are started.
    pub(crate) start: fn(Start) -> Start,
    /// Both programs are not root's.
    pub(crate) unprivileged: bool,
}

impl Scene<'_> {
    pub(crate) fn new(limit: &str, side: Side, moment: Moment) -> Scene<'_> {
        Scene { limit, side, moment, more: 66, start: |start| start, unprivileged: false }
    }

    pub(crate) fn name(&self) -> String {
        format!("{} at the {:?}, {:?}", self.limit, self.side, self.moment)
    }

    /// Plays it; every fault that can be seen from outside is an error.
    pub(crate) fn play(&self) -> Result<Outcome, String> {
        step(self.name());
        self.played().map_err(|error| format!("{}: {error}", self.name()))
    }

    fn played(&self) -> Result<Outcome, String> {
        let (side, limit) = (self.side, format!("limit {}", self.limit));
        let dir = device();
        if self.unprivileged {
            hand_over(dir.path());
        }
        let mut pair = Pair::start_on(dir.path(), |start, at| {
            let start = (self.start)(start);
            let start = if self.unprivileged { start.through(AS_USER) } else { start };
            if at == side && self.moment == Moment::Before { start.limited(self.limit) } else { start }
        })?;
        pair.open(LIVE)?;
        if self.moment != Moment::Before {
            pair.client.tell(&format!("ring {LIVE}"))?;
            pair.server.tell(&format!("ring {LIVE}"))?;
        }
        if self.moment == Moment::During {
            pair.client.say(&format!("open {}", self.more))?;
            pair.side(side).tell(&limit)?;
            pair.client.done("open")?;
            pair.client.tell("settle")?;
        } else {
            if self.moment == Moment::Standing {
                pair.side(side).tell(&limit)?;
            }
            pair.open(self.more)?;
        }
        // All of them want larger rings now.
        pair.client.tell("burst 60000")?;
        let outcome = pair.finish()?;
        if self.moment != Moment::Before {
            outcome.stayed_on_the_ring(LIVE)?;
        }
        Ok(outcome)
    }
}

/// Fails with everything that went wrong in many scenes.
pub(crate) fn all_well(results: impl IntoIterator<Item = Result<(), String>>) {
    let results: Vec<_> = results.into_iter().collect();
    let played = results.len();
    let wrong: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "{} of {played} scenes failed:\n{}", wrong.len(), wrong.join("\n"));
}
