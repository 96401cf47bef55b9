//! A small gRPC service and its client, written by hand: what tonic-build would make of four
//! methods.

use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use hyper::http::uri::PathAndQuery;
use tokio::sync::watch;
use tokio_smc::SmcInfo;
use tonic::body::Body;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::server::NamedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

/// More than the largest message that is sent here; tonic's own limit is 4 MiB.
const LARGEST: usize = 17 << 20;
/// Bytes of a streamed note.
pub(crate) const STREAMED: usize = 4 << 10;

/// Every payload is a part of it.
static PATTERN: LazyLock<Bytes> = LazyLock::new(|| (0..LARGEST).map(|at| (at % 251) as u8).collect());

/// The only message.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Note {
    #[prost(uint64, tag = "1")]
    pub(crate) number: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) payload: Bytes,
}

impl Note {
    pub(crate) fn new(number: u64, length: usize) -> Self {
        let start = number as usize % 251;
        Note { number, payload: PATTERN.slice(start..start + length) }
    }
}

/// The answers of a stream.
type Notes = BoxStream<'static, Result<Note, Status>>;

/// The server's side of `test.Notes`.
#[derive(Clone, Debug)]
pub(crate) struct NotesServer {
    /// How many notes the latest `Count` has produced.
    pub(crate) counted: watch::Sender<u64>,
    /// How many notes `Sum` may take; it waits for more.
    pub(crate) allowed: watch::Sender<u64>,
}

impl NotesServer {
    pub(crate) fn new() -> Self {
        NotesServer { counted: watch::Sender::new(0), allowed: watch::Sender::new(u64::MAX) }
    }

    /// Answers with the same note, the caller's metadata and who the caller is; a note without
    /// payload and with the number of a status code is answered with that error.
    async fn echo(self, request: Request<Note>) -> Result<Response<Note>, Status> {
        let mut metadata = MetadataMap::new();
        for key in ["ask", "ask-twice"] {
            for value in request.metadata().get_all(key) {
                metadata.append(key, value.clone());
            }
        }
        if let Some(value) = request.metadata().get_bin("ask-bin") {
            metadata.insert_bin("ask-bin", value.clone());
        }
        for (key, addr) in [("remote", request.remote_addr()), ("local", request.local_addr())] {
            if let Some(addr) = addr {
                metadata.insert(key, addr.to_string().parse().unwrap());
            }
        }
        if let Some(info) = request.extensions().get::<SmcInfo>() {
            metadata.insert("transport", info.transport().to_string().parse().unwrap());
            metadata.insert("peer", info.peer_addr().unwrap().to_string().parse().unwrap());
        }
        let note = request.into_inner();
        if note.payload.is_empty() && note.number > 0 {
            let code = Code::from(note.number as i32);
            return Err(Status::with_details_and_metadata(code, "as asked", b"details"[..].into(), metadata));
        }
        Ok(Response::from_parts(metadata, note, Default::default()))
    }

    /// As many notes as the number says.
    async fn count(self, request: Request<Note>) -> Result<Response<Notes>, Status> {
        let counted = self.counted;
        counted.send_replace(0);
        let notes = stream::iter(0..request.into_inner().number).map(move |number| {
            counted.send_modify(|counted| *counted += 1);
            Ok(Note::new(number, STREAMED))
        });
        Ok(Response::new(notes.boxed()))
    }

    /// Takes notes as far as it is allowed to, and answers how many there were.
    async fn sum(self, request: Request<Streaming<Note>>) -> Result<Response<Note>, Status> {
        let mut allowed = self.allowed.subscribe();
        let mut notes = request.into_inner();
        let mut taken = 0;
        loop {
            allowed
                .wait_for(|allowed| *allowed > taken)
                .await
                .map_err(|_| Status::aborted("the test is over"))?;
            let Some(note) = notes.try_next().await? else { break };
            if note != Note::new(taken, STREAMED) {
                return Err(Status::data_loss(format!("note {taken} differs")));
            }
            taken += 1;
        }
        Ok(Response::new(Note::new(taken, 0)))
    }

    /// Answers each note with itself.
    async fn chat(self, request: Request<Streaming<Note>>) -> Result<Response<Notes>, Status> {
        Ok(Response::new(request.into_inner().boxed()))
    }
}

