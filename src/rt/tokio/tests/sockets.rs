//! What a socket that the reactor watches tells those who wait for it.

use super::*;
use crate::rt::tokio::apart::Apart;

/// A plain connection, its first end driven by that runtime.
fn tcp_pair(runtime: &Runtime) -> (tokio::net::TcpStream, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let tcp = runtime.block_on(tokio::net::TcpStream::connect(address)).unwrap();
    (tcp, listener.accept().unwrap().0)
}

#[test]
fn room_that_comes_while_a_late_write_begins_to_wait_is_found() {
    let runtime = runtime();
    let (tcp, mut peer) = tcp_pair(&runtime);
    let chunk = vec![0; 64 << 10];
    let mut sent = 0;
    loop {
        match tcp.try_write(&chunk) {
            Ok(length) => sent += length,
            // Not known to the reactor yet, or full.
            Err(_) if sent > 0 && tcp_ready(&tcp, Interest::WRITABLE).unwrap().is_empty() => break,
            Err(_) => std::thread::yield_now(),
        }
    }
    let mut tries = 0;
    let write = |fd: std::os::fd::BorrowedFd<'_>| {
        tries += 1;
        let answer = sys::send_bytes(fd, &[io::IoSlice::new(b"late")]);
        if tries == 1 {
            assert_eq!(answer.as_ref().unwrap_err().kind(), ErrorKind::WouldBlock);
            std::io::Read::read_exact(&mut peer, &mut vec![0; sent]).unwrap();
            while tcp_ready(&tcp, Interest::WRITABLE).unwrap().is_empty() {
                std::thread::yield_now();
            }
        }
        answer
    };
    let answer = tcp.poll_direct(&mut Context::from_waker(Waker::noop()), write);
    assert!(matches!(answer, Poll::Ready(Ok(4))), "{answer:?}");
}

/// Lets the reactor see a message on the error queue, which is taken then.
fn spoil(tcp: &tokio::net::TcpStream) {
    assert_eq!(sys::send_sampled(tcp.as_fd(), &[io::IoSlice::new(b"x")]).unwrap(), 1);
    while !tcp_ready(tcp, Interest::WRITABLE).unwrap().is_write_closed() {
        std::thread::yield_now();
    }
    assert!(sys::take_sample(tcp.as_fd()).unwrap().is_some());
    assert!(is_spoiled(tcp), "tokio takes it for the end of writing, for good");
}

/// The trap of the error queue: whoever waits to write to a full socket has to wait, and not to ask
/// again and again.
#[test]
fn a_full_socket_is_waited_for_after_a_sample() {
    let runtime = runtime();
    for readiness in [false, true] {
        let (tcp, mut peer) = tcp_pair(&runtime);
        spoil(&tcp);
        let stream = {
            let _context = runtime.enter();
            let config = Config::new().upgrade_policy(UpgradePolicy::Never);
            SmcStream::new(tcp, crate::conn::Role::Client, config)
        };
        stream.conn_for_tests().pretend_a_sample();
        const TOTAL: usize = 32 << 20;
        let tries = Arc::new(crate::sync::AtomicUsize::new(0));
        let counted = tries.clone();
        let writer = runtime.spawn(async move {
            let (mut stream, chunk, mut sent) = (stream, vec![7; 64 << 10], 0);
            while sent < TOTAL {
                if readiness {
                    let ready = stream.ready(Interest::WRITABLE).await.unwrap();
                    assert!(!ready.is_write_closed(), "nothing has ended");
                    counted.fetch_add(1, Ordering::SeqCst);
                    sent += stream.try_write(&chunk).unwrap_or(0);
                } else {
                    let write = std::future::poll_fn(|cx| {
                        counted.fetch_add(1, Ordering::SeqCst);
                        tokio::io::AsyncWrite::poll_write(std::pin::Pin::new(&mut stream), cx, &chunk)
                    });
                    sent += write.await.unwrap();
                }
            }
            stream
        });
        // Until the kernel takes no more; then nothing happens.
        let (mut seen, mut same) = (0, 0);
        while same < 20 {
            std::thread::sleep(Duration::from_millis(20));
            let now = tries.load(Ordering::SeqCst);
            same = if now == seen && now > 0 { same + 1 } else { 0 };
            assert!(now < 10_000, "it asks all the time: {now}");
            seen = now;
        }
        let (mut read, mut buffer) = (0, vec![0; 1 << 20]);
        while read < TOTAL + 1 {
            read += std::io::Read::read(&mut peer, &mut buffer).unwrap();
        }
        drop(runtime.block_on(writer).unwrap());
    }
}

