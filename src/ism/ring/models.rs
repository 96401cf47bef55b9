//! Loom's models of the ring: all interleavings (within a preemption bound) of two short threads.
//!
//! Each was seen to fail with the part of the protocol it is about taken out; the comment at each
//! says which.

use super::super::dmb::{Direction, Flags};
use super::heap::{HeapMemory, HeapSegment};
use super::*;
use crate::sync::{Arc, AtomicBool, Ordering};
use loom::thread;

type Heap = HeapMemory<2>;

fn ring() -> (Producer<Heap>, Consumer<Heap>) {
    let memory = Heap::new();
    (Producer::new(memory.clone(), 1 << 20), Consumer::new(memory))
}

/// Segments that the receiver has lent and the sender will be told of.
type Grants = std::vec::IntoIter<(u64, HeapSegment)>;

fn lend(consumer: &mut Consumer<Heap>, sizes: &[usize]) -> Grants {
    let mut lent = Vec::new();
    for size in sizes {
        let segment = HeapSegment::new(*size);
        lent.push((consumer.lend(segment.clone()), segment));
    }
    lent.into_iter()
}

/// Writes all that fits, entering granted segments.
fn write(producer: &mut Producer<Heap>, grants: &mut Grants, bytes: &[u8]) -> usize {
    let mut written = producer.write(bytes).unwrap();
    while written < bytes.len() && producer.take_wish().is_some() {
        let Some((number, segment)) = grants.next() else { break };
        assert!(producer.granted(number, segment));
        written += producer.write(&bytes[written..]).unwrap();
    }
    written
}

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Reads once; the bytes have to continue the count 1, 2, 3, ….
fn read_on(consumer: &mut Consumer<Heap>, len: usize) -> usize {
    let position = consumer.position();
    let mut bytes = [0; 16];
    let count = consumer.read(&mut &mut bytes[..len]).unwrap();
    for (i, byte) in bytes[..count].iter().enumerate() {
        assert_eq!(u64::from(*byte), position + i as u64 + 1);
    }
    count
}

/// As `read_on`, of bytes that are looked at where they lie.
fn read_in_place(consumer: &mut Consumer<Heap>, len: usize) -> usize {
    let Some(run) = consumer.borrow().unwrap() else { return 0 };
    let count = len.min(run.len());
    let (segment, range) = run.place();
    let mut bytes = [MaybeUninit::new(0); 16];
    segment.copy_out(range.start, &mut bytes[..count]);
    for (i, byte) in bytes[..count].iter().enumerate() {
        // SAFETY: all of them were initialised.
        assert_eq!(u64::from(unsafe { byte.assume_init() }), run.position() + i as u64 + 1);
    }
    assert_eq!(consumer.pass_over(run.position(), count), count);
    count
}

/// An interrupt line with one waiter: a ring between the waiter's look and its sleep is kept.
#[derive(Clone)]
struct Line(Arc<loom::sync::Mutex<bool>>, Arc<loom::sync::Condvar>);

impl Line {
    fn new() -> Line {
        Line(Arc::new(loom::sync::Mutex::new(false)), Arc::new(loom::sync::Condvar::new()))
    }

    fn ring(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_one();
    }

