//! The judge: knows what was done to each process and when, and what each end of a stream has
//! reported, and says whether an end that broke had a reason to.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::plan::{Ending, Plan, Side};
use crate::worker::Kind;

/// What is done to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    Kill,
    Stop,
    Descriptors,
    AddressSpace,
    FileSize,
    ForkExit,
    ForkExec,
    ForkLinger,
    Restart,
    DropRuntime,
    DropInBackground,
    /// It was told to end at its leisure.
    Quit,
    /// To the device directory: all processes feel it.
    RemoveDirectory,
}

/// A time in which a fault lasted; it may last still.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) fault: Fault,
    pub(crate) from: Instant,
    pub(crate) to: Option<Instant>,
}

/// After a fault is over its last effects may still be on their way to the judge.
const AFTERGLOW: Duration = Duration::from_secs(2);

/// What the judge remembers of a process.
#[derive(Debug)]
pub(crate) struct Past {
    pub(crate) number: usize,
    pub(crate) pid: u32,
    pub(crate) kind: Kind,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) began: Instant,
    pub(crate) ended: Option<Instant>,
    pub(crate) spans: Vec<Span>,
}

impl fmt::Display for Past {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({:?}, pid {})", self.number, self.kind, self.pid)
    }
}

impl Past {
    /// Whether one of `faults` touched the time between the two moments.
    fn felt(&self, faults: &[Fault], from: Instant, to: Instant) -> bool {
        let touches = |span: &Span| span.from <= to && span.to.is_none_or(|end| end + AFTERGLOW >= from);
        self.spans.iter().any(|span| faults.contains(&span.fault) && touches(span))
    }

    /// Whether it was short of anything since then.
    pub(crate) fn lacked_since(&self, moment: Instant) -> bool {
        self.felt(&LACKS, moment, Instant::now())
    }

    /// For how long it stood still since then.
    pub(crate) fn stood_still(&self, since: Instant) -> Duration {
        let stops = self.spans.iter().filter(|span| span.fault == Fault::Stop);
        stops
            .map(|span| span.to.unwrap_or_else(Instant::now).saturating_duration_since(span.from.max(since)))
            .sum()
    }
}

/// What an end has reported.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) process: usize,
    pub(crate) at: Instant,
    pub(crate) sent: u64,
    pub(crate) heard: u64,
    pub(crate) on_ring: u64,
    pub(crate) transport: String,
    pub(crate) outcome: String,
}

impl End {
    fn is(&self, outcome: &str) -> bool {
        self.outcome.split(' ').next() == Some(outcome)
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.is("whole")
    }
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) plan: Plan,
    pub(crate) began: Instant,
    pub(crate) target: SocketAddr,
    /// The process of each end, as far as it is known: nobody need accept.
    pub(crate) processes: [Option<usize>; 2],
    pub(crate) ends: [Option<End>; 2],
    pub(crate) judged: [bool; 2],
    /// How far its ends were when it was looked at for being late.
    pub(crate) progress: Option<(Instant, String)>,
}

const ENDS_PROCESS: [Fault; 2] = [Fault::Kill, Fault::Quit];
const ENDS_RUNTIME: [Fault; 2] = [Fault::DropRuntime, Fault::DropInBackground];
const ENDS_LISTENER: [Fault; 6] = [
    Fault::Kill,
    Fault::Quit,
    Fault::DropRuntime,
    Fault::DropInBackground,
    Fault::Restart,
    // Connections that wait for accept may belong to a child by now that never accepts.
    Fault::ForkLinger,
];
const LACKS: [Fault; 2] = [Fault::Descriptors, Fault::AddressSpace];

/// Why an end was broken with good reason; the words are keys of the figures.
pub(crate) type Excuse = &'static str;

impl Stream {
    fn end(&self, side: Side) -> Option<&End> {
        self.ends[side as usize].as_ref()
    }

    /// Judges what `side` has reported: whole (`None`), excused, or a failure.
    pub(crate) fn judge(&self, side: Side, pasts: &[Past]) -> Result<Option<Excuse>, String> {
        let Some(end) = self.end(side) else { return Ok(None) };
        let own = &pasts[end.process];
        let (from, to) = (self.began, end.at);
        if end.is_whole() {
            let (sends, hears) = (self.plan.length(side), self.plan.length(side.other()));
            return if (end.sent, end.heard) == (sends, hears) {
                Ok(None)
            } else {
                Err(format!("it ended with {} of {sends} sent, {} of {hears} heard", end.sent, end.heard))
            };
        }
        let planned = match self.plan.ending(side) {
            Ending::Whole => None,
            Ending::DropsAfter(_) => Some("dropped"),
            Ending::PanicsAfter(_) => Some("panicked"),
        };
        if planned.is_some_and(|planned| end.is(planned)) {
            return Ok(planned);
        }
        if end.is("wrong") || end.is("too-much") || end.is("panicked") || end.is("dropped") {
            return Err("nothing excuses that".to_owned());
        }
        if own.felt(&ENDS_PROCESS, from, to) {
            return Ok(Some("its process was ending"));
        }
        if own.felt(&ENDS_RUNTIME, from, to) {
            return Ok(Some("its runtime was dropped"));
        }
        let lacking = own.felt(&LACKS, from, to);
        if lacking
            && (end.is("no-begin") || end.is("cancelled") || end.outcome.contains("beginning a thread"))
        {
            return Ok(Some("its process was short of something"));
        }
        if end.is("no-begin") && self.plan.policy == tokio_smc::UpgradePolicy::Require {
            // The connection was there, and the peer has seen it go.
            let reason = end.outcome.split(' ').nth(1).unwrap_or("-");
            if reason != "-" {
                return Ok(Some("no upgrade, which it requires"));
            }
        }
        self.excused_by_peer(side, end, pasts).map(Some)
    }

