//! Every supported key, with its default and what it is for.

use std::path::PathBuf;

use crate::model::duration::WrittenDuration;
use crate::model::limits::StatusCodes;
use crate::model::tls::ServerTls;

use super::{Settings, environment, tls};

/// One key of the settings file.
pub(super) struct Key {
    /// `section.key`, or `key`.
    pub(super) path: &'static str,
    /// Its value in some settings, as YAML.
    value: fn(&Settings) -> String,
    about: &'static str,
    optional: bool,
}

/// Keys of sections that are off unless they are written; shown as comments, with an example.
const fn optional(path: &'static str, example: fn(&Settings) -> String, about: &'static str) -> Key {
    Key { path, value: example, about, optional: true }
}

const fn key(path: &'static str, value: fn(&Settings) -> String, about: &'static str) -> Key {
    Key { path, value, about, optional: false }
}

/// In the order of the reference; keys of a section stand together.
pub(super) const KEYS: &[Key] = &[
    key("scoring.address", |s| format!("{:?}", s.scoring.to_string()), "IP address and port for clients"),
    optional("scoring.tls.certFile", |_| "tls.crt".to_owned(), CERT_FILE),
    optional("scoring.tls.keyFile", |_| "tls.key".to_owned(), KEY_FILE),
    optional("scoring.tls.certFolder", |_| "/etc/tls/".to_owned(), CERT_FOLDER),
    optional("scoring.tls.certSecret", |_| "router-tls".to_owned(), CERT_SECRET),
    optional("scoring.tls.certificates", |_| CERTIFICATES_EXAMPLE.to_owned(), CERTIFICATES),
    optional("scoring.tls.minVersion", min_version, MIN_VERSION),
    optional("scoring.tls.handshakeTimeout", handshake_timeout, HANDSHAKE_TIMEOUT),
    optional("scoring.tls.clientCaFile", |_| "clients-ca.crt".to_owned(), CLIENT_CA_FILE),
    optional(
        "scoringTls.address",
        |_| format!("{:?}", tls::DEFAULT_ADDRESS.to_string()),
        "IP address and port for clients with TLS, beside scoring.address",
    ),
    optional("scoringTls.certFile", |_| "tls.crt".to_owned(), CERT_FILE),
    optional("scoringTls.keyFile", |_| "tls.key".to_owned(), KEY_FILE),
    optional("scoringTls.certFolder", |_| "/etc/tls/".to_owned(), CERT_FOLDER),
    optional("scoringTls.certSecret", |_| "router-tls".to_owned(), CERT_SECRET),
    optional("scoringTls.certificates", |_| CERTIFICATES_EXAMPLE.to_owned(), CERTIFICATES),
    optional("scoringTls.minVersion", min_version, MIN_VERSION),
    optional("scoringTls.handshakeTimeout", handshake_timeout, HANDSHAKE_TIMEOUT),
    optional("scoringTls.clientCaFile", |_| "clients-ca.crt".to_owned(), CLIENT_CA_FILE),
    key(
        "admin.address",
        |s| format!("{:?}", s.admin.to_string()),
        "IP address and port for operators and Prometheus; nobody is asked for a key here",
    ),
    key(
        "workers",
        |s| s.workers.to_string(),
        "threads for requests; auto = the CPUs that this process may use, also in a container",
    ),
    key(
        "statusCodes",
        |s| word(&STATUS_CODES, s.status_codes),
        "kubernetes (503 when busy, 504 when the model is late) | managed (429, 408 and 424, as Azure's managed endpoints)",
    ),
    key("limits.maxPayloadBytes", |s| s.limits.max_payload_bytes.to_string(), "largest request body, in bytes"),
    key(
        "limits.maxHeaderBytes",
        |s| s.limits.max_header_bytes.to_string(),
        "largest request head, in bytes; 8192 to 1048576",
    ),
    key("limits.maxHeaders", |s| s.limits.max_headers.to_string(), "most header fields in a request"),
    key(
        "limits.headerReadTimeout",
        |s| WrittenDuration(s.limits.header_read_timeout).to_string(),
        "longest wait for a complete request head",
    ),
    key(
        "limits.bodyIdleTimeout",
        |s| WrittenDuration(s.limits.body_idle_timeout).to_string(),
        "longest silence inside a request body, and longest time that a client takes nothing of its response",
    ),
    key("limits.maxConnections", |s| s.limits.max_connections.to_string(), "most client connections at once"),
    key(
        "limits.keepAliveTimeout",
        |s| WrittenDuration(s.limits.keep_alive_timeout).to_string(),
        "how long a connection may stay open without a request",
    ),
    key(
        "limits.mirrorBufferBytes",
        |s| s.limits.mirror_buffer_bytes.to_string(),
        "memory that copies to shadows may hold together while they lag behind, in bytes; more are given up",
    ),
    key(
        "shutdown.unreadyDelay",
        |s| WrittenDuration(s.shutdown.unready_delay).to_string(),
        "how long requests are still accepted after /readyz says no, so that load balancers notice",
    ),
    key(
        "shutdown.drainTimeout",
        |s| WrittenDuration(s.shutdown.drain_timeout).to_string(),
        "how long requests in flight may then still take",
    ),
    key(
        "endpoints.files",
        |s| paths(&s.endpoint_files),
        "files and folders with OnlineEndpoint documents, relative to this file; watched for changes",
    ),
    optional(
        "endpoints.kubernetes.namespaces",
        |_| "[]".to_owned(),
        "instead of files, a cluster: namespaces whose OnlineEndpoints count; empty: all. KUBECONFIG, or else the pod's \
         service account, says which cluster",
    ),
    optional(
        "endpoints.kubernetes.scoringUrl",
        |_| "https://models.example".to_owned(),
        "where clients reach the router: what scoring URIs in statuses begin with",
    ),
    optional(
        "endpoints.kubernetes.service",
        |_| "inference-router".to_owned(),
        "instead of scoringUrl: the Service of the router's own namespace that clients reach it by",
    ),
    key("tokens.issuer", |s| s.tokens.issuer.clone(), "who issues the router's own tokens, for `authMode: aml_token`"),
    key(
        "tokens.signingKeyFile",
        |s| format!("{:?}", s.tokens.signing_key_file.clone().unwrap_or_default().to_string_lossy()),
        "private key (PEM, Ed25519 or P-256) that they are signed with, relative to this file; empty: it issues none",
    ),
    key(
        "tokens.previousKeyFiles",
        |s| paths(&s.tokens.previous_key_files),
        "keys of before, or to come, private or public, whose tokens are good too",
    ),
    optional(
        "tokens.signingSecret",
        |_| "router-signing".to_owned(),
        "instead of files, in a cluster: a Secret of the router's own namespace with the key under signingKey, and keys \
         of before under names that begin with previousKey",
    ),
    key("tokens.lifetime", |s| WrittenDuration(s.tokens.lifetime).to_string(), "how long a token is good; 1m to 720h"),
    optional(
        "fleet.lease",
        |_| "{file: /shared/leader}".to_owned(),
        "several routers as one (without this a router is alone): where the group writes down who coordinates: a file that all share, or {kubernetes: {name: inference-router}}, a \
         Lease of the router's own namespace",
    ),
    optional(
        "fleet.leaseSeconds",
        |_| super::fleet::DEFAULT_LEASE_SECONDS.to_string(),
        "how long a coordinator may be silent until another takes over; slots are leased for twice as long; 1 to 60",
    ),
    optional(
        "fleet.mode",
        |_| word(&super::fleet::MODES, crate::model::fleet::Mode::Available),
        "what a router does that is cut off for longer: available (serves with its fair share, and a replica may get more \
         requests than it should) | strict (answers 503)",
    ),
    optional(
        "fleet.peer.address",
        |_| format!("{:?}", super::fleet::DEFAULT_ADDRESS.to_string()),
        "IP address and port for the other routers",
    ),
    optional(
        "fleet.peer.advertise",
        |_| "10.0.0.5:7070".to_owned(),
        "host and port that they reach this one by, its name in the group; default: the address, if it is one",
    ),
    optional("fleet.peer.tls", |_| PEER_TLS_EXAMPLE.to_owned(), PEER_TLS),
    optional(
        "fleet.peer.secretFile",
        |_| "fleet-secret".to_owned(),
        "file with a text that every router of the group, and nobody else, knows",
    ),
    key("log.level", |s| word(&super::LEVELS, s.log.level), "error | warn | info | debug | trace"),
    key("log.format", |s| word(&super::FORMATS, s.log.format), "json | text; on stderr"),
    key("log.access", |s| s.log.access.to_string(), "one line for each request"),
];

