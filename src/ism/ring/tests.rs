//! The ring against a queue, against a peer that scribbles, and against a second thread.

use super::super::dmb::Flags;
use super::heap::HeapMemory;
use super::*;
use crate::sync::Ordering;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::mpsc;
use std::time::Duration;

type Small = HeapMemory<4>;

fn ring<const S: usize>(segments: u32) -> (Producer<HeapMemory<S>>, Consumer<HeapMemory<S>>) {
    let memory = HeapMemory::<S>::new(segments);
    (Producer::new(memory.clone()), Consumer::new(memory))
}

fn read<M: Memory>(consumer: &mut Consumer<M>, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let count = consumer.read(&mut &mut bytes[..]).unwrap();
    bytes.truncate(count);
    bytes
}

fn peek<M: Memory>(consumer: &mut Consumer<M>, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let count = consumer.peek(&mut &mut bytes[..]).unwrap();
    bytes.truncate(count);
    bytes
}

/// Ends the process if a test that can hang does.
struct Watchdog(Option<(mpsc::Sender<()>, std::thread::JoinHandle<()>)>);

impl Watchdog {
    fn new(limit: Duration) -> Watchdog {
        let (alive, ended) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            if ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                std::process::abort();
            }
        });
        Watchdog(Some((alive, thread)))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some((alive, thread)) = self.0.take() {
            drop(alive);
            let _ = thread.join();
        }
    }
}

#[test]
fn bytes_cross_hops_and_wraps_in_order() {
    let (mut producer, mut consumer) = ring::<4>(3);
    assert_eq!(producer.write(&[0, 1, 2]).unwrap(), 3);
    assert_eq!(read(&mut consumer, 2), [0, 1]);
    // Wraps in segment 0 (3 free), then hops over 1 to 2, which takes 16 of the rest.
    let bytes: Vec<u8> = (3..40).collect();
    assert_eq!(producer.write(&bytes).unwrap(), 3 + 8 + 16);
    assert_eq!(producer.write(&[99]).unwrap(), 0, "full");
    assert_eq!(peek(&mut consumer, 100), (2..30).collect::<Vec<u8>>(), "a look over both hops");
    assert_eq!(read(&mut consumer, 100), (2..30).collect::<Vec<u8>>());
    assert!(!consumer.is_readable().unwrap());
    assert_eq!(producer.write(&bytes).unwrap(), 16, "the largest segment stays the home of the stream");
    assert_eq!(producer.position(), 46);
    assert_eq!(consumer.position(), 30);
}

#[test]
fn a_read_fills_the_first_chunk_of_any_buffer() {
    let (mut producer, mut consumer) = ring::<4>(3);
    producer.write(&[1, 2, 3, 4, 5, 6]).unwrap();
    let mut vec = Vec::with_capacity(4);
    assert_eq!(consumer.read(&mut vec).unwrap(), vec.len());
    assert!(vec.starts_with(&[1, 2, 3, 4]));
    let mut none: &mut [u8] = &mut [];
    assert_eq!(consumer.read(&mut none).unwrap(), 0);
    assert_eq!(producer.write(&[]).unwrap(), 0);
}

#[test]
fn a_vectored_write_is_one_write() {
    let (mut producer, mut consumer) = ring::<4>(2);
    let slices = [&[1, 2][..], &[], &[3, 4, 5], &[6; 20], &[7]].map(IoSlice::new);
    assert_eq!(producer.write_vectored(&slices).unwrap(), 12);
    assert_eq!(read(&mut consumer, 20), [1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6, 6]);
}

#[test]
fn growth_happens_only_on_full_and_only_with_memory() {
    let (mut producer, mut consumer) = ring::<4>(3);
    let memory = producer.memory().clone();
    memory.refuse_commits(true);
    assert_eq!(producer.write(&[1; 4]).unwrap(), 4);
    assert_eq!(memory.commits(), 0, "it fits");
    assert!(producer.is_writable().unwrap(), "it may grow, as far as it knows");
    assert_eq!(producer.write(&[2; 4]).unwrap(), 0);
    assert_eq!(memory.commits(), 1);
    assert!(!producer.is_writable().unwrap(), "refused: it is full now");
    assert_eq!(producer.write(&[2; 4]).unwrap(), 0);
    assert!(producer.wait().unwrap());
    assert_eq!(memory.commits(), 1, "the kernel is not asked in a loop");
    memory.refuse_commits(false);
    for _ in 0..15 {
        assert_eq!(read(&mut consumer, 4).len(), 4);
        assert_eq!(producer.write(&[3; 5]).unwrap(), 4);
    }
    assert_eq!(memory.commits(), 1);
    assert_eq!(read(&mut consumer, 4).len(), 4);
    assert_eq!(producer.write(&[3; 5]).unwrap(), 5, "after a while it is");
    assert!(producer.is_grown());
    assert_eq!(memory.commits(), 2);
}

