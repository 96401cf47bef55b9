//! The complete surface: whatever the locked tokio offers of its TCP types, this crate offers under
//! `tokio_smc::net`.
//!
//! The list is made from tokio's sources in the local registry. For every public type, field,
//! method and trait impl a check is written into a small program: a function of tokio's signature
//! that calls ours, the exact types of arguments and answer, the auto traits of types and futures,
//! where it panics. The same checks are made of tokio itself: what fails there is the fault of this
//! test.

#[path = "surface/checks.rs"]
mod checks;
#[path = "surface/conditions.rs"]
mod conditions;
#[path = "surface/locked.rs"]
mod locked;
#[path = "surface/names.rs"]
mod names;
#[path = "surface/offers.rs"]
mod offers;
#[path = "surface/program.rs"]
mod program;
#[path = "support/watchdog.rs"]
#[allow(dead_code, reason = "nothing runs here that needs a runtime")]
mod watchdog;

use std::path::Path;
use std::sync::OnceLock;

use locked::Tokio;
use watchdog::watched;

/// What is found with the tokio of Cargo.lock.
fn honest() -> &'static [String] {
    static FOUND: OnceLock<Vec<String>> = OnceLock::new();
    FOUND.get_or_init(|| program::findings(&Tokio::locked(), &scratch("surface-program")))
}

fn scratch(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

#[test]
fn all_that_tokio_offers_is_here() {
    watched(|| {
        let found = honest();
        assert!(found.is_empty(), "{} differences from tokio:\n{}", found.len(), found.join("\n"));
    });
}

/// The test can fail: of a tokio with more in it, all that is more is named, and nothing else.
#[test]
fn what_a_newer_tokio_adds_is_named() {
    watched(|| {
        let tokio = Tokio::locked().copied_to(&scratch("surface-doctored-tokio"));
        let (stream, listener) = ("src/net/tcp/stream.rs", "src/net/tcp/listener.rs");
        let (socket, split) = ("src/net/tcp/socket.rs", "src/net/tcp/split.rs");
        tokio.doctor(
            stream,
            "impl TcpStream {\n",
            "impl TcpStream {\n    pub fn brand_new(&self, size: u32) -> io::Result<u32> { todo!() }\n\
             cfg_windows! { pub fn elsewhere(&self) {} }\n    #[doc(hidden)]\n    pub fn hidden(&self) {}\n\
             cfg_io_util! { pub async fn brand_new_too<B: BufMut>(&self, buf: &mut B) -> io::Result<()> { todo!() } }\n",
        );
        tokio.doctor(
            listener,
            "pub fn ttl(&self) -> io::Result<u32>",
            "pub fn ttl(&self) -> io::Result<u64>",
        );
        tokio.doctor(
            socket,
            "pub fn bind(&self, addr: SocketAddr)",
            "pub fn bind(&mut self, addr: SocketAddr)",
        );
        tokio.doctor(
            socket,
            "impl fmt::Debug for TcpSocket",
            "impl Clone for TcpSocket { fn clone(&self) -> Self { todo!() } }\nimpl fmt::Debug for TcpSocket",
        );
        tokio.doctor(
            split,
            "pub struct ReadHalf<'a>(&'a TcpStream);",
            "pub struct ReadHalf<'a>(&'a TcpStream);\n\n#[derive(Debug)]\npub struct ThirdHalf<'a>(&'a TcpStream);",
        );
        tokio.doctor("src/net/tcp/mod.rs", "{ReadHalf, WriteHalf}", "{ReadHalf, ThirdHalf, WriteHalf}");
        tokio.doctor(
            split,
            "            self.0.try_read_buf(buf)\n        }\n    }\n",
            "            self.0.try_read_buf(buf)\n        }\n    }\n    #[track_caller]\n",
        );
        let found = program::findings(&tokio, &scratch("surface-doctored-program"));
        // Most lines of the doctored files have moved.
        let without_place = |line: &str| line.rsplit_once(" (").expect("a place").0.to_owned();
        let known: Vec<String> = honest().iter().map(|line| without_place(line)).collect();
        let more: Vec<&String> = found.iter().filter(|line| !known.contains(&without_place(line))).collect();
        let expected = [
            (
                "TcpStream::brand_new is missing",
                "`pub fn brand_new(&self, size: u32) -> io::Result<u32>` (src/net/tcp/stream.rs:79)",
            ),
            (
                "TcpStream::brand_new_too is missing",
                "brand_new_too<B: BufMut>(&self, buf: &mut B) -> io::Result<()>`",
            ),
            (
                "TcpListener::ttl has another signature",
                "`pub fn ttl(&self) -> io::Result<u64>` (src/net/tcp/listener.rs:",
            ),
            ("TcpSocket::bind has another signature", "bind(&mut self, addr: SocketAddr) -> io::Result<()>`"),
            ("Clone for TcpSocket is missing", "`impl Clone for TcpSocket` (src/net/tcp/socket.rs:"),
            ("net::tcp::ThirdHalf is missing", "`pub struct ThirdHalf<'a>` (src/net/tcp/split.rs:"),
            ("Debug for ThirdHalf is missing", "#[derive(Debug)]"),
            ("ReadHalf::peer_addr can not be checked: it is #[track_caller]", "(src/net/tcp/split.rs:"),
        ];
        for (begins, holds) in expected {
            let named = more.iter().any(|line| line.starts_with(begins) && line.contains(holds));
            assert!(named, "{begins} … {holds} is not among\n{more:#?}");
        }
        assert_eq!(more.len(), expected.len(), "{more:#?}");
    });
}
