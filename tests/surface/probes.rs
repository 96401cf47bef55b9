//! A part of the program that tests/surface.rs writes: what its checks call.

use std::cell::RefCell;
use std::future::Future;
use std::marker::PhantomData;
use std::net::{TcpListener, TcpStream};
use std::panic::{self, AssertUnwindSafe};

/// Asks a type, maybe one without a name, for its auto traits.
pub struct Probe<T: ?Sized>(PhantomData<T>);

impl<T: ?Sized> Probe<T> {
    pub fn new() -> Self {
        Probe(PhantomData)
    }
}

/// Per auto trait a method that answers "yes" where the bound holds, and one that is found after it
/// and answers "no".
macro_rules! auto_traits {
    ($($method:ident $yes:ident $no:ident: $bound:path;)*) => {$(
        pub trait $yes { fn $method(&self) -> bool { true } }
        impl<T: ?Sized + $bound> $yes for Probe<T> {}
        pub trait $no { fn $method(&self) -> bool { false } }
        impl<T: ?Sized> $no for &Probe<T> {}
    )*};
}

auto_traits! {
    send SendYes SendNo: Send;
    sync SyncYes SyncNo: Sync;
    unpin UnpinYes UnpinNo: Unpin;
    unwind_safe UnwindSafeYes UnwindSafeNo: std::panic::UnwindSafe;
    ref_unwind_safe RefUnwindSafeYes RefUnwindSafeNo: std::panic::RefUnwindSafe;
}

/// The auto traits of what a probe asks, in words.
#[macro_export]
macro_rules! autos {
    ($probe:expr) => {{
        #[allow(unused_imports)]
        use $crate::probes::*;
        let probe = &$probe;
        let traits = [
            (probe.send(), "Send"),
            (probe.sync(), "Sync"),
            (probe.unpin(), "Unpin"),
            (probe.unwind_safe(), "UnwindSafe"),
            (probe.ref_unwind_safe(), "RefUnwindSafe"),
        ];
        traits.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect::<Vec<_>>().join(" ")
    }};
}

/// Functions that take a function of exactly these types: plain ones, those that make a future, and
/// a probe of the future.
macro_rules! functions {
    ($($exact:ident $future:ident $probe:ident ($($argument:ident)*);)*) => {$(
        pub fn $exact<$($argument,)* O>(_: impl Fn($($argument),*) -> O) {}
        pub fn $future<$($argument,)* R, O: Future<Output = R>>(_: impl Fn($($argument),*) -> O) {}
        pub fn $probe<$($argument,)* O>(_: impl Fn($($argument),*) -> O) -> Probe<O> { Probe(PhantomData) }
    )*};
}

functions! {
    exact_0 future_0 probe_0 ();
    exact_1 future_1 probe_1 (A);
    exact_2 future_2 probe_2 (A B);
    exact_3 future_3 probe_3 (A B C);
    exact_4 future_4 probe_4 (A B C D);
    exact_5 future_5 probe_5 (A B C D E);
}

/// The probes tell yes from no, also of a future.
pub fn self_check() {
    async fn holds_an_rc() {
        let held = std::rc::Rc::new(());
        std::future::ready(()).await;
        drop(held);
    }
    assert_eq!(autos!(Probe::<u8>::new()), "Send Sync Unpin UnwindSafe RefUnwindSafe");
    assert_eq!(autos!(Probe::<std::rc::Rc<u8>>::new()), "Unpin UnwindSafe RefUnwindSafe");
    assert_eq!(autos!(Probe::<std::cell::Cell<u8>>::new()), "Send Unpin UnwindSafe");
    assert_eq!(autos!(Probe::<&'static mut u8>::new()), "Send Sync Unpin RefUnwindSafe");
    assert!(!autos!(probe_0::<_>(holds_an_rc)).contains("Send"));
}

pub fn listener(nonblocking: bool) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.set_nonblocking(nonblocking).expect("set_nonblocking");
    listener
}

pub fn stream(nonblocking: bool) -> TcpStream {
    let listener = listener(false);
    let stream = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
    stream.set_nonblocking(nonblocking).expect("set_nonblocking");
    stream
}

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What a call panics with and where: with a good socket but no runtime, and with a runtime but a
/// blocking socket.
pub fn panics(call: impl Fn(bool)) -> Vec<String> {
    panic::set_hook(Box::new(|panic| {
        let text = panic.payload().downcast_ref::<String>().map(String::as_str);
        let said = text.or(panic.payload().downcast_ref::<&str>().copied()).unwrap_or("no text");
        let place = panic.location().expect("a place");
        // The caller is ours.rs or theirs.rs, of which the lines are the same.
        let file = if place.file().ends_with("ours.rs") || place.file().ends_with("theirs.rs") {
            "its caller"
        } else {
            place.file()
        };
        LAST.set(format!("panics with {said:?} at {file}, line {}", place.line()));
    }));
    let caught = |call: &dyn Fn()| match panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(()) => "does not panic".to_owned(),
        Err(_) => LAST.take(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let without = caught(&|| call(true));
    let with = runtime.block_on(async { caught(&|| call(false)) });
    drop(panic::take_hook());
    vec![without, with]
}
