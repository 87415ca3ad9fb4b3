//! The table of supported settings, with the default and the meaning of each.

use std::path::PathBuf;

use crate::model::duration::HumanDuration;
use crate::model::router_settings::StatusCodes;
use crate::model::tls::ServerTls;

use super::{RouterSettings, environment, tls};

/// One key of the settings file.
pub(super) struct SettingKey {
    /// The path of the key: `section.key`, or `key`.
    pub(super) path: &'static str,
    /// Returns the value of the key in some settings, as YAML.
    value: fn(&RouterSettings) -> String,
    description: &'static str,
    is_optional: bool,
}

/// A key of a section that is off unless it is given. The reference shows it as a comment with an example.
const fn optional_setting(
    path: &'static str,
    example: fn(&RouterSettings) -> String,
    about: &'static str,
) -> SettingKey {
    SettingKey { path, value: example, description: about, is_optional: true }
}

const fn setting(path: &'static str, value: fn(&RouterSettings) -> String, about: &'static str) -> SettingKey {
    SettingKey { path, value, description: about, is_optional: false }
}

/// All keys in the order of the reference. Keys of a section are adjacent.
pub(super) const SETTING_KEYS: &[SettingKey] = &[
    setting("scoring.address", |s| format!("{:?}", s.scoring.to_string()), "IP address and port for clients"),
    optional_setting("scoring.tls.certFile", |_| "tls.crt".to_owned(), CERT_FILE_DESCRIPTION),
    optional_setting("scoring.tls.keyFile", |_| "tls.key".to_owned(), KEY_FILE_DESCRIPTION),
    optional_setting("scoring.tls.certFolder", |_| "/etc/tls/".to_owned(), CERT_FOLDER_DESCRIPTION),
    optional_setting("scoring.tls.certSecret", |_| "router-tls".to_owned(), CERT_SECRET_DESCRIPTION),
    optional_setting("scoring.tls.certificates", |_| CERTIFICATES_EXAMPLE.to_owned(), CERTIFICATES_DESCRIPTION),
    optional_setting("scoring.tls.minVersion", default_min_version, MIN_VERSION_DESCRIPTION),
    optional_setting("scoring.tls.handshakeTimeout", default_handshake_timeout, HANDSHAKE_TIMEOUT_DESCRIPTION),
    optional_setting("scoring.tls.clientCaFile", |_| "clients-ca.crt".to_owned(), CLIENT_CA_FILE_DESCRIPTION),
    optional_setting(
        "scoringTls.address",
        |_| format!("{:?}", tls::DEFAULT_TLS_ADDRESS.to_string()),
        "IP address and port for clients with TLS, beside scoring.address",
    ),
    optional_setting("scoringTls.certFile", |_| "tls.crt".to_owned(), CERT_FILE_DESCRIPTION),
    optional_setting("scoringTls.keyFile", |_| "tls.key".to_owned(), KEY_FILE_DESCRIPTION),
    optional_setting("scoringTls.certFolder", |_| "/etc/tls/".to_owned(), CERT_FOLDER_DESCRIPTION),
    optional_setting("scoringTls.certSecret", |_| "router-tls".to_owned(), CERT_SECRET_DESCRIPTION),
    optional_setting("scoringTls.certificates", |_| CERTIFICATES_EXAMPLE.to_owned(), CERTIFICATES_DESCRIPTION),
    optional_setting("scoringTls.minVersion", default_min_version, MIN_VERSION_DESCRIPTION),
    optional_setting("scoringTls.handshakeTimeout", default_handshake_timeout, HANDSHAKE_TIMEOUT_DESCRIPTION),
    optional_setting("scoringTls.clientCaFile", |_| "clients-ca.crt".to_owned(), CLIENT_CA_FILE_DESCRIPTION),
    setting(
        "admin.address",
        |s| format!("{:?}", s.admin.to_string()),
        "IP address and port for operators and Prometheus; nobody is asked for a key here",
    ),
    setting(
        "workers",
        |s| s.workers.to_string(),
        "threads for requests; auto = the CPUs that this process may use, also in a container",
    ),
    setting(
        "statusCodes",
        |s| keyword_for(&STATUS_CODE_KEYWORDS, s.status_codes),
        "kubernetes (503 when busy, 504 when the model is late) | managed (429, 408 and 424, as Azure's managed endpoints)",
    ),
    setting("limits.maxPayloadBytes", |s| s.limits.max_payload_bytes.to_string(), "largest request body, in bytes"),
    setting(
        "limits.maxHeaderBytes",
        |s| s.limits.max_header_bytes.to_string(),
        "largest request head, in bytes; 8192 to 1048576",
    ),
    setting("limits.maxHeaders", |s| s.limits.max_headers.to_string(), "most header fields in a request"),
    setting(
        "limits.headerReadTimeout",
        |s| HumanDuration(s.limits.header_read_timeout).to_string(),
        "longest wait for a complete request head",
    ),
    setting(
        "limits.bodyIdleTimeout",
        |s| HumanDuration(s.limits.body_idle_timeout).to_string(),
        "longest silence inside a request body, and longest time that a client takes nothing of its response",
    ),
    setting("limits.maxConnections", |s| s.limits.max_connections.to_string(), "most client connections at once"),
    setting(
        "limits.keepAliveTimeout",
        |s| HumanDuration(s.limits.keep_alive_timeout).to_string(),
        "how long a connection may stay open without a request",
    ),
    setting(
        "limits.mirrorBufferBytes",
        |s| s.limits.mirror_buffer_bytes.to_string(),
        "memory that copies to shadows may hold together while they lag behind, in bytes; more are given up",
    ),
    setting(
        "shutdown.unreadyDelay",
        |s| HumanDuration(s.shutdown.unready_delay).to_string(),
        "how long requests are still accepted after /readyz says no, so that load balancers notice",
    ),
    setting(
        "shutdown.drainTimeout",
        |s| HumanDuration(s.shutdown.drain_timeout).to_string(),
        "how long requests in flight may then still take",
    ),
    setting(
        "endpoints.files",
        |s| yaml_path_list(&s.endpoint_files),
        "files and folders with OnlineEndpoint documents, relative to this file; watched for changes",
    ),
    optional_setting(
        "endpoints.kubernetes.namespaces",
        |_| "[]".to_owned(),
        "instead of files, a cluster: namespaces whose OnlineEndpoints count; empty: all. KUBECONFIG, or else the pod's \
         service account, says which cluster",
    ),
    optional_setting(
        "endpoints.kubernetes.scoringUrl",
        |_| "https://models.example".to_owned(),
        "where clients reach the router: what scoring URIs in statuses begin with",
    ),
    optional_setting(
        "endpoints.kubernetes.service",
        |_| "inference-router".to_owned(),
        "instead of scoringUrl: the Service of the router's own namespace that clients reach it by",
    ),
    setting(
        "tokens.issuer",
        |s| s.tokens.issuer.clone(),
        "who issues the router's own tokens, for `authMode: aml_token`",
    ),
    setting(
        "tokens.signingKeyFile",
        |s| format!("{:?}", s.tokens.signing_key_file.clone().unwrap_or_default().to_string_lossy()),
        "private key (PEM, Ed25519 or P-256) that they are signed with, relative to this file; empty: it issues none",
    ),
    setting(
        "tokens.previousKeyFiles",
        |s| yaml_path_list(&s.tokens.previous_key_files),
        "keys of before, or to come, private or public, whose tokens are good too",
    ),
    optional_setting(
        "tokens.signingSecret",
        |_| "router-signing".to_owned(),
        "instead of files, in a cluster: a Secret of the router's own namespace with the key under signingKey, and keys \
         of before under names that begin with previousKey",
    ),
    setting(
        "tokens.lifetime",
        |s| HumanDuration(s.tokens.lifetime).to_string(),
        "how long a token is good; 1m to 720h",
    ),
    optional_setting(
        "fleet.leaderLock",
        |_| "{file: /shared/leader}".to_owned(),
        "makes several routers act as one; without it a router is alone. The leader lock says which router is the \
         coordinator: a file that all routers share, or {kubernetes: {name: inference-router}}, a Lease object of the \
         router's own namespace",
    ),
    optional_setting(
        "fleet.termSeconds",
        |_| super::fleet::DEFAULT_TERM_SECONDS.to_string(),
        "how long a coordinator may be silent until another router takes over; slots are leased for twice as long; 1 to 60",
    ),
    optional_setting(
        "fleet.mode",
        |_| keyword_for(&super::fleet::PARTITION_MODES, crate::model::fleet::PartitionMode::Available),
        "what a router does when it is cut off for longer than its leases last: available (it uses its fair share of slots, so a \
         replica may get more requests than its cap) | strict (it answers 503)",
    ),
    optional_setting(
        "fleet.peer.address",
        |_| format!("{:?}", super::fleet::DEFAULT_PEER_ADDRESS.to_string()),
        "IP address and port for the other routers",
    ),
    optional_setting(
        "fleet.peer.advertise",
        |_| "10.0.0.5:7070".to_owned(),
        "host and port at which the other routers reach this one, and its name in the fleet; default: the address, if others can connect to it",
    ),
    optional_setting("fleet.peer.tls", |_| PEER_TLS_EXAMPLE.to_owned(), PEER_TLS_DESCRIPTION),
    optional_setting(
        "fleet.peer.secretFile",
        |_| "fleet-secret".to_owned(),
        "file with a secret that only the routers of the fleet know",
    ),
    setting("log.level", |s| keyword_for(&super::LOG_LEVELS, s.log.level), "error | warn | info | debug | trace"),
    setting("log.format", |s| keyword_for(&super::LOG_FORMATS, s.log.format), "json | text; on stderr"),
    setting("log.access", |s| s.log.access.to_string(), "one line for each request"),
];

