//! Offers for streams that their server's application never gives to this crate.

use super::hosts::{CLIENT, Lab, SERVER};
use super::watched;
use crate::config::UpgradePolicy;
use crate::ism::sys::monotonic;
use crate::link::accepted::FIRST_LOOK;
use crate::transport::{FallbackReason, Transport};

#[test]
fn an_offer_for_a_stream_that_somebody_else_has_accepted_is_refused() {
    watched(|| {
        let mut lab = Lab::new();
        // Accepted, but not by a listener of ours.
        let pair = lab.connect(UpgradePolicy::Manual, 64 << 10);
        assert!(pair.offer(&lab));
        lab.run();
        let server = lab.hosts[SERVER].endpoint.clone();
        let next = server.timers().next_deadline();
        assert!(
            next.is_some_and(|next| next <= monotonic() + FIRST_LOOK),
            "somebody comes to look: {next:?}"
        );
        let again = server.sweep(monotonic() + FIRST_LOOK).expect("it waits");
        lab.run();
        assert_eq!(pair.conns[CLIENT].transport(), Transport::Tcp(FallbackReason::InProgress));
        assert_eq!(server.sweep(again), None, "nothing waits any more");
        lab.run();
        let refusal = FallbackReason::Declined(FallbackReason::Unproved.diagnosis());
        assert_eq!(pair.conns[CLIENT].transport(), Transport::Tcp(refusal));
        assert_eq!(lab.slots_in_use(), 0);
        pair.write(CLIENT, b"hello");
        pair.expect(SERVER, b"hello");
    });
}

#[test]
fn a_stream_that_is_given_to_us_after_a_doubt_is_upgraded() {
    watched(|| {
        let mut lab = Lab::new();
        let mut pair = lab.connect(UpgradePolicy::Manual, 64 << 10);
        assert!(pair.offer(&lab));
        lab.run();
        let server = lab.hosts[SERVER].endpoint.clone();
        let again = server.sweep(monotonic() + FIRST_LOOK).expect("it waits");
        pair.accept(&lab);
        lab.run();
        assert_eq!(server.sweep(again), None, "nothing waits any more");
        pair.settle();
        assert!(pair.reads_ring(CLIENT) && pair.reads_ring(SERVER));
    });
}
