//! Sequence numbers of TCP go round after 4 GiB. Positions of a stream do not.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_smc::{Config, SmcListener, SmcStream, UpgradePolicy};

use crate::watchdog::{Flavour, step, watched};

/// A little more than all numbers that TCP has.
const BYTES: u64 = (1 << 32) + (1 << 20) + 77;
/// A prime: no two pieces begin with the same byte.
const PERIOD: usize = 65_521;
const PIECE: usize = 1 << 18;

/// The bytes of the stream from `place` on.
fn piece(table: &[u8], place: u64, length: usize) -> &[u8] {
    &table[(place % PERIOD as u64) as usize..][..length]
}

fn table() -> Vec<u8> {
    (0..PERIOD + PIECE).map(|at| ((at % PERIOD).wrapping_mul(0x9E37_79B1) >> 11) as u8).collect()
}

async fn send(to: &mut (impl AsyncWrite + Unpin), table: &[u8], from: u64, until: u64) -> io::Result<()> {
    let mut place = from;
    while place < until {
        let length = PIECE.min((until - place) as usize);
        to.write_all(piece(table, place, length)).await?;
        place += length as u64;
    }
    Ok(())
}

async fn expect(by: &mut (impl AsyncRead + Unpin), table: &[u8], from: u64, until: u64) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut place = from;
    while place < until {
        let length = by.read(&mut buffer[..PIECE.min((until - place) as usize)]).await?;
        if length == 0 || buffer[..length] != *piece(table, place, length) {
            return Err(io::Error::other(format!("other bytes from {place} on, {length} of them")));
        }
        place += length as u64;
    }
    Ok(())
}

/// Both ways at once.
async fn pass(a: &mut SmcStream, b: &mut SmcStream, table: &[u8], from: [u64; 2], until: [u64; 2]) {
    let (mut a, mut b) = (a.split(), b.split());
    let all = tokio::join!(
        send(&mut a.1, table, from[0], until[0]),
        expect(&mut b.0, table, from[0], until[0]),
        send(&mut b.1, table, from[1], until[1]),
        expect(&mut a.0, table, from[1], until[1]),
    );
    for done in [all.0, all.1, all.2, all.3] {
        done.expect("all bytes");
    }
}

/// TCP's sequence numbers have gone round when the client proves itself, and the positions of the
/// switch are past 32 bits; then so are the ring's own.
#[test]
fn four_gib_over_tcp_and_four_over_the_ring() {
    watched(|| {
        let dir = tempfile::Builder::new().prefix("smc-test-").tempdir().expect("a temp dir");
        Flavour::MultiThread.runtime().block_on(async {
            let config = Config::new().device_dir(dir.path()).upgrade_policy(UpgradePolicy::Manual);
            let listener = SmcListener::bind_with("127.0.0.1:0", &config).await.expect("bind");
            let to = listener.local_addr().expect("an address");
            let (client, accepted) = tokio::join!(SmcStream::connect_with(to, &config), listener.accept());
            let (mut client, mut server) = (client.expect("connect"), accepted.expect("accept").0);
            let table = table();

            step("4 GiB over TCP");
            // The other way a few only: its position stays a small one.
            let over_tcp = [BYTES, 5000];
            pass(&mut client, &mut server, &table, [0; 2], over_tcp).await;
            step("the upgrade");
            let upgrade = client.upgrade().await;
            assert!(upgrade.is_loopback_ism(), "the client: {upgrade}");
            let upgrade = server.upgrade().await;
            assert!(upgrade.is_loopback_ism(), "the server: {upgrade}");
            step("4 GiB over the ring");
            pass(&mut client, &mut server, &table, over_tcp, [2 * BYTES, BYTES]).await;
            let moved = client.counters();
            assert_eq!((moved.tcp_bytes_written, moved.ism_bytes_written), (BYTES, BYTES));
            assert_eq!((moved.tcp_bytes_read, moved.ism_bytes_read), (over_tcp[1], BYTES - over_tcp[1]));
            drop(client);
            assert_eq!(server.read(&mut [0]).await.expect("the end"), 0);
        });
    });
}
