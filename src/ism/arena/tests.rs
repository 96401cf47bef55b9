use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::super::dmb::{Direction, Flags};
use super::super::ring::{Consumer, Producer};
use super::*;
use crate::sync::Ordering;

const DMB: usize = 64 * 1024;

fn attach(arena: &Arena) -> Arc<ArenaMap> {
    let fd = arena.map().fd().try_clone_to_owned().unwrap();
    ArenaMap::attach(fd, arena.map().slots(), arena.map().dmb_size()).unwrap()
}

fn get(dmb: &DmbMemory, segment: u32, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![MaybeUninit::new(0xee); len];
    dmb.copy_out(segment, offset, &mut bytes);
    // SAFETY: every byte was initialised when the vector was made.
    bytes.into_iter().map(|byte| unsafe { byte.assume_init() }).collect()
}

#[test]
fn the_parts_are_disjoint_and_fill_the_file() {
    for (slots, dmb_size) in [(1, 4096), (1, 8192), (3, 4096), (64, 65536), (7, 4 << 20), (2, 1 << 30)] {
        let layout = Layout::new(slots, dmb_size).unwrap();
        let mut parts: Vec<_> = std::iter::once(0..CONTROL_BYTES).collect();
        for slot in 0..slots {
            parts.push(layout.header(slot));
            parts.extend((0..layout.segments).map(|segment| layout.segment(slot, segment)));
            let area: usize = (1..layout.segments).map(|segment| layout.segment(slot, segment).len()).sum();
            assert_eq!(layout.area(slot).len(), area);
            if layout.segments > 1 {
                assert_eq!(layout.area(slot).start, layout.segment(slot, 1).start);
                assert_eq!(layout.area(slot).end, layout.segment(slot, layout.segments - 1).end);
            }
            assert_eq!(
                layout.segment(slot, layout.segments - 1).len(),
                dmb_size,
                "the largest alone is dmb_size"
            );
        }
        parts.sort_by_key(|part| part.start);
        assert!(parts.windows(2).all(|pair| pair[0].end <= pair[1].start), "{slots} slots of {dmb_size}");
        assert!(parts.last().unwrap().end <= layout.total);
        assert!(parts.iter().skip(1).all(|part| part.start % align_of::<DmbHeader>() == 0));
    }
}

#[test]
fn impossible_sizes_are_refused() {
    let refused = |slots, dmb_size| {
        let error = Arena::create(slots, dmb_size).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
    };
    for slots in [0, CONNECTIONS + 1, u32::MAX] {
        refused(slots, DMB);
    }
    for dmb_size in [0, 1, 2048, 4095, 4097, 12288, 2 << 30, usize::MAX, 1 << 63] {
        refused(4, dmb_size);
    }
    Arena::create(4, SMALLEST_SEGMENT).unwrap();
    Arena::create(4, LARGEST_DMB).unwrap();
}

