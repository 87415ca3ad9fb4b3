//! Validation of listener TLS: `scoring.tls` and `scoringTls`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use super::raw::{RawCertificate, RawTls};
use super::{TIMEOUT_RANGE, TlsListener, duration_in_range, parse_socket_address};
use crate::model::problem::{field_path, item_path};
use crate::model::problem_collector::ProblemCollector;
use crate::model::tls::{CertificateSource, ServerTls, TlsVersion};

/// Keywords of `minVersion` and their values.
pub(super) const TLS_VERSIONS: [(&str, TlsVersion); 2] = [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];
/// The address of the TLS listener if none is given.
pub(super) const DEFAULT_TLS_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8443);

/// Validates `scoring.tls`, for the listener that has its address already.
pub(super) fn scoring_tls(check: &mut ProblemCollector, raw: &RawTls, folder: &Path) -> ServerTls {
    const PATH: &str = "scoring.tls";
    if raw.address.is_some() {
        check.report(&field_path(PATH, "address"), "is written one level too deep; write it as `scoring.address`");
    }
    server_tls(check, PATH, raw, folder)
}

/// Validates `scoringTls`, a listener of its own.
pub(super) fn tls_listener(check: &mut ProblemCollector, raw: &RawTls, folder: &Path) -> TlsListener {
    const PATH: &str = "scoringTls";
    let address =
        parse_socket_address(check, &field_path(PATH, "address"), raw.address.as_deref(), DEFAULT_TLS_ADDRESS);
    TlsListener { address, tls: server_tls(check, PATH, raw, folder) }
}

fn server_tls(check: &mut ProblemCollector, path: &str, raw: &RawTls, folder: &Path) -> ServerTls {
    let at = |name| field_path(path, name);
    let default = ServerTls::default();
    let own = RawCertificate {
        cert_file: raw.cert_file.clone(),
        key_file: raw.key_file.clone(),
        cert_folder: raw.cert_folder.clone(),
        cert_secret: raw.cert_secret.clone(),
    };
    let certificates = match &raw.certificates {
        None => certificate_source(check, path, &own, folder).into_iter().collect(),
        Some(several) => {
            if own != RawCertificate::default() {
                let what = "is given beside `certFile`, `keyFile`, `certFolder` or `certSecret`; list every certificate \
                            here, the default first";
                check.report(&at("certificates"), what);
            }
            if several.is_empty() {
                check.report(&at("certificates"), "is empty; write at least one `{certFile: …, keyFile: …}`");
            }
            let several = several.iter().enumerate().map(|(index, raw)| {
                let nothing = RawCertificate::default();
                certificate_source(
                    check,
                    &item_path(&at("certificates"), index),
                    raw.as_ref().unwrap_or(&nothing),
                    folder,
                )
            });
            several.collect::<Vec<_>>().into_iter().flatten().collect()
        }
    };
    if raw.client_ca_file.as_deref() == Some("") {
        check.report(&at("clientCaFile"), "is empty; name a PEM file, or remove it to ask clients for no certificate");
    }
    // In an environment variable, quotes that make the number a text are unusual.
    let min_version =
        raw.min_version.as_ref().map(|version| version.as_str().map_or(version.to_string(), str::to_owned));
    let min_version =
        check.keyword(&at("minVersion"), min_version.as_deref(), &TLS_VERSIONS).unwrap_or(default.min_version);
    ServerTls {
        certificates,
        min_version,
        handshake_timeout: duration_in_range(
            check,
            &at("handshakeTimeout"),
            raw.handshake_timeout,
            TIMEOUT_RANGE,
            default.handshake_timeout,
        ),
        client_ca_file: raw.client_ca_file.as_ref().map(|file| folder.join(file)),
    }
}

/// Returns the source of one certificate. Paths are relative to the settings file's folder.
pub(super) fn certificate_source(
    check: &mut ProblemCollector,
    path: &str,
    raw: &RawCertificate,
    folder: &Path,
) -> Option<CertificateSource> {
    let given = [
        ("certFile", &raw.cert_file),
        ("keyFile", &raw.key_file),
        ("certFolder", &raw.cert_folder),
        ("certSecret", &raw.cert_secret),
    ];
    let mut complete = true;
    for (name, _) in given.iter().filter(|(_, file)| file.as_deref() == Some("")) {
        check.report(&field_path(path, name), "is empty; name a file, a folder or a Secret");
        complete = false;
    }
    if !complete {
        return None;
    }
    if let Some(name) = &raw.cert_secret {
        let others = &given[..3];
        if let Some((other, _)) = others.iter().find(|(_, file)| file.is_some()) {
            check.report(&field_path(path, "certSecret"), format!("is given beside `{other}`; write one or the other"));
        }
        return Some(CertificateSource::Secret(name.clone()));
    }
    match (&raw.cert_file, &raw.key_file, &raw.cert_folder) {
        (Some(cert), Some(key), None) => {
            Some(CertificateSource::Pair { cert: folder.join(cert), key: folder.join(key) })
        }
        (None, None, Some(mount)) => Some(CertificateSource::Folder(folder.join(mount))),
        (None, None, None) => {
            let how = "write `certFile` and `keyFile`, or `certFolder` for a folder with tls.crt and tls.key, or in a \
                       cluster `certSecret`";
            check.report(path, format!("does not say where its certificate is; {how}"));
            None
        }
        (_, _, Some(_)) => {
            check.report(
                &field_path(path, "certFolder"),
                "is given beside `certFile` or `keyFile`; write one or the other",
            );
            None
        }
        (None, ..) => {
            check.report(&field_path(path, "certFile"), "is missing; `keyFile` alone is not enough");
            None
        }
        (Some(_), None, None) => {
            check.report(&field_path(path, "keyFile"), "is missing; `certFile` alone is not enough");
            None
        }
    }
}