impl NamedService for NotesServer {
    const NAME: &'static str = "test.Notes";
}

impl tower::Service<hyper::Request<Body>> for NotesServer {
    type Response = hyper::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: hyper::Request<Body>) -> Self::Future {
        let service = self.clone();
        let mut grpc =
            tonic::server::Grpc::new(ProstCodec::<Note, Note>::default()).max_decoding_message_size(LARGEST);
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/test.Notes/Echo" => {
                    grpc.unary(tower::service_fn(|note| service.clone().echo(note)), request).await
                }
                "/test.Notes/Count" => {
                    let count = tower::service_fn(|note| service.clone().count(note));
                    grpc.server_streaming(count, request).await
                }
                "/test.Notes/Sum" => {
                    let sum = tower::service_fn(|notes| service.clone().sum(notes));
                    grpc.client_streaming(sum, request).await
                }
                "/test.Notes/Chat" => {
                    let chat = tower::service_fn(|notes| service.clone().chat(notes));
                    grpc.streaming(chat, request).await
                }
                path => Status::unimplemented(path).into_http(),
            })
        })
    }
}

/// The client's side of `test.Notes`.
#[derive(Clone, Debug)]
pub(crate) struct NotesClient {
    grpc: tonic::client::Grpc<Channel>,
}

impl NotesClient {
    pub(crate) fn new(channel: Channel) -> Self {
        NotesClient { grpc: tonic::client::Grpc::new(channel).max_decoding_message_size(LARGEST) }
    }

    async fn ready(&mut self) -> Result<ProstCodec<Note, Note>, Status> {
        self.grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(ProstCodec::default())
    }

    pub(crate) async fn echo(&mut self, request: Request<Note>) -> Result<Response<Note>, Status> {
        let codec = self.ready().await?;
        self.grpc.unary(request, PathAndQuery::from_static("/test.Notes/Echo"), codec).await
    }

    pub(crate) async fn count(&mut self, notes: u64) -> Result<Streaming<Note>, Status> {
        let codec = self.ready().await?;
        let (request, path) =
            (Request::new(Note::new(notes, 0)), PathAndQuery::from_static("/test.Notes/Count"));
        Ok(self.grpc.server_streaming(request, path, codec).await?.into_inner())
    }

    pub(crate) async fn sum(
        &mut self,
        notes: impl Stream<Item = Note> + Send + 'static,
    ) -> Result<u64, Status> {
        let codec = self.ready().await?;
        let (request, path) = (Request::new(notes), PathAndQuery::from_static("/test.Notes/Sum"));
        Ok(self.grpc.client_streaming(request, path, codec).await?.into_inner().number)
    }

    pub(crate) async fn chat(
        &mut self,
        notes: impl Stream<Item = Note> + Send + 'static,
    ) -> Result<Streaming<Note>, Status> {
        let codec = self.ready().await?;
        let (request, path) = (Request::new(notes), PathAndQuery::from_static("/test.Notes/Chat"));
        Ok(self.grpc.streaming(request, path, codec).await?.into_inner())
    }

    /// A small call there and back.
    pub(crate) async fn turn(&mut self) {
        let note = Note::new(7, 100);
        assert_eq!(self.echo(Request::new(note.clone())).await.unwrap().into_inner(), note);
    }
}

/// A request with metadata in it, text and bytes.
pub(crate) fn with_metadata(note: Note) -> Request<Note> {
    let mut request = Request::new(note);
    request.metadata_mut().insert("ask", "text".parse().unwrap());
    request.metadata_mut().append("ask-twice", "one".parse().unwrap());
    request.metadata_mut().append("ask-twice", "two".parse().unwrap());
    request.metadata_mut().insert_bin("ask-bin", MetadataValue::from_bytes(&[0, 255, 10]));
    request
}

/// The same metadata in an answer.
pub(crate) fn check_metadata(metadata: &MetadataMap) {
    assert_eq!(metadata.get("ask").unwrap(), "text");
    assert!(metadata.get_all("ask-twice").iter().eq(["one", "two"]));
    assert_eq!(metadata.get_bin("ask-bin").unwrap().to_bytes().unwrap(), &[0, 255, 10][..]);
}
