//! tokio-util over SMC: framed requests and answers as tarpc makes them.

#[path = "support/ends.rs"]
mod ends;
#[path = "../../tests/support/lab.rs"]
mod lab;
#[path = "support/pair.rs"]
mod pair;
#[path = "../../tests/support/watchdog.rs"]
mod watchdog;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt, TryStreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio_smc::{FallbackReason, SmcStream};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use ends::{until_loopback_ism, until_plain};
use lab::Lab;
use pair::{plain_client_pair, plain_server_pair, smc_pair};
use watchdog::{on_both_schedulers, step};

const FRAMES: u64 = 10_000;
const LARGE: usize = 256 << 10;

type Frames<S> = Framed<S, LengthDelimitedCodec>;

/// A request: its number and a payload that follows from it, now and then a large one.
fn request(number: u64) -> Bytes {
    let length = if number % 1000 == 999 { LARGE } else { (number as usize * 7919) % 4096 };
    let mut frame = BytesMut::with_capacity(8 + length);
    frame.put_u64(number);
    frame.extend((0..length).map(|at| (number as usize + at) as u8));
    frame.freeze()
}

/// The answer to it: the same number, the payload backwards.
fn answer(mut request: Bytes) -> Bytes {
    let mut frame = BytesMut::with_capacity(request.len());
    frame.put_u64(request.get_u64());
    frame.extend(request.iter().rev());
    frame.freeze()
}

/// Answers every frame until the client has no more.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S) {
    let mut frames = Frames::new(stream, LengthDelimitedCodec::new());
    while let Some(frame) = frames.next().await {
        frames.send(answer(frame.unwrap().freeze())).await.unwrap();
    }
    SinkExt::<Bytes>::close(&mut frames).await.unwrap();
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin>(frames: &mut Frames<S>, number: u64) {
    frames.send(request(number)).await.unwrap();
    let got = frames.next().await.expect("an answer").unwrap();
    assert!(got.freeze() == answer(request(number)), "answer {number} differs");
}

/// All frames without waiting for an answer, while the answers are taken.
async fn pipeline<S: AsyncRead + AsyncWrite + Unpin>(frames: &mut Frames<S>) {
    let (mut sink, mut stream) = frames.split();
    let send = async {
        for number in 0..FRAMES {
            sink.feed(request(number)).await.unwrap();
        }
        sink.flush().await.unwrap();
    };
    let receive = async {
        for number in 0..FRAMES {
            let got = stream.next().await.expect("an answer").unwrap();
            assert!(got.freeze() == answer(request(number)), "answer {number} differs");
        }
    };
    tokio::join!(send, receive);
}

/// Has no more requests, and waits for the server to see it.
async fn finish<S: AsyncRead + AsyncWrite + Unpin>(mut frames: Frames<S>, serving: JoinHandle<()>) {
    step("the end");
    SinkExt::<Bytes>::close(&mut frames).await.unwrap();
    assert!(frames.try_next().await.unwrap().is_none(), "more than was asked for");
    serving.await.unwrap();
}

#[test]
fn frames() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, server) = smc_pair(&lab).await;
        let (here, there) = (client.watch(), server.watch());
        let serving = tokio::spawn(serve(server));
        let mut frames = Frames::new(client, LengthDelimitedCodec::new());
        step("the pipeline, and the upgrade under it");
        pipeline(&mut frames).await;
        step("turns until loopback-ism");
        until_loopback_ism([&here, &there], async || ask(&mut frames, 7).await).await;
        step("the pipeline on loopback-ism");
        pipeline(&mut frames).await;
        finish(frames, serving).await;
    });
}

/// Takes frames out of a stream that is read in place: whole ones from where they lie, and those
/// that do not lie in one piece by parts.
#[derive(Default)]
struct InPlace {
    number: u64,
    part: Vec<u8>,
    /// Frames that were in one piece.
    whole: u64,
}

impl InPlace {
    /// What is next; `false` at the end.
    async fn take(&mut self, stream: &mut SmcStream) -> bool {
        let mut bytes = stream.fill_buf().await.unwrap();
        let mut at = 0;
        while at < bytes.len() {
            let begun = self.part.len();
            let mut length = [0; 4];
            let known = begun.min(4);
            length[..known].copy_from_slice(&self.part[..known]);
            let more = (4 - known).min(bytes.len() - at);
            bytes.copy_to(at, &mut length[known..known + more]);
            let wanted =
                if known + more == 4 { 4 + u32::from_be_bytes(length) as usize - begun } else { more };
            let count = wanted.min(bytes.len() - at);
            let has_all = known + more == 4 && count == wanted;
            self.whole += u64::from(has_all && begun == 0);
            self.part.reserve(count);
            bytes.put_into(at..at + count, &mut self.part);
            at += count;
            if has_all {
                assert!(self.part[4..] == request(self.number), "frame {} differs", self.number);
                self.part.clear();
                self.number += 1;
            }
        }
        bytes.consume(at).unwrap();
        at > 0
    }
}

#[test]
fn frames_that_are_taken_in_place() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, mut server) = smc_pair(&lab).await;
        let sending = tokio::spawn(async move {
            let mut frames = Frames::new(client, LengthDelimitedCodec::new());
            for number in 0..FRAMES {
                frames.send(request(number)).await.unwrap();
            }
            SinkExt::<Bytes>::close(&mut frames).await.unwrap();
        });
        step("in place, under the upgrade");
        let mut frames = InPlace::default();
        while frames.take(&mut server).await {}
        assert_eq!((frames.number, frames.part.len()), (FRAMES, 0));
        assert!(frames.whole > 0);
        let moved = server.counters();
        assert!(moved.tcp_bytes_read > 0 && moved.ism_bytes_read > 0, "{moved:?}");
        sending.await.unwrap();
    });
}

#[test]
fn frames_to_a_plain_server() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, server) = plain_server_pair(&lab).await;
        let watch = client.watch();
        let serving = tokio::spawn(serve(server));
        let mut frames = Frames::new(client, LengthDelimitedCodec::new());
        step("turns until it is decided");
        until_plain(&watch, async || ask(&mut frames, 7).await).await;
        step("the pipeline");
        pipeline(&mut frames).await;
        finish(frames, serving).await;
    });
}

#[test]
fn frames_of_a_plain_client() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (client, server) = plain_client_pair(&lab).await;
        let watch = server.watch();
        let serving = tokio::spawn(serve(server));
        let mut frames = Frames::new(client, LengthDelimitedCodec::new());
        step("turns");
        for number in 0..100 {
            ask(&mut frames, number).await;
        }
        assert_eq!(watch.transport().fallback_reason(), Some(FallbackReason::NotYet));
        step("the pipeline");
        pipeline(&mut frames).await;
        finish(frames, serving).await;
    });
}
