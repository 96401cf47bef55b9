//! What a socket that the reactor watches tells those who wait for it.

use super::*;
use crate::rt::tokio::tcp::is_apart_spoiled;

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

/// A packet may come late, when the second registration is there: that is spoiled then, too. Who
/// asks for an event gets an answer all the same, as does who writes, and hears of the end.
#[test]
fn a_late_packet_keeps_nobody_asking() {
    let (done, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = runtime();
        let (tcp, peer) = tcp_pair(&runtime);
        spoil(&tcp);
        let (woken, waker) = Woken::new();
        let (mut cx, mut apart) = (Context::from_waker(&waker), None);
        let _context = runtime.enter();
        for _ in 0..3 {
            assert!(Tcp::poll_write_event(&tcp, &mut apart, &mut cx).is_pending(), "nothing has ended");
            assert_eq!(sys::send_sampled(tcp.as_fd(), &[io::IoSlice::new(b"y")]).unwrap(), 1);
            while !is_apart_spoiled(&tcp, apart.as_ref().unwrap()) {
                std::thread::yield_now();
            }
        }
        // The socket is full: a write waits, with a registration that can tell.
        let full = |fd: std::os::fd::BorrowedFd<'_>| {
            let _ = fd;
            Err(ErrorKind::WouldBlock.into())
        };
        assert!(Tcp::poll_apart(&tcp, &mut apart, &mut cx, full).is_pending());
        assert!(!is_apart_spoiled(&tcp, apart.as_ref().unwrap()));
        assert!(Tcp::poll_write_event(&tcp, &mut apart, &mut cx).is_pending());
        std::thread::sleep(Duration::from_millis(50));
        woken.0.store(false, Ordering::SeqCst);
        assert!(Tcp::poll_write_event(&tcp, &mut apart, &mut cx).is_pending());
        sys::set_zero_linger(peer.as_fd()).unwrap();
        drop(peer);
        while !woken.0.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        assert!(Tcp::poll_write_event(&tcp, &mut apart, &mut cx).is_ready());
        done.send(()).unwrap();
    });
    end.recv_timeout(PATIENCE).expect("it asks for ever, or has panicked");
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
