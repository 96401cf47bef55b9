//! A ring of one direction, both ends in one process, in the memory that connections use: a slot of
//! an arena.

use std::io::{self, IoSlice};

use bytes::BufMut;

use crate::ism::arena::{Arena, DmbMemory, DmbSegment};
use crate::ism::budget::Account;
use crate::ism::dmb::HOPS;
use crate::ism::ring::{self, Memory};
use crate::sync::Ordering;

/// A fresh ring: its first segment, and no larger one than `window` bytes when the sender asks.
///
/// # Errors
///
/// What is lacking: memory, descriptors.
pub fn ring(window: usize) -> io::Result<(Producer, Consumer)> {
    let (arena, _file) = Arena::create(1, &Account::of_ourselves())?;
    let slot = arena.allocate()?;
    let memory = slot.and_then(|slot| arena.map().dmb(slot)).ok_or(io::ErrorKind::OutOfMemory)?;
    Ok((Producer(ring::Producer::new(memory.clone(), window)), Consumer(ring::Consumer::new(memory))))
}

/// Gives the sender the larger segment that it wishes, if it wishes one. Says whether it did.
///
/// # Errors
///
/// What is lacking: memory, descriptors.
pub fn grant(producer: &mut Producer, consumer: &mut Consumer) -> io::Result<bool> {
    let Some(wish) = producer.0.take_wish() else { return Ok(false) };
    let (segment, _file) = DmbSegment::create(wish as usize, &Account::of_ourselves())?;
    let number = consumer.0.lend(segment.clone());
    Ok(producer.0.granted(number, segment))
}

/// A word that both ends share.
#[derive(Clone, Copy, Debug)]
pub enum Word {
    /// The sender's cursor.
    Written,
    /// The number of the sender's hops.
    Hops,
    /// Where the sender wants to be woken.
    WakeAt,
    /// The sender's flags.
    WriterFlags,
    /// The position of a hop.
    HopPosition(usize),
    /// The segment of a hop.
    HopSegment(usize),
    /// The receiver's cursor.
    Read,
    /// The number of hops that the receiver has followed.
    Followed,
    /// The receiver's flags.
    ReaderFlags,
    /// The receiver waits.
    DataArmed,
    /// The sender waits.
    SpaceArmed,
}

/// What both ends share beside the bytes, for a peer that writes there what it likes.
pub struct Header(DmbMemory);

impl Header {
    /// Puts any value into a word.
    pub fn scribble(&self, word: Word, value: u64) {
        let header = self.0.header();
        // With whatever order: it is no message to anybody.
        let order = Ordering::Relaxed;
        match word {
            Word::Written => header.producer.prod.store(value, order),
            Word::Hops => header.producer.hop_count.store(value, order),
            Word::WakeAt => header.producer.wake_at.store(value, order),
            Word::WriterFlags => header.producer.flags.store(value as u32, order),
            Word::HopPosition(k) => header.hops.0[k % HOPS].position.store(value, order),
            Word::HopSegment(k) => header.hops.0[k % HOPS].segment.store(value, order),
            Word::Read => header.consumer.cons.store(value, order),
            Word::Followed => header.consumer.hop.store(value, order),
            Word::ReaderFlags => header.reader.flags.store(value as u32, order),
            Word::DataArmed => header.producer.data_armed.store(value as u32, order),
            Word::SpaceArmed => header.space_armed.0.store(value as u32, order),
        }
    }
}

fn broken(violation: ring::Violation) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, violation)
}

/// The sender of a ring.
pub struct Producer(ring::Producer<DmbMemory>);

impl Producer {
    /// Writes what fits; 0 means full.
    ///
    /// # Errors
    ///
    /// `InvalidData`: the header was scribbled on.
    #[inline]
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(broken)
    }

    /// Writes of all slices together what fits; 0 means full.
    ///
    /// # Errors
    ///
    /// As [`Producer::write`].
    #[inline]
    pub fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.write_vectored(slices).map_err(broken)
    }

    /// Does the reader have to be interrupted? Asked after every write that wrote something.
    #[inline]
    pub fn wake_reader(&self) -> bool {
        self.0.wake_reader()
    }

    /// Arms the flag by which the reader knows that this end waits. True when there is room after
    /// all.
    ///
    /// # Errors
    ///
    /// As [`Producer::write`].
    #[inline]
    pub fn wait(&mut self) -> io::Result<bool> {
        self.0.wait().map_err(broken)
    }

    /// What it shares with the receiver.
    pub fn header(&self) -> Header {
        Header(self.0.memory().clone())
    }

    /// Goes back to the first segment, if the ring is empty, and gives all others back.
    ///
    /// # Errors
    ///
    /// As [`Producer::write`].
    pub fn shrink(&mut self, consumer: &mut Consumer) -> io::Result<()> {
        match self.0.shrink().map_err(broken)? {
            ring::Shrunk::GaveBack(number) => consumer.0.take_back(number).map_err(broken),
            ring::Shrunk::Small | ring::Shrunk::NotYet => Ok(()),
        }
    }

    /// Bytes written so far.
    #[inline]
    pub fn position(&self) -> u64 {
        self.0.position()
    }
}

/// The receiver of a ring.
pub struct Consumer(ring::Consumer<DmbMemory>);

impl Consumer {
    /// Moves bytes into the free part of `buf`; 0 means empty, if `buf` has room.
    ///
    /// # Errors
    ///
    /// As [`Producer::write`].
    #[inline]
    pub fn read<B: BufMut>(&mut self, buf: &mut B) -> io::Result<usize> {
        self.0.read(buf).map_err(broken)
    }

    /// Copies bytes into the free part of `buf` and leaves them in the ring.
    ///
    /// # Errors
    ///
    /// As [`Producer::write`].
    #[inline]
    pub fn peek<B: BufMut>(&mut self, buf: &mut B) -> io::Result<usize> {
        self.0.peek(buf).map_err(broken)
    }

    /// Looks at what is next in place, then takes up to `length` bytes of it out of the ring.
    ///
    /// # Errors
    ///
    /// As [`Producer::write`].
    pub fn read_in_place(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let Some(run) = self.0.borrow().map_err(broken)? else { return Ok(Vec::new()) };
        let (segment, range) = run.place();
        let mut bytes = segment.to_vec(range.start, range.len());
        let count = self.0.pass_over(run.position(), length.min(bytes.len()));
        bytes.truncate(count);
        Ok(bytes)
    }

    /// Does the writer have to be interrupted? Asked after every read that read something.
    #[inline]
    pub fn wake_writer(&self) -> bool {
        self.0.wake_writer()
    }

    /// Arms the flag by which the writer knows that this end waits. True when there are bytes after
    /// all.
    ///
    /// # Errors
    ///
    /// As [`Producer::write`].
    #[inline]
    pub fn wait(&mut self) -> io::Result<bool> {
        self.0.wait().map_err(broken)
    }

    /// Bytes read so far.
    #[inline]
    pub fn position(&self) -> u64 {
        self.0.position()
    }
}
