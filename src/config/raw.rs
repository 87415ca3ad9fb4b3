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
        /// Several routers as one.
        #[serde(deserialize_with = "mapping")]
        fleet: RawFleet,
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

    /// `fleet`.
    pub(super) struct RawFleet {
        /// How routers reach each other.
        #[serde(deserialize_with = "mapping")]
        peer: RawPeer,
        /// Where it says who coordinates.
        #[serde(deserialize_with = "mapping")]
        lease: RawLease,
        /// How long a coordinator may be silent.
        lease_seconds: i64,
        /// `available` or `strict`.
        mode: String,
    }

    /// `fleet.peer`.
    pub(super) struct RawPeer {
        /// `IP:port`.
        address: String,
        /// `host:port`, as others call it.
        advertise: String,
        /// Certificates of all.
        #[serde(deserialize_with = "mapping")]
        tls: RawPeerTls,
        /// What all know.
        secret_file: String,
    }

    /// `fleet.peer.tls`.
    pub(super) struct RawPeerTls {
        /// The certificate, with the chain to its root.
        cert_file: String,
        /// Its key.
        key_file: String,
        /// A folder with both.
        cert_folder: String,
        /// Who has signed those of the others.
        ca_file: String,
        /// The name in all of them.
        server_name: String,
    }

    /// `fleet.lease`.
    pub(super) struct RawLease {
        /// In a file.
        file: String,
        /// In a cluster.
        #[serde(deserialize_with = "mapping")]
        kubernetes: RawLeaseObject,
    }

    /// `fleet.lease.kubernetes`.
    pub(super) struct RawLeaseObject {
        /// Of the `Lease`.
        name: String,
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