#[test]
fn shrinking_waits_for_the_last_byte_and_gives_everything_back() {
    let (mut producer, mut consumer) = ring::<4>(3);
    assert!(producer.shrink().unwrap(), "nothing to do");
    assert_eq!(producer.write(&[1; 20]).unwrap(), 20);
    assert!(!producer.shrink().unwrap());
    assert_eq!(read(&mut consumer, 19).len(), 19);
    assert!(!producer.is_consumed().unwrap() && !producer.shrink().unwrap(), "one byte is unread");
    assert_eq!(read(&mut consumer, 19).len(), 1);
    assert!(producer.is_consumed().unwrap() && producer.shrink().unwrap());
    assert!(!producer.is_grown());
    assert_eq!(producer.memory().punches(), 2);
    assert!(!consumer.is_readable().unwrap());
    // Up again: `HeapMemory` panics if a segment without memory is written.
    assert_eq!(producer.write(&[2; 30]).unwrap(), 28);
    assert_eq!(read(&mut consumer, 30), [2; 28]);
}

#[test]
fn hops_wait_for_a_free_record() {
    let (mut producer, mut consumer) = ring::<4>(2);
    // Each round makes two hops, and the receiver publishes that it followed them with its next read only.
    for round in 0..40_u8 {
        assert_eq!(producer.write(&[round; 5]).unwrap(), 5);
        assert_eq!(read(&mut consumer, 9), [round; 5]);
        assert!(producer.shrink().unwrap());
    }
    // Nobody follows: up to 19 segments need more hops than there are records.
    let (mut producer, mut consumer) = ring::<1>(19);
    let bytes: Vec<u8> = (0..1 << 17).map(|i| (i % 251) as u8).collect();
    let written = producer.write(&bytes).unwrap();
    assert_eq!(written, (1 << 17) - 1, "16 hops lead to segment 16");
    assert!(!producer.is_writable().unwrap());
    assert!(producer.wait().unwrap());
    assert_eq!(read(&mut consumer, 2), bytes[..2], "follows one hop");
    assert!(producer.is_writable().unwrap());
    assert_eq!(producer.write(&bytes).unwrap(), bytes.len());
    assert_eq!(read(&mut consumer, usize::from(u16::MAX))[..100], bytes[2..102]);
}

#[test]
fn a_waiting_reader_is_woken_once() {
    let (mut producer, mut consumer) = ring::<4>(2);
    assert!(producer.wake_reader(), "a fresh slot is armed");
    assert!(!producer.wake_reader());
    assert!(consumer.wait().unwrap());
    producer.write(&[1]).unwrap();
    assert!(producer.wake_reader());
    assert!(!producer.wake_reader());
    assert!(!consumer.wait().unwrap(), "there is a byte");
    assert!(producer.wake_reader(), "a look that finds something leaves the flag to earlier waiters");
    read(&mut consumer, 1);
    producer.set_flags(Flags::DONE_WRITING);
    assert!(!consumer.wait().unwrap(), "a flag is news, too");
    assert_eq!(consumer.writer_flags(), Flags::DONE_WRITING);
}

#[test]
fn a_waiting_writer_is_woken_at_half() {
    let (mut producer, mut consumer) = ring::<8>(1);
    assert!(consumer.wake_writer(), "a fresh slot is armed");
    assert!(!producer.wait().unwrap(), "there is room");
    assert_eq!(producer.write(&[1; 9]).unwrap(), 8);
    assert!(producer.wait().unwrap());
    read(&mut consumer, 3);
    assert!(!consumer.wake_writer(), "3 of 8 are too few");
    read(&mut consumer, 1);
    assert!(consumer.wake_writer());
    assert!(!consumer.wake_writer());
    assert_eq!(producer.write(&[1; 9]).unwrap(), 4);
    assert!(producer.wait().unwrap());
    assert!(!consumer.wake_writer());
}

