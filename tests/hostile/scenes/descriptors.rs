//! Descriptors that are not what a message says they are, and memory that is not its sender's
//! alone.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use rustix::event::epoll;
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};

use crate::peer::{Peer, Signal, fresh_token, memory_file};
use crate::target::Target;
use crate::wire::{self, Place};

const SLOTS: u32 = 4;

pub(crate) fn wrong(target: &Target) {
    let size = wire::arena_bytes(SLOTS);
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    let unsealed = memfd_create("unsealed", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&unsealed, size as u64).expect("ftruncate");
    let sealed = memory_file(size);
    let read_only = File::open(format!("/proc/self/fd/{}", sealed.as_raw_fd())).expect("open");
    let files: [(&str, OwnedFd); 8] = [
        ("a pipe", reader),
        ("a pipe's other end", writer),
        ("a file without seals", unsealed),
        ("a file that is too small", memory_file(4096)),
        ("a file for readers", read_only.into()),
        ("a directory", File::open("/").expect("open").into()),
        ("an epoll", epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll")),
        ("a device", File::options().read(true).write(true).open("/dev/zero").expect("open").into()),
    ];
    for (what, file) in &files {
        let mut peer = Peer::silent(target, SLOTS);
        peer.open().expect("HELLO");
        let _ = peer.send_with(&peer.hello(), &[file.as_fd(), peer.eventfd.as_fd()]);
        peer.must_end(&format!("an arena that is {what}"));

        let mut peer = Peer::silent(target, SLOTS);
        peer.open().expect("HELLO");
        let _ = peer.send_with(&peer.hello(), &[peer.file.as_fd(), file.as_fd()]);
        peer.must_end(&format!("an eventfd that is {what}"));

        let mut peer = Peer::greeted(target, SLOTS);
        let _ = peer.send_with(&wire::arena(SLOTS), &[file.as_fd()]);
        peer.must_end(&format!("a further arena that is {what}"));
    }
    // Hundreds of descriptors, in messages that may have none.
    let mut peer = Peer::greeted(target, SLOTS);
    let descriptors = [peer.file.as_fd(); 16];
    for _ in 0..50 {
        let _ = peer.send_with(&wire::about(wire::CANCEL, 1), &descriptors);
    }
    peer.must_end("surplus descriptors");
}

/// The memory goes away under both: it comes back as zeroes.
pub(crate) fn punched_arena(target: &Target) {
    let mut peer = Peer::greeted(target, 64);
    let conn = peer.talking();
    assert!(ftruncate(&peer.file, 4096).is_err(), "the seals hold");
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for _ in 0..200 {
        fallocate(&peer.file, flags, 0, wire::arena_bytes(64) as u64).expect("punch");
        peer.signal(&conn, Signal::Data);
        peer.signal(&conn, Signal::Space);
        sleep(Duration::from_millis(1));
    }
}

/// The victim's own arena comes back as one of ours, and one slot of ours is named for two
/// connections.
pub(crate) fn one_memory_for_two(target: &Target) {
    let mut peer = Peer::greeted(target, 64);
    let (_, slots, file) = &peer.theirs[0];
    // From here on the victim may end the link.
    let _ = peer.send_with(&wire::arena(*slots), &[file.as_fd()]);
    let mut conns = Vec::new();
    for turn in 0..4 {
        let tcp = target.tcp();
        let id = peer.offer(&tcp);
        let Ok((_, place, clc)) = peer.answer(id, Duration::from_secs(60)) else { return };
        let (_, first_contact) = wire::accepted(&clc);
        let clc = wire::confirm(peer.gid, fresh_token(), first_contact);
        // Arena 1 is the victim's own: its producer writes where its consumer reads.
        let (arena, slot) = if turn < 2 { (1, place.slot) } else { (0, 7) };
        let _ = peer.send(&wire::ready(id, Place { arena, slot, window: 1 << 20 }, None, &clc));
        let theirs = peer.lent(place);
        theirs.decide(1);
        conns.push((tcp, theirs));
    }
    for round in 1..100 {
        for (_, theirs) in &conns {
            theirs.put(0, b"e123456789");
            theirs.store(wire::PROD, 10 * round);
        }
        (0..64).for_each(|index| peer.raise(index, Signal::Data));
        peer.ring();
        if !peer.pump() {
            return;
        }
        sleep(Duration::from_millis(2));
    }
}
