//! Promises of TLS: towards clients, when certificates change, and towards replicas.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use inference_router::config::{Settings, TlsListener, Workers};
use inference_router::model::tls::{CertificateFiles, ServerTls};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::{Answer, PATIENCE, Router, replace, soon};

mod clients;
mod endings;
mod files;
mod replicas;
mod resumption;

/// Both versions that are spoken.
const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Whoever signs certificates.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
struct Pair {
    cert: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for these names and addresses.
    fn sign(&self, names: &[&str]) -> Pair {
        self.sign_until(names, SystemTime::now() + std::time::Duration::from_secs(90 * 24 * 3600))
    }

    fn sign_until(&self, names: &[&str], end: SystemTime) -> Pair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = end.into();
        let key = KeyPair::generate().unwrap();
        Pair { cert: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        roots
    }

    /// A client that trusts this authority.
    fn client(&self) -> ClientConfig {
        self.client_of(&VERSIONS, None)
    }

    fn client_of(&self, versions: &[&'static SupportedProtocolVersion], own: Option<&Pair>) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(versions).unwrap();
        let builder = builder.with_root_certificates(self.roots());
        match own {
            None => builder.with_no_client_auth(),
            Some(pair) => builder.with_client_auth_cert(pair.chain(), pair.private_key()).unwrap(),
        }
    }
}

impl Pair {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_slice(self.cert.as_bytes()).unwrap()]
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }

    /// Writes both, each renamed into its place.
    fn replace(&self, folder: &Path) {
        replace(&folder.join("tls.crt"), &self.cert);
        replace(&folder.join("tls.key"), &self.key);
    }
}

/// A router with a listener for TLS beside the plain one; its certificate, for `localhost` and `127.0.0.1`, is in a
/// folder.
struct Tls {
    router: Router,
    authority: Authority,
    folder: tempfile::TempDir,
}

impl Tls {
    fn start(documents: &[&str]) -> Self {
        Self::start_with(documents, |_, _| ())
    }

    /// The same with other settings of TLS; the folder is there for more files.
    fn start_with(documents: &[&str], change: impl FnOnce(&mut ServerTls, &Path)) -> Self {
        Self::start_all(documents, change, |_| ())
    }

    fn start_workers(documents: &[&str], workers: usize, change: impl FnOnce(&mut ServerTls, &Path)) -> Self {
        Self::start_all(documents, change, |settings| settings.workers = Workers::Count(workers.try_into().unwrap()))
    }

    fn start_settings(documents: &[&str], settings: impl FnOnce(&mut Settings)) -> Self {
        Self::start_all(documents, |_, _| (), settings)
    }

    fn start_all(
        documents: &[&str],
        change: impl FnOnce(&mut ServerTls, &Path),
        change_settings: impl FnOnce(&mut Settings),
    ) -> Self {
        let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
        authority.sign(&["localhost", "127.0.0.1"]).replace(folder.path());
        let certificates = vec![CertificateFiles::Folder(folder.path().to_owned())];
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
    async fn metric_is(&self, series: &str, value: f64) {
        let mut last = None;
        let waited = tokio::time::timeout(PATIENCE, async {
            while last != Some(value) {
                last = self.router.metric(series).await;
            }
        });
        assert!(waited.await.is_ok(), "{series} is {last:?}, not {value}");
    }
}

/// Connects and does the handshake, asking for `name`.
async fn connect(address: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TcpStream::connect(address).await?;
    soon("a handshake", TlsConnector::from(config.clone()).connect(name, stream)).await
}

fn kind(stream: &TlsStream<TcpStream>) -> HandshakeKind {
    stream.get_ref().1.handshake_kind().unwrap()
}

/// The first certificate that the other side has shown.
fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// One HTTP/1.1 request, and the end of the connection.
async fn http1(stream: TlsStream<TcpStream>, request: Request<Full<Bytes>>) -> Result<Answer, hyper::Error> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut sender = sender;
    ask(request, |request| sender.send_request(request)).await
}

/// One HTTP/2 request.
async fn http2(stream: TlsStream<TcpStream>, request: Request<Full<Bytes>>) -> Result<Answer, hyper::Error> {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (mut parts, body) = request.into_parts();
    parts.uri = format!("https://localhost{}", parts.uri).parse().unwrap();
    ask(Request::from_parts(parts, body), |request| sender.send_request(request)).await
}

async fn ask<F>(
    mut request: Request<Full<Bytes>>,
    send: impl FnOnce(Request<Full<Bytes>>) -> F,
) -> Result<Answer, hyper::Error>
where
    F: Future<Output = Result<http::Response<hyper::body::Incoming>, hyper::Error>>,
{
    if request.uri().host().is_none() {
        request.headers_mut().insert("host", "localhost".parse().unwrap());
    }
    soon("an answer", async {
        let (head, body) = send(request).await?.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes(), trailers })
    })
    .await
}
