//! tokio-rustls over SMC: several MiB both ways, the end with and without close_notify,
//! certificates that do not fit.

#[path = "../../tests/support/agree.rs"]
mod agree;
#[path = "support/certificate.rs"]
mod certificate;
#[path = "support/ends.rs"]
mod ends;
#[path = "../../tests/support/lab.rs"]
mod lab;
#[path = "support/pair.rs"]
mod pair;
#[path = "../../tests/support/watchdog.rs"]
mod watchdog;

use std::io;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_smc::FallbackReason;

use agree::agree;
use certificate::certificate;
use ends::{until_loopback_ism, until_plain};
use lab::Lab;
use pair::{plain_client_pair, plain_server_pair, smc_pair};
use watchdog::{on_both_schedulers, step};

const NAME: &str = "server.test";
const LENGTH: usize = 8 << 20;

/// A server that proves to be `NAME`, and a client that trusts its certificate. `issuer` signs it.
fn parties(issuer: &str) -> (TlsAcceptor, TlsConnector) {
    let (certificate, key) = certificate(NAME, issuer);
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let server = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(server)), connector(certificate.der().clone()))
}

fn connector(trusted: CertificateDer<'static>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(trusted).unwrap();
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    TlsConnector::from(Arc::new(client))
}

fn name(name: &'static str) -> ServerName<'static> {
    ServerName::try_from(name).unwrap()
}

fn bytes(seed: usize) -> Vec<u8> {
    (0..LENGTH).map(|at| (at % 251 + seed) as u8).collect()
}

/// Echoes single bytes until a zero comes, then sends `LENGTH` bytes while it receives as many, and
/// ends.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(acceptor: TlsAcceptor, stream: S) {
    let mut stream = acceptor.accept(stream).await.unwrap();
    loop {
        let turn = stream.read_u8().await.unwrap();
        stream.write_u8(turn).await.unwrap();
        stream.flush().await.unwrap();
        if turn == 0 {
            break;
        }
    }
    exchange(stream, 1, 2).await;
}

/// Many bytes both ways at once, then the end both ways: close_notify, which `read_to_end` insists
/// on.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(stream: S, mine: usize, theirs: usize) {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut got = Vec::new();
    tokio::join!(
        async {
            write.write_all(&bytes(mine)).await.unwrap();
            write.shutdown().await.unwrap();
        },
        async { read.read_to_end(&mut got).await.map(drop).unwrap() },
    );
    assert!(got == bytes(theirs), "the bytes differ");
}

async fn turn<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, byte: u8) {
    stream.write_u8(byte).await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), byte);
}

#[test]
fn tls() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (acceptor, connector) = parties("one");
        let (client, server) = smc_pair(&lab).await;
        let (here, there) = (client.watch(), server.watch());
        let serving = tokio::spawn(serve(acceptor, server));
        step("the handshake");
        let mut stream = connector.connect(name(NAME), client).await.unwrap();
        step("turns until loopback-ism");
        until_loopback_ism([&here, &there], async || turn(&mut stream, 1).await).await;
        turn(&mut stream, 0).await;
        step("8 MiB both ways");
        exchange(stream, 2, 1).await;
        serving.await.unwrap();
    });
}

#[test]
fn tls_to_a_plain_server() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (acceptor, connector) = parties("one");
        let (client, server) = plain_server_pair(&lab).await;
        let watch = client.watch();
        let serving = tokio::spawn(serve(acceptor, server));
        let mut stream = connector.connect(name(NAME), client).await.unwrap();
        step("turns until it is decided");
        until_plain(&watch, async || turn(&mut stream, 1).await).await;
        turn(&mut stream, 0).await;
        step("8 MiB both ways");
        exchange(stream, 2, 1).await;
        serving.await.unwrap();
    });
}

#[test]
fn tls_of_a_plain_client() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (acceptor, connector) = parties("one");
        let (client, server) = plain_client_pair(&lab).await;
        let watch = server.watch();
        let serving = tokio::spawn(serve(acceptor, server));
        let mut stream = connector.connect(name(NAME), client).await.unwrap();
        step("turns");
        for byte in 1..=100 {
            turn(&mut stream, byte).await;
        }
        assert_eq!(watch.transport().fallback_reason(), Some(FallbackReason::NotYet));
        turn(&mut stream, 0).await;
        step("8 MiB both ways");
        exchange(stream, 2, 1).await;
        serving.await.unwrap();
    });
}

/// Who cuts the connection without close_notify is found out, as over TCP.
#[test]
fn an_end_without_close_notify() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        let (acceptor, connector) = parties("one");
        let (client, server) = smc_pair(&lab).await;
        let (here, there) = (client.watch(), server.watch());
        let (found, finding) = oneshot::channel();
        let serving = tokio::spawn(async move {
            let mut stream = acceptor.accept(server).await.unwrap();
            let error = loop {
                match stream.read_u8().await {
                    Ok(byte) => stream.write_u8(byte).await.unwrap(),
                    Err(error) => break error,
                }
                stream.flush().await.unwrap();
            };
            found.send(error).unwrap();
        });
        let mut stream = connector.connect(name(NAME), client).await.unwrap();
        step("turns until loopback-ism");
        until_loopback_ism([&here, &there], async || turn(&mut stream, 1).await).await;
        step("the cut");
        let (mut raw, _) = stream.into_inner();
        raw.shutdown().await.unwrap();
        let error = finding.await.unwrap();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(error.to_string().contains("close_notify"), "{error}");
        serving.await.unwrap();
    });
}

/// What both ends say of a handshake that must fail; it runs on loopback-ism from its first byte.
async fn refused(acceptor: TlsAcceptor, connector: TlsConnector, wanted: &'static str) -> (Error, Error) {
    let lab = Lab::new();
    let (mut client, mut server) = smc_pair(&lab).await;
    step("turns until loopback-ism");
    tokio::join!(agree(&mut client, true), agree(&mut server, false));
    step("the handshake");
    let handshakes = async { tokio::join!(connector.connect(name(wanted), client), acceptor.accept(server)) };
    let (connected, accepted) = handshakes.await;
    let tls = |error: io::Error| error.downcast::<Error>().unwrap();
    (tls(connected.unwrap_err()), tls(accepted.unwrap_err()))
}

#[test]
fn a_certificate_for_another_name() {
    on_both_schedulers(async || {
        let (acceptor, connector) = parties("one");
        let (client, server) = refused(acceptor, connector, "other.test").await;
        let named = matches!(
            client,
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
            )
        );
        assert!(named, "{client:?}");
        assert_eq!(server, Error::AlertReceived(AlertDescription::BadCertificate));
    });
}

#[test]
fn a_certificate_that_nobody_trusts() {
    on_both_schedulers(async || {
        let (acceptor, _) = parties("one");
        let (_, stranger) = parties("another");
        let (client, server) = refused(acceptor, stranger, NAME).await;
        assert_eq!(client, Error::InvalidCertificate(CertificateError::UnknownIssuer));
        assert_eq!(server, Error::AlertReceived(AlertDescription::UnknownCA));
    });
}
