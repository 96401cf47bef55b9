use std::fs::File;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::super::dmb::{Direction, Flags};

use super::super::ring::{Consumer, Producer, Segment};
use super::*;
use crate::sync::Ordering;

/// As if everybody were another link.
fn link() -> Arc<Account> {
    Account::of_ourselves()
}

/// A mapping of the arena as the peer has it.
fn attach(file: &OwnedFd, slots: u32) -> Arc<ArenaMap> {
    ArenaMap::attach(file, slots, &link()).unwrap()
}

fn get(segment: &DmbSegment, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![MaybeUninit::new(0xee); len];
    segment.copy_out(offset, &mut bytes);
    // SAFETY: every byte was initialised when the vector was made.
    bytes.into_iter().map(|byte| unsafe { byte.assume_init() }).collect()
}

fn committed(file: &OwnedFd) -> u64 {
    sys::memory_of(file.as_fd()).unwrap()
}

#[test]
fn the_parts_are_disjoint_and_fill_the_file() {
    for slots in [1, 3, 64, 4096, CONNECTIONS] {
        let layout = Layout::new(slots).unwrap();
        let mut parts: Vec<_> = std::iter::once(0..CONTROL_BYTES).collect();
        for slot in 0..slots {
            parts.push(layout.header(slot));
            parts.push(layout.first(slot));
        }
        parts.sort_by_key(|part| part.start);
        assert!(parts.windows(2).all(|pair| pair[0].end <= pair[1].start), "{slots} slots");
        assert!(parts.last().unwrap().end <= layout.total);
        assert!(parts.iter().skip(1).all(|part| part.start % align_of::<DmbHeader>() == 0));
    }
    assert_eq!(Layout::new(64).unwrap().total, 384 << 10);
}