const PEER_TLS_DESCRIPTION: &str = "between routers, each shows a certificate, and all are signed by caFile; serverName: the name in \
                        them, if it is not the host of `advertise`. Needed where others than this machine reach the address";
const PEER_TLS_EXAMPLE: &str = "{certFile: peer.crt, keyFile: peer.key, caFile: peers-ca.crt, serverName: router}";
const CERT_FILE_DESCRIPTION: &str =
    "PEM: the certificate, then its chain; files are watched, a change counts within a second";
const KEY_FILE_DESCRIPTION: &str = "PEM: its private key, without a passphrase";
const CERT_FOLDER_DESCRIPTION: &str = "instead of the two: a folder with tls.crt and tls.key, or cert.pem and key.pem";
const CERT_SECRET_DESCRIPTION: &str =
    "instead of files, in a cluster: a Secret of the router's own namespace with tls.crt and tls.key";
const CERTIFICATES_DESCRIPTION: &str =
    "instead of those: several, chosen by the names in them; the first is for all other names";
const CERTIFICATES_EXAMPLE: &str = "[{certFile: a.crt, keyFile: a.key}, {certFolder: b/}]";
const MIN_VERSION_DESCRIPTION: &str = "oldest version of TLS: \"1.2\" | \"1.3\"";
const HANDSHAKE_TIMEOUT_DESCRIPTION: &str = "longest time from the accept to the end of the handshake";
const CLIENT_CA_FILE_DESCRIPTION: &str = "PEM: clients must show a certificate that one of these has signed";

