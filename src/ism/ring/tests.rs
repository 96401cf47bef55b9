//! The ring against a queue, against a peer that scribbles, and against a second thread.

mod growth;
mod in_place;
mod rules;

use super::super::dmb::Flags;
use super::heap::{HeapMemory, HeapSegment};
use super::*;
use crate::sync::Ordering;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::mpsc;
use std::time::Duration;

type Small = HeapMemory<4>;

fn ring<const S: usize>(window: usize) -> (Producer<HeapMemory<S>>, Consumer<HeapMemory<S>>) {
    let memory = HeapMemory::<S>::new();
    (Producer::new(memory.clone(), window), Consumer::new(memory))
}

/// Grants what the sender wishes, if it wishes anything.
fn grant<const S: usize>(
    producer: &mut Producer<HeapMemory<S>>,
    consumer: &mut Consumer<HeapMemory<S>>,
) -> Option<HeapSegment> {
    let segment = HeapSegment::new(producer.take_wish()? as usize);
    let number = consumer.lend(segment.clone());
    assert!(producer.granted(number, segment.clone()));
    Some(segment)
}

/// Writes what fits, with as many grants as it takes, up to the window.
fn write<const S: usize>(
    producer: &mut Producer<HeapMemory<S>>,
    consumer: &mut Consumer<HeapMemory<S>>,
    window: u64,
    bytes: &[u8],
) -> usize {
    let mut written = producer.write(bytes).unwrap();
    while written < bytes.len() && consumer.largest_lent() < window {
        if grant(producer, consumer).is_none() {
            break;
        }
        written += producer.write(&bytes[written..]).unwrap();
    }
    written
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

fn bytes_of(run: &Run<HeapSegment>) -> Vec<u8> {
    let (segment, range) = run.place();
    let mut bytes = vec![MaybeUninit::uninit(); range.len()];
    segment.copy_out(range.start, &mut bytes);
    // SAFETY: `copy_out` has filled all of it.
    bytes.into_iter().map(|byte| unsafe { byte.assume_init() }).collect()
}

/// Ends the process if a test that can hang does.
struct Watchdog(Option<(mpsc::Sender<()>, std::thread::JoinHandle<()>)>);

impl Watchdog {
    fn new(limit: Duration) -> Watchdog {
        // Miri takes a thousand times as long.
        let limit = if cfg!(miri) { limit * 100 } else { limit };
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
    let (mut producer, mut consumer) = ring::<4>(64);
    assert_eq!(producer.write(&[0, 1, 2]).unwrap(), 3);
    assert_eq!(read(&mut consumer, 2), [0, 1]);
    // Wraps in segment 0 (3 free), then hops to one of 32 and to one of 64.
    let bytes: Vec<u8> = (3..130).collect();
    assert_eq!(write(&mut producer, &mut consumer, 8, &bytes[..7]), 7);
    assert_eq!(consumer.largest_lent(), 32, "8 times 4, as the 4 that were left do not tell more");
    assert_eq!(write(&mut producer, &mut consumer, 64, &bytes[7..]), (32 - 4) + 64);
    assert_eq!(producer.write(&[99]).unwrap(), 0, "full");
    assert_eq!(peek(&mut consumer, 200), (2..102).collect::<Vec<u8>>(), "a look over both hops");
    assert_eq!(consumer.lent_bytes(), 32 + 64);
    assert_eq!(read(&mut consumer, 200), (2..102).collect::<Vec<u8>>());
    assert_eq!(consumer.lent_bytes(), 64, "what was left is given back");
    assert!(!consumer.is_readable().unwrap());
    assert_eq!(producer.write(&bytes).unwrap(), 64, "the largest segment stays the home of the stream");
    assert_eq!(producer.position(), 102 + 64);
    assert_eq!(consumer.position(), 102);
}

#[test]
fn a_read_fills_the_first_chunk_of_any_buffer() {
    let (mut producer, mut consumer) = ring::<8>(8);
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
    let (mut producer, mut consumer) = ring::<16>(16);
    let slices = [&[1, 2][..], &[], &[3, 4, 5], &[6; 20], &[7]].map(IoSlice::new);
    assert_eq!(producer.write_vectored(&slices).unwrap(), 16);
    assert_eq!(read(&mut consumer, 20), [1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6]);
}

#[test]
fn a_waiting_reader_is_woken_once() {
    let (mut producer, mut consumer) = ring::<4>(4);
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
    let (mut producer, mut consumer) = ring::<8>(8);
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
    let (mut producer, mut consumer) = ring::<8>(8);
    producer.write(&[1; 8]).unwrap();
    assert_eq!(producer.write(&[1]).unwrap(), 0);
    read(&mut consumer, 3);
    assert!(producer.wait().unwrap(), "below the mark");
    read(&mut consumer, 1);
    assert_eq!(producer.write(&[1; 8]).unwrap(), 4);
    read(&mut consumer, 8);
    assert!(!producer.wait().unwrap());
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    WriteVectored(Vec<usize>),
    Read(usize),
    Peek(usize),
    /// Bytes are shown, the sender writes more, and some of those that were shown are passed over.
    InPlace(usize, usize),
    Shrink,
    WaitForSpace,
    WaitForData,
    /// The sender's wish, if it has one, is granted or refused.
    Answer(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..40_usize).prop_map(Step::Write),
        1 => prop::collection::vec(0..12_usize, 0..5).prop_map(Step::WriteVectored),
        4 => (0..40_usize).prop_map(Step::Read),
        1 => (0..40_usize).prop_map(Step::Peek),
        3 => (0..40_usize, 0..40_usize).prop_map(|(pass, write)| Step::InPlace(pass, write)),
        1 => Just(Step::Shrink),
        1 => Just(Step::WaitForSpace),
        1 => Just(Step::WaitForData),
        2 => prop::bool::weighted(0.8).prop_map(Step::Answer),
    ];
    prop::collection::vec(step, 1..120)
}

/// More cases than usual, and as many fewer as `PROPTEST_CASES` says.
fn config() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { failure_persistence: None, cases: usual.cases.saturating_mul(3), ..usual }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_ring_is_a_bounded_queue(window in 2..7_u32, steps in steps()) {
        let (mut producer, mut consumer) = ring::<4>(1 << window);
        let mut lent = 0;
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
                Step::InPlace(pass, write) => {
                    let run = consumer.borrow().unwrap();
                    prop_assert_eq!(run.is_some(), before > 0);
                    let more: Vec<u8> = bytes.clone().take(write).collect();
                    let written = producer.write(&more).unwrap();
                    queue.extend(&more[..written]);
                    for _ in 0..written {
                        bytes.next();
                    }
                    let woken = written > 0 && producer.wake_reader();
                    reader_parked &= !woken;
                    if let Some(run) = run {
                        let shown = bytes_of(&run);
                        prop_assert!(shown.iter().eq(queue.iter().take(run.len())));
                        let pass = pass.min(run.len());
                        prop_assert_eq!(consumer.pass_over(run.position() + 1, pass), 0);
                        prop_assert_eq!(consumer.pass_over(run.position(), pass), pass);
                        queue.drain(..pass);
                        let woken = pass > 0 && consumer.wake_writer();
                        if writer_parked && queue.is_empty() {
                            prop_assert!(woken);
                        }
                        writer_parked &= !woken;
                    }
                }
                Step::Shrink => {
                    let grown = producer.is_grown();
                    match producer.shrink().unwrap() {
                        Shrunk::Small => prop_assert!(!grown),
                        Shrunk::NotYet => {}
                        Shrunk::GaveBack(number) => {
                            prop_assert!(grown && !producer.is_grown());
                            consumer.take_back(number).unwrap();
                            prop_assert_eq!(consumer.lent_bytes(), 0);
                        }
                    }
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
                Step::Answer(true) if lent < 40 => {
                    lent += u32::from(grant(&mut producer, &mut consumer).is_some());
                    // Who waits for space is told of a grant.
                    writer_parked &= !producer.is_writable().unwrap();
                }
                Step::Answer(_) => {
                    if producer.take_wish().is_some() {
                        producer.refused(Refusal::Limit);
                    }
                }
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
        let (mut producer, mut consumer) = ring::<4>(64);
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
                Step::InPlace(pass, write) => {
                    if let Ok(Some(run)) = consumer.borrow() {
                        let _ = (producer.write(&bytes[..write]), bytes_of(&run));
                        let _ = consumer.pass_over(run.position(), pass);
                        let _ = producer.write_run(&run);
                    }
                }
                Step::Shrink => {
                    if let Ok(Shrunk::GaveBack(number)) = producer.shrink() {
                        let _ = consumer.take_back(number);
                    }
                }
                Step::WaitForSpace => { let _ = (producer.wait(), producer.is_writable()); }
                Step::WaitForData => { let _ = consumer.wait(); }
                Step::Answer(true) => { let _ = grant(&mut producer, &mut consumer); }
                Step::Answer(false) => { let _ = consumer.take_back(value % 5); }
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
    const TOTAL: u64 = if cfg!(miri) { 16 << 10 } else { 8 << 20 };
    let (mut producer, mut consumer) = ring::<64>(4096);
    // The control messages: grants on their way to the sender, wishes and returns to the receiver.
    let (tell_sender, grants) = mpsc::channel::<(u64, HeapSegment)>();
    let (tell_receiver, wishes) = mpsc::channel::<Result<u64, u64>>();
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
                if let Some(bytes) = producer.take_wish() {
                    tell_receiver.send(Ok(bytes)).unwrap();
                    reader.unpark();
                }
                if let Ok((number, segment)) = grants.try_recv() {
                    assert!(producer.granted(number, segment));
                }
                if producer.wake_reader() {
                    reader.unpark();
                }
                // Parking consumes a token that an earlier wake-up may have left; going round again
                // is harmless.
                if written == 0 && producer.wait().unwrap() {
                    std::thread::park();
                }
            }
            if random & 0xff << 20 == 0 {
                if let Shrunk::GaveBack(number) = producer.shrink().unwrap() {
                    tell_receiver.send(Err(number)).unwrap();
                }
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
        match wishes.try_recv() {
            Ok(Ok(bytes)) => {
                let segment = HeapSegment::new(bytes as usize);
                tell_sender.send((consumer.lend(segment.clone()), segment)).unwrap();
                writer.unpark();
            }
            Ok(Err(number)) => consumer.take_back(number).unwrap(),
            Err(_) => {}
        }
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
