//! A unary echo service, written by hand: no protoc is needed to build it.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http::{Request as HttpRequest, Response as HttpResponse};
use tonic::codegen::{BoxFuture, Service};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// The message both ways.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Echo {
    #[prost(string, tag = "1")]
    pub(crate) text: String,
}

pub(crate) const METHOD: &str = "/stackperf.Echo/Unary";

#[derive(Clone)]
pub(crate) struct EchoServer;

impl tonic::server::NamedService for EchoServer {
    const NAME: &'static str = "stackperf.Echo";
}

struct Unary;

impl tonic::server::UnaryService<Echo> for Unary {
    type Response = Echo;
    type Future = Ready<Result<Response<Echo>, Status>>;

    fn call(&mut self, request: Request<Echo>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner())))
    }
}

impl Service<HttpRequest<Body>> for EchoServer {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Echo, Echo>::default());
            Ok(grpc.unary(Unary, request).await)
        })
    }
}

/// Makes one call.
pub(crate) async fn call(channel: &tonic::transport::Channel, text: &str) -> Result<Echo, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<Echo, Echo>::default();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(METHOD);
    let request = Request::new(Echo { text: text.to_owned() });
    grpc.unary(request, path, codec).await.map(Response::into_inner)
}