#[test]
fn a_writer_that_waits_sees_space_made_meanwhile() {
    let (mut producer, mut consumer) = ring::<8>(1);
    producer.write(&[1; 8]).unwrap();
    assert_eq!(producer.write(&[1]).unwrap(), 0);
    read(&mut consumer, 3);
    assert!(producer.wait().unwrap(), "below the mark");
    read(&mut consumer, 1);
    assert_eq!(producer.write(&[1; 8]).unwrap(), 4);
    read(&mut consumer, 8);
    assert!(!producer.wait().unwrap());
}

/// Every rule of the peer's that can be broken, each broken once.
#[test]
fn each_broken_rule_is_named() {
    fn consumer_says(scribble: impl FnOnce(&DmbHeader), words: &str) {
        let (mut producer, mut consumer) = ring::<4>(3);
        producer.write(&[1; 6]).unwrap();
        assert_eq!(read(&mut consumer, 5).len(), 5);
        scribble(producer.memory().header());
        let mut bytes = [0; 64];
        let error = consumer.read(&mut &mut bytes[..]).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(consumer.peek(&mut &mut bytes[..]).unwrap_err(), error);
        assert_eq!(read(&mut consumer, 1), [1], "what was valid before stays so");
        assert!(consumer.is_readable().is_err());
    }
    let relaxed = Ordering::Relaxed;
    let hop = move |h: &DmbHeader, position: u64, segment: u64| {
        h.hops.0[1].position.store(position, relaxed);
        h.hops.0[1].segment.store(segment, relaxed);
        h.producer.hop_count.store(2, relaxed);
    };
    consumer_says(|h| h.producer.prod.store(5, relaxed), "went back from 6 to 5");
    consumer_says(|h| h.producer.prod.store(u64::MAX, relaxed), "ahead in a DMB of 28");
    consumer_says(|h| h.producer.prod.store(5 + 10, relaxed), "10 unread bytes in a segment of 8");
    consumer_says(|h| h.producer.hop_count.store(0, relaxed), "hop count is 0");
    consumer_says(|h| h.producer.hop_count.store(18, relaxed), "hop count is 18");
    consumer_says(move |h| hop(h, 4, 2), "hop at position 4 when 5");
    consumer_says(move |h| hop(h, 6, 1), "from segment 1 to segment 1");
    consumer_says(move |h| hop(h, 6, 3), "from segment 1 to segment 3");
    consumer_says(move |h| hop(h, 6, u64::MAX), "from segment 1 to");

    fn producer_says(scribble: impl FnOnce(&DmbHeader), words: &str) {
        let (mut producer, mut consumer) = ring::<4>(1);
        producer.write(&[1; 4]).unwrap();
        read(&mut consumer, 2);
        assert_eq!(producer.write(&[1; 4]).unwrap(), 2);
        scribble(producer.memory().header());
        let error = producer.write(&[1]).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(producer.is_writable().unwrap_err(), error);
        assert_eq!(producer.wait().unwrap_err(), error);
    }
    producer_says(|h| h.consumer.cons.store(1, relaxed), "went back from 2 to 1");
    producer_says(|h| h.consumer.cons.store(7, relaxed), "is 7 when 6 bytes were written");
    producer_says(|h| h.consumer.cons.store(u64::MAX, relaxed), "when 6 bytes");
}

#[test]
fn hops_without_bytes_do_not_go_on_for_ever() {
    let _watchdog = Watchdog::new(Duration::from_secs(60));
    let (producer, mut consumer) = ring::<4>(3);
    let header = producer.memory().header();
    // All records say: at position 0, on in segment 0.
    header.producer.hop_count.store(16, Ordering::Relaxed);
    header.producer.prod.store(1, Ordering::Relaxed);
    let error = consumer.is_readable().unwrap_err();
    assert!(error.to_string().contains("without a byte"), "{error}");
}

