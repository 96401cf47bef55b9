//! What a stream tells of itself: its transport and every change of it, its peer, its counters, its
//! socket.

#[path = "support/agree.rs"]
mod agree;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/watchdog.rs"]
mod watchdog;

use std::io::ErrorKind;

use futures::StreamExt;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio_smc::{
    Config, FallbackReason, IntoStdError, SmcListener, SmcListenerStream, SmcStream, Transport,
    TransportWatch, UpgradePolicy,
};

use agree::agree;
use lab::Lab;
use watchdog::{Flavour, on_both_schedulers, step};

async fn connected(config: &Config) -> (SmcStream, SmcStream) {
    let listener = SmcListener::bind_with("127.0.0.1:0", config).await.expect("bind");
    let address = listener.local_addr().expect("an address");
    let (client, server) = tokio::join!(SmcStream::connect_with(address, config), listener.accept());
    (client.expect("connect"), server.expect("accept").0)
}

async fn upgraded(lab: &Lab) -> (SmcStream, SmcStream) {
    let (mut client, mut server) = connected(&lab.config(UpgradePolicy::FirstTurn)).await;
    tokio::join!(agree(&mut client, true), agree(&mut server, false));
    (client, server)
}

#[test]
fn both_ends_tell_the_same_story() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let listener =
            SmcListener::bind_with("127.0.0.1:0", &config.clone().dmb_size(1 << 16)).await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let mut pairs = Vec::new();
        for _ in 0..2 {
            let (client, server) = tokio::join!(SmcStream::connect_with(address, &config), listener.accept());
            let (mut client, mut server) = (client.expect("connect"), server.expect("accept").0);
            tokio::join!(agree(&mut client, true), agree(&mut server, false));
            pairs.push((client, server));
        }
        let mut links = Vec::new();
        for (client, server) in &pairs {
            let (Transport::LoopbackIsm(ours), Transport::LoopbackIsm(theirs)) =
                (client.transport(), server.transport())
            else {
                panic!("{} and {}", client.transport(), server.transport());
            };
            assert_eq!((ours.device, ours.link), (theirs.device, theirs.link));
            assert_eq!((ours.receive_window, ours.send_window), (4 << 20, 1 << 16));
            assert_eq!((theirs.receive_window, theirs.send_window), (1 << 16, 4 << 20));
            assert!(ours.to_string().contains(&ours.device.to_string()), "{ours}");
            links.push(ours.link);
        }
        assert_eq!(links[0], links[1], "one link between two endpoints");
        let other = Lab::new();
        let (elsewhere, _server) = upgraded(&other).await;
        let (Transport::LoopbackIsm(here), Transport::LoopbackIsm(there)) =
            (pairs[0].0.transport(), elsewhere.transport())
        else {
            panic!("{}", elsewhere.transport());
        };
        assert_ne!(here.device, there.device, "another directory is another device");
    });
}

#[test]
fn the_peer_is_known_once_it_is_proved() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, server) = connected(&lab.config(UpgradePolicy::Manual)).await;
        let error = client.peer_cred().expect_err("TCP does not tell");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let source = error.get_ref().and_then(|source| source.downcast_ref::<FallbackReason>());
        assert_eq!(source, Some(&FallbackReason::NotYet));
        assert!(client.upgrade().await.is_loopback_ism());
        server.watch().settled().await;
        for stream in [&client, &server] {
            let peer = stream.peer_cred().expect("loopback-ism");
            assert_eq!(peer.pid(), Some(std::process::id() as i32));
            assert_eq!(peer.uid(), own_uid());
        }
    });
}

fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").expect("proc is mounted").uid()
}