#[test]
fn only_what_was_announced_can_be_attached() {
    let arena = Arena::create(8, DMB).unwrap();
    let fd = || arena.map().fd().try_clone_to_owned().unwrap();
    ArenaMap::attach(fd(), 8, DMB).unwrap();
    for (slots, dmb_size) in [(7, DMB), (9, DMB), (8, 2 * DMB), (8, DMB / 2), (4, 2 * DMB)] {
        let error = ArenaMap::attach(fd(), slots, dmb_size).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
    assert_eq!(ArenaMap::attach(fd(), 0, DMB).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(ArenaMap::attach(fd(), 8, 1000).unwrap_err().kind(), io::ErrorKind::InvalidInput);

    // The right size, but its maker could still shrink it under our feet.
    let flags = rustix::fs::MemfdFlags::ALLOW_SEALING;
    let loose = rustix::fs::memfd_create(c"loose", flags).unwrap();
    rustix::fs::ftruncate(&loose, Layout::new(8, DMB).unwrap().total as u64).unwrap();
    assert_eq!(ArenaMap::attach(loose, 8, DMB).unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn slots_run_out_and_come_back() {
    let arena = Arena::create(3, DMB).unwrap();
    let taken: Vec<_> = (0..3).map(|_| arena.allocate().unwrap().unwrap()).collect();
    assert_eq!(taken, [0, 1, 2]);
    assert_eq!(arena.allocate().unwrap(), None);
    assert_eq!(arena.in_use(), 3);
    arena.release(1);
    assert_eq!(arena.in_use(), 2);
    assert_eq!(arena.allocate().unwrap(), Some(1));
    assert_eq!(arena.allocate().unwrap(), None);
    assert!(arena.map().dmb(2).is_some() && arena.map().dmb(3).is_none());
    assert_eq!(arena.map().claim(3).unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn a_slot_released_twice_is_free_once() {
    let arena = Arena::create(2, DMB).unwrap();
    let slot = arena.allocate().unwrap().unwrap();
    arena.release(slot);
    // Debug builds say so.
    let _ = catch_unwind(AssertUnwindSafe(|| arena.release(slot)));
    let _ = catch_unwind(AssertUnwindSafe(|| arena.release(77)));
    assert_eq!(arena.in_use(), 0);
    let taken = (arena.allocate().unwrap(), arena.allocate().unwrap(), arena.allocate().unwrap());
    assert_eq!(taken, (Some(0), Some(1), None));
}

#[test]
fn both_mappings_are_one_memory() {
    let arena = Arena::create(4, DMB).unwrap();
    arena.allocate().unwrap();
    let slot = arena.allocate().unwrap().unwrap();
    let (ours, theirs) = (arena.map().dmb(slot).unwrap(), attach(&arena).claim(slot).unwrap());
    assert_eq!(ours.segments(), 5);
    for segment in 0..ours.segments() {
        theirs.commit(segment).unwrap();
        let last = segment_bytes(segment) - 3;
        theirs.copy_in(segment, last, &[segment as u8 + 1; 3]);
        theirs.copy_in(segment, 0, b"first");
    }
    for segment in 0..ours.segments() {
        assert_eq!(get(&ours, segment, 0, 6), b"first\0");
        assert_eq!(
            get(&ours, segment, segment_bytes(segment) - 4, 4),
            [0, segment as u8 + 1, segment as u8 + 1, segment as u8 + 1]
        );
    }
    theirs.header().switch(41).unwrap();
    assert_eq!(ours.header().direction(), Direction::Switched(41));
    assert!(arena.map().signals().is_idle());
}

#[test]
fn copies_cannot_leave_their_segment() {
    let arena = Arena::create(2, DMB).unwrap();
    let slot = arena.allocate().unwrap().unwrap();
    let dmb = arena.map().dmb(slot).unwrap();
    let far = [(0, 4096, 1), (0, 4095, 2), (1, 1, 8192), (4, 0, DMB + 1), (5, 0, 1), (u32::MAX, 0, 0)];
    for (segment, offset, len) in far.into_iter().chain([(0, usize::MAX, 2), (0, usize::MAX, 1)]) {
        let src = vec![0; len];
        assert!(catch_unwind(AssertUnwindSafe(|| dmb.copy_in(segment, offset, &src))).is_err());
        let mut dst = vec![MaybeUninit::uninit(); len];
        assert!(catch_unwind(AssertUnwindSafe(|| dmb.copy_out(segment, offset, &mut dst))).is_err());
    }
    dmb.copy_in(0, 4096, &[]);
}

#[test]
fn nothing_of_a_connection_remains_in_its_slot() {
    let arena = Arena::create(4, DMB).unwrap();
    let slots: Vec<_> = (0..3).map(|_| arena.allocate().unwrap().unwrap()).collect();
    let idle = arena.committed_bytes();
    let dmbs: Vec<_> = slots.iter().map(|slot| arena.map().dmb(*slot).unwrap()).collect();
    for dmb in &dmbs {
        for segment in 0..dmb.segments() {
            dmb.commit(segment).unwrap();
            dmb.copy_in(segment, 0, &vec![0xaa; segment_bytes(segment)]);
        }
        dmb.header().switch(1000).unwrap();
        dmb.header().producer.prod.store(77, Ordering::Relaxed);
        dmb.header().producer.flags.store(Flags::ABORT.bits(), Ordering::Relaxed);
    }
    assert!(arena.committed_bytes() > idle + 3 * DMB as u64);
    arena.release(slots[1]);

    let file = File::from(arena.map().fd().try_clone_to_owned().unwrap());
    let dirty = |range: Range<usize>| {
        let mut bytes = vec![0xee; range.len()];
        file.read_exact_at(&mut bytes, range.start as u64).unwrap();
        bytes.iter().any(|byte| *byte != 0)
    };
    let layout = arena.map().layout;
    for slot in &slots {
        let expected = *slot != slots[1];
        let header = arena.map().header(*slot);
        assert_eq!(header.direction() != Direction::Open, expected);
        assert_eq!(header.producer.prod.load(Ordering::Relaxed) != 0, expected);
        assert_eq!(header.producer.flags.load(Ordering::Relaxed) != 0, expected);
        for segment in 0..layout.segments {
            assert_eq!(dirty(layout.segment(*slot, segment)), expected, "slot {slot} segment {segment}");
        }
    }
    arena.release(slots[0]);
    arena.release(slots[2]);
    assert_eq!(arena.committed_bytes(), idle, "the large segments were given back");

    // The next connection finds a fresh header.
    let slot = arena.allocate().unwrap().unwrap();
    assert_eq!(slot, slots[2], "the last one released is the first one reused");
    let header = arena.map().dmb(slot).unwrap();
    assert_eq!(header.header().direction(), Direction::Open);
    assert_eq!(header.header().producer.prod.load(Ordering::Relaxed), 0);
}

#[test]
fn memory_is_taken_before_it_is_touched_and_not_earlier() {
    let arena = Arena::create(1000, 4 << 20).unwrap();
    assert_eq!(arena.committed_bytes(), CONTROL_BYTES as u64);
    let before = arena.committed_bytes();
    for _ in 0..100 {
        arena.allocate().unwrap().unwrap();
    }
    let each = (arena.committed_bytes() - before) / 100;
    assert_eq!(each, (HEADER_BYTES + SMALLEST_SEGMENT) as u64);
    // Attaching, claiming and touching adds nothing that was not allocated.
    let (before, theirs) = (arena.committed_bytes(), attach(&arena));
    let dmb = theirs.claim(99).unwrap();
    dmb.copy_in(0, 0, &[1; SMALLEST_SEGMENT]);
    assert_eq!(arena.committed_bytes(), before);
    dmb.commit(10).unwrap();
    assert_eq!(arena.committed_bytes(), before + (4 << 20));
    dmb.punch(10).unwrap();
    assert_eq!(arena.committed_bytes(), before);
}

#[test]
fn a_slot_whose_pages_the_peer_took_away_works_again() {
    let arena = Arena::create(4, DMB).unwrap();
    let slot = arena.allocate().unwrap().unwrap();
    arena.release(slot);
    let layout = arena.map().layout;
    sys::punch(arena.map().fd(), 0, layout.total as u64).unwrap();
    assert_eq!(arena.committed_bytes(), 0);
    assert_eq!(arena.allocate().unwrap(), Some(slot));
    assert!(arena.committed_bytes() >= 8192, "header and first segment");
    let theirs = attach(&arena);
    assert!(arena.committed_bytes() >= 8192 + CONTROL_BYTES as u64, "attaching allocates the signal bits");
    assert!(theirs.signals().is_idle());
}

#[test]
fn a_forked_child_does_not_inherit_the_mapping() {
    let arena = Arena::create(4, DMB).unwrap();
    let start = format!("{:x}-", arena.map().map.as_ptr() as usize);
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let ours = smaps.lines().skip_while(|line| !line.starts_with(&start));
    let flags = ours.clone().find(|line| line.starts_with("VmFlags:")).unwrap();
    assert!(flags.split_whitespace().any(|flag| flag == "dc"), "{flags}");
    assert!(flags.split_whitespace().any(|flag| flag == "sh"), "shared: {flags}");
}

#[test]
fn threads_share_slots_without_meeting() {
    let arena = Arena::create(8, DMB).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let arena = &arena;
            scope.spawn(move || {
                for round in 0..200 {
                    let Some(slot) = arena.allocate().unwrap() else { continue };
                    let dmb = arena.map().dmb(slot).unwrap();
                    assert_eq!(get(&dmb, 0, 0, 64), [0; 64], "clean");
                    dmb.copy_in(0, 0, &[thread + 1; 64]);
                    if round % 3 == 0 {
                        std::thread::yield_now();
                    }
                    assert_eq!(get(&dmb, 0, 0, 64), [thread + 1; 64], "nobody else has this slot");
                    arena.release(slot);
                }
            });
        }
    });
    assert_eq!(arena.in_use(), 0);
}

#[test]
fn a_ring_runs_through_two_mappings() {
    const TOTAL: usize = 8 << 20;
    let arena = Arena::create(2, DMB).unwrap();
    let slot = arena.allocate().unwrap().unwrap();
    let theirs = attach(&arena).claim(slot).unwrap();
    let byte = |position: usize| (position.wrapping_mul(31) >> 3) as u8;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let writer = std::thread::spawn(move || {
        let mut producer = Producer::new(theirs);
        let mut position = 0;
        while position < TOTAL {
            let len = (position % 10_007 + 1).min(TOTAL - position);
            let chunk: Vec<u8> = (position..position + len).map(byte).collect();
            let written = producer.write(&chunk).unwrap();
            position += written;
            if written == 0 {
                assert!(std::time::Instant::now() < deadline, "stuck at {position}");
                std::thread::yield_now();
            }
        }
        assert!(producer.is_grown());
    });
    let mut consumer = Consumer::new(arena.map().dmb(slot).unwrap());
    let mut position = 0;
    while position < TOTAL {
        let mut buf = Vec::with_capacity(7000);
        let read = consumer.read(&mut bytes::BufMut::limit(&mut buf, 7000)).unwrap();
        assert!(buf.iter().enumerate().all(|(at, found)| *found == byte(position + at)), "near {position}");
        position += read;
        if read == 0 {
            assert!(std::time::Instant::now() < deadline, "stuck at {position}");
            std::thread::yield_now();
        }
    }
    writer.join().unwrap();
    drop(consumer);
    arena.release(slot);
    assert_eq!(arena.in_use(), 0);
}

#[test]
fn maps_may_be_shared_among_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<ArenaMap>();
    shared::<Arena>();
    shared::<DmbMemory>();
}
