//! Who lacks something stays on TCP and says what it lacks; the other end hears it, too.

#[allow(dead_code, reason = "not every test needs all of it")]
#[path = "support/child.rs"]
mod child;
#[path = "support/deny.rs"]
mod deny;
#[path = "support/lab.rs"]
mod lab;
#[allow(dead_code, reason = "not every test needs all of it")]
#[path = "support/watchdog.rs"]
mod watchdog;

use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::{Diagnosis, FallbackReason, SmcListener, SmcStream, Transport, UpgradePolicy};

use child::{Child, next_word, role, tell};
use lab::Lab;
use watchdog::{Flavour, step, watched};

/// Not a test of its own: the door through which this binary becomes the process that lacks
/// something.
#[test]
fn child_process() {
    let Some(role) = role() else { return };
    let words: Vec<&str> = role.split(' ').collect();
    if let ["read-only", ..] = words[1..] {
        deny::make_read_only(&PathBuf::from(std::env::var_os("SMC_LO_DIR").expect("a directory")));
    }
    let runtime = Flavour::MultiThread.runtime();
    let address = std::env::var("SMC_TEST_ADDRESS").ok();
    runtime.block_on(async {
        match words[0] {
            "client" => {
                let address = address.expect("an address");
                let mut stream = SmcStream::connect(address).await.expect("connect");
                suffer(&words[1..]);
                let upgraded = stream.upgrade().await;
                talk(&mut stream, true).await;
                tell(&format!("{:?}", upgraded.fallback_reason()));
            }
            "server" => {
                let early = matches!(words[1], "early" | "read-only");
                if early {
                    suffer(&words[1..]);
                }
                let listener = SmcListener::bind("127.0.0.1:0").await.expect("bind");
                tell(&listener.local_addr().expect("an address").to_string());
                let (mut stream, _) = listener.accept().await.expect("accept");
                if !early {
                    suffer(&words[1..]);
                }
                tell("accepted");
                talk(&mut stream, false).await;
                tell(&format!("{:?}", stream.transport().fallback_reason()));
            }
            other => panic!("no role {other}"),
        }
        assert_eq!(next_word(), None, "the parent has no more to say");
    });
}

/// Loses what `words` say.
fn suffer(words: &[&str]) {
    match words {
        ["descriptors", count] => deny::leave_descriptors(count.parse().expect("a number")),
        ["early", rest @ ..] => suffer(rest),
        ["deny", call, errno] => deny::deny(deny::call(call), errno.parse().expect("a number")),
        ["read-only"] => {}
        other => panic!("no such lack: {other:?}"),
    }
}

/// What works on any transport.
async fn talk(stream: &mut SmcStream, first: bool) {
    for turn in 0..10 {
        if first {
            stream.write_u8(turn).await.expect("write");
        }
        assert_eq!(stream.read_u8().await.expect("read"), turn);
        if !first {
            stream.write_u8(turn).await.expect("write");
        }
    }
}

/// The reason, as Debug text, that a client hears of itself when it lacks something.
fn of_client(lack: &str) -> String {
    step(format!("client lacks {lack}"));
    let lab = Lab::new();
    let dir = lab.dir().to_owned();
    let runtime = Flavour::MultiThread.runtime();
    runtime.block_on(async {
        let config = lab.config(UpgradePolicy::FirstTurn);
        let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
        let address = listener.local_addr().expect("an address").to_string();
        let role = format!("client {lack}");
        let variables = [("SMC_TEST_ADDRESS", address.as_str()), ("SMC_LO_UPGRADE", "manual")];
        let mut child = Child::start(&role, &dir, &variables);
        let (mut stream, _) = listener.accept().await.expect("accept");
        talk(&mut stream, false).await;
        child.hear()
    })
}

/// What a client hears of a server that lacks something, and the Debug text of what the server says
/// itself.
fn of_server(lack: &str) -> (Transport, String) {
    step(format!("server lacks {lack}"));
    let lab = Lab::new();
    let mut child = Child::start(&format!("server {lack}"), lab.dir(), &[]);
    let address = child.hear();
    let runtime = Flavour::MultiThread.runtime();
    runtime.block_on(async {
        let config = lab.config(UpgradePolicy::Manual);
        let mut stream = SmcStream::connect_with(address, &config).await.expect("connect");
        assert_eq!(child.hear(), "accepted");
        let transport = stream.upgrade().await;
        talk(&mut stream, true).await;
        (transport, child.hear())
    })
}