#[test]
fn a_shut_descriptor_is_the_end_after_a_sample() {
    let runtime = runtime();
    let dir = tempfile::tempdir().unwrap();
    let config = Config::new().device_dir(dir.path()).upgrade_policy(UpgradePolicy::Manual);
    runtime.block_on(async {
        let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.unwrap();
        let tcp = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        spoil(&tcp);
        assert_eq!(server.read_u8().await.unwrap(), b'x');
        let client = SmcStream::new(tcp, crate::conn::Role::Adopted, config);
        let client = Arc::new(client);
        // It waits for what the next write shows.
        client.upgrade().await;
        let began = std::time::Instant::now();
        while !client.transport().is_loopback_ism() {
            assert!(began.elapsed() < PATIENCE, "{:?}", client.transport());
            let _ = client.try_write(b"x");
            let _ = server.read_u8().await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let waits = tokio::spawn(async move { server.read(&mut [0; 8]).await });
        tokio::time::sleep(Duration::from_millis(10)).await;
        socket2::SockRef::from(&*client).shutdown(std::net::Shutdown::Write).unwrap();
        let read = tokio::time::timeout(PATIENCE, waits).await.expect("the end is told").unwrap();
        assert_eq!(read.unwrap(), 0);
    });
}

#[test]
fn an_event_is_told_after_a_sample() {
    let runtime = runtime();
    let (tcp, peer) = tcp_pair(&runtime);
    spoil(&tcp);
    let (woken, waker) = Woken::new();
    let (mut cx, mut apart) = (Context::from_waker(&waker), None);
    let _context = runtime.enter();
    assert!(Tcp::poll_write_event(&tcp, &mut apart, &mut cx).is_pending(), "nothing has ended");
    // What the new registration tells first is no news.
    std::thread::sleep(Duration::from_millis(50));
    woken.0.store(false, Ordering::SeqCst);
    assert!(Tcp::poll_write_event(&tcp, &mut apart, &mut cx).is_pending());
    sys::set_zero_linger(peer.as_fd()).unwrap();
    drop(peer);
    let began = std::time::Instant::now();
    while !woken.0.load(Ordering::SeqCst) {
        assert!(began.elapsed() < PATIENCE, "nobody tells of the reset");
        std::thread::yield_now();
    }
    assert!(Tcp::poll_write_event(&tcp, &mut apart, &mut cx).is_ready());
}

#[test]
fn the_end_of_one_direction_is_not_the_last_event_after_a_sample() {
    let runtime = runtime();
    let (tcp, _peer) = tcp_pair(&runtime);
    spoil(&tcp);
    let (woken, waker) = Woken::new();
    let (mut cx, mut apart) = (Context::from_waker(&waker), None);
    let _context = runtime.enter();
    assert!(Tcp::poll_write_event(&tcp, &mut apart, &mut cx).is_pending(), "nothing has ended");
    for direction in [std::net::Shutdown::Write, std::net::Shutdown::Read] {
        std::thread::sleep(Duration::from_millis(50));
        woken.0.store(false, Ordering::SeqCst);
        assert!(Tcp::poll_write_event(&tcp, &mut apart, &mut cx).is_pending());
        socket2::SockRef::from(&tcp).shutdown(direction).unwrap();
        let began = std::time::Instant::now();
        while !woken.0.load(Ordering::SeqCst) {
            assert!(began.elapsed() < PATIENCE, "nobody tells of {direction:?}");
            std::thread::yield_now();
        }
    }
}

/// What comes on the error queue later is told in the other place, too. (It has to be taken before;
/// that is the business of who knows of it.)
#[test]
fn a_second_message_on_the_error_queue_does_not_hang_the_runtime() {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = runtime();
        for event in [false, true] {
            let (tcp, _peer) = tcp_pair(&runtime);
            let (mut cx, mut apart) = (Context::from_waker(Waker::noop()), None);
            let _context = runtime.enter();
            let mut wait = |apart: &mut Option<apart::Apart>| {
                if event {
                    return Tcp::poll_write_event(&tcp, apart, &mut cx).is_pending();
                }
                Tcp::poll_apart(&tcp, apart, &mut cx, |_| Err(ErrorKind::WouldBlock.into())).is_pending()
            };
            for message in 0..3 {
                assert_eq!(sys::send_sampled(tcp.as_fd(), &[io::IoSlice::new(b"x")]).unwrap(), 1);
                // All registrations hear of it.
                std::thread::sleep(Duration::from_millis(100));
                assert!(sys::take_sample(tcp.as_fd()).unwrap().is_some());
                for _ in 0..3 {
                    assert!(wait(&mut apart), "nothing has ended");
                }
                tell.send((event, message)).unwrap();
            }
        }
    });
    for expected in [(false, 0), (false, 1), (false, 2), (true, 0), (true, 1), (true, 2)] {
        assert_eq!(told.recv_timeout(PATIENCE), Ok(expected));
    }
}

