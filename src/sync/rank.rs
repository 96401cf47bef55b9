//! The order of locks, kept by the machine in debug builds: docs/design.md, "Locks".
//!
//! Each mutex has a rank as part of its type. Whoever holds one locks only mutexes of a later rank,
//! so no two threads wait for each other. A thread that calls code of others, a waker or a stream,
//! holds none of them.

/// A place in the order of locks.
pub(crate) trait Rank {
    #[cfg(debug_assertions)]
    const ORDER: u8;
    /// Where the mutex is.
    #[cfg(debug_assertions)]
    const NAME: &'static str;
}

macro_rules! ranks {
    ($($(#[doc = $doc:literal])+ $name:ident;)+) => {
        #[cfg(debug_assertions)]
        #[derive(Clone, Copy)]
        #[repr(u8)]
        enum Order {
            $($name,)+
        }

        $(
            $(#[doc = $doc])+
            pub(crate) enum $name {}

            impl Rank for $name {
                #[cfg(debug_assertions)]
                const ORDER: u8 = Order::$name as u8;
                #[cfg(debug_assertions)]
                const NAME: &'static str = stringify!($name);
            }
        )+
    };
}

// Outermost first.
ranks! {
    /// Where a listener's streams are found.
    ListenerHome;
    /// The endpoints of all runtimes.
    Endpoints;
    /// The endpoint of a runtime, while it is opened.
    EndpointOpening;
    /// The links that a poller looks at.
    PollerLinks;
    /// The links of an endpoint.
    EndpointLinks;
    /// A link: offers, tokens, arenas.
    LinkState;
    /// The accepted streams of an endpoint.
    AcceptedStreams;
    /// The receiving direction of a connection.
    Receiver;
    /// The sending direction of a connection.
    Sender;
    /// The phase of a connection's upgrade.
    UpgradePhase;
    /// Who has which part of something of which there is only so much.
    Shares;
    /// All others: nothing is locked under one of them.
    Leaf;
}

#[cfg(debug_assertions)]
pub(super) use checked::Held;
#[cfg(debug_assertions)]
pub(crate) use checked::assert_unlocked;

#[cfg(debug_assertions)]
mod checked {
    use std::cell::RefCell;

    use super::Rank;

    #[cfg(not(loom))]
    thread_local! {
        static HELD: RefCell<Vec<(u8, &'static str)>> = const { RefCell::new(Vec::new()) };
    }

    // All threads of a model are one of the system's.
    #[cfg(loom)]
    loom::thread_local! {
        static HELD: RefCell<Vec<(u8, &'static str)>> = RefCell::new(Vec::new());
    }

    /// Says that this thread holds a mutex, until it is dropped.
    pub(in crate::sync) struct Held(u8, &'static str);

    impl Held {
        /// About to wait for a mutex of that rank.
        pub(in crate::sync) fn in_order<R: Rank>() -> Held {
            let _ = HELD.try_with(|held| {
                let last = held.borrow().iter().max_by_key(|(order, _)| *order).copied();
                if let Some((_, name)) = last.filter(|(order, _)| *order >= R::ORDER) {
                    // A second panic would hide the first one.
                    assert!(std::thread::panicking(), "{} is locked while {name} is held", R::NAME);
                }
            });
            Held::any::<R>()
        }

        /// Got a mutex without waiting: that may be in any order.
        pub(in crate::sync) fn any<R: Rank>() -> Held {
            let _ = HELD.try_with(|held| held.borrow_mut().push((R::ORDER, R::NAME)));
            Held(R::ORDER, R::NAME)
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            let _ = HELD.try_with(|held| {
                let mut held = held.borrow_mut();
                if let Some(at) = held.iter().rposition(|held| *held == (self.0, self.1)) {
                    held.remove(at);
                }
            });
        }
    }

    /// To be called where the code of others runs, which may use a stream of ours: this thread
    /// holds no lock.
    pub(crate) fn assert_unlocked(what: &str) {
        let _ = HELD.try_with(|held| {
            // A copy, for a hook of panics may take locks of ours.
            let held = held.borrow().clone();
            assert!(held.is_empty() || std::thread::panicking(), "{what} is called while {held:?} is held");
        });
    }
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn assert_unlocked(_: &str) {}
