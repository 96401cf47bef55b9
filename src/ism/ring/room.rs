//! The free part of a caller's buffer, without the caller's code.

use bytes::BufMut;
use bytes::buf::UninitSlice;
use std::mem::MaybeUninit;

/// The first chunk of a `BufMut`, taken out of it: who fills this, under whatever lock, runs none
/// of its methods.
pub(crate) struct Room<'a> {
    free: &'a mut [MaybeUninit<u8>],
    filled: usize,
}

impl Room<'_> {
    /// Whether nothing more fits.
    pub(crate) fn is_full(&self) -> bool {
        self.filled == self.free.len()
    }
}

/// Lets `read` fill the first chunk of `buf`, which then takes what was filled.
///
/// All methods of `buf` are called outside of `read`.
pub(crate) fn fill_room<B: BufMut, R>(buf: &mut B, read: impl FnOnce(&mut Room<'_>) -> R) -> R {
    let chunk = buf.chunk_mut();
    // SAFETY: through a `Room` only initialised bytes are written: that is what `BufMut` asks of
    // those who write to its chunks, and `free` is not to be had in another way.
    let mut room = Room { free: unsafe { chunk.as_uninit_slice_mut() }, filled: 0 };
    let answer = read(&mut room);
    let filled = room.filled;
    // SAFETY: the first `filled` bytes of the chunk were initialised (`Room::advance_mut`), and no
    // chunk is longer than what remains. It is this chunk's room: no other one has its lifetime, so
    // `read` can not have exchanged it.
    unsafe { buf.advance_mut(filled) };
    answer
}

// SAFETY: the chunk is the slice behind what was filled, and `advance_mut` counts only what is
// inside of it.
unsafe impl BufMut for Room<'_> {
    fn remaining_mut(&self) -> usize {
        self.free.len() - self.filled
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        UninitSlice::uninit(&mut self.free[self.filled..])
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        assert!(count <= self.remaining_mut(), "{count} bytes are more than there was room for");
        self.filled += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_filled_is_taken() {
        let mut buf = bytes::BytesMut::from(&b"before "[..]);
        let full = fill_room(&mut buf, |room| {
            room.put_slice(b"first ");
            room.put_slice(b"second");
            room.is_full()
        });
        assert_eq!((&buf[..], full), (&b"before first second"[..], false));
        let mut array = [0; 3];
        assert!(fill_room(&mut &mut array[..], |room| {
            room.put_slice(b"abc");
            room.is_full()
        }));
        assert_eq!(&array, b"abc");
    }

    #[test]
    #[should_panic(expected = "more than there was room for")]
    fn nobody_claims_more_than_fits() {
        fill_room(&mut &mut [0_u8; 3][..], |room| {
            // SAFETY: it must refuse what the contract forbids, too.
            unsafe { room.advance_mut(4) };
        });
    }
}
