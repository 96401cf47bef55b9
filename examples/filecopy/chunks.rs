//! A byte stream between a thread that works with the disk and a task that works with the
//! connection.

use std::io::{self, Read, Write};

use tokio::sync::mpsc;

/// Bytes of a chunk.
pub(crate) const CHUNK: usize = 256 * 1024;

/// Chunks that may wait between the two.
pub(crate) const AHEAD: usize = 8;

/// The stream ends with `Last`; a channel that closes without it is a stream that was cut off.
pub(crate) enum Chunk {
    Bytes(Vec<u8>),
    Last,
}

/// Written by the disk thread of a sender; blocks while the connection is behind.
pub(crate) struct ChunkWriter {
    chunks: mpsc::Sender<Chunk>,
    pending: Vec<u8>,
}

impl ChunkWriter {
    pub(crate) fn new(chunks: mpsc::Sender<Chunk>) -> Self {
        Self { chunks, pending: Vec::new() }
    }

    /// The regular end of the stream.
    pub(crate) fn end(mut self) -> io::Result<()> {
        self.flush()?;
        self.send(Chunk::Last)
    }

    fn send(&self, chunk: Chunk) -> io::Result<()> {
        self.chunks.blocking_send(chunk).map_err(|_| cut_off())
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.pending.capacity() == 0 {
            self.pending.reserve_exact(CHUNK);
        }
        let taken = bytes.len().min(CHUNK - self.pending.len());
        self.pending.extend_from_slice(&bytes[..taken]);
        if self.pending.len() == CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let chunk = Chunk::Bytes(std::mem::take(&mut self.pending));
        self.send(chunk)
    }
}

/// Read by the disk thread of a receiver; blocks until the connection delivers.
pub(crate) struct ChunkReader {
    chunks: mpsc::Receiver<Chunk>,
    current: Vec<u8>,
    used: usize,
    ended: bool,
}

impl ChunkReader {
    pub(crate) fn new(chunks: mpsc::Receiver<Chunk>) -> Self {
        Self { chunks, current: Vec::new(), used: 0, ended: false }
    }

    /// What has arrived and is not yet consumed; empty at the end of the stream.
    pub(crate) fn chunk(&mut self) -> io::Result<&[u8]> {
        while self.used == self.current.len() && !self.ended {
            match self.chunks.blocking_recv() {
                Some(Chunk::Bytes(bytes)) => (self.current, self.used) = (bytes, 0),
                Some(Chunk::Last) => self.ended = true,
                None => return Err(cut_off()),
            }
        }
        Ok(&self.current[self.used..])
    }

    pub(crate) fn consume(&mut self, bytes: usize) {
        self.used += bytes;
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut chunk = self.chunk()?;
        let read = chunk.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was lost")
}