#[test]
fn a_receiver_that_lies_about_hops_is_caught() {
    let (mut producer, mut consumer) = ring::<1>(19);
    producer.write(&[0; 1 << 17]).unwrap();
    read(&mut consumer, 1);
    producer.memory().header().consumer.hop.store(17, Ordering::Relaxed);
    let error = producer.write(&[0; 9]).unwrap_err();
    assert!(error.to_string().contains("follows hop 17"), "{error}");
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    WriteVectored(Vec<usize>),
    Read(usize),
    Peek(usize),
    Shrink,
    WaitForSpace,
    WaitForData,
    Refuse(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..40_usize).prop_map(Step::Write),
        1 => prop::collection::vec(0..12_usize, 0..5).prop_map(Step::WriteVectored),
        4 => (0..40_usize).prop_map(Step::Read),
        1 => (0..40_usize).prop_map(Step::Peek),
        1 => Just(Step::Shrink),
        1 => Just(Step::WaitForSpace),
        1 => Just(Step::WaitForData),
        1 => any::<bool>().prop_map(Step::Refuse),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn a_ring_is_a_bounded_queue(segments in 1..5_u32, steps in steps()) {
        let (mut producer, mut consumer) = ring::<4>(segments);
        let mut queue = VecDeque::new();
        let mut bytes = (0..=u8::MAX).cycle();
        // Whoever parked is woken by the event it waits for.
        let mut reader_parked = false;
        let mut writer_parked = false;
        producer.wake_reader();
        consumer.wake_writer();
        for step in steps {
            let before = queue.len();
            match step {
                Step::Write(_) | Step::WriteVectored(_) => {
                    let lens = match step {
                        Step::WriteVectored(lens) => lens,
                        Step::Write(len) => vec![len],
                        _ => unreachable!(),
                    };
                    let run: Vec<u8> = bytes.clone().take(lens.iter().sum()).collect();
                    let mut behind = &run[..];
                    let slices: Vec<IoSlice<'_>> = lens.iter().map(|len| {
                        let (part, rest) = behind.split_at(*len);
                        behind = rest;
                        IoSlice::new(part)
                    }).collect();
                    let writable = producer.is_writable().unwrap();
                    let written = if slices.len() == 1 {
                        producer.write(&slices[0]).unwrap()
                    } else {
                        producer.write_vectored(&slices).unwrap()
                    };
                    prop_assert!(written <= run.len());
                    prop_assert!(writable || written == 0);
                    if written < run.len() {
                        prop_assert!(!producer.is_writable().unwrap(), "a short write is a full ring");
                    }
                    queue.extend(&run[..written]);
                    for _ in 0..written {
                        bytes.next();
                    }
                    let woken = written > 0 && producer.wake_reader();
                    if written > 0 && reader_parked {
                        prop_assert!(woken);
                    }
                    reader_parked &= !woken;
                }
                Step::Read(len) => {
                    let got = read(&mut consumer, len);
                    prop_assert_eq!(got.len(), len.min(before));
                    prop_assert_eq!(&got, &queue.drain(..got.len()).collect::<Vec<u8>>());
                    let woken = !got.is_empty() && consumer.wake_writer();
                    if writer_parked && queue.is_empty() {
                        prop_assert!(woken);
                    }
                    writer_parked &= !woken;
                }
                Step::Peek(len) => {
                    let got = peek(&mut consumer, len);
                    prop_assert_eq!(got.len(), len.min(before));
                    prop_assert_eq!(&got, &queue.iter().copied().take(len).collect::<Vec<u8>>());
                }
                Step::Shrink => {
                    let grown = producer.is_grown();
                    let done = producer.shrink().unwrap();
                    prop_assert!(!done || !producer.is_grown());
                    prop_assert!(!done || !grown || before == 0);
                }
                Step::WaitForSpace => {
                    let parked = producer.wait().unwrap();
                    prop_assert!(!parked || before > 0, "nobody waits for space in an empty ring");
                    prop_assert!(parked || producer.is_writable().unwrap());
                    writer_parked = parked;
                }
                Step::WaitForData => {
                    let parked = consumer.wait().unwrap();
                    prop_assert_eq!(parked, before == 0);
                    reader_parked = parked;
                }
                Step::Refuse(refuse) => producer.memory().refuse_commits(refuse),
            }
            prop_assert_eq!(consumer.is_readable().unwrap(), !queue.is_empty());
            prop_assert_eq!(producer.is_consumed().unwrap(), queue.is_empty());
        }
        prop_assert_eq!(read(&mut consumer, 1000), queue.into_iter().collect::<Vec<u8>>());
    }

    #[test]
    fn scribbles_never_panic_or_hang(
        steps in steps(),
        scribbles in prop::collection::vec((0..7_usize, 0..16_usize, small_or_any()), 1..120),
    ) {
        let (mut producer, mut consumer) = ring::<4>(4);
        let memory: Small = producer.memory().clone();
        let header = memory.header();
        let mut bytes = [0_u8; 64];
        for (step, (field, record, value)) in steps.into_iter().zip(scribbles) {
            match step {
                Step::Write(len) => { let _ = producer.write(&bytes[..len]); }
                Step::WriteVectored(lens) => {
                    let slices: Vec<_> = lens.iter().map(|len| IoSlice::new(&bytes[..*len])).collect();
                    let _ = producer.write_vectored(&slices);
                }
                Step::Read(len) => { let _ = consumer.read(&mut &mut bytes[..len]); }
                Step::Peek(len) => { let _ = consumer.peek(&mut &mut bytes[..len]); }
                Step::Shrink => { let _ = producer.shrink(); }
                Step::WaitForSpace => { let _ = (producer.wait(), producer.is_writable()); }
                Step::WaitForData => { let _ = consumer.wait(); }
                Step::Refuse(refuse) => memory.refuse_commits(refuse),
            }
            let _ = (producer.wake_reader(), consumer.wake_writer());
            let _ = (producer.reader_flags(), consumer.writer_flags(), producer.is_consumed());
            match field {
                0 => header.producer.prod.store(value, Ordering::Relaxed),
                1 => header.producer.hop_count.store(value, Ordering::Relaxed),
                2 => header.producer.wake_at.store(value, Ordering::Relaxed),
                3 => header.hops.0[record].position.store(value, Ordering::Relaxed),
                4 => header.hops.0[record].segment.store(value, Ordering::Relaxed),
                5 => header.consumer.cons.store(value, Ordering::Relaxed),
                _ => header.consumer.hop.store(value, Ordering::Relaxed),
            }
        }
    }
}

