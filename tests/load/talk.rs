//! What goes over a connection: the client says who it is, then rounds of as many bytes each way,
//! each of them checked at the other end.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How a connection ends: it is the server or the client that closes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    Server,
    Client,
}

fn at(seed: u64, place: u64) -> u8 {
    ((seed.wrapping_mul(7919) + place).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u8
}

/// One end of a connection, and how many bytes went each way.
pub(crate) struct End<S> {
    pub(crate) stream: S,
    /// What this end sends, and what it is sent.
    seeds: [u64; 2],
    sent: u64,
    received: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> End<S> {
    /// The client's end of connection `id`, which says so.
    pub(crate) async fn open(mut stream: S, id: u64, first: First) -> io::Result<Self> {
        let mut hello = [0; 9];
        hello[0] = first as u8;
        hello[1..].copy_from_slice(&id.to_be_bytes());
        stream.write_all(&hello).await?;
        Ok(End { stream, seeds: [2 * id, 2 * id + 1], sent: 0, received: 0 })
    }

    /// The server's end. `None`: the client has gone without a word.
    async fn answer(mut stream: S) -> io::Result<Option<(Self, First)>> {
        let mut hello = [0; 9];
        if stream.read(&mut hello[..1]).await? == 0 {
            return Ok(None);
        }
        stream.read_exact(&mut hello[1..]).await?;
        let id = u64::from_be_bytes(hello[1..].try_into().expect("eight bytes"));
        let first = if hello[0] == First::Server as u8 { First::Server } else { First::Client };
        Ok(Some((End { stream, seeds: [2 * id + 1, 2 * id], sent: 0, received: 0 }, first)))
    }

    async fn send(&mut self, length: usize) -> io::Result<()> {
        let bytes: Vec<u8> = (self.sent..self.sent + length as u64).map(|n| at(self.seeds[0], n)).collect();
        self.stream.write_all(&bytes).await?;
        self.sent += length as u64;
        Ok(())
    }

    async fn expect(&mut self, length: usize) -> io::Result<()> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).await?;
        let wrong = (self.received..).zip(&bytes).find(|(n, byte)| at(self.seeds[1], *n) != **byte);
        if let Some((n, byte)) = wrong {
            return Err(io::Error::other(format!("byte {n} is {byte}")));
        }
        self.received += length as u64;
        Ok(())
    }

    /// So many bytes there and back.
    pub(crate) async fn round(&mut self, length: usize) -> io::Result<()> {
        self.stream.write_all(&(length as u32).to_be_bytes()).await?;
        self.send(length).await?;
        self.expect(length).await
    }

    /// No more rounds; the peer says the same.
    pub(crate) async fn finish(mut self, first: First) -> io::Result<()> {
        match first {
            First::Client => self.stream.shutdown().await?,
            // A round of nothing is the last one.
            First::Server => self.stream.write_all(&[0; 4]).await?,
        }
        match self.stream.read(&mut [0]).await? {
            0 => Ok(()),
            _ => Err(io::Error::other("a byte after the last one")),
        }
    }
}

/// Serves a connection to its end.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> io::Result<()> {
    let Some((mut end, first)) = End::answer(stream).await? else { return Ok(()) };
    loop {
        let mut length = [0; 4];
        if end.stream.read(&mut length[..1]).await? == 0 {
            return if first == First::Client { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        end.stream.read_exact(&mut length[1..]).await?;
        let length = u32::from_be_bytes(length) as usize;
        if length == 0 {
            return Ok(());
        }
        end.expect(length).await?;
        end.send(length).await?;
    }
}
