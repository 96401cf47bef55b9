//! The two ends of a connection that a library has taken, seen through their watches.

use tokio_smc::{FallbackReason, TransportWatch};

/// Makes turns until every end runs on loopback-ism; panics with the reason when one of them stays
/// on TCP.
pub(crate) async fn until_loopback_ism<const N: usize>(
    ends: [&TransportWatch; N],
    mut turn: impl AsyncFnMut(),
) {
    while !ends.iter().all(|end| end.transport().is_loopback_ism()) {
        for end in ends {
            let reason = end.transport().fallback_reason();
            use FallbackReason::{InProgress, NextWrite, NotYet};
            let open = matches!(reason, None | Some(NotYet | InProgress | NextWrite));
            assert!(open, "no upgrade: {reason:?}");
        }
        turn().await;
    }
}

/// Makes turns until it is decided that the stream stays on TCP, and checks why.
pub(crate) async fn until_plain(end: &TransportWatch, mut turn: impl AsyncFnMut()) {
    loop {
        turn().await;
        match end.transport().fallback_reason() {
            Some(FallbackReason::NotYet | FallbackReason::InProgress | FallbackReason::NextWrite) => {}
            reason => break assert_eq!(reason, Some(FallbackReason::NoSmcListener)),
        }
    }
}
