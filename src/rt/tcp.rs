//! tokio's TcpStream as the socket under a connection.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf, ReuniteError};

use crate::conn::Tcp;
use crate::conn::close::Leftover;

pub(crate) enum TokioTcp {}

impl TokioTcp {
    /// The whole socket again, without a FIN.
    pub(crate) fn reunite(read: OwnedReadHalf, write: OwnedWriteHalf) -> io::Result<TcpStream> {
        read.reunite(write).map_err(|ReuniteError(read, write)| {
            write.forget();
            drop(read);
            io::Error::other("the halves of this stream belong to different sockets")
        })
    }
}

impl Tcp for TokioTcp {
    type Read = OwnedReadHalf;
    type Write = OwnedWriteHalf;

    fn read_fd(half: &OwnedReadHalf) -> BorrowedFd<'_> {
        half.as_ref().as_fd()
    }

    fn write_fd(half: &OwnedWriteHalf) -> BorrowedFd<'_> {
        half.as_ref().as_fd()
    }

    fn poll_read(
        half: &mut OwnedReadHalf,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(half).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_peek(half: &mut OwnedReadHalf, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut byte = [0];
        half.poll_peek(cx, &mut ReadBuf::new(&mut byte))
    }

    fn poll_write(half: &mut OwnedWriteHalf, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(half).poll_write(cx, bytes)
    }

    fn shutdown(half: &mut OwnedWriteHalf) -> io::Result<()> {
        // tokio's shutdown of a socket never waits.
        match Pin::new(half).poll_shutdown(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(answer) => answer,
            Poll::Pending => Ok(()),
        }
    }

    fn close(read: OwnedReadHalf, write: OwnedWriteHalf) {
        // As one TcpStream again it closes without the FIN that a dropped write half would send.
        drop(TokioTcp::reunite(read, write));
    }
}

/// Reads what a closed stream has still to take off its socket, then closes it.
pub(crate) async fn drain(leftover: Leftover<TokioTcp>) {
    let Leftover { mut read, mut write, clc_left } = leftover;
    let _ = TokioTcp::shutdown(&mut write);
    let mut scratch = [0; 512];
    let mut left = clc_left;
    while left > 0 {
        let wanted = left.min(scratch.len());
        match read.read(&mut scratch[..wanted]).await {
            Ok(length) if length > 0 => left -= length,
            _ => break,
        }
    }
    TokioTcp::close(read, write);
}
