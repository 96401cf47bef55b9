//! A panic ends what panicked, and nothing that waits behind it.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{Poll, Waker};

use crate::sync::assert_unlocked;

/// Something of ours, or a waker of the application's, has panicked; the panic hook has told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Panicked;

/// Does `work`, and goes on when that panics. What it has touched is used on: see
/// [`crate::sync::lock`].
pub(crate) fn shielded<R>(work: impl FnOnce() -> R) -> Result<R, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
        crate::trace::warning!("a panic was caught; what it concerned ends");
        Panicked
    })
}

/// A future that ends when `task` does, or when that panics.
pub(crate) async fn guarded<F: Future>(task: F) -> Result<F::Output, Panicked> {
    let mut task = pin!(task);
    poll_fn(|cx| match shielded(|| task.as_mut().poll(cx)) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Err(panicked) => Poll::Ready(Err(panicked)),
    })
    .await
}

/// Wakes all of them, whatever one of them does: a waker may be the application's own.
pub(crate) fn wake_each(wakers: impl Iterator<Item = Waker>) {
    for waker in wakers {
        assert_unlocked("a waker");
        let _ = shielded(|| waker.wake());
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::task::{Context, Wake};

    use super::*;
    use crate::sync::{AtomicUsize, Ordering};

    /// Counts, and panics at every second call.
    #[derive(Default)]
    struct Moody(AtomicUsize);

    impl Wake for Moody {
        fn wake(self: Arc<Self>) {
            assert_eq!(self.0.fetch_add(1, Ordering::Relaxed) % 2, 0, "a panic that belongs to the test");
        }
    }

    #[test]
    fn every_waker_is_called() {
        let moody = Arc::new(Moody::default());
        wake_each((0..6).map(|_| Waker::from(moody.clone())));
        assert_eq!(moody.0.load(Ordering::Relaxed), 6);
    }

    #[test]
    fn a_task_ends_as_it_does_or_as_panicked() {
        let mut cx = Context::from_waker(Waker::noop());
        let mut polls = 0;
        let mut fine = pin!(guarded(poll_fn(|_| {
            polls += 1;
            if polls < 3 { Poll::Pending } else { Poll::Ready(polls) }
        })));
        assert_eq!(fine.as_mut().poll(&mut cx), Poll::Pending);
        assert_eq!(fine.as_mut().poll(&mut cx), Poll::Pending);
        assert_eq!(fine.as_mut().poll(&mut cx), Poll::Ready(Ok(3)));
        let mut panics = pin!(guarded(async { panic!("a panic that belongs to the test") }));
        let answer: Poll<Result<(), Panicked>> = panics.as_mut().poll(&mut cx);
        assert_eq!(answer, Poll::Ready(Err(Panicked)));
    }
}
