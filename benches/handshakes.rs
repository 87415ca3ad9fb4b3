//! What `compare.py` drives TLS handshakes with: each request is the only one of its connection, and no session is
//! resumed. Blocking sockets, one thread for each connection.
//!
//!     handshakes certificate FOLDER                        writes an ECDSA P-256 certificate and its key
//!     handshakes load CERTIFICATE ADDRESS PATH KEY CONNECTIONS SECONDS
//!
//! The result is one line of JSON.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// What certificates of [`certificate`] are for.
const NAME: &str = "127.0.0.1";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match &arguments[..] {
        ["certificate", folder] => certificate(Path::new(folder)),
        ["load", trusted, address, path, key, connections, seconds] => {
            let request = format!(
                "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\
                 content-length: 2\r\n\r\n{{}}"
            );
            let time = Duration::from_secs(seconds.parse()?);
            load(
                Arc::new(config(Path::new(trusted))?),
                address.parse()?,
                request.as_bytes(),
                connections.parse()?,
                time,
            )
        }
        _ => Err("usage: see the beginning of handshakes.rs".into()),
    }
}

fn certificate(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    std::fs::write(folder.join("tls.crt"), made.cert.pem())?;
    std::fs::write(folder.join("tls.key"), made.signing_key.serialize_pem())?;
    Ok(())
}

fn load(
    config: Arc<ClientConfig>,
    address: SocketAddr,
    request: &[u8],
    connections: usize,
    time: Duration,
) -> Result<(), Box<dyn std::error::Error>> {
    let end = Instant::now() + time;
    let (mut ok, mut failed) = (0, 0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..connections)
            .map(|_| {
                scope.spawn(|| {
                    let (mut ok, mut failed) = (0, 0);
                    while Instant::now() < end {
                        if call(address, request, &config).is_ok() { ok += 1 } else { failed += 1 }
                    }
                    (ok, failed)
                })
            })
            .collect();
        for client in clients {
            let (more_ok, more_failed) = client.join().unwrap_or((0, 1));
            (ok, failed) = (ok + more_ok, failed + more_failed);
        }
    });
    println!(r#"{{"ok": {ok}, "failed": {failed}}}"#);
    Ok(())
}

/// Trusts this one certificate.
fn config(trusted: &Path) -> Result<ClientConfig, Box<dyn std::error::Error>> {
    let mut provider = default_provider();
    provider.kx_groups = vec![kx_group::X25519];
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(trusted)?)?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// A connection, its handshake, a request and its answer.
fn call(address: SocketAddr, request: &[u8], config: &Arc<ClientConfig>) -> io::Result<()> {
    let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
    let session = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut stream = StreamOwned::new(session, stream);
    stream.write_all(request)?;
    let mut answer = Vec::new();
    let ended = stream.read_to_end(&mut answer);
    // Not everybody announces the end; whether all is there, the answer itself says.
    if answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"}") {
        Ok(())
    } else {
        Err(ended.err().unwrap_or(io::ErrorKind::InvalidData.into()))
    }
}
