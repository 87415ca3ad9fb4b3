//! The settings file as it is written.

use serde_json::Value;

use crate::model::decode::{mapping, mappings};
use crate::model::duration::HumanDuration;
use crate::model::resource::config_struct;

config_struct! {
    /// A settings file.
    pub(super) struct RawSettings {
        /// The scoring listener.
        #[serde(deserialize_with = "mapping")]
        scoring: RawScoring,
        /// A scoring listener with TLS beside the plain one.
        #[serde(deserialize_with = "mapping")]
        scoring_tls: RawTls,
        /// The admin listener.
        #[serde(deserialize_with = "mapping")]
        admin: RawAdmin,
        /// Number of data-plane threads: `auto` or a number.
        workers: Value,
        /// Status codes of the router's own errors: `kubernetes` or `managed`.
        status_codes: String,
        /// Limits that protect the router from clients.
        #[serde(deserialize_with = "mapping")]
        limits: RawLimits,
        /// How the router shuts down.
        #[serde(deserialize_with = "mapping")]
        shutdown: RawShutdown,
        /// Where endpoints come from.
        #[serde(deserialize_with = "mapping")]
        endpoints: RawEndpoints,
        /// The router's own tokens.
        #[serde(deserialize_with = "mapping")]
        tokens: RawTokens,
        /// Settings of the fleet. Without them the router is alone.
        #[serde(deserialize_with = "mapping")]
        fleet: RawFleet,
        /// What is logged.
        #[serde(deserialize_with = "mapping")]
        log: RawLog,
    }

    /// The section `scoring`.
    pub(super) struct RawScoring {
        /// `IP:port` of the listener.
        address: String,
        /// TLS on this listener.
        #[serde(deserialize_with = "mapping")]
        tls: RawTls,
    }

    /// The section `scoringTls`, and `scoring.tls`, which has no address of its own.
    pub(super) struct RawTls {
        /// `IP:port` of the listener.
        address: String,
        /// Path of the certificate with its chain.
        cert_file: String,
        /// Path of the private key.
        key_file: String,
        /// Path of a folder with certificate and key.
        cert_folder: String,
        /// Name of a Secret with certificate and key.
        cert_secret: String,
        /// Several certificates.
        #[serde(deserialize_with = "mappings")]
        certificates: Vec<Option<RawCertificate>>,
        /// The oldest accepted version: `1.2` or `1.3`.
        min_version: Value,
        /// The longest time from accept to the end of the handshake.
        handshake_timeout: HumanDuration,
        /// Path of the certificate authorities of clients.
        client_ca_file: String,
    }

    /// An item of `certificates`.
    pub(super) struct RawCertificate {
        /// Path of the certificate with its chain.
        cert_file: String,
        /// Path of the private key.
        key_file: String,
        /// Path of a folder with certificate and key.
        cert_folder: String,
        /// Name of a Secret with certificate and key.
        cert_secret: String,
    }

    /// The section `admin`.
    pub(super) struct RawAdmin {
        /// `IP:port` of the listener.
        address: String,
    }

    /// The section `limits`.
    pub(super) struct RawLimits {
        /// Largest request body, in bytes.
        max_payload_bytes: i64,
        /// Largest request head, in bytes.
        max_header_bytes: i64,
        /// Largest number of header fields.
        max_headers: i64,
        /// Longest wait for a request head.
        header_read_timeout: HumanDuration,
        /// Longest silence inside a body.
        body_idle_timeout: HumanDuration,
        /// Largest number of client connections.
        max_connections: i64,
        /// Longest time that a connection may be idle.
        keep_alive_timeout: HumanDuration,
        /// Memory of mirrored requests, in bytes.
        mirror_buffer_bytes: i64,
    }

    /// The section `shutdown`.
    pub(super) struct RawShutdown {
        /// Time between not ready and not accepting.
        unready_delay: HumanDuration,
        /// Time for requests in flight.
        drain_timeout: HumanDuration,
    }

    /// The section `endpoints`.
    pub(super) struct RawEndpoints {
        /// Files and folders with endpoint documents.
        files: Vec<Option<String>>,
        /// A Kubernetes cluster with endpoint objects.
        #[serde(deserialize_with = "mapping")]
        kubernetes: RawKubernetes,
    }

    /// The section `endpoints.kubernetes`.
    pub(super) struct RawKubernetes {
        /// Watched namespaces; empty for all.
        namespaces: Vec<Option<String>>,
        /// The address that scoring URIs begin with.
        scoring_url: String,
        /// Name of the Service through which clients reach the router.
        service: String,
    }

    /// The section `tokens`.
    pub(super) struct RawTokens {
        /// The issuer, as in `iss`.
        issuer: String,
        /// Path of the private key.
        signing_key_file: String,
        /// Paths of previous keys.
        previous_key_files: Vec<Option<String>>,
        /// Name of a Secret with the keys.
        signing_secret: String,
        /// How long a token is valid.
        lifetime: HumanDuration,
    }

    /// The section `fleet`.
    pub(super) struct RawFleet {
        /// How routers connect to each other.
        #[serde(deserialize_with = "mapping")]
        peer: RawPeer,
        /// Where the leader lock is. `lease` is accepted as another name.
        #[serde(deserialize_with = "mapping", alias = "lease")]
        leader_lock: RawLeaderLock,
        /// Seconds for which a coordinator may be silent. `leaseSeconds` is accepted as another name.
        #[serde(alias = "leaseSeconds")]
        term_seconds: i64,
        /// What a router does that is cut off: `available` or `strict`.
        mode: String,
    }

    /// The section `fleet.peer`.
    pub(super) struct RawPeer {
        /// `IP:port` of the peer listener.
        address: String,
        /// `host:port` at which other routers reach this one.
        advertise: String,
        /// Certificates of the routers.
        #[serde(deserialize_with = "mapping")]
        tls: RawPeerTls,
        /// Path of the fleet secret.
        secret_file: String,
    }

    /// The section `fleet.peer.tls`.
    pub(super) struct RawPeerTls {
        /// Path of the certificate with its chain.
        cert_file: String,
        /// Path of the private key.
        key_file: String,
        /// Path of a folder with certificate and key.
        cert_folder: String,
        /// Path of the certificate authorities of the other routers.
        ca_file: String,
        /// The name in the certificates of all routers.
        server_name: String,
    }

    /// The section `fleet.leaderLock`.
    pub(super) struct RawLeaderLock {
        /// Path of a file that all routers share.
        file: String,
        /// A Kubernetes `Lease` object.
        #[serde(deserialize_with = "mapping")]
        kubernetes: RawLeaseObject,
    }

    /// The section `fleet.leaderLock.kubernetes`.
    pub(super) struct RawLeaseObject {
        /// Name of the Kubernetes `Lease` object.
        name: String,
    }

    /// The section `log`.
    pub(super) struct RawLog {
        /// The lowest level that is logged.
        level: String,
        /// The format of log lines: `json` or `text`.
        format: String,
        /// Whether each request gets a line.
        access: bool,
    }
}
