//! How a stream reads and writes, and when that triggers its upgrade.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::poll_proceed;

use super::SmcStream;
use crate::conn::op::{ReadOp, WriteOp};
use crate::conn::{OnPending, Operation};
use crate::rt::tokio::{TokioTcp, reading, writing, writing_vectored};

impl SmcStream {
    #[inline]
    pub(super) fn poll_read_with<O: ReadOp<TokioTcp>>(
        &self,
        cx: &mut Context<'_>,
        op: &mut O,
    ) -> Poll<io::Result<usize>> {
        // Here for both transports, and not below: a spent budget wakes the task, which must not be
        // under a lock.
        let coop = ready!(poll_proceed(cx));
        let in_ring = self.conn.reads_ring();
        let answer = self.conn.poll_read(cx, op);
        if answer.is_ready() {
            coop.made_progress();
            if !in_ring {
                self.offer_if(self.conn.triggered(Operation::Read));
            }
        }
        answer
    }

    #[inline]
    pub(super) fn poll_write_with<O: WriteOp<TokioTcp>>(
        &self,
        cx: &mut Context<'_>,
        op: &mut O,
    ) -> Poll<io::Result<usize>> {
        let coop = ready!(poll_proceed(cx));
        let in_ring = self.conn.writes_ring();
        let answer = self.conn.poll_write(cx, op);
        if answer.is_ready() {
            coop.made_progress();
            if !in_ring {
                self.offer_if(self.conn.triggered(Operation::Write));
            }
        }
        answer
    }

    pub(super) fn try_read_with<O: ReadOp<TokioTcp>>(&self, op: &mut O) -> io::Result<usize> {
        match self.conn.try_read(op, OnPending::Return) {
            Poll::Ready(answer) => {
                self.offer_if(self.conn.triggered(Operation::Read));
                answer
            }
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    pub(super) fn try_write_with<O: WriteOp<TokioTcp>>(&self, op: &mut O) -> io::Result<usize> {
        match self.conn.try_write(op, OnPending::Return) {
            Poll::Ready(answer) => {
                self.offer_if(self.conn.triggered(Operation::Write));
                answer
            }
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    pub(crate) fn poll_read_priv(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.poll_read_with(cx, &mut reading(buf)).map_ok(drop)
    }

    pub(crate) fn poll_write_priv(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, &mut writing(buf))
    }

    pub(crate) fn poll_write_vectored_priv(
        &self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, &mut writing_vectored(bufs))
    }

    pub(crate) fn shutdown_write(&self) -> io::Result<()> {
        self.conn.shutdown_write()
    }
}

impl AsyncRead for SmcStream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_read_priv(cx, buf)
    }
}

impl AsyncWrite for SmcStream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_priv(cx, buf)
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored_priv(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shutdown_write())
    }
}
