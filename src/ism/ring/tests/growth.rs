//! How a ring becomes large and small again.

use super::*;

#[test]
fn a_larger_segment_is_wished_for_on_full_and_after_a_refusal_only_in_time() {
    let (mut producer, mut consumer) = ring::<4>(1 << 20);
    assert_eq!(producer.write(&[1; 4]).unwrap(), 4);
    assert_eq!(producer.take_wish(), None, "it fits");
    assert_eq!(producer.write(&[2; 100]).unwrap(), 0);
    assert_eq!(producer.take_wish(), Some(128), "what did not fit fits into it");
    assert!(!producer.is_writable().unwrap());
    assert_eq!(producer.write(&[2; 4]).unwrap(), 0);
    assert!(producer.wait().unwrap());
    assert_eq!(producer.take_wish(), None, "it was asked for");
    producer.refused(Refusal::Memory);
    for _ in 0..15 {
        assert_eq!(read(&mut consumer, 4).len(), 4);
        assert_eq!(producer.write(&[3; 5]).unwrap(), 4);
        assert_eq!(producer.take_wish(), None);
    }
    assert_eq!(read(&mut consumer, 4).len(), 4);
    assert_eq!(producer.write(&[3; 5]).unwrap(), 4);
    assert_eq!(producer.take_wish(), Some(32), "after a while it is");
    producer.refused(Refusal::Limit);
    assert_eq!((producer.write(&[3; 5]).unwrap(), producer.take_wish()), (0, None));
    read(&mut consumer, 4);
    assert_eq!((producer.write(&[3; 5]).unwrap(), producer.take_wish()), (4, Some(32)));
    producer.refused(Refusal::NotNeeded);
    assert!(producer.wait().unwrap());
    let segment = grant(&mut producer, &mut consumer).expect("at once when it was not needed");
    assert!(!producer.wait().unwrap() && producer.is_writable().unwrap() && producer.is_grown());
    assert_eq!(segment.size(), 32);
}

#[test]
fn what_is_expected_is_wished_for_before_it_is_written() {
    let (mut producer, mut consumer) = ring::<4>(64);
    producer.expect(4);
    assert_eq!(producer.take_wish(), None, "that fits");
    producer.expect(50);
    let segment = grant(&mut producer, &mut consumer).expect("a wish");
    assert_eq!(segment.size(), 64);
    assert_eq!(producer.write(&[1; 50]).unwrap(), 50, "at once");
    assert_eq!(read(&mut consumer, 50), [1; 50]);
}

#[test]
fn only_what_was_asked_for_is_granted() {
    let (mut producer, mut consumer) = ring::<4>(32);
    let segment = HeapSegment::new(8);
    assert!(!producer.granted(1, segment.clone()) && !producer.declined(1));
    producer.write(&[1; 5]).unwrap();
    assert!(!producer.granted(1, segment.clone()), "the wish was not told yet");
    grant(&mut producer, &mut consumer).unwrap();
    producer.write(&[1; 40]).unwrap();
    assert!(producer.take_wish().is_some());
    assert!(!producer.granted(1, segment), "that one was granted before");
    assert!(!producer.declined(1) && producer.declined(2));
}

#[test]
fn shrinking_waits_for_the_last_byte_and_gives_everything_back() {
    let (mut producer, mut consumer) = ring::<4>(16);
    assert_eq!(producer.shrink().unwrap(), Shrunk::Small, "nothing to do");
    assert_eq!(write(&mut producer, &mut consumer, 16, &[1; 20]), 20);
    assert_eq!(producer.shrink().unwrap(), Shrunk::NotYet);
    assert_eq!(read(&mut consumer, 19).len(), 19);
    assert!(!producer.is_consumed().unwrap());
    assert_eq!(producer.shrink().unwrap(), Shrunk::NotYet, "one byte is unread");
    assert_eq!(read(&mut consumer, 19).len(), 1);
    assert!(producer.is_consumed().unwrap());
    assert_eq!(consumer.lent_bytes(), 16);
    assert_eq!(producer.shrink().unwrap(), Shrunk::GaveBack(1));
    assert!(!producer.is_grown());
    consumer.take_back(1).unwrap();
    assert_eq!(consumer.lent_bytes(), 0);
    assert!(!consumer.is_readable().unwrap());
    assert_eq!(write(&mut producer, &mut consumer, 16, &[2; 30]), 20, "up again");
    assert_eq!(read(&mut consumer, 30), [2; 20]);
}

#[test]
fn a_grant_that_is_not_used_is_given_back() {
    let (mut producer, mut consumer) = ring::<4>(16);
    producer.write(&[1; 5]).unwrap();
    let segment = grant(&mut producer, &mut consumer).unwrap();
    assert_eq!(read(&mut consumer, 5).len(), 4);
    assert_eq!(producer.shrink().unwrap(), Shrunk::GaveBack(1), "from the first segment, without a hop");
    consumer.take_back(1).unwrap();
    assert!(segment.is_alone(), "both ends let go");

    // One is in use, the next one can not be mapped.
    assert_eq!(write(&mut producer, &mut consumer, 16, &[1; 20]), 20);
    producer.write(&[1]).unwrap();
    let declined = HeapSegment::new(producer.take_wish().unwrap() as usize);
    let number = consumer.lend(declined.clone());
    assert!(producer.declined(number));
    consumer.take_back(number).unwrap();
    assert!(declined.is_alone());
    assert_eq!(read(&mut consumer, 30), [1; 20], "what bytes lie in stays");

    // And one whose grant could not be sent.
    let unsent = HeapSegment::new(8);
    let number = consumer.lend(unsent.clone());
    consumer.revoke(number);
    assert!(unsent.is_alone());
    assert_eq!(producer.write(&[2; 7]).unwrap(), 7);
    assert_eq!(read(&mut consumer, 30), [2; 7]);
}

#[test]
fn hops_wait_for_a_free_record() {
    let (mut producer, mut consumer) = ring::<4>(8);
    // Each round makes two hops.
    for round in 0..40_u8 {
        assert_eq!(write(&mut producer, &mut consumer, 8, &[round; 5]), 5);
        assert_eq!(read(&mut consumer, 9), [round; 5]);
        let Shrunk::GaveBack(number) = producer.shrink().unwrap() else { panic!("it is empty") };
        consumer.take_back(number).unwrap();
    }
    // Nobody follows: 16 grants of the largest size need all records.
    let (mut producer, mut consumer) = ring::<4>(4);
    let bytes: Vec<u8> = (0..200).collect();
    let mut written = producer.write(&bytes).unwrap();
    while grant(&mut producer, &mut consumer).is_some() {
        written += producer.write(&bytes[written..]).unwrap();
    }
    assert_eq!(written, 17 * 4, "16 hops");
    assert!(!producer.is_writable().unwrap() && producer.wait().unwrap(), "a 17th grant waits");
    assert_eq!(read(&mut consumer, 5), bytes[..5], "follows one hop");
    assert!(producer.is_writable().unwrap());
    assert_eq!(producer.write(&bytes[written..]).unwrap(), 4);
    assert_eq!(read(&mut consumer, 200), bytes[5..72]);
    assert_eq!(consumer.lent_bytes(), 4, "the last one is in use");
}