/// Events come at every moment while somebody begins to wait for one: he waits then, or there is
/// nothing to wait for.
#[test]
fn an_event_in_the_moment_of_listening_does_not_end_it() {
    let runtime = runtime();
    for slot in [Interest::WRITABLE, Interest::READABLE] {
        let (tcp, mut peer) = tcp_pair(&runtime);
        let (woken, waker) = Woken::new();
        let mut cx = Context::from_waker(&waker);
        let mut listen = |tcp: &tokio::net::TcpStream| {
            if slot.is_writable() {
                Tcp::poll_write_event(tcp, &mut None, &mut cx)
            } else {
                Tcp::poll_read_event(tcp, &mut cx)
            }
        };
        let writer = std::thread::spawn(move || {
            for _ in 0..20_000 {
                std::io::Write::write_all(&mut peer, b"x").unwrap();
            }
            peer
        });
        while !writer.is_finished() {
            assert!(listen(&tcp).is_pending());
        }
        let peer = writer.join().unwrap();
        assert!(listen(&tcp).is_pending());
        // A closed socket is told once, and not waited for.
        woken.0.store(false, Ordering::SeqCst);
        socket2::SockRef::from(&tcp).shutdown(std::net::Shutdown::Both).unwrap();
        while !woken.0.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        drop(peer);
        while listen(&tcp).is_pending() {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_place_in_a_runtime_that_is_gone_is_given_up() {
    let (first, second) = (runtime(), runtime());
    let (tcp, peer) = tcp_pair(&second);
    spoil(&tcp);
    let (woken, waker) = Woken::new();
    let (mut cx, mut apart) = (Context::from_waker(&waker), None);
    {
        let _context = first.enter();
        assert!(Tcp::poll_write_event(&tcp, &mut apart, &mut cx).is_pending());
    }
    drop(first);
    assert!(woken.0.load(Ordering::SeqCst), "who waits there comes again");
    let _context = second.enter();
    assert!(Tcp::poll_write_event(&tcp, &mut apart, &mut cx).is_pending(), "nothing has ended");
    woken.0.store(false, Ordering::SeqCst);
    drop(peer);
    sys::reset_connection(tcp.as_fd()).unwrap();
    let began = std::time::Instant::now();
    while !woken.0.load(Ordering::SeqCst) {
        assert!(began.elapsed() < PATIENCE, "nobody tells of the end");
        std::thread::yield_now();
    }
}

/// A stream that a runtime drops as it ends may want a place in its queue at that moment.
#[test]
fn a_runtime_that_ends_has_no_place_to_hear_from_and_does_not_hang() {
    struct AtTheEnd(tokio::net::TcpStream, std::sync::mpsc::Sender<bool>);

    impl Drop for AtTheEnd {
        fn drop(&mut self) {
            let _ = self.1.send(Apart::new(&self.0).is_some());
        }
    }

    for runtime in [runtime(), Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()] {
        let (tell, told) = std::sync::mpsc::channel();
        // Two at once, too.
        let _peers: Vec<_> = (0..4)
            .map(|_| {
                let (tcp, peer) = tcp_pair(&runtime);
                let at_the_end = AtTheEnd(tcp, tell.clone());
                runtime.spawn(async move {
                    let _at_the_end = at_the_end;
                    std::future::pending::<()>().await;
                });
                peer
            })
            .collect();
        let ends = std::thread::spawn(move || drop(runtime));
        for _ in 0..4 {
            let place = told.recv_timeout(PATIENCE).expect("the runtime hangs");
            assert!(!place, "nobody would tell");
        }
        ends.join().unwrap();
    }
}