fn default_min_version(_: &RouterSettings) -> String {
    format!("{:?}", keyword_for(&tls::TLS_VERSIONS, ServerTls::default().min_version))
}

fn default_handshake_timeout(_: &RouterSettings) -> String {
    HumanDuration(ServerTls::default().handshake_timeout).to_string()
}

/// Keywords of `statusCodes` and their values.
pub(super) const STATUS_CODE_KEYWORDS: [(&str, StatusCodes); 2] =
    [("kubernetes", StatusCodes::Kubernetes), ("managed", StatusCodes::Managed)];

fn keyword_for<T: PartialEq>(words: &[(&str, T)], value: T) -> String {
    words.iter().find(|(_, known)| *known == value).map(|(word, _)| (*word).to_owned()).unwrap_or_default()
}

fn yaml_path_list(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| format!("{:?}", path.to_string_lossy())).collect();
    format!("[{}]", paths.join(", "))
}

/// A key of the settings file, as the reference documentation shows it.
#[derive(Debug, Clone)]
pub struct SettingDescription {
    /// Where the key is, such as `limits.maxHeaders`.
    pub path: &'static str,
    /// The environment variable that overrides the key.
    pub variable: String,
    /// The default as YAML, or an example where the key is optional.
    pub value: String,
    /// What the key is for.
    pub about: &'static str,
    /// Whether the key is off unless it is given.
    pub is_optional: bool,
}

/// Describes every supported key, in the order of the reference.
pub fn setting_keys() -> Vec<SettingDescription> {
    let defaults = RouterSettings::default();
    let describe = |key: &SettingKey| SettingDescription {
        path: key.path,
        variable: environment::variable_name(key.path),
        value: (key.value)(&defaults),
        about: key.description,
        is_optional: key.is_optional,
    };
    SETTING_KEYS.iter().map(describe).collect()
}

/// Returns a settings file with every supported key at its default. `config/reference.yaml` is this text.
pub fn reference_yaml() -> String {
    let settings = RouterSettings::default();
    let mut text = format!(
        "# Every setting of the router process, at its default. A file needs only the keys it changes.\n\
         # Durations are a whole number with a unit: 500ms, 10s, 5m, 1h.\n\
         # Each key can also be set by a variable of the environment, which then counts:\n\
         #   {}=200 is limits.maxHeaders\n",
        environment::variable_name("limits.maxHeaders")
    );
    let mut section = "";
    for SettingKey { path, value, description: about, is_optional: optional } in SETTING_KEYS {
        let value = value(&settings);
        let Some((of, name)) = path.rsplit_once('.') else {
            section = "";
            text.push_str(&format!("\n# {about}\n{path}: {value}\n"));
            continue;
        };
        // Optional keys are comments, indented by two spaces for each level.
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