const PEER_TLS: &str = "between routers, each shows a certificate, and all are signed by caFile; serverName: the name in \
                        them, if it is not the host of `advertise`. Needed where others than this machine reach the address";
const PEER_TLS_EXAMPLE: &str = "{certFile: peer.crt, keyFile: peer.key, caFile: peers-ca.crt, serverName: router}";
const CERT_FILE: &str = "PEM: the certificate, then its chain; files are watched, a change counts within a second";
const KEY_FILE: &str = "PEM: its private key, without a passphrase";
const CERT_FOLDER: &str = "instead of the two: a folder with tls.crt and tls.key, or cert.pem and key.pem";
const CERT_SECRET: &str =
    "instead of files, in a cluster: a Secret of the router's own namespace with tls.crt and tls.key";
const CERTIFICATES: &str = "instead of those: several, chosen by the names in them; the first is for all other names";
const CERTIFICATES_EXAMPLE: &str = "[{certFile: a.crt, keyFile: a.key}, {certFolder: b/}]";
const MIN_VERSION: &str = "oldest version of TLS: \"1.2\" | \"1.3\"";
const HANDSHAKE_TIMEOUT: &str = "longest time from the accept to the end of the handshake";
const CLIENT_CA_FILE: &str = "PEM: clients must show a certificate that one of these has signed";