fn small_or_any() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0..80_u64, 1 => any::<u64>(), 1 => (u64::MAX - 80)..=u64::MAX]
}

/// The bytes of the stress test: any byte lost, doubled or torn shows.
fn byte_at(position: u64) -> u8 {
    (position.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

#[test]
fn two_threads_pass_every_byte() {
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    const TOTAL: u64 = 8 << 20;
    let (mut producer, mut consumer) = ring::<64>(6);
    let reader = std::thread::current();
    let (tell_writer, writer) = mpsc::channel::<std::thread::Thread>();
    let sender = std::thread::spawn(move || {
        tell_writer.send(std::thread::current()).unwrap();
        let mut random = 1_u64;
        let mut src = [0; 5000];
        while producer.position() < TOTAL {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let most = if random & 1 << 40 == 0 { 100 } else { src.len() as u64 };
            let len = (1 + (random >> 33) % most).min(TOTAL - producer.position());
            for (i, byte) in src[..len as usize].iter_mut().enumerate() {
                *byte = byte_at(producer.position() + i as u64);
            }
            let mut rest = &src[..len as usize];
            while !rest.is_empty() {
                let written = producer.write(rest).unwrap();
                rest = &rest[written..];
                if producer.wake_reader() {
                    reader.unpark();
                }
                // Parking consumes a token that an earlier wake-up may have left; going round again is harmless.
                if written == 0 && producer.wait().unwrap() {
                    std::thread::park();
                }
            }
            if random & 0xff << 20 == 0 {
                producer.shrink().unwrap();
            }
        }
        producer.set_flags(Flags::DONE_WRITING);
        producer.wake_reader();
        reader.unpark();
    });
    let writer = writer.recv().unwrap();
    let mut dst = [0; 3000];
    let mut position = 0;
    loop {
        let len = 1 + (position as usize * 7919) % dst.len();
        let count = consumer.read(&mut &mut dst[..len]).unwrap();
        for byte in &dst[..count] {
            assert_eq!(*byte, byte_at(position), "at {position}");
            position += 1;
        }
        if count > 0 {
            if consumer.wake_writer() {
                writer.unpark();
            }
        } else if consumer.wait().unwrap() {
            std::thread::park();
        } else if !consumer.writer_flags().is_empty() && !consumer.is_readable().unwrap() {
            break;
        }
    }
    assert_eq!(position, TOTAL);
    sender.join().unwrap();
}