#[test]
fn counters_tell_what_moved_where() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (mut client, mut server) = connected(&lab.config(UpgradePolicy::Manual)).await;
        client.write_all(&[1; 1000]).await.expect("write");
        server.read_exact(&mut [0; 600]).await.expect("read");
        assert_eq!(client.counters().tcp_bytes_written, 1000);
        assert_eq!(server.counters().tcp_bytes_read, 600);
        assert_eq!((client.counters().ism_bytes_written, server.counters().ism_bytes_read), (0, 0));
        assert!(client.upgrade().await.is_loopback_ism());
        client.write_all(&[2; 5000]).await.expect("write");
        server.read_exact(&mut [0; 5400]).await.expect("read");
        server.peek(&mut [0; 1]).now_or_never_is_none();
        let (ours, theirs) = (client.counters(), server.counters());
        assert_eq!((ours.tcp_bytes_written, ours.ism_bytes_written), (1000, 5000));
        assert_eq!((theirs.tcp_bytes_read, theirs.ism_bytes_read), (1000, 5000));
        assert_eq!((ours.tcp_bytes_read, ours.ism_bytes_read), (0, 0));
    });
}

/// Asked without waiting.
trait NowOrNever {
    fn now_or_never_is_none(self);
}

impl<F: Future> NowOrNever for F {
    fn now_or_never_is_none(self) {
        assert!(futures::FutureExt::now_or_never(self).is_none(), "there is nothing to peek at");
    }
}

#[test]
fn a_watch_hears_of_every_step_and_of_the_end() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, server) = connected(&lab.config(UpgradePolicy::Manual)).await;
        let (upgraded, mut both) = tokio::sync::mpsc::channel(2);
        let listen = |mut watch: TransportWatch| {
            let upgraded = upgraded.clone();
            tokio::spawn(async move {
                let mut heard = Vec::new();
                while let Some(transport) = watch.next().await {
                    heard.push(transport);
                    // Sent once by each end: the transport then stays for good.
                    if transport.is_loopback_ism() {
                        upgraded.send(()).await.expect("the test waits");
                    }
                }
                heard
            })
        };
        let heard = [listen(client.watch()), listen(server.watch())];
        assert!(client.upgrade().await.is_loopback_ism());
        for _ in 0..2 {
            step("waiting for both watches to hear of the upgrade");
            both.recv().await.expect("a watch");
        }
        drop(client);
        drop(server);
        for heard in heard {
            step("waiting for the end of a watch");
            let heard = heard.await.expect("no panic");
            assert!(heard.last().expect("one at least").is_loopback_ism(), "{heard:?}");
            assert!(heard.windows(2).all(|pair| pair[0] != pair[1]), "a change changes something: {heard:?}");
        }
    });
}

/// Nobody reads or writes at the watched end; the peer alone brings the change about.
#[test]
fn a_watch_hears_the_peer_switch() {
    on_both_schedulers(async || {
        for _ in 0..200 {
            let lab = Lab::new();
            let (client, server) = connected(&lab.config(UpgradePolicy::Manual)).await;
            let mut watch = server.watch();
            let upgrade = tokio::spawn(async move { (client.upgrade().await, client) });
            step("waiting for the accepted end");
            let settled = watch.settled().await;
            assert!(settled.is_loopback_ism(), "{settled:?}");
            let (transport, _client) = upgrade.await.expect("no panic");
            assert!(transport.is_loopback_ism());
        }
    });
}

#[test]
fn a_watch_hears_why_it_stays_tcp() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let client =
            SmcStream::connect_with(address, &lab.config(UpgradePolicy::Eager)).await.expect("connect");
        let mut watch = client.watch();
        assert_eq!(watch.settled().await, Transport::Tcp(FallbackReason::NoSmcListener));
        drop(client);
        assert_eq!(watch.changed().await, None);
        assert_eq!(watch.transport(), Transport::Tcp(FallbackReason::NoSmcListener), "the last one seen");
    });
}

#[test]
fn into_std_gives_an_upgraded_stream_back() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, mut server) = upgraded(&lab).await;
        let error = client.into_std().expect_err("it is in the rings");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("SMC_LO_UPGRADE=manual"), "says how to stay on TCP: {error}");
        let source = error.into_inner().expect("a source").downcast::<IntoStdError>().expect("the stream");
        let mut client = source.into_stream();
        client.write_all(b"still here").await.expect("write");
        let mut got = [0; 10];
        server.read_exact(&mut got).await.expect("read");
        assert_eq!(&got, b"still here");
        assert!(client.transport().is_loopback_ism());
    });
}

