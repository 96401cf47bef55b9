//! Peers that break the rules of a ring.

use super::*;

/// Every rule of the peer's that can be broken, each broken once.
#[test]
fn each_broken_rule_is_named() {
    fn consumer_says(scribble: impl FnOnce(&DmbHeader), words: &str) {
        let (mut producer, mut consumer) = ring::<4>(8);
        assert_eq!(write(&mut producer, &mut consumer, 8, &[1; 6]), 6);
        assert_eq!(read(&mut consumer, 5).len(), 5);
        consumer.lend(HeapSegment::new(16));
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
        let (mut producer, mut consumer) = ring::<4>(4);
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
fn a_segment_that_was_left_is_not_entered_again() {
    let (mut producer, mut consumer) = ring::<4>(8);
    assert_eq!(write(&mut producer, &mut consumer, 8, &[1; 6]), 6);
    assert_eq!(read(&mut consumer, 6).len(), 6);
    let Shrunk::GaveBack(number) = producer.shrink().unwrap() else { panic!("it is empty") };
    consumer.take_back(number).unwrap();
    assert_eq!(producer.write(&[2; 4]).unwrap(), 4);
    let header = producer.memory().header();
    header.hops.0[2].position.store(10, Ordering::Relaxed);
    header.hops.0[2].segment.store(number, Ordering::Relaxed);
    header.producer.hop_count.store(3, Ordering::Relaxed);
    let error = consumer.is_readable().unwrap_err();
    assert!(error.to_string().contains("from segment 0 to segment 1"), "{error}");
}

#[test]
fn hops_without_bytes_do_not_go_on_for_ever() {
    let _watchdog = Watchdog::new(Duration::from_secs(60));
    let (producer, mut consumer) = ring::<4>(8);
    let header = producer.memory().header();
    // All records say: at position 0, on in segment 0.
    header.producer.hop_count.store(16, Ordering::Relaxed);
    header.producer.prod.store(1, Ordering::Relaxed);
    let error = consumer.is_readable().unwrap_err();
    assert!(error.to_string().contains("without a byte"), "{error}");
}

#[test]
fn a_receiver_that_lies_about_hops_is_caught() {
    let (mut producer, mut consumer) = ring::<4>(4);
    for _ in 0..16 {
        producer.write(&[0; 9]).unwrap();
        grant(&mut producer, &mut consumer).unwrap();
    }
    producer.write(&[0; 9]).unwrap();
    grant(&mut producer, &mut consumer).unwrap();
    read(&mut consumer, 1);
    producer.memory().header().consumer.hop.store(17, Ordering::Relaxed);
    let error = producer.write(&[0; 9]).unwrap_err();
    assert!(error.to_string().contains("follows hop 17"), "{error}");
}
