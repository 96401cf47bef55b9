//! Work that takes long, above all on memory that a peer has, too: on threads of its own.
//!
//! The kernel lets whoever holds a memory file open keep its lock (the inode's), for as long as he
//! likes, and whoever punches it keep those waiting who touch it. So what takes that lock, or may
//! be long, is done neither under a lock of ours nor on a worker of a runtime. Each link has a
//! [`Lane`]: its work is done in order, by one thread at a time. A peer that lets a thread wait for
//! ever has stopped its own lane, and one of at most [`MOST_THREADS`] threads.
//!
//! Threads begin on demand and end when nothing came for a while. Of a forked child none are left,
//! and it begins its own.

use std::collections::{BTreeMap, VecDeque};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::sys;
use crate::shield::shielded;
use crate::sync::{AtomicU64, Mutex, Ordering, lock};

/// Threads of this process.
const MOST_THREADS: usize = 16;
/// How long a thread without work waits for some.
const IDLE: Duration = Duration::from_secs(2);
/// The work is a few system calls, or a match with its proof.
const STACK: usize = 256 * 1024;

type Work = Box<dyn FnOnce() + Send>;

static POOL: Mutex<Pool> = Mutex::new(Pool::new(0));
static NEXT: AtomicU64 = AtomicU64::new(0);

struct Pool {
    /// Whose threads they are.
    process: u32,
    threads: usize,
    idle: Vec<Thread>,
    /// The work of each lane that has some, or that a thread works for.
    lanes: BTreeMap<u64, VecDeque<Work>>,
    /// Lanes with work, and without a thread.
    ready: VecDeque<u64>,
}

impl Pool {
    const fn new(process: u32) -> Pool {
        Pool { process, threads: 0, idle: Vec::new(), lanes: BTreeMap::new(), ready: VecDeque::new() }
    }
}

/// The work for one link, in its order.
#[derive(Debug)]
pub(crate) struct Lane(u64);

/// No thread can be had for the work, which comes back.
pub(crate) struct NoThread(pub(crate) Work);

impl Lane {
    pub(crate) fn new() -> Lane {
        Lane(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Does `work` on another thread, after what was given before.
    ///
    /// # Errors
    ///
    /// The work, when this process has no thread for it and can not begin one.
    pub(crate) fn run(&self, work: impl FnOnce() + Send + 'static) -> Result<(), NoThread> {
        let idle = {
            let mut pool = lock(&POOL);
            let process = std::process::id();
            if pool.process != process {
                // Of a fork's child. What the parent's threads were to do they do in the parent.
                std::mem::forget(std::mem::replace(&mut *pool, Pool::new(process)));
            }
            let is_new = !pool.lanes.contains_key(&self.0);
            pool.lanes.entry(self.0).or_default().push_back(Box::new(work));
            if !is_new {
                return Ok(());
            }
            let idle = pool.idle.pop();
            let begun = idle.is_some() || pool.threads == MOST_THREADS || begin(&mut pool);
            // Without a new one those that there are come to it.
            if !begun && pool.threads == 0 {
                let work = pool.lanes.remove(&self.0).and_then(|mut queue| queue.pop_back());
                return work.map_or(Ok(()), |work| Err(NoThread(work)));
            }
            pool.ready.push_back(self.0);
            idle
        };
        if let Some(idle) = idle {
            idle.unpark();
        }
        Ok(())
    }

    /// Waits until all that was given is done.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn settle(&self) {
        while !self.is_idle() {
            thread::sleep(Duration::from_micros(50));
        }
    }

    /// Whether all that was given is done.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn is_idle(&self) -> bool {
        !lock(&POOL).lanes.contains_key(&self.0)
    }
}

/// Begins a thread, if the system lets it.
fn begin(pool: &mut Pool) -> bool {
    let begun = sys::begin_thread("smc-aside", STACK, serve).is_ok();
    pool.threads += usize::from(begun);
    begun
}

/// A thread: takes one lane after the other, a piece of work each.
fn serve() {
    while let Some((lane, work)) = next() {
        // What it was for ends with it.
        let _ = shielded(work);
        let mut pool = lock(&POOL);
        if pool.lanes.get(&lane).is_some_and(VecDeque::is_empty) {
            pool.lanes.remove(&lane);
        } else {
            pool.ready.push_back(lane);
        }
    }
}

/// The next piece of work; `None` when none comes for a while.
fn next() -> Option<(u64, Work)> {
    let until = Instant::now() + IDLE;
    let this = thread::current();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        {
            let mut pool = lock(&POOL);
            pool.idle.retain(|idle| idle.id() != this.id());
            while let Some(lane) = pool.ready.pop_front() {
                if let Some(work) = pool.lanes.get_mut(&lane).and_then(VecDeque::pop_front) {
                    return Some((lane, work));
                }
            }
            if left.is_zero() {
                pool.threads -= 1;
                return None;
            }
            pool.idle.push(this.clone());
        }
        thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_lane_keeps_its_order_and_waits_for_nobody_elses() {
        let (stopped, other) = (Lane::new(), Lane::new());
        let (go, gate) = channel::<()>();
        let (tell, told) = channel();
        let mut expected = Vec::new();
        let told_by = tell.clone();
        assert!(
            stopped
                .run(move || {
                    let _ = gate.recv();
                    told_by.send(1000).unwrap();
                })
                .is_ok()
        );
        for number in 0..100 {
            let tell = tell.clone();
            assert!(other.run(move || tell.send(number).unwrap()).is_ok());
            expected.push(number);
        }
        other.settle();
        assert_eq!(told.try_iter().collect::<Vec<_>>(), expected);
        assert!(!stopped.is_idle());
        go.send(()).unwrap();
        stopped.settle();
        assert_eq!(told.recv(), Ok(1000));
    }

    #[test]
    fn work_that_panics_is_the_end_of_itself_only() {
        let lane = Lane::new();
        let (tell, told) = channel();
        assert!(lane.run(|| panic!("a panic that belongs to the test")).is_ok());
        assert!(lane.run(move || tell.send(1).unwrap()).is_ok());
        assert_eq!(told.recv(), Ok(1));
    }
}
