//! What `compare.py` drives TLS with: so many requests a connection, one of them for handshakes; no session is resumed.
//! Blocking sockets, one thread for each connection.
//!
//!     handshakes certificate FOLDER                        writes an ECDSA P-256 certificate and its key
//!     handshakes load CERTIFICATE ADDRESS PATH KEY CONNECTIONS SECONDS REQUESTS
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
        ["load", trusted, address, path, key, connections, seconds, requests] => {
            let request = format!("POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\n");
            let client = Client {
                config: Arc::new(config(Path::new(trusted))?),
                address: address.parse()?,
                request: format!("{request}content-length: 2\r\n\r\n{{}}").into_bytes(),
                last_request: format!("{request}connection: close\r\ncontent-length: 2\r\n\r\n{{}}").into_bytes(),
                requests: requests.parse()?,
            };
            load(&client, connections.parse()?, Duration::from_secs(seconds.parse()?));
            Ok(())
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

/// What each connection does.
struct Client {
    config: Arc<ClientConfig>,
    address: SocketAddr,
    request: Vec<u8>,
    /// The last of a connection.
    last_request: Vec<u8>,
    /// How many a connection makes.
    requests: u32,
}

fn load(client: &Client, connections: usize, time: Duration) {
    let end = Instant::now() + time;
    let (mut ok, mut failed) = (0, 0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..connections)
            .map(|_| {
                scope.spawn(|| {
                    let (mut ok, mut failed) = (0, 0);
                    while Instant::now() < end {
                        failed += u32::from(client.connection(end, &mut ok).is_err());
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

impl Client {
    /// A connection, its handshake, its requests and their answers, which are counted.
    fn connection(&self, end: Instant, ok: &mut u32) -> io::Result<()> {
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        let session = ClientConnection::new(self.config.clone(), name).map_err(io::Error::other)?;
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        let mut stream = StreamOwned::new(session, stream);
        for number in 1..=self.requests {
            let is_last = number == self.requests || Instant::now() >= end;
            stream.write_all(if is_last { &self.last_request } else { &self.request })?;
            receive(&mut stream)?;
            *ok += 1;
            if is_last {
                break;
            }
        }
        Ok(())
    }
}

/// One answer, which has to be 200 and say how long it is.
fn receive(stream: &mut impl Read) -> io::Result<()> {
    let (mut answer, mut read) = ([0; 4096], 0);
    loop {
        let more = stream.read(&mut answer[read..])?;
        read += more;
        let text = str::from_utf8(&answer[..read]).map_err(io::Error::other)?;
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .filter_map(|line| line.split_once(": "))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let length: Option<usize> = length.and_then(|(_, length)| length.parse().ok());
            if !head.starts_with("HTTP/1.1 200 ") || length.is_none_or(|length| body.len() > length) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if length == Some(body.len()) {
                return Ok(());
            }
        }
        if more == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