    fn excused_by_peer(&self, side: Side, end: &End, pasts: &[Past]) -> Result<Excuse, String> {
        let (from, to) = (self.began, end.at);
        if let Some(peer) = self.processes[side.other() as usize] {
            let past = &pasts[peer];
            if past.felt(&ENDS_PROCESS, from, to) {
                return Ok("the peer's process was ended");
            }
            if past.felt(&ENDS_RUNTIME, from, to) {
                return Ok("the peer's runtime was dropped");
            }
            let Some(theirs) = self.end(side.other()) else {
                return Err("its peer has not ended".to_owned());
            };
            for (outcome, excuse) in [
                ("dropped", "the peer has dropped it"),
                ("panicked", "the peer has panicked"),
                ("no-begin", "the peer has not begun"),
            ] {
                if theirs.is(outcome) {
                    return Ok(excuse);
                }
            }
            let short = past.felt(&LACKS, from, to);
            if short && (theirs.is("cancelled") || theirs.outcome.contains("beginning a thread")) {
                return Ok("the peer was short of something");
            }
            return Err("nothing was done to either end".to_owned());
        }
        // Nobody has accepted it.
        if self.listener_was_ended(to, pasts) {
            return Ok("its listener was ended");
        }
        let mut candidates = self.listeners(to, pasts);
        if candidates.clone().any(|past| past.felt(&LACKS, from, to)) {
            return Ok("its listener was short of something");
        }
        match candidates.next() {
            None => Ok("nobody was there"),
            Some(_) => Err("nobody accepts it, though nothing was done to the listener".to_owned()),
        }
    }

    /// Those who were there until then to accept it.
    fn listeners<'a>(&self, to: Instant, pasts: &'a [Past]) -> impl Iterator<Item = &'a Past> + Clone {
        let (target, from) = (self.target, self.began);
        pasts.iter().filter(move |past| {
            past.address == Some(target) && past.began <= to && past.ended.is_none_or(|end| end >= from)
        })
    }

    fn listener_was_ended(&self, to: Instant, pasts: &[Past]) -> bool {
        self.listeners(to, pasts).any(|past| past.felt(&ENDS_LISTENER, self.began, to))
    }

    /// Whether what the client has seen by then shows that somebody has accepted it and goes on.
    /// The end of a stream without bytes can also be that of who had read its name.
    pub(crate) fn shows_a_server(&self, pasts: &[Past]) -> bool {
        self.end(Side::Client).is_some_and(|end| {
            let heard = self.plan.length(Side::Server) > 0;
            end.is_whole() && (heard || !self.listener_was_ended(end.at, pasts))
        })
    }

    /// All that is known of it.
    pub(crate) fn describe(&self, pasts: &[Past]) -> String {
        let mut text =
            format!("stream {} to {}, begun {:?} ago", self.plan.id, self.target, self.began.elapsed());
        text += &format!("\n  {:?}", self.plan);
        for side in [Side::Client, Side::Server] {
            match self.processes[side as usize] {
                Some(process) => {
                    let past = &pasts[process];
                    text += &format!("\n  {side}: {past}");
                    for span in past.spans.iter().filter(|span| span.to.is_none_or(|to| to >= self.began)) {
                        let lasted = span.to.map(|to| to.duration_since(span.from));
                        let after = span.from.saturating_duration_since(self.began);
                        text += &format!("\n    {:?} {after:?} after its begin, for {lasted:?}", span.fault);
                    }
                }
                None => {
                    text += &format!("\n  {side}: not known");
                    for past in self.listeners(Instant::now(), pasts).filter(|_| side == Side::Server) {
                        text += &format!("\n    perhaps {past}, {:?}", past.spans);
                    }
                }
            }
            match self.end(side) {
                Some(end) => {
                    text += &format!(
                        "\n    {} after {:?}: {} sent, {} heard, {} of it from a ring, on {}",
                        end.outcome,
                        end.at.duration_since(self.began),
                        end.sent,
                        end.heard,
                        end.on_ring,
                        end.transport,
                    );
                }
                None => text += "\n    has not reported",
            }
        }
        text
    }
}