/// Calls, errors, and what they mean.
const DENIED: [(&str, i32, FallbackReason); 10] = [
    ("memfd_create", libc::EPERM, FallbackReason::Denied),
    ("memfd_create", libc::ENOSYS, FallbackReason::Denied),
    ("memfd_create", libc::EMFILE, FallbackReason::Descriptors),
    ("memfd_create", libc::ENFILE, FallbackReason::Descriptors),
    ("memfd_create", libc::ENOMEM, FallbackReason::Memory),
    ("netlink", libc::EPERM, FallbackReason::Denied),
    ("netlink", libc::EACCES, FallbackReason::Denied),
    ("netlink", libc::EAFNOSUPPORT, FallbackReason::Denied),
    ("netlink", libc::EMFILE, FallbackReason::Descriptors),
    ("netlink", libc::ENOBUFS, FallbackReason::Memory),
];

#[test]
fn a_client_that_is_denied_a_call_names_it_as_its_own_lack() {
    watched(|| {
        let more = [
            ("eventfd2", libc::EPERM, FallbackReason::Denied),
            ("timerfd_create", libc::EPERM, FallbackReason::Denied),
            ("timerfd_create", libc::EMFILE, FallbackReason::Descriptors),
            ("unix", libc::EPERM, FallbackReason::Denied),
            ("unix", libc::EACCES, FallbackReason::Denied),
            ("unix", libc::ENFILE, FallbackReason::Descriptors),
            ("getrandom", libc::EPERM, FallbackReason::Denied),
        ];
        for (call, errno, reason) in DENIED.into_iter().chain(more) {
            let said = of_client(&format!("deny {call} {errno}"));
            assert_eq!(said, format!("{:?}", Some(reason)), "{call}, errno {errno}");
        }
    });
}

#[test]
fn a_server_that_is_denied_a_call_tells_the_client() {
    watched(|| {
        for (call, errno, reason) in DENIED {
            let (heard, said) = of_server(&format!("deny {call} {errno}"));
            let declined = FallbackReason::Declined(reason.diagnosis());
            assert_eq!(heard.fallback_reason(), Some(declined), "{call}, errno {errno}");
            assert_ne!(reason.diagnosis(), Diagnosis::MAX_DMB);
            if call == "netlink" {
                assert_eq!(said, format!("{:?}", Some(reason)), "{call}, errno {errno}");
            }
        }
    });
}

#[test]
fn a_server_without_a_place_on_the_device_says_why() {
    watched(|| {
        for (lack, reason) in [
            (format!("early deny eventfd2 {}", libc::EPERM), FallbackReason::Denied),
            (format!("early deny unix {}", libc::EMFILE), FallbackReason::Descriptors),
            ("read-only".to_owned(), FallbackReason::NoDevice),
        ] {
            let (heard, said) = of_server(&lack);
            // To its clients it is a plain server.
            assert_eq!(heard.fallback_reason(), Some(FallbackReason::NoSmcListener), "{lack}");
            assert_eq!(said, format!("{:?}", Some(reason)), "{lack}");
        }
    });
}

#[test]
fn a_client_on_a_read_only_directory_blames_the_directory() {
    watched(|| {
        assert_eq!(of_client("read-only"), "Some(NoDevice)");
    });
}

/// Descriptors that are free; the last ones are left to the application, which is up to 64 of them.
const FEW_TO_ENOUGH: [usize; 14] = [0, 1, 2, 3, 4, 6, 8, 10, 14, 20, 40, 64, 80, 100];

#[test]
fn a_server_without_descriptors_is_one_that_lacks_something_and_no_broken_one() {
    watched(|| {
        // With too few it can not even take the link's connection: the client waits as long as one
        // does.
        let all: Vec<_> = FEW_TO_ENOUGH
            .into_iter()
            .map(|count| std::thread::spawn(move || of_server(&format!("descriptors {count}")).0))
            .collect();
        let heard: Vec<_> =
            all.into_iter().map(|one| one.join().expect("no panic").fallback_reason()).collect();
        let declined = Some(FallbackReason::Declined(FallbackReason::Descriptors.diagnosis()));
        assert_eq!(heard.first(), Some(&Some(FallbackReason::NoAnswer)), "{heard:?}");
        assert!(heard.contains(&declined), "{heard:?}");
        assert_eq!(heard.last(), Some(&None), "{heard:?}");
        let stages = [Some(FallbackReason::NoAnswer), declined, None];
        let reached = heard.iter().map(|reason| stages.iter().position(|stage| stage == reason));
        assert!(reached.is_sorted_by(|a, b| a.is_some() && a <= b), "{heard:?}");
    });
}

#[test]
fn a_client_without_descriptors_says_so_until_they_suffice() {
    watched(|| {
        let mut enough = None;
        for count in FEW_TO_ENOUGH {
            match of_client(&format!("descriptors {count}")).as_str() {
                "Some(Descriptors)" => assert_eq!(enough, None, "{count} are too few, fewer were enough"),
                "None" => enough = enough.or(Some(count)),
                other => panic!("with {count} descriptors: {other}"),
            }
        }
        assert!(enough.is_some_and(|enough| enough > 0), "{enough:?} are enough");
    });
}