#[test]
fn an_upgraded_stream_says_why_it_has_no_raw_io() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, _server) = upgraded(&lab).await;
        let tried = client.try_io(Interest::READABLE, || Ok(())).expect_err("it is in the rings");
        let waited = client.async_io(Interest::WRITABLE, || Ok(())).await.expect_err("it is in the rings");
        for (what, error) in [("try_io", tried), ("async_io", waited)] {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            let text = error.to_string();
            assert!(text.contains(what) && text.contains("SMC_LO_UPGRADE=manual"), "{text}");
        }
        assert!(client.transport().is_loopback_ism());
    });
}

/// The socket is in reach for options, on TCP and after the upgrade.
#[test]
fn options_through_the_socket_itself() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, _server) = upgraded(&lab).await;
        let socket = SockRef::from(&client);
        socket.set_keepalive(true).expect("set");
        assert!(socket.keepalive().expect("get"));
        socket.set_tcp_nodelay(true).expect("set");
        assert!(client.nodelay().expect("get"));
        assert_eq!(
            socket.local_addr().expect("an address").as_socket(),
            Some(client.local_addr().expect("an address"))
        );
    });
}

/// An offer for a stream that lives but stays on TCP is answered at once, also when it had to be
/// looked up.
#[test]
fn an_offer_for_a_pinned_stream_is_refused() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, server) = connected(&lab.config(UpgradePolicy::Manual)).await;
        let _ = server.try_io(Interest::WRITABLE, || Ok(()));
        step("waiting for the refusal");
        let Transport::Tcp(FallbackReason::Declined(diagnosis)) = client.upgrade().await else {
            panic!("{:?}", client.transport());
        };
        assert_eq!(diagnosis, FallbackReason::Pinned.diagnosis());
    });
}

/// An offer for a stream that the server's application has taken away before it came is refused,
/// after a while.
#[test]
fn an_offer_for_a_stream_that_is_gone_is_refused() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::Manual);
        let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let pair = async || {
            let (client, server) = tokio::join!(SmcStream::connect_with(address, &config), listener.accept());
            (client.expect("connect"), server.expect("accept").0.into_std().expect("still on tcp"))
        };
        let (client, _server) = pair().await;
        step("waiting for the refusal");
        let Transport::Tcp(FallbackReason::Declined(diagnosis)) = client.upgrade().await else {
            panic!("{:?}", client.transport());
        };
        assert_eq!(diagnosis, FallbackReason::Unproved.diagnosis());
        let (client, _server) = pair().await;
        // Another runtime that may be meant: both are asked for the stream.
        let (elsewhere, over) = (config.clone(), tokio::sync::oneshot::channel::<()>());
        let (bound, binding) = tokio::sync::oneshot::channel();
        let other = std::thread::spawn(move || {
            Flavour::CurrentThread.runtime().block_on(async {
                let listener = SmcListener::bind_with(("127.0.0.2", address.port()), &elsewhere).await;
                let _ = bound.send(listener.expect("bind"));
                let _ = over.1.await;
            });
        });
        let _elsewhere = binding.await.expect("a listener");
        step("waiting for two answers");
        assert_eq!(client.upgrade().await, Transport::Tcp(FallbackReason::NoSmcListener));
        drop(over.0);
        other.join().expect("no panic");
    });
}

/// Nobody is told that it waits in vain as long as the stream may still be accepted.
#[test]
fn an_offer_waits_for_a_slow_server() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::Eager);
        let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let mut client = SmcStream::connect_with(address, &config).await.expect("connect");
        // Several sweeps long.
        tokio::time::sleep(std::time::Duration::from_millis(3500)).await;
        let mut server = listener.accept().await.expect("accept").0;
        tokio::join!(agree(&mut client, true), agree(&mut server, false));
    });
}

#[test]
fn a_listener_is_a_stream_of_streams() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let mut incoming = SmcListenerStream::new(listener);
        for _ in 0..3 {
            let (client, server) = tokio::join!(SmcStream::connect_with(address, &config), incoming.next());
            let (mut client, mut server) =
                (client.expect("connect"), server.expect("no end").expect("accept"));
            tokio::join!(agree(&mut client, true), agree(&mut server, false));
        }
        assert_eq!(incoming.as_ref().local_addr().expect("an address"), address);
        assert_eq!(incoming.into_inner().local_addr().expect("an address"), address);
    });
}