    /// Sleeps until rung; loom reports a deadlock if that never happens.
    fn sleep(&self) {
        let mut rung = self.0.lock().unwrap();
        while !*rung {
            rung = self.1.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// Fails if the cursor, or the hop count, is published Relaxed, and if the count is loaded before
/// the cursor.
#[test]
fn loom_bytes_cross_a_hop() {
    check(3, || {
        let (mut producer, mut consumer) = ring();
        let mut grants = lend(&mut consumer, &[4]);
        let sender = thread::spawn(move || {
            assert_eq!(producer.write(&[1]).unwrap(), 1);
            // One more fits, then there is a hop in the middle of a write.
            assert_eq!(write(&mut producer, &mut grants, &[2, 3]), 2);
        });
        let mut count = 0;
        for _ in 0..3 {
            count += read_on(&mut consumer, 2);
        }
        sender.join().unwrap();
        while count < 3 {
            let more = read_on(&mut consumer, 16);
            assert!(more > 0);
            count += more;
        }
        assert_eq!(read_on(&mut consumer, 16), 0);
    });
}

/// More hops than there are records (two, under loom). Fails if a record is used again before its
/// hop was followed.
#[test]
fn loom_hop_records_are_used_again() {
    check(3, || {
        let (mut producer, mut consumer) = ring();
        let mut grants = lend(&mut consumer, &[4, 8, 16]);
        let sender = thread::spawn(move || {
            let bytes: [u8; 15] = std::array::from_fn(|i| i as u8 + 1);
            let written = write(&mut producer, &mut grants, &bytes);
            // Over two hops without the receiver's help, and further with it.
            assert!(written >= 14);
            producer.write(&bytes[written..]).unwrap();
            producer.position()
        });
        for _ in 0..2 {
            read_on(&mut consumer, 3);
        }
        let written = sender.join().unwrap();
        while consumer.position() < written {
            assert!(read_on(&mut consumer, 16) > 0);
        }
    });
}

/// Fails if the receiver publishes its cursor Relaxed, or the sender loads it so.
#[test]
fn loom_bytes_wrap_round() {
    check(3, || {
        let (mut producer, mut consumer) = ring();
        assert_eq!(producer.write(&[1, 2]).unwrap(), 2);
        let sender = thread::spawn(move || {
            let mut next = 3;
            for _ in 0..3 {
                next += producer.write(&[next, next + 1]).unwrap() as u8;
            }
            u64::from(next) - 1
        });
        for _ in 0..3 {
            read_on(&mut consumer, 1);
        }
        let written = sender.join().unwrap();
        while consumer.position() < written {
            assert!(read_on(&mut consumer, 2) > 0);
        }
    });
}

/// Bytes are the reader's until they are passed over, round the wrap and over a hop. Fails if that
/// is done before they are looked at, or publishes the cursor Relaxed.
#[test]
fn loom_nobody_writes_to_bytes_that_are_looked_at() {
    check(3, || {
        let (mut producer, mut consumer) = ring();
        let mut grants = lend(&mut consumer, &[4]);
        assert_eq!(producer.write(&[1, 2]).unwrap(), 2);
        let sender = thread::spawn(move || {
            let mut next = 3;
            for _ in 0..2 {
                next += write(&mut producer, &mut grants, &[next, next + 1]) as u8;
            }
            u64::from(next) - 1
        });
        for _ in 0..3 {
            read_in_place(&mut consumer, 2);
        }
        let written = sender.join().unwrap();
        while consumer.position() < written {
            assert!(read_in_place(&mut consumer, 16) > 0);
        }
    });
}

/// Back to segment 0 while the receiver is at it, and up again. Fails if `shrink` does not look
/// whether everything was read.
#[test]
fn loom_shrinking_takes_no_byte_from_under_the_reader() {
    check(3, || {
        let (mut producer, mut consumer) = ring();
        let mut grants = lend(&mut consumer, &[4, 4]);
        assert_eq!(write(&mut producer, &mut grants, &[1, 2, 3]), 3);
        let sender = thread::spawn(move || {
            let shrunk = producer.shrink().unwrap();
            assert_eq!(producer.is_grown(), shrunk == Shrunk::NotYet);
            assert_eq!(write(&mut producer, &mut grants, &[4, 5, 6]), 3);
            shrunk
        });
        let mut count = 0;
        for _ in 0..2 {
            count += read_on(&mut consumer, 16);
        }
        if let Shrunk::GaveBack(number) = sender.join().unwrap() {
            consumer.take_back(number).unwrap();
        }
        while count < 6 {
            count += read_on(&mut consumer, 16);
        }
    });
}

/// Fails (deadlock) if one of `wake_reader` and `arm` loads or stores the flag instead of swapping
/// it, or does not acquire (`arm`) or release (`wake_reader`) with that.
#[test]
fn loom_a_reader_that_waits_is_woken() {
    check(3, || {
        let (mut producer, mut consumer) = ring();
        let line = Line::new();
        producer.wake_reader();
        let bell = line.clone();
        let sender = thread::spawn(move || {
            for byte in 1..=2 {
                assert_eq!(producer.write(&[byte]).unwrap(), 1);
                if producer.wake_reader() {
                    bell.ring();
                }
            }
        });
        while consumer.position() < 2 {
            if read_on(&mut consumer, 16) == 0 && consumer.wait().unwrap() {
                line.sleep();
            }
        }
        sender.join().unwrap();
    });
}

/// Fails (deadlock) without the fence in `wake_writer` or the one in `arm_at`.
#[test]
fn loom_a_writer_that_waits_is_woken() {
    check(3, || {
        let (mut producer, mut consumer) = ring();
        let line = Line::new();
        assert!(consumer.wake_writer());
        assert_eq!(producer.write(&[1, 2, 3]).unwrap(), 2);
        let bell = line.clone();
        let receiver = thread::spawn(move || {
            for _ in 0..2 {
                if read_on(&mut consumer, 1) > 0 && consumer.wake_writer() {
                    bell.ring();
                }
            }
            consumer
        });
        while producer.position() < 4 {
            let next = producer.position() as u8 + 1;
            if producer.write(&[next]).unwrap() == 0 && producer.wait().unwrap() {
                line.sleep();
            }
        }
        let mut consumer = receiver.join().unwrap();
        while consumer.position() < 4 {
            assert!(read_on(&mut consumer, 16) > 0);
        }
    });
}

/// The mark moves while the flag is still set from an earlier wait that found space after all.
#[test]
fn loom_a_writer_that_waits_again_is_woken() {
    check(2, || {
        let (mut producer, mut consumer) = ring();
        let line = Line::new();
        assert_eq!(producer.write(&[1, 2]).unwrap(), 2);
        let bell = line.clone();
        let receiver = thread::spawn(move || {
            while consumer.position() < 2 {
                if read_on(&mut consumer, 1) > 0 && consumer.wake_writer() {
                    bell.ring();
                }
            }
            consumer
        });
        while producer.position() < 4 {
            let next = producer.position() as u8 + 1;
            if producer.write(&[next]).unwrap() == 0 && producer.wait().unwrap() {
                line.sleep();
            }
        }
        assert_eq!(receiver.join().unwrap().position(), 2);
    });
}

/// A reader on TCP arms and looks at the word, not at the ring. Fails (deadlock) if one of the two
/// loads or stores the flag instead of swapping it.
#[test]
fn loom_a_reader_on_tcp_hears_of_the_switch() {
    check(3, || {
        let (producer, consumer) = ring();
        let line = Line::new();
        producer.wake_reader();
        let bell = line.clone();
        let sender = thread::spawn(move || {
            producer.memory().header().switch(5).unwrap();
            if producer.wake_reader() {
                bell.ring();
            }
        });
        loop {
            consumer.arm();
            if consumer.memory().header().direction() == Direction::Switched(5) {
                break;
            }
            line.sleep();
        }
        sender.join().unwrap();
    });
}

/// Fails if the flag is set or loaded Relaxed, and if the reader believes it without looking again.
#[test]
fn loom_the_last_bytes_precede_the_end() {
    check(3, || {
        let (mut producer, mut consumer) = ring();
        let mut grants = lend(&mut consumer, &[4]);
        let line = Line::new();
        producer.wake_reader();
        let bell = line.clone();
        let sender = thread::spawn(move || {
            assert_eq!(write(&mut producer, &mut grants, &[1, 2, 3]), 3);
            producer.set_flags(Flags::CLOSED);
            if producer.wake_reader() {
                bell.ring();
            }
        });
        loop {
            if read_on(&mut consumer, 2) > 0 {
                continue;
            }
            if consumer.wait().unwrap() {
                line.sleep();
            } else if consumer.writer_flags().contains(Flags::CLOSED) && !consumer.is_readable().unwrap() {
                break;
            }
        }
        assert_eq!(consumer.position(), 3, "bytes are lost");
        sender.join().unwrap();
    });
}

/// A writer on full is told that the reader has gone: whoever sets flags rings, armed or not.
#[test]
fn loom_a_writer_that_waits_hears_of_the_close() {
    check(3, || {
        let (mut producer, consumer) = ring();
        let line = Line::new();
        consumer.wake_writer();
        assert_eq!(producer.write(&[1, 2]).unwrap(), 2);
        let bell = line.clone();
        let receiver = thread::spawn(move || {
            consumer.set_flags(Flags::ABORT);
            bell.ring();
        });
        while producer.reader_flags().is_empty() {
            assert_eq!(producer.write(&[3]).unwrap(), 0);
            // What the connection does: arm, then look at everything again.
            if producer.wait().unwrap() && producer.reader_flags().is_empty() {
                line.sleep();
            }
        }
        receiver.join().unwrap();
    });
}

/// A slot is used again only after the sender's DETACH, which follows its last access. Fails (a
/// race on a byte) if the owner goes by the token alone, that is: without waiting for `detached`.
#[test]
fn loom_a_slot_is_released_after_its_sender() {
    check(3, || {
        let memory = Heap::new();
        let mut producer = Producer::new(memory.clone(), 1 << 20);
        let detached = Arc::new(AtomicBool::new(false));
        let sent = detached.clone();
        let sender = thread::spawn(move || {
            producer.write(&[7]).unwrap();
            drop(producer);
            sent.store(true, Ordering::Release);
        });
        // The stream of the old connection is gone, whatever its sender does.
        memory.header().pin();
        if detached.load(Ordering::Acquire) {
            memory.first().copy_in(0, &[0; 2]);
            memory.header().initialise();
            let mut next = Producer::new(memory.clone(), 1 << 20);
            let mut consumer = Consumer::new(memory);
            assert_eq!(next.write(&[1]).unwrap(), 1);
            assert_eq!(read_on(&mut consumer, 2), 1);
            assert_eq!(consumer.memory().header().direction(), Direction::Open);
        }
        sender.join().unwrap();
    });
}

/// Sender's switch against receiver's pin: one wins, and both learn the same.
#[test]
fn loom_both_ends_learn_one_decision() {
    check(3, || {
        let memory = Heap::new();
        let mut producer = Producer::new(memory.clone(), 1 << 20);
        let mut consumer = Consumer::new(memory);
        let sender = thread::spawn(move || {
            producer.write(&[1]).unwrap();
            match producer.memory().header().switch(41) {
                Ok(()) => Direction::Switched(41),
                Err(decided) => decided,
            }
        });
        let decided = consumer.memory().header().pin();
        if decided == Direction::Switched(41) {
            assert_eq!(read_on(&mut consumer, 2), 1, "what was written before the switch is there");
        }
        assert_eq!(sender.join().unwrap(), decided);
    });
}
