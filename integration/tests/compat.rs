//! `SmcStream::compat`: the traits of futures-io on our streams, with peers of ours and plain ones.

#[path = "support/ends.rs"]
mod ends;
#[path = "../../tests/support/lab.rs"]
mod lab;
#[path = "support/pair.rs"]
mod pair;
#[path = "../../tests/support/watchdog.rs"]
mod watchdog;

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tokio_smc::FallbackReason;
use tokio_util::compat::TokioAsyncReadCompatExt;

use ends::{until_loopback_ism, until_plain};
use lab::Lab;
use pair::{plain_client_pair, plain_server_pair, smc_pair};
use watchdog::{on_both_schedulers, step};

const LENGTH: usize = 4 << 20;

/// Copies back what comes until the end, and ends, too.
fn echo<S: AsyncRead + AsyncWrite + Send + 'static>(stream: S) -> JoinHandle<u64> {
    tokio::spawn(async move {
        let (read, mut write) = stream.split();
        let copied = futures::io::copy(read, &mut write).await.unwrap();
        write.close().await.unwrap();
        copied
    })
}

async fn turn<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    stream.write_all(b"turn").await.unwrap();
    let mut got = [0; 4];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"turn");
}

/// Many bytes there and back at once, then the end both ways.
async fn finish<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, echoing: JoinHandle<u64>) {
    step("many bytes there and back");
    let sent: Vec<u8> = (0..LENGTH).map(|at| (at % 251) as u8).collect();
    let (mut read, mut write) = stream.split();
    let mut got = Vec::new();
    tokio::join!(
        async {
            write.write_all(&sent).await.unwrap();
            write.close().await.unwrap();
        },
        async { read.read_to_end(&mut got).await.map(drop).unwrap() },
    );
    assert!(got == sent, "what came back differs");
    assert!(echoing.await.unwrap() >= LENGTH as u64);
}

#[test]
fn there_and_back() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, server) = smc_pair(&lab).await;
        let (here, there) = (client.watch(), server.watch());
        let echoing = echo(server.compat());
        let mut client = client.compat();
        step("turns until loopback-ism");
        until_loopback_ism([&here, &there], async || turn(&mut client).await).await;
        assert!(client.get_ref().transport().is_loopback_ism());
        finish(&mut client, echoing).await;
        let counters = client.get_ref().counters();
        assert!(counters.ism_bytes_read >= LENGTH as u64, "{counters:?}");
        assert!(counters.ism_bytes_written >= LENGTH as u64, "{counters:?}");
    });
}

/// The stream that was put in comes out, and nothing of what was read stays behind in the adapter.
#[test]
fn the_stream_comes_back() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, mut server) = smc_pair(&lab).await;
        let (here, there) = (client.watch(), server.watch());
        let address = client.local_addr().unwrap();
        let mut client = client.compat();
        step("turns until loopback-ism");
        until_loopback_ism([&here, &there], async || {
            client.write_all(b"turn").await.unwrap();
            let mut got = [0; 4];
            tokio::io::AsyncReadExt::read_exact(&mut server, &mut got).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut server, &got).await.unwrap();
            client.read_exact(&mut got).await.unwrap();
        })
        .await;
        server.write_u64(1 << 40).await.unwrap();
        let mut half = [0; 4];
        client.read_exact(&mut half).await.unwrap();
        assert_eq!(u32::from_be_bytes(half), 1 << 8);
        let mut stream = client.into_inner();
        assert_eq!(stream.read_u32().await.unwrap(), 0);
        assert_eq!(stream.local_addr().unwrap(), address);
    });
}

#[test]
fn a_plain_server() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, server) = plain_server_pair(&lab).await;
        let watch = client.watch();
        let echoing = echo(TokioAsyncReadCompatExt::compat(server));
        let mut client = client.compat();
        until_plain(&watch, async || turn(&mut client).await).await;
        finish(&mut client, echoing).await;
    });
}

#[test]
fn a_plain_client() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, server) = plain_client_pair(&lab).await;
        let watch = server.watch();
        let echoing = echo(server.compat());
        let mut client = TokioAsyncReadCompatExt::compat(client);
        for _ in 0..100 {
            turn(&mut client).await;
        }
        assert_eq!(watch.transport().fallback_reason(), Some(FallbackReason::NotYet));
        finish(&mut client, echoing).await;
    });
}