#[test]
fn impossible_sizes_are_refused() {
    for slots in [0, CONNECTIONS + 1, u32::MAX] {
        let error = Arena::create(slots, &link()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
    }
    let (_segment, file) = DmbSegment::create(1 << 16, &link()).unwrap();
    for bytes in [0, 1, 2048, 4095, 4097, 12288, 2 << 30, u64::MAX, 1 << 63] {
        let error = DmbSegment::attach(&file, bytes, &link()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
    }
}

#[test]
fn only_what_was_announced_can_be_attached() {
    let (_arena, file) = Arena::create(8, &link()).unwrap();
    ArenaMap::attach(&file, 8, &link()).unwrap();
    for slots in [40, 100, 4096] {
        let error = ArenaMap::attach(&file, slots, &link()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
    assert_eq!(ArenaMap::attach(&file, 0, &link()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    let (_segment, segment) = DmbSegment::create(1 << 16, &link()).unwrap();
    DmbSegment::attach(&segment, 1 << 16, &link()).unwrap();
    assert_eq!(
        DmbSegment::attach(&segment, 1 << 17, &link()).unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );

    // The right size, but its maker could still shrink it under our feet.
    let flags = rustix::fs::MemfdFlags::ALLOW_SEALING;
    let loose = rustix::fs::memfd_create(c"loose", flags).unwrap();
    rustix::fs::ftruncate(&loose, Layout::new(8).unwrap().total as u64).unwrap();
    assert_eq!(ArenaMap::attach(&loose, 8, &link()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    rustix::fs::ftruncate(&loose, 1 << 16).unwrap();
    assert_eq!(DmbSegment::attach(&loose, 1 << 16, &link()).unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn slots_run_out_and_come_back() {
    let (arena, _file) = Arena::create(3, &link()).unwrap();
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
    let (arena, _file) = Arena::create(2, &link()).unwrap();
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
    let (arena, file) = Arena::create(4, &link()).unwrap();
    arena.allocate().unwrap();
    let slot = arena.allocate().unwrap().unwrap();
    let (ours, theirs) = (arena.map().dmb(slot).unwrap(), attach(&file, 4).claim(slot).unwrap());
    let (larger, file) = DmbSegment::create(1 << 16, &link()).unwrap();
    let mapped = DmbSegment::attach(&file, 1 << 16, &link()).unwrap();
    // From here on nobody needs a descriptor.
    drop(file);
    for (here, there) in [(ours.first(), theirs.first()), (larger, mapped)] {
        assert_eq!(here.size(), there.size());
        let last = here.size() as usize - 3;
        there.copy_in(last, &[7; 3]);
        there.copy_in(0, b"first");
        assert_eq!(get(&here, 0, 6), b"first\0");
        assert_eq!(get(&here, last - 1, 4), [0, 7, 7, 7]);
    }
    theirs.header().switch(41).unwrap();
    assert_eq!(ours.header().direction(), Direction::Switched(41));
    assert!(arena.map().signals().is_idle());
}

#[test]
fn copies_cannot_leave_their_segment() {
    let (arena, _file) = Arena::create(2, &link()).unwrap();
    let slot = arena.allocate().unwrap().unwrap();
    let first = arena.map().dmb(slot).unwrap().first();
    let (larger, _file) = DmbSegment::create(1 << 16, &link()).unwrap();
    for (segment, size) in [(&first, 4096), (&larger, 1 << 16)] {
        for (offset, len) in [(size, 1), (size - 1, 2), (1, size), (usize::MAX, 2), (usize::MAX, 1)] {
            let src = vec![0; len];
            assert!(catch_unwind(AssertUnwindSafe(|| segment.copy_in(offset, &src))).is_err());
            let mut dst = vec![MaybeUninit::uninit(); len];
            assert!(catch_unwind(AssertUnwindSafe(|| segment.copy_out(offset, &mut dst))).is_err());
        }
        segment.copy_in(size, &[]);
    }
}

#[test]
fn nothing_of_a_connection_remains_in_its_slot() {
    let (arena, file) = Arena::create(4, &link()).unwrap();
    let slots: Vec<_> = (0..3).map(|_| arena.allocate().unwrap().unwrap()).collect();
    for slot in &slots {
        let dmb = arena.map().dmb(*slot).unwrap();
        dmb.first().copy_in(0, &[0xaa; SMALLEST_SEGMENT]);
        dmb.header().switch(1000).unwrap();
        dmb.header().producer.prod.store(77, Ordering::Relaxed);
        dmb.header().producer.flags.store(Flags::ABORT.bits(), Ordering::Relaxed);
    }
    arena.release(slots[1]);

    let file = File::from(file);
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
        assert_eq!(dirty(layout.first(*slot)), expected, "slot {slot}");
    }
    arena.release(slots[0]);
    arena.release(slots[2]);

    // The next connection finds a fresh header.
    let slot = arena.allocate().unwrap().unwrap();
    assert_eq!(slot, slots[2], "the last one released is the first one reused");
    let header = arena.map().dmb(slot).unwrap();
    assert_eq!(header.header().direction(), Direction::Open);
    assert_eq!(header.header().producer.prod.load(Ordering::Relaxed), 0);
}

#[test]
fn memory_is_taken_before_it_is_touched_and_not_earlier() {
    let (arena, file) = Arena::create(1000, &link()).unwrap();
    assert_eq!(committed(&file), CONTROL_BYTES as u64);
    let before = committed(&file);
    for _ in 0..100 {
        arena.allocate().unwrap().unwrap();
    }
    let each = (committed(&file) - before) / 100;
    assert_eq!(each, (HEADER_BYTES + SMALLEST_SEGMENT) as u64);
    // Attaching, claiming and touching adds nothing that was not allocated.
    let (before, theirs) = (committed(&file), attach(&file, 1000));
    theirs.claim(99).unwrap().first().copy_in(0, &[1; SMALLEST_SEGMENT]);
    assert_eq!(committed(&file), before);
    let (_segment, file) = DmbSegment::create(1 << 20, &link()).unwrap();
    assert_eq!(committed(&file), 1 << 20, "of a segment all is there at once");
}

#[test]
fn a_slot_whose_pages_the_peer_took_away_works_again() {
    let (arena, file) = Arena::create(4, &link()).unwrap();
    let slot = arena.allocate().unwrap().unwrap();
    arena.release(slot);
    sys::punch(file.as_fd(), 0, arena.map().layout.total as u64).unwrap();
    assert_eq!(committed(&file), 0);
    assert_eq!(arena.allocate().unwrap(), Some(slot));
    assert!(committed(&file) >= 8192, "header and first segment");
    assert!(arena.map().has_memory(slot).unwrap());
}

#[test]
fn a_peer_that_does_not_pay_for_its_arena_makes_nobody_else_pay() {
    let (arena, file) = Arena::create(4, &link()).unwrap();
    let (paid, unpaid) = (arena.allocate().unwrap().unwrap(), 3);
    let theirs = attach(&file, 4);
    let before = committed(&file);
    theirs.claim(paid).unwrap();
    if sys::is_filtered() {
        // What is missing is provided then.
        theirs.claim(unpaid).unwrap();
        return;
    }
    assert_eq!(theirs.claim(unpaid).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    drop(theirs);
    assert_eq!(committed(&file), before);
    sys::punch(file.as_fd(), 0, arena.map().layout.total as u64).unwrap();
    assert_eq!(arena.map().claim(paid).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    // What is sent first has no signal bits.
    let (sparse, file) = Arena::create(4, &link()).unwrap();
    sys::punch(file.as_fd(), 0, sparse.map().layout.total as u64).unwrap();
    assert_eq!(ArenaMap::attach(&file, 4, &link()).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    assert_eq!(committed(&file), 0, "looking allocates nothing");
}

#[test]
fn a_memory_file_has_one_use() {
    let (here, there, elsewhere) = (link(), link(), link());
    let stranger = Account::of(&sys::PeerCred { pid: 0, uid: 0, gid: 0 });
    let (_arena, arena) = Arena::create(4, &here).unwrap();
    let (_segment, segment) = DmbSegment::create(1 << 16, &here).unwrap();
    let refused = |account: &Arc<Account>| {
        let errors = [
            ArenaMap::attach(&arena, 4, account).unwrap_err(),
            DmbSegment::attach(&segment, 1 << 16, account).unwrap_err(),
        ];
        assert!(errors.iter().all(|error| error.kind() == io::ErrorKind::InvalidData), "{errors:?}");
    };
    // Our own sent back, on its own link or by another process.
    refused(&here);
    refused(&stranger);
    let first = ArenaMap::attach(&arena, 4, &there).unwrap();
    let second = DmbSegment::attach(&segment, 1 << 16, &there).unwrap();
    // Another descriptor of the same file is no other file.
    for account in [&there, &elsewhere, &stranger] {
        refused(account);
        let again = [&arena, &segment].map(|file| file.try_clone().unwrap());
        assert!(ArenaMap::attach(&again[0], 4, account).is_err());
        assert!(DmbSegment::attach(&again[1], 1 << 16, account).is_err());
    }
    drop((first, second));
    there.lane().settle();
    ArenaMap::attach(&arena, 4, &elsewhere).unwrap();
    DmbSegment::attach(&segment, 1 << 16, &elsewhere).unwrap();
}

#[test]
fn what_is_counted_is_given_back_when_it_is_unmapped() {
    let (lender, borrower) = (link(), link());
    let room = || [&lender, &borrower].map(|account| account.taken());
    let (arena, _file) = Arena::create(4, &lender).unwrap();
    let (ours, file) = DmbSegment::create(1 << 16, &lender).unwrap();
    let theirs = DmbSegment::attach(&file, 1 << 16, &borrower).unwrap();
    let control = CONTROL_BYTES as u64;
    assert_eq!(room(), [[control + (1 << 16), 0], [0, 1 << 16]]);
    let slot = arena.allocate().unwrap().unwrap();
    arena.release(slot);
    arena.allocate().unwrap().unwrap();
    assert_eq!(room()[0][0], control + (1 << 16) + SLOT_BYTES as u64, "a slot counts once");
    drop((ours, theirs, arena));
    lender.lane().settle();
    borrower.lane().settle();
    assert_eq!(room(), [[0, 0]; 2]);
}

#[test]
fn a_segment_without_its_memory_is_refused() {
    let (_segment, file) = DmbSegment::create(1 << 16, &link()).unwrap();
    sys::punch(file.as_fd(), 4096, 4096).unwrap();
    assert_eq!(DmbSegment::attach(&file, 1 << 16, &link()).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    assert_eq!(committed(&file), (1 << 16) - 4096, "nothing was paid for it");
}

#[test]
fn a_segment_that_its_owner_is_done_with_costs_him_nothing() {
    let lender = link();
    let (ours, file) = DmbSegment::create(1 << 16, &lender).unwrap();
    let theirs = DmbSegment::attach(&file, 1 << 16, &link()).unwrap();
    theirs.copy_in(0, b"late");
    drop(ours);
    lender.lane().settle();
    assert_eq!(committed(&file), 0, "though the peer has it mapped, and its file open");
    // A producer that is late writes where nobody reads.
    theirs.copy_in(100, b"later");
    assert_eq!(get(&theirs, 0, 4), [0; 4]);
}

/// Whoever has the file may take its pages away while somebody looks at the bytes: they are zeros
/// then, and nothing is a fault.
#[test]
fn what_is_looked_at_may_be_punched() {
    let (segment, file) = DmbSegment::create(1 << 16, &link()).unwrap();
    segment.copy_in(5000, b"looked at");
    assert_eq!(segment.find(4096, 8192, b'k'), Some(5003 - 4096));
    sys::punch(file.as_fd(), 0, 1 << 16).unwrap();
    assert_eq!(segment.find(4096, 8192, b'k'), None);
    assert_eq!(segment.to_vec(5000, 9), [0; 9]);
    let (other, _file) = DmbSegment::create(1 << 16, &link()).unwrap();
    other.copy_across(0, &segment, 30_000, 5000);
    assert_eq!(other.load(4999), 0);
    segment.copy_in(5000, b"again");
    assert_eq!(segment.to_vec(5000, 6), b"again\0");
}

#[test]
fn neither_a_forked_child_nor_a_core_dump_gets_the_memory() {
    let (arena, _file) = Arena::create(4, &link()).unwrap();
    let (segment, _file) = DmbSegment::create(1 << 16, &link()).unwrap();
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    for mapping in [&arena.map().mapping, &segment.mapping] {
        let start = format!("{:x}-", mapping.base.as_ptr() as usize);
        let ours = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let flags = ours.clone().find(|line| line.starts_with("VmFlags:")).unwrap();
        for wanted in ["dc", "dd", "sh"] {
            assert!(flags.split_whitespace().any(|flag| flag == wanted), "{wanted} in {flags}");
        }
    }
}

#[test]
fn threads_share_slots_without_meeting() {
    let (arena, _file) = Arena::create(8, &link()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let arena = &arena;
            scope.spawn(move || {
                for round in 0..200 {
                    let Some(slot) = arena.allocate().unwrap() else { continue };
                    let first = arena.map().dmb(slot).unwrap().first();
                    assert_eq!(get(&first, 0, 64), [0; 64], "clean");
                    first.copy_in(0, &[thread + 1; 64]);
                    if round % 3 == 0 {
                        std::thread::yield_now();
                    }
                    assert_eq!(get(&first, 0, 64), [thread + 1; 64], "nobody else has this slot");
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
    let (arena, file) = Arena::create(2, &link()).unwrap();
    let slot = arena.allocate().unwrap().unwrap();
    let theirs = attach(&file, 2).claim(slot).unwrap();
    let byte = |position: usize| (position.wrapping_mul(31) >> 3) as u8;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let (tell_reader, wishes) = std::sync::mpsc::channel();
    let (tell_writer, grants) = std::sync::mpsc::channel::<(u64, u64, OwnedFd)>();
    let writer = std::thread::spawn(move || {
        let mut producer = Producer::new(theirs, 64 << 10);
        let mut position = 0;
        while position < TOTAL {
            let len = (position % 10_007 + 1).min(TOTAL - position);
            let chunk: Vec<u8> = (position..position + len).map(byte).collect();
            let written = producer.write(&chunk).unwrap();
            position += written;
            if let Some(bytes) = producer.take_wish() {
                tell_reader.send(bytes).unwrap();
            }
            if let Ok((number, bytes, file)) = grants.try_recv() {
                assert!(producer.granted(number, DmbSegment::attach(&file, bytes, &link()).unwrap()));
            }
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
        if let Ok(bytes) = wishes.try_recv() {
            let (segment, file) = DmbSegment::create(bytes as usize, &link()).unwrap();
            let _ = tell_writer.send((consumer.lend(segment), bytes, file));
        }
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
    shared::<DmbSegment>();
}

/// A segment whose bytes count up from a place that no word begins at.
fn counted(bytes: usize) -> DmbSegment {
    let (segment, _file) = DmbSegment::create(bytes, &link()).unwrap();
    segment.copy_in(0, &(0..bytes).map(|at| at as u8).collect::<Vec<_>>());
    segment
}

#[test]
fn bytes_that_are_loaded_are_those_that_are_copied() {
    let segment = counted(4096);
    for (offset, len) in [(0, 0), (0, 1), (5, 2), (1, 7), (3, 5), (3, 29), (8, 16), (4089, 7), (0, 4096)] {
        let copied = get(&segment, offset, len);
        assert_eq!(segment.to_vec(offset, len), copied, "{len} at {offset}");
        let mut loaded = vec![0xee; len];
        segment.load_into(offset, &mut loaded);
        assert_eq!(loaded, copied, "{len} at {offset}");
        assert!((0..len).all(|at| segment.load(offset + at) == copied[at]));
    }
    for outside in [(4096, 1), (4000, 97), (usize::MAX, 2)] {
        assert!(catch_unwind(AssertUnwindSafe(|| segment.to_vec(outside.0, outside.1))).is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| segment.find(outside.0, outside.1, 0))).is_err());
    }
}

#[test]
fn a_byte_is_found_where_it_is_first() {
    let (segment, _file) = DmbSegment::create(4096, &link()).unwrap();
    // Neighbours that subtracting confuses: one more, one less, the highest bit.
    for wanted in [0, 1, 0x7f, 0x80, 0xff_u8] {
        for around in [wanted.wrapping_add(1), wanted.wrapping_sub(1), wanted ^ 0x80] {
            segment.copy_in(0, &[around; 64]);
            assert_eq!(segment.find(3, 40, wanted), None);
            for at in 3..43 {
                segment.copy_in(at, &[wanted]);
                assert_eq!(segment.find(3, 40, wanted), Some(at - 3));
                segment.copy_in(50, &[wanted]);
                assert_eq!(segment.find(3, 40, wanted), Some(at - 3), "and not the last one");
                segment.copy_in(at, &[around]);
                assert_eq!(segment.find(3, 40, wanted), None, "what is behind is not looked at");
                segment.copy_in(50, &[around]);
            }
        }
    }
}

#[test]
fn bytes_go_from_one_segment_to_the_other() {
    let (from, to) = (counted(8192), counted(4096));
    to.copy_across(100, &from, 4090, 7);
    assert_eq!(get(&to, 98, 11), [98, 99, 250, 251, 252, 253, 254, 255, 0, 107, 108]);
    // Within one segment, too.
    from.copy_across(1, &from, 0, 9);
    assert_eq!(get(&from, 0, 11), [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 10]);
    for (offset, at, len) in [(4090, 0, 7), (0, 8190, 3)] {
        assert!(catch_unwind(AssertUnwindSafe(|| to.copy_across(offset, &from, at, len))).is_err());
    }
}

#[test]
fn who_looks_in_place_sees_what_the_sender_changes() {
    let (ours, file) = DmbSegment::create(4096, &link()).unwrap();
    // Another mapping of it, as the peer has one.
    let theirs = MmapOptions::new().len(4096).map_raw(&file).unwrap();
    let change = |bytes: &[u8]| {
        // SAFETY: the mapping is longer than that, and nothing refers to it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), theirs.as_mut_ptr(), bytes.len()) };
    };
    change(b"length 4");
    let (checked, found) = (ours.to_vec(0, 8), ours.find(0, 8, b'4'));
    change(b"length 9");
    assert_eq!((ours.load(7), ours.find(0, 8, b'4'), found), (b'9', None, Some(7)));
    assert_eq!(checked, b"length 4", "a copy is the reader's own");
}
