//! Validation of TLS towards the replicas of a deployment.

use std::net::IpAddr;

use super::super::problem::{field_path, quoted};
use super::super::problem_collector::ProblemCollector;
use super::super::resource::RawUpstreamTls;
use super::super::tls::{CertificateSource, UpstreamTls};
use super::address;

/// Validates the TLS settings. Problems are reported.
pub(super) fn validate_upstream_tls(check: &mut ProblemCollector, path: &str, raw: &RawUpstreamTls) -> UpstreamTls {
    let at = |name| field_path(path, name);
    for (name, file) in [("caFile", &raw.ca_file), ("certFile", &raw.cert_file), ("keyFile", &raw.key_file)] {
        if file.as_deref() == Some("") {
            check.report(&at(name), "is empty; name a PEM file, relative to the document's folder");
        }
    }
    if let Some(name) = &raw.server_name {
        let is_name =
            name.parse::<IpAddr>().is_ok() || !name.contains(':') && address::validate_host_header(name).is_ok();
        if !is_name {
            let what = "which is not a host name or an IP address alone, such as `models.example`";
            check.report(&at("serverName"), format!("is {}, {what}", quoted(name)));
        }
    }
    let skip_verify = raw.skip_verify.unwrap_or(false);
    if skip_verify && raw.ca_file.is_some() {
        let what = "is true beside `caFile`, which would then not be looked at; remove one of the two";
        check.report(&at("skipVerify"), what);
    }
    let certificate = match (&raw.cert_file, &raw.key_file) {
        (Some(cert), Some(key)) => Some(CertificateSource::Pair { cert: cert.into(), key: key.into() }),
        (Some(_), None) => {
            check.report(&at("certFile"), "is given without `keyFile`; a certificate is of no use without its key");
            None
        }
        (None, Some(_)) => {
            check.report(&at("keyFile"), "is given without `certFile`; a key is of no use without its certificate");
            None
        }
        (None, None) => None,
    };
    let secret = raw.secret_ref.as_ref().map(|secret| secret.name.clone().unwrap_or_default());
    if let Some(name) = &secret {
        super::check_secret_name(check, &field_path(&at("secretRef"), "name"), name);
    }
    UpstreamTls {
        secret_name: secret,
        ca_file: raw.ca_file.as_ref().map(Into::into),
        server_name: raw.server_name.clone(),
        skip_verify,
        certificate,
    }
}
