//! Validation of `host:port`, as in `instances` and `host`.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Why a text is not `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AddressError {
    #[error("has a scheme; write only `host:port`")]
    Scheme,
    #[error("has a path; write only `host:port` (paths go into `scoringPath`)")]
    Path,
    #[error("has an IPv6 address without brackets; write `[::1]:5001`")]
    Brackets,
    #[error("has no port; write `host:port`, such as `127.0.0.1:5001`")]
    NoPort,
    #[error("has a port that is not a number from 1 to 65535")]
    Port,
    #[error("has no host name or IP address before the port")]
    Host,
}

/// Checks that `text` is `host:port` and can be connected to.
pub(super) fn validate_host_and_port(text: &str) -> Result<(), AddressError> {
    let (host, port) = split_host_and_port(text)?;
    validate_host(host)?;
    validate_port(port.ok_or(AddressError::NoPort)?)
}

/// Checks that `text` can be the value of a `host` header, in which the port may be missing.
pub(super) fn validate_host_header(text: &str) -> Result<(), AddressError> {
    let (host, port) = split_host_and_port(text)?;
    validate_host(host)?;
    port.map_or(Ok(()), validate_port)
}

fn split_host_and_port(text: &str) -> Result<(&str, Option<&str>), AddressError> {
    if text.contains("://") {
        return Err(AddressError::Scheme);
    }
    if text.contains(['/', '?', '#']) {
        return Err(AddressError::Path);
    }
    // Brackets belong to the host, so the last colon outside of them separates host and port.
    let after_brackets = text.rfind(']').unwrap_or(0);
    match text[after_brackets..].find(':') {
        Some(_) if after_brackets == 0 && text.matches(':').count() > 1 => Err(AddressError::Brackets),
        Some(colon) => Ok((&text[..after_brackets + colon], Some(&text[after_brackets + colon + 1..]))),
        None => Ok((text, None)),
    }
}

fn validate_port(port: &str) -> Result<(), AddressError> {
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(1..) if digits => Ok(()),
        _ => Err(AddressError::Port),
    }
}

fn validate_host(host: &str) -> Result<(), AddressError> {
    let valid = if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        inner.parse::<Ipv6Addr>().is_ok()
    } else if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        // What looks like an IPv4 address must be one: `10.0.0` is a mistake, not a host name.
        host.parse::<Ipv4Addr>().is_ok()
    } else {
        host.len() <= 253 && host.split('.').all(is_dns_label)
    };
    if valid { Ok(()) } else { Err(AddressError::Host) }
}

/// Underscores are not part of the standard, but many container names have them.
fn is_dns_label(label: &str) -> bool {
    let characters = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    characters && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_every_kind_are_taken() {
        for good in [
            "127.0.0.1:5001",
            "[::1]:5001",
            "[2001:db8::7]:80",
            "localhost:1",
            "model_1.team-a.svc.cluster.local:65535",
        ] {
            assert_eq!(validate_host_and_port(good), Ok(()), "{good}");
            assert_eq!(validate_host_header(good), Ok(()), "{good}");
        }
        for good in ["model.example", "[::1]", "10.0.0.1"] {
            assert_eq!(validate_host_header(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn each_slip_is_told_apart() {
        for (bad, why) in [
            ("http://127.0.0.1:5001", AddressError::Scheme),
            ("127.0.0.1:5001/score", AddressError::Path),
            ("::1:5001", AddressError::Brackets),
            ("127.0.0.1", AddressError::NoPort),
            ("[::1]", AddressError::NoPort),
            ("", AddressError::Host),
            (":5001", AddressError::Host),
            ("10.0.0:80", AddressError::Host),
            ("300.0.0.1:80", AddressError::Host),
            ("[10.0.0.1]:80", AddressError::Host),
            ("[::1:80", AddressError::Brackets),
            ("a b:80", AddressError::Host),
            ("user@host:80", AddressError::Host),
            ("-a:80", AddressError::Host),
            ("a..b:80", AddressError::Host),
            ("größe:80", AddressError::Host),
            ("host:", AddressError::Port),
            ("host:0", AddressError::Port),
            ("host:65536", AddressError::Port),
            ("host:+80", AddressError::Port),
            ("host:{port}", AddressError::Port),
        ] {
            assert_eq!(validate_host_and_port(bad), Err(why), "{bad}");
        }
    }
}
