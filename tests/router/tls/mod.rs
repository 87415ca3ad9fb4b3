//! Promises of TLS: towards clients, when certificates change, and towards replicas.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use inference_router::config::{RouterSettings, TlsListener, WorkerCount};
use inference_router::model::tls::{CertificateSource, ServerTls};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::authority::{Authority, CertifiedKeyPair, TLS_VERSIONS, provider};
use crate::harness::{Answer, POLL_INTERVAL, Router, WAIT_TIMEOUT, replace, with_timeout};

mod clients;
mod endings;
mod files;
mod replicas;
mod resumption;

impl CertifiedKeyPair {
    /// Writes both, each renamed into its place.
    fn replace(&self, folder: &Path) {
        replace(&folder.join("tls.crt"), &self.cert);
        replace(&folder.join("tls.key"), &self.key);
    }
}

/// A router with a listener for TLS beside the plain one; its certificate, for `localhost` and `127.0.0.1`, is in a
/// folder.
struct TlsRouter {
    router: Router,
    authority: Authority,
    folder: tempfile::TempDir,
}

impl TlsRouter {
    fn start(documents: &[&str]) -> Self {
        Self::start_with(documents, |_, _| ())
    }

    /// The same with other settings of TLS; the folder is there for more files.
    fn start_with(documents: &[&str], change: impl FnOnce(&mut ServerTls, &Path)) -> Self {
        Self::start_all(documents, change, |_| ())
    }

    fn start_workers(documents: &[&str], workers: usize, change: impl FnOnce(&mut ServerTls, &Path)) -> Self {
        Self::start_all(documents, change, |settings| {
            settings.workers = WorkerCount::Count(workers.try_into().unwrap())
        })
    }

    fn start_settings(documents: &[&str], settings: impl FnOnce(&mut RouterSettings)) -> Self {
        Self::start_all(documents, |_, _| (), settings)
    }

    fn start_all(
        documents: &[&str],
        change: impl FnOnce(&mut ServerTls, &Path),
        change_settings: impl FnOnce(&mut RouterSettings),
    ) -> Self {
        let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
        authority.sign(&["localhost", "127.0.0.1"]).replace(folder.path());
        let certificates = vec![CertificateSource::Folder(folder.path().to_owned())];
        let mut tls = ServerTls { certificates, ..ServerTls::default() };
        change(&mut tls, folder.path());
        let router = Router::start_with(documents, |settings| {
            change_settings(settings);
            settings.scoring_tls = Some(TlsListener { address: "127.0.0.1:0".parse().unwrap(), tls });
        });
        Self { router, authority, folder }
    }

    fn address(&self) -> SocketAddr {
        self.router.scoring_tls.unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn connect(&self, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
        connect(self.address(), "localhost", config).await
    }

    /// Waits until a metric has this value.
    async fn wait_until_metric(&self, series: &str, value: f64) {
        let mut last = None;
        let waited = tokio::time::timeout(WAIT_TIMEOUT, async {
            loop {
                last = self.router.metric(series).await;
                if last == Some(value) {
                    break;
                }
                // Asking without a pause would keep a core from what is waited for.
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        });
        assert!(waited.await.is_ok(), "{series} is {last:?}, not {value}");
    }
}

/// Connects and does the handshake, asking for `name`.
async fn connect(address: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TcpStream::connect(address).await?;
    with_timeout("a handshake", TlsConnector::from(config.clone()).connect(name, stream)).await
}

fn kind(stream: &TlsStream<TcpStream>) -> HandshakeKind {
    stream.get_ref().1.handshake_kind().unwrap()
}

/// The first certificate that the other side has shown.
fn peer_certificate(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// One HTTP/1.1 request, and the end of the connection.
async fn http1(stream: TlsStream<TcpStream>, request: Request<Full<Bytes>>) -> Result<Answer, hyper::Error> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut sender = sender;
    send_and_collect(request, |request| sender.send_request(request)).await
}

/// One HTTP/2 request.
async fn http2(stream: TlsStream<TcpStream>, request: Request<Full<Bytes>>) -> Result<Answer, hyper::Error> {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (mut parts, body) = request.into_parts();
    parts.uri = format!("https://localhost{}", parts.uri).parse().unwrap();
    send_and_collect(Request::from_parts(parts, body), |request| sender.send_request(request)).await
}

async fn send_and_collect<F>(
    mut request: Request<Full<Bytes>>,
    send: impl FnOnce(Request<Full<Bytes>>) -> F,
) -> Result<Answer, hyper::Error>
where
    F: Future<Output = Result<http::Response<hyper::body::Incoming>, hyper::Error>>,
{
    if request.uri().host().is_none() {
        request.headers_mut().insert("host", "localhost".parse().unwrap());
    }
    with_timeout("an answer", async {
        let (head, body) = send(request).await?.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes(), trailers })
    })
    .await
}