fn min_version(_: &Settings) -> String {
    format!("{:?}", word(&tls::VERSIONS, ServerTls::default().min_version))
}

fn handshake_timeout(_: &Settings) -> String {
    WrittenDuration(ServerTls::default().handshake_timeout).to_string()
}

/// As written, and what it means.
pub(super) const STATUS_CODES: [(&str, StatusCodes); 2] =
    [("kubernetes", StatusCodes::Kubernetes), ("managed", StatusCodes::Managed)];

fn word<T: PartialEq>(words: &[(&str, T)], value: T) -> String {
    words.iter().find(|(_, known)| *known == value).map(|(word, _)| (*word).to_owned()).unwrap_or_default()
}

fn paths(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| format!("{:?}", path.to_string_lossy())).collect();
    format!("[{}]", paths.join(", "))
}

/// A settings file with every supported key at its default; `config/reference.yaml` is this text.
pub fn reference() -> String {
    let settings = Settings::default();
    let mut text = format!(
        "# Every setting of the router process, at its default. A file needs only the keys it changes.\n\
         # Durations are a whole number with a unit: 500ms, 10s, 5m, 1h.\n\
         # Each key can also be set by a variable of the environment, which then counts:\n\
         #   {}=200 is limits.maxHeaders\n",
        environment::variable("limits.maxHeaders")
    );
    let mut section = "";
    for Key { path, value, about, optional } in KEYS {
        let value = value(&settings);
        let Some((of, name)) = path.rsplit_once('.') else {
            section = "";
            text.push_str(&format!("\n# {about}\n{path}: {value}\n"));
            continue;
        };
        // What is off stands as a comment, with two spaces a level.
        let (outer, inner) = of.rsplit_once('.').map_or(("", of), |(outer, inner)| (outer, inner));
        let indent = if outer.is_empty() { "" } else { "  " };
        let mark = if *optional { "# " } else { "" };
        if of != section {
            let gap = if outer.is_empty() { "\n" } else { "" };
            section = of;
            text.push_str(&format!("{gap}{indent}{mark}{inner}:\n"));
        }
        text.push_str(&format!("{indent}{mark}  # {about}\n{indent}{mark}  {name}: {value}\n"));
    }
    text
}
