//! The settings as written.

use serde_json::Value;

use crate::model::decode::{mapping, mappings};
use crate::model::duration::WrittenDuration;
use crate::model::resource::written;

written! {
    /// A settings file.
    pub(super) struct RawSettings {
        /// For clients.
        #[serde(deserialize_with = "mapping")]
        scoring: RawScoring,
        /// A TLS listener beside the plain one.
        #[serde(deserialize_with = "mapping")]
        scoring_tls: RawTls,
        /// For operators.
        #[serde(deserialize_with = "mapping")]
        admin: RawAdmin,
        /// `auto` or a number.
        workers: Value,
        /// `kubernetes` or `managed`.
        status_codes: String,
        /// What protects the router from clients.
        #[serde(deserialize_with = "mapping")]
        limits: RawLimits,
        /// How it leaves.
        #[serde(deserialize_with = "mapping")]
        shutdown: RawShutdown,
        /// Where the endpoints come from.
        #[serde(deserialize_with = "mapping")]
        endpoints: RawEndpoints,
        /// The router's own tokens.
        #[serde(deserialize_with = "mapping")]
        tokens: RawTokens,
        /// A later feature.
        fleet: Value,
        /// What is logged.
        #[serde(deserialize_with = "mapping")]
        log: RawLog,
    }

    /// `scoring`.
    pub(super) struct RawScoring {
        /// `IP:port`.
        address: String,
        /// TLS on this listener.
        #[serde(deserialize_with = "mapping")]
        tls: RawTls,
    }

    /// `scoringTls`, and `scoring.tls`, which has no address of its own.
    pub(super) struct RawTls {
        /// `IP:port`.
        address: String,
        /// The certificate, with the chain to its root.
        cert_file: String,
        /// Its key.
        key_file: String,
        /// A folder with both.
        cert_folder: String,
        /// A Secret with both.
        cert_secret: String,
        /// Several of them.
        #[serde(deserialize_with = "mappings")]
        certificates: Vec<Option<RawCertificate>>,
        /// `1.2` or `1.3`.
        min_version: Value,
        /// From accept to the end of the handshake.
        handshake_timeout: WrittenDuration,
        /// Who may have signed clients' certificates.
        client_ca_file: String,
    }

    /// One of `certificates`.
    pub(super) struct RawCertificate {
        /// The certificate, with the chain to its root.
        cert_file: String,
        /// Its key.
        key_file: String,
        /// A folder with both.
        cert_folder: String,
        /// A Secret with both.
        cert_secret: String,
    }

    /// `admin`.
    pub(super) struct RawAdmin {
        /// `IP:port`.
        address: String,
    }

    /// `limits`.
    pub(super) struct RawLimits {
        /// Largest body.
        max_payload_bytes: i64,
        /// Largest head.
        max_header_bytes: i64,
        /// Most header fields.
        max_headers: i64,
        /// Longest wait for a head.
        header_read_timeout: WrittenDuration,
        /// Longest silence inside a body.
        body_idle_timeout: WrittenDuration,
        /// Most connections.
        max_connections: i64,
        /// Longest idle connection.
        keep_alive_timeout: WrittenDuration,
        /// Memory of copies.
        mirror_buffer_bytes: i64,
    }

    /// `shutdown`.
    pub(super) struct RawShutdown {
        /// Between unready and closed.
        unready_delay: WrittenDuration,
        /// For requests in flight.
        drain_timeout: WrittenDuration,
    }

    /// `endpoints`.
    pub(super) struct RawEndpoints {
        /// Files and folders.
        files: Vec<Option<String>>,
        /// A cluster.
        #[serde(deserialize_with = "mapping")]
        kubernetes: RawKubernetes,
    }

    /// `endpoints.kubernetes`.
    pub(super) struct RawKubernetes {
        /// None: all.
        namespaces: Vec<Option<String>>,
        /// What scoring URIs begin with.
        scoring_url: String,
        /// The Service that clients reach the router by.
        service: String,
    }

    /// `tokens`.
    pub(super) struct RawTokens {
        /// As in `iss`.
        issuer: String,
        /// A private key.
        signing_key_file: String,
        /// Keys of before.
        previous_key_files: Vec<Option<String>>,
        /// A Secret with keys.
        signing_secret: String,
        /// How long a token is good.
        lifetime: WrittenDuration,
    }

    /// `log`.
    pub(super) struct RawLog {
        /// Least level.
        level: String,
        /// `json` or `text`.
        format: String,
        /// One line per request.
        access: bool,
    }
}

/// Sections that files may have one day: path, whether it is there, what to do meanwhile. Whoever builds one deletes
/// its line.
pub(super) type NotYet = (&'static str, fn(&RawSettings) -> bool, &'static str);

pub(super) const NOT_YET: &[NotYet] =
    &[("fleet", |raw| raw.fleet.is_some(), "is not supported by this version; remove it and run one router")];
