//! Bytes that are shown where they lie, and what goes from one ring to another.

use super::*;

fn shown<const S: usize>(consumer: &mut Consumer<HeapMemory<S>>) -> Vec<u8> {
    consumer.borrow().unwrap().map_or_else(Vec::new, |run| bytes_of(&run))
}

#[test]
fn what_is_shown_ends_at_the_wrap_and_at_the_hop() {
    let (mut producer, mut consumer) = ring::<4>(32);
    assert!(consumer.borrow().unwrap().is_none(), "an empty ring");
    producer.write(&[0, 1, 2]).unwrap();
    assert_eq!(read(&mut consumer, 2), [0, 1]);
    assert_eq!(write(&mut producer, &mut consumer, 8, &[3, 4, 5, 6, 7, 8]), 6);
    assert_eq!(shown(&mut consumer), [2, 3], "to the end of the segment");
    assert_eq!(shown(&mut consumer), [2, 3], "they stay");
    assert_eq!(consumer.pass_over(2, 2), 2);
    assert_eq!(shown(&mut consumer), [4, 5], "from its beginning to the hop");
    assert_eq!(consumer.pass_over(4, 1), 1);
    assert_eq!(shown(&mut consumer), [5]);
    assert_eq!(consumer.pass_over(5, 1), 1);
    let run = consumer.borrow().unwrap().unwrap();
    assert_eq!(bytes_of(&run), [6, 7, 8], "behind the hop");
    assert_eq!(consumer.pass_over(6, 4), 0, "more than there is");
    assert_eq!(read(&mut consumer, 1), [6]);
    assert_eq!(consumer.pass_over(run.position(), 1), 0, "somebody has read meanwhile");
    assert_eq!(shown(&mut consumer), [7, 8]);
}

#[test]
fn what_was_shown_shows_what_came_later_the_next_time() {
    let (mut producer, mut consumer) = ring::<8>(8);
    producer.write(&[1]).unwrap();
    assert_eq!(shown(&mut consumer), [1]);
    producer.write(&[2, 3]).unwrap();
    assert_eq!(shown(&mut consumer), [1, 2, 3]);
}

#[test]
fn what_is_shown_keeps_its_memory() {
    let (mut producer, mut consumer) = ring::<4>(32);
    assert_eq!(producer.write(&[1; 5]).unwrap(), 4);
    let segment = grant(&mut producer, &mut consumer).unwrap();
    assert_eq!(producer.write(&[2, 3]).unwrap(), 2);
    assert_eq!(read(&mut consumer, 4), [1; 4]);
    let run = consumer.borrow().unwrap().unwrap();
    assert_eq!(read(&mut consumer, 4), [2, 3]);
    let Shrunk::GaveBack(number) = producer.shrink().unwrap() else { panic!("an empty ring") };
    consumer.take_back(number).unwrap();
    assert_eq!(consumer.lent_bytes(), 0, "the ring has let go of it");
    drop((producer, consumer));
    assert!(!segment.is_alone());
    assert_eq!(bytes_of(&run), [2, 3]);
    drop(run);
    assert!(segment.is_alone());
}

#[test]
fn bytes_go_from_ring_to_ring() {
    let (mut first, mut from) = ring::<16>(16);
    let (mut to, mut last) = ring::<4>(4);
    let mut got = Vec::new();
    for turn in 0..40_u8 {
        let bytes: Vec<u8> = (0..7).map(|at| turn.wrapping_mul(7).wrapping_add(at)).collect();
        assert_eq!(first.write(&bytes).unwrap(), 7);
        while let Some(mut run) = from.borrow().unwrap() {
            let position = run.position();
            let written = to.write_run(&run).unwrap();
            run.advance(written);
            assert_eq!(from.pass_over(position, written), written);
            assert_eq!(run.position(), from.position());
            got.extend(read(&mut last, 3));
        }
        got.extend(read(&mut last, 4));
    }
    assert!(got.iter().copied().eq((0..280).map(|at: u32| at as u8)), "{got:?}");
}
