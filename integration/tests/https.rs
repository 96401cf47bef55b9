//! hyper-rustls on top of the connector: https over SMC.

#[path = "support/body.rs"]
mod body;
#[path = "support/certificate.rs"]
mod certificate;
#[path = "support/ends.rs"]
mod ends;
#[path = "../../tests/support/lab.rs"]
mod lab;
#[path = "support/limited.rs"]
mod limited;
#[path = "support/service.rs"]
mod service;
#[path = "../../tests/support/watchdog.rs"]
mod watchdog;

use std::sync::Arc;

use http_body_util::BodyExt;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_smc::hyper::SmcConnector;
use tokio_smc::{SmcInfo, SmcListener, UpgradePolicy};

use body::{Payload, check, sized};
use certificate::certificate;
use ends::{until_loopback_ism, until_plain};
use lab::Lab;
use limited::Limited;
use service::Service;
use watchdog::{on_both_schedulers, step};

/// What the certificates are for.
const HOST: &str = "localhost";
const BODY: u64 = 8 << 20;

/// An acceptor that offers this protocol, and the certificate that it shows.
fn acceptor(protocol: &[u8]) -> (TlsAcceptor, CertificateDer<'static>) {
    let (certificate, key) = certificate(HOST, "one");
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut server = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    server.alpn_protocols = vec![protocol.to_vec()];
    (TlsAcceptor::from(Arc::new(server)), certificate.der().clone())
}

/// hyper-rustls around our connector, as the documentation says.
fn client(
    mut connector: SmcConnector,
    trusted: CertificateDer<'static>,
) -> Client<HttpsConnector<Limited<SmcConnector>>, Payload> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted).unwrap();
    let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    connector.enforce_http(false);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_all_versions()
        .wrap_connector(Limited::new(connector, 1));
    Client::builder(TokioExecutor::new()).build(connector)
}

/// A small request; the connection that has carried it.
async fn turn(client: &Client<HttpsConnector<Limited<SmcConnector>>, Payload>, origin: &str) -> SmcInfo {
    let response = client.get(format!("{origin}/").parse().unwrap()).await.unwrap();
    let info = response.extensions().get::<SmcInfo>().expect("the connector's info").clone();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    info
}

/// A body of several MiB each way.
async fn bodies(client: &Client<HttpsConnector<Limited<SmcConnector>>, Payload>, origin: &str) {
    step("bodies");
    let response = client.get(format!("{origin}/{BODY}").parse().unwrap()).await.unwrap();
    assert_eq!(check(response.into_body()).await, BODY);
    let request = hyper::Request::post(format!("{origin}/take")).body(sized(BODY)).unwrap();
    let answer = client.request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(answer, BODY.to_string());
}

#[test]
fn hyper_rustls() {
    on_both_schedulers(async || {
        for (protocol, version) in
            [(&b"http/1.1"[..], hyper::Version::HTTP_11), (b"h2", hyper::Version::HTTP_2)]
        {
            let lab = Lab::new();
            let config = lab.config(UpgradePolicy::FirstTurn);
            let (acceptor, trusted) = acceptor(protocol);
            let listener = SmcListener::bind_with((HOST, 0), &config).await.unwrap();
            let origin = format!("https://{HOST}:{}", listener.local_addr().unwrap().port());
            let (accept, mut accepted) = mpsc::unbounded_channel();
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    accept.send(stream.watch()).unwrap();
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        let stream = acceptor.accept(stream).await.unwrap();
                        Service::new().serve(stream).await;
                    });
                }
            });
            let mut connector = SmcConnector::new();
            connector.set_config(config);
            let client = client(connector, trusted);
            step(format!("{version:?}: turns until loopback-ism"));
            let here = turn(&client, &origin).await.watch();
            let there = accepted.recv().await.unwrap();
            until_loopback_ism([&here, &there], async || drop(turn(&client, &origin).await)).await;
            let response = client.get(format!("{origin}/0").parse().unwrap()).await.unwrap();
            assert_eq!(response.version(), version);
            drop(response);
            bodies(&client, &origin).await;
        }
    });
}

#[test]
fn hyper_rustls_to_a_plain_server() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (acceptor, trusted) = acceptor(b"http/1.1");
        let listener = TcpListener::bind((HOST, 0)).await.unwrap();
        let origin = format!("https://{HOST}:{}", listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            loop {
                let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
                tokio::spawn(Service::new().serve(stream));
            }
        });
        let mut connector = SmcConnector::new();
        connector.set_config(lab.config(UpgradePolicy::FirstTurn));
        let client = client(connector, trusted);
        step("turns until it is decided");
        let here = turn(&client, &origin).await.watch();
        until_plain(&here, async || drop(turn(&client, &origin).await)).await;
        bodies(&client, &origin).await;
    });
}
